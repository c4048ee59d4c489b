//! What the service is told: the variables of the environment that applications of this kind have already (`R2_…`,
//! `BACKUP_…`), and the same as a file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use age::x25519::Recipient;
use domain_model::HostId;
use object_storage::{LocalSettings, ProviderSettings, S3Settings, SecretText};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use service_runtime::{HttpSettings, NatsSettings, TelemetrySettings};

use crate::encryption::recipients;
use crate::names::Names;

/// The committed defaults.
pub const DEFAULT_SETTINGS: &str = include_str!("../database-backup.default.toml");

/// Variables of the environment that have names of their own, and what they set.
pub const VARIABLES: &[(&str, &str)] = &[
    ("R2_ACCOUNT_ID", "storage.account_id"),
    ("R2_ACCESS_KEY_ID", "storage.access_key_id"),
    ("R2_SECRET_ACCESS_KEY", "storage.secret_access_key"),
    ("R2_BUCKET_NAME", "storage.bucket"),
    ("R2_ENDPOINT", "storage.endpoint"),
    ("R2_REGION", "storage.region"),
    ("R2_BACKUP_PATH", "storage.path"),
    ("BACKUP_ENABLED", "backup.enabled"),
    ("BACKUP_RETENTION_DAYS", "backup.retention_days"),
    ("BACKUP_ADMIN_TOKEN", "admin.token"),
];

/// All settings; `database-backup.default.toml` says what each means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The file.
    pub database: DatabaseSettings,
    /// Where backups go.
    pub storage: StorageSettings,
    /// When, and for how long.
    pub backup: BackupSettings,
    /// Whether backups are encrypted on this side.
    pub encryption: EncryptionSettings,
    /// Where copies are made.
    pub work: WorkSettings,
    /// The HTTP admin API.
    pub admin: AdminSettings,
    /// The bus that it joins.
    pub nats: NatsSettings,
    /// What it is there.
    pub host: HostSettings,
    /// `/metrics` and `/healthz`.
    pub http: HttpSettings,
    /// Logs.
    pub telemetry: TelemetrySettings,
}

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSettings {
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub engine: EngineChoice,
    /// DuckDB's command line.
    pub duckdb_program: PathBuf,
    /// How long a changing file is tried to be copied.
    pub copy_patience_s: u64,
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// What the file says itself.
    Auto,
    /// DuckDB.
    Duckdb,
    /// SQLite.
    Sqlite,
}

/// Where backups go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageSettings {
    /// URL of the S3 server.
    pub endpoint: String,
    /// Account at Cloudflare.
    pub account_id: String,
    /// Public half of the key pair.
    pub access_key_id: String,
    /// Secret half of it.
    pub secret_access_key: SecretString,
    /// The bucket.
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// What keys begin with.
    pub path: String,
    /// Whether the bucket stands in the path of a URL.
    pub path_style: bool,
    /// A directory instead of a server.
    pub directory: PathBuf,
}

/// When, and for how long.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupSettings {
    /// Whether anything is done at all.
    pub enabled: bool,
    /// Age at which backups are deleted.
    pub retention_days: u32,
    /// Age at which the bucket deletes them.
    pub lifecycle_days: u16,
    /// What names begin with.
    pub prefix: String,
    /// Whether with zstd.
    pub compress: bool,
    /// Time between backups by the clock.
    pub interval_s: u64,
    /// Longest time of one.
    pub deadline_s: u64,
    /// Acceptable time without one.
    pub at_risk_after_s: u64,
    /// Copies kept that could not be uploaded.
    pub pending_copies: usize,
}

/// Whether backups are encrypted on this side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptionSettings {
    /// age recipients, with commas between them.
    pub recipients: String,
    /// A file with age identities, which a restore needs.
    pub identity_file: PathBuf,
}

/// What it is on the bus.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// The id of the host whose identity it has; empty without a bus.
    pub id: String,
}

/// Where copies are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkSettings {
    /// The directory.
    pub directory: PathBuf,
}

/// The HTTP admin API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// A file that gets the real address.
    pub address_file: PathBuf,
    /// Who sends it may use the API.
    pub token: SecretString,
    /// How long a request waits for its operation.
    pub wait_s: u64,
}

/// Settings that each read well and make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsMistake(String);

impl Settings {
    /// Checks what no single value shows.
    ///
    /// # Errors
    ///
    /// With a word about what to correct.
    pub fn check(&self) -> Result<(), SettingsMistake> {
        let refuse = |message: &str| Err(SettingsMistake(message.to_owned()));
        if self.database.path.file_name().is_none() {
            return refuse("database.path must name the database file");
        }
        self.names()?;
        if self.backup.lifecycle_days > 0
            && u32::from(self.backup.lifecycle_days) < self.backup.retention_days
        {
            return refuse(
                "backup.lifecycle_days is less than backup.retention_days: the bucket would delete backups that are to be kept",
            );
        }
        if self.backup.deadline_s == 0 || self.backup.at_risk_after_s == 0 {
            return refuse("backup.deadline_s and backup.at_risk_after_s must be more than 0");
        }
        let token = self.admin.token.expose_secret();
        if !token.is_empty() && token.len() < 16 {
            return refuse("admin.token (BACKUP_ADMIN_TOKEN) is shorter than 16 characters");
        }
        self.recipients()?;
        if !self.nats.url.is_empty() && self.host.id.parse::<HostId>().is_err() {
            return refuse(
                "nats.url is given: host.id must be the id of the host that this service is on the bus",
            );
        }
        if !self.backup.enabled {
            return Ok(());
        }
        if self.storage.bucket.is_empty() {
            return refuse("storage.bucket (R2_BUCKET_NAME) must be given");
        }
        if self.storage.directory.as_os_str().is_empty() {
            if self.storage.endpoint.is_empty() && self.storage.account_id.is_empty() {
                return refuse(
                    "storage.endpoint (R2_ENDPOINT) or storage.account_id (R2_ACCOUNT_ID) must be given",
                );
            }
            let secret = self.storage.secret_access_key.expose_secret();
            if self.storage.access_key_id.is_empty() || secret.is_empty() {
                return refuse(
                    "storage.access_key_id (R2_ACCESS_KEY_ID) and storage.secret_access_key (R2_SECRET_ACCESS_KEY) must be given",
                );
            }
        }
        Ok(())
    }

    /// How backups are called and where they are.
    ///
    /// # Errors
    ///
    /// If the prefix or the path cannot be part of a key.
    pub fn names(&self) -> Result<Names, SettingsMistake> {
        let stem = self.database.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let prefix = if self.backup.prefix.is_empty() { stem } else { &self.backup.prefix };
        Names::new(prefix, &self.storage.path).map_err(|error| SettingsMistake(error.to_string()))
    }

    /// For whom backups are encrypted; for nobody, they are not.
    ///
    /// # Errors
    ///
    /// If one is no age recipient.
    pub(crate) fn recipients(&self) -> Result<Vec<Recipient>, SettingsMistake> {
        recipients(&self.encryption.recipients).map_err(|number| {
            SettingsMistake(format!("number {number} of encryption.recipients is no age recipient (age1…)"))
        })
    }

    /// The provider of the bucket.
    pub fn provider(&self) -> ProviderSettings {
        let storage = &self.storage;
        if !storage.directory.as_os_str().is_empty() {
            return ProviderSettings::Local(LocalSettings { root: storage.directory.clone() });
        }
        let endpoint = match storage.endpoint.as_str() {
            "" => format!("https://{}.r2.cloudflarestorage.com", storage.account_id),
            endpoint => endpoint.to_owned(),
        };
        ProviderSettings::S3(S3Settings {
            endpoint: Some(endpoint),
            region: storage.region.clone(),
            access_key_id: storage.access_key_id.clone(),
            secret_access_key: SecretText::from(storage.secret_access_key.expose_secret()),
            session_token: None,
            path_style: storage.path_style,
        })
    }

    /// Where copies are made.
    pub fn work_directory(&self) -> PathBuf {
        if !self.work.directory.as_os_str().is_empty() {
            return self.work.directory.clone();
        }
        let name = self.database.path.file_name().unwrap_or_default().to_string_lossy();
        self.database.path.with_file_name(format!(".{name}.backup-work"))
    }

    /// Longest time of a backup.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.backup.deadline_s)
    }

    /// The file that gets the address of the admin API.
    pub fn address_file(&self) -> Option<&Path> {
        Some(self.admin.address_file.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}
