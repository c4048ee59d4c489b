//! `lro`: what long-running operations cost: how soon they are acknowledged and start, how many go through, how many
//! events the registry takes and how soon watchers have them, what a late watcher waits for, how soon the work of a dead
//! worker goes on, and what a system that does nothing uses. Beside each the floor: what the same Postgres and the same
//! nats-server do with no engine in the way.

mod bench_system;
mod depth;
mod empty_worker;
mod events;
mod floors;
mod idle;
mod latency;
mod recovery;
mod throughput;

pub(crate) use idle::resident_megabytes;

use clap::{Args, ValueEnum};

use crate::figures::Figures;
use bench_system::BenchSystem;

#[derive(Args)]
pub(crate) struct Options {
    /// How often to measure everything; the medians are printed
    #[arg(long, env = "BENCH_RUNS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Operations that are created one at a time
    #[arg(long, env = "BENCH_SINGLE", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    single: u32,
    /// Empty operations that are to go through
    #[arg(long, env = "BENCH_OPERATIONS", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(16..))]
    operations: u32,
    /// Operations that wait for their time, or messages of others, where there are to be many
    #[arg(long, env = "BENCH_OTHERS", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    others: u32,
    /// Seconds of each floor of Postgres
    #[arg(long, env = "BENCH_FLOOR_S", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    floor_s: u32,
    /// Seconds of events
    #[arg(long, env = "BENCH_EVENTS_S", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    events_s: u32,
    /// Watchers that come late, one after another
    #[arg(long, env = "BENCH_JOINS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    joins: u32,
    /// Seconds of doing nothing
    #[arg(long, env = "BENCH_IDLE_S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    idle_s: u32,
    /// Operations that run with nothing but heartbeats
    #[arg(long, env = "BENCH_HEARTBEATS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    heartbeats: u32,
    /// Only these parts, with commas between them
    #[arg(long, env = "BENCH_PARTS", value_delimiter = ',')]
    parts: Vec<Part>,
    /// A minute's worth of everything but `killed`, to see that it works; the figures mean little
    #[arg(long, env = "BENCH_QUICK", value_parser = clap::builder::FalseyValueParser::new())]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The same Postgres and the same nats-server without us.
    Floors,
    /// One operation at a time: acknowledged, started, seen.
    Latency,
    /// Claims with few and with many operations ready.
    Depth,
    /// Empty operations by the thousand.
    Throughput,
    /// Progress of many operations at once.
    Events,
    /// Progress of one operation, seen by many.
    Watchers,
    /// A watcher that comes late.
    LateJoin,
    /// A worker that hands its work back.
    Stopped,
    /// Nothing at all.
    Idle,
    /// Many operations that only run.
    Heartbeats,
    /// A worker that dies, and one that is told to end: the wait for a lease is in it.
    Killed,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        if self.parts.is_empty() { !(self.quick && part == Part::Killed) } else { self.parts.contains(&part) }
    }

    fn made_quick(self) -> Self {
        if !self.quick {
            return self;
        }
        Self {
            runs: 1,
            single: self.single.min(50),
            operations: self.operations.min(3000),
            others: self.others.min(5000),
            floor_s: 1,
            events_s: 2,
            joins: self.joins.min(20),
            idle_s: self.idle_s.min(5),
            heartbeats: self.heartbeats.min(100),
            ..self
        }
    }
}

const DAY_S: i32 = 24 * 3600;

pub(crate) async fn measure(options: Options) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let options = options.made_quick();
    let wanted = |part| options.wants(part);
    let mut system = BenchSystem::start(0).await?;
    if std::env::var_os("PROFILE").is_some() {
        system.count_statements().await?;
    }
    for _ in 0..options.runs {
        if wanted(Part::Floors) {
            floors::postgres(&system, &mut figures, options.floor_s).await?;
            floors::nats(&system, &mut figures, options.operations).await?;
        }
        if wanted(Part::Latency) {
            system.start_afresh().await?;
            latency::one_at_a_time(&system, &mut figures, "idle", options.single).await?;
            figures.add_ratio(
                "lro.acknowledged.ratio_to_floor",
                "lro.acknowledged.idle.p50",
                "lro.floor.request_reply.p50",
            );
            system.add_operations(options.others, DAY_S, 0).await?;
            latency::one_at_a_time(&system, &mut figures, "future", options.single).await?;
            figures.add_ratio("lro.start.future_to_idle", "lro.start.future.p50", "lro.start.idle.p50");
        }
        if wanted(Part::Depth) {
            depth::claims(&system, &mut figures, options.others, options.single).await?;
        }
        if wanted(Part::Throughput) {
            system.start_afresh().await?;
            throughput::empty_operations(&system, &mut figures, options.operations).await?;
            for throughput in ["lro.throughput", "lro.throughput.at_once"] {
                figures.add_ratio(
                    format!("{throughput}.ratio_to_floor"),
                    throughput,
                    "lro.floor.claim_complete",
                );
                // The floor that also inserts what it claims, as operations are created.
                figures.add_ratio(
                    format!("{throughput}.ratio_to_floor_with_insert"),
                    throughput,
                    "lro.floor.insert_claim_complete",
                );
            }
        }
        if wanted(Part::Events) {
            events::rate(&system, &mut figures, options.events_s).await?;
            figures.add_ratio("lro.events.ratio_to_floor", "lro.events", "lro.floor.publish_256_in_flight");
        }
        if wanted(Part::Watchers) {
            events::fan_out(&system, &mut figures, options.single).await?;
        }
        if wanted(Part::LateJoin) {
            events::late_join(&system, &mut figures, options.others, options.joins).await?;
        }
        if wanted(Part::Stopped) {
            recovery::handed_back(&system, &mut figures).await?;
        }
    }
    system.system.stop().await?;

    if wanted(Part::Idle) || wanted(Part::Heartbeats) || wanted(Part::Killed) {
        let mut system = BenchSystem::start(options.heartbeats).await?;
        system.count_statements().await?;
        if wanted(Part::Idle) {
            idle::nothing(&system, &mut figures, options.idle_s).await?;
        }
        if wanted(Part::Heartbeats) {
            idle::heartbeats(&system, &mut figures, options.heartbeats, options.idle_s).await?;
        }
        if wanted(Part::Killed) {
            recovery::scheduler(&system, &mut figures).await?;
        }
        system.system.stop().await?;
    }
    Ok(figures)
}
