//! The wire as a table: each verb of `lro` with what is good, malformed, unknown to it, of another scope, of no operation
//! and of one that has ended; and the verbs of workers with fences that are not theirs. Every row in JSON and in
//! MessagePack, and every answer looked at in its headers and its body. `bad_input` has the fields one by one.

use std::time::Duration;

use bus_client::{Bus, BusErrorKind, Credentials, RequestError};
use bus_messages::{ApiError, Encoding, ErrorBody, ErrorCode};
use serde_json::{Value, json};
use test_harness::{Client, HostIdentity, SharedSystem, SystemOptions, TestSystem, wait_for};
use tokio::sync::Mutex;
use uuid::Uuid;

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");
const TIMEOUT: Duration = Duration::from_secs(60);
const NO_OPERATION: &str = "00000000-0000-7000-8000-000000000000";
/// No claim of this test gets at what is not to be started before.
const LATER: &str = "2999-01-01T00:00:00.000Z";
/// The largest checkpoint.
const CHECKPOINT_BYTES: usize = 64 * 1024;

/// A system whose scheduler takes no work: the worker is this test. Leases outlast it.
static SYSTEM: SharedSystem = SharedSystem::new(|| SystemOptions {
    test_kinds: true,
    environment: vec![
        ("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), "0".to_owned()),
        ("LONGHAUL_REGISTRY__OPERATIONS__LEASE_S".to_owned(), "600".to_owned()),
    ],
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

// --- the worker -----------------------------------------------------------------------------

/// This test, as the worker of the hub.
async fn worker(system: &TestSystem) -> Bus {
    let secrets = std::fs::read(system.data_directory().join("secrets/nats.json")).unwrap();
    let mut secrets: Value = serde_json::from_slice(&secrets).unwrap();
    let identity: HostIdentity = serde_json::from_value(secrets["scheduler"].take()).unwrap();
    let credentials = Credentials::UserPassword { user: identity.user, password: identity.password.into() };
    system.connect(credentials, &identity.inbox_prefix).await.bus().clone()
}

async fn work(bus: &Bus, verb: &str, request: Value) -> Value {
    let body = Body::Message(request);
    let answer = answer(bus, Encoding::MessagePack, &format!("work.v1.hub.{verb}"), &body).await;
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

// --- api.v1.<scope>.lro.* -------------------------------------------------------------------

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

/// The verbs that the protocol has.
fn documented_verbs() -> Vec<&'static str> {
    let subjects = DOCUMENT.split("`api.v1.*.lro.").skip(1);
    subjects.filter_map(|rest| rest.split('`').next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_lro_answers_as_the_protocol_says_in_both_encodings() {
    let _alone = ALONE.lock().await;
    let system = SYSTEM.get().await;
    let client = system.operator().await;
    let worker = worker(&system).await;
    let project = client.create_project(system.host(0)).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let rows = rows_of_lro(&client, &worker, &format!("project-{project}")).await;
        let verbs = documented_verbs();
        assert!(verbs.len() >= 7, "{verbs:?}");
        for verb in verbs {
            let subject_ends = format!(".lro.{verb}");
            for case in Case::ALL {
                let has = |row: &Row<Case>| row.case == case && row.subject.ends_with(&subject_ends);
                assert!(rows.iter().any(has), "the table has no row {case:?} of {verb}");
            }
        }
        run(client.bus(), encoding, &rows).await;
        nothing_is_queued(&client).await;
    }
    // Nothing of another scope came about, and nothing else of its own changed.
    let of_project = client.call(format!("project-{project}"), "lro.list", json!({})).await;
    assert_eq!(of_project["ops"], json!([]));
}

async fn rows_of_lro(client: &Client, worker: &Bus, project: &str) -> Vec<Row<Case>> {
    use Case::{Good, Malformed, TerminalOp, UnknownField, UnknownOp, WrongScope};
    use ErrorCode::{DedupeMismatch, FailedPrecondition, InvalidArgument, NotFound};
    let (succeeded, _) =
        finished(client, worker, json!({ "outcome": "succeeded", "result": { "steps": 1, "attempt": 1 } }))
            .await;
    let error = json!({ "code": "test", "message": "as asked", "retryable": false });
    let (failed, _) = finished(client, worker, json!({ "outcome": "failed", "error": error })).await;
    let (running, _) = leased(client, worker).await;
    let waiting = |key: String| json!({ "kind": "test-sleep", "input": { "seconds": 1 }, "not_before": LATER, "dedupe_key": key });
    let key = || format!("key-{}", Uuid::new_v4());
    let (queued_key, ended_key) = (key(), key());
    let created = client.call("hub", "lro.create", waiting(queued_key.clone())).await;
    let queued = created["op"]["op_id"].as_str().unwrap().to_owned();
    let created = client.call("hub", "lro.create", waiting(ended_key.clone())).await;
    let canceled = created["op"]["op_id"].as_str().unwrap().to_owned();
    client.call("hub", "lro.cancel", json!({ "op_id": canceled })).await;

    let mut rows = Vec::new();
    let mut add = |verb: &str, scope: &str, case: Case, body: Body, expected: Expected| {
        rows.push(Row { case, subject: format!("api.v1.{scope}.lro.{verb}"), body, expected });
    };
    let message = Body::Message;
    let id = |op_id: &str| json!({ "op_id": op_id });

    // What all verbs have in common.
    let new_key = key();
    let no_such_scope = "project-1";
    for (verb, good) in [
        ("create", waiting(new_key.clone())),
        ("get", id(&queued)),
        ("list", json!({ "limit": 1 })),
        ("wait", json!({ "op_id": queued, "timeout_s": 0 })),
        ("cancel", id(&queued)),
        ("retry", id(&failed)),
        ("events", id(&queued)),
    ] {
        let malformed = |body: Body| (verb, "hub", Malformed, body, refused(InvalidArgument, ""));
        let unreadable = [
            malformed(Body::Cut(good.clone())),
            malformed(Body::Followed(good.clone())),
            malformed(message(json!("text"))),
            malformed(message(json!(7))),
            malformed(message(json!(null))),
        ];
        for (verb, scope, case, body, expected) in unreadable {
            add(verb, scope, case, body, expected);
        }
        let unknown = with(good.clone(), "colour", json!("blue"));
        add(verb, "hub", UnknownField, message(unknown), refused(InvalidArgument, "colour"));
        add(verb, no_such_scope, WrongScope, message(good.clone()), refused(InvalidArgument, "scope"));
        if good.get("op_id").is_some() {
            for wrong in [json!(7), json!("1"), json!(null), json!([queued])] {
                let body = message(with(good.clone(), "op_id", wrong));
                add(verb, "hub", Malformed, body, refused(InvalidArgument, ": op_id: "));
            }
            add(verb, project, WrongScope, message(good.clone()), refused(NotFound, "lro.list"));
            let unknown = message(with(good, "op_id", json!(NO_OPERATION)));
            add(verb, "hub", UnknownOp, unknown, refused(NotFound, NO_OPERATION));
        }
    }

    // What each answers.
    let good = waiting(new_key);
    for (field, wrong, place) in [
        ("priority", json!("high"), ": priority: "),
        ("force", json!("yes"), ": force: "),
        ("input", json!({ "seconds": "one" }), ": seconds: "),
    ] {
        let body = message(with(good.clone(), field, wrong));
        add("create", "hub", Malformed, body, refused(InvalidArgument, place));
    }
    let other = with(good.clone(), "input", json!({ "seconds": 2 }));
    add(
        "create",
        "hub",
        Good,
        message(good.clone()),
        reply([("/created", json!(true)), ("/op/status", json!("queued"))]),
    );
    add("create", "hub", Good, message(good.clone()), reply([("/created", json!(false))]));
    add("create", "hub", Good, message(other.clone()), refused(DedupeMismatch, "force"));
    let forced = with(other, "force", json!(true));
    add("create", "hub", Good, message(forced), reply([("/created", json!(true))]));
    add("create", project, WrongScope, message(good.clone()), refused(InvalidArgument, "hub"));
    let unknown = with(good, "kind", json!("no-such-kind"));
    add("create", "hub", UnknownOp, message(unknown), refused(InvalidArgument, "nats micro info"));
    let again = waiting(ended_key);
    add("create", "hub", TerminalOp, message(again), reply([("/created", json!(true))]));

    add(
        "get",
        "hub",
        Good,
        message(id(&queued)),
        reply([
            ("/op/op_id", json!(queued)),
            ("/op/status", json!("queued")),
            ("/op/dedupe_key", json!(queued_key)),
        ]),
    );
    add(
        "get",
        "hub",
        Good,
        message(id(&running)),
        reply([("/op/status", json!("running")), ("/op/attempt", json!(1))]),
    );
    add(
        "get",
        "hub",
        TerminalOp,
        message(id(&succeeded)),
        reply([("/op/status", json!("succeeded")), ("/op/result/steps", json!(1))]),
    );
    add(
        "get",
        "hub",
        TerminalOp,
        message(id(&failed)),
        reply([("/op/status", json!("failed")), ("/op/error/code", json!("test"))]),
    );

    let list = |filter: Value| message(with(filter, "limit", json!(1)));
    add("list", "hub", Good, list(json!({ "status": "running" })), reply([("/ops/0/op_id", json!(running))]));
    for wrong in [json!(0), json!(201), json!(-1), json!("many"), json!(1.5)] {
        add("list", "hub", Malformed, message(json!({ "limit": wrong })), refused(InvalidArgument, "limit"));
    }
    add(
        "list",
        project,
        WrongScope,
        list(json!({})),
        reply([("/ops", json!([])), ("/next_cursor", json!(null))]),
    );
    add("list", "hub", UnknownOp, list(json!({ "parent_id": NO_OPERATION })), reply([("/ops", json!([]))]));
    add(
        "list",
        "hub",
        TerminalOp,
        list(json!({ "status": "failed" })),
        reply([("/ops/0/op_id", json!(failed))]),
    );

    let wait = |op_id: &str, timeout_s: f64| message(json!({ "op_id": op_id, "timeout_s": timeout_s }));
    add(
        "wait",
        "hub",
        Good,
        wait(&queued, 0.1),
        reply([("/done", json!(false)), ("/op/status", json!("queued"))]),
    );
    for wrong in [-0.1, 30.1] {
        add("wait", "hub", Malformed, wait(&queued, wrong), refused(InvalidArgument, "30"));
    }
    add("wait", "hub", Malformed, message(id(&queued)), refused(InvalidArgument, "timeout_s"));
    add(
        "wait",
        "hub",
        TerminalOp,
        wait(&canceled, 30.0),
        reply([("/done", json!(true)), ("/op/status", json!("canceled"))]),
    );

    add(
        "events",
        "hub",
        Good,
        message(id(&queued)),
        reply([("/events", json!([])), ("/state/op_id", json!(queued))]),
    );
    for wrong in [json!(-1), json!("all")] {
        let body = message(json!({ "op_id": queued, "after_n": wrong }));
        add("events", "hub", Malformed, body, refused(InvalidArgument, ": after_n: "));
    }
    let of_no_number = message(json!({ "op_id": queued, "after_attempt": 1 }));
    add("events", "hub", Malformed, of_no_number, refused(InvalidArgument, "after_n"));
    add(
        "events",
        "hub",
        TerminalOp,
        message(id(&failed)),
        reply([
            ("/events/0/phase", json!("done")),
            ("/events/0/status", json!("failed")),
            ("/state/status", json!("failed")),
        ]),
    );
    let behind = message(json!({ "op_id": failed, "after_n": 1 }));
    add("events", "hub", TerminalOp, behind, reply([("/events", json!([]))]));

    add(
        "retry",
        "hub",
        Good,
        message(id(&failed)),
        reply([("/created", json!(true)), ("/op/retry_of", json!(failed))]),
    );
    add(
        "retry",
        "hub",
        Good,
        message(id(&failed)),
        reply([("/created", json!(false)), ("/op/retry_of", json!(failed))]),
    );
    add("retry", "hub", Good, message(id(&queued)), refused(FailedPrecondition, "queued"));
    add("retry", "hub", Good, message(id(&running)), refused(FailedPrecondition, "running"));
    let from_start = json!({ "op_id": failed, "from_start": "yes" });
    add("retry", "hub", Malformed, message(from_start), refused(InvalidArgument, ": from_start: "));
    add("retry", "hub", TerminalOp, message(id(&succeeded)), refused(FailedPrecondition, "succeeded"));

    // Last of all, since it changes what the others look at.
    add("cancel", "hub", Good, message(id(&queued)), reply([("/op/status", json!("canceled"))]));
    add("cancel", "hub", TerminalOp, message(id(&queued)), reply([("/op/status", json!("canceled"))]));
    add("cancel", "hub", Good, message(id(&running)), reply([("/op/status", json!("running"))]));
    add(
        "cancel",
        "hub",
        TerminalOp,
        message(id(&succeeded)),
        reply([("/op/status", json!("succeeded")), ("/op/cancel_requested_at", json!(null))]),
    );
    rows
}

// --- work.v1.<caller>.* ---------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_workers_refuses_what_is_not_theirs_in_both_encodings() {
    let _alone = ALONE.lock().await;
    let system = SYSTEM.get().await;
    let client = system.operator().await;
    let worker = worker(&system).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        the_worker_protocol(&client, &worker, encoding).await;
    }
}

/// The fences that are not the right one: of no operation, of another, of one that waits, of an attempt that has
/// been or is to come, and of another lease.
fn wrong_fences(fence: &Value, queued: &str, ended: &Value) -> Vec<(&'static str, Value)> {
    vec![
        ("no operation", with(fence.clone(), "op_id", json!(NO_OPERATION))),
        ("an operation that waits", with(fence.clone(), "op_id", json!(queued))),
        ("an operation that has ended", with(fence.clone(), "op_id", ended["op_id"].clone())),
        ("the attempt before", with(fence.clone(), "attempt", json!(0))),
        ("the attempt to come", with(fence.clone(), "attempt", json!(2))),
        ("an attempt out of range", with(fence.clone(), "attempt", json!(u32::MAX))),
        ("the lease of another", with(fence.clone(), "lease_id", ended["lease_id"].clone())),
    ]
}

async fn the_worker_protocol(client: &Client, worker: &Bus, encoding: Encoding) {
    use ErrorCode::{Conflict, InvalidArgument};
    let success = json!({ "outcome": "succeeded", "result": { "steps": 1, "attempt": 1 } });
    let (_, ended) = finished(client, worker, success.clone()).await;
    let create = json!({ "kind": "test-sleep", "input": { "seconds": 1 }, "not_before": LATER });
    let created = client.call("hub", "lro.create", create).await;
    let queued = created["op"]["op_id"].as_str().unwrap().to_owned();
    let (op_id, fence) = leased(client, worker).await;
    let before = client.operation("hub", &op_id).await;

    let mut rows = Vec::new();
    let mut add = |verb: &str, what: &'static str, body: Body, expected: Expected| {
        rows.push(Row { case: what, subject: format!("work.v1.hub.{verb}"), body, expected });
    };
    let message = Body::Message;
    let finish = |fence: Value| {
        let mut finish = fence;
        finish.as_object_mut().unwrap().extend(success.as_object().unwrap().clone());
        finish
    };
    let progress = |entry: Value| json!({ "worker_id": "a test", "ops": [entry] });
    let with_ends = |ends: Value| with(with(claim(), "max", json!(0)), "finished", ends);
    for (verb, good) in [
        ("claim", with(claim(), "max", json!(0))),
        ("progress", progress(fence.clone())),
        ("finish", finish(fence.clone())),
        ("repository", fence.clone()),
    ] {
        add(verb, "cut", Body::Cut(good.clone()), refused(InvalidArgument, ""));
        add(verb, "followed by more", Body::Followed(good.clone()), refused(InvalidArgument, ""));
        add(verb, "no object", message(json!("text")), refused(InvalidArgument, ""));
        add(verb, "nothing", message(json!({})), refused(InvalidArgument, "missing"));
        let unknown = with(good, "colour", json!("blue"));
        add(verb, "an unknown field", message(unknown), refused(InvalidArgument, "colour"));
    }

    for (what, kinds) in [
        ("a kind that there is not", json!({ "no-such-kind": 1 })),
        ("no slot", json!({ "test-sleep": 0 })),
        ("no kind", json!({})),
    ] {
        add("claim", what, message(with(claim(), "kinds", kinds)), reply([("/leases", json!([]))]));
    }
    let many: serde_json::Map<_, _> = (0..65).map(|n| (format!("kind-{n}"), json!(1))).collect();
    for (what, request) in [
        ("a kind that is no name", with(claim(), "kinds", json!({ "NOT A KIND": 1 }))),
        ("too many kinds", with(claim(), "kinds", json!(many))),
        ("a worker without a name", with(claim(), "worker_id", json!(""))),
        ("a worker with a long name", with(claim(), "worker_id", json!("w".repeat(201)))),
    ] {
        add("claim", what, message(request), refused(InvalidArgument, ""));
    }

    let below = with(claim(), "kinds", json!({ "test-sleep": -1 }));
    add("claim", "slots below none", message(below), refused(InvalidArgument, ": kinds.test-sleep: "));
    let attempt = progress(with(fence.clone(), "attempt", json!("first")));
    add(
        "progress",
        "an attempt that is no number",
        message(attempt),
        refused(InvalidArgument, ": ops[0].attempt: "),
    );

    let lost =
        || reply([("/ops/0/ok", json!(false)), ("/ops/0/lost", json!(true)), ("/ops/0/stored_n", json!(0))]);
    for (what, wrong) in wrong_fences(&fence, &queued, &ended) {
        let entry = with(wrong.clone(), "checkpoint", json!({ "by": what }));
        add("progress", what, message(progress(entry)), lost());
        let not_recorded = reply([("/ok", json!(false)), ("/lost", json!(true))]);
        add("finish", what, message(finish(wrong.clone())), not_recorded);
        let with_claim = with_ends(json!([finish(wrong.clone())]));
        add(
            "claim",
            what,
            message(with_claim),
            reply([("/finished/0/lost", json!(true)), ("/leases", json!([]))]),
        );
        add("repository", what, message(wrong), refused(Conflict, "lease"));
    }
    add("progress", "the fence of one that has ended", message(progress(ended.clone())), lost());
    add(
        "progress",
        "an unknown field of an entry",
        message(progress(with(fence.clone(), "colour", json!(1)))),
        refused(InvalidArgument, "colour"),
    );
    let many = json!({ "worker_id": "a test", "ops": vec![fence.clone(); 1001] });
    add("progress", "too many operations", message(many), refused(InvalidArgument, "1000"));

    let event = |n: u64| json!({ "op_id": op_id, "attempt": 1, "n": n, "ts": "2026-11-21T07:38:27.123Z", "phase": "sleep", "message": "an event" });
    let held = |stored_n: u64| ("/ops/0/stored_n", json!(stored_n));
    let ok = || ("/ops/0/ok", json!(true));
    let entry = |fields: Value| {
        let mut entry = fence.clone();
        entry.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        message(progress(entry))
    };
    add(
        "progress",
        "good",
        entry(json!({
            "events": [event(1), event(2)],
            "summary": { "phase": "sleep", "message": "half", "progress": 50.0 },
            "checkpoint": { "done": 1 },
        })),
        reply([ok(), held(2), ("/ops/0/lost", json!(false)), ("/ops/0/cancel_requested", json!(false))]),
    );
    add(
        "progress",
        "the same again",
        entry(json!({ "events": [event(1), event(2)] })),
        reply([ok(), held(2)]),
    );
    add("progress", "a hole", entry(json!({ "events": [event(4)] })), reply([ok(), held(2)]));
    // A string has two quotation marks around it.
    let text = |bytes: usize| json!("c".repeat(bytes - 2));
    add(
        "progress",
        "the largest checkpoint",
        entry(json!({ "checkpoint": text(CHECKPOINT_BYTES) })),
        reply([ok()]),
    );
    let kept = json!({ "done": 2 });
    add("progress", "the checkpoint that stays", entry(json!({ "checkpoint": kept })), reply([ok()]));
    for (what, bytes) in
        [("a checkpoint of a byte too many", CHECKPOINT_BYTES + 1), ("a checkpoint of 900 KB", 900_000)]
    {
        let too_large = entry(json!({ "checkpoint": text(bytes) }));
        let words = format!("the checkpoint has {bytes} bytes; at most {CHECKPOINT_BYTES} are stored");
        add("progress", what, too_large, reply([ok(), ("/ops/0/refused", json!(words))]));
        let too_large = with(finish(fence.clone()), "checkpoint", text(bytes));
        add("finish", what, message(too_large), refused(InvalidArgument, "65536"));
    }
    let not_taken =
        json!("an event is of another operation or attempt, too large, or says that it is the last");
    for (what, event) in [
        ("an event of another operation", with(event(3), "op_id", json!(queued))),
        ("an event of another attempt", with(event(3), "attempt", json!(2))),
        ("an event that says it is the last", with(event(3), "status", json!("succeeded"))),
        ("an event of more than 60 KiB", with(event(3), "detail", text(60 * 1024))),
    ] {
        let expected = reply([ok(), held(0), ("/ops/0/refused", not_taken.clone())]);
        add("progress", what, entry(json!({ "events": [event] })), expected);
    }

    for (what, field, wrong) in [
        ("an outcome that there is not", "outcome", json!("vanished")),
        (
            "a child of no kind",
            "children",
            json!([{ "key": "a", "scope": "hub", "kind": "no-such-kind", "input": {} }]),
        ),
        (
            "a child whose input makes no sense",
            "children",
            json!([{ "key": "a", "scope": "hub", "kind": "test-sleep", "input": { "seconds": -1 } }]),
        ),
        (
            "a child of another scope",
            "children",
            json!([{ "key": "a", "scope": "hub", "kind": "project-backup", "input": {} }]),
        ),
        (
            "a child with an unknown field",
            "children",
            json!([{ "key": "a", "scope": "hub", "kind": "test-sleep", "input": { "seconds": 1 }, "colour": 1 }]),
        ),
        ("an error without its message", "error", json!({ "code": "test", "retryable": true })),
    ] {
        add("finish", what, message(with(finish(fence.clone()), field, wrong)), refused(InvalidArgument, ""));
    }
    // With a claim, one that is refused spoils no other.
    let refused_end = with(finish(fence.clone()), "result", text(30_000));
    add(
        "claim",
        "an end that is refused, and a repeated one",
        message(with_ends(json!([refused_end, finish(ended.clone())]))),
        reply([("/finished/0/error/code", json!("invalid_argument")), ("/finished/1/ok", json!(true))]),
    );
    run(worker, encoding, &rows).await;

    // Nothing of all that was refused has left a trace.
    let after = client.operation("hub", &op_id).await;
    assert_eq!((&after["status"], &after["attempt"]), (&json!("running"), &json!(1)));
    assert_eq!((&after["result"], &after["error"]), (&before["result"], &before["error"]));
    assert_eq!(after["message"], "half");
    let children = client.call("hub", "lro.list", json!({ "parent_id": op_id })).await;
    assert_eq!(children["ops"], json!([]));
    let events = client.events("hub", &op_id).await;
    assert_eq!(events.iter().map(|event| &event["n"]).collect::<Vec<_>>(), [1, 2]);
    let mut hand_back = fence.clone();
    hand_back["outcome"] = json!("handed_back");
    assert_eq!(work(worker, "finish", hand_back).await["ok"], true);
    let lease = claimed(worker, &op_id).await;
    assert_eq!((&lease["attempt"], &lease["checkpoint"]), (&json!(2), &kept));

    // The end of an attempt is said again as often as need be; the fence of the attempt before says nothing.
    let recorded = || reply([("/ok", json!(true)), ("/lost", json!(false))]);
    let lost = || reply([("/ok", json!(false)), ("/lost", json!(true))]);
    let failure =
        json!({ "outcome": "failed", "error": { "code": "late", "message": "late", "retryable": false } });
    let mut other_end = lease["fence"].clone();
    other_end.as_object_mut().unwrap().extend(failure.as_object().unwrap().clone());
    let subject = "work.v1.hub.finish".to_owned();
    let row = |case: &'static str, request: Value, expected: Expected| Row {
        case,
        subject: subject.clone(),
        body: Body::Message(request),
        expected,
    };
    let rows = [
        row("the attempt before", finish(fence.clone()), lost()),
        row("good", finish(lease["fence"].clone()), recorded()),
        row("the same again", finish(lease["fence"].clone()), recorded()),
        row("another end", other_end, recorded()),
        Row {
            case: "the same again, with a claim",
            subject: "work.v1.hub.claim".to_owned(),
            body: Body::Message(with_ends(json!([finish(lease["fence"].clone())]))),
            expected: reply([("/finished", json!([{ "ok": true, "lost": false }]))]),
        },
        row("the attempt before, after the end", finish(fence), lost()),
    ];
    run(worker, encoding, &rows).await;
    let after = client.operation("hub", &op_id).await;
    assert_eq!((&after["status"], &after["attempt"]), (&json!("succeeded"), &json!(2)));
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
