//! Copies between projects: one snapshot, any number of destinations, on whatever hosts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use test_harness::{Client, Server, SystemOptions, TestSystem, wait_for};

use crate::{scope, system};

const PATIENCE: Duration = Duration::from_secs(120);

/// A project with files on a host.
async fn project_on(system: &TestSystem, client: &Client, host: usize) -> String {
    let project = client.create_project(system.host(host)).await;
    system.make_volume(host, &project);
    project
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A source with a handout of some files.
async fn source(system: &TestSystem, client: &Client) -> (String, PathBuf) {
    let project = project_on(system, client, 0).await;
    let files = system.project_files(0, &project);
    write(&files.join("handout/week 1/task.txt"), "one");
    write(&files.join("handout/notes"), "notes");
    symlink("notes", files.join("handout/link")).unwrap();
    fs::create_dir(files.join("handout/empty")).unwrap();
    write(&files.join("secret"), "not to be copied");
    (project, files)
}

fn dest(project: &str, path: &str) -> Value {
    json!({ "project_id": project, "path": path })
}

fn copy(path: &str, dests: &[Value], options: Value) -> Value {
    json!({ "src": { "path": path }, "dests": dests, "options": options })
}

async fn copies(client: &Client, project: &str, request: Value) -> Vec<Value> {
    let reply = client.call(scope(project), "copy.list", request).await;
    reply["copies"].as_array().unwrap().clone()
}

/// What there is in the object store of copies.
pub(crate) fn copy_objects(system: &TestSystem, op_id: &str) -> usize {
    fn count(directory: &Path, name: &str) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.file_type() {
                Ok(kind) if kind.is_dir() => count(&entry.path(), name),
                _ => usize::from(entry.path().display().to_string().contains(name)),
            })
            .sum()
    }
    count(&system.data_directory().join("object-store"), &format!("copy-{op_id}"))
}

/// Nothing that a copy needs on the way is left in a project or on a host.
fn assert_clean(system: &TestSystem, host: usize, project: &str) {
    for entry in fs::read_dir(system.project_files(host, project)).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with(".longhaul"), "{name:?} is left in {project}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_goes_to_projects_on_this_host_and_on_others() {
    let system = system().await;
    let client = system.operator().await;
    let (from, _) = source(&system, &client).await;
    let (near, far) = (project_on(&system, &client, 0).await, project_on(&system, &client, 1).await);
    fs::set_permissions(system.project_files(1, &far), fs::Permissions::from_mode(0o755)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(system.project_files(1, &far), Some(1234), Some(2345)).unwrap();
    }
    let dests = [dest(&near, "handout"), dest(&far, "course/handout"), dest(&from, "handout again")];
    let op_id = client.create(scope(&from), "project-copy", copy("handout", &dests, json!({}))).await;
    assert_eq!(copies(&client, &from, json!({ "op_id": op_id })).await.len(), 3, "they are there at once");
    let result = client.result(scope(&from), &op_id).await;
    assert_eq!(result["snapshot_deleted"], true, "{result:#}");
    for (number, expected) in dests.iter().enumerate() {
        let got = &result["dests"][number];
        assert_eq!((&got["project_id"], &got["path"]), (&expected["project_id"], &expected["path"]));
        assert_eq!((&got["status"], &got["error"]), (&json!("done"), &Value::Null));
    }
    let targets = [
        system.project_files(0, &near).join("handout"),
        system.project_files(1, &far).join("course/handout"),
        system.project_files(0, &from).join("handout again"),
    ];
    for target in &targets {
        assert_eq!(read(&target.join("week 1/task.txt")), "one");
        assert_eq!(read(&target.join("notes")), "notes");
        assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("notes"));
        assert!(target.join("empty").is_dir());
        assert!(
            !target.parent().unwrap().join("secret").exists()
                || target.starts_with(system.project_files(0, &from))
        );
    }
    let owned = targets[1].join("notes").metadata().unwrap();
    let owner = system.project_files(1, &far).metadata().unwrap();
    assert!(!root || owner.uid() == 1234);
    assert_eq!(
        (owned.uid(), owned.gid()),
        (owner.uid(), owner.gid()),
        "what is copied belongs to the destination's owner"
    );
    assert_eq!(copy_objects(&system, &op_id), 0, "the snapshot is gone");
    for (host, project) in [(0, &near), (1, &far), (0, &from)] {
        assert_clean(&system, host, project);
    }

    let listed = copies(&client, &far, json!({})).await;
    assert_eq!((listed.len(), &listed[0]["status"]), (1, &json!("done")));
    let apply = listed[0]["apply_op_id"].as_str().unwrap();
    assert_eq!(client.operation(scope(&far), apply).await["parent_id"], op_id);
    // Each destination's end is told to who watches the whole, with the operation that did it.
    let events = client.events(scope(&from), &op_id).await;
    let linked = events.iter().filter(|event| event["detail"]["apply_op_id"].is_string()).count();
    assert_eq!(linked, 3, "{events:#?}");
    assert!(
        client.call(scope(&from), "backup.list", json!({})).await["backups"].as_array().unwrap().is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_meets_something_at_its_place_does_as_cp_does() {
    let system = system().await;
    let client = system.operator().await;
    let (from, files) = source(&system, &client).await;
    for host in [0, 1] {
        let to = project_on(&system, &client, host).await;
        let target = system.project_files(host, &to);
        write(&target.join("handout/notes"), "mine");
        write(&target.join("handout/more"), "more of mine");

        let refused =
            copy("handout", &[dest(&to, "handout")], json!({ "force": false, "errorOnExist": true }));
        let op_id = client.create(scope(&from), "project-copy", refused).await;
        let ended = client.ended(scope(&from), &op_id).await;
        assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("already_exists")));
        assert_eq!(ended["result"]["dests"][0]["status"], "failed", "{ended:#}");
        assert!(!target.join("handout/week 1").exists(), "a refused copy changes nothing");
        // What has failed is kept until its time is over.
        assert_eq!(ended["result"]["snapshot_deleted"], host == 0);

        let kept = copy("handout", &[dest(&to, "handout")], json!({ "force": false }));
        client.done(&from, "project-copy", kept).await;
        assert_eq!(read(&target.join("handout/notes")), "mine");
        assert_eq!(read(&target.join("handout/week 1/task.txt")), "one");

        client.done(&from, "project-copy", copy("handout", &[dest(&to, "handout")], json!({}))).await;
        assert_eq!(read(&target.join("handout/notes")), "notes");
        assert_eq!(read(&target.join("handout/more")), "more of mine", "directories are merged");

        for (path, place) in [("handout", "handout/more"), ("secret", "handout")] {
            let op_id =
                client.create(scope(&from), "project-copy", copy(path, &[dest(&to, place)], json!({}))).await;
            let ended = client.ended(scope(&from), &op_id).await;
            assert_eq!(ended["status"], "failed", "{path} over {place}: {ended:#}");
        }
        assert_eq!(read(&target.join("handout/more")), "more of mine");

        let several =
            json!({ "src": { "path": ["handout/notes", "secret"] }, "dest": dest(&to, "into/here") });
        client.done(&from, "project-copy", several).await;
        assert_eq!(read(&target.join("into/here/notes")), "notes");
        assert_eq!(read(&target.join("into/here/secret")), "not to be copied");

        let followed = copy("handout", &[dest(&to, "followed")], json!({ "dereference": true }));
        client.done(&from, "project-copy", followed).await;
        assert_eq!(read(&target.join("followed/link")), "notes");
        assert!(!target.join("followed/link").is_symlink());
        assert_clean(&system, host, &to);
    }

    // Nothing leads out of the source, and what is not there is not copied.
    let to = project_on(&system, &client, 1).await;
    symlink("/etc", files.join("handout/out")).unwrap();
    for (path, options, code) in [
        ("no such thing", json!({}), "not_found"),
        ("handout/out/passwd", json!({}), "not_found"),
        ("handout", json!({ "dereference": true }), "invalid_argument"),
    ] {
        let op_id = client.create(scope(&from), "project-copy", copy(path, &[dest(&to, "x")], options)).await;
        let ended = client.ended(scope(&from), &op_id).await;
        assert_eq!(
            (&ended["status"], &ended["error"]["code"]),
            (&json!("failed"), &json!(code)),
            "{path}: {ended:#}"
        );
    }
    assert!(!system.project_files(1, &to).join("x").exists());
    // Nor into itself; nor is a part of a copy created by hand.
    let into_itself = copy("handout", &[dest(&from, "handout/week 1")], json!({}));
    let request = json!({ "kind": "project-copy", "input": into_itself });
    assert_eq!(client.refused(scope(&from), "lro.create", request).await.status, 400);
    for kind in ["copy-apply", "copy-snapshot"] {
        let refusal = client.refused(scope(&from), "lro.create", json!({ "kind": kind, "input": {} })).await;
        assert_eq!(refusal.status, 400, "{refusal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_to_those_who_have_not_got_it_and_an_empty_project_gets_its_copy() {
    let system = system().await;
    let client = system.operator().await;
    let (from, _) = source(&system, &client).await;
    let (first, second) = (project_on(&system, &client, 1).await, project_on(&system, &client, 1).await);
    // An empty project with a backup has nothing to be restored, and no reason to do without.
    client.done(&first, "project-backup", json!({})).await;
    write(&system.project_files(1, &second).join("handout/notes"), "in the way");
    let options = json!({ "force": false, "errorOnExist": true });
    let dests = [dest(&first, "handout"), dest(&second, "handout")];
    let op_id = client.create(scope(&from), "project-copy", copy("handout", &dests, options)).await;
    let result = client.result(scope(&from), &op_id).await;
    let statuses: Vec<&Value> =
        result["dests"].as_array().unwrap().iter().map(|dest| &dest["status"]).collect();
    assert_eq!(statuses, ["done", "failed"]);
    assert_eq!(result["snapshot_deleted"], false);
    assert!(copy_objects(&system, &op_id) > 0, "the snapshot of what has failed is kept");

    let edited = system.project_files(1, &first).join("handout/notes");
    fs::write(&edited, "mine by now").unwrap();
    fs::remove_dir_all(system.project_files(1, &second).join("handout")).unwrap();
    let retried = client.call(scope(&from), "lro.retry", json!({ "op_id": op_id })).await["op"].take();
    assert_eq!(
        (&retried["retry_of"], retried["input"]["dests"].as_array().unwrap().len()),
        (&json!(op_id), 1)
    );
    client.result(scope(&from), retried["op_id"].as_str().unwrap()).await;
    assert_eq!(read(&edited), "mine by now");
    assert_eq!(read(&system.project_files(1, &second).join("handout/notes")), "notes");
    let again = json!({ "op_id": retried["op_id"] });
    assert_eq!(client.refused(scope(&from), "lro.retry", again).await.status, 412);

    // A restore that is not to replace anything finds files, and leaves them.
    client.done(&second, "project-backup", json!({})).await;
    fs::write(system.project_files(1, &second).join("handout/notes"), "newer").unwrap();
    for (conflict, status) in [("keep", "succeeded"), ("fail", "failed")] {
        let input = json!({ "backup_id": "latest", "conflict": conflict });
        let op_id = client.create(scope(&second), "project-restore", input).await;
        assert_eq!(client.ended(scope(&second), &op_id).await["status"], status);
        assert_eq!(read(&system.project_files(1, &second).join("handout/notes")), "newer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_the_caller_may_not_write_to_is_refused_by_name() {
    let system = system().await;
    let operator = system.operator().await;
    let account = operator.call("hub", "account.create", json!({ "name": "eve" })).await;
    let eve = account["account"]["id"].as_str().unwrap().to_owned();
    let owned = |title: &str| json!({ "title": title, "host_id": system.host(0), "account_id": eve });
    let mut mine = Vec::new();
    for title in ["from", "to"] {
        let made = operator.call("hub", "project.create", owned(title)).await;
        let project = made["project"]["id"].as_str().unwrap().to_owned();
        system.make_volume(0, &project);
        mine.push(project);
    }
    write(&system.project_files(0, &mine[0]).join("a"), "a");
    let shared = project_on(&system, &operator, 0).await;
    let others = project_on(&system, &operator, 0).await;
    operator.call(scope(&shared), "project.add_collaborator", json!({ "account_id": eve })).await;
    let token = operator.call(format!("account-{eve}"), "account.create_token", json!({})).await;
    let client = system.token_holder(&eve, token["token"].as_str().unwrap()).await.unwrap();

    let dests = [dest(&mine[1], "a"), dest(&others, "a"), dest(&shared, "a")];
    let request = json!({ "kind": "project-copy", "input": copy("a", &dests, json!({})) });
    let refusal = client.refused(scope(&mine[0]), "lro.create", request).await;
    assert_eq!((refusal.status, &refusal.details["project_ids"]), (403, &json!([others])));
    assert!(refusal.message.contains(&others));
    assert!(copies(&client, &mine[0], json!({})).await.is_empty(), "nothing was begun");
    let unknown = uuid::Uuid::new_v4().to_string();
    let request = json!({ "kind": "project-copy", "input": copy("a", &[dest(&unknown, "a")], json!({})) });
    assert_eq!(client.refused(scope(&mine[0]), "lro.create", request.clone()).await.status, 403);
    assert_eq!(operator.refused(scope(&mine[0]), "lro.create", request).await.status, 404);

    let dests = [dest(&mine[1], "a"), dest(&shared, "a")];
    client.done(&mine[0], "project-copy", copy("a", &dests, json!({}))).await;
    assert_eq!(read(&system.project_files(0, &shared).join("a")), "a");
    assert!(!system.project_files(0, &others).join("a").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_away_gets_its_copies_when_it_is_back() {
    let options = SystemOptions { hosts: 2, ..SystemOptions::default() };
    let mut system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let (from, files) = source(&system, &client).await;
    let (near, far) = (project_on(&system, &client, 0).await, project_on(&system, &client, 1).await);
    let archived = client.create_project_with_files(&system, 11).await;
    // One that is on the host that goes away, archived: it has a backup, and no files there.
    client.done(&archived, "project-backup", json!({})).await;
    let kept = system.scratch("kept");
    fs::rename(system.project_files(0, &archived), &kept).unwrap();
    fs::remove_dir_all(system.persist_store(0, &archived)).unwrap();

    system.hold_restarts();
    let old =
        [Server::CopyApplier(0), Server::CopyApplier(1)].map(|server| (server, system.kill_nine(server)));
    let status = |copies: &[Value], path: &str| {
        let found = copies.iter().find(|copy| copy["dest_path"] == path);
        found.unwrap_or_else(|| panic!("no copy to {path}"))["status"].as_str().unwrap().to_owned()
    };
    let input = |paths: &[&str]| {
        let dests: Vec<Value> = paths.iter().map(|path| dest(&far, path)).collect();
        copy("handout", &dests, json!({}))
    };
    let first = client.create(scope(&from), "project-copy", input(&["again", "once", "unwanted"])).await;
    wait_for("the copies to wait for their host", PATIENCE, || async {
        let copies = copies(&client, &from, json!({ "op_id": first })).await;
        let waiting = copies.iter().filter(|copy| copy["apply_op_id"].is_string()).count();
        if waiting == 3 { Ok(()) } else { Err(format!("{copies:#?}")) }
    })
    .await;
    let parent = client.operation(scope(&from), &first).await;
    assert_eq!((&parent["status"], &parent["waiting_for_children"]), (&json!("queued"), &json!(true)));
    assert!(copy_objects(&system, &first) > 0, "the snapshot is there for who comes late");

    // Canceled, superseded, expired.
    let unwanted = copies(&client, &far, json!({})).await;
    let unwanted = unwanted.iter().find(|copy| copy["dest_path"] == "unwanted").unwrap();
    let canceled = client.call(scope(&from), "copy.cancel", json!({ "copy_id": unwanted["copy_id"] })).await;
    assert_eq!(canceled["copies"][0]["status"], "canceled");
    write(&files.join("handout/notes"), "second edition");
    let second = client.create(scope(&from), "project-copy", input(&["again"])).await;
    let listed = copies(&client, &from, json!({ "op_id": first })).await;
    assert_eq!(status(&listed, "again"), "superseded");
    let request = json!({ "kind": "project-copy", "input": input(&["late"]), "ttl_s": 5 });
    let third = client.call(scope(&from), "lro.create", request).await["op"]["op_id"].clone();
    let third = third.as_str().unwrap();
    let ended = client.ended(scope(&from), third).await;
    assert_eq!(ended["result"]["dests"][0]["status"], "expired", "{ended:#}");
    wait_for("the snapshot of the expired copy to be deleted", PATIENCE, || async {
        match copy_objects(&system, third) {
            0 => Ok(()),
            left => Err(format!("{left} objects")),
        }
    })
    .await;
    // A start waits for what its host could apply, and an archived project is restored before it.
    let into_archived = copy("handout", &[dest(&archived, "handout")], json!({}));
    let fourth = client.create(scope(&from), "project-copy", into_archived).await;
    wait_for("the copy into the archived project to wait", PATIENCE, || async {
        let copies = copies(&client, &archived, json!({})).await;
        if copies[0]["apply_op_id"].is_string() { Ok(()) } else { Err(format!("{copies:#?}")) }
    })
    .await;
    let start = client.create(scope(&archived), "project-start", json!({})).await;

    system.allow_restarts();
    for (server, old) in old {
        system.restarted(server, old).await;
    }
    let result = client.result(scope(&from), &first).await;
    let statuses: Vec<&Value> =
        result["dests"].as_array().unwrap().iter().map(|dest| &dest["status"]).collect();
    assert_eq!(statuses, ["superseded", "done", "canceled"]);
    client.result(scope(&from), &second).await;
    let target = system.project_files(1, &far);
    assert_eq!(read(&target.join("again/notes")), "second edition");
    assert_eq!(read(&target.join("once/notes")), "notes", "as it was when it was asked for");
    assert!(!target.join("unwanted").exists() && !target.join("late").exists());
    for op_id in [&first, &second] {
        assert_eq!(copy_objects(&system, op_id), 0);
    }
    client.result(scope(&from), &fourth).await;
    let started = client.result(scope(&archived), &start).await;
    assert_eq!(started["restored"], Value::Null, "the copy had it restored before: {started:#}");
    let archived = system.project_files(0, &archived);
    assert_eq!(read(&archived.join("handout/notes")), "second edition");
    fs::remove_dir_all(archived.join("handout")).unwrap();
    assert_eq!(read(&archived.join("README.md")), read(&kept.join("README.md")));
    assert!(!system.project_files(0, &near).join("handout").exists());
    system.stop().await.unwrap();
}
