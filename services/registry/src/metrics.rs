use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct QueueLabel {
    pub kind: String,
    pub routing: String,
    pub status: String,
}

/// What the registry counts.
#[derive(Clone)]
pub(crate) struct RegistryMetrics {
    pub created: Family<KindLabel, Counter>,
    pub claimed: Family<KindLabel, Counter>,
    pub ended: Family<QueueLabel, Counter>,
    pub lease_losses: Counter,
    pub refused_writes: Counter,
    pub events: Counter,
    pub relay_failures: Counter,
    pub outbox_entries: Gauge,
    pub operations: Family<QueueLabel, Gauge>,
    pub claim_seconds: Arc<Histogram>,
}

impl RegistryMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            created: Family::default(),
            claimed: Family::default(),
            ended: Family::default(),
            lease_losses: Counter::default(),
            refused_writes: Counter::default(),
            events: Counter::default(),
            relay_failures: Counter::default(),
            outbox_entries: Gauge::default(),
            operations: Family::default(),
            claim_seconds: Arc::new(Histogram::new(exponential_buckets(0.0005, 2.0, 14))),
        };
        let mut add = |name: &str, help: &str, metric: Box<dyn prometheus_client::registry::Metric>| {
            registry.register(format!("longhaul_{name}"), help, metric);
        };
        add("operations_created", "Operations created", Box::new(metrics.created.clone()));
        add("operations_claimed", "Leases given", Box::new(metrics.claimed.clone()));
        add("operations_ended", "Attempts that ended, by the state that followed", Box::new(metrics.ended.clone()));
        add("lease_losses", "Leases that were not renewed", Box::new(metrics.lease_losses.clone()));
        add(
            "fenced_writes_refused",
            "Writes of workers that had lost their operation",
            Box::new(metrics.refused_writes.clone()),
        );
        add("events", "Events written to the stream", Box::new(metrics.events.clone()));
        add("relay_failures", "Relays of the outbox that are to be repeated", Box::new(metrics.relay_failures.clone()));
        add("outbox_entries", "Entries that wait for the stream", Box::new(metrics.outbox_entries.clone()));
        add("operations", "Operations that are queued or running", Box::new(metrics.operations.clone()));
        registry.register(
            "longhaul_claim_seconds",
            "Time to answer a claim, in seconds",
            metrics.claim_seconds.as_ref().clone(),
        );
        metrics
    }
}
