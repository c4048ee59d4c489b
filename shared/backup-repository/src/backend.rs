//! The storage of one repository: rustic_core's backend traits on an [`ObjectStore`], in restic's layout.
//!
//! What could go wrong with a plain backend, and does not here:
//! - A listing that drops errors makes prune delete live packs: a listing here is whole or an error.
//! - A deletion that is only acknowledged may not have happened: the object store verifies it.
//! - A source that ends early (cancel, failure) makes rustic save a cut snapshot as a success: once the
//!   [`WriteGuard`] is closed every write is refused, and the snapshot that rustic saves at the end of a
//!   backup is held back in any case; the real one is written last, after all checks ([`SnapshotWrites`]).
//! - Uploads one after another leave the line idle: packs go up side by side, and no index is written
//!   before all packs it may name are acknowledged.
//! - rustic_core turns errors into text (or panics on them): the first failure is kept here with its kind.
//!
//! All methods block on the runtime handle that was passed in: never call them from an async task.

mod rustic_interface;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_storage::{ObjectKey, ObjectStorageError, ObjectStorageErrorKind, ObjectStore, PutMode};
use rustic_core::{ErrorKind, FileType, Id, RusticError, RusticResult};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind, Result, kind_of_storage_error};
use crate::metadata_cache::{CacheSettings, MetadataCache, hash};
use crate::write_deadline::WriteDeadline;
use rustic_interface::{file_name, id_of_name};

/// Packs that go up at the same time. Each holds one pack (16 MiB) in memory.
const PARALLEL_UPLOADS: usize = 4;

/// Closed once, when a job is canceled or has failed; from then on nothing is written any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteGuard(Arc<AtomicBool>);

impl WriteGuard {
    pub(crate) fn close(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What the owner of a backend may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// What happens to a snapshot file that rustic writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotWrites {
    /// Acknowledged and dropped: it is not yet known whether the backup is whole.
    HeldBack,
    /// Stored.
    Stored,
}

/// Requests to the object store: they are billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Whole objects and ranges read.
    pub get: u64,
    /// Objects written.
    pub put: u64,
    /// Listings (a long one may be several requests at the provider).
    pub list: u64,
    /// Deletions (each is verified by the provider's layer).
    pub delete: u64,
}

impl RequestCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.get + self.put + self.list + self.delete
    }
}

#[derive(Debug, Default)]
struct Counters {
    get: AtomicU64,
    put: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
}

/// The first request that failed.
#[derive(Debug, Clone)]
struct Failure {
    kind: BackupRepositoryErrorKind,
    subject: String,
    message: String,
}

type Upload = std::result::Result<(), (String, ObjectStorageError)>;

pub(crate) struct RepositoryBackend {
    store: Arc<dyn ObjectStore>,
    root: String,
    runtime: Handle,
    access: Access,
    cache: MetadataCache,
    guard: WriteGuard,
    deadline: Mutex<WriteDeadline>,
    snapshot_writes: Mutex<SnapshotWrites>,
    last_snapshot: Mutex<Option<Id>>,
    index_writes: AtomicU64,
    uploads: Mutex<JoinSet<Upload>>,
    upload_permits: Arc<Semaphore>,
    upload_barrier: Mutex<()>,
    windows: Mutex<HashMap<Id, Vec<(u32, Bytes)>>>,
    config: Mutex<Option<Bytes>>,
    only_key: Mutex<Option<Id>>,
    required_snapshots: Mutex<Vec<Id>>,
    /// Snapshots that listings lack, because they do not read.
    hidden_snapshots: Mutex<Vec<Id>>,
    listed_pack_bytes: AtomicU64,
    failure: Mutex<Option<Failure>>,
    counters: Counters,
}

impl fmt::Debug for RepositoryBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RepositoryBackend").field("root", &self.root).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RepositoryBackend {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        root: &str,
        runtime: Handle,
        access: Access,
        cache: Option<CacheSettings>,
    ) -> Self {
        Self {
            store,
            root: root.to_owned(),
            runtime,
            access,
            cache: MetadataCache::new(cache),
            guard: WriteGuard::default(),
            deadline: Mutex::default(),
            snapshot_writes: Mutex::new(SnapshotWrites::Stored),
            last_snapshot: Mutex::default(),
            index_writes: AtomicU64::new(0),
            uploads: Mutex::new(JoinSet::new()),
            upload_permits: Arc::new(Semaphore::new(PARALLEL_UPLOADS)),
            upload_barrier: Mutex::new(()),
            windows: Mutex::default(),
            config: Mutex::default(),
            only_key: Mutex::default(),
            required_snapshots: Mutex::default(),
            hidden_snapshots: Mutex::default(),
            listed_pack_bytes: AtomicU64::new(0),
            failure: Mutex::default(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn guard(&self) -> &WriteGuard {
        &self.guard
    }

    pub(crate) fn obey(&self, deadline: WriteDeadline) {
        *lock(&self.deadline) = deadline;
    }

    pub(crate) fn cache(&self) -> &MetadataCache {
        &self.cache
    }

    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    pub(crate) fn requests(&self) -> RequestCounts {
        RequestCounts {
            get: self.counters.get.load(Ordering::Relaxed),
            put: self.counters.put.load(Ordering::Relaxed),
            list: self.counters.list.load(Ordering::Relaxed),
            delete: self.counters.delete.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_snapshot_writes(&self, writes: SnapshotWrites) {
        *lock(&self.snapshot_writes) = writes;
    }

    /// The id of the snapshot file stored last: rustic does not tell it.
    pub(crate) fn last_snapshot(&self) -> Option<Id> {
        *lock(&self.last_snapshot)
    }

    /// How many index files were written: after that an index in memory is out of date.
    pub(crate) fn index_writes(&self) -> u64 {
        self.index_writes.load(Ordering::SeqCst)
    }

    /// Turns an error of rustic_core into ours: the request that failed first, where there was one.
    pub(crate) fn error(
        &self,
        operation: &'static str,
        subject: impl fmt::Display,
        error: &RusticError,
    ) -> BackupRepositoryError {
        self.take_failure(operation)
            .unwrap_or_else(|| BackupRepositoryError::from_rustic(operation, subject, error))
    }

    /// As [`Self::error`] while it is not yet known whether the key is the right one.
    pub(crate) fn error_of_opening(
        &self,
        subject: impl fmt::Display,
        error: &RusticError,
    ) -> BackupRepositoryError {
        self.take_failure("open").unwrap_or_else(|| BackupRepositoryError::of_opening(subject, error))
    }

    /// The first failed request since the last call, if any failed.
    pub(crate) fn take_failure(&self, operation: &'static str) -> Option<BackupRepositoryError> {
        lock(&self.failure).take().map(|failure| {
            BackupRepositoryError::new(failure.kind, operation, failure.subject, failure.message)
        })
    }

    /// Reads an object beside rustic's own files, `None` where there is none, and the config with it, which
    /// is wanted next.
    pub(crate) fn get_with_config(&self, name: &str) -> Result<Option<Bytes>> {
        let key = self.key(name).map_err(|error| self.error("read", name, &error))?;
        let config_key = self.key("config").map_err(|error| self.error("read", name, &error))?;
        self.counters.get.fetch_add(2, Ordering::Relaxed);
        let (beside, config) =
            self.runtime.block_on(async { tokio::join!(self.store.get(&key), self.store.get(&config_key)) });
        *lock(&self.config) = absent_as_none(config)?;
        absent_as_none(beside)
    }

    /// Whether there is a config: asked for, not listed.
    pub(crate) fn find_config(&self) -> Result<bool> {
        self.get_with_config("config").map(|config| config.is_some())
    }

    /// Shows only this one of the keys to rustic, or all.
    pub(crate) fn show_only_key(&self, id: Option<Id>) {
        *lock(&self.only_key) = id;
    }

    /// From now on, a listing of snapshots that lacks one of these is an error: whoever deletes what no snapshot
    /// names must not believe it.
    pub(crate) fn require_snapshots(&self, ids: Vec<Id>) {
        *lock(&self.required_snapshots) = ids;
    }

    /// The snapshots that a listing names, required or hidden ones or not.
    pub(crate) fn list_snapshots(&self) -> Result<Vec<Id>> {
        let prefix = format!("{}/{}/", self.root, FileType::Snapshot.dirname());
        self.counters.list.fetch_add(1, Ordering::Relaxed);
        let listed = self.runtime.block_on(self.store.list(&prefix));
        let listed = listed.map_err(|error| BackupRepositoryError::from_storage("list", error))?;
        let name = |key: &ObjectKey| {
            id_of_name(FileType::Snapshot, key.as_str().strip_prefix(&prefix).unwrap_or_default())
        };
        Ok(listed.iter().filter_map(|object| name(&object.key)).collect())
    }

    /// From now on, listings of snapshots lack these.
    pub(crate) fn hide_snapshots(&self, ids: Vec<Id>) {
        *lock(&self.hidden_snapshots) = ids;
    }

    /// The bytes of all packs together, by their latest listing.
    pub(crate) fn listed_pack_bytes(&self) -> u64 {
        self.listed_pack_bytes.load(Ordering::SeqCst)
    }

    fn check_required(&self, listed: &[(Id, u32)]) -> RusticResult<()> {
        let required = lock(&self.required_snapshots);
        let listed: std::collections::HashSet<&Id> = listed.iter().map(|(id, _)| id).collect();
        let Some(missing) = required.iter().find(|id| !listed.contains(id)) else { return Ok(()) };
        let subject = file_name(FileType::Snapshot, missing);
        lock(&self.failure).get_or_insert_with(|| Failure {
            kind: BackupRepositoryErrorKind::Damaged,
            subject: subject.clone(),
            message: "the catalog knows this backup, and the repository does not list it".to_owned(),
        });
        Err(RusticError::new(ErrorKind::Backend, format!("{subject} is not listed")))
    }

    /// Fetches a part of a pack, which serves every later read inside it until [`Self::drop_window`]:
    /// many small files are restored with one request.
    pub(crate) fn fetch_window(&self, pack: &Id, offset: u32, length: u32) -> Result<()> {
        let bytes = self
            .get_range(FileType::Pack, pack, offset, length)
            .map_err(|error| self.error("read pack", pack.to_hex().as_str(), &error))?;
        lock(&self.windows).entry(*pack).or_default().push((offset, bytes));
        Ok(())
    }

    pub(crate) fn drop_window(&self, pack: &Id, offset: u32) {
        let mut windows = lock(&self.windows);
        if let Some(parts) = windows.get_mut(pack) {
            parts.retain(|(start, _)| *start != offset);
            if parts.is_empty() {
                windows.remove(pack);
            }
        }
    }

    /// Waits until every pack is acknowledged.
    pub(crate) fn finish_uploads(&self) -> RusticResult<()> {
        // One at a time: a second caller must not find the set empty while the first still waits for it.
        let _barrier = lock(&self.upload_barrier);
        let mut uploads = std::mem::take(&mut *lock(&self.uploads));
        self.runtime.block_on(async {
            let mut first = Ok(());
            while let Some(upload) = uploads.join_next().await {
                if let Err(error) = self.uploaded(upload)
                    && first.is_ok()
                {
                    first = Err(error);
                }
            }
            first
        })
    }

    fn uploaded(&self, upload: std::result::Result<Upload, tokio::task::JoinError>) -> RusticResult<()> {
        match upload {
            Ok(Ok(())) => Ok(()),
            Ok(Err((key, error))) => {
                // Nothing that names the lost pack may be written now.
                self.guard.close();
                Err(self.failed("write", &key, error))
            }
            Err(error) => {
                self.guard.close();
                Err(RusticError::with_source(ErrorKind::Backend, "an upload did not end", error))
            }
        }
    }

    fn in_window(&self, pack: &Id, offset: u32, length: u32) -> Option<Bytes> {
        let windows = lock(&self.windows);
        windows.get(pack)?.iter().find_map(|(start, bytes)| {
            let from = offset.checked_sub(*start)? as usize;
            let to = from + length as usize;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }

    fn key(&self, name: &str) -> RusticResult<ObjectKey> {
        format!("{}/{name}", self.root).parse().map_err(|error: object_storage::ObjectKeyError| {
            RusticError::with_source(ErrorKind::Backend, "not an object key", error)
        })
    }

    fn file_key(&self, file_type: FileType, id: &Id) -> RusticResult<ObjectKey> {
        self.key(&file_name(file_type, id))
    }

    /// Keeps a failed request with its kind, and wraps it for rustic.
    fn failed(&self, operation: &str, subject: &str, error: ObjectStorageError) -> Box<RusticError> {
        let mut message = format!("{operation}: {error}");
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            message.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        let kind = kind_of_storage_error(&error);
        lock(&self.failure).get_or_insert_with(|| Failure { kind, subject: subject.to_owned(), message });
        RusticError::with_source(ErrorKind::Backend, "the object store failed", error)
    }

    fn damaged(&self, file_type: FileType, id: &Id) -> Box<RusticError> {
        let subject = file_name(file_type, id);
        lock(&self.failure).get_or_insert_with(|| Failure {
            kind: BackupRepositoryErrorKind::Damaged,
            subject: subject.clone(),
            message: "its content is not what was stored".to_owned(),
        });
        RusticError::new(ErrorKind::Verification, format!("{subject} does not match its hash"))
    }

    fn get(&self, file_type: FileType, id: &Id) -> RusticResult<Bytes> {
        let key = self.file_key(file_type, id)?;
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        let bytes = self
            .runtime
            .block_on(self.store.get(&key))
            .map_err(|error| self.failed("read", key.as_str(), error))?;
        Ok(bytes)
    }

    /// A file whose name is the hash of its content: every one but the config. It is read again before it is called
    /// damaged: bytes are spoilt on their way more often than where they lie.
    fn get_verified(&self, file_type: FileType, id: &Id) -> RusticResult<Bytes> {
        for _ in 0..2 {
            let bytes = self.get(file_type, id)?;
            if hash(&bytes) == *id {
                return Ok(bytes);
            }
            tracing::warn!(object.key = file_name(file_type, id), "what was read does not match its name");
        }
        Err(self.damaged(file_type, id))
    }

    /// A pack, whatever has become of it; `None` where it is not there.
    pub(crate) fn get_as_it_is(&self, pack: &Id) -> Result<Option<Bytes>> {
        self.get_whatever_it_is(FileType::Pack, pack)
    }

    /// The same of a snapshot.
    pub(crate) fn get_snapshot_as_it_is(&self, snapshot: &Id) -> Result<Option<Bytes>> {
        self.get_whatever_it_is(FileType::Snapshot, snapshot)
    }

    fn get_whatever_it_is(&self, file_type: FileType, id: &Id) -> Result<Option<Bytes>> {
        let key = self.file_key(file_type, id).map_err(|error| self.error("read", &self.root, &error))?;
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        absent_as_none(self.runtime.block_on(self.store.get(&key)))
    }

    fn get_cached(&self, file_type: FileType, id: &Id) -> RusticResult<Bytes> {
        if let Some(bytes) = self.cache.get(id) {
            return Ok(bytes);
        }
        let bytes = self.get_verified(file_type, id)?;
        self.cache.put(id, &bytes);
        Ok(bytes)
    }

    fn get_range(&self, file_type: FileType, id: &Id, offset: u32, length: u32) -> RusticResult<Bytes> {
        let key = self.file_key(file_type, id)?;
        self.counters.get.fetch_add(1, Ordering::Relaxed);
        self.runtime.block_on(self.store.get_range(&key, offset.into(), length.into())).map_err(|error| {
            let is_cut = error.kind() == ObjectStorageErrorKind::Permanent
                && self
                    .runtime
                    .block_on(self.store.head(&key))
                    .is_ok_and(|object| object.size_bytes < u64::from(offset) + u64::from(length));
            if is_cut { self.damaged(file_type, id) } else { self.failed("read", key.as_str(), error) }
        })
    }

    fn check_may_write(&self, subject: &str) -> RusticResult<()> {
        let refused = if self.guard.is_closed() {
            "the job was stopped: nothing is written any more"
        } else if lock(&self.deadline).has_passed() {
            let message = "its time is over: somebody else may be at work, and nothing is written any more";
            self.guard.close();
            lock(&self.failure).get_or_insert_with(|| Failure {
                kind: BackupRepositoryErrorKind::Retryable,
                subject: subject.to_owned(),
                message: message.to_owned(),
            });
            message
        } else if self.access != Access::ReadWrite {
            "the repository was opened for reading only"
        } else {
            return Ok(());
        };
        Err(RusticError::new(ErrorKind::Backend, format!("{subject}: {refused}")))
    }

    fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> RusticResult<()> {
        self.counters.put.fetch_add(1, Ordering::Relaxed);
        self.runtime
            .block_on(self.store.put(key, body, mode))
            .map_err(|error| self.failed("write", key.as_str(), error))
    }

    fn upload(&self, key: ObjectKey, body: Bytes) -> RusticResult<()> {
        let permit = self
            .runtime
            .block_on(Arc::clone(&self.upload_permits).acquire_owned())
            .map_err(|error| RusticError::with_source(ErrorKind::Backend, "uploads have ended", error))?;
        // The guard may have been closed during the wait.
        self.check_may_write(key.as_str())?;
        self.counters.put.fetch_add(1, Ordering::Relaxed);
        let store = Arc::clone(&self.store);
        let mut uploads = lock(&self.uploads);
        uploads.spawn_on(
            async move {
                let result = store.put(&key, body, PutMode::NamedByHash).await;
                drop(permit);
                result.map_err(|error| (key.as_str().to_owned(), error))
            },
            &self.runtime,
        );
        // Failures show as early as possible.
        while let Some(upload) = uploads.try_join_next() {
            self.uploaded(upload)?;
        }
        Ok(())
    }
}

fn absent_as_none(answer: std::result::Result<Bytes, ObjectStorageError>) -> Result<Option<Bytes>> {
    match answer {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => Ok(None),
        Err(error) => Err(BackupRepositoryError::from_storage("read", error)),
    }
}
