//! A worker, message by message: what has ended and what is begun instead in one turn, and what comes too late.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_client::{Bus, FencedPublish};
use bus_messages::kinds::DeclareKinds;
use bus_messages::{
    ClaimReply, ClaimRequest, Encoding, FinishRequest, Lease, Nothing, ProgressReply, ProgressRequest,
};
use serde_json::json;
use test_harness::{SystemOptions, TestSystem};

const PATIENCE: Duration = Duration::from_secs(60);

/// A worker in the hub, by hand.
struct Worker {
    bus: Bus,
    slots: BTreeMap<&'static str, u32>,
    held: Vec<Lease>,
}

impl Worker {
    async fn new(system: &TestSystem, slots: &[(&'static str, u32)]) -> Self {
        let bus = system.connect_as(system.hub_identity("scheduler").unwrap()).await.bus().clone();
        Self { bus, slots: BTreeMap::from_iter(slots.iter().copied()), held: Vec::new() }
    }

    /// Brings the ends of so many that it holds, and claims for every slot that is free then.
    async fn turn(&mut self, ends: usize) {
        let finished: Vec<FinishRequest> = self.held.drain(..ends).map(|lease| success_of(&lease)).collect();
        let free = |(kind, slots): (&&str, &u32)| {
            let held = self.held.iter().filter(|lease| lease.op.kind.as_str() == *kind).count();
            (kind.parse().unwrap(), slots - held as u32)
        };
        let kinds: BTreeMap<_, _> = self.slots.iter().map(free).collect();
        let request =
            ClaimRequest { worker_id: "a test".to_owned(), max: kinds.values().sum(), kinds, finished };
        let subject = "work.v1.hub.claim".to_owned();
        let answer: ClaimReply =
            self.bus.request(subject, &request, Encoding::MessagePack, PATIENCE).await.unwrap();
        assert!(answer.finished.len() == ends && answer.finished.iter().all(|told| told.ok), "{answer:#?}");
        self.held.extend(answer.leases);
    }

    fn holds(&self, kind: &str) -> usize {
        self.held.iter().filter(|lease| lease.op.kind.as_str() == kind).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_makes_place_under_a_cap_for_what_is_claimed_with_it() {
    const CAP: usize = 5;
    let system = system(&[("LONGHAUL_REGISTRY__OPERATIONS__CAPS__TEST-SLEEP__PER_HOST", CAP)]).await;
    let client = system.operator().await;
    for _ in 0..4 * CAP {
        client.create("hub", "test-sleep", json!({ "seconds": 0 })).await;
    }
    // More slots than the cap allows, so that only what ends makes place.
    let mut worker = Worker::new(&system, &[("test-sleep", 2 * CAP as u32)]).await;
    for ends in [0, 1, CAP, 1] {
        worker.turn(ends).await;
        assert_eq!(worker.held.len(), CAP, "after {ends} ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_hands_on_its_exclusive_key_to_what_is_claimed_with_it() {
    let system = system(&[]).await;
    let client = system.operator().await;
    let mut worker = Worker::new(&system, &[("test-sleep", 8), ("one-at-a-time", 1)]).await;
    let declaration = json!({ "kinds": [{
        "name": "one-at-a-time", "description": "One of these runs at a time", "scope": "hub",
        "phases": [{ "name": "work", "weight": 1 }], "max_attempts": 3, "time_to_live_s": 600, "exclusive": true,
        "example_input": {}, "input_schema": { "type": "object", "additionalProperties": false },
        "result_schema": { "type": "object" }
    }] });
    let declaration: DeclareKinds = serde_json::from_value(declaration).unwrap();
    let subject = "work.v1.hub.declare".to_owned();
    let _: Nothing =
        worker.bus.request(subject, &declaration, Encoding::MessagePack, PATIENCE).await.unwrap();
    for _ in 0..2 {
        client.create("hub", "one-at-a-time", json!({})).await;
        for _ in 0..8 {
            client.create("hub", "test-sleep", json!({ "seconds": 0 })).await;
        }
    }
    for ends in [0, 9] {
        worker.turn(ends).await;
        assert_eq!((worker.holds("one-at-a-time"), worker.holds("test-sleep")), (1, 8), "after {ends} ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_tells_when_somebody_has_just_told_of_the_end_is_not_stored_behind_it() {
    let system = system(&[]).await;
    let client = system.operator().await;
    client.create("hub", "test-sleep", json!({ "seconds": 0 })).await;
    let mut worker = Worker::new(&system, &[("test-sleep", 1)]).await;
    worker.turn(0).await;
    let Lease { op, attempt, lease_id, .. } = &worker.held[0];
    let subject = format!("persist.hub.lro.{}.evt", op.op_id);
    let event = |n: u64, status: Option<&str>| {
        json!({
            "op_id": op.op_id, "attempt": attempt, "n": n, "ts": op.created_at, "phase": "sleep", "message": "", "status": status
        })
    };
    // What another registry does in the moment between the look at who holds it and the words of the worker.
    let end = FencedPublish {
        subject: subject.clone(),
        headers: vec![
            ("Lro-Attempt", attempt.to_string()),
            ("Lro-N", "1".to_owned()),
            ("Lro-Status", "expired".to_owned()),
        ],
        payload: event(1, Some("expired")).to_string().into(),
        expected_last_subject_sequence: None,
        rollup: false,
    };
    let writer = system.connect_as(system.hub_identity("hub_writer").unwrap()).await;
    let stream = writer.bus().operation_stream();
    stream.publish(end).await.unwrap();
    let progress = json!({
        "worker_id": "a test",
        "ops": [{ "op_id": op.op_id, "attempt": attempt, "lease_id": lease_id, "events": [event(2, None)] }]
    });
    let progress: ProgressRequest = serde_json::from_value(progress).unwrap();
    let told: ProgressReply = worker
        .bus
        .request("work.v1.hub.progress".to_owned(), &progress, Encoding::MessagePack, PATIENCE)
        .await
        .unwrap();
    assert_eq!((told.ops[0].ok, told.ops[0].stored_n), (true, 1), "{told:?}");
    assert_eq!(stream.ring(&subject).await.unwrap().len(), 1);
}

/// One in which nobody else works on what is for tests.
async fn system(settings: &[(&str, usize)]) -> TestSystem {
    let mut environment = vec![("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), "0".to_owned())];
    environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())));
    let options = SystemOptions { test_kinds: true, environment, ..SystemOptions::default() };
    TestSystem::start(options).await.unwrap()
}

fn success_of(lease: &Lease) -> FinishRequest {
    let request = json!({
        "op_id": lease.op.op_id, "attempt": lease.attempt, "lease_id": lease.lease_id,
        "outcome": "succeeded", "result": { "steps": 1, "attempt": lease.attempt }
    });
    serde_json::from_value(request).unwrap()
}
