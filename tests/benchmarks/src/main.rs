//! `longhaul-bench NAME`: what the main jobs cost, end to end, beside what the `rustic` and `restic` command lines take
//! for the same files on the same server in the same minutes; and what the operation engine costs, beside what Postgres
//! and nats-server do without it.
//!
//! A duration alone says little: machines differ, and are busy with other things. So everybody's turns are taken in
//! changing order, several times over, and what counts are the medians and the ratios within a run. Standard output has
//! lines `name value unit` and nothing else; what happens meanwhile is told on standard error.

mod backup;
mod browse;
mod copy;
mod database;
mod figures;
mod fleet;
mod fleet_known;
mod lro;
mod peak_memory;
mod peers;
mod processor_time;
mod system;
mod trees;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(about = "Measure the main jobs and the operation engine beside their peers and floors", long_about = None)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// A large project: first backup, unchanged, 1% changed, restored
    Backup(backup::Options),
    /// Many small projects, one incremental backup of each; and one small project, thirty times
    Fleet(fleet::Options),
    /// Looking into a backup: warm, cold, searching
    Browse(browse::Options),
    /// Copies: to a hundred projects, to one, on one host
    Copy(copy::Options),
    /// A database file of a gigabyte: backed up and restored, beside a plain PutObject and GetObject
    Database(database::Options),
    /// Long-running operations: latency, throughput, events, recovery, idle
    Lro(lro::Options),
}

/// What all benchmarks can be told.
#[derive(Args, Clone, Copy)]
struct Common {
    /// How often to measure everything; the medians are printed
    #[arg(long, env = "BENCH_RUNS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where backups go
    #[arg(long, value_enum, default_value_t = StoreKind::S3)]
    object_store: StoreKind,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreKind {
    /// A real S3 server on this machine.
    S3,
    /// A directory.
    Local,
}

#[tokio::main]
async fn main() -> ExitCode {
    let measured = match Arguments::parse().benchmark {
        Benchmark::Backup(options) => backup::measure(options).await,
        Benchmark::Fleet(options) => fleet::measure(options).await,
        Benchmark::Browse(options) => browse::measure(options).await,
        Benchmark::Copy(options) => copy::measure(options).await,
        Benchmark::Database(options) => database::measure(options).await,
        Benchmark::Lro(options) => lro::measure(options).await,
    };
    match measured.and_then(|figures| figures.print()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longhaul-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
