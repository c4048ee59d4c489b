//! What workers are woken by: a nudge says what there is to begin, and one that frees what others wait for has all of them
//! look.

use std::time::Duration;

use bus_messages::{Encoding, Nudge};
use futures::StreamExt as _;
use serde_json::{Value, json};
use test_harness::{SystemOptions, TestSystem};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_new_operation_is_told_by_its_kind_and_what_is_handed_back_to_every_worker() {
    let environment = vec![("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), "0".to_owned())];
    let options = SystemOptions { test_kinds: true, environment, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let identity = system.hub_identity("scheduler").unwrap();
    let bus = system.connect_as(identity).await.bus().clone();
    let mut nudges = bus.subscribe("wake.hub".to_owned()).await.unwrap();
    let mut nudged = async |wanted: Nudge| {
        let nudged = async {
            while let Some(message) = nudges.next().await {
                if Encoding::Json.decode::<Nudge>(&message.payload).unwrap() == wanted {
                    return;
                }
            }
            panic!("the subscription has ended");
        };
        tokio::time::timeout(PATIENCE, nudged).await.expect("the workers of the hub are nudged");
    };
    let work = async |verb: &str, request: Value| {
        let subject = format!("work.v1.hub.{verb}");
        let answer: Result<Value, _> = bus.request(subject, &request, Encoding::MessagePack, PATIENCE).await;
        answer.unwrap()
    };

    client.create("hub", "test-sleep", json!({ "seconds": 1 })).await;
    nudged(Nudge { kinds: ["test-sleep".parse().unwrap()].into() }).await;
    let claim = json!({ "worker_id": "a test", "kinds": { "test-sleep": 1 }, "max": 1 });
    let lease = work("claim", claim).await["leases"][0].take();
    let handed_back = json!({
        "op_id": lease["op"]["op_id"], "attempt": lease["attempt"], "lease_id": lease["lease_id"],
        "outcome": "handed_back"
    });
    work("finish", handed_back).await;
    nudged(Nudge::default()).await;
}
