//! Stopping and starting the whole system, and losing the stream: no data is lost.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use test_harness::{Client, ObjectStoreKind, Server, SystemOptions, TestSystem, wait_for, watch_to_the_end};

use crate::{assert_same_tree, scope};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_and_a_start_everything_is_there() {
    let options = SystemOptions {
        hosts: 2,
        object_store: ObjectStoreKind::S3,
        faults: true,
        test_kinds: true,
        ..SystemOptions::default()
    };
    let mut system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 71).await;
    let backup = client.done(&project, "project-backup", json!({})).await;
    let hosts = system.ready().hosts.iter().map(|host| host.id).collect::<Vec<_>>();
    let before = client.call(scope(&project), "project.get", json!({})).await;
    // One operation in its middle, which is handed back, and one that has not begun.
    let running = client.create("hub", "test-sleep", json!({ "seconds": 8, "steps": 80 })).await;
    client.until("hub", &running, "status", &["running"]).await;
    let later = json!({ "kind": "project-backup", "not_before": "2100-01-01T00:00:00.000Z" });
    let later = client.call(scope(&project), "lro.create", later).await["op"]["op_id"].clone();

    client.bus().drain().await;
    system.stop().await.unwrap();
    system.start_again().await.unwrap();

    let client = system.operator().await;
    assert_eq!(system.ready().hosts.iter().map(|host| host.id).collect::<Vec<_>>(), hosts);
    let after = client.call(scope(&project), "project.get", json!({})).await;
    assert_eq!(after, before);
    let op = client.operation(scope(&project), later.as_str().unwrap()).await;
    assert_eq!(op["status"], "queued");
    let ended = client.ended("hub", &running).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    let restore = json!({ "backup_id": backup["backup_id"], "host_id": system.host(1) });
    client.done(&project, "project-restore", restore).await;
    assert_same_tree(&system.project_files(0, &project), &system.project_files(1, &project));
    let again = client.done(&project, "project-backup", json!({})).await;
    assert_eq!(again["parent"], backup["backup_id"]);
}

async fn summary(client: &Client, scope: &str, op_id: &str) -> Option<Value> {
    let subject = format!("persist.{scope}.lro.{op_id}.state");
    let last = client.bus().operation_stream().last(&subject).await.ok()??;
    serde_json::from_slice(&last.payload).ok()
}

/// Kills nats-server, does something to the directory of its streams, and has it started again.
async fn while_nats_is_down(system: &TestSystem, change: impl FnOnce(&Path)) {
    system.hold_restarts();
    let old = system.kill_nine(Server::Nats);
    system.gone(Server::Nats, old).await;
    change(&system.data_directory().join("nats/jetstream"));
    system.allow_restarts();
    system.restarted(Server::Nats, old).await;
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success(), "copy {} to {}", from.display(), to.display());
}

async fn until_told(client: &Client, op_id: &str) {
    wait_for("the summary of an end", Duration::from_secs(120), || async {
        match summary(client, "hub", op_id).await {
            Some(state) if state["status"] == "succeeded" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_loses_with_the_power_is_told_again() {
    let options = SystemOptions { test_kinds: true, ..SystemOptions::default() };
    let mut system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let synced = client.create("hub", "test-sleep", json!({ "seconds": 0.1 })).await;
    until_told(&client, &synced).await;
    let on_the_disk = system.scratch("jetstream-on-the-disk");
    while_nats_is_down(&system, |streams| copy(streams, &on_the_disk)).await;
    wait_for("the registry to answer again", Duration::from_secs(60), || async {
        client.ask("hub", "lro.list", &json!({})).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let mut lost = Vec::new();
    for _ in 0..3 {
        let op_id = client.create("hub", "test-sleep", json!({ "seconds": 0.1 })).await;
        until_told(&client, &op_id).await;
        lost.push(op_id);
    }

    // The registry goes on while nats-server comes back with less.
    while_nats_is_down(&system, |streams| copy(&on_the_disk, streams)).await;
    for op_id in &lost {
        until_told(&client, op_id).await;
    }

    // All of the machine went.
    client.bus().drain().await;
    system.stop().await.unwrap();
    copy(&on_the_disk, &system.data_directory().join("nats/jetstream"));
    system.start_again().await.unwrap();
    let client = system.operator().await;
    for op_id in &lost {
        until_told(&client, op_id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_stream_was_lost_its_summaries_are_written_anew() {
    let options = SystemOptions { test_kinds: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let mut ended = Vec::new();
    for _ in 0..3 {
        let op_id = client.create("hub", "test-sleep", json!({ "seconds": 0.1 })).await;
        client.result("hub", &op_id).await;
        ended.push(op_id);
    }
    let running = client.create("hub", "test-sleep", json!({ "seconds": 40, "steps": 200 })).await;
    client.until("hub", &running, "status", &["running"]).await;

    while_nats_is_down(&system, |streams| fs::remove_dir_all(streams).unwrap()).await;
    for op_id in ended.iter().chain([&running]) {
        wait_for("a summary to be written anew", Duration::from_secs(120), || async {
            match summary(&client, "hub", op_id).await {
                Some(state) if state["op_id"] == json!(op_id) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    // What had ended is told by its summary; what goes on is told by new events.
    let seen = watch_to_the_end(client.bus(), &format!("persist.hub.lro.{}", ended[0])).await;
    assert_eq!(seen.states.last().unwrap().status, domain_model::OperationStatus::Succeeded);
    client.call("hub", "lro.cancel", json!({ "op_id": running })).await;
    assert_eq!(client.ended("hub", &running).await["status"], "canceled");
    let result = client.create("hub", "test-sleep", json!({ "seconds": 0.1 })).await;
    client.result("hub", &result).await;
}
