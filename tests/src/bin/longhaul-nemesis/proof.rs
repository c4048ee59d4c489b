//! What is looked at when all faults are over: repositories, backups, and what is left on the hosts.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use domain_model::{OperationId, OperationStatus, ProjectId, Timestamp};
use serde_json::{Value, json};
use test_harness::{Client, ReadyObjectStore, TestSystem};
use tokio::time::Instant;

use crate::checker::newest_good;
use crate::database::Database;
use crate::history::{Backup, Ended, LeftOnHost, Proof, Restored};

/// Where the newest backup is restored to.
const BESIDE: &str = "restored-for-the-proof";
/// What is cleaned up a moment after the end of an operation, or when the host looks for leftovers.
const PATIENCE_WITH_THE_HOST: Duration = Duration::from_secs(30);
const PATIENCE_WITH_A_PROOF: Duration = Duration::from_secs(180);
const PATIENCE_WITH_CLIENTS: Duration = Duration::from_secs(60);
/// A file system's clock is a few milliseconds behind: what was written so shortly before a backup is not compared.
const BEFORE_A_BACKUP_S: f64 = 1.0;
const HOST: usize = 0;

/// The backups of the catalog, each with whether its repository has its snapshot.
pub(crate) async fn backups(system: &TestSystem, database: &Database) -> anyhow::Result<Vec<Backup>> {
    let mut backups = database.backups().await?;
    let ReadyObjectStore::Local { root } = system.ready().object_store else {
        anyhow::bail!("the object store is no directory")
    };
    for backup in &mut backups {
        let repository = root.join(&backup.bucket).join(format!("rustic/project-{}", backup.project));
        backup.has_snapshot = repository.join("snapshots").join(backup.backup_id.as_str()).is_file();
    }
    Ok(backups)
}

/// Checks all data of each project's repository, and restores its newest good backup.
pub(crate) async fn prove(
    system: &TestSystem,
    operator: &Client,
    projects: &[ProjectId],
    backups: &[Backup],
) -> anyhow::Result<Vec<Proof>> {
    let newest = newest_good(backups);
    let mut proofs = Vec::new();
    for project in projects {
        let mut proof = Proof { project: *project, check: None, restore: None };
        if backups.iter().any(|backup| backup.project == *project) {
            let all = json!({ "read_data_shares": 1 });
            proof.check = Some(ended(&carry_out(operator, *project, "repo-check", all).await?)?);
        }
        if let Some(backup) = newest.get(project) {
            proof.restore = Some(restore(system, operator, backup).await?);
        }
        proofs.push(proof);
    }
    Ok(proofs)
}

async fn restore(system: &TestSystem, operator: &Client, backup: &Backup) -> anyhow::Result<Restored> {
    let input = json!({ "backup_id": backup.backup_id.as_str(), "target": BESIDE, "conflict": "fail" });
    let op = carry_out(operator, backup.project, "project-restore", input).await?;
    let text = |field: &str| op["result"][field].as_str().map(ToOwned::to_owned);
    let files = system.project_files(HOST, &backup.project.to_string());
    let mut comparison = Comparison { before: backup.created_at, compared: 0, differ: Vec::new() };
    comparison.directory(&files, &files.join(BESIDE).join("project"))?;
    for entry in fs::read_dir(files.join(BESIDE).join("project")).into_iter().flatten().flatten() {
        if is_staged(&entry.file_name()) {
            comparison.differ.push(format!("{} was in the backup", entry.path().display()));
        }
    }
    let persist = system.persist_store(HOST, &backup.project.to_string());
    comparison.directory(&persist, &files.join(BESIDE).join("persist"))?;
    Ok(Restored {
        backup_id: backup.backup_id.clone(),
        ended: ended(&op)?,
        tree: text("tree"),
        receipt: text("receipt"),
        compared: comparison.compared,
        differ: comparison.differ,
    })
}

async fn carry_out(operator: &Client, project: ProjectId, kind: &str, input: Value) -> anyhow::Result<Value> {
    let scope = format!("project-{project}");
    let request = json!({ "kind": kind, "input": input });
    let give_up = Instant::now() + PATIENCE_WITH_CLIENTS;
    let created = loop {
        match operator.ask(&scope, "lro.create", &request).await {
            Ok(created) => break created,
            Err(error) if Instant::now() > give_up => return Err(error).context("asking for a proof"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let op_id = created["op"]["op_id"].as_str().context("an operation has an id")?;
    let give_up = Instant::now() + PATIENCE_WITH_A_PROOF;
    loop {
        match operator.ask(&scope, "lro.wait", &json!({ "op_id": op_id, "timeout_s": 5 })).await {
            Ok(mut reply) if reply["done"] == true => return Ok(reply["op"].take()),
            last if Instant::now() > give_up => anyhow::bail!("the {kind} {op_id} does not end: {last:?}"),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

fn ended(op: &Value) -> anyhow::Result<Ended> {
    let status: OperationStatus = serde_json::from_value(op["status"].clone())?;
    let op_id: OperationId = serde_json::from_value(op["op_id"].clone())?;
    let error = op["error"]["message"].as_str().map(ToOwned::to_owned);
    Ok(Ended { op_id, status, error })
}

/// Compares what nobody has touched since a moment.
struct Comparison {
    before: Timestamp,
    compared: usize,
    differ: Vec<String>,
}

impl Comparison {
    /// What is in a directory that has been there as long; what is in one that was moved since may have come later.
    fn directory(&mut self, now: &Path, then: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(now).with_context(|| format!("listing {}", now.display()))? {
            let entry = entry?;
            if is_staged(&entry.file_name()) {
                continue;
            }
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let changed = time::OffsetDateTime::from_unix_timestamp(metadata.ctime())?
                + time::Duration::nanoseconds(metadata.ctime_nsec());
            if self.before.seconds_since(Timestamp::from(changed)) < BEFORE_A_BACKUP_S {
                continue;
            }
            let other = then.join(entry.file_name());
            if metadata.is_dir() {
                match other.is_dir() {
                    true => self.directory(&path, &other)?,
                    false => self.differ.push(format!("{} is not there", other.display())),
                }
            } else if metadata.is_file() {
                self.compared += 1;
                let is_same =
                    fs::read(&other).is_ok_and(|bytes| fs::read(&path).is_ok_and(|now| now == bytes));
                if !is_same {
                    self.differ.push(other.display().to_string());
                }
            }
        }
        Ok(())
    }
}

/// What is left of operations on the host, once it has had the time to clean up.
pub(crate) async fn left_on_hosts(system: &TestSystem) -> anyhow::Result<Vec<LeftOnHost>> {
    let root = system.ready().hosts[HOST].root.clone();
    let give_up = Instant::now() + PATIENCE_WITH_THE_HOST;
    let mut last: HashSet<PathBuf> = HashSet::new();
    loop {
        let left = look(&root)?;
        let paths: HashSet<PathBuf> = left.iter().map(|left| PathBuf::from(&left.path)).collect();
        let only_records = left.iter().all(|left| left.entries == ["journal.json"]);
        if paths == last && (only_records || Instant::now() > give_up) {
            return Ok(left);
        }
        last = paths;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The directories of operations, as `volumes` names them, and what operations have put beside the files of projects.
fn look(root: &Path) -> anyhow::Result<Vec<LeftOnHost>> {
    let mut found = Vec::new();
    for place in ["staging", "snapshots", "copies"] {
        for entry in fs::read_dir(root.join(place))? {
            found.extend(left(&entry?.path(), "")?);
        }
    }
    for project in fs::read_dir(root.join("projects"))? {
        for entry in fs::read_dir(project?.path())? {
            let entry = entry?;
            if is_staged(&entry.file_name()) {
                found.extend(left(&entry.path(), domain_model::RESERVED_PREFIX)?);
            }
        }
    }
    Ok(found)
}

fn is_staged(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(domain_model::RESERVED_PREFIX.as_bytes())
}

/// Nothing where it has just gone.
fn left(path: &Path, prefix: &str) -> anyhow::Result<Option<LeftOnHost>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let op_id = name.strip_prefix(prefix).and_then(|name| name.parse().ok());
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("listing {}", path.display())),
    };
    let mut entries: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    entries.sort();
    Ok(Some(LeftOnHost { path: path.display().to_string(), op_id, entries }))
}
