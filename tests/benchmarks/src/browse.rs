//! `browse`: looking into a backup over the bus, warm (the repository is open where it is asked for) and cold (nothing
//! of it is anywhere: neither a process, nor a cache).

use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::{Value, json};
use test_harness::Server;

use crate::Common;
use crate::figures::{Figures, percentile};
use crate::system::MeasuredSystem;
use crate::trees;

const FILES: u32 = 5_000;
const BYTES: u64 = 20_000_000;
/// Warm looks of one run.
const LOOKS: usize = 200;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
}

pub(crate) async fn measure(options: Options) -> anyhow::Result<Figures> {
    let mut measured = MeasuredSystem::start(options.common.object_store, 1).await?;
    let project = measured.create_project().await?;
    trees::make(&measured.system.project_files(0, &project), FILES, BYTES, 1)?;
    let backup = measured.run(&project, "project-backup", json!({})).await?.result["backup_id"].clone();
    let mut figures = Figures::default();
    for _ in 0..options.common.runs {
        // A new process, and no file of the cache.
        measured.system.hold_restarts();
        let old = measured.system.kill_nine(Server::HostBackup(0));
        trees::remove(&measured.system.data_directory().join("cache/host-backup-0"))?;
        measured.system.allow_restarts();
        measured.system.restarted(Server::HostBackup(0), old).await;
        let (cold, entries) = look(&measured, &project, &backup, "project").await?;
        figures.add("browse.ls.cold", cold, "ms");

        let directories: Vec<String> = std::iter::once("project".to_owned())
            .chain(
                entries
                    .iter()
                    .filter(|entry| entry["kind"] == "dir")
                    .filter_map(|entry| Some(format!("project/{}", entry["name"].as_str()?))),
            )
            .collect();
        let mut warm = Vec::new();
        for number in 0..LOOKS {
            let path = &directories[number % directories.len()];
            warm.push(look(&measured, &project, &backup, path).await?.0);
        }
        figures.add("browse.ls.warm.p50", percentile(&warm, 50.0), "ms");
        figures.add("browse.ls.warm.p99", percentile(&warm, 99.0), "ms");

        let began = Instant::now();
        let request = json!({ "glob": "**/*0*", "backup_id": backup, "limit": 1000 });
        let found = measured.client.ask(format!("project-{project}"), "backup.find", &request).await?;
        figures.add("browse.find", began.elapsed().as_secs_f64() * 1000.0, "ms");
        ensure!(found["matches"].as_array().is_some_and(|matches| !matches.is_empty()), "nothing was found");
    }
    measured.system.stop().await?;
    Ok(figures)
}

async fn look(
    measured: &MeasuredSystem,
    project: &str,
    backup: &Value,
    path: &str,
) -> anyhow::Result<(f64, Vec<Value>)> {
    let request = json!({ "backup_id": backup, "path": path });
    let began = Instant::now();
    let mut reply = measured.client.ask(format!("project-{project}"), "backup.ls", &request).await?;
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    let entries = reply["entries"].as_array_mut().context("a listing has entries")?;
    ensure!(!entries.is_empty(), "{path} is empty");
    Ok((milliseconds, std::mem::take(entries)))
}
