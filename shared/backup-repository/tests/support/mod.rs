//! What the tests of this crate share: a repository in a directory, trees with everything that a file system
//! can hold, a comparison that shares no code with the crate, and an object store that fails on demand.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this module")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use backup_repository::*;
use bytes::Bytes;
use object_storage::{
    Attributes, FileUpload, LocalSettings, ObjectDescription, ObjectKey, ObjectMetadata, ObjectStorageError,
    ObjectStorageErrorKind, ObjectStore, ProviderSettings, PutCondition, PutMode, UploadState,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use uuid::Uuid;

pub const BUCKET: &str = "backups";

/// An initialised repository on the local provider, with two source directories.
pub struct TestRepository {
    pub directory: TempDir,
    pub store: Arc<dyn ObjectStore>,
    pub identity: RepositoryIdentity,
    pub root: String,
    pub password: RepositoryPassword,
    pub key: RepositoryKey,
}

pub fn provider(directory: &Path) -> ProviderSettings {
    ProviderSettings::Local(LocalSettings { root: directory.join("objects") })
}

pub async fn local_store(directory: &Path) -> Arc<dyn ObjectStore> {
    fs::create_dir_all(directory.join("objects")).unwrap();
    let buckets = provider(directory).connect().unwrap();
    buckets.create_bucket(BUCKET, None).await.unwrap();
    buckets.open_bucket(BUCKET)
}

impl TestRepository {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = local_store(directory.path()).await;
        Self::on(directory, store).await
    }

    /// The same in another bucket.
    pub async fn on(directory: TempDir, store: Arc<dyn ObjectStore>) -> Self {
        let identity = RepositoryIdentity::new(Uuid::now_v7(), Uuid::now_v7());
        let root = repository_root(identity.project_id);
        let password = RepositoryPassword::generate();
        let key = initialise(Arc::clone(&store), &root, &identity, &password).await.unwrap();
        fs::create_dir(directory.path().join("project")).unwrap();
        fs::create_dir(directory.path().join("persist")).unwrap();
        Self { directory, store, identity, root, password, key }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn project(&self) -> PathBuf {
        self.path("project")
    }

    pub fn repository_path(&self) -> PathBuf {
        self.path("objects").join(BUCKET).join(&self.root)
    }

    pub fn location(&self) -> RepositoryLocation {
        self.location_on(Arc::clone(&self.store))
    }

    pub fn location_on(&self, store: Arc<dyn ObjectStore>) -> RepositoryLocation {
        RepositoryLocation {
            store,
            root: self.root.clone(),
            identity: self.identity.clone(),
            key: self.key.clone(),
            cache: None,
        }
    }

    pub fn request(&self, parent: Option<SnapshotId>) -> BackupRequest {
        BackupRequest {
            project: self.project(),
            persist: self.path("persist"),
            only: Vec::new(),
            source: SourceState::Live,
            parent,
            purpose: Purpose::Backup,
            op_id: Uuid::now_v7(),
            attempt: 1,
            tags: vec!["before-exam".to_owned()],
        }
    }

    pub async fn back_up(&self, request: BackupRequest) -> Result<BackupReceipt> {
        back_up(self.location(), request, Arc::new(NoProgress)).await
    }

    pub async fn restore(&self, snapshot: SnapshotId, target: RestoreTarget) -> Result<RestoreReceipt> {
        restore(
            self.location(),
            RestoreRequest { snapshot, target, sample: None, resume: false },
            Arc::new(NoProgress),
        )
        .await
    }

    pub fn whole(&self, name: &str) -> RestoreTarget {
        RestoreTarget::Whole {
            project: self.path(name).join("project"),
            persist: self.path(name).join("persist"),
        }
    }

    pub async fn check(&self) -> CheckReport {
        let (location, handle) = (self.location(), Handle::current());
        blocking(move || Repository::open_for_reading(location, handle).unwrap().check(true).unwrap()).await
    }

    pub async fn snapshots(&self) -> Vec<SnapshotSummary> {
        let (location, handle) = (self.location(), Handle::current());
        blocking(move || Repository::open_for_reading(location, handle).unwrap().snapshots().unwrap()).await
    }
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub async fn back_up(
    location: RepositoryLocation,
    request: BackupRequest,
    progress: Arc<dyn Progress>,
) -> Result<BackupReceipt> {
    let handle = Handle::current();
    blocking(move || Repository::open_for_writing(location, handle)?.back_up(&request, &progress)).await
}

pub async fn restore(
    location: RepositoryLocation,
    request: RestoreRequest,
    progress: Arc<dyn Progress>,
) -> Result<RestoreReceipt> {
    let handle = Handle::current();
    blocking(move || Repository::open_for_reading(location, handle)?.restore(&request, &progress)).await
}

/// Bytes that do not compress and do not repeat.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn set_mtime(path: &Path, seconds: u64, nanoseconds: u32) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    fs::File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
}

/// Fills a directory with everything that a backup has to bring back.
pub fn fill_with_everything(root: &Path) {
    let write = |name: &[u8], content: &[u8]| {
        let path = root.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    write(b"empty", b"");
    write(b"src/main.rs", b"fn main() {}\n");
    write(b"deep/er/and/deeper/file", b"deep");
    write("ünïcödé/日本語 🦀".as_bytes(), b"unicode");
    write(b"odd/new\nline \\ \"quoted\" \t tab", b"odd name");
    write(b"odd/not-utf8-\xff\xfe", b"bytes");
    write(b"odd/-", b"dash");
    write(b"odd/a.b", b"1");
    write(b"odd/a/b", b"2");
    write(b"large", &noise(30 * 1024 * 1024, 1));
    let setuid = write(b"modes/setuid", b"#!/bin/sh\n");
    fs::set_permissions(setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let none = write(b"modes/none", b"no permissions");
    // Only root can read it then.
    let mode = if is_root() { 0o000 } else { 0o400 };
    fs::set_permissions(none, fs::Permissions::from_mode(mode)).unwrap();
    let read_only = write(b"modes/read-only/file", b"in a read-only directory");
    fs::set_permissions(read_only.parent().unwrap(), fs::Permissions::from_mode(0o555)).unwrap();
    fs::create_dir(root.join("modes/sticky")).unwrap();
    fs::set_permissions(root.join("modes/sticky"), fs::Permissions::from_mode(0o3777)).unwrap();
    fs::create_dir(root.join("empty-directory")).unwrap();

    fs::create_dir(root.join("links")).unwrap();
    std::os::unix::fs::symlink("../src/main.rs", root.join("links/good")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", root.join("links/dangling")).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("links/absolute-directory")).unwrap();
    std::os::unix::fs::symlink(OsStr::from_bytes(b"not-utf8-\xff"), root.join("links/odd")).unwrap();
    let hard = write(b"links/hard-1", b"one file, three names");
    fs::hard_link(&hard, root.join("links/hard-2")).unwrap();
    fs::hard_link(&hard, root.join("src/hard-3")).unwrap();
    let twin = write(b"links/twin", b"one file, three names");
    set_mtime(&twin, 1_000_000_000, 1);

    xattr::set(root.join("src/main.rs"), "user.comment", b"binary \x00\xff value").unwrap();
    xattr::set(root.join("src"), "user.on-directory", b"").unwrap();

    let sparse = fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 8 * 1024 * 1024).unwrap();
    sparse.set_len(20 * 1024 * 1024).unwrap();

    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    if is_root() {
        let owned = write(b"owned/by-others", b"not root's");
        std::os::unix::fs::chown(owned, Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(root.join("links/dangling"), Some(1), Some(2)).unwrap();
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("device"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            device,
        )
        .unwrap();
    }
    set_mtime(&root.join("src/main.rs"), 1_234_567_890, 123_456_789);
    set_mtime(&root.join("empty-directory"), 946_684_800, 1);
    set_mtime(root, 1_600_000_000, 999_999_999);
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a file is, as the standard library sees it.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Facts {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    device: u64,
    content: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    first_link: Option<PathBuf>,
}

/// Everything below a directory, the directory itself as the empty path.
pub fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    collect(root, root, &mut found);
    let mut links = HashMap::new();
    for (path, (facts, key)) in &mut found {
        if let Some(key) = key {
            let first = links.entry(*key).or_insert_with(|| path.clone());
            facts.first_link = (first != path).then(|| first.clone());
        }
    }
    found.into_iter().map(|(path, (facts, _))| (path, facts)).collect()
}

type Found = BTreeMap<PathBuf, (Facts, Option<(u64, u64)>)>;

fn collect(root: &Path, path: &Path, found: &mut Found) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let file_type = metadata.file_type();
    let content = if file_type.is_file() {
        fs::read(path).unwrap()
    } else if file_type.is_symlink() {
        fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    let attributes = xattr::list(path)
        .unwrap()
        .map(|name| (name.as_bytes().to_vec(), xattr::get(path, &name).unwrap().unwrap()))
        .collect();
    let facts = Facts {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        device: metadata.rdev(),
        content,
        attributes,
        first_link: None,
    };
    let link = (!file_type.is_dir() && metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino()));
    found.insert(path.strip_prefix(root).unwrap().to_owned(), (facts, link));
    if file_type.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(root, &entry.unwrap().path(), found);
        }
    }
}

/// Compares two trees and names what differs, not its bytes.
pub fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (facts(one), facts(other));
    let paths = |facts: &BTreeMap<PathBuf, Facts>| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&one), paths(&other));
    for (path, facts) in &one {
        let other = &other[path];
        assert!(facts.content == other.content, "content of {path:?} differs");
        let without_content = |facts: &Facts| Facts { content: Vec::new(), ..facts.clone() };
        assert_eq!(without_content(facts), without_content(other), "{path:?}");
    }
}

/// What a request to a [`FaultyStore`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Put,
    Get,
    List,
    Delete,
}

type Rule = dyn Fn(Action, &str, u64) -> bool + Send + Sync;

/// An object store whose requests fail where the rule says so, given the action, the key and the number of
/// the request (from 0).
pub struct FaultyStore {
    pub inner: Arc<dyn ObjectStore>,
    pub rule: Box<Rule>,
    pub requests: AtomicU64,
}

impl FaultyStore {
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        rule: impl Fn(Action, &str, u64) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner, rule: Box::new(rule), requests: AtomicU64::new(0) })
    }

    fn check(&self, action: Action, subject: &str) -> Result<(), ObjectStorageError> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        if (self.rule)(action, subject, number) {
            let kind = ObjectStorageErrorKind::Retryable;
            return Err(ObjectStorageError::new(kind, "test", subject, "injected failure"));
        }
        Ok(())
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<(), ObjectStorageError> {
        self.check(Action::Put, key.as_str())?;
        self.inner.put(key, body, mode).await
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: PutCondition,
        attributes: &Attributes,
    ) -> Result<String, ObjectStorageError> {
        self.check(Action::Put, key.as_str())?;
        self.inner.put_if(key, body, condition, attributes).await
    }

    async fn upload_file(
        &self,
        key: &ObjectKey,
        file: &Path,
        upload: &FileUpload,
    ) -> Result<ObjectDescription, ObjectStorageError> {
        self.check(Action::Put, key.as_str())?;
        self.inner.upload_file(key, file, upload).await
    }

    async fn give_up_upload(&self, key: &ObjectKey, state: &UploadState) -> Result<(), ObjectStorageError> {
        self.check(Action::Delete, key.as_str())?;
        self.inner.give_up_upload(key, state).await
    }

    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription, ObjectStorageError> {
        self.check(Action::Get, key.as_str())?;
        self.inner.describe(key).await
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes, ObjectStorageError> {
        self.check(Action::Get, key.as_str())?;
        self.inner.get(key).await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, ObjectStorageError> {
        self.check(Action::Get, key.as_str())?;
        self.inner.get_range(key, offset, length).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata, ObjectStorageError> {
        self.check(Action::Get, key.as_str())?;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMetadata>, ObjectStorageError> {
        self.check(Action::List, prefix)?;
        self.inner.list(prefix).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), ObjectStorageError> {
        self.check(Action::Delete, keys.first().map_or("", ObjectKey::as_str))?;
        self.inner.delete(keys).await
    }
}
