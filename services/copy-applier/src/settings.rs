use std::path::PathBuf;

use domain_model::HostId;
use serde::Deserialize;
use service_runtime::{HttpSettings, NatsSettings, ServiceSettings, TelemetrySettings};

/// Settings of copy-applier; `copy-applier.default.toml` explains each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyApplierSettings {
    /// The identity of this host.
    pub nats: NatsSettings,
    /// This host.
    pub host: HostSettings,
    /// How copies are applied.
    pub copies: CopySettings,
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
}

/// How copies are applied.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopySettings {
    /// How many at the same time.
    pub at_once: u32,
    /// Seconds that what was brought here for a copy is kept after its last use.
    pub keep_s: f64,
    /// Bytes of memory that one job may use.
    pub memory_bytes: u64,
    /// Seconds after which a job of which nothing moves is ended, to be tried again.
    pub stall_s: f64,
}

impl ServiceSettings for CopyApplierSettings {
    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }

    fn http(&self) -> &HttpSettings {
        &self.http
    }
}
