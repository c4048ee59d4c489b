//! More workers and registries than `longhaul up` starts, each behind proxies of its own; and how to hurt any process.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use server_processes::{ManagedProcess, ProcessSpec, Signal};
use test_harness::TestSystem;
use tokio::task::JoinHandle;

use crate::proxy::Proxy;
use crate::settings::Settings;

/// As long as the launcher of a system waits at first, so that a restart is not faster than in earnest.
const BEFORE_A_RESTART: Duration = Duration::from_millis(500);
const PATIENCE_TO_STOP: Duration = Duration::from_secs(40);

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Worker,
    Registry,
}

/// A process of ours that is started again whenever it ends.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) nats: Proxy,
    pub(crate) postgres: Option<Proxy>,
    /// Where its metrics are, written by itself.
    address_file: std::path::PathBuf,
    process: Arc<Mutex<Option<Arc<ManagedProcess>>>>,
    keeping: JoinHandle<()>,
}

impl Member {
    /// Starts one more worker or registry, with the settings that the launcher wrote for its own.
    pub(crate) async fn start(
        system: &TestSystem,
        settings: &Settings,
        role: Role,
        number: usize,
    ) -> anyhow::Result<Self> {
        let (program, variables) = match role {
            Role::Worker => ("scheduler", "SCHEDULER"),
            Role::Registry => ("registry", "REGISTRY"),
        };
        let name = format!("{program}-{number}");
        let ready = system.ready();
        let nats = Proxy::start(address(&ready.nats_url, "nats://")?).await?;
        let config = system.data_directory().join("config");
        let address_file = config.join(format!("{name}.address"));
        let mut spec =
            ProcessSpec::new(&name, system.program(program)?, system.data_directory().join("logs"))
                .argument("--config")
                .argument(config.join(format!("{program}.toml")))
                .current_directory(system.data_directory())
                .environment(format!("LONGHAUL_{variables}__HTTP__LISTEN"), "127.0.0.1:0")
                .environment(format!("LONGHAUL_{variables}__HTTP__ADDRESS_FILE"), &address_file);
        let mut addresses = vec!["NATS"];
        let mut postgres = None;
        if role == Role::Registry {
            let (before, server, after) = server_of(&ready.database_url)?;
            let proxy = Proxy::start(server).await?;
            spec = spec.environment(
                "LONGHAUL_REGISTRY__DATABASE__URL",
                format!("{before}{}{after}", proxy.address()),
            );
            postgres = Some(proxy);
            addresses.extend(["NATS_WRITER", "AUTHORIZATION__NATS"]);
        }
        for section in addresses {
            let variable = format!("LONGHAUL_{variables}__{section}__URL");
            spec = spec.environment(variable, format!("nats://{}", nats.address()));
        }
        for (variable, value) in settings.environment() {
            spec = spec.environment(variable, value);
        }
        let process = Arc::new(Mutex::new(Some(Arc::new(ManagedProcess::spawn(spec.clone()).await?))));
        let keeping = tokio::spawn(keep_running(spec, Arc::clone(&process)));
        Ok(Self { name, role, nats, postgres, address_file, process, keeping })
    }

    fn process(&self) -> Option<Arc<ManagedProcess>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal; false where there is no process now.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        self.process().is_some_and(|process| process.is_running() && process.signal(signal).is_ok())
    }

    /// Where its metrics are now, with its process id.
    pub(crate) fn metrics(&self) -> Option<(u32, String)> {
        let address = fs::read_to_string(&self.address_file).ok()?;
        Some((self.process()?.pid(), format!("http://{}/metrics", address.trim())))
    }

    /// Ends it for good.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.keeping.abort();
        let _ = self.keeping.await;
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(process) = process {
            process.stop(PATIENCE_TO_STOP).await?;
        }
        Ok(())
    }
}

async fn keep_running(spec: ProcessSpec, current: Arc<Mutex<Option<Arc<ManagedProcess>>>>) {
    let set = |process| *current.lock().unwrap_or_else(PoisonError::into_inner) = process;
    loop {
        let process = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(process) = process {
            process.wait().await;
        }
        set(None);
        tokio::time::sleep(BEFORE_A_RESTART).await;
        match ManagedProcess::spawn(spec.clone()).await {
            Ok(process) => set(Some(Arc::new(process))),
            Err(error) => eprintln!("nemesis: {error:#}"),
        }
    }
}

fn address(url: &str, scheme: &str) -> anyhow::Result<SocketAddr> {
    let address = url.strip_prefix(scheme).with_context(|| format!("{url} does not begin with {scheme}"))?;
    address.parse().with_context(|| format!("{url} has no address"))
}

/// The server in a URL, and what is before and behind it.
fn server_of(url: &str) -> anyhow::Result<(String, SocketAddr, String)> {
    let parts = || {
        let (before, rest) = url.rsplit_once('@')?;
        let (server, after) = rest.split_once('/')?;
        Some((format!("{before}@"), server.parse().ok()?, format!("/{after}")))
    };
    parts().with_context(|| format!("{url} is no address of a database"))
}

/// The address of nats-server.
pub(crate) fn nats_address(system: &TestSystem) -> anyhow::Result<SocketAddr> {
    address(&system.ready().nats_url, "nats://")
}

/// Sends a signal to a child of the launcher, by the name of its program; false where there is none now.
pub(crate) fn signal_launched(launcher: u32, program: &str, signal: Signal) -> bool {
    let Some(pid) = child_of(launcher, program) else { return false };
    let Some(known) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    // Through a handle, so that no stranger with the same number is met.
    let Ok(handle) = rustix::process::pidfd_open(known, rustix::process::PidfdFlags::empty()) else {
        return false;
    };
    child_of(launcher, program) == Some(pid) && rustix::process::pidfd_send_signal(&handle, signal).is_ok()
}

/// The process id of a child that is not about to end.
pub(crate) fn child_of(launcher: u32, program: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|pid| {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        let Ok(stat) = stat else { return false };
        // `pid (name) state parent …`
        let Some((before, after)) = stat.rsplit_once(')') else { return false };
        let name = before.split_once('(').map(|(_, name)| name);
        let mut fields = after.split_whitespace();
        let is_alive = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
        let parent = fields.next().and_then(|parent| parent.parse().ok());
        is_alive && name == Some(program) && parent == Some(launcher)
    })
}
