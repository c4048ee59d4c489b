//! Staging a whole restore beside the live trees.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use uuid::Uuid;

use crate::VolumeError;
use crate::host_root::{HostRoot, directory_exists};
use crate::journal::{Journal, Work};
use crate::operation_directory::OperationDirectory;

/// Two empty trees to restore into, beside the live ones. Dropping this without [`HostRoot::discard`] leaves them for
/// [`HostRoot::recover`].
#[derive(Debug)]
pub struct Staged {
    /// Where the project's files are to be restored to.
    pub project_dir: PathBuf,
    /// Where the persist store is to be restored to.
    pub persist_dir: PathBuf,
    pub(crate) directory: OperationDirectory,
}

impl HostRoot {
    /// Makes two empty trees for the restore `op_id` of `project`, with the owner and mode of the live ones where these
    /// exist. What an earlier attempt has left is ended first, as recovery would.
    ///
    /// # Errors
    ///
    /// `InUse` if an earlier attempt is still at work; `Damaged` if what it left cannot be understood.
    pub fn stage(&self, project: Uuid, op_id: Uuid) -> Result<Staged, VolumeError> {
        let directory = self.claim_empty_staging(op_id)?;
        Journal::new(project, Work::Whole { project: None, persist: None }).write(&directory)?;
        self.steps.done("the journal of a whole restore is begun")?;
        let project_dir = directory.path().join("project");
        let persist_dir = directory.path().join("persist");
        for (tree, live) in
            [(&project_dir, self.project_dir(project)), (&persist_dir, self.persist_dir(project))]
        {
            self.create_tree(tree)?;
            copy_owner_and_mode(&live, tree)?;
            self.steps.done("a tree is staged")?;
        }
        Ok(Staged { project_dir, persist_dir, directory })
    }

    /// The staging directory of `op_id`, locked and empty.
    pub(crate) fn claim_empty_staging(&self, op_id: Uuid) -> Result<OperationDirectory, VolumeError> {
        if let Some(leftover) = OperationDirectory::claim_existing(&self.staging(), op_id)? {
            self.settle(leftover)?;
        }
        OperationDirectory::claim(&self.staging(), op_id)
    }

    /// Deletes what is staged: after [`HostRoot::exchange`] the old trees, before it the new ones. If an exchange was
    /// begun and failed in the middle, it is finished first.
    pub fn discard(&self, staged: Staged) -> Result<(), VolumeError> {
        self.settle(staged.directory).map(drop)
    }
}

/// Gives `tree` the owner and mode of `live`, if that exists. An owner that may not be given is left out.
fn copy_owner_and_mode(live: &Path, tree: &Path) -> Result<(), VolumeError> {
    if !directory_exists(live)? {
        return Ok(());
    }
    let metadata = live.symlink_metadata().map_err(VolumeError::io("look at", live))?;
    let (owner, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    match rustix::fs::chown(tree, Some(owner), Some(group)) {
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(VolumeError::io("set the owner of", tree)(errno)),
    }
    rustix::fs::chmod(tree, Mode::from_raw_mode(metadata.mode()))
        .map_err(VolumeError::io("set the mode of", tree))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::test_support::{Crash, fill, is_empty, mark_of, on_each_filesystem};
    use crate::{VolumeErrorKind, VolumeOptions};

    fn project_with_old_files(root: &HostRoot) -> Uuid {
        let project = Uuid::new_v4();
        let volume = root.ensure_volume(project).unwrap();
        fill(&volume.project_dir, "old");
        fill(&volume.persist_dir, "old");
        project
    }

    fn restore(root: &HostRoot, project: Uuid, op_id: Uuid) -> Result<(), VolumeError> {
        let staged = root.stage(project, op_id)?;
        fill(&staged.project_dir, "new");
        fill(&staged.persist_dir, "new");
        root.exchange(&staged)?;
        root.discard(staged)
    }

    fn marks(root: &HostRoot, project: Uuid) -> (String, String) {
        (mark_of(&root.project_dir(project)), mark_of(&root.persist_dir(project)))
    }

    #[test]
    fn a_restore_replaces_both_trees_and_leaves_nothing_staged() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = project_with_old_files(&root);
            std::fs::set_permissions(root.project_dir(project), PermissionsExt::from_mode(0o2710)).unwrap();
            restore(&root, project, Uuid::now_v7()).unwrap();
            assert_eq!(marks(&root, project), ("new".into(), "new".into()));
            assert_eq!(root.project_dir(project).metadata().unwrap().mode() & 0o7777, 0o2710);
            assert!(is_empty(&root.staging()));
            assert_eq!(std::fs::read_dir(root.projects()).unwrap().count(), 1);
        });
    }

    #[test]
    fn a_project_without_files_on_this_host_is_restored_too() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = Uuid::new_v4();
            restore(&root, project, Uuid::now_v7()).unwrap();
            assert_eq!(marks(&root, project), ("new".into(), "new".into()));
            assert!(is_empty(&root.staging()));
        });
    }

    #[test]
    fn exchanging_again_is_fine_and_changes_nothing() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = project_with_old_files(&root);
            let staged = root.stage(project, Uuid::now_v7()).unwrap();
            fill(&staged.project_dir, "new");
            fill(&staged.persist_dir, "new");
            root.exchange(&staged).unwrap();
            root.exchange(&staged).unwrap();
            assert_eq!(marks(&root, project), ("new".into(), "new".into()));
            root.discard(staged).unwrap();
        });
    }

    #[test]
    fn discarding_before_the_exchange_leaves_the_old_trees() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = project_with_old_files(&root);
            let staged = root.stage(project, Uuid::now_v7()).unwrap();
            fill(&staged.project_dir, "new");
            root.discard(staged).unwrap();
            assert_eq!(marks(&root, project), ("old".into(), "old".into()));
            assert!(is_empty(&root.staging()));
        });
    }

    #[test]
    fn a_staged_tree_that_is_missing_stops_the_exchange_before_anything_is_touched() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = project_with_old_files(&root);
            let staged = root.stage(project, Uuid::now_v7()).unwrap();
            std::fs::remove_dir(&staged.persist_dir).unwrap();
            assert_eq!(root.exchange(&staged).unwrap_err().kind(), VolumeErrorKind::NotFound);
            assert_eq!(marks(&root, project), ("old".into(), "old".into()));
        });
    }

    /// A crash after every step of a restore, and then one after every step of its recovery.
    #[test]
    fn a_crash_at_any_step_leaves_after_recovery_the_old_or_the_new_trees_and_nothing_else() {
        for existing in [true, false] {
            on_each_filesystem(|new_root| {
                let (mut crashes, mut finished, mut rolled_back) = (0, 0, 0);
                for restore_steps in 1.. {
                    let mut restore_ended = false;
                    for recovery_steps in 1.. {
                        let root = new_root();
                        let project = if existing { project_with_old_files(&root) } else { Uuid::new_v4() };
                        let outcome = restore(&Crash::after(&root, restore_steps), project, Uuid::now_v7());
                        restore_ended = !Crash::happened(&outcome);
                        let first = Crash::after(&root, recovery_steps).recover().unwrap();
                        let interrupted = !first.failed.is_empty();
                        for (_, error) in first.failed {
                            assert!(Crash::happened::<()>(&Err(error)));
                        }
                        let second = root.recover().unwrap();
                        assert!(second.failed.is_empty() && second.in_use.is_empty(), "{second:?}");
                        assert!(
                            is_empty(&root.staging()),
                            "after {restore_steps} and {recovery_steps} steps"
                        );
                        if root.project_dir(project).exists() {
                            let (files, persist) = marks(&root, project);
                            assert_eq!(files, persist, "after {restore_steps} and {recovery_steps} steps");
                            assert!(existing || files == "new");
                        } else {
                            assert!(!existing && !root.persist_dir(project).exists());
                        }
                        crashes += 1;
                        finished += first.finished.len() + second.finished.len();
                        rolled_back += first.rolled_back.len() + second.rolled_back.len();
                        assert!(root.recover().unwrap().is_empty());
                        if !interrupted {
                            break;
                        }
                    }
                    if restore_ended {
                        break;
                    }
                }
                assert!(
                    crashes > 30 && finished > 5 && rolled_back > 5,
                    "{crashes} {finished} {rolled_back}"
                );
            });
        }
    }

    #[test]
    fn the_next_attempt_of_an_operation_ends_what_the_last_one_left() {
        on_each_filesystem(|new_root| {
            for steps in 1..=8 {
                let root = new_root();
                let project = project_with_old_files(&root);
                let op_id = Uuid::now_v7();
                assert!(Crash::happened(&restore(&Crash::after(&root, steps), project, op_id)));
                restore(&root, project, op_id).unwrap();
                assert_eq!(marks(&root, project), ("new".into(), "new".into()));
                assert!(is_empty(&root.staging()));
            }
        });
    }

    #[test]
    fn recovery_leaves_alone_what_somebody_is_working_on() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = project_with_old_files(&root);
            let op_id = Uuid::now_v7();
            let staged = root.stage(project, op_id).unwrap();
            let source = root.snapshot(project, op_id).unwrap();
            let expected =
                if source.kind == crate::SourceKind::Live { vec![op_id] } else { vec![op_id, op_id] };
            assert_eq!(root.recover().unwrap().in_use, expected);
            assert_eq!(root.stage(project, op_id).unwrap_err().kind(), VolumeErrorKind::InUse);
            fill(&staged.project_dir, "new");
            fill(&staged.persist_dir, "new");
            root.exchange(&staged).unwrap();
            drop((staged, source));
            assert_eq!(root.recover().unwrap().finished, [op_id]);
        });
    }

    #[test]
    fn recovery_touches_nothing_that_an_unreadable_journal_may_describe_and_goes_on_with_the_others() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = project_with_old_files(&root);
            let (damaged, sound) = (Uuid::now_v7(), Uuid::now_v7());
            let staged = root.stage(project, damaged).unwrap();
            fill(&staged.project_dir, "new");
            std::fs::write(staged.directory.path().join("journal.json"), b"{\"version\":\"2\"").unwrap();
            let kept = staged.project_dir.clone();
            drop((staged, root.stage(project, sound).unwrap()));
            std::fs::write(root.staging().join("notes.txt"), b"a person's").unwrap();
            let report = root.recover().unwrap();
            assert_eq!(report.rolled_back, [sound]);
            assert_eq!(report.unknown, [root.staging().join("notes.txt")]);
            assert!(
                matches!(&report.failed[..], [(op, error)] if *op == damaged && error.kind() == VolumeErrorKind::Damaged)
            );
            assert_eq!(mark_of(&kept), "new");
        });
    }

    #[test]
    fn two_filesystems_in_one_host_root_are_refused() {
        let Some(mount) = crate::test_support::BtrfsMount::new() else { return };
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(mount.path(), root.path().join("projects")).unwrap();
        let error = HostRoot::open_with(root.path(), VolumeOptions::default()).unwrap_err();
        assert!(matches!(error, VolumeError::DifferentFilesystems { .. }), "{error:?}");
    }
}
