//! Backups that nobody asks for: what has changed is backed up again when its time comes, and nothing else.

use std::time::Duration;

use serde_json::{Value, json};
use test_harness::{
    Client, ObjectStoreKind, Server, SystemOptions, TestSystem, btrfs_is_available, wait_for,
};

use crate::measures::of_registry;
use crate::scope;

/// Long enough for many periods of the tests, and for btrfs to commit.
const PATIENCE: Duration = Duration::from_secs(180);

async fn start(btrfs: bool, every_s: &str) -> TestSystem {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let environment = vec![
        set("LONGHAUL_REGISTRY__BACKUPS__EVERY_S", every_s),
        set("LONGHAUL_SCHEDULER__BACKUPS__LOOK_EVERY_S", "0.2"),
        set("LONGHAUL_HOST_BACKUP__HOST__LOOK_FOR_CHANGES_EVERY_S", "0.2"),
    ];
    let object_store = if btrfs { ObjectStoreKind::S3 } else { ObjectStoreKind::Local };
    let options = SystemOptions { btrfs, object_store, environment, ..SystemOptions::default() };
    TestSystem::start(options).await.unwrap()
}

async fn status(client: &Client, project: &str) -> Value {
    client.call(scope(project), "project.status", json!({})).await
}

async fn backups(client: &Client, project: &str) -> Vec<Value> {
    let list = client.call(scope(project), "backup.list", json!({})).await;
    list["backups"].as_array().unwrap().clone()
}

async fn until_backed_up(client: &Client, project: &str, times: usize) -> Vec<Value> {
    wait_for(&format!("{times} backups"), PATIENCE, async || {
        let backups = backups(client, project).await;
        if backups.len() >= times { Ok(backups) } else { Err(format!("{backups:?}")) }
    })
    .await
}

async fn until_saved(client: &Client, project: &str, saved: bool) -> Value {
    wait_for(&format!("the project to be saved: {saved}"), PATIENCE, async || {
        let status = status(client, project).await;
        if status["changed_since_backup"] == !saved { Ok(status) } else { Err(format!("{status:#}")) }
    })
    .await
}

/// Until the scheduler has looked at a project twice more.
async fn until_looked_at(client: &Client, project: &str) {
    for _ in 0..2 {
        let before = status(client, project).await["next_backup_at"].clone();
        wait_for("the scheduler to look again", PATIENCE, async || {
            let now = status(client, project).await["next_backup_at"].clone();
            if now != before { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    }
}

async fn what_has_changed_is_backed_up(btrfs: bool) {
    let mut system = start(btrfs, "4").await;
    let client = system.operator().await;
    let without_files = client.create_project(system.host(0)).await;
    let project = client.create_project_with_files(&system, 3).await;

    let first = until_backed_up(&client, &project, 1).await;
    let op = client.operation(scope(&project), first[0]["op_id"].as_str().unwrap()).await;
    assert_eq!(op["created_by"], "scheduler");
    assert_eq!(op["dedupe_key"], "schedule");
    assert!(op["priority"].as_i64() <= Some(0), "{op:#}");
    let saved = until_saved(&client, &project, true).await;
    assert_eq!(
        (&saved["at_risk"], &saved["at_risk_reason"], &saved["at_risk_s"]),
        (&json!(false), &Value::Null, &json!(0.0))
    );
    assert_eq!(saved["backup_policy"], json!({ "enabled": true, "every_s": 4 }));

    // Looked at again and again, and left alone.
    let count = backups(&client, &project).await.len();
    until_looked_at(&client, &project).await;
    assert_eq!(backups(&client, &project).await.len(), count);

    std::fs::write(system.persist_store(0, &project).join("later"), "later").unwrap();
    let backups_now = until_backed_up(&client, &project, count + 1).await;
    assert_eq!(backups_now[0]["parent"], backups_now[1]["backup_id"]);
    until_saved(&client, &project, true).await;

    // An edit that the host cannot see.
    let count = backups(&client, &project).await.len();
    let touched = client.call(scope(&project), "project.touch", json!({})).await;
    assert!(touched["project"]["last_edited"].is_string());
    until_backed_up(&client, &project, count + 1).await;

    // Not by itself any more; by hand all the same.
    let policy = json!({ "backup_policy": { "enabled": false } });
    client.call(scope(&project), "project.update", policy).await;
    until_saved(&client, &project, true).await;
    let count = backups(&client, &project).await.len();
    std::fs::write(system.project_files(0, &project).join("unwatched"), "unwatched").unwrap();
    let at_risk = until_saved(&client, &project, false).await;
    assert_eq!((&at_risk["at_risk"], &at_risk["next_backup_at"]), (&json!(true), &Value::Null));
    assert!(at_risk["at_risk_reason"].as_str().unwrap().contains("changed since"), "{at_risk:#}");
    assert!(at_risk["at_risk_s"].as_f64() >= Some(0.0), "{at_risk:#}");
    until_looked_at(&client, &without_files).await;
    assert_eq!(backups(&client, &project).await.len(), count);
    client.done(&project, "project-backup", json!({})).await;
    until_saved(&client, &project, true).await;

    // What has no files is no backup that fails.
    let none = status(&client, &without_files).await;
    assert_eq!(none["at_risk_reason"], "it has never been backed up");
    let ops = client.call(scope(&without_files), "lro.list", json!({})).await;
    assert_eq!(ops["ops"], json!([]));
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_directories_what_has_changed_is_backed_up_when_its_time_comes() {
    what_has_changed_is_backed_up(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_into_s3_what_has_changed_is_backed_up_when_its_time_comes() {
    if btrfs_is_available() {
        what_has_changed_is_backed_up(true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_fails_is_asked_for_again() {
    let mut system = start(false, "4").await;
    let client = system.operator().await;
    let project = client.create_project(system.host(0)).await;
    // Named as edited, without a file on its host: its backups fail for good.
    client.call(scope(&project), "project.touch", json!({})).await;
    let ops = wait_for("two failed backups", PATIENCE, async || {
        let list = client.call(scope(&project), "lro.list", json!({ "status": "failed" })).await;
        let ops = list["ops"].as_array().unwrap().clone();
        if ops.len() >= 2 { Ok(ops) } else { Err(list.to_string()) }
    })
    .await;
    assert!(ops.iter().all(|op| op["error"]["code"] == "not_found"), "{ops:?}");
    // A worker that is faster than the word of the miss leaves no room for it.
    wait_for("the events of one of them to tell of the one before", PATIENCE, async || {
        let list = client.call(scope(&project), "lro.list", json!({})).await;
        for op in list["ops"].as_array().unwrap() {
            let events = client.events(scope(&project), op["op_id"].as_str().unwrap()).await;
            if events.iter().any(|event| event["message"].to_string().contains("did not come about")) {
                return Ok(());
            }
        }
        Err(list.to_string())
    })
    .await;
    assert!(of_registry(&system, "longhaul_backups_missed_total").await >= 1.0);
    let status = status(&client, &project).await;
    assert_eq!((&status["at_risk"], &status["last_backup_at"]), (&json!(true), &Value::Null));
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_waits_for_its_host_is_missed_loudly_and_goes_ahead() {
    let mut system = start(false, "4").await;
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 4).await;
    until_backed_up(&client, &project, 1).await;
    let count = backups(&client, &project).await.len();
    system.hold_restarts();
    let host = system.kill_nine(Server::HostBackup(0));
    client.call(scope(&project), "project.touch", json!({})).await;
    let missed = wait_for("a backup that waits to be missed", PATIENCE, async || {
        let list = client.call(scope(&project), "lro.list", json!({ "status": "queued" })).await;
        let urged = list["ops"].as_array().unwrap().iter().find(|op| op["priority"] == 0).cloned();
        urged.ok_or_else(|| list.to_string())
    })
    .await;
    let op_id = missed["op_id"].as_str().unwrap();
    assert_eq!((&missed["kind"], &missed["created_by"]), (&json!("project-backup"), &json!("scheduler")));
    wait_for("its events to tell of it", PATIENCE, async || {
        let events = client.events(scope(&project), op_id).await;
        let told = events
            .iter()
            .any(|event| event["level"] == "warn" && event["message"].to_string().contains("missed"));
        if told { Ok(()) } else { Err(format!("{events:#?}")) }
    })
    .await;
    assert!(of_registry(&system, "longhaul_backups_missed_total").await >= 1.0);
    system.allow_restarts();
    system.restarted(Server::HostBackup(0), host).await;
    until_backed_up(&client, &project, count + 1).await;
    until_saved(&client, &project, true).await;

    // Measured every minute, and when a registry begins.
    let measured = async |is_saved: bool| {
        let old = system.kill_nine(Server::Registry);
        system.restarted(Server::Registry, old).await;
        wait_for("what is not saved to be measured", PATIENCE, async || {
            let projects = of_registry(&system, "longhaul_unsaved_projects").await;
            let for_s = of_registry(&system, "longhaul_unsaved_seconds").await;
            let is_right = if is_saved { projects == 0.0 } else { projects == 1.0 && for_s >= 1.0 };
            if is_right { Ok(()) } else { Err(format!("{projects} projects, for {for_s} s")) }
        })
        .await;
    };
    let policy = json!({ "backup_policy": { "enabled": false } });
    client.call(scope(&project), "project.update", policy).await;
    measured(true).await;
    client.call(scope(&project), "project.touch", json!({})).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    measured(false).await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_refused_where_it_makes_no_sense_and_read_from_account_and_fleet() {
    let system = crate::system().await;
    let client = system.operator().await;
    let account = client.call("hub", "account.create", json!({ "name": "eve" })).await;
    let account = format!("account-{}", account["account"]["id"].as_str().unwrap());
    let owner = account.trim_start_matches("account-");
    let create = json!({ "title": "Algebra", "host_id": system.host(0), "account_id": owner });
    let project = client.call("hub", "project.create", create).await;
    let project = project["project"]["id"].as_str().unwrap().to_owned();

    let of_account = json!({ "backup_policy": { "every_s": 172_800, "window": "23:00-05:00" } });
    let updated = client.call(&account, "account.update", of_account).await;
    assert_eq!(updated["account"]["backup_policy"]["window"], "23:00-05:00");
    let own = json!({ "title": "Linear algebra", "backup_policy": { "every_s": 86_400 } });
    let updated = client.call(scope(&project), "project.update", own).await;
    assert_eq!(updated["project"]["title"], "Linear algebra");
    let status = status(&client, &project).await;
    assert_eq!(
        status["backup_policy"],
        json!({ "enabled": true, "every_s": 86_400, "window": "23:00-05:00" })
    );

    for policy in [
        json!({ "every_s": 3599 }),
        json!({ "window": "25:00-26:00" }),
        json!({ "window": "noon" }),
        json!({ "every": 3600 }),
    ] {
        let refused = json!({ "backup_policy": policy });
        assert_eq!(client.refused(scope(&project), "project.update", refused.clone()).await.status, 400);
        assert_eq!(client.refused(&account, "account.update", refused).await.status, 400);
    }
    let nobody = "project-5b0a2f0e-3b9d-4f0e-8a51-0c3f5f1f9e77";
    for endpoint in ["project.update", "project.touch", "project.status"] {
        assert_eq!(client.refused(nobody, endpoint, json!({})).await.status, 404);
    }

    // What an account may not decide by itself.
    let token = client.call(&account, "account.create_token", json!({})).await;
    let eve = system.token_holder(owner, token["token"].as_str().unwrap()).await.unwrap();
    let refused = eve.refused(&account, "account.update", json!({ "backup_policy": {} })).await;
    assert_eq!(refused.status, 403);
    eve.call(scope(&project), "project.touch", json!({})).await;
}
