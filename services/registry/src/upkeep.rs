//! What has to happen though nobody asks: leases end, operations expire, the stream loses what it had.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bus_client::{Bus, BusError, ReconcileOutcome};
use service_runtime::{Family, Gauge, HealthCheck, Labels};
use tokio_util::sync::CancellationToken;

use crate::backup_schedule::UPKEEP;
use crate::errors::chain;
use crate::registry::Registry;

/// The stream as it is to be, but for the number of its replicas; the same file that operators read.
const DECLARATION: &str = include_str!("../../../nats-config/streams/LRO.json");

/// What changed within so many seconds before the last change may not have been on nats-server's disk when the power went: twice its
/// two minutes, and some more.
const UNSYNCED_S: f64 = 300.0;

/// At most so many rows a sweep.
const SWEEP: i64 = 500;

/// Looks for operations whose time has come, every `sweep_s` seconds.
pub(crate) async fn sweep(registry: Arc<Registry>, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(registry.settings.sweep_s));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        registry.creation_limit.forget_idle();
        registry.event_limit.forget_idle();
        let due = match registry.database.due_operations(registry.settings.lease_s).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not look for operations whose time has come");
                continue;
            }
        };
        if due.to_make_ready {
            registry.make_ready().await;
        }
        if !due.to_sweep {
            continue;
        }
        let swept = match registry
            .database
            .sweep_operations(SWEEP, registry.settings.lease_s, rand::random())
            .await
        {
            Ok(swept) => swept,
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not look for operations whose time has come");
                continue;
            }
        };
        for lost in &swept.leases_lost {
            registry.metrics.lease_losses.inc();
            tracing::warn!(
                op.id = %lost.op.op_id, op.kind = %lost.op.kind, op.attempt = lost.op.attempt,
                op.status = %lost.op.status, worker = lost.op.owner, "a worker did not renew its lease"
            );
            registry.changed(lost);
        }
        for expired in &swept.expired {
            tracing::warn!(op.id = %expired.op.op_id, op.kind = %expired.op.kind, "an operation has expired");
            registry.changed(expired);
        }
        for deleted in &swept.deleted {
            registry.streams.tell(*deleted);
        }
    }
}

/// Makes the stream as declared. One that was just made has lost every summary: they are written anew.
pub(crate) async fn reconcile_stream(registry: &Registry) -> anyhow::Result<()> {
    // First what is to be written anew, then the stream: with a crash, or without the database, in between, the next look
    // finds no stream still and begins again.
    if registry.streams.stream().last_sequence().await?.is_none() {
        let rebuilt = registry.database.outbox_rebuild(None).await?;
        tracing::info!(
            summaries = rebuilt,
            "there is no stream; its summaries are rebuilt from the database"
        );
    }
    let mut declaration: serde_json::Value = serde_json::from_str(DECLARATION)?;
    declaration["num_replicas"] = registry.replicas.into();
    match registry.streams.stream().reconcile(&declaration.to_string()).await? {
        ReconcileOutcome::Created => {
            registry.streams.forget_all();
            tracing::info!("the stream is made");
        }
        ReconcileOutcome::Updated { fields } => {
            tracing::info!(?fields, "the stream is changed to what is declared")
        }
        ReconcileOutcome::Unchanged => {}
    }
    Ok(())
}

/// Has told again what may have been lost with the power: nats-server acknowledges what it has written, and syncs it to the disk every
/// two minutes only (`sync_interval`). What the stream has is dropped by whoever tells it.
pub(crate) async fn tell_latest_again(registry: &Registry) -> anyhow::Result<()> {
    let summaries = registry.database.outbox_rebuild(Some(UNSYNCED_S)).await?;
    tracing::debug!(summaries, "what changed last is looked for in the stream");
    Ok(())
}

/// Whether the stream has lost messages that it has acknowledged. A new leader of a cluster may be a moment behind.
async fn has_lost_its_last(registry: &Registry, last_sequence: u64) -> Result<bool, BusError> {
    if !registry.streams.was_told_more_than(last_sequence) {
        return Ok(false);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = registry.streams.stream().last_sequence().await?;
    Ok(now.is_some_and(|now| registry.streams.was_told_more_than(now)))
}

/// Gauges of one name whose labels come and go.
struct GaugesByLabel<'a> {
    gauges: &'a Family<Labels, Gauge>,
    known: HashSet<Labels>,
}

impl<'a> GaugesByLabel<'a> {
    fn new(gauges: &'a Family<Labels, Gauge>) -> Self {
        Self { gauges, known: HashSet::new() }
    }

    /// Shows these and no others. Whoever reads meanwhile may see one that has just gone, and never lacks one.
    fn set(&mut self, values: impl Iterator<Item = (Labels, i64)>) {
        let mut gone = std::mem::take(&mut self.known);
        for (label, value) in values {
            self.gauges.get_or_create(&label).set(value);
            gone.remove(&label);
            self.known.insert(label);
        }
        for label in &gone {
            self.gauges.remove(label);
        }
    }
}

/// Looks every ten seconds whether the stream is still there with all that it has acknowledged, and a second after it has taken no
/// message.
pub(crate) async fn look_after_stream(registry: Arc<Registry>, stopping: CancellationToken) {
    let wait = async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Either is a reason to look.
        let _ = tokio::time::timeout(Duration::from_secs(9), registry.streams.seems_gone()).await;
    };
    while stopping.run_until_cancelled(wait()).await.is_some() {
        let last_sequence = match registry.streams.stream().last_sequence().await {
            Ok(Some(last_sequence)) => last_sequence,
            Ok(None) => {
                if let Err(error) = reconcile_stream(&registry).await {
                    tracing::warn!(error = format!("{error:#}"), "could not make the stream");
                }
                continue;
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "the stream does not answer");
                continue;
            }
        };
        match has_lost_its_last(&registry, last_sequence).await {
            Ok(true) => match registry.database.outbox_rebuild(None).await {
                Ok(summaries) => {
                    registry.streams.forget_all();
                    tracing::warn!(
                        summaries,
                        "the stream has lost messages that it had acknowledged; its summaries are told again"
                    );
                }
                Err(error) => tracing::warn!(error = chain(&error), "lost messages are not told again yet"),
            },
            Ok(false) => {}
            Err(error) => tracing::debug!(error = chain(&error), "the stream does not answer"),
        }
    }
}

/// Measures every ten seconds what waits.
pub(crate) async fn measure_queues(registry: Arc<Registry>, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut operations, mut oldest) = (
        GaugesByLabel::new(&registry.metrics.operations),
        GaugesByLabel::new(&registry.metrics.oldest_queued_seconds),
    );
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Ok((entries, age_s)) = registry.database.outbox_lag().await {
            registry.metrics.outbox_entries.set(entries);
            registry.metrics.outbox_lag_seconds.set(age_s as i64);
        }
        if let Ok(counts) = registry.database.operation_counts().await {
            let of =
                |kind: &String, routing: &String| vec![("kind", kind.clone()), ("routing", routing.clone())];
            let queued = counts.iter().filter(|(_, _, status, ..)| status == "queued");
            oldest.set(queued.map(|(kind, routing, _, _, age_s)| (of(kind, routing), *age_s as i64)));
            operations.set(counts.iter().map(|(kind, routing, status, count, _)| {
                ([of(kind, routing), vec![("status", status.clone())]].concat(), *count)
            }));
        }
    }
}

/// Measures every minute what is not saved, and what was not looked after.
pub(crate) async fn measure_safety(registry: Arc<Registry>, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(60));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Ok((projects, oldest_s)) = registry.database.unsaved_projects().await {
            registry.metrics.unsaved_projects.set(projects);
            registry.metrics.unsaved_seconds.set(oldest_s as i64);
        }
        if let Ok(hosts) = registry.database.silent_hosts().await {
            registry.metrics.silent_hosts.set(hosts);
        }
        if let Ok(longest) = registry.database.longest_without_upkeep(UPKEEP).await {
            for (kind, longest_s) in longest {
                let label = vec![("kind", kind)];
                registry.metrics.longest_without_upkeep.get_or_create(&label).set(longest_s as i64);
            }
        }
    }
}

/// Every ten seconds ends the snapshots that no copy needs any more, and deletes what copies that have come to their ends
/// have left in buckets.
pub(crate) async fn clean_up_copies(registry: Arc<Registry>, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        match registry.database.cancel_needless_snapshots().await {
            Ok(canceled) => {
                for canceled in &canceled {
                    registry.changed(canceled);
                }
            }
            Err(error) => tracing::warn!(error = chain(&error), "needless snapshots are not canceled yet"),
        }
        if let Err(error) = registry.repositories.delete_copy_repositories(None).await {
            tracing::warn!(error = chain(&error), "snapshots of copies are not deleted yet");
        }
        if let Err(error) = registry.database.forget_old_copies().await {
            tracing::warn!(error = chain(&error), "old copies are not forgotten yet");
        }
    }
}

/// Says at `/healthz` whether the parts behind the registry answer.
pub(crate) async fn watch_health(
    registry: Arc<Registry>,
    writer: Bus,
    database_health: HealthCheck,
    bus_health: HealthCheck,
    stopping: CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        match registry.database.ping().await {
            Ok(()) => database_health.set_ok(),
            Err(error) => database_health.set_failed(chain(&error)),
        }
        if registry.front.is_connected() && writer.is_connected() {
            bus_health.set_ok();
        } else {
            bus_health.set_failed("not connected to NATS");
        }
    }
}
