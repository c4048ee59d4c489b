//! What the same Postgres and the same nats-server do when no engine is in the way.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::process::Command;

use bus_client::{FencedPublish, OperationStream};

use super::bench_system::{BenchSystem, Who, postgres_program, run};
use super::latency::{add, milliseconds};
use crate::figures::Figures;

const CLIENTS: u32 = 16;
const ROWS: u32 = 200_000;
const WARM_UP: u32 = 20;
const PUBLISHES_IN_FLIGHT: usize = 256;
const PAYLOAD: &[u8] = &[b'x'; 200];

/// A table of jobs with the one index that a claim needs, in a schema of its own.
const SETUP: &str = "
    DROP SCHEMA IF EXISTS floor CASCADE;
    CREATE SCHEMA floor;
    CREATE TABLE floor.jobs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        state text NOT NULL DEFAULT 'queued',
        due_at timestamptz NOT NULL DEFAULT now(),
        attempt integer NOT NULL DEFAULT 0,
        lease_until timestamptz,
        payload jsonb NOT NULL DEFAULT '{}',
        done_at timestamptz
    ) WITH (fillfactor = 80);
    CREATE INDEX jobs_to_claim ON floor.jobs (due_at, id) WHERE state = 'queued';
    CREATE INDEX jobs_running ON floor.jobs (lease_until) WHERE state = 'running';";

const INSERT: &str = r#"INSERT INTO floor.jobs (payload) VALUES ('{"i": 1}');"#;

/// Two transactions: claim one, then complete it under its fence.
const CLAIM_AND_COMPLETE: &str = r"
    UPDATE floor.jobs SET state = 'running', attempt = attempt + 1, lease_until = now() + interval '30 s'
    WHERE id = (SELECT id FROM floor.jobs WHERE state = 'queued' AND due_at <= now()
        ORDER BY due_at, id FOR UPDATE SKIP LOCKED LIMIT 1)
    RETURNING id, attempt \gset
    UPDATE floor.jobs SET state = 'succeeded', done_at = now(), lease_until = NULL
    WHERE id = :id AND attempt = :attempt AND state = 'running';";

/// The same for sixteen in each statement.
const CLAIM_AND_COMPLETE_16: &str = r"
    WITH claimed AS (
        UPDATE floor.jobs SET state = 'running', attempt = attempt + 1, lease_until = now() + interval '30 s'
        WHERE id IN (SELECT id FROM floor.jobs WHERE state = 'queued' AND due_at <= now()
            ORDER BY due_at, id FOR UPDATE SKIP LOCKED LIMIT 16)
        RETURNING id)
    SELECT coalesce(string_agg(id::text, ','), '0') AS ids FROM claimed \gset
    UPDATE floor.jobs SET state = 'succeeded', done_at = now(), lease_until = NULL
    WHERE id = any(string_to_array(:ids, ',')::bigint[]) AND state = 'running';";

/// What the very cluster of the system does: one job at a time by sixteen clients, and sixteen at a time.
pub(super) async fn postgres(
    system: &BenchSystem,
    figures: &mut Figures,
    seconds: u32,
) -> anyhow::Result<()> {
    system.sql(SETUP).await?;
    let insert = pgbench(system, INSERT, seconds).await?;
    fill(system, ROWS).await?;
    let single = pgbench(system, CLAIM_AND_COMPLETE, seconds).await?;
    fill(system, ROWS * 4).await?;
    let batched = pgbench(system, CLAIM_AND_COMPLETE_16, seconds).await? * 16.0;
    system.sql("DROP SCHEMA floor CASCADE").await?;
    figures.add("lro.floor.insert", insert, "rows/s");
    figures.add("lro.floor.claim_complete", single, "jobs/s");
    figures.add("lro.floor.claim_complete_16", batched, "jobs/s");
    figures.add("lro.floor.insert_claim_complete", 1.0 / (1.0 / insert + 1.0 / single), "jobs/s");
    Ok(())
}

async fn fill(system: &BenchSystem, rows: u32) -> anyhow::Result<()> {
    system.sql("TRUNCATE floor.jobs").await?;
    system.sql(&format!("INSERT INTO floor.jobs SELECT FROM generate_series(1, {rows})")).await?;
    system.sql("VACUUM ANALYZE floor.jobs").await?;
    system.as_superuser("CHECKPOINT").await.map(drop)
}

/// Transactions of the script a second.
async fn pgbench(system: &BenchSystem, script: &str, seconds: u32) -> anyhow::Result<f64> {
    let file = system.system.scratch("pgbench.sql");
    std::fs::write(&file, script).with_context(|| format!("writing {}", file.display()))?;
    let mut command = Command::new(postgres_program("pgbench")?);
    command.args(["-n", "-M", "prepared", "-j", "2", "-c", &CLIENTS.to_string(), "-T", &seconds.to_string()]);
    command.arg("-f").arg(&file).arg(system.database_url());
    let output = run(command, "pgbench").await?;
    let rate = output.lines().find_map(|line| line.strip_prefix("tps = "));
    let rate = rate.and_then(|line| line.split_whitespace().next()).context("pgbench tells a rate")?;
    Ok(rate.parse()?)
}

/// What the very nats-server of the system does: an echo, and publishes into the stream.
pub(super) async fn nats(system: &BenchSystem, figures: &mut Figures, count: u32) -> anyhow::Result<()> {
    let hub = system.connect(Who::Hub).await?;
    let asker = system.connect(Who::Worker).await?;
    // A subject between these two that nobody else serves.
    let subject = "work.v1.hub.benchmark-echo";
    let mut requests = hub.subscribe(subject.to_owned()).await?;
    let answering = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                let _ = hub.publish(reply, request.payload).await;
            }
        }
    });
    let mut echoes = Vec::new();
    for number in 0..count + WARM_UP {
        let began = Instant::now();
        let payload = Bytes::from_static(PAYLOAD);
        let answer = asker.request_raw(subject.to_owned(), None, payload, Duration::from_secs(5)).await;
        if number < WARM_UP {
            // The server may not know yet who answers.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        answer?;
        echoes.push(milliseconds(began.elapsed()));
    }
    answering.abort();
    add(figures, "lro.floor.request_reply", &echoes);

    let writer = system.connect(Who::Writer).await?.operation_stream();
    let mut publishes = Vec::new();
    for number in 0..count {
        let began = Instant::now();
        publish(&writer, subject_of_nobody(number % 100)).await?;
        publishes.push(milliseconds(began.elapsed()));
    }
    add(figures, "lro.floor.publish_with_ack", &publishes);
    let began = Instant::now();
    publish_many(&writer, count * 10).await?;
    let rate = f64::from(count * 10) / began.elapsed().as_secs_f64();
    figures.add("lro.floor.publish_256_in_flight", rate, "messages/s");
    Ok(())
}

/// Publishes so many messages on subjects of their own, with many in flight.
pub(super) async fn publish_many(writer: &OperationStream, count: u32) -> anyhow::Result<()> {
    futures::stream::iter((0..count).map(Ok))
        .try_for_each_concurrent(PUBLISHES_IN_FLIGHT, |_| publish(writer, subject_of_nobody(rand::random())))
        .await
}

/// The events of an operation that nobody knows.
pub(super) fn subject_of_nobody(number: u32) -> String {
    format!("persist.hub.lro.00000000-0000-7000-8000-0000{number:08x}.evt")
}

/// Has a message stored, whatever was before.
async fn publish(writer: &OperationStream, subject: String) -> anyhow::Result<()> {
    publish_with(writer, subject, Vec::new()).await
}

/// The same with as many headers as an event has, which whoever receives it has to read.
pub(super) async fn publish_with_headers(writer: &OperationStream, subject: String) -> anyhow::Result<()> {
    let headers = ["Content-Type", "Lro-Kind", "Lro-Status", "Lro-Phase", "Lro-Attempt", "Lro-N", "Lro-Rev"];
    let headers = headers.map(|name| (name, "test-empty".to_owned())).to_vec();
    publish_with(writer, subject, headers).await
}

async fn publish_with(
    writer: &OperationStream,
    subject: String,
    headers: Vec<(&'static str, String)>,
) -> anyhow::Result<()> {
    let message = FencedPublish {
        subject,
        headers,
        payload: Bytes::from_static(PAYLOAD),
        expected_last_subject_sequence: None,
        rollup: false,
    };
    writer.publish(message).await?;
    Ok(())
}
