//! The example of `docs/adding-a-kind.md`, at work on a whole system: what the page promises to whoever writes a kind.

mod word_count;

use std::sync::Arc;
use std::time::Duration;

use bus_client::{Bus, Credentials};
use bus_messages::kinds;
use catalog_database::{CreateOutcome, Database, NewOperation};
use domain_model::{OperationId, Routing, Scope};
use operation_engine::{OperationHandler, Worker, WorkerTiming};
use secrecy::SecretString;
use serde_json::{Value, json};
use test_harness::{HostIdentity, TestSystem, wait_for};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use word_count::WordCount;

use crate::system;

const DOCUMENT: &str = include_str!("../../../docs/adding-a-kind.md");
const CODE: &str = include_str!("adding_a_kind/word_count.rs");

#[test]
fn the_page_shows_the_file_that_is_tested() {
    let shown = DOCUMENT.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown, CODE, "copy tests/tests/system/adding_a_kind/word_count.rs into docs/adding-a-kind.md");
    assert_eq!(DOCUMENT.matches("```rust\n").count(), 1);
}

/// A worker of another team: its own process, with the identity of a worker of the hub.
struct OtherTeam {
    running: JoinHandle<()>,
    stopping: CancellationToken,
}

impl OtherTeam {
    async fn start(bus: Bus) -> Self {
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        // No nudge comes for what is not created through the registry.
        let timing = WorkerTiming { poll: Duration::from_millis(200), ..WorkerTiming::default() };
        let worker = Worker::new(bus, Routing::Hub, "another team".to_owned()).timing(timing);
        let worker = worker.handler(Arc::new(WordCount), 4);
        let running = tokio::spawn(worker.run(draining, stopping.clone()));
        Self { running, stopping }
    }

    async fn stop(self) {
        self.stopping.cancel();
        self.running.await.unwrap();
    }
}

async fn identity_of_a_worker(system: &TestSystem) -> Bus {
    let secrets = std::fs::read(system.data_directory().join("secrets/nats.json")).unwrap();
    let mut secrets: Value = serde_json::from_slice(&secrets).unwrap();
    let identity: HostIdentity = serde_json::from_value(secrets["scheduler"].take()).unwrap();
    let credentials = Credentials::UserPassword { user: identity.user, password: identity.password.into() };
    system.connect(credentials, &identity.inbox_prefix).await.bus().clone()
}

/// What the registry does for a kind that it has: it fills in the input, and adds the row.
async fn create(system: &TestSystem, input: Value) -> String {
    let definition = WordCount.definition();
    let input = (definition.normalise_input)(&input).unwrap();
    let database = Database::connect(&SecretString::from(system.ready().database_url), 1).await.unwrap();
    let new = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: definition.kind(),
        scope: Scope::Hub,
        created_by: "test".to_owned(),
        routing: Routing::Hub,
        input,
        input_hash: Vec::new(),
        max_attempts: definition.max_attempts,
        priority: 0,
        not_before: None,
        time_to_live_s: definition.time_to_live_s,
        dedupe_key: None,
        exclusive_key: None,
        parent: None,
        retry_of: None,
        checkpoint: None,
    };
    match database.create_operation(&new, false).await.unwrap() {
        CreateOutcome::Created { op, .. } => op.op_id.to_string(),
        other => panic!("{other:?}"),
    }
}

fn texts(count: usize) -> Vec<&'static str> {
    vec!["to be or not to be"; count]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_counts_goes_on_from_its_checkpoint_and_is_canceled() {
    let system = system().await;
    let client = system.operator().await;
    let worker = OtherTeam::start(identity_of_a_worker(&system).await).await;

    let op_id = create(&system, json!({ "texts": texts(3) })).await;
    assert_eq!(client.result("hub", &op_id).await, json!({ "texts": 3, "words": 18 }));
    let op_id = create(&system, json!({ "texts": [" "] })).await;
    let op = client.ended("hub", &op_id).await;
    assert_eq!((&op["status"], &op["error"]["code"]), (&json!("failed"), &json!("no_words")));

    // Its worker is stopped in the middle: another goes on behind the last text.
    let slow = json!({ "texts": texts(40), "milliseconds_a_text": 100 });
    let op_id = create(&system, slow.clone()).await;
    let counted = |at_least: u64| {
        let (client, op_id) = (&client, op_id.clone());
        async move {
            wait_for("texts to be counted", Duration::from_secs(60), || async {
                let events = client.events("hub", &op_id).await;
                let current = events.iter().filter_map(|event| event["progress"]["current"].as_u64()).max();
                if current >= Some(at_least) { Ok(()) } else { Err(format!("{current:?}")) }
            })
            .await;
        }
    };
    counted(5).await;
    worker.stop().await;
    let handed_back = client.until("hub", &op_id, "status", &["queued"]).await;
    assert_eq!((&handed_back["attempt"], &handed_back["phase"]), (&json!(1), &json!("count")));
    let percent = handed_back["progress"].as_f64().unwrap();
    assert!((1.0..90.0).contains(&percent), "counting has nine tenths of the weight: {percent}");
    let worker = OtherTeam::start(identity_of_a_worker(&system).await).await;
    assert_eq!(client.result("hub", &op_id).await, json!({ "texts": 40, "words": 240 }));
    let events = client.events("hub", &op_id).await;
    let second = events.iter().find(|event| event["attempt"] == 2).unwrap();
    assert!(second["progress"]["current"].as_u64() >= Some(5), "it goes on, not from the start: {second}");
    assert_eq!(events.last().unwrap()["phase"], "done");

    let op_id = create(&system, slow).await;
    client.until("hub", &op_id, "status", &["running"]).await;
    client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    let op = client.ended("hub", &op_id).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("canceled"), &json!(1)));
    worker.stop().await;
}

/// The page says that a kind has to be in the table of the registry. When this fails, the page is to be changed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_table_of_kinds_is_refused() {
    let system = system().await;
    let client = system.operator().await;
    let definition = WordCount.definition();
    assert!(kinds::find(&definition.kind()).is_none());
    let input: Value = serde_json::from_str(definition.example_input).unwrap();
    let refused =
        client.refused("hub", "lro.create", json!({ "kind": definition.name, "input": input })).await;
    assert_eq!(refused.status, 400);
    assert!(refused.message.contains("there is no kind word-count"), "{refused:?}");
}
