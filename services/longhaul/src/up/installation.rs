//! What makes a data directory the same installation at each start: its hosts, its master key and its object store.
//!
//! The master key wraps the password of every project's repository. A second one, made because the file was gone,
//! would leave all backups unreadable: so none is made where there is a database already.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use clap::ValueEnum;
use domain_model::HostId;
use rand::RngCore as _;
use serde::{Deserialize, Serialize};

use super::private_file;

/// Which kind of object store to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectStoreKind {
    /// A directory.
    Local,
    /// An S3 server (SeaweedFS) on this machine.
    S3,
}

/// The object store of an installation.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ObjectStore {
    /// A directory in the data directory.
    Local,
    /// An S3 server with its data there.
    S3 { access_key_id: String, secret_access_key: String },
}

/// An installation.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Installation {
    /// The hosts; `host-0` is the first.
    pub(super) hosts: Vec<HostId>,
    /// The name of the master key.
    pub(super) master_key_id: String,
    /// 64 hexadecimal characters.
    pub(super) master_key: String,
    /// Where backups go.
    pub(super) object_store: ObjectStore,
}

impl Installation {
    /// The installation of a data directory, with at least `hosts` hosts; made at the first start.
    pub(super) fn load_or_create(
        data_directory: &Path,
        hosts: usize,
        object_store: Option<ObjectStoreKind>,
    ) -> anyhow::Result<Self> {
        let file = data_directory.join("installation.json");
        let mut installation = match fs::read(&file) {
            Ok(json) => {
                serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display()))?
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("reading {}", file.display()));
            }
            Err(_) if data_directory.join("postgres").exists() => bail!(
                "{} is missing, and with it the master key of the backups in {}: put it back from where you keep it",
                file.display(),
                data_directory.display()
            ),
            Err(_) => Self::new(object_store.unwrap_or(ObjectStoreKind::Local)),
        };
        installation.refuse_another_store(object_store)?;
        let missing = hosts.saturating_sub(installation.hosts.len());
        installation.hosts.extend((0..missing).map(|_| HostId::from(uuid::Uuid::new_v4())));
        private_file::write(&file, &serde_json::to_vec_pretty(&installation)?)?;
        Ok(installation)
    }

    fn new(object_store: ObjectStoreKind) -> Self {
        Self {
            hosts: Vec::new(),
            master_key_id: "master-1".to_owned(),
            master_key: random_hex::<32>(),
            object_store: match object_store {
                ObjectStoreKind::Local => ObjectStore::Local,
                ObjectStoreKind::S3 => ObjectStore::S3 {
                    access_key_id: format!("longhaul-{}", random_hex::<6>()),
                    secret_access_key: random_hex::<24>(),
                },
            },
        }
    }

    fn refuse_another_store(&self, wanted: Option<ObjectStoreKind>) -> anyhow::Result<()> {
        let (kind, name) = match self.object_store {
            ObjectStore::Local => (ObjectStoreKind::Local, "local"),
            ObjectStore::S3 { .. } => (ObjectStoreKind::S3, "s3"),
        };
        if wanted.is_some_and(|wanted| wanted != kind) {
            bail!(
                "the backups of this data directory are in an object store of the kind {name}: give --object-store {name}, \
                 or another --data-dir"
            );
        }
        Ok(())
    }
}

fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_installation_stays_the_same_and_grows_by_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let load = |hosts| Installation::load_or_create(directory.path(), hosts, None).unwrap();
        let (first, more, fewer) = (load(1), load(3), load(1));
        assert_eq!(first.master_key, more.master_key);
        assert_eq!(first.hosts[..], more.hosts[..1]);
        assert_eq!(more.hosts, fewer.hosts, "a host is never forgotten");
        let mode = fs::metadata(directory.path().join("installation.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn no_second_master_key_is_made_and_the_object_store_does_not_change() {
        let directory = tempfile::tempdir().unwrap();
        Installation::load_or_create(directory.path(), 1, Some(ObjectStoreKind::S3)).unwrap();
        let other = Installation::load_or_create(directory.path(), 1, Some(ObjectStoreKind::Local));
        assert!(other.err().unwrap().to_string().contains("--object-store s3"));
        fs::create_dir(directory.path().join("postgres")).unwrap();
        fs::remove_file(directory.path().join("installation.json")).unwrap();
        let lost = Installation::load_or_create(directory.path(), 1, None);
        assert!(lost.err().unwrap().to_string().contains("master key"));
    }
}
