//! Empty operations, as many as go through: created by sixteen clients, claimed and finished by one worker with sixteen
//! slots, every step over the bus and durable.

use std::time::Instant;

use bytes::Bytes;
use futures::future::try_join_all;

use super::bench_system::{BenchSystem, CREATE, Who, ask, create_request};
use super::empty_worker::{EmptyWorker, Work};
use crate::figures::Figures;

const IN_FLIGHT: u32 = 16;

/// First all are created, then all are worked on, as the measurements of other engines do it; then both at once.
pub(super) async fn empty_operations(
    system: &BenchSystem,
    figures: &mut Figures,
    operations: u32,
) -> anyhow::Result<()> {
    system.count_statements_anew().await?;
    let before = system.processor_time().and_of_the_benchmark();
    let began = Instant::now();
    create_all(system, operations).await?;
    let created = began.elapsed().as_secs_f64();
    eprintln!(
        "creating used {}",
        system.processor_time().and_of_the_benchmark().since(&before, operations as usize)
    );
    system.show_statements().await?;
    system.count_statements_anew().await?;
    let before = system.processor_time().and_of_the_benchmark();
    let began = Instant::now();
    work_on(system, operations).await?;
    let worked_on = began.elapsed().as_secs_f64();
    system.outbox_is_empty().await?;
    let told = began.elapsed().as_secs_f64();
    eprintln!(
        "working used {}",
        system.processor_time().and_of_the_benchmark().since(&before, operations as usize)
    );
    system.show_statements().await?;
    let count = f64::from(operations);
    figures.add("lro.throughput.create", count / created, "ops/s");
    figures.add("lro.throughput.drain", count / worked_on, "ops/s");
    figures.add("lro.throughput", count / (created + worked_on), "ops/s");
    figures.add("lro.throughput.until_stream_told", count / (created + told), "ops/s");

    let before = system.processor_time().and_of_the_benchmark();
    let began = Instant::now();
    let (created, worked) = tokio::join!(create_all(system, operations), work_on(system, operations));
    created.and(worked)?;
    figures.add("lro.throughput.at_once", count / began.elapsed().as_secs_f64(), "ops/s");
    let used = system.processor_time().and_of_the_benchmark();
    eprintln!("both at once used {}", used.since(&before, operations as usize));
    system.outbox_is_empty().await
}

async fn create_all(system: &BenchSystem, operations: u32) -> anyhow::Result<()> {
    let request = create_request(0.0);
    let clients = (0..IN_FLIGHT).map(|client| {
        let share = operations / IN_FLIGHT + u32::from(client < operations % IN_FLIGHT);
        create_some(system, &request, share)
    });
    try_join_all(clients).await.map(drop)
}

async fn create_some(system: &BenchSystem, request: &Bytes, operations: u32) -> anyhow::Result<()> {
    for _ in 0..operations {
        ask(&system.operator, CREATE, request).await?;
    }
    Ok(())
}

/// Until the end of the last one is recorded.
async fn work_on(system: &BenchSystem, operations: u32) -> anyhow::Result<()> {
    let mut worker = EmptyWorker::start(system.connect(Who::Worker).await?, IN_FLIGHT, Work::Nothing);
    for _ in 0..operations {
        worker.begun().await?;
    }
    worker.drain().await
}
