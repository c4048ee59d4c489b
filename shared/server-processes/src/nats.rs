//! nats-server with JetStream in the data directory, on the configuration of `nats-config/`.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::managed_process::{ManagedProcess, ProcessSpec};
use crate::nats_config::{self, Addresses, Identities, Identity, Membership};
use crate::ports::{free_port, free_port_where, port_is_free};
use crate::readiness::{healthy, wait_until};
use crate::secrets;

/// How much the heap of nats-server may grow, in percent of what is in use, before its collector runs. Each collection drops
/// what it keeps of the stream's files, and whoever comes late has them read anew: at Go's own 100 that took a late watcher
/// 45 ms where it takes 29 at 400 (the slowest of a hundred, among 100,000 operations).
const COLLECTIONS: &str = "400";
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
    membership: Membership,
}

/// How many servers a cluster has.
const CLUSTER_SIZE: usize = 3;

impl NatsServer {
    /// Starts nats-server on `<data_directory>/nats` with an identity for each of `hosts` (host ids), and waits until one
    /// can log in. Ports (unless taken since), passwords, hosts and messages are those of the last start.
    ///
    /// # Errors
    /// When another server runs on the directory, or it does not start.
    pub async fn start(program: &Path, data_directory: &Path, hosts: &[String]) -> anyhow::Result<Self> {
        let data_directory = std::path::absolute(data_directory)?;
        let identities = load_identities(&data_directory, hosts)?;
        let addresses = free_addresses(&data_directory, &identities.ops, &Membership::Alone).await?;
        Self::launch(program, data_directory, identities, addresses, Membership::Alone).await
    }

    /// Starts a cluster of three on `<data_directory>/nats-1` to `nats-3`, as [`start`](Self::start) does one, and waits
    /// until its JetStream has a leader. Its messages are not those of a server that was alone before.
    pub async fn start_cluster(
        program: &Path,
        data_directory: &Path,
        hosts: &[String],
    ) -> anyhow::Result<Vec<Self>> {
        let data_directory = std::path::absolute(data_directory)?;
        let identities = load_identities(&data_directory, hosts)?;
        let member = |number, route_ports| Membership::Member { number, route_ports };
        let mut addresses = Vec::new();
        for number in 1..=CLUSTER_SIZE {
            let membership = member(number, Vec::new());
            addresses.push(free_addresses(&data_directory, &identities.ops, &membership).await?);
        }
        let route_ports: Vec<u16> = addresses.iter().map(|addresses| addresses.route_port).collect();
        let starting = addresses.into_iter().enumerate().map(|(index, addresses)| {
            let membership = member(index + 1, route_ports.clone());
            Self::launch(program, data_directory.clone(), identities.clone(), addresses, membership)
        });
        let servers =
            futures::future::join_all(starting).await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        for server in &servers {
            wait_until(&server.process, PATIENCE_TO_START, || {
                // In a cluster it is well when JetStream has a leader and this server has caught up.
                healthy((Ipv4Addr::LOCALHOST, server.addresses.monitoring_port).into())
            })
            .await?;
        }
        Ok(servers)
    }

    async fn launch(
        program: &Path,
        data_directory: PathBuf,
        identities: Identities,
        addresses: Addresses,
        membership: Membership,
    ) -> anyhow::Result<Self> {
        let directory = data_directory.join(format!("nats{}", membership.suffix()));
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        nats_config::write_files(&directory, addresses, &identities, &membership)?;
        let name = format!("nats-server{}", membership.suffix());
        let collections = std::env::var_os("GOGC").unwrap_or_else(|| COLLECTIONS.into());
        let spec = ProcessSpec::new(&name, program, data_directory.join("logs"))
            .argument("--config")
            .argument(directory.join("server.conf"))
            .environment("GOGC", collections);
        let process = ManagedProcess::spawn(spec).await?;
        wait_until(&process, PATIENCE_TO_START, || log_in(addresses.client_port, &identities.ops)).await?;
        Ok(Self { process, addresses, identities, program: program.to_owned(), data_directory, membership })
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
        let directory = self.data_directory.join(format!("nats{}", self.membership.suffix()));
        nats_config::write_files(&directory, self.addresses, &self.identities, &self.membership)?;
        self.process.signal(Signal::HUP)
    }

    /// Stops the server in good order.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.process.stop(PATIENCE_TO_STOP).await.map(drop)
    }

    /// Stops it if it runs, and starts it again on the same port and messages.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        let addresses = free_addresses(&self.data_directory, &self.identities.ops, &self.membership).await?;
        let (identities, membership) = (self.identities.clone(), self.membership.clone());
        *self = Self::launch(&self.program, self.data_directory.clone(), identities, addresses, membership)
            .await?;
        Ok(())
    }
}

fn load_identities(data_directory: &Path, hosts: &[String]) -> anyhow::Result<Identities> {
    let mut identities: Identities = secrets::load_or_create(data_directory, "nats", Identities::new)?;
    for host in hosts {
        identities.add_host(host)?;
    }
    secrets::store(data_directory, "nats", &identities)?;
    Ok(identities)
}

/// The ports of the last start, or others where they have been taken by a stranger. Two servers on one store would
/// ruin it, so one that knows our password there is an error.
async fn free_addresses(
    data_directory: &Path,
    ops: &Identity,
    membership: &Membership,
) -> anyhow::Result<Addresses> {
    let new = || -> anyhow::Result<Addresses> {
        let client_port = free_port()?;
        let monitoring_port = free_port_where(|port| port != client_port)?;
        let route_port = free_port_where(|port| port != client_port && port != monitoring_port)?;
        Ok(Addresses { client_port, monitoring_port, route_port })
    };
    let name = format!("nats-ports{}", membership.suffix());
    let addresses: Addresses = secrets::load_or_create(data_directory, &name, new)?;
    let ports = [addresses.client_port, addresses.monitoring_port, addresses.route_port];
    if ports.into_iter().all(port_is_free) {
        return Ok(addresses);
    }
    if log_in(addresses.client_port, ops).await.is_ok() {
        bail!("another nats-server is running on {}: stop it first", data_directory.display());
    }
    let addresses = new()?;
    secrets::store(data_directory, &name, &addresses)?;
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
