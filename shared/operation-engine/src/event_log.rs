//! The events of one attempt on their way to the stream.
//!
//! `n` has no holes as stored, yet events are coalesced and dropped when there are too many: so an event gets
//! its `n` only when it is sent, and from then on is kept and sent again until the registry says that it is
//! stored. No more than ten a second get one.

use std::collections::VecDeque;
use std::time::Duration;

use bus_messages::{EventLevel, ProgressEvent};
use domain_model::{OperationId, Progress, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How long the first of some events waits for others.
const GATHERING: Duration = Duration::from_millis(100);
const EVENTS_PER_SECOND: f64 = 10.0;
/// Events that wait for their number; the oldest goes when there are more.
const WAITING: usize = 256;
/// Events with a number that are not stored yet.
const UNSTORED: usize = 64;
/// When to send again what the registry has, but could not store.
const RESEND_AFTER: Duration = Duration::from_millis(500);
/// What detail, message and phase of an event may take as JSON: a message of the stream holds 64 KiB, headers and
/// the other fields included, and the registry refuses events of more than 60 KiB.
const EVENT_BYTES: usize = 56 * 1024;
const MESSAGE_CHARACTERS: usize = 4096;
const PHASE_CHARACTERS: usize = 64;

/// An event before it has a number.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) ts: Timestamp,
    pub(crate) phase: String,
    pub(crate) message: String,
    pub(crate) level: Option<EventLevel>,
    pub(crate) progress: Option<Progress>,
    pub(crate) detail: Option<Value>,
    /// Plain progress: a later one of the same phase takes its place.
    pub(crate) replaceable: bool,
}

#[derive(Debug)]
pub(crate) struct EventLog {
    op_id: OperationId,
    attempt: u32,
    waiting: VecDeque<NewEvent>,
    first_waiting_since: Option<Instant>,
    dropped: u64,
    unstored: VecDeque<ProgressEvent>,
    next_n: u64,
    resend_at: Option<Instant>,
    tokens: f64,
    tokens_at: Instant,
    closing: bool,
}

impl EventLog {
    pub(crate) fn new(op_id: OperationId, attempt: u32, now: Instant) -> Self {
        Self {
            op_id,
            attempt,
            waiting: VecDeque::new(),
            first_waiting_since: None,
            dropped: 0,
            unstored: VecDeque::new(),
            next_n: 1,
            resend_at: None,
            tokens: EVENTS_PER_SECOND,
            tokens_at: now,
            closing: false,
        }
    }

    /// Tells whether nothing waited before, so that something is due at another time than before.
    pub(crate) fn push(&mut self, mut event: NewEvent, now: Instant) -> bool {
        shorten(&mut event);
        let is_first = self.first_waiting_since.is_none();
        self.first_waiting_since.get_or_insert(now);
        match self.waiting.back_mut() {
            Some(last) if last.replaceable && event.replaceable && last.phase == event.phase => *last = event,
            _ => self.waiting.push_back(event),
        }
        if self.waiting.len() > WAITING {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        is_first
    }

    /// From now on numbers are given out as fast as asked for: the operation is about to be finished.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.resend_at = self.resend_at.map(|_| Instant::now());
    }

    /// When there is something to send; `None` while there is nothing.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let gathered = self
            .first_waiting_since
            .filter(|_| self.unstored.len() < UNSTORED)
            .map(|since| if self.closing { now } else { (since + GATHERING).max(self.next_token_at(now)) });
        [gathered, self.resend_at].into_iter().flatten().min()
    }

    /// What to send now, oldest first, up to so many bytes; with their numbers, which they keep.
    pub(crate) fn take(&mut self, now: Instant, bytes: usize) -> Vec<ProgressEvent> {
        self.refill(now);
        while self.unstored.len() < UNSTORED && (self.closing || self.tokens >= 1.0) {
            let Some(event) = self.waiting.pop_front() else { break };
            self.tokens = (self.tokens - 1.0).max(0.0);
            let event = self.number(event);
            self.unstored.push_back(event);
        }
        self.first_waiting_since = (!self.waiting.is_empty()).then_some(now);
        let mut left = bytes;
        let fits = self.unstored.iter().take_while(|event| {
            let size = size(event);
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        });
        let events: Vec<ProgressEvent> = fits.cloned().collect();
        // Until the answer says more: sent again, unless it is stored by then.
        self.resend_at = (!self.unstored.is_empty()).then_some(now + RESEND_AFTER);
        events
    }

    /// All that is not stored, with numbers, if it has no more than so many bytes; otherwise it is due now.
    pub(crate) fn take_all(&mut self, now: Instant, bytes: usize) -> Option<Vec<ProgressEvent>> {
        let events = self.take(now, bytes);
        let is_all = self.waiting.is_empty() && events.len() == self.unstored.len();
        self.resend_at = self.resend_at.map(|_| now);
        is_all.then_some(events)
    }

    /// The registry has everything up to `n` in the stream.
    pub(crate) fn stored(&mut self, n: u64) {
        self.unstored.retain(|event| event.n > n);
        self.next_n = self.next_n.max(n + 1);
        if self.unstored.is_empty() {
            self.resend_at = None;
        }
    }

    fn number(&mut self, event: NewEvent) -> ProgressEvent {
        let n = self.next_n;
        self.next_n += 1;
        let detail = match std::mem::take(&mut self.dropped) {
            0 => event.detail,
            dropped => Some(json!({ "events_dropped_before": dropped, "detail": event.detail })),
        };
        ProgressEvent {
            op_id: self.op_id,
            attempt: self.attempt,
            n,
            ts: event.ts,
            phase: event.phase,
            message: event.message,
            level: event.level,
            progress: event.progress,
            detail,
            status: None,
        }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.tokens_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * EVENTS_PER_SECOND).min(EVENTS_PER_SECOND);
        self.tokens_at = now;
    }

    fn next_token_at(&self, now: Instant) -> Instant {
        let missing = ((1.0 - self.tokens) / EVENTS_PER_SECOND).max(0.0);
        // A millisecond more, so that rounding cannot make it come too early and be in vain.
        let at = self.tokens_at + Duration::from_secs_f64(missing) + Duration::from_millis(1);
        if missing == 0.0 { now } else { at.max(now) }
    }
}

fn size(event: &ProgressEvent) -> usize {
    // A number a little too large does no harm: JSON is longer than MessagePack.
    serde_json::to_vec(event).map_or(0, |json| json.len())
}

/// Shortens a text for people, and shows that it did.
pub(crate) fn cut(text: &mut String, characters: usize) {
    if let Some((at, _)) = text.char_indices().nth(characters) {
        text.truncate(at);
        text.push('…');
    }
}

/// Makes an event fit: a detail that is too large is left out, and that is said.
fn shorten(event: &mut NewEvent) {
    cut(&mut event.phase, PHASE_CHARACTERS);
    cut(&mut event.message, MESSAGE_CHARACTERS);
    let bytes =
        event.detail.as_ref().and_then(|detail| serde_json::to_vec(detail).ok()).map_or(0, |json| json.len());
    // The worst of a message: each character six bytes as an escape, or four as UTF-8.
    if bytes > EVENT_BYTES - 6 * (MESSAGE_CHARACTERS + PHASE_CHARACTERS) {
        event.detail = Some(json!({ "truncated": true, "detail_bytes": bytes }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
    const PLENTY: usize = 1 << 20;

    fn event(phase: &str, message: impl ToString, replaceable: bool) -> NewEvent {
        NewEvent {
            ts: "2026-11-21T07:38:27.123Z".parse().unwrap(),
            phase: phase.to_owned(),
            message: message.to_string(),
            level: None,
            progress: None,
            detail: None,
            replaceable,
        }
    }

    fn messages(events: &[ProgressEvent]) -> Vec<(u64, &str)> {
        events.iter().map(|event| (event.n, event.message.as_str())).collect()
    }

    #[test]
    fn plain_progress_is_coalesced_and_has_no_holes() {
        let start = Instant::now();
        let mut log = EventLog::new(ID.parse().unwrap(), 1, start);
        for step in 0..1000 {
            log.push(event("upload", step, true), start);
        }
        log.push(event("upload", "warning", false), start);
        log.push(event("upload", "after", true), start);
        assert_eq!(log.due(start), Some(start + GATHERING));
        assert_eq!(messages(&log.take(start, PLENTY)), [(1, "999"), (2, "warning"), (3, "after")]);
        log.stored(3);
        assert_eq!(log.take_all(start, PLENTY), Some(Vec::new()));
        assert_eq!(log.due(start), None);
    }

    #[test]
    fn what_is_not_stored_is_sent_again_with_the_same_number() {
        let start = Instant::now();
        let mut log = EventLog::new(ID.parse().unwrap(), 1, start);
        log.push(event("a", "one", false), start);
        log.push(event("a", "two", false), start);
        log.take(start, PLENTY);
        log.stored(1);
        log.push(event("a", "three", false), start);
        assert_eq!(messages(&log.take(start, PLENTY)), [(2, "two"), (3, "three")]);
        assert_eq!(log.due(start), Some(start + RESEND_AFTER));
    }

    #[test]
    fn no_more_than_ten_a_second_get_a_number_until_the_end() {
        let start = Instant::now();
        let mut log = EventLog::new(ID.parse().unwrap(), 1, start);
        for n in 0..40 {
            log.push(event("a", n, false), start);
        }
        assert_eq!(log.take(start, PLENTY).len(), 10);
        log.stored(10);
        let half = start + Duration::from_millis(500);
        assert_eq!(log.take(half, PLENTY).len(), 5);
        log.stored(15);
        let due = log.due(half).unwrap();
        assert_eq!(log.take(due, PLENTY).len(), 1, "what is due can be sent");
        log.stored(16);
        log.close();
        assert_eq!(log.take(due, PLENTY).len(), 24);
    }

    #[test]
    fn too_many_and_too_large_events_are_cut_and_that_is_said() {
        let start = Instant::now();
        let mut log = EventLog::new(ID.parse().unwrap(), 1, start);
        for n in 0..300 {
            log.push(event("a", n, false), start);
        }
        let first = log.take(start, PLENTY).remove(0);
        assert_eq!((first.n, first.message.as_str()), (1, "44"));
        assert_eq!(first.detail.unwrap()["events_dropped_before"], 44);

        let mut log = EventLog::new(ID.parse().unwrap(), 1, start);
        let detail = Some(json!("x".repeat(100_000)));
        log.push(NewEvent { detail, ..event("a", "\u{1}".repeat(10_000), false) }, start);
        let sent = log.take(start, PLENTY).remove(0);
        assert!(size(&sent) < EVENT_BYTES);
        assert_eq!(sent.detail.unwrap()["truncated"], true);
    }

    #[test]
    fn a_message_takes_no_more_bytes_than_there_is_room_for() {
        let start = Instant::now();
        let mut log = EventLog::new(ID.parse().unwrap(), 1, start);
        for n in 0..3 {
            log.push(event("a", n, false), start);
        }
        let room = 2 * size(&log.take(start, PLENTY)[0]);
        assert_eq!(messages(&log.take(start, room)), [(1, "0"), (2, "1")]);
        log.stored(2);
        assert_eq!(messages(&log.take(start, room)), [(3, "2")]);
    }
}
