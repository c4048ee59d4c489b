//! A fortnight of one repository, on a clock of its own: backups, prunes by the policy, deletions, restores and checks in
//! random order, some of them ended in their middle by an object store that fails. Whatever happens, every backup that
//! should be there comes back as it was.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_repository::{
    BackupRepositoryErrorKind as Kind, BackupRequest, NoProgress, Progress, PruneRequest, Purpose,
    Repository, RepositoryIdentity, RepositoryKey, RepositoryLocation, RepositoryPassword, RestoreRequest,
    RestoreTarget, SnapshotId, SourceState, initialise, repository_root,
};
use domain_model::{RetainedBackup, RetentionPolicy, Timestamp, dropped_backups};
use object_storage::{
    ConnectOptions, Fault, FaultAction, FaultInjector, FaultMoment, FaultPlan, InjectedFailure,
    LocalSettings, ObjectStore, ProviderSettings, RetryPolicy,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use uuid::Uuid;

const OPERATIONS: u32 = 2_000;
const FORTNIGHT_S: f64 = 14.0 * 24.0 * 3600.0;

/// Tight, so that much is dropped.
const POLICY: RetentionPolicy = RetentionPolicy { last: 4, hourly: 6, daily: 7, weekly: 2, monthly: 1 };

/// The files of the project, as they are meant to be.
type Files = BTreeMap<String, Arc<Vec<u8>>>;

struct Made {
    snapshot: SnapshotId,
    created_at: Timestamp,
    pinned: bool,
    /// It is to go with the next prune.
    deleted: bool,
    tree: String,
    files: Files,
}

struct Fortnight {
    random: StdRng,
    directory: tempfile::TempDir,
    store: Arc<dyn ObjectStore>,
    faults: FaultInjector,
    identity: RepositoryIdentity,
    key: RepositoryKey,
    /// Seconds since 1970.
    now: f64,
    files: Files,
    /// Oldest first.
    backups: Vec<Made>,
    restores: u32,
    interrupted: u32,
    freed: u64,
}

impl Fortnight {
    async fn begin(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("objects")).unwrap();
        for name in ["project", "persist"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let faults = FaultInjector::new(FaultPlan::default());
        let settings = ProviderSettings::Local(LocalSettings { root: directory.path().join("objects") });
        let options = ConnectOptions {
            retry: RetryPolicy::once(),
            faults: Some(faults.clone()),
            ..ConnectOptions::default()
        };
        let buckets = settings.connect_with(options).unwrap();
        buckets.create_bucket("backups", None).await.unwrap();
        let store = buckets.open_bucket("backups");
        let identity = RepositoryIdentity::new(Uuid::now_v7(), Uuid::now_v7());
        let root = repository_root(identity.project_id);
        let password = RepositoryPassword::generate();
        let key = initialise(Arc::clone(&store), &root, &identity, &password).await.unwrap();
        Self {
            random: StdRng::seed_from_u64(seed),
            directory,
            store,
            faults,
            identity,
            key,
            now: 1_795_000_000.0,
            files: Files::new(),
            backups: Vec::new(),
            restores: 0,
            interrupted: 0,
            freed: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn location(&self) -> RepositoryLocation {
        RepositoryLocation {
            store: Arc::clone(&self.store),
            root: repository_root(self.identity.project_id),
            identity: self.identity.clone(),
            key: self.key.clone(),
            cache: None,
        }
    }

    /// Writes, changes, appends to, and deletes some files.
    fn edit(&mut self) {
        for _ in 0..self.random.random_range(0..6) {
            let name = format!("d{}/f{}", self.random.random_range(0..5), self.random.random_range(0..12));
            let path = self.path("project").join(&name);
            match self.random.random_range(0..10) {
                0..2 if self.files.contains_key(&name) => {
                    fs::remove_file(path).unwrap();
                    self.files.remove(&name);
                    continue;
                }
                // Something that was there before, under another name: nothing new to store.
                2..4 if !self.files.is_empty() => {
                    let there: Vec<Arc<Vec<u8>>> = self.files.values().cloned().collect();
                    let content = there.choose(&mut self.random).unwrap();
                    self.files.insert(name.clone(), Arc::clone(content));
                }
                _ => {
                    let mut content = vec![0; self.random.random_range(0..60_000)];
                    self.random.fill(content.as_mut_slice());
                    self.files.insert(name.clone(), Arc::new(content));
                }
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, self.files[&name].as_slice()).unwrap();
        }
    }

    /// With some probability, lets all requests fail from some request on.
    fn perhaps_fail(&mut self) {
        if self.random.random_bool(0.12) {
            let fault = Fault {
                operation: None,
                bucket: "*".to_owned(),
                key: "*".to_owned(),
                moment: FaultMoment::From(self.random.random_range(1..30)),
                action: FaultAction::Fail(InjectedFailure::Retryable),
            };
            self.faults.set_plan(FaultPlan { faults: vec![fault], ..FaultPlan::default() });
        }
    }

    /// Runs blocking work on the repository; `None` where the object store ended it in its middle.
    async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(RepositoryLocation, Handle) -> backup_repository::Result<T> + Send + 'static,
    ) -> Option<T> {
        let (location, handle) = (self.location(), Handle::current());
        let ended = tokio::task::spawn_blocking(move || work(location, handle)).await.unwrap();
        self.faults.set_plan(FaultPlan::default());
        match ended {
            Ok(done) => Some(done),
            Err(error) if error.kind() == Kind::Retryable => {
                self.interrupted += 1;
                None
            }
            Err(error) => panic!("{}", error.chain()),
        }
    }

    async fn back_up(&mut self) {
        self.edit();
        let parent = self.backups.iter().rev().find(|backup| !backup.deleted).map(|backup| backup.snapshot);
        let request = BackupRequest {
            project: self.path("project"),
            persist: self.path("persist"),
            only: Vec::new(),
            source: SourceState::ReadOnly { taken_at: self.now },
            // Now and then one that nothing is compared with.
            parent: parent.filter(|_| self.random.random_bool(0.9)),
            purpose: Purpose::Backup,
            op_id: Uuid::now_v7(),
            attempt: 1,
            tags: Vec::new(),
        };
        self.perhaps_fail();
        let progress: Arc<dyn Progress> = Arc::new(NoProgress);
        let work = move |location, handle| {
            Repository::open_for_writing(location, handle)?.back_up(&request, &progress)
        };
        if let Some(receipt) = self.run(work).await {
            self.backups.push(Made {
                snapshot: receipt.snapshot,
                created_at: timestamp(self.now),
                pinned: self.random.random_bool(0.03),
                deleted: false,
                tree: receipt.tree,
                files: self.files.clone(),
            });
        }
    }

    /// Somebody deletes a backup.
    fn delete(&mut self) {
        let pick = self.random.random_range(0..self.backups.len().max(1));
        if let Some(backup) = self.backups.get_mut(pick) {
            backup.deleted = true;
        }
    }

    async fn prune(&mut self) {
        let known: Vec<RetainedBackup> = self
            .backups
            .iter()
            .filter(|backup| !backup.deleted)
            .map(|backup| RetainedBackup {
                backup_id: backup.snapshot.to_string().parse().unwrap(),
                created_at: backup.created_at,
                pinned: backup.pinned,
                in_use: false,
            })
            .collect();
        let dropped: Vec<String> = dropped_backups(&POLICY, &known).iter().map(ToString::to_string).collect();
        for backup in &mut self.backups {
            // From here on it is gone, whatever becomes of the prune.
            backup.deleted |= dropped.contains(&backup.snapshot.to_string());
        }
        let ids = |deleted: bool| {
            let of = self.backups.iter().filter(move |backup| backup.deleted == deleted);
            of.map(|backup| backup.snapshot).collect::<Vec<_>>()
        };
        let request = PruneRequest {
            keep: ids(false),
            forget: ids(true),
            spare: Vec::new(),
            unfinished: Vec::new(),
            grace_s: self.random.random_bool(0.2).then_some(3600.0),
        };
        self.perhaps_fail();
        let work = move |location, handle| {
            Repository::open_for_writing(location, handle)?.prune(&request, &NoProgress)
        };
        if let Some(receipt) = self.run(work).await {
            self.backups.retain(|backup| !backup.deleted);
            self.freed += receipt.bytes_before.saturating_sub(receipt.bytes_after);
        }
    }

    async fn restore(&mut self, number: usize) {
        let into = self.path("restored");
        let target = RestoreTarget::Whole { project: into.join("project"), persist: into.join("persist") };
        let request =
            RestoreRequest { snapshot: self.backups[number].snapshot, target, sample: None, resume: false };
        let progress: Arc<dyn Progress> = Arc::new(NoProgress);
        let work = move |location, handle| {
            Repository::open_for_reading(location, handle)?.restore(&request, &progress)
        };
        if let Some(receipt) = self.run(work).await {
            let backup = &self.backups[number];
            assert_eq!(receipt.tree, backup.tree, "{}", backup.snapshot);
            assert!(found(&into.join("project")) == backup.files, "{} came back otherwise", backup.snapshot);
            self.restores += 1;
        }
        let _ = fs::remove_dir_all(into);
    }

    async fn check(&mut self, read_data: bool) {
        let work = move |location, handle| Repository::open_for_reading(location, handle)?.check(read_data);
        if let Some(report) = self.run(work).await {
            assert!(report.is_sound(), "{report:?}");
        }
    }

    async fn go_on(&mut self) {
        self.now += self.random.random_range(0.0..2.0) * FORTNIGHT_S / f64::from(OPERATIONS);
        let there: Vec<usize> =
            (0..self.backups.len()).filter(|number| !self.backups[*number].deleted).collect();
        match self.random.random_range(0..100) {
            0..50 => self.back_up().await,
            50..58 => self.delete(),
            58..76 => self.prune().await,
            76..92 => {
                if let Some(number) = there.choose(&mut self.random) {
                    self.perhaps_fail();
                    self.restore(*number).await;
                }
            }
            _ => {
                let read_data = self.random.random_bool(0.2);
                self.perhaps_fail();
                self.check(read_data).await;
            }
        }
    }
}

fn timestamp(seconds: f64) -> Timestamp {
    let moment = time::OffsetDateTime::from_unix_timestamp_nanos((seconds * 1e9) as i128).unwrap();
    Timestamp::from_date_time(moment)
}

/// What is in a directory; read by the standard library alone.
fn found(directory: &Path) -> Files {
    let mut files = Files::new();
    for shelf in fs::read_dir(directory).unwrap().map(|shelf| shelf.unwrap()) {
        for file in fs::read_dir(shelf.path()).unwrap().map(|file| file.unwrap()) {
            let name = format!("{}/{}", shelf.file_name().display(), file.file_name().display());
            files.insert(name, Arc::new(fs::read(file.path()).unwrap()));
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fortnight_of_everything_in_any_order_loses_no_backup() {
    let seed = std::env::var("LONGHAUL_FORTNIGHT_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut fortnight = Fortnight::begin(seed).await;
    for operation in 0..OPERATIONS {
        if operation % 100 == 0 {
            println!("seed {seed}, operation {operation}, {} backups", fortnight.backups.len());
        }
        fortnight.go_on().await;
    }
    let Fortnight { restores, interrupted, freed, .. } = fortnight;
    println!("seed {seed}: {restores} restores, {interrupted} interrupted, {freed} bytes freed");
    assert!(restores > 200 && interrupted > 80 && freed > 10_000_000, "{restores} {interrupted} {freed}");
    fortnight.prune().await;
    fortnight.prune().await;
    fortnight.check(true).await;
    assert!(fortnight.backups.len() >= 5, "{}", fortnight.backups.len());
    for number in 0..fortnight.backups.len() {
        let restores = fortnight.restores;
        fortnight.restore(number).await;
        assert_eq!(fortnight.restores, restores + 1);
    }
}
