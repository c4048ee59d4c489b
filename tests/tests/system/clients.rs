//! The same job from any NATS client: MessagePack, the `nats` command line, Python.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bus_messages::Encoding;
use serde_json::{Value, json};
use test_harness::{TestSystem, nats_command_line, python_with_nats, run};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::{scope, system};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_asked_for_in_message_pack() {
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 81).await;
    let request = json!({ "kind": "project-backup", "input": { "tags": ["packed"] } });
    let created =
        client.ask_as(Encoding::MessagePack, scope(&project), "lro.create", &request).await.unwrap();
    let op_id = created["op"]["op_id"].clone();
    let wait = json!({ "op_id": op_id, "timeout_s": 30 });
    let waited = client.ask_as(Encoding::MessagePack, scope(&project), "lro.wait", &wait).await.unwrap();
    assert_eq!(waited["op"]["status"], "succeeded", "{waited:#}");
    // Both encodings tell the same.
    assert_eq!(waited["op"], client.operation(scope(&project), op_id.as_str().unwrap()).await);
}

const PYTHON: &str = r#"
import asyncio, json, sys
import nats

async def main(url, user, password, project):
    bus = await nats.connect(url, user=user, password=password)
    seen = asyncio.Queue()
    async def on_message(message):
        await seen.put((message.subject, message.headers, json.loads(message.data)))
    await bus.subscribe(f"persist.project-{project}.lro.*.*", cb=on_message)
    request = {"kind": "project-backup", "input": {"tags": ["from-python"]}}
    reply = await bus.request(f"api.v1.project-{project}.lro.create", json.dumps(request).encode(), timeout=10)
    created = json.loads(reply.data)
    op_id = created["op"]["op_id"]
    events = 0
    while True:
        subject, headers, body = await asyncio.wait_for(seen.get(), 60)
        if subject.endswith(".evt"):
            assert body["op_id"] == op_id, body
            events += 1
        elif body["status"] in ("succeeded", "failed"):
            break
    refused = await bus.request(f"api.v1.project-{project}.lro.create", b'{"kind":"nonsense"}', timeout=10)
    assert refused.headers["Nats-Service-Error-Code"] == "400", refused.headers
    print(json.dumps({"op_id": op_id, "status": body["status"], "result": body["result"], "events": events,
                      "error": json.loads(refused.data)["error"]["code"]}))
    await bus.drain()

asyncio.run(main(*sys.argv[1:]))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_python_backs_a_project_up() {
    let Some(python) = python_with_nats().await else { return };
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 82).await;
    let ready = system.ready();
    let ops = &ready.credentials["ops"];
    let mut program = Command::new(python);
    program.args(["-c", PYTHON, &ready.nats_url, &ops.user, &ops.password, &project]);
    let finished = run(program).await;
    let told: Value = serde_json::from_str(finished.expect_success()).unwrap();
    assert_eq!((&told["status"], &told["error"]), (&json!("succeeded"), &json!("invalid_argument")));
    assert!(told["events"].as_u64() > Some(3), "{told:#}");
    let backups = client.call(scope(&project), "backup.list", json!({})).await;
    assert_eq!(backups["backups"][0]["backup_id"], told["result"]["backup_id"]);
    assert_eq!(backups["backups"][0]["tags"], json!(["from-python"]));
}

/// A client of an account that lies about who it is, in all the ways that a client has.
const FORGER: &str = r#"
import asyncio, json, sys
import nats

async def main(url, token, inbox_prefix, mine, others):
    errors = []
    async def on_error(error):
        errors.append(str(error))
    bus = await nats.connect(url, token=token, inbox_prefix=inbox_prefix.encode(), error_cb=on_error)
    created = []
    for headers in ({"Nats-Request-Info": '{"acc":"BUS","user":"ops"}'}, {"Nats-Request-Info": "nonsense"},
                    {"nats-request-info": "{}"}):
        request = {"kind": "project-backup", "not_before": "2100-01-01T00:00:00.000Z"}
        reply = await bus.request(f"api.v1.project-{mine}.lro.create", json.dumps(request).encode(), timeout=10, headers=headers)
        created.append(json.loads(reply.data)["op"]["created_by"])
    await bus.publish(f"api.v1.project-{others}.lro.create", b'{"kind":"project-backup"}', reply=f"{inbox_prefix}.x")
    await bus.publish(f"persist.project-{mine}.lro.01890a5d-ac96-774b-bcce-b302099a8057.evt", b"{}")
    await bus.subscribe(f"persist.project-{others}.lro.>")
    await bus.subscribe("_INBOX.>")
    await bus.flush()
    for _ in range(100):
        if len(errors) >= 4: break
        await asyncio.sleep(0.05)
    print(json.dumps({"created_by": created, "errors": errors}))
    await bus.close()

asyncio.run(main(*sys.argv[1:]))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_forges_its_identity_stays_who_it_is() {
    let Some(python) = python_with_nats().await else { return };
    let system = system().await;
    let operator = system.operator().await;
    let account =
        operator.call("hub", "account.create", json!({ "name": "mallory" })).await["account"].take();
    let id = account["id"].as_str().unwrap();
    let request = json!({ "title": "mallory's", "host_id": system.host(0), "account_id": id });
    let mine = operator.call("hub", "project.create", request).await["project"]["id"].clone();
    let others = operator.create_project(system.host(0)).await;
    let token = operator.call(format!("account-{id}"), "account.create_token", json!({})).await;
    let mut program = Command::new(python);
    program.args(["-c", FORGER, &system.ready().nats_url, token["token"].as_str().unwrap()]);
    program.args([account["inbox_prefix"].as_str().unwrap(), mine.as_str().unwrap(), &others]);
    let finished = run(program).await;
    let told: Value = serde_json::from_str(finished.expect_success()).unwrap();
    let own = format!("account-{id}");
    assert_eq!(told["created_by"], json!([own, own, own]));
    let refused = told["errors"].as_array().unwrap();
    assert!(refused.len() >= 4, "{told:#}");
    assert!(refused.iter().all(|error| error.as_str().unwrap().contains("ermissions")), "{told:#}");
    let rows = operator.call(scope(&others), "lro.list", json!({})).await;
    assert_eq!(rows["ops"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_of_the_command_line_tells_what_became_of_the_work() {
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 84).await;
    let longhaul = |arguments: &[&str]| {
        let mut command = Command::new(system.program("longhaul").unwrap());
        command.args(arguments).env("LONGHAUL_DATA", system.data_directory());
        run(command)
    };
    let backed_up = longhaul(&["--json", "backup", &project, "--tag", "by-hand"]).await;
    let lines: Vec<Value> =
        backed_up.expect_success().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty(), "{backed_up:?}");
    let backups = client.call(scope(&project), "backup.list", json!({})).await;
    assert_eq!(backups["backups"][0]["tags"], json!(["by-hand"]));

    // A project whose files are not there: the backup is created, and fails.
    let empty = client.create_project(system.host(1)).await;
    let failed = longhaul(&["backup", &empty]).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(failed.errors.contains("longhaul: "), "{failed:?}");
    let missing = longhaul(&["backup", "00000000-0000-4000-8000-000000000000"]).await;
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let senseless = longhaul(&["backup", "not-a-project"]).await;
    assert_eq!(senseless.status.code(), Some(2), "{senseless:?}");
}

fn nats(program: &Path, system: &TestSystem, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("--context").arg(system.ready().nats_context_dir.join("ops.json")).args(arguments);
    // Not the contexts of whoever runs the tests.
    command.env("XDG_CONFIG_HOME", system.scratch("no-config")).env("HOME", system.scratch("no-home"));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_command_line_backs_a_project_up_and_watches_it() {
    let Some(program) = nats_command_line() else { return };
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 83).await;
    let pattern = format!("persist.project-{project}.lro.*.*");
    let mut watching = nats(&program, &system, &["sub", "--raw", &pattern])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();

    // It is subscribed when something arrives; until then it is asked for once more.
    let create = format!("api.v1.project-{project}.lro.create");
    let request = r#"{"kind":"project-backup","input":{"tags":["by-hand"]}}"#;
    let mut seen = Vec::new();
    let mut ops = 0;
    while seen.is_empty() {
        assert!(ops < 10, "nats sub shows nothing");
        ops += 1;
        let created = run(nats(&program, &system, &["req", "--raw", &create, request])).await;
        let created: Value = serde_json::from_str(created.expect_success().trim()).unwrap();
        client.result(scope(&project), created["op"]["op_id"].as_str().unwrap()).await;
        while let Ok(Ok(Some(line))) = tokio::time::timeout(Duration::from_secs(2), lines.next_line()).await {
            seen.push(line);
        }
    }
    let messages: Vec<Value> = seen.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(messages.iter().any(|message| message["phase"] == "upload"), "{seen:#?}");
    assert!(
        messages.iter().any(|message| message["phase"] == "done" && message["status"] == "succeeded"),
        "{seen:#?}"
    );

    let list = format!("api.v1.project-{project}.backup.list");
    let listed = run(nats(&program, &system, &["req", "--raw", &list, "{}"])).await;
    let listed: Value = serde_json::from_str(listed.expect_success().trim()).unwrap();
    assert_eq!(listed["backups"].as_array().unwrap().len(), ops);

    let services = run(nats(&program, &system, &["micro", "ls"])).await;
    for name in ["registry", "scheduler"] {
        assert!(services.expect_success().contains(name), "{services:?}");
    }
    let info = run(nats(&program, &system, &["micro", "info", "registry"])).await;
    for word in ["api.v1.*.lro.create", "project-backup.input_schema", "before-exam"] {
        assert!(info.expect_success().contains(word), "no {word}: {info:?}");
    }
    let stats = run(nats(&program, &system, &["micro", "stats", "registry"])).await;
    assert!(stats.expect_success().contains("lro-create"), "{stats:?}");
}
