//! The main job: back a project up by a request on the bus, watch it live and late, restore it on another host.

use std::path::Path;

use domain_model::OperationStatus;
use futures::StreamExt as _;
use serde_json::{Value, json};
use test_harness::{
    Client, Finished, ObjectStoreKind, ReadyObjectStore, SystemOptions, TestSystem, add_bytes,
    btrfs_is_available, change_a_little, make_tree, restic, run, watch_to_the_end,
};
use tokio::process::Command;

use crate::{assert_same_tree, scope};

fn options(object_store: ObjectStoreKind, btrfs: bool) -> SystemOptions {
    SystemOptions { hosts: 2, object_store, btrfs, faults: true, ..SystemOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_and_a_local_store_a_project_comes_back_as_it_was() {
    the_main_job(options(ObjectStoreKind::Local, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_and_s3_a_project_comes_back_as_it_was() {
    the_main_job(options(ObjectStoreKind::S3, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_a_local_store_a_project_comes_back_as_it_was() {
    if btrfs_is_available() {
        the_main_job(options(ObjectStoreKind::Local, true)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_a_project_comes_back_as_it_was() {
    if btrfs_is_available() {
        the_main_job(options(ObjectStoreKind::S3, true)).await;
    }
}

async fn the_main_job(options: SystemOptions) {
    let btrfs = options.btrfs;
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 1).await;
    let files = system.project_files(0, &project);
    add_bytes(&files.join("data"), "large.bin", 30_000_000, 7);

    let first = backed_up_while_three_watch(&system, &client, &project).await;
    assert_eq!(first["source"], if btrfs { "btrfs-snapshot" } else { "live" });
    assert_eq!(first["parent"], Value::Null);
    for (field, length) in [("backup_id", 64), ("tree", 64)] {
        let text = first[field].as_str().unwrap();
        assert!(text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit()), "{field}: {text}");
    }
    assert!(first["files"].as_u64() > Some(360) && first["bytes"].as_u64() > Some(30_000_000), "{first:#}");
    assert!(
        first["bytes_added"].as_u64() > Some(30_000_000) && first["duration_s"].as_f64() > Some(0.0),
        "{first:#}"
    );
    assert_eq!(first["vanished"], 0);
    assert!(first["snapshot_at"].as_str().unwrap().ends_with('Z'));
    listed_with_its_facts(&client, &project, &first).await;
    if btrfs {
        let left: Vec<_> =
            std::fs::read_dir(system.data_directory().join("hosts/0/snapshots")).unwrap().collect();
        assert!(left.is_empty(), "a snapshot is left: {left:?}");
    }

    // On the other host, which has nothing of it so far.
    let restore = json!({ "backup_id": first["backup_id"], "host_id": system.host(1) });
    let restored = client.done(&project, "project-restore", restore).await;
    for field in ["backup_id", "files", "bytes", "tree"] {
        assert_eq!(restored[field], first[field], "{field}");
    }
    assert_eq!(restored["receipt"], "match");
    assert_same_tree(&files, &system.project_files(1, &project));
    assert_same_tree(&system.persist_store(0, &project), &system.persist_store(1, &project));

    // A second backup is told from which it goes on, and adds little.
    change_a_little(&files, 1);
    let second = client.done(&project, "project-backup", json!({})).await;
    assert_eq!(second["parent"], first["backup_id"]);
    assert!(second["bytes_added"].as_u64() < Some(300_000), "{second:#}");
    let copy = system.scratch("as-backed-up");
    copied(&files, &copy).await;

    // `latest` is the second, in place of what came after.
    change_a_little(&files, 3);
    make_tree(&files.join("made/later"), 9);
    let restored = client.done(&project, "project-restore", json!({ "backup_id": "latest" })).await;
    assert_eq!(restored["backup_id"], second["backup_id"]);
    assert_same_tree(&copy, &files);

    if let Some(restic) = restic() {
        restic_reads_it(&system, &client, &project, &restic, &second, &copy).await;
    }
}

/// Backs up with a live watcher, one from the middle and one after the end: all get the same.
async fn backed_up_while_three_watch(system: &TestSystem, client: &Client, project: &str) -> Value {
    // Slow enough for a middle.
    system.set_faults(&json!({ "faults": [
        { "operation": "put", "key": "*/data/*", "action": { "delay": { "milliseconds": 1500 } } },
    ]}));
    let mut raw = client.bus().subscribe(format!("persist.project-{project}.lro.*.*")).await.unwrap();
    let request = json!({ "kind": "project-backup", "input": { "tags": ["before-exam"], "pinned": true } });
    let created = client.call(scope(project), "lro.create", request).await;
    let (op, subject) = (&created["op"], created["subject"].as_str().unwrap().to_owned());
    let op_id = op["op_id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&created["created"], &op["status"], &op["attempt"]),
        (&json!(true), &json!("queued"), &json!(0))
    );
    assert_eq!(subject, format!("persist.project-{project}.lro.{op_id}"));

    let watcher = |bus: bus_client::Bus, subject: String| {
        tokio::spawn(async move { watch_to_the_end(&bus, &subject).await })
    };
    let live = watcher(client.bus().clone(), subject.clone());
    client.until(scope(project), &op_id, "phase", &["upload"]).await;
    let middle = client.operation(scope(project), &op_id).await;
    assert_eq!(middle["status"], "running", "it is to be watched in its middle: {middle:#}");
    let joined = system.operator().await;
    let from_the_middle = watcher(joined.bus().clone(), subject.clone());
    let result = client.result(scope(project), &op_id).await;
    system.clear_faults();
    let live = live.await.unwrap();
    let from_the_middle = from_the_middle.await.unwrap();
    let late = watch_to_the_end(client.bus(), &subject).await;
    for seen in [&live, &from_the_middle, &late] {
        seen.assert_complete(OperationStatus::Succeeded);
        assert_eq!(seen.events, live.events);
        assert_eq!(seen.states.last(), live.states.last());
    }
    let phases: Vec<&str> = live.events.iter().map(|event| event.phase.as_str()).collect();
    for phase in ["repository", "snapshot", "upload", "clean-up", "done"] {
        assert!(phases.contains(&phase), "{phase}: {phases:?}");
    }
    assert!(live.events.iter().any(|event| event.progress.is_some()), "no progress: {:#?}", live.events);

    // What any subscriber sees, without our client: readable by its headers alone.
    let mut messages = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(std::time::Duration::from_secs(10), raw.next()).await {
        let is_last =
            message.subject.ends_with(".state") && message.headers.get("Lro-Status") == Some("succeeded");
        messages.push(message);
        if is_last {
            break;
        }
    }
    for message in &messages {
        for header in ["Content-Type", "Lro-Kind", "Lro-Status", "Lro-Phase", "Lro-Attempt"] {
            assert!(message.headers.get(header).is_some(), "{} has no {header}", message.subject);
        }
        assert_eq!(message.headers.get("Lro-Kind"), Some("project-backup"));
        let _: Value = serde_json::from_slice(&message.payload).unwrap();
    }
    assert!(messages.len() > 3, "{messages:?}");
    result
}

async fn listed_with_its_facts(client: &Client, project: &str, result: &Value) {
    let listed = client.call(scope(project), "backup.list", json!({ "limit": 20 })).await;
    assert_eq!(listed["backups"].as_array().unwrap().len(), 1);
    let got = client.call(scope(project), "backup.get", json!({ "backup_id": result["backup_id"] })).await;
    assert_eq!(got["backup"], listed["backups"][0]);
    let backup = &got["backup"];
    for field in ["backup_id", "files", "bytes", "bytes_added", "tree", "source", "parent"] {
        assert_eq!(backup[field], result[field], "{field}");
    }
    assert_eq!(backup["created_at"], result["snapshot_at"]);
    assert_eq!(backup["tags"], json!(["before-exam"]));
    assert_eq!((&backup["pinned"], &backup["purpose"]), (&json!(true), &json!("backup")));
    let status = client.call(scope(project), "project.status", json!({})).await;
    assert_eq!(status["last_backup_at"], backup["created_at"]);
    assert_eq!(status["project"]["last_backup_id"], backup["backup_id"]);
}

async fn copied(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.arg("--archive").arg(from).arg(to);
    run(copy).await.expect_success();
}

/// Without Longhaul: the password out of the database, then restic alone.
async fn restic_reads_it(
    system: &TestSystem,
    client: &Client,
    project: &str,
    restic: &Path,
    backup: &Value,
    expected: &Path,
) {
    let checked = restic_on(system, client, project, restic, &["check", "--read-data"]).await;
    assert!(checked.expect_success().contains("no errors were found"), "{checked:?}");
    let target = system.scratch("by-restic");
    let id = backup["backup_id"].as_str().unwrap();
    let restore = ["restore", id, "--target", target.to_str().unwrap()];
    restic_on(system, client, project, restic, &restore).await.expect_success();
    assert_same_tree(expected, &target.join("project"));
    assert_same_tree(&system.persist_store(0, project), &target.join("persist"));
}

/// Runs restic on the repository of a project, with the password that the registry's program reveals.
pub(crate) async fn restic_on(
    system: &TestSystem,
    client: &Client,
    project: &str,
    restic: &Path,
    arguments: &[&str],
) -> Finished {
    let mut reveal = Command::new(system.program("registry").unwrap());
    reveal
        .args(["reveal-password", "--config"])
        .arg(system.data_directory().join("config/registry.toml"))
        .arg(project);
    let password = run(reveal).await.expect_success().trim().to_owned();
    let bucket_id =
        client.call(scope(project), "project.get", json!({})).await["project"]["backup_bucket_id"].clone();
    let bucket = client.call("hub", "bucket.get", json!({ "bucket_id": bucket_id })).await;
    let place = format!("{}/rustic/project-{project}", bucket["bucket"]["name"].as_str().unwrap());
    let mut command = Command::new(restic);
    match system.ready().object_store {
        ReadyObjectStore::Local { root } => command.arg("--repo").arg(root.join(&place)),
        ReadyObjectStore::S3 { endpoint, access_key_id, secret_access_key } => command
            .arg("--repo")
            .arg(format!("s3:{endpoint}/{place}"))
            .env("AWS_ACCESS_KEY_ID", access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", secret_access_key),
    };
    command.args(["--no-cache", "--no-lock"]).args(arguments).env("RESTIC_PASSWORD", &password);
    run(command).await
}
