//! Progress on its way from workers through the registry to watchers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bus_client::{Bus, WatchItem, watch};
use bus_messages::{
    ClaimReply, ClaimRequest, Lease, OperationProgress, ProgressEvent, ProgressReply, ProgressRequest,
};
use bus_subjects::OperationSubject;
use futures::StreamExt as _;

use super::bench_system::{BenchSystem, Who, typed};
use super::empty_worker::{EmptyWorker, Work};
use super::floors::{publish_many, publish_with_headers, subject_of_nobody};
use super::latency::{add, milliseconds};
use crate::figures::{Figures, percentile};

/// Workers with a connection each, and how many operations each runs.
const WORKERS: u32 = 4;
const OPERATIONS_A_WORKER: u32 = 600;
const EVENTS_A_SECOND: u32 = 10;
const WATCHERS: usize = 200;
const WATCHERS_A_CONNECTION: usize = 50;
const RING: u64 = 256;

/// How many events a second the registry puts into the stream, when more are offered: operations that report at the cap.
pub(super) async fn rate(system: &BenchSystem, figures: &mut Figures, seconds: u32) -> anyhow::Result<()> {
    system.start_afresh().await?;
    let operations = WORKERS * OPERATIONS_A_WORKER;
    system.add_operations(operations, -1000, 0).await?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let bus = system.connect(Who::Worker).await?;
        let mut worker = EmptyWorker::start(bus, OPERATIONS_A_WORKER, Work::Report);
        for _ in 0..OPERATIONS_A_WORKER {
            worker.begun().await?;
        }
        workers.push(worker);
    }
    // All have begun to report, the first of them with what they may have saved up.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, began) = (system.metric("registry", "longhaul_events_total").await?, Instant::now());
    let used = system.processor_time();
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let events = system.metric("registry", "longhaul_events_total").await? - before;
    eprintln!("an event used {}", system.processor_time().since(&used, events as usize));
    figures.add("lro.events.offered", f64::from(operations * EVENTS_A_SECOND), "events/s");
    figures.add("lro.events", events / began.elapsed().as_secs_f64(), "events/s");
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// An operation that the benchmark itself works on, message by message.
struct Held {
    bus: Bus,
    lease: Lease,
    n: u64,
}

impl Held {
    async fn claim(system: &BenchSystem) -> anyhow::Result<Self> {
        system.add_operations(1, -1000, 100).await?;
        let bus = system.connect(Who::Worker).await?;
        let kinds = BTreeMap::from([("test-sleep".parse()?, 1)]);
        let request =
            ClaimRequest { worker_id: "longhaul-bench".to_owned(), kinds, max: 1, finished: Vec::new() };
        let reply: ClaimReply = typed(&bus, "work.v1.hub.claim", &request).await?;
        let lease = reply.leases.into_iter().next().context("there is an operation to claim")?;
        Ok(Self { bus, lease, n: 0 })
    }

    fn subject(&self) -> OperationSubject {
        OperationSubject { scope: self.lease.op.scope, op_id: self.lease.op.op_id }
    }

    /// Reports one event.
    async fn report(&mut self) -> anyhow::Result<()> {
        self.n += 1;
        let event = ProgressEvent {
            op_id: self.lease.op.op_id,
            attempt: self.lease.attempt,
            n: self.n,
            ts: self.lease.lease_until,
            phase: "sleep".to_owned(),
            message: format!("{:0>100}", self.n),
            level: None,
            progress: None,
            detail: None,
            status: None,
        };
        let progress = OperationProgress {
            op_id: self.lease.op.op_id,
            attempt: self.lease.attempt,
            lease_id: self.lease.lease_id,
            number: None,
            events: vec![event],
            summary: None,
            checkpoint: None,
        };
        let request = ProgressRequest { worker_id: "longhaul-bench".to_owned(), ops: vec![progress] };
        let reply: ProgressReply = typed(&self.bus, "work.v1.hub.progress", &request).await?;
        ensure!(reply.ops.iter().all(|op| op.stored_n == self.n), "not stored: {reply:?}");
        Ok(())
    }
}

/// From before a worker reports an event until each of many watchers has it; and the same for a message that is only
/// stored in the stream.
pub(super) async fn fan_out(system: &BenchSystem, figures: &mut Figures, events: u32) -> anyhow::Result<()> {
    system.start_afresh().await?;
    let (nobodys, _) = OperationSubject::parse(&subject_of_nobody(u32::MAX))?;
    let writer = system.connect(Who::Writer).await?.operation_stream();
    let raw =
        deliveries(system, nobodys, events, async || publish_with_headers(&writer, nobodys.events()).await)
            .await?;
    add(figures, "lro.floor.message_to_200_subscribers", &raw);
    let mut held = Held::claim(system).await?;
    let told = deliveries(system, held.subject(), events, async || held.report().await).await?;
    add(figures, "lro.event_to_200_watchers", &told);
    figures.add_ratio(
        "lro.event_to_200_watchers.ratio_to_floor",
        "lro.event_to_200_watchers.p50",
        "lro.floor.message_to_200_subscribers.p50",
    );
    Ok(())
}

/// How long each of so many messages took to each of the watchers of an operation, in milliseconds.
async fn deliveries(
    system: &BenchSystem,
    subject: OperationSubject,
    messages: u32,
    mut send: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS / WATCHERS_A_CONNECTION {
        let bus = system.another_operator().await;
        for _ in 0..WATCHERS_A_CONNECTION {
            let mut subscription = bus.subscribe(subject.wildcard()).await?;
            watchers.push(tokio::spawn(async move {
                let mut arrivals = Vec::new();
                while arrivals.len() < messages as usize {
                    let Some(message) = subscription.next().await else { break };
                    let at = Instant::now();
                    if message.subject.ends_with(".evt") {
                        arrivals.push(at);
                    }
                }
                arrivals
            }));
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut sent = Vec::new();
    for _ in 0..messages {
        sent.push(Instant::now());
        send().await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut latencies = Vec::new();
    for watcher in watchers {
        let arrivals = tokio::time::timeout(Duration::from_secs(30), watcher).await??;
        ensure!(arrivals.len() == sent.len(), "a watcher has only {} messages", arrivals.len());
        latencies.extend(arrivals.iter().zip(&sent).map(|(arrival, sent)| milliseconds(*arrival - *sent)));
    }
    Ok(latencies)
}

/// Where the messages of others lie that came while an operation told of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// As many between any two of its events: to find the next one, the server walks over all of them.
    Between,
    /// Half of them before its first event, half after its last.
    Around,
}

/// Watchers that come late.
pub(super) async fn late_join(
    system: &BenchSystem,
    figures: &mut Figures,
    others: u32,
    joins: u32,
) -> anyhow::Result<()> {
    join_late(system, figures, Others::Between, others, joins, ["lro.late_join", "lro.floor.direct_get_256"])
        .await?;
    let together = ["lro.late_join_together", "lro.floor.direct_get_256_together"];
    join_late(system, figures, Others::Around, others, joins, together).await
}

/// A watcher that comes late: until it has the whole ring.
async fn join_late(
    system: &BenchSystem,
    figures: &mut Figures,
    place: Others,
    others: u32,
    joins: u32,
    [name, floor]: [&str; 2],
) -> anyhow::Result<()> {
    system.start_afresh().await?;
    let mut held = Held::claim(system).await?;
    let writer = system.connect(Who::Writer).await?.operation_stream();
    if place == Others::Around {
        publish_many(&writer, others.div_ceil(2)).await?;
    }
    for _ in 0..RING {
        held.report().await?;
        if place == Others::Between {
            publish_many(&writer, others.div_ceil(RING as u32)).await?;
        }
    }
    if place == Others::Around {
        publish_many(&writer, others / 2).await?;
    }
    let operator = system.another_operator().await;
    let subject = held.subject();
    let stream = operator.operation_stream();
    let (mut joined, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..joins {
        let began = Instant::now();
        let ring = stream.ring(&subject.events()).await?;
        raw.push(milliseconds(began.elapsed()));
        ensure!(ring.len() as u64 == RING, "the ring has {} events", ring.len());

        let began = Instant::now();
        let mut items = watch(&operator, subject);
        loop {
            let item = tokio::time::timeout(Duration::from_secs(30), items.next()).await?;
            if let WatchItem::Event(event) = item.context("the watch goes on")??
                && event.n == RING
            {
                break;
            }
        }
        joined.push(milliseconds(began.elapsed()));
    }
    add(figures, name, &joined);
    add(figures, floor, &raw);
    let ratio = percentile(&joined, 50.0) / percentile(&raw, 50.0);
    figures.add(format!("{name}.ratio_to_direct_get"), ratio, "ratio");
    Ok(())
}
