//! The scheduler: sees to it that what time makes due is done, and works on the operations of the control plane
//! itself, those routed to `hub`. It holds no
//! credentials of the database and keeps nothing: any number of schedulers may run, and one that dies leaves
//! its operations to the others when their leases end.

mod backup_schedule;
mod kinds;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backup_browsing::Browsing;
use backup_repository::CacheSettings;
use bus_client::{Bus, ConnectSettings, Credentials};
use domain_model::Routing;
use operation_engine::Worker;
use service_runtime::{HealthCheck, Runtime, Shutdown};

use crate::kinds::TestSleep;

pub use settings::{BackupSettings, BrowseSettings, SchedulerSettings, WorkSettings};

/// The committed defaults, commented.
pub const DEFAULT_SETTINGS: &str = include_str!("../scheduler.default.toml");

/// The hidden argument that makes this program a job of itself.
pub const JOB_ARGUMENT: &str = "job";

/// Runs a scheduler until it is shut down.
pub async fn run(settings: SchedulerSettings, shutdown: Shutdown, runtime: Runtime) -> anyhow::Result<()> {
    let health = runtime.health.register("bus");
    let bus = Bus::connect(ConnectSettings {
        url: settings.nats.url,
        credentials: Credentials::UserPassword {
            user: settings.nats.user.clone(),
            password: settings.nats.password,
        },
        inbox_prefix: settings.nats.inbox_prefix,
        name: "scheduler".to_owned(),
    })
    .await
    .with_context(|| format!("connect to NATS as {}", settings.nats.user))?;

    let description = "Works on the operations that are routed to the hub";
    let cache = CacheSettings { directory: settings.browse.cache, limit_bytes: settings.browse.cache_bytes };
    let browsing = Browsing::new(
        std::env::current_exe().context("find this program")?,
        [JOB_ARGUMENT],
        settings.browse.repositories,
        cache,
        settings.browse.memory_bytes,
    );
    let shown = bus
        .service("scheduler", env!("CARGO_PKG_VERSION"), description, BTreeMap::new())
        .endpoint(backup_browsing::endpoint(Routing::Hub), move |request| browsing.clone().answer(request))
        .start()
        .await?;

    let worker_id = format!("scheduler/{}", std::process::id());
    let mut worker = Worker::new(bus.clone(), Routing::Hub, worker_id);
    let test_kinds = std::env::var_os("LONGHAUL_TEST_KINDS").is_some_and(|value| value == "1");
    if test_kinds || settings.work.test_kinds {
        worker = worker.handler(Arc::new(TestSleep), settings.work.test_sleeps);
    }
    let every = Duration::from_secs_f64(settings.backups.look_every_s);
    let draining = shutdown.draining.clone();
    tokio::select! {
        // What it works on goes on elsewhere from the last checkpoint: no reason to wait for its end.
        () = worker.run(shutdown.draining.clone(), shutdown.draining) => {}
        () = watch_connection(&bus, &health) => {}
        () = async {
            backup_schedule::run(&bus, every, draining).await;
            std::future::pending::<()>().await;
        } => {}
    }
    shown.stop().await;
    bus.drain().await;
    Ok(())
}

async fn watch_connection(bus: &Bus, health: &HealthCheck) {
    loop {
        if bus.is_connected() {
            health.set_ok();
        } else {
            health.set_failed("not connected to NATS");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
