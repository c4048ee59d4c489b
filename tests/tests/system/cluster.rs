//! NATS in a cluster of three: any one server may die, under load, and nobody notices but by a moment's delay.

use std::time::Duration;

use domain_model::OperationStatus;
use futures::future::join_all;
use serde_json::{Value, json};
use test_harness::{Server, SystemOptions, TestSystem, watch_to_the_end};

/// Operations at the same time; together they work for longer than the three crashes take.
const OPERATIONS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn one_server_of_three_after_the_other_dies_and_no_operation_and_no_watcher_is_lost() {
    let options = SystemOptions { nats_replicas: 3, test_kinds: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let operator = system.operator().await;
    let subject = "$JS.API.STREAM.INFO.LRO".to_owned();
    let stream = operator.bus().request_raw(subject, None, "".into(), Duration::from_secs(10)).await.unwrap();
    let stream: Value = serde_json::from_slice(&stream.payload).unwrap();
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
        // It catches up before the next one dies: two of three are needed.
        tokio::time::sleep(Duration::from_secs(3)).await;
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
