//! `backup`: a large project, backed up for the first time, unchanged, with 1% of its files changed, checked, drilled and pruned, and
//! restored on another host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::Common;
use crate::figures::Figures;
use crate::peak_memory::PeakMemory;
use crate::peers::{Peer, PeerRepository, Secret, Tool};
use crate::system::{Done, MeasuredSystem};
use crate::trees;

const CHANGED_ONE_IN: u32 = 100;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Megabytes (10⁶ bytes) of files
    #[arg(long, env = "BENCH_MB", default_value_t = 1074, value_parser = clap::value_parser!(u64).range(1..))]
    megabytes: u64,
    /// Files
    #[arg(long, env = "BENCH_FILES", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    files: u32,
}

/// Whose turn it is.
#[derive(Clone)]
enum Contender {
    Ours,
    Theirs(PeerRepository),
}

/// The same files for all; a new project and new repositories in each run.
struct Run<'a> {
    measured: &'a mut MeasuredSystem,
    figures: &'a mut Figures,
    project: String,
    source: PathBuf,
    expected: (u64, u64),
    number: u32,
}

pub(crate) async fn measure(options: Options) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let mut measured = MeasuredSystem::start(options.common.object_store, 2).await?;

    // The first backup of all makes the bucket, and has nothing to do with the size of a project.
    let small = measured.create_project().await?;
    trees::make(&measured.system.project_files(0, &small), 10, 100_000, 1)?;
    measured.run(&small, "project-backup", json!({})).await?;

    let (store, bucket) = measured.object_store().await?;
    let scratch = measured.system.scratch("peers");
    let peers: Vec<Peer> = [Tool::Rustic, Tool::Restic]
        .iter()
        .filter_map(|tool| Peer::find(*tool, &store, &bucket, &scratch))
        .collect();

    let mut files = measured.system.scratch("files");
    trees::make(&files, options.files, options.megabytes * 1_000_000, 2)?;
    trees::flush_to_disk()?;
    trees::settle().await;
    for number in 0..options.common.runs {
        let project = measured.create_project().await?;
        // Moved from project to project: the same files, with the same times, in the same places on the disk.
        let source = measured.system.project_files(0, &project);
        fs::create_dir_all(source.parent().context("projects are in a directory")?)?;
        fs::rename(&files, &source).context("moving the files to the next project")?;
        let expected = trees::count(&source)?;
        let mut contenders = vec![Contender::Ours];
        for peer in &peers {
            contenders.push(Contender::Theirs(peer.initialise(&format!("run-{number}"))?));
        }
        // Nobody is always the first.
        let places = contenders.len();
        contenders.rotate_left(number as usize % places);

        let mut run = Run {
            measured: &mut measured,
            figures: &mut figures,
            project,
            source: source.clone(),
            expected,
            number,
        };
        run.back_up_by_all("first", &contenders).await?;
        run.back_up_by_all("unchanged", &contenders).await?;
        trees::change(&source, options.files, CHANGED_ONE_IN, u64::from(3 + number))?;
        trees::settle().await;
        run.back_up_by_all("changed", &contenders).await?;
        for kind in ["repo-check", "restore-drill", "repo-prune"] {
            run.measure(kind, kind, json!({})).await?;
        }
        run.restore_by_all(&contenders).await?;
        files = source;
    }
    measured.system.stop().await?;
    Ok(figures)
}

impl Run<'_> {
    async fn back_up_by_all(&mut self, what: &str, contenders: &[Contender]) -> anyhow::Result<()> {
        for contender in contenders {
            trees::flush_to_disk()?;
            match contender {
                Contender::Ours => self.back_up(what).await?,
                Contender::Theirs(repository) => {
                    let (repository, source) = (repository.clone(), self.source.clone());
                    let name = repository.tool().name();
                    let taken =
                        tokio::task::spawn_blocking(move || repository.back_up(&source, Secret::Password))
                            .await??;
                    self.figures.add(format!("backup.{what}.{name}"), taken.seconds, "s");
                    self.figures.add(format!("backup.{what}.{name}.memory"), taken.peak_mb, "MB");
                }
            }
        }
        self.compare(what);
        Ok(())
    }

    async fn back_up(&mut self, what: &str) -> anyhow::Result<()> {
        let done = self.measure(what, "project-backup", json!({})).await?;
        ensure!(
            (done.result["files"].as_u64(), done.result["bytes"].as_u64())
                == (Some(self.expected.0), Some(self.expected.1)),
            "expected {:?}: {:#}",
            self.expected,
            done.result
        );
        Ok(())
    }

    /// Has an operation done by the project's host.
    async fn measure(&mut self, what: &str, kind: &str, input: Value) -> anyhow::Result<Done> {
        let requests = self.measured.object_store_requests().await?;
        let memory = PeakMemory::of_jobs(self.measured.system.ready().hosts[0].pid);
        let done = self.measured.run(&self.project, kind, input).await?;
        let memory = memory.megabytes();
        self.figures.add(format!("backup.{what}.ours"), done.seconds, "s");
        self.figures.add(format!("backup.{what}.ours.memory"), memory, "MB");
        if let (Some(before), Some(after)) = (requests, self.measured.object_store_requests().await?) {
            self.figures.add(format!("backup.{what}.ours.requests"), after - before, "requests");
        }
        Ok(done)
    }

    async fn restore_by_all(&mut self, contenders: &[Contender]) -> anyhow::Result<()> {
        for contender in contenders {
            trees::flush_to_disk()?;
            match contender {
                Contender::Ours => self.restore().await?,
                Contender::Theirs(repository) => {
                    let into = self.measured.system.scratch("restored");
                    let (repository, source, target) =
                        (repository.clone(), self.source.clone(), into.clone());
                    let name = repository.tool().name();
                    let (taken, restored) = tokio::task::spawn_blocking(move || {
                        repository.restore(&source, &target, Secret::Password)
                    })
                    .await??;
                    self.figures.add(format!("backup.restore.{name}"), taken.seconds, "s");
                    self.figures.add(format!("backup.restore.{name}.memory"), taken.peak_mb, "MB");
                    self.check_restored(&restored)?;
                    trees::remove(&into)?;
                }
            }
        }
        self.compare("restore");
        Ok(())
    }

    async fn restore(&mut self) -> anyhow::Result<()> {
        let ready = self.measured.system.ready();
        let memory = PeakMemory::of_jobs(ready.hosts[1].pid);
        let input = json!({ "backup_id": "latest", "host_id": ready.hosts[1].id.to_string() });
        let done = self.measured.run(&self.project, "project-restore", input).await?;
        let memory = memory.megabytes();
        self.figures.add("backup.restore.ours", done.seconds, "s");
        self.figures.add("backup.restore.ours.memory", memory, "MB");
        let restored = self.measured.system.project_files(1, &self.project);
        self.check_restored(&restored)?;
        trees::remove(&restored)
    }

    fn check_restored(&self, restored: &Path) -> anyhow::Result<()> {
        let found = trees::count(restored)?;
        ensure!(found == self.expected, "{}: {found:?} instead of {:?}", restored.display(), self.expected);
        Ok(())
    }

    fn compare(&mut self, what: &str) {
        for peer in [Tool::Rustic, Tool::Restic].map(Tool::name) {
            let name = format!("backup.{what}.ratio_to_{peer}");
            self.figures.add_ratio(name, &format!("backup.{what}.ours"), &format!("backup.{what}.{peer}"));
        }
        eprintln!("run {}: {what} done by all", self.number);
    }
}
