//! What can go wrong with a volume, and what a caller may do about it.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// An operation on volumes that failed. Each variant names the operation and its subject; the cause, where there
/// is one, is the `source` and is not repeated in the message.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A call to the operating system failed.
    #[error("could not {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb phrase ("create the directory").
        operation: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The `btrfs` program failed.
    #[error("could not {operation} {} with btrfs: {message}", path.display())]
    Btrfs {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the program wrote to its standard error, on one line.
        message: String,
    },
    /// The project has no files on this host.
    #[error(
        "project {project} has no directory {} on this host: restore the whole backup here first, or start the project",
        path.display()
    )]
    ProjectNotFound {
        /// The project.
        project: Uuid,
        /// The directory that was looked for.
        path: PathBuf,
    },
    /// Nothing is staged for this operation (it was discarded, or recovery has ended it).
    #[error("nothing is staged for operation {op_id} at {}", path.display())]
    NotStaged {
        /// The operation.
        op_id: Uuid,
        /// What is missing.
        path: PathBuf,
    },
    /// A copy was put in place in part, and the rest was given up. Doing all of it again could undo what people have written
    /// since, so that is for a copy of its own.
    #[error("copy {op_id} was interrupted and is in place in part only; the rest was given up, copy again")]
    CopyDropped {
        /// The operation.
        op_id: Uuid,
    },
    /// Another holder of the same operation (an earlier attempt, or another process) is still at work.
    #[error("operation {op_id} is in use by another holder of {}", path.display())]
    InUse {
        /// The operation.
        op_id: Uuid,
        /// The directory that is locked.
        path: PathBuf,
    },
    /// The target of a path restore exists, and the caller asked to fail then.
    #[error("{} exists already", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// A component of a target path is a symbolic link or not a directory, so it may lead out of the project.
    #[error("{} is {found}, so a restore through it could leave the project", path.display())]
    NotADirectory {
        /// The component.
        path: PathBuf,
        /// What it is: "a symbolic link" or "not a directory".
        found: &'static str,
    },
    /// What is to be copied does not exist in the source.
    #[error("{} is not there to be copied", path.display())]
    SourceMissing {
        /// What was asked for, relative to the source.
        path: PathBuf,
    },
    /// Something in a source that should stand still was deleted or changed while it was copied.
    #[error("{} was deleted or changed while it was copied, from a source that should stand still", path.display())]
    SourceChanged {
        /// What it is, relative to the source.
        path: PathBuf,
    },
    /// A directory is to be copied, and the caller did not say that directories are.
    #[error("{} is a directory; set 'recursive' to copy directories", path.display())]
    DirectoryNotRecursive {
        /// The directory, relative to the source.
        path: PathBuf,
    },
    /// A symbolic link in what is to be copied cannot be followed.
    #[error("the symbolic link {} {reason}", path.display())]
    LinkRefused {
        /// The link, relative to the source.
        path: PathBuf,
        /// Why, as a verb phrase.
        reason: &'static str,
    },
    /// A copy would put a directory where something else is, or the reverse.
    #[error("{} is {found}, and {wanted} cannot take its place", path.display())]
    TypeConflict {
        /// The place.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What is to be copied there.
        wanted: &'static str,
    },
    /// Two things are to be copied to the same place.
    #[error("more than one thing is to be copied to {}", path.display())]
    SameTarget {
        /// The place, relative to the project.
        path: PathBuf,
    },
    /// The caller has ended a copy.
    #[error("copying {} was canceled", path.display())]
    Canceled {
        /// What was being copied.
        path: PathBuf,
    },
    /// The operation is one of another project.
    #[error("operation {op_id} is one of project {of}, not {asked}")]
    OtherProject {
        /// The operation.
        op_id: Uuid,
        /// Its project.
        of: Uuid,
        /// The project that the caller has named.
        asked: Uuid,
    },
    /// The target lies on another volume than the project (a nested subvolume or a mount), where no rename reaches.
    #[error("{} lies on another volume than its project, so nothing can be renamed into it", path.display())]
    OtherVolume {
        /// The target.
        path: PathBuf,
    },
    /// The directories of a host root are not all on one filesystem.
    #[error("{} and {} are on different filesystems; a host root needs one", first.display(), second.display())]
    DifferentFilesystems {
        /// One directory.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A journal cannot be read. Nothing that it may describe is touched.
    #[error("the journal {} is unreadable; its trees are left as they are", path.display())]
    UnreadableJournal {
        /// The journal file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A journal describes a tree that is not where an interrupted exchange can have left it.
    #[error("the staged tree {} is gone, and {} is not it", staged.display(), live.display())]
    StagedTreeLost {
        /// Where the staged tree should be.
        staged: PathBuf,
        /// The live tree.
        live: PathBuf,
    },
}

/// What a caller branches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeErrorKind {
    /// The project, what is to be copied, or what should be staged, does not exist.
    NotFound,
    /// The target exists already.
    AlreadyExists,
    /// The path cannot be used as asked: a symbolic link, a file where a directory must be, another volume.
    InvalidPath,
    /// Another holder is at work; a later attempt may succeed.
    InUse,
    /// The caller has ended it.
    Canceled,
    /// The disk or a quota is full; a later attempt may succeed.
    NoSpace,
    /// The process may not do this.
    PermissionDenied,
    /// State on disk that this crate has not written so: a person has to look.
    Damaged,
    /// Anything else; a later attempt may succeed.
    Other,
}

impl VolumeError {
    /// What a caller branches on.
    pub fn kind(&self) -> VolumeErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => VolumeErrorKind::NotFound,
                io::ErrorKind::AlreadyExists => VolumeErrorKind::AlreadyExists,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    VolumeErrorKind::PermissionDenied
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => VolumeErrorKind::NoSpace,
                _ => VolumeErrorKind::Other,
            },
            Self::Btrfs { .. } | Self::SourceChanged { .. } => VolumeErrorKind::Other,
            Self::ProjectNotFound { .. }
            | Self::NotStaged { .. }
            | Self::CopyDropped { .. }
            | Self::SourceMissing { .. } => VolumeErrorKind::NotFound,
            Self::Canceled { .. } => VolumeErrorKind::Canceled,
            Self::InUse { .. } => VolumeErrorKind::InUse,
            Self::TargetExists { .. } => VolumeErrorKind::AlreadyExists,
            Self::NotADirectory { .. }
            | Self::OtherVolume { .. }
            | Self::DirectoryNotRecursive { .. }
            | Self::LinkRefused { .. }
            | Self::TypeConflict { .. }
            | Self::SameTarget { .. } => VolumeErrorKind::InvalidPath,
            Self::DifferentFilesystems { .. }
            | Self::OtherProject { .. }
            | Self::UnreadableJournal { .. }
            | Self::StagedTreeLost { .. } => VolumeErrorKind::Damaged,
        }
    }

    /// For `map_err`: wraps the system's answer with what was tried and on what.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_both_no_space() {
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            let error = VolumeError::io("write", Path::new("/x"))(errno);
            assert_eq!(error.kind(), VolumeErrorKind::NoSpace);
        }
    }
}
