//! A repository's metadata (indexes, snapshots, packs of trees) kept near, because an unchanged backup
//! otherwise costs one request per directory.
//!
//! Three traps are avoided. A process killed while it writes leaves a cut file: files are written aside and
//! renamed, and since every name is the SHA-256 of the content, each is verified when it is loaded. An
//! unbounded cache fills the root disk: it is trimmed, oldest use first, and any part of it may be deleted
//! at any time. A cached object may be gone from the repository: what exists is decided by listings, which
//! are never cached.
//!
//! The contents are as encrypted as they are in the bucket. One directory may serve all projects of a host.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use rustic_core::Id;
use sha2::{Digest, Sha256};

/// What a job keeps in memory at most, in bytes.
const MEMORY_LIMIT_BYTES: usize = 32 * 1024 * 1024;

/// Trimming looks at every file of a cache that serves a whole host, so a job does it with the probability
/// that it was the one to fill the last sixteenth of the limit.
const TRIM_SHARE: u64 = 16;

/// Where the local cache of metadata is, and how large it may grow.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// Its directory, created when it is missing. May be shared by all projects and jobs of a host.
    pub directory: PathBuf,
    /// What it is trimmed to, in bytes. It may hold a few sixteenths more for a while.
    pub limit_bytes: u64,
}

impl CacheSettings {
    /// The bytes that are in it: every file of it is looked at. What cannot be looked at counts as nothing.
    pub fn bytes_held(&self) -> u64 {
        files_in(&self.directory).map_or(0, |files| files.iter().map(|(_, size, _)| size).sum())
    }
}

#[derive(Debug, Default)]
struct Memory {
    objects: HashMap<Id, Bytes>,
    order: VecDeque<Id>,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct MetadataCache {
    settings: Option<CacheSettings>,
    memory: Mutex<Memory>,
    written_bytes: AtomicU64,
}

impl MetadataCache {
    pub(crate) fn new(settings: Option<CacheSettings>) -> Self {
        Self { settings, memory: Mutex::default(), written_bytes: AtomicU64::new(0) }
    }

    /// The object with this hash, from memory or (verified) from disk.
    pub(crate) fn get(&self, id: &Id) -> Option<Bytes> {
        if let Some(bytes) = self.memory().objects.get(id) {
            return Some(bytes.clone());
        }
        let path = self.path(id)?;
        let bytes = Bytes::from(std::fs::read(&path).ok()?);
        if hash(&bytes) != *id {
            tracing::warn!(cache.path = %path.display(), "removed a damaged file from the metadata cache");
            let _ = std::fs::remove_file(&path);
            return None;
        }
        if let Ok(file) = File::open(&path) {
            let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        }
        self.keep_in_memory(*id, &bytes);
        Some(bytes)
    }

    /// Keeps an object. A disk that refuses is no error: the cache is only an aid.
    pub(crate) fn put(&self, id: &Id, bytes: &Bytes) {
        self.keep_in_memory(*id, bytes);
        if let Some(path) = self.path(id) {
            match write_aside(&path, bytes) {
                Ok(()) => {
                    self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::warn!(cache.path = %path.display(), %error, "cannot write to the metadata cache");
                }
            }
        }
    }

    /// Brings the directory under its limit again: always after as much as a sixteenth of it was written by
    /// this process, else once in as many calls as it takes to write that.
    pub(crate) fn trim(&self) {
        let written_bytes = self.written_bytes.swap(0, Ordering::Relaxed);
        if let Some(settings) = &self.settings
            && written_bytes > 0
            && written_bytes >= rand::random_range(0..=settings.limit_bytes / TRIM_SHARE)
            && let Err(error) = trim_directory(&settings.directory, settings.limit_bytes)
        {
            tracing::warn!(cache.path = %settings.directory.display(), %error, "cannot trim the metadata cache");
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_in_memory(&self, id: Id, bytes: &Bytes) {
        let mut memory = self.memory();
        if bytes.len() > MEMORY_LIMIT_BYTES / 2 || memory.objects.insert(id, bytes.clone()).is_some() {
            return;
        }
        memory.order.push_back(id);
        memory.bytes += bytes.len();
        while memory.bytes > MEMORY_LIMIT_BYTES
            && let Some(oldest) = memory.order.pop_front()
        {
            if let Some(dropped) = memory.objects.remove(&oldest) {
                memory.bytes -= dropped.len();
            }
        }
    }

    fn path(&self, id: &Id) -> Option<PathBuf> {
        let hex = id.to_hex();
        self.settings.as_ref().map(|settings| settings.directory.join(&hex.as_str()[..2]).join(hex.as_str()))
    }
}

/// SHA-256 as rustic names files and blobs.
pub(crate) fn hash(bytes: &[u8]) -> Id {
    Id::new(Sha256::digest(bytes).into())
}

fn write_aside(path: &Path, bytes: &Bytes) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = File::create(&aside).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| std::fs::rename(&aside, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&aside);
    })
}

/// The files of a cache: when each was used last, its length, its path.
fn files_in(directory: &Path) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
    let mut files = Vec::new();
    for shelf in std::fs::read_dir(directory)? {
        let shelf = shelf?;
        if !shelf.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(shelf.path())? {
            let file = file?;
            // Another job may have trimmed the same file.
            if let Ok(metadata) = file.metadata()
                && let Ok(used) = metadata.modified()
            {
                files.push((used, metadata.len(), file.path()));
            }
        }
    }
    Ok(files)
}

fn trim_directory(directory: &Path, limit_bytes: u64) -> io::Result<()> {
    let mut files = files_in(directory)?;
    let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
    files.sort();
    for (_, size, path) in files {
        if total <= limit_bytes {
            break;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => total -= size,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn settings(directory: &Path, limit_bytes: u64) -> Option<CacheSettings> {
        Some(CacheSettings { directory: directory.to_owned(), limit_bytes })
    }

    #[test]
    fn a_cut_file_is_dropped_instead_of_served() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = Bytes::from_static(b"an index, encrypted");
        let id = hash(&bytes);
        MetadataCache::new(settings(directory.path(), 1000)).put(&id, &bytes);

        let cache = MetadataCache::new(settings(directory.path(), 1000));
        assert_eq!(cache.get(&id), Some(bytes.clone()));
        let path = cache.path(&id).unwrap();
        std::fs::write(&path, b"an index").unwrap();
        let cache = MetadataCache::new(settings(directory.path(), 1000));
        assert_eq!(cache.get(&id), None);
        assert!(!path.exists());
    }

    #[test]
    fn it_is_trimmed_to_its_limit_oldest_first() {
        let directory = tempfile::tempdir().unwrap();
        let cache = MetadataCache::new(settings(directory.path(), 250));
        let objects: Vec<_> = (0..4_u8).map(|byte| Bytes::from(vec![byte; 100])).collect();
        for (age, object) in objects.iter().enumerate() {
            cache.put(&hash(object), object);
            let file = File::open(cache.path(&hash(object)).unwrap()).unwrap();
            let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            file.set_times(FileTimes::new().set_modified(used)).unwrap();
        }
        cache.trim();
        let left: Vec<_> = objects.iter().map(|object| cache.path(&hash(object)).unwrap().exists()).collect();
        assert_eq!(left, [false, false, true, true]);
    }

    #[test]
    fn many_small_jobs_keep_it_near_its_limit_though_few_of_them_trim_it() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..1000_u32 {
            let cache = MetadataCache::new(settings(directory.path(), 16_000));
            let bytes = Bytes::from(number.to_le_bytes().repeat(25));
            cache.put(&hash(&bytes), &bytes);
            cache.trim();
        }
        let files = walkdir::WalkDir::new(directory.path()).into_iter().map(Result::unwrap);
        let total: u64 =
            files.filter(|file| file.file_type().is_file()).map(|file| file.metadata().unwrap().len()).sum();
        // Twice the limit would be 160 jobs in a row that do not trim, each with a probability below 0.9.
        assert!((14_000..32_000).contains(&total), "{total}");
    }

    #[test]
    fn it_works_in_memory_without_a_directory() {
        let cache = MetadataCache::new(None);
        let bytes = Bytes::from_static(b"a pack of trees");
        cache.put(&hash(&bytes), &bytes);
        assert_eq!(cache.get(&hash(&bytes)), Some(bytes));
    }
}
