//! What an operator measures: every service tells at `/metrics` what it does, and at `/healthz` whether it can.

use std::time::Duration;

use bus_messages::Encoding;
use serde_json::{Value, json};
use test_harness::{SystemOptions, TestSystem, wait_for};

use crate::system;

#[tokio::test(flavor = "multi_thread")]
async fn every_service_is_healthy_and_can_be_measured() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 0.1 })).await;
    client.result("hub", &op_id).await;
    for name in
        ["registry", "scheduler", "host-backup-0", "host-backup-1", "copy-applier-0", "copy-applier-1"]
    {
        let metrics = system.http_get(name, "/metrics").await.unwrap();
        assert!(metrics.starts_with("HTTP/1.1 200 ") && metrics.contains("# TYPE "), "{name}: {metrics}");
        let health = system.http_get(name, "/healthz").await.unwrap();
        assert!(health.starts_with("HTTP/1.1 200 "), "{name}: {health}");
        if name == "registry" {
            assert!(metrics.contains(r#"kind="test-sleep""#), "{metrics}");
        }
    }
}

/// What the registry counts or measures.
pub(crate) async fn of_registry(system: &TestSystem, name: &str) -> f64 {
    system.metrics("registry").await.unwrap().value(name, &[])
}

/// Requests and errors of an endpoint, as `nats micro stats registry` shows them.
fn counted(stats: &Value, endpoint: &str) -> (u64, u64) {
    let endpoints = stats["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|found| found["name"] == endpoint).unwrap();
    (endpoint["num_requests"].as_u64().unwrap(), endpoint["num_errors"].as_u64().unwrap())
}

/// The only worker is this test, and so it knows what has to be counted.
#[tokio::test(flavor = "multi_thread")]
async fn everything_that_happens_to_operations_is_counted_and_nats_micro_stats_agrees() {
    let set = |name: &str, value: &str| (format!("LONGHAUL_{name}"), value.to_owned());
    let environment = vec![
        set("SCHEDULER__WORK__TEST_SLEEPS", "0"),
        set("REGISTRY__OPERATIONS__LEASE_S", "3"),
        set("REGISTRY__OPERATIONS__SWEEP_S", "0.5"),
    ];
    let options = SystemOptions { test_kinds: true, environment, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let identity = system.hub_identity("scheduler").unwrap();
    let bus = system.connect_as(identity).await.bus().clone();
    let work = |verb: &str, request: Value| {
        let (bus, subject) = (bus.clone(), format!("work.v1.hub.{verb}"));
        async move {
            let answer: Result<Value, _> =
                bus.request(subject, &request, Encoding::MessagePack, Duration::from_secs(10)).await;
            answer.unwrap()
        }
    };
    let claim = || work("claim", json!({ "worker_id": "a test", "kinds": { "test-sleep": 1 }, "max": 1 }));
    let claimed = || async {
        let lease = claim().await["leases"][0].take();
        json!({ "op_id": lease["op"]["op_id"], "attempt": lease["attempt"], "lease_id": lease["lease_id"] })
    };
    let finish = |fence: &Value, end: Value| {
        let mut finish = fence.clone();
        finish.as_object_mut().unwrap().extend(end.as_object().unwrap().clone());
        work("finish", finish)
    };

    let sleep = || client.create("hub", "test-sleep", json!({ "seconds": 1 }));
    for _ in 0..2 {
        sleep().await;
    }
    client.refused("hub", "lro.create", json!({ "kind": "test-sleep", "input": { "seconds": -1 } })).await;
    // One is failed, to be tried again; of the other the lease is not renewed.
    let (failed, silent) = (claimed().await, claimed().await);
    let error = json!({ "code": "test", "message": "as asked", "retryable": true });
    assert_eq!(finish(&failed, json!({ "outcome": "failed", "error": error })).await["ok"], json!(true));
    let lost = silent["op_id"].as_str().unwrap().to_owned();
    wait_for("the lease to be over", Duration::from_secs(30), || async {
        let op = client.operation("hub", &lost).await;
        if op["lease_losses"] == json!(1) { Ok(()) } else { Err(op.to_string()) }
    })
    .await;
    let end = json!({ "outcome": "succeeded", "result": { "steps": 1, "attempt": 1 } });
    assert_eq!(finish(&silent, end).await["lost"], json!(true), "its lease is over");
    // These end without another attempt.
    for op in [&failed, &silent] {
        client.call("hub", "lro.cancel", json!({ "op_id": op["op_id"] })).await;
    }
    // One is to stop, still runs and tells of it; one waits for its children, and three for their turn.
    sleep().await;
    let parent = claimed().await;
    sleep().await;
    let mut running = claimed().await;
    let child =
        |key: &str| json!({ "key": key, "scope": "hub", "kind": "test-sleep", "input": { "seconds": 1 } });
    let waiting = json!({ "outcome": "waits_for_children", "children": [child("a"), child("b")] });
    for _ in 0..2 {
        // What is repeated is not counted again.
        assert_eq!(finish(&parent, waiting.clone()).await["ok"], json!(true));
    }
    client.call("hub", "lro.cancel", json!({ "op_id": running["op_id"] })).await;
    let waits = client.create("hub", "test-sleep", json!({ "seconds": 1 })).await;
    let events: Vec<Value> = (1..=3)
        .map(|n| {
            json!({ "op_id": running["op_id"], "attempt": 1, "n": n, "ts": "2026-11-21T07:38:27.123Z",
                    "phase": "sleep", "message": "an event" })
        })
        .collect();
    running["events"] = json!(events);

    let kind = r#"kind="test-sleep""#;
    // Gauges are measured now and then.
    let metrics = wait_for("what is running and queued to be measured", Duration::from_secs(60), || async {
        // This renews its lease.
        work("progress", json!({ "worker_id": "a test", "ops": [running] })).await;
        let metrics = system.metrics("registry").await.unwrap();
        let number = |status: &str| metrics.value("longhaul_operations", &[kind, status, r#"routing="hub""#]);
        let age = metrics.value("longhaul_oldest_queued_seconds", &[kind, r#"routing="hub""#]);
        let is_told = ["longhaul_outbox_lag_seconds", "longhaul_outbox_entries"]
            .iter()
            .all(|name| metrics.find(name, &[]).is_some());
        let numbers = ["running", "queued", "waiting"].map(|status| number(&format!("status=\"{status}\"")));
        match (numbers, age >= 1.0, is_told) {
            ([1.0, 3.0, 1.0], true, true) => Ok(metrics),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(client.operation("hub", &waits).await["status"], "queued");
    let children = 2.0;
    assert_eq!(metrics.value("longhaul_operations_created_total", &[kind]), 5.0 + children);
    assert_eq!(metrics.value("longhaul_operations_claimed_total", &[kind]), 4.0);
    let ended = |labels: &[&str]| metrics.value("longhaul_attempts_ended_total", labels);
    assert_eq!(ended(&[kind, r#"status="queued""#]), 2.0, "{metrics}");
    assert_eq!(ended(&[kind, r#"status="waiting""#]), 1.0, "{metrics}");
    assert_eq!(ended(&[kind]), 3.0, "to ask for an end is none, and who is queued has no attempt: {metrics}");
    assert_eq!(metrics.value("longhaul_retries_total", &[kind]), 1.0, "nothing else has failed");
    assert_eq!(metrics.value("longhaul_lease_losses_total", &[]), 1.0);
    assert_eq!(metrics.value("longhaul_refused_writes_total", &[]), 1.0);
    assert!(metrics.value("longhaul_events_total", &[]) >= 3.0);
    assert_eq!(metrics.value("longhaul_claim_seconds_count", &[]), 4.0, "claims that gave a lease");

    let subject = "$SRV.STATS.registry".to_owned();
    let stats = client.bus().request_raw(subject, None, "".into(), Duration::from_secs(10)).await.unwrap();
    let stats: Value = serde_json::from_slice(&stats.payload).unwrap();
    let (creates, refused) = counted(&stats, "lro-create");
    let created = metrics.value("longhaul_operations_created_total", &[kind]);
    assert_eq!((refused, (creates - refused) as f64), (1, created - children));
    assert_eq!(counted(&stats, "work-finish"), (4, 0), "a lost lease is an answer, no error");
    let (claims, _) = counted(&stats, "work-claim");
    assert!(claims as f64 >= metrics.value("longhaul_operations_claimed_total", &[]), "{claims}");
}
