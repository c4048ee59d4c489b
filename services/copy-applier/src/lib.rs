//! copy-applier: on each project-host, puts copied files in place in the projects of the host. It holds no credentials of
//! the database and none of a bucket: what a copy needs it is given when the work begins.

mod copy_apply;
mod settings;
mod sources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backup_repository::{CacheSettings, JobProcesses};
use bus_client::{Bus, ConnectSettings, Credentials};
use domain_model::Routing;
use host_operations::{JobRecords, JobRunner, ObjectStoreRequests};
use operation_engine::Worker;
use service_runtime::{Runtime, Shutdown};
use volumes::HostRoot;

use crate::copy_apply::CopyApply;
use crate::sources::Sources;

pub use host_operations::JOB_ARGUMENT;
pub use settings::{CopyApplierSettings, CopySettings, HostSettings};

/// The committed defaults, commented.
pub const DEFAULT_SETTINGS: &str = include_str!("../copy-applier.default.toml");

/// How long the end of the process may be held up by what is no longer needed.
const TIDYING: Duration = Duration::from_secs(2);

/// Runs the service until it is shut down.
pub async fn run(settings: CopyApplierSettings, shutdown: Shutdown, runtime: Runtime) -> anyhow::Result<()> {
    let health = runtime.health.register("bus");
    let root = HostRoot::open(&settings.host.root).context("open the host's directory")?;
    let recovering = root.clone();
    let report = tokio::task::spawn_blocking(move || recovering.recover()).await??;
    if !report.is_empty() {
        tracing::warn!(?report, "ended what an earlier process had left");
    }
    let records =
        JobRecords::open(&settings.host.root.join("copy-jobs")).context("open the records of jobs")?;

    let bus = Bus::connect(ConnectSettings {
        url: settings.nats.url.clone(),
        credentials: Credentials::UserPassword {
            user: settings.nats.user.clone(),
            password: settings.nats.password.clone(),
        },
        inbox_prefix: settings.nats.inbox_prefix.clone(),
        name: format!("copy-applier {}", settings.host.id),
    })
    .await
    .with_context(|| format!("connect to NATS as {}", settings.nats.user))?;
    let caller = Routing::Host(settings.host.id);
    records.end_interrupted(&bus, caller).await.context("end the jobs of an earlier process")?;
    let description = format!("Applies copies to the projects of the host {}", settings.host.id);
    let metadata = BTreeMap::from([("host_id".to_owned(), settings.host.id.to_string())]);
    let service =
        bus.service("copy-applier", env!("CARGO_PKG_VERSION"), &description, metadata).start().await?;

    let program = std::env::current_exe().context("find this program")?;
    let runner = JobRunner {
        processes: JobProcesses::new(program, [JOB_ARGUMENT]),
        cache: CacheSettings { directory: settings.host.cache, limit_bytes: settings.host.cache_bytes },
        memory_bytes: settings.copies.memory_bytes,
        stall_s: settings.copies.stall_s,
        requests: ObjectStoreRequests::register(&runtime.metrics),
    };
    let keep = Duration::from_secs_f64(settings.copies.keep_s);
    let sources = Arc::new(Sources::new(root.clone(), runner, keep));
    let worker_id = format!("copy-applier/{}/{}", settings.host.id, std::process::id());
    let worker = Worker::new(bus.clone(), caller, worker_id).handler(
        Arc::new(CopyApply { root, records, sources: Arc::clone(&sources) }),
        settings.copies.at_once,
    );
    let looking_after = tokio::spawn({
        let (bus, sources) = (bus.clone(), Arc::clone(&sources));
        async move {
            loop {
                match bus.is_connected() {
                    true => health.set_ok(),
                    false => health.set_failed("not connected to NATS"),
                }
                sources.discard_idle().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
    tracing::info!(host.id = %settings.host.id, "works");
    // What it works on is handed back at once, and goes on with the next process: no reason to wait for its end.
    worker.run(shutdown.draining.clone(), shutdown.draining).await;
    looking_after.abort();
    // What is not deleted by then is at the next start.
    let _ = tokio::time::timeout(TIDYING, sources.discard_all()).await;
    service.stop().await;
    bus.drain().await;
    Ok(())
}
