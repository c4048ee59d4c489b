//! Restoring a part of a backup beside, over or in place of what is there, and trying without changing anything.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use test_harness::{
    Client, ObjectStoreKind, SystemOptions, TestSystem, btrfs_is_available, make_tree, wait_for,
};

use crate::{assert_same_tree, scope, system};

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_a_path_is_restored_as_its_conflict_rule_says() {
    path_restores(&*system().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_from_s3_a_path_is_restored_as_its_conflict_rule_says() {
    if btrfs_is_available() {
        let object_store = ObjectStoreKind::S3;
        let options = SystemOptions { btrfs: true, object_store, ..SystemOptions::default() };
        path_restores(&TestSystem::start(options).await.unwrap()).await;
    }
}

async fn failed(client: &Client, project: &str, input: Value) -> Value {
    let op_id = client.create(scope(project), "project-restore", input).await;
    let op = client.ended(scope(project), &op_id).await;
    assert_eq!(op["status"], "failed", "{op:#}");
    op
}

async fn path_restores(system: &TestSystem) {
    let client = system.operator().await;
    let project = client.create_project_with_files(system, 21).await;
    let files = system.project_files(0, &project);
    let backup = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    let restore = |input: Value| {
        let (client, project) = (client.clone(), project.clone());
        async move { client.done(&project, "project-restore", input).await }
    };

    // Beside, at a target that does not exist yet.
    let result =
        restore(json!({ "backup_id": backup, "path": "project/src", "target": "restored/src" })).await;
    assert_eq!(result["target"], "project/restored/src");
    assert_eq!(result["receipt"], "match");
    assert_same_tree(&files.join("src"), &files.join("restored/src"));

    // One file, into its own place, which is the default.
    fs::write(files.join("src/file-003.rs"), "ruined").unwrap();
    restore(json!({ "backup_id": backup, "path": "project/src/file-003.rs" })).await;
    assert_same_tree(&files.join("restored/src/file-003.rs"), &files.join("src/file-003.rs"));

    // Replace: what is there goes, what was there comes.
    make_tree(&files.join("src"), 99);
    restore(json!({ "backup_id": "latest", "path": "project/src", "conflict": "replace" })).await;
    assert_same_tree(&files.join("restored/src"), &files.join("src"));

    // Keep: what is there stays.
    fs::write(files.join("src/file-004.rs"), "mine").unwrap();
    let kept = restore(json!({ "backup_id": backup, "path": "project/src", "conflict": "keep" })).await;
    assert!(kept["target"].as_str().unwrap().contains("kept"), "{kept}");
    assert_eq!((&kept["receipt"], &kept["files"]), (&json!("none"), &json!(0)), "{kept}");
    let kept = restore(json!({ "backup_id": backup, "conflict": "keep" })).await;
    assert_eq!((&kept["receipt"], &kept["files"]), (&json!("none"), &json!(0)), "{kept}");
    assert_eq!(fs::read_to_string(files.join("src/file-004.rs")).unwrap(), "mine");

    // Fail: what is there stays, and the operation says why it failed, at its first attempt.
    let op =
        failed(&client, &project, json!({ "backup_id": backup, "path": "project/src", "conflict": "fail" }))
            .await;
    assert_eq!((&op["error"]["code"], &op["attempt"]), (&json!("already_exists"), &json!(1)), "{op:#}");
    assert_eq!(fs::read_to_string(files.join("src/file-004.rs")).unwrap(), "mine");

    // A path that the backup does not have.
    let op = failed(&client, &project, json!({ "backup_id": backup, "path": "project/no/such" })).await;
    assert_eq!(op["error"]["code"], "not_found", "{op:#}");

    // Of the persist store, beside the files.
    restore(json!({ "backup_id": backup, "path": "persist/data", "target": "from-persist" })).await;
    assert_same_tree(&system.persist_store(0, &project).join("data"), &files.join("from-persist"));

    // All of it, beside the files: first tried, then done, and not twice.
    let beside = json!({ "backup_id": backup, "target": "all/of/it", "conflict": "fail" });
    let mut tried = beside.clone();
    tried["dry_run"] = json!(true);
    let tried = restore(tried).await;
    let whole = restore(beside.clone()).await;
    assert_eq!((&whole["receipt"], &whole["target"]), (&json!("match"), &json!("project/all/of/it")));
    assert_eq!(tried["changes"]["created"]["files"], whole["files"], "{tried:#}");
    let all = files.join("all/of/it");
    assert_same_tree(&system.persist_store(0, &project), &all.join("persist"));
    assert_same_tree(&files.join("restored/src"), &all.join("project/src"));
    let of = |path: &Path| {
        let found = path.metadata().unwrap();
        (found.uid(), found.gid(), found.mode())
    };
    assert_eq!(of(&all), of(&files), "people may do there what they may do in their files");
    assert_eq!(failed(&client, &project, beside.clone()).await["error"]["code"], "already_exists");
    let mut again = beside.clone();
    (again["conflict"], again["dry_run"]) = (json!("replace"), json!(true));
    fs::write(all.join("not-of-the-backup"), "mine").unwrap();
    let again = restore(again).await;
    assert_eq!(
        (&again["changes"]["deleted"]["files"], &again["changes"]["created"]["files"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(again["changes"]["unchanged"]["files"], whole["files"], "{again:#}");

    // A dry run changes nothing, and says what would change.
    let restored = restore(json!({ "backup_id": backup, "path": "project/src", "target": "again" })).await;
    let part = restore(json!({ "backup_id": backup, "path": "project/src", "dry_run": true })).await;
    assert!(part["target"].as_str().unwrap().contains("dry run") && part["receipt"] == "none", "{part:#}");
    assert_eq!((&part["tree"], &part["files"]), (&restored["tree"], &restored["files"]), "{part:#}");
    assert_eq!(part["changes"]["replaced"]["files"], 1, "{part:#}");
    assert_eq!(part["estimate"]["basis"], "restores_of_host", "{part:#}");
    assert!(part["estimate"]["seconds"].as_f64() > Some(0.0), "{part:#}");
    let whole = restore(json!({ "backup_id": backup, "dry_run": true })).await;
    assert!(whole["files"].as_u64() > Some(100), "{whole:#}");
    // What was restored beside would go.
    assert!(whole["changes"]["deleted"]["files"].as_u64() >= restored["files"].as_u64(), "{whole:#}");
    assert_eq!(fs::read_to_string(files.join("src/file-004.rs")).unwrap(), "mine");
    wait_for("what was staged, or replaced, to be deleted", Duration::from_secs(60), async || {
        let paths = |directory: &Path| fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
        let is_staged =
            |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes().starts_with(b".longhaul");
        let left: Vec<_> =
            paths(&files.join("../../staging")).chain(paths(&files).filter(is_staged)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}
