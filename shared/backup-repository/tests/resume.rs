//! A restore goes on with what an earlier attempt has left, and believes none of it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_repository::*;
use support::*;

/// Stops a restore when that many bytes are there.
struct StopAfter {
    bytes: u64,
    stopped: AtomicBool,
}

impl Progress for StopAfter {
    fn scanned(&self, _files: u64, _bytes: u64) {}
    fn stored(&self, _files: u64, bytes: u64) {
        self.stopped.fetch_or(bytes >= self.bytes, Ordering::SeqCst);
    }
    fn is_canceled(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// A repository with one backup of all kinds of entries, 40 MB of files of their own, and a file that is mostly a hole.
async fn backed_up() -> (TestRepository, BackupReceipt) {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    fs::create_dir(test.project().join("many")).unwrap();
    for number in 0..40 {
        fs::write(test.project().join(format!("many/{number}")), noise(1_000_000, 100 + number)).unwrap();
    }
    let sparse = fs::File::create(test.project().join("sparse")).unwrap();
    sparse.set_len(20_000_000).unwrap();
    sparse.write_all_at(&noise(100_000, 7), 9_000_000).unwrap();
    fs::write(test.path("persist/state"), noise(2_000_000, 8)).unwrap();
    let backup = test.back_up(test.request(None)).await.unwrap();
    (test, backup)
}

async fn resume(
    test: &TestRepository,
    backup: &BackupReceipt,
    progress: Arc<dyn Progress>,
) -> Result<RestoreReceipt> {
    let request = RestoreRequest {
        snapshot: backup.snapshot,
        target: test.whole("staged"),
        sample: None,
        resume: true,
    };
    restore(test.location(), request, progress).await
}

fn assert_restored(test: &TestRepository, backup: &BackupReceipt, receipt: &RestoreReceipt) {
    assert_eq!(receipt.tree, backup.tree);
    assert_same(&test.project(), &test.path("staged/project"));
    assert_same(&test.path("persist"), &test.path("staged/persist"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_it_was_interrupted_a_restore_goes_on_with_what_is_there() {
    let (test, backup) = backed_up().await;
    let whole = test.restore(backup.snapshot, test.whole("anew")).await.unwrap();
    assert_eq!(whole.resumed_bytes, 0);
    let mut before = 0;
    // Each attempt gets further than the last one, which it goes on with.
    for megabytes in [1, 30, 60, 85] {
        let progress = Arc::new(StopAfter { bytes: megabytes * 1_000_000, stopped: AtomicBool::new(false) });
        let error = resume(&test, &backup, progress).await.unwrap_err();
        assert_eq!(error.kind(), BackupRepositoryErrorKind::Canceled, "{}", error.chain());
    }
    for _ in 0..2 {
        let receipt = resume(&test, &backup, Arc::new(NoProgress)).await.unwrap();
        assert_restored(&test, &backup, &receipt);
        assert!(receipt.resumed_bytes >= 80_000_000, "{receipt:?}");
        assert!(receipt.resumed_bytes >= before, "{receipt:?}");
        assert!(receipt.requests.get < whole.requests.get, "{receipt:?} {whole:?}");
        before = receipt.resumed_bytes;
    }
    // The second had nothing left to download, but for two more names of a file of 21 bytes: they are made again.
    assert_eq!(whole.bytes - before, 2 * 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_what_is_there_is_mended() {
    let (test, backup) = backed_up().await;
    resume(&test, &backup, Arc::new(NoProgress)).await.unwrap();
    let staged = test.path("staged/project");
    let write_at = |name: &str, bytes: &[u8], position: u64| {
        let file = fs::File::options().write(true).open(staged.join(name)).unwrap();
        file.write_all_at(bytes, position).unwrap();
    };
    let set_len = |name: &str, length: u64| {
        fs::File::options().write(true).open(staged.join(name)).unwrap().set_len(length).unwrap();
    };
    // The same length, and a time that says nothing.
    write_at("many/0", b"spoilt", 500_000);
    set_mtime(&staged.join("many/0"), 1, 1);
    write_at("large", b"spoilt", 20_000_000);
    // Bytes where a hole belongs, and a hole where bytes belong.
    write_at("sparse", b"spoilt", 15_000_000);
    fs::write(staged.join("many/1"), []).unwrap();
    set_len("many/1", 1_000_000);
    set_len("many/2", 999_999);
    set_len("many/3", 1_000_001);
    set_len("empty", 17);
    set_len("many/4", 0);
    // Entries of other kinds, or with other names.
    fs::remove_file(staged.join("many/5")).unwrap();
    fs::create_dir(staged.join("many/5")).unwrap();
    fs::write(staged.join("many/5/in-the-way"), "x").unwrap();
    fs::set_permissions(staged.join("many/5"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::remove_file(staged.join("many/6")).unwrap();
    let outside = test.path("outside");
    fs::write(&outside, "mine").unwrap();
    symlink(&outside, staged.join("many/6")).unwrap();
    fs::remove_dir_all(staged.join("src")).unwrap();
    symlink(test.path("persist"), staged.join("src")).unwrap();
    fs::write(staged.join("too-much"), "x").unwrap();
    fs::create_dir_all(staged.join("too/much/of/it")).unwrap();
    // Two files that are one.
    fs::remove_file(staged.join("many/7")).unwrap();
    fs::hard_link(staged.join("many/8"), staged.join("many/7")).unwrap();
    fs::hard_link(&outside, staged.join("many/linked")).unwrap();
    fs::remove_file(staged.join("many/9")).unwrap();
    fs::hard_link(&outside, staged.join("many/9")).unwrap();
    fs::set_permissions(staged.join("many"), fs::Permissions::from_mode(0o500)).unwrap();
    fs::remove_dir_all(test.path("staged/persist")).unwrap();

    let receipt = resume(&test, &backup, Arc::new(NoProgress)).await.unwrap();
    assert_restored(&test, &backup, &receipt);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "mine");
    assert!((50_000_000..receipt.bytes - 8_000_000).contains(&receipt.resumed_bytes), "{receipt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_may_be_of_another_backup() {
    let (test, first) = backed_up().await;
    resume(&test, &first, Arc::new(NoProgress)).await.unwrap();
    let many = test.project().join("many");
    fs::write(many.join("0"), noise(1_000_000, 9_000)).unwrap();
    fs::remove_file(many.join("1")).unwrap();
    fs::remove_file(many.join("2")).unwrap();
    fs::create_dir(many.join("2")).unwrap();
    fs::rename(many.join("3"), many.join("new-name")).unwrap();
    fs::hard_link(many.join("4"), many.join("linked")).unwrap();
    let second = test.back_up(test.request(Some(first.snapshot))).await.unwrap();
    for backup in [&second, &first, &second] {
        let receipt = resume(&test, backup, Arc::new(NoProgress)).await.unwrap();
        assert_eq!(receipt.tree, backup.tree);
        assert!(receipt.resumed_bytes >= 80_000_000, "{receipt:?}");
    }
    assert_same(&test.project(), &test.path("staged/project"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_on_with_what_somebody_is_writing_to() {
    let (test, backup) = backed_up().await;
    resume(&test, &backup, Arc::new(NoProgress)).await.unwrap();
    let writer = fs::File::open(test.path("staged/project")).unwrap();
    writer.lock().unwrap();
    let error = resume(&test, &backup, Arc::new(NoProgress)).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::DestinationUnusable, "{}", error.chain());
    drop(writer);
    resume(&test, &backup, Arc::new(NoProgress)).await.unwrap();
    assert!(Path::new(&test.path("staged/project/many/0")).exists());
}
