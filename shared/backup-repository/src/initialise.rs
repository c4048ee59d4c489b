//! Creating a project's repository: once, centrally, and resumable after a crash at any point.
//!
//! Two hosts that initialise one repository pair key A with config B, and nobody opens it again. A rebuilt
//! catalog that reuses an old prefix full of snapshots hands one project's data to another. So the registry
//! initialises, under its lock, and the first object ever written is a *marker* with the repository's own
//! identity, which only one can create and which everybody checks before anything else.
//!
//! The order, and what a crash after each step leaves for the next call with the same identity:
//!
//! | step | left behind | the next call |
//! | --- | --- | --- |
//! | nothing written | an empty root | starts from the beginning |
//! | marker (create-only) | our marker | writes key and config |
//! | key file | our marker and a key that encrypts nothing | deletes that key, writes key and config |
//! | config (create-only) | a repository that works | opens it with the password |
//! | other keys removed | the same | opens it with the password |
//!
//! The config decides: whoever created it owns the master key. Keys that do not fit it are removed, because
//! `restic` stops at the first key that the password opens. Anything else in the root without our marker is
//! somebody's data: refused, untouched.

use std::sync::Arc;

use bytes::Bytes;
use object_storage::{ObjectKey, ObjectMetadata, ObjectStorageErrorKind, ObjectStore, PutMode};
use rustic_core::repofile::KeyId;
use rustic_core::{
    ConfigOptions, Credentials, FileType, Id, KeyOptions, ReadBackend, Repository, RepositoryBackends,
    RepositoryOptions, WriteBackend,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::backend::{Access, RepositoryBackend};
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::metadata_cache::hash;
use crate::repository_key::{RepositoryKey, RepositoryPassword};
use crate::snapshot::LAYOUT_VERSION;

/// The name of the marker object below the root.
pub const MARKER_NAME: &str = "longhaul-repository.json";

/// Which repository this is; stored in its marker and compared at every opening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryIdentity {
    /// The repository's own id, made once by the registry.
    pub repository_id: Uuid,
    /// The project whose files it holds.
    pub project_id: Uuid,
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
}

impl RepositoryIdentity {
    /// An identity of the current layout.
    pub fn new(repository_id: Uuid, project_id: Uuid) -> Self {
        Self { repository_id, project_id, layout_version: LAYOUT_VERSION }
    }
}

/// Where the repository of a project is inside its bucket: `rustic/project-<project id>`.
pub fn repository_root(project_id: Uuid) -> String {
    format!("rustic/project-{project_id}")
}

/// Creates the repository, or finishes or finds the one that an earlier call with the same identity and
/// password began, and returns its key.
///
/// Errors: `Occupied` where the root holds anything without our marker, `IdentityMismatch` for another
/// repository's marker, `WrongCredentials` if it is whole and the password does not open it.
pub async fn initialise(
    store: Arc<dyn ObjectStore>,
    root: &str,
    identity: &RepositoryIdentity,
    password: &RepositoryPassword,
) -> Result<RepositoryKey> {
    let initialisation = Initialisation {
        backend: Arc::new(RepositoryBackend::new(
            Arc::clone(&store),
            root,
            Handle::current(),
            Access::ReadWrite,
            None,
        )),
        store,
        runtime: Handle::current(),
        root: root.to_owned(),
        identity: identity.clone(),
        password: password.clone(),
    };
    tokio::task::spawn_blocking(move || initialisation.run()).await.map_err(|error| {
        BackupRepositoryError::new(Kind::Retryable, "initialise", root, "the work was stopped")
            .with_source(error)
    })?
}

/// Compares the marker that was read with the identity that is expected.
pub(crate) fn check_marker(root: &str, marker: &[u8], expected: &RepositoryIdentity) -> Result<()> {
    let refuse = |message: String| {
        Err(BackupRepositoryError::new(Kind::IdentityMismatch, "check marker of", root, message))
    };
    match serde_json::from_slice::<RepositoryIdentity>(marker) {
        Err(error) => refuse(format!("it cannot be read: {error}")),
        Ok(found) if found != *expected => refuse(format!(
            "it belongs to repository {} of project {} (layout {}), not to repository {} of project {} (layout {})",
            found.repository_id,
            found.project_id,
            found.layout_version,
            expected.repository_id,
            expected.project_id,
            expected.layout_version,
        )),
        Ok(_) => Ok(()),
    }
}

struct Initialisation {
    backend: Arc<RepositoryBackend>,
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    root: String,
    identity: RepositoryIdentity,
    password: RepositoryPassword,
}

impl Initialisation {
    fn run(&self) -> Result<RepositoryKey> {
        let objects = self.list()?;
        self.claim(&objects)?;
        // A listing may lack what is there, and without its keys a repository could never be opened again.
        if self.holds(&objects, "config") || self.backend.find_config()? {
            return self.open();
        }
        let foreign = objects.iter().find(|object| !self.is_marker_or_key(object));
        if let Some(object) = foreign {
            return Err(BackupRepositoryError::new(
                Kind::Damaged,
                "initialise",
                &self.root,
                format!("it has no config, but {} is there", object.key),
            ));
        }
        self.remove_keys(|_| true)?;
        match self.create() {
            Ok(key) => Ok(key),
            // Somebody without the registry's lock was faster with the config: theirs counts.
            Err(error) if error.kind() == Kind::Permanent && self.holds(&self.list()?, "config") => {
                self.open()
            }
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> Result<Vec<ObjectMetadata>> {
        self.runtime
            .block_on(self.store.list(&format!("{}/", self.root)))
            .map_err(|error| BackupRepositoryError::from_storage("list", error))
    }

    fn holds(&self, objects: &[ObjectMetadata], name: &str) -> bool {
        let key = format!("{}/{name}", self.root);
        objects.iter().any(|object| object.key.as_str() == key)
    }

    fn is_marker_or_key(&self, object: &ObjectMetadata) -> bool {
        let name = object.key.as_str().strip_prefix(&self.root).unwrap_or_default();
        name.starts_with("/keys/") || name.strip_prefix('/') == Some(MARKER_NAME)
    }

    /// Makes sure that the root carries our marker.
    fn claim(&self, objects: &[ObjectMetadata]) -> Result<()> {
        let key: ObjectKey = format!("{}/{MARKER_NAME}", self.root).parse().map_err(|error| {
            BackupRepositoryError::new(Kind::InvalidArgument, "initialise", &self.root, "not a usable root")
                .with_source(error)
        })?;
        if !self.holds(objects, MARKER_NAME) {
            if let Some(object) = objects.first() {
                return Err(BackupRepositoryError::new(
                    Kind::Occupied,
                    "initialise",
                    &self.root,
                    format!("there are objects without our marker, for example {}", object.key),
                ));
            }
            let marker = serde_json::to_vec(&self.identity).map_err(|error| {
                BackupRepositoryError::new(
                    Kind::Permanent,
                    "initialise",
                    &self.root,
                    "cannot write the marker",
                )
                .with_source(error)
            })?;
            match self.runtime.block_on(self.store.put(&key, Bytes::from(marker), PutMode::CreateOnly)) {
                // It may be ours: a write whose answer was lost is repeated by the object store.
                Err(error) if error.kind() == ObjectStorageErrorKind::AlreadyExists => {}
                Err(error) => return Err(BackupRepositoryError::from_storage("write marker", error)),
                Ok(()) => return Ok(()),
            }
        }
        let marker = self
            .runtime
            .block_on(self.store.get(&key))
            .map_err(|error| BackupRepositoryError::from_storage("read marker", error))?;
        check_marker(&self.root, &marker, &self.identity)
    }

    fn rustic(&self) -> Result<Repository<()>> {
        let mut options = RepositoryOptions::default();
        options.no_cache = true;
        let backend: Arc<dyn WriteBackend> = self.backend.clone();
        Repository::new(&options, &RepositoryBackends::new(backend, None))
            .map_err(|error| self.backend.error("initialise", &self.root, &error))
    }

    fn create(&self) -> Result<RepositoryKey> {
        let fail =
            |error: Box<rustic_core::RusticError>| self.backend.error("initialise", &self.root, &error);
        let key = RepositoryKey::generate();
        let file = key.key_file(&self.password).map_err(|message| {
            BackupRepositoryError::new(Kind::Permanent, "write key file of", &self.root, message)
        })?;
        let own = KeyId::from(hash(&file));
        let write_key = || self.backend.write_bytes(FileType::Key, &own, false, file.clone().into());
        write_key().map_err(fail)?;
        self.rustic()?
            .init(&Credentials::Masterkey(key.master_key()), &KeyOptions::default(), &config_options())
            .map_err(fail)?;

        // The config is ours, so only our key may stay. Somebody who was slower may have removed it.
        if !self.keys()?.contains(&own) {
            write_key().map_err(fail)?;
        }
        self.remove_keys(|key| *key != own)?;
        Ok(key)
    }

    /// Opens a repository that has a config, with the one key that fits both the password and the config.
    fn open(&self) -> Result<RepositoryKey> {
        let password = Credentials::Password(self.password.expose().to_owned());
        let mut strays = Vec::new();
        let mut found = None;
        for key in self.keys()? {
            self.backend.show_only_key(Some(*key));
            let opened = self.rustic()?.open(&password);
            self.backend.show_only_key(None);
            match opened {
                Ok(repository) => {
                    found = Some(RepositoryKey::new(repository.key()));
                    break;
                }
                Err(error) if error.is_incorrect_password() => {}
                Err(_) => match self.backend.take_failure("open") {
                    Some(failure) => return Err(failure),
                    // The password opens this key, and this key does not open the config.
                    None => strays.push(key),
                },
            }
        }
        let key = found.ok_or_else(|| {
            let message = "no key there fits both the password and the config";
            BackupRepositoryError::new(Kind::WrongCredentials, "open", &self.root, message)
        })?;
        self.remove_keys(|key| strays.contains(key))?;
        Ok(key)
    }

    fn keys(&self) -> Result<Vec<KeyId>> {
        let keys: Vec<Id> = self
            .backend
            .list(FileType::Key)
            .map_err(|error| self.backend.error("list keys of", &self.root, &error))?;
        Ok(keys.into_iter().map(KeyId::from).collect())
    }

    fn remove_keys(&self, unwanted: impl Fn(&KeyId) -> bool) -> Result<()> {
        for key in self.keys()?.iter().filter(|key| unwanted(key)) {
            self.backend
                .remove(FileType::Key, key, false)
                .map_err(|error| self.backend.error("remove key of", &self.root, &error))?;
        }
        Ok(())
    }
}

/// Packs of a fixed, moderate size bound the memory of backups (packs in flight) and restores (parts of
/// packs being read), and keep the number of requests low: 64 a GB.
fn config_options() -> ConfigOptions {
    let mut options = ConfigOptions::default();
    options.set_version = Some(2);
    options.set_datapack_size = Some("16MiB".parse().expect("a size in the notation of bytesize"));
    options.set_datapack_growfactor = Some(0);
    options.set_treepack_size = Some("4MiB".parse().expect("a size in the notation of bytesize"));
    options.set_treepack_growfactor = Some(0);
    options
}
