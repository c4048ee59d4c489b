//! One run: start, load and faults, calm, wait for every end, read, check, tell.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Bus, ConnectSettings, Credentials};
use bus_subjects::OperationSubject;
use domain_model::{OperationId, ProjectId, Scope};
use futures::StreamExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use test_harness::{Client, SystemOptions, TestSystem, btrfs_is_available};
use tokio::time::Instant;

use crate::checker;
use crate::database::{Database, Open};
use crate::edits;
use crate::faults::{Nemesis, plan};
use crate::fleet::{Member, Role, nats_address};
use crate::history::{Change, History, Kept};
use crate::measures::Measures;
use crate::proof;
use crate::proxy::Proxy;
use crate::settings::Settings;
use crate::summary;
use crate::workload::Workload;

/// How long everything may take to come to its end: leases end and back-offs are waited out.
const PATIENCE_TO_SETTLE: Duration = Duration::from_secs(900);
/// How long nothing at all may happen meanwhile.
const PATIENCE_WITH_SILENCE: Duration = Duration::from_secs(330);
const PATIENCE_WITH_WATCHERS: Duration = Duration::from_secs(60);
const PATIENCE_WITH_THE_STREAM: Duration = Duration::from_secs(120);
const PROJECTS: usize = 2;
const CONNECTIONS: usize = 4;
const READERS: usize = 32;
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Whether all is as it must be.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<bool> {
    let options = SystemOptions { environment: settings.environment(), ..SystemOptions::default() };
    let options = SystemOptions { test_kinds: true, btrfs: btrfs_is_available(), ..options };
    let system = Arc::new(TestSystem::start(options).await?);
    let database = Database::observe(&system.ready().database_url).await?;
    let operator = system.operator().await;
    let mut random = StdRng::seed_from_u64(settings.seed);
    let (mut projects, mut files): (Vec<ProjectId>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for _ in 0..PROJECTS {
        let project = operator.create_project(system.host(0)).await;
        system.make_volume(0, &project);
        files.push(system.project_files(0, &project));
        edits::make(&system.project_files(0, &project), &system.persist_store(0, &project), &mut random)?;
        projects.push(project.parse()?);
    }
    let mut members = Vec::new();
    for number in 1..=settings.workers {
        members.push(Member::start(&system, &settings, Role::Worker, number).await?);
    }
    for number in 1..=settings.registries {
        members.push(Member::start(&system, &settings, Role::Registry, number).await?);
    }
    let members = Arc::new(members);
    let clients = Arc::new(Proxy::start(nats_address(&system)?).await?);
    let measures = Arc::new(Measures::default());
    let measuring = tokio::spawn(Arc::clone(&measures).gather(Arc::clone(&system), Arc::clone(&members)));

    let mut buses = Vec::new();
    for _ in 0..CONNECTIONS {
        buses.push(connect(&system, &format!("nats://{}", clients.address())).await?);
    }
    let workload = Workload::new(buses);
    let nemesis = Arc::new(Nemesis::new(Arc::clone(&system), Arc::clone(&members), clients));
    let counting = tokio::spawn(count(database.clone(), Arc::clone(&workload)));
    let faults = plan(settings.seed, settings.duration, &settings.only);
    let loading = tokio::spawn(Arc::clone(&workload).run(settings.clone(), projects.clone()));
    let editing = tokio::spawn(edits::go_on(settings.seed, files, Instant::now() + settings.duration));
    Arc::clone(&nemesis).run(faults, settings.duration).await;
    eprintln!("nemesis: no more faults; waiting for every end");
    loading.await.context("the clients")?;
    editing.await.context("whoever edits")?.context("editing")?;

    let settled = settle(&database, everything_has_ended).await;
    let give_up = Instant::now() + PATIENCE_WITH_WATCHERS;
    while workload.watchers() > 0 && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    counting.abort();
    let backups = proof::backups(&system, &database).await?;
    eprintln!("nemesis: checking repositories and restoring backups");
    let proofs = match settled {
        Ok(()) => proof::prove(&system, &operator, &projects, &backups).await?,
        // What holds on to everything else holds on to proofs as well.
        Err(error) => {
            eprintln!("nemesis: {error:#}");
            Vec::new()
        }
    };
    let left_on_hosts = proof::left_on_hosts(&system).await?;
    // Nothing is deleted between a look at the rows and one at the stream; what does not leave is seen in both.
    let all_has_left = settle(&database, |open| everything_has_ended(open) && open.leaving == 0).await;

    let changes = database.changes().await?;
    eprintln!("nemesis: reading the stream");
    let kept = read_stream(&operator, &changes).await?;
    let (requests, watched) = workload.tell();
    let left_in_outbox = database.left_in_outbox().await?;
    let (wipes, caps) = (nemesis.wipes(), settings.caps());
    let history = History {
        requests,
        changes,
        kept,
        watched,
        wipes,
        left_in_outbox,
        caps,
        backups,
        proofs,
        left_on_hosts,
    };
    measuring.abort();
    let violations = checker::check(&history);
    summary::print(&settings, &history, &nemesis, &measures, &violations)?;
    if let Err(error) = &all_has_left {
        eprintln!("nemesis: {error:#}");
    }

    drop(nemesis);
    let _ = measuring.await;
    if let Ok(members) = Arc::try_unwrap(members).map_err(drop) {
        for member in members {
            member.stop().await?;
        }
    }
    let all_is_well = violations.is_empty() && all_has_left.is_ok();
    if !all_is_well {
        let logs = system.data_directory().join("logs");
        eprintln!("nemesis: logs were in {}; LONGHAUL_KEEP_TEST_DATA=1 keeps them", logs.display());
    }
    Ok(all_is_well)
}

/// An operator, from there.
async fn connect(system: &TestSystem, url: &str) -> anyhow::Result<Bus> {
    let ops = system.ready().credentials.get("ops").cloned().context("there is an operator")?;
    let settings = ConnectSettings {
        url: url.to_owned(),
        credentials: Credentials::UserPassword { user: ops.user, password: ops.password.into() },
        inbox_prefix: None,
        name: "nemesis".to_owned(),
    };
    Ok(Bus::connect(settings).await?)
}

/// Tells the clients how much is open, and people how it goes.
async fn count(database: Database, workload: Arc<Workload>) {
    let mut told = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // A database that is down says nothing: the clients go on.
        let Ok(open) = database.open().await else { continue };
        workload.open.store(open.active, Ordering::Relaxed);
        workload.open_of_projects.store(open.of_projects, Ordering::Relaxed);
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            eprintln!(
                "nemesis: {} requests; {} operations open, {} of them of projects, {} of them running; outbox {}; {} watchers",
                workload.asked(),
                open.active,
                open.of_projects,
                open.running,
                open.outbox,
                workload.watchers()
            );
        }
    }
}

/// Whether there is nothing more to come to its end, or to be told.
fn everything_has_ended(open: &Open) -> bool {
    open.active == 0 && open.outbox == 0
}

/// Waits until it is as it should be, while anything still happens.
async fn settle(database: &Database, is_settled: impl Fn(&Open) -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let (mut last, mut last_sign) = (None, began);
    loop {
        match database.open().await {
            Ok(open) if is_settled(&open) => return Ok(()),
            Ok(open) => {
                if last.replace(open) != Some(open) {
                    last_sign = Instant::now();
                }
            }
            Err(error) => eprintln!("nemesis: {error:#}"),
        }
        if began.elapsed() > PATIENCE_TO_SETTLE || last_sign.elapsed() > PATIENCE_WITH_SILENCE {
            anyhow::bail!("not everything comes to its end, or is deleted in time: {last:?}");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What the stream keeps of each operation, asked of nats-server itself.
async fn read_stream(operator: &Client, changes: &[Change]) -> anyhow::Result<HashMap<OperationId, Kept>> {
    let scopes: HashMap<OperationId, Scope> =
        changes.iter().map(|change| (change.op_id, change.scope)).collect();
    let stream = operator.bus().operation_stream();
    let reading = futures::stream::iter(scopes).map(|(op_id, scope)| {
        let (stream, subject) = (stream.clone(), OperationSubject { scope, op_id });
        async move {
            let give_up = Instant::now() + PATIENCE_WITH_THE_STREAM;
            loop {
                match read(&stream, subject).await {
                    Ok(kept) => return Ok((op_id, kept)),
                    Err(error) if Instant::now() > give_up => {
                        return Err(error.context(format!("reading {subject}")));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        }
    });
    let all: Vec<anyhow::Result<(OperationId, Kept)>> = reading.buffer_unordered(READERS).collect().await;
    all.into_iter().collect()
}

async fn read(stream: &bus_client::OperationStream, subject: OperationSubject) -> anyhow::Result<Kept> {
    let mut kept = Kept::default();
    // A message without a body is the stream's own marker of a deletion.
    for message in stream.ring(&subject.events()).await?.iter().filter(|message| !message.payload.is_empty())
    {
        kept.events.push(serde_json::from_slice(&message.payload).context("an event does not read")?);
    }
    let state = stream.last(&subject.state()).await?.filter(|message| !message.payload.is_empty());
    if let Some(message) = state {
        kept.state = Some(serde_json::from_slice(&message.payload).context("a summary does not read")?);
    }
    Ok(kept)
}
