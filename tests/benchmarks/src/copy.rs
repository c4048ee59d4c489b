//! `copy`: one folder to a hundred projects on three other hosts, beside a hundred copies to one each, and beside what
//! rustic needs for one backup of the folder and as many restores, as many at a time; one small file to a project on
//! another host; and a folder to a project on the same host, beside `cp -a --reflink=auto`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::Common;
use crate::figures::{Figures, percentile};
use crate::peers::{Peer, PeerRepository, Secret, Tool, elapsed};
use crate::system::MeasuredSystem;
use crate::trees;

const FOLDER: &str = "handout";
const FILES: u32 = 200;
const BYTES: u64 = 10_000_000;
const DESTINATIONS: usize = 100;
/// Hosts, the first of which has the source.
const HOSTS: usize = 4;
/// What copy-applier does at a time by default, on each of the other hosts.
const AT_A_TIME: usize = 8 * (HOSTS - 1);
const SMALL_COPIES: usize = 30;
const LARGE_FILES: u32 = 2_000;
const LARGE_BYTES: u64 = 200_000_000;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
}

pub(crate) async fn measure(options: Options) -> anyhow::Result<Figures> {
    let mut measured = MeasuredSystem::start_on_btrfs(options.common.object_store, HOSTS as u16).await?;
    let source = measured.create_project().await?;
    measured.system.make_volume(0, &source);
    let files = measured.system.project_files(0, &source);
    trees::make(&files.join(FOLDER), FILES, BYTES, 1)?;
    trees::make(&files.join("large"), LARGE_FILES, LARGE_BYTES, 2)?;
    std::fs::write(files.join("small"), vec![7; 10_000])?;
    let mut far = Vec::new();
    for number in 0..DESTINATIONS {
        let host = 1 + number % (HOSTS - 1);
        let project = measured.create_project_on(host).await?;
        measured.system.make_volume(host, &project);
        far.push(project);
    }
    let near = measured.create_project().await?;
    measured.system.make_volume(0, &near);
    // The first makes the bucket, and starts the processes of jobs.
    measured.run(&source, "project-copy", copy("small", &far[..HOSTS - 1], "warm")).await?;
    let (store, bucket) = measured.object_store().await?;
    // On the filesystem of the hosts.
    let scratch = measured.system.data_directory().join("hosts/peers");
    let rustic = Peer::find(Tool::Rustic, &store, &bucket, &scratch);

    let mut figures = Figures::default();
    for run in 0..options.common.runs {
        let place = format!("run-{run}");
        let done = measured.run(&source, "project-copy", copy(FOLDER, &far, &place)).await?;
        ensure!(done.result["snapshot_deleted"] == true, "{:#}", done.result);
        figures.add("copy.hundred", done.seconds, "s");
        let singles = far.iter().map(|to| copy(FOLDER, std::slice::from_ref(to), &format!("{place}-single")));
        let seconds = measured.run_all(&source, "project-copy", singles.collect()).await?;
        figures.add("copy.hundred_single", seconds, "s");
        figures.add_ratio("copy.hundred_single.ratio", "copy.hundred_single", "copy.hundred");
        if let Some(rustic) = &rustic {
            let repository = rustic.initialise(&place)?;
            let folder = files.join(FOLDER);
            let taken = repository.back_up(&folder, Secret::KeyFile)?;
            let restores = restore_all(&repository, &folder, &scratch.join(format!("{place}-restored")))?;
            figures.add("copy.rustic.backup", taken.seconds, "s");
            figures.add("copy.rustic.restores", restores, "s");
            figures.add("copy.rustic", taken.seconds + restores, "s");
            figures.add_ratio("copy.hundred.to_rustic", "copy.hundred", "copy.rustic");
        }

        let mut small = Vec::new();
        for number in 0..SMALL_COPIES {
            let to = &far[number % far.len()];
            let input = copy("small", std::slice::from_ref(to), &format!("{place}-small"));
            small.push(measured.run(&source, "project-copy", input).await?.seconds * 1000.0);
        }
        figures.add("copy.small.p50", percentile(&small, 50.0), "ms");
        figures.add("copy.small.p90", percentile(&small, 90.0), "ms");

        let input = copy("large", std::slice::from_ref(&near), &place);
        let done = measured.run(&source, "project-copy", input).await?;
        figures.add("copy.same_host", done.seconds * 1000.0, "ms");
        let near_files = measured.system.project_files(0, &near);
        let by_cp = clone_with_cp(&files.join("large"), &near_files.join(format!("{place}-cp")))?;
        figures.add("copy.same_host.cp", by_cp * 1000.0, "ms");
        figures.add_ratio("copy.same_host.to_cp", "copy.same_host", "copy.same_host.cp");
        for name in [place.clone(), format!("{place}-cp")] {
            trees::remove(&near_files.join(name))?;
        }
        for (number, project) in far.iter().enumerate() {
            let files = measured.system.project_files(1 + number % (HOSTS - 1), project);
            for name in [place.clone(), format!("{place}-single")] {
                trees::remove(&files.join(name))?;
            }
        }
    }
    measured.system.stop().await?;
    Ok(figures)
}

fn copy(path: &str, to: &[String], place: &str) -> Value {
    let dests: Vec<Value> = to.iter().map(|to| json!({ "project_id": to, "path": place })).collect();
    json!({ "src": { "path": path }, "dests": dests })
}

/// Restores as often as there are destinations, as many at a time as there are copies applied. Returns the seconds.
fn restore_all(repository: &PeerRepository, source: &Path, into: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    let targets: Vec<PathBuf> = (0..DESTINATIONS).map(|number| into.join(number.to_string())).collect();
    std::thread::scope(|scope| {
        let share = DESTINATIONS.div_ceil(AT_A_TIME);
        let workers: Vec<_> = targets
            .chunks(share)
            .map(|targets| {
                scope.spawn(move || -> anyhow::Result<()> {
                    for target in targets {
                        repository.restore(source, target, Secret::KeyFile)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a restore has panicked"))?)
    })?;
    let seconds = elapsed(began);
    trees::remove(into)?;
    Ok(seconds)
}

fn clone_with_cp(from: &Path, to: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    let status = Command::new("cp").args(["-a", "--reflink=auto"]).args([from, to]).status();
    ensure!(status.context("starting cp")?.success(), "cp has failed");
    Ok(elapsed(began))
}
