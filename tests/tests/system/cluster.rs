//! NATS in a cluster of three: any one server may die, under load, and nobody notices but by a moment's delay.

use std::time::Duration;

use domain_model::OperationStatus;
use futures::future::join_all;
use serde_json::{Value, json};
use test_harness::{Client, Server, SystemOptions, TestSystem, wait_for, watch_to_the_end};

/// Operations at the same time; together they work for longer than the three crashes take.
const OPERATIONS: usize = 60;

const PATIENCE: Duration = Duration::from_secs(60);

async fn stream_info(operator: &Client) -> Result<Value, String> {
    let subject = "$JS.API.STREAM.INFO.LRO".to_owned();
    let answer = operator.bus().request_raw(subject, None, "".into(), Duration::from_secs(10)).await;
    serde_json::from_slice(&answer.map_err(|error| error.to_string())?.payload)
        .map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_of_three_after_the_other_dies_and_no_operation_and_no_watcher_is_lost() {
    let options = SystemOptions { nats_replicas: 3, test_kinds: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let operator = system.operator().await;
    let stream = stream_info(&operator).await.unwrap();
    assert_eq!(stream["config"]["num_replicas"], 3, "{stream:#}");

    let mut op_ids = Vec::new();
    for _ in 0..OPERATIONS {
        op_ids.push(operator.create("hub", "test-sleep", json!({ "seconds": 20, "steps": 20 })).await);
    }
    let watchers = op_ids.iter().map(|op_id| {
        let (bus, subject) = (operator.bus().clone(), format!("persist.hub.lro.{op_id}"));
        tokio::spawn(async move { watch_to_the_end(&bus, &subject).await })
    });
    let watchers: Vec<_> = watchers.collect();
    for number in 1..=3 {
        let old = system.kill_nine(Server::NatsMember(number));
        system.restarted(Server::NatsMember(number), old).await;
        // Before the next one dies, it has what the others have: two of three are needed.
        wait_for("all replicas to be current", PATIENCE, || async {
            let info = stream_info(&operator).await?;
            let replicas = info["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
            let current = replicas.iter().filter(|replica| replica["current"] == true).count();
            if current == 2 { Ok(()) } else { Err(info["cluster"].to_string()) }
        })
        .await;
        let later = operator.create("hub", "test-sleep", json!({ "seconds": 0 })).await;
        op_ids.push(later);
    }
    for watcher in join_all(watchers).await {
        watcher.unwrap().assert_complete(OperationStatus::Succeeded);
    }
    for op_id in &op_ids {
        assert_eq!(operator.ended("hub", op_id).await["status"], "succeeded");
    }
}
