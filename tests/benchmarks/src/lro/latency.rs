//! From the request that creates an operation to the answer, to the first line of its handler, and to the word `running`
//! at a subscriber: one operation at a time, as someone who clicks a button meets it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;

use super::bench_system::{BenchSystem, CREATE, Who, ask, create_request};
use super::empty_worker::{EmptyWorker, Work};
use crate::figures::{Figures, percentile};

const PATIENCE: Duration = Duration::from_secs(30);

/// Creates so many operations one after another, each when the one before has ended and the stream was told.
pub(super) async fn one_at_a_time(
    system: &BenchSystem,
    figures: &mut Figures,
    name: &str,
    operations: u32,
) -> anyhow::Result<()> {
    let mut worker = EmptyWorker::start(system.connect(Who::Worker).await?, 16, Work::Nothing);
    let watcher = system.another_operator().await;
    let mut states = watcher.subscribe("persist.hub.lro.*.state".to_owned()).await?;
    // Once this is answered, the server has the subscription that went before it.
    ask(&watcher, "api.v1.hub.region.list", &Bytes::new()).await?;
    let request = create_request(0.0);
    let (mut answered, mut started, mut seen, mut ended) = (vec![], vec![], vec![], vec![]);
    // The first ones make connections and plans.
    let warm_up = (operations / 10).min(20);
    for number in 0..warm_up + operations {
        let began = Instant::now();
        ask(&system.operator, CREATE, &request).await?;
        let answer = began.elapsed();
        let begun = worker.begun().await?;
        let (mut running, mut over) = (None, None);
        while over.is_none() {
            let state = tokio::time::timeout(PATIENCE, states.next()).await?.context("the bus is there")?;
            if !state.subject.contains(&begun.op_id) {
                eprintln!(
                    "{number}: {} {:?} not of {}",
                    state.subject,
                    state.headers.get("Lro-Status"),
                    begun.op_id
                );
                continue;
            }
            match state.headers.get("Lro-Status") {
                Some("running") => running = Some(began.elapsed()),
                Some("succeeded") => over = Some(began.elapsed()),
                Some("queued") => {}
                other => anyhow::bail!("{} is {other:?}", begun.op_id),
            }
        }
        if number >= warm_up {
            answered.push(milliseconds(answer));
            started.push(milliseconds(begun.at.duration_since(began)));
            // An operation that ended before anybody was told that it runs has been seen to run no earlier.
            seen.extend(running.or(over).map(milliseconds));
            ended.extend(over.map(milliseconds));
        }
    }
    worker.drain().await?;
    system.outbox_is_empty().await?;
    for (what, values) in
        [("acknowledged", answered), ("start", started), ("running_seen", seen), ("end_seen", ended)]
    {
        add(figures, &format!("lro.{what}.{name}"), &values);
    }
    Ok(())
}

/// Adds the percentiles that targets speak of.
pub(super) fn add(figures: &mut Figures, name: &str, milliseconds: &[f64]) {
    figures.add(format!("{name}.p50"), percentile(milliseconds, 50.0), "ms");
    figures.add(format!("{name}.p99"), percentile(milliseconds, 99.0), "ms");
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
