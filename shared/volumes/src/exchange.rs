//! Putting staged trees in the place of the live ones, and ending what a crash has interrupted.
//!
//! Each tree changes place by one rename, and a crash can come before, between and after. What to do next is
//! therefore decided from what is on disk (is the live tree the one that the journal calls new?), never from what
//! this process believes to have done. So doing it again is always right.

use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use uuid::Uuid;

use crate::VolumeError;
use crate::deletion::delete_tree;
use crate::host_root::HostRoot;
use crate::journal::{Journal, Phase, TreeIdentity, Work};
use crate::operation_directory::{OperationDirectory, sync_directory};
use crate::rename::{Exchange, exchange, place};
use crate::whole_restore::Staged;

/// How something left in a staging directory was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The new content is in place.
    Finished,
    /// The old content is in place, as if the restore or copy had never begun.
    RolledBack,
    /// The old content is in place, and what is staged stays for another attempt.
    Kept,
    /// A copy that was in place in part: the rest is deleted, and a record stays.
    Dropped,
    /// A copy that had been in place before; its record stays.
    Recorded,
    /// A copy that had been in place before, so long ago that its record goes.
    Expired,
}

impl HostRoot {
    /// Puts both staged trees in the place of the live ones, and the live ones in the place of the staged ones.
    /// The staged content is made durable first. Calling it again after it was done, or after it failed, is fine.
    /// End with [`HostRoot::discard`].
    ///
    /// # Errors
    ///
    /// `NotFound` if a staged tree is missing. After any other error the exchange may be half done; calling it again,
    /// [`HostRoot::discard`] or [`HostRoot::recover`] finishes it.
    pub fn exchange(&self, staged: &Staged) -> Result<(), VolumeError> {
        self.exchange_trees(staged, true)
    }

    /// As [`HostRoot::exchange`], but leaves the persist store as it is: only the files take their place.
    ///
    /// # Errors
    ///
    /// As [`HostRoot::exchange`].
    pub fn exchange_files(&self, staged: &Staged) -> Result<(), VolumeError> {
        self.exchange_trees(staged, false)
    }

    fn exchange_trees(&self, staged: &Staged, with_persist_store: bool) -> Result<(), VolumeError> {
        let directory = &staged.directory;
        let not_staged = |path: PathBuf| VolumeError::NotStaged { op_id: directory.op_id(), path };
        let mut journal = Journal::read(directory)?.ok_or_else(|| not_staged(directory.path().to_owned()))?;
        if journal.phase == Phase::Staged {
            let identity = |tree: &Path| {
                TreeIdentity::of(self.btrfs_if_there(), tree)?
                    .ok_or_else(|| not_staged(tree.to_owned()))
                    .map(Some)
            };
            journal.work = Work::Whole {
                project: identity(&staged.project_dir)?,
                persist: if with_persist_store { identity(&staged.persist_dir)? } else { None },
                resumable: matches!(journal.work, Work::Whole { resumable: true, .. }),
            };
            // The old trees are deleted soon; the new ones must not be in memory only by then.
            rustix::fs::syncfs(directory.handle()).map_err(VolumeError::io("sync", directory.path()))?;
            journal.phase = Phase::Exchanging;
            journal.write(directory)?;
            self.steps.done("the exchange is in the journal")?;
        }
        self.finish_whole(directory, &mut journal)
    }

    /// Whether an earlier attempt of the restore `op_id` of `project` has put what it restored in place: an exchange that was
    /// begun is finished. Whoever restores once more overwrites what people have edited since.
    ///
    /// # Errors
    ///
    /// `InUse` if an earlier attempt is still at work; `Damaged` if what it left cannot be understood.
    pub fn was_exchanged(&self, project: Uuid, op_id: Uuid) -> Result<bool, VolumeError> {
        let Some(directory) = OperationDirectory::claim_existing(&self.staging(), op_id)? else {
            return Ok(false);
        };
        match Journal::read(&directory)? {
            Some(mut journal) if journal.stays() && journal.project == project => {
                self.finish(&directory, &mut journal)?;
                Ok(journal.phase == Phase::Exchanged)
            }
            _ => Ok(false),
        }
    }

    /// Takes a restore in the phase `Exchanging` to `Exchanged`; that of a path stays where nothing of it is in place.
    pub(crate) fn finish(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
    ) -> Result<(), VolumeError> {
        match journal.work {
            Work::Path { .. } => self.finish_path(directory, journal),
            _ => self.finish_whole(directory, journal),
        }
    }

    /// Takes a whole restore in the phase `Exchanging` to `Exchanged`.
    pub(crate) fn finish_whole(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
    ) -> Result<(), VolumeError> {
        if journal.phase == Phase::Exchanging
            && let Work::Whole { project, persist, .. } = journal.work
        {
            let id = journal.project;
            for (new, name, live) in
                [(project, "project", self.project_dir(id)), (persist, "persist", self.persist_dir(id))]
            {
                if let Some(new) = new {
                    self.exchange_tree(directory, new, name, &live)?;
                }
            }
            journal.phase = Phase::Exchanged;
            journal.write(directory)?;
            self.steps.done("the end of the exchange is in the journal")?;
        }
        Ok(())
    }

    fn exchange_tree(
        &self,
        directory: &OperationDirectory,
        new: TreeIdentity,
        name: &str,
        live: &Path,
    ) -> Result<(), VolumeError> {
        let staged = directory.path().join(name);
        let identity = |path: &Path| TreeIdentity::of(self.btrfs_if_there(), path);
        if identity(live)? == Some(new) {
            return Ok(());
        }
        if identity(&staged)? != Some(new) {
            return Err(VolumeError::StagedTreeLost { staged, live: live.to_owned() });
        }
        let failed = |errno: Errno| VolumeError::io("put a restored tree in the place of", live)(errno);
        let mut exchanged = Exchange::Unsupported;
        if identity(live)?.is_some() {
            if self.use_rename_exchange {
                exchanged = exchange(CWD, &staged, CWD, live).map_err(failed)?;
            }
            if exchanged == Exchange::Unsupported {
                // A crash may have come just here before, and somebody may have made the live tree anew since.
                let mut names = (0..).map(|n| directory.path().join(format!("old-{name}-{n}")));
                let free = names.find(|name| name.symlink_metadata().is_err());
                let moved_away = free.expect("the numbers do not end");
                place(CWD, live, CWD, &moved_away).map_err(failed)?;
                self.steps.done("a live tree is moved away")?;
            }
        }
        if exchanged == Exchange::Unsupported {
            place(CWD, &staged, CWD, live).map_err(failed)?;
        }
        self.steps.done("a tree is exchanged")?;
        sync_directory(live.parent().unwrap_or(self.path()))?;
        sync_directory(directory.path())?;
        self.steps.done("the exchange of a tree is durable")
    }

    /// Ends whatever a staging directory holds, by its journal: rolled back if no live tree can have been touched, else
    /// finished. Afterwards the directory is gone, but for the record of a copy that is in place, in part at least.
    pub(crate) fn settle(&self, directory: OperationDirectory) -> Result<Settled, VolumeError> {
        let settled = match Journal::read(&directory)? {
            None => Settled::RolledBack,
            Some(mut journal) => match journal.work.clone() {
                Work::Whole { .. } => {
                    self.finish_whole(&directory, &mut journal)?;
                    if journal.phase == Phase::Staged { Settled::RolledBack } else { Settled::Finished }
                }
                Work::Path { .. } => self.settle_path(&directory, &mut journal)?,
                Work::Copy { .. } => match self.settle_copy(&directory, &mut journal)? {
                    settled @ (Settled::Finished | Settled::Dropped | Settled::Recorded) => {
                        return Ok(settled);
                    }
                    settled => settled,
                },
            },
        };
        self.remove_operation(directory)?;
        Ok(settled)
    }

    /// Deletes a staging directory and all in it.
    pub(crate) fn remove_operation(&self, directory: OperationDirectory) -> Result<(), VolumeError> {
        // The journal goes last: without it the next look would roll back.
        for entry in std::fs::read_dir(directory.path()).map_err(VolumeError::io("list", directory.path()))? {
            let entry = entry.map_err(VolumeError::io("list", directory.path()))?;
            if !Journal::is_file_name(&entry.file_name()) {
                delete_tree(&self.btrfs, &entry.path())?;
                self.steps.done("a staged tree is deleted")?;
            }
        }
        Journal::delete(&directory)?;
        self.steps.done("the journal is deleted")?;
        directory.remove()
    }
}
