use std::path::PathBuf;

use serde::Deserialize;
use service_runtime::{HttpSettings, NatsSettings, ServiceSettings, TelemetrySettings};

/// Settings of the scheduler; `scheduler.default.toml` explains each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSettings {
    /// The identity of the scheduler.
    pub nats: NatsSettings,
    /// How much at the same time.
    pub work: WorkSettings,
    /// Backups that are due.
    pub backups: BackupSettings,
    /// Looking into backups whose host does not answer.
    pub browse: BrowseSettings,
    /// `/metrics` and `/healthz`.
    pub http: HttpSettings,
    /// Logs.
    pub telemetry: TelemetrySettings,
}

/// How much at the same time.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkSettings {
    /// Whether kinds that exist for tests are worked on.
    pub test_kinds: bool,
    /// How many `test-sleep` operations run at the same time.
    pub test_sleeps: u32,
}

/// Backups that are due.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupSettings {
    /// Seconds between two looks for them.
    pub look_every_s: f64,
}

/// Looking into backups whose host does not answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrowseSettings {
    /// Where metadata of repositories is kept.
    pub cache: PathBuf,
    /// What the cache may hold, in bytes.
    pub cache_bytes: u64,
    /// Repositories that are kept open at the same time, each in a process of its own.
    pub repositories: usize,
    /// Bytes of memory that each of them may use.
    pub memory_bytes: u64,
}

impl ServiceSettings for SchedulerSettings {
    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }

    fn http(&self) -> &HttpSettings {
        &self.http
    }
}
