//! A tenant makes subvolumes in a project: they are backed up, restored, and in nobody's way.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use test_harness::{SystemOptions, TestSystem, btrfs_is_available, make_tree, skip, wait_for};

use crate::{assert_same_tree, scope};

#[tokio::test(flavor = "multi_thread")]
async fn nested_subvolumes_are_backed_up_and_replaced_by_a_restore_in_place() {
    if !btrfs_is_available() {
        skip("there is no btrfs");
        return;
    }
    let options = SystemOptions { hosts: 2, btrfs: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 141).await;
    let files = system.project_files(0, &project);
    for nested in ["nested", "nested/in/nested"] {
        let path = files.join(nested);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let made = Command::new("btrfs").args(["subvolume", "create"]).arg(&path).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        make_tree(&path.join("tree"), 3);
    }
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    let backup = client.result(scope(&project), &op_id).await;
    assert_eq!(backup["source"], "live", "a snapshot lacks what is nested: {backup:#}");
    let events = client.events(scope(&project), &op_id).await;
    let told = |text: &str| events.iter().any(|event| event["message"].as_str().unwrap().contains(text));
    assert!(told("project/nested, project/nested/in/nested"), "{events:#?}");

    let elsewhere = json!({ "backup_id": "latest", "host_id": system.host(1) });
    client.done(&project, "project-restore", elsewhere).await;
    assert_same_tree(&files, &system.project_files(1, &project));

    // In place: the tree with the subvolumes is what goes.
    fs::write(files.join("nested/in/nested/mine"), "since").unwrap();
    client.done(&project, "project-restore", json!({ "backup_id": "latest" })).await;
    assert_same_tree(&files, &system.project_files(1, &project));
    // What was replaced goes when the end of the restore is recorded.
    for directory in ["staging", "snapshots"] {
        wait_for("everything to be tidied up", Duration::from_secs(60), async || {
            let left: Vec<_> = fs::read_dir(files.join("../..").join(directory)).unwrap().collect();
            if left.is_empty() { Ok(()) } else { Err(format!("left in {directory}: {left:?}")) }
        })
        .await;
    }
}
