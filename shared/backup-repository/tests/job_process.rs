//! A job in a process of its own: whatever happens to it, the parent learns of it and nothing is left.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use backup_repository::*;
use rustix::process::{Pid, Signal};
use support::*;

/// Not a test: the program that the tests below start, which is this file's own test binary.
#[test]
#[ignore = "started by the other tests as their child"]
#[allow(clippy::print_stdout, reason = "ends the line that the test harness began")]
fn job_child() {
    println!();
    std::process::exit(i32::from(run_job_child() != ExitCode::SUCCESS));
}

const CHILD: [&str; 4] = ["--ignored", "--exact", "job_child", "--nocapture"];

fn request(test: &TestRepository, task: JobTask) -> JobRequest {
    JobRequest {
        provider: provider(test.directory.path()),
        bucket: BUCKET.to_owned(),
        root: test.root.clone(),
        identity: test.identity.clone(),
        key: test.key.clone(),
        cache: Some(CacheSettings { directory: test.path("cache"), limit_bytes: 100_000_000 }),
        memory_limit_bytes: Some(1 << 30),
        stall_limit_s: None,
        write_until: None,
        task,
    }
}

fn processes() -> JobProcesses {
    JobProcesses::new(std::env::current_exe().unwrap(), CHILD)
}

fn spawn(request: &JobRequest) -> JobProcess {
    processes().start(request).unwrap()
}

async fn end(job: &mut JobProcess) -> JobEvent {
    let mut last = None;
    while let Some(event) = job.next_event().await {
        assert!(
            !matches!(last, Some(JobEvent::Finished(_) | JobEvent::Failed(_))),
            "an event after the last"
        );
        last = Some(event);
    }
    last.unwrap()
}

async fn failure(job: &mut JobProcess) -> JobFailure {
    match end(job).await {
        JobEvent::Failed(failure) => failure,
        event => panic!("it did not fail: {event:?}"),
    }
}

/// The first progress that shows bytes.
async fn wait_for_bytes(job: &mut JobProcess) {
    loop {
        match job.next_event().await {
            Some(JobEvent::Progress(progress)) if progress.bytes > 0 => return,
            Some(JobEvent::Progress(_)) => {}
            event => panic!("it ended before any progress: {event:?}"),
        }
    }
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn fill(test: &TestRepository, megabytes: u64) {
    for number in 0..megabytes / 10 {
        fs::write(test.project().join(number.to_string()), noise(10_000_000, number)).unwrap();
    }
}

fn is_running(process_id: u32) -> bool {
    // A zombie has ended, once its other threads are gone.
    let threads = fs::read_dir(format!("/proc/{process_id}/task")).map_or(0, Iterator::count);
    fs::read_to_string(format!("/proc/{process_id}/stat"))
        .is_ok_and(|stat| threads > 1 || !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_a_check_and_a_restore_run_in_children_and_report_progress() {
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    fill(&test, 100);
    let mut job = spawn(&request(&test, JobTask::Backup(test.request(None))));
    let mut progress = Vec::new();
    let backup = loop {
        match job.next_event().await.unwrap() {
            JobEvent::Progress(now) => progress.push(now),
            JobEvent::Finished(JobResult::Backup(receipt)) => break receipt,
            event => panic!("{event:?}"),
        }
    };
    assert!(job.next_event().await.is_none());
    assert!(progress.len() >= 2, "{progress:?}");
    assert!(progress.is_sorted_by_key(|progress| progress.bytes), "{progress:?}");
    assert_eq!(progress.last().unwrap().total_bytes, Some(backup.bytes));

    match end(&mut spawn(&request(&test, JobTask::Check { read_data: true, share: None }))).await {
        JobEvent::Finished(JobResult::Check(report)) => assert!(report.is_sound(), "{report:?}"),
        event => panic!("{event:?}"),
    }
    let task = JobTask::Restore(RestoreRequest {
        snapshot: backup.snapshot,
        target: test.whole("restored"),
        sample: None,
        resume: false,
    });
    match end(&mut spawn(&request(&test, task))).await {
        JobEvent::Finished(JobResult::Restore(receipt)) => assert_eq!(receipt.tree, backup.tree),
        event => panic!("{event:?}"),
    }
    assert_same(&test.project(), &test.path("restored/project"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_child_is_a_retryable_failure_and_leaves_no_snapshot() {
    let test = TestRepository::new().await;
    fill(&test, 600);
    let mut job = spawn(&request(&test, JobTask::Backup(test.request(None))));
    wait_for_bytes(&mut job).await;
    let pid = Pid::from_raw(i32::try_from(job.process_id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let failure = failure(&mut job).await;
    assert_eq!(
        (failure.kind, failure.reason),
        (JobFailureKind::Retryable, BackupRepositoryErrorKind::ProcessEnded)
    );
    assert!(failure.message.contains("signal: 9"), "{}", failure.message);
    assert!(test.snapshots().await.is_empty());
    assert!(test.check().await.is_sound());
    // The next attempt goes on with what is there.
    let mut again = test.request(None);
    again.attempt = 2;
    match end(&mut spawn(&request(&test, JobTask::Backup(again)))).await {
        JobEvent::Finished(JobResult::Backup(receipt)) => assert_eq!(receipt.bytes, 600_000_000),
        event => panic!("{event:?}"),
    }
    assert!(test.check().await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_child_ends_in_order() {
    let test = TestRepository::new().await;
    fill(&test, 600);
    let mut job = spawn(&request(&test, JobTask::Backup(test.request(None))));
    wait_for_bytes(&mut job).await;
    let canceled = Instant::now();
    job.cancel(Duration::from_secs(5));
    let failure = failure(&mut job).await;
    assert_eq!(failure.kind, JobFailureKind::Canceled, "{}", failure.message);
    assert!(canceled.elapsed() < Duration::from_secs(2), "{:?}", canceled.elapsed());
    assert!(test.snapshots().await.is_empty());
    assert!(test.check().await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_job_is_killed() {
    let test = TestRepository::new().await;
    fill(&test, 300);
    let mut job = spawn(&request(&test, JobTask::Backup(test.request(None))));
    wait_for_bytes(&mut job).await;
    let process_id = job.process_id().unwrap();
    drop(job);
    wait_until("the child is gone", || !is_running(process_id)).await;
    assert!(test.snapshots().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_does_not_outlive_its_parent() {
    let test = TestRepository::new().await;
    fill(&test, 300);
    // A parent that is gone is, for the child, the end of its standard input.
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = serde_json::to_vec(&request(&test, JobTask::Backup(test.request(None)))).unwrap();
    line.push(b'\n');
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, &line).await.unwrap();
    wait_until("it has begun to write", || has_packs(&test.repository_path())).await;
    drop(stdin);
    let status = tokio::time::timeout(Duration::from_secs(5), child.wait()).await.unwrap().unwrap();
    assert!(!status.success());
    assert!(test.snapshots().await.is_empty());
}

fn has_packs(repository: &Path) -> bool {
    fs::read_dir(repository.join("data")).is_ok_and(|mut packs| packs.next().is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_wants_too_much_memory_dies_alone() {
    let test = TestRepository::new().await;
    fill(&test, 300);
    let mut request = request(&test, JobTask::Backup(test.request(None)));
    request.memory_limit_bytes = Some(40 << 20);
    let failure = failure(&mut spawn(&request)).await;
    assert_eq!(failure.kind, JobFailureKind::Retryable, "{}", failure.message);
    assert_eq!(failure.reason, BackupRepositoryErrorKind::ProcessEnded, "{}", failure.message);
    assert!(test.snapshots().await.is_empty());
}

/// So that what a job may take decides how large the hosts are: what is pruned is read and copied in pieces, and of all
/// blobs no more than their names are held.
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_takes_a_fraction_of_the_memory_that_the_snapshots_and_packs_would_take() {
    const LIMIT: u64 = 192 << 20;
    const ROUNDS: u64 = 24;
    let test = TestRepository::new().await;
    // Directories that every backup stores anew.
    let directories: Vec<_> = (0..20).map(|number| test.project().join(number.to_string())).collect();
    for directory in &directories {
        fs::create_dir(directory).unwrap();
        for number in 0..200 {
            fs::write(directory.join(format!("{number:0100}")), number.to_string()).unwrap();
        }
    }
    let mut backups: Vec<SnapshotId> = Vec::new();
    let mut stored = 0;
    for round in 0..ROUNDS {
        for directory in &directories {
            fs::write(directory.join("changes"), round.to_string()).unwrap();
        }
        // One of two is in all backups that come, so that packs are half empty and copied.
        fs::write(test.project().join(format!("stays-{round}")), noise(13_000_000, 2 * round)).unwrap();
        fs::write(test.project().join("goes"), noise(13_000_000, 2 * round + 1)).unwrap();
        let made = test.back_up(test.request(backups.last().copied())).await.unwrap();
        stored += made.bytes_added;
        backups.push(made.snapshot);
    }
    let (forget, keep) = backups.split_at(10);
    let prune = PruneRequest {
        keep: keep.to_vec(),
        forget: forget.to_vec(),
        spare: Vec::new(),
        unfinished: Vec::new(),
        grace_s: None,
    };
    let mut request = request(&test, JobTask::Prune(prune));
    request.memory_limit_bytes = Some(LIMIT);
    let receipt = match end(&mut spawn(&request)).await {
        JobEvent::Finished(JobResult::Prune(receipt)) => receipt,
        event => panic!("{event:?}"),
    };
    assert_eq!(receipt.forgotten, 10);
    assert!(stored > 3 * LIMIT, "{stored}");
    assert!(receipt.bytes_before - receipt.bytes_after > 100_000_000, "{receipt:?}");
    assert!(test.check().await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_through_with_their_kind_and_without_the_key() {
    let test = TestRepository::new().await;
    let unknown: SnapshotId = "ab".repeat(32).parse().unwrap();
    let task = JobTask::Restore(RestoreRequest {
        snapshot: unknown,
        target: test.whole("restored"),
        sample: None,
        resume: false,
    });
    let got = failure(&mut spawn(&request(&test, task.clone()))).await;
    assert_eq!((got.kind, got.reason), (JobFailureKind::Permanent, BackupRepositoryErrorKind::NotFound));

    let mut unreachable = request(&test, task);
    unreachable.provider = provider(Path::new("/nowhere"));
    let key = serde_json::to_value(&unreachable.key).unwrap()["encrypt"].as_str().unwrap().to_owned();
    let got = failure(&mut spawn(&unreachable)).await;
    assert!(!got.message.contains(&key));
    assert_eq!(got.kind, JobFailureKind::Retryable, "{}", got.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_no_job_is_an_error() {
    let test = TestRepository::new().await;
    let request = request(&test, JobTask::Check { read_data: false, share: None });
    JobProcesses::new("/nowhere/at/all", CHILD).start(&request).unwrap_err();
    let mut job = JobProcesses::new("/bin/true", CHILD).start(&request).unwrap();
    assert_eq!(failure(&mut job).await.kind, JobFailureKind::Retryable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_does_job_after_job_until_one_fails() {
    let test = TestRepository::new().await;
    fill(&test, 1);
    let processes = processes();
    let backup = || request(&test, JobTask::Backup(test.request(None)));
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut job = processes.start(&backup()).unwrap();
        ids.push(job.process_id().unwrap());
        assert!(matches!(end(&mut job).await, JobEvent::Finished(JobResult::Backup(_))));
    }
    assert_eq!(ids, [ids[0]; 3], "one process for all");

    // While it is busy, another job gets another process.
    let mut first = processes.start(&backup()).unwrap();
    let mut second = processes.start(&backup()).unwrap();
    assert_eq!(first.process_id(), Some(ids[0]));
    assert_ne!(second.process_id(), Some(ids[0]));
    for job in [&mut first, &mut second] {
        assert!(matches!(end(job).await, JobEvent::Finished(_)));
    }

    // A cancel that comes too late is not one of the next job.
    first.cancel(Duration::from_secs(5));
    let mut bad = backup();
    bad.root = "rustic/project-elsewhere".to_owned();
    let mut failing = processes.start(&bad).unwrap();
    let failed_in = failing.process_id().unwrap();
    assert_eq!(failure(&mut failing).await.reason, BackupRepositoryErrorKind::NotFound);
    wait_until("the process of the failed job is gone", || !is_running(failed_in)).await;

    let mut killed = processes.start(&backup()).unwrap();
    assert!(matches!(end(&mut killed).await, JobEvent::Finished(_)));
    let idle = killed.process_id().unwrap();
    rustix::process::kill_process(Pid::from_raw(idle.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_until("the idle process is gone", || !is_running(idle)).await;
    let mut next = processes.start(&backup()).unwrap();
    assert!(matches!(end(&mut next).await, JobEvent::Finished(_)), "a dead process is not used");

    let last = next.process_id().unwrap();
    drop(processes);
    wait_until("idle processes end with their owner", || !is_running(last)).await;
}

/// Waits so long after a process has been stopped.
async fn while_stopped(job: &JobProcess, time: Duration) {
    let process = Pid::from_raw(i32::try_from(job.process_id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(process, Signal::STOP).unwrap();
    tokio::time::sleep(time).await;
    rustix::process::kill_process(process, Signal::CONT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_wakes_up_after_its_time_deletes_nothing_and_one_whose_time_was_moved_does() {
    let test = TestRepository::new().await;
    fill(&test, 20);
    let backup = test.back_up(test.request(None)).await.unwrap();
    let everything = || {
        let files = walkdir::WalkDir::new(test.repository_path()).sort_by_file_name();
        files.into_iter().map(|file| file.unwrap().into_path()).collect::<Vec<_>>()
    };
    let before = everything();
    let mut prune = request(
        &test,
        JobTask::Prune(PruneRequest {
            keep: Vec::new(),
            forget: vec![backup.snapshot],
            spare: Vec::new(),
            unfinished: Vec::new(),
            grace_s: None,
        }),
    );
    prune.write_until = Some(WriteUntil::after(Duration::from_millis(500)));
    let mut job = spawn(&prune);
    while_stopped(&job, Duration::from_secs(1)).await;
    let failed = failure(&mut job).await;
    assert_eq!(failed.kind, JobFailureKind::Retryable, "{failed:?}");
    assert!(failed.message.contains("its time is over"), "{failed:?}");
    assert_eq!(everything(), before);

    // What the parent has said meanwhile, counts.
    prune.write_until = Some(WriteUntil::after(Duration::from_millis(500)));
    let mut job = spawn(&prune);
    job.write_until(WriteUntil::after(Duration::from_secs(60)));
    while_stopped(&job, Duration::from_secs(1)).await;
    let ended = end(&mut job).await;
    assert!(matches!(ended, JobEvent::Finished(JobResult::Prune(_))), "{ended:?}");
    assert!(test.snapshots().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_which_nothing_moves_is_ended_and_says_so() {
    let test = TestRepository::new().await;
    fill(&test, 20);
    let mut backup = request(&test, JobTask::Backup(test.request(None)));
    backup.stall_limit_s = Some(1.0);
    let mut job = spawn(&backup);
    let process = job.process_id().unwrap();
    rustix::process::kill_process(Pid::from_raw(process.cast_signed()).unwrap(), Signal::STOP).unwrap();
    let failed = failure(&mut job).await;
    assert_eq!((failed.kind, failed.reason), (JobFailureKind::Retryable, BackupRepositoryErrorKind::Stalled));
    assert!(failed.message.contains("nothing has moved for"), "{failed:?}");
    wait_until("the process is gone", || !is_running(process)).await;

    // A server that takes every connection and never answers.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            taken.push(socket);
        }
    });
    let mut silent = backup.clone();
    silent.provider = object_storage::ProviderSettings::S3(object_storage::S3Settings {
        endpoint: Some(endpoint),
        region: "auto".into(),
        access_key_id: "test".into(),
        secret_access_key: "test".into(),
        session_token: None,
        path_style: true,
    });
    let mut job = spawn(&silent);
    let process = job.process_id().unwrap();
    assert_eq!(failure(&mut job).await.reason, BackupRepositoryErrorKind::Stalled);
    wait_until("the process is gone", || !is_running(process)).await;

    // One that moves is left alone, however long it takes.
    backup.stall_limit_s = Some(30.0);
    assert!(matches!(end(&mut spawn(&backup)).await, JobEvent::Finished(JobResult::Backup(_))));
}
