//! A service that is stopped in order hands back what it works on at once, and is gone within a few seconds.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_harness::{Client, Server, Signal, SystemOptions, TestSystem, wait_for};

use crate::scope;

/// From the signal until the operation is nobody's.
const HANDED_BACK_WITHIN: Duration = Duration::from_secs(1);
/// From the signal until the process is gone.
const GONE_WITHIN: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);
/// On a machine that is as busy as that of the tests, a request may take a while.
const TIMING_OF_A_LOOK: Duration = Duration::from_millis(300);

/// A system on whose hosts a download or an upload of some hundred kilobytes takes half a minute.
async fn system() -> TestSystem {
    let options = SystemOptions { test_kinds: true, faults: true, ..SystemOptions::default() };
    TestSystem::start(options).await.unwrap()
}

fn slow(operation: &str) -> Value {
    let delay = json!({ "delay": { "milliseconds": 30_000 } });
    json!({ "faults": [{ "operation": operation, "key": "*/data/*", "action": delay }] })
}

/// Stops a server, with the launcher held so that no other takes its place, and says when its process was gone.
async fn stop(system: &TestSystem, server: Server) -> Duration {
    let began = Instant::now();
    let pid = system.signal(server, Signal::TERM);
    gone(pid).await;
    began.elapsed()
}

/// A process whose parent is held is not buried when it has ended.
pub(crate) async fn gone(pid: u32) {
    wait_for("a process to end", PATIENCE, || async {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => Err("it is there".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// Stops the server that works on an operation: how long until that is nobody's, and until the process is gone.
async fn stop_while_it_works(
    system: &TestSystem,
    client: &Client,
    server: Server,
    scope: &str,
    op_id: &str,
) -> (Duration, Duration) {
    let began = Instant::now();
    let pid = system.signal(server, Signal::TERM);
    let queued = client.until(scope, op_id, "status", &["queued"]).await;
    let handed_back = began.elapsed();
    assert_eq!((&queued["attempt"], &queued["lease_losses"]), (&json!(1), &json!(0)), "{queued:#}");
    assert_eq!(queued["lease_until"], json!(null));
    gone(pid).await;
    (handed_back, began.elapsed())
}

async fn until_it_is_at(client: &Client, scope: &str, op_id: &str, phase: &str) {
    client.until(scope, op_id, "phase", &[phase]).await;
}

async fn project_with_random_files(system: &TestSystem, client: &Client) -> String {
    let project = client.create_project(system.host(0)).await;
    let files = system.project_files(0, &project);
    fs::create_dir_all(&files).unwrap();
    let mut random = fs::File::open("/dev/urandom").unwrap();
    for number in 0..4 {
        let mut bytes = vec![0; 400_000];
        std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
        fs::File::create(files.join(format!("{number}"))).unwrap().write_all(&bytes).unwrap();
    }
    project
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_do_nothing_end_at_once() {
    let system = system().await;
    let client = system.operator().await;
    let project = project_with_random_files(&system, &client).await;
    // A job process is kept warm after it, and one that looks into backups.
    let backup = client.done(&project, "project-backup", json!({})).await;
    let list = json!({ "backup_id": backup["backup_id"] });
    client.call(scope(&project), "backup.ls", list).await;
    // A long poll is no work.
    let later = json!({ "kind": "project-backup", "not_before": "2100-01-01T00:00:00.000Z" });
    let later = client.call(scope(&project), "lro.create", later).await["op"]["op_id"].clone();
    let polling = tokio::spawn({
        let (client, scope) = (system.operator().await, scope(&project));
        async move { client.call(scope, "lro.wait", json!({ "op_id": later, "timeout_s": 30 })).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;

    system.hold_restarts();
    for server in [Server::HostBackup(0), Server::CopyApplier(0), Server::Scheduler, Server::Registry] {
        let took = stop(&system, server).await;
        assert!(took < GONE_WITHIN, "{server:?} took {took:?} to end");
    }
    let polled = polling.await.unwrap();
    assert_eq!((&polled["done"], &polled["op"]["status"]), (&json!(false), &json!("queued")));
    system.allow_restarts();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stopped_hands_back_at_once_what_it_works_on() {
    let system = system().await;
    let client = system.operator().await;
    let project = project_with_random_files(&system, &client).await;
    let of_project = scope(&project);
    let other = project_with_random_files(&system, &client).await;
    client.done(&other, "project-backup", json!({})).await;

    let restore = json!({ "backup_id": "latest" });
    let sleep = json!({ "seconds": 300, "steps": 1000 });
    let rounds = [
        (Server::HostBackup(0), &*of_project, "project-backup", json!({}), "put", "upload"),
        (Server::HostBackup(0), &*scope(&other), "project-restore", restore, "get", "download"),
        (Server::Scheduler, "hub", "test-sleep", sleep, "get", "sleep"),
    ];
    for (server, scope, kind, input, slow_request, phase) in rounds {
        system.set_faults(&slow(slow_request));
        let op_id = client.create(scope, kind, input).await;
        until_it_is_at(&client, scope, &op_id, phase).await;
        // In the middle of a request that does not end.
        tokio::time::sleep(Duration::from_secs(1)).await;
        system.hold_restarts();
        let (handed_back, gone) = stop_while_it_works(&system, &client, server, scope, &op_id).await;
        eprintln!("{kind}: handed back after {handed_back:?}, gone after {gone:?}");
        assert!(handed_back < HANDED_BACK_WITHIN + TIMING_OF_A_LOOK, "{kind}: {handed_back:?}");
        assert!(gone < GONE_WITHIN, "{kind}: {gone:?}");
        // The next process goes on with it, long before any lease would have ended.
        system.clear_faults();
        system.allow_restarts();
        if kind == "test-sleep" {
            let running = client.until(scope, &op_id, "status", &["running"]).await;
            assert_eq!(running["attempt"], json!(2));
            client.call(scope, "lro.cancel", json!({ "op_id": op_id })).await;
        } else {
            let ended = client.ended(scope, &op_id).await;
            assert_eq!((&ended["status"], &ended["attempt"]), (&json!("succeeded"), &json!(2)), "{ended:#}");
        }
    }
}
