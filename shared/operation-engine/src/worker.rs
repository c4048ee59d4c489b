use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bus_client::{Bus, Subscription};
use bus_messages::{ClaimReply, ClaimRequest, Encoding, Lease, Outcome};
use bus_subjects::{WorkSubject, wake};
use domain_model::{BackOff, OperationKind, Routing};
use futures::StreamExt;
use futures::stream::SelectAll;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempt;
use crate::finish::{finish, finish_request};
use crate::reporter::Reporter;
use crate::{OperationContext, OperationFailure, OperationHandler};

const CLAIM_BACK_OFF: BackOff = BackOff { base: Duration::from_millis(250), cap: Duration::from_secs(5) };
/// How long the last events of an operation may hold up its end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The times of a worker. The defaults are the contract's; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct WorkerTiming {
    /// How often each running operation's lease is renewed.
    pub heartbeat: Duration,
    /// How long before the end of its lease an operation that could not be renewed is given up.
    pub margin: Duration,
    /// How often to look for work when no wake-up comes.
    pub poll: Duration,
    /// How long a handler has, from when its work is lost or the worker stopped, before it is aborted.
    pub grace: Duration,
    /// How long an answer of the registry is waited for.
    pub request_timeout: Duration,
}

impl Default for WorkerTiming {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            margin: Duration::from_secs(5),
            poll: Duration::from_secs(5),
            grace: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// Claims operations and runs their handlers.
pub struct Worker {
    bus: Bus,
    caller: Routing,
    worker_id: String,
    timing: WorkerTiming,
    handlers: BTreeMap<OperationKind, Slots>,
}

struct Slots {
    handler: Arc<dyn OperationHandler>,
    free: Arc<AtomicU32>,
}

/// What every running operation needs of its worker.
struct Shared {
    bus: Bus,
    caller: Routing,
    timing: WorkerTiming,
    reporter: Reporter,
    draining: CancellationToken,
    stopping: CancellationToken,
    /// Told when there may be something to claim.
    look: Notify,
}

impl Worker {
    /// A worker that calls as `caller`, which its credentials must allow. `worker_id` names the process, for people.
    pub fn new(bus: Bus, caller: Routing, worker_id: String) -> Self {
        Self { bus, caller, worker_id, timing: WorkerTiming::default(), handlers: BTreeMap::new() }
    }

    /// Adds a kind, of which `slots` operations run at the same time.
    #[must_use]
    pub fn handler(mut self, handler: Arc<dyn OperationHandler>, slots: u32) -> Self {
        let kind = handler.definition().kind();
        self.handlers.insert(kind, Slots { handler, free: Arc::new(AtomicU32::new(slots)) });
        self
    }

    /// Other times than the contract's.
    #[must_use]
    pub fn timing(mut self, timing: WorkerTiming) -> Self {
        self.timing = timing;
        self
    }

    /// Claims and runs until `draining`, then waits for what is running; at `stopping` that is told to stop
    /// and handed back. Returns when nothing runs any more.
    pub async fn run(self, draining: CancellationToken, stopping: CancellationToken) {
        let timing = self.timing;
        let reporter = Reporter::new(
            self.bus.clone(),
            self.caller,
            self.worker_id.clone(),
            timing.heartbeat,
            timing.request_timeout,
        );
        let shared = Arc::new(Shared {
            bus: self.bus.clone(),
            caller: self.caller,
            timing,
            reporter,
            draining,
            stopping,
            look: Notify::new(),
        });
        // Before the first claim: what is created from then on is either in it or nudged.
        let mut wake_ups = subscribe(&self.bus, self.caller).await;
        let running = TaskTracker::new();
        let working = async {
            tokio::select! {
                () = self.claim_on_and_on(&shared, &running) => {}
                () = shared.draining.cancelled() => {}
                () = shared.stopping.cancelled() => {}
            }
            running.close();
            running.wait().await;
        };
        let listening = async {
            while wake_ups.next().await.is_some() {
                shared.look.notify_one();
                shared.reporter.ask_about_all();
            }
            // Without wake-ups the worker polls.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = working => {}
            () = listening => {}
            () = shared.reporter.run() => {}
        }
    }

    async fn claim_on_and_on(&self, shared: &Arc<Shared>, running: &TaskTracker) {
        let poll = self.timing.poll;
        let mut failures = 0;
        loop {
            let wait = match self.claim(shared, running).await {
                Some(true) => {
                    failures = 0;
                    continue;
                }
                Some(false) => {
                    failures = 0;
                    poll.mul_f64(rand::random_range(0.8..=1.0))
                }
                None => {
                    failures += 1;
                    CLAIM_BACK_OFF.wait(failures, rand::random_range(0.5..=1.0)).min(poll)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shared.look.notified() => {}
            }
        }
    }

    /// Asks for as much as there are free slots. Whether all of that came; `None` where there was no answer.
    async fn claim(&self, shared: &Arc<Shared>, running: &TaskTracker) -> Option<bool> {
        let free = |slots: &Slots| slots.free.load(Ordering::Acquire);
        let kinds: BTreeMap<OperationKind, u32> = self
            .handlers
            .iter()
            .map(|(kind, slots)| (kind.clone(), free(slots)))
            .filter(|(_, free)| *free > 0)
            .collect();
        let max = kinds.values().sum();
        if max == 0 {
            return Some(false);
        }
        let request = ClaimRequest { worker_id: self.worker_id.clone(), kinds, max };
        let subject = WorkSubject::new(self.caller, "claim").to_string();
        let asked = Instant::now();
        // Its own task: a claim that is under way when the worker is drained still has to be heard out, or
        // what it brings would be nobody's until its lease is over.
        let bus = self.bus.clone();
        let timeout = self.timing.request_timeout;
        let handlers: Vec<_> = self
            .handlers
            .iter()
            .map(|(kind, slots)| (kind.clone(), Arc::clone(&slots.handler), Arc::clone(&slots.free)))
            .collect();
        let (shared, tracker) = (Arc::clone(shared), running.clone());
        let claiming = running.spawn(async move {
            let reply: Result<ClaimReply, _> =
                bus.request(subject, &request, Encoding::MessagePack, timeout).await;
            let leases = match reply {
                Ok(reply) => reply.leases,
                Err(error) => {
                    tracing::debug!(error = %error, "no answer to a claim");
                    return None;
                }
            };
            let all_came = u32::try_from(leases.len()).is_ok_and(|count| count >= max);
            for lease in leases {
                let known = handlers.iter().find(|(kind, ..)| *kind == lease.op.kind);
                let Some((_, handler, free)) = known else {
                    tracing::error!(op.id = %lease.op.op_id, op.kind = %lease.op.kind, "claimed an operation of a kind that was not asked for");
                    continue;
                };
                let slot = Slot::take(Arc::clone(free), Arc::clone(&shared));
                let supervising = supervise(Arc::clone(&shared), Arc::clone(handler), lease, asked, slot);
                tracker.spawn(supervising);
            }
            Some(all_came)
        });
        claiming.await.unwrap_or(None)
    }
}

async fn subscribe(bus: &Bus, caller: Routing) -> SelectAll<Subscription> {
    let mut wake_ups = SelectAll::new();
    for routing in [caller, Routing::Any] {
        match bus.subscribe(wake(routing)).await {
            Ok(subscription) => wake_ups.push(subscription),
            Err(error) => tracing::warn!(error = %error, "no wake-ups; polling instead"),
        }
    }
    wake_ups
}

/// A slot in use; free again when it is dropped, which makes the worker look for work.
struct Slot {
    free: Arc<AtomicU32>,
    shared: Arc<Shared>,
}

impl Slot {
    fn take(free: Arc<AtomicU32>, shared: Arc<Shared>) -> Self {
        // Never below zero, even if the registry gives more than it was asked for.
        let _ = free.try_update(Ordering::AcqRel, Ordering::Acquire, |free| Some(free.saturating_sub(1)));
        Self { free, shared }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.fetch_add(1, Ordering::AcqRel);
        self.shared.look.notify_one();
    }
}

/// Runs one operation from its claim to its end.
async fn supervise(
    shared: Arc<Shared>,
    handler: Arc<dyn OperationHandler>,
    lease: Lease,
    asked: Instant,
    _slot: Slot,
) {
    let (op_id, kind) = (lease.op.op_id, lease.op.kind.clone());
    tracing::info!(op.id = %op_id, op.kind = %kind, op.attempt = lease.attempt, "claimed an operation");
    let news = Arc::clone(&shared.reporter.news);
    let attempt = Arc::new(Attempt::new(lease, handler.definition(), asked, news));
    let outcome = if shared.draining.is_cancelled() || shared.stopping.is_cancelled() {
        Err(OperationFailure::HandedBack)
    } else {
        shared.reporter.add(Arc::clone(&attempt));
        let outcome = run_handler(&shared, Arc::clone(&handler), &attempt).await;
        if !attempt.lost().is_cancelled()
            && tokio::time::timeout(FLUSH_TIMEOUT, attempt.flush()).await.is_err()
        {
            tracing::warn!(op.id = %op_id, "the last events of the operation are not stored; finishing without them");
        }
        shared.reporter.remove(&attempt);
        outcome
    };
    match &outcome {
        Ok(_) => tracing::info!(op.id = %op_id, op.kind = %kind, "the operation succeeded"),
        Err(failure) => {
            tracing::info!(op.id = %op_id, op.kind = %kind, reason = %failure, "the attempt ended without a result")
        }
    }
    if attempt.lost().is_cancelled() {
        return;
    }
    let request = finish_request(&attempt.lease, outcome, attempt.is_canceled(), attempt.is_stopping());
    if let Some(request) = request {
        let timeout = shared.timing.request_timeout;
        let recorded = finish(&shared.bus, shared.caller, request, attempt.deadline(), timeout).await;
        if recorded == Some(Outcome::Succeeded) {
            handler.recorded(&OperationContext::new(attempt, shared.bus.clone(), shared.caller)).await;
        }
    }
}

/// The handler's outcome, or what became of it instead.
async fn run_handler(
    shared: &Shared,
    handler: Arc<dyn OperationHandler>,
    attempt: &Arc<Attempt>,
) -> Result<Value, OperationFailure> {
    let context = OperationContext::new(Arc::clone(attempt), shared.bus.clone(), shared.caller);
    let mut task = tokio::spawn(async move { handler.run(&context).await });
    let op_id = attempt.lease.op.op_id;
    let mut abort_at: Option<Instant> = None;
    loop {
        let give_up_at = attempt.deadline() - shared.timing.margin;
        tokio::select! {
            joined = &mut task => {
                return joined.unwrap_or_else(|error| Err(panicked(attempt, error)));
            }
            () = tokio::time::sleep_until(give_up_at), if !attempt.lost().is_cancelled() => {
                // It may have been renewed in the meantime.
                if attempt.deadline() - shared.timing.margin <= Instant::now() {
                    attempt.lose("its lease could not be renewed");
                }
            }
            () = attempt.lost().cancelled(), if abort_at.is_none() => {
                abort_at = Some(Instant::now() + shared.timing.grace);
            }
            () = shared.stopping.cancelled(), if !attempt.is_stopping() => {
                attempt.stop();
                abort_at.get_or_insert(Instant::now() + shared.timing.grace);
            }
            () = sleep_until(abort_at), if abort_at.is_some() => {
                tracing::error!(op.id = %op_id, "the handler did not stop in time; aborting it");
                task.abort();
                return Err(attempt.reason_to_stop());
            }
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn panicked(attempt: &Attempt, error: tokio::task::JoinError) -> OperationFailure {
    let lease = &attempt.lease;
    let panic = error.try_into_panic().ok();
    let what = panic.as_ref().and_then(|panic| {
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str))
    });
    tracing::error!(
        op.id = %lease.op.op_id,
        op.kind = %lease.op.kind,
        panic = what.unwrap_or("of unknown content"),
        "the handler of an operation panicked"
    );
    OperationFailure::retryable("panic", "a defect in the worker, which has logged it")
}
