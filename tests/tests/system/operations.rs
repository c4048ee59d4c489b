//! What anybody can do with an operation, whatever its kind: tried with `test-sleep`.

use std::time::{Duration, Instant};

use domain_model::OperationStatus;
use serde_json::{Value, json};
use test_harness::{Client, wait_for, watch_to_the_end};

use crate::{scope, system};

fn sleep(seconds: f64) -> Value {
    json!({ "kind": "test-sleep", "input": { "seconds": seconds, "steps": 4 } })
}

/// A request for a `test-sleep` with more fields.
fn with(mut request: Value, more: &Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn id(created: &Value) -> String {
    created["op"]["op_id"].as_str().unwrap().to_owned()
}

async fn create(client: &Client, request: Value) -> String {
    id(&client.call("hub", "lro.create", request).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_twice_with_one_dedupe_key_makes_one_operation() {
    let system = system().await;
    let client = system.operator().await;
    let request = with(sleep(60.0), &json!({ "dedupe_key": "asked-twice" }));
    let first = client.call("hub", "lro.create", request.clone()).await;
    let second = client.call("hub", "lro.create", request.clone()).await;
    assert_eq!((&first["created"], &second["created"]), (&json!(true), &json!(false)));
    assert_eq!((id(&first), &first["subject"]), (id(&second), &second["subject"]));

    let other = with(sleep(61.0), &json!({ "dedupe_key": "asked-twice" }));
    let refusal = client.refused("hub", "lro.create", other.clone()).await;
    assert_eq!(
        (refusal.status, serde_json::to_value(refusal.code).unwrap()),
        (409, json!("dedupe_mismatch"))
    );
    assert_eq!(refusal.details["op_id"], json!(id(&first)));

    // `force` takes the key over, and the one that had it is canceled.
    let forced = client.call("hub", "lro.create", with(other, &json!({ "force": true }))).await;
    assert_eq!(forced["created"], true);
    assert_ne!(id(&forced), id(&first));
    assert_eq!(client.ended("hub", &id(&first)).await["status"], "canceled");
    let active = client.operation("hub", &id(&forced)).await;
    assert_eq!(active["dedupe_key"], "asked-twice");

    // Once the active one has ended, the key is free.
    client.call("hub", "lro.cancel", json!({ "op_id": id(&forced) })).await;
    client.ended("hub", &id(&forced)).await;
    let again = client.call("hub", "lro.create", request).await;
    assert_eq!(again["created"], true);
    client.call("hub", "lro.cancel", json!({ "op_id": id(&again) })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_with_one_dedupe_key_make_one_operation() {
    let system = system().await;
    let client = system.operator().await;
    let request = with(sleep(30.0), &json!({ "dedupe_key": "asked-by-many" }));
    let asking = (0..20).map(|_| client.call("hub", "lro.create", request.clone()));
    let replies = futures::future::join_all(asking).await;
    assert_eq!(replies.iter().filter(|reply| reply["created"] == true).count(), 1);
    assert!(replies.iter().all(|reply| id(reply) == id(&replies[0])));
    client.call("hub", "lro.cancel", json!({ "op_id": id(&replies[0]) })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_operation_is_canceled_at_once_and_canceling_again_changes_nothing() {
    let system = system().await;
    let client = system.operator().await;
    let request = with(sleep(1.0), &json!({ "not_before": "2100-01-01T00:00:00.000Z", "ttl_s": 3600 }));
    let op_id = create(&client, request).await;
    let canceled = client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(canceled["op"]["status"], "canceled");
    let again = client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(again["op"], canceled["op"]);
    let seen = watch_to_the_end(client.bus(), &format!("persist.hub.lro.{op_id}")).await;
    seen.assert_complete(OperationStatus::Canceled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_operation_is_told_to_stop_within_two_seconds() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = create(&client, sleep(120.0)).await;
    client.until("hub", &op_id, "status", &["running"]).await;
    let asked = Instant::now();
    let reply = client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    assert!(reply["op"]["cancel_requested_at"].is_string(), "{reply:#}");
    let op = client.ended("hub", &op_id).await;
    let took = asked.elapsed();
    assert_eq!(op["status"], "canceled");
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    let again = client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!((&again["op"]["status"], &again["op"]["rev"]), (&op["status"], &op["rev"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_returns_at_the_end_or_when_its_time_is_over() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = create(&client, sleep(2.0)).await;
    let began = Instant::now();
    let early = client.call("hub", "lro.wait", json!({ "op_id": op_id, "timeout_s": 0.3 })).await;
    assert_eq!(early["done"], false);
    assert!(began.elapsed() >= Duration::from_millis(250));
    let done = client.call("hub", "lro.wait", json!({ "op_id": op_id, "timeout_s": 30 })).await;
    assert_eq!((&done["done"], &done["op"]["status"]), (&json!(true), &json!("succeeded")));
    assert_eq!(done["op"]["result"], json!({ "steps": 4, "attempt": 1 }));
    assert!(began.elapsed() < Duration::from_secs(15), "a wait ends with the operation");
    let refusal = client.refused("hub", "lro.wait", json!({ "op_id": op_id, "timeout_s": 31 })).await;
    assert_eq!(refusal.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_listed_page_by_page_newest_first() {
    let system = system().await;
    let client = system.operator().await;
    // Of a project of its own, so that other tests add none.
    let project = client.create_project(system.host(0)).await;
    let later = json!({ "kind": "project-backup", "not_before": "2100-01-01T00:00:00.000Z" });
    let mut created = Vec::new();
    for _ in 0..7 {
        created.push(id(&client.call(scope(&project), "lro.create", later.clone()).await));
    }
    created.reverse();
    let (mut listed, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let page = client.call(scope(&project), "lro.list", json!({ "limit": 3, "cursor": cursor })).await;
        let ops = page["ops"].as_array().unwrap();
        assert!(ops.len() <= 3);
        listed.extend(ops.iter().map(|op| op["op_id"].as_str().unwrap().to_owned()));
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(listed, created);
    client.call(scope(&project), "lro.cancel", json!({ "op_id": created[0] })).await;
    let canceled = client.call(scope(&project), "lro.list", json!({ "status": "canceled" })).await;
    assert_eq!(canceled["ops"].as_array().unwrap().len(), 1);
    let none = client.call(scope(&project), "lro.list", json!({ "kind": "project-restore" })).await;
    assert_eq!(none["ops"], json!([]));
    for op_id in &created[1..] {
        client.call(scope(&project), "lro.cancel", json!({ "op_id": op_id })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_at_a_step_ends_with_the_history_of_its_attempts() {
    let system = system().await;
    let client = system.operator().await;
    let request = json!({ "kind": "test-sleep", "input": { "seconds": 0.4, "steps": 4, "fail_at_step": 3 } });
    let op_id = create(&client, request).await;
    let watcher = watch_to_the_end(client.bus(), &format!("persist.hub.lro.{op_id}")).await;
    watcher.assert_complete(OperationStatus::Failed);
    let op = client.ended("hub", &op_id).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("failed"), &op["max_attempts"]));
    assert_eq!(op["error"]["code"], "test_failure");
    let attempts: Vec<u64> = op["error"]["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["attempt"].as_u64().unwrap())
        .collect();
    assert_eq!(attempts, [1, 2, 3], "{:#}", op["error"]);
    // Two steps are done once, by the first attempt: a checkpoint is gone on from.
    let steps = |attempt: u32| {
        let of_attempt = watcher.events.iter().filter(move |event| event.attempt == attempt);
        of_attempt.filter(|event| event.message.starts_with("step ")).count()
    };
    assert_eq!(steps(2) + steps(3), 0, "{:#?}", watcher.events);
    let queued = watcher.events.iter().filter(|event| event.phase == "queued").count();
    assert_eq!(queued, 2, "an attempt that is followed by another says so: {:#?}", watcher.events);

    // A retry goes on from the checkpoint, or from the start where that is asked for; twice is once.
    let retried = client.call("hub", "lro.retry", json!({ "op_id": op_id })).await;
    assert_eq!((&retried["created"], &retried["op"]["retry_of"]), (&json!(true), &json!(op_id)));
    let twice = client.call("hub", "lro.retry", json!({ "op_id": op_id })).await;
    assert_eq!((id(&twice), &twice["created"]), (id(&retried), &json!(false)));
    let again = client.ended("hub", &id(&retried)).await;
    assert_eq!(again["status"], "failed");
    let events = client.events("hub", &id(&retried)).await;
    assert!(
        !events.iter().any(|event| event["message"].as_str().unwrap().starts_with("step 1")),
        "{events:#?}"
    );
    let fresh = client.call("hub", "lro.retry", json!({ "op_id": op_id, "from_start": true })).await;
    client.ended("hub", &id(&fresh)).await;
    let events = client.events("hub", &id(&fresh)).await;
    assert!(
        events.iter().any(|event| event["message"].as_str().unwrap().starts_with("step 1")),
        "{events:#?}"
    );

    let running = create(&client, sleep(60.0)).await;
    let refusal = client.refused("hub", "lro.retry", json!({ "op_id": running })).await;
    assert_eq!(
        (refusal.status, serde_json::to_value(refusal.code).unwrap()),
        (412, json!("failed_precondition"))
    );
    client.call("hub", "lro.cancel", json!({ "op_id": running })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_waits_for_its_children_without_a_lease() {
    let system = system().await;
    let client = system.operator().await;
    let request = json!({ "kind": "test-sleep", "input": { "seconds": 2.0, "steps": 2, "children": 3 } });
    let op_id = create(&client, request).await;
    wait_for("the parent to wait", Duration::from_secs(60), || async {
        let op = client.operation("hub", &op_id).await;
        if op["waiting_for_children"] == true && op["lease_until"].is_null() {
            Ok(())
        } else {
            Err(format!("{op:#}"))
        }
    })
    .await;
    let result = client.result("hub", &op_id).await;
    assert_eq!(result, json!({ "steps": 2, "attempt": 2 }));
    let children = client.call("hub", "lro.list", json!({ "parent_id": op_id })).await;
    let children = children["ops"].as_array().unwrap();
    assert_eq!(children.len(), 3);
    for child in children {
        assert_eq!((&child["status"], &child["parent_id"]), (&json!("succeeded"), &json!(op_id)));
    }
    let seen = watch_to_the_end(client.bus(), &format!("persist.hub.lro.{op_id}")).await;
    seen.assert_complete(OperationStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn canceling_a_parent_cancels_its_children() {
    let system = system().await;
    let client = system.operator().await;
    let request = json!({ "kind": "test-sleep", "input": { "seconds": 300.0, "steps": 2, "children": 2 } });
    let op_id = create(&client, request).await;
    let children = wait_for("two children to run", Duration::from_secs(60), || async {
        let list = client.call("hub", "lro.list", json!({ "parent_id": op_id })).await;
        let ops = list["ops"].as_array().unwrap().clone();
        if ops.len() == 2 && ops.iter().all(|op| op["status"] == "running") {
            Ok(ops)
        } else {
            Err(format!("{ops:?}"))
        }
    })
    .await;
    client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended("hub", &op_id).await["status"], "canceled");
    for child in children {
        assert_eq!(client.ended("hub", child["op_id"].as_str().unwrap()).await["status"], "canceled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_after_a_number_are_those_that_follow_it() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = create(&client, sleep(0.4)).await;
    client.result("hub", &op_id).await;
    let seen = watch_to_the_end(client.bus(), &format!("persist.hub.lro.{op_id}")).await;
    let all = client.events("hub", &op_id).await;
    assert_eq!(all.len(), seen.events.len());
    let rest = client.call("hub", "lro.events", json!({ "op_id": op_id, "after_n": 2 })).await;
    assert_eq!(rest["events"].as_array().unwrap()[..], all[2..]);
    assert_eq!(rest["state"], client.operation("hub", &op_id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_its_time_is_over_an_operation_expires_and_goes_with_its_ring_and_summary() {
    let system = system().await;
    let client = system.operator().await;
    let stored = |op_id: String, part: &'static str| {
        let stream = client.bus().operation_stream();
        async move { stream.ring(&format!("persist.hub.lro.{op_id}.{part}")).await.unwrap().len() }
    };
    // One that nobody could start in time.
    let request = with(sleep(1.0), &json!({ "not_before": "2100-01-01T00:00:00.000Z", "ttl_s": 3600 }));
    let waiting = create(&client, request).await;
    // Its end is counted from when it may start.
    assert!(client.operation("hub", &waiting).await["expires_at"].as_str().unwrap() > "2100");
    client.call("hub", "lro.cancel", json!({ "op_id": waiting })).await;

    // One that runs for longer than it may.
    let late = create(&client, with(sleep(300.0), &json!({ "ttl_s": 3 }))).await;
    let op = client.ended("hub", &late).await;
    assert_eq!(op["status"], "expired", "{op:#}");

    // One that ended, and is deleted.
    let short = create(&client, with(sleep(0.2), &json!({ "ttl_s": 5 }))).await;
    client.result("hub", &short).await;
    assert!(stored(short.clone(), "evt").await > 0 && stored(short.clone(), "state").await > 0);
    wait_for("the operation to be deleted", Duration::from_secs(60), || async {
        match client.ask("hub", "lro.get", &json!({ "op_id": short })).await {
            Err(bus_client::RequestError::Api(error)) if error.status == 404 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    wait_for("its ring and its summary to be purged", Duration::from_secs(60), || async {
        match (stored(short.clone(), "evt").await, stored(short.clone(), "state").await) {
            (0, 0) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
}
