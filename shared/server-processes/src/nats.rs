//! nats-server with JetStream in the data directory, on the configuration of `nats-config/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::managed_process::{ManagedProcess, ProcessSpec};
use crate::nats_config::{self, Addresses, Identities, Identity};
use crate::ports::{free_port, free_port_where, port_is_free};
use crate::readiness::wait_until;
use crate::secrets;

/// Long enough to read a large store after a crash.
const PATIENCE_TO_START: Duration = Duration::from_secs(60);
const PATIENCE_TO_RELOAD: Duration = Duration::from_secs(10);
const PATIENCE_TO_STOP: Duration = Duration::from_secs(20);
const PATIENCE_TO_LOG_IN: Duration = Duration::from_secs(2);

/// A running nats-server, listening on 127.0.0.1 only.
pub struct NatsServer {
    process: ManagedProcess,
    addresses: Addresses,
    identities: Identities,
    program: PathBuf,
    data_directory: PathBuf,
    replicas: u8,
}

impl NatsServer {
    /// Starts nats-server on `<data_directory>/nats` with an identity for each of `hosts` (host ids), and waits until one
    /// can log in. Ports (unless taken since), passwords, hosts and messages are those of the last start.
    ///
    /// # Errors
    /// When `replicas` is not 1 (this starts one server, not a cluster), another server runs on the directory, or it does
    /// not start.
    pub async fn start(
        program: &Path,
        data_directory: &Path,
        hosts: &[String],
        replicas: u8,
    ) -> anyhow::Result<Self> {
        if replicas != 1 {
            bail!(
                "{replicas} replicas of the stream need a cluster of servers; this starts one server, for 1 replica"
            );
        }
        let data_directory = std::path::absolute(data_directory)?;
        let directory = data_directory.join("nats");
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let mut identities: Identities = secrets::load_or_create(&data_directory, "nats", Identities::new)?;
        for host in hosts {
            identities.add_host(host)?;
        }
        secrets::store(&data_directory, "nats", &identities)?;
        let addresses = free_addresses(&data_directory, &identities.ops).await?;
        nats_config::write_files(&directory, addresses, &identities)?;
        let spec = ProcessSpec::new("nats-server", program, data_directory.join("logs"))
            .argument("--config")
            .argument(directory.join("server.conf"));
        let process = ManagedProcess::spawn(spec).await?;
        wait_until(&process, PATIENCE_TO_START, || log_in(addresses.client_port, &identities.ops)).await?;
        Ok(Self { process, addresses, identities, program: program.to_owned(), data_directory, replicas })
    }

    /// `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.addresses.client_port)
    }

    /// `http://127.0.0.1:PORT`, where `/healthz`, `/varz` and `/jsz` are.
    pub fn monitoring_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.addresses.monitoring_port)
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.addresses.client_port
    }

    /// Who may log in.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Its process, to look at, signal or kill.
    pub fn process(&self) -> &ManagedProcess {
        &self.process
    }

    /// Adds a host by its id while the server runs, and returns its identity once it can log in. The users of BUS stay
    /// connected; clients of the account APP are disconnected by the server, and connect again.
    pub async fn add_host(&mut self, host_id: &str) -> anyhow::Result<Identity> {
        let identity = self.identities.add_host(host_id)?.clone();
        secrets::store(&self.data_directory, "nats", &self.identities)?;
        self.reload().await?;
        let port = self.addresses.client_port;
        wait_until(&self.process, PATIENCE_TO_RELOAD, || log_in(port, &identity))
            .await
            .with_context(|| format!("adding the host {host_id}"))?;
        Ok(identity)
    }

    /// Writes the configuration again and has the server read it (SIGHUP).
    pub async fn reload(&self) -> anyhow::Result<()> {
        nats_config::write_files(&self.data_directory.join("nats"), self.addresses, &self.identities)?;
        self.process.signal(Signal::HUP)
    }

    /// Stops the server in good order.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.process.stop(PATIENCE_TO_STOP).await.map(drop)
    }

    /// Stops it if it runs, and starts it again on the same port and messages.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        *self = Self::start(&self.program, &self.data_directory, &[], self.replicas).await?;
        Ok(())
    }
}

/// The ports of the last start, or others where they have been taken by a stranger. Two servers on one store would
/// ruin it, so one that knows our password there is an error.
async fn free_addresses(data_directory: &Path, ops: &Identity) -> anyhow::Result<Addresses> {
    let new = || -> anyhow::Result<Addresses> {
        let client_port = free_port()?;
        Ok(Addresses { client_port, monitoring_port: free_port_where(|port| port != client_port)? })
    };
    let addresses: Addresses = secrets::load_or_create(data_directory, "nats-ports", new)?;
    if port_is_free(addresses.client_port) && port_is_free(addresses.monitoring_port) {
        return Ok(addresses);
    }
    if log_in(addresses.client_port, ops).await.is_ok() {
        bail!("another nats-server is running on {}: stop it first", data_directory.display());
    }
    let addresses = new()?;
    secrets::store(data_directory, "nats-ports", &addresses)?;
    Ok(addresses)
}

/// Logs in and out again: proof that the server answers and knows this user.
async fn log_in(port: u16, identity: &Identity) -> anyhow::Result<()> {
    let attempt = async {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
        let options = serde_json::json!({
            "user": identity.user, "pass": identity.password, "verbose": false, "pedantic": false, "lang": "rust", "version": "0",
        });
        stream.write_all(format!("CONNECT {options}\r\nPING\r\n").as_bytes()).await?;
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            match line.trim_end() {
                "PONG" => return Ok(()),
                refusal if refusal.starts_with("-ERR") => bail!("{}: {refusal}", identity.user),
                _ => line.clear(),
            }
        }
        bail!("the server closed the connection of {}", identity.user)
    };
    tokio::time::timeout(PATIENCE_TO_LOG_IN, attempt).await.context("no answer to a log-in")?
}
