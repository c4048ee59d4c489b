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
    let created = client.ask_as(Encoding::MessagePack, scope(&project), "lro.create", &request).await.unwrap();
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
    assert!(messages.iter().any(|message| message["phase"] == "done" && message["status"] == "succeeded"), "{seen:#?}");

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
