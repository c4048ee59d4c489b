//! A prune frees space, and whatever goes wrong in it, no backup that is to stay loses anything.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backup_repository::*;
use data_encoding::HEXLOWER;
use object_storage::{ConnectOptions, FaultInjector, FaultPlan, ObjectStore};
use sha2::{Digest as _, Sha256};
use support::*;
use tokio::runtime::Handle;

async fn prune(location: RepositoryLocation, request: PruneRequest) -> Result<PruneReceipt> {
    let handle = Handle::current();
    blocking(move || Repository::open_for_writing(location, handle)?.prune(&request, &NoProgress)).await
}

fn request(keep: &[SnapshotId], forget: &[SnapshotId]) -> PruneRequest {
    PruneRequest {
        keep: keep.to_vec(),
        forget: forget.to_vec(),
        spare: Vec::new(),
        unfinished: Vec::new(),
        grace_s: None,
    }
}

/// The bytes of the packs on the disk, counted by nobody who could be wrong about them.
fn packs(test: &TestRepository) -> u64 {
    let files =
        walkdir::WalkDir::new(test.repository_path().join("data")).into_iter().map(|file| file.unwrap());
    files.filter(|file| file.file_type().is_file()).map(|file| file.metadata().unwrap().len()).sum()
}

/// A repository with three backups, of which the second shares something with each of the others.
async fn three_backups() -> (TestRepository, [SnapshotId; 3]) {
    let test = TestRepository::new().await;
    let mut ids = Vec::new();
    for round in 0..3_u64 {
        for number in round..round + 8 {
            fs::write(test.project().join(format!("file-{number}")), noise(1_000_000, number)).unwrap();
        }
        if round > 0 {
            fs::remove_file(test.project().join(format!("file-{}", round - 1))).unwrap();
        }
        fs::write(test.project().join("small"), noise(5_000, 100 + round)).unwrap();
        let parent = ids.last().copied();
        ids.push(test.back_up(test.request(parent)).await.unwrap().snapshot);
    }
    (test, ids.try_into().unwrap())
}

/// That the repository is sound, and that a backup comes back as the live files are.
async fn assert_whole(test: &TestRepository, newest: SnapshotId, told: &str) {
    let report = test.check().await;
    assert!(report.is_sound(), "{told}: {report:?}");
    let name = format!("restored-{}", told.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"));
    test.restore(newest, test.whole(&name)).await.unwrap();
    assert_same(&test.project(), &test.path(&name).join("project"));
    fs::remove_dir_all(test.path(&name)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_frees_what_only_the_forgotten_needed_and_a_second_one_has_nothing_to_do() {
    let (test, [first, second, third]) = three_backups().await;
    let before = packs(&test);
    let receipt = prune(test.location(), request(&[second, third], &[first])).await.unwrap();
    assert_eq!((receipt.forgotten, receipt.orphans), (1, 0));
    assert_eq!((receipt.bytes_before, receipt.bytes_after), (before, packs(&test)));
    assert_whole(&test, third, "after the first").await;

    let receipt = prune(test.location(), request(&[third], &[second])).await.unwrap();
    assert_eq!(receipt.bytes_after, packs(&test));
    // Ten files and what changes: of which nine are left, with a twentieth unused at most.
    assert!(packs(&test) < before && packs(&test) < 9_600_000, "{before} {}", packs(&test));
    assert_eq!(test.snapshots().await.len(), 1);
    assert_whole(&test, third, "after the second").await;

    let receipt = prune(test.location(), request(&[third], &[second])).await.unwrap();
    assert_eq!(receipt.bytes_before, receipt.bytes_after);
    assert_eq!((receipt.requests.put, receipt.requests.delete), (0, 1), "only the snapshot that is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_with_nothing_to_do_takes_ten_requests_at_most() {
    let (test, backups) = three_backups().await;
    let cache = CacheSettings { directory: test.path("cache"), limit_bytes: 1 << 30 };
    let location = || RepositoryLocation { cache: Some(cache.clone()), ..test.location() };
    prune(location(), request(&backups, &[])).await.unwrap();
    let receipt = prune(location(), request(&backups, &[])).await.unwrap();
    assert_eq!(receipt.bytes_before, receipt.bytes_after);
    assert!(receipt.requests.total() <= 10, "{:?}", receipt.requests);
    assert_eq!((receipt.requests.put, receipt.requests.delete), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_fails_or_dies_at_any_request_loses_nothing_and_the_next_one_finishes() {
    let (probe, [first, second, third]) = three_backups().await;
    let counting = FaultyStore::new(Arc::clone(&probe.store), |_, _, _| false);
    prune(probe.location_on(counting.clone()), request(&[third], &[first, second])).await.unwrap();
    let requests = counting.requests.load(Ordering::SeqCst);
    assert!(requests > 12, "{requests}");
    let freed = packs(&probe);
    for dies in [false, true] {
        for failing in 0..requests {
            let told = format!("request {failing}, dies: {dies}");
            let (test, [first, second, third]) = three_backups().await;
            let store = FaultyStore::new(Arc::clone(&test.store), move |_, _, number| {
                number == failing || (dies && number > failing)
            });
            match prune(test.location_on(store), request(&[third], &[first, second])).await {
                Ok(receipt) => assert_eq!(receipt.bytes_after, packs(&test), "{told}"),
                Err(error) => {
                    assert_eq!(
                        error.kind(),
                        BackupRepositoryErrorKind::Retryable,
                        "{told}: {}",
                        error.chain()
                    );
                }
            }
            assert_whole(&test, third, &told).await;
            prune(test.location(), request(&[third], &[first, second])).await.unwrap();
            assert!(packs(&test) < freed + 500_000, "{told}: {} are left, not {freed}", packs(&test));
            assert_whole(&test, third, &told).await;
        }
    }
}

fn faulty(test: &TestRepository, plan: &str) -> Arc<dyn ObjectStore> {
    let faults = Some(FaultInjector::new(FaultPlan::from_json(plan).unwrap()));
    let options = ConnectOptions { faults, ..ConnectOptions::default() };
    provider(test.directory.path()).connect_with(options).unwrap().open_bucket(BUCKET)
}

fn objects(test: &TestRepository) -> Vec<std::path::PathBuf> {
    let files = walkdir::WalkDir::new(test.repository_path()).sort_by_file_name();
    files.into_iter().map(|file| file.unwrap().into_path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_misses_something_ends_a_prune_before_it_deletes_anything_alive() {
    let (test, [first, second, third]) = three_backups().await;
    let name = |directory: &str, number: usize| {
        let files = fs::read_dir(test.repository_path().join(directory)).unwrap();
        let mut names: Vec<String> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names[number].clone()
    };
    let indexes = fs::read_dir(test.repository_path().join("index")).unwrap().count();
    assert!(indexes >= 3, "{indexes}");
    let snapshot = third.to_string();
    let mut missing: Vec<(String, String)> =
        (0..indexes).map(|number| ("index".to_owned(), name("index", number))).collect();
    missing.push(("snapshots".to_owned(), snapshot));
    for (directory, name) in missing {
        let before = objects(&test);
        let plan = format!(
            r#"{{"faults":[{{"operation":"list","key":"*/{directory}/{name}","action":"omit_from_listing"}}]}}"#
        );
        // With the first in use no longer: its space would be freed.
        let error =
            prune(test.location_on(faulty(&test, &plan)), request(&[first, second, third], &[])).await;
        let error = error.expect_err(&format!("{directory}/{name} is not listed"));
        assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged, "{}", error.chain());
        assert_eq!(objects(&test), before, "{directory}/{name}");
    }
    for failing in 1..=4 {
        let before = objects(&test);
        let plan = format!(
            r#"{{"faults":[{{"operation":"list","moment":{{"from":{failing}}},"action":{{"fail":"permanent"}}}}]}}"#
        );
        let failed =
            prune(test.location_on(faulty(&test, &plan)), request(&[first, second, third], &[])).await;
        if let Err(error) = &failed {
            assert!(error.chain().contains("injected failure"), "{}", error.chain());
            assert_eq!(objects(&test), before, "listing {failing}");
        } else {
            assert_eq!(failing, 4, "a prune has three listings before it writes");
        }
    }
    assert_whole(&test, third, "after missing listings").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_did_not_happen_is_no_success() {
    for directory in ["snapshots", "index", "data"] {
        let (test, [first, second, third]) = three_backups().await;
        let plan = format!(
            r#"{{"faults":[{{"operation":"delete","key":"*/{directory}/*","action":"pretend_deletion"}}]}}"#
        );
        let error = prune(test.location_on(faulty(&test, &plan)), request(&[third], &[first, second])).await;
        assert!(error.is_err(), "{directory}: {error:?}");
        assert_whole(&test, third, directory).await;
        let receipt = prune(test.location(), request(&[third], &[first, second])).await.unwrap();
        assert_eq!(receipt.bytes_after, packs(&test));
        assert!(packs(&test) < 9_600_000, "{directory}: {}", packs(&test));
        assert_whole(&test, third, directory).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn within_the_grace_nothing_is_deleted_and_what_is_wanted_again_is_taken_back() {
    let (test, [first, second, third]) = three_backups().await;
    let before = packs(&test);
    let graceful = PruneRequest { grace_s: Some(3600.0), ..request(&[third], &[first, second]) };
    let receipt = prune(test.location(), graceful).await.unwrap();
    assert!(packs(&test) >= before, "{before} {}", packs(&test));
    assert_eq!(receipt.bytes_after, packs(&test));
    assert_whole(&test, third, "marked").await;
    // A backup that began before knows these packs, and names them now.
    fs::write(test.project().join("file-0"), noise(1_000_000, 0)).unwrap();
    let fourth = test.back_up(test.request(Some(third))).await.unwrap().snapshot;
    prune(test.location(), request(&[third, fourth], &[])).await.unwrap();
    assert_whole(&test, fourth, "taken back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_ends_after_its_packs_were_marked_is_made_anew() {
    /// The registry's is an hour. A grace is cut to whole seconds: two are left for what takes milliseconds.
    const MARGIN_S: f64 = 3.0;
    let (test, [first, second, third]) = three_backups().await;
    // What it has of these is in packs that only the first two name.
    fs::write(test.project().join("file-0"), noise(1_000_000, 0)).unwrap();
    fs::write(test.project().join("file-1"), noise(1_000_000, 1)).unwrap();
    fs::write(test.project().join("its-own"), noise(1_000_000, 77)).unwrap();
    let (reached, is_reached) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let hold = std::sync::Mutex::new((reached, goes_on));
    let store = FaultyStore::new(Arc::clone(&test.store), move |action, key, _| {
        if matches!(action, Action::Put) && key.contains("/snapshots/") {
            let (reached, goes_on) = &*hold.lock().unwrap();
            reached.send(()).unwrap();
            goes_on.recv().unwrap();
        }
        false
    });
    // rustic goes by the clock of the system. What is younger than the grace is not even marked.
    let pause = Duration::from_secs_f64(MARGIN_S + 1.0);
    tokio::time::sleep(pause).await;
    let began = Instant::now();
    let backup =
        tokio::spawn(back_up(test.location_on(store), test.request(Some(third)), Arc::new(NoProgress)));
    blocking(move || is_reached.recv()).await.unwrap();
    let before = packs(&test);
    for round in 0..2 {
        let grace_s = Some(began.elapsed().as_secs_f64() + MARGIN_S);
        let forget: &[SnapshotId] = if round == 0 { &[first, second] } else { &[] };
        let pruned =
            prune(test.location(), PruneRequest { grace_s, ..request(&[third], forget) }).await.unwrap();
        assert!(packs(&test) >= before, "round {round}: {before} {}", packs(&test));
        assert!(pruned.bytes_waiting > 2_000_000, "round {round}: {pruned:?}");
        tokio::time::sleep(pause).await;
    }
    go_on.send(()).unwrap();
    let zombies = backup.await.unwrap().unwrap();
    assert!(!test.check().await.is_sound(), "it counts on packs that are marked");
    let again = BackupRequest { attempt: 2, ..test.request(Some(third)) };
    let fourth = test.back_up(again.clone()).await.unwrap();
    assert!(!fourth.found && fourth.bytes_added > 1_500_000, "{fourth:?}");
    assert_eq!(fourth.tree, zombies.tree);
    assert!(test.check().await.is_sound(), "the one that lacks data is gone");
    test.restore(fourth.snapshot, test.whole("with its own packs")).await.unwrap();
    // Whoever repeats it once more finds the one that restores.
    let repeated = test.back_up(BackupRequest { attempt: 3, ..again }).await.unwrap();
    assert_eq!((repeated.found, repeated.snapshot), (true, fourth.snapshot));
    assert_eq!(repeated.taken_at, fourth.taken_at, "it has what was there then");
    prune(test.location(), request(&[third, fourth.snapshot], &[])).await.unwrap();
    assert_eq!(test.snapshots().await.len(), 2);
    assert_whole(&test, fourth.snapshot, "in the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_knows_goes_unless_its_operation_may_still_come_back_for_it() {
    let (test, [first, second, third]) = three_backups().await;
    let op_of_first = test.snapshots().await.into_iter().find(|one| one.id == first).unwrap().op_id;
    let unfinished = PruneRequest { unfinished: vec![op_of_first], ..request(&[third], &[]) };
    let receipt = prune(test.location(), PruneRequest { spare: vec![second], ..unfinished }).await.unwrap();
    assert_eq!(receipt.orphans, 0);
    let graceful = PruneRequest { grace_s: Some(10.0), ..request(&[third], &[]) };
    assert_eq!(prune(test.location(), graceful).await.unwrap().orphans, 0);
    assert_eq!(test.snapshots().await.len(), 3);
    assert_eq!(prune(test.location(), request(&[third], &[])).await.unwrap().orphans, 2);
    assert_eq!(test.snapshots().await.len(), 1);
    assert_whole(&test, third, "without orphans").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_whose_time_is_over_in_its_middle_deletes_nothing_more() {
    struct Until(WriteDeadline);
    impl Progress for Until {
        fn scanned(&self, _files: u64, _bytes: u64) {}
        fn stored(&self, _files: u64, _bytes: u64) {}
        fn is_canceled(&self) -> bool {
            false
        }
        fn write_deadline(&self) -> WriteDeadline {
            self.0.clone()
        }
    }
    let (probe, [first, second, third]) = three_backups().await;
    let counting = FaultyStore::new(Arc::clone(&probe.store), |_, _, _| false);
    prune(probe.location_on(counting.clone()), request(&[third], &[first, second])).await.unwrap();
    for last in (0..counting.requests.load(Ordering::SeqCst)).step_by(3) {
        let (test, [first, second, third]) = three_backups().await;
        let deadline = WriteDeadline::default();
        let (ends, late) = (deadline.clone(), Arc::new(std::sync::atomic::AtomicU64::new(0)));
        let counted = Arc::clone(&late);
        let store = FaultyStore::new(Arc::clone(&test.store), move |action, _, number| {
            if number == last {
                ends.set(WriteUntil::now());
            }
            let is_late = number > last && matches!(action, Action::Put | Action::Delete);
            counted.fetch_add(u64::from(is_late), Ordering::SeqCst);
            false
        });
        let (location, handle) = (test.location_on(store), Handle::current());
        let task = JobTask::Prune(request(&[third], &[first, second]));
        let progress: Arc<dyn Progress> = Arc::new(Until(deadline));
        let ended = blocking(move || run_job(&task, location, handle, &progress)).await;
        if let Err(error) = ended {
            assert_eq!(error.kind(), BackupRepositoryErrorKind::Retryable, "{}", error.chain());
        }
        // Uploads that had begun may still end: four at the most.
        assert!(late.load(Ordering::SeqCst) <= 4, "after request {last}: {late:?}");
        assert_whole(&test, third, &format!("request {last}")).await;
    }
}

fn snapshot_file(test: &TestRepository, id: SnapshotId) -> std::path::PathBuf {
    test.repository_path().join("snapshots").join(id.to_string())
}

fn spoil(file: &std::path::Path) {
    let mut bytes = fs::read(file).unwrap();
    bytes[20] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_lost_or_spoilt_is_told_of_first_and_then_in_nobodys_way() {
    for is_lost in [true, false] {
        let (test, [first, second, third]) = three_backups().await;
        let file = snapshot_file(&test, second);
        if is_lost {
            fs::remove_file(&file).unwrap();
        } else {
            spoil(&file);
        }
        let before = objects(&test);
        for _ in 0..2 {
            let receipt = prune(test.location(), request(&[second, third], &[first])).await.unwrap();
            assert_eq!((&receipt.bad[..], receipt.forgotten), (&[second][..], 0), "lost: {is_lost}");
            assert_eq!(objects(&test), before, "something was deleted");
        }
        // Its owner knows now, and wants the space of the first.
        let knowing = PruneRequest { spare: vec![second], ..request(&[third], &[first]) };
        let receipt = prune(test.location(), knowing).await.unwrap();
        assert_eq!((receipt.bad.len(), receipt.forgotten), (0, 1), "lost: {is_lost}");
        assert!(receipt.bytes_after < receipt.bytes_before, "{receipt:?}");
        assert!(!snapshot_file(&test, first).exists());
        assert_eq!(file.exists(), !is_lost);
        test.restore(third, test.whole("restored")).await.unwrap();
        assert_same(&test.project(), &test.path("restored/project"));
        // Deleted at last, as any other.
        prune(test.location(), request(&[third], &[second])).await.unwrap();
        assert!(!file.exists());
        assert_whole(&test, third, "in the end").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_snapshot_that_the_cache_has_is_stored_again() {
    let (test, [first, second, third]) = three_backups().await;
    let cache = CacheSettings { directory: test.path("cache"), limit_bytes: 1 << 30 };
    let location = || RepositoryLocation { cache: Some(cache.clone()), ..test.location() };
    prune(location(), request(&[first, second, third], &[])).await.unwrap();
    fs::remove_file(snapshot_file(&test, second)).unwrap();
    let receipt = prune(location(), request(&[second, third], &[first])).await.unwrap();
    assert_eq!((&receipt.stored_again[..], receipt.bad.len(), receipt.forgotten), (&[second][..], 0, 1));
    test.restore(second, test.whole("second")).await.unwrap();
    assert_whole(&test, third, "stored again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_need_not_be_there_is_believed_to_be_lost_only_where_asking_for_it_says_so() {
    let (test, [first, second, third]) = three_backups().await;
    let before = objects(&test);
    let plan = format!(
        r#"{{"faults":[{{"operation":"list","key":"*/snapshots/{second}","action":"omit_from_listing"}}]}}"#
    );
    let knowing = PruneRequest { spare: vec![second], ..request(&[third], &[first]) };
    let error = prune(test.location_on(faulty(&test, &plan)), knowing).await.unwrap_err();
    assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged, "{}", error.chain());
    assert_eq!(objects(&test), before, "something was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_that_lack_data_are_named_and_keep_nobody_from_space_once_they_are_deleted() {
    let test = TestRepository::new().await;
    fs::write(test.project().join("lost"), noise(1_000_000, 1)).unwrap();
    let first = test.back_up(test.request(None)).await.unwrap().snapshot;
    let files =
        walkdir::WalkDir::new(test.repository_path().join("data")).into_iter().map(|file| file.unwrap());
    let pack = files.max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    fs::write(test.project().join("kept"), noise(1_000_000, 2)).unwrap();
    let second = test.back_up(test.request(Some(first))).await.unwrap().snapshot;
    fs::remove_file(test.project().join("lost")).unwrap();
    let third = test.back_up(test.request(Some(second))).await.unwrap().snapshot;
    fs::remove_file(pack.path()).unwrap();
    let (location, handle) = (test.location(), Handle::current());
    let mend = move || Repository::open_for_writing(location, handle)?.mend(None, &NoProgress);
    let mended = blocking(mend).await.unwrap();
    assert!(!mended.is_empty());
    let lacking: HashSet<SnapshotId> = mended.lacking.into_iter().collect();
    assert_eq!(lacking, HashSet::from([first, second]));

    let incomplete = [first.to_string(), second.to_string()];
    for spare in [vec![], vec![second]] {
        let keep = if spare.is_empty() { vec![first, second, third] } else { vec![first, third] };
        let asked = PruneRequest { spare, ..request(&keep, &[]) };
        let error = prune(test.location(), asked).await.unwrap_err();
        assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged);
        let told = error.chain();
        assert!(
            incomplete.iter().all(|id| told.contains(id)) && !told.contains(&third.to_string()),
            "{told}"
        );
    }
    let receipt = prune(test.location(), request(&[third], &[first, second])).await.unwrap();
    assert_eq!((receipt.forgotten, receipt.bad.len()), (2, 0));
    assert_whole(&test, third, "without those that were incomplete").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_nobody_that_a_prune_leaves_to_a_later_one_is_no_damage() {
    let test = TestRepository::new().await;
    fs::write(test.project().join("kept"), noise(100_000, 1)).unwrap();
    let backup = test.back_up(test.request(None)).await.unwrap().snapshot;
    // As an attempt leaves it that was killed before it wrote its index.
    let pack = noise(5_000, 2);
    let name = HEXLOWER.encode(&Sha256::digest(&pack));
    let path = test.repository_path().join("data").join(&name[..2]).join(&name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, pack).unwrap();
    assert!(test.check().await.is_sound());
    let mut backups = vec![backup];
    // The second marks it, the third writes the mark anew, the last deletes it.
    for grace_s in [Some(3600.0), Some(3600.0), Some(3600.0), None] {
        let asked =
            PruneRequest { grace_s, ..request(&backups[backups.len() - 1..], &backups[..backups.len() - 1]) };
        prune(test.location(), asked).await.unwrap();
        let report = test.check().await;
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(path.exists(), grace_s.is_some());
        let newest = backups.pop().unwrap();
        fs::write(test.project().join("kept"), noise(100_000, 3 + backups.len() as u64)).unwrap();
        backups = vec![newest, test.back_up(test.request(Some(newest))).await.unwrap().snapshot];
    }
    assert_whole(&test, backups[1], "after the prunes").await;
}
