//! How soon the work of a worker that is gone goes on elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bus_client::Subscription;
use futures::StreamExt as _;
use test_harness::{Server, Signal};

use super::bench_system::{BenchSystem, Who, create, create_request};
use super::empty_worker::{EmptyWorker, Work};
use crate::figures::Figures;

/// As `registry.default.toml` has it.
const LEASE_S: f64 = 30.0;
const PATIENCE: Duration = Duration::from_secs(120);

/// The scheduler is killed in the middle of an operation, and is started again half a second later: until the operation
/// runs again. And what it takes when it is told to end.
pub(super) async fn scheduler(system: &BenchSystem, figures: &mut Figures) -> anyhow::Result<()> {
    for (name, signal) in [("killed", Signal::KILL), ("terminated", Signal::TERM)] {
        system.start_afresh().await?;
        let mut states = system.operator.subscribe("persist.hub.lro.*.state".to_owned()).await?;
        let op_id = create(&system.operator, &create_request(600.0)).await?;
        runs(&mut states, &op_id, 1).await?;
        let began = Instant::now();
        system.system.signal(Server::Scheduler, signal);
        runs(&mut states, &op_id, 2).await?;
        figures.add(format!("lro.worker_{name}.running_again"), began.elapsed().as_secs_f64(), "s");
        let request = serde_json::json!({ "op_id": op_id }).to_string().into();
        super::bench_system::ask(&system.operator, "api.v1.hub.lro.cancel", &request).await?;
    }
    let lease = figures.last("lro.worker_killed.running_again").context("measured above")? - LEASE_S;
    figures.add("lro.worker_killed.beyond_lease", lease, "s");
    Ok(())
}

/// One of two workers is stopped: until the handler of the other begins.
pub(super) async fn handed_back(system: &BenchSystem, figures: &mut Figures) -> anyhow::Result<()> {
    system.start_afresh().await?;
    let mut first = EmptyWorker::start(system.connect(Who::Worker).await?, 1, Work::Endless);
    let op_id = create(&system.operator, &create_request(0.0)).await?;
    ensure!(first.begun().await?.op_id == op_id, "another operation");
    let mut second = EmptyWorker::start(system.connect(Who::Worker).await?, 1, Work::Endless);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    let (stopped, begun) = tokio::join!(first.stop(), second.begun());
    stopped?;
    let begun = begun?;
    ensure!(begun.op_id == op_id, "another operation");
    figures.add("lro.worker_stopped.running_again", begun.at.duration_since(began).as_secs_f64(), "s");
    second.stop().await
}

/// Waits until this attempt of the operation runs, as a watcher sees it.
async fn runs(states: &mut Subscription, op_id: &str, attempt: u32) -> anyhow::Result<()> {
    let attempt = attempt.to_string();
    loop {
        let state = tokio::time::timeout(PATIENCE, states.next()).await?.context("the bus is there")?;
        let is_it = state.subject.contains(op_id)
            && state.headers.get("Lro-Status") == Some("running")
            && state.headers.get("Lro-Attempt") == Some(&attempt);
        if is_it {
            return Ok(());
        }
    }
}
