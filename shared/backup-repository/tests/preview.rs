//! What a restore would change is said before it does, and samples prove what they restore.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::sync::Arc;

use backup_repository::*;
use support::*;
use tokio::runtime::Handle;

async fn preview(test: &TestRepository, snapshot: SnapshotId, target: PreviewTarget) -> Result<Preview> {
    let (location, handle) = (test.location(), Handle::current());
    let request = PreviewRequest { snapshot, target };
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    blocking(move || Repository::open_for_reading(location, handle)?.preview(&request, &progress)).await
}

fn whole(test: &TestRepository) -> PreviewTarget {
    PreviewTarget::Whole { project: test.project(), persist: test.path("persist") }
}

fn part(test: &TestRepository, path: &str, place: &str) -> PreviewTarget {
    PreviewTarget::Path { path: Some(path.parse().unwrap()), root: test.project(), place: place.into() }
}

const NOTHING: Amount = Amount { files: 0, bytes: 0 };

fn amount(files: u64, bytes: u64) -> Amount {
    Amount { files, bytes }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_created_replaced_deleted_and_left_is_counted() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    fs::write(test.path("persist/store"), b"persistent").unwrap();
    let backup = test.back_up(test.request(None)).await.unwrap();
    let found = preview(&test, backup.snapshot, whole(&test)).await.unwrap();
    assert_eq!(
        (found.tree.as_str(), found.restored),
        (backup.tree.as_str(), amount(backup.files, backup.bytes))
    );
    assert_eq!((found.created, found.replaced, found.deleted), (NOTHING, NOTHING, NOTHING));
    assert_eq!(found.unchanged, found.restored);

    let project = test.project();
    fs::remove_file(project.join("odd/a.b")).unwrap();
    fs::write(project.join("odd/a/b"), b"twelve bytes").unwrap();
    fs::write(project.join("odd/a/new"), b"new").unwrap();
    fs::create_dir(project.join("zzz")).unwrap();
    fs::write(project.join("zzz/last"), b"last").unwrap();
    fs::remove_file(test.path("persist/store")).unwrap();
    let found = preview(&test, backup.snapshot, whole(&test)).await.unwrap();
    assert_eq!(found.created, amount(2, 11));
    assert_eq!(found.replaced, amount(1, 1), "bytes as they would be");
    assert_eq!(found.deleted, amount(2, 7));
    assert_eq!(found.unchanged, amount(backup.files - 3, backup.bytes - 12));

    // A directory in the place of a file, and a file in that of a directory.
    fs::remove_file(project.join("empty")).unwrap();
    fs::create_dir(project.join("empty")).unwrap();
    fs::write(project.join("empty/inside"), b"inside").unwrap();
    fs::remove_dir_all(project.join("src")).unwrap();
    fs::write(project.join("src"), b"a file").unwrap();
    let found = preview(&test, backup.snapshot, whole(&test)).await.unwrap();
    assert_eq!(found.deleted, amount(4, 19));
    assert_eq!(found.created.files, 4, "and what was in src: {found:?}");

    // Where there is nothing, everything is created.
    let nowhere =
        PreviewTarget::Whole { project: test.path("nowhere"), persist: test.path("nowhere-either") };
    let found = preview(&test, backup.snapshot, nowhere).await.unwrap();
    assert_eq!((found.created, found.unchanged), (amount(backup.files, backup.bytes), NOTHING));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_compared_with_what_is_at_its_place_and_with_nothing_outside() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    let backup = test.back_up(test.request(None)).await.unwrap();
    let snapshot = backup.snapshot;
    let same = preview(&test, snapshot, part(&test, "project/odd", "odd")).await.unwrap();
    assert_eq!((same.restored.files, same.unchanged), (5, same.restored), "{same:?}");
    let one = preview(&test, snapshot, part(&test, "project/odd/a.b", "odd/a.b")).await.unwrap();
    assert_eq!((one.restored, one.unchanged), (amount(1, 1), amount(1, 1)));
    let link = preview(&test, snapshot, part(&test, "project/links/good", "links/good")).await.unwrap();
    assert_eq!(link.unchanged.files, 1, "{link:?}");
    let elsewhere = preview(&test, snapshot, part(&test, "project/odd", "restored/odd")).await.unwrap();
    assert_eq!(elsewhere.created, same.restored);
    // A tenant's link leads nowhere.
    std::os::unix::fs::symlink("/etc", test.project().join("outside")).unwrap();
    for place in ["outside", "outside/ssl"] {
        let found = preview(&test, snapshot, part(&test, "project/odd", place)).await.unwrap();
        assert!(found.deleted.files <= 1 && found.created == same.restored, "{place}: {found:?}");
    }
    let missing = preview(&test, snapshot, part(&test, "project/no/such", "x")).await.unwrap_err();
    assert_eq!(missing.kind(), BackupRepositoryErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_restores_some_files_the_same_ones_for_a_seed_and_proves_the_tree_of_all() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    for number in 0..200 {
        fs::write(test.project().join(format!("file-{number}")), noise(1000, number)).unwrap();
    }
    let backup = test.back_up(test.request(None)).await.unwrap();
    let sampled = |share: f64, seed: u64, name: &str| {
        let sample = Some(Sample { share, seed });
        let request =
            RestoreRequest { snapshot: backup.snapshot, target: test.whole(name), sample, resume: false };
        restore(test.location(), request, Arc::new(NoProgress))
    };
    let one = sampled(0.3, 1, "one").await.unwrap();
    assert_eq!((one.tree.as_str(), one.of_files), (backup.tree.as_str(), backup.files));
    assert!((20..120).contains(&one.files), "{one:?}");
    let found = |name: &str| facts(&test.path(name)).into_keys().collect::<Vec<_>>();
    sampled(0.3, 1, "again").await.unwrap();
    assert_eq!(found("one"), found("again"));
    sampled(0.3, 2, "other").await.unwrap();
    assert_ne!(found("one"), found("other"));
    let all = sampled(1.0, 3, "all").await.unwrap();
    assert_eq!((all.files, all.bytes), (backup.files, backup.bytes));
    assert_same(&test.project(), &test.path("all/project"));

    // Enough samples find what is damaged.
    let packs =
        walkdir::WalkDir::new(test.repository_path().join("data")).into_iter().map(|file| file.unwrap());
    let largest =
        packs.filter(|file| file.file_type().is_file()).max_by_key(|file| file.metadata().unwrap().len());
    let largest = largest.unwrap().into_path();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[2_000_000] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let mut found_out = 0;
    for seed in 0..12 {
        match sampled(0.5, seed, &format!("seed-{seed}")).await {
            Ok(receipt) => assert_eq!(receipt.tree, backup.tree),
            Err(error) => {
                assert_eq!(error.kind(), BackupRepositoryErrorKind::Damaged, "{}", error.chain());
                found_out += 1;
            }
        }
    }
    assert!((1..12).contains(&found_out), "{found_out}");
}
