use std::collections::BTreeMap;
use std::num::NonZeroU32;

use bus_messages::BackupPolicy;
use object_storage::ProviderSettings;
use secrecy::SecretString;
use serde::Deserialize;
use service_runtime::{HttpSettings, NatsSettings, ServiceSettings, TelemetrySettings};

/// Settings of the registry; `registry.default.toml` explains each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// The front: it answers, and nudges workers.
    pub nats: NatsSettings,
    /// The one writer of the stream.
    pub nats_writer: NatsSettings,
    /// The stream.
    pub stream: StreamSettings,
    /// The catalog.
    pub database: DatabaseSettings,
    /// Where buckets are made.
    pub object_store: ObjectStoreSettings,
    /// The key that wraps project secrets.
    pub master_key: MasterKeySettings,
    /// Logins of people.
    pub authorization: AuthorizationSettings,
    /// Leases and clean-up.
    pub operations: OperationSettings,
    /// How projects are backed up where neither they nor their accounts say otherwise.
    pub backups: BackupPolicy,
    /// `/metrics` and `/healthz`.
    pub http: HttpSettings,
    /// Logs.
    pub telemetry: TelemetrySettings,
}

/// The stream.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    /// On how many servers of a cluster it is kept.
    pub replicas: u8,
}

/// The catalog.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSettings {
    /// `postgres://user:password@host:port/database`.
    pub url: SecretString,
    /// At most so many connections.
    pub connections: u32,
}

/// Where buckets are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectStoreSettings {
    /// `r2`, `s3` or `local`, as the table of buckets names it.
    pub provider: String,
    /// The account at the provider, for people.
    #[serde(default)]
    pub account_id: Option<String>,
    /// The first part of the names of buckets.
    pub bucket_prefix: String,
    /// The provider's word for each region; where a region is missing, no location is asked for.
    #[serde(default)]
    pub location_hints: BTreeMap<String, String>,
    /// How to reach it.
    pub connection: ProviderSettings,
}

/// The key that wraps project secrets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MasterKeySettings {
    /// Its name, kept beside each secret that it wraps.
    pub id: String,
    /// 64 hexadecimal characters.
    pub key: SecretString,
}

/// Logins of people (NATS auth callout).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizationSettings {
    /// Whether this registry decides about logins.
    pub enabled: bool,
    /// The identity that is asked.
    pub nats: NatsSettings,
    /// Seed of the key that signs the answers; its public half is `issuer` in `nats-config`.
    pub issuer_seed: SecretString,
    /// Seconds until a client has to log in again, since permissions freeze at a connect.
    pub session_s: u64,
}

/// Leases and clean-up.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationSettings {
    /// Seconds that a lease lasts.
    pub lease_s: f64,
    /// Seconds between two looks for leases that have ended.
    pub sweep_s: f64,
    /// Whether kinds that exist for tests may be created.
    pub test_kinds: bool,
    /// How many operations an account may create.
    pub creation: CreationSettings,
    /// How many operations of a kind may run at the same time, by the name of the kind.
    #[serde(default)]
    pub caps: BTreeMap<String, CapSettings>,
}

/// How many operations an account may create, at each registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreationSettings {
    /// So many a second in the long run.
    pub per_s: NonZeroU32,
    /// So many at once.
    pub burst: NonZeroU32,
}

/// How many operations of a kind may run at the same time.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapSettings {
    /// Everywhere together.
    pub in_all: Option<u32>,
    /// On each host, or in the hub.
    pub per_host: Option<u32>,
}

impl ServiceSettings for RegistrySettings {
    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }

    fn http(&self) -> &HttpSettings {
        &self.http
    }
}
