//! Looking into backups without restoring them: by the project's host, and by the hub where that is away.

use std::fs;
use std::time::Duration;

use bus_client::RequestError;
use serde_json::{Value, json};
use test_harness::{
    Client, ObjectStoreKind, Server, SystemOptions, TestSystem, btrfs_is_available, wait_for,
};

use crate::{scope, system};

async fn listed(client: &Client, project: &str, request: Value) -> Vec<Value> {
    let mut entries = Vec::new();
    let mut request = request;
    loop {
        let mut page = client.call(scope(project), "backup.ls", request.clone()).await;
        entries.append(page["entries"].as_array_mut().unwrap());
        match page["next_cursor"].take() {
            Value::Null => return entries,
            cursor => request["cursor"] = cursor,
        }
    }
}

fn names(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_backup_shows_what_was_there_when_it_was_made() {
    directories_are_shown(&*system().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_btrfs_and_in_s3_a_directory_of_a_backup_shows_what_was_there_when_it_was_made() {
    if btrfs_is_available() {
        let object_store = ObjectStoreKind::S3;
        let options = SystemOptions { hosts: 2, btrfs: true, object_store, ..SystemOptions::default() };
        directories_are_shown(&TestSystem::start(options).await.unwrap()).await;
    }
}

async fn directories_are_shown(system: &TestSystem) {
    let client = system.operator().await;
    let project = client.create_project(system.host(0)).await;
    system.make_volume(0, &project);
    let files = system.project_files(0, &project);
    fs::create_dir_all(files.join("src/nested")).unwrap();
    fs::write(files.join("src/main.rs"), "fn main() {}\n").unwrap();
    fs::write(files.join("src/nested/deep.rs"), "").unwrap();
    std::os::unix::fs::symlink("main.rs", files.join("src/link")).unwrap();
    let first = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    fs::remove_file(files.join("src/main.rs")).unwrap();
    fs::write(files.join("src/later.rs"), "x").unwrap();
    let second = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();

    let entries = listed(&client, &project, json!({ "backup_id": first, "path": "project/src" })).await;
    assert_eq!(names(&entries), ["link", "main.rs", "nested"]);
    let kinds: Vec<&str> = entries.iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["symlink", "file", "dir"]);
    assert_eq!(entries[1]["size_bytes"], 13);
    assert!(entries[1]["mtime"].as_str().unwrap().ends_with('Z') && entries[1]["mode"].is_u64());
    let entries = listed(&client, &project, json!({ "backup_id": second, "path": "project/src" })).await;
    assert_eq!(names(&entries), ["later.rs", "link", "nested"]);
    let roots = listed(&client, &project, json!({ "backup_id": second })).await;
    assert_eq!(names(&roots), ["persist", "project"]);
    let request = json!({ "backup_id": first, "path": "project", "depth": 16, "limit": 1 });
    let all = listed(&client, &project, request).await;
    assert_eq!(names(&all), ["src", "src/link", "src/main.rs", "src/nested", "src/nested/deep.rs"]);

    // Over all backups, the newest first; or in one.
    let found = |request: Value| {
        let (client, project) = (&client, &project);
        async move {
            let mut request = request;
            let mut paths = Vec::new();
            loop {
                let mut page = client.call(scope(project), "backup.find", request.clone()).await;
                for found in page["matches"].as_array().unwrap() {
                    paths.push((found["backup_id"].clone(), found["path"].as_str().unwrap().to_owned()));
                }
                match page["next_cursor"].take() {
                    Value::Null => return paths,
                    cursor => request["cursor"] = cursor,
                }
            }
        }
    };
    let of = |id: &Value, path: &str| (id.clone(), format!("project/src/{path}"));
    let everywhere = [
        of(&second, "later.rs"),
        of(&second, "nested/deep.rs"),
        of(&first, "main.rs"),
        of(&first, "nested/deep.rs"),
    ];
    assert_eq!(found(json!({ "glob": "**/*.rs" })).await, everywhere);
    assert_eq!(found(json!({ "glob": "**/*.rs", "limit": 1 })).await, everywhere);
    assert_eq!(
        found(json!({ "glob": "project/src/*.rs", "backup_id": first })).await,
        [of(&first, "main.rs")]
    );
    assert_eq!(found(json!({ "glob": "nothing" })).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_refused_with_the_reason() {
    let system = system().await;
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 71).await;
    let backup = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    let unknown = "0".repeat(64);
    let ls = |path: &str| json!({ "backup_id": backup, "path": path });
    for (request, status) in [
        (ls("project/../../etc"), 400),
        (ls("/project"), 400),
        (ls("project/a\0b"), 400),
        (ls("elsewhere"), 400),
        (ls(""), 400),
        (ls("project/no/such/path"), 404),
        (json!({ "backup_id": unknown, "path": "project" }), 404),
        (json!({ "backup_id": "abc", "path": "project" }), 400),
        (json!({ "backup_id": backup, "path": "project", "depth": 0 }), 400),
        (json!({ "backup_id": backup, "path": "project", "depth": 17 }), 400),
        (json!({ "backup_id": backup, "path": "project", "limit": 1001 }), 400),
        (json!({ "backup_id": backup, "path": "project", "cursor": "not/base64" }), 400),
        (json!({ "backup_id": backup, "path": "project", "recursive": true }), 400),
    ] {
        let refusal = client.refused(scope(&project), "backup.ls", request.clone()).await;
        assert_eq!(refusal.status, status, "{request}: {refusal:?}");
    }
    for (request, status) in [
        (json!({ "glob": "" }), 400),
        (json!({ "glob": "[" }), 400),
        (json!({ "glob": "*".repeat(1001) }), 400),
        (json!({ "glob": "*", "backup_id": unknown }), 404),
        (json!({ "glob": "*", "cursor": "x" }), 400),
    ] {
        let refusal = client.refused(scope(&project), "backup.find", request.clone()).await;
        assert_eq!(refusal.status, status, "{request}: {refusal:?}");
    }
    // One project's backup is not another's.
    let other = client.create_project_with_files(&system, 72).await;
    let refusal = client.refused(scope(&other), "backup.ls", ls("project")).await;
    assert_eq!(refusal.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_host_is_away_the_hub_looks_and_the_host_does_again_when_it_is_back() {
    let options = SystemOptions { object_store: ObjectStoreKind::S3, ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 73).await;
    let backup = client.done(&project, "project-backup", json!({})).await["backup_id"].clone();
    let request = json!({ "backup_id": backup, "path": "project", "depth": 3 });
    let by_the_host = listed(&client, &project, request.clone()).await;
    assert!(by_the_host.len() > 5, "{by_the_host:?}");

    system.hold_restarts();
    let old = system.kill_nine(Server::HostBackup(0));
    assert_eq!(listed(&client, &project, request.clone()).await, by_the_host);
    let scheduler_cache = system.data_directory().join("cache/scheduler");
    assert!(fs::read_dir(&scheduler_cache).unwrap().count() > 0, "the hub has looked");
    // With nobody there at all, it says so.
    let scheduler = system.kill_nine(Server::Scheduler);
    wait_for("nobody to answer", Duration::from_secs(60), || async {
        match client.ask(scope(&project), "backup.ls", &request).await {
            Err(RequestError::Api(refusal)) if refusal.status == 503 && refusal.retryable => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    system.allow_restarts();
    system.restarted(Server::HostBackup(0), old).await;
    system.restarted(Server::Scheduler, scheduler).await;
    assert_eq!(listed(&client, &project, request).await, by_the_host);
}
