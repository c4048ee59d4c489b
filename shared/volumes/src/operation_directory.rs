//! The directory of one operation, and who holds it.
//!
//! Two attempts of one operation can overlap (the first was paused, not dead), and recovery runs in one
//! process while another works under the same host root. Whoever would use or clean up an operation's directory
//! therefore locks it first; the kernel gives the lock back when the holder dies.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::VolumeError;

/// A locked directory `<parent>/<op id>`, readable by the host only. The lock ends when this is dropped.
#[derive(Debug)]
pub(crate) struct OperationDirectory {
    path: PathBuf,
    op_id: Uuid,
    handle: OwnedFd,
}

impl OperationDirectory {
    /// Makes the directory if it is missing, and locks it. What it holds, if anything, is an earlier holder's.
    pub(crate) fn claim(parent: &Path, op_id: Uuid) -> Result<Self, VolumeError> {
        let path = parent.join(op_id.to_string());
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(VolumeError::io("create the directory", &path)(error));
                }
                _ => {}
            }
            if let Some(claimed) = Self::claim_existing(parent, op_id)? {
                return Ok(claimed);
            }
        }
    }

    /// Locks the directory; `None` if there is none.
    pub(crate) fn claim_existing(parent: &Path, op_id: Uuid) -> Result<Option<Self>, VolumeError> {
        let path = parent.join(op_id.to_string());
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(VolumeError::io("open the directory", &path))?,
        };
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(VolumeError::InUse { op_id, path }),
            other => other.map_err(VolumeError::io("lock the directory", &path))?,
        }
        // The last holder may have removed it between the opening and the locking.
        let locked = rustix::fs::fstat(&handle).map_err(VolumeError::io("look at", &path))?;
        match path.symlink_metadata() {
            Ok(named) if named.ino() == locked.st_ino => Ok(Some(Self { path, op_id, handle })),
            Ok(_) => Err(VolumeError::InUse { op_id, path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::io("look at", &path)(error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn op_id(&self) -> Uuid {
        self.op_id
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Removes the directory, which must be empty.
    pub(crate) fn remove(self) -> Result<(), VolumeError> {
        std::fs::remove_dir(&self.path).map_err(VolumeError::io("remove the directory", &self.path))
    }
}

impl Drop for OperationDirectory {
    /// Unlocks in so many words: a child process that is just being started holds a copy of the handle for a moment,
    /// and with it, if it were only closed here, the lock.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.handle, FlockOperation::Unlock) {
            tracing::debug!(path = %self.path.display(), %error, "could not unlock a directory");
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), VolumeError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(VolumeError::io("sync the directory", path))
}
