//! Where copies are made, and where those wait that could not be uploaded yet.
//!
//! ```text
//! work/lock                       held by the one operation at a time, across processes
//! work/temporary-<random>/        a copy being made; swept by the next operation after a kill
//! work/pending/<id>               a checked copy that is to be uploaded
//! work/pending/<id>.json          what it is, and how far its upload is; without it the copy is swept
//! ```
//!
//! A copy becomes pending before its upload begins. So what a crash in mid-upload leaves is a copy that the next start
//! uploads, from where it stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use object_storage::{Attributes, UploadState};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind, Result};

const TEMPORARY: &str = "temporary-";
const PENDING: &str = "pending";

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct WorkDirectory {
    path: PathBuf,
}

/// The one operation at a time. Ends when dropped.
#[derive(Debug)]
pub(crate) struct WorkLock {
    file: File,
}

impl Drop for WorkLock {
    /// Closing is not enough: a process that is being started has the same open file until it has become its program, and
    /// with it the lock, which the next operation would meet.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the work directory could not be unlocked");
        }
    }
}

/// A directory that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
}

/// What a pending copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PendingUpload {
    /// The backup that it is to become.
    pub(crate) id: String,
    /// What the object is to say about itself.
    pub(crate) attributes: Attributes,
    /// How far the upload is.
    pub(crate) state: Option<UploadState>,
}

impl WorkDirectory {
    /// Makes it where it is missing, for its owner alone: copies of the database are as secret as itself.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let failed = |error| Failure::io(format_args!("making the work directory {}", path.display()), error);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path.join(PENDING)).map_err(failed)?;
        Ok(Self { path })
    }

    /// Takes the lock and sweeps what killed operations have left.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Busy`] if another process has it.
    pub(crate) fn lock(&self) -> Result<WorkLock> {
        let path = self.path.join("lock");
        let failed = |error| Failure::io(format_args!("locking {}", path.display()), error);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let message = "another process backs this database up or restores it";
                return Err(Failure::new(FailureKind::Busy, message));
            }
            Err(error) => return Err(failed(error.into())),
        }
        self.sweep().map_err(|error| Failure::io("sweeping the work directory", error))?;
        Ok(WorkLock { file })
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        for entry in fs::read_dir(self.path.join(PENDING))? {
            let path = entry?.path();
            let described = path.extension().is_some_and(|extension| extension == "json");
            let partner = if described { path.with_extension("") } else { json_of(&path) };
            if !partner.exists() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// A directory for one operation.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub(crate) fn temporary(&self) -> Result<Temporary> {
        let path = self.path.join(format!("{TEMPORARY}{:016x}", rand::random::<u64>()));
        fs::create_dir(&path)
            .map_err(|error| Failure::io(format_args!("making {}", path.display()), error))?;
        Ok(Temporary { path })
    }

    /// Refuses where fewer than `needed` bytes are free.
    ///
    /// # Errors
    ///
    /// [`FailureKind::NoSpace`].
    pub(crate) fn require_space(&self, needed: u64) -> Result<()> {
        require_space(&self.path, needed)
    }

    /// Makes a checked copy pending.
    ///
    /// # Errors
    ///
    /// If it cannot be moved or described.
    pub(crate) fn add_pending(&self, copy: &Path, pending: &PendingUpload) -> Result<PathBuf> {
        let path = self.pending_path(&pending.id);
        self.describe_pending(pending)?;
        let moved = File::open(copy)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(copy, &path))
            .and_then(|()| File::open(self.path.join(PENDING))?.sync_all());
        moved.map_err(|error| Failure::io(format_args!("keeping the copy at {}", path.display()), error))?;
        Ok(path)
    }

    /// Writes down what a pending copy is.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn describe_pending(&self, pending: &PendingUpload) -> Result<()> {
        let path = json_of(&self.pending_path(&pending.id));
        write_json(&path, pending)
            .map_err(|error| Failure::io(format_args!("writing {}", path.display()), error))
    }

    /// Where the copy of a pending upload is.
    pub(crate) fn pending_path(&self, id: &str) -> PathBuf {
        self.path.join(PENDING).join(id)
    }

    /// All pending copies, oldest first.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub(crate) fn pending(&self) -> Result<Vec<PendingUpload>> {
        let directory = self.path.join(PENDING);
        let failed = |error| Failure::io(format_args!("reading {}", directory.display()), error);
        let mut found: Vec<PendingUpload> = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let json = fs::read(&path).map_err(failed)?;
                found.push(serde_json::from_slice(&json).map_err(|error| failed(error.into()))?);
            }
        }
        let stamp = |pending: &PendingUpload| pending.attributes.get("timestamp").cloned();
        found.sort_by_key(|pending| (stamp(pending), pending.id.clone()));
        Ok(found)
    }

    /// Removes a pending copy.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub(crate) fn remove_pending(&self, id: &str) -> Result<()> {
        let path = self.pending_path(id);
        for file in [&path, &json_of(&path)] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::io(format_args!("removing {}", file.display()), error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Temporary {
    /// A file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a temporary directory is left until the next operation");
        }
    }
}

fn json_of(path: &Path) -> PathBuf {
    crate::copy::with_suffix(path, ".json")
}

/// Writes a file whole, or not at all, and durably.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let being_written = crate::copy::with_suffix(path, ".new");
    let mut file = File::create(&being_written)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&being_written, path)?;
    sync_directory_of(path)
}

/// Makes the names beside a path durable.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Refuses where fewer than `needed` bytes, and a little more, are free at `path`.
pub(crate) fn require_space(path: &Path, needed: u64) -> Result<()> {
    const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
    let found = rustix::fs::statvfs(path).map_err(|error| {
        Failure::io(format_args!("asking for the free space of {}", path.display()), error.into())
    })?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= needed.saturating_add(RESERVE_BYTES) {
        return Ok(());
    }
    let message = format!(
        "{} has {free} bytes free and {} are needed: make room, or set work.directory to another volume",
        path.display(),
        needed.saturating_add(RESERVE_BYTES)
    );
    Err(Failure::new(FailureKind::NoSpace, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kill_leaves_is_swept_and_a_pending_copy_stays() {
        let directory = tempfile::tempdir().unwrap();
        let work = WorkDirectory::open(directory.path().join("work")).unwrap();
        let temporary = work.temporary().unwrap();
        let copy = temporary.join("copy");
        fs::write(&copy, "copy").unwrap();
        let attributes = Attributes::from([("timestamp".to_owned(), "2026-01-01T00:00:00Z".to_owned())]);
        let pending = PendingUpload { id: "a.duckdb".to_owned(), attributes, state: None };
        let kept = work.add_pending(&copy, &pending).unwrap();
        let killed = work.temporary().unwrap();
        fs::write(killed.join("copy"), "half").unwrap();
        std::mem::forget(killed);
        drop(temporary);
        fs::write(work.pending_path("stray.duckdb"), "x").unwrap();

        let lock = work.lock().unwrap();
        assert_eq!(work.lock().unwrap_err().kind(), FailureKind::Busy);
        // As a process that is just being started has it.
        let inherited = lock.file.try_clone().unwrap();
        drop(lock);
        drop(work.lock().unwrap());
        drop(inherited);
        let names: Vec<_> =
            fs::read_dir(directory.path().join("work")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(work.pending().unwrap(), [pending]);
        assert_eq!(fs::read_to_string(kept).unwrap(), "copy");
        work.remove_pending("a.duckdb").unwrap();
        work.remove_pending("a.duckdb").unwrap();
        assert!(work.pending().unwrap().is_empty());
        assert_eq!(fs::read_dir(directory.path().join("work/pending")).unwrap().count(), 0);
    }

    #[test]
    fn too_little_room_is_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        assert!(require_space(directory.path(), 1).is_ok());
        assert_eq!(require_space(directory.path(), u64::MAX / 2).unwrap_err().kind(), FailureKind::NoSpace);
    }
}
