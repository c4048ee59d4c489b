//! Trees that were made to lead a copy astray, or to use up what it runs on.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use rustix::fs::Mode;

use super::*;
use crate::pair_walk::DIRECTORY;
use crate::test_support::on_each_filesystem;
use crate::{Filesystem, VolumeErrorKind};

fn refused(outcome: Result<CopyReceipt, VolumeError>, message: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::InvalidPath, "{error:?}");
    assert_eq!(error.to_string(), message);
}

#[test]
fn links_in_the_source_are_copied_as_links_and_none_on_the_way_is_followed() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let (source, target) = (projects.source(), projects.target());
        write(source.join("real/file"), "text");
        for (name, leads_to) in
            [("absolute", "/etc/passwd"), ("up", "../../.."), ("inside", "real"), ("self", "self")]
        {
            symlink(leads_to, source.join(name)).unwrap();
            projects.copy(&projects.request(&[(name, name)])).unwrap();
            assert_eq!(target.join(name).read_link().unwrap(), Path::new(leads_to));
            refused(
                projects.copy(&projects.request(&[(&format!("{name}/file"), "x")])),
                &format!(
                    "the symbolic link {name} is on the way, and links are followed only with 'dereference'"
                ),
            );
        }
        assert!(!target.join("x").exists());
    });
}

#[test]
fn links_are_followed_if_asked_for_but_only_to_something_inside() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let (source, target) = (projects.source(), projects.target());
        write(source.join("real/file"), "text");
        symlink("../real/file", source.join("real/to-file")).unwrap();
        std::fs::create_dir(source.join("tree")).unwrap();
        symlink("../real", source.join("tree/link")).unwrap();
        let copy = |from: &str| {
            let mut request = projects.request(&[(from, "made")]);
            request.options.dereference = true;
            projects.copy(&request)
        };
        copy("tree").unwrap();
        copy("tree/link").unwrap();
        for path in ["made/link/file", "made/link/to-file", "made/file", "made/to-file"] {
            assert_eq!(read(target.join(path)), "text");
            assert!(!target.join(path).is_symlink() && !target.join("made/link").is_symlink());
        }
        for (leads_to, why) in [
            ("/etc/passwd", "leads out of the project"),
            ("/etc", "leads out of the project"),
            ("/proc/self/root/etc", "leads out of the project"),
            ("../../../../etc/passwd", "leads out of the project"),
            ("../../../projects", "leads out of the project"),
            (source.join("real").to_str().unwrap(), "leads out of the project"),
            ("nothing", "leads to nothing"),
            ("../real/file/x", "leads to nothing"),
            ("bad", "leads in a circle, or over too many links"),
            (".", "leads to a directory that it is in"),
            ("..", "tree/bad/tree/bad leads to a directory that it is in"),
            ("../tree", "leads to a directory that it is in"),
        ] {
            symlink(leads_to, source.join("tree/bad")).unwrap();
            let error = copy("tree").unwrap_err();
            assert_eq!(error.kind(), VolumeErrorKind::InvalidPath);
            assert!(error.to_string().contains(why), "{leads_to}: {error}");
            assert!(error.to_string().contains("tree/bad"), "{leads_to}: {error}");
            std::fs::remove_file(source.join("tree/bad")).unwrap();
        }
        symlink("/etc", source.join("out")).unwrap();
        refused(copy("out/passwd"), "the symbolic link out/passwd leads out of the project");
    });
}

#[test]
fn a_deep_tree_behind_a_link_is_copied_to_its_last_file() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let mut path = PathBuf::from("real");
        for level in 0..100 {
            write(projects.source().join(&path).join("file"), &level.to_string());
            path.push("d");
        }
        std::fs::create_dir(projects.source().join("tree")).unwrap();
        symlink("../real", projects.source().join("tree/link")).unwrap();
        let mut request = projects.request(&[("tree", "tree")]);
        request.options.dereference = true;
        assert_eq!(projects.copy(&request).unwrap().files, 100);
        let mut path = projects.target().join("tree/link");
        for level in 0..100 {
            assert_eq!(read(path.join("file")), level.to_string());
            path.push("d");
        }
    });
}

#[test]
fn what_is_staged_in_the_source_is_not_copied_even_by_a_link_to_its_root() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let source = projects.source();
        write(source.join(".longhaul-staging-x/content"), "not yet theirs");
        write(source.join("file"), "text");
        symlink(".", source.join("all")).unwrap();
        let mut request = projects.request(&[("all", "all")]);
        request.options.dereference = true;
        let error = projects.copy(&request).unwrap_err();
        assert!(error.to_string().contains("all/all leads to a directory that it is in"), "{error}");
        // The link goes when it was followed, and with it the circle.
        let mut calls = 0;
        let op_id = Uuid::now_v7();
        let outcome = projects.root.copy_into(projects.target, op_id, &request, &mut |_| {
            calls += 1;
            if calls == 2 {
                std::fs::remove_file(source.join("all")).unwrap();
            }
            ControlFlow::Continue(())
        });
        outcome.unwrap();
        assert_eq!(names(&projects.target().join("all")), ["file"]);
    });
}

#[test]
fn a_link_in_the_target_is_replaced_or_refused_and_never_followed() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let (source, target) = (projects.source(), projects.target());
        let victim = projects.root.ensure_volume(Uuid::new_v4()).unwrap().project_dir;
        write(victim.join("dir/file"), "victim");
        write(source.join("tree/file"), "new");
        symlink(&victim, target.join("out")).unwrap();
        symlink(victim.join("dir/file"), target.join("file")).unwrap();
        for to in ["out/dir", "out/new/deep", "out", "file"] {
            assert_eq!(
                projects.copy(&projects.request(&[("tree", to)])).unwrap_err().kind(),
                VolumeErrorKind::InvalidPath
            );
        }
        for to in ["file", "out"] {
            projects.copy(&projects.request(&[("tree/file", to)])).unwrap();
            assert!(target.join(to).symlink_metadata().unwrap().is_file());
        }
        assert_eq!(names(&victim), ["dir"]);
        assert_eq!(read(victim.join("dir/file")), "victim");
    });
}

#[test]
fn another_volume_in_the_target_is_refused_and_one_in_the_source_is_read() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        if projects.root.filesystem() == Filesystem::Plain {
            return;
        }
        std::fs::create_dir(projects.source().join("tree")).unwrap();
        projects.root.btrfs.create_subvolume(&projects.source().join("tree/nested")).unwrap();
        write(projects.source().join("tree/nested/file"), "text");
        projects.root.btrfs.create_subvolume(&projects.target().join("nested")).unwrap();
        for (from, to) in [("tree", "nested"), ("tree/nested/file", "nested/file")] {
            refused(
                projects.copy(&projects.request(&[("tree/nested/file", "good"), (from, to)])),
                &format!(
                    "{} lies on another volume than its project, so nothing can be renamed into it",
                    projects.target().join("nested").display()
                ),
            );
        }
        assert_eq!(names(&projects.target()), ["nested"]);
        projects.copy(&projects.request(&[("tree", "tree")])).unwrap();
        assert_eq!(read(projects.target().join("tree/nested/file")), "text");
    });
}

#[test]
fn a_staging_directory_that_the_tenant_replaces_after_a_crash_is_not_taken_for_ours() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        write(projects.source().join("file"), "new");
        for steps in 1.. {
            let op_id = Uuid::now_v7();
            let request = projects.request(&[("file", "file")]);
            let crashing = crate::test_support::Crash::after(&projects.root, steps);
            let go_on = &mut |_| ControlFlow::Continue(());
            let outcome = crashing.copy_into(projects.target, op_id, &request, go_on);
            let staging = projects.target().join(format!(".longhaul-staging-{op_id}"));
            if staging.exists() {
                std::fs::rename(&staging, projects.target().join("moved")).unwrap();
                write(staging.join("entry-0/planted"), "planted");
            }
            assert!(projects.root.recover().unwrap().failed.is_empty());
            assert!(!projects.target().join("planted").exists());
            projects.copy_as(op_id, &request).unwrap();
            assert_eq!(read(projects.target().join("file")), "new");
            projects.root.forget_copy(projects.target, op_id).unwrap();
            projects.assert_nothing_staged();
            std::fs::remove_file(projects.target().join("file")).unwrap();
            let _ = std::fs::remove_dir_all(projects.target().join("moved"));
            if outcome.is_ok() {
                break;
            }
        }
    });
}

/// Makes a chain of directories that is far deeper than any path is long.
fn make_deep(top: &Path, depth: usize, file: &str) {
    std::fs::create_dir(top).unwrap();
    let mut directory = open(top);
    for level in 0..depth {
        rustix::fs::mkdirat(&directory, "directory", Mode::RWXU).unwrap();
        directory = rustix::fs::openat(&directory, "directory", DIRECTORY, Mode::empty()).unwrap();
        // Something to come back to on the way up, at some levels.
        if level % 100 == 50 {
            rustix::fs::symlinkat(file, &directory, "link").unwrap();
            rustix::fs::mkdirat(&directory, "aside", Mode::RWXU).unwrap();
        }
    }
    rustix::fs::symlinkat(file, &directory, "link").unwrap();
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap()
}

/// The links in such a chain, the outermost first.
fn links_in(top: &Path) -> Vec<String> {
    let mut links = Vec::new();
    let mut directory = open(top);
    loop {
        if let Ok(link) = rustix::fs::readlinkat(&directory, "link", Vec::new()) {
            links.push(link.into_string().unwrap());
        }
        match rustix::fs::openat(&directory, "directory", DIRECTORY, Mode::empty()) {
            Ok(inner) => directory = inner,
            Err(_) => return links,
        }
    }
}

#[test]
fn a_tree_deeper_than_any_path_is_copied_and_merged() {
    const DEPTH: usize = 1_200;
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        make_deep(&projects.source().join("one"), DEPTH, "one");
        make_deep(&projects.source().join("two"), DEPTH, "two");
        let receipt = projects.copy(&projects.request(&[("one", "deep")])).unwrap();
        assert_eq!(receipt.directories, DEPTH as u64 + 13);
        assert_eq!(links_in(&projects.target().join("deep")), ["one"; 13]);
        let receipt = projects.copy(&projects.request(&[("two", "deep")])).unwrap();
        assert_eq!((receipt.replaced, receipt.kept), (13, 0));
        assert_eq!(links_in(&projects.target().join("deep")), ["two"; 13]);
        for tree in [projects.source(), projects.target()] {
            for name in names(&tree) {
                crate::deletion::delete_tree(&projects.root.btrfs, &tree.join(name)).unwrap();
            }
        }
    });
}

#[test]
fn names_of_any_bytes_arrive_as_they_are() {
    on_each_filesystem(|new_root| {
        let projects = Projects::new(new_root());
        let long = "n".repeat(255);
        let odd: [&[u8]; 7] =
            [b"new\nline", b"\xff\xfe", b"-rf", b"...", b" ", b".longhaul-staging-deep", long.as_bytes()];
        for name in odd {
            let name = OsStr::from_bytes(name);
            write(projects.source().join("tree").join(name).join(name), "text");
        }
        projects.copy(&projects.request(&[("tree", "tree")])).unwrap();
        projects.copy(&projects.request(&[("tree", "tree")])).unwrap();
        for name in odd {
            let name = OsStr::from_bytes(name);
            assert_eq!(read(projects.target().join("tree").join(name).join(name)), "text");
        }
    });
}
