//! The ready file: how to reach a running system, and the process ids of its services, so that a test can kill any.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use domain_model::HostId;
use serde::{Deserialize, Serialize};

/// The contents of the ready file. It holds secrets.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ReadyFile {
    /// `nats://127.0.0.1:PORT`; in a cluster, the first server.
    pub(crate) nats_url: String,
    /// All servers.
    #[serde(default)]
    pub(crate) nats_urls: Vec<String>,
    /// `postgres://…`.
    pub(crate) database_url: String,
    /// Where backups go.
    pub(crate) object_store: ReadyObjectStore,
    /// Who may log in.
    pub(crate) credentials: ReadyCredentials,
    /// The hosts; `host-0` is the first.
    pub(crate) hosts: Vec<ReadyHost>,
    /// Process ids by service.
    pub(crate) services: BTreeMap<String, Vec<u32>>,
    /// URLs of metrics by service; one of those on hosts has the number of its host behind its name.
    pub(crate) metrics: BTreeMap<String, String>,
    /// The launcher's own process id.
    pub(crate) pid: u32,
    /// Where everything is kept.
    pub(crate) data_directory: PathBuf,
    /// Contexts for the `nats` command line.
    pub(crate) nats_context_dir: PathBuf,
}

/// Where backups go.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum ReadyObjectStore {
    /// A directory.
    Local { root: PathBuf },
    /// An S3 server.
    S3 { endpoint: String, access_key_id: String, secret_access_key: String },
}

/// Users of nats-server.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ReadyCredentials {
    /// Operators.
    pub(crate) ops: ReadyIdentity,
    /// The front of the control plane.
    pub(crate) hub: ReadyIdentity,
}

/// One user of nats-server.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ReadyIdentity {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// One host.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ReadyHost {
    pub(crate) id: HostId,
    /// Its projects are in `projects/` and `persist/` here.
    pub(crate) root: PathBuf,
    /// The process of its host-backup.
    pub(crate) pid: u32,
}

/// A service that runs.
pub(super) struct ServiceSummary {
    /// `registry`, `scheduler`, `host-backup-0` …
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) metrics_url: String,
}

/// The service whose process stands for its host.
const HOST_BACKUP: &str = "host-backup";

impl ReadyFile {
    /// Reads a ready file.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let json = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display()))
    }

    /// All nats-servers, as clients take them.
    pub(crate) fn servers(&self) -> String {
        if self.nats_urls.is_empty() { self.nats_url.clone() } else { self.nats_urls.join(",") }
    }

    /// Notes the process and the address of a service, in the place of those that it had before.
    pub(super) fn note(&mut self, service: &ServiceSummary) {
        self.metrics.insert(service.name.clone(), service.metrics_url.clone());
        match host_number(&service.name) {
            Some((kind, number)) => {
                let pids = self.services.entry(kind.to_owned()).or_default();
                pids.resize(pids.len().max(number + 1), 0);
                pids[number] = service.pid;
                if let (HOST_BACKUP, Some(host)) = (kind, self.hosts.get_mut(number)) {
                    host.pid = service.pid;
                }
            }
            None => drop(self.services.insert(service.name.clone(), vec![service.pid])),
        }
    }
}

/// `host-backup-1` as `host-backup` and 1.
pub(super) fn host_number(service: &str) -> Option<(&str, usize)> {
    let (kind, number) = service.rsplit_once('-')?;
    Some((kind, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> ReadyFile {
        let identity = || ReadyIdentity { user: "u".to_owned(), password: "p".to_owned() };
        let host = || ReadyHost { id: HostId::from(uuid::Uuid::nil()), root: "/d/hosts/0".into(), pid: 0 };
        ReadyFile {
            nats_url: "nats://127.0.0.1:1".to_owned(),
            nats_urls: vec!["nats://127.0.0.1:1".to_owned()],
            database_url: "postgres://".to_owned(),
            object_store: ReadyObjectStore::Local { root: "/d/object-store".into() },
            credentials: ReadyCredentials { ops: identity(), hub: identity() },
            hosts: vec![host(), host()],
            services: BTreeMap::new(),
            metrics: BTreeMap::new(),
            pid: 1,
            data_directory: "/d".into(),
            nats_context_dir: "/d/nats-contexts".into(),
        }
    }

    #[test]
    fn a_service_that_was_started_again_takes_the_place_of_the_one_before() {
        let mut ready = ready();
        let mut note = |name: &str, pid| {
            let metrics_url = format!("http://127.0.0.1:{pid}/metrics");
            ready.note(&ServiceSummary { name: name.to_owned(), pid, metrics_url });
        };
        for (name, pid) in [("registry", 10), ("host-backup-0", 20), ("host-backup-1", 21), ("registry", 11)]
        {
            note(name, pid);
        }
        note("host-backup-1", 31);
        note("copy-applier-1", 41);
        assert_eq!(ready.services["copy-applier"], [0, 41]);
        assert_eq!(ready.services["registry"], [11]);
        assert_eq!(ready.services["host-backup"], [20, 31]);
        assert_eq!([ready.hosts[0].pid, ready.hosts[1].pid], [20, 31]);
        assert_eq!(ready.metrics["host-backup-1"], "http://127.0.0.1:31/metrics");
    }

    #[test]
    fn the_file_has_the_fields_of_the_contract() {
        let json = serde_json::to_value(ready()).expect("it serialises");
        for field in
            ["nats_url", "database_url", "object_store", "credentials", "hosts", "services", "metrics"]
        {
            assert!(!json[field].is_null(), "{field}");
        }
        assert_eq!(json["object_store"], serde_json::json!({ "kind": "local", "root": "/d/object-store" }));
        assert_eq!(json["credentials"]["hub"], serde_json::json!({ "user": "u", "password": "p" }));
    }
}
