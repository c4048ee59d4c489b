//! The writer's side of the streams. The stream is a replayable copy of what Postgres decided.
//!
//! Two things could spoil it: a writer that was paused and goes on with what has been overtaken (an event of
//! an attempt that is over, a summary older than the one there), and one that repeats itself after an unclear
//! time-out. Both are prevented in the same way: read the last message of the subject, decide from it, and
//! publish only if it is still the last (`Nats-Expected-Last-Subject-Sequence`); otherwise look again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bus_client::{BusErrorKind, FencedPublish, OperationStream, PublishErrorKind, StoredMessage};
use bus_messages::{Encoding, Operation, ProgressEvent};
use bus_subjects::OperationSubject;
use bytes::Bytes;
use catalog_database::{Database, DatabaseErrorKind, OutboxEntry, OutboxEvent, ToTell};
use domain_model::{OperationId, OperationStatus};
use futures::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::errors::chain;
use crate::event_limit::EventLimit;
use crate::metrics::RegistryMetrics;

/// A message may be read, decided upon and overtaken this often before it is left to the next relay.
const TURNS: usize = 8;
/// A message of the stream has 64 KiB with its headers.
const MOST_SUMMARY_BYTES: usize = 60 * 1024;
/// With more operations than these to tell of at once, the next are gathered: for twice as long as these have taken, so
/// that where thousands change in a second, changes of one operation are told together.
const FEW: usize = 4;
const MOST_GATHERING: Duration = Duration::from_millis(50);
/// How long what is to be told is gathered at least where there is much, and what was told before it is deleted.
const GATHERING: Duration = Duration::from_millis(5);
/// How long what was told of left-overs has to be cleared before more are looked for.
const CLEARING: Duration = Duration::from_millis(200);
/// Operations that the outbox is asked about at once.
const RELAYED_TOGETHER: usize = 256;
/// Of those, how many are told at the same time.
const RELAYS: usize = 64;
/// Operations whose last messages are remembered, so that a running one costs no look-up a heartbeat.
const REMEMBERED: usize = 32_768;
/// What was read of the database longer ago than this may have been deleted before it was told.
const LONG_AGO: Duration = Duration::from_millis(200);
/// After another registry was faster, everything is looked up for so long: the stream refuses what was decided from
/// an old memory, but whoever subscribes to the subject has heard it already.
const MISTRUST: Duration = Duration::from_secs(60);

/// What could not be told now. The outbox, or the worker, tells it again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("could not read the stream")]
    Read(#[source] bus_client::BusError),
    #[error("could not write to the stream")]
    Write(#[source] bus_client::PublishError),
    #[error("other writers are always faster")]
    Overtaken,
}

/// The last message on a subject: what the next one is decided from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    sequence: u64,
    attempt: u32,
    n: u64,
    rev: u64,
    outbox_id: i64,
    /// Whether it told of the end of the operation.
    is_end: bool,
}

impl Position {
    fn of(message: &StoredMessage) -> Self {
        fn number<T: std::str::FromStr + Default>(message: &StoredMessage, header: &str) -> T {
            message.headers.get(header).and_then(|text| text.parse().ok()).unwrap_or_default()
        }
        Self {
            sequence: message.sequence,
            attempt: number(message, ATTEMPT),
            n: number(message, "Lro-N"),
            rev: number(message, "Lro-Rev"),
            outbox_id: number(message, "Lro-Outbox-Id"),
            is_end: message
                .headers
                .get(STATUS)
                .and_then(|status| status.parse().ok())
                .is_some_and(|status: OperationStatus| status.is_terminal()),
        }
    }
}

const ATTEMPT: &str = "Lro-Attempt";
const STATUS: &str = "Lro-Status";

/// The writer of the stream. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Streams {
    inner: Arc<Inner>,
}

struct Inner {
    stream: OperationStream,
    database: Database,
    metrics: RegistryMetrics,
    to_tell: mpsc::UnboundedSender<OperationId>,
    /// Entries of the outbox that the stream has.
    told: mpsc::UnboundedSender<Vec<i64>>,
    positions: Mutex<HashMap<String, Position>>,
    /// The highest number that the stream has acknowledged.
    acknowledged: AtomicU64,
    /// Told when a message could not be stored or read because there is no stream.
    gone: Notify,
    /// Until when what is remembered is not relied upon, because another registry writes as well.
    others_write_until: Mutex<Option<Instant>>,
}

impl Streams {
    /// The writer, and the task that relays the outbox until `stopping`.
    pub(crate) fn new(
        stream: OperationStream,
        database: Database,
        metrics: RegistryMetrics,
    ) -> (Self, impl FnOnce(CancellationToken) -> futures::future::BoxFuture<'static, ()>) {
        let (to_tell, mut waiting) = mpsc::unbounded_channel();
        let (told, heard) = mpsc::unbounded_channel();
        let clearing = clear_outbox(database.clone(), heard);
        let inner = Inner {
            stream,
            database,
            metrics,
            to_tell,
            told,
            positions: Mutex::new(HashMap::new()),
            acknowledged: AtomicU64::new(0),
            gone: Notify::new(),
            others_write_until: Mutex::new(None),
        };
        let streams = Self { inner: Arc::new(inner) };
        let relay = streams.clone();
        let run = move |stopping: CancellationToken| {
            let relaying = async move {
                while let Some(Some(first)) = stopping.run_until_cancelled(waiting.recv()).await {
                    let mut ids = BTreeSet::from([first]);
                    while ids.len() < RELAYED_TOGETHER
                        && let Ok(another) = waiting.try_recv()
                    {
                        ids.insert(another);
                    }
                    let began = Instant::now();
                    relay.relay(&ids.iter().copied().collect::<Vec<_>>()).await;
                    if ids.len() > FEW {
                        let rest = (began.elapsed() * 2).clamp(GATHERING, MOST_GATHERING);
                        tokio::time::sleep(rest).await;
                    }
                }
            };
            let task = async move {
                // What is told and not cleared when the registry stops is told again, and dropped by whoever reads.
                tokio::select! {
                    () = relaying => {}
                    () = clearing => {}
                }
            };
            Box::pin(task) as futures::future::BoxFuture<'static, ()>
        };
        (streams, run)
    }

    pub(crate) fn stream(&self) -> &OperationStream {
        &self.inner.stream
    }

    /// Waits until the stream was not there for somebody: it is gone, or its servers have no leader yet.
    pub(crate) async fn seems_gone(&self) {
        self.inner.gone.notified().await;
    }

    /// Has the outbox entries of an operation relayed soon.
    pub(crate) fn tell(&self, op_id: OperationId) {
        // Fails only while the registry stops; then the entries wait in the outbox.
        let _stopping = self.inner.to_tell.send(op_id);
    }

    /// Has a new operation told soon. Nothing was ever stored on its subjects.
    pub(crate) fn tell_new(&self, op: &Operation) {
        let subject = subject_of(op);
        self.remember(&subject.state(), Position::default());
        self.remember(&subject.events(), Position::default());
        self.tell(op.op_id);
    }

    /// Tells the stream what the outbox has about operations. One of which that does not read keeps no other from being told,
    /// and a defect ends nobody's relay.
    async fn relay(&self, ids: &[OperationId]) {
        if self.relay_together(ids).await || ids.len() < 2 {
            return;
        }
        for id in ids {
            self.relay_together(std::slice::from_ref(id)).await;
        }
    }

    /// Whether they could be read; if not because the database is away, that is to be tried later.
    async fn relay_together(&self, ids: &[OperationId]) -> bool {
        let (streams, ids) = (self.clone(), ids.to_vec());
        let relaying = tokio::spawn(async move {
            let read = Instant::now();
            match streams.inner.database.outbox_of(&ids).await {
                Ok(to_tell) => {
                    streams.tell_each(to_tell, read).await;
                    true
                }
                Err(error) => {
                    streams.failed(&error);
                    error.kind() == DatabaseErrorKind::Unavailable
                }
            }
        });
        relaying.await.unwrap_or_else(|panic| {
            self.inner.metrics.relay_failures.inc();
            tracing::error!(%panic, "a defect while the stream was told of operations");
            false
        })
    }

    async fn tell_each(&self, to_tell: Vec<ToTell>, read: Instant) {
        let told: Vec<_> = to_tell.iter().filter_map(|to_tell| to_tell.op.as_ref()).map(subject_of).collect();
        let telling = to_tell.into_iter().map(|to_tell| async move {
            if let Err(error) = self.tell_all(to_tell).await {
                self.failed(&error);
            }
        });
        futures::stream::iter(telling).buffer_unordered(RELAYS).for_each(|()| async {}).await;
        self.purge_what_is_gone(&told, read).await;
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        self.inner.metrics.relay_failures.inc();
        tracing::debug!(error = chain(error), "told later");
    }

    /// After something was told of operations that were read from `read` on. A registry may be paused in between, for as long
    /// as it takes another one to delete an operation and to purge its subjects: the last message there is none then, as it
    /// was before the first, and so the fence lets the overtaken one through. Then they are purged once more. Who is
    /// killed before that leaves them.
    pub(crate) async fn purge_what_is_gone(&self, told: &[OperationSubject], read: Instant) {
        if told.is_empty() || read.elapsed() < LONG_AGO {
            return;
        }
        let ids: Vec<OperationId> = told.iter().map(|subject| subject.op_id).collect();
        let there: HashSet<OperationId> = match self.inner.database.operations_by_id(&ids).await {
            Ok(ops) => ops.into_iter().map(|op| op.op_id).collect(),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "could not look for operations that were deleted while they were told of"
                );
                return;
            }
        };
        for subject in told.iter().filter(|subject| !there.contains(&subject.op_id)) {
            if let Err(error) = self.inner.stream.purge(&format!("{subject}.*")).await {
                tracing::warn!(op.id = %subject.op_id, error = chain(&error), "what was told of a deleted operation stays in the stream");
            }
            self.forget(&subject.to_string());
        }
    }

    async fn tell_all(&self, ToTell { op, entries }: ToTell) -> Result<(), StreamError> {
        let Some(last) = entries.last() else { return Ok(()) };
        if entries.iter().any(|entry| entry.purge) {
            self.inner.stream.purge(&format!("{}.*", last.subject)).await.map_err(StreamError::Read)?;
            self.forget(&last.subject);
        } else if let Some(op) = op {
            for entry in &entries {
                if let Some(event) = &entry.event {
                    self.tell_event(&op, entry, event).await?;
                }
            }
            self.tell_state(&op).await?;
            if op.status.is_terminal() {
                self.forget(&last.subject);
            }
        }
        let ids: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
        // Fails only while the registry stops.
        let _stopping = self.inner.told.send(ids);
        Ok(())
    }

    /// Adds an event of the registry's own at the end of its attempt.
    async fn tell_event(
        &self,
        op: &Operation,
        entry: &OutboxEntry,
        event: &OutboxEvent,
    ) -> Result<(), StreamError> {
        let subject = format!("{}.evt", entry.subject);
        for turn in 0..TURNS {
            let told = |last: Position| {
                last.attempt > event.attempt || (last.outbox_id >= entry.id && last.attempt >= event.attempt)
            };
            let Some(last) = self.position_unless(&subject, turn > 0, told).await? else { return Ok(()) };
            let n = if last.attempt == event.attempt { last.n.saturating_add(1) } else { 1 };
            let message = ProgressEvent {
                op_id: op.op_id,
                attempt: event.attempt,
                n,
                ts: entry.created_at,
                phase: event.phase.clone(),
                message: event.message.clone(),
                level: Some(event.level),
                progress: None,
                detail: event.detail.clone(),
                status: event.status,
            };
            let status = event.status.unwrap_or(op.status);
            if self.publish_event(op, &subject, last, &message, status, entry.id).await?.is_some() {
                return Ok(());
            }
        }
        Err(StreamError::Overtaken)
    }

    /// Adds the events of a worker that holds the operation, as many as it may. Returns the highest `n` of its attempt that
    /// is stored: the worker sends those behind it again.
    pub(crate) async fn tell_worker_events(
        &self,
        op: &Operation,
        subject: OperationSubject,
        events: &[ProgressEvent],
        limit: &EventLimit,
    ) -> Result<u64, StreamError> {
        let subject = subject.events();
        let mut last = self.position(&subject, false).await?;
        let stored = |last: Position| if last.attempt == op.attempt { last.n } else { 0 };
        for event in events {
            let mut turn = 0;
            loop {
                // An attempt that has been overtaken writes no more, nor one of an operation whose time was over since somebody
                // looked; what is stored already is not stored twice; and behind a hole nothing is stored until it is filled.
                let overtaken = last.attempt > op.attempt || (last.attempt == op.attempt && last.is_end);
                let hole = last.attempt == op.attempt && event.n > last.n.saturating_add(1);
                if overtaken || hole {
                    return Ok(stored(last));
                }
                if last.attempt == op.attempt && event.n <= last.n {
                    break;
                }
                // The first of an attempt is always stored: what comes before it could not be told from a hole.
                if turn == 0 && last.attempt == op.attempt && !limit.admit(op.op_id) {
                    return Ok(stored(last));
                }
                match self.publish_event(op, &subject, last, event, op.status, 0).await? {
                    Some(position) => {
                        last = position;
                        break;
                    }
                    None if turn + 1 < TURNS => {
                        turn += 1;
                        last = self.position(&subject, true).await?;
                    }
                    None => return Err(StreamError::Overtaken),
                }
            }
        }
        Ok(stored(last))
    }

    async fn publish_event(
        &self,
        op: &Operation,
        subject: &str,
        last: Position,
        event: &ProgressEvent,
        status: OperationStatus,
        outbox_id: i64,
    ) -> Result<Option<Position>, StreamError> {
        let mut headers = headers(op, &event.phase, event.attempt, status.as_str());
        headers.push(("Lro-N", event.n.to_string()));
        if outbox_id > 0 {
            headers.push(("Lro-Outbox-Id", outbox_id.to_string()));
        }
        let payload = Encoding::Json.encode(event).into();
        let sequence = self.publish_if_last(subject, headers, payload, last.sequence, false).await?;
        Ok(sequence.map(|sequence| {
            self.inner.metrics.events.inc();
            let is_end = status.is_terminal();
            let position =
                Position { sequence, attempt: event.attempt, n: event.n, rev: 0, outbox_id, is_end };
            self.remember(subject, position);
            position
        }))
    }

    /// Replaces the summary, unless a newer one is there.
    pub(crate) async fn tell_state(&self, op: &Operation) -> Result<(), StreamError> {
        let subject = subject_of(op).state();
        for turn in 0..TURNS {
            let told = |last: Position| last.rev >= op.rev;
            let Some(last) = self.position_unless(&subject, turn > 0, told).await? else { return Ok(()) };
            let mut headers =
                headers(op, op.phase.as_deref().unwrap_or("queued"), op.attempt, op.status.as_str());
            headers.push(("Lro-Rev", op.rev.to_string()));
            let payload = summary(op).into();
            if let Some(sequence) =
                self.publish_if_last(&subject, headers, payload, last.sequence, true).await?
            {
                self.remember(
                    &subject,
                    Position {
                        sequence,
                        attempt: op.attempt,
                        n: 0,
                        rev: op.rev,
                        outbox_id: 0,
                        is_end: op.status.is_terminal(),
                    },
                );
                return Ok(());
            }
        }
        Err(StreamError::Overtaken)
    }

    /// `None` where another message has come in between.
    async fn publish_if_last(
        &self,
        subject: &str,
        headers: Vec<(&'static str, String)>,
        payload: Bytes,
        last_sequence: u64,
        rollup: bool,
    ) -> Result<Option<u64>, StreamError> {
        let message = FencedPublish {
            subject: subject.to_owned(),
            headers,
            payload,
            expected_last_subject_sequence: Some(last_sequence),
            rollup,
        };
        match self.inner.stream.publish(message).await {
            Ok(sequence) => {
                self.inner.acknowledged.fetch_max(sequence, Ordering::Relaxed);
                Ok(Some(sequence))
            }
            Err(error) if error.kind() == PublishErrorKind::SequenceMismatch => {
                *self.mistrust() = Some(Instant::now() + MISTRUST);
                Ok(None)
            }
            Err(error) => {
                // It may be stored or not: the next look decides.
                self.positions().remove(subject);
                if error.kind() == PublishErrorKind::NoStream {
                    self.inner.gone.notify_one();
                }
                Err(StreamError::Write(error))
            }
        }
    }

    async fn position(&self, subject: &str, afresh: bool) -> Result<Position, StreamError> {
        match self.remembered(subject).filter(|_| !afresh) {
            Some(position) => Ok(position),
            None => self.read_position(subject).await,
        }
    }

    /// `None` where the last message has told already. Memory alone never says so: the stream may have been wiped since.
    async fn position_unless(
        &self,
        subject: &str,
        afresh: bool,
        told: impl Fn(Position) -> bool,
    ) -> Result<Option<Position>, StreamError> {
        let remembered = self.remembered(subject).filter(|position| !afresh && !told(*position));
        if remembered.is_some() {
            return Ok(remembered);
        }
        let position = self.read_position(subject).await?;
        Ok((!told(position)).then_some(position))
    }

    /// What is remembered of a subject, while that can be relied upon.
    fn remembered(&self, subject: &str) -> Option<Position> {
        let mistrusted = self.mistrust().is_some_and(|until| until > Instant::now());
        if mistrusted { None } else { self.positions().get(subject).copied() }
    }

    async fn read_position(&self, subject: &str) -> Result<Position, StreamError> {
        let last = self.inner.stream.last(subject).await.map_err(|error| {
            if error.kind() == BusErrorKind::NoStream {
                self.inner.gone.notify_one();
            }
            StreamError::Read(error)
        })?;
        let position = last.as_ref().map(Position::of).unwrap_or_default();
        self.remember(subject, position);
        Ok(position)
    }

    fn remember(&self, subject: &str, position: Position) {
        let mut positions = self.positions();
        if positions.len() >= REMEMBERED {
            positions.clear();
        }
        positions.insert(subject.to_owned(), position);
    }

    fn forget(&self, subject: &str) {
        let mut positions = self.positions();
        positions.remove(&format!("{subject}.evt"));
        positions.remove(&format!("{subject}.state"));
    }

    /// Forgets every position, after the stream may have changed behind our back.
    pub(crate) fn forget_all(&self) {
        self.positions().clear();
        self.inner.acknowledged.store(0, Ordering::Relaxed);
    }

    /// Whether the stream has acknowledged a later message than this one, its last.
    pub(crate) fn was_told_more_than(&self, last_sequence: u64) -> bool {
        last_sequence < self.inner.acknowledged.load(Ordering::Relaxed)
    }

    fn mistrust(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.inner.others_write_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn positions(&self) -> std::sync::MutexGuard<'_, HashMap<String, Position>> {
        self.inner.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Relays what others failed to relay, again and again until `stopping`. Beside what is told as it happens: where a
    /// stream is made anew that is every summary there is, and nobody's end is to wait for all of them.
    pub(crate) async fn relay_left_over(self, every: Duration, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            let mut before = Vec::new();
            // Until nothing is left, or what is left stays: it cannot be told, or not cleared.
            while let Some(lot) = stopping.run_until_cancelled(self.relay_some_left_over(every)).await
                && lot.len() == RELAYED_TOGETHER
                && lot != before
            {
                before = lot;
                tokio::time::sleep(CLEARING).await;
            }
        }
    }

    /// Relays as many left-overs as are relayed together; which operations they are of.
    async fn relay_some_left_over(&self, older_than: Duration) -> Vec<OperationId> {
        match self.inner.database.outbox_left_over(older_than.as_secs_f64(), RELAYED_TOGETHER as i64).await {
            Ok(ids) => {
                self.relay(&ids).await;
                ids
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not look for left-over outbox entries");
                Vec::new()
            }
        }
    }
}

/// Deletes what the stream has from the outbox, gathered for a moment: one durable commit for many.
async fn clear_outbox(database: Database, mut told: mpsc::UnboundedReceiver<Vec<i64>>) {
    while let Some(mut ids) = told.recv().await {
        tokio::time::sleep(GATHERING).await;
        while let Ok(more) = told.try_recv() {
            ids.extend(more);
        }
        if let Err(error) = database.outbox_told(&ids).await {
            tracing::debug!(error = chain(&error), "the outbox is cleared later, after telling it again");
        }
    }
}

/// An operation as the stream has it: without the largest of its parts where one message cannot hold them all. `lro.get` has them.
fn summary(op: &Operation) -> Vec<u8> {
    // Who asked knows the input; of the errors the last one is left.
    let leave_out: [fn(&mut Operation); 4] = [
        |op| op.input = serde_json::Value::Null,
        |op| op.error.iter_mut().for_each(|error| error.history.clear()),
        |op| op.result = None,
        |op| (op.message, op.progress_summary) = (None, None),
    ];
    let mut payload = Encoding::Json.encode(op);
    let mut op = op.clone();
    for leave_out in leave_out {
        if payload.len() <= MOST_SUMMARY_BYTES {
            break;
        }
        leave_out(&mut op);
        payload = Encoding::Json.encode(&op);
    }
    payload
}

/// The subjects of an operation.
pub(crate) fn subject_of(op: &Operation) -> OperationSubject {
    OperationSubject { scope: op.scope, op_id: op.op_id }
}

fn headers(op: &Operation, phase: &str, attempt: u32, status: &str) -> Vec<(&'static str, String)> {
    vec![
        ("Content-Type", Encoding::Json.content_type().to_owned()),
        ("Lro-Kind", op.kind.to_string()),
        (STATUS, status.to_owned()),
        ("Lro-Phase", phase.to_owned()),
        (ATTEMPT, attempt.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_fits_into_a_message_whatever_an_operation_holds() {
        let now = "2026-11-21T07:38:27.123Z";
        let op = |input: usize, errors: usize, result: usize| {
            let failure = json!({ "attempt": 1, "code": "late", "at": now,
                "message": "\u{1}".repeat(1000) });
            let op: Operation = serde_json::from_value(json!({
                "op_id": "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11", "kind": "test-sleep", "scope": "hub",
                "scope_type": "hub", "status": "failed", "created_by": "ops", "routing": "hub",
                "input": "i".repeat(input), "result": "r".repeat(result), "progress": 0.0, "attempt": 1,
                "error": { "code": "late", "message": "\u{1}".repeat(1000), "retryable": false,
                    "history": vec![failure; errors] },
                "message": "\u{1}".repeat(2000), "max_attempts": 3, "lease_losses": 0, "priority": 0,
                "not_before": now, "created_at": now, "updated_at": now, "expires_at": now,
                "waiting_for_children": false, "rev": 7
            }))
            .unwrap();
            let summary = summary(&op);
            assert!(summary.len() <= MOST_SUMMARY_BYTES, "{}", summary.len());
            let told: Operation = serde_json::from_slice(&summary).unwrap();
            assert_eq!((told.status, told.rev, told.error.is_some()), (op.status, op.rev, true));
            (told.input == op.input, told.error == op.error, told.result == op.result)
        };
        assert_eq!(op(100, 2, 100), (true, true, true));
        assert_eq!(op(32 * 1024, 1, 24 * 1024), (false, true, true));
        // A control character takes six bytes.
        assert_eq!(op(32 * 1024, 20, 24 * 1024), (false, false, true));
    }
}
