//! What the database says: each row by itself, and the rows with each other in the order of their changes.

use std::collections::{BTreeMap, HashMap, HashSet};

use domain_model::{OperationId, OperationStatus as Status, Timestamp};

use super::{Found, Lives, Rule};
use crate::history::{Change, History, What, steps_done};

/// The protocol: an operation that has lost so many leases fails.
const MOST_LEASE_LOSSES: u32 = 10;

pub(super) fn check(history: &History, lives: &Lives<'_>, found: &mut Found) {
    for (op_id, life) in lives {
        life_of(*op_id, life, found);
    }
    keys(history, found);
    caps(history, found);
    late_children(history, lives, found);
    families(history, found);
}

fn life_of(op_id: OperationId, life: &[&Change], found: &mut Found) {
    let first = life[0];
    if first.what != What::Insert || first.status != Status::Queued || first.attempt != 0 {
        found.add(Rule::IllegalTransition, op_id, format!("it begins as {}", brief(first)));
    }
    let mut leases = HashSet::new();
    for pair in life.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let say = || format!("{} → {}", brief(before), brief(after));
        if after.what == What::Delete {
            if !before.status.is_terminal() || before.expires_at > after.at {
                found.add(Rule::DeletedEarly, op_id, say());
            }
            continue;
        }
        if before.status.is_terminal() {
            if end_of(before) != end_of(after) {
                found.add(Rule::EndChanged, op_id, say());
            }
            continue;
        }
        if !may_follow(before.status, after.status) {
            found.add(Rule::IllegalTransition, op_id, say());
        }
        let claimed = before.status == Status::Queued && after.status == Status::Running;
        if after.attempt != before.attempt + u32::from(claimed) {
            found.add(Rule::AttemptCount, op_id, say());
        }
        if claimed {
            claim(op_id, before, after, &mut leases, found);
        } else if after.status == Status::Running && after.lease_id != before.lease_id {
            found.add(Rule::LeaseReused, op_id, format!("the lease changed hands: {}", say()));
        }
        counts(op_id, before, after, found);
        if steps_done(after.checkpoint.as_ref()) < steps_done(before.checkpoint.as_ref()) {
            found.add(Rule::CheckpointWentBack, op_id, say());
        }
        // Whose time is over while a worker works on it keeps its key until the lease is over.
        let keeps_lease = after.status == Status::Expired && after.lease_until == after.old_lease_until;
        if (after.status == Status::Running) != after.lease_until.is_some() && !keeps_lease {
            found.add(Rule::ZombieLease, op_id, say());
        }
    }
    let last = life[life.len() - 1];
    if !last.status.is_terminal() && !last.is_far_away() {
        found.add(Rule::NotEnded, op_id, format!("it is still {}", brief(last)));
    }
    if last.status == Status::Succeeded && last.kind == "test-sleep" {
        let result = last.result.as_ref();
        let number = |field: &str| result.and_then(|result| result.get(field)?.as_u64());
        let steps = last.input.get("steps").and_then(serde_json::Value::as_u64);
        if number("attempt") != Some(last.attempt.into()) || number("steps") != steps {
            found.add(Rule::StaleResult, op_id, format!("{}: {result:?}", brief(last)));
        }
    }
}

fn claim<'a>(
    op_id: OperationId,
    before: &Change,
    after: &'a Change,
    leases: &mut HashSet<&'a domain_model::LeaseId>,
    found: &mut Found,
) {
    let is_new = after.lease_id.as_ref().is_some_and(|lease| leases.insert(lease));
    if !is_new {
        found.add(Rule::LeaseReused, op_id, brief(after));
    }
    if before.cancel_requested {
        found.add(Rule::ClaimedAfterCancel, op_id, brief(after));
    }
    if before.waiting_for_children {
        found.add(Rule::ParentBeforeChild, op_id, format!("claimed while it waits: {}", brief(after)));
    }
}

fn counts(op_id: OperationId, before: &Change, after: &Change, found: &mut Found) {
    let say = || format!("{} → {}", brief(before), brief(after));
    let (failed, lost) =
        (after.failures.checked_sub(before.failures), after.lease_losses.checked_sub(before.lease_losses));
    let ends_an_attempt = before.status == Status::Running && after.status != Status::Running;
    let counted = match (failed, lost) {
        (Some(0), Some(0)) => true,
        (Some(1), Some(0)) | (Some(0), Some(1)) => ends_an_attempt,
        _ => false,
    };
    let within = after.failures <= after.max_attempts
        && after.lease_losses <= MOST_LEASE_LOSSES
        && after.failures + after.lease_losses <= after.attempt;
    if !counted || !within {
        found.add(Rule::FailureCount, op_id, say());
    }
    if after.status == Status::Failed && before.status != Status::Failed {
        let is_permanent = after.error.as_ref().is_some_and(|error| !error.retryable);
        let used_up = after.failures == after.max_attempts || after.lease_losses == MOST_LEASE_LOSSES;
        if !used_up && !is_permanent {
            found.add(Rule::FailureCount, op_id, format!("given up with attempts left: {}", say()));
        }
    }
    if lost == Some(1) && after.old_lease_until.is_none_or(|end| end > after.at) {
        found.add(Rule::LeaseTakenEarly, op_id, say());
    }
}

/// The states as the protocol has them; written down here anew, since the product's own function may be wrong.
fn may_follow(before: Status, after: Status) -> bool {
    before == after
        || matches!(
            (before, after),
            (Status::Queued, Status::Running | Status::Canceled | Status::Expired)
                | (
                    Status::Running,
                    Status::Queued | Status::Succeeded | Status::Failed | Status::Canceled | Status::Expired
                )
        )
}

/// What of an ended operation never changes.
fn end_of(change: &Change) -> impl PartialEq {
    (
        (change.status, change.attempt, change.failures, change.lease_losses),
        (change.result.clone(), change.error.clone(), change.finished_at, change.checkpoint.clone()),
    )
}

/// Who holds a key: replayed in the order in which the database let them.
fn keys(history: &History, found: &mut Found) {
    let mut running: HashMap<&str, OperationId> = HashMap::new();
    // Whose time was over while it ran, and until when its worker may not have heard of that.
    let mut expired: HashMap<&str, (OperationId, Timestamp)> = HashMap::new();
    let mut active: HashMap<(String, &str, &str), OperationId> = HashMap::new();
    let mut before: HashMap<OperationId, &Change> = HashMap::new();
    for change in &history.changes {
        let op_id = change.op_id;
        // What it held until now it holds no more, or takes again.
        if let Some(old) = before.insert(op_id, change) {
            if let Some(key) = exclusive_key_of(old) {
                running.remove(key);
                if let Some(until) = change.lease_until.filter(|_| change.status == Status::Expired) {
                    expired.insert(key, (op_id, until));
                }
            }
            if let Some(key) = dedupe_key_of(old) {
                active.remove(&key);
            }
        }
        if change.what == What::Delete {
            continue;
        }
        if let Some(key) = exclusive_key_of(change)
            && let Some(other) = running.insert(key, op_id)
        {
            found.add(Rule::ExclusiveKey, op_id, format!("it runs with the key {key:?} while {other} does"));
        }
        if let Some(key) = exclusive_key_of(change)
            && let Some((other, until)) = expired.remove(key)
            && change.at < until
        {
            let what = format!(
                "it runs with the key {key:?} of {other}, which has expired and whose lease is not over"
            );
            found.add(Rule::ExclusiveKey, op_id, what);
        }
        if let Some(key) = dedupe_key_of(change)
            && let Some(other) = active.insert(key.clone(), op_id)
        {
            found.add(Rule::DedupeKey, op_id, format!("it is active with the key {key:?} while {other} is"));
        }
    }
}

/// The key that an operation keeps to itself while it runs.
fn exclusive_key_of(change: &Change) -> Option<&str> {
    change.exclusive_key.as_deref().filter(|_| change.status == Status::Running)
}

fn dedupe_key_of(change: &Change) -> Option<(String, &str, &str)> {
    let key = change.dedupe_key.as_deref().filter(|_| !change.status.is_terminal())?;
    Some((change.scope.to_string(), change.kind.as_str(), key))
}

/// Every claim of a kind that has a cap, with how many of the kind run then: in all, and at the claim's own host. Claims
/// under one cap come one after the other, and the end of what a claim did not count any more is before it: so in the order
/// of the changes there are never more than the claim has counted itself.
fn claims_under_caps<'a>(history: &'a History, mut claimed: impl FnMut(&'a Change, usize, usize)) {
    let mut running: HashMap<&str, HashMap<OperationId, Option<&str>>> = HashMap::new();
    for change in history.changes.iter().filter(|change| history.caps.contains_key(&change.kind)) {
        let of_kind = running.entry(&change.kind).or_default();
        if change.what == What::Delete || change.status != Status::Running {
            of_kind.remove(&change.op_id);
            continue;
        }
        let host = change.claimed_by.as_deref();
        if of_kind.insert(change.op_id, host).is_none() {
            let here = of_kind.values().filter(|other| **other == host).count();
            claimed(change, of_kind.len(), here);
        }
    }
}

fn caps(history: &History, found: &mut Found) {
    claims_under_caps(history, |change, everywhere, here| {
        let Some(cap) = history.caps.get(&change.kind) else { return };
        let place = change.claimed_by.as_deref().unwrap_or("nobody");
        for (count, most, place) in [(everywhere, cap.in_all, "in all"), (here, cap.per_host, place)] {
            if let Some(most) = most.filter(|most| count > *most as usize) {
                let what =
                    format!("{count} of {} run, {place}, and {most} may: {}", change.kind, brief(change));
                found.add(Rule::Cap, change.op_id, what);
            }
        }
    });
}

/// Of each kind that has a cap, how many have run at once, in all and at one host.
pub(crate) fn most_at_once(history: &History) -> BTreeMap<&str, (usize, usize)> {
    let mut most: BTreeMap<&str, (usize, usize)> =
        history.caps.keys().map(|kind| (kind.as_str(), (0, 0))).collect();
    claims_under_caps(history, |change, everywhere, here| {
        let seen = most.entry(&change.kind).or_default();
        *seen = (seen.0.max(everywhere), seen.1.max(here));
    });
    most
}

fn families(history: &History, found: &mut Found) {
    let mut active: HashMap<OperationId, HashSet<OperationId>> = HashMap::new();
    let mut waited: HashSet<OperationId> = HashSet::new();
    for change in &history.changes {
        if let Some(parent) = change.parent_id {
            let children = active.entry(parent).or_default();
            let is_over = change.status.is_terminal() || change.what == What::Delete;
            let _ = if is_over { children.remove(&change.op_id) } else { children.insert(change.op_id) };
        }
        if change.waiting_for_children {
            waited.insert(change.op_id);
            continue;
        }
        // One whose own time is over does not wait for its children.
        let goes_on = waited.contains(&change.op_id) && change.status != Status::Expired;
        let open = active.get(&change.op_id).map_or(0, HashSet::len);
        if goes_on && open > 0 && change.what != What::Delete {
            let what = format!("{} with {open} active children", brief(change));
            found.add(Rule::ParentBeforeChild, change.op_id, what);
        }
    }
}

/// Children that came when their parent was to be canceled already. Parent and child are locked together then, so that
/// the order of the two is sure.
fn late_children(history: &History, lives: &Lives<'_>, found: &mut Found) {
    let mut to_be_canceled: HashSet<OperationId> = HashSet::new();
    for change in &history.changes {
        if change.cancel_requested {
            to_be_canceled.insert(change.op_id);
        }
        let Some(parent) = change.parent_id.filter(|_| change.what == What::Insert) else { continue };
        let life = lives.get(&change.op_id).map(Vec::as_slice).unwrap_or_default();
        let is_told = life.iter().any(|later| later.cancel_requested || later.status == Status::Canceled);
        if to_be_canceled.contains(&parent) && !is_told {
            let what = format!("its parent {parent} was to be canceled when it was made");
            found.add(Rule::CancelNotPassedOn, change.op_id, what);
        }
    }
}

/// A change on one line.
pub(crate) fn brief(change: &Change) -> String {
    let Change { status, attempt, failures, lease_losses, rev, at, .. } = change;
    let waits = if change.waiting_for_children { ", waits for its children" } else { "" };
    let cancel = if change.cancel_requested { ", to be canceled" } else { "" };
    let done = match steps_done(change.checkpoint.as_ref()) {
        Some(done) => format!(", {done} steps done"),
        None => String::new(),
    };
    let owner = change.owner.as_deref().map(|owner| format!(", {owner}")).unwrap_or_default();
    format!(
        "{status} (attempt {attempt}, {failures} failures, {lease_losses} leases lost{owner}{done}{waits}{cancel}, rev {rev}, {at})"
    )
}
