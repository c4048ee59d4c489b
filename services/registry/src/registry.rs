use std::time::Duration;

use bus_client::Bus;
use bus_messages::Operation;
use catalog_database::{Database, Ended};
use domain_model::Routing;

use crate::metrics::RegistryMetrics;
use crate::repositories::Repositories;
use crate::settings::OperationSettings;
use crate::streams::Streams;

/// What the endpoints share.
pub(crate) struct Registry {
    pub database: Database,
    /// Answers, and nudges workers.
    pub front: Bus,
    pub streams: Streams,
    pub repositories: Repositories,
    pub settings: OperationSettings,
    pub metrics: RegistryMetrics,
}

impl Registry {
    /// After operations changed: the streams are told, and the workers with something to do are woken.
    pub(crate) async fn changed(&self, ended: &Ended) {
        for op in ended.all() {
            self.streams.tell(op.op_id);
        }
        let label = vec![("kind", ended.op.kind.to_string()), ("status", ended.op.status.to_string())];
        self.metrics.ended.get_or_create(&label).inc();
        for op in ended.all().filter(|op| !op.status.is_terminal()) {
            self.wake_when_due(op).await;
        }
    }

    /// Nudges the workers of an operation, at once or when its time has come. A nudge that is lost costs a
    /// worker's polling interval and nothing else.
    pub(crate) async fn wake_when_due(&self, op: &Operation) {
        let wait_s = op.not_before.seconds_since(op.updated_at);
        if wait_s <= 0.0 {
            wake(&self.front, op.routing).await;
        } else if wait_s < 3600.0 {
            let (front, routing) = (self.front.clone(), op.routing);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs_f64(wait_s)).await;
                wake(&front, routing).await;
            });
        }
    }
}

async fn wake(front: &Bus, routing: Routing) {
    if let Err(error) = front.publish(bus_subjects::wake(routing), bytes::Bytes::new()).await {
        tracing::debug!(%routing, %error, "a nudge was not sent; the worker polls");
    }
}
