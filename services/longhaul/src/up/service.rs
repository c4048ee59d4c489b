//! One of our own services as a child process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use server_processes::{ManagedProcess, ProcessSpec, Signal, healthy, wait_until};
use tokio_util::sync::CancellationToken;

use super::private_file;
use super::ready_file::{ServiceSummary, host_number};
use super::settings_files::section;

/// The first start of the registry includes the migrations of the database.
const PATIENCE_TO_START: Duration = Duration::from_secs(90);
/// A service may answer what it was asked for 20 s after the first signal, and ends within 10 s after that.
const PATIENCE_TO_STOP: Duration = Duration::from_secs(35);
const BETWEEN_SIGNALS: Duration = Duration::from_millis(100);
const PATIENCE_IN_A_HURRY: Duration = Duration::from_secs(5);

/// A running service.
pub(super) struct Service {
    name: String,
    spec: ProcessSpec,
    address_file: PathBuf,
    process: ManagedProcess,
    address: SocketAddr,
}

impl Service {
    /// Starts the service `name` (`registry`, `host-backup-0`) with these settings, and waits until it is healthy.
    pub(super) async fn start(name: &str, settings: &str, data_directory: &Path) -> anyhow::Result<Self> {
        let kind = host_number(name).map_or(name, |(kind, _)| kind);
        let program = program(kind)?;
        let config = data_directory.join("config").join(format!("{name}.toml"));
        let address_file = data_directory.join("config").join(format!("{name}.address"));
        let mut text = String::from("# Written by `longhaul up` at each start.\n");
        text.push_str(settings);
        let address = address_file.to_string_lossy();
        section(&mut text, "http", &[("listen", "127.0.0.1:0"), ("address_file", &address)]);
        private_file::write(&config, text.as_bytes())?;
        let spec = ProcessSpec::new(name, program, data_directory.join("logs"))
            .argument("--config")
            .argument(&config)
            .current_directory(data_directory);
        let (process, address) = launch(&spec, &address_file).await?;
        Ok(Self { name: name.to_owned(), spec, address_file, process, address })
    }

    /// Its process.
    pub(super) fn process(&self) -> &ManagedProcess {
        &self.process
    }

    /// What the ready file tells about it.
    pub(super) fn summary(&self) -> ServiceSummary {
        ServiceSummary {
            name: self.name.clone(),
            pid: self.process.pid(),
            metrics_url: format!("http://{}/metrics", self.address),
        }
    }

    /// Starts it again after it has ended, and waits until it is healthy.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        (self.process, self.address) = launch(&self.spec, &self.address_file).await?;
        Ok(())
    }

    /// Has it end its work and stop; at once when `hurry` is cancelled.
    pub(super) async fn stop(&self, hurry: &CancellationToken) -> anyhow::Result<()> {
        self.process.signal(Signal::TERM)?;
        tokio::select! {
            _ = self.process.wait() => return Ok(()),
            () = hurry.cancelled() => {}
            () = tokio::time::sleep(PATIENCE_TO_STOP) => {}
        }
        // A second signal: running work is left. Two at the same moment would be one to their receiver.
        tokio::time::sleep(BETWEEN_SIGNALS).await;
        self.process.stop(PATIENCE_IN_A_HURRY).await.map(drop)
    }
}

/// Our services are beside this program.
fn program(kind: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let program = own.with_file_name(kind);
    if !program.is_file() {
        bail!(
            "there is no {} beside this program: build all of the workspace, as ./dev does",
            program.display()
        );
    }
    Ok(program)
}

async fn launch(spec: &ProcessSpec, address_file: &Path) -> anyhow::Result<(ManagedProcess, SocketAddr)> {
    match fs::remove_file(address_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", address_file.display()));
        }
        _ => {}
    }
    let process = ManagedProcess::spawn(spec.clone()).await?;
    wait_until(&process, PATIENCE_TO_START, || async { healthy(read_address(address_file)?).await }).await?;
    let address = read_address(address_file)?;
    Ok((process, address))
}

fn read_address(file: &Path) -> anyhow::Result<SocketAddr> {
    let text = fs::read_to_string(file).context("it does not listen yet")?;
    text.trim().parse().with_context(|| format!("reading {}", file.display()))
}
