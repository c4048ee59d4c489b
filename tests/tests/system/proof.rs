//! That backups restore is proven, and one that does not is not restored from.

use std::fs;
use std::process::Command;
use std::time::Duration;

use bus_messages::ErrorCode;
use serde_json::{Value, json};
use test_harness::{SystemOptions, TestSystem, add_bytes, btrfs_is_available, wait_for};

use crate::measures::of_registry;
use crate::stored::StoredRepository;
use crate::{assert_same_tree, scope, two_hosts};

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_a_bad_backup_is_found_by_a_drill_and_never_restored_from_unless_asked_for() {
    a_backup_is_bad(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_a_bad_backup_is_found_by_a_drill_and_never_restored_from_unless_asked_for() {
    if btrfs_is_available() {
        a_backup_is_bad(true).await;
    }
}

async fn a_backup_is_bad(btrfs: bool) {
    let system = TestSystem::start(two_hosts(btrfs)).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 91).await;
    let files = system.project_files(0, &project);
    let first = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    let repository = StoredRepository::of(&system, &client, &project).await;
    let packs_of_first = repository.packs().await;
    add_bytes(&files, "more.bin", 3_000_000, 1);
    let second = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();

    let drilled = client.done(&project, "restore-drill", json!({})).await;
    assert_eq!((&drilled["backup_id"], &drilled["proof"]), (&second, &json!("match")), "{drilled:#}");
    assert!(drilled["files"].as_u64() > Some(300));
    let some = client.done(&project, "restore-drill", json!({ "share": 0.2, "seed": 7 })).await;
    assert_eq!((&some["proof"], &some["sample"]["seed"]), (&json!("match"), &json!(7)), "{some:#}");
    assert_eq!(some["sample"]["of_files"], drilled["files"]);
    assert!((10..200).contains(&some["files"].as_u64().unwrap()), "{some:#}");
    for input in [json!({ "share": 0.0 }), json!({ "share": 1.5 }), json!({ "seed": 7 })] {
        let request = json!({ "kind": "restore-drill", "input": input });
        assert_eq!(
            client.refused(scope(&project), "lro.create", request).await.code,
            ErrorCode::InvalidArgument
        );
    }
    let left: Vec<_> = fs::read_dir(system.data_directory().join("hosts/0/staging")).unwrap().collect();
    assert!(left.is_empty(), "the drill has left {left:?}");
    let got = |id: &Value| {
        let (client, project, request) = (&client, &project, json!({ "backup_id": id }));
        async move { client.call(scope(project), "backup.get", request).await["backup"].take() }
    };
    assert!(got(&second).await["verified_at"].is_string() && got(&first).await["verified_at"].is_null());
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(status["last_verified_at"], got(&second).await["verified_at"]);
    for input in [json!({}), json!({ "read_data_shares": 1 })] {
        let checked = client.done(&project, "repo-check", input).await;
        assert!(checked["requests"].as_u64() > Some(0), "{checked:#}");
    }

    // One bit of a pack that only the second needs.
    let all = repository.packs().await;
    let of_second = all.iter().filter(|pack| !packs_of_first.contains(pack));
    let largest = of_second.max_by_key(|pack| pack.size_bytes).unwrap();
    repository.spoil(&largest.key, 1000).await;
    // What is there is there: only reading it shows the damage, and of all shares, one. From then on every check knows.
    client.done(&project, "repo-check", json!({})).await;
    let mut is_known = false;
    for share in 0..3 {
        let input = json!({ "read_data_shares": 3, "share": share });
        let op_id = client.create(scope(&project), "repo-check", input).await;
        let op = client.ended(scope(&project), &op_id).await;
        if op["status"] != "succeeded" {
            assert_eq!(
                (&op["error"]["code"], &op["attempt"]),
                (&json!("repository_damaged"), &json!(1)),
                "{op:#}"
            );
        }
        assert!(!is_known || op["status"] == "failed", "{op:#}");
        is_known |= op["status"] == "failed";
    }
    assert!(is_known, "no share has the damaged pack");
    assert!(got(&second).await["bad_since"].is_string(), "it needs what is lost");
    assert!(got(&first).await["bad_since"].is_null());
    let found_by_checks = found_bad(&system).await;
    assert!(found_by_checks >= 1.0);
    // Until what was lost is stored again, the project is not as safe as it looks.
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(
        (&status["changed_since_backup"], &status["at_risk"]),
        (&json!(true), &json!(true)),
        "{status:#}"
    );

    let drilled = client.done(&project, "restore-drill", json!({ "backup_id": second })).await;
    assert_eq!((&drilled["backup_id"], &drilled["proof"]), (&second, &json!("mismatch")), "{drilled:#}");
    assert!(drilled["reason"].is_string());
    assert!(got(&second).await["bad_since"].is_string());
    assert_eq!(found_bad(&system).await, found_by_checks + 1.0);
    let op_id =
        client.call(scope(&project), "lro.list", json!({ "kind": "restore-drill", "limit": 1 })).await;
    let events = client.events(scope(&project), op_id["ops"][0]["op_id"].as_str().unwrap()).await;
    assert!(events.iter().any(|event| event["level"] == "error"), "{events:#?}");
    // A sample without the damaged file is no proof of the contrary.
    for seed in 0..3 {
        let input = json!({ "backup_id": second, "share": 0.001, "seed": seed });
        client.done(&project, "restore-drill", input).await;
    }
    assert!(got(&second).await["bad_since"].is_string());
    let refusal = client
        .refused(
            scope(&project),
            "lro.create",
            json!({ "kind": "project-restore", "input": { "backup_id": second, "host_id": system.host(1) } }),
        )
        .await;
    assert_eq!((refusal.status, refusal.code), (412, ErrorCode::FailedPrecondition), "{refusal:?}");
    assert!(refusal.message.contains("allow_bad"), "{refusal:?}");
    // The latest is the newest that is good.
    let restore = json!({ "backup_id": "latest", "host_id": system.host(1) });
    assert_eq!(client.done(&project, "project-restore", restore).await["backup_id"], first);
    fs::remove_file(files.join("more.bin")).unwrap();
    assert!(!system.project_files(1, &project).join("more.bin").exists());
    let part = json!({
        "backup_id": second, "host_id": system.host(1), "allow_bad": true,
        "path": "persist", "target": "what-is-left",
    });
    client.done(&project, "project-restore", part).await;
    assert_same_tree(
        &system.persist_store(0, &project),
        &system.project_files(1, &project).join("what-is-left"),
    );

    // The damaged pack is counted on no longer: what it held is stored again, and the bad backup is good with it.
    add_bytes(&files, "more.bin", 3_000_000, 1);
    let healing = client.done(&project, "project-backup", json!({})).await;
    assert!(healing["bytes_added"].as_u64() > Some(100_000), "{healing:#}");
    let drilled = client.done(&project, "restore-drill", json!({ "backup_id": second })).await;
    assert_eq!(drilled["proof"], "match", "{drilled:#}");
    assert!(got(&second).await["bad_since"].is_null());
    client.done(&project, "repo-check", json!({ "read_data_shares": 1 })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_lacks_data_is_bad_until_that_is_stored_again() {
    let system = TestSystem::start(SystemOptions::default()).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 97).await;
    let files = system.project_files(0, &project);
    add_bytes(&files, "more.bin", 3_000_000, 1);
    let backup = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    let repository = StoredRepository::of(&system, &client, &project).await;
    let packs = repository.packs().await;
    repository.lose(&packs.iter().max_by_key(|pack| pack.size_bytes).unwrap().key).await;
    let op_id = client.create(scope(&project), "repo-check", json!({})).await;
    let checked = client.ended(scope(&project), &op_id).await;
    assert_eq!(checked["error"]["code"], "repository_damaged", "{checked:#}");
    assert_eq!(checked["result"]["lacking"], json!([backup]), "{checked:#}");
    let status = client.call(scope(&project), "project.status", json!({})).await;
    let reason = status["at_risk_reason"].as_str().unwrap();
    assert!(reason.contains("needs data that its repository has lost"), "{reason}");

    // Nothing has changed in the files, and they are stored again all the same.
    let again = client.done(&project, "project-backup", json!({})).await;
    assert!(again["bytes_added"].as_u64() > Some(100_000), "{again:#}");
    client.done(&project, "repo-check", json!({})).await;
    let request = json!({ "backup_id": backup });
    let good = client.call(scope(&project), "backup.get", request).await["backup"].take();
    assert!(good["bad_since"].is_null(), "{good:#}");
    assert_eq!(
        client.done(&project, "restore-drill", json!({ "backup_id": backup })).await["proof"],
        "match"
    );
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(status["at_risk"], false, "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_a_backup_whose_snapshot_is_lost_or_spoilt_is_bad_and_in_nobodys_way() {
    snapshots_are_lost_or_spoilt(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_a_backup_whose_snapshot_is_lost_or_spoilt_is_bad_and_in_nobodys_way() {
    if btrfs_is_available() {
        snapshots_are_lost_or_spoilt(true).await;
    }
}

async fn snapshots_are_lost_or_spoilt(btrfs: bool) {
    let system = TestSystem::start(two_hosts(btrfs)).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 95).await;
    let files = system.project_files(0, &project);
    let mut backups = Vec::new();
    for round in 0..4 {
        add_bytes(&files, &format!("of-round-{round}.bin"), 2_000_000, round);
        backups.push(client.done(&project, "project-backup", json!({})).await["backup_id"].clone());
    }
    let [first, lost, spoilt, last] = &backups[..] else { panic!("four backups") };
    let repository = StoredRepository::of(&system, &client, &project).await;
    // Neither is known any more where it was made.
    fs::remove_dir_all(system.data_directory().join("cache/host-backup-0")).unwrap();
    repository.lose(&repository.snapshot(lost)).await;
    repository.spoil(&repository.snapshot(spoilt), 20).await;
    let op_id = client.create(scope(&project), "repo-check", json!({})).await;
    let checked = client.ended(scope(&project), &op_id).await;
    assert_eq!(checked["error"]["code"], "repository_damaged", "{checked:#}");

    // The first is to go: what only it needs comes back, and nothing else.
    let pruned = deleted(&client, &project, first).await;
    assert!(!repository.has(&repository.snapshot(first)).await, "{pruned:#}");
    assert_eq!(found_bad(&system).await, 2.0);
    for id in [lost, spoilt] {
        let request = json!({ "backup_id": id });
        let backup = client.call(scope(&project), "backup.get", request).await["backup"].take();
        assert!(backup["bad_since"].is_string(), "{backup:#}");
        let restore = json!({ "backup_id": id, "host_id": system.host(1) });
        let request = json!({ "kind": "project-restore", "input": restore });
        let refusal = client.refused(scope(&project), "lro.create", request).await;
        assert!(refusal.message.contains("its snapshot is lost"), "{refusal:?}");
    }
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(status["changed_since_backup"], true, "{status:#}");
    let restore = json!({ "backup_id": last, "host_id": system.host(1) });
    client.done(&project, "project-restore", restore).await;
    assert_same_tree(&files, &system.project_files(1, &project));

    // Deleted, they are gone for good, and the repository is whole.
    for id in [lost, spoilt] {
        deleted(&client, &project, id).await;
    }
    assert!(!repository.has(&repository.snapshot(spoilt)).await);
    client.done(&project, "repo-check", json!({ "read_data_shares": 1 })).await;
    client.done(&project, "restore-drill", json!({ "backup_id": last })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_a_project_whose_backups_are_all_bad_is_at_risk_and_not_started_empty() {
    all_backups_are_bad(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_a_project_whose_backups_are_all_bad_is_at_risk_and_not_started_empty() {
    if btrfs_is_available() {
        all_backups_are_bad(true).await;
    }
}

async fn all_backups_are_bad(btrfs: bool) {
    let soon = ("LONGHAUL_SCHEDULER__BACKUPS__LOOK_EVERY_S".to_owned(), "0.2".to_owned());
    let options = SystemOptions { environment: vec![soon], ..two_hosts(btrfs) };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 96).await;
    client.done(&project, "project-backup", json!({})).await;
    let repository = StoredRepository::of(&system, &client, &project).await;
    let packs = repository.packs().await;
    let largest = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap();
    repository.spoil(&largest.key, 1000).await;
    let drilled = client.done(&project, "restore-drill", json!({})).await;
    assert_eq!(drilled["proof"], "mismatch", "{drilled:#}");
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(status["at_risk"], true, "{status:#}");
    let reason = status["at_risk_reason"].as_str().unwrap();
    assert!(reason.starts_with("its newest backup is bad: "), "{reason}");
    assert!(status["at_risk_s"].as_f64() > Some(0.0), "{status:#}");

    // Nothing may count on what is damaged: all data is checked at once, and what lacks is to be stored again.
    let check = wait_for("a check that nobody asked for", Duration::from_secs(120), async || {
        let checks = client.call(scope(&project), "lro.list", json!({ "kind": "repo-check" })).await;
        let check = checks["ops"].as_array().unwrap().first().cloned();
        check.filter(|check| check["finished_at"].is_string()).ok_or_else(|| checks.to_string())
    })
    .await;
    assert_eq!((&check["created_by"], &check["priority"]), (&json!("scheduler"), &json!(0)), "{check:#}");
    assert_eq!(check["input"]["read_data_shares"], 1, "{check:#}");
    assert_eq!(check["error"]["code"], "repository_damaged", "{check:#}");
    let status = client.call(scope(&project), "project.status", json!({})).await;
    assert_eq!(status["changed_since_backup"], true, "{status:#}");

    let trees = [system.project_files(0, &project), system.persist_store(0, &project)];
    for tree in &trees {
        fs::remove_dir_all(tree).unwrap();
    }
    let op_id = client.create(scope(&project), "project-start", json!({})).await;
    let ended = client.ended(scope(&project), &op_id).await;
    assert_eq!(ended["status"], "failed", "{ended:#}");
    assert!(ended["error"]["message"].as_str().unwrap().contains("known to be bad"), "{ended:#}");
    assert!(trees.iter().all(|tree| !tree.exists()), "nothing was made in place of what is lost");
}

/// A drill is not worth a disk that is full for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_might_fill_the_disk_is_refused_until_there_is_room() {
    if !btrfs_is_available() {
        return;
    }
    let options = SystemOptions { btrfs: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 98).await;
    client.done(&project, "project-backup", json!({})).await;
    let filler = system.data_directory().join("hosts/0/filler");
    let available = rustix::fs::statvfs(filler.parent().unwrap()).unwrap();
    let size = available.f_bavail * available.f_frsize - available.f_blocks * available.f_frsize / 25;
    let allocated = Command::new("fallocate").arg("--length").arg(size.to_string()).arg(&filler).status();
    assert!(allocated.unwrap().success(), "fallocate");
    let op_id = client.create(scope(&project), "restore-drill", json!({})).await;
    let refused = client.ended(scope(&project), &op_id).await;
    assert_eq!(refused["error"]["code"], "no_space", "{refused:#}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("5% of the host's disk"), "{refused:#}");
    fs::remove_file(&filler).unwrap();
    // Its space is there again with the next transaction.
    rustix::fs::syncfs(fs::File::open(filler.parent().unwrap()).unwrap()).unwrap();
    assert_eq!(client.done(&project, "restore-drill", json!({})).await["proof"], "match");
}

/// Deletes a backup: what the prune has done.
async fn deleted(client: &test_harness::Client, project: &str, id: &Value) -> Value {
    let deleted = client.call(scope(project), "backup.delete", json!({ "backup_id": id })).await;
    client.result(scope(project), deleted["op"]["op_id"].as_str().unwrap()).await
}

async fn found_bad(system: &TestSystem) -> f64 {
    of_registry(system, "longhaul_backups_found_bad_total").await
}
