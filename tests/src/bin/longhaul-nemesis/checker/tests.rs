//! The checker itself must be able to fail: a good history, and for each rule one that is spoiled in one place.

use std::collections::BTreeSet;

use bus_messages::{AttemptError, Operation, OperationError, ProgressEvent};
use domain_model::{OperationId, OperationStatus as Status, Progress, Scope, Timestamp};
use serde_json::{Value, json};

use super::{Rule, check, most_at_once, unclear_carried_out};
use crate::history::{
    Answer, Asked, Backup, Cap, Change, Ended, History, Kept, LeftOnHost, NANOSECONDS, Proof, Request,
    Restored, Watched, What,
};

const MARK: u64 = 1_000_000_007;

fn id(number: u8) -> OperationId {
    format!("0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a{number:02}").parse().unwrap()
}

fn at(second: u32) -> Timestamp {
    format!("2026-11-21T07:{:02}:{:02}.000Z", second / 60, second % 60).parse().unwrap()
}

/// A row that was just made.
fn queued(op: u8, second: u32) -> Change {
    Change {
        at: at(second),
        what: What::Insert,
        op_id: id(op),
        kind: "test-sleep".to_owned(),
        scope: Scope::Hub,
        input: json!({ "seconds": (MARK + u64::from(op)) as f64 / NANOSECONDS, "steps": 2 }),
        status: Status::Queued,
        attempt: 0,
        max_attempts: 3,
        failures: 0,
        lease_losses: 0,
        lease_id: None,
        lease_until: None,
        old_lease_until: None,
        owner: None,
        claimed_by: None,
        checkpoint: None,
        waiting_for_children: false,
        cancel_requested: false,
        dedupe_key: None,
        exclusive_key: None,
        parent_id: None,
        retry_of: None,
        result: None,
        error: None,
        finished_at: None,
        not_before: at(second),
        expires_at: at(3000),
        rev: 1,
    }
}

/// The same row some time later.
fn next(before: &Change, second: u32, status: Status) -> Change {
    let mut after = before.clone();
    (after.what, after.at, after.status, after.rev) = (What::Update, at(second), status, before.rev + 1);
    after.old_lease_until = before.lease_until;
    if !matches!(status, Status::Running | Status::Expired) {
        after.lease_until = None;
    }
    if status.is_terminal() && after.finished_at.is_none() {
        after.finished_at = Some(after.at);
    }
    after
}

fn claimed(before: &Change, second: u32) -> Change {
    let mut after = next(before, second, Status::Running);
    after.attempt += 1;
    // Leases differ by operation and attempt.
    let lease = format!("{}{:02}", &before.op_id.to_string()[..34], after.attempt + 20);
    let lease = lease.replace("0199", &before.op_id.to_string()[32..]);
    after.lease_id = Some(lease.parse().unwrap());
    after.lease_until = Some(at(second + 17));
    after.owner = Some("scheduler/1".to_owned());
    after.claimed_by = Some("hub".to_owned());
    after
}

fn saved(before: &Change, second: u32, done: u32) -> Change {
    let mut after = next(before, second, Status::Running);
    after.checkpoint = Some(json!({ "done": done }));
    after
}

fn lost(before: &Change, second: u32) -> Change {
    let mut after = next(before, second, Status::Queued);
    after.lease_losses += 1;
    after.lease_id = None;
    after
}

fn succeeded(before: &Change, second: u32) -> Change {
    let mut after = next(before, second, Status::Succeeded);
    after.result = Some(json!({ "steps": 2, "attempt": before.attempt }));
    after
}

fn failed(before: &Change, second: u32, status: Status, retryable: bool) -> Change {
    let mut after = next(before, second, status);
    after.failures += 1;
    after.error = Some(OperationError {
        code: "test_failure".to_owned(),
        message: "fails, as asked".to_owned(),
        retryable,
        history: vec![AttemptError {
            attempt: before.attempt,
            code: "test_failure".to_owned(),
            message: String::new(),
            at: at(second),
        }],
    });
    after
}

/// Two attempts: the first has done one step when its lease is lost.
fn life(op: u8) -> Vec<Change> {
    let made = queued(op, 10);
    let first = claimed(&made, 11);
    let one = saved(&first, 12, 1);
    let again = lost(&one, 30);
    let second = claimed(&again, 31);
    let two = saved(&second, 32, 2);
    let end = succeeded(&two, 33);
    vec![made, first, one, again, second, two, end]
}

fn event(op: u8, attempt: u32, n: u64, phase: &str, done: Option<u64>) -> ProgressEvent {
    ProgressEvent {
        op_id: id(op),
        attempt,
        n,
        ts: at(20),
        phase: phase.to_owned(),
        message: String::new(),
        level: None,
        progress: done.map(|done| Progress::count(done, Some(2), "steps")),
        detail: None,
        status: None,
    }
}

fn last_event(op: u8, attempt: u32, n: u64, status: Status) -> ProgressEvent {
    ProgressEvent { status: Some(status), ..event(op, attempt, n, ProgressEvent::DONE, None) }
}

fn events(op: u8) -> Vec<ProgressEvent> {
    vec![
        event(op, 1, 1, "sleep", Some(0)),
        event(op, 1, 2, "sleep", Some(1)),
        event(op, 1, 3, "queued", None),
        event(op, 2, 1, "sleep", Some(1)),
        event(op, 2, 2, "sleep", Some(2)),
        last_event(op, 2, 3, Status::Succeeded),
    ]
}

fn summary(last: &Change) -> Operation {
    let op: Value = json!({
        "op_id": last.op_id, "kind": last.kind, "scope": "hub", "scope_type": "hub", "scope_id": null,
        "status": last.status, "created_by": "ops", "owner": null, "routing": "hub", "input": last.input,
        "result": null, "error": null, "progress_summary": null, "progress": 100.0, "phase": null, "message": null,
        "attempt": last.attempt, "max_attempts": 3, "lease_losses": 0, "priority": 0, "not_before": at(1),
        "lease_until": null, "heartbeat_at": null, "cancel_requested_at": null, "created_at": at(1),
        "started_at": null, "finished_at": null, "updated_at": at(1), "expires_at": at(1), "dedupe_key": null,
        "exclusive_key": null, "parent_id": null, "waiting_for_children": false, "retry_of": null, "rev": last.rev,
    });
    serde_json::from_value(op).unwrap()
}

fn asked(op: u8) -> Request {
    Request {
        asked: Asked::Create { mark: MARK + u64::from(op) },
        answer: Answer::Done { op_id: id(op), created: true, status: Status::Queued },
    }
}

/// One operation, with nothing wrong.
fn good() -> History {
    let changes = life(1);
    let kept = Kept { events: events(1), state: changes.last().map(summary) };
    let watched = Watched {
        op_id: id(1),
        since: at(10),
        events: events(1),
        states: vec![(1, Status::Queued), (7, Status::Succeeded)],
        ended: true,
    };
    History {
        requests: vec![asked(1)],
        changes,
        kept: [(id(1), kept)].into(),
        watched: vec![watched],
        ..History::default()
    }
}

/// Changes of more operations, told of as if all were well with them.
fn with(mut history: History, changes: Vec<Change>) -> History {
    let ops: BTreeSet<OperationId> = changes.iter().map(|change| change.op_id).collect();
    for op_id in ops {
        let life: Vec<&Change> = changes.iter().filter(|change| change.op_id == op_id).collect();
        let last = *life.last().unwrap();
        if let Some(mark) = last.mark() {
            let answer = Answer::Done { op_id, created: true, status: Status::Queued };
            history.requests.push(Request { asked: Asked::Create { mark }, answer });
        }
        let end = ProgressEvent { op_id, ..last_event(1, last.attempt, 1, last.status) };
        let events = if last.status.is_terminal() { vec![end] } else { Vec::new() };
        if last.what != What::Delete {
            history.kept.insert(op_id, Kept { events, state: Some(summary(last)) });
        }
    }
    history.changes.extend(changes);
    history
}

fn rules(history: &History) -> Vec<Rule> {
    let mut rules: Vec<Rule> = check(history).iter().map(|violation| violation.rule).collect();
    rules.dedup();
    rules
}

#[track_caller]
fn spoiled(rule: Rule, spoil: impl FnOnce(&mut History)) {
    let mut history = good();
    spoil(&mut history);
    let found = check(&history);
    assert!(found.iter().any(|violation| violation.rule == rule), "{rule:?} is not found: {found:#?}");
    assert!(found.iter().all(|violation| violation.op_id.is_some()), "whose? {found:#?}");
}

/// As [`spoiled`], and nothing else is found.
#[track_caller]
fn spoiled_alone(rule: Rule, spoil: impl FnOnce(&mut History)) {
    let mut history = good();
    spoil(&mut history);
    assert_eq!(rules(&history), [rule], "{:#?}", check(&history));
}

#[test]
fn a_good_history_has_nothing_wrong() {
    assert_eq!(check(&good()), []);
    assert_eq!(check(&History::default()), []);
}

#[test]
fn every_kind_of_life_may_be_good() {
    let mut lives = Vec::new();
    // Failed three times.
    let mut now = queued(2, 10);
    lives.push(now.clone());
    for turn in 1..=3 {
        now = claimed(&now, 10 + turn * 5);
        lives.push(now.clone());
        let status = if turn == 3 { Status::Failed } else { Status::Queued };
        now = failed(&now, 12 + turn * 5, status, true);
        lives.push(now.clone());
    }
    // Canceled while queued; failed for good at once; expired while waiting, and deleted later.
    let (made, again, old) = (queued(3, 40), queued(4, 40), queued(5, 40));
    let running = claimed(&again, 41);
    let expired = next(&old, 42, Status::Expired);
    let kept_longer = Change { expires_at: at(43), ..next(&expired, 42, Status::Expired) };
    let deleted = Change { what: What::Delete, at: at(44), ..kept_longer.clone() };
    lives.extend([next(&made, 41, Status::Canceled), failed(&running, 42, Status::Failed, false)]);
    lives.splice(7..7, [made, again, running, old, expired, kept_longer, deleted]);
    // A parent with a child.
    let parent = queued(6, 50);
    let asks = claimed(&parent, 51);
    let child = Change { parent_id: Some(id(6)), ..queued(7, 52) };
    let waits = Change { waiting_for_children: true, ..next(&asks, 52, Status::Queued) };
    let works = claimed(&child, 53);
    let done = succeeded(&works, 54);
    let free = Change { waiting_for_children: false, ..next(&waits, 54, Status::Queued) };
    let goes_on = claimed(&free, 55);
    let ends = succeeded(&goes_on, 56);
    lives.extend([parent, asks, child, waits, works, done, free, goes_on, ends]);
    let history = with(good(), lives);
    assert_eq!(check(&history), []);
}

#[test]
fn what_was_lost_doubled_or_forgotten_is_found() {
    spoiled_alone(Rule::Lost, |history| {
        let answer = Answer::Done { op_id: id(9), created: false, status: Status::Queued };
        history.requests.push(Request { asked: Asked::Create { mark: 5 }, answer });
    });
    // Told of an operation that is somebody else's.
    spoiled(Rule::Lost, |history| history.requests[0].asked = Asked::Create { mark: 5 });
    spoiled_alone(Rule::Double, |history| history.requests.push(asked(1)));
    spoiled_alone(Rule::Double, |history| {
        history.requests[0].answer = Answer::Refused("409".to_owned());
    });
    spoiled_alone(Rule::Double, |history| {
        let input = history.changes[0].input.clone();
        let mut twin = life(2);
        twin.iter_mut().for_each(|change| change.input = input.clone());
        *history = with(std::mem::take(history), twin);
        history.requests.pop();
    });
    spoiled_alone(Rule::CancelForgotten, |history| {
        let answer = Answer::Done { op_id: id(1), created: false, status: Status::Running };
        history.requests.push(Request { asked: Asked::Cancel { op_id: id(1) }, answer });
    });
    spoiled_alone(Rule::NotEnded, |history| *history = with(std::mem::take(history), vec![queued(2, 10)]));
}

#[test]
fn what_waits_for_a_day_far_away_has_a_summary_all_the_time() {
    let far_away = "2100-01-01T00:00:00.000Z".parse().unwrap();
    let waiting = || with(good(), vec![Change { not_before: far_away, ..queued(2, 10) }]);
    assert_eq!(check(&waiting()), []);
    let mut history = waiting();
    history.kept.remove(&id(2));
    assert_eq!(rules(&history), [Rule::SummaryLost]);
}

#[test]
fn an_unclear_request_may_have_been_carried_out_or_not() {
    let mut history = good();
    history.requests[0].answer = Answer::Unclear("no answer".to_owned());
    history
        .requests
        .push(Request { asked: Asked::Create { mark: 77 }, answer: Answer::Unclear("no answer".to_owned()) });
    assert_eq!(check(&history), []);
    assert_eq!(unclear_carried_out(&history, &super::lives(&history)), (1, 2));
}

#[test]
fn a_life_that_the_protocol_does_not_know_is_found() {
    spoiled(Rule::IllegalTransition, |history| history.changes[0].status = Status::Running);
    spoiled(Rule::IllegalTransition, |history| {
        let end = succeeded(&queued(2, 10), 11);
        *history = with(std::mem::take(history), vec![queued(2, 10), end]);
    });
    spoiled(Rule::EndChanged, |history| {
        let end = history.changes[6].clone();
        history.changes.push(next(&end, 40, Status::Canceled));
    });
    spoiled_alone(Rule::EndChanged, |history| {
        let end = history.changes[6].clone();
        let later = Change { rev: end.rev, finished_at: Some(at(40)), ..next(&end, 40, Status::Succeeded) };
        history.changes.push(later);
    });
    spoiled(Rule::AttemptCount, |history| {
        history.changes[4..].iter_mut().for_each(|change| change.attempt = 3);
    });
    spoiled(Rule::AttemptCount, |history| history.changes[5].attempt = 1);
    spoiled_alone(Rule::CheckpointWentBack, |history| {
        history.changes[5].checkpoint = Some(json!({ "done": 0 }));
    });
    spoiled_alone(Rule::CheckpointWentBack, |history| history.changes[5].checkpoint = None);
    spoiled_alone(Rule::StaleResult, |history| {
        history.changes[6].result = Some(json!({ "steps": 2, "attempt": 1 }));
    });
    spoiled_alone(Rule::StaleResult, |history| {
        history.changes[6].result = Some(json!({ "steps": 1, "attempt": 2 }));
    });
    spoiled(Rule::DeletedEarly, |history| {
        let end = Change { what: What::Delete, at: at(50), ..history.changes[6].clone() };
        history.changes.push(end);
    });
    spoiled(Rule::DeletedEarly, |history| {
        let gone = Change { what: What::Delete, expires_at: at(11), at: at(12), ..queued(2, 10) };
        *history = with(std::mem::take(history), vec![queued(2, 10), gone]);
    });
}

#[test]
fn a_lease_that_is_nobodys_or_two_peoples_is_found() {
    spoiled_alone(Rule::LeaseReused, |history| {
        let lease = history.changes[1].lease_id;
        history.changes[4..].iter_mut().for_each(|change| change.lease_id = lease);
    });
    spoiled_alone(Rule::LeaseReused, |history| {
        history.changes[5].lease_id = history.changes[1].lease_id;
    });
    spoiled_alone(Rule::LeaseTakenEarly, |history| {
        history.changes[3].old_lease_until = Some(at(31));
    });
    spoiled_alone(Rule::ZombieLease, |history| history.changes[3].lease_until = Some(at(60)));
    spoiled_alone(Rule::ZombieLease, |history| history.changes[5].lease_until = None);
    spoiled_alone(Rule::ClaimedAfterCancel, |history| {
        history.changes[3].cancel_requested = true;
    });
}

#[test]
fn failures_and_lost_leases_beyond_what_there_was_are_found() {
    // Two at once.
    spoiled(Rule::FailureCount, |history| {
        history.changes[3..].iter_mut().for_each(|change| change.lease_losses = 2);
    });
    // Forgotten.
    spoiled(Rule::FailureCount, |history| history.changes[5].lease_losses = 0);
    // While it runs.
    spoiled(Rule::FailureCount, |history| {
        history.changes[2..].iter_mut().for_each(|change| change.failures = 1);
    });
    // Given up too early, and tried too often.
    let short = |most: u32, status| {
        move |history: &mut History| {
            let mut lives = vec![queued(2, 10)];
            lives[0].max_attempts = most;
            lives.push(claimed(&lives[0], 11));
            lives.push(failed(&lives[1], 12, Status::Queued, true));
            lives.push(claimed(&lives[2], 13));
            lives.push(failed(&lives[3], 14, status, true));
            *history = with(std::mem::take(history), lives);
        }
    };
    spoiled_alone(Rule::FailureCount, short(3, Status::Failed));
    spoiled_alone(Rule::FailureCount, short(1, Status::Failed));
}

#[test]
fn two_with_one_key_are_found() {
    let both = |second: u32, prepare: fn(&mut Change)| {
        move |history: &mut History| {
            let mut changes = Vec::new();
            for (op, begin) in [(2, 10), (3, second)] {
                let made = queued(op, begin);
                let runs = claimed(&made, begin + 1);
                let ends = succeeded(&runs, begin + 10);
                changes.extend([made, runs, ends]);
            }
            changes.iter_mut().for_each(prepare);
            changes.sort_by_key(|change| change.at.to_string());
            *history = with(std::mem::take(history), changes);
        }
    };
    let exclusive: fn(&mut Change) = |change| change.exclusive_key = Some("project:1".to_owned());
    let dedupe: fn(&mut Change) = |change| change.dedupe_key = Some("key".to_owned());
    spoiled_alone(Rule::ExclusiveKey, both(15, exclusive));
    spoiled_alone(Rule::DedupeKey, both(15, dedupe));
    for prepare in [exclusive, dedupe] {
        let mut history = good();
        both(30, prepare)(&mut history);
        assert_eq!(check(&history), [], "one after the other is no harm");
    }
    // The lease of second 11 is over in second 28, whenever the time of its operation was.
    let after_expiry = |second: u32| {
        move |history: &mut History| {
            let (made, next_made) = (queued(2, 10), queued(3, second - 1));
            let runs = claimed(&made, 11);
            let (expired, next_runs) = (next(&runs, 12, Status::Expired), claimed(&next_made, second));
            let ends = succeeded(&next_runs, second + 10);
            let mut changes = vec![made, runs, expired, next_made, next_runs, ends];
            changes.iter_mut().for_each(exclusive);
            *history = with(std::mem::take(history), changes);
        }
    };
    spoiled_alone(Rule::ExclusiveKey, after_expiry(27));
    let mut history = good();
    after_expiry(28)(&mut history);
    assert_eq!(check(&history), []);
}

#[test]
fn more_at_once_than_a_cap_allows_are_found() {
    // Two, each at one of these hosts; the second begins in this second, and the first has ended in second 20.
    let two = |hosts: [&str; 2], begins: u32, cap: Cap| {
        let mut changes = Vec::new();
        for (op, begins, host) in [(2, 10, hosts[0]), (3, begins, hosts[1])] {
            let made = queued(op, begins);
            let runs = Change { claimed_by: Some(host.to_owned()), ..claimed(&made, begins + 1) };
            // Still the same claim.
            let saved = saved(&runs, begins + 2, 1);
            let ends = succeeded(&saved, begins + 10);
            changes.extend([made, runs, saved, ends]);
        }
        changes.sort_by_key(|change| change.at.to_string());
        let mut history = with(good(), changes);
        history.caps.insert("test-sleep".to_owned(), cap);
        history
    };
    let in_all = |most| Cap { in_all: Some(most), per_host: None };
    let per_host = |most| Cap { in_all: None, per_host: Some(most) };
    for (hosts, cap) in
        [(["hub", "hub"], in_all(1)), (["host-1", "host-2"], in_all(1)), (["hub", "hub"], per_host(1))]
    {
        let history = two(hosts, 15, cap);
        assert_eq!(rules(&history), [Rule::Cap], "{hosts:?} {cap:?}");
        let violations = check(&history);
        assert_eq!(violations[0].op_id, Some(id(3)), "the one that was too much: {violations:#?}");
        assert_eq!(check(&two(hosts, 25, cap)), [], "one after the other is no harm: {hosts:?} {cap:?}");
    }
    for (hosts, cap) in [
        (["hub", "hub"], in_all(2)),
        (["hub", "hub"], per_host(2)),
        (["host-1", "host-2"], per_host(1)),
        (["hub", "hub"], Cap::default()),
    ] {
        assert_eq!(check(&two(hosts, 15, cap)), [], "{hosts:?} {cap:?}");
    }
    // A lease that is lost makes place, and no other kind counts.
    let mut history = good();
    history.caps.insert("test-sleep".to_owned(), in_all(1));
    assert_eq!(check(&history), []);
    let mut history = two(["hub", "hub"], 15, in_all(1));
    let cap = history.caps.remove("test-sleep").unwrap();
    history.caps.insert("project-backup".to_owned(), cap);
    assert_eq!(check(&history), []);

    assert_eq!(most_at_once(&two(["host-1", "host-2"], 15, in_all(1))), [("test-sleep", (2, 1))].into());
    assert_eq!(most_at_once(&two(["hub", "hub"], 15, in_all(1))), [("test-sleep", (2, 2))].into());
    assert_eq!(most_at_once(&two(["hub", "hub"], 25, in_all(1))), [("test-sleep", (1, 1))].into());
}

#[test]
fn a_parent_that_does_not_wait_for_its_children_is_found() {
    let family = |goes_on: u32| {
        move |history: &mut History| {
            let parent = queued(2, 10);
            let asks = claimed(&parent, 11);
            let child = Change { parent_id: Some(id(2)), ..queued(3, 12) };
            let waits = Change { waiting_for_children: true, ..next(&asks, 12, Status::Queued) };
            let works = claimed(&child, 13);
            let done = succeeded(&works, 20);
            let free = Change { waiting_for_children: false, ..next(&waits, goes_on, Status::Queued) };
            let again = claimed(&free, goes_on + 1);
            let ends = succeeded(&again, goes_on + 2);
            let mut changes = vec![parent, asks, child, waits, works, done, free, again, ends];
            changes.sort_by_key(|change| change.at.to_string());
            *history = with(std::mem::take(history), changes);
        }
    };
    spoiled_alone(Rule::ParentBeforeChild, family(15));
    let mut history = good();
    family(21)(&mut history);
    assert_eq!(check(&history), []);
    spoiled_alone(Rule::ParentBeforeChild, |history| {
        history.changes[3].waiting_for_children = true;
    });
}

#[test]
fn a_child_that_is_made_for_a_canceled_parent_is_found() {
    let family = |child_is_told: bool| {
        let parent = queued(2, 10);
        let asks = claimed(&parent, 11);
        let cancel = Change { cancel_requested: true, ..next(&asks, 12, Status::Running) };
        let child = Change { parent_id: Some(id(2)), ..queued(3, 13) };
        let waits = Change { waiting_for_children: true, ..next(&cancel, 13, Status::Queued) };
        let rest = if child_is_told {
            vec![next(&child, 14, Status::Canceled)]
        } else {
            vec![claimed(&child, 14), succeeded(&claimed(&child, 14), 15)]
        };
        let end = Change { waiting_for_children: false, ..next(&waits, 16, Status::Canceled) };
        let mut changes = vec![parent, asks, cancel, child, waits];
        changes.extend(rest);
        changes.push(end);
        with(good(), changes)
    };
    assert_eq!(rules(&family(false)), [Rule::CancelNotPassedOn]);
    assert_eq!(check(&family(true)), []);
}

fn ring(history: &mut History) -> &mut Vec<ProgressEvent> {
    history.watched.clear();
    &mut history.kept.get_mut(&id(1)).unwrap().events
}

#[test]
fn a_ring_with_a_hole_or_in_the_wrong_order_is_found() {
    spoiled_alone(Rule::Hole, |history| drop(ring(history).remove(1)));
    spoiled_alone(Rule::Hole, |history| drop(ring(history).remove(0)));
    spoiled_alone(Rule::Hole, |history| drop(ring(history).remove(3)));
    spoiled_alone(Rule::Hole, |history| {
        let twin = ring(history)[1].clone();
        ring(history).insert(2, twin);
    });
    spoiled_alone(Rule::AttemptWentBack, |history| {
        let late = event(1, 1, 4, "sleep", None);
        ring(history).insert(4, ProgressEvent { ..late });
        // What follows is numbered on, so that only the order is wrong.
        let moved = ring(history).remove(3);
        ring(history).insert(3, moved);
        ring(history)[5].n = 1;
        ring(history)[6].n = 2;
    });
    spoiled(Rule::UnknownAttempt, |history| {
        ring(history).iter_mut().skip(3).for_each(|event| event.attempt = 3);
    });
    spoiled(Rule::UnknownAttempt, |history| ring(history)[1].op_id = id(2));
    spoiled_alone(Rule::StepRedone, |history| {
        ring(history)[3] = event(1, 2, 1, "sleep", Some(0));
    });
    spoiled_alone(Rule::EventAfterEnd, |history| {
        ring(history).push(event(1, 2, 4, "sleep", None));
    });
}

#[test]
fn an_end_that_is_not_told_or_told_wrong_is_found() {
    spoiled_alone(Rule::EndNotTold, |history| drop(ring(history).pop()));
    spoiled_alone(Rule::EndNotTold, |history| ring(history).clear());
    spoiled_alone(Rule::EndNotTold, |history| ring(history)[5].status = Some(Status::Failed));
    let state = |history: &mut History| history.kept.get_mut(&id(1)).unwrap().state.take();
    spoiled_alone(Rule::SummaryLost, |history| drop(state(history)));
    for spoil in [
        (|state: &mut Operation| state.status = Status::Running) as fn(&mut Operation),
        |state| state.rev -= 1,
        |state| state.attempt = 1,
    ] {
        spoiled_alone(Rule::SummaryLost, |history| {
            let mut old = state(history).unwrap();
            spoil(&mut old);
            history.kept.get_mut(&id(1)).unwrap().state = Some(old);
        });
    }
    spoiled_alone(Rule::LeftInOutbox, |history| history.left_in_outbox.push(id(1)));
    spoiled_alone(Rule::NotPurged, |history| {
        history.watched.clear();
        let mut end = history.changes[6].clone();
        (end.what, end.at) = (What::Delete, at(3001));
        history.changes.push(end);
    });
}

#[test]
fn a_wiped_store_excuses_what_was_told_before_and_nothing_else() {
    // After the end: the ring is gone, and the summary is there.
    let wiped_later = |history: &mut History| history.wipes.push(at(40));
    let mut history = good();
    wiped_later(&mut history);
    ring(&mut history).clear();
    assert_eq!(check(&history), []);
    spoiled_alone(Rule::SummaryLost, |history| {
        wiped_later(history);
        history.kept.get_mut(&id(1)).unwrap().state = None;
    });
    // In the middle: the ring begins in the middle of an attempt, and has no holes from there on.
    let mut history = good();
    history.wipes.push(at(32));
    ring(&mut history).drain(..4);
    assert_eq!(check(&history), []);
    ring(&mut history).clear();
    assert_eq!(rules(&history), [Rule::EndNotTold], "the end came after the wipe");
    // Before the beginning: no excuse.
    let mut history = good();
    history.wipes.push(at(5));
    ring(&mut history).remove(0);
    assert_eq!(rules(&history), [Rule::Hole]);
}

#[test]
fn a_watcher_that_is_told_less_more_or_something_else_is_found() {
    let watcher = |spoil: fn(&mut Watched)| move |history: &mut History| spoil(&mut history.watched[0]);
    spoiled_alone(Rule::Watcher, watcher(|watched| drop(watched.events.remove(1))));
    spoiled(Rule::Watcher, watcher(|watched| watched.events.swap(1, 4)));
    spoiled_alone(Rule::Watcher, watcher(|watched| drop(watched.events.pop())));
    spoiled_alone(Rule::Watcher, watcher(|watched| watched.events.push(watched.events[5].clone())));
    spoiled_alone(Rule::Watcher, watcher(|watched| watched.ended = false));
    spoiled_alone(Rule::Watcher, watcher(|watched| watched.states.reverse()));
    spoiled_alone(Rule::Watcher, watcher(|watched| watched.states.truncate(1)));
    spoiled_alone(Rule::SeenNotKept, watcher(|watched| watched.events[1].message = "other".to_owned()));
    spoiled_alone(Rule::StepRedone, |history| {
        history.wipes.push(at(40));
        history.watched[0].events[3] = event(1, 2, 1, "sleep", Some(0));
    });
    spoiled(Rule::Watcher, |history| history.watched[0].op_id = id(9));
}

#[test]
fn a_watcher_may_be_late_and_may_miss_what_a_wiped_store_has_lost() {
    let mut history = good();
    history.watched[0].events.drain(..3);
    assert_eq!(check(&history), []);
    let mut history = good();
    history.wipes.push(at(32));
    history.watched[0].events.drain(1..5);
    assert_eq!(check(&history), []);
}

const SNAPSHOT: &str = "5c0f3d3ee3a7a2b2a8bb9f2b6f1c3d5e7f9a1b2c3d4e5f60718293a4b5c6d7e8";

fn project() -> domain_model::ProjectId {
    "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4b01".parse().unwrap()
}

/// The life of an operation of a project.
fn of_project(op: u8, kind: &str, status: Status, result: Value) -> Vec<Change> {
    let kind = kind.to_owned();
    let made = Change { kind, scope: Scope::Project(project()), input: json!({}), ..queued(op, 40) };
    let runs = claimed(&made, 41);
    let end = Change { result: Some(result), ..next(&runs, 42, status) };
    vec![made, runs, end]
}

fn proved(op: u8) -> Ended {
    Ended { op_id: id(op), status: Status::Succeeded, error: None }
}

/// One backup, which is there, and restores to what it was.
fn good_backup() -> History {
    let mut history =
        with(good(), of_project(2, "project-backup", Status::Succeeded, json!({ "backup_id": SNAPSHOT })));
    history.backups.push(Backup {
        project: project(),
        backup_id: SNAPSHOT.parse().unwrap(),
        bucket: "longhaul-backups-weur-1".to_owned(),
        op_id: id(2),
        created_at: at(41),
        tree: "7e".repeat(32),
        is_being_deleted: false,
        bad: None,
        has_snapshot: true,
    });
    history.proofs.push(Proof {
        project: project(),
        check: Some(proved(3)),
        restore: Some(Restored {
            backup_id: SNAPSHOT.parse().unwrap(),
            ended: proved(4),
            tree: Some("7e".repeat(32)),
            receipt: Some("match".to_owned()),
            compared: 3,
            differ: Vec::new(),
        }),
    });
    history
}

#[track_caller]
fn spoiled_backup(rule: Rule, spoil: impl FnOnce(&mut History)) {
    let mut history = good_backup();
    spoil(&mut history);
    assert_eq!(rules(&history), [rule], "{:#?}", check(&history));
}

#[test]
fn backups_that_are_not_what_their_operations_say_are_found() {
    assert_eq!(check(&good_backup()), []);
    let other = || SNAPSHOT.replace("5c", "ff");
    spoiled_backup(Rule::BackupDouble, |history| {
        history.backups.insert(0, history.backups[0].clone());
    });
    spoiled_backup(Rule::BackupDouble, |history| {
        history.changes.last_mut().unwrap().result = Some(json!({ "backup_id": other() }));
    });
    spoiled_backup(Rule::BackupDouble, |history| history.backups[0].op_id = id(9));
    spoiled_backup(Rule::BackupDouble, |history| {
        let mut history_of_one_that_failed = of_project(2, "project-backup", Status::Canceled, Value::Null);
        history_of_one_that_failed[2].result = Some(json!({ "backup_id": SNAPSHOT }));
        *history = History {
            backups: std::mem::take(&mut history.backups),
            proofs: std::mem::take(&mut history.proofs),
            ..with(good(), history_of_one_that_failed)
        };
    });
}

#[test]
fn a_backup_without_its_snapshot_is_found() {
    spoiled_backup(Rule::SnapshotLost, |history| history.backups[0].has_snapshot = false);
    // One that is being deleted may have lost it, and is not restored.
    let mut history = good_backup();
    (history.backups[0].has_snapshot, history.backups[0].is_being_deleted) = (false, true);
    history.proofs[0].restore = None;
    assert_eq!(check(&history), []);
}

#[test]
fn damage_that_somebody_finds_is_found() {
    spoiled_backup(Rule::FoundDamaged, |history| {
        history.backups[0].bad = Some("it does not restore".to_owned());
    });
    for code in ["repository_damaged", "verification_failed"] {
        let ends = |status: Status| {
            let mut life = of_project(5, "repo-check", status, Value::Null);
            life[2] = failed(&life[1], 42, status, false);
            life[2].error.as_mut().unwrap().code = code.to_owned();
            with(good_backup(), life)
        };
        assert_eq!(rules(&ends(Status::Failed)), [Rule::FoundDamaged]);
    }
    let drill = |proof: &str| {
        with(good_backup(), of_project(5, "restore-drill", Status::Succeeded, json!({ "proof": proof })))
    };
    assert_eq!(rules(&drill("mismatch")), [Rule::FoundDamaged]);
    assert_eq!(check(&drill("match")), []);
}

#[test]
fn a_repository_that_is_not_sound_in_the_end_is_found() {
    spoiled_backup(Rule::RepositoryUnsound, |history| {
        history.proofs[0].check.as_mut().unwrap().status = Status::Failed;
    });
    spoiled_backup(Rule::RepositoryUnsound, |history| history.proofs[0].check = None);
}

#[test]
fn a_backup_that_restores_to_something_else_is_found() {
    fn restored(spoil: fn(&mut Restored)) -> impl FnOnce(&mut History) {
        move |history| spoil(history.proofs[0].restore.as_mut().unwrap())
    }
    for spoil in [
        (|restored: &mut Restored| restored.ended.status = Status::Failed) as fn(&mut Restored),
        |restored| restored.tree = Some("7f".repeat(32)),
        |restored| restored.tree = None,
        |restored| restored.receipt = Some("none".to_owned()),
        |restored| restored.backup_id = SNAPSHOT.replace("5c", "ff").parse().unwrap(),
        |restored| restored.differ.push("project/notes-1.txt".to_owned()),
    ] {
        spoiled_backup(Rule::RestoreDiffers, restored(spoil));
    }
    spoiled_backup(Rule::RestoreDiffers, |history| history.proofs[0].restore = None);
    spoiled_backup(Rule::RestoreDiffers, |history| history.proofs.clear());
    // It is the newest that is to be restored.
    spoiled_backup(Rule::RestoreDiffers, |history| {
        let newer =
            of_project(6, "project-backup", Status::Succeeded, json!({ "backup_id": "ab".repeat(32) }));
        let mut backup = history.backups[0].clone();
        (backup.op_id, backup.backup_id, backup.created_at) =
            (id(6), "ab".repeat(32).parse().unwrap(), at(45));
        *history = with(std::mem::take(history), newer);
        history.backups.insert(0, backup);
    });
}

#[test]
fn what_is_left_on_a_host_is_found() {
    let left = |op: u8, entries: &[&str]| LeftOnHost {
        path: format!("staging/{}", id(op)),
        op_id: Some(id(op)),
        entries: entries.iter().map(|entry| (*entry).to_owned()).collect(),
    };
    spoiled_backup(Rule::LeftOnHost, |history| history.left_on_hosts.push(left(2, &["journal.json"])));
    spoiled_backup(Rule::LeftOnHost, |history| history.left_on_hosts.push(left(9, &[])));
    spoiled_backup(Rule::LeftOnHost, |history| {
        history.left_on_hosts.push(LeftOnHost { op_id: None, ..left(9, &[]) });
    });
    // What a copy is remembered by stays, and nothing else of it.
    let copied = |entries: &[&str]| {
        let copy = of_project(5, "copy-apply", Status::Succeeded, Value::Null);
        History { left_on_hosts: vec![left(5, entries)], ..with(good(), copy) }
    };
    assert_eq!(check(&copied(&["journal.json"])), []);
    assert_eq!(rules(&copied(&["journal.json", "project"])), [Rule::LeftOnHost]);
}
