//! The worker against a stand-in for the registry, over a real nats-server.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../bus-client/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bus_client::{Bus, EndpointDefinition, IncomingRequest, Reply, RunningService};
use bus_messages::kinds::{self, KindDefinition};
use bus_messages::{
    ApiError, ChildOperation, ClaimReply, ClaimRequest, ErrorCode, EventLevel, FinishReply, FinishRequest,
    Lease, OperationProgressReply, Outcome, ProgressEvent, ProgressReply, ProgressRequest, ProgressSummary,
    RepositoryRequest,
};
use bytes::Bytes;
use domain_model::{LeaseId, OperationId, Progress, Routing, Scope};
use futures::future::BoxFuture;
use operation_engine::{OperationContext, OperationFailure, OperationHandler, Worker, WorkerTiming};
use serde_json::{Value, json};
use support::{NatsServer, wait_for};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TIME: &str = "2026-11-21T07:38:27.123Z";

/// What the registry knows of one operation.
#[derive(Debug, Default, Clone)]
struct Known {
    lease_s: f64,
    lost: bool,
    cancel_requested: bool,
    give_way: bool,
    events: Vec<ProgressEvent>,
    summary: Option<ProgressSummary>,
    checkpoint: Option<Value>,
    heartbeats: u32,
    finish: Option<FinishRequest>,
}

impl Known {
    /// As the stream does: nothing twice, and nothing behind a hole.
    fn store(&mut self, event: ProgressEvent) {
        let stored = self.events.last().map_or(0, |event| event.n);
        assert!(event.n <= stored + 1, "a hole before {}", event.n);
        if event.n > stored {
            self.events.push(event);
        }
    }
}

#[derive(Default)]
struct Registry {
    queue: Mutex<VecDeque<Lease>>,
    known: Mutex<HashMap<OperationId, Known>>,
    silent: AtomicBool,
    replies_to_lose: AtomicU32,
    /// Claims that bring ends and get no answer.
    turns_to_lose: AtomicU32,
    /// How many ends each claim has brought.
    ends_of_claims: Mutex<Vec<usize>>,
    /// How many ends came by themselves.
    ends_alone: AtomicU32,
    refuse_checkpoints: AtomicBool,
}

impl Registry {
    async fn serve(self: &Arc<Self>, bus: &Bus) -> RunningService {
        let definition = |name: &'static str| EndpointDefinition {
            name,
            subject: format!("work.v1.*.{name}"),
            queue_group: "registry".to_owned(),
            metadata: BTreeMap::new(),
            concurrency: 64,
        };
        let handler = |answer: fn(&Self, &IncomingRequest) -> Result<Reply, ApiError>| {
            let registry = Arc::clone(self);
            move |request: IncomingRequest| {
                let registry = Arc::clone(&registry);
                async move {
                    if registry.silent.load(Ordering::Relaxed) {
                        return std::future::pending().await;
                    }
                    let lose = |left: u32| left.checked_sub(1);
                    if brings_ends(&request)
                        && registry
                            .turns_to_lose
                            .try_update(Ordering::Relaxed, Ordering::Relaxed, lose)
                            .is_ok()
                    {
                        return std::future::pending().await;
                    }
                    let reply = answer(&registry, &request);
                    if request.subject().ends_with(".progress")
                        && registry
                            .replies_to_lose
                            .try_update(Ordering::Relaxed, Ordering::Relaxed, lose)
                            .is_ok()
                    {
                        return std::future::pending().await;
                    }
                    reply
                }
            }
        };
        bus.service("registry", "0.1.0", "stand-in", BTreeMap::new())
            .endpoint(definition("claim"), handler(Self::claim))
            .endpoint(definition("progress"), handler(Self::progress))
            .endpoint(definition("finish"), handler(Self::finish))
            .endpoint(definition("repository"), handler(Self::repository))
            .start()
            .await
            .unwrap()
    }

    fn add(&self, lease_s: f64, checkpoint: Option<Value>) -> OperationId {
        self.add_of(json!({ "seconds": 1.0 }), lease_s, checkpoint)
    }

    fn add_of(&self, input: Value, lease_s: f64, checkpoint: Option<Value>) -> OperationId {
        let id = uuid::Uuid::now_v7().to_string();
        let op = serde_json::from_value(json!({
            "op_id": id, "kind": "test-sleep", "scope": "hub", "scope_type": "hub", "status": "running",
            "created_by": "test", "routing": "hub", "input": input, "progress": 0.0, "attempt": 1,
            "max_attempts": 3, "lease_losses": 0, "priority": 0, "not_before": TIME, "created_at": TIME,
            "updated_at": TIME, "expires_at": TIME, "waiting_for_children": false, "rev": 1,
        }))
        .unwrap();
        let lease = Lease {
            op,
            attempt: 1,
            lease_id: LeaseId::from_uuid(uuid::Uuid::new_v4()),
            lease_until: TIME.parse().unwrap(),
            lease_s,
            checkpoint,
            grant: None,
        };
        let op_id = lease.op.op_id;
        self.known.lock().unwrap().insert(op_id, Known { lease_s, ..Known::default() });
        self.queue.lock().unwrap().push_back(lease);
        op_id
    }

    fn of(&self, op_id: OperationId) -> Known {
        self.known.lock().unwrap()[&op_id].clone()
    }

    fn change(&self, op_id: OperationId, change: impl FnOnce(&mut Known)) {
        change(self.known.lock().unwrap().get_mut(&op_id).unwrap());
    }

    fn claim(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let claim: ClaimRequest = request.decode()?;
        assert_eq!(claim.kinds.values().sum::<u32>(), claim.max);
        self.ends_of_claims.lock().unwrap().push(claim.finished.len());
        let ends = claim.finished.into_iter().map(|finish| self.record(finish));
        let finished = ends.map(|reply| reply.unwrap_or_else(FinishReply::refused)).collect();
        let mut queue = self.queue.lock().unwrap();
        let count = queue.len().min(claim.max as usize);
        Ok(request.reply(&ClaimReply { leases: queue.drain(..count).collect(), finished }))
    }

    fn progress(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let progress: ProgressRequest = request.decode()?;
        let mut known = self.known.lock().unwrap();
        let ops = progress.ops.into_iter().map(|entry| {
            let known = known.get_mut(&entry.op_id).unwrap();
            known.heartbeats += 1;
            for event in entry.events {
                known.store(event);
            }
            known.summary = entry.summary.or(known.summary.take());
            let refuse = self.refuse_checkpoints.load(Ordering::Relaxed) && entry.checkpoint.is_some();
            if !refuse && !known.lost {
                known.checkpoint = entry.checkpoint.or(known.checkpoint.take());
            }
            OperationProgressReply {
                op_id: entry.op_id,
                ok: !known.lost,
                lost: known.lost,
                lease_until: None,
                lease_s: known.lease_s,
                cancel_requested: known.cancel_requested,
                give_way: known.give_way,
                stored_n: known.events.last().map_or(0, |event| event.n),
                refused: refuse.then(|| "not this one".to_owned()),
            }
        });
        Ok(request.reply(&ProgressReply { ops: ops.collect() }))
    }

    fn finish(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        self.ends_alone.fetch_add(1, Ordering::Relaxed);
        Ok(request.reply(&self.record(request.decode()?)?))
    }

    fn record(&self, finish: FinishRequest) -> Result<FinishReply, ApiError> {
        if finish.result == Some(json!("refuse me")) {
            return Err(ApiError::invalid_argument("not a result"));
        }
        let mut known = self.known.lock().unwrap();
        let known = known.get_mut(&finish.op_id).unwrap();
        assert!(known.finish.is_none(), "finished twice: {finish:?}");
        if let Some(progress) = finish.progress.clone() {
            for event in progress.events {
                known.store(event);
            }
            known.summary = progress.summary.or(known.summary.take());
        }
        known.finish = Some(finish);
        Ok(FinishReply::OK)
    }

    fn repository(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let _: RepositoryRequest = request.decode()?;
        Err(ApiError::new(ErrorCode::Unavailable, "no bucket").with_detail("code", "bucket_unreachable"))
    }

    async fn finished(&self, op_id: OperationId) -> FinishRequest {
        wait_for("the operation is finished", async || {
            let known = self.of(op_id);
            known.finish.clone().ok_or_else(|| format!("{known:?}"))
        })
        .await
    }
}

fn brings_ends(request: &IncomingRequest) -> bool {
    let claim = request.decode::<ClaimRequest>();
    request.subject().ends_with(".claim") && claim.is_ok_and(|claim| !claim.finished.is_empty())
}

type Work =
    Box<dyn Fn(OperationContext) -> BoxFuture<'static, Result<Value, OperationFailure>> + Send + Sync>;

/// The work, and the operations whose success is recorded.
struct TestHandler(Work, Arc<Mutex<Vec<OperationId>>>);

#[async_trait]
impl OperationHandler for TestHandler {
    fn definition(&self) -> &'static KindDefinition {
        kinds::find(&"test-sleep".parse().unwrap()).unwrap()
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        (self.0)(operation.clone()).await
    }

    async fn recorded(&self, operation: &OperationContext) {
        self.1.lock().unwrap().push(operation.op_id());
    }
}

/// A server, a stand-in registry and a worker with two slots.
struct Setting {
    _server: NatsServer,
    bus: Bus,
    registry: Arc<Registry>,
    recorded: Arc<Mutex<Vec<OperationId>>>,
    _service: RunningService,
    draining: CancellationToken,
    stopping: CancellationToken,
    worker: JoinHandle<()>,
}

impl Setting {
    async fn start<F, Fut>(timing: WorkerTiming, work: F) -> Option<Self>
    where
        F: Fn(OperationContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, OperationFailure>> + Send + 'static,
    {
        let server = NatsServer::start()?;
        let bus = server.connect("hub").await;
        let registry = Arc::new(Registry::default());
        let service = registry.serve(&bus).await;
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let recorded = Arc::default();
        let work: Work = Box::new(move |context| Box::pin(work(context)));
        let worker = Worker::new(server.connect("hub").await, Routing::Hub, "test".to_owned())
            .handler(Arc::new(TestHandler(work, Arc::clone(&recorded))), 2)
            .timing(timing)
            .run(draining.clone(), stopping.clone());
        let worker = tokio::spawn(worker);
        Some(Self { _server: server, bus, registry, recorded, _service: service, draining, stopping, worker })
    }

    /// Adds an operation and nudges the worker.
    async fn add(&self) -> OperationId {
        self.add_with(30.0, None).await
    }

    async fn add_with(&self, lease_s: f64, checkpoint: Option<Value>) -> OperationId {
        let op_id = self.registry.add(lease_s, checkpoint);
        self.wake().await;
        op_id
    }

    async fn wake(&self) {
        self.bus.publish("wake.hub".to_owned(), Bytes::new()).await.unwrap();
    }

    async fn started(&self, started: &AtomicBool) {
        wait_for("the handler runs", async || {
            if started.load(Ordering::Relaxed) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }

    async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(15), self.worker).await.expect("the worker ends").unwrap();
    }
}

fn steps(count: u64, total: u64) -> Option<Progress> {
    Some(Progress::count(count, Some(total), "steps"))
}

/// Times that let a test see in a second what takes half a minute.
fn fast() -> WorkerTiming {
    WorkerTiming {
        heartbeat: Duration::from_millis(100),
        margin: Duration::from_millis(400),
        poll: Duration::from_millis(200),
        grace: Duration::from_millis(300),
        request_timeout: Duration::from_millis(300),
    }
}

#[tokio::test]
async fn ends_go_with_the_next_claim_and_what_was_not_told_yet_goes_with_them() {
    let work = |context: OperationContext| async move {
        context.event(EventLevel::Info, "sleep", "the only one", None);
        Ok(json!({ "done": true }))
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let operations: Vec<_> = (0..20).map(|_| setting.registry.add(30.0, None)).collect();
    setting.wake().await;
    let mut told_with_the_end = 0;
    for op_id in &operations {
        let finish = setting.registry.finished(*op_id).await;
        told_with_the_end += finish.progress.map_or(0, |progress| progress.events.len());
        let known = setting.registry.of(*op_id);
        let events: Vec<_> = known.events.iter().map(|event| (event.n, event.message.as_str())).collect();
        assert_eq!(events, [(1, "the only one")]);
    }
    // A nudge has the worker ask about all that runs, and tell what there is by then.
    assert!(told_with_the_end > 10, "{told_with_the_end} of 20");
    assert_eq!(setting.registry.ends_alone.load(Ordering::Relaxed), 0);
    let claims = setting.registry.ends_of_claims.lock().unwrap().clone();
    assert_eq!(claims.iter().sum::<usize>(), 20, "{claims:?}");
    setting.draining.cancel();
    setting.ended().await;
}

#[tokio::test]
async fn an_end_that_is_not_heard_with_a_claim_or_too_large_for_one_is_told_by_itself() {
    let large = "x".repeat(20_000);
    let text = large.clone();
    let work = move |context: OperationContext| {
        let result = if context.op().input["seconds"] == 2.0 { json!(large) } else { json!("small") };
        async move { Ok(result) }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    setting.registry.turns_to_lose.store(1, Ordering::Relaxed);
    let small = setting.add().await;
    assert_eq!(setting.registry.finished(small).await.result, Some(json!("small")));
    assert_eq!(setting.registry.ends_alone.load(Ordering::Relaxed), 1);
    let large = setting.registry.add_of(json!({ "seconds": 2.0 }), 30.0, None);
    setting.wake().await;
    assert_eq!(setting.registry.finished(large).await.result, Some(json!(text)));
    assert_eq!(setting.registry.ends_alone.load(Ordering::Relaxed), 2);
    setting.draining.cancel();
    setting.ended().await;
}

#[tokio::test]
async fn operations_are_claimed_run_and_finished_with_their_events() {
    let work = |context: OperationContext| async move {
        context.event(EventLevel::Info, "sleep", "started", Some(json!({ "a": 1 })));
        for step in 1..=1000 {
            context.progress("sleep", format!("step {step}"), steps(step, 1000));
        }
        context.event(EventLevel::Warn, "sleep", "nearly done", None);
        Ok(json!({ "steps": 1000 }))
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let started = Instant::now();
    // More than there are slots, so that freed ones are used.
    let mut operations = Vec::new();
    for _ in 0..5 {
        operations.push(setting.add().await);
    }
    for op_id in operations.iter().copied() {
        let finish = setting.registry.finished(op_id).await;
        assert_eq!((finish.outcome, finish.result), (Outcome::Succeeded, Some(json!({ "steps": 1000 }))));
        let known = setting.registry.of(op_id);
        let events: Vec<_> = known.events.iter().map(|event| (event.n, event.message.as_str())).collect();
        assert_eq!(events.first(), Some(&(1, "started")));
        assert_eq!(events.last().unwrap().1, "nearly done");
        assert!(events.len() <= 5, "coalesced: {events:?}");
        assert!(events.iter().any(|(_, message)| *message == "step 1000"));
        assert_eq!(known.summary.unwrap().progress, 100.0);
    }
    assert!(started.elapsed() < Duration::from_secs(4), "by wake-ups and freed slots, not by polling");
    setting.draining.cancel();
    let recorded = Arc::clone(&setting.recorded);
    setting.ended().await;
    recorded.lock().unwrap().sort_unstable();
    assert_eq!(*recorded.lock().unwrap(), operations);
}

#[tokio::test]
async fn events_whose_answer_was_lost_are_sent_again_without_hole_or_double() {
    let work = |context: OperationContext| async move {
        for step in 1..=8 {
            context.event(EventLevel::Info, "sleep", format!("step {step}"), None);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Value::Null)
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    setting.registry.replies_to_lose.store(2, Ordering::Relaxed);
    let op_id = setting.add().await;
    assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Succeeded);
    let numbers: Vec<u64> = setting.registry.of(op_id).events.iter().map(|event| event.n).collect();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lost_lease_stops_the_work_and_nothing_is_finished() {
    let seen = Arc::new(Mutex::new(None));
    let (seen_by_work, started) = (Arc::clone(&seen), Arc::new(AtomicBool::new(false)));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let (seen, started) = (Arc::clone(&seen_by_work), Arc::clone(&started_work));
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            let checkpoint = context.save_checkpoint(&json!({ "late": true })).await;
            *seen.lock().unwrap() = Some((context.is_lost(), context.is_canceled(), checkpoint));
            Ok(json!("too late"))
        }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    let op_id = setting.add().await;
    setting.started(&started).await;
    setting.registry.change(op_id, |known| known.lost = true);
    let seen =
        wait_for("the handler sees it", async || seen.lock().unwrap().clone().ok_or("not yet".to_owned()))
            .await;
    assert_eq!(seen, (true, false, Err(OperationFailure::Lost)));
    setting.draining.cancel();
    let registry = Arc::clone(&setting.registry);
    setting.ended().await;
    let known = registry.of(op_id);
    assert_eq!((known.finish, known.checkpoint), (None, None));
}

#[tokio::test]
async fn a_handler_that_does_not_see_the_loss_is_aborted_and_its_slot_is_free_again() {
    let work = |_| std::future::pending();
    let Some(setting) = Setting::start(fast(), work).await else { return };
    let (one, two) = (setting.add().await, setting.add().await);
    wait_for("both run", async || {
        let beats = setting.registry.of(one).heartbeats.min(setting.registry.of(two).heartbeats);
        if beats > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let third = setting.add().await;
    setting.registry.change(one, |known| known.lost = true);
    wait_for("the third runs in the freed slot", async || {
        if setting.registry.of(third).heartbeats > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(setting.registry.of(one).finish, None);
}

#[tokio::test]
async fn a_cancel_reaches_the_work_by_a_wake_up_and_not_by_the_next_heartbeat() {
    let started = Arc::new(AtomicBool::new(false));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            context.unless_stopped(std::future::pending::<()>()).await?;
            Ok(Value::Null)
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add().await;
    setting.started(&started).await;
    let canceled = Instant::now();
    setting.registry.change(op_id, |known| known.cancel_requested = true);
    setting.wake().await;
    assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Canceled);
    assert!(canceled.elapsed() < Duration::from_secs(2), "{:?}", canceled.elapsed());
    // The same while the worker is being drained.
    started.store(false, Ordering::Relaxed);
    let op_id = setting.add().await;
    setting.started(&started).await;
    setting.draining.cancel();
    setting.registry.change(op_id, |known| known.cancel_requested = true);
    setting.wake().await;
    assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Canceled);
    setting.ended().await;
}

#[tokio::test]
async fn the_work_stops_before_its_lease_ends_when_the_registry_is_silent() {
    let stopped = Arc::new(Mutex::new(None));
    let (stopped_work, started) = (Arc::clone(&stopped), Arc::new(AtomicBool::new(false)));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let (stopped, started) = (Arc::clone(&stopped_work), Arc::clone(&started_work));
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            let left = context.lease_deadline().saturating_duration_since(tokio::time::Instant::now());
            *stopped.lock().unwrap() = Some((context.is_lost(), left));
            Err(OperationFailure::Lost)
        }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    let op_id = setting.add_with(1.2, None).await;
    setting.started(&started).await;
    setting.registry.silent.store(true, Ordering::Relaxed);
    let (lost, left) =
        wait_for("the work stops", async || stopped.lock().unwrap().ok_or_else(|| "not yet".to_owned()))
            .await;
    assert!(lost);
    assert!(left > Duration::from_millis(100), "{left:?} were left");
    assert_eq!(setting.registry.of(op_id).finish, None);
}

/// More than a lease.
const GRACE: Duration = Duration::from_secs(30);

/// How long work that does not stop goes on without a lease, once the registry is silent; `None` without a server.
async fn outlives_its_lease(is_stopping: bool) -> Option<Duration> {
    /// Says, when it is aborted, for how long it has had no lease.
    struct Running(OperationContext, Arc<Mutex<Option<Duration>>>);
    impl Drop for Running {
        fn drop(&mut self) {
            let without = tokio::time::Instant::now().saturating_duration_since(self.0.lease_deadline());
            *self.1.lock().unwrap() = Some(without);
        }
    }
    let (aborted, started) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
    let (aborted_work, started_work) = (Arc::clone(&aborted), Arc::clone(&started));
    let work = move |context: OperationContext| {
        let running = Running(context, Arc::clone(&aborted_work));
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            let _running = running;
            std::future::pending().await
        }
    };
    let timing = WorkerTiming { grace: GRACE, margin: Duration::from_millis(200), ..fast() };
    let setting = Setting::start(timing, work).await?;
    let op_id = setting.add_with(1.2, None).await;
    setting.started(&started).await;
    if is_stopping {
        setting.stopping.cancel();
        let before = setting.registry.of(op_id).heartbeats;
        // Who is being stopped keeps its lease as long as it may.
        wait_for("heartbeats go on for longer than a lease", async || {
            let heartbeats = setting.registry.of(op_id).heartbeats - before;
            if heartbeats > 13 { Ok(()) } else { Err(heartbeats.to_string()) }
        })
        .await;
        assert_eq!(*aborted.lock().unwrap(), None, "it has its grace while it has its lease");
    }
    setting.registry.silent.store(true, Ordering::Relaxed);
    let without =
        wait_for("the work is aborted", async || aborted.lock().unwrap().ok_or_else(|| "not yet".to_owned()))
            .await;
    assert_eq!(setting.registry.of(op_id).finish, None);
    Some(without)
}

#[tokio::test]
async fn work_that_does_not_stop_is_aborted_when_its_lease_ends() {
    let Some(without) = outlives_its_lease(false).await else { return };
    assert!(without < GRACE / 3, "{without:?} without a lease");
}

#[tokio::test]
async fn work_that_is_being_stopped_and_then_loses_its_lease_does_not_outlive_it() {
    let Some(without) = outlives_its_lease(true).await else { return };
    assert!(without < GRACE / 3, "{without:?} without a lease");
}

#[tokio::test]
async fn a_panic_is_a_failure_that_may_be_tried_again_and_does_not_tell_its_content() {
    let work = |context: OperationContext| async move {
        assert!(context.attempt() > 1, "secret content");
        Ok(Value::Null)
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add().await;
    let finish = setting.registry.finished(op_id).await;
    let error = finish.error.unwrap();
    assert_eq!((finish.outcome, error.code.as_str(), error.retryable), (Outcome::Failed, "panic", true));
    assert!(!error.message.contains("secret"));
}

#[tokio::test]
async fn draining_lets_the_work_go_on_and_stopping_hands_it_back() {
    let started = Arc::new(AtomicBool::new(false));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            assert!(context.is_stopping());
            Err(OperationFailure::retryable("child_killed", "because the worker stops"))
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add().await;
    setting.started(&started).await;
    setting.draining.cancel();
    let unclaimed = setting.add().await;
    let in_between = setting.registry.of(op_id).heartbeats;
    wait_for("heartbeats go on", async || {
        setting.wake().await;
        let heartbeats = setting.registry.of(op_id).heartbeats;
        if heartbeats > in_between + 2 { Ok(()) } else { Err(heartbeats.to_string()) }
    })
    .await;
    assert_eq!(setting.registry.of(op_id).finish, None);
    setting.stopping.cancel();
    let registry = Arc::clone(&setting.registry);
    setting.ended().await;
    assert_eq!(registry.of(op_id).finish.unwrap().outcome, Outcome::HandedBack);
    assert_eq!(registry.of(unclaimed).finish, None);
    assert_eq!(registry.queue.lock().unwrap().len(), 1, "nothing is claimed while draining");
}

#[tokio::test]
async fn a_checkpoint_is_stored_before_the_work_goes_on() {
    let registry: Arc<Mutex<Option<Arc<Registry>>>> = Arc::default();
    let registry_of_work = Arc::clone(&registry);
    let work = move |context: OperationContext| {
        let registry = registry_of_work.lock().unwrap().clone().unwrap();
        async move {
            assert_eq!(context.checkpoint::<Value>()?, Some(json!({ "done": 3 })));
            context.save_checkpoint(&json!({ "done": 4 })).await?;
            assert_eq!(registry.of(context.op_id()).checkpoint, Some(json!({ "done": 4 })));
            let large = context.save_checkpoint(&"x".repeat(1_000_000)).await;
            assert!(
                matches!(large, Err(OperationFailure::Failed { code, .. }) if code == "checkpoint_too_large")
            );
            registry.replies_to_lose.store(1, Ordering::Relaxed);
            context.save_checkpoint(&json!({ "done": 5 })).await?;
            registry.refuse_checkpoints.store(true, Ordering::Relaxed);
            context.save_checkpoint(&json!({ "done": 6 })).await?;
            Ok(Value::Null)
        }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    *registry.lock().unwrap() = Some(Arc::clone(&setting.registry));
    let op_id = setting.add_with(30.0, Some(json!({ "done": 3 }))).await;
    let finish = setting.registry.finished(op_id).await;
    let error = finish.error.unwrap();
    assert_eq!((error.code.as_str(), error.message.as_str()), ("checkpoint_refused", "not this one"));
    assert_eq!(setting.registry.of(op_id).checkpoint, Some(json!({ "done": 5 })));
}

#[tokio::test]
async fn what_the_registry_refuses_is_a_failure_with_its_cause() {
    let work = |context: OperationContext| async move {
        match context.checkpoint::<String>()?.as_deref() {
            Some("repository") => context.repository().await.map(|_| Value::Null),
            Some("children") => Err(OperationFailure::WaitsForChildren {
                children: vec![ChildOperation {
                    key: "child-1".to_owned(),
                    scope: Scope::Hub,
                    kind: context.op().kind.clone(),
                    input: json!({}),
                }],
                checkpoint: Some(json!("next")),
            }),
            _ => Ok(json!("refuse me")),
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add_with(30.0, Some(json!("repository"))).await;
    let error = setting.registry.finished(op_id).await.error.unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str(), error.retryable),
        ("bucket_unreachable", "no bucket", true)
    );

    let op_id = setting.add_with(30.0, Some(json!("children"))).await;
    let finish = setting.registry.finished(op_id).await;
    assert_eq!((finish.outcome, finish.children.len()), (Outcome::WaitsForChildren, 1));
    assert_eq!(finish.checkpoint, Some(json!("next")));

    let op_id = setting.add().await;
    let finish = setting.registry.finished(op_id).await;
    assert_eq!((finish.outcome, finish.error.unwrap().code.as_str()), (Outcome::Failed, "outcome_refused"));
    setting.draining.cancel();
    let recorded = Arc::clone(&setting.recorded);
    setting.ended().await;
    assert_eq!(*recorded.lock().unwrap(), [], "none of them has succeeded");
}
