//! What people see of the running system with `longhaul`, as tables, and what programs see with `--json`.

use serde_json::{Value, json};
use test_harness::{Client, TestSystem, run};
use tokio::process::Command;

use crate::{scope, system};

/// Runs `longhaul` with these arguments, as the operator.
async fn longhaul(system: &TestSystem, arguments: &[&str]) -> String {
    let mut command = Command::new(system.program("longhaul").unwrap());
    command.args(arguments).env("LONGHAUL_DATA", system.data_directory());
    run(command).await.expect_success().to_owned()
}

/// The objects that it prints with `--json`.
async fn objects(system: &TestSystem, arguments: &[&str]) -> Vec<Value> {
    let output = longhaul(system, &[arguments, &["--json"]].concat()).await;
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

async fn backed_up_project(system: &TestSystem, client: &Client, seed: u64) -> (String, String) {
    let project = client.create_project_with_files(system, seed).await;
    let backup = client.done(&project, "project-backup", json!({ "tags": ["shown"] })).await;
    (project, backup["backup_id"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_shown_with_what_they_are_doing() {
    let system = system().await;
    let client = system.operator().await;
    let (project, _) = backed_up_project(&system, &client, 131).await;
    let host = system.host(0).to_string();
    let table = longhaul(&system, &["host", "status"]).await;
    assert!(table.lines().next().unwrap().starts_with("HOST"), "{table}");
    let row = table.lines().find(|line| line.starts_with(&host)).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains(" active ") && row.contains(" of ") && row.contains("%"), "{table}");
    assert_eq!(table.lines().count(), 1 + 2, "{table}");

    let all = objects(&system, &["host", "status"]).await;
    assert_eq!(all.len(), 2);
    let one = &objects(&system, &["host", "status", &host]).await[0];
    assert_eq!(one["host"]["id"], *host);
    assert!(one["projects"].as_u64() > Some(0), "{one:#}");
    assert!(one["host"]["last_seen"].is_string() && one["load_seen"].is_string(), "{one:#}");
    assert!(one["cache_bytes"].as_u64() <= one["cache_limit_bytes"].as_u64(), "{one:#}");
    assert!(one["cache_limit_bytes"].as_u64() > Some(0), "{one:#}");

    let shown = longhaul(&system, &["host", "status", &host]).await;
    assert!(shown.contains("waits for memory") && shown.contains("with changes in no backup"), "{shown}");
    let status = &client.call(format!("host-{host}"), "host.status", json!({})).await;
    assert_eq!(status["projects"], objects(&system, &["host", "status", &host]).await[0]["projects"]);
    assert!(longhaul(&system, &["project", "status", &project]).await.contains(&host));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_and_its_backups_are_looked_into() {
    let system = system().await;
    let client = system.operator().await;
    let (project, backup) = backed_up_project(&system, &client, 132).await;
    let status = longhaul(&system, &["project", "status", &project]).await;
    for told in ["at risk", "backed up by itself", "last backup"] {
        assert!(status.contains(told), "{status}");
    }
    let mut status = objects(&system, &["project", "status", &project]).await.remove(0);
    let mut expected = client.call(scope(&project), "project.status", json!({})).await;
    // Time goes on.
    (status["at_risk_s"], expected["at_risk_s"]) = (Value::Null, Value::Null);
    assert_eq!(status, expected);

    let got = longhaul(&system, &["backup", "get", &project, &backup]).await;
    assert!(got.contains(&backup) && got.contains("shown"), "{got}");
    let got = &objects(&system, &["backup", "get", &project, &backup]).await[0];
    let expected = client.call(scope(&project), "backup.get", json!({ "backup_id": backup })).await;
    assert!(*got == expected || *got == expected["backup"], "{got:#}");

    let listed = longhaul(&system, &["backup", "ls", &project, &backup, "project/src"]).await;
    assert!(listed.contains("file-004.rs"), "{listed}");
    let entries = objects(&system, &["backup", "ls", &project, &backup, "project/src"]).await;
    assert!(entries.iter().any(|entry| entry["name"] == "file-004.rs"), "{entries:#?}");

    let found = longhaul(&system, &["backup", "find", &project, "project/**/file-004.rs"]).await;
    assert!(found.contains("project/src/file-004.rs"), "{found}");
    let matches = objects(&system, &["backup", "find", &project, "project/**/file-004.rs"]).await;
    assert_eq!(matches[0]["path"], "project/src/file-004.rs", "{matches:#?}");
    assert_eq!(matches[0]["backup_id"], *backup);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_a_restore_would_change_and_how_long_it_would_take() {
    let system = system().await;
    let client = system.operator().await;
    let (project, _) = backed_up_project(&system, &client, 133).await;
    let changed = system.project_files(0, &project).join("src/file-004.rs");
    std::fs::write(&changed, "mine").unwrap();
    let arguments = ["restore", &project, "--path", "project/src", "--dry-run"];
    let told = longhaul(&system, &arguments).await;
    assert!(told.contains("1 replaced (") && told.contains("0 deleted ("), "{told}");
    assert!(told.contains("estimate") && told.contains("nothing: dry run"), "{told}");
    let states = objects(&system, &arguments).await;
    let last = &states.last().unwrap()["state"];
    assert_eq!(last["result"]["changes"]["replaced"]["files"], 1, "{last:#}");
    assert_eq!(std::fs::read_to_string(&changed).unwrap(), "mine");
}
