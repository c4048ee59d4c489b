//! Directories of the host's own for copies, what is gathered into them, and receipts.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use super::*;
use crate::VolumeErrorKind;
use crate::test_support::{is_empty, on_each_filesystem};

fn gather(projects: &Projects, paths: &[&str], into: &Path) -> Result<CopyReceipt, VolumeError> {
    let paths: Vec<_> = paths.iter().map(|path| path.parse().unwrap()).collect();
    projects.root.gather(&projects.source(), true, &paths, into, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn a_directory_of_a_copy_is_empty_at_first_locked_while_held_and_swept_afterwards() {
    on_each_filesystem(|new_root| {
        let root = new_root();
        let id = Uuid::now_v7();
        let directory = root.copy_directory(id).unwrap();
        assert_eq!(directory.path().metadata().unwrap().mode() & 0o777, 0o700);
        write(directory.path().join("sub/file"), "text");
        assert_eq!(root.copy_directory(id).unwrap_err().kind(), VolumeErrorKind::InUse);
        assert_eq!(root.recover().unwrap().in_use, [id]);
        assert_eq!(read(directory.path().join("sub/file")), "text");

        drop(directory);
        let again = root.copy_directory(id).unwrap();
        assert!(is_empty(again.path()));
        write(again.path().join("sub/file"), "text");
        root.discard_copy_directory(again).unwrap();
        assert!(is_empty(&root.copies()));

        let left = root.copy_directory(id).unwrap();
        write(left.path().join("sub/file"), "text");
        drop(left);
        let report = root.recover().unwrap();
        assert_eq!(report.copy_directories_deleted, [id]);
        assert!(!report.is_empty() && root.recover().unwrap().is_empty());
        assert!(is_empty(&root.copies()));
    });
}

#[test]
fn files_are_gathered_with_their_links_followed_and_as_they_are() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let source = projects.source();
        write(source.join("data/file"), "text");
        std::fs::set_permissions(source.join("data/file"), PermissionsExt::from_mode(0o4711)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(source.join("data/file"), Some(1234), Some(2345)).unwrap();
            std::fs::set_permissions(source.join("data/file"), PermissionsExt::from_mode(0o4711)).unwrap();
        }
        std::fs::create_dir_all(source.join("work/deep")).unwrap();
        symlink("../../data", source.join("work/deep/link")).unwrap();
        symlink("work", source.join("way")).unwrap();
        let directory = projects.root.copy_directory(Uuid::now_v7()).unwrap();
        let paths = ["way/deep", "way/deep/link/file", "data", "way/deep"];
        let receipt = gather(&projects, &paths, directory.path()).unwrap();
        assert_eq!((receipt.files, receipt.directories, receipt.bytes), (2, 3, 8));
        let (here, there) =
            (source.join("data").metadata().unwrap(), source.join("data/file").metadata().unwrap());
        for gathered in ["way/deep/link", "data"] {
            let gathered = directory.path().join(gathered);
            assert!(!gathered.is_symlink());
            assert_eq!(read(gathered.join("file")), "text");
            for (a, b) in [(&gathered, &here), (&gathered.join("file"), &there)] {
                let a = a.metadata().unwrap();
                assert_eq!((a.mode(), a.uid(), a.gid()), (b.mode(), b.uid(), b.gid()));
                assert_eq!((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec()));
            }
        }
        symlink("/etc", source.join("data/out")).unwrap();
        let other = projects.root.copy_directory(Uuid::now_v7()).unwrap();
        let error = gather(&projects, &["data"], other.path()).unwrap_err();
        assert_eq!(error.kind(), VolumeErrorKind::InvalidPath);
        assert_eq!(error.to_string(), "the symbolic link data/out leads out of the project");
        let canceled =
            projects.root.gather(&source, true, &["work".parse().unwrap()], other.path(), &mut |_| {
                ControlFlow::Break(())
            });
        assert_eq!(canceled.unwrap_err().kind(), VolumeErrorKind::Canceled);
    });
}

#[test]
fn a_copy_that_was_gathered_arrives_as_if_it_had_been_copied_at_once() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("data/file"), "text");
        symlink("data", projects.source().join("link")).unwrap();
        let directory = projects.root.copy_directory(Uuid::now_v7()).unwrap();
        gather(&projects, &["link"], directory.path()).unwrap();
        projects.copy(&request(directory.path(), &[("link", "here")])).unwrap();
        assert_eq!(read(projects.target().join("here/file")), "text");
    });
}

#[test]
fn a_copy_that_is_done_is_not_done_again_over_later_edits() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("tree/file"), "new");
        let op_id = Uuid::now_v7();
        let request = projects.request(&[("tree", "tree")]);
        let receipt = projects.copy_as(op_id, &request).unwrap();
        write(projects.target().join("tree/file"), "edited");
        std::fs::remove_dir_all(projects.source().join("tree")).unwrap();
        assert!(projects.root.recover().unwrap().is_empty());
        assert_eq!(projects.copy_as(op_id, &request).unwrap(), receipt);
        assert_eq!(read(projects.target().join("tree/file")), "edited");

        let other = projects.root.forget_copy(projects.source, op_id).unwrap_err();
        assert_eq!(other.kind(), VolumeErrorKind::Damaged);
        projects.root.forget_copy(projects.target, op_id).unwrap();
        projects.root.forget_copy(projects.target, op_id).unwrap();
        projects.assert_nothing_staged();
        assert_eq!(projects.copy_as(op_id, &request).unwrap_err().kind(), VolumeErrorKind::NotFound);
    });
}

#[test]
fn a_receipt_that_nobody_asks_for_goes_after_two_weeks() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("file"), "new");
        let op_id = Uuid::now_v7();
        projects.copy_as(op_id, &projects.request(&[("file", "file")])).unwrap();
        let journal = projects.root.staging().join(op_id.to_string()).join("journal.json");
        for (days, stays) in [(13, true), (15, false)] {
            let file = std::fs::File::options().write(true).open(&journal).unwrap();
            let written = file.metadata().unwrap().modified().unwrap();
            let days = Duration::from_secs(days * 24 * 3600);
            file.set_modified(written - days).unwrap();
            assert!(projects.root.recover().unwrap().is_empty());
            assert_eq!(journal.exists(), stays);
            if stays {
                file.set_modified(written).unwrap();
            }
        }
        projects.assert_nothing_staged();
    });
}

#[test]
fn a_second_attempt_while_the_first_is_at_work_is_told_so() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("file"), "new");
        let op_id = Uuid::now_v7();
        let request = projects.request(&[("file", "file")]);
        let mut asked = 0;
        projects
            .root
            .copy_into(projects.target, op_id, &request, &mut |_| {
                asked += 1;
                for outcome in [
                    projects.copy_as(op_id, &request).map(drop),
                    projects.root.forget_copy(projects.target, op_id),
                ] {
                    assert_eq!(outcome.unwrap_err().kind(), VolumeErrorKind::InUse);
                }
                assert_eq!(projects.root.recover().unwrap().in_use, [op_id]);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(asked > 0);
        assert_eq!(read(projects.target().join("file")), "new");
    });
}

#[test]
fn forgetting_a_restore_by_mistake_ends_it_as_recovery_would() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.target().join("file"), "old");
        let op_id = Uuid::now_v7();
        let staged = projects.root.stage(projects.target, op_id).unwrap();
        write(staged.project_dir.join("file"), "new");
        projects.root.exchange(&staged).unwrap();
        drop(staged);
        projects.root.forget_copy(projects.target, op_id).unwrap();
        assert_eq!(read(projects.target().join("file")), "new");
        projects.assert_nothing_staged();
    });
}

/// What a version of this crate has written is read by all later ones.
#[test]
fn a_journal_of_a_copy_that_was_written_once_is_read_for_ever() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let op_id = Uuid::now_v7();
        let staging = projects.root.staging().join(op_id.to_string());
        std::fs::create_dir(&staging).unwrap();
        let staged = projects.target().join(format!(".longhaul-staging-{op_id}"));
        write(staged.join("entry-0/a/b"), "new");
        let inode = staged.metadata().unwrap().ino();
        let text = format!(
            r#"{{"version":"1","project":"{}","phase":"exchanging","work":{{"copy":{{"entries":[{{"from":"x","to":"a/b"}}],"options":{{"overwrite":"keep","recursive":true,"dereference":false,"preserve_timestamps":false}},"staging_inode":{inode},"receipt":{{"files":1,"directories":0,"bytes":3,"replaced":0,"kept":0,"skipped_special":0,"cloned":false}}}}}}}}"#,
            projects.target
        );
        std::fs::write(staging.join("journal.json"), text).unwrap();
        assert_eq!(projects.root.recover().unwrap().finished, [op_id]);
        assert_eq!(read(projects.target().join("a/b")), "new");
        let receipt = projects.copy_as(op_id, &projects.request(&[])).unwrap();
        assert_eq!((receipt.files, receipt.bytes), (1, 3));
    });
}

/// Copies `tree`, with five files, out of `projects`, and deletes it once `after` of them are copied.
fn copy_while_deleting(
    projects: &Projects,
    source_is_live: bool,
    after: u64,
    dereference: bool,
) -> Result<CopyReceipt, VolumeError> {
    let tree = projects.source().join("tree");
    (0..5).for_each(|number| write(tree.join(number.to_string()), "text"));
    let mut request = projects.request(&[("tree", "copied")]);
    request.source_is_live = source_is_live;
    request.options.dereference = dereference;
    let op_id = Uuid::now_v7();
    let outcome = projects.root.copy_into(projects.target, op_id, &request, &mut |progress| {
        if progress.files == after && tree.exists() {
            std::fs::remove_dir_all(&tree).unwrap();
        }
        ControlFlow::Continue(())
    });
    projects.root.forget_copy(projects.target, op_id).unwrap();
    outcome
}

#[test]
fn what_is_deleted_meanwhile_is_left_out_of_a_copy_of_a_live_source_only() {
    on_each_filesystem(|new_root| {
        for dereference in [false, true] {
            // The last time everything has been copied by then, but not everything had to be.
            for after in [2, 5] {
                let projects = Projects::new(new_root());
                let error = copy_while_deleting(&projects, false, after, dereference).unwrap_err();
                assert_eq!(error.kind(), VolumeErrorKind::Other);
                assert!(error.to_string().starts_with("tree"), "{error}");
                assert_eq!(names(&projects.target()), Vec::<String>::new());
                projects.assert_nothing_staged();

                let receipt = copy_while_deleting(&projects, true, after, dereference).unwrap();
                assert_eq!((receipt.files, receipt.vanished), (after, 5 - after));
                assert_eq!(names(&projects.target().join("copied")).len() as u64, after);
            }
        }
    });
}

#[test]
fn what_is_gathered_from_a_source_that_should_stand_still_is_all_there_or_an_error() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let tree = projects.source().join("tree");
        for (source_is_live, is_error) in [(false, true), (true, false)] {
            (0..5).for_each(|number| write(tree.join(number.to_string()), "text"));
            let directory = projects.root.copy_directory(Uuid::now_v7()).unwrap();
            let paths = ["tree".parse().unwrap()];
            let source = projects.source();
            let outcome =
                projects.root.gather(&source, source_is_live, &paths, directory.path(), &mut |progress| {
                    if progress.files == 2 && tree.exists() {
                        std::fs::remove_dir_all(&tree).unwrap();
                    }
                    ControlFlow::Continue(())
                });
            assert_eq!(outcome.is_err(), is_error, "{outcome:?}");
        }
    });
}

#[test]
fn a_source_that_stands_still_is_copied_as_a_live_one_is() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("tree/sub/file"), "text");
        symlink("sub", projects.source().join("tree/link")).unwrap();
        for dereference in [false, true] {
            let mut request = projects.request(&[("tree", "copied"), ("tree/sub/file", "file")]);
            request.source_is_live = false;
            request.options.dereference = dereference;
            assert_eq!(projects.copy(&request).unwrap().vanished, 0);
            assert_eq!(read(projects.target().join("copied/link/file")), "text");
            std::fs::remove_dir_all(projects.target().join("copied")).unwrap();
        }
    });
}
