//! `project-start` and `project-stop`: a project whose files are missing comes back before it is started, and what does
//! not come back is not started.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use test_harness::{Client, ObjectStoreKind, SystemOptions, TestSystem, btrfs_is_available};

use crate::{assert_same_tree, scope};

/// A host that starts projects with a script, which notes what it was told and fails where a file says so.
async fn start(btrfs_and_s3: bool) -> (TestSystem, Client, PathBuf) {
    let folder = tempfile::tempdir().unwrap().keep();
    let script = folder.join("runtime");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\necho \"$1 $LONGHAUL_PROJECT_ID\"\necho \"$1 $LONGHAUL_PROJECT_ID $(ls \"$LONGHAUL_PROJECT_DIR\" | wc -l)\" \
             >> {0}/runs\nif [ -e {0}/fail ]; then echo 'no licence' >&2; exit 3; fi\n\
             if [ -e {0}/hang ]; then sleep 600; fi\n",
            folder.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(folder.join("runs"), "").unwrap();
    let command = script.to_str().unwrap().to_owned();
    let environment = vec![("LONGHAUL_HOST_BACKUP__RUNTIME__COMMAND".to_owned(), command)];
    let object_store = if btrfs_and_s3 { ObjectStoreKind::S3 } else { ObjectStoreKind::Local };
    let options = SystemOptions {
        btrfs: btrfs_and_s3,
        object_store,
        environment,
        faults: true,
        ..SystemOptions::default()
    };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    (system, client, folder)
}

async fn state(client: &Client, project: &str) -> Value {
    client.call(scope(project), "project.get", json!({})).await["project"]["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_restored_where_its_files_are_missing_and_then_started() {
    restored_and_started(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_from_s3_a_project_is_restored_where_its_files_are_missing_and_then_started() {
    if btrfs_is_available() {
        restored_and_started(true).await;
    }
}

async fn restored_and_started(btrfs_and_s3: bool) {
    let (mut system, client, folder) = start(btrfs_and_s3).await;
    let runs = || std::fs::read_to_string(folder.join("runs")).unwrap();

    // A new one has nothing to restore.
    let new = client.create_project(system.host(0)).await;
    let started = client.done(&new, "project-start", json!({})).await;
    assert_eq!((&started["restored"], &started["command_run"]), (&Value::Null, &json!(true)));
    assert!(system.project_files(0, &new).is_dir() && system.persist_store(0, &new).is_dir());
    assert_eq!(state(&client, &new).await, "running");
    assert_eq!(runs(), format!("start {new} 0\n"));
    let project = client.call(scope(&new), "project.get", json!({})).await;
    assert_eq!(project["project"]["backup_bucket_id"], Value::Null, "a start makes no repository");
    client.done(&new, "project-stop", json!({})).await;
    assert_eq!(state(&client, &new).await, "stopped");

    // One with files is left as it is.
    let project = client.create_project_with_files(&system, 5).await;
    let files = system.project_files(0, &project);
    client.done(&project, "project-backup", json!({})).await;
    std::fs::write(files.join("after the backup"), "kept").unwrap();
    let started = client.done(&project, "project-start", json!({})).await;
    assert_eq!(started["restored"], Value::Null);
    assert!(files.join("after the backup").exists());
    client.done(&project, "project-stop", json!({})).await;
    let backup = client.done(&project, "project-backup", json!({})).await;

    // Without its files, and with an empty directory in their place, it comes back.
    for empty in [false, true] {
        // On the same filesystem.
        let kept = system.data_directory().join("hosts/0").join(if empty {
            "kept-with-a-directory"
        } else {
            "kept-without"
        });
        std::fs::rename(&files, &kept).unwrap();
        std::fs::remove_dir_all(system.persist_store(0, &project)).unwrap();
        if empty {
            std::fs::create_dir(&files).unwrap();
        }
        let op_id = client.create(scope(&project), "project-start", json!({})).await;
        let started = client.result(scope(&project), &op_id).await;
        assert_eq!(started["restored"], backup["backup_id"]);
        assert_eq!((&started["files"], &started["bytes"]), (&backup["files"], &backup["bytes"]));
        assert_same_tree(&kept, &files);
        let phases: Vec<String> = client
            .events(scope(&project), &op_id)
            .await
            .iter()
            .map(|event| event["phase"].as_str().unwrap().to_owned())
            .collect();
        for phase in ["volume", "download", "exchange", "command", "done"] {
            assert!(phases.iter().any(|seen| seen == phase), "{phase} is in the bootlog: {phases:?}");
        }
        client.done(&project, "project-stop", json!({})).await;
    }

    // Where only the files are gone, they alone come back: what the persist store has since is newer than the backup.
    let kept = system.data_directory().join("hosts/0/kept-files-alone");
    std::fs::rename(&files, &kept).unwrap();
    let newer = system.persist_store(0, &project).join("newer than the backup");
    std::fs::write(&newer, "kept").unwrap();
    let started = client.done(&project, "project-start", json!({})).await;
    assert_eq!(started["restored"], backup["backup_id"]);
    assert_same_tree(&kept, &files);
    assert!(newer.exists());
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_back_is_not_started() {
    let (mut system, client, folder) = start(false).await;
    let project = client.create_project_with_files(&system, 6).await;
    client.done(&project, "project-backup", json!({})).await;
    let files = system.project_files(0, &project);
    std::fs::rename(&files, system.scratch("kept")).unwrap();
    std::fs::remove_dir_all(system.persist_store(0, &project)).unwrap();

    let no_such = json!({ "kind": "project-start", "input": { "backup_id": "0".repeat(64) } });
    assert_eq!(client.refused(scope(&project), "lro.create", no_such).await.status, 404);

    system.set_faults(&json!({ "faults": [
        { "operation": "get", "key": "*/data/*", "action": { "fail": "permanent" } },
    ]}));
    let op_id = client.create(scope(&project), "project-start", json!({})).await;
    let ended = client.ended(scope(&project), &op_id).await;
    assert_eq!(ended["status"], "failed", "{ended:#}");
    assert_eq!(state(&client, &project).await, "stopped");
    assert_eq!(std::fs::read_to_string(folder.join("runs")).unwrap(), "", "nothing was started");
    assert!(!files.exists() || std::fs::read_dir(&files).unwrap().next().is_none());
    system.clear_faults();

    // A command that fails says why, and nothing counts as running.
    std::fs::write(folder.join("fail"), "").unwrap();
    let op_id = client.create(scope(&project), "project-start", json!({})).await;
    let ended = client.ended(scope(&project), &op_id).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("command")));
    let events = client.events(scope(&project), &op_id).await;
    assert!(events.iter().any(|event| event["message"] == "no licence"), "{events:?}");
    assert_eq!(state(&client, &project).await, "stopped");
    std::fs::remove_file(folder.join("fail")).unwrap();

    // One that hangs can be canceled, and is ended.
    std::fs::write(folder.join("hang"), "").unwrap();
    let op_id = client.create(scope(&project), "project-start", json!({})).await;
    client.until(scope(&project), &op_id, "phase", &["command"]).await;
    assert_eq!(state(&client, &project).await, "starting");
    client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended(scope(&project), &op_id).await["status"], "canceled");
    assert_eq!(state(&client, &project).await, "stopped");
    system.stop().await.unwrap();
}

/// Nobody waits for the upkeep of a repository.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_wait_for_a_drill_which_begins_again_later() {
    let (system, client, _) = start(false).await;
    let project = client.create_project_with_files(&system, 5).await;
    client.done(&project, "project-backup", json!({})).await;
    system.set_faults(&json!({ "faults": [
        { "operation": "get", "key": "*/data/*", "action": { "delay": { "milliseconds": 600_000 } } },
    ]}));
    let drill = client.create(scope(&project), "restore-drill", json!({})).await;
    client.until(scope(&project), &drill, "status", &["running"]).await;
    client.done(&project, "project-start", json!({})).await;
    system.clear_faults();
    let result = client.result(scope(&project), &drill).await;
    assert_eq!(result["proof"], "match");
    let op = client.operation(scope(&project), &drill).await;
    assert_eq!((&op["attempt"], &op["error"]), (&json!(2), &Value::Null), "it did not fail: {op}");
    let told = client.events(scope(&project), &drill).await;
    assert!(told.iter().any(|event| event["message"].as_str().unwrap().contains("gives way")), "{told:?}");
}
