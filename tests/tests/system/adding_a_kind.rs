//! The example of `docs/adding-a-kind.md`, at work on a whole system: what the page promises to whoever writes a kind.

mod word_count;

use std::sync::Arc;
use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::kinds::{DeclareKinds, KindDeclaration};
use bus_messages::{ApiError, Encoding, ErrorCode, Nothing};
use catalog_database::Database;
use domain_model::Routing;
use operation_engine::{OperationHandler, Worker, declare_kinds};
use secrecy::SecretString;
use serde_json::{Value, json};
use test_harness::{Client, HostIdentity, Server, SystemOptions, TestSystem, wait_for};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use word_count::WordCount;

const DOCUMENT: &str = include_str!("../../../docs/adding-a-kind.md");
const CODE: &str = include_str!("adding_a_kind/word_count.rs");
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_page_shows_the_file_that_is_tested() {
    let shown = DOCUMENT.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown, CODE, "copy tests/tests/system/adding_a_kind/word_count.rs into docs/adding-a-kind.md");
}

/// A service of another team: its own process, with the identity of a service in the hub.
struct OtherTeam {
    running: JoinHandle<()>,
    stopping: CancellationToken,
}

impl OtherTeam {
    async fn start(bus: Bus) -> Self {
        declare_kinds(&bus, &[WordCount.definition()]).await.unwrap();
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let worker = Worker::new(bus, Routing::Hub, "another team".to_owned());
        let worker = worker.handler(Arc::new(WordCount), 4);
        let running = tokio::spawn(worker.run(draining, stopping.clone()));
        Self { running, stopping }
    }

    async fn stop(self) {
        self.stopping.cancel();
        self.running.await.unwrap();
    }
}

async fn connect(system: &TestSystem, identity: HostIdentity) -> Bus {
    system.connect_as(identity).await.bus().clone()
}

async fn in_the_hub(system: &TestSystem) -> Bus {
    connect(system, system.hub_identity("scheduler").unwrap()).await
}

async fn system() -> TestSystem {
    TestSystem::start(SystemOptions { test_kinds: true, ..SystemOptions::default() }).await.unwrap()
}

fn texts(count: usize) -> Vec<&'static str> {
    vec!["to be or not to be"; count]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_counts_goes_on_from_its_checkpoint_and_is_canceled() {
    let system = system().await;
    let client = system.operator().await;
    let create = |input: Value| client.create("hub", "word-count", input);
    let worker = OtherTeam::start(in_the_hub(&system).await).await;

    let op_id = create(json!({ "texts": texts(3) })).await;
    assert_eq!(client.result("hub", &op_id).await, json!({ "texts": 3, "words": 18 }));
    let op_id = create(json!({ "texts": [" "] })).await;
    let op = client.ended("hub", &op_id).await;
    assert_eq!((&op["status"], &op["error"]["code"]), (&json!("failed"), &json!("no_words")));

    // Its worker is stopped in the middle: another goes on behind the last text.
    let slow = json!({ "texts": texts(40), "milliseconds_a_text": 100 });
    let op_id = create(slow.clone()).await;
    wait_for("texts to be counted", PATIENCE, || async {
        let events = client.events("hub", &op_id).await;
        let current = events.iter().filter_map(|event| event["progress"]["current"].as_u64()).max();
        if current >= Some(5) { Ok(()) } else { Err(format!("{current:?}")) }
    })
    .await;
    worker.stop().await;
    let handed_back = client.until("hub", &op_id, "status", &["queued"]).await;
    assert_eq!((&handed_back["attempt"], &handed_back["phase"]), (&json!(1), &json!("count")));
    let percent = handed_back["progress"].as_f64().unwrap();
    assert!((1.0..90.0).contains(&percent), "counting has nine tenths of the weight: {percent}");
    let worker = OtherTeam::start(in_the_hub(&system).await).await;
    assert_eq!(client.result("hub", &op_id).await, json!({ "texts": 40, "words": 240 }));
    let events = client.events("hub", &op_id).await;
    let second = events.iter().find(|event| event["attempt"] == 2).unwrap();
    assert!(second["progress"]["current"].as_u64() >= Some(5), "it goes on, not from the start: {second}");
    assert_eq!(events.last().unwrap()["phase"], "done");

    let op_id = create(slow).await;
    client.until("hub", &op_id, "status", &["running"]).await;
    client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    let op = client.ended("hub", &op_id).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("canceled"), &json!(1)));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_large_operations_comes_in_pages_that_fit_into_a_message() {
    const OPERATIONS: usize = 45;
    let system = system().await;
    let client = system.operator().await;
    declare_kinds(&in_the_hub(&system).await, &[WordCount.definition()]).await.unwrap();
    // 30 KB each, so that all of them are more than a message holds.
    let input = json!({ "texts": ["x".repeat(30_000)] });
    let mut created = Vec::new();
    for _ in 0..OPERATIONS {
        let request = json!({ "kind": "word-count", "input": input, "not_before": "2100-01-01T00:00:00Z" });
        created.push(client.call("hub", "lro.create", request).await["op"]["op_id"].clone());
    }
    let (mut listed, mut pages, mut cursor) = (Vec::new(), 0, Value::Null);
    loop {
        let request = json!({ "kind": "word-count", "status": "queued", "limit": 200, "cursor": cursor });
        let page = client.call("hub", "lro.list", request).await;
        listed.extend(page["ops"].as_array().unwrap().iter().map(|op| op["op_id"].clone()));
        pages += 1;
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    created.reverse();
    assert!(pages > 1 && listed == created, "{pages} pages: {listed:?}");
    for op_id in created {
        client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    }
}

async fn refused_input(client: &Client, kind: &str, input: Value) -> ApiError {
    client.refused("hub", "lro.create", json!({ "kind": kind, "input": input })).await
}

async fn shown_by_micro_info(client: &Client, key: &str) -> bool {
    let timeout = Duration::from_secs(10);
    let info =
        client.bus().request_raw("$SRV.INFO.registry".to_owned(), None, "".into(), timeout).await.unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    let endpoints = info["endpoints"].as_array().unwrap();
    let create = endpoints.iter().find(|endpoint| endpoint["name"] == "lro-create").unwrap();
    create["metadata"].get(key).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_kind_is_checked_at_create_and_known_to_every_registry_for_good() {
    let system = system().await;
    let client = system.operator().await;
    let good: Value = serde_json::from_str(WordCount.definition().example_input).unwrap();
    let before = refused_input(&client, "word-count", good.clone()).await;
    assert!(before.status == 400 && before.message.contains("there is no kind word-count"), "{before:?}");

    declare_kinds(&in_the_hub(&system).await, &[WordCount.definition()]).await.unwrap();
    let op_id = client.create("hub", "word-count", good.clone()).await;
    let op = client.operation("hub", &op_id).await;
    let full = json!({ "texts": good["texts"], "milliseconds_a_text": 0 });
    assert_eq!((&op["status"], &op["input"]), (&json!("queued"), &full), "defaults are filled in");
    for (input, words) in [
        (json!({}), "\"texts\" is a required property"),
        (json!({ "texts": [], "colour": 1 }), "'colour' was unexpected"),
        (json!({ "texts": ["a", 7] }), "/texts/1: 7 is not of type"),
        (json!({ "texts": [], "milliseconds_a_text": -1 }), "milliseconds_a_text"),
        (json!("text"), "is not of type"),
    ] {
        let error = refused_input(&client, "word-count", input).await;
        assert!(error.status == 400 && error.message.contains(words), "{error:?}");
    }

    // Of what was declared to another registry, the first create is the first that this one hears.
    let database = Database::connect(&SecretString::from(system.ready().database_url), 1).await.unwrap();
    let mut elsewhere = WordCount.definition().declaration();
    elsewhere.name = "word-count-elsewhere".parse().unwrap();
    database.declare_kind(&elsewhere).await.unwrap();
    client.create("hub", "word-count-elsewhere", good.clone()).await;

    let old = system.kill_nine(Server::Registry);
    system.restarted(Server::Registry, old).await;
    wait_for("the new registry to answer", PATIENCE, || async {
        let list = client.ask("hub", "lro.list", &json!({ "limit": 1 })).await;
        list.map(drop).map_err(|error| error.to_string())
    })
    .await;
    client.create("hub", "word-count", good).await;
    assert!(shown_by_micro_info(&client, "word-count.input_schema").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_held_to_its_declaration_is_not_declared() {
    let system = system().await;
    let client = system.operator().await;
    let hub = in_the_hub(&system).await;
    let declare = |bus: Bus, caller: String, kinds: Vec<KindDeclaration>| async move {
        let subject = format!("work.v1.{caller}.declare");
        let answer: Result<Nothing, RequestError> = bus
            .request(subject, &DeclareKinds { kinds }, Encoding::MessagePack, Duration::from_secs(10))
            .await;
        answer
    };
    let good = || WordCount.definition().declaration();
    let changed = |change: &dyn Fn(&mut KindDeclaration)| {
        let mut declaration = good();
        change(&mut declaration);
        declaration
    };
    let wrong = [
        (
            changed(&|kind| kind.name = "project-backup".parse().unwrap()),
            ErrorCode::AlreadyExists,
            "another name",
        ),
        (changed(&|kind| kind.phases.clear()), ErrorCode::InvalidArgument, "phases"),
        (changed(&|kind| kind.phases[1].name = "count".to_owned()), ErrorCode::InvalidArgument, "phases"),
        (changed(&|kind| kind.phases[0].name = "done".to_owned()), ErrorCode::InvalidArgument, "done"),
        (changed(&|kind| kind.phases[0].weight = 0), ErrorCode::InvalidArgument, "weight"),
        (changed(&|kind| kind.max_attempts = 0), ErrorCode::InvalidArgument, "max_attempts"),
        (changed(&|kind| kind.time_to_live_s = 0), ErrorCode::InvalidArgument, "time_to_live_s"),
        (changed(&|kind| kind.example_input = json!({ "texts": 7 })), ErrorCode::InvalidArgument, "texts"),
        (
            changed(&|kind| kind.input_schema["additionalProperties"] = json!(true)),
            ErrorCode::InvalidArgument,
            "deny_unknown_fields",
        ),
        (
            changed(&|kind| kind.input_schema["properties"]["texts"]["type"] = json!("word")),
            ErrorCode::InvalidArgument,
            "input_schema",
        ),
        (changed(&|kind| kind.description = "d".repeat(1001)), ErrorCode::InvalidArgument, "description"),
    ];
    for (declaration, code, words) in wrong {
        // Nothing of a declaration is kept of which one kind is wrong.
        match declare(hub.clone(), "hub".to_owned(), vec![good(), declaration]).await {
            Err(RequestError::Api(error)) => {
                assert!(error.code == code && error.message.contains(words), "{words}: {error:?}");
            }
            other => panic!("{words}: {other:?}"),
        }
    }

    // A host declares nothing: neither as itself nor as the hub.
    let host = connect(&system, system.host_identity(0).unwrap()).await;
    let as_itself = declare(host.clone(), format!("host-{}", system.host(0)), vec![good()]).await;
    assert!(matches!(&as_itself, Err(RequestError::Api(error)) if error.status == 403), "{as_itself:?}");
    let as_the_hub = declare(host, "hub".to_owned(), vec![good()]).await;
    assert!(matches!(&as_the_hub, Err(RequestError::PermissionDenied { .. })), "{as_the_hub:?}");

    let input = json!({ "texts": texts(1) });
    assert_eq!(refused_input(&client, "word-count", input).await.status, 400, "nothing was declared");
}
