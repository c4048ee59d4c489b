//! The ready file, as the contract has it: read here by types of our own, since others read it, too.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use domain_model::HostId;
use serde::Deserialize;

/// How to reach a running system.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadyFile {
    /// `nats://127.0.0.1:PORT`.
    pub nats_url: String,
    /// All servers of a cluster.
    pub nats_urls: Vec<String>,
    /// `postgres://…`.
    pub database_url: String,
    /// Where backups go.
    pub object_store: ReadyObjectStore,
    /// `ops` and `hub`.
    pub credentials: BTreeMap<String, ReadyIdentity>,
    /// The hosts.
    pub hosts: Vec<ReadyHost>,
    /// Process ids by service.
    pub services: BTreeMap<String, Vec<u32>>,
    /// URLs of metrics.
    pub metrics: BTreeMap<String, String>,
    /// The process id of the launcher.
    pub pid: u32,
    /// Contexts for the `nats` command line.
    pub nats_context_dir: PathBuf,
}

/// Where backups go.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ReadyObjectStore {
    /// A directory: `<root>/<bucket>/<key>`.
    Local {
        /// The directory.
        root: PathBuf,
    },
    /// An S3 server.
    S3 {
        /// `http://127.0.0.1:PORT`, path-style.
        endpoint: String,
        /// The key.
        access_key_id: String,
        /// Its secret.
        secret_access_key: String,
    },
}

/// A user of nats-server.
#[derive(Clone, Deserialize)]
pub struct ReadyIdentity {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for ReadyIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReadyIdentity").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A host.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadyHost {
    /// Its id.
    pub id: HostId,
    /// Its projects are in `projects/` and `persist/` here.
    pub root: PathBuf,
    /// The process of its host-backup.
    pub pid: u32,
}
