//! `api.v1.<scope>.lro.*`.

use bus_client::Bus;
use bus_messages::{Encoding, ErrorCode};
use serde_json::{Value, json};
use test_harness::Client;
use uuid::Uuid;

use super::{
    ALONE, Body, Case, Expected, LATER, NO_OPERATION, Row, SYSTEM, endpoint, finished, leased,
    nothing_is_queued, refused, reply, run, served, with, worker,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_lro_answers_as_the_protocol_says_in_both_encodings() {
    let _alone = ALONE.lock().await;
    let system = SYSTEM.get().await;
    let client = system.operator().await;
    let worker = worker(&system).await;
    let project = client.create_project(system.host(0)).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let rows = rows_of_lro(&client, &worker, &format!("project-{project}")).await;
        for served in served(&client).await.iter().filter(|subject| subject.starts_with("api.v1.*.lro.")) {
            for case in Case::ALL {
                let has = |row: &Row<Case>| row.case == case && endpoint(&row.subject) == *served;
                assert!(rows.iter().any(has), "the table has no row {case:?} of {served}");
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
