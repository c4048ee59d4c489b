use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use object_storage::ObjectStore;
use rustic_core::repofile::SnapshotFile;
use rustic_core::{
    Credentials, OpenStatus, Progress as RusticProgressHandle, ProgressBars, ProgressType,
    RepositoryBackends, RepositoryOptions, RusticProgress, WriteBackend,
};
use tokio::runtime::Handle;

use crate::backend::{Access, RepositoryBackend, RequestCounts};
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result, does_not_decrypt};
use crate::initialise::{MARKER_NAME, RepositoryIdentity, check_marker};
use crate::metadata_cache::CacheSettings;
use crate::repository_key::RepositoryKey;
use crate::snapshot::{SnapshotId, SnapshotTags};
use crate::write_deadline::WriteDeadline;

/// Hears how far a job is, and can stop it. Called often and from several threads: must be quick.
pub trait Progress: Send + Sync {
    /// What there is to do, as far as known: number of entries and their bytes. May come more than once,
    /// and after the first [`stored`](Self::stored).
    fn scanned(&self, files: u64, bytes: u64);
    /// What is done: number of entries and their bytes.
    fn stored(&self, files: u64, bytes: u64);
    /// Whether the job is to stop. It then ends with an error of kind `Canceled` and leaves no snapshot.
    fn is_canceled(&self) -> bool;
    /// Until when the job may write and delete. By default, for ever.
    fn write_deadline(&self) -> WriteDeadline {
        WriteDeadline::default()
    }
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn scanned(&self, _files: u64, _bytes: u64) {}
    fn stored(&self, _files: u64, _bytes: u64) {}
    fn is_canceled(&self) -> bool {
        false
    }
}

/// Where a repository is, and how to open it.
#[derive(Debug, Clone)]
pub struct RepositoryLocation {
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The prefix inside the bucket, see [`repository_root`](crate::repository_root).
    pub root: String,
    /// Which repository has to be there.
    pub identity: RepositoryIdentity,
    /// Its key.
    pub key: RepositoryKey,
    /// The local cache of its metadata. Without one, up to 32 MiB are kept in memory.
    pub cache: Option<CacheSettings>,
}

pub(crate) type Rustic = rustic_core::Repository<OpenStatus>;

/// A project's repository, opened with its key, its marker checked.
///
/// Everything here blocks on requests: in a service, call it inside `spawn_blocking`. Long jobs belong into
/// a child process, see [`JobProcess`](crate::JobProcess).
pub struct Repository {
    pub(crate) rustic: Rustic,
    pub(crate) backend: Arc<RepositoryBackend>,
    pub(crate) identity: RepositoryIdentity,
    pub(crate) key: RepositoryKey,
    pub(crate) relay: ProgressRelay,
}

impl fmt::Debug for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Repository")
            .field("root", &self.backend.root())
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens it for reading: no write of any kind will leave this process. Two requests.
    pub fn open_for_reading(location: RepositoryLocation, runtime: Handle) -> Result<Self> {
        Self::open(location, Access::Read, runtime)
    }

    /// Opens it for reading and writing. Two requests.
    pub fn open_for_writing(location: RepositoryLocation, runtime: Handle) -> Result<Self> {
        Self::open(location, Access::ReadWrite, runtime)
    }

    fn open(location: RepositoryLocation, access: Access, runtime: Handle) -> Result<Self> {
        let RepositoryLocation { store, root, identity, key, cache } = location;
        let backend = Arc::new(RepositoryBackend::new(store, &root, runtime, access, cache));
        match backend.get_with_config(MARKER_NAME)? {
            Some(marker) => check_marker(&root, &marker, &identity)?,
            None => {
                let message = "there is no repository of ours (no marker)";
                return Err(BackupRepositoryError::new(Kind::NotFound, "open", &root, message));
            }
        }
        let relay = ProgressRelay::default();
        // The config is the one file whose name does not prove its content: it is read again before it is called wrong.
        let rustic = match open_rustic(&backend, &key, &relay) {
            Err(error) if does_not_decrypt(&error) => open_rustic(&backend, &key, &relay),
            opened => opened,
        };
        let rustic = rustic.map_err(|error| backend.error_of_opening(&root, &error))?;
        Ok(Self { rustic, backend, identity, key, relay })
    }

    /// From now on nothing is written or deleted after this.
    pub fn obey(&self, deadline: WriteDeadline) {
        self.backend.obey(deadline);
    }

    /// Requests to the object store since the opening.
    pub fn requests(&self) -> RequestCounts {
        self.backend.requests()
    }

    pub(crate) fn error(
        &self,
        operation: &'static str,
        error: &rustic_core::RusticError,
    ) -> BackupRepositoryError {
        self.backend.error(operation, self.backend.root(), error)
    }

    /// Reads one snapshot and its tags. `NotFound` where there is none, `UnsupportedLayout` where it is not
    /// of layout 2 or another project's.
    pub(crate) fn snapshot(&self, id: SnapshotId) -> Result<(SnapshotFile, SnapshotTags)> {
        read_snapshot(&self.rustic, &self.backend, &self.identity, id)
    }
}

pub(crate) fn open_rustic(
    backend: &Arc<RepositoryBackend>,
    key: &RepositoryKey,
    relay: &ProgressRelay,
) -> rustic_core::RusticResult<Rustic> {
    // rustic's own cache writes in place and verifies nothing: ours sits in the backend.
    let mut options = RepositoryOptions::default();
    options.no_cache = true;
    let for_rustic: Arc<dyn WriteBackend> = backend.clone();
    rustic_core::Repository::new_with_progress(
        &options,
        &RepositoryBackends::new(for_rustic, None),
        relay.clone(),
    )?
    .open(&Credentials::Masterkey(key.master_key()))
}

pub(crate) fn read_snapshot<S: rustic_core::Open>(
    rustic: &rustic_core::Repository<S>,
    backend: &RepositoryBackend,
    identity: &RepositoryIdentity,
    id: SnapshotId,
) -> Result<(SnapshotFile, SnapshotTags)> {
    let rustic_id = id.to_rustic();
    let mut snapshot: SnapshotFile =
        rustic.get_file(&rustic_id).map_err(|error| backend.error("read snapshot", id, &error))?;
    snapshot.id = rustic_id;
    let tags = SnapshotTags::of(&snapshot)?;
    if tags.project_id != identity.project_id {
        return Err(BackupRepositoryError::new(
            Kind::UnsupportedLayout,
            "read snapshot",
            id,
            format!("it belongs to project {}", tags.project_id),
        ));
    }
    Ok((snapshot, tags))
}

type ByteListener = Arc<dyn Fn(u64) + Send + Sync>;

/// Passes the bytes that rustic says are done to whoever listens at the moment.
#[derive(Clone, Default)]
pub(crate) struct ProgressRelay(Arc<Mutex<Option<ByteListener>>>);

impl ProgressRelay {
    pub(crate) fn listen(&self, listener: ByteListener) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }
}

impl fmt::Debug for ProgressRelay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ProgressRelay")
    }
}

impl ProgressBars for ProgressRelay {
    fn progress(&self, progress_type: ProgressType, _prefix: &str) -> RusticProgressHandle {
        let listener = match progress_type {
            ProgressType::Bytes => self.0.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ProgressType::Spinner | ProgressType::Counter => None,
        };
        RusticProgressHandle::new(ByteCounter(listener))
    }
}

struct ByteCounter(Option<ByteListener>);

impl fmt::Debug for ByteCounter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ByteCounter")
    }
}

impl RusticProgress for ByteCounter {
    fn is_hidden(&self) -> bool {
        self.0.is_none()
    }
    fn set_length(&self, _length: u64) {}
    fn set_title(&self, _title: &str) {}
    fn inc(&self, bytes: u64) {
        if let Some(listener) = &self.0 {
            listener(bytes);
        }
    }
    fn finish(&self) {}
}
