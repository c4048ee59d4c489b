//! What a copy means: that of `cp -r`.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, FileType, Mode};

use super::*;
use crate::test_support::{BtrfsMount, on_each_filesystem};
use crate::{CopyProgress, Filesystem, VolumeErrorKind};

fn mode(path: PathBuf) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn set_mode(path: PathBuf, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn make_socket(directory: &Path) {
    rustix::fs::mknodat(CWD, directory.join("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn everything_in_a_tree_arrives_and_belongs_to_the_owner_of_the_project() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let (source, target) = (projects.source(), projects.target());
        if is_root() {
            std::os::unix::fs::chown(&target, Some(1234), Some(2345)).unwrap();
        }
        let tree = source.join("tree");
        write(tree.join("program"), "#!");
        set_mode(tree.join("program"), 0o6755);
        write(tree.join("closed/secret"), "secret");
        // Only a privileged process can read what is closed to all.
        let closed = if is_root() { (0o000, 0o2100) } else { (0o400, 0o500) };
        set_mode(tree.join("closed/secret"), closed.0);
        set_mode(tree.join("closed"), closed.1);
        std::fs::create_dir(tree.join("empty")).unwrap();
        symlink("../nowhere", tree.join("link")).unwrap();
        std::fs::hard_link(tree.join("program"), tree.join("same")).unwrap();
        rustix::fs::mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        make_socket(&tree);
        let mut special = 1;
        if is_root() {
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::RUSR, null).unwrap();
            special += 1;
        }
        let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 5 << 20).unwrap();
        let _ = xattr::set(tree.join("sparse"), "user.colour", b"green");

        let receipt = projects.copy(&projects.request(&[("tree", "new")])).unwrap();
        let new = target.join("new");
        assert_eq!(
            receipt,
            CopyReceipt {
                files: 6,
                directories: 3,
                bytes: 2 + 2 + 6 + (64 << 20),
                skipped_special: special,
                cloned: projects.root.filesystem() == Filesystem::Btrfs,
                ..CopyReceipt::default()
            }
        );
        assert_eq!(names(&new), ["closed", "empty", "link", "pipe", "program", "same", "sparse"]);
        assert_eq!(mode(new.join("program")), 0o755);
        assert_eq!(mode(new.join("closed")), closed.1);
        assert_eq!(mode(new.join("closed/secret")), closed.0);
        assert_eq!(mode(new.join("pipe")), 0o640);
        assert!(new.join("pipe").metadata().unwrap().file_type().is_fifo());
        assert_eq!(new.join("link").read_link().unwrap(), Path::new("../nowhere"));
        assert_eq!(new.join("program").metadata().unwrap().nlink(), 1);
        let sparse = new.join("sparse").metadata().unwrap();
        assert_eq!(sparse.len(), 64 << 20);
        assert!(sparse.blocks() * 512 < 1 << 20, "{}", sparse.blocks());
        assert_eq!(std::fs::read(new.join("sparse")).unwrap()[5 << 20], b'x');
        assert_eq!(xattr::get(new.join("sparse"), "user.colour").unwrap_or_default(), None);
        if is_root() {
            for entry in walkdir::WalkDir::new(&new) {
                let metadata = entry.unwrap().metadata().unwrap();
                assert_eq!((metadata.uid(), metadata.gid()), (1234, 2345));
            }
        }
    });
}

#[test]
fn times_are_kept_if_asked_for() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let tree = projects.source().join("tree");
        write(tree.join("sub/file"), "text");
        symlink("nowhere", tree.join("link")).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 7);
        std::fs::File::open(tree.join("sub/file")).unwrap().set_modified(old).unwrap();
        std::fs::File::open(tree.join("sub")).unwrap().set_modified(old).unwrap();
        let mut request = projects.request(&[("tree", "made/up/tree")]);
        projects.copy(&request).unwrap();
        request.options.preserve_timestamps = true;
        request.entries[0].to = "made/up/too".parse().unwrap();
        projects.copy(&request).unwrap();
        let made = projects.target().join("made/up");
        for path in ["sub/file", "sub", "link"] {
            let modified = |tree: &Path| tree.join(path).symlink_metadata().unwrap().modified().unwrap();
            assert_eq!(modified(&made.join("too")), modified(&tree), "{path}");
            assert!(path == "link" || modified(&made.join("tree")) > old, "{path}");
        }
    });
}

#[test]
fn missing_parents_are_made_and_are_open_to_all_as_the_root_is_owned() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        if is_root() {
            std::os::unix::fs::chown(projects.target(), Some(1234), Some(2345)).unwrap();
        }
        write(projects.source().join("file"), "text");
        projects.copy(&projects.request(&[("file", "a/b/one"), ("file", "a/c/two")])).unwrap();
        assert_eq!(read(projects.target().join("a/b/one")), "text");
        assert_eq!(read(projects.target().join("a/c/two")), "text");
        for path in ["a", "a/b", "a/c"] {
            let path = projects.target().join(path);
            assert_eq!(mode(path.clone()), 0o755);
            assert!(!is_root() || path.metadata().unwrap().uid() == 1234);
        }
    });
}

#[test]
fn directories_are_merged_and_files_replaced_kept_or_refused_as_asked() {
    on_each_filesystem(|new_root| {
        for overwrite in [Overwrite::Replace, Overwrite::Keep, Overwrite::Refuse] {
            let projects = Projects::new(new_root());
            let (source, target) = (projects.source().join("tree"), projects.target().join("tree"));
            for path in ["both", "sub/both", "sub/new", "new/inner/new"] {
                write(source.join(path), "new");
            }
            for path in ["both", "sub/both", "sub/old", "old/old"] {
                write(target.join(path), "old");
            }
            set_mode(target.join("sub"), 0o750);
            symlink("/etc/passwd", target.join("linked")).unwrap();
            write(source.join("linked"), "new");
            let mut request = projects.request(&[("tree", "tree")]);
            request.options.overwrite = overwrite;
            let outcome = projects.copy(&request);
            let there = match overwrite {
                Overwrite::Replace => {
                    assert_eq!(outcome.as_ref().unwrap().replaced, 3);
                    assert_eq!(outcome.unwrap().kept, 0);
                    assert_eq!(read(target.join("linked")), "new");
                    assert!(!target.join("linked").is_symlink());
                    "new"
                }
                Overwrite::Keep => {
                    assert_eq!(outcome.as_ref().unwrap().replaced, 0);
                    assert_eq!(outcome.unwrap().kept, 3);
                    assert!(target.join("linked").is_symlink());
                    "old"
                }
                Overwrite::Refuse => {
                    assert_eq!(outcome.unwrap_err().kind(), VolumeErrorKind::AlreadyExists);
                    assert!(!target.join("new").exists() && !target.join("sub/new").exists());
                    assert_eq!(read(target.join("both")), "old");
                    continue;
                }
            };
            assert_eq!(read(target.join("both")), there);
            assert_eq!(read(target.join("sub/both")), there);
            assert_eq!(mode(target.join("sub")), 0o750);
            for (path, text) in
                [("sub/new", "new"), ("new/inner/new", "new"), ("sub/old", "old"), ("old/old", "old")]
            {
                assert_eq!(read(target.join(path)), text);
            }
        }
    });
}

#[test]
fn refusing_what_exists_leaves_room_for_what_does_not() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("tree/sub/file"), "new");
        write(projects.target().join("tree/sub/other"), "old");
        let mut request = projects.request(&[("tree", "tree")]);
        request.options.overwrite = Overwrite::Refuse;
        projects.copy(&request).unwrap();
        assert_eq!(names(&projects.target().join("tree/sub")), ["file", "other"]);
    });
}

#[test]
fn a_conflict_in_one_entry_keeps_all_of_them_out() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let (source, target) = (projects.source(), projects.target());
        write(source.join("good"), "new");
        write(source.join("dir/deep/name"), "new");
        write(target.join("file"), "old");
        write(target.join("other/deep/name/file"), "old");
        symlink("other", target.join("link")).unwrap();
        let conflicts = [
            ("good", "other", "other is a directory, and a file cannot"),
            ("dir", "file", "file is a file, and a directory cannot"),
            ("dir", "link", "link is a symbolic link, and a directory cannot"),
            ("dir", "other", "other/deep/name is a directory, and a file cannot"),
            ("good", "link/new", "link is a symbolic link, and a directory cannot"),
            ("good", "file/new", "file is a file, and a directory cannot"),
        ];
        for (from, to, message) in conflicts {
            for overwrite in [Overwrite::Replace, Overwrite::Keep, Overwrite::Refuse] {
                let mut request = projects.request(&[("good", "a/b"), (from, to), ("good", "c")]);
                request.options.overwrite = overwrite;
                let error = projects.copy(&request).unwrap_err();
                assert_eq!(error.kind(), VolumeErrorKind::InvalidPath);
                assert!(error.to_string().contains(message), "{error}");
                assert_eq!(names(&target), ["file", "link", "other"]);
            }
        }
        assert_eq!(names(&target.join("other")), ["deep"]);
    });
}

#[test]
fn what_cannot_be_copied_is_named_and_nothing_is_changed() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("dir/file"), "new");
        let table = [
            ("dir/none", VolumeErrorKind::NotFound, "dir/none is not there"),
            ("none/at/all", VolumeErrorKind::NotFound, "none is not there"),
            ("dir/file/x", VolumeErrorKind::NotFound, "dir/file/x is not there"),
            ("dir", VolumeErrorKind::InvalidPath, "dir is a directory; set 'recursive'"),
        ];
        for (from, kind, message) in table {
            for dereference in [false, true] {
                let mut request = projects.request(&[("dir/file", "first"), (from, "second")]);
                request.options.recursive = false;
                request.options.dereference = dereference;
                let error = projects.copy(&request).unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
                let message = if dereference { &message[message.len() - 10..] } else { message };
                assert!(error.to_string().contains(message), "{error}");
                assert_eq!(names(&projects.target()), Vec::<String>::new());
            }
        }
        let twice = projects.request(&[("dir", "x"), ("dir/file", "x")]);
        assert_eq!(projects.copy(&twice).unwrap_err().kind(), VolumeErrorKind::InvalidPath);
        let request = projects.request(&[("dir", "x")]);
        let nobody = projects
            .root
            .copy_into(Uuid::new_v4(), Uuid::now_v7(), &request, &mut |_| ControlFlow::Continue(()));
        assert_eq!(nobody.unwrap_err().kind(), VolumeErrorKind::NotFound);
    });
}

#[test]
fn a_socket_alone_is_passed_over_and_nothing_at_all_is_fine() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        make_socket(&projects.source());
        let receipt = projects.copy(&projects.request(&[("socket", "a/socket")])).unwrap();
        assert_eq!(receipt, CopyReceipt { skipped_special: 1, cloned: true, ..CopyReceipt::default() });
        assert_eq!(names(&projects.target()), Vec::<String>::new());
        projects.copy(&projects.request(&[])).unwrap();
    });
}

#[test]
fn a_project_can_be_copied_within_itself_even_into_the_directory_that_is_copied() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.target().join("tree/file"), "text");
        projects.copy(&request(&projects.target(), &[("tree", "tree/again")])).unwrap();
        assert_eq!(names(&projects.target().join("tree")), ["again", "file"]);
        assert_eq!(names(&projects.target().join("tree/again")), ["file"]);
    });
}

#[test]
fn a_copy_that_is_canceled_at_any_moment_leaves_nothing() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("tree/file"), &"text".repeat(9_000));
        write(projects.source().join("tree/sub/file"), "text");
        let request = projects.request(&[("tree", "a"), ("tree/file", "b")]);
        let mut last = CopyProgress { files: 0, bytes: 0 };
        for limit in 0.. {
            let mut calls = 0;
            let outcome =
                projects.root.copy_into(projects.target, Uuid::now_v7(), &request, &mut |progress| {
                    last = progress;
                    calls += 1;
                    if calls > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
            let Err(error) = outcome else { break };
            assert_eq!(error.kind(), VolumeErrorKind::Canceled);
            projects.assert_nothing_staged();
            assert_eq!(names(&projects.target()), Vec::<String>::new());
        }
        assert_eq!(last.bytes, 2 * 36_000 + 4);
        assert_eq!(names(&projects.target()), ["a", "b"]);
    });
}

/// A disk of 4 MiB, mounted until this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(place: PathBuf) -> Self {
        std::fs::create_dir(&place).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&place);
        assert!(mount.status().unwrap().success());
        Self(place)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a child process that another test is just starting may hold a handle into it for a moment.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full_is_not_left_full() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let small = SmallDisk::new(directory.path().join("small"));
    let projects = Projects::new(HostRoot::open(&small.0).unwrap());
    let outside = directory.path().join("outside");
    write(outside.join("tree/small"), "small");
    write(outside.join("tree/large"), &"large".repeat(2 << 20));
    let outcome = projects.copy(&request(&outside, &[("tree", "tree")]));
    assert_eq!(outcome.unwrap_err().kind(), VolumeErrorKind::NoSpace);
    // What is deleted is free once nobody has it open: a child process that another test is just starting may, for a moment.
    let is_free = || {
        let found = rustix::fs::statfs(&small.0).unwrap();
        found.f_bavail * 10 > found.f_blocks * 9
    };
    let give_up = Instant::now() + Duration::from_secs(60);
    while !is_free() {
        assert!(Instant::now() < give_up, "what was staged still takes room");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_quota_that_is_used_up_is_no_space_and_nothing_is_left() {
    let Some(mount) = BtrfsMount::new() else { return };
    let projects = Projects::new(HostRoot::open(mount.path()).unwrap());
    let run = |arguments: &[&str], path: PathBuf| {
        let done = std::process::Command::new("btrfs").args(arguments).arg(path).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    run(&["quota", "enable"], mount.path());
    run(&["qgroup", "limit", "8M"], projects.target());
    let directory = tempfile::tempdir().unwrap();
    // Random enough for any compression.
    let bytes: Vec<u8> =
        (0..32_u64 << 17).flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes()).collect();
    std::fs::create_dir(directory.path().join("tree")).unwrap();
    std::fs::write(directory.path().join("tree/large"), bytes).unwrap();
    let error = projects.copy(&request(directory.path(), &[("tree", "tree")])).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NoSpace, "{error:?}");
    assert_eq!(names(&projects.target()), Vec::<String>::new());
}
