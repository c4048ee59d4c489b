use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus_messages::kinds::KindDefinition;
use bus_messages::{LastProgress, Lease, OperationProgress, OperationProgressReply, ProgressSummary};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::OperationFailure;
use crate::event_log::{EventLog, NewEvent};

/// Events that go with the end of an attempt, in bytes as JSON; what is more goes with heartbeats before.
const LAST_EVENT_BYTES: usize = 8 * 1024;

/// One leased operation: what its handler, the reporter and its supervisor share.
pub(crate) struct Attempt {
    pub(crate) lease: Lease,
    pub(crate) definition: &'static KindDefinition,
    /// Told when there is something to send.
    news: Arc<Notify>,
    cancellation: CancellationToken,
    lost: CancellationToken,
    canceled: AtomicBool,
    stopping: AtomicBool,
    gives_way: AtomicBool,
    state: Mutex<State>,
    /// Told when the registry has answered.
    answered: Notify,
}

struct State {
    deadline: Instant,
    last_heartbeat: Instant,
    /// How many were sent.
    heartbeats: u64,
    events: EventLog,
    summary: Option<ProgressSummary>,
    checkpoint: Option<PendingCheckpoint>,
    checkpoint_version: u64,
    /// A heartbeat is under way: what is in it must not be told twice at the same time.
    is_asking: bool,
    /// What is left goes with the end.
    is_ending: bool,
}

/// A checkpoint that the registry has not confirmed yet, and who waits for that.
struct PendingCheckpoint {
    version: u64,
    value: Value,
    bytes: usize,
    waiting: Vec<oneshot::Sender<Result<(), OperationFailure>>>,
}

/// What was in a heartbeat, to know what its answer is about.
pub(crate) struct Sent {
    pub(crate) progress: OperationProgress,
    checkpoint_version: Option<u64>,
}

impl Attempt {
    /// `asked` is when the claim was sent: the lease ends `lease_s` after that at the earliest.
    pub(crate) fn new(
        lease: Lease,
        definition: &'static KindDefinition,
        asked: Instant,
        news: Arc<Notify>,
    ) -> Self {
        let events = EventLog::new(lease.op.op_id, lease.attempt, Instant::now());
        let state = State {
            deadline: asked + seconds(lease.lease_s),
            last_heartbeat: asked,
            heartbeats: 0,
            events,
            summary: None,
            checkpoint: None,
            checkpoint_version: 0,
            is_asking: false,
            is_ending: false,
        };
        Self {
            lease,
            definition,
            news,
            cancellation: CancellationToken::new(),
            lost: CancellationToken::new(),
            canceled: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            gives_way: AtomicBool::new(false),
            state: Mutex::new(state),
            answered: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds it leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }

    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    pub(crate) fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::Acquire)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Acquire)
    }

    pub(crate) fn cancel(&self) {
        if !self.canceled.swap(true, Ordering::AcqRel) {
            tracing::info!(op.id = %self.lease.op.op_id, "the operation is to be canceled");
        }
        self.cancellation.cancel();
    }

    pub(crate) fn give_way(&self) {
        if !self.gives_way.swap(true, Ordering::AcqRel) {
            tracing::info!(op.id = %self.lease.op.op_id, "the operation gives way to one that waits for it");
        }
        self.cancellation.cancel();
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.cancellation.cancel();
    }

    pub(crate) fn lose(&self, why: &str) {
        if !self.lost.is_cancelled() {
            tracing::warn!(op.id = %self.lease.op.op_id, op.attempt = self.lease.attempt, "lost the operation: {why}");
        }
        self.lost.cancel();
        self.cancellation.cancel();
        if let Some(pending) = self.state().checkpoint.take() {
            pending.tell(&Err(OperationFailure::Lost));
        }
        self.answered.notify_waiters();
    }

    /// Why a handler is to stop, as its failure.
    pub(crate) fn reason_to_stop(&self) -> OperationFailure {
        if self.lost.is_cancelled() {
            OperationFailure::Lost
        } else if self.is_canceled() {
            OperationFailure::Canceled
        } else {
            OperationFailure::HandedBack
        }
    }

    /// When the lease ends, unless renewed.
    pub(crate) fn deadline(&self) -> Instant {
        self.state().deadline
    }

    pub(crate) fn push(&self, event: NewEvent, summary: Option<ProgressSummary>) {
        let mut state = self.state();
        let is_news = state.events.push(event, Instant::now());
        if let Some(summary) = summary {
            state.summary = Some(summary);
        }
        drop(state);
        // Not for each: a handler may tell of every file that it copies.
        if is_news {
            self.news.notify_one();
        }
    }

    /// Stores a checkpoint; the receiver is told once the registry has confirmed it.
    pub(crate) fn save_checkpoint(
        &self,
        value: Value,
        bytes: usize,
    ) -> oneshot::Receiver<Result<(), OperationFailure>> {
        let (sender, receiver) = oneshot::channel();
        if self.lost.is_cancelled() {
            let _ = sender.send(Err(OperationFailure::Lost));
            return receiver;
        }
        let mut state = self.state();
        state.checkpoint_version += 1;
        let version = state.checkpoint_version;
        let mut waiting = state.checkpoint.take().map(|pending| pending.waiting).unwrap_or_default();
        waiting.push(sender);
        state.checkpoint = Some(PendingCheckpoint { version, value, bytes, waiting });
        drop(state);
        self.news.notify_one();
        receiver
    }

    /// When a heartbeat of this operation is due; for its events alone not before `tells_at`.
    pub(crate) fn due(&self, now: Instant, interval: Duration, tells_at: Option<Instant>) -> Instant {
        let state = self.state();
        if state.checkpoint.is_some() {
            return now;
        }
        let heartbeat = state.last_heartbeat + interval;
        let events = state.events.due(now).map(|due| tells_at.map_or(due, |tells_at| due.max(tells_at)));
        events.map_or(heartbeat, |events| events.min(heartbeat))
    }

    /// Whether so much of the interval is over that the heartbeat may go along with those of others.
    pub(crate) fn may_go_along(&self, now: Instant, interval: Duration) -> bool {
        now >= self.state().last_heartbeat + interval / 2
    }

    /// The next heartbeat, with up to so many bytes of events and checkpoint, and how many those are.
    pub(crate) fn heartbeat(&self, now: Instant, bytes: usize) -> (Sent, usize) {
        let mut state = self.state();
        let checkpoint = state.checkpoint.as_ref().filter(|pending| pending.bytes <= bytes);
        let checkpoint = checkpoint.map(|pending| (pending.version, pending.value.clone(), pending.bytes));
        let mut used = checkpoint.as_ref().map_or(0, |(_, _, bytes)| *bytes);
        let events = if state.is_ending { Vec::new() } else { state.events.take(now, bytes - used) };
        used +=
            events.iter().map(|event| serde_json::to_vec(event).map_or(0, |json| json.len())).sum::<usize>();
        let (checkpoint_version, checkpoint) = checkpoint.map(|(version, value, _)| (version, value)).unzip();
        state.heartbeats += 1;
        state.is_asking = true;
        let progress = OperationProgress {
            op_id: self.lease.op.op_id,
            attempt: self.lease.attempt,
            lease_id: self.lease.lease_id,
            number: Some(state.heartbeats),
            events,
            summary: state.summary.take(),
            checkpoint,
        };
        (Sent { progress, checkpoint_version }, used)
    }

    /// The heartbeat did not get through.
    pub(crate) fn unanswered(&self, sent: Sent) {
        let mut state = self.state();
        state.is_asking = false;
        if state.summary.is_none() {
            state.summary = sent.progress.summary;
        }
        drop(state);
        self.answered.notify_waiters();
    }

    /// The registry's answer to a heartbeat that was sent at `asked`.
    pub(crate) fn answer(&self, sent: Sent, reply: &OperationProgressReply, asked: Instant) {
        if reply.lost {
            self.lose("the registry says so");
            return;
        }
        if !reply.ok {
            self.unanswered(sent);
            return;
        }
        let mut state = self.state();
        state.deadline = state.deadline.max(asked + seconds(reply.lease_s));
        // A lease that was left as it is was renewed as much earlier as it lasts less.
        let renewed = asked.checked_sub(seconds(self.lease.lease_s - reply.lease_s)).unwrap_or(asked);
        state.last_heartbeat = state.last_heartbeat.max(renewed);
        state.is_asking = false;
        state.events.stored(reply.stored_n);
        if let Some(refused) = &reply.refused {
            tracing::warn!(op.id = %self.lease.op.op_id, refused, "the registry refused a part of a heartbeat");
        }
        let is_answered = |pending: &mut PendingCheckpoint| Some(pending.version) == sent.checkpoint_version;
        let outcome = match &reply.refused {
            Some(refused) => Err(OperationFailure::permanent("checkpoint_refused", refused)),
            None => Ok(()),
        };
        if let Some(pending) = state.checkpoint.take_if(is_answered) {
            pending.tell(&outcome);
        }
        drop(state);
        if reply.cancel_requested {
            self.cancel();
        } else if reply.give_way {
            self.give_way();
        }
        self.answered.notify_waiters();
    }

    /// What has not been told yet, which goes with the end of the attempt; nothing where the operation is lost. Waits for a
    /// heartbeat that is under way, and where there is too much for one message, for heartbeats that carry it.
    pub(crate) async fn last_progress(&self) -> LastProgress {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if self.lost.is_cancelled() {
                return LastProgress::default();
            }
            {
                let mut state = self.state();
                state.events.close();
                if !state.is_asking
                    && let Some(events) = state.events.take_all(Instant::now(), LAST_EVENT_BYTES)
                {
                    state.is_ending = true;
                    return LastProgress { events, summary: state.summary.take() };
                }
            }
            self.news.notify_one();
            answered.await;
        }
    }
}

impl PendingCheckpoint {
    fn tell(self, outcome: &Result<(), OperationFailure>) {
        for waiting in self.waiting {
            // Whoever does not wait any more does not need to know.
            let _ = waiting.send(outcome.clone());
        }
    }
}

/// Seconds of the wire as a duration; what makes no sense is none.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}
