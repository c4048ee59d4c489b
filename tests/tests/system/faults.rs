//! Parts that fail in the middle of a backup: it goes on, or says why it cannot, and nothing half-written is a backup.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bus_messages::EventLevel;
use domain_model::OperationStatus;
use serde_json::{Value, json};
use test_harness::{
    Client, ObjectStoreKind, Seen, Server, Signal, SystemOptions, TestSystem, add_bytes, wait_for,
    watch_to_the_end,
};
use tokio::task::JoinHandle;

use crate::{assert_same_tree, scope};

fn slow_uploads(milliseconds: u64) -> Value {
    json!({ "faults": [
        { "operation": "put", "key": "*/data/*", "action": { "delay": { "milliseconds": milliseconds } } },
    ]})
}

/// A backup that has come to its upload, and somebody who watches it.
async fn backup_in_its_middle(client: &Client, project: &str) -> (String, JoinHandle<Seen>) {
    let op_id = client.create(scope(project), "project-backup", json!({})).await;
    let (bus, subject) = (client.bus().clone(), format!("persist.{}.lro.{op_id}", scope(project)));
    let watcher = tokio::spawn(async move { watch_to_the_end(&bus, &subject).await });
    client.until(scope(project), &op_id, "phase", &["upload"]).await;
    (op_id, watcher)
}

async fn restored_elsewhere(system: &TestSystem, client: &Client, project: &str) {
    let restore = json!({ "backup_id": "latest", "host_id": system.host(1) });
    client.done(project, "project-restore", restore).await;
    assert_same_tree(&system.project_files(0, project), &system.project_files(1, project));
    assert_same_tree(&system.persist_store(0, project), &system.persist_store(1, project));
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_server_dies_in_mid_backup_the_backup_goes_on_and_watchers_miss_nothing() {
    let options = SystemOptions { hosts: 2, faults: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 31).await;
    let files = system.project_files(0, &project);
    for (round, (server, signal)) in [
        (Server::Nats, Signal::KILL),
        (Server::Registry, Signal::KILL),
        // A postmaster that is killed outright leaves its children; this is the crash that ends them, too.
        (Server::Postgres, Signal::QUIT),
        (Server::Scheduler, Signal::KILL),
    ]
    .into_iter()
    .enumerate()
    {
        add_bytes(&files, &format!("of-round-{round}.bin"), 6_000_000, round as u64);
        system.set_faults(&slow_uploads(4000));
        let (op_id, watcher) = backup_in_its_middle(&client, &project).await;
        let old = system.signal(server, signal);
        system.restarted(server, old).await;
        let op = client.ended(scope(&project), &op_id).await;
        system.clear_faults();
        assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(1)), "{server:?}: {op:#}");
        // It was killed in the upload, which takes four seconds.
        assert!(op["result"]["duration_s"].as_f64() >= Some(4.0), "{op:#}");
        let seen = watcher.await.unwrap();
        seen.assert_complete(OperationStatus::Succeeded);
        let late = watch_to_the_end(client.bus(), &format!("persist.{}.lro.{op_id}", scope(&project))).await;
        assert_eq!(late.events, seen.events, "{server:?}");
    }
    let backups = client.call(scope(&project), "backup.list", json!({})).await;
    assert_eq!(backups["backups"].as_array().unwrap().len(), 4);
    restored_elsewhere(&system, &client, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_in_mid_upload_backs_up_in_another_attempt() {
    let options = SystemOptions {
        hosts: 2,
        object_store: ObjectStoreKind::S3,
        faults: true,
        ..SystemOptions::default()
    };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 41).await;
    add_bytes(&system.project_files(0, &project), "large.bin", 50_000_000, 1);
    system.set_faults(&slow_uploads(6000));
    let (op_id, watcher) = backup_in_its_middle(&client, &project).await;
    let old = system.kill_nine(Server::HostBackup(0));
    system.clear_faults();
    system.restarted(Server::HostBackup(0), old).await;
    let op = client.ended(scope(&project), &op_id).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(2)), "{op:#}");
    let seen = watcher.await.unwrap();
    seen.assert_complete(OperationStatus::Succeeded);

    // The host knows what became of its first job.
    let record = |attempt: u32| -> Value {
        let file = system.data_directory().join(format!("hosts/0/jobs/{op_id}-{attempt}.json"));
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    assert_eq!(record(1)["state"], "failed");
    assert!(record(1)["error"].as_str().unwrap().contains("interrupted"), "{}", record(1));
    assert!(record(1)["started_at"].is_string() && record(1)["finished_at"].is_string());
    assert_eq!(record(2)["state"], "succeeded");
    assert_eq!(record(2)["bytes"], op["result"]["bytes"]);

    // An S3 server that dies in mid-backup is a matter of trying again, inside the attempt.
    add_bytes(&system.project_files(0, &project), "more.bin", 40_000_000, 2);
    system.set_faults(&slow_uploads(1500));
    let (op_id, watcher) = backup_in_its_middle(&client, &project).await;
    let old = system.kill_nine(Server::S3);
    system.restarted(Server::S3, old).await;
    let op = client.ended(scope(&project), &op_id).await;
    system.clear_faults();
    assert_eq!(op["status"], "succeeded", "{op:#}");
    watcher.await.unwrap().assert_complete(OperationStatus::Succeeded);
    restored_elsewhere(&system, &client, &project).await;
    checks_clean(&system, &client, &project).await;
}

async fn checks_clean(system: &TestSystem, client: &Client, project: &str) {
    let Some(restic) = test_harness::restic() else { return };
    let checked =
        crate::main_job::restic_on(system, client, project, &restic, &["check", "--read-data"]).await;
    assert!(checked.expect_success().contains("no errors were found"), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_a_bucket_that_cannot_be_reached_fails_with_the_cause_and_is_none() {
    let options = SystemOptions { hosts: 2, faults: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 51).await;
    let first = client.done(&project, "project-backup", json!({})).await;
    let new = client.create_project_with_files(&system, 52).await;

    system.set_faults(&json!({ "faults": [{ "action": { "fail": "retryable" } }] }));
    add_bytes(&system.project_files(0, &project), "large.bin", 5_000_000, 1);
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    // One whose repository cannot even be made.
    let of_new = client.create(scope(&new), "project-backup", json!({})).await;
    for (project, op_id) in [(&project, &op_id), (&new, &of_new)] {
        let seen = watch_to_the_end(client.bus(), &format!("persist.{}.lro.{op_id}", scope(project))).await;
        seen.assert_complete(OperationStatus::Failed);
        let op = client.ended(scope(project), op_id).await;
        assert_eq!(op["attempt"], op["max_attempts"], "{op:#}");
        let error = &op["error"];
        let attempts = op["max_attempts"].as_u64().unwrap() as usize;
        assert_eq!(error["history"].as_array().unwrap().len(), attempts, "{error:#}");
        assert_eq!(error["retryable"], true, "{error:#}");
        assert!(error["code"] == "bucket_unreachable" || error["code"] == "unavailable", "{error:#}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        // Each attempt that is followed by another says so, with the cause.
        let said: Vec<_> = seen.events.iter().filter(|event| event.phase == "queued").collect();
        assert_eq!(said.len(), attempts - 1, "{:#?}", seen.events);
        for event in said {
            assert_eq!(event.level, Some(EventLevel::Warn), "{event:#?}");
            assert_eq!(event.detail.as_ref().unwrap()["code"], error["code"], "{event:#?}");
            assert!(event.message.contains("injected failure"), "{event:#?}");
        }
    }
    system.clear_faults();
    let listed = client.call(scope(&project), "backup.list", json!({})).await;
    let listed: Vec<&Value> =
        listed["backups"].as_array().unwrap().iter().map(|one| &one["backup_id"]).collect();
    assert_eq!(listed, [&first["backup_id"]]);
    assert_eq!(client.call(scope(&new), "backup.list", json!({})).await["backups"], json!([]));

    // After the repair, a retry is all that is needed.
    let retried = client.call(scope(&project), "lro.retry", json!({ "op_id": op_id })).await;
    let result = client.result(scope(&project), retried["op"]["op_id"].as_str().unwrap()).await;
    assert_eq!(result["parent"], first["backup_id"]);
    client.done(&new, "project-backup", json!({})).await;
    restored_elsewhere(&system, &client, &project).await;
    restored_elsewhere(&system, &client, &new).await;
    checks_clean(&system, &client, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn canceling_a_backup_in_mid_upload_stops_its_job_and_leaves_no_backup() {
    let options = SystemOptions { faults: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 61).await;
    add_bytes(&system.project_files(0, &project), "large.bin", 20_000_000, 1);
    system.set_faults(&slow_uploads(60_000));
    let (op_id, watcher) = backup_in_its_middle(&client, &project).await;
    let host = system.pid(Server::HostBackup(0));
    let children = || fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap_or_default();
    wait_for("the job's process", Duration::from_secs(30), || async {
        if has_child(host) { Ok(()) } else { Err(children()) }
    })
    .await;
    let status = client.call(format!("host-{}", system.host(0)), "host.status", json!({})).await;
    let at_it = status["running_ops"].as_array().unwrap().iter().find(|op| op["op_id"] == *op_id);
    let at_it = at_it.unwrap_or_else(|| panic!("{status:#}"));
    assert_eq!((&at_it["kind"], &at_it["phase"]), (&json!("project-backup"), &json!("upload")), "{status:#}");
    assert_eq!(at_it["scope"], scope(&project));
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended(scope(&project), &op_id).await["status"], "canceled");
    watcher.await.unwrap().assert_complete(OperationStatus::Canceled);
    wait_for("the job's process to be gone", Duration::from_secs(30), || async {
        if has_child(host) { Err("it is there") } else { Ok(()) }
    })
    .await;
    system.clear_faults();
    assert_eq!(client.call(scope(&project), "backup.list", json!({})).await["backups"], json!([]));
    let result = client.done(&project, "project-backup", json!({})).await;
    assert_eq!(result["parent"], Value::Null);
}

fn has_child(parent: u32) -> bool {
    let tasks = fs::read_dir(Path::new("/proc").join(parent.to_string()).join("task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .into_iter()
        .any(|task| fs::read_to_string(task.path().join("children")).is_ok_and(|ids| !ids.trim().is_empty()))
}
