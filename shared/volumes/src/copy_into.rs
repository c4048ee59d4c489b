//! Copying files and directories into a project that people are working in.
//!
//! A copy comes into a live project, so it must not be seen half-made, must not lead a privileged host out of
//! the project, and must not be done twice: what a person has edited since stays edited. It is staged in a directory
//! inside the project's volume, which nobody but the host can enter, as `entry-<n>/<its path in the project>`,
//! missing parents included. Then each is put in place by renames ([`crate::merge`]). The journal tells after a
//! crash whether that had begun; what has been put in place is not staged any more, so the rest can simply be put in
//! place. That is right only as long as nobody has written there since: by the next attempt, or soon after a crash. A
//! copy that nobody goes on with is dropped half in place, and recorded so. The journal of a copy that is done stays, with its receipt, until the caller has recorded the end.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain_model::ProjectPath;
use rustix::fs::{AtFlags, Gid, Mode, StatxFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::VolumeError;
use crate::deletion::delete_at;
use crate::exchange::Settled;
use crate::grouped_sync::AtWork;
use crate::host_root::HostRoot;
use crate::journal::{Journal, Phase, Work};
use crate::merge::Merge;
use crate::operation_directory::OperationDirectory;
use crate::pair_walk::DIRECTORY;
use crate::path_restore::{staging_name, staging_name_text};
use crate::recovery::operations_in;
use crate::tree_copy::{CopyStyle, Ownership, TreeCopy, c_name, make_parents};

/// How long the receipt of a copy is kept for a caller that never says that it has recorded it.
const RECEIPT_KEPT: Duration = Duration::from_secs(14 * 24 * 3600);
/// So long after it has begun to be put in place a copy is still finished by recovery. Later, that could undo what
/// people have written since.
const ROLLED_FORWARD: Duration = Duration::from_secs(3600);

/// What of a copy's content meets something at its place. Directories are merged in any case; a file over a directory
/// and a directory over a file are refused in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overwrite {
    /// It takes the place of what is there.
    Replace,
    /// What is there stays.
    Keep,
    /// Nothing is copied at all, and the copy fails with `AlreadyExists`.
    Refuse,
}

/// How to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyOptions {
    /// What happens to files that are there already.
    pub overwrite: Overwrite,
    /// Whether directories are copied; a directory is refused otherwise.
    pub recursive: bool,
    /// Whether symbolic links are followed (beneath the root of the source) rather than copied.
    pub dereference: bool,
    /// Whether what is copied keeps its times of access and modification.
    pub preserve_timestamps: bool,
}

/// One file or directory to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyEntry {
    /// Where it is in the source.
    pub from: ProjectPath,
    /// What it will be in the project, its own name included.
    pub to: ProjectPath,
}

/// What to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRequest {
    /// The directory that stands for the files of the source project: live, a snapshot, or a tree that was downloaded.
    pub source: PathBuf,
    /// Whether others change the source meanwhile. What they delete is then left out of the copy; in a source that should
    /// stand still (a snapshot, or a tree that was downloaded), something that is gone is an error. Only of a tree that nobody
    /// but the host can write may it be said that it is not live: its files are opened by their names.
    pub source_is_live: bool,
    /// What of it, no two to the same place.
    pub entries: Vec<CopyEntry>,
    /// How.
    pub options: CopyOptions,
}

/// What a copy has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyReceipt {
    /// Files, symbolic links and named pipes that were read from the source, those not put in place included.
    pub files: u64,
    /// Directories that were read from the source.
    pub directories: u64,
    /// The size of all the files, in bytes.
    pub bytes: u64,
    /// Files that had another one at their place just before the first was put in place, and have replaced it.
    pub replaced: u64,
    /// Files and directories that were not put in place, because what was there stays.
    pub kept: u64,
    /// Devices and sockets, which are not copied.
    pub skipped_special: u64,
    /// Files and directories that were deleted from a live source after they had been listed, and are not copied.
    #[serde(default)]
    pub vanished: u64,
    /// Whether all data is shared with the source (reflinks), none copied.
    pub cloned: bool,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// Files, symbolic links and named pipes staged.
    pub files: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

impl HostRoot {
    /// Copies into the files of `project`, whose volume must exist. All of it is staged first, and a copy that is refused
    /// changes nothing. What is copied belongs to the owner of the project's root directory. Where an
    /// earlier attempt of the same `op_id` has begun to put content in place, that is finished and its receipt returned,
    /// without a look at the source; so nothing is applied twice. End with [`HostRoot::forget_copy`].
    ///
    /// The caller must have the project to itself. Other copies into it that nobody works on are ended first: what they
    /// have staged is deleted, even where part of it is in place, so that it never comes over what is copied now.
    /// Another attempt of one that was in place in part fails (`CopyDropped`).
    ///
    /// After an error in the middle of putting content in place, the next attempt of the same `op_id` finishes it,
    /// and so does [`HostRoot::recover`] within an hour. So a caller that makes no further attempt must call
    /// [`HostRoot::forget_copy`] before it reports that the copy has failed or was canceled.
    ///
    /// `go_on` is called now and then while content is staged; `Break` ends the copy, and nothing is left of it.
    ///
    /// # Errors
    ///
    /// `NotFound` if the project has no files on this host, if the source lacks an entry, or if an earlier attempt was
    /// dropped when it was in place in part; `AlreadyExists` under
    /// [`Overwrite::Refuse`]; `InvalidPath` for a directory without `recursive`, a link that may not be
    /// followed, a directory where a file is or the reverse, another volume; `Canceled`; `InUse` if an earlier attempt is
    /// still at work; `Other` if something is deleted from a source that should stand still. Nothing is changed then. `NoSpace` and whatever else may be worth another attempt can also come with
    /// content in place in part.
    pub fn copy_into(
        &self,
        project: Uuid,
        op_id: Uuid,
        request: &CopyRequest,
        go_on: &mut dyn FnMut(CopyProgress) -> ControlFlow<()>,
    ) -> Result<CopyReceipt, VolumeError> {
        let project_dir = self.project_dir(project);
        let Some(volume) = self.open_project(project)? else {
            return Err(VolumeError::ProjectNotFound { project, path: project_dir });
        };
        refuse_same_targets(&request.entries)?;
        let at_work = self.syncs.at_work();
        self.end_other_copies(project, op_id)?;
        if let Some(directory) = OperationDirectory::claim_existing(&self.staging(), op_id)? {
            if let Some(mut journal) = Journal::read(&directory)? {
                journal.check_project(project, op_id)?;
                if let Some(receipt) = self.finish_copy(&directory, &mut journal, &at_work)? {
                    if let Work::Copy { dropped: true, .. } = journal.work {
                        return Err(VolumeError::CopyDropped { op_id });
                    }
                    return Ok(receipt);
                }
            }
            self.settle(directory)?;
        }
        let directory = OperationDirectory::claim(&self.staging(), op_id)?;
        let work = Work::Copy {
            entries: request.entries.clone(),
            options: request.options,
            staging_inode: None,
            receipt: None,
            dropped: false,
        };
        let mut journal = Journal::new(project, work);
        journal.begin(&directory)?;
        self.steps.done("the journal of a copy is begun")?;
        if let Err(error) = self.stage_copy(&directory, &mut journal, &volume, request, &at_work, go_on) {
            self.steps.done("the staging of a copy has failed")?;
            // At once: the disk may be full of what was staged.
            if let Err(error) = self.settle(directory) {
                tracing::warn!(op.id = %op_id, %error, "what a copy has staged is left for recovery");
            }
            return Err(error);
        }
        // Somebody has moved it away just now, or a restore has replaced the whole tree: another attempt begins anew.
        let gone = || {
            let staged = project_dir.join(staging_name_text(op_id));
            VolumeError::io("find what was staged in", &staged)(Errno::STALE)
        };
        self.finish_copy(&directory, &mut journal, &at_work)?.ok_or_else(gone)
    }

    /// The receipt of the copy `op_id` into `project`, if all of it is in place and it is not forgotten.
    ///
    /// # Errors
    ///
    /// `Damaged` if its journal cannot be read; `Other` if it is a copy into another project.
    pub fn copy_receipt(&self, project: Uuid, op_id: Uuid) -> Result<Option<CopyReceipt>, VolumeError> {
        let Some(journal) = Journal::read_in(&self.staging().join(op_id.to_string()))? else {
            return Ok(None);
        };
        journal.check_project(project, op_id)?;
        Ok(match journal.work {
            Work::Copy { receipt, dropped: false, .. } if journal.phase == Phase::Exchanged => receipt,
            _ => None,
        })
    }

    /// Forgets the copy `op_id` into `project`; none there is fine. What it has staged is deleted and nothing more is put in
    /// place: a copy that is in place in part stays so, and no recovery finishes it. Another attempt would begin anew. To
    /// be called once the success of a copy is recorded elsewhere, and before a failure without further attempts, or a
    /// cancel, is reported.
    ///
    /// # Errors
    ///
    /// `InUse` if an attempt is still at work. After any other error the record may still be there; call it again.
    pub fn forget_copy(&self, project: Uuid, op_id: Uuid) -> Result<(), VolumeError> {
        let Some(directory) = OperationDirectory::claim_existing(&self.staging(), op_id)? else {
            return Ok(());
        };
        if let Some(mut journal) = Journal::read(&directory)? {
            journal.check_project(project, op_id)?;
            if !matches!(journal.work, Work::Copy { .. }) {
                return self.settle(directory).map(drop);
            }
            self.drop_copy(&directory, &mut journal)?;
        }
        self.remove_operation(directory)
    }

    /// Ends every copy into `project` that nobody works on, but for `op_id`. Records of what is in place stay.
    fn end_other_copies(&self, project: Uuid, op_id: Uuid) -> Result<(), VolumeError> {
        let staging = self.staging();
        // Without a lock at first, which would be in the way of whoever is about to work on another project.
        let is_to_be_ended = |journal: &Journal| {
            let is_copy = matches!(journal.work, Work::Copy { .. });
            is_copy && journal.project == project && journal.phase != Phase::Exchanged
        };
        for other in operations_in(&staging, &mut Vec::new())? {
            match Journal::read_in(&staging.join(other.to_string())) {
                Ok(Some(journal)) if other != op_id && is_to_be_ended(&journal) => {}
                Ok(_) => continue,
                // Of whichever project: recovery does not put it in place either.
                Err(VolumeError::UnreadableJournal { .. }) => continue,
                Err(error) => return Err(error),
            }
            let directory = match OperationDirectory::claim_existing(&staging, other) {
                Ok(Some(directory)) => directory,
                Ok(None) | Err(VolumeError::InUse { .. }) => continue,
                Err(error) => return Err(error),
            };
            let Some(mut journal) = Journal::read(&directory)?.filter(is_to_be_ended) else { continue };
            tracing::info!(op.id = %other, phase = ?journal.phase, "dropping what an earlier copy has staged");
            self.drop_copy(&directory, &mut journal)?;
            if journal.phase == Phase::Staged {
                self.remove_operation(directory)?;
            }
        }
        Ok(())
    }

    /// Deletes what a copy has staged. If it may be in place in part, that is recorded first, so that no later attempt
    /// does it again.
    fn drop_copy(&self, directory: &OperationDirectory, journal: &mut Journal) -> Result<(), VolumeError> {
        if journal.phase == Phase::Exchanging
            && let Work::Copy { dropped, .. } = &mut journal.work
        {
            *dropped = true;
            journal.phase = Phase::Exchanged;
            journal.write(directory)?;
            self.steps.done("the drop of a copy is in the journal")?;
        }
        let volume = self.open_project(journal.project)?;
        self.delete_staged(directory.op_id(), volume.as_ref(), &self.project_dir(journal.project))
    }

    /// Takes a copy from its journal to the phase `Exchanging`.
    fn stage_copy(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
        volume: &OwnedFd,
        request: &CopyRequest,
        at_work: &AtWork<'_>,
        go_on: &mut dyn FnMut(CopyProgress) -> ControlFlow<()>,
    ) -> Result<(), VolumeError> {
        let project_dir = self.project_dir(journal.project);
        let name = staging_name(directory.op_id());
        let shown = project_dir.join(staging_name_text(directory.op_id()));
        let failed = |errno: Errno| VolumeError::io("stage a copy in", &shown)(errno);
        // The name is reserved, so whatever has it is an earlier attempt's whose journal was lost with its disk.
        delete_at(&self.btrfs, volume.as_fd(), &name, &shown)?;
        rustix::fs::mkdirat(volume, &name, Mode::RWXU).map_err(failed)?;
        self.steps.done("the staging directory of a copy is made")?;
        let staging = rustix::fs::openat(volume, &name, DIRECTORY, Mode::empty()).map_err(failed)?;
        let opened = rustix::fs::fstat(&staging).map_err(failed)?;
        if opened.st_uid != rustix::process::geteuid().as_raw() || opened.st_mode & 0o077 != 0 {
            // Not the one that was just made. What is staged here could be tampered with.
            return Err(failed(Errno::BUSY));
        }
        let root = rustix::fs::fstat(volume).map_err(failed)?;
        let owner = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
        let style = CopyStyle {
            ownership: Ownership::Of(owner.0, owner.1),
            recursive: request.options.recursive,
            dereference: request.options.dereference,
            timestamps: request.options.preserve_timestamps,
            source_is_live: request.source_is_live,
        };
        let mut copy = TreeCopy::new(&request.source, style, go_on)?;
        for (index, entry) in request.entries.iter().enumerate() {
            let wrapper = wrapper(index);
            let make_wrapper =
                || make_parents(staging.as_fd(), std::iter::once(wrapper.as_str()), None).map_err(failed);
            let outermost = make_wrapper()?;
            let (parents, last) = split(&entry.to);
            let parent = make_parents(outermost.as_fd(), parents, Some(owner)).map_err(failed)?;
            if !copy.copy(&entry.from, parent.as_fd(), &c_name(last).map_err(failed)?)? {
                // Without content there is no need of its parents.
                let name = c_name(&wrapper).map_err(failed)?;
                delete_at(&self.btrfs, staging.as_fd(), &name, &shown)?;
                make_wrapper()?;
            }
            self.steps.done("an entry of a copy is staged")?;
        }
        let mut receipt = copy.receipt().clone();
        let merge = Merge {
            staging: staging.as_fd(),
            volume: volume.as_fd(),
            project_dir: &project_dir,
            overwrite: request.options.overwrite,
        };
        for index in 0..request.entries.len() {
            receipt.replaced += merge.check(&wrapper(index))?;
        }
        journal.work = Work::Copy {
            entries: request.entries.clone(),
            options: request.options,
            staging_inode: Some(opened.st_ino),
            receipt: Some(receipt),
            dropped: false,
        };
        journal.phase = Phase::Exchanging;
        let prepared = journal.prepare(directory)?;
        self.sync(&staging, at_work).map_err(failed)?;
        self.steps.done("what is staged is durable")?;
        prepared.replace(directory)?;
        self.steps.done("the beginning of a copy is in the journal")
    }

    /// Finishes a copy that has begun to be put in place, and returns its receipt; `None` if it has not, or if what was
    /// staged is gone.
    fn finish_copy(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
        at_work: &AtWork<'_>,
    ) -> Result<Option<CopyReceipt>, VolumeError> {
        let phase = journal.phase;
        let Work::Copy { entries, options, staging_inode, receipt: Some(receipt), .. } = &mut journal.work
        else {
            return Ok(None);
        };
        let volume = self.open_project(journal.project)?;
        if phase == Phase::Exchanging {
            let project_dir = self.project_dir(journal.project);
            let Some(volume) = &volume else { return Ok(None) };
            let Some(staging) = open_staging(volume, directory.op_id(), *staging_inode)
                .map_err(VolumeError::io("open the staging directory in", &project_dir))?
            else {
                return Ok(None);
            };
            let merge = Merge {
                staging: staging.as_fd(),
                volume: volume.as_fd(),
                project_dir: &project_dir,
                overwrite: options.overwrite,
            };
            receipt.kept = 0;
            for index in 0..entries.len() {
                receipt.kept += merge.put_in_place(&wrapper(index), &self.steps)?;
            }
            journal.phase = Phase::Exchanged;
            let prepared = journal.prepare(directory)?;
            self.sync(volume, at_work).map_err(VolumeError::io("sync", &project_dir))?;
            self.steps.done("a copy is durable in its place")?;
            prepared.replace(directory)?;
            self.steps.done("the end of a copy is in the journal")?;
        }
        let Work::Copy { receipt: Some(receipt), .. } = &journal.work else { return Ok(None) };
        let receipt = receipt.clone();
        self.delete_staged(directory.op_id(), volume.as_ref(), &self.project_dir(journal.project))?;
        Ok(Some(receipt))
    }

    /// Ends the copy that `journal` describes: finished or dropped, by its age, if it may be in place in part. The record of a finished one is the caller's to remove.
    pub(crate) fn settle_copy(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
    ) -> Result<Settled, VolumeError> {
        let was_in_place = journal.phase == Phase::Exchanged;
        if journal.phase == Phase::Exchanging
            && Journal::age(directory)?.is_none_or(|age| age >= ROLLED_FORWARD)
        {
            self.drop_copy(directory, journal)?;
            return Ok(Settled::Dropped);
        }
        if self.finish_copy(directory, journal, &self.syncs.at_work())?.is_none() {
            let volume = self.open_project(journal.project)?;
            self.delete_staged(directory.op_id(), volume.as_ref(), &self.project_dir(journal.project))?;
            return Ok(Settled::RolledBack);
        }
        if !was_in_place {
            return Ok(Settled::Finished);
        }
        let expired = Journal::age(directory)?.is_some_and(|age| age > RECEIPT_KEPT);
        Ok(if expired { Settled::Expired } else { Settled::Recorded })
    }

    /// Makes durable what is on the filesystem of `handle`.
    fn sync(&self, handle: impl AsFd, at_work: &AtWork<'_>) -> Result<(), Errno> {
        let commit = || rustix::fs::syncfs(&handle);
        // The files of a project may be a filesystem of their own, which the sync of another copy would not be one of.
        let mount = |path, flags| {
            let found = rustix::fs::statx(&handle, path, flags, StatxFlags::MNT_ID)?;
            Ok(StatxFlags::from_bits_retain(found.stx_mask)
                .contains(StatxFlags::MNT_ID)
                .then_some(found.stx_mnt_id))
        };
        let (own, shared) =
            (mount(Path::new(""), AtFlags::EMPTY_PATH)?, mount(&self.staging(), AtFlags::empty())?);
        if own.is_some() && own == shared { at_work.sync(commit) } else { commit() }
    }

    fn delete_staged(
        &self,
        op_id: Uuid,
        volume: Option<&OwnedFd>,
        project_dir: &Path,
    ) -> Result<(), VolumeError> {
        let Some(volume) = volume else { return Ok(()) };
        let shown = project_dir.join(staging_name_text(op_id));
        delete_at(&self.btrfs, volume.as_fd(), &staging_name(op_id), &shown)?;
        self.steps.done("what a copy has staged is deleted")
    }
}

/// The directory in the staging directory that holds an entry at its path in the project.
fn wrapper(index: usize) -> String {
    format!("entry-{index}")
}

/// The parents of a path, and its own name.
pub(crate) fn split(path: &ProjectPath) -> (impl Iterator<Item = &str>, &str) {
    let (parents, last) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
    (parents.split('/').filter(|name| !name.is_empty()), last)
}

/// The staging directory of an operation, if it is still the one that was filled: a tenant can move it away, and put
/// another in its place.
pub(crate) fn open_staging(
    volume: &OwnedFd,
    op_id: Uuid,
    inode: Option<u64>,
) -> Result<Option<OwnedFd>, Errno> {
    let staging = match rustix::fs::openat(volume, staging_name(op_id), DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        other => other?,
    };
    let found = rustix::fs::fstat(&staging)?.st_ino;
    Ok(inode.is_none_or(|inode| inode == found).then_some(staging))
}

fn refuse_same_targets(entries: &[CopyEntry]) -> Result<(), VolumeError> {
    let mut targets = BTreeSet::new();
    match entries.iter().find(|entry| !targets.insert(&entry.to)) {
        Some(entry) => Err(VolumeError::SameTarget { path: entry.to.as_path().to_owned() }),
        None => Ok(()),
    }
}
