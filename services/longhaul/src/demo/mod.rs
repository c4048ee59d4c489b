//! `longhaul demo`: the main job on real input, and the proof of its result.
//!
//! A project with a real tree is backed up on one host by a plain request, watched by three subscribers that come at
//! different moments, restored on another host, and compared in everything. Nothing stays behind, also when it fails
//! or is interrupted.

mod special_files;
mod subscribers;
mod tree;
mod workplace;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bus_client::{Bus, ConnectSettings, Credentials};
use bus_messages::kinds::{ProjectBackupResult, ProjectRestoreResult};
use bus_messages::{CreateProject, CreatedOperation, Operation, ProjectReply};
use bus_subjects::OperationSubject;
use bytes::Bytes;
use domain_model::{ProjectId, Scope};
use secrecy::SecretString;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::commands::Signals;
use crate::output::{self, Output, size};
use crate::up::{self, ReadyFile, System};
use crate::{connection, drawing::Drawing};
use subscribers::{Follower, Seen};
use workplace::Workplace;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The subscriber that comes in the middle joins here, in percent.
const MIDDLE: f64 = 40.0;
/// So many differences are printed.
const SHOWN_DIFFERENCES: usize = 20;
const HOSTS: usize = 2;

/// How to run the demo.
pub(crate) struct Options {
    /// A new or empty directory; a temporary one where it is `None`.
    pub(crate) directory: Option<PathBuf>,
    /// Leave the directory there.
    pub(crate) keep: bool,
}

/// Runs the demo; an error where anything is not as it is to be.
pub(crate) async fn run(options: Options, output: Output) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let workplace = Workplace::prepare(options.directory.as_deref(), options.keep, HOSTS)?;
    let interrupt = CancellationToken::new();
    let outcome = {
        let show = show(&workplace, &interrupt, output);
        tokio::pin!(show);
        tokio::select! {
            outcome = &mut show => outcome,
            () = signals.next() => {
                say("interrupted: cleaning up");
                interrupt.cancel();
                show.await
            }
        }
    };
    let removed = workplace.remove();
    match (outcome, removed) {
        (Ok(()), removed) => removed,
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => {
            say(&format!("and the clean-up failed: {left:#}"));
            Err(error)
        }
    }
}

async fn show(workplace: &Workplace, interrupt: &CancellationToken, output: Output) -> anyhow::Result<()> {
    say("starting Postgres, nats-server, the registry, the scheduler and two hosts");
    let started = Instant::now();
    let options = up::Options {
        data_directory: workplace.directory().to_owned(),
        hosts: HOSTS,
        ready_file: None,
        object_store: None,
        replicas: up::Replicas::One,
    };
    let system = System::start(options, interrupt).await?;
    say(&format!("all answer after {}", output::duration(started.elapsed())));
    let outcome = main_job(&system, workplace, interrupt, output).await;
    say("stopping everything");
    if interrupt.is_cancelled() {
        system.hurry().cancel();
    }
    system.stop().await;
    outcome
}

async fn main_job(
    system: &System,
    workplace: &Workplace,
    interrupt: &CancellationToken,
    output: Output,
) -> anyhow::Result<()> {
    let ready = system.ready()?;
    let [source, target] = &ready.hosts[..] else { bail!("there are {} hosts, not two", ready.hosts.len()) };
    let create =
        CreateProject { title: "Demo".to_owned(), host_id: source.id, account_id: None, region: None };
    let reply: ProjectReply = system.api()?.call(Scope::Hub, "project", "create", &create).await?;
    let project = reply.project.id;
    say(&format!("project {project} on host-0; filling it"));
    fill(&source.root, project, workplace.directory(), interrupt).await?;

    let bus = || connect(&ready);
    let backup_input = json!({ "kind": "project-backup", "input": { "tags": ["demo"] } });
    let backup = unless(interrupt, system, run_watched(&bus, project, &backup_input)).await?;
    let backed_up: ProjectBackupResult = result_of(&backup)?;

    let restore_input = json!({
        "kind": "project-restore",
        "input": { "backup_id": backed_up.backup_id, "host_id": target.id },
    });
    let restore = unless(interrupt, system, run_watched(&bus, project, &restore_input)).await?;
    let restored: ProjectRestoreResult = result_of(&restore)?;

    say("comparing every byte, mode, owner, mtime, link and xattr on both hosts");
    for tree in ["projects", "persist"] {
        let place = |root: &Path| root.join(tree).join(project.to_string());
        compare(place(&source.root), place(&target.root)).await?;
    }
    if restored.tree != backed_up.tree {
        bail!("the receipts differ: {} was backed up, {} restored", backed_up.tree, restored.tree);
    }
    say("no difference");
    let rows = [
        row("backup", backed_up.files, backed_up.bytes, seconds(&backup)),
        row("restore", restored.files, restored.bytes, seconds(&restore)),
    ];
    if output.json {
        return output.object(&json!({ "backup": backup, "restore": restore, "differences": 0 }));
    }
    for line in output::table(["", "files", "bytes", "seconds", "MB/s"], &rows) {
        output.line(line)?;
    }
    let source = serde_json::to_value(backed_up.source)?;
    let source = source.as_str().unwrap_or_default();
    output.line(format!("read from: {source}; added to the repository: {}", size(backed_up.bytes_added)))
}

/// Fills the project's two trees on its host.
async fn fill(
    root: &Path,
    project: ProjectId,
    own_directory: &Path,
    interrupt: &CancellationToken,
) -> anyhow::Result<()> {
    let (root, own, interrupt) = (root.to_owned(), own_directory.to_owned(), interrupt.clone());
    let fill = move || -> anyhow::Result<tree::Filled> {
        // On btrfs both are subvolumes, so that the backup can take a snapshot.
        let volume = volumes::HostRoot::open(&root)?.ensure_volume(project.as_uuid())?;
        tree::fill(&volume.project_dir, &volume.persist_dir, &own, &interrupt)
    };
    let started = Instant::now();
    let filled = tokio::task::spawn_blocking(fill).await??;
    let took = output::duration(started.elapsed());
    say(&format!("{} files, {} in {took}", filled.files, size(filled.bytes)));
    Ok(())
}

/// Creates an operation by a raw request, watches it live, joins in the middle and after the end, and holds the late
/// subscribers to what the first one saw.
async fn run_watched<F: Future<Output = anyhow::Result<Bus>>>(
    connect: &impl Fn() -> F,
    project: ProjectId,
    request: &serde_json::Value,
) -> anyhow::Result<Operation> {
    // Each subscriber has a connection of its own, as another program would.
    let first = connect().await?;
    let middle = connect().await?;
    let late = connect().await?;
    let subject = format!("api.v1.project-{project}.lro.create");
    say(&format!("request {subject} {request}"));
    let body = Bytes::from(request.to_string());
    let reply = first.request_raw(subject, None, body, REQUEST_TIMEOUT).await?;
    let answer = String::from_utf8_lossy(&reply.payload).into_owned();
    if reply.headers.get("Nats-Service-Error-Code").is_some() {
        bail!("the request was refused: {answer}");
    }
    let created: CreatedOperation =
        serde_json::from_str(&answer).with_context(|| format!("reading the answer {answer}"))?;
    say(&format!("watching {}.*", created.subject));
    let op = OperationSubject { scope: created.op.scope, op_id: created.op.op_id };

    let (at_the_middle, middle_reached) = tokio::sync::oneshot::channel();
    let mut live = Follower::new(&created.op.kind);
    live.draw(Drawing::new(&created.op.kind));
    live.tell_at(MIDDLE, at_the_middle);
    let second = Follower::new(&created.op.kind);
    let in_the_middle = async {
        // Where the first one ends without having told, there was no middle.
        let percent = middle_reached.await.unwrap_or(100.0);
        second.follow(&middle, op).await.map(|seen| (percent, seen))
    };
    let (live, joined) = tokio::join!(live.follow(&first, op), in_the_middle);
    let (live, (percent, joined)) = (live?, joined?);
    let after = Follower::new(&created.op.kind).follow(&late, op).await?;
    let counts =
        |name: &str, seen: &Seen| say(&format!("{name}: {} events and the summary", seen.events.len()));
    counts("subscriber from the start", &live);
    counts(&format!("subscriber from {percent:.1}% on"), &joined);
    counts("subscriber after the end", &after);
    live.check_whole()?;
    joined.check_against(&live).context("the subscriber that came in the middle")?;
    after.check_against(&live).context("the subscriber that came after the end")?;
    let ended = live.ended()?.clone();
    futures::future::join_all([first.drain(), middle.drain(), late.drain()]).await;
    Ok(ended)
}

async fn connect(ready: &ReadyFile) -> anyhow::Result<Bus> {
    let settings = ConnectSettings {
        url: ready.nats_url.clone(),
        credentials: Credentials::UserPassword {
            user: ready.credentials.ops.user.clone(),
            password: SecretString::from(ready.credentials.ops.password.clone()),
        },
        inbox_prefix: None,
        name: "longhaul demo".to_owned(),
    };
    connection::connect(settings).await
}

fn result_of<T: serde::de::DeserializeOwned>(operation: &Operation) -> anyhow::Result<T> {
    let result = operation.result.clone().context("the operation has no result")?;
    serde_json::from_value(result).with_context(|| format!("reading the result of {}", operation.kind))
}

async fn compare(first: PathBuf, second: PathBuf) -> anyhow::Result<()> {
    let (a, b) = (first.clone(), second.clone());
    let differences = tokio::task::spawn_blocking(move || volumes::compare_trees(&a, &b)).await??;
    for difference in differences.iter().take(SHOWN_DIFFERENCES) {
        say(&format!("DIFFERENT {difference}"));
    }
    match differences.len() {
        0 => Ok(()),
        count => bail!(
            "{} and {} differ in {count}{} places",
            first.display(),
            second.display(),
            if count >= volumes::MAX_DIFFERENCES { " or more" } else { "" }
        ),
    }
}

/// The work, unless the demo is interrupted or the system breaks down.
async fn unless<T>(
    interrupt: &CancellationToken,
    system: &System,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        outcome = work => outcome,
        () = interrupt.cancelled() => Err(anyhow!("interrupted")),
        reason = system.failed() => Err(reason),
    }
}

/// Seconds from the request to the end: what whoever asked has waited.
fn seconds(operation: &Operation) -> f64 {
    operation.finished_at.map_or(0.0, |finished| finished.seconds_since(operation.created_at))
}

fn row(name: &str, files: u64, bytes: u64, seconds: f64) -> [String; 5] {
    let speed = bytes as f64 / 1e6 / seconds.max(0.001);
    [name.to_owned(), files.to_string(), bytes.to_string(), format!("{seconds:.1}"), format!("{speed:.1}")]
}

pub(super) fn say(text: &str) {
    eprintln!("demo: {text}");
}
