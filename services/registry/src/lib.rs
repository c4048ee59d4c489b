//! The registry: the authority on operations, and the catalog of projects, hosts, buckets and backups.
//! It answers the public API and the worker protocol, and is the only writer of the stream.
//!
//! Any number of registries may run: requests go to one of a queue group, and what must happen once is
//! decided in Postgres.

mod api;
mod authorization;
mod backup_schedule;
mod browsing;
mod copies;
mod creation_limit;
mod declared_kinds;
mod errors;
mod event_limit;
mod gathering;
mod metrics;
mod nudges;
mod nul;
mod recent_hosts;
mod registry;
mod repositories;
mod reveal_password;
mod secrets;
mod settings;
mod streams;
mod unfinished;
mod upkeep;
mod work;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bus_client::{Bus, ConnectSettings, Credentials};
use bus_messages::kinds;
use catalog_database::Database;
use service_runtime::{NatsSettings, Runtime, Shutdown};
use tokio_util::sync::CancellationToken;

use crate::authorization::Authorization;
use crate::creation_limit::CreationLimit;
use crate::event_limit::EventLimit;
use crate::gathering::Gathering;
use crate::metrics::RegistryMetrics;
use crate::nudges::Nudges;
use crate::recent_hosts::RecentHosts;
use crate::registry::Registry;
use crate::repositories::Repositories;
use crate::secrets::MasterKey;
use crate::streams::Streams;

pub use reveal_password::reveal_password;
pub use settings::RegistrySettings;

/// The committed defaults, commented.
pub const DEFAULT_SETTINGS: &str = include_str!("../registry.default.toml");

/// How often somebody looks for what a registry that died has left in the outbox.
const LEFT_OVER: Duration = Duration::from_secs(5);

/// Runs a registry until it is shut down.
pub async fn run(settings: RegistrySettings, shutdown: Shutdown, runtime: Runtime) -> anyhow::Result<()> {
    let database_health = runtime.health.register("database");
    let bus_health = runtime.health.register("bus");
    let master_key = MasterKey::new(&settings.master_key.id, &settings.master_key.key)?;
    let database = Database::connect(&settings.database.url, settings.database.connections).await?;
    database.migrate().await?;
    declared_kinds::look(&database).await?;
    let front = connect(&settings.nats, "registry").await?;
    let writer = connect(&settings.nats_writer, "registry-writer").await?;
    let buckets = settings.object_store.connection.connect().context("connect to the object store")?;

    let metrics = RegistryMetrics::register(&runtime.metrics);
    let (streams, relay) = Streams::new(writer.operation_stream(), database.clone(), metrics.clone());
    let repositories = Repositories::new(database.clone(), buckets, settings.object_store, master_key);
    let mut operations = settings.operations;
    if let Some(unknown) =
        operations.caps.keys().find(|name| !name.parse().is_ok_and(|name| kinds::find(&name).is_some()))
    {
        anyhow::bail!("operations.caps names {unknown:?}, which is no kind");
    }
    operations.test_kinds |= std::env::var_os("LONGHAUL_TEST_KINDS").is_some_and(|value| value == "1");
    let (nudges, send_nudges) = Nudges::new(front.clone());
    let registry = Arc::new(Registry {
        database: database.clone(),
        front: front.clone(),
        nudges,
        streams: streams.clone(),
        repositories,
        creations: {
            let database = database.clone();
            Gathering::new(move |new: Vec<_>| {
                let database = database.clone();
                async move { database.create_operations(&new).await }
            })
        },
        finishes: {
            let database = database.clone();
            Gathering::new(move |finished: Vec<_>| {
                let database = database.clone();
                async move { database.finish_operations(&finished).await }
            })
        },
        creation_limit: CreationLimit::new(&operations.creation),
        event_limit: EventLimit::new(),
        settings: operations,
        backups: settings.backups,
        silent_hosts: RecentHosts::new(browsing::SILENCE),
        heard_hosts: RecentHosts::new(work::HEARD_AGAIN),
        replicas: settings.stream.replicas,
        metrics,
    });
    upkeep::reconcile_stream(&registry).await?;
    upkeep::tell_latest_again(&registry).await?;

    let background = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(relay(background.clone()));
    tasks.spawn(send_nudges(background.clone()));
    tasks.spawn(streams.relay_left_over(LEFT_OVER, background.clone()));
    tasks.spawn(despite_defects(&registry, &background, upkeep::sweep));
    tasks.spawn(despite_defects(&registry, &background, upkeep::look_after_stream));
    tasks.spawn(despite_defects(&registry, &background, upkeep::measure_queues));
    tasks.spawn(despite_defects(&registry, &background, upkeep::clean_up_copies));
    tasks.spawn(despite_defects(&registry, &background, declared_kinds::keep_up));
    tasks.spawn(despite_defects(&registry, &background, upkeep::measure_safety));
    tasks.spawn(upkeep::watch_health(
        Arc::clone(&registry),
        writer.clone(),
        database_health,
        bus_health,
        background.clone(),
    ));
    if settings.authorization.enabled {
        let bus = connect(&settings.authorization.nats, "registry-authorization").await?;
        let authorization = Authorization::new(bus, database.clone(), &settings.authorization)?;
        tasks.spawn(Arc::new(authorization).answer(background.clone()));
    }
    let service = api::start(&registry, &front, shutdown.draining.clone()).await?;
    tracing::info!("answers");

    shutdown.draining.cancelled().await;
    // Takes no more requests and answers those under way, at most until the second stage.
    shutdown.stopping.run_until_cancelled(service.stop()).await;
    background.cancel();
    tasks.close();
    tasks.wait().await;
    front.drain().await;
    writer.drain().await;
    database.close().await;
    Ok(())
}

/// A task that begins anew where a defect has ended it, until `stopping`: without it leases would end, and nobody would look. What
/// the defect is, the log has from where it came up.
fn despite_defects<F: Future<Output = ()> + Send + 'static>(
    registry: &Arc<Registry>,
    stopping: &CancellationToken,
    task: impl Fn(Arc<Registry>, CancellationToken) -> F + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let (registry, stopping) = (Arc::clone(registry), stopping.clone());
    async move {
        while tokio::spawn(task(Arc::clone(&registry), stopping.clone())).await.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn connect(settings: &NatsSettings, name: &str) -> anyhow::Result<Bus> {
    let credentials =
        Credentials::UserPassword { user: settings.user.clone(), password: settings.password.clone() };
    let connection = ConnectSettings {
        url: settings.url.clone(),
        credentials,
        inbox_prefix: settings.inbox_prefix.clone(),
        name: name.to_owned(),
    };
    Bus::connect(connection).await.with_context(|| format!("connect to NATS as {}", settings.user))
}
