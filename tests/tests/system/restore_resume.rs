//! A restore that was interrupted goes on with what it had downloaded, and nothing of it is left when there is no other
//! attempt.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain_model::RESERVED_PREFIX;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use test_harness::{
    Client, ObjectStoreKind, Server, SystemOptions, TestSystem, add_bytes, btrfs_is_available, skip, wait_for,
};
use uuid::Uuid;
use volumes::HostRoot;

use crate::{assert_same_tree, scope};

/// Fifteen parts of packs; six are read at a time.
const LARGE_BYTES: usize = 120_000_000;

fn slow_downloads() -> Value {
    json!({ "faults": [
        { "operation": "get", "key": "*/data/*", "action": { "delay": { "milliseconds": 2000 } } },
    ]})
}

/// A system whose second host is to restore what the first has backed up.
async fn with_a_backup(btrfs: bool) -> (TestSystem, Client, String) {
    let options = SystemOptions {
        hosts: 2,
        btrfs,
        object_store: if btrfs { ObjectStoreKind::S3 } else { ObjectStoreKind::Local },
        faults: true,
        environment: vec![(
            "LONGHAUL_HOST_BACKUP__HOST__LOOK_FOR_LEFTOVERS_EVERY_S".to_owned(),
            "1".to_owned(),
        )],
        ..SystemOptions::default()
    };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 301).await;
    add_bytes(&system.project_files(0, &project), "large.bin", LARGE_BYTES, 1);
    client.done(&project, "project-backup", json!({})).await;
    (system, client, project)
}

async fn begin(system: &TestSystem, client: &Client, project: &str) -> String {
    let input = json!({ "backup_id": "latest", "host_id": system.host(1) });
    client.create(scope(project), "project-restore", input).await
}

fn host_root(system: &TestSystem) -> PathBuf {
    system.data_directory().join("hosts/1")
}

/// What is on the disk of a tree, in bytes.
fn bytes_below(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    metadata.blocks() * 512 + entries.map(|entry| bytes_below(&entry.path())).sum::<u64>()
}

/// The same of what an operation has staged.
fn staged_bytes(system: &TestSystem, op_id: &str) -> u64 {
    bytes_below(&host_root(system).join("staging").join(op_id))
}

async fn until_staged(system: &TestSystem, op_id: &str, bytes: u64) {
    until_below(&host_root(system).join("staging").join(op_id), bytes).await;
}

async fn until_below(staged: &Path, bytes: u64) {
    wait_for("a restore to come so far", Duration::from_secs(90), || async {
        match bytes_below(staged) {
            staged if staged >= bytes => Ok(()),
            staged => Err(format!("{staged} bytes are staged")),
        }
    })
    .await;
}

/// The jobs of the second host's agent.
fn jobs(system: &TestSystem) -> Vec<Pid> {
    let agent = system.pid(Server::HostBackup(1));
    let threads = fs::read_dir(format!("/proc/{agent}/task")).unwrap().filter_map(Result::ok);
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let ids: Vec<i32> = children
        .flat_map(|ids| ids.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    ids.into_iter().filter_map(Pid::from_raw).collect()
}

async fn requests_of_restores(system: &TestSystem) -> f64 {
    let labels = [r#"job="restore""#, r#"request="get""#];
    let metrics = system.metrics("host-backup-1").await.unwrap();
    metrics.value("longhaul_object_store_requests_total", &labels)
}

/// The megabytes that the last attempt found to be there.
async fn resumed_megabytes(client: &Client, project: &str, op_id: &str) -> f64 {
    let events = client.events(scope(project), op_id).await;
    let mut told = events.iter().filter_map(|event| {
        let message = event["message"].as_str()?;
        message.contains("from an earlier attempt").then(|| message.split(' ').next())?
    });
    let had = told.next_back().unwrap_or_else(|| panic!("{events:#?}"));
    had.parse().unwrap()
}

async fn nothing_is_staged(system: &TestSystem) {
    wait_for("what was staged to be deleted", Duration::from_secs(60), || async {
        let left: Vec<_> =
            fs::read_dir(host_root(system).join("staging")).unwrap().filter_map(Result::ok).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

async fn whatever_is_killed_a_restore_goes_on(btrfs: bool) {
    let (system, client, project) = with_a_backup(btrfs).await;
    system.set_faults(&slow_downloads());
    let op_id = begin(&system, &client, &project).await;
    until_staged(&system, &op_id, 40_000_000).await;
    for job in jobs(&system) {
        kill_process(job, Signal::KILL).unwrap();
    }
    wait_for("the second attempt", Duration::from_secs(60), || async {
        let op = client.operation(scope(&project), &op_id).await;
        if op["attempt"] == 2 { Ok(()) } else { Err(format!("{op:#}")) }
    })
    .await;
    let error = client.operation(scope(&project), &op_id).await["error"].take();
    assert_eq!(error["code"], "job_died", "{error:#}");
    until_staged(&system, &op_id, 85_000_000).await;
    system.hold_restarts();
    let old = system.kill_nine(Server::HostBackup(1));
    let staged = host_root(&system).join("staging").join(&op_id).join("project/large.bin");
    fs::File::options().write(true).open(&staged).unwrap().write_all_at(b"spoilt", 1_000_000).unwrap();
    system.clear_faults();
    system.allow_restarts();
    system.restarted(Server::HostBackup(1), old).await;

    let op = client.ended(scope(&project), &op_id).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(3)), "{op:#}");
    assert_same_tree(&system.project_files(0, &project), &system.project_files(1, &project));
    assert_same_tree(&system.persist_store(0, &project), &system.persist_store(1, &project));
    nothing_is_staged(&system).await;
    // Most of it was there, and the chunk that was spoilt was not.
    let resumed = resumed_megabytes(&client, &project, &op_id).await;
    assert!((70.0..119.5).contains(&resumed), "{resumed} MB");
    // The agent counts since its start; the same backup, restored anew, costs far more.
    let of_the_last_attempt = requests_of_restores(&system).await;
    client
        .done(&project, "project-restore", json!({ "backup_id": "latest", "host_id": system.host(1) }))
        .await;
    let anew = requests_of_restores(&system).await - of_the_last_attempt;
    assert!(of_the_last_attempt + 6.0 <= anew, "{of_the_last_attempt} requests, and {anew} anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_goes_on_where_it_was() {
    whatever_is_killed_a_restore_goes_on(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_goes_on_where_it_was_on_btrfs_and_from_s3() {
    if btrfs_is_available() {
        whatever_is_killed_a_restore_goes_on(true).await;
    } else {
        skip("there is no btrfs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_of_an_operation_that_is_over_is_deleted() {
    let (system, client, project) = with_a_backup(btrfs_is_available()).await;
    // Canceled while the host was away.
    system.set_faults(&slow_downloads());
    let op_id = begin(&system, &client, &project).await;
    until_staged(&system, &op_id, 40_000_000).await;
    system.hold_restarts();
    let old = system.kill_nine(Server::HostBackup(1));
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    let op = client.ended(scope(&project), &op_id).await;
    assert_eq!(op["status"], "canceled", "{op:#}");
    assert!(staged_bytes(&system, &op_id) >= 40_000_000);
    system.clear_faults();
    system.allow_restarts();
    system.restarted(Server::HostBackup(1), old).await;
    nothing_is_staged(&system).await;

    // Of an operation that the registry does not know.
    let root = HostRoot::open(host_root(&system)).unwrap();
    drop(root.stage_again(project.parse().unwrap(), Uuid::now_v7()).unwrap());
    nothing_is_staged(&system).await;

    // Canceled in the middle: the attempt itself cleans up.
    system.set_faults(&slow_downloads());
    let op_id = begin(&system, &client, &project).await;
    until_staged(&system, &op_id, 40_000_000).await;
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended(scope(&project), &op_id).await["status"], "canceled");
    nothing_is_staged(&system).await;
    assert!(!system.project_files(1, &project).exists());
}

/// What is staged of a restore into a project is in its own volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_of_a_path_and_of_all_beside_goes_on_where_it_was() {
    let (system, client, project) = with_a_backup(btrfs_is_available()).await;
    let files = system.project_files(0, &project);
    for input in [
        json!({ "backup_id": "latest", "path": "project/large.bin", "target": "back/large.bin" }),
        json!({ "backup_id": "latest", "target": "all", "conflict": "fail" }),
    ] {
        system.set_faults(&slow_downloads());
        let op_id = client.create(scope(&project), "project-restore", input.clone()).await;
        let staged = files.join(format!("{RESERVED_PREFIX}{op_id}"));
        until_below(&staged, 40_000_000).await;
        system.hold_restarts();
        let old = system.kill_nine(Server::HostBackup(0));
        system.clear_faults();
        system.allow_restarts();
        system.restarted(Server::HostBackup(0), old).await;

        let op = client.ended(scope(&project), &op_id).await;
        assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(2)), "{op:#}");
        let resumed = resumed_megabytes(&client, &project, &op_id).await;
        assert!((35.0..119.5).contains(&resumed), "{resumed} MB of {input}");
        wait_for("what was staged to be deleted", Duration::from_secs(60), || async {
            if staged.exists() { Err(staged.display().to_string()) } else { Ok(()) }
        })
        .await;
    }
    for restored in ["back/large.bin", "all/project/large.bin"] {
        assert_same_tree(&files.join("large.bin"), &files.join(restored));
    }
    assert_same_tree(&system.persist_store(0, &project), &files.join("all/persist"));

    // Canceled in the middle: nothing of it is left.
    system.set_faults(&slow_downloads());
    let input = json!({ "backup_id": "latest", "path": "project/large.bin", "target": "never" });
    let op_id = client.create(scope(&project), "project-restore", input).await;
    let staged = files.join(format!("{RESERVED_PREFIX}{op_id}"));
    until_below(&staged, 40_000_000).await;
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended(scope(&project), &op_id).await["status"], "canceled");
    assert!(!staged.exists() && !files.join("never").exists());
}
