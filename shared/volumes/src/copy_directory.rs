//! What a copy brings to a host before it is copied into a project, and what it takes from one.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;

use domain_model::ProjectPath;
use rustix::fs::Mode;
use rustix::io::Errno;
use uuid::Uuid;

use crate::VolumeError;
use crate::copy_into::{CopyProgress, CopyReceipt, split};
use crate::deletion::delete_tree;
use crate::host_root::HostRoot;
use crate::operation_directory::OperationDirectory;
use crate::pair_walk::DIRECTORY;
use crate::tree_copy::{CopyStyle, Ownership, TreeCopy, c_name, make_parents};

/// A directory of the host's own, which no tenant sees. It is locked while this lives; dropping this without
/// [`HostRoot::discard_copy_directory`] leaves it for [`HostRoot::recover`].
#[derive(Debug)]
pub struct CopyDirectory {
    directory: OperationDirectory,
}

impl CopyDirectory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl HostRoot {
    /// A directory `<host root>/copies/<id>/` for what a copy brings to this host. It is empty at first: what an earlier
    /// holder has left is deleted.
    ///
    /// # Errors
    ///
    /// `InUse` if another holder is still at work.
    pub fn copy_directory(&self, id: Uuid) -> Result<CopyDirectory, VolumeError> {
        let directory = OperationDirectory::claim(&self.copies(), id)?;
        self.empty(&directory)?;
        Ok(CopyDirectory { directory })
    }

    /// Deletes such a directory and all in it.
    ///
    /// # Errors
    ///
    /// What cannot be deleted; it is then left for [`HostRoot::recover`].
    pub fn discard_copy_directory(&self, directory: CopyDirectory) -> Result<(), VolumeError> {
        self.delete_copy_directory(directory.directory)
    }

    pub(crate) fn delete_copy_directory(&self, directory: OperationDirectory) -> Result<(), VolumeError> {
        self.empty(&directory)?;
        directory.remove()
    }

    fn empty(&self, directory: &OperationDirectory) -> Result<(), VolumeError> {
        let path = directory.path();
        for entry in std::fs::read_dir(path).map_err(VolumeError::io("list", path))? {
            let entry = entry.map_err(VolumeError::io("list", path))?;
            delete_tree(&self.btrfs, &entry.path())?;
        }
        Ok(())
    }

    /// Copies `paths` out of the tree `source` into `into/<path>` with all symbolic links followed, as far as they lead
    /// to something beneath `source`. Modes, owners and times are kept; data is shared where the filesystem can.
    /// `into` must be a directory that only the host can enter, and have nothing at those paths. `source_is_live` is as in
    /// [`CopyRequest`](crate::CopyRequest).
    ///
    /// `go_on` is called now and then; `Break` ends it, and what is copied so far is the caller's to delete.
    ///
    /// # Errors
    ///
    /// `NotFound` if a path is not there; `InvalidPath` for a link that leads out of `source`, to nothing or in a
    /// circle; `Canceled`; `NoSpace`; `Other` if something is deleted from a source that should stand still. What is copied so far is the caller's to delete then, too.
    pub fn gather(
        &self,
        source: &Path,
        source_is_live: bool,
        paths: &[ProjectPath],
        into: &Path,
        go_on: &mut dyn FnMut(CopyProgress) -> ControlFlow<()>,
    ) -> Result<CopyReceipt, VolumeError> {
        let style = CopyStyle {
            ownership: Ownership::Kept,
            recursive: true,
            dereference: true,
            timestamps: true,
            source_is_live,
        };
        let failed = |errno: Errno| VolumeError::io("gather files in", into)(errno);
        let target = rustix::fs::open(into, DIRECTORY, Mode::empty()).map_err(failed)?;
        let mut copy = TreeCopy::new(source, style, go_on)?;
        for path in without_covered(paths) {
            let (parents, last) = split(path);
            let parent = make_parents(target.as_fd(), parents, None).map_err(failed)?;
            copy.copy(path, parent.as_fd(), &c_name(last).map_err(failed)?)?;
        }
        Ok(copy.receipt().clone())
    }
}

/// Each path once, and none that is beneath another: that one brings it along.
fn without_covered(paths: &[ProjectPath]) -> Vec<&ProjectPath> {
    let mut sorted: Vec<&ProjectPath> = paths.iter().collect();
    sorted.sort_by(|a, b| a.components().cmp(b.components()));
    sorted.dedup_by(|next, kept| next.as_path().starts_with(kept.as_path()));
    sorted
}
