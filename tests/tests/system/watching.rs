//! `longhaul watch` as a program reads it: every event once and in its order, whatever becomes of the server meanwhile, and
//! how the operation ended in the exit status.

use std::process::Stdio;
use std::time::Duration;

use domain_model::OperationStatus;
use serde_json::{Value, json};
use test_harness::{Client, Finished, Seen, Server, SystemOptions, TestSystem, run};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::system;

const PATIENCE: Duration = Duration::from_secs(180);

fn watch(system: &TestSystem, operation: &[&str]) -> Command {
    let mut command = Command::new(system.program("longhaul").unwrap());
    command.args(["--json", "watch"]).args(operation).env("LONGHAUL_DATA", system.data_directory());
    command
}

/// Adds what a line of the program tells.
fn note(seen: &mut Seen, line: &str) {
    let Value::Object(object) = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")) else {
        panic!("{line} is no object")
    };
    let told: Vec<(String, Value)> = object.into_iter().collect();
    match &told[..] {
        [(name, event)] if name == "event" => {
            seen.events.push(serde_json::from_value(event.clone()).unwrap());
        }
        [(name, state)] if name == "state" => {
            seen.states.push(serde_json::from_value(state.clone()).unwrap());
        }
        _ => panic!("{line} is neither an event nor a summary"),
    }
}

fn seen(output: &str) -> Seen {
    let mut seen = Seen { events: Vec::new(), states: Vec::new() };
    output.lines().for_each(|line| note(&mut seen, line));
    seen
}

/// The error that the program tells on its standard error.
fn error(errors: &str) -> String {
    let last = errors.lines().last().unwrap_or_else(|| panic!("it says nothing"));
    let told: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{errors}"));
    told["error"]["message"].as_str().unwrap_or_else(|| panic!("{errors}")).to_owned()
}

/// A program that watches while the test goes on.
struct Watching {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Seen,
}

impl Watching {
    fn start(system: &TestSystem, op_id: &str) -> Self {
        let mut command = watch(system, &["hub", op_id]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, seen: seen("") }
    }

    /// Reads a line; false where there will be none.
    async fn read(&mut self) -> bool {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line =
            line.unwrap_or_else(|_| panic!("no line for {PATIENCE:?} after {:#?}", self.seen)).unwrap();
        line.iter().for_each(|line| note(&mut self.seen, line));
        line.is_some()
    }

    async fn read_events(&mut self, count: usize) {
        while self.seen.events.len() < count {
            assert!(self.read().await, "it has ended: {:#?}", self.seen);
        }
    }

    /// Reads all that comes; and the exit status with what the program says of it.
    async fn end(mut self) -> (Seen, Option<i32>, String) {
        while self.read().await {}
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        (self.seen, status.code(), errors)
    }
}

/// Watches an operation that has ended, by both of its names: what it was told is what the ring has.
async fn watched_late(system: &TestSystem, op_id: &str) -> Finished {
    let client = system.operator().await;
    let finished = run(watch(system, &["hub", op_id])).await;
    let late = seen(&finished.output);
    assert_eq!(json!(late.events), json!(client.events("hub", op_id).await));
    let op = client.operation("hub", op_id).await;
    let [state] = &late.states[..] else { panic!("one summary tells all: {late:#?}") };
    assert_eq!((json!(state.rev), json!(state.status)), (op["rev"].clone(), op["status"].clone()));
    assert_eq!((json!(state.result), json!(state.error)), (op["result"].clone(), op["error"].clone()));
    let again = run(watch(system, &[&format!("persist.hub.lro.{op_id}")])).await;
    assert_eq!((again.status.code(), again.output), (finished.status.code(), finished.output.clone()));
    finished
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_from_the_start_and_who_comes_late_read_the_same_and_that_it_succeeded() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 2.0, "steps": 8 })).await;
    let (live, status, errors) = Watching::start(&system, &op_id).end().await;
    assert_eq!(status, Some(0), "{errors}");
    live.assert_complete(OperationStatus::Succeeded);
    assert!(live.events.iter().any(|event| event.message == "step 8 of 8"), "{live:#?}");
    assert_eq!(live.states.last().unwrap().result, Some(json!({ "steps": 8, "attempt": 1 })));

    let late = watched_late(&system, &op_id).await;
    assert_eq!(seen(late.expect_success()).events, live.events);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_is_a_failure_of_who_watches_it() {
    let system = system().await;
    let client = system.operator().await;
    let input = json!({ "seconds": 0.4, "steps": 4, "fail_at_step": 3 });
    let op_id = client.create("hub", "test-sleep", input).await;
    let (live, status, errors) = Watching::start(&system, &op_id).end().await;
    assert_eq!(status, Some(1), "{errors}");
    live.assert_complete(OperationStatus::Failed);
    assert_eq!(live.events.last().unwrap().attempt, 3, "all of its attempts are shown: {live:#?}");
    assert!(error(&errors).contains("failed: fails at step 3"), "{errors}");

    let late = watched_late(&system, &op_id).await;
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    assert_eq!(seen(&late.output).events, live.events);
    assert!(error(&late.errors).contains("failed: fails at step 3"), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_canceled_is_a_failure_of_who_watches_it() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 300.0, "steps": 600 })).await;
    let mut watching = Watching::start(&system, &op_id);
    // They are printed when they come: it does not end by itself before the test does.
    watching.read_events(3).await;
    client.call("hub", "lro.cancel", json!({ "op_id": op_id })).await;
    let (live, status, errors) = watching.end().await;
    assert_eq!(status, Some(1), "{errors}");
    live.assert_complete(OperationStatus::Canceled);
    assert!(error(&errors).contains("has ended as canceled"), "{errors}");
    assert_eq!(watched_late(&system, &op_id).await.status.code(), Some(1));

    // What there is not is a failure, too, and what makes no sense a usage error.
    let nothing = run(watch(&system, &["hub", "00000000-0000-7000-8000-000000000000"])).await;
    assert_eq!((nothing.status.code(), nothing.output.as_str()), (Some(1), ""), "{nothing:?}");
    let senseless = run(watch(&system, &["hub"])).await;
    assert_eq!((senseless.status.code(), senseless.output.as_str()), (Some(2), ""), "{senseless:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_goes_on_when_the_server_was_killed_and_misses_no_event() {
    let options = SystemOptions { test_kinds: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    // Less than the ring holds, and less than ten a second.
    let input = json!({ "seconds": 12.0, "steps": 60 });
    let op_id = client.create("hub", "test-sleep", input).await;
    let mut watching = Watching::start(&system, &op_id);
    watching.read_events(5).await;
    let old = system.kill_nine(Server::Nats);
    let before = watching.seen.events.len();
    assert!(watching.seen.states.iter().all(|state| !state.status.is_terminal()), "{:#?}", watching.seen);
    system.restarted(Server::Nats, old).await;
    let (live, status, errors) = watching.end().await;
    assert_eq!(status, Some(0), "{errors}");
    live.assert_complete(OperationStatus::Succeeded);
    assert!(live.events[before..].iter().any(|event| event.message == "step 60 of 60"), "{live:#?}");
    assert_eq!(seen(watched_late(&system, &op_id).await.expect_success()).events, live.events);
}

/// Changes which subjects the stream takes.
async fn listen(writer: &Client, subjects: &str) {
    let ask = async |verb: &str, config: String| {
        let subject = format!("$JS.API.STREAM.{verb}.LRO");
        let answer = writer.bus().request_raw(subject, None, config.into(), PATIENCE).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["error"], Value::Null, "{answer:#}");
        answer["config"].clone()
    };
    let mut config = ask("INFO", String::new()).await;
    config["subjects"] = json!([subjects]);
    ask("UPDATE", config.to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_waits_for_the_end_that_the_stream_does_not_take_yet() {
    let options = SystemOptions { test_kinds: true, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 3.0, "steps": 6 })).await;
    let writer = system.hub_identity("hub_writer").unwrap();
    let writer = system.connect_as(writer).await;
    let mut watching = Watching::start(&system, &op_id);
    watching.read_events(2).await;
    // As long as the stream is there, nobody makes it anew.
    listen(&writer, "persist.elsewhere").await;
    assert_eq!(client.ended("hub", &op_id).await["status"], "succeeded");
    let list = client.call("hub", "lro.events", json!({ "op_id": op_id })).await;
    assert_eq!((&list["end_pending"], &list["state"]["status"]), (&json!(true), &json!("succeeded")));

    // For longer than a watcher waits for an event that is lost.
    let ahead = tokio::time::timeout(Duration::from_secs(15), async { while watching.read().await {} }).await;
    assert!(ahead.is_err(), "it has given up: {:#?}", watching.seen);
    listen(&writer, "persist.*.lro.>").await;
    let (live, status, errors) = watching.end().await;
    assert_eq!(status, Some(0), "{errors}");
    // What its worker told meanwhile nobody has.
    let last = live.events.last().unwrap();
    assert_eq!((last.phase.as_str(), last.status), ("done", Some(OperationStatus::Succeeded)), "{live:#?}");
    let list = client.call("hub", "lro.events", json!({ "op_id": op_id })).await;
    assert_eq!(list["end_pending"], Value::Null);
}
