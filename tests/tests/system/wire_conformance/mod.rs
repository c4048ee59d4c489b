//! The wire as a table: each verb of `lro` with what is good, malformed, unknown to it, of another scope, of no operation
//! and of one that has ended; the verbs of workers with fences that are not theirs, and asked by whoever may not; all
//! other endpoints with what does not read and what is of another scope. Every row in JSON and in MessagePack, and every
//! answer looked at in its headers and its body. An endpoint that the registry serves and no row asks is a failure.
//! `bad_input` has the fields one by one.

mod operations;
mod others;
mod workers;

use std::collections::BTreeSet;
use std::time::Duration;

use bus_client::{Bus, BusErrorKind, RequestError};
use bus_messages::{ApiError, Encoding, ErrorBody, ErrorCode};
use serde_json::{Value, json};
use test_harness::{Client, HostIdentity, SharedSystem, SystemOptions, TestSystem, wait_for};
use tokio::sync::Mutex;

const TIMEOUT: Duration = Duration::from_secs(60);
const NO_OPERATION: &str = "00000000-0000-7000-8000-000000000000";
/// No claim of this test gets at what is not to be started before.
const LATER: &str = "2999-01-01T00:00:00.000Z";

/// A system whose services take none of the work that is asked for here: the worker is this test. Leases outlast it.
static SYSTEM: SharedSystem = SharedSystem::new(|| SystemOptions {
    test_kinds: true,
    environment: [
        ("SCHEDULER__WORK__TEST_SLEEPS", "0"),
        ("SCHEDULER__WORK__COPIES", "0"),
        ("HOST_BACKUP__JOBS__BACKUPS", "0"),
        ("HOST_BACKUP__JOBS__PRUNES", "0"),
        ("REGISTRY__OPERATIONS__LEASE_S", "600"),
    ]
    .map(|(name, value)| (format!("LONGHAUL_{name}"), value.to_owned()))
    .to_vec(),
    ..SystemOptions::default()
});

/// A claim gets whatever is next: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What is asked.
#[derive(Debug, Clone)]
enum Body {
    /// This.
    Message(Value),
    /// This without its last byte.
    Cut(Value),
    /// This, and a byte more.
    Followed(Value),
}

/// What is answered.
#[derive(Debug, Clone)]
enum Expected {
    /// A reply with these values at these JSON pointers.
    Reply(Vec<(&'static str, Value)>),
    /// An error of this code, with this word in its message.
    Refused(ErrorCode, &'static str),
}

/// One row of a table.
struct Row<Case> {
    case: Case,
    subject: String,
    body: Body,
    expected: Expected,
}

impl Body {
    fn bytes(&self, encoding: Encoding) -> Vec<u8> {
        match self {
            Self::Message(message) => encoding.encode(message),
            Self::Cut(message) => {
                let mut bytes = encoding.encode(message);
                bytes.pop();
                bytes
            }
            Self::Followed(message) => [encoding.encode(message), encoding.encode(&json!(1))].concat(),
        }
    }
}

/// The reply, or the error, after everything about its form was looked at.
async fn answer(bus: &Bus, encoding: Encoding, subject: &str, body: &Body) -> Result<Value, ApiError> {
    let payload = body.bytes(encoding).into();
    let reply = bus.request_raw(subject.to_owned(), Some(encoding.content_type()), payload, TIMEOUT).await;
    let reply = reply.unwrap_or_else(|error| panic!("{subject} {body:?}: {error:?}"));
    assert_eq!(reply.headers.get("Content-Type"), Some(encoding.content_type()), "{subject} {body:?}");
    let value: Value = encoding.decode(&reply.payload).unwrap();
    let Some(status) = reply.headers.get("Nats-Service-Error-Code") else { return Ok(value) };
    let ErrorBody { error } = encoding.decode(&reply.payload).unwrap();
    assert_eq!(value["error"]["status"], json!(error.code.status()), "{value}");
    assert_eq!(value["error"]["retryable"], json!(error.code.is_retryable()), "{value}");
    assert!(value["error"]["details"].is_object(), "{value}");
    assert_eq!(status, error.status.to_string());
    assert_eq!(reply.headers.get("Nats-Service-Error"), Some(error.message.as_str()));
    for not_for_clients in ["panicked", "sqlx", "stack backtrace", ".rs:"] {
        assert!(!error.message.contains(not_for_clients), "{}", error.message);
    }
    Err(error)
}

async fn run<Case: std::fmt::Debug>(bus: &Bus, encoding: Encoding, rows: &[Row<Case>]) {
    for Row { case, subject, body, expected } in rows {
        let answer = answer(bus, encoding, subject, body).await;
        let row = format!("{subject}, {case:?}, {encoding:?}");
        match (expected, &answer) {
            (Expected::Reply(values), Ok(reply)) => {
                for (pointer, value) in values {
                    let found = reply.pointer(pointer);
                    assert_eq!(found, Some(value), "{row}: {pointer} of {reply:#}");
                }
            }
            (Expected::Refused(code, word), Err(error)) => {
                assert_eq!(error.code, *code, "{row}: {error:?}");
                assert!(error.message.contains(word), "{row}: {:?} lacks {word:?}", error.message);
            }
            _ => panic!("{row}: expected {expected:?}, got {answer:?}"),
        }
    }
}

fn reply<const N: usize>(values: [(&'static str, Value); N]) -> Expected {
    Expected::Reply(values.into())
}

fn refused(code: ErrorCode, word: &'static str) -> Expected {
    Expected::Refused(code, word)
}

fn with(mut message: Value, field: &str, value: Value) -> Value {
    message[field] = value;
    message
}

/// The subjects that the registry serves, with `*` for the scope or the caller.
async fn served(client: &Client) -> BTreeSet<String> {
    let info = client.bus().request_raw("$SRV.INFO.registry".to_owned(), None, "".into(), TIMEOUT).await;
    let info: Value = serde_json::from_slice(&info.unwrap().payload).unwrap();
    let endpoints = info["endpoints"].as_array().unwrap().iter();
    let subjects: BTreeSet<String> =
        endpoints.map(|endpoint| endpoint["subject"].as_str().unwrap().to_owned()).collect();
    assert!(subjects.len() > 40, "the registry does not tell of its endpoints: {subjects:?}");
    subjects
}

/// The endpoint that a row asks.
fn endpoint(subject: &str) -> String {
    let mut tokens: Vec<&str> = subject.split('.').collect();
    tokens[2] = "*";
    tokens.join(".")
}

// --- the worker -----------------------------------------------------------------------------

async fn connect(system: &TestSystem, identity: HostIdentity) -> Bus {
    system.connect_as(identity).await.bus().clone()
}

/// This test, as the worker of the hub.
async fn worker(system: &TestSystem) -> Bus {
    connect(system, system.hub_identity("scheduler").unwrap()).await
}

async fn work(bus: &Bus, verb: &str, request: Value) -> Value {
    work_of(bus, "hub", verb, request).await
}

async fn work_of(bus: &Bus, caller: &str, verb: &str, request: Value) -> Value {
    let body = Body::Message(request);
    let answer = answer(bus, Encoding::MessagePack, &format!("work.v1.{caller}.{verb}"), &body).await;
    answer.unwrap_or_else(|error| panic!("{verb} {body:?}: {error:?}"))
}

fn claim() -> Value {
    json!({ "worker_id": "a test", "kinds": { "test-sleep": 1 }, "max": 1 })
}

/// Creates an operation and claims it: its id and what fences the writes of its worker.
async fn leased(client: &Client, worker: &Bus) -> (String, Value) {
    // Before all others.
    let create = json!({ "kind": "test-sleep", "input": { "seconds": 1 }, "priority": 100 });
    let created = client.call("hub", "lro.create", create).await;
    let op_id = created["op"]["op_id"].as_str().unwrap().to_owned();
    (op_id.clone(), claimed(worker, &op_id).await["fence"].clone())
}

/// Cancels what rows have created, so that no later claim gets it.
async fn nothing_is_queued(client: &Client) {
    let queued = client.call("hub", "lro.list", json!({ "status": "queued", "limit": 200 })).await;
    for op in queued["ops"].as_array().unwrap() {
        client.call("hub", "lro.cancel", json!({ "op_id": op["op_id"] })).await;
    }
}

/// The lease of this operation, which is the next that a claim gets, and its fence.
async fn claimed(worker: &Bus, op_id: &str) -> Value {
    let mut reply = work(worker, "claim", claim()).await;
    let mut lease = reply["leases"][0].take();
    assert_eq!(lease["op"]["op_id"], json!(op_id), "{lease:#}");
    lease["fence"] = json!({ "op_id": op_id, "attempt": lease["attempt"], "lease_id": lease["lease_id"] });
    lease
}

async fn finished(client: &Client, worker: &Bus, outcome: Value) -> (String, Value) {
    let (op_id, fence) = leased(client, worker).await;
    let mut finish = fence.clone();
    finish.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
    assert_eq!(work(worker, "finish", finish).await, json!({ "ok": true, "lost": false }));
    // What ends an operation is told to the stream a moment later.
    wait_for("the last event", TIMEOUT, || async {
        let events = client.events("hub", &op_id).await;
        match events.last() {
            Some(last) if last["phase"] == "done" => Ok(()),
            last => Err(format!("{last:?}")),
        }
    })
    .await;
    (op_id, fence)
}

/// What each verb is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Good,
    Malformed,
    UnknownField,
    /// Of a scope of another type, or of an operation of another scope.
    WrongScope,
    /// For `create` a kind that there is not; for `list` the children of nobody.
    UnknownOp,
    /// For `create` with its dedupe key; for `list` by its status.
    TerminalOp,
}

impl Case {
    const ALL: [Self; 6] = [
        Self::Good,
        Self::Malformed,
        Self::UnknownField,
        Self::WrongScope,
        Self::UnknownOp,
        Self::TerminalOp,
    ];
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_the_server_takes_is_an_error_before_it_is_sent() {
    let system = SYSTEM.get().await;
    let (operator, worker) = (system.operator().await.bus().clone(), worker(&system).await);
    let too_large = operator.max_payload() + 1;
    for (bus, subject) in [
        (&operator, "api.v1.hub.lro.create"),
        (&operator, "api.v1.hub.lro.list"),
        (&worker, "work.v1.hub.claim"),
        (&worker, "work.v1.hub.progress"),
        (&worker, "work.v1.hub.finish"),
    ] {
        let body = vec![b' '; too_large].into();
        let refused = bus.request_raw(subject.to_owned(), None, body, TIMEOUT).await.map(drop);
        assert!(
            matches!(&refused, Err(RequestError::Bus(error)) if error.kind() == BusErrorKind::TooLarge),
            "{subject}: {refused:?}"
        );
    }
    // The connections are as good as before.
    let list = Body::Message(json!({ "limit": 1 }));
    assert!(answer(&operator, Encoding::Json, "api.v1.hub.lro.list", &list).await.is_ok());
    assert_eq!(work(&worker, "claim", with(claim(), "max", json!(0))).await["leases"], json!([]));
}
