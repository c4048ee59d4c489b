//! Staging a whole restore beside the live trees.
//!
//! What a restore has staged can be large, so an attempt that did not come to its end leaves it for the next one:
//! after [`HostRoot::stage_again`] a crash is no reason to delete it. It is only ever material: whoever goes on with it
//! looks at every byte of it. It is deleted once there is no other attempt ([`HostRoot::abandon`]). So is what it has
//! replaced, once it is in place: an attempt that finds it so has nothing left to do ([`HostRoot::was_exchanged`]).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use uuid::Uuid;

use crate::VolumeError;
use crate::host_root::{HostRoot, directory_exists};
use crate::journal::{Journal, Work};
use crate::operation_directory::OperationDirectory;

/// A process that writes into a staged tree ends with the one that has started it. It has so many looks to do so, with
/// `BETWEEN_LOOKS` between them.
const LOOKS_FOR_WRITERS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Two trees to restore into, beside the live ones. Dropping this without [`HostRoot::discard`] leaves them for
/// [`HostRoot::recover`], or for the next attempt.
#[derive(Debug)]
pub struct Staged {
    /// Whether they are an earlier attempt's, with what it has restored; else they are empty.
    pub resumed: bool,
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
        self.stage_in(directory, project, false)
    }

    /// As [`HostRoot::stage`], but goes on with what an earlier attempt of the same restore has staged, and leaves what it
    /// stages itself to a later one. What is there is of any attempt and any backup, and may be half-written: the caller
    /// looks at every byte. What a process may still be writing to, because it was paused while its parent died, is
    /// deleted: it would go on writing into what is in place by then. Whoever writes into a tree holds a lock (`flock`) on it.
    ///
    /// # Errors
    ///
    /// As [`HostRoot::stage`].
    pub fn stage_again(&self, project: Uuid, op_id: Uuid) -> Result<Staged, VolumeError> {
        if let Some(directory) = OperationDirectory::claim_existing(&self.staging(), op_id)? {
            let journal = Journal::read(&directory)?;
            if journal.is_some_and(|journal| journal.project == project && journal.is_resumable()) {
                let staged = trees_in(directory, true);
                if nobody_writes_into(&staged.project_dir)? && nobody_writes_into(&staged.persist_dir)? {
                    return Ok(staged);
                }
                self.settle(staged.directory)?;
            } else {
                self.settle(directory)?;
            }
        }
        self.stage_in(self.claim_empty_staging(op_id)?, project, true)
    }

    fn stage_in(
        &self,
        directory: OperationDirectory,
        project: Uuid,
        resumable: bool,
    ) -> Result<Staged, VolumeError> {
        Journal::new(project, Work::Whole { project: None, persist: None, resumable }).write(&directory)?;
        self.steps.done("the journal of a whole restore is begun")?;
        let staged = trees_in(directory, false);
        for (tree, live) in [
            (&staged.project_dir, self.project_dir(project)),
            (&staged.persist_dir, self.persist_dir(project)),
        ] {
            self.create_tree(tree)?;
            copy_owner_and_mode(&live, tree)?;
            self.steps.done("a tree is staged")?;
        }
        Ok(staged)
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

fn trees_in(directory: OperationDirectory, resumed: bool) -> Staged {
    let (project_dir, persist_dir) = (directory.path().join("project"), directory.path().join("persist"));
    Staged { resumed, project_dir, persist_dir, directory }
}

/// Whether a staged tree is there, and nobody holds the lock of those that write into it, or lets go of it soon.
pub(crate) fn nobody_writes_into(tree: &Path) -> Result<bool, VolumeError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match rustix::fs::open(tree, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        other => other.map_err(VolumeError::io("open the directory", tree))?,
    };
    for _ in 0..LOOKS_FOR_WRITERS {
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                rustix::fs::flock(&handle, FlockOperation::Unlock)
                    .map_err(VolumeError::io("unlock the directory", tree))?;
                return Ok(true);
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(BETWEEN_LOOKS),
            Err(errno) => return Err(VolumeError::io("lock the directory", tree)(errno)),
        }
    }
    tracing::warn!(path = %tree.display(), "a staged tree is still being written to; the restore begins anew");
    Ok(false)
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
    use crate::{Presence, VolumeErrorKind, VolumeOptions};

    fn project_with_old_files(root: &HostRoot) -> Uuid {
        let project = Uuid::new_v4();
        let volume = root.ensure_volume(project).unwrap();
        fill(&volume.project_dir, "old");
        fill(&volume.persist_dir, "old");
        project
    }

    fn restore(root: &HostRoot, project: Uuid, op_id: Uuid) -> Result<(), VolumeError> {
        restore_from(root, root.stage(project, op_id)?)
    }

    fn restore_again(root: &HostRoot, project: Uuid, op_id: Uuid) -> Result<(), VolumeError> {
        restore_from(root, root.stage_again(project, op_id)?)
    }

    fn restore_from(root: &HostRoot, staged: Staged) -> Result<(), VolumeError> {
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

    #[test]
    fn what_was_staged_outlasts_a_crash_until_the_next_attempt_or_until_there_is_none() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (project, op_id) = (project_with_old_files(&root), Uuid::now_v7());
            let staged = root.stage_again(project, op_id).unwrap();
            assert!(!staged.resumed);
            fill(&staged.project_dir, "new");
            assert!(matches!(root.abandon(op_id), Err(error) if error.kind() == VolumeErrorKind::InUse));
            drop(staged);

            for _ in 0..2 {
                assert_eq!(root.recover().unwrap().kept, [op_id]);
                assert_eq!(root.kept_for_another_attempt().unwrap(), [op_id]);
                assert!(!root.was_exchanged(project, op_id).unwrap());
            }
            let staged = root.stage_again(project, op_id).unwrap();
            assert!(staged.resumed);
            assert_eq!(mark_of(&staged.project_dir), "new");
            fill(&staged.persist_dir, "new");
            root.exchange(&staged).unwrap();
            drop(staged);
            // From here on it is the exchange that counts: another attempt is told of it, and what people edit stays.
            let edited = root.project_dir(project).join("edited since");
            std::fs::write(&edited, "by somebody").unwrap();
            assert_eq!(root.kept_for_another_attempt().unwrap(), [op_id]);
            assert!(!root.was_exchanged(Uuid::new_v4(), op_id).unwrap());
            for _ in 0..2 {
                assert!(root.was_exchanged(project, op_id).unwrap());
                assert_eq!(root.recover().unwrap().finished, [op_id]);
            }
            // Exchanged, or moved away where names cannot be.
            let mut replaced = ["project", "old-project-0"]
                .map(|name| root.staging().join(op_id.to_string()).join(name))
                .into_iter();
            assert_eq!(mark_of(&replaced.find(|tree| tree.exists()).unwrap()), "old");
            assert!(root.abandon(op_id).unwrap());
            assert!(!root.was_exchanged(project, op_id).unwrap());
            std::fs::remove_file(&edited).unwrap();
            assert_eq!(marks(&root, project), ("new".into(), "new".into()));

            let abandoned = Uuid::now_v7();
            drop(root.stage_again(project, abandoned).unwrap());
            assert!(root.abandon(abandoned).unwrap());
            assert!(!root.abandon(abandoned).unwrap());
            assert!(is_empty(&root.staging()));
        });
    }

    #[test]
    fn only_what_is_whole_and_of_the_same_restore_is_gone_on_with() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (project, op_id) = (project_with_old_files(&root), Uuid::now_v7());
            // Staged not to be gone on with: a proof.
            fill(&root.stage(project, op_id).unwrap().project_dir, "new");
            assert!(!root.stage_again(project, op_id).unwrap().resumed);
            // Of another project: the journal says so, whatever the name of the directory.
            assert!(!root.stage_again(Uuid::new_v4(), op_id).unwrap().resumed);
            // After a crash between the journal and the trees.
            let other = Uuid::now_v7();
            for steps in 1..=2 {
                let crashed = Crash::after(&root, steps).stage_again(project, other);
                assert!(Crash::happened(&crashed));
                assert_eq!(root.recover().unwrap().kept.len(), 2);
            }
            let staged = root.stage_again(project, other).unwrap();
            assert!(!staged.resumed && is_empty(&staged.project_dir) && is_empty(&staged.persist_dir));
        });
    }

    #[test]
    fn what_somebody_may_still_be_writing_to_is_deleted() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (project, op_id) = (project_with_old_files(&root), Uuid::now_v7());
            let staged = root.stage_again(project, op_id).unwrap();
            fill(&staged.project_dir, "new");
            let writer = std::fs::File::open(&staged.project_dir).unwrap();
            writer.lock().unwrap();
            drop(staged);
            let staged = root.stage_again(project, op_id).unwrap();
            assert!(!staged.resumed && is_empty(&staged.project_dir));
            // One that ends in time is waited for.
            let ending = std::fs::File::open(&staged.persist_dir).unwrap();
            ending.lock().unwrap();
            drop(staged);
            let end = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                drop(ending);
            });
            assert!(root.stage_again(project, op_id).unwrap().resumed);
            end.join().unwrap();
        });
    }

    /// A crash after every step of a restore, and then one after every step of its recovery.
    #[test]
    fn a_crash_at_any_step_leaves_after_recovery_the_old_or_the_new_trees_and_nothing_else() {
        for (existing, restore) in [
            (true, restore as fn(&_, _, _) -> _),
            (false, restore),
            (true, restore_again),
            (false, restore_again),
        ] {
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
                        rolled_back += second.kept.len();
                        for op_id in second.kept.iter().chain(&second.finished) {
                            let mut steps = 1..;
                            while Crash::happened(&Crash::after(&root, steps.next().unwrap()).abandon(*op_id))
                            {
                                assert!(root.recover().unwrap().failed.is_empty());
                            }
                        }
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
                    crashes > 20 && finished > 5 && rolled_back >= 5,
                    "{crashes} {finished} {rolled_back}"
                );
            });
        }
    }

    /// A crash at any step of a restore of the files alone; the persist store stays.
    #[test]
    fn a_restore_of_the_files_alone_leaves_the_persist_store_as_it_is() {
        on_each_filesystem(|new_root| {
            for steps in 1.. {
                let root = new_root();
                let project = project_with_old_files(&root);
                crate::deletion::delete_tree(&root.btrfs, &root.project_dir(project)).unwrap();
                assert_eq!(root.presence(project).unwrap(), Presence::PersistStoreOnly);
                let crashing = Crash::after(&root, steps);
                let restored = (|| {
                    let staged = crashing.stage(project, Uuid::now_v7())?;
                    fill(&staged.project_dir, "new");
                    fill(&staged.persist_dir, "new");
                    crashing.exchange_files(&staged)?;
                    crashing.discard(staged)
                })();
                root.recover().unwrap();
                assert!(is_empty(&root.staging()), "after {steps} steps");
                if root.project_dir(project).exists() {
                    assert_eq!(marks(&root, project), ("new".into(), "old".into()), "after {steps} steps");
                    assert_eq!(root.presence(project).unwrap(), Presence::Whole);
                } else {
                    assert_eq!(root.presence(project).unwrap(), Presence::PersistStoreOnly);
                }
                if !Crash::happened(&restored) {
                    break;
                }
            }
        });
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
