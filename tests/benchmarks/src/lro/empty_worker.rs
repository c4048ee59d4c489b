//! A worker whose operations have nothing to do: what is left is the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bus_client::Bus;
use bus_messages::EventLevel;
use bus_messages::kinds::{self, KindDefinition};
use domain_model::Routing;
use operation_engine::{OperationContext, OperationFailure, OperationHandler, Worker};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const BETWEEN_EVENTS: Duration = Duration::from_millis(100);
const MESSAGE: &str =
    "the step before the last one has ended well, and the next one has begun: 8,214 of 11,602 files";

/// A handler has begun: with which operation, and when.
pub(super) struct Begun {
    pub(super) op_id: String,
    pub(super) at: Instant,
}

/// What the handlers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing.
    Nothing,
    /// Nothing, until they are told to stop.
    Endless,
    /// They tell of ten events a second, until they are told to stop.
    Report,
}

struct Empty {
    begun: mpsc::UnboundedSender<Begun>,
    work: Work,
}

#[async_trait]
impl OperationHandler for Empty {
    fn definition(&self) -> &'static KindDefinition {
        let kind = "test-sleep".parse().expect("the name of a kind");
        kinds::find(&kind).expect("bus-messages defines the kind")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let at = Instant::now();
        // Nobody listens any more where the benchmark is over.
        let _ = self.begun.send(Begun { op_id: operation.op_id().to_string(), at });
        match self.work {
            Work::Nothing => {}
            Work::Endless => operation.cancellation().cancelled().await,
            Work::Report => {
                let mut ticks = tokio::time::interval(BETWEEN_EVENTS);
                while operation.unless_stopped(ticks.tick()).await.is_ok() {
                    operation.event(EventLevel::Info, "sleep", MESSAGE, None);
                }
            }
        }
        operation.check()?;
        Ok(json!({ "steps": 1, "attempt": operation.attempt() }))
    }
}

/// A worker of the benchmark, of the very library that services use.
pub(super) struct EmptyWorker {
    running: JoinHandle<()>,
    draining: CancellationToken,
    stopping: CancellationToken,
    begun: mpsc::UnboundedReceiver<Begun>,
}

impl EmptyWorker {
    /// Starts a worker with so many slots.
    pub(super) fn start(bus: Bus, slots: u32, work: Work) -> Self {
        let (sender, begun) = mpsc::unbounded_channel();
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let handler = Arc::new(Empty { begun: sender, work });
        let worker = Worker::new(bus, Routing::Hub, "longhaul-bench".to_owned()).handler(handler, slots);
        let running = tokio::spawn(worker.run(draining.clone(), stopping.clone()));
        Self { running, draining, stopping, begun }
    }

    /// The next handler that begins.
    pub(super) async fn begun(&mut self) -> anyhow::Result<Begun> {
        let waiting = tokio::time::timeout(Duration::from_secs(120), self.begun.recv());
        waiting.await?.ok_or_else(|| anyhow::anyhow!("the worker has ended"))
    }

    /// Claims no more, and waits until the ends of all that runs are recorded.
    pub(super) async fn drain(self) -> anyhow::Result<()> {
        self.draining.cancel();
        Ok(self.running.await?)
    }

    /// Hands back what runs, and waits until that is done.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stopping.cancel();
        self.drain().await
    }
}
