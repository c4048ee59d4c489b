//! What is backed up comes back, and what changed is noticed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backup_repository::*;
use support::*;
use tokio::runtime::Handle;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_file_system_can_hold_comes_back() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    fs::write(test.path("persist").join("store.db"), noise(100_000, 2)).unwrap();

    let backup = test.back_up(test.request(None)).await.unwrap();
    assert_eq!(backup.vanished.count, 0);
    assert_eq!(backup.changed.count, 0, "{:?}", backup.changed);
    assert_eq!(backup.parent_use, ParentUse::NotGiven);

    let restored = test.restore(backup.snapshot, test.whole("restored")).await.unwrap();
    assert_same(&test.project(), &test.path("restored/project"));
    assert_same(&test.path("persist"), &test.path("restored/persist"));
    assert_eq!(restored.tree, backup.tree);
    assert_eq!(
        (restored.files, restored.directories, restored.bytes),
        (backup.files, backup.directories, backup.bytes)
    );
    // Not a byte of the 20 MB of zeros is on the disk.
    assert!(fs::metadata(test.path("restored/project/sparse")).unwrap().blocks() * 512 < 1024 * 1024);

    let report = test.check().await;
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(test.snapshots().await[0].tree.as_deref(), Some(backup.tree.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_what_was_restored_has_the_same_digest() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    let first = test.back_up(test.request(None)).await.unwrap();
    test.restore(first.snapshot, test.whole("restored")).await.unwrap();

    let mut request = test.request(Some(first.snapshot));
    request.project = test.path("restored/project");
    request.persist = test.path("restored/persist");
    let second = test.back_up(request).await.unwrap();
    assert_eq!(second.tree, first.tree);
    assert_ne!(second.snapshot, first.snapshot);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_in_a_project_is_no_part_of_it() {
    let test = TestRepository::new().await;
    let staged = test.project().join(format!("{STAGING_PREFIX}{}", Uuid::now_v7()));
    for directory in [&staged, &test.project().join("work").join(STAGING_PREFIX)] {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("content"), b"staged").unwrap();
    }
    let backup = test.back_up(test.request(None)).await.unwrap();
    assert_eq!((backup.files, backup.bytes), (1, 6), "but deeper down it is a name like any other");
    let restored = test.restore(backup.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!((restored.files, &restored.tree), (1, &backup.tree));
    assert!(test.path("restored/project/work").join(STAGING_PREFIX).join("content").exists());

    // Nobody is told that a restore would delete it.
    let (location, handle) = (test.location(), Handle::current());
    let target = PreviewTarget::Whole { project: test.project(), persist: test.path("persist") };
    let request = PreviewRequest { snapshot: backup.snapshot, target };
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    let preview = move || Repository::open_for_reading(location, handle)?.preview(&request, &progress);
    let preview = blocking(preview).await.unwrap();
    assert_eq!((preview.deleted.files, preview.unchanged.files), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_reads_no_file_and_costs_few_requests() {
    let test = TestRepository::new().await;
    for directory in 0..50 {
        let directory = test.project().join(format!("directory-{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..20 {
            fs::write(directory.join(file.to_string()), format!("{} {file}", directory.display())).unwrap();
        }
    }
    let cache = Some(CacheSettings { directory: test.path("cache"), limit_bytes: 100_000_000 });
    let location = || RepositoryLocation { cache: cache.clone(), ..test.location() };
    let progress = || std::sync::Arc::new(NoProgress);
    let first = back_up(location(), test.request(None), progress()).await.unwrap();
    // Change times from before the first look are trusted: in a snapshot taken later.
    let mut request = test.request(Some(first.snapshot));
    let later = SystemTime::now() + Duration::from_secs(10);
    let taken_at = later.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    request.source = SourceState::ReadOnly { taken_at };
    let second = back_up(location(), request.clone(), progress()).await.unwrap();
    request.parent = Some(second.snapshot);
    let third = back_up(location(), request, progress()).await.unwrap();
    assert_eq!(third.parent_use, ParentUse::Unchanged);
    assert_eq!((third.files, third.bytes, third.parent), (first.files, first.bytes, Some(second.snapshot)));
    assert_eq!(third.tree, first.tree);
    assert_eq!(third.bytes_added, 0);
    assert!(third.requests.total() <= 5, "{:?}", third.requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_in_any_entry_is_no_unchanged_backup() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    fs::write(test.project().join("z"), b"z").unwrap();
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 8] = [
        ("nothing", |_| {}),
        ("an attribute", |project| xattr::set(project.join("z"), "user.new", b"1").unwrap()),
        ("a mode", |project| {
            fs::set_permissions(project.join("z"), fs::Permissions::from_mode(0o600)).unwrap()
        }),
        ("content", |project| fs::write(project.join("z"), b"y").unwrap()),
        ("a new file at the end", |project| fs::write(project.join("zz"), b"").unwrap()),
        ("a name", |project| fs::rename(project.join("z"), project.join("y")).unwrap()),
        ("another hard link", |project| fs::hard_link(project.join("y"), project.join("yy")).unwrap()),
        ("one less", |project| fs::remove_file(project.join("zz")).unwrap()),
    ];
    let mut request = test.request(None);
    for (number, (what, change)) in changes.iter().enumerate() {
        // Twice, in snapshots taken so much later that every change time can be trusted.
        let mut settled = None;
        for turn in 1..=2 {
            let later = SystemTime::now() + Duration::from_secs(10 * (2 * number as u64 + turn));
            let taken_at = later.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
            request.source = SourceState::ReadOnly { taken_at };
            let backup = test.back_up(request.clone()).await.unwrap();
            request.parent = Some(backup.snapshot);
            settled = Some(backup);
        }
        let before = settled.unwrap();
        change(&test.project());
        let after = test.back_up(request.clone()).await.unwrap();
        request.parent = Some(after.snapshot);
        let expected = if number == 0 { ParentUse::Unchanged } else { ParentUse::Used };
        assert_eq!(after.parent_use, expected, "{what}");
        assert_eq!(after.tree == before.tree, number == 0, "{what}");
    }
    let last = test.back_up(request).await.unwrap();
    assert_eq!(last.parent_use, ParentUse::Unchanged);
    let restored = test.restore(last.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!(restored.tree, last.tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_hides_behind_size_and_time_is_noticed() {
    let test = TestRepository::new().await;
    let file = test.project().join("ledger");
    fs::write(&file, b"owes 100").unwrap();
    set_mtime(&file, 1_500_000_000, 5);
    let first = test.back_up(test.request(None)).await.unwrap();
    fs::write(&file, b"owes 999").unwrap();
    set_mtime(&file, 1_500_000_000, 5);
    let second = test.back_up(test.request(Some(first.snapshot))).await.unwrap();
    assert_ne!(second.tree, first.tree);
    test.restore(second.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!(fs::read(test.path("restored/project/ledger")).unwrap(), b"owes 999");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_gone_costs_a_full_read_and_is_said() {
    let test = TestRepository::new().await;
    fs::write(test.project().join("a"), b"a").unwrap();
    let unknown: SnapshotId = "ab".repeat(32).parse().unwrap();
    let receipt = test.back_up(test.request(Some(unknown))).await.unwrap();
    assert_eq!((receipt.parent, receipt.parent_use), (None, ParentUse::Missing));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_attempt_finds_the_backup_of_the_first() {
    let test = TestRepository::new().await;
    fs::write(test.project().join("a"), b"a").unwrap();
    let mut request = test.request(None);
    let first = test.back_up(request.clone()).await.unwrap();
    request.attempt = 2;
    let second = test.back_up(request.clone()).await.unwrap();
    assert!(second.found && !first.found);
    assert_eq!((second.snapshot, &second.tree), (first.snapshot, &first.tree));
    assert_eq!(
        (second.files, second.directories, second.bytes),
        (first.files, first.directories, first.bytes)
    );
    assert_eq!(test.snapshots().await.len(), 1);

    request.op_id = Uuid::now_v7();
    assert!(!test.back_up(request).await.unwrap().found);
    assert_eq!(test.snapshots().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_path_is_restored_with_its_hard_links() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    let backup = test.back_up(test.request(None)).await.unwrap();
    let target = RestoreTarget::Path { path: "project/links".parse().unwrap(), into: test.path("part") };
    test.restore(backup.snapshot, target).await.unwrap();
    let restored = test.path("part/links");
    assert_same(&test.project().join("links"), &restored);
    assert_eq!(
        fs::metadata(restored.join("hard-1")).unwrap().ino(),
        fs::metadata(restored.join("hard-2")).unwrap().ino()
    );
    let target =
        RestoreTarget::Path { path: "project/src/main.rs".parse().unwrap(), into: test.path("one-file") };
    let receipt = test.restore(backup.snapshot, target).await.unwrap();
    assert_eq!((receipt.files, receipt.directories), (1, 0));
    assert_eq!(fs::read(test.path("one-file/main.rs")).unwrap(), b"fn main() {}\n");
    let missing =
        RestoreTarget::Path { path: "project/nothing".parse().unwrap(), into: test.path("missing") };
    let error = test.restore(backup.snapshot, missing).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_entry_fails_the_backup_and_leaves_no_snapshot() {
    let test = TestRepository::new().await;
    let file = test.project().join("strange");
    fs::write(&file, b"x").unwrap();
    // Something that even root cannot read into a snapshot: a name that is no text.
    let name = std::os::unix::ffi::OsStrExt::from_bytes(b"user.\xff");
    let name: &std::ffi::OsStr = name;
    xattr::set(&file, name, b"x").unwrap();
    let error = test.back_up(test.request(None)).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::SourceUnreadable);
    assert!(error.to_string().contains("project/strange"), "{error}");
    assert!(test.snapshots().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_vanish_from_a_live_tree_are_counted() {
    let test = TestRepository::new().await;
    for number in 0..3000 {
        fs::write(test.project().join(format!("{number:05}")), noise(3000, number + 10)).unwrap();
    }
    /// Removes what is still to come as soon as the backup begins.
    struct Remover(std::path::PathBuf);
    impl Progress for Remover {
        fn scanned(&self, _files: u64, _bytes: u64) {}
        fn stored(&self, _files: u64, bytes: u64) {
            if bytes > 0 {
                for number in 2000..3000 {
                    let _ = fs::remove_file(self.0.join(format!("{number:05}")));
                }
            }
        }
        fn is_canceled(&self) -> bool {
            false
        }
    }
    let progress = std::sync::Arc::new(Remover(test.project()));
    let receipt = back_up(test.location(), test.request(None), progress).await.unwrap();
    assert!(receipt.vanished.count > 10, "{:?}", receipt.vanished);
    assert_eq!(receipt.vanished.first.len(), 10);
    assert_eq!(receipt.files + receipt.vanished.count, 3000);
    test.restore(receipt.snapshot, test.whole("restored")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_deeper_than_the_longest_path_comes_back() {
    let test = TestRepository::new().await;
    let name = "d".repeat(200);
    let mut directory = std::fs::File::open(test.project()).unwrap().into();
    for _ in 0..30 {
        rustix::fs::mkdirat(&directory, &name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        directory = rustix::fs::openat(&directory, &name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
    let bottom = rustix::fs::openat(&directory, "bottom", flags, rustix::fs::Mode::RUSR).unwrap();
    rustix::io::write(&bottom, b"6,000 bytes down").unwrap();
    let backup = test.back_up(test.request(None)).await.unwrap();
    assert_eq!(backup.files, 1);
    // Verified by the restore itself: the standard library cannot go there.
    let restored = test.restore(backup.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!((restored.files, restored.bytes), (1, 16));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_listed_without_a_restore_and_snapshots_deleted() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    let backup = test.back_up(test.request(None)).await.unwrap();
    let (location, handle) = (test.location(), Handle::current());
    let browser = blocking(move || {
        let browser = Repository::open_for_reading(location, handle).unwrap().into_browser().unwrap();
        let paths = |path: Option<&str>, depth| {
            let path = path.map(|path| path.parse().unwrap());
            let entries = browser.list(backup.snapshot, path.as_ref(), depth).unwrap();
            entries.into_iter().map(|entry| entry.path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths(None, 1), ["persist", "project"]);
        assert_eq!(paths(Some("project/src"), 1), ["project/src/hard-3", "project/src/main.rs"]);
        assert_eq!(paths(Some("project/deep"), 2), ["project/deep/er", "project/deep/er/and"]);
        let file = browser.list(backup.snapshot, Some(&"project/modes/setuid".parse().unwrap()), 1).unwrap();
        assert_eq!((file[0].kind, file[0].mode, file[0].size_bytes), (EntryKind::File, 0o4755, 10));
        let link = browser.list(backup.snapshot, Some(&"project/links/good".parse().unwrap()), 1).unwrap();
        assert_eq!(link[0].link_target.as_deref(), Some(std::path::Path::new("../src/main.rs")));
        browser
    })
    .await;
    drop(browser);

    let (location, handle) = (test.location(), Handle::current());
    blocking(move || {
        let repository = Repository::open_for_writing(location, handle).unwrap();
        repository.forget(&[backup.snapshot]).unwrap();
        repository.forget(&[backup.snapshot]).unwrap();
    })
    .await;
    assert!(test.snapshots().await.is_empty());
    let error = test.restore(backup.snapshot, test.whole("restored")).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_directory_that_is_not_empty_is_refused() {
    let test = TestRepository::new().await;
    let backup = test.back_up(test.request(None)).await.unwrap();
    fs::create_dir_all(test.path("restored/project")).unwrap();
    fs::write(test.path("restored/project/precious"), b"x").unwrap();
    fs::set_permissions(test.path("restored/project"), fs::Permissions::from_mode(0o700)).unwrap();
    let error = test.restore(backup.snapshot, test.whole("restored")).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::DestinationUnusable);
    assert_eq!(fs::read(test.path("restored/project/precious")).unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_damaged_cache_is_only_slower() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    let cache = Some(CacheSettings { directory: test.path("cache"), limit_bytes: 100_000_000 });
    let location = || RepositoryLocation { cache: cache.clone(), ..test.location() };
    let progress = || std::sync::Arc::new(NoProgress);
    let first = back_up(location(), test.request(None), progress()).await.unwrap();
    let mut cached = 0;
    for shelf in fs::read_dir(test.path("cache")).unwrap() {
        for file in fs::read_dir(shelf.unwrap().path()).unwrap() {
            fs::write(file.unwrap().path(), b"rubbish").unwrap();
            cached += 1;
        }
    }
    assert!(cached >= 3, "an index, a snapshot and a pack of trees: {cached}");
    let second = back_up(location(), test.request(Some(first.snapshot)), progress()).await.unwrap();
    assert_eq!((second.parent, &second.tree), (Some(first.snapshot), &first.tree));
    fs::remove_dir_all(test.path("cache")).unwrap();
    let third = back_up(location(), test.request(Some(second.snapshot)), progress()).await.unwrap();
    assert_eq!((third.parent, &third.tree), (Some(second.snapshot), &first.tree));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_a_link_is_not_followed() {
    let test = TestRepository::new().await;
    std::os::unix::fs::symlink("/etc", test.path("link")).unwrap();
    let mut request = test.request(None);
    request.project = test.path("link");
    let error = test.back_up(request).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::InvalidArgument);
}

/// An access control list as the kernel has it: its version, and of each entry the tag, the permissions, the id.
fn access_control_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

#[tokio::test(flavor = "multi_thread")]
async fn access_control_lists_and_holes_come_back() {
    const NOBODY: u32 = u32::MAX;
    let test = TestRepository::new().await;
    let (file, directory) = (test.project().join("file"), test.project().join("directory"));
    fs::write(&file, b"for some").unwrap();
    fs::create_dir(&directory).unwrap();
    // Owner rw, user 1234 r, group r, mask r, others nothing.
    let list = access_control_list(&[
        (1, 6, NOBODY),
        (2, 4, 1234),
        (4, 4, NOBODY),
        (16, 4, NOBODY),
        (32, 0, NOBODY),
    ]);
    if let Err(error) = xattr::set(&file, "system.posix_acl_access", &list) {
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()), "{error}");
        return;
    }
    let inherited = access_control_list(&[
        (1, 7, NOBODY),
        (2, 5, 1234),
        (4, 5, NOBODY),
        (16, 5, NOBODY),
        (32, 0, NOBODY),
    ]);
    xattr::set(&directory, "system.posix_acl_default", &inherited).unwrap();
    xattr::set(&directory, "system.posix_acl_access", &inherited).unwrap();
    fs::write(directory.join("inheritor"), b"made beneath it").unwrap();
    let sparse = fs::File::create(test.project().join("sparse")).unwrap();
    sparse.set_len(64 * 1024 * 1024).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise(100_000, 1), 40_000_000).unwrap();
    drop(sparse);

    let backup = test.back_up(test.request(None)).await.unwrap();
    let receipt = test.restore(backup.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!(receipt.tree, backup.tree);
    assert_same(&test.project(), &test.path("restored/project"));
    let restored = test.path("restored/project");
    for (path, name, list) in [
        ("file", "system.posix_acl_access", &list),
        ("directory", "system.posix_acl_access", &inherited),
        ("directory", "system.posix_acl_default", &inherited),
    ] {
        assert_eq!(xattr::get(restored.join(path), name).unwrap().as_ref(), Some(list), "{path} {name}");
    }
    let inheritor = |root: std::path::PathBuf| {
        xattr::get(root.join("directory/inheritor"), "system.posix_acl_access").unwrap().unwrap()
    };
    assert_eq!(inheritor(restored.clone()), inheritor(test.project()));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(restored.join("sparse")).unwrap());
    assert!(blocks * 512 < 2_000_000, "64 MB of holes take {} bytes", blocks * 512);
}
