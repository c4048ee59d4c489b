//! What fails, fails loudly, and leaves a repository that works.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backup_repository::*;
use object_storage::{ObjectStore, PutMode};
use support::*;
use uuid::Uuid;

/// Stops the job when that many bytes are done.
struct StopAfter {
    bytes: u64,
    stopped: AtomicBool,
}

impl StopAfter {
    fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, stopped: AtomicBool::new(false) })
    }
}

impl Progress for StopAfter {
    fn scanned(&self, _files: u64, _bytes: u64) {}
    fn stored(&self, _files: u64, bytes: u64) {
        if bytes >= self.bytes {
            self.stopped.store(true, Ordering::SeqCst);
        }
    }
    fn is_canceled(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

fn fill(test: &TestRepository, files: u64) {
    for number in 0..files {
        fs::write(test.project().join(number.to_string()), noise(1_000_000, number)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_canceled_anywhere_leaves_no_snapshot_and_a_sound_repository() {
    let test = TestRepository::new().await;
    fill(&test, 60);
    for megabytes in [1, 20, 40, 60] {
        let progress = StopAfter::new(megabytes * 1_000_000);
        let error = back_up(test.location(), test.request(None), progress).await.unwrap_err();
        assert_eq!(error.kind(), BackupRepositoryErrorKind::Canceled);
        assert!(test.snapshots().await.is_empty());
    }
    let report = test.check().await;
    assert!(report.is_sound(), "{report:?}");
    // What is there already is used.
    let receipt = test.back_up(test.request(None)).await.unwrap();
    assert_eq!(receipt.bytes, 60_000_000);
    assert!(test.check().await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_backup_can_fail_and_none_gives_a_false_success() {
    let test = TestRepository::new().await;
    fill(&test, 40);
    let counting = FaultyStore::new(Arc::clone(&test.store), |_, _, _| false);
    let probe = test.location_on(counting.clone());
    let first = back_up(probe, test.request(None), Arc::new(NoProgress)).await.unwrap();
    let requests = counting.requests.load(Ordering::SeqCst);
    assert!(requests > 6, "{requests}");
    let mut snapshots = 1;
    for failing in 0..requests {
        fs::write(test.project().join("new"), noise(3_000_000, 1000 + failing)).unwrap();
        let store = FaultyStore::new(Arc::clone(&test.store), move |_, _, number| number == failing);
        let result = back_up(test.location_on(store), test.request(None), Arc::new(NoProgress)).await;
        match result {
            // This run needed fewer requests than the first.
            Ok(_) => snapshots += 1,
            Err(error) => assert_eq!(error.kind(), BackupRepositoryErrorKind::Retryable, "{}", error.chain()),
        }
        assert_eq!(test.snapshots().await.len(), snapshots);
    }
    let report = test.check().await;
    assert!(report.is_sound(), "{report:?}");
    let receipt = test.restore(first.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!(receipt.tree, first.tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_restore_can_fail_and_none_gives_a_false_success() {
    let test = TestRepository::new().await;
    fill(&test, 40);
    let backup = test.back_up(test.request(None)).await.unwrap();
    let counting = FaultyStore::new(Arc::clone(&test.store), |_, _, _| false);
    let request = |name: &str| RestoreRequest {
        snapshot: backup.snapshot,
        target: test.whole(name),
        sample: None,
        resume: false,
    };
    restore(test.location_on(counting.clone()), request("good"), Arc::new(NoProgress)).await.unwrap();
    for failing in 0..counting.requests.load(Ordering::SeqCst) {
        let store = FaultyStore::new(Arc::clone(&test.store), move |_, _, number| number == failing);
        let name = format!("restored-{failing}");
        let error = restore(test.location_on(store), request(&name), Arc::new(NoProgress)).await.unwrap_err();
        assert_eq!(error.kind(), BackupRepositoryErrorKind::Retryable, "{}", error.chain());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_restore_says_so() {
    let test = TestRepository::new().await;
    fill(&test, 30);
    let backup = test.back_up(test.request(None)).await.unwrap();
    let request = RestoreRequest {
        snapshot: backup.snapshot,
        target: test.whole("restored"),
        sample: None,
        resume: false,
    };
    let error = restore(test.location(), request, StopAfter::new(5_000_000)).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::Canceled);
}

#[tokio::test(flavor = "multi_thread")]
async fn initialisation_goes_on_after_a_crash_at_any_request() {
    let probe = tempfile::tempdir().unwrap();
    let counting = FaultyStore::new(local_store(probe.path()).await, |_, _, _| false);
    let identity = RepositoryIdentity::new(Uuid::now_v7(), Uuid::now_v7());
    let root = repository_root(identity.project_id);
    let password = RepositoryPassword::generate();
    initialise(counting.clone(), &root, &identity, &password).await.unwrap();

    for crash_at in 0..counting.requests.load(Ordering::SeqCst) {
        let directory = tempfile::tempdir().unwrap();
        let store = local_store(directory.path()).await;
        // From that request on nothing gets through, as after a crash.
        let crashing = FaultyStore::new(Arc::clone(&store), move |_, _, number| number >= crash_at);
        initialise(crashing, &root, &identity, &password).await.unwrap_err();
        let key = initialise(Arc::clone(&store), &root, &identity, &password).await.unwrap();
        // Once more: nothing changes.
        assert_eq!(initialise(Arc::clone(&store), &root, &identity, &password).await.unwrap(), key);
        let keys = store.list(&format!("{root}/keys/")).await.unwrap();
        assert_eq!(keys.len(), 1, "crash at request {crash_at}");
        let location =
            RepositoryLocation { store, root: root.clone(), identity: identity.clone(), key, cache: None };
        let handle = tokio::runtime::Handle::current();
        blocking(move || Repository::open_for_reading(location, handle).unwrap().snapshots().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_initialised_where_something_is() {
    let test = TestRepository::new().await;
    let kind = |store: Arc<dyn ObjectStore>, root: String, identity: RepositoryIdentity, password| async move {
        initialise(store, &root, &identity, &password).await.unwrap_err().kind()
    };
    let other = RepositoryIdentity::new(Uuid::now_v7(), test.identity.project_id);
    let got = kind(Arc::clone(&test.store), test.root.clone(), other, test.password.clone()).await;
    assert_eq!(got, BackupRepositoryErrorKind::IdentityMismatch);

    let wrong = RepositoryPassword::generate();
    let got = kind(Arc::clone(&test.store), test.root.clone(), test.identity.clone(), wrong).await;
    assert_eq!(got, BackupRepositoryErrorKind::WrongCredentials);

    let object = "rustic/project-x/snapshots/old".parse().unwrap();
    test.store.put(&object, "somebody's".into(), PutMode::CreateOnly).await.unwrap();
    let got = kind(
        Arc::clone(&test.store),
        "rustic/project-x".to_owned(),
        test.identity.clone(),
        test.password.clone(),
    )
    .await;
    assert_eq!(got, BackupRepositoryErrorKind::Occupied);
    assert_eq!(test.store.list("rustic/project-x/").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_with_another_marker_or_none_is_not_opened() {
    let test = TestRepository::new().await;
    let mut location = test.location();
    location.identity.repository_id = Uuid::now_v7();
    let error = back_up(location, test.request(None), Arc::new(NoProgress)).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::IdentityMismatch);
    let mut location = test.location();
    location.root = "rustic/elsewhere".to_owned();
    let error = back_up(location, test.request(None), Arc::new(NoProgress)).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_never_restores_and_is_found_by_a_check() {
    let test = TestRepository::new().await;
    fill(&test, 5);
    let backup = test.back_up(test.request(None)).await.unwrap();
    let data = test.repository_path().join("data");
    let largest = walk_files(&data).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[1000] ^= 1;
    fs::write(&largest, &bytes).unwrap();
    let error = test.restore(backup.snapshot, test.whole("flipped")).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged, "{}", error.chain());
    assert!(!test.check().await.is_sound());
    fs::remove_file(&largest).unwrap();
    let error = test.restore(backup.snapshot, test.whole("missing")).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged, "{}", error.chain());
    assert!(!test.check().await.is_sound());
}

fn walk_files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk_files(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_lost_in_the_repository_are_written_again_by_the_next_backup() {
    let test = TestRepository::new().await;
    for number in 0..5 {
        let directory = test.project().join(format!("directory-{number}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), number.to_string()).unwrap();
    }
    let first = test.back_up(test.request(None)).await.unwrap();
    // The pack of the trees is the only one that is not data; both are small here, so both go.
    for pack in walk_files(&test.repository_path().join("data")) {
        fs::remove_file(pack).unwrap();
    }
    let error = test.back_up(test.request(Some(first.snapshot))).await.unwrap_err();
    // The index still names the packs: this needs a repair of the index, and is never a success.
    assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged, "{}", error.chain());
    for index in walk_files(&test.repository_path().join("index")) {
        fs::remove_file(index).unwrap();
    }
    let second = test.back_up(test.request(Some(first.snapshot))).await.unwrap();
    let restored = test.restore(second.snapshot, test.whole("restored")).await.unwrap();
    assert_eq!(restored.tree, first.tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_spoiled_on_its_way_is_not_called_a_match() {
    /// Changes a restored file as soon as its bytes are there.
    struct Spoiler {
        file: std::path::PathBuf,
        calls: AtomicU64,
    }
    impl Progress for Spoiler {
        fn scanned(&self, _files: u64, _bytes: u64) {}
        fn stored(&self, _files: u64, _bytes: u64) {
            if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
                fs::write(&self.file, b"owes 999").unwrap();
            }
        }
        fn is_canceled(&self) -> bool {
            false
        }
    }
    let test = TestRepository::new().await;
    fs::write(test.project().join("ledger"), b"owes 100").unwrap();
    let backup = test.back_up(test.request(None)).await.unwrap();
    let request = RestoreRequest {
        snapshot: backup.snapshot,
        target: test.whole("restored"),
        sample: None,
        resume: false,
    };
    let progress = Arc::new(Spoiler { file: test.path("restored/project/ledger"), calls: AtomicU64::new(0) });
    let error = restore(test.location(), request, progress).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::VerificationFailed);
    assert!(error.to_string().contains("project/ledger: its content"), "{error}");
}

async fn set_aside(location: RepositoryLocation) -> MendReceipt {
    let handle = tokio::runtime::Handle::current();
    let work = move || {
        let repository = Repository::open_for_writing(location, handle)?;
        repository.mend(Some((0, 1)), &NoProgress)
    };
    blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_pack_held_is_stored_again_by_the_next_backup_and_nothing_else_is_lost() {
    for is_missing in [false, true] {
        let test = TestRepository::new().await;
        fill(&test, 12);
        let gone = test.project().join("gone");
        fs::write(&gone, noise(1_000_000, 99)).unwrap();
        let first = test.back_up(test.request(None)).await.unwrap();
        let before = facts(&test.project());
        fs::remove_file(&gone).unwrap();
        let second = test.back_up(test.request(Some(first.snapshot))).await.unwrap();
        let packs = walk_files(&test.repository_path().join("data"));
        let largest = packs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        if is_missing {
            fs::remove_file(largest).unwrap();
        } else {
            let mut bytes = fs::read(largest).unwrap();
            bytes[1000] ^= 1;
            fs::write(largest, &bytes).unwrap();
        }
        assert!(!test.check().await.is_sound());
        // Without a look at it, a backup counts on what the index says.
        fs::write(test.project().join("new"), b"new").unwrap();
        let third = test.back_up(test.request(Some(second.snapshot))).await.unwrap();
        assert!(third.bytes_added < 500_000, "{third:?}");

        let receipt = set_aside(test.location()).await;
        assert_eq!((receipt.set_aside.len(), receipt.blobs_lost > 0), (1, true), "{receipt:?}");
        assert_eq!(receipt.blobs_saved == 0, is_missing, "{receipt:?}");
        assert!(set_aside(test.location()).await.is_empty(), "once is enough");
        let error = test.restore(third.snapshot, test.whole("damaged")).await.unwrap_err();
        assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged);
        assert!(error.to_string().contains("project/"), "it names what is lost: {error}");

        // Nothing has changed since the third, and yet what was lost is stored.
        let fourth = test.back_up(test.request(Some(third.snapshot))).await.unwrap();
        test.restore(fourth.snapshot, test.whole("fourth")).await.unwrap();
        assert_same(&test.project(), &test.path("fourth/project"));
        // And with it the backups before that have the same files.
        test.restore(third.snapshot, test.whole("third")).await.unwrap();
        // A file that is on the host no longer is lost only if its own bytes were.
        match test.restore(first.snapshot, test.whole("first")).await {
            Ok(_) => assert!(before == facts(&test.path("first/project"))),
            Err(error) => assert!(error.to_string().contains("of 1 files: project/gone"), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_directories_that_is_damaged_is_stored_again_from_the_cache() {
    let test = TestRepository::new().await;
    fill(&test, 2);
    let cache = CacheSettings { directory: test.path("cache"), limit_bytes: 1 << 30 };
    let location = || RepositoryLocation { cache: Some(cache.clone()), ..test.location() };
    let backup = back_up(location(), test.request(None), Arc::new(NoProgress)).await.unwrap();
    let packs = walk_files(&test.repository_path().join("data"));
    let smallest = packs.iter().min_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    fs::remove_file(smallest).unwrap();
    assert!(!test.check().await.is_sound());
    let receipt = set_aside(location()).await;
    assert_eq!((receipt.stored_again.len(), receipt.set_aside.len()), (1, 0), "{receipt:?}");
    assert!(test.check().await.is_sound());
    test.restore(backup.snapshot, test.whole("restored")).await.unwrap();
    assert_same(&test.project(), &test.path("restored/project"));
}

/// A file system of so many megabytes, unmounted when this is dropped. `None`, said aloud, where this process may not mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(directory.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                let required =
                    is_root() && std::env::var("LONGHAUL_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
                assert!(!required, "LONGHAUL_REQUIRE_TOOLS=1, but nothing can be mounted: {other:?}");
                // Past the capture of the test harness, which would keep it quiet.
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    b"SKIPPED: no small disk can be mounted here\n",
                );
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_restore_with_a_word_for_it_and_a_full_cache_ends_nothing() {
    let test = TestRepository::new().await;
    fill(&test, 20);
    let backup = test.back_up(test.request(None)).await.unwrap();
    let Some(disk) = SmallDisk::new(12) else { return };
    let target = RestoreTarget::Whole {
        project: disk.0.path().join("project"),
        persist: disk.0.path().join("persist"),
    };
    let error = test.restore(backup.snapshot, target).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::NoSpace, "{}", error.chain());
    assert!(error.kind().is_retryable() && error.chain().contains("project/"), "{}", error.chain());

    // What the restore has left fills it to the last byte.
    let cache = Some(CacheSettings { directory: disk.0.path().join("cache"), limit_bytes: 1 << 30 });
    let location = || RepositoryLocation { cache: cache.clone(), ..test.location() };
    fs::write(test.project().join("new"), noise(1_000_000, 77)).unwrap();
    let second =
        back_up(location(), test.request(Some(backup.snapshot)), Arc::new(NoProgress)).await.unwrap();
    let request = RestoreRequest {
        snapshot: second.snapshot,
        target: test.whole("restored"),
        sample: None,
        resume: false,
    };
    restore(location(), request, Arc::new(NoProgress)).await.unwrap();
    assert_same(&test.project(), &test.path("restored/project"));
}
