//! Watching one operation from its first event to its end.
//!
//! A watcher that subscribes only misses what was before it; one that reads the ring first misses what comes
//! between; one that trusts the stream alone waits for ever when a message is lost. So: subscribe, then read
//! the ring and the summary through `lro.events` (which clients without JetStream rights may use, and whose
//! summary is the database's), then drop what was seen, by attempt and `n`. The ring is read again after a
//! reconnect, wherever an event does not follow the one before it, and after every silence.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bus_messages::{Encoding, EventList, ListEvents, Operation, ProgressEvent};
use bus_subjects::{ApiSubject, OperationSubject, OperationSubjectPart};
use domain_model::BackOff;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::bus::refused;
use crate::service::CONTENT_TYPE;
use crate::{Bus, BusMessage, RequestError, RequestErrorKind, Subscription};

/// After so long without a message the ring is read again.
const SILENCE: Duration = Duration::from_secs(15);
/// The same, once either the last event or the last summary has come and the other is waited for; twice as long with
/// each reading, so many times.
const SILENCE_AT_THE_END: Duration = Duration::from_millis(250);
const DOUBLINGS: u32 = 4;
/// How long the last event is waited for once the registry does not say that it is still to come. The ring may come from a
/// replica that is behind; else the stream has lost it.
const GRACE_AT_THE_END: Duration = Duration::from_secs(10);
/// How often, and in what distance, a ring with a hole in its middle is read again: it may come from a
/// replica that is behind.
const HOLE_RETRIES: u32 = 4;
const HOLE_WAIT: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// What a writer expects to be the last message on the subject; the stream refuses it where it is not.
const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
const BACK_OFF: BackOff = BackOff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };

/// What a watcher gets.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchItem {
    /// The next event: attempts and `n` only grow (but for the event of the end, where the stream was wiped).
    Event(ProgressEvent),
    /// A newer summary: `rev` only grows.
    State(Box<Operation>),
}

/// The operation cannot be watched: there is none, or not for these credentials.
#[derive(Debug)]
pub struct WatchError {
    subject: OperationSubject,
    source: RequestError,
}

impl WatchError {
    /// The refusal.
    pub fn cause(&self) -> &RequestError {
        &self.source
    }
}

impl fmt::Display for WatchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "watch {}", self.subject)
    }
}

impl std::error::Error for WatchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The events and summaries of an operation; see [`watch`].
#[derive(Debug)]
pub struct Watch(mpsc::Receiver<Result<WatchItem, WatchError>>);

impl Stream for Watch {
    type Item = Result<WatchItem, WatchError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Watches an operation: what its ring still has, then what comes, without gap or duplicate. Ends after the
/// summary of its end and its last event, or with an error where it does not exist or may not be watched. A
/// service or a server that does not answer is waited for. Dropping the stream ends the watch.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(bus: &Bus, subject: OperationSubject) -> Watch {
    let (sender, receiver) = mpsc::channel(64);
    let watcher = Watcher { bus: bus.clone(), subject, sender: sender.clone(), seen: Seen::default() };
    tokio::spawn(async move {
        tokio::select! {
            () = watcher.run() => {}
            () = sender.closed() => {}
        }
    });
    Watch(receiver)
}

struct Watcher {
    bus: Bus,
    subject: OperationSubject,
    sender: mpsc::Sender<Result<WatchItem, WatchError>>,
    seen: Seen,
}

impl Watcher {
    async fn run(mut self) {
        if let Err(source) = self.follow().await {
            // Nobody reads it where the watch was dropped.
            let _ = self.sender.send(Err(WatchError { subject: self.subject, source })).await;
        }
    }

    async fn follow(&mut self) -> Result<(), RequestError> {
        let mut refusals = self.bus.refusals();
        let mut connections = self.bus.connection_counts();
        let mut messages = self.subscribe().await?;
        let wildcard = self.subject.wildcard();
        connections.borrow_and_update();
        self.catch_up().await?;
        while !self.seen.is_over() {
            tokio::select! {
                message = messages.next() => {
                    // The connection was drained.
                    let Some(message) = message else { return Ok(()) };
                    if self.seen.may_be_refused(&message) {
                        self.catch_up().await?;
                        continue;
                    }
                    match self.read(&message) {
                        Some(WatchItem::State(state)) => self.deliver_state(state).await,
                        Some(WatchItem::Event(event)) if self.seen.follows(&event) => self.deliver(event).await,
                        Some(WatchItem::Event(event)) if self.seen.is_new(&event) => {
                            self.seen.early.insert(key(&event), event);
                            self.catch_up().await?;
                        }
                        Some(WatchItem::Event(_)) | None => {}
                    }
                }
                changed = connections.changed() => {
                    if changed.is_err() { return Ok(()) }
                    self.seen.fence = None;
                    self.catch_up().await?;
                }
                () = tokio::time::sleep(self.seen.silence()) => self.catch_up().await?,
                () = refused(&mut refusals, &wildcard) => {
                    return Err(RequestError::PermissionDenied { subject: wildcard });
                }
            }
        }
        Ok(())
    }

    async fn subscribe(&self) -> Result<Subscription, RequestError> {
        let mut failures = 0;
        loop {
            match self.bus.subscribe(self.subject.wildcard()).await {
                Ok(messages) => return Ok(messages),
                Err(error) if error.is_retryable() => {
                    failures += 1;
                    tokio::time::sleep(BACK_OFF.wait(failures, rand::random())).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads ring and summary, and delivers what is new in them.
    async fn catch_up(&mut self) -> Result<(), RequestError> {
        for tried in 0.. {
            let EventList { events, state, end_pending, .. } = self.read_ring().await?;
            let ring = events.into_iter().filter(|event| event.op_id == self.subject.op_id);
            if self.seen.merge(ring) || tried >= HOLE_RETRIES {
                for event in self.seen.take_early() {
                    self.deliver(event).await;
                }
                if state.op_id == self.subject.op_id {
                    self.deliver_state(Box::new(state)).await;
                }
                self.seen.note_reading(end_pending);
                break;
            }
            tokio::time::sleep(HOLE_WAIT).await;
        }
        Ok(())
    }

    /// All of the ring, page by page, as one answer: the last, with all events. What is dropped from the ring, or added to it,
    /// meanwhile makes a hole at most, which the next reading fills.
    async fn read_ring(&self) -> Result<EventList, RequestError> {
        let mut ring: Vec<ProgressEvent> = Vec::new();
        loop {
            let after = ring.last().map(key);
            let page = self.read_page(after).await?;
            ring.extend(page.events);
            // One who answers a page with nothing new would be asked for ever.
            if !page.more || ring.last().map(key) <= after {
                return Ok(EventList { events: ring, ..page });
            }
        }
    }

    /// Asks until there is an answer; refusals are errors.
    async fn read_page(&self, after: Option<Key>) -> Result<EventList, RequestError> {
        let subject = ApiSubject::new(self.subject.scope, "lro", "events").to_string();
        let request = ListEvents {
            op_id: self.subject.op_id,
            after_n: after.map(|(_, n)| n),
            after_attempt: after.map(|(attempt, _)| attempt),
        };
        let mut failures = 0;
        loop {
            let answer = self.bus.request(subject.clone(), &request, Encoding::Json, REQUEST_TIMEOUT).await;
            let error = match answer {
                Ok(list) => return Ok(list),
                Err(error) => error,
            };
            let defect = matches!(&error, RequestError::Api(error) if error.status >= 500);
            if !error.is_retryable() && !defect {
                return Err(error);
            }
            failures += 1;
            if failures % 10 == 0 {
                tracing::warn!(op.id = %self.subject.op_id, error = %error, "cannot read the events of an operation; trying on");
            }
            if error.kind() != RequestErrorKind::Timeout {
                tokio::time::sleep(BACK_OFF.wait(failures, rand::random())).await;
            }
        }
    }

    /// Reads a message; `None` where it is not about what its subject says, or reads as nothing.
    fn read(&self, message: &BusMessage) -> Option<WatchItem> {
        let (subject, part) = OperationSubject::parse(&message.subject).ok()?;
        if subject != self.subject {
            return None;
        }
        // An empty body is the stream's own marker of a deletion.
        if message.payload.is_empty() {
            return None;
        }
        let encoding = Encoding::from_content_type(message.headers.get(CONTENT_TYPE)).ok()?;
        let item = match part {
            OperationSubjectPart::Events => encoding
                .decode::<ProgressEvent>(&message.payload)
                .map(|event| (event.op_id == subject.op_id).then_some(WatchItem::Event(event))),
            OperationSubjectPart::State => encoding.decode::<Operation>(&message.payload).map(|state| {
                let same = state.op_id == subject.op_id && state.scope == subject.scope;
                same.then(|| WatchItem::State(Box::new(state)))
            }),
        };
        item.unwrap_or_else(|error| {
            tracing::debug!(op.id = %subject.op_id, error = %error, "dropped a message that does not read");
            None
        })
    }

    async fn deliver(&mut self, event: ProgressEvent) {
        self.seen.note(&event);
        // Where nobody reads, the task is ended from outside.
        let _ = self.sender.send(Ok(WatchItem::Event(event))).await;
    }

    async fn deliver_state(&mut self, state: Box<Operation>) {
        if self.seen.note_state(&state) {
            let _ = self.sender.send(Ok(WatchItem::State(state))).await;
        }
    }
}

type Key = (u32, u64);

fn key(event: &ProgressEvent) -> Key {
    (event.attempt, event.n)
}

fn is_next(last: Key, next: Key) -> bool {
    next.0 == last.0 && next.1 == last.1 + 1
}

fn is_of_the_end(event: &ProgressEvent) -> bool {
    event.phase == ProgressEvent::DONE && event.status.is_some()
}

/// What was delivered, and what waits for what is before it.
#[derive(Debug, Default)]
struct Seen {
    last: Option<Key>,
    rev: Option<u64>,
    /// Whether the last event has come.
    done: bool,
    /// Whether the last summary has.
    ended: bool,
    /// Since when readings of the ring have not said that the last event is still to come, though it has not.
    missing_since: Option<Instant>,
    /// How often the ring was read while one of them was missing.
    readings_at_the_end: u32,
    early: BTreeMap<Key, ProgressEvent>,
    /// What the last event that came live had expected to be the last before it.
    fence: Option<u64>,
}

impl Seen {
    /// Whether the stream may have refused this message. Who subscribes hears every message that is published, those too
    /// that the stream does not take because their writer had not seen the last one. Of two that expect the same before
    /// them one at most is stored, and each that is stored expects more than the one before it: so one that does not is
    /// either refused, or the first in a stream that was made anew, and the ring tells.
    fn may_be_refused(&mut self, message: &BusMessage) -> bool {
        if !message.subject.ends_with(".evt") {
            return false;
        }
        let expected = message.headers.get(EXPECTED_LAST_SUBJECT_SEQUENCE).and_then(|text| text.parse().ok());
        let Some(expected) = expected else { return false };
        let stale = self.fence.is_some_and(|fence| expected <= fence);
        self.fence = if expected == 0 { Some(0) } else { self.fence.max(Some(expected)) };
        stale
    }

    /// Whether the event is the one after the last one.
    fn follows(&self, event: &ProgressEvent) -> bool {
        self.last.is_some_and(|last| is_next(last, key(event)))
    }

    /// Whether the event is after the last one. A stream that was wiped counts anew: the event of the end is
    /// new all the same.
    fn is_new(&self, event: &ProgressEvent) -> bool {
        self.last.is_none_or(|last| key(event) > last) || (is_of_the_end(event) && !self.done)
    }

    /// Adds what the ring has; false where events are missing that the ring may yet show.
    fn merge(&mut self, ring: impl Iterator<Item = ProgressEvent>) -> bool {
        let mut oldest: Option<Key> = None;
        for event in ring {
            oldest = Some(oldest.map_or(key(&event), |oldest| oldest.min(key(&event))));
            if self.is_new(&event) {
                self.early.insert(key(&event), event);
            }
        }
        let mut last = self.last;
        for &next in self.early.keys() {
            let first_of_attempt = next.1 == 1 && last.is_none_or(|last| next.0 > last.0);
            let rest_is_gone = Some(next) == oldest;
            if !first_of_attempt && !rest_is_gone && !last.is_some_and(|last| is_next(last, next)) {
                return false;
            }
            last = Some(next);
        }
        true
    }

    fn take_early(&mut self) -> impl Iterator<Item = ProgressEvent> + use<> {
        std::mem::take(&mut self.early).into_values()
    }

    fn note(&mut self, event: &ProgressEvent) {
        self.last = self.last.max(Some(key(event)));
        self.done |= is_of_the_end(event);
    }

    /// Whether the summary is newer than the last one.
    fn note_state(&mut self, state: &Operation) -> bool {
        if self.rev.is_some_and(|rev| state.rev <= rev) {
            return false;
        }
        self.rev = Some(state.rev);
        self.ended |= state.status.is_terminal();
        true
    }

    /// What the last reading of the ring has said: an event that is known to come is waited for, however long it takes.
    fn note_reading(&mut self, end_pending: bool) {
        if self.is_ending() {
            self.readings_at_the_end += 1;
        }
        let is_missing = self.ended && !end_pending;
        self.missing_since = is_missing.then(|| self.missing_since.unwrap_or_else(Instant::now));
    }

    fn is_ending(&self) -> bool {
        self.done || self.ended
    }

    /// After how long without a message the ring is read again.
    fn silence(&self) -> Duration {
        match self.is_ending() {
            true => SILENCE_AT_THE_END * (1 << self.readings_at_the_end.min(DOUBLINGS)),
            false => SILENCE,
        }
    }

    fn is_over(&self) -> bool {
        let is_lost = self.missing_since.is_some_and(|since| since.elapsed() >= GRACE_AT_THE_END);
        self.ended && (self.done || is_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(attempt: u32, n: u64) -> ProgressEvent {
        ProgressEvent {
            op_id: "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11".parse().unwrap(),
            attempt,
            n,
            ts: "2026-11-21T07:38:27.123Z".parse().unwrap(),
            phase: "upload".to_owned(),
            message: String::new(),
            level: None,
            progress: None,
            detail: None,
            status: None,
        }
    }

    fn ring(keys: &[Key]) -> std::vec::IntoIter<ProgressEvent> {
        keys.iter().map(|&(attempt, n)| event(attempt, n)).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn a_ring_that_wrapped_is_taken_as_it_is() {
        let mut seen = Seen::default();
        assert!(seen.merge(ring(&[(1, 45), (1, 46), (2, 1)])));
        assert_eq!(
            seen.take_early().map(|event| key(&event)).collect::<Vec<_>>(),
            [(1, 45), (1, 46), (2, 1)]
        );
    }

    #[test]
    fn a_hole_in_the_middle_is_asked_for_again() {
        let mut seen = Seen { last: Some((1, 3)), ..Seen::default() };
        seen.early.insert((1, 6), event(1, 6));
        assert!(!seen.merge(ring(&[(1, 1), (1, 2), (1, 3), (1, 4)])), "5 is missing");
        assert!(seen.merge(ring(&[(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)])));
        assert_eq!(seen.take_early().map(|event| event.n).collect::<Vec<_>>(), [4, 5, 6]);
    }

    #[test]
    fn the_end_is_told_even_where_a_wiped_stream_counts_anew() {
        let mut seen = Seen { last: Some((1, 57)), ..Seen::default() };
        let status = Some(domain_model::OperationStatus::Succeeded);
        let end = ProgressEvent { phase: ProgressEvent::DONE.to_owned(), status, ..event(1, 1) };
        assert!(seen.merge(std::iter::once(end.clone())));
        assert_eq!(seen.take_early().count(), 1);
        seen.note(&end);
        assert!(!seen.is_new(&end), "but once only");
        assert_eq!(seen.last, Some((1, 57)));
    }

    #[test]
    fn what_was_seen_is_dropped() {
        let mut seen = Seen { last: Some((2, 1)), ..Seen::default() };
        assert!(seen.merge(ring(&[(1, 7), (1, 8), (2, 1)])));
        assert_eq!(seen.take_early().count(), 0);
        assert!(!seen.is_new(&event(1, 9)), "an attempt that is over has nothing more to say");
        assert!(seen.follows(&event(2, 2)));
        assert!(!seen.follows(&event(3, 1)), "another attempt: the end of this one may be missing");
    }
}
