//! Deleting backups and freeing their space: what is to stay stays, whatever fails, and what is to go goes.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_messages::ErrorCode;
use serde_json::{Value, json};
use test_harness::{
    Client, Server, Signal, SystemOptions, TestSystem, add_bytes, btrfs_is_available, wait_for,
};

use crate::main_job::restic_on;
use crate::stored::StoredRepository;
use crate::{assert_same_tree, leases_of, scope, two_hosts};

async fn start(btrfs: bool) -> (TestSystem, Client) {
    let system = TestSystem::start(SystemOptions { faults: true, ..two_hosts(btrfs) }).await.unwrap();
    let client = system.operator().await;
    (system, client)
}

/// A project with three backups, each with some MB of its own.
async fn three_backups(system: &TestSystem, client: &Client, seed: u64) -> (String, [Value; 3]) {
    let project = client.create_project_with_files(system, seed).await;
    let files = system.project_files(0, &project);
    let mut backups = Vec::new();
    for round in 0..3_u64 {
        add_bytes(&files, "changing.bin", 6_000_000, seed * 100 + round);
        backups.push(client.done(&project, "project-backup", json!({})).await["backup_id"].clone());
    }
    (project, backups.try_into().unwrap())
}

async fn assert_whole(system: &TestSystem, client: &Client, project: &str) {
    if let Some(restic) = test_harness::restic() {
        let checked = restic_on(system, client, project, &restic, &["check", "--read-data"]).await;
        assert!(checked.expect_success().contains("no errors were found"), "{checked:?}");
    }
    let restore = json!({ "backup_id": "latest", "host_id": system.host(1) });
    client.done(project, "project-restore", restore).await;
    assert_same_tree(&system.project_files(0, project), &system.project_files(1, project));
}

async fn listed(client: &Client, project: &str) -> Vec<Value> {
    let backups = client.call(scope(project), "backup.list", json!({})).await;
    backups["backups"].as_array().unwrap().iter().map(|backup| backup["backup_id"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_a_deleted_backup_is_gone_at_once_and_its_space_soon_after() {
    a_backup_is_deleted(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_a_deleted_backup_is_gone_at_once_and_its_space_soon_after() {
    if btrfs_is_available() {
        a_backup_is_deleted(true).await;
    }
}

async fn a_backup_is_deleted(btrfs: bool) {
    let (system, client) = start(btrfs).await;
    let (project, [first, second, third]) = three_backups(&system, &client, 81).await;
    let repository = StoredRepository::of(&system, &client, &project).await;
    let before = repository.bytes().await;

    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": second })).await;
    assert_eq!(
        (&deleted["created"], &deleted["op"]["kind"]),
        (&json!(true), &json!("repo-prune")),
        "{deleted:#}"
    );
    assert_eq!(listed(&client, &project).await, [third.clone(), first.clone()]);
    for (endpoint, request) in [
        ("backup.get", json!({ "backup_id": second })),
        ("backup.ls", json!({ "backup_id": second, "path": "project" })),
        ("lro.create", json!({ "kind": "project-restore", "input": { "backup_id": second } })),
    ] {
        assert_eq!(client.refused(scope(&project), endpoint, request).await.status, 404, "{endpoint}");
    }
    let op_id = deleted["op"]["op_id"].as_str().unwrap().to_owned();
    let result = client.result(scope(&project), &op_id).await;
    assert_eq!((&result["forgotten"], &result["orphans"]), (&json!(1), &json!(0)), "{result:#}");
    let after = repository.bytes().await;
    assert_eq!((&result["bytes_before"], &result["bytes_after"]), (&json!(before), &json!(after)));
    assert_eq!(result["bytes_freed"], before - after);
    assert!(result["bytes_freed"].as_u64() > Some(5_500_000), "{result:#}");
    assert_eq!(repository.snapshots().await, 2);
    let refusal = client.refused(scope(&project), "backup.delete", json!({ "backup_id": second })).await;
    assert_eq!(refusal.status, 404, "its row is gone: {refusal:?}");
    assert_whole(&system, &client, &project).await;

    // With nothing to do, it does next to nothing.
    let result = client.done(&project, "repo-prune", json!({})).await;
    let idle = client.done(&project, "repo-prune", json!({})).await;
    assert_eq!((&idle["forgotten"], &idle["bytes_freed"]), (&json!(0), &json!(0)), "{result:#} {idle:#}");
    assert!(idle["requests"].as_u64() <= Some(10), "{idle:#}");

    // The newest can go, too; then an older one is the latest.
    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": third })).await;
    let status = client.call(scope(&project), "project.get", json!({})).await;
    assert_eq!(status["project"]["last_backup_id"], first);
    client.result(scope(&project), deleted["op"]["op_id"].as_str().unwrap()).await;
    let restore = json!({ "backup_id": "latest", "host_id": system.host(1) });
    assert_eq!(client.done(&project, "project-restore", restore).await["backup_id"], first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_or_being_restored_cannot_be_deleted() {
    let (system, client) = start(false).await;
    let (project, [first, second, third]) = three_backups(&system, &client, 82).await;
    let pinned = client.done(&project, "project-backup", json!({ "pinned": true })).await;
    let refusal =
        client.refused(scope(&project), "backup.delete", json!({ "backup_id": pinned["backup_id"] })).await;
    assert_eq!((refusal.status, refusal.code), (412, ErrorCode::FailedPrecondition), "{refusal:?}");
    for is_pinned in [true, false] {
        let update = json!({ "backup_id": second, "pinned": is_pinned });
        let updated = client.call(scope(&project), "backup.update", update).await;
        assert_eq!(updated["backup"]["pinned"], is_pinned, "{updated}");
        let as_it_is = client.call(scope(&project), "backup.update", json!({ "backup_id": second })).await;
        assert_eq!(as_it_is, updated);
        if is_pinned {
            client.refused(scope(&project), "backup.delete", json!({ "backup_id": second })).await;
        }
    }
    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": second })).await;
    client.result(scope(&project), deleted["op"]["op_id"].as_str().unwrap()).await;
    let gone = json!({ "backup_id": second, "pinned": true });
    assert_eq!(client.refused(scope(&project), "backup.update", gone).await.code, ErrorCode::NotFound);

    system.set_faults(&json!({ "faults": [
        { "operation": "get", "key": "*/data/*", "action": { "delay": { "milliseconds": 3000 } } },
    ]}));
    let restore = json!({ "backup_id": first, "host_id": system.host(1) });
    let op_id = client.create(scope(&project), "project-restore", restore).await;
    client.until(scope(&project), &op_id, "status", &["running"]).await;
    let refusal = client.refused(scope(&project), "backup.delete", json!({ "backup_id": first })).await;
    assert_eq!((refusal.status, refusal.code), (409, ErrorCode::Conflict), "{refusal:?}");
    assert_eq!(refusal.details["op_id"], json!(op_id));
    // Another one can be marked meanwhile; it is forgotten when the restore has ended.
    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": third })).await;
    client.result(scope(&project), &op_id).await;
    system.clear_faults();
    let prune = deleted["op"]["op_id"].as_str().unwrap();
    assert_eq!(client.result(scope(&project), prune).await["forgotten"], 1);
    let prune = client.operation(scope(&project), prune).await;
    let restore = client.operation(scope(&project), &op_id).await;
    assert!(prune["started_at"].as_str() >= restore["finished_at"].as_str(), "{prune:#} {restore:#}");
    assert_whole(&system, &client, &project).await;

    // The newest may be what "latest" is, as long as that is being restored.
    let (project, [first, _, third]) = three_backups(&system, &client, 86).await;
    system.set_faults(&json!({ "faults": [
        { "operation": "get", "key": "*/data/*", "action": { "delay": { "milliseconds": 3000 } } },
    ]}));
    let restore = json!({ "backup_id": "latest", "host_id": system.host(1) });
    let op_id = client.create(scope(&project), "project-restore", restore).await;
    client.until(scope(&project), &op_id, "status", &["running"]).await;
    let refusal = client.refused(scope(&project), "backup.delete", json!({ "backup_id": third })).await;
    assert_eq!(
        (refusal.code, &refusal.details["op_id"]),
        (ErrorCode::Conflict, &json!(op_id)),
        "{refusal:?}"
    );
    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": first })).await;
    assert_eq!(client.result(scope(&project), &op_id).await["backup_id"], third);
    system.clear_faults();
    client.result(scope(&project), deleted["op"]["op_id"].as_str().unwrap()).await;
    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": third })).await;
    client.result(scope(&project), deleted["op"]["op_id"].as_str().unwrap()).await;
    assert_eq!(listed(&client, &project).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_drops_what_is_old_and_keeps_what_is_pinned_and_the_newest() {
    let of_fleet = ("LONGHAUL_REGISTRY__BACKUPS__KEEP__LAST".to_owned(), "11".to_owned());
    let options = SystemOptions { hosts: 2, environment: vec![of_fleet], ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let account = client.call("hub", "account.create", json!({ "name": "eve" })).await;
    let account = account["account"]["id"].as_str().unwrap().to_owned();
    let create = json!({ "title": "Algebra", "host_id": system.host(0), "account_id": account });
    let project = client.call("hub", "project.create", create).await;
    let project = project["project"]["id"].as_str().unwrap().to_owned();
    system.make_volume(0, &project);
    let files = system.project_files(0, &project);
    // All within an hour or two, so that the eleven last are what the policy of the fleet keeps, and perhaps the last of
    // an hour that is over.
    let mut backups = Vec::new();
    for round in 0..14_u64 {
        add_bytes(&files, "changing.bin", 100_000, round);
        let pinned = round == 1;
        let made = client.done(&project, "project-backup", json!({ "pinned": pinned })).await;
        backups.push(made["backup_id"].clone());
    }
    let result = client.done(&project, "repo-prune", json!({})).await;
    let left = listed(&client, &project).await;
    assert_eq!(result["forgotten"], 14 - left.len());
    assert!((12..=13).contains(&left.len()), "{left:?} of {backups:?}");
    for kept in backups[3..].iter().chain(&backups[1..2]) {
        assert!(left.contains(kept), "{kept} is to stay: {left:?}");
    }
    let repository = StoredRepository::of(&system, &client, &project).await;
    assert_eq!(repository.snapshots().await, left.len());

    // What an account says goes over what the fleet says, and what the project says over both.
    let last = |last: u32| json!({ "backup_policy": { "keep": { "last": last, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0 } } });
    client.call(format!("account-{account}"), "account.update", last(3)).await;
    client.done(&project, "repo-prune", json!({})).await;
    let newest_first: Vec<Value> = backups.iter().rev().cloned().collect();
    let kept = |last: usize| newest_first[..last].iter().chain(&backups[1..2]).cloned().collect::<Vec<_>>();
    assert_eq!(listed(&client, &project).await, kept(3));
    client.call(scope(&project), "project.update", last(1)).await;
    client.done(&project, "repo-prune", json!({})).await;
    assert_eq!(listed(&client, &project).await, kept(1));
    assert_eq!(repository.snapshots().await, 2);
    assert_whole(&system, &client, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prunes_and_a_backup_asked_for_at_once_take_turns() {
    let (system, client) = start(false).await;
    let (project, [first, second, _]) = three_backups(&system, &client, 84).await;
    let mut ops = Vec::new();
    for backup in [first, second] {
        let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": backup })).await;
        ops.push(deleted["op"]["op_id"].as_str().unwrap().to_owned());
    }
    ops.push(client.create(scope(&project), "repo-prune", json!({})).await);
    ops.push(client.create(scope(&project), "project-backup", json!({})).await);
    let mut turns = Vec::new();
    for op_id in &ops {
        let op = client.ended(scope(&project), op_id).await;
        assert_eq!(op["status"], "succeeded", "{op:#}");
        // A prune may give way to the backup: each attempt is a turn.
        let mut attempts: BTreeMap<u64, (String, String)> = BTreeMap::new();
        for event in client.events(scope(&project), op_id).await {
            let at = event["ts"].as_str().unwrap().to_owned();
            let turn = attempts
                .entry(event["attempt"].as_u64().unwrap())
                .or_insert_with(|| (at.clone(), at.clone()));
            turn.1 = at;
        }
        turns.extend(attempts.into_values());
    }
    turns.sort();
    for pair in turns.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two at once: {turns:?}");
    }
    assert_eq!(listed(&client, &project).await.len(), 2);
    assert_whole(&system, &client, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_a_host_killed_in_mid_prune_finishes_it_in_another_attempt() {
    a_host_is_killed_in_mid_prune(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_a_host_killed_in_mid_prune_finishes_it_in_another_attempt() {
    if btrfs_is_available() {
        a_host_is_killed_in_mid_prune(true).await;
    }
}

async fn a_host_is_killed_in_mid_prune(btrfs: bool) {
    let (system, client) = start(btrfs).await;
    let (project, [first, second, third]) = three_backups(&system, &client, 85).await;
    let repository = StoredRepository::of(&system, &client, &project).await;
    for (round, (backup, slow)) in [(first, "*/index/*"), (second, "*/data/*")].into_iter().enumerate() {
        let before = repository.bytes().await;
        system.set_faults(&json!({ "faults": [
            { "operation": "delete", "key": slow, "action": { "delay": { "milliseconds": 20_000 } } },
        ]}));
        let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": backup })).await;
        let op_id = deleted["op"]["op_id"].as_str().unwrap().to_owned();
        // Its snapshot is gone: it is in the middle.
        wait_for("the snapshot to be gone", Duration::from_secs(60), || async {
            let snapshots = repository.snapshots().await;
            if snapshots == 2 - round { Ok(()) } else { Err(snapshots) }
        })
        .await;
        let old = system.signal(Server::HostBackup(0), Signal::KILL);
        system.clear_faults();
        system.restarted(Server::HostBackup(0), old).await;
        let op = client.ended(scope(&project), &op_id).await;
        assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(2)), "{op:#}");
        let freed = before - repository.bytes().await;
        assert!(freed > 5_500_000, "{freed} of {before} bytes are free: {op:#}");
        assert_whole(&system, &client, &project).await;
    }
    assert_eq!(listed(&client, &project).await, [third]);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_what_a_backup_that_lost_its_lease_may_count_on_stays() {
    a_backup_loses_its_lease(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_what_a_backup_that_lost_its_lease_may_count_on_stays() {
    if btrfs_is_available() {
        a_backup_loses_its_lease(true).await;
    }
}

async fn a_backup_loses_its_lease(btrfs: bool) {
    let options = SystemOptions { faults: true, environment: leases_of("15"), ..two_hosts(btrfs) };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let (project, [first, second, _]) = three_backups(&system, &client, 86).await;
    let repository = StoredRepository::of(&system, &client, &project).await;
    add_bytes(&system.project_files(0, &project), "changing.bin", 6_000_000, 8_700);
    system.set_faults(&json!({ "faults": [
        { "operation": "put", "key": "*/data/*", "action": { "delay": { "milliseconds": 5_000 } } },
    ]}));
    let backup = client.create(scope(&project), "project-backup", json!({})).await;
    client.until(scope(&project), &backup, "phase", &["upload"]).await;
    system.signal(Server::HostBackup(0), Signal::STOP);
    wait_for("the lease to be lost", Duration::from_secs(120), || async {
        let op = client.operation(scope(&project), &backup).await;
        if op["lease_losses"] == 1 { Ok(()) } else { Err(op.to_string()) }
    })
    .await;
    system.clear_faults();
    system.signal(Server::HostBackup(0), Signal::CONT);
    let op = client.ended(scope(&project), &backup).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(2)), "{op:#}");

    let before = repository.bytes().await;
    for backup in [first, second] {
        let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": backup })).await;
        let op_id = deleted["op"]["op_id"].as_str().unwrap().to_owned();
        let result = client.result(scope(&project), &op_id).await;
        assert_eq!((&result["forgotten"], &result["bytes_freed"]), (&json!(1), &json!(0)), "{result:#}");
        let left = repository.bytes().await;
        assert!(left >= before, "{left} of {before} bytes are left");
        let events = client.call(scope(&project), "lro.events", json!({ "op_id": op_id })).await;
        assert!(events.to_string().contains("may still be writing"), "{events:#}");
        assert_whole(&system, &client, &project).await;
    }
    assert_eq!(listed(&client, &project).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_listings_that_miss_something_and_deletions_that_lie_cost_no_backup_anything() {
    a_prune_is_lied_to(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_s3_listings_that_miss_something_and_deletions_that_lie_cost_no_backup_anything() {
    if btrfs_is_available() {
        a_prune_is_lied_to(true).await;
    }
}

async fn a_prune_is_lied_to(btrfs: bool) {
    let (system, client) = start(btrfs).await;
    let (project, [first, _, third]) = three_backups(&system, &client, 86).await;
    let repository = StoredRepository::of(&system, &client, &project).await;
    let index = repository.indexes().await.remove(0);
    for key in [format!("*/snapshots/{}", third.as_str().unwrap()), format!("*/index/{index}")] {
        let before = repository.bytes().await;
        system.set_faults(
            &json!({ "faults": [{ "operation": "list", "key": key, "action": "omit_from_listing" }] }),
        );
        let op_id = client.create(scope(&project), "repo-prune", json!({})).await;
        let op = client.ended(scope(&project), &op_id).await;
        system.clear_faults();
        assert_eq!(
            (&op["status"], &op["error"]["code"]),
            (&json!("failed"), &json!("repository_damaged")),
            "{op:#}"
        );
        assert_eq!(repository.bytes().await, before, "nothing was deleted");
        assert_whole(&system, &client, &project).await;
    }
    system.set_faults(
        &json!({ "faults": [{ "operation": "delete", "key": "*/data/*", "action": "pretend_deletion" }] }),
    );
    let deleted = client.call(scope(&project), "backup.delete", json!({ "backup_id": first })).await;
    let op_id = deleted["op"]["op_id"].as_str().unwrap();
    // It is tried again until the object store does what it says.
    wait_for("a second attempt", Duration::from_secs(120), || async {
        let op = client.operation(scope(&project), op_id).await;
        if op["attempt"].as_u64() >= Some(2) { Ok(()) } else { Err(op) }
    })
    .await;
    system.clear_faults();
    let result = client.result(scope(&project), op_id).await;
    assert_eq!(result["bytes_after"], repository.bytes().await);
    assert_whole(&system, &client, &project).await;
}
