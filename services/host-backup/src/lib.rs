//! host-backup: on each project-host, does the operations that work on the host's projects. It holds no
//! credentials of the database and none of a bucket: what an operation needs comes with its lease.

mod bad_backups;
mod estimate;
mod freshness;
mod host;
mod kinds;
mod runtime_command;
mod settings;
mod staged_leftovers;
mod staged_restore;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backup_browsing::Browsing;
use backup_repository::{CacheSettings, JobProcesses};
use bus_client::{Bus, ConnectSettings, Credentials};
use domain_model::Routing;
use host_operations::{JobRecords, JobRunner, ObjectStoreRequests};
use operation_engine::Worker;
use service_runtime::{Runtime, Shutdown};
use tokio::sync::Notify;
use volumes::HostRoot;

use crate::host::Host;
use crate::kinds::{
    CopySnapshot, ProjectBackup, ProjectRestore, ProjectStart, ProjectStop, RepoCheck, RepoPrune,
    RestoreDrill,
};
use crate::runtime_command::RuntimeCommand;

pub use settings::{BrowseSettings, HostBackupSettings};

/// The committed defaults, commented.
pub const DEFAULT_SETTINGS: &str = include_str!("../host-backup.default.toml");

pub use host_operations::JOB_ARGUMENT;

/// Runs the service until it is shut down.
pub async fn run(settings: HostBackupSettings, shutdown: Shutdown, runtime: Runtime) -> anyhow::Result<()> {
    let health = runtime.health.register("bus");
    let root = HostRoot::open(&settings.host.root).context("open the host's directory")?;
    let recovering = root.clone();
    let report = tokio::task::spawn_blocking(move || recovering.recover()).await??;
    if !report.is_empty() {
        tracing::warn!(?report, "ended what an earlier process had left");
    }
    let records = JobRecords::open(&settings.host.root.join("jobs")).context("open the records of jobs")?;

    let bus = Bus::connect(ConnectSettings {
        url: settings.nats.url.clone(),
        credentials: Credentials::UserPassword {
            user: settings.nats.user.clone(),
            password: settings.nats.password.clone(),
        },
        inbox_prefix: settings.nats.inbox_prefix.clone(),
        name: format!("host-backup {}", settings.host.id),
    })
    .await
    .with_context(|| format!("connect to NATS as {}", settings.nats.user))?;
    let caller = Routing::Host(settings.host.id);
    records.end_interrupted(&bus, caller).await.context("end the jobs of an earlier process")?;
    let description = format!("Backs up and restores the projects of the host {}", settings.host.id);
    let metadata = BTreeMap::from([("host_id".to_owned(), settings.host.id.to_string())]);
    let program = std::env::current_exe().context("find this program")?;
    let cache = CacheSettings { directory: settings.host.cache, limit_bytes: settings.host.cache_bytes };
    let browsing = Browsing::new(
        &program,
        [JOB_ARGUMENT],
        settings.browse.repositories,
        cache.clone(),
        settings.browse.memory_bytes,
    );
    let service = bus
        .service("host-backup", env!("CARGO_PKG_VERSION"), &description, metadata)
        .endpoint(backup_browsing::endpoint(caller), move |request| browsing.clone().answer(request))
        .start()
        .await?;

    let freshness = tokio::spawn(freshness::run(
        bus.clone(),
        caller,
        root.clone(),
        Duration::from_secs_f64(settings.host.look_for_changes_every_s),
        cache.clone(),
        shutdown.stopping.clone(),
    ));
    let restore_has_ended = Arc::new(Notify::new());
    let leftovers = tokio::spawn(staged_leftovers::run(
        bus.clone(),
        caller,
        root.clone(),
        Duration::from_secs_f64(settings.host.look_for_leftovers_every_s),
        Arc::clone(&restore_has_ended),
        shutdown.stopping.clone(),
    ));
    let host = Arc::new(Host {
        root,
        records,
        restore_has_ended,
        runner: JobRunner {
            processes: JobProcesses::new(program, [JOB_ARGUMENT]),
            cache,
            memory_bytes: settings.jobs.memory_bytes,
            stall_s: settings.jobs.stall_s,
            requests: ObjectStoreRequests::register(&runtime.metrics),
        },
    });
    let timeout = Duration::from_secs(settings.runtime.timeout_s);
    let command = RuntimeCommand::new(settings.runtime.command, timeout);
    let worker_id = format!("host-backup/{}/{}", settings.host.id, std::process::id());
    let worker = Worker::new(bus.clone(), caller, worker_id)
        .handler(Arc::new(ProjectBackup { host: Arc::clone(&host) }), settings.jobs.backups)
        .handler(Arc::new(CopySnapshot { host: Arc::clone(&host) }), settings.jobs.backups)
        .handler(Arc::new(ProjectRestore { host: Arc::clone(&host) }), settings.jobs.restores)
        .handler(
            Arc::new(ProjectStart { host: Arc::clone(&host), command: command.clone() }),
            settings.jobs.starts,
        )
        .handler(Arc::new(ProjectStop { host: Arc::clone(&host), command }), settings.jobs.starts)
        .handler(Arc::new(RepoPrune { host: Arc::clone(&host) }), settings.jobs.prunes)
        .handler(Arc::new(RepoCheck { host: Arc::clone(&host) }), settings.jobs.proofs)
        .handler(Arc::new(RestoreDrill { host }), settings.jobs.proofs);
    let watching = tokio::spawn({
        let bus = bus.clone();
        async move {
            loop {
                match bus.is_connected() {
                    true => health.set_ok(),
                    false => health.set_failed("not connected to NATS"),
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    });
    tracing::info!(host.id = %settings.host.id, "works");
    // What it works on is handed back at once, and goes on with the next process: no reason to wait for its end.
    worker.run(shutdown.draining.clone(), shutdown.draining).await;
    watching.abort();
    freshness.abort();
    leftovers.abort();
    service.stop().await;
    bus.drain().await;
    Ok(())
}
