//! Postgres on a cluster of its own in the data directory: never as root, never without a password.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::managed_process::{ManagedProcess, ProcessSpec};
use crate::ports::{free_port, port_is_free};
use crate::readiness::wait_until;
use crate::secrets;
use crate::unprivileged::UnprivilegedUser;

/// Making a cluster syncs every file of it to the disk.
const PATIENCE_TO_CREATE: Duration = Duration::from_secs(180);
/// After a crash the start includes the recovery.
const PATIENCE_TO_START: Duration = Duration::from_secs(120);
const PATIENCE_TO_STOP: Duration = Duration::from_secs(30);
/// A postmaster whose launcher was killed has been told to quit, and may still be at it.
const PATIENCE_FOR_PREDECESSOR: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Credentials {
    port: u16,
    password: String,
    superuser_password: String,
}

/// A running Postgres with a role and a database `longhaul`, listening on 127.0.0.1 only.
pub struct PostgresServer {
    process: ManagedProcess,
    credentials: Credentials,
    bin_directory: PathBuf,
    data_directory: PathBuf,
}

impl PostgresServer {
    /// Starts Postgres on `<data_directory>/postgres`, which is created at the first start, and waits until it accepts
    /// connections. The port and the passwords are those of the last start, unless the port has been taken since.
    ///
    /// As root, it runs as the user `postgres` (or `nobody`), to whom `data_directory` is opened for passing.
    ///
    /// # Errors
    /// When the cluster cannot be made, the user cannot get to it, another Postgres runs on it, or it does not start.
    pub async fn start(bin_directory: &Path, data_directory: &Path) -> anyhow::Result<Self> {
        let data_directory = std::path::absolute(data_directory)?;
        let user = UnprivilegedUser::needed()?;
        let new = || {
            Ok(Credentials {
                port: free_port()?,
                password: secrets::random_password(),
                superuser_password: secrets::random_password(),
            })
        };
        fs::create_dir_all(&data_directory)
            .with_context(|| format!("creating {}", data_directory.display()))?;
        let mut credentials: Credentials = secrets::load_or_create(&data_directory, "postgres", new)?;
        let cluster = data_directory.join("postgres");
        if let Some(user) = &user {
            user.ensure_reach(&cluster, Some(&data_directory))?;
            user.ensure_reach(&bin_directory.join("postgres"), None)?;
        }
        if !cluster.exists() {
            create_cluster(bin_directory, &data_directory, user.as_ref(), &credentials).await?;
        }
        wait_for_predecessor(&cluster).await?;
        if !port_is_free(credentials.port) {
            credentials.port = free_port()?;
            secrets::store(&data_directory, "postgres", &credentials)?;
        }
        let process = start_postmaster(bin_directory, &data_directory, user, credentials.port).await?;
        Ok(Self { process, credentials, bin_directory: bin_directory.to_owned(), data_directory })
    }

    /// `postgres://longhaul:PASSWORD@127.0.0.1:PORT/longhaul`: the role that owns that database, and nothing else.
    pub fn database_url(&self) -> String {
        format!(
            "postgres://longhaul:{}@127.0.0.1:{}/longhaul",
            self.credentials.password, self.credentials.port
        )
    }

    /// The same for the superuser `postgres` and any database, for tests that create databases of their own.
    pub fn superuser_url(&self, database: &str) -> String {
        let Credentials { superuser_password, port, .. } = &self.credentials;
        format!("postgres://postgres:{superuser_password}@127.0.0.1:{port}/{database}")
    }

    /// The port of 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.credentials.port
    }

    /// Its process, to look at, signal or kill.
    pub fn process(&self) -> &ManagedProcess {
        &self.process
    }

    /// Ends every session and stops (a "fast shutdown").
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.process.stop(PATIENCE_TO_STOP).await.map(drop)
    }

    /// Stops it if it runs, and starts it again on the same port and data.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        *self = Self::start(&self.bin_directory, &self.data_directory).await?;
        Ok(())
    }
}

/// Makes the cluster beside its place and renames it there, so that an interrupted start leaves none that is half made.
async fn create_cluster(
    bin_directory: &Path,
    data_directory: &Path,
    user: Option<&UnprivilegedUser>,
    credentials: &Credentials,
) -> anyhow::Result<()> {
    let unfinished = data_directory.join("postgres.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
    }
    let owned_directory = |path: &Path| -> anyhow::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        if let Some(user) = user {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    };
    owned_directory(&unfinished).with_context(|| format!("creating {}", unfinished.display()))?;
    let task = |name: &str| {
        ProcessSpec::new(
            name,
            bin_directory.join(if name == "initdb" { "initdb" } else { "postgres" }),
            data_directory.join("logs"),
        )
        .user(user.cloned())
        .current_directory("/")
        .environment("LC_ALL", "C")
    };
    let password_file = data_directory.join("postgres.new-password");
    secrets::write_private(&password_file, credentials.superuser_password.as_bytes())?;
    if let Some(user) = user {
        std::os::unix::fs::chown(&password_file, Some(user.uid), Some(user.gid))?;
    }
    let initdb = task("initdb")
        .argument("--pgdata")
        .argument(&unfinished)
        .arguments(["--username=postgres", "--encoding=UTF8", "--no-locale", "--data-checksums"])
        .arguments(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"])
        .argument("--pwfile")
        .argument(&password_file);
    let created = ManagedProcess::run(initdb, PATIENCE_TO_CREATE).await;
    fs::remove_file(&password_file).with_context(|| format!("removing {}", password_file.display()))?;
    created.context("creating the Postgres cluster")?;
    // Single-user mode: the role is there before anybody can connect, and no client program is needed.
    let statements = format!(
        "CREATE ROLE longhaul LOGIN PASSWORD '{}';\nCREATE DATABASE longhaul OWNER longhaul;\n",
        credentials.password
    );
    let first_statements = task("postgres-first-statements")
        .arguments(["--single", "-c", "exit_on_error=on", "-D"])
        .argument(&unfinished)
        .argument("postgres")
        .standard_input(statements);
    ManagedProcess::run(first_statements, PATIENCE_TO_CREATE)
        .await
        .context("creating the role and the database")?;
    let cluster = data_directory.join("postgres");
    fs::rename(&unfinished, &cluster).with_context(|| format!("moving the cluster to {}", cluster.display()))
}

async fn start_postmaster(
    bin_directory: &Path,
    data_directory: &Path,
    user: Option<UnprivilegedUser>,
    port: u16,
) -> anyhow::Result<ManagedProcess> {
    let cluster = data_directory.join("postgres");
    let spec = ProcessSpec::new("postgres", bin_directory.join("postgres"), data_directory.join("logs"))
        .user(user)
        .current_directory("/")
        .argument("-D")
        .argument(&cluster)
        .arguments(["-p".to_owned(), port.to_string()])
        .arguments(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .arguments(["-c", "shared_buffers=128MB", "-c", "max_connections=100", "-c", "fsync=on"])
        .arguments(["-c", "logging_collector=off", "-c", "log_line_prefix=%m [%p] "])
        .stop_signal(Signal::INT)
        // An immediate shutdown: the backends end with it, and the next start recovers from the write-ahead log.
        .death_signal(Signal::QUIT);
    let process = ManagedProcess::spawn(spec).await?;
    let pid = process.pid();
    wait_until(&process, PATIENCE_TO_START, || async {
        // The postmaster keeps its state on line 8 of this file.
        let lock = fs::read_to_string(cluster.join("postmaster.pid"))?;
        let mut lines = lock.lines();
        let owner = lines.next().and_then(|line| line.trim().parse().ok());
        let state = lines.nth(6).map(str::trim);
        if owner != Some(pid) || state != Some("ready") {
            bail!("its state is {}", state.unwrap_or("unknown"));
        }
        Ok(())
    })
    .await?;
    Ok(process)
}

async fn wait_for_predecessor(cluster: &Path) -> anyhow::Result<()> {
    let give_up = tokio::time::Instant::now() + PATIENCE_FOR_PREDECESSOR;
    while let Some(pid) = running_postmaster(cluster) {
        if tokio::time::Instant::now() >= give_up {
            bail!("another Postgres (process {pid}) is running on {}: stop it first", cluster.display());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The process named in the cluster's lock file, if it is alive and a Postgres: its id may belong to another by now.
fn running_postmaster(cluster: &Path) -> Option<u32> {
    let lock = fs::read_to_string(cluster.join("postmaster.pid")).ok()?;
    let pid: u32 = lock.lines().next()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == "postgres").then_some(pid)
}
