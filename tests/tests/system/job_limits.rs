//! Jobs that come to a limit of their host: the operation says which, and goes on when there is room, or an answer, again.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use test_harness::{
    Client, Server, SystemOptions, TestSystem, add_bytes, btrfs_is_available, may_mount, wait_for,
};

use crate::stopping::gone;
use crate::stored::StoredRepository;
use crate::{assert_same_tree, scope};

async fn start(btrfs: bool, settings: &[(&str, &str)]) -> (TestSystem, Client) {
    let environment = settings
        .iter()
        .map(|(name, value)| (format!("LONGHAUL_HOST_BACKUP__{name}"), (*value).to_owned()))
        .collect();
    let options = SystemOptions { btrfs, faults: true, environment, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    (system, client)
}

/// The error of an attempt, when the first has failed.
async fn first_error(client: &Client, project: &str, op_id: &str) -> Value {
    wait_for("an attempt to fail", Duration::from_secs(120), async || {
        let mut op = client.operation(scope(project), op_id).await;
        if op["error"].is_object() { Ok(op["error"].take()) } else { Err(format!("{op:#}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_in_which_no_byte_moves_is_ended_and_goes_on_when_the_store_answers() {
    let (system, client) = start(false, &[("JOBS__STALL_S", "5")]).await;
    let project = client.create_project_with_files(&system, 401).await;
    system.set_faults(&json!({ "faults": [
        { "operation": "put", "key": "*/data/*", "action": { "delay": { "milliseconds": 600_000 } } },
    ]}));
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    let error = first_error(&client, &project, &op_id).await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("stalled"), &json!(true)), "{error:#}");
    system.clear_faults();
    client.result(scope(&project), &op_id).await;
    client.done(&project, "restore-drill", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_wants_more_memory_than_it_may_use_says_so() {
    let (system, client) = start(false, &[("JOBS__MEMORY_BYTES", "30000000")]).await;
    let project = client.create_project_with_files(&system, 402).await;
    add_bytes(&system.project_files(0, &project), "large.bin", 60_000_000, 402);
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    let error = first_error(&client, &project, &op_id).await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("job_died"), &json!(true)), "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("30000000"), "{error:#}");
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    client.ended(scope(&project), &op_id).await;
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!((&status["last_backup_at"], &status["at_risk"]), (&Value::Null, &json!(true)), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_without_room_says_so_leaves_nothing_and_goes_on_when_there_is_some() {
    if !btrfs_is_available() {
        return;
    }
    let (system, client) = start(true, &[]).await;
    let project = client.create_project_with_files(&system, 403).await;
    let files = system.project_files(0, &project);
    add_bytes(&files, "large.bin", 40_000_000, 403);
    client.done(&project, "project-backup", json!({})).await;
    let btrfs = |arguments: &[&str]| {
        let done = Command::new("btrfs").args(arguments).arg(&files).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    btrfs(&["quota", "enable"]);
    btrfs(&["quota", "rescan", "-w"]);
    btrfs(&["qgroup", "limit", "60M"]);
    let again = json!({ "backup_id": "latest", "path": "project/large.bin", "target": "again.bin" });
    let op_id = client.create(scope(&project), "project-restore", again).await;
    let error = first_error(&client, &project, &op_id).await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("no_space"), &json!(true)), "{error:#}");
    assert!(!files.join("again.bin").exists());
    btrfs(&["qgroup", "limit", "none"]);
    client.result(scope(&project), &op_id).await;
    assert_same_tree(&files.join("large.bin"), &files.join("again.bin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_into_a_full_store_says_so_and_leaves_nothing_half_done() {
    if !may_mount() {
        return;
    }
    let options =
        SystemOptions { hosts: 2, object_store_bytes: Some(24_000_000), ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 405).await;
    let files = system.project_files(0, &project);
    let first = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    let repository = StoredRepository::of(&system, &client, &project).await;
    let before = repository.bytes().await;
    add_bytes(&files, "large.bin", 60_000_000, 405);
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    let op = client.ended(scope(&project), &op_id).await;
    let error = &op["error"];
    assert_eq!((&op["status"], &error["code"]), (&json!("failed"), &json!("store_full")), "{op:#}");
    assert!(error["message"].as_str().unwrap().contains("No space left on device"), "{error:#}");
    let listed = client.call(scope(&project), "backup.list", json!({})).await;
    let listed: Vec<&Value> =
        listed["backups"].as_array().unwrap().iter().map(|backup| &backup["backup_id"]).collect();
    assert_eq!((listed, repository.snapshots().await), (vec![&first], 1));
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(
        (&status["changed_since_backup"], &status["at_risk"]),
        (&json!(true), &json!(true)),
        "{status:#}"
    );
    // Full as it is, what there is can be restored, and what belongs to no backup can be freed.
    let restore = json!({ "backup_id": first, "host_id": system.host(1) });
    assert_eq!(client.done(&project, "project-restore", restore).await["receipt"], "match");
    let stored = repository.bytes().await;
    assert!(stored > before + 10_000_000, "{stored} after {before}: it was stored until the store was full");
    let pruned = client.done(&project, "repo-prune", json!({})).await;
    assert_eq!(repository.bytes().await, before, "{pruned:#}");

    system.resize_object_store(200_000_000);
    client.done(&project, "repo-check", json!({ "read_data_shares": 1 })).await;
    client.done(&project, "project-backup", json!({})).await;
    client.done(&project, "repo-check", json!({ "read_data_shares": 1 })).await;
    let restore = json!({ "backup_id": "latest", "host_id": system.host(1) });
    client.done(&project, "project-restore", restore).await;
    assert_same_tree(&files, &system.project_files(1, &project));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_backup_that_was_killed_and_canceled_is_deleted_at_the_next_start() {
    if !btrfs_is_available() {
        return;
    }
    let (system, client) = start(true, &[]).await;
    let project = client.create_project_with_files(&system, 404).await;
    let snapshots = system.data_directory().join("hosts/0/snapshots");
    let left = || std::fs::read_dir(&snapshots).unwrap().count();
    system.set_faults(&json!({ "faults": [
        { "operation": "put", "key": "*/data/*", "action": { "delay": { "milliseconds": 600_000 } } },
    ]}));
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    wait_for("a snapshot", Duration::from_secs(120), async || if left() == 1 { Ok(()) } else { Err(left()) })
        .await;
    client.until(scope(&project), &op_id, "phase", &["upload"]).await;
    system.hold_restarts();
    let old = system.kill_nine(Server::HostBackup(0));
    gone(old).await;
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended(scope(&project), &op_id).await["status"], "canceled");
    assert_eq!(left(), 1, "nobody was there to delete it");
    system.clear_faults();
    system.allow_restarts();
    system.restarted(Server::HostBackup(0), old).await;
    wait_for(
        "it to be deleted",
        Duration::from_secs(120),
        async || if left() == 0 { Ok(()) } else { Err(left()) },
    )
    .await;
    client.done(&project, "project-backup", json!({})).await;
    assert_eq!(left(), 0);
}
