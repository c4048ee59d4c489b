//! The whole system on one machine: servers and services as child processes, started in order, watched, and stopped in
//! order.
//!
//! What must not happen: two launchers on one data directory (a lock), a half-started system that stays behind (what was
//! started is stopped when the rest fails), another identity or key at the next start (the installation is kept), a ready
//! file that tells of what is not there (it is written when all answer, again whenever a process was replaced, and removed
//! at the end).

mod board;
mod installation;
mod nats_contexts;
mod private_file;
mod ready_file;
mod service;
mod settings_files;
mod supervision;

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bus_client::{ConnectSettings, Credentials};
use bus_messages::{CreateHost, HostReply, Nothing};
use domain_model::{HostId, Scope};
use secrecy::SecretString;
use serde_json::Value;
use server_processes::{NatsServer, ObjectStoreServer, PostgresServer};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::connection;
use board::Board;
pub(crate) use installation::ObjectStoreKind;
use installation::{Installation, ObjectStore};
pub(crate) use ready_file::ReadyFile;
use ready_file::{ReadyCredentials, ReadyHost, ReadyIdentity, ReadyObjectStore};
use service::Service;
use settings_files::Settings;
use supervision::{Ending, Supervised, supervise};

/// How long the registry may take until it answers requests, once it says that it is healthy.
const PATIENCE_FOR_THE_API: Duration = Duration::from_secs(30);
const REGION: &str = "weur";

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Everything is kept in it. Absolute.
    pub(crate) data_directory: PathBuf,
    /// At least so many hosts.
    pub(crate) hosts: usize,
    /// Another place for the ready file than `ready.json` in the data directory.
    pub(crate) ready_file: Option<PathBuf>,
    /// Where backups go; what it was at the first start where this is `None`.
    pub(crate) object_store: Option<ObjectStoreKind>,
    /// Copies of the stream: with more than one, there is a cluster of nats-servers.
    pub(crate) replicas: Replicas,
}

/// How many copies of the stream there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Replicas {
    /// One, on one server.
    #[default]
    One,
    /// One on each of three servers.
    Three,
}

/// A running system. It is to be stopped; dropping it kills its processes.
pub(crate) struct System {
    board: Arc<Board>,
    ending: Ending,
    /// In the order in which they were started.
    stages: Vec<Stage>,
    api: Option<Api>,
    _lock: File,
}

/// Processes that may stop at the same moment.
struct Stage {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl System {
    /// Starts everything and waits until all answer. What was started is stopped again when something fails or
    /// `interrupt` is cancelled.
    pub(crate) async fn start(options: Options, interrupt: &CancellationToken) -> anyhow::Result<Self> {
        let directory = &options.data_directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let lock = lock(directory)?;
        let installation = Installation::load_or_create(directory, options.hosts, options.object_store)?;
        let board = Board::new(directory, options.ready_file.clone())?;
        let ending = Ending::default();
        let mut system = Self { board: Arc::new(board), ending, stages: Vec::new(), api: None, _lock: lock };
        let started = tokio::select! {
            started = system.start_all(directory, &installation, options.replicas) => started,
            () = interrupt.cancelled() => Err(anyhow!("interrupted")),
        };
        if let Err(error) = started {
            system.stop().await;
            return Err(error);
        }
        Ok(system)
    }

    /// What the ready file says at this moment.
    pub(crate) fn ready(&self) -> anyhow::Result<ReadyFile> {
        self.board.ready().context("the system has not started")
    }

    /// The API, as an operator.
    pub(crate) fn api(&self) -> anyhow::Result<&Api> {
        self.api.as_ref().context("the system has not started")
    }

    /// Ends when the system cannot go on, with the reason.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        self.ending.failed().await
    }

    /// Cancelled, what is being stopped in good order is stopped at once.
    pub(crate) fn hurry(&self) -> CancellationToken {
        self.ending.hurry.clone()
    }

    /// Stops everything: the workers, the registry, nats-server, Postgres and the object store, one after the other.
    pub(crate) async fn stop(mut self) {
        self.ending.stopping.cancel();
        self.board.withdraw();
        if let Some(api) = self.api.take() {
            api.bus().drain().await;
        }
        while let Some(stage) = self.stages.pop() {
            stage.stop.cancel();
            for task in stage.tasks {
                if let Err(error) = task.await {
                    tracing::error!("a task of the launcher ended badly: {error}");
                }
            }
        }
    }

    async fn start_all(
        &mut self,
        directory: &Path,
        installation: &Installation,
        replicas: Replicas,
    ) -> anyhow::Result<()> {
        let (postgres, object_store) = start_stores(directory, installation).await?;
        let host_ids: Vec<String> = installation.hosts.iter().map(HostId::to_string).collect();
        let database_url = postgres.database_url();
        let object_store_address = address_of(directory, installation, object_store.as_ref());
        let mut stores = vec![Supervised::Postgres(Box::new(postgres))];
        stores.extend(object_store.map(Box::new).map(Supervised::ObjectStore));
        self.watch(stores);

        let program = server_processes::nats_server_program()?;
        let nats = match replicas {
            Replicas::One => vec![NatsServer::start(&program, directory, &host_ids).await?],
            Replicas::Three => NatsServer::start_cluster(&program, directory, &host_ids).await?,
        };
        let nats_urls: Vec<String> = nats.iter().map(NatsServer::url).collect();
        // Clients take several with commas between them.
        let nats_url = nats_urls.join(",");
        let identities = nats[0].identities().clone();
        self.watch(nats.into_iter().map(Box::new).map(Supervised::Nats).collect());

        let settings = Settings {
            data_directory: directory,
            installation,
            identities: &identities,
            nats_url: &nats_url,
            replicas,
            database_url: &database_url,
            object_store: &object_store_address,
        };
        let registry = Service::start("registry", &settings.registry(), directory).await?;
        let registry_started = registry.summary();
        self.watch(vec![Supervised::Service(Box::new(registry))]);
        let api = self.connect(&nats_url, &identities.ops).await?;
        for (index, id) in installation.hosts.iter().enumerate() {
            let create =
                CreateHost { id: Some(*id), name: format!("host-{index}"), region: Some(REGION.to_owned()) };
            let made: Result<HostReply, _> = api.call(Scope::Hub, "host", "create", &create).await;
            made.with_context(|| format!("making host-{index} known"))?;
        }
        self.api = Some(api);

        let workers = start_workers(directory, installation, &settings).await?;
        let summaries: Vec<_> =
            std::iter::once(registry_started).chain(workers.iter().map(Service::summary)).collect();
        let contexts = nats_contexts::write(directory, &nats_url, &identities.ops)?;
        let identity = |identity: &server_processes::Identity| ReadyIdentity {
            user: identity.user.clone(),
            password: identity.password.clone(),
        };
        let mut ready = ReadyFile {
            nats_url: nats_urls[0].clone(),
            nats_urls,
            database_url,
            object_store: object_store_address,
            credentials: ReadyCredentials { ops: identity(&identities.ops), hub: identity(&identities.hub) },
            hosts: hosts_of(directory, installation),
            services: Default::default(),
            metrics: Default::default(),
            pid: std::process::id(),
            data_directory: directory.to_owned(),
            nats_context_dir: contexts,
        };
        summaries.iter().for_each(|summary| ready.note(summary));
        self.board.publish(ready)?;
        self.watch(workers.into_iter().map(Box::new).map(Supervised::Service).collect());
        Ok(())
    }

    /// Looks after the processes of one stage from now on.
    fn watch(&mut self, processes: Vec<Supervised>) {
        let stop = CancellationToken::new();
        let task = |process| {
            tokio::spawn(supervise(process, Arc::clone(&self.board), stop.clone(), self.ending.clone()))
        };
        let tasks = processes.into_iter().map(task).collect();
        self.stages.push(Stage { stop, tasks });
    }

    /// Connects as an operator, and waits until the registry answers.
    async fn connect(&self, url: &str, ops: &server_processes::Identity) -> anyhow::Result<Api> {
        let settings = ConnectSettings {
            url: url.to_owned(),
            credentials: Credentials::UserPassword {
                user: ops.user.clone(),
                password: SecretString::from(ops.password.clone()),
            },
            inbox_prefix: Some(ops.inbox_prefix.clone()),
            name: "longhaul up".to_owned(),
        };
        let api = Api::new(connection::connect(settings).await?);
        let give_up = tokio::time::Instant::now() + PATIENCE_FOR_THE_API;
        loop {
            match api.call::<Value>(Scope::Hub, "region", "list", &Nothing {}).await {
                Ok(_) => return Ok(api),
                Err(error) if !error.is_retryable() || tokio::time::Instant::now() >= give_up => {
                    return Err(error).context("the registry does not answer");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn start_stores(
    directory: &Path,
    installation: &Installation,
) -> anyhow::Result<(PostgresServer, Option<ObjectStoreServer>)> {
    let postgres =
        async { PostgresServer::start(&server_processes::postgres_bin_directory()?, directory).await };
    let object_store = async {
        match &installation.object_store {
            ObjectStore::Local => {
                let root = directory.join("object-store");
                fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
                Ok(None)
            }
            ObjectStore::S3 { access_key_id, secret_access_key } => {
                let program = server_processes::object_store_program()?;
                ObjectStoreServer::start(&program, directory, access_key_id, secret_access_key)
                    .await
                    .map(Some)
            }
        }
    };
    // Not `try_join`: what has started is to be stopped in good order, not dropped, when the other fails.
    match tokio::join!(postgres, object_store) {
        (Ok(postgres), Ok(object_store)) => Ok((postgres, object_store)),
        (Err(error), Ok(Some(object_store))) => {
            object_store.stop().await?;
            Err(error)
        }
        (Ok(postgres), Err(error)) => {
            postgres.stop().await?;
            Err(error)
        }
        (Err(error), _) => Err(error),
    }
}

/// The scheduler and the services of each host, started at the same moment.
async fn start_workers(
    directory: &Path,
    installation: &Installation,
    settings: &Settings<'_>,
) -> anyhow::Result<Vec<Service>> {
    let mut texts = vec![("scheduler".to_owned(), settings.scheduler())];
    for (index, id) in installation.hosts.iter().enumerate() {
        let root = host_root(directory, index);
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        texts.push((format!("host-backup-{index}"), settings.on_host("host-backup", index, id)?));
        texts.push((format!("copy-applier-{index}"), settings.on_host("copy-applier", index, id)?));
    }
    let starting = texts.iter().map(|(name, text)| Service::start(name, text, directory));
    let mut workers = Vec::new();
    let mut failure = None;
    for started in futures::future::join_all(starting).await {
        match started {
            Ok(worker) => workers.push(worker),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        None => Ok(workers),
        Some(error) => {
            let no_hurry = CancellationToken::new();
            futures::future::join_all(workers.iter().map(|worker| worker.stop(&no_hurry))).await;
            Err(error)
        }
    }
}

fn address_of(
    directory: &Path,
    installation: &Installation,
    server: Option<&ObjectStoreServer>,
) -> ReadyObjectStore {
    match (&installation.object_store, server) {
        (ObjectStore::S3 { access_key_id, secret_access_key }, Some(server)) => ReadyObjectStore::S3 {
            endpoint: server.endpoint(),
            access_key_id: access_key_id.clone(),
            secret_access_key: secret_access_key.clone(),
        },
        _ => ReadyObjectStore::Local { root: directory.join("object-store") },
    }
}

fn hosts_of(directory: &Path, installation: &Installation) -> Vec<ReadyHost> {
    let host =
        |(index, id): (usize, &HostId)| ReadyHost { id: *id, root: host_root(directory, index), pid: 0 };
    installation.hosts.iter().enumerate().map(host).collect()
}

/// Where the files of a host's projects are.
pub(crate) fn host_root(data_directory: &Path, index: usize) -> PathBuf {
    data_directory.join("hosts").join(index.to_string())
}

/// Holds the data directory for as long as the file is open.
fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => bail!(
            "another `longhaul up` is running on {}: stop it first, or give another --data-dir",
            directory.display()
        ),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    #[test]
    fn a_data_directory_is_held_by_one_launcher_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        let refused = lock(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("another `longhaul up`"), "{refused}");
        drop(held);
        lock(directory.path()).unwrap();
    }
}
