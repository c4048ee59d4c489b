//! The journal of a restore or a copy: what is intended, written and synced before it is done.
//!
//! An exchange of two trees is two renames. After a crash between them nothing in the trees says which of them is
//! the new one, so the journal names the staged trees by number (of subvolume and inode, which a rename
//! keeps), and a later process sees where each has got to.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use domain_model::ProjectPath;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::VolumeError;
use crate::btrfs::Btrfs;
use crate::copy_into::{CopyEntry, CopyOptions, CopyReceipt};
use crate::operation_directory::{OperationDirectory, sync_directory};

const FILE_NAME: &str = "journal.json";
const FILE_NAME_BEING_WRITTEN: &str = "journal.json.new";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    /// 1. A journal of another version is unreadable to this code, and left alone.
    version: Version,
    pub(crate) project: Uuid,
    pub(crate) phase: Phase,
    pub(crate) work: Work,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Version {
    #[serde(rename = "1")]
    One,
}

/// How far a restore or a copy is. It only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The live trees are untouched; a crash rolls back.
    Staged,
    /// The staged content is complete and may be in place in part; a crash is rolled forward. A copy that nobody goes on
    /// with is dropped instead, by [`crate::HostRoot::recover`] once it is old, or by the next copy into the project.
    Exchanging,
    /// The new content is in place; what is staged is the old one, or what a copy has not put in place; to be deleted.
    Exchanged,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Work {
    /// Both trees of a project. The identities of the staged trees are known once the exchange begins.
    Whole {
        project: Option<TreeIdentity>,
        persist: Option<TreeIdentity>,
        /// Whether another attempt may go on with what is staged, so that a crash is no reason to delete it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        resumable: bool,
    },
    /// One path in the project's files; the inode number of the staging directory is known once there is one, from when on
    /// another attempt may go on with it, and that of the staged content once the exchange begins.
    Path {
        target: ProjectPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        staging_inode: Option<u64>,
        content_inode: Option<u64>,
    },
    /// Files and directories into the project's files; the inode number of the staging directory, and what has been
    /// staged, are known once they begin to be put in place.
    Copy {
        entries: Vec<CopyEntry>,
        options: CopyOptions,
        staging_inode: Option<u64>,
        receipt: Option<CopyReceipt>,
        /// Whether it was given up while it was being put in place, and what was staged yet was deleted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dropped: bool,
    },
}

/// What a tree is called by, wherever it is renamed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreeIdentity {
    /// The number of its btrfs subvolume; 0 on other filesystems.
    subvolume: u64,
    inode: u64,
}

impl TreeIdentity {
    /// The identity of the directory at `path`; `None` if there is nothing.
    pub(crate) fn of(btrfs: Option<&Btrfs>, path: &Path) -> Result<Option<Self>, VolumeError> {
        let inode = match path.symlink_metadata() {
            Ok(metadata) => metadata.ino(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(VolumeError::io("look at", path)(error)),
        };
        let subvolume = btrfs.map_or(Ok(0), |btrfs| btrfs.subvolume_id(path))?;
        Ok(Some(Self { subvolume, inode }))
    }
}

impl Journal {
    pub(crate) fn new(project: Uuid, work: Work) -> Self {
        Self { version: Version::One, project, phase: Phase::Staged, work }
    }

    /// Reads the journal in `directory`; `None` if there is none.
    pub(crate) fn read(directory: &OperationDirectory) -> Result<Option<Self>, VolumeError> {
        Self::read_in(directory.path())
    }

    /// The same without a lock; what it says may not be so any more.
    pub(crate) fn read_in(directory: &Path) -> Result<Option<Self>, VolumeError> {
        let path = directory.join(FILE_NAME);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| VolumeError::UnreadableJournal { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::io("read the journal", &path)(error)),
        }
    }

    /// Replaces the journal in `directory`. On return it will outlast a crash of the machine.
    pub(crate) fn write(&self, directory: &OperationDirectory) -> Result<(), VolumeError> {
        self.prepare(directory)?.replace(directory)
    }

    /// Writes the first journal in `directory`. It will outlast a crash of the machine that anything outlasts which is made
    /// after it on the same filesystem: names become durable in the order in which they were made.
    pub(crate) fn begin(&self, directory: &OperationDirectory) -> Result<(), VolumeError> {
        self.prepare(directory)?.put_in_place(directory)
    }

    /// Writes the journal beside the one in `directory`, which it does not replace yet. If the caller syncs the
    /// filesystem before it does, that is not done once more for the journal.
    pub(crate) fn prepare(&self, directory: &OperationDirectory) -> Result<PreparedJournal, VolumeError> {
        let path = directory.path().join(FILE_NAME_BEING_WRITTEN);
        let write = || -> std::io::Result<PreparedJournal> {
            let mut file = File::create(&path)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            Ok(PreparedJournal(file))
        };
        write().map_err(VolumeError::io("write the journal", &path))
    }

    /// Whether another attempt may go on with what is staged.
    pub(crate) fn is_resumable(&self) -> bool {
        self.phase == Phase::Staged && self.stays()
    }

    /// Whether what is staged, or was replaced, stays until it is known that there is no other attempt.
    pub(crate) fn stays(&self) -> bool {
        matches!(self.work, Work::Whole { resumable: true, .. } | Work::Path { .. })
    }

    /// Refuses a journal of another project.
    pub(crate) fn check_project(&self, project: Uuid, op_id: Uuid) -> Result<(), VolumeError> {
        if self.project == project {
            return Ok(());
        }
        Err(VolumeError::OtherProject { op_id, of: self.project, asked: project })
    }

    /// How long ago the journal in `directory` was written last; `None` if it was not, or in the future.
    pub(crate) fn age(directory: &OperationDirectory) -> Result<Option<Duration>, VolumeError> {
        let path = directory.path().join(FILE_NAME);
        match path.metadata().and_then(|metadata| metadata.modified()) {
            Ok(written) => Ok(now().duration_since(written).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::io("look at", &path)(error)),
        }
    }

    /// Whether an entry of an operation's directory is the journal itself.
    pub(crate) fn is_file_name(name: &std::ffi::OsStr) -> bool {
        name == FILE_NAME
    }

    pub(crate) fn delete(directory: &OperationDirectory) -> Result<(), VolumeError> {
        let path = directory.path().join(FILE_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(VolumeError::io("delete the journal", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A journal that is written, and not yet the one of its directory.
#[must_use]
#[derive(Debug)]
pub(crate) struct PreparedJournal(File);

impl PreparedJournal {
    /// Makes it that. Its name is not durable yet on return, its content is.
    fn put_in_place(self, directory: &OperationDirectory) -> Result<(), VolumeError> {
        let path = directory.path().join(FILE_NAME);
        let replace = || {
            self.0.sync_all()?;
            std::fs::rename(directory.path().join(FILE_NAME_BEING_WRITTEN), &path)
        };
        replace().map_err(VolumeError::io("write the journal", &path))
    }

    /// Makes it that. On return it will outlast a crash of the machine.
    pub(crate) fn replace(self, directory: &OperationDirectory) -> Result<(), VolumeError> {
        self.put_in_place(directory)?;
        sync_directory(directory.path())
    }
}

#[allow(clippy::disallowed_methods, reason = "compared with the times of this host's own files")]
fn now() -> SystemTime {
    SystemTime::now()
}
