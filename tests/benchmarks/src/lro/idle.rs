//! What a system uses that has nothing to do, and one whose many operations do nothing but run.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;

use anyhow::Context as _;

use super::bench_system::{BenchSystem, create, create_request};
use crate::figures::Figures;

/// What the connections of services have said to Postgres so far: statements, transactions, transactions that wrote.
const STATEMENTS: &str = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
    WHERE userid = (SELECT oid FROM pg_roles WHERE rolname = 'longhaul')";
const TRANSACTIONS: &str =
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'longhaul'";
/// Only what writes gets a number.
const WRITES: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
const ROWS_WRITTEN: &str = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables";

/// Nothing to do.
pub(super) async fn nothing(system: &BenchSystem, figures: &mut Figures, seconds: u32) -> anyhow::Result<()> {
    system.start_afresh().await?;
    // What was started or deleted before has settled by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let counts_statements = system.counts_statements().await?;
    system.count_statements_anew().await?;
    let before = system.superuser_number(TRANSACTIONS).await?;
    let (used, began) = (system.processor_time(), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used: BTreeMap<String, f64> = system.processor_time().seconds_since(&used);
    if counts_statements {
        figures.add(
            "lro.idle.statements",
            system.superuser_number(STATEMENTS).await? / elapsed,
            "statements/s",
        );
        system.show_statements().await?;
    }
    let transactions = system.superuser_number(TRANSACTIONS).await? - before;
    figures.add("lro.idle.transactions", transactions / elapsed, "transactions/s");
    for (name, seconds) in &used {
        figures.add(format!("lro.idle.processor.{name}"), seconds / elapsed * 100.0, "%");
    }
    figures.add("lro.idle.processor", used.values().sum::<f64>() / elapsed * 100.0, "%");
    let ready = system.system.ready();
    let services = ready.services.iter().filter_map(|(name, pids)| Some((name, *pids.first()?)));
    for (name, pid) in services {
        figures.add(format!("lro.idle.memory.{name}"), resident_megabytes(pid)?, "MB");
    }
    Ok(())
}

/// So many operations run, and all that comes from them is heartbeats.
pub(super) async fn heartbeats(
    system: &BenchSystem,
    figures: &mut Figures,
    operations: u32,
    seconds: u32,
) -> anyhow::Result<()> {
    system.start_afresh().await?;
    let request = create_request(600.0);
    let creating =
        stream::iter(0..operations).map(|_| create(&system.operator, &request)).buffer_unordered(16);
    let created: Vec<anyhow::Result<String>> = creating.collect().await;
    created.into_iter().collect::<anyhow::Result<Vec<String>>>()?;
    let running = "SELECT count(*) FROM long_running_operations WHERE status = 'running'";
    let give_up = Instant::now() + Duration::from_secs(60);
    while system.number(running).await? < f64::from(operations) {
        anyhow::ensure!(Instant::now() < give_up, "not all operations run");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    system.outbox_is_empty().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (writes, rows) =
        (system.superuser_number(WRITES).await?, system.superuser_number(ROWS_WRITTEN).await?);
    let (used, began) = (system.processor_time(), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used: f64 = system.processor_time().seconds_since(&used).values().sum();
    let writes = system.superuser_number(WRITES).await? - writes;
    let rows = system.superuser_number(ROWS_WRITTEN).await? - rows;
    figures.add(format!("lro.heartbeats_of_{operations}.writes"), writes / elapsed, "transactions/s");
    figures.add(format!("lro.heartbeats_of_{operations}.rows_written"), rows / elapsed, "rows/s");
    figures.add(format!("lro.heartbeats_of_{operations}.processor"), used / elapsed * 100.0, "%");
    Ok(())
}

/// Now, in MB (10⁶ bytes).
pub(crate) fn resident_megabytes(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has memory")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}
