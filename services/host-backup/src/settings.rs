use std::path::PathBuf;

use domain_model::HostId;
use serde::Deserialize;
use service_runtime::{HttpSettings, NatsSettings, ServiceSettings, TelemetrySettings};

/// Settings of host-backup; `host-backup.default.toml` explains each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBackupSettings {
    /// The identity of this host.
    pub nats: NatsSettings,
    /// This host.
    pub host: HostSettings,
    /// How much at the same time.
    pub jobs: JobSettings,
    /// How projects are started and stopped.
    pub runtime: RuntimeSettings,
    /// Looking into backups.
    pub browse: BrowseSettings,
    /// `/metrics` and `/healthz`.
    pub http: HttpSettings,
    /// Logs.
    pub telemetry: TelemetrySettings,
}

/// This host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// Its id.
    pub id: HostId,
    /// Where its projects are.
    pub root: PathBuf,
    /// Where metadata of repositories is kept.
    pub cache: PathBuf,
    /// What the cache may hold, in bytes.
    pub cache_bytes: u64,
    /// Seconds between two looks which projects have changed.
    pub look_for_changes_every_s: f64,
    /// Seconds between two looks whether what restores have staged is still wanted.
    pub look_for_leftovers_every_s: f64,
}

/// How much at the same time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSettings {
    /// Backups at the same time.
    pub backups: u32,
    /// Restores at the same time.
    pub restores: u32,
    /// Starts at the same time, and stops.
    pub starts: u32,
    /// Prunes at the same time.
    pub prunes: u32,
    /// Checks, and drills, at the same time.
    pub proofs: u32,
    /// Bytes of memory that one job may use.
    pub memory_bytes: u64,
    /// Seconds after which a job of which nothing moves is ended, to be tried again.
    pub stall_s: f64,
}

/// How projects are started and stopped.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeSettings {
    /// The program that starts and stops a project; none where empty.
    pub command: String,
    /// Seconds that it has.
    pub timeout_s: u64,
}

/// Looking into backups.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrowseSettings {
    /// Repositories that are kept open at the same time, each in a process of its own.
    pub repositories: usize,
    /// Bytes of memory that each of them may use.
    pub memory_bytes: u64,
}

impl ServiceSettings for HostBackupSettings {
    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }

    fn http(&self) -> &HttpSettings {
        &self.http
    }
}
