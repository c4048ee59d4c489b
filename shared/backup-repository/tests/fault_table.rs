//! The table of the object store's faults: what goes wrong, at which requests for which objects, in which job; and how the
//! job ends. After each line the repository checks clean and the newest good backup comes back byte for byte.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/faulty_s3.rs"]
mod faulty_s3;
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backup_repository::BackupRepositoryErrorKind::{self as Kind, Damaged, Retryable, WrongCredentials};
use backup_repository::*;
use faulty_s3::Action::{
    Answer, CutInHalf, Drip, FlipBit, FlipBitOfUpload, OmitFirst, PretendDeletion, Reset, ResetAfterEffect,
    ResetInBody, Silence, SilenceAfterEffect,
};
use faulty_s3::Of::{Anything, Config, Index, Key, Marker, Pack, Snapshot};
use faulty_s3::Verb::{Delete, Get, List, Put};
use faulty_s3::When::{Always, First, From, Nth};
use faulty_s3::{Action, Fault, FaultyS3, Of, Verb, When};
use support::*;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What is done while it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Initialise,
    Backup,
    Prune,
    Restore,
    Check,
    Browse,
}
use Job::{Backup, Browse, Check, Initialise, Prune, Restore};

/// How it ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// As if nothing had gone wrong.
    Succeeds,
    /// With an error of this kind that says this.
    Fails(Kind, &'static str),
    /// With a report of damage that says this.
    Reports(&'static str),
}
use End::{Fails, Reports, Succeeds};

const INTERNAL: Action = Answer(500, "InternalError");
const SLOW_DOWN: Action = Answer(503, "SlowDown");
const TOO_MANY: Action = Answer(429, "TooManyRequests");
const EXPIRED: Action = Answer(400, "ExpiredToken");
const DENIED: Action = Answer(403, "AccessDenied");
const GONE: Action = Answer(404, "NoSuchKey");

type Line = (Job, Verb, Of, Action, When, End);

#[rustfmt::skip]
const TABLE: &[Line] = &[
    // A burst of errors is over before a job gives up.
    (Initialise, List,   Anything, INTERNAL,           First(2), Succeeds),
    (Initialise, Get,    Key,      SLOW_DOWN,          First(3), Succeeds),
    (Initialise, Get,    Config,   TOO_MANY,           First(2), Succeeds),
    (Backup,     Put,    Pack,     INTERNAL,           First(3), Succeeds),
    (Backup,     Put,    Index,    SLOW_DOWN,          First(3), Succeeds),
    (Backup,     Put,    Snapshot, TOO_MANY,           First(3), Succeeds),
    (Backup,     Get,    Marker,   INTERNAL,           First(2), Succeeds),
    (Backup,     List,   Index,    SLOW_DOWN,          First(2), Succeeds),
    (Prune,      Delete, Pack,     SLOW_DOWN,          First(3), Succeeds),
    (Prune,      Delete, Index,    INTERNAL,           First(3), Succeeds),
    (Prune,      List,   Pack,     TOO_MANY,           Nth(2),   Succeeds),
    (Restore,    Get,    Pack,     INTERNAL,           First(3), Succeeds),
    (Restore,    Get,    Snapshot, TOO_MANY,           First(3), Succeeds),
    (Check,      Get,    Index,    SLOW_DOWN,          First(3), Succeeds),
    (Browse,     Get,    Pack,     SLOW_DOWN,          First(3), Succeeds),
    // One that does not end is an error that another attempt is made after.
    (Initialise, Get,    Key,      SLOW_DOWN,          Always,   Fails(Retryable, "keys/")),
    (Backup,     Put,    Pack,     SLOW_DOWN,          From(2),  Fails(Retryable, "data/")),
    (Backup,     Put,    Index,    INTERNAL,           Always,   Fails(Retryable, "index/")),
    (Backup,     Put,    Snapshot, INTERNAL,           Always,   Fails(Retryable, "snapshots/")),
    (Prune,      Put,    Index,    INTERNAL,           Always,   Fails(Retryable, "index/")),
    (Prune,      Delete, Snapshot, INTERNAL,           Always,   Fails(Retryable, "snapshots/")),
    (Restore,    Get,    Pack,     SLOW_DOWN,          From(3),  Fails(Retryable, "data/")),
    (Browse,     Get,    Snapshot, SLOW_DOWN,          Always,   Fails(Retryable, "snapshots/")),
    // The answer is lost, and what was asked for has happened or not: it is asked for again.
    (Backup,     Put,    Pack,     SilenceAfterEffect, First(1), Succeeds),
    (Backup,     Put,    Index,    SilenceAfterEffect, First(1), Succeeds),
    (Backup,     Put,    Snapshot, SilenceAfterEffect, First(1), Succeeds),
    (Backup,     Put,    Snapshot, ResetAfterEffect,   First(2), Succeeds),
    (Backup,     Put,    Pack,     Silence,            First(1), Succeeds),
    (Backup,     Put,    Pack,     Reset,              First(2), Succeeds),
    (Prune,      Delete, Pack,     ResetAfterEffect,   First(2), Succeeds),
    (Prune,      Delete, Snapshot, SilenceAfterEffect, First(1), Succeeds),
    (Prune,      Put,    Pack,     ResetAfterEffect,   First(2), Succeeds),
    (Restore,    Get,    Pack,     Silence,            Nth(2),   Succeeds),
    (Check,      Get,    Pack,     Reset,              First(3), Succeeds),
    // An answer that is broken off, or cut, is no answer.
    (Initialise, Get,    Key,      CutInHalf,          First(1), Succeeds),
    (Backup,     Get,    Index,    ResetInBody,        First(2), Succeeds),
    (Prune,      Get,    Pack,     ResetInBody,        First(2), Succeeds),
    (Restore,    Get,    Pack,     ResetInBody,        First(3), Succeeds),
    (Restore,    Get,    Pack,     CutInHalf,          First(2), Succeeds),
    (Restore,    Get,    Index,    CutInHalf,          First(1), Succeeds),
    (Restore,    List,   Index,    ResetInBody,        First(2), Succeeds),
    (Check,      Get,    Snapshot, CutInHalf,          First(1), Succeeds),
    (Browse,     Get,    Pack,     ResetInBody,        First(2), Succeeds),
    (Restore,    Get,    Pack,     Drip,               First(1), Succeeds),
    (Backup,     Get,    Index,    Drip,               First(1), Succeeds),
    // A bit that is spoilt on its way is no damage.
    (Initialise, Get,    Key,      FlipBit,            First(1), Succeeds),
    (Backup,     Get,    Config,   FlipBit,            First(1), Succeeds),
    (Backup,     Get,    Index,    FlipBit,            First(1), Succeeds),
    (Backup,     Get,    Pack,     FlipBit,            First(1), Succeeds),
    (Backup,     Put,    Pack,     FlipBitOfUpload,    First(1), Succeeds),
    (Backup,     Put,    Index,    FlipBitOfUpload,    First(1), Succeeds),
    (Backup,     Put,    Snapshot, FlipBitOfUpload,    First(1), Succeeds),
    (Restore,    Get,    Pack,     FlipBit,            Nth(1),   Succeeds),
    (Restore,    Get,    Pack,     FlipBit,            Nth(3),   Succeeds),
    (Restore,    Get,    Snapshot, FlipBit,            First(1), Succeeds),
    (Check,      Get,    Pack,     FlipBit,            First(1), Succeeds),
    (Browse,     Get,    Pack,     FlipBit,            First(1), Succeeds),
    // One that is spoilt every time is, and is named.
    (Backup,     Get,    Config,   FlipBit,            Always,   Fails(WrongCredentials, "config")),
    (Backup,     Get,    Index,    FlipBit,            Always,   Fails(Damaged, "index/")),
    (Prune,      Get,    Index,    FlipBit,            Always,   Fails(Damaged, "index/")),
    (Restore,    Get,    Pack,     FlipBit,            From(3),  Fails(Damaged, "project/")),
    (Restore,    Get,    Snapshot, FlipBit,            Always,   Fails(Damaged, "snapshots/")),
    (Check,      Get,    Pack,     FlipBit,            Always,   Reports("data/")),
    (Browse,     Get,    Pack,     FlipBit,            Always,   Fails(Damaged, "data/")),
    // What is not there, is not there.
    (Backup,     Get,    Config,   GONE,               Always,   Fails(Kind::Permanent, "config")),
    (Restore,    Get,    Snapshot, GONE,               Always,   Fails(Kind::NotFound, "snapshots/")),
    (Restore,    Get,    Pack,     GONE,               From(3),  Fails(Damaged, "project/")),
    (Check,      Get,    Pack,     GONE,               Always,   Reports("data/")),
    // Credentials that expire in the middle: the next attempt comes with new ones. Others do not get better.
    (Backup,     Put,    Pack,     EXPIRED,            From(2),  Fails(Retryable, "ExpiredToken")),
    (Backup,     Put,    Snapshot, EXPIRED,            Always,   Fails(Retryable, "ExpiredToken")),
    (Prune,      Delete, Pack,     EXPIRED,            From(2),  Fails(Retryable, "ExpiredToken")),
    (Restore,    Get,    Pack,     EXPIRED,            From(3),  Fails(Retryable, "ExpiredToken")),
    (Check,      Get,    Pack,     EXPIRED,            From(3),  Fails(Retryable, "ExpiredToken")),
    (Backup,     Put,    Pack,     DENIED,             Always,   Fails(WrongCredentials, "AccessDenied")),
    // A deletion that is a lie.
    (Prune,      Delete, Snapshot, PretendDeletion,    First(2), Succeeds),
    (Prune,      Delete, Pack,     PretendDeletion,    First(2), Succeeds),
    (Prune,      Delete, Snapshot, PretendDeletion,    Always,   Fails(Retryable, "still there")),
    (Prune,      Delete, Index,    PretendDeletion,    Always,   Fails(Retryable, "still there")),
    (Prune,      Delete, Pack,     PretendDeletion,    Always,   Fails(Retryable, "still there")),
    // A listing that fails on a later page.
    (Backup,     List,   Index,    INTERNAL,           From(2),  Fails(Retryable, "index/")),
    (Prune,      List,   Snapshot, INTERNAL,           From(2),  Fails(Retryable, "snapshots/")),
    (Prune,      List,   Index,    INTERNAL,           From(2),  Fails(Retryable, "index/")),
    (Prune,      List,   Pack,     INTERNAL,           From(2),  Fails(Retryable, "data/")),
    (Prune,      List,   Pack,     DENIED,             From(3),  Fails(WrongCredentials, "data/")),
    (Restore,    List,   Index,    INTERNAL,           From(2),  Fails(Retryable, "index/")),
    (Check,      List,   Pack,     INTERNAL,           From(2),  Fails(Retryable, "data/")),
    // One that lacks an entry.
    (Initialise, List,   Anything, OmitFirst,          Nth(1),   Succeeds),
    (Initialise, List,   Key,      OmitFirst,          Always,   Fails(WrongCredentials, "key")),
    (Backup,     List,   Index,    OmitFirst,          First(1), Succeeds),
    (Prune,      List,   Snapshot, OmitFirst,          Always,   Fails(Damaged, "snapshots/")),
    (Prune,      List,   Index,    OmitFirst,          First(1), Fails(Damaged, "nothing was deleted")),
    (Prune,      List,   Index,    OmitFirst,          Always,   Fails(Damaged, "nothing was deleted")),
    (Restore,    List,   Index,    OmitFirst,          First(1), Succeeds),
    (Restore,    List,   Index,    OmitFirst,          Always,   Fails(Damaged, "the repository has not all")),
    (Check,      List,   Index,    OmitFirst,          First(1), Succeeds),
    (Check,      List,   Pack,     OmitFirst,          First(1), Succeeds),
    (Check,      List,   Pack,     OmitFirst,          Always,   Reports("not present")),
];

/// Lines that are tried at the same time.
const AT_ONCE: usize = 4;

/// A repository with three backups in the bucket of a server; the third is what the project is.
struct Ground {
    test: TestRepository,
    server: FaultyS3,
    backups: [SnapshotId; 3],
}

impl Ground {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("objects")).unwrap();
        let server = FaultyS3::start(&directory.path().join("objects")).await;
        let store = server.bucket(BUCKET).await;
        let test = TestRepository::on(directory, store).await;
        let mut backups = Vec::new();
        for round in 0..3_u64 {
            for number in 0..6 {
                let directory = test.project().join(format!("directory-{number}"));
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join(format!("of-{round}")), noise(60_000, 100 * round + number))
                    .unwrap();
            }
            if round > 0 {
                fs::remove_file(test.project().join(format!("directory-{round}/of-{}", round - 1))).unwrap();
            }
            let parent = backups.last().copied();
            backups.push(test.back_up(test.request(parent)).await.unwrap().snapshot);
        }
        Self { test, server, backups: backups.try_into().unwrap() }
    }

    /// One of its own, so that lines do not meet.
    async fn copy(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let from = self.test.directory.path().join(".");
        let copied = Command::new("cp").arg("-a").arg(from).arg(directory.path()).status().unwrap();
        assert!(copied.success());
        let server = FaultyS3::start(&directory.path().join("objects")).await;
        let store = server.bucket(BUCKET).await;
        let test = TestRepository {
            directory,
            store,
            identity: self.test.identity.clone(),
            root: self.test.root.clone(),
            password: self.test.password.clone(),
            key: self.test.key.clone(),
        };
        Self { test, server, backups: self.backups }
    }

    /// Does a job. What a check found is in the answer, and the backup that one made.
    async fn run(&self, job: Job, into: &str) -> Result<(Option<CheckReport>, Option<SnapshotId>)> {
        let test = &self.test;
        let [first, second, third] = self.backups;
        let (location, handle) = (test.location(), Handle::current());
        match job {
            Initialise => {
                let store = Arc::clone(&test.store);
                let key = initialise(store, &test.root, &test.identity, &test.password).await?;
                assert_eq!(key, test.key);
            }
            Backup => {
                if !test.project().join("new").exists() {
                    fs::write(test.project().join("new"), noise(300_000, 1000)).unwrap();
                }
                return Ok((None, Some(test.back_up(test.request(Some(third))).await?.snapshot)));
            }
            Prune => {
                let request = PruneRequest {
                    keep: vec![third],
                    forget: vec![first, second],
                    spare: Vec::new(),
                    unfinished: Vec::new(),
                    grace_s: None,
                };
                let work =
                    move || Repository::open_for_writing(location, handle)?.prune(&request, &NoProgress);
                blocking(work).await?;
            }
            Restore => drop(test.restore(third, test.whole(into)).await?),
            Check => {
                let work = move || Repository::open_for_reading(location, handle)?.check(true);
                return Ok((Some(blocking(work).await?), None));
            }
            Browse => {
                let work = move || {
                    let browser = Repository::open_for_reading(location, handle)?.into_browser()?;
                    browser.list(third, Some(&"project".parse()?), 2)
                };
                assert!(blocking(work).await?.len() >= 6 + 16);
            }
        }
        Ok((None, None))
    }

    async fn assert_whole(&self, newest: SnapshotId) {
        let report = self.test.check().await;
        assert!(report.is_sound(), "{report:?}");
        self.test.restore(newest, self.test.whole("at-the-end")).await.unwrap();
        assert_same(&self.test.project(), &self.test.path("at-the-end/project"));
    }

    fn objects(&self) -> Vec<std::path::PathBuf> {
        let files = walkdir::WalkDir::new(self.test.repository_path()).sort_by_file_name().into_iter();
        files
            .map(|file| file.unwrap())
            .filter(|file| file.file_type().is_file())
            .map(|file| file.into_path())
            .collect()
    }
}

async fn try_line(ground: &Ground, (job, verb, of, action, when, end): Line) {
    let before = ground.objects();
    ground.server.set_fault(Some(Fault { verb, of, action, when }));
    let ended = ground.run(job, "first").await;
    assert!(ground.server.met() > 0, "no request met the fault");
    ground.server.set_fault(None);
    let mut made = None;
    match (ended, end) {
        (Ok((report, backup)), Succeeds) => {
            assert!(report.is_none_or(|report| report.is_sound()));
            made = backup;
        }
        (Ok((Some(report), _)), Reports(text)) => {
            assert!(report.errors.iter().any(|error| error.contains(text)), "{report:?}");
        }
        (Err(error), Fails(kind, text)) => {
            assert_eq!(error.kind(), kind, "{}", error.chain());
            assert!(error.chain().contains(text), "{}", error.chain());
        }
        (Ok(ended), end) => panic!("{ended:?}, and not {end:?}"),
        (Err(error), end) => panic!("{}, and not {end:?}", error.chain()),
    }
    if job == Prune && verb == List && matches!(end, Fails(..)) {
        // Snapshots that are to go may be gone; of what the others need, nothing.
        let names = |objects: &[std::path::PathBuf]| -> Vec<_> {
            objects.iter().filter(|path| !path.to_string_lossy().contains("/snapshots/")).cloned().collect()
        };
        assert_eq!(names(&ground.objects()), names(&before), "a listing failed, and something was deleted");
    }
    // The fault is over: what failed can be done again.
    let (report, backup) = ground.run(job, "again").await.unwrap();
    assert!(report.is_none_or(|report| report.is_sound()));
    if let Some(made) = made {
        ground.test.restore(made, ground.test.whole("made")).await.unwrap();
        assert_same(&ground.test.project(), &ground.test.path("made/project"));
    }
    ground.assert_whole(backup.unwrap_or(ground.backups[2])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_line_ends_as_the_table_says_and_leaves_a_whole_repository() {
    assert!(TABLE.len() >= 40);
    let ground = Arc::new(Ground::new().await);
    let only = std::env::var("LONGHAUL_FAULT_LINE").ok().and_then(|number| number.parse::<usize>().ok());
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tried = JoinSet::new();
    for (number, line) in
        TABLE.iter().enumerate().filter(|(number, _)| only.is_none_or(|only| only == *number))
    {
        let (ground, turns) = (Arc::clone(&ground), Arc::clone(&turns));
        tried.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            let own = ground.copy().await;
            let outcome = tokio::spawn(async move { try_line(&own, *line).await }).await;
            outcome.err().map(|failure| {
                let panic = failure.into_panic();
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                format!("line {number}, {line:?}:\n  {}", text.unwrap_or_default())
            })
        });
    }
    let failed: Vec<String> = tried.join_all().await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{} of {} lines failed\n{}", failed.len(), TABLE.len(), failed.join("\n"));
}

/// What happens to an object where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Flipped,
    Cut,
    Gone,
}

/// What is lost in the bucket itself, of all objects of that kind the largest; and what a check, or whoever needs it, says.
#[rustfmt::skip]
const LOSSES: &[(Of, Loss, End)] = &[
    (Pack,     Loss::Flipped, Reports("pack")),
    (Pack,     Loss::Cut,     Reports("pack")),
    (Pack,     Loss::Gone,    Reports("not present")),
    (Index,    Loss::Flipped, Reports("index/")),
    (Index,    Loss::Gone,    Reports("index")),
    (Snapshot, Loss::Flipped, Reports("snapshots/")),
    (Config,   Loss::Flipped, Fails(WrongCredentials, "config")),
    (Config,   Loss::Gone,    Fails(Kind::Permanent, "config")),
    (Marker,   Loss::Flipped, Fails(Kind::IdentityMismatch, "marker")),
    (Marker,   Loss::Gone,    Fails(Kind::NotFound, "marker")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_lost_in_the_bucket_is_named_and_what_the_project_still_has_is_stored_again() {
    let ground = Ground::new().await;
    for (of, loss, end) in LOSSES {
        let told = format!("{of:?} {loss:?}");
        let own = ground.copy().await;
        let objects = own.objects();
        let named = |path: &&std::path::PathBuf| path.to_string_lossy().contains(of.name());
        let lost = objects.iter().filter(named).max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        let kept = fs::read(lost).unwrap();
        spoil(lost, *loss);
        match (own.run(Check, "").await, end) {
            (Ok((Some(report), _)), Reports(text)) => {
                assert!(report.errors.iter().any(|error| error.contains(text)), "{told}: {report:?}");
            }
            (Err(error), Fails(kind, text)) => {
                assert_eq!(error.kind(), *kind, "{told}: {}", error.chain());
                assert!(error.chain().contains(text), "{told}: {}", error.chain());
            }
            (ended, _) => panic!("{told}: {ended:?}"),
        }
        if matches!(of, Pack | Index) {
            let (location, handle) = (own.test.location(), Handle::current());
            let work =
                move || Repository::open_for_writing(location, handle)?.mend(Some((0, 1)), &NoProgress);
            let mended = blocking(work).await.unwrap();
            assert_eq!(mended.set_aside.len(), usize::from(*of == Pack), "{told}: {mended:?}");
            assert_eq!(mended.indexed_again.is_empty(), *of == Pack, "{told}: {mended:?}");
            let is_damaged = *of == Index && *loss == Loss::Flipped;
            assert_eq!(mended.indexes_removed.len(), usize::from(is_damaged), "{told}: {mended:?}");
        } else {
            // That somebody has to bring back from elsewhere.
            fs::write(lost, kept).unwrap();
        }
        let healed = own.run(Backup, "").await.unwrap().1.unwrap();
        let rest = own.test.check().await;
        assert!(*of == Pack || rest.is_sound(), "{told}: {rest:?}");
        if !rest.is_sound() {
            // Older backups have files that the project has no longer: those are named, and nothing else.
            let of_older = |error: &String| error.contains("/of-0") || error.contains("/of-1");
            assert!(rest.errors.iter().all(of_older), "{told}: {rest:?}");
        }
        own.test.restore(healed, own.test.whole("healed")).await.unwrap();
        assert_same(&own.test.project(), &own.test.path("healed/project"));
        own.test.restore(own.backups[2], own.test.whole("third")).await.unwrap();
    }
}

fn spoil(object: &Path, loss: Loss) {
    let mut bytes = fs::read(object).unwrap();
    let middle = bytes.len() / 2;
    match loss {
        Loss::Flipped => bytes[middle] ^= 1,
        Loss::Cut => bytes.truncate(middle),
        Loss::Gone => return fs::remove_file(object).unwrap(),
    }
    fs::write(object, bytes).unwrap();
}
