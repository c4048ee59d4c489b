//! A worker that does what a test has it do, and what it needs around it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bus_client::{Bus, RunningService};
use bus_messages::kinds::{self, KindDefinition};
use bytes::Bytes;
use domain_model::{OperationId, Progress, Routing};
use futures::future::BoxFuture;
use operation_engine::{OperationContext, OperationFailure, OperationHandler, Worker, WorkerTiming};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::stand_in::Registry;
use crate::support::{NatsServer, wait_for};

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
pub(crate) struct Setting {
    _server: NatsServer,
    pub(crate) bus: Bus,
    pub(crate) registry: Arc<Registry>,
    pub(crate) recorded: Arc<Mutex<Vec<OperationId>>>,
    _service: RunningService,
    pub(crate) draining: CancellationToken,
    pub(crate) stopping: CancellationToken,
    worker: JoinHandle<()>,
}

impl Setting {
    pub(crate) async fn start<F, Fut>(timing: WorkerTiming, work: F) -> Option<Self>
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
    pub(crate) async fn add(&self) -> OperationId {
        self.add_with(30.0, None).await
    }

    pub(crate) async fn add_with(&self, lease_s: f64, checkpoint: Option<Value>) -> OperationId {
        let op_id = self.registry.add(lease_s, checkpoint);
        self.wake().await;
        op_id
    }

    pub(crate) async fn wake(&self) {
        self.bus.publish("wake.hub".to_owned(), Bytes::new()).await.unwrap();
    }

    pub(crate) async fn started(&self, started: &AtomicBool) {
        wait_for("the handler runs", async || {
            if started.load(Ordering::Relaxed) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }

    pub(crate) async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(15), self.worker).await.expect("the worker ends").unwrap();
    }
}

pub(crate) fn steps(count: u64, total: u64) -> Option<Progress> {
    Some(Progress::count(count, Some(total), "steps"))
}

/// Times that let a test see in a second what takes half a minute.
pub(crate) fn fast() -> WorkerTiming {
    WorkerTiming {
        heartbeat: Duration::from_millis(100),
        margin: Duration::from_millis(400),
        poll: Duration::from_millis(200),
        grace: Duration::from_millis(300),
        request_timeout: Duration::from_millis(300),
    }
}
