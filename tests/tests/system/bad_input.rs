//! What makes no sense is refused with a code and a word about what to do, and leaves nothing behind.

use bus_client::RequestError;
use bus_messages::{ApiError, Encoding};
use serde_json::{Value, json};
use test_harness::Client;

use crate::{scope, system};

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

async fn refused(
    client: &Client,
    encoding: Encoding,
    scope: &str,
    endpoint: &str,
    request: &Value,
) -> ApiError {
    match client.ask_as(encoding, scope, endpoint, request).await {
        Err(RequestError::Api(error)) => error,
        other => panic!("{endpoint} of {scope} with {request} was to be refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_gets_a_4xx_that_says_what_to_do_and_leaves_no_row() {
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project(system.host(0)).await;
    let (of_project, nobody) = (scope(&project), scope(NOBODY));
    let backup = |input: Value| json!({ "kind": "project-backup", "input": input });
    let restore = |input: Value| json!({ "kind": "project-restore", "input": input });
    let (no_backup, no_account) = ("ab".repeat(32), format!("account-{NOBODY}"));
    let cases: Vec<(&str, &str, &str, Value, u16, &str)> = vec![
        // (what, scope, endpoint, request, status, a word of the message)
        ("a scope that is no uuid", "project-123", "lro.create", backup(json!({})), 400, "scope"),
        ("a scope of an unknown type", "bucket-1", "lro.create", backup(json!({})), 400, "scope"),
        (
            "an unknown kind",
            &of_project,
            "lro.create",
            json!({ "kind": "project-brew" }),
            400,
            "nats micro info",
        ),
        ("a kind that is no name", &of_project, "lro.create", json!({ "kind": "NOT A KIND" }), 400, "kind"),
        ("no kind", &of_project, "lro.create", json!({}), 400, "kind"),
        (
            "an unknown field",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "colour": 1 }),
            400,
            "colour",
        ),
        (
            "an unknown field of the input",
            &of_project,
            "lro.create",
            backup(json!({ "colour": 1 })),
            400,
            "colour",
        ),
        (
            "an input of another type",
            &of_project,
            "lro.create",
            backup(json!({ "pinned": "yes" })),
            400,
            "boolean",
        ),
        ("an input that is no object", &of_project, "lro.create", backup(json!("all")), 400, "input"),
        ("a tag with a comma", &of_project, "lro.create", backup(json!({ "tags": ["one,two"] })), 400, "tag"),
        ("an empty tag", &of_project, "lro.create", backup(json!({ "tags": [""] })), 400, "tag"),
        ("too many tags", &of_project, "lro.create", backup(json!({ "tags": vec!["a"; 17] })), 400, "16"),
        ("a project that does not exist", &nobody, "lro.create", backup(json!({})), 404, "project.list"),
        ("a restore without a backup", &of_project, "lro.create", restore(json!({})), 400, "backup_id"),
        (
            "a backup id that is none",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "newest" })),
            400,
            "backup",
        ),
        (
            "a backup that does not exist",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": no_backup })),
            404,
            "backup.list",
        ),
        (
            "latest where there is none",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest" })),
            412,
            "project-backup",
        ),
        (
            "a path that leaves",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "path": "project/../../etc" })),
            400,
            "path",
        ),
        (
            "an absolute path",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "path": "/etc/passwd" })),
            400,
            "path",
        ),
        (
            "a path outside of the layout",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "path": "secrets/a" })),
            400,
            "path",
        ),
        (
            "a target that leaves",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "path": "project/a", "target": "../a" })),
            400,
            "path",
        ),
        (
            "a path without a place of its own, and no target",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "path": "persist/a" })),
            400,
            "target",
        ),
        (
            "an unknown conflict rule",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "conflict": "merge" })),
            400,
            "merge",
        ),
        (
            "a host that does not exist",
            &of_project,
            "lro.create",
            restore(json!({ "backup_id": "latest", "host_id": NOBODY })),
            404,
            "host.list",
        ),
        (
            "a backup of the hub",
            "hub",
            "lro.create",
            backup(json!({ "tags": ["of-the-hub"] })),
            400,
            "project",
        ),
        (
            "a sleep of a project",
            &of_project,
            "lro.create",
            json!({ "kind": "test-sleep", "input": { "seconds": 1 } }),
            400,
            "hub",
        ),
        (
            "a sleep that is too long",
            "hub",
            "lro.create",
            json!({ "kind": "test-sleep", "input": { "seconds": 601.5 } }),
            400,
            "600",
        ),
        (
            "a beginning in the year 9999",
            "hub",
            "lro.create",
            json!({ "kind": "test-sleep", "input": { "seconds": 1 }, "not_before": "9999-12-31T00:00:00Z" }),
            400,
            "not_before is to be in the year",
        ),
        (
            "a beginning in no year of four digits",
            "hub",
            "lro.create",
            json!({ "kind": "test-sleep", "input": { "seconds": 1 }, "not_before": "9999-12-31T23:59:59-01:00" }),
            400,
            "years 0 to 9999",
        ),
        (
            "lists in lists in lists",
            "hub",
            "lro.create",
            json!({ "kind": "test-sleep", "input": (0..70).fold(json!(0), |inside, _| json!([inside])) }),
            400,
            "",
        ),
        (
            "a routing that is not its own",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "routing": "hub" }),
            400,
            "routing",
        ),
        (
            "a priority out of range",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "priority": 1000 }),
            400,
            "priority",
        ),
        (
            "a time to live of nothing",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "ttl_s": 0 }),
            400,
            "ttl_s",
        ),
        (
            "force without a key",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "force": true }),
            400,
            "dedupe_key",
        ),
        (
            "a key that is too long",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "dedupe_key": "k".repeat(201) }),
            400,
            "dedupe_key",
        ),
        (
            "a date that is none",
            &of_project,
            "lro.create",
            json!({ "kind": "project-backup", "not_before": "soon" }),
            400,
            "",
        ),
        (
            "an input that is too large",
            &of_project,
            "lro.create",
            backup(json!({ "tags": vec!["t".repeat(60); 1000] })),
            400,
            "",
        ),
        ("an operation id that is none", &of_project, "lro.get", json!({ "op_id": "1" }), 400, "UUID"),
        (
            "an operation that does not exist",
            &of_project,
            "lro.get",
            json!({ "op_id": NOBODY }),
            404,
            "lro.list",
        ),
        (
            "canceling what does not exist",
            &of_project,
            "lro.cancel",
            json!({ "op_id": NOBODY }),
            404,
            "lro.list",
        ),
        (
            "waiting for what does not exist",
            &of_project,
            "lro.wait",
            json!({ "op_id": NOBODY, "timeout_s": 1 }),
            404,
            "lro.list",
        ),
        (
            "events of what does not exist",
            &of_project,
            "lro.events",
            json!({ "op_id": NOBODY }),
            404,
            "lro.list",
        ),
        (
            "retrying what does not exist",
            &of_project,
            "lro.retry",
            json!({ "op_id": NOBODY }),
            404,
            "lro.list",
        ),
        ("a cursor of nowhere", &of_project, "lro.list", json!({ "cursor": "x" }), 400, "cursor"),
        ("a page of nothing", &of_project, "lro.list", json!({ "limit": 0 }), 400, "limit"),
        ("an unknown status", &of_project, "lro.list", json!({ "status": "asleep" }), 400, "status"),
        ("backups of nobody", &nobody, "backup.list", json!({}), 404, "project"),
        (
            "a backup that is not there",
            &of_project,
            "backup.get",
            json!({ "backup_id": no_backup }),
            404,
            "backup.list",
        ),
        ("a project that is not there", &nobody, "project.get", json!({}), 404, "project"),
        (
            "a project without a host",
            "hub",
            "project.create",
            json!({ "title": "t", "host_id": NOBODY }),
            404,
            "host.list",
        ),
        (
            "a project without a title",
            "hub",
            "project.create",
            json!({ "title": "", "host_id": system.host(0) }),
            400,
            "title",
        ),
        (
            "a project in no region",
            "hub",
            "project.create",
            json!({ "title": "t", "host_id": system.host(0), "region": "moon" }),
            400,
            "weur",
        ),
        (
            "a project made on a project",
            &of_project,
            "project.create",
            json!({ "title": "t", "host_id": system.host(0) }),
            400,
            "hub",
        ),
        (
            "a collaborator that is not there",
            &of_project,
            "project.add_collaborator",
            json!({ "account_id": NOBODY }),
            404,
            "account",
        ),
        ("a token of nobody", &no_account, "account.create_token", json!({}), 404, "account"),
    ];
    for (what, scope, endpoint, request, status, word) in &cases {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let error = refused(&client, encoding, scope, endpoint, request).await;
            assert_eq!(error.status, *status, "{what} ({encoding:?}): {error:?}");
            assert!(
                error.message.contains(word),
                "{what} ({encoding:?}): {:?} lacks {word:?}",
                error.message
            );
            assert!(!error.retryable, "{what}: {error:?}");
        }
    }
    for scope in [&of_project, &nobody] {
        let rows = client.call(scope, "lro.list", json!({})).await;
        assert_eq!(rows["ops"], json!([]), "a refused request left a row");
    }
    let hub = client.call("hub", "lro.list", json!({ "limit": 200 })).await;
    for op in hub["ops"].as_array().unwrap() {
        assert!(op["kind"] != "project-backup" && op["input"]["seconds"] != 601.5, "{op:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_read_is_refused_and_a_large_one_too() {
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project(system.host(0)).await;
    let subject = format!("api.v1.project-{project}.lro.create");
    let ask = |content_type: Option<&'static str>, body: Vec<u8>| {
        let (bus, subject) = (client.bus().clone(), subject.clone());
        async move {
            let timeout = std::time::Duration::from_secs(15);
            let reply = bus.request_raw(subject, content_type, body.into(), timeout).await.unwrap();
            let status = reply.headers.get("Nats-Service-Error-Code").unwrap().to_owned();
            let message = reply.headers.get("Nats-Service-Error").unwrap().to_owned();
            (status, message, String::from_utf8_lossy(&reply.payload).into_owned())
        }
    };
    let large = format!(r#"{{"kind":"project-backup","input":{{"tags":["{}"]}}}}"#, "x".repeat(900_000));
    for (content_type, body) in [
        (None, b"not json".to_vec()),
        (None, b"{\"kind\":\"project-backup\"} and more".to_vec()),
        (None, b"\xff\xfe".to_vec()),
        (Some("application/msgpack"), b"\xc1".to_vec()),
        (Some("text/xml"), b"<kind/>".to_vec()),
        (None, large.into_bytes()),
    ] {
        let (status, message, body) = ask(content_type, body).await;
        assert_eq!(status, "400", "{message}");
        assert!(!message.is_empty());
        if content_type != Some("application/msgpack") {
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["error"]["code"], "invalid_argument", "{body}");
            assert_eq!(body["error"]["status"], 400);
        }
    }
    // Unknown subjects are nobody's, or answered with what is wrong with them.
    let unknown = client.ask(scope(&project), "lro.destroy", &json!({})).await;
    assert!(matches!(unknown, Err(RequestError::NoResponders { .. })), "{unknown:?}");
    let rows = client.call(scope(&project), "lro.list", json!({})).await;
    assert_eq!(rows["ops"], json!([]));
}
