use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bus_client::{Bus, ConnectSettings, Credentials};
use domain_model::HostId;
use secrecy::SecretString;
use serde::Deserialize;
use server_processes::{ManagedProcess, ProcessSpec, Signal, wait_until};
use tokio::sync::{Semaphore, SemaphorePermit};
use volumes::HostRoot;

use crate::janitor::Janitor;
use crate::{Client, Metrics, ReadyFile, logs, metrics, mounts, wait_for};

const PATIENCE_TO_START: Duration = Duration::from_secs(180);
const PATIENCE_TO_STOP: Duration = Duration::from_secs(60);
/// Systems at the same time: each is ten processes.
static ROOM: Semaphore = Semaphore::const_new(4);
const PATIENCE_TO_RESTART: Duration = Duration::from_secs(90);
/// The directory of the object store.
const OBJECT_STORE: &str = "object-store";

/// Where backups go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectStoreKind {
    /// A directory.
    Local,
    /// A real S3 server.
    S3,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct SystemOptions {
    /// How many hosts.
    pub hosts: u16,
    /// Where backups go.
    pub object_store: ObjectStoreKind,
    /// Whether the hosts' directories are on btrfs; see [`btrfs_is_available`](crate::btrfs_is_available).
    pub btrfs: bool,
    /// Where the object store is a directory: how many bytes it has room for, if it is a file system of its own; see
    /// [`may_mount`](crate::may_mount).
    pub object_store_bytes: Option<u64>,
    /// Copies of the stream: 1, or 3 on a cluster of three nats-servers.
    pub nats_replicas: u8,
    /// Whether there are kinds for tests.
    pub test_kinds: bool,
    /// Whether the object store can be made to fail; see [`TestSystem::set_faults`].
    pub faults: bool,
    /// More of the environment.
    pub environment: Vec<(String, String)>,
}

impl Default for SystemOptions {
    /// One host, a plain directory, a local object store.
    fn default() -> Self {
        Self {
            hosts: 1,
            object_store: ObjectStoreKind::Local,
            btrfs: false,
            object_store_bytes: None,
            nats_replicas: 1,
            test_kinds: false,
            faults: false,
            environment: Vec::new(),
        }
    }
}

/// A process that a test may kill. All but the object store of the kind `Local` are children of the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The postmaster.
    Postgres,
    /// nats-server.
    Nats,
    /// The nats-server of this number in a cluster, from 1.
    NatsMember(usize),
    /// The S3 server.
    S3,
    /// The registry.
    Registry,
    /// The scheduler.
    Scheduler,
    /// The host-backup of the host of this number.
    HostBackup(usize),
    /// The copy-applier of the host of this number.
    CopyApplier(usize),
}

/// The identity of a host, or of a service in the hub, which nobody else should have.
#[derive(Clone, Deserialize)]
pub struct HostIdentity {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
    /// What its inboxes start with.
    pub inbox_prefix: String,
}

/// A running system. Dropping it stops it and removes its files.
pub struct TestSystem {
    options: SystemOptions,
    directory: PathBuf,
    launcher: Option<ManagedProcess>,
    janitor: Option<Janitor>,
    _room: SemaphorePermit<'static>,
}

impl TestSystem {
    /// Starts a system, and returns once all of it answers.
    ///
    /// # Errors
    /// Where the programs are not built, or something does not start; the launcher's log is in the error.
    pub async fn start(options: SystemOptions) -> anyhow::Result<Self> {
        let room = ROOM.acquire().await?;
        let directory = tempfile::Builder::new().prefix("longhaul-test-").tempdir()?.keep();
        // Postgres does not run as root, and its user has to get to the files beneath.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let hosts = directory.join("data/hosts");
        let objects = directory.join("data").join(OBJECT_STORE);
        let janitor = Some(Janitor::hire(&directory, &[&hosts, &objects]).context("hiring the janitor")?);
        let mut system = Self { options, directory, launcher: None, janitor, _room: room };
        if system.options.btrfs {
            mounts::mount_btrfs(&system.directory.join("btrfs.image"), &hosts)?;
        }
        if let Some(bytes) = system.options.object_store_bytes {
            mounts::mount_in_memory(&objects, bytes, false)?;
        }
        system.launch().await?;
        Ok(system)
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut spec =
            ProcessSpec::new("longhaul-up", program("longhaul")?, self.data_directory().join("logs"))
                .arguments(["up", "--hosts", &self.options.hosts.to_string(), "--data-dir"])
                .argument(self.data_directory())
                .argument("--ready-file")
                .argument(self.ready_file())
                .arguments([
                    "--object-store",
                    match self.options.object_store {
                        ObjectStoreKind::Local => "local",
                        ObjectStoreKind::S3 => "s3",
                    },
                ])
                .arguments(["--nats-replicas", &self.options.nats_replicas.to_string()])
                // The developer's own settings are none of the test's.
                .without_environment("LONGHAUL_DATA")
                .without_environment("LONGHAUL_TEST_KINDS")
                .death_signal(Signal::TERM);
        if self.options.test_kinds {
            spec = spec.environment("LONGHAUL_TEST_KINDS", "1");
        }
        if self.options.faults {
            spec = spec.environment("LONGHAUL_OBJECT_STORE_FAULTS", self.faults_file());
        }
        for (name, value) in &self.options.environment {
            spec = spec.environment(name, value);
        }
        match fs::remove_file(self.ready_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let launcher = ManagedProcess::spawn(spec).await?;
        fs::write(self.directory.join("launcher.pid"), launcher.pid().to_string())?;
        let started =
            wait_until(&launcher, PATIENCE_TO_START, || async { self.read_ready().map(drop) }).await;
        self.launcher = Some(launcher);
        if let Err(error) = started {
            logs::print(&self.data_directory());
            return Err(error);
        }
        Ok(())
    }

    /// Where the system keeps everything.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A path for a test's own files, which goes with the system.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn ready_file(&self) -> PathBuf {
        self.directory.join("ready.json")
    }

    fn faults_file(&self) -> PathBuf {
        self.directory.join("faults.json")
    }

    fn read_ready(&self) -> anyhow::Result<ReadyFile> {
        let json = fs::read(self.ready_file()).context("there is no ready file")?;
        serde_json::from_slice(&json).context("the ready file does not read")
    }

    /// How to reach the system now; process ids change when something is started again.
    ///
    /// # Panics
    /// Where it is not running.
    pub fn ready(&self) -> ReadyFile {
        match self.read_ready() {
            Ok(ready) => ready,
            Err(error) => panic!("the system is not running: {error:#}"),
        }
    }

    /// The whole answer of a service, as the ready file calls it, where it tells what it measures, to a GET of this path.
    ///
    /// # Errors
    /// Where there is no such service, or it does not answer.
    pub async fn http_get(&self, service: &str, path: &str) -> anyhow::Result<String> {
        let url = self.ready().metrics.get(service).cloned();
        let url = url.with_context(|| format!("{service} is no service that can be measured"))?;
        let address = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics"));
        metrics::get(address.with_context(|| format!("{url} is no address of metrics"))?, path).await
    }

    /// What a service counts and measures.
    ///
    /// # Errors
    /// As [`Self::http_get`].
    pub async fn metrics(&self, service: &str) -> anyhow::Result<Metrics> {
        self.http_get(service, "/metrics").await.map(Metrics)
    }

    /// The id of a host.
    pub fn host(&self, index: usize) -> HostId {
        self.ready().hosts[index].id
    }

    /// Where the files of a project are on a host.
    pub fn project_files(&self, host: usize, project: &str) -> PathBuf {
        self.data_directory().join(format!("hosts/{host}/projects/{project}"))
    }

    /// Where the persist store of a project is on a host.
    pub fn persist_store(&self, host: usize, project: &str) -> PathBuf {
        self.data_directory().join(format!("hosts/{host}/persist/{project}"))
    }

    /// Makes the two trees of a project on a host: subvolumes on btrfs, else directories.
    ///
    /// # Panics
    /// Where they cannot be made.
    pub fn make_volume(&self, host: usize, project: &str) {
        let root = HostRoot::open(&self.ready().hosts[host].root).expect("open the host's directory");
        let project = project.parse().expect("the id of a project");
        root.ensure_volume(project).expect("make the trees of a project");
    }

    /// A connection as an operator, of the calling test's runtime.
    ///
    /// # Panics
    /// Where nats-server refuses it.
    pub async fn operator(&self) -> Client {
        let ops = self.ready().credentials["ops"].clone();
        self.connect(Credentials::UserPassword { user: ops.user, password: ops.password.into() }, "_INBOX")
            .await
    }

    /// A connection with these credentials.
    ///
    /// # Panics
    /// Where nats-server refuses them.
    pub async fn connect(&self, credentials: Credentials, inbox_prefix: &str) -> Client {
        match self.try_connect(credentials, inbox_prefix).await {
            Ok(client) => client,
            Err(error) => panic!("connecting to nats-server: {error}"),
        }
    }

    /// A connection of a host or a service in the hub.
    ///
    /// # Panics
    /// Where nats-server refuses it.
    pub async fn connect_as(&self, identity: HostIdentity) -> Client {
        let HostIdentity { user, password, inbox_prefix } = identity;
        let credentials = Credentials::UserPassword { user, password: password.into() };
        self.connect(credentials, &inbox_prefix).await
    }

    /// A connection with these credentials, or the refusal.
    pub async fn try_connect(
        &self,
        credentials: Credentials,
        inbox_prefix: &str,
    ) -> Result<Client, bus_client::BusError> {
        let settings = ConnectSettings {
            url: self.ready().nats_urls.join(","),
            credentials,
            inbox_prefix: Some(inbox_prefix.to_owned()),
            name: "a test".to_owned(),
        };
        Bus::connect(settings).await.map(Client::new)
    }

    /// A connection with a token of an account.
    pub async fn token_holder(&self, account: &str, token: &str) -> Result<Client, bus_client::BusError> {
        self.try_connect(
            Credentials::Token(SecretString::from(token.to_owned())),
            &format!("_INBOX_{account}"),
        )
        .await
    }

    /// The identity of a host, as its service has it.
    ///
    /// # Errors
    /// Where the secrets of the installation do not read.
    pub fn host_identity(&self, index: usize) -> anyhow::Result<HostIdentity> {
        Ok(serde_json::from_value(self.identities()?["hosts"][self.host(index).to_string()].clone())?)
    }

    /// The identity of a service in the hub: `scheduler`, or `hub_writer`, who writes the stream.
    ///
    /// # Errors
    /// Where the secrets of the installation do not read.
    pub fn hub_identity(&self, name: &str) -> anyhow::Result<HostIdentity> {
        Ok(serde_json::from_value(self.identities()?[name].clone())?)
    }

    fn identities(&self) -> anyhow::Result<serde_json::Value> {
        let secrets = fs::read(self.data_directory().join("secrets/nats.json"))?;
        Ok(serde_json::from_slice(&secrets)?)
    }

    /// The program of one of our services, or the command line.
    ///
    /// # Errors
    /// Where it is not built.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        program(name)
    }

    /// Makes the object store fail, from now on, as the plan says (see `object_storage::FaultPlan`).
    ///
    /// # Panics
    /// Where the system was not started with `faults`.
    pub fn set_faults(&self, plan: &serde_json::Value) {
        assert!(self.options.faults, "start the system with `faults`");
        let new = self.directory.join("faults.new");
        fs::write(&new, plan.to_string())
            .and_then(|()| fs::rename(&new, self.faults_file()))
            .expect("write the plan");
    }

    /// Makes the object store work again.
    pub fn clear_faults(&self) {
        self.set_faults(&serde_json::json!({}));
    }

    /// Gives the object store room for so many bytes.
    ///
    /// # Panics
    /// Where the system was not started with `object_store_bytes`.
    pub fn resize_object_store(&self, bytes: u64) {
        assert!(self.options.object_store_bytes.is_some(), "start the system with `object_store_bytes`");
        mounts::mount_in_memory(&self.data_directory().join(OBJECT_STORE), bytes, true)
            .expect("resize the file system");
    }

    /// The process id of a server now.
    ///
    /// # Panics
    /// Where there is none.
    pub fn pid(&self, server: Server) -> u32 {
        match self.running(server) {
            Some(pid) => pid,
            None => panic!("{server:?} is not running"),
        }
    }

    fn running(&self, server: Server) -> Option<u32> {
        let name = match server {
            Server::Postgres => "postgres",
            Server::Nats => "nats-server",
            Server::S3 => "weed",
            Server::Registry => "registry",
            Server::Scheduler => "scheduler",
            Server::NatsMember(number) => {
                let configuration = self.data_directory().join(format!("nats-{number}/server.conf"));
                return children_of(self.launcher.as_ref()?.pid()).into_iter().map(|(pid, _)| pid).find(
                    |pid| {
                        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                            line.split('\0').any(|argument| Path::new(argument) == configuration)
                        })
                    },
                );
            }
            Server::HostBackup(index) => return self.ready().hosts.get(index).map(|host| host.pid),
            Server::CopyApplier(index) => {
                return self.ready().services.get("copy-applier")?.get(index).copied();
            }
        };
        children_of(self.launcher.as_ref()?.pid())
            .into_iter()
            .find(|(_, found)| found == name)
            .map(|(pid, _)| pid)
    }

    /// Kills a server as a crash does (SIGKILL), and returns the process id that it had.
    pub fn kill_nine(&self, server: Server) -> u32 {
        self.signal(server, Signal::KILL)
    }

    /// Sends a signal to a server, and returns its process id.
    ///
    /// # Panics
    /// Where it is not running.
    pub fn signal(&self, server: Server, signal: Signal) -> u32 {
        let pid = self.pid(server);
        let known = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let known = known.expect("process ids are small and positive");
        rustix::process::kill_process(known, signal).expect("signal a process of our own launcher");
        pid
    }

    /// Keeps what is killed from being started again, until [`Self::allow_restarts`].
    ///
    /// # Panics
    /// Where the system is not running.
    pub fn hold_restarts(&self) {
        self.launcher
            .as_ref()
            .expect("the system is running")
            .signal(Signal::STOP)
            .expect("stop the launcher");
    }

    /// Has everything that was killed meanwhile be started again.
    ///
    /// # Panics
    /// Where the system is not running.
    pub fn allow_restarts(&self) {
        self.launcher
            .as_ref()
            .expect("the system is running")
            .signal(Signal::CONT)
            .expect("continue the launcher");
    }

    /// Waits until a server that was killed, as the process `old`, has come to its end.
    pub async fn gone(&self, server: Server, old: u32) {
        wait_for(&format!("{server:?} to end"), PATIENCE_TO_RESTART, || async {
            if self.running(server) == Some(old) { Err(format!("process {old} is there")) } else { Ok(()) }
        })
        .await;
    }

    /// Waits until a server that was killed, as the process `old`, is running again and says so.
    pub async fn restarted(&self, server: Server, old: u32) {
        wait_for(&format!("{server:?} to be started again"), PATIENCE_TO_RESTART, || async {
            match self.running(server) {
                Some(pid) if pid != old => {}
                other => return Err(format!("its process: {other:?}")),
            }
            let noted = match server {
                Server::Registry => self.ready().services["registry"].clone(),
                _ => return Ok(()),
            };
            if noted.contains(&old) { Err("the ready file tells of the old one".to_owned()) } else { Ok(()) }
        })
        .await;
    }

    /// Stops everything in good order (SIGTERM to the launcher).
    ///
    /// # Errors
    /// Where it does not end, or not with success.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(launcher) = self.launcher.take() else { return Ok(()) };
        let status = launcher.stop(PATIENCE_TO_STOP).await?;
        if !status.success() {
            bail!("longhaul up ended with {status}: {}", launcher.log_tail());
        }
        Ok(())
    }

    /// Starts a stopped system again, on the same data.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.launch().await
    }
}

impl Drop for TestSystem {
    fn drop(&mut self) {
        if std::thread::panicking() {
            logs::print(&self.data_directory());
        }
        if let Some(launcher) = self.launcher.take() {
            let _ = launcher.signal(Signal::TERM);
            // A test may have held it.
            let _ = launcher.signal(Signal::CONT);
            let give_up = Instant::now() + PATIENCE_TO_STOP;
            while launcher.is_running() && Instant::now() < give_up {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let Some(janitor) = self.janitor.take() else { return };
        if std::env::var_os("LONGHAUL_KEEP_TEST_DATA").is_some() {
            eprintln!("kept: {}", self.directory.display());
            janitor.dismiss();
        } else {
            janitor.clean_up();
        }
    }
}

/// A program that cargo has built beside this test.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let directories = own.ancestors().skip(1).take(2);
    let found = directories.map(|directory| directory.join(name)).find(|program| program.is_file());
    found.with_context(|| {
        format!(
            "there is no program {name} beside {}: run tests through ./dev test, which builds it",
            own.display()
        )
    })
}

/// The process ids and names of the children of a process.
fn children_of(parent: u32) -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|pid| {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        // `pid (name) state parent …`: a name may hold anything, a parenthesis included.
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1;
        let mut fields = after.split_whitespace();
        let alive = !matches!(fields.next()?, "Z" | "X");
        let is_child = fields.next()?.parse::<u32>().ok()? == parent;
        (alive && is_child).then(|| (pid, name.to_owned()))
    })
    .collect()
}
