use service_runtime::{Buckets, Counter, Family, Gauge, Histogram, Labels, Metrics};

/// From half a millisecond to four seconds.
const CLAIM_SECONDS: Buckets = Buckets(&[
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
]);

/// What the registry counts.
#[derive(Clone)]
pub(crate) struct RegistryMetrics {
    pub created: Family<Labels, Counter>,
    pub claimed: Family<Labels, Counter>,
    pub ended: Family<Labels, Counter>,
    pub retries: Family<Labels, Counter>,
    pub lease_losses: Counter,
    pub refused_writes: Counter,
    pub bad_backups: Counter,
    pub events: Counter,
    pub relay_failures: Counter,
    pub outbox_entries: Gauge,
    pub outbox_lag_seconds: Gauge,
    pub operations: Family<Labels, Gauge>,
    pub claim_seconds: Histogram,
    pub backups_missed: Counter,
    pub unsaved_projects: Gauge,
    pub unsaved_seconds: Gauge,
    pub silent_hosts: Gauge,
    pub longest_without_upkeep: Family<Labels, Gauge>,
    pub oldest_queued_seconds: Family<Labels, Gauge>,
}

impl RegistryMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        Self {
            created: metrics.counter_family("longhaul_operations_created", "Operations created, by kind"),
            claimed: metrics.counter_family("longhaul_operations_claimed", "Leases given, by kind"),
            ended: metrics.counter_family(
                "longhaul_attempts_ended",
                "Attempts that ended, by kind and the state after",
            ),
            retries: metrics
                .counter_family("longhaul_retries", "Attempts that failed and are to be repeated, by kind"),
            lease_losses: metrics.counter("longhaul_lease_losses", "Leases that were not renewed"),
            refused_writes: metrics
                .counter("longhaul_refused_writes", "Writes of workers that had lost their operation"),
            bad_backups: metrics.counter(
                "longhaul_backups_found_bad",
                "Backups that a restore drill, a check or a prune has found to be bad",
            ),
            events: metrics.counter("longhaul_events", "Events written to the stream"),
            relay_failures: metrics
                .counter("longhaul_relay_failures", "Relays of the outbox that are to be repeated"),
            outbox_entries: metrics.gauge("longhaul_outbox_entries", "Entries that wait for the stream"),
            outbox_lag_seconds: metrics
                .gauge("longhaul_outbox_lag_seconds", "For how long the oldest of them has waited"),
            operations: metrics.gauge_family(
                "longhaul_operations",
                "Operations that have not ended, by kind, routing and status",
            ),
            claim_seconds: metrics.histogram(
                "longhaul_claim_seconds",
                "Time to answer a claim that gave a lease",
                CLAIM_SECONDS,
            ),
            backups_missed: metrics
                .counter("longhaul_backups_missed", "Scheduled backups that did not come about"),
            unsaved_projects: metrics
                .gauge("longhaul_unsaved_projects", "Projects with something that is in no backup"),
            unsaved_seconds: metrics.gauge(
                "longhaul_unsaved_seconds",
                "For how long the oldest change that is in no backup has been there",
            ),
            silent_hosts: metrics.gauge(
                "longhaul_silent_hosts",
                "Hosts with projects that have said nothing of them for ten minutes",
            ),
            longest_without_upkeep: metrics.gauge_family(
                "longhaul_longest_without_upkeep_seconds",
                "For how long the repository least looked after was not pruned, checked or proven to restore, by kind",
            ),
            oldest_queued_seconds: metrics.gauge_family(
                "longhaul_oldest_queued_seconds",
                "For how long the oldest queued operation has been due, by kind and routing",
            ),
        }
    }
}
