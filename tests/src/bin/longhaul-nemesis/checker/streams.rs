//! What the stream keeps, and what live watchers got of it.
//!
//! Where the store was wiped, what was told before is gone, and the summaries are written anew: so a ring may begin in
//! the middle of an attempt, and an operation that ended before may have no last event. Nothing else is forgiven.

use bus_messages::ProgressEvent;
use domain_model::{OperationId, Timestamp};

use super::rows::brief;
use super::{Found, Lives, Rule};
use crate::history::{Change, History, Kept, Watched, What};

/// The stream keeps so many events of an operation.
const RING: usize = 256;

pub(super) fn check(history: &History, lives: &Lives<'_>, found: &mut Found) {
    let last_wipe = history.wipes.iter().max().copied();
    for (op_id, life) in lives {
        let last = life[life.len() - 1];
        let kept = history.kept.get(op_id);
        if last.what == What::Delete {
            if kept.is_some_and(|kept| !kept.events.is_empty() || kept.state.is_some()) {
                found.add(Rule::NotPurged, *op_id, format!("deleted at {}", last.at));
            }
            continue;
        }
        let nothing = Kept::default();
        let kept = kept.unwrap_or(&nothing);
        ring(*op_id, life, &kept.events, last_wipe, found);
        steps(*op_id, &kept.events, "the stream", found);
        if last.status.is_terminal() {
            end(*op_id, last, kept, last_wipe, found);
        }
        summary(*op_id, last, kept, found);
    }
    for op_id in &history.left_in_outbox {
        found.add(Rule::LeftInOutbox, *op_id, "nobody has told the stream");
    }
    for watched in &history.watched {
        watcher(watched, lives, &history.wipes, found);
        if let Some(kept) = history.kept.get(&watched.op_id) {
            seen_and_kept(watched, kept, &history.wipes, found);
        }
    }
}

fn ring(
    op_id: OperationId,
    life: &[&Change],
    events: &[ProgressEvent],
    last_wipe: Option<Timestamp>,
    found: &mut Found,
) {
    let attempts = life.iter().map(|change| change.attempt).max().unwrap_or(0);
    for event in events {
        if event.attempt > attempts || event.op_id != op_id {
            found.add(Rule::UnknownAttempt, op_id, describe(event));
        }
    }
    if let Some(first) = events.first() {
        let older_than_the_store = last_wipe.is_some_and(|wipe| life[0].at <= wipe);
        if first.n != 1 && events.len() < RING && !older_than_the_store {
            found.add(Rule::Hole, op_id, format!("the ring begins with {}", describe(first)));
        }
    }
    for pair in events.windows(2) {
        let say = || format!("{} and then {}", describe(&pair[0]), describe(&pair[1]));
        let expected = if pair[1].attempt == pair[0].attempt { pair[0].n + 1 } else { 1 };
        if pair[1].attempt < pair[0].attempt {
            found.add(Rule::AttemptWentBack, op_id, say());
        } else if pair[1].n != expected {
            found.add(Rule::Hole, op_id, say());
        }
        if is_last(&pair[0]) {
            found.add(Rule::EventAfterEnd, op_id, say());
        }
    }
}

/// A step is told of once its checkpoint is stored: no later attempt does it again.
fn steps(op_id: OperationId, events: &[ProgressEvent], witness: &str, found: &mut Found) {
    let mut done: Option<(u64, &ProgressEvent)> = None;
    for event in events.iter().filter(|event| event.phase == "sleep") {
        let Some(current) = event.progress.as_ref().and_then(|progress| progress.current) else { continue };
        if let Some((steps, before)) = done
            && current < steps
        {
            let what = format!("{witness}: {} and then {}", describe(before), describe(event));
            found.add(Rule::StepRedone, op_id, what);
        }
        done = Some((current, event));
    }
}

fn end(op_id: OperationId, last: &Change, kept: &Kept, last_wipe: Option<Timestamp>, found: &mut Found) {
    let may_be_gone = last_wipe.is_some_and(|wipe| last.finished_at.is_none_or(|end| end <= wipe));
    match kept.events.last() {
        Some(event)
            if is_last(event) && event.status == Some(last.status) && event.attempt == last.attempt => {}
        // Events that came after it are told of elsewhere.
        Some(_) if kept.events.iter().any(|event| is_last(event) && event.status == Some(last.status)) => {}
        Some(event) => {
            let what = format!("{}; the last event is {}", brief(last), describe(event));
            found.add(Rule::EndNotTold, op_id, what);
        }
        None if may_be_gone => {}
        None => found.add(Rule::EndNotTold, op_id, format!("{}; there is no event", brief(last))),
    }
}

/// Whatever was wiped: the summaries are written anew, also of what only waits.
fn summary(op_id: OperationId, last: &Change, kept: &Kept, found: &mut Found) {
    let told = kept.state.as_ref().map(|state| (state.status, state.attempt, state.rev, state.op_id));
    if told != Some((last.status, last.attempt, last.rev, op_id)) {
        let what = format!("{}; the summary says {told:?}", brief(last));
        found.add(Rule::SummaryLost, op_id, what);
    }
}

fn watcher(watched: &Watched, lives: &Lives<'_>, wipes: &[Timestamp], found: &mut Found) {
    let op_id = watched.op_id;
    let Some(last) = lives.get(&op_id).and_then(|life| life.last()) else {
        found.add(Rule::Watcher, op_id, "watched, and not there");
        return;
    };
    // What was told while the store was lost is lost to watchers, too.
    let wiped = wipes.iter().any(|wipe| *wipe >= watched.since);
    let mut before = (0, 0);
    for event in &watched.events {
        let now = (event.attempt, event.n);
        let next = (now.0 == before.0 && now.1 == before.1 + 1) || (now.0 > before.0 && now.1 == 1);
        let is_end_of_a_wiped_stream = wiped && is_last(event);
        let is_later = now > before;
        // A watcher that came late begins where the ring does.
        let is_first = before == (0, 0);
        if !(next || is_first || (wiped && is_later) || is_end_of_a_wiped_stream) {
            found.add(Rule::Watcher, op_id, format!("after {before:?} came {}", describe(event)));
        }
        before = before.max(now);
    }
    steps(op_id, &watched.events, "a watcher", found);
    if let Some(pair) = watched.states.windows(2).find(|pair| pair[1].0 <= pair[0].0) {
        found.add(Rule::Watcher, op_id, format!("summaries went back: {pair:?}"));
    }
    if last.what == What::Delete {
        return;
    }
    if !watched.ended {
        found.add(Rule::Watcher, op_id, format!("a watcher waits for ever; {}", brief(last)));
        return;
    }
    let told = watched.states.last().map(|(_, status)| *status);
    if told != Some(last.status) {
        found.add(Rule::Watcher, op_id, format!("{}; a watcher was told {told:?}", brief(last)));
    }
    let ends: Vec<&ProgressEvent> = watched.events.iter().filter(|event| is_last(event)).collect();
    let may_be_gone = wipes.iter().any(|wipe| last.finished_at.is_none_or(|end| end <= *wipe));
    let is_told = ends.len() == 1 && ends[0].status == Some(last.status);
    if !(is_told || (ends.is_empty() && may_be_gone)) {
        let ends: Vec<String> = ends.into_iter().map(describe).collect();
        found.add(Rule::Watcher, op_id, format!("{}; a watcher got the ends {ends:?}", brief(last)));
    }
}

/// What a watcher was told is what the stream keeps: nothing that the stream has refused.
fn seen_and_kept(watched: &Watched, kept: &Kept, wipes: &[Timestamp], found: &mut Found) {
    if wipes.iter().any(|wipe| *wipe >= watched.since) || kept.events.len() >= RING {
        return;
    }
    for event in &watched.events {
        if !kept.events.contains(event) && !kept.events.is_empty() {
            let what = format!("a watcher got {}, which the stream does not keep", describe(event));
            found.add(Rule::SeenNotKept, watched.op_id, what);
        }
    }
}

fn is_last(event: &ProgressEvent) -> bool {
    event.phase == ProgressEvent::DONE && event.status.is_some()
}

/// An event in a few words.
pub(crate) fn describe(event: &ProgressEvent) -> String {
    let ProgressEvent { attempt, n, phase, message, ts, .. } = event;
    let status = event.status.map(|status| format!(" ({status})")).unwrap_or_default();
    format!("attempt {attempt} n {n} {phase}{status} {message:?} {ts}")
}
