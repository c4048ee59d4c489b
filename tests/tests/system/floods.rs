//! One who asks for, or tells, far too much: it is refused or made room for, and nobody else notices.

use std::time::{Duration, Instant};

use bus_client::{Bus, Credentials, RequestError};
use bus_messages::Encoding;
use futures::StreamExt as _;
use serde_json::{Value, json};
use test_harness::{Client, SystemOptions, TestSystem};

/// No worker takes what is not to be started before.
const LATER: &str = "2999-01-01T00:00:00.000Z";
const CREATES: usize = 10_000;
/// What the committed settings give an account.
const BURST: usize = 200;
const PER_S: f64 = 20.0;
/// Far above what an answer takes, far below what somebody would call harm.
const SOON: Duration = Duration::from_secs(1);

const EVENTS: u64 = 20_000;
const EVENTS_A_MESSAGE: u64 = 500;

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

async fn worker(system: &TestSystem) -> Bus {
    let identity = system.scheduler_identity().unwrap();
    let credentials = Credentials::UserPassword { user: identity.user, password: identity.password.into() };
    system.connect(credentials, &identity.inbox_prefix).await.bus().clone()
}

async fn work(bus: &Bus, verb: &str, request: &Value) -> Value {
    let timeout = Duration::from_secs(60);
    bus.request(format!("work.v1.hub.{verb}"), request, Encoding::MessagePack, timeout).await.unwrap()
}

/// Creates an operation and claims it: its id, and the fence of its worker.
async fn leased(client: &Client, bus: &Bus) -> (String, Value) {
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 1 })).await;
    let claim = json!({ "worker_id": "a test", "kinds": { "test-sleep": 1 }, "max": 1 });
    let lease = work(bus, "claim", &claim).await["leases"][0].take();
    assert_eq!(lease["op"]["op_id"], json!(op_id));
    let fence = json!({ "op_id": op_id, "attempt": lease["attempt"], "lease_id": lease["lease_id"] });
    (op_id, fence)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_events_leaves_the_last_of_them_without_a_hole_and_others_unharmed() {
    let environment = vec![("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), "0".to_owned())];
    let options = SystemOptions { test_kinds: true, environment, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let (client, bus) = (system.operator().await, worker(&system).await);
    let (flooded, fence) = leased(&client, &bus).await;

    let telling = async {
        let mut first = 1;
        while first <= EVENTS {
            let events: Vec<Value> = (first..first + EVENTS_A_MESSAGE)
                .map(|n| {
                    json!({ "op_id": flooded, "attempt": 1, "n": n, "ts": "2026-11-21T07:38:27.123Z",
                            "phase": "sleep", "message": format!("event {n}") })
                })
                .collect();
            let mut entry = fence.clone();
            entry["events"] = json!(events);
            let reply = work(&bus, "progress", &json!({ "worker_id": "a test", "ops": [entry] })).await;
            assert_eq!((&reply["ops"][0]["ok"], &reply["ops"][0]["lost"]), (&json!(true), &json!(false)));
            // What the stream had no time for is told again.
            first = reply["ops"][0]["stored_n"].as_u64().unwrap().max(first - 1) + 1;
        }
    };
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
            telling.await;
            began.elapsed()
        },
        beside
    );
    eprintln!("{EVENTS} events in {took:?}; beside them an operation took at most {slowest:?}");
    assert!(
        slowest < 2 * SOON,
        "beside the flood, an operation took {slowest:?} from its creation to its end"
    );

    let events = client.events("hub", &flooded).await;
    let numbers: Vec<u64> = events.iter().map(|event| event["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (EVENTS - 255..=EVENTS).collect::<Vec<_>>());
    let mut finish = fence;
    finish["outcome"] = json!("succeeded");
    finish["result"] = json!({ "steps": 1, "attempt": 1 });
    assert_eq!(work(&bus, "finish", &finish).await["ok"], json!(true));
    assert_eq!(client.ended("hub", &flooded).await["status"], "succeeded");
}
