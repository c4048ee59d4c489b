//! Metrics of a service, in one registry that `/metrics` shows.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::process_metrics::ProcessMetrics;

/// The labels of one member of a family: names and values. Values must come from a small set (a kind, a status), never
/// from a project or an operation, or the metrics grow without end.
pub type Labels = Vec<(&'static str, String)>;

/// Histograms by labels.
pub type HistogramFamily = Family<Labels, Histogram, Buckets>;

/// The upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy)]
pub struct Buckets(pub &'static [f64]);

impl Buckets {
    /// Seconds, from a millisecond to a minute: for requests.
    pub const REQUEST_SECONDS: Self =
        Self(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
    /// Seconds, from a tenth to six hours: for operations.
    pub const OPERATION_SECONDS: Self =
        Self(&[0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 10_800.0, 21_600.0]);
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// All metrics of a service. Cheap to clone. Names are given without unit of the registry's own: a counter `claims`
/// is shown as `claims_total`.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry with the metrics of the process (memory, processor time, open files, start) and nothing else.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::default()));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Adds any metric; the one returned is the one shown.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(name, help, metric.clone());
        metric
    }

    /// Adds a counter. `name` has no `_total`; that is added where it is shown.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// Adds counters by labels.
    pub fn counter_family(&self, name: &str, help: &str) -> Family<Labels, Counter> {
        self.register(name, help, Family::default())
    }

    /// Adds a gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// Adds gauges by labels.
    pub fn gauge_family(&self, name: &str, help: &str) -> Family<Labels, Gauge> {
        self.register(name, help, Family::default())
    }

    /// Adds a histogram.
    pub fn histogram(&self, name: &str, help: &str, buckets: Buckets) -> Histogram {
        self.register(name, help, buckets.new_metric())
    }

    /// Adds histograms by labels.
    pub fn histogram_family(&self, name: &str, help: &str, buckets: Buckets) -> HistogramFamily {
        self.register(name, help, Family::new_with_constructor(buckets))
    }

    /// Everything, in the OpenMetrics text format that Prometheus reads.
    ///
    /// # Errors
    ///
    /// If a metric cannot be written as text.
    pub fn to_text(&self) -> Result<String, fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Metrics")
    }
}
