//! One who asks for, or tells, far too much: it is refused or made room for, and nobody else notices.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bus_client::{Bus, RequestError};
use bus_messages::Encoding;
use domain_model::OperationStatus;
use futures::StreamExt as _;
use serde_json::{Value, json};
use test_harness::{Client, SystemOptions, TestSystem, wait_for, watch_to_the_end};

/// No worker takes what is not to be started before.
const LATER: &str = "2999-01-01T00:00:00.000Z";
const CREATES: usize = 10_000;
/// What the committed settings give an account.
const BURST: usize = 200;
const PER_S: f64 = 20.0;
/// Far above what an answer takes, far below what somebody would call harm.
const SOON: Duration = Duration::from_secs(1);

/// What the registry lets an operation tell of: the first event of its attempt, two rings at once, and so many a second.
const EVENTS_AT_ONCE: u64 = 1 + 512;
const EVENTS_PER_S: f64 = 20.0;
/// For some twenty seconds.
const EVENTS: u64 = 1000;
const EVENTS_A_MESSAGE: usize = 500;

struct Account {
    client: Client,
    scope: String,
}

async fn account(system: &TestSystem, operator: &Client, name: &str) -> Account {
    let account = operator.call("hub", "account.create", json!({ "name": name })).await;
    let id = account["account"]["id"].as_str().unwrap().to_owned();
    let request = json!({ "title": name, "host_id": system.host(0), "account_id": id });
    let project = operator.call("hub", "project.create", request).await;
    let token = operator.call(format!("account-{id}"), "account.create_token", json!({})).await;
    let client = system.token_holder(&id, token["token"].as_str().unwrap()).await.unwrap();
    Account { client, scope: format!("project-{}", project["project"]["id"].as_str().unwrap()) }
}

impl Account {
    async fn create(&self) -> Result<Value, RequestError> {
        let request = json!({ "kind": "project-backup", "not_before": LATER });
        self.client.ask(&self.scope, "lro.create", &request).await
    }

    /// How many operations there are of it.
    async fn operations(&self) -> usize {
        let (mut count, mut cursor) = (0, Value::Null);
        loop {
            let mut request = json!({ "limit": 200 });
            if !cursor.is_null() {
                request["cursor"] = cursor;
            }
            let mut page = self.client.call(&self.scope, "lro.list", request).await;
            count += page["ops"].as_array().unwrap().len();
            cursor = page["next_cursor"].take();
            if cursor.is_null() {
                return count;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_creates_at_once_an_account_gets_its_share_and_others_get_theirs() {
    let system = TestSystem::start(SystemOptions::default()).await.unwrap();
    let operator = system.operator().await;
    let (eager, calm) =
        (account(&system, &operator, "eager").await, account(&system, &operator, "calm").await);
    let began = Instant::now();
    let flood = async {
        let asked = futures::stream::iter(0..CREATES).map(|_| eager.create()).buffer_unordered(CREATES);
        asked.collect::<Vec<_>>().await
    };
    let beside = async {
        let mut took = Vec::new();
        // From before the flood until it is over.
        for _ in 0..20 {
            let asked = Instant::now();
            let created = calm.create().await;
            took.push(asked.elapsed());
            assert!(created.is_ok(), "somebody else's flood harms: {created:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        took
    };
    let ((answers, flood_took), took) = tokio::join!(async { (flood.await, began.elapsed()) }, beside);
    let slowest = took.iter().max().unwrap();
    assert!(*slowest < SOON, "beside the flood, a create took {slowest:?}");

    let (mut created, mut refused) = (0, 0);
    for answer in answers {
        match answer {
            Ok(reply) => {
                assert_eq!(reply["created"], json!(true));
                created += 1;
            }
            Err(RequestError::Api(error)) => {
                assert_eq!((error.status, error.retryable), (429, true), "{error:?}");
                refused += 1;
            }
            Err(other) => panic!("neither created nor refused: {other:?}"),
        }
    }
    eprintln!("{created} created, {refused} refused in {flood_took:?}; beside it at most {slowest:?}");
    assert_eq!(created + refused, CREATES);
    let most = BURST + (PER_S * flood_took.as_secs_f64()).ceil() as usize;
    assert!((1..=most).contains(&created), "{created} of at most {most}");
    assert_eq!(eager.operations().await, created, "what was answered is there, and what was refused is not");
    assert_eq!(calm.operations().await, 20);

    // It says when to come back, and then it is let in.
    let error = loop {
        match eager.create().await {
            Ok(_) => {}
            Err(RequestError::Api(error)) => break error,
            Err(other) => panic!("{other:?}"),
        }
    };
    let wait_s = error.details["retry_after_s"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&wait_s), "{error:?}");
    tokio::time::sleep(Duration::from_secs_f64(wait_s + 0.05)).await;
    assert!(eager.create().await.is_ok());
}

/// A system with `test-sleep` whose only worker is the test.
async fn without_sleepers() -> TestSystem {
    let environment = vec![("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), "0".to_owned())];
    let options = SystemOptions { test_kinds: true, environment, ..SystemOptions::default() };
    TestSystem::start(options).await.unwrap()
}

async fn worker(system: &TestSystem) -> Bus {
    let identity = system.hub_identity("scheduler").unwrap();
    system.connect_as(identity).await.bus().clone()
}

async fn work(bus: &Bus, verb: &str, request: &Value) -> Value {
    let timeout = Duration::from_secs(60);
    bus.request(format!("work.v1.hub.{verb}"), request, Encoding::MessagePack, timeout).await.unwrap()
}

/// Creates an operation and claims it: its id, and the fence of its worker.
async fn leased(client: &Client, bus: &Bus) -> (String, Value) {
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 1 })).await;
    let fence = claimed(bus, &op_id).await;
    (op_id, fence)
}

/// Claims the only operation that is ready.
async fn claimed(bus: &Bus, op_id: &str) -> Value {
    claimed_with_checkpoint(bus, op_id).await.0
}

async fn claimed_with_checkpoint(bus: &Bus, op_id: &str) -> (Value, Value) {
    let claim = json!({ "worker_id": "a test", "kinds": { "test-sleep": 1 }, "max": 1 });
    let mut lease = work(bus, "claim", &claim).await["leases"][0].take();
    assert_eq!(lease["op"]["op_id"], json!(op_id));
    let fence = json!({ "op_id": op_id, "attempt": lease["attempt"], "lease_id": lease["lease_id"] });
    (fence, lease["checkpoint"].take())
}

fn events(fence: &Value, numbers: impl Iterator<Item = u64>, message: &str) -> Vec<Value> {
    let event = |n| {
        json!({ "op_id": fence["op_id"], "attempt": fence["attempt"], "n": n, "ts": "2026-11-21T07:38:27.123Z",
                "phase": "sleep", "message": format!("event {n} {message}") })
    };
    numbers.map(event).collect()
}

/// Tells of the events with these numbers, and again until all of them are stored.
async fn tell(bus: &Bus, fence: &Value, numbers: RangeInclusive<u64>, message: &str) {
    let mut first = *numbers.start();
    while first <= *numbers.end() {
        let mut entry = fence.clone();
        entry["events"] = json!(events(fence, (first..=*numbers.end()).take(EVENTS_A_MESSAGE), message));
        let reply = work(bus, "progress", &json!({ "worker_id": "a test", "ops": [entry] })).await;
        let reply = &reply["ops"][0];
        assert_eq!(
            (&reply["ok"], &reply["lost"], &reply["refused"]),
            (&json!(true), &json!(false), &Value::Null)
        );
        let next = reply["stored_n"].as_u64().unwrap().max(first - 1) + 1;
        if next < first + EVENTS_A_MESSAGE as u64 {
            // As many as there may be now.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        first = next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_events_is_let_in_little_by_little_without_a_hole_and_others_are_unharmed() {
    let system = without_sleepers().await;
    let (client, bus) = (system.operator().await, worker(&system).await);
    let (flooded, fence) = leased(&client, &bus).await;
    let beside = async {
        let other = worker(&system).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            let (op_id, mut finish) = leased(&client, &other).await;
            finish["outcome"] = json!("succeeded");
            finish["result"] = json!({ "steps": 1, "attempt": 1 });
            assert_eq!(work(&other, "finish", &finish).await["ok"], json!(true));
            assert_eq!(client.ended("hub", &op_id).await["status"], "succeeded");
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    let began = Instant::now();
    let (took, slowest) = tokio::join!(
        async {
            tell(&bus, &fence, 1..=EVENTS, "").await;
            began.elapsed()
        },
        beside
    );
    eprintln!("{EVENTS} events in {took:?}; beside them an operation took at most {slowest:?}");
    assert!(
        slowest < 2 * SOON,
        "beside the flood, an operation took {slowest:?} from its creation to its end"
    );
    let most = |took: Duration| EVENTS_AT_ONCE + (EVENTS_PER_S * took.as_secs_f64()).ceil() as u64;
    assert!(EVENTS <= most(took), "{EVENTS} events in {took:?} are more than may be");

    // Where no event is let in, the rest of the message counts.
    let (summary, checkpoint) =
        (json!({ "phase": "sleep", "message": "told in a flood", "progress": 50.0 }), json!({ "done": 7 }));
    let mut entry = fence.clone();
    entry["events"] = json!(events(&fence, EVENTS + 1..=2 * EVENTS, ""));
    entry["summary"] = summary.clone();
    entry["checkpoint"] = checkpoint.clone();
    let mut stored = 0;
    for _ in 0..2 {
        let reply = work(&bus, "progress", &json!({ "worker_id": "a test", "ops": [entry] })).await;
        let reply = &reply["ops"][0];
        assert_eq!((&reply["ok"], &reply["refused"]), (&json!(true), &Value::Null), "{reply}");
        stored = reply["stored_n"].as_u64().unwrap().max(stored);
        assert!(stored <= most(began.elapsed()), "{stored} events are stored");
    }
    let op = client.operation("hub", &flooded).await;
    assert_eq!(op["progress_summary"], summary);

    let ring = keys(&client.events("hub", &flooded).await);
    let last = ring.last().unwrap().1;
    assert!(last >= stored.max(EVENTS), "what is said to be stored is: {last}");
    assert_eq!(ring, (last - 255..=last).map(|n| (1, n)).collect::<Vec<_>>());
    let mut finish = fence;
    finish["outcome"] = json!("handed_back");
    assert_eq!(work(&bus, "finish", &finish).await["ok"], json!(true));
    let (mut finish, kept) = claimed_with_checkpoint(&bus, &flooded).await;
    assert_eq!(kept, checkpoint);
    finish["outcome"] = json!("succeeded");
    finish["result"] = json!({ "steps": 1, "attempt": 2 });
    assert_eq!(work(&bus, "finish", &finish).await["ok"], json!(true));
    assert_eq!(client.ended("hub", &flooded).await["status"], "succeeded");
}

/// The attempt and the number of each event.
fn keys<'a>(events: impl IntoIterator<Item = &'a Value>) -> Vec<(u64, u64)> {
    let key = |event: &Value| (event["attempt"].as_u64().unwrap(), event["n"].as_u64().unwrap());
    events.into_iter().map(key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_larger_than_a_message_is_read_page_by_page_through_all_its_attempts() {
    let system = without_sleepers().await;
    let (client, bus) = (system.operator().await, worker(&system).await);
    let (op_id, first) = leased(&client, &bus).await;
    let long = "x".repeat(4096);
    for n in [1, 51, 101] {
        tell(&bus, &first, n..=n + 49, &long).await;
    }
    let mut handing_back = first;
    handing_back["outcome"] = json!("handed_back");
    assert_eq!(work(&bus, "finish", &handing_back).await["ok"], json!(true));
    // What the registry says of that comes before the events of the next attempt, or not at all.
    wait_for("the end of the first attempt to be told", Duration::from_secs(60), || async {
        let events = client.events("hub", &op_id).await;
        if keys(&events).last() == Some(&(1, 151)) { Ok(()) } else { Err(format!("{:?}", keys(&events))) }
    })
    .await;
    let mut second = claimed(&bus, &op_id).await;
    for numbers in [1..=50, 51..=105] {
        tell(&bus, &second, numbers, &long).await;
    }

    let all: Vec<(u64, u64)> = (1..=151).map(|n| (1, n)).chain((1..=105).map(|n| (2, n))).collect();
    assert_eq!(all.len(), 256, "a whole ring");
    let page = client.call("hub", "lro.events", json!({ "op_id": op_id })).await;
    let of_page = keys(page["events"].as_array().unwrap());
    assert_eq!(page["more"], json!(true));
    assert!((1..150).contains(&of_page.len()), "the first page ends within the first attempt");
    assert_eq!(of_page[..], all[..of_page.len()], "the oldest");
    assert_eq!(keys(&client.events("hub", &op_id).await), all);

    // Without an attempt, a number is one of the latest.
    let rest = client.call("hub", "lro.events", json!({ "op_id": op_id, "after_n": 100 })).await;
    assert_eq!(keys(rest["events"].as_array().unwrap()), (101..=105).map(|n| (2, n)).collect::<Vec<_>>());
    assert_eq!(rest.get("more"), None);
    let request = json!({ "op_id": op_id, "after_attempt": 1, "after_n": 149 });
    let rest = client.call("hub", "lro.events", request).await;
    let of_rest = keys(rest["events"].as_array().unwrap());
    assert_eq!(of_rest[..3], [(1, 150), (1, 151), (2, 1)]);

    second["outcome"] = json!("succeeded");
    second["result"] = json!({ "steps": 1, "attempt": 2 });
    assert_eq!(work(&bus, "finish", &second).await["ok"], json!(true));
    let seen = watch_to_the_end(client.bus(), &format!("persist.hub.lro.{op_id}")).await;
    let last = seen.events.last().unwrap();
    assert_eq!((last.attempt, last.n, last.status), (2, 106, Some(OperationStatus::Succeeded)));
    let seen: Vec<(u64, u64)> = seen.events.iter().map(|event| (event.attempt.into(), event.n)).collect();
    // Who is late may find the end there already, for which the first event has made room.
    assert_eq!(seen[seen.len() - 256..seen.len() - 1], all[1..], "the watch has no hole");
}
