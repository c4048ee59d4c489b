//! A worker's turns: what has ended, and what is begun instead, in one message.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_messages::{ClaimReply, ClaimRequest, Encoding, FinishRequest, Lease};
use serde_json::json;
use test_harness::{SystemOptions, TestSystem};

const PATIENCE: Duration = Duration::from_secs(60);
const CAP: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_makes_place_under_a_cap_for_what_is_claimed_with_it() {
    let environment = vec![
        ("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), "0".to_owned()),
        ("LONGHAUL_REGISTRY__OPERATIONS__CAPS__TEST-SLEEP__PER_HOST".to_owned(), CAP.to_string()),
    ];
    let options = SystemOptions { test_kinds: true, environment, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let bus = system.connect_as(system.hub_identity("scheduler").unwrap()).await.bus().clone();
    for _ in 0..4 * CAP {
        client.create("hub", "test-sleep", json!({ "seconds": 0 })).await;
    }
    let mut held: Vec<Lease> = Vec::new();
    // More slots than the cap allows, so that only what ends makes place: one end goes before the claim, many beside it.
    for ends in [0, 1, CAP, 1] {
        let request = ClaimRequest {
            worker_id: "a test".to_owned(),
            kinds: BTreeMap::from([("test-sleep".parse().unwrap(), 2 * CAP as u32)]),
            max: 2 * CAP as u32,
            finished: held.drain(..ends).map(|lease| success_of(&lease)).collect(),
        };
        let subject = "work.v1.hub.claim".to_owned();
        let answer: ClaimReply =
            bus.request(subject, &request, Encoding::MessagePack, PATIENCE).await.unwrap();
        assert!(answer.finished.len() == ends && answer.finished.iter().all(|told| told.ok), "{answer:#?}");
        held.extend(answer.leases);
        assert_eq!(held.len(), CAP, "after {ends} ends");
    }
}

fn success_of(lease: &Lease) -> FinishRequest {
    let request = json!({
        "op_id": lease.op.op_id, "attempt": lease.attempt, "lease_id": lease.lease_id,
        "outcome": "succeeded", "result": { "steps": 1, "attempt": lease.attempt }
    });
    serde_json::from_value(request).unwrap()
}
