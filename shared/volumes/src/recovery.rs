//! Ending what a crash has left under a host root.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::VolumeError;
use crate::error::VolumeErrorKind;
use crate::exchange::Settled;
use crate::host_root::HostRoot;
use crate::journal::{Journal, Phase};
use crate::operation_directory::OperationDirectory;

/// What [`HostRoot::recover`] found and did, by operation.
#[derive(Debug, Default)]
pub struct RecoveryReport {
    /// Restores and copies whose exchange had begun: the new content is in place. What was replaced by one that another
    /// attempt may be made of stays until [`HostRoot::abandon`].
    pub finished: Vec<Uuid>,
    /// Restores and copies whose exchange had not begun: the old content is in place.
    pub rolled_back: Vec<Uuid>,
    /// Restores that are not in place, and whose next attempt decides whether it goes on with what is staged
    /// ([`HostRoot::stage_again`], [`HostRoot::stage_path`]).
    pub kept: Vec<Uuid>,
    /// Copies that had begun to be put in place more than an hour ago: what was not in place yet is deleted.
    pub dropped: Vec<Uuid>,
    /// Operations whose snapshots were deleted.
    pub snapshots_deleted: Vec<Uuid>,
    /// What directories of copies ([`HostRoot::copy_directory`]) were deleted.
    pub copy_directories_deleted: Vec<Uuid>,
    /// Operations that another process, or this one, is working on; untouched.
    pub in_use: Vec<Uuid>,
    /// Entries of the staging, snapshot and copies directories that no operation is named by; untouched.
    pub unknown: Vec<PathBuf>,
    /// Operations that could not be ended, and why. What could not be understood is untouched.
    pub failed: Vec<(Uuid, VolumeError)>,
}

impl RecoveryReport {
    /// Whether there was nothing at all to look at.
    pub fn is_empty(&self) -> bool {
        self.finished.is_empty()
            && self.rolled_back.is_empty()
            && self.kept.is_empty()
            && self.dropped.is_empty()
            && self.snapshots_deleted.is_empty()
            && self.copy_directories_deleted.is_empty()
            && self.in_use.is_empty()
            && self.unknown.is_empty()
            && self.failed.is_empty()
    }
}

impl HostRoot {
    /// Ends every restore and copy that a crash has interrupted, and deletes snapshots and directories of copies that
    /// nobody holds. To be called at start, before any other operation. One failure does not keep the others from being
    /// ended.
    ///
    /// What a restore has staged that another attempt can go on with stays. Whoever knows that there will be none calls
    /// [`HostRoot::abandon`].
    ///
    /// A copy that had begun to be put in place is finished only if that was less than an hour ago. Of an older one, what
    /// is not in place yet is deleted: people and later copies may have written there since. Another attempt of it
    /// fails. The record of a copy that is in place, in part at least, stays for two weeks.
    ///
    /// # Errors
    ///
    /// Only if the staging, snapshot or copies directory cannot be listed; what fails below is in the report.
    pub fn recover(&self) -> Result<RecoveryReport, VolumeError> {
        let mut report = RecoveryReport::default();
        for op_id in operations_in(&self.staging(), &mut report.unknown)? {
            let settled = OperationDirectory::claim_existing(&self.staging(), op_id)
                .and_then(|directory| directory.map(|directory| self.settle_or_keep(directory)).transpose());
            match settled {
                Ok(None | Some(Settled::Recorded | Settled::Expired)) => {}
                Ok(Some(Settled::Kept)) => report.kept.push(op_id),
                Ok(Some(Settled::Finished)) => report.finished.push(op_id),
                Ok(Some(Settled::Dropped)) => report.dropped.push(op_id),
                Ok(Some(Settled::RolledBack)) => report.rolled_back.push(op_id),
                Err(error) if error.kind() == VolumeErrorKind::InUse => report.in_use.push(op_id),
                Err(error) => report.failed.push((op_id, error)),
            }
        }
        for op_id in operations_in(&self.snapshots(), &mut report.unknown)? {
            let dropped = OperationDirectory::claim_existing(&self.snapshots(), op_id)
                .and_then(|directory| directory.map(|_held| self.drop_snapshot(op_id)).transpose());
            match dropped {
                Ok(None) => {}
                Ok(Some(())) => report.snapshots_deleted.push(op_id),
                Err(error) if error.kind() == VolumeErrorKind::InUse => report.in_use.push(op_id),
                Err(error) => report.failed.push((op_id, error)),
            }
        }
        for id in operations_in(&self.copies(), &mut report.unknown)? {
            let deleted = OperationDirectory::claim_existing(&self.copies(), id)
                .and_then(|directory| directory.map(|held| self.delete_copy_directory(held)).transpose());
            match deleted {
                Ok(None) => {}
                Ok(Some(())) => report.copy_directories_deleted.push(id),
                Err(error) if error.kind() == VolumeErrorKind::InUse => report.in_use.push(id),
                Err(error) => report.failed.push((id, error)),
            }
        }
        Ok(report)
    }

    fn settle_or_keep(&self, directory: OperationDirectory) -> Result<Settled, VolumeError> {
        match Journal::read(&directory)? {
            Some(journal) if journal.is_resumable() => Ok(Settled::Kept),
            Some(mut journal) if journal.stays() => {
                self.finish(&directory, &mut journal)?;
                Ok(if journal.phase == Phase::Exchanged { Settled::Finished } else { Settled::Kept })
            }
            _ => self.settle(directory),
        }
    }

    /// The operations that another attempt of could go on with what is staged here, or has nothing left to do because an
    /// earlier one put it in place; those under way among them.
    ///
    /// # Errors
    ///
    /// Only if the staging directory cannot be listed. What does not read is left out: recovery reports it.
    pub fn kept_for_another_attempt(&self) -> Result<Vec<Uuid>, VolumeError> {
        let mut operations = operations_in(&self.staging(), &mut Vec::new())?;
        operations.retain(|op_id| {
            let journal = Journal::read_in(&self.staging().join(op_id.to_string()));
            matches!(journal, Ok(Some(journal)) if journal.stays())
        });
        Ok(operations)
    }

    /// Deletes what is staged of an operation that has no other attempt, or what it has replaced. Whether there was anything.
    ///
    /// # Errors
    ///
    /// `InUse` if an attempt is at work after all; it is left alone.
    pub fn abandon(&self, op_id: Uuid) -> Result<bool, VolumeError> {
        match OperationDirectory::claim_existing(&self.staging(), op_id)? {
            Some(directory) => self.settle(directory).map(|_settled| true),
            None => Ok(false),
        }
    }
}

/// The operations that the entries of `directory` are named by, in order.
pub(crate) fn operations_in(directory: &Path, unknown: &mut Vec<PathBuf>) -> Result<Vec<Uuid>, VolumeError> {
    let mut operations = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(VolumeError::io("list", directory))? {
        let entry = entry.map_err(VolumeError::io("list", directory))?;
        match entry.file_name().to_str().and_then(|name| Uuid::try_parse(name).ok()) {
            Some(op_id) => operations.push(op_id),
            None => unknown.push(entry.path()),
        }
    }
    operations.sort_unstable();
    Ok(operations)
}
