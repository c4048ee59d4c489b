use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bus_client::{Bus, Subscription};
use bus_messages::{Encoding, LastProgress, Lease, Nudge, Outcome};
use bus_subjects::wake;
use domain_model::{OperationKind, Routing};
use futures::StreamExt;
use futures::stream::SelectAll;
use serde_json::Value;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempt;
use crate::ends::Ends;
use crate::finish::{finish, finish_request};
use crate::reporter::Reporter;
use crate::{OperationContext, OperationFailure, OperationHandler};

/// How long the last events of an operation may hold up its end.
const LAST_PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// The times of a worker. The defaults are the contract's; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct WorkerTiming {
    /// How often each running operation's lease is renewed.
    pub heartbeat: Duration,
    /// How long before the end of its lease an operation that could not be renewed is given up.
    pub margin: Duration,
    /// How often to look for work when no wake-up comes.
    pub poll: Duration,
    /// How long a handler has, from when its work is lost or the worker stopped, before it is aborted; but no longer than
    /// its lease: after that, somebody else may be doing the work.
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
    pub(crate) worker_id: String,
    pub(crate) timing: WorkerTiming,
    pub(crate) handlers: Arc<BTreeMap<OperationKind, Slots>>,
}

/// What works on the operations of one kind.
#[derive(Clone)]
pub(crate) struct Slots {
    pub(crate) handler: Arc<dyn OperationHandler>,
    free: Arc<AtomicU32>,
}

/// What every running operation needs of its worker.
pub(crate) struct Shared {
    pub(crate) bus: Bus,
    pub(crate) caller: Routing,
    pub(crate) timing: WorkerTiming,
    reporter: Reporter,
    pub(crate) ends: Ends,
    draining: CancellationToken,
    stopping: CancellationToken,
    /// Told when there may be something to claim.
    pub(crate) look: Notify,
    /// Held from when a claim is asked until what it brought is begun.
    pub(crate) claiming: Arc<Mutex<()>>,
}

impl Shared {
    /// Whether nothing more is to be begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.draining.is_cancelled() || self.stopping.is_cancelled()
    }
}

impl Worker {
    /// A worker that calls as `caller`, which its credentials must allow. `worker_id` names the process, for people.
    pub fn new(bus: Bus, caller: Routing, worker_id: String) -> Self {
        Self { bus, caller, worker_id, timing: WorkerTiming::default(), handlers: Arc::default() }
    }

    /// Adds a kind, of which `slots` operations run at the same time.
    #[must_use]
    pub fn handler(mut self, handler: Arc<dyn OperationHandler>, slots: u32) -> Self {
        let kind = handler.definition().kind();
        let slots = Slots { handler, free: Arc::new(AtomicU32::new(slots)) };
        Arc::make_mut(&mut self.handlers).insert(kind, slots);
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
        let (ends, ended) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            bus: self.bus.clone(),
            caller: self.caller,
            timing,
            reporter,
            ends,
            draining,
            stopping,
            look: Notify::new(),
            claiming: Arc::default(),
        });
        // Before the first claim: what is created from then on is either in it or nudged.
        let mut wake_ups = subscribe(&self.bus, self.caller).await;
        let running = TaskTracker::new();
        let working = async {
            tokio::select! {
                () = shared.draining.cancelled() => {}
                () = shared.stopping.cancelled() => {}
            }
            running.close();
            running.wait().await;
        };
        let listening = async {
            while let Some(wake_up) = wake_ups.next().await {
                if self.is_meant(&wake_up.payload) {
                    shared.look.notify_one();
                }
                // Whatever it is about: what runs may be to stop, or to give way.
                shared.reporter.ask_about_all();
            }
            // Without wake-ups the worker polls.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = working => {}
            () = listening => {}
            () = self.claim_what_there_is(&shared, &running) => {}
            () = self.tell_ends(&shared, &running, ended) => {}
            () = shared.reporter.run() => {}
        }
    }

    /// Whether a nudge is about something that could be begun now: who frees a slot looks anyway. Not understanding a nudge
    /// costs a look.
    fn is_meant(&self, nudge: &[u8]) -> bool {
        let nudge: Nudge = Encoding::Json.decode(nudge).unwrap_or_default();
        let is_free = |kind| self.handlers.get(kind).is_some_and(|slots| slots.free() > 0);
        nudge.kinds.is_empty() || nudge.kinds.iter().any(is_free)
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

impl Slots {
    /// How many are free.
    pub(crate) fn free(&self) -> u32 {
        self.free.load(Ordering::Acquire)
    }

    /// Takes one; never leaves less than none, even if the registry gives more than it was asked for.
    pub(crate) fn take(&self, shared: &Arc<Shared>) -> Slot {
        let less = |free: u32| Some(free.saturating_sub(1));
        let _ = self.free.try_update(Ordering::AcqRel, Ordering::Acquire, less);
        Slot { free: Arc::clone(&self.free), shared: Some(Arc::clone(shared)) }
    }
}

/// A slot in use; free again when it is dropped, which makes the worker look for work.
pub(crate) struct Slot {
    free: Arc<AtomicU32>,
    shared: Option<Arc<Shared>>,
}

impl Slot {
    /// Free again, without a look for work: who frees many looks once.
    pub(crate) fn free_silently(mut self) {
        self.shared = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.fetch_add(1, Ordering::AcqRel);
        if let Some(shared) = &self.shared {
            shared.look.notify_one();
        }
    }
}

/// Runs one operation from its claim to its end.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    handler: Arc<dyn OperationHandler>,
    lease: Lease,
    asked: Instant,
    slot: Slot,
) {
    let (op_id, kind) = (lease.op.op_id, lease.op.kind.clone());
    tracing::info!(op.id = %op_id, op.kind = %kind, op.attempt = lease.attempt, "claimed an operation");
    let news = Arc::clone(&shared.reporter.news);
    let attempt = Arc::new(Attempt::new(lease, handler.definition(), asked, news));
    let mut progress = LastProgress::default();
    let outcome = if shared.is_ending() {
        Err(OperationFailure::HandedBack)
    } else {
        shared.reporter.add(Arc::clone(&attempt));
        let outcome = run_handler(&shared, Arc::clone(&handler), &attempt).await;
        match tokio::time::timeout(LAST_PROGRESS_TIMEOUT, attempt.last_progress()).await {
            Ok(last) => progress = last,
            Err(_) => {
                tracing::warn!(op.id = %op_id, "the last events of the operation are not stored; finishing without them");
            }
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
    let (is_canceled, is_stopping) = (attempt.is_canceled(), attempt.is_stopping());
    let request = finish_request(&attempt.lease, outcome, is_canceled, is_stopping, attempt.gives_way());
    if let Some(mut request) = request {
        request.progress = (progress != LastProgress::default()).then_some(progress);
        let recorded = finish(&shared, request, slot, attempt.deadline()).await;
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
        // However much of its grace is left: after its lease somebody else may be doing the work.
        let ends_at = |abort_at: Option<Instant>| abort_at.map(|moment| moment.min(attempt.deadline()));
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
            () = sleep_until(ends_at(abort_at)), if abort_at.is_some() => {
                // It may have been renewed in the meantime.
                if ends_at(abort_at).is_some_and(|moment| moment > Instant::now()) {
                    continue;
                }
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
