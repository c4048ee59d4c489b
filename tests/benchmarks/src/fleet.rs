//! `fleet`: many small projects, one incremental backup of each, all asked for at once over the bus, beside a loop of
//! the rustic command line over the same files. And what a single small backup takes, from the request to the word of
//! its end. Then what many more projects cost that are known and mostly asleep.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use domain_model::Timestamp;
use serde_json::{Value, json};

use crate::Common;
use crate::figures::{Figures, percentile};
use crate::fleet_known;
use crate::peers::{Peer, PeerRepository, Secret, Tool, elapsed};
use crate::processor_time::ProcessorTime;
use crate::system::MeasuredSystem;
use crate::trees;

const FILES: u32 = 20;
const BYTES: u64 = 200_000;
/// Small backups, one after another.
const SINGLE_BACKUPS: u32 = 30;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Small projects
    #[arg(long, env = "BENCH_PROJECTS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    projects: u32,
    /// Projects that are known besides
    #[arg(long, env = "BENCH_KNOWN", default_value_t = 10_000)]
    known: u32,
    /// How many of those are due at once
    #[arg(long, env = "BENCH_DUE", default_value_t = 500)]
    due: u32,
}

/// Who backs the fleet up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Ours,
    RusticPassword,
    RusticKeyFile,
}

struct Fleet {
    measured: MeasuredSystem,
    figures: Figures,
    projects: Vec<String>,
    sources: Vec<PathBuf>,
    repositories: Vec<PeerRepository>,
    changes: u64,
}

pub(crate) async fn measure(options: Options) -> anyhow::Result<Figures> {
    let mut measured = MeasuredSystem::start(options.common.object_store, 1).await?;
    let (mut projects, mut sources) = (Vec::new(), Vec::new());
    for number in 0..options.projects {
        let project = measured.create_project().await?;
        let source = measured.system.project_files(0, &project);
        trees::make(&source, FILES, BYTES, u64::from(number))?;
        projects.push(project);
        sources.push(source);
    }
    trees::flush_to_disk()?;
    trees::settle().await;
    let mut figures = Figures::default();
    let (seconds, _) = measured.back_up_all(&projects).await?;
    figures.add("fleet.first.ours", seconds, "s");

    let (store, bucket) = measured.object_store().await?;
    let scratch = measured.system.scratch("peers");
    let rustic = Peer::find(Tool::Rustic, &store, &bucket, &scratch);
    let mut repositories = Vec::new();
    for (rustic, source) in
        rustic.iter().flat_map(|rustic| sources.iter().map(move |source| (rustic, source)))
    {
        let repository = rustic.initialise(&format!("fleet-{}", repositories.len()))?;
        repository.back_up(source, Secret::KeyFile)?;
        repositories.push(repository);
    }
    let mut contenders = vec![Contender::Ours];
    if rustic.is_some() {
        contenders.extend([Contender::RusticPassword, Contender::RusticKeyFile]);
    }

    let mut fleet = Fleet { measured, figures, projects, sources, repositories, changes: 1000 };
    for run in 0..options.common.runs {
        fleet.single_backups().await?;
        for turn in 0..contenders.len() {
            // Nobody is always the first.
            fleet.incremental(contenders[(turn + run as usize) % contenders.len()]).await?;
        }
        fleet.figures.add_ratio("fleet.ratio_to_rustic_password", "fleet.ours", "fleet.rustic_password");
        fleet.figures.add_ratio("fleet.ratio_to_rustic_key_file", "fleet.ours", "fleet.rustic_key_file");
    }
    fleet.unchanged_backup().await?;
    fleet_known::measure(&fleet.measured, options.known, options.due, &mut fleet.figures).await?;
    fleet.measured.system.stop().await?;
    Ok(fleet.figures)
}

impl Fleet {
    /// One backup of each project, in each of which one file has changed since the last: always the same one, so that
    /// it is one for everybody.
    async fn incremental(&mut self, contender: Contender) -> anyhow::Result<()> {
        for number in 0..self.sources.len() {
            self.change(number)?;
        }
        trees::flush_to_disk()?;
        trees::settle().await;
        let (name, seconds) = match contender {
            Contender::Ours => {
                let launcher = self.measured.system.ready().pid;
                let before = ProcessorTime::of_children(launcher);
                let (claims, claiming_s) = self.measured.claims().await?;
                let (seconds, ops) = self.measured.back_up_all(&self.projects).await?;
                let after = ProcessorTime::of_children(launcher);
                let (claims_now, claiming_s_now) = self.measured.claims().await?;
                let each_ms = (claiming_s_now - claiming_s) / (claims_now - claims) * 1000.0;
                self.figures.add("fleet.claim.mean", each_ms, "ms");
                tell_where_the_time_goes(&ops);
                eprintln!("processor time of each backup: {}", after.since(&before, ops.len()));
                ("fleet.ours", seconds)
            }
            Contender::RusticPassword => {
                ("fleet.rustic_password", self.loop_over_all(Secret::Password).await?)
            }
            Contender::RusticKeyFile => ("fleet.rustic_key_file", self.loop_over_all(Secret::KeyFile).await?),
        };
        self.figures.add(format!("{name}.seconds"), seconds, "s");
        self.figures.add(name, self.projects.len() as f64 / seconds, "backups/s");
        Ok(())
    }

    async fn loop_over_all(&self, secret: Secret) -> anyhow::Result<f64> {
        let pairs: Vec<(PeerRepository, PathBuf)> =
            self.repositories.iter().cloned().zip(self.sources.iter().cloned()).collect();
        let looping = tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            for (repository, source) in &pairs {
                repository.back_up(source, secret)?;
            }
            anyhow::Ok(elapsed(began))
        });
        looping.await.context("looping")?
    }

    /// Small backups of one project, one after another, each of one changed file.
    async fn single_backups(&mut self) -> anyhow::Result<()> {
        let requests = self.measured.object_store_requests().await?;
        let mut milliseconds = Vec::new();
        let mut ops = Vec::new();
        let project = self.projects[0].clone();
        for _ in 0..SINGLE_BACKUPS {
            self.change(0)?;
            let done = self.measured.run(&project, "project-backup", json!({})).await?;
            milliseconds.push(done.seconds * 1000.0);
            let mut op = done.op;
            op["result"] = done.result;
            ops.push(op);
        }
        tell_where_the_time_goes(&ops);
        self.figures.add("backup.small.p50", percentile(&milliseconds, 50.0), "ms");
        self.figures.add("backup.small.p99", percentile(&milliseconds, 99.0), "ms");
        if let (Some(before), Some(after)) = (requests, self.measured.object_store_requests().await?) {
            let each = (after - before) / f64::from(SINGLE_BACKUPS);
            self.figures.add("backup.small.requests", each, "requests");
        }
        Ok(())
    }

    /// What a backup of a project costs in which nothing has changed.
    async fn unchanged_backup(&mut self) -> anyhow::Result<()> {
        let project = self.projects[0].clone();
        self.measured.run(&project, "project-backup", json!({})).await?;
        let before = self.measured.object_store_requests().await?;
        self.measured.run(&project, "project-backup", json!({})).await?;
        if let (Some(before), Some(after)) = (before, self.measured.object_store_requests().await?) {
            self.figures.add("backup.unchanged.requests", after - before, "requests");
        }
        Ok(())
    }

    fn change(&mut self, number: usize) -> anyhow::Result<()> {
        self.changes += 1;
        change_one(&self.sources[number], self.changes)
    }
}

fn change_one(source: &Path, seed: u64) -> anyhow::Result<()> {
    trees::change(source, FILES, FILES, seed).map(drop)
}

/// Medians of what the operations' own times say: waiting, work in the handler, recording the end.
fn tell_where_the_time_goes(ops: &[Value]) {
    let moment = |op: &Value, field: &str| op[field].as_str()?.parse::<Timestamp>().ok();
    let median = |values: Vec<f64>| percentile(&values, 50.0) * 1000.0;
    let between = |from: &str, to: &str| {
        median(ops.iter().filter_map(|op| Some(moment(op, to)?.seconds_since(moment(op, from)?))).collect())
    };
    eprintln!(
        "medians of {}: created to started {:.0} ms, started to finished {:.0} ms, of which the handler says {:.0} ms",
        ops.len(),
        between("created_at", "started_at"),
        between("started_at", "finished_at"),
        median(ops.iter().filter_map(|op| op["result"]["duration_s"].as_f64()).collect()),
    );
}
