//! `work.v1.<caller>.*`.

use bus_client::Bus;
use bus_messages::{Encoding, ErrorCode};
use serde_json::{Value, json};
use test_harness::{Client, TestSystem};
use uuid::Uuid;

use super::{
    ALONE, Body, Expected, LATER, NO_OPERATION, Row, SYSTEM, claim, claimed, connect, endpoint, finished,
    leased, nothing_is_queued, refused, reply, run, served, with, work, work_of, worker,
};

/// The largest checkpoint.
const CHECKPOINT_BYTES: usize = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_workers_refuses_what_is_not_theirs_in_both_encodings() {
    let _alone = ALONE.lock().await;
    let system = SYSTEM.get().await;
    let client = system.operator().await;
    let worker = worker(&system).await;
    let host = connect(&system, system.host_identity(0).unwrap()).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let mut tried = the_worker_protocol(&client, &worker, encoding).await;
        tried.extend(what_some_workers_ask(&system, &client, &worker, &host, encoding).await);
        for served in served(&client).await.iter().filter(|subject| subject.starts_with("work.")) {
            let of_it = || tried.iter().filter(|row| endpoint(&row.subject) == *served);
            for case in OF_EVERY_VERB {
                assert!(of_it().any(|row| row.case == case), "the table has no row {case:?} of {served}");
            }
            let is_answered = |row: &Row<&str>| matches!(row.expected, Expected::Reply(_));
            assert!(of_it().any(is_answered), "the table has no row of {served} that is answered");
            let is_not_theirs = |row: &Row<&str>| match &row.expected {
                Expected::Refused(code, _) => *code != ErrorCode::InvalidArgument,
                Expected::Reply(values) => values.iter().any(|(pointer, _)| pointer.ends_with("/lost")),
            };
            assert!(of_it().any(is_not_theirs), "the table has no row of {served} by whoever may not ask it");
        }
    }
}

/// What is tried of every verb of workers, whatever it is for.
const OF_EVERY_VERB: [&str; 5] = ["cut", "followed by more", "no object", "nothing", "an unknown field"];

fn of_every_verb(subject: &str, good: &Value) -> Vec<Row<&'static str>> {
    let row = |case: &'static str, body: Body, word: &'static str| Row {
        case,
        subject: subject.to_owned(),
        body,
        expected: refused(ErrorCode::InvalidArgument, word),
    };
    let message = Body::Message;
    vec![
        row("cut", Body::Cut(good.clone()), ""),
        row("followed by more", Body::Followed(good.clone()), ""),
        row("no object", message(json!("text")), ""),
        row("nothing", message(json!({})), "missing"),
        row("an unknown field", message(with(good.clone(), "colour", json!("blue"))), "colour"),
    ]
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

async fn the_worker_protocol(client: &Client, worker: &Bus, encoding: Encoding) -> Vec<Row<&'static str>> {
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
        for Row { case, body, expected, .. } in of_every_verb("", &good) {
            add(verb, case, body, expected);
        }
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
    // The database writes these in three and fifty times as many bytes as JSON does.
    for (what, checkpoint) in [
        ("a checkpoint of zeros", json!(vec![0; CHECKPOINT_BYTES / 2 - 1])),
        ("a checkpoint of large numbers", json!(vec![1e300; 10_000])),
    ] {
        add("progress", what, entry(json!({ "checkpoint": checkpoint })), reply([ok()]));
    }
    let deep = (0..200).fold(json!(0), |inside, _| json!([inside]));
    add(
        "progress",
        "a checkpoint of lists in lists",
        entry(json!({ "checkpoint": deep })),
        refused(InvalidArgument, ""),
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
    let not_taken = json!(
        "an event is of another operation or attempt, too large, has a number that no counting comes to, or says that it is the last"
    );
    for (what, event) in [
        ("an event of another operation", with(event(3), "op_id", json!(queued))),
        ("an event of another attempt", with(event(3), "attempt", json!(2))),
        ("an event that says it is the last", with(event(3), "status", json!("succeeded"))),
        ("an event with a number out of reach", event(u64::MAX)),
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
    let last = [
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
    run(worker, encoding, &last).await;
    let after = client.operation("hub", &op_id).await;
    assert_eq!((&after["status"], &after["attempt"]), (&json!("succeeded"), &json!(2)));
    rows.extend(last);
    rows
}

/// Creates an operation of a project and claims it, as who does such operations: its fence.
async fn leased_to(
    client: &Client,
    (bus, caller): (&Bus, &str),
    project: &str,
    kind: &str,
    input: Value,
) -> Value {
    let create = json!({ "kind": kind, "input": input, "priority": 100 });
    let created = client.call(project, "lro.create", create).await;
    let claim = json!({ "worker_id": "a test", "kinds": { kind: 1 }, "max": 1 });
    let mut reply = work_of(bus, caller, "claim", claim).await;
    let lease = reply["leases"][0].take();
    assert_eq!(lease["op"]["op_id"], created["op"]["op_id"], "{lease:#}");
    json!({ "op_id": lease["op"]["op_id"], "attempt": lease["attempt"], "lease_id": lease["lease_id"] })
}

/// The verbs that only the hub or only hosts have, and those that only the holders of some kinds have.
async fn what_some_workers_ask(
    system: &TestSystem,
    client: &Client,
    hub: &Bus,
    host: &Bus,
    encoding: Encoding,
) -> Vec<Row<&'static str>> {
    use ErrorCode::{AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, PermissionDenied};
    let host_scope = format!("host-{}", system.host(0));
    let new_project = async || client.create_project(system.host(0)).await;
    let (backed, pruned, source) = (new_project().await, new_project().await, new_project().await);
    let (dest, changed) = (new_project().await, new_project().await);
    let of = |project: &str| format!("project-{project}");
    let of_host = (host, host_scope.as_str());
    let backup = leased_to(client, of_host, &of(&backed), "project-backup", json!({})).await;
    let error = json!({ "code": "test", "message": "as asked", "retryable": false });
    let failed = |fence: Value| with(with(fence, "outcome", json!("failed")), "error", error.clone());
    // What is pruned is a repository, which a backup makes, whatever becomes of it.
    let first = leased_to(client, of_host, &of(&pruned), "project-backup", json!({})).await;
    work_of(host, &host_scope, "repository", first.clone()).await;
    assert_eq!(work_of(host, &host_scope, "finish", failed(first)).await["ok"], true);
    let prune = leased_to(client, of_host, &of(&pruned), "repo-prune", json!({})).await;
    let input = json!({ "src": { "path": "folder" }, "dest": { "project_id": dest, "path": "copied" } });
    let copy = leased_to(client, (hub, "hub"), &of(&source), "project-copy", input).await;
    let success = json!({ "outcome": "succeeded", "result": { "steps": 1, "attempt": 1 } });
    let (_, ended) = finished(client, hub, success).await;
    let later = json!({ "kind": "test-sleep", "input": { "seconds": 1 }, "not_before": LATER });
    let queued = client.call("hub", "lro.create", later).await["op"]["op_id"].as_str().unwrap().to_owned();
    let later = json!({ "kind": "project-backup", "not_before": LATER });
    let waiting = client.call(of(&changed), "lro.create", later.clone()).await["op"]["op_id"].clone();
    let canceled = client.call(of(&changed), "lro.create", later).await["op"]["op_id"].clone();
    client.call(of(&changed), "lro.cancel", json!({ "op_id": canceled })).await;

    let (mut of_hub, mut of_hosts) = (Vec::new(), Vec::new());
    let mut add = |verb: &str, what: &'static str, request: Value, expected: Expected| {
        let (caller, rows) = match verb.strip_prefix("hub.") {
            Some(_) => ("hub", &mut of_hub),
            None => (host_scope.as_str(), &mut of_hosts),
        };
        let subject = format!("work.v1.{caller}.{}", verb.trim_start_matches("hub."));
        rows.push(Row { case: what, subject, body: Body::Message(request), expected });
    };

    // The way into a repository, which is made where there is none; what a prune is to forget; how a copy goes on.
    let of_project = ("/grant/repository/project_id", json!(backed));
    add("repository", "good", backup.clone(), reply([of_project.clone()]));
    add("repository", "the same again", backup.clone(), reply([of_project]));
    let nothing = || {
        let none = json!([]);
        reply([
            ("/keep", none.clone()),
            ("/forget", none.clone()),
            ("/spare", none.clone()),
            ("/unfinished", none),
        ])
    };
    let backup_id = "ab".repeat(32);
    add("retention", "good", prune.clone(), nothing());
    add(
        "retention",
        "a backup that there is not",
        with(prune.clone(), "gone", json!([backup_id])),
        nothing(),
    );
    let no_backup = with(prune.clone(), "gone", json!(["newest"]));
    add("retention", "a backup id that is none", no_backup, refused(InvalidArgument, ": gone[0]: "));
    for field in ["gone", "bad"] {
        let many = with(prune.clone(), field, json!(vec![backup_id.as_str(); 1001]));
        add("retention", "too many backups", many, refused(InvalidArgument, "1000"));
    }
    add("retention", "the lease of another kind", backup.clone(), refused(FailedPrecondition, "repo-prune"));
    let child = |pointer: &'static str, value: &str| (pointer, json!(value));
    add(
        "hub.copy",
        "good",
        copy.clone(),
        reply([
            child("/phase", "apply"),
            child("/children/0/kind", "copy-apply"),
            child("/children/0/scope", &of(&dest)),
        ]),
    );
    add("hub.copy", "the lease of another kind", prune.clone(), refused(FailedPrecondition, "project-copy"));
    for (what, wrong) in wrong_fences(&copy, &queued, &ended) {
        add("hub.copy", what, wrong, refused(Conflict, "lease"));
    }
    for (what, wrong) in wrong_fences(&prune, &queued, &ended) {
        add("retention", what, wrong, refused(Conflict, "lease"));
    }

    // What hosts tell and ask.
    let says = |projects: Value| json!({ "projects": projects, "memory_pressure": 1.5, "io_pressure": null });
    let is_empty = || reply([("", json!({}))]);
    let generation = |project: &str| json!({ "project_id": project, "generation": 7 });
    add("freshness", "good", says(json!([generation(&changed)])), is_empty());
    add("freshness", "no project", says(json!([])), is_empty());
    add("freshness", "a project that there is not", says(json!([generation(NO_OPERATION)])), is_empty());
    let many = says(json!(vec![generation(&changed); 1001]));
    add("freshness", "too many projects", many, refused(InvalidArgument, "1000"));
    for (what, request, place) in [
        ("a project without its generation", says(json!([{ "project_id": changed }])), ": projects[0]: "),
        (
            "a pressure that is no number",
            with(says(json!([])), "io_pressure", json!("high")),
            ": io_pressure: ",
        ),
        (
            "a cache below nothing",
            with(says(json!([])), "cache", json!({ "bytes": -1, "limit_bytes": 1 })),
            ": cache.bytes: ",
        ),
    ] {
        add("freshness", what, request, refused(InvalidArgument, place));
    }
    add("hub.freshness", "by the hub", says(json!([])), refused(PermissionDenied, "host"));
    let asked = |ids: Value| json!({ "op_ids": ids });
    let unfinished = |ids: Value| reply([("/unfinished", ids)]);
    add("unfinished", "good", asked(json!([waiting])), unfinished(json!([waiting])));
    add("unfinished", "no operation", asked(json!([NO_OPERATION])), unfinished(json!([])));
    add("unfinished", "an operation of the hub", asked(json!([queued])), unfinished(json!([])));
    add("unfinished", "an operation that has ended", asked(json!([canceled])), unfinished(json!([])));
    let many = asked(json!(vec![NO_OPERATION; 1001]));
    add("unfinished", "too many operations", many, refused(InvalidArgument, "1000"));
    add("unfinished", "an id that is none", asked(json!(["1"])), refused(InvalidArgument, ": op_ids[0]: "));
    add("hub.unfinished", "by the hub", asked(json!([queued])), refused(PermissionDenied, "host"));

    // What the hub asks and tells.
    let limit = |limit: Value| json!({ "limit": limit });
    add("hub.schedule", "good", limit(json!(1)), reply([("/missed", json!(0))]));
    for wrong in [json!(0), json!(1001), json!(-1), json!("all")] {
        add("hub.schedule", "a limit out of range", limit(wrong), refused(InvalidArgument, "limit"));
    }
    add("schedule", "by a host", limit(json!(1)), refused(PermissionDenied, "hub"));
    let schema = json!({ "type": "object", "additionalProperties": false });
    let name = format!("conformance-{}", Uuid::new_v4());
    let kind = json!({
        "name": name, "description": "of a test", "scope": "hub", "phases": [{ "name": "count", "weight": 1 }],
        "max_attempts": 3, "time_to_live_s": 60, "exclusive": false, "example_input": {}, "input_schema": schema,
        "result_schema": {},
    });
    let kinds = |kinds: Value| json!({ "kinds": kinds });
    let built_in = with(kind.clone(), "name", json!("test-sleep"));
    let open = with(kind.clone(), "input_schema", json!({ "type": "object" }));
    let coloured = with(kind.clone(), "colour", json!("blue"));
    add("hub.declare", "no kind", kinds(json!([])), is_empty());
    // One that is refused keeps the others from being declared.
    for (what, wrong, code, word) in [
        ("a kind of the registry's own", built_in, AlreadyExists, "test-sleep"),
        ("a schema that takes anything", open, InvalidArgument, "additionalProperties"),
        ("an unknown field of a kind", coloured, InvalidArgument, "colour"),
    ] {
        add("hub.declare", what, kinds(json!([kind, wrong])), refused(code, word));
    }
    let many = kinds(json!(vec![kind.clone(); 101]));
    add("hub.declare", "too many kinds", many, refused(InvalidArgument, "100"));
    add("declare", "by a host", kinds(json!([kind])), refused(PermissionDenied, "hub"));

    for (verb, good) in [
        ("retention", prune.clone()),
        ("freshness", says(json!([]))),
        ("unfinished", asked(json!([]))),
        ("hub.copy", copy.clone()),
        ("hub.schedule", limit(json!(1))),
        ("hub.declare", kinds(json!([]))),
    ] {
        match verb.strip_prefix("hub.") {
            Some(verb) => of_hub.extend(of_every_verb(&format!("work.v1.hub.{verb}"), &good)),
            None => of_hosts.extend(of_every_verb(&format!("work.v1.{host_scope}.{verb}"), &good)),
        }
    }
    run(hub, encoding, &of_hub).await;
    run(host, encoding, &of_hosts).await;

    // What was good has had its effect, and what was refused none.
    let project = client.call(of(&changed), "project.get", json!({})).await;
    assert!(project["project"]["last_edited"].is_string(), "{project:#}");
    let unknown = client.refused("hub", "lro.create", json!({ "kind": name })).await;
    assert!(unknown.message.contains("there is no kind"), "{unknown:?}");
    work(hub, "declare", kinds(json!([kind]))).await;
    let declared = client.call("hub", "lro.create", json!({ "kind": name })).await;
    assert_eq!(declared["op"]["kind"], json!(name));
    let children = client.call(of(&dest), "lro.list", json!({})).await;
    assert_eq!(children["ops"], json!([]), "to ask how a copy goes on makes nothing");

    // Leases that nobody holds any more are no work for the next round.
    for ((bus, caller), fence) in [(of_host, backup), (of_host, prune), ((hub, "hub"), copy)] {
        assert_eq!(work_of(bus, caller, "finish", failed(fence)).await["ok"], true);
    }
    client.call(of(&changed), "lro.cancel", json!({ "op_id": waiting })).await;
    nothing_is_queued(client).await;
    of_hub.extend(of_hosts);
    of_hub
}
