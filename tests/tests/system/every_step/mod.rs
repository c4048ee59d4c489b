//! Operations of several steps, with their service killed at every message that it sends or gets about them: what it asks
//! for, what it tells and what it is answered. Whatever that was, the next attempt comes to the same end. Each message of a
//! run in which nothing is killed is met once, or it is one of those that come by the clock ([`BY_THE_CLOCK`]); and each kind
//! of several steps is here, or it is named with the reason why not ([`NOT_HERE`]).
//!
//! What a service does between two messages is killed at every step by the tests of what it does it with: of volumes at
//! every change of a directory, of repositories at every request to the object store.

mod interposed;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bus_messages::kinds;
use serde_json::{Value, json};
use test_harness::{
    Client, Server, SystemOptions, TestSystem, add_bytes, change_a_little, make_tree, wait_for,
};

use self::interposed::{Interposed, Moment, Watched};
use crate::copies::copy_objects;
use crate::stopping::gone;
use crate::{assert_same_tree, leases_of, scope};

/// Seconds of a lease, which are waited for where a service is killed that keeps no record of its work, or before it has
/// made it. A worker renews it every ten, and gives up five before its end.
const LEASE_S: &str = "17";
/// For work that takes milliseconds, and has nothing to renew.
const SHORT_LEASE_S: &str = "8";
const PATIENCE: Duration = Duration::from_secs(90);
/// More messages than any operation here has.
const MOST_MOMENTS: usize = 60;
const WRITTEN_MEANWHILE: &str = "written-meanwhile";
/// Messages that come when it is time for them, and why that is not at the same point of each run: where one of them was to
/// be the last, it may not come.
const BY_THE_CLOCK: [(&str, &str); 2] = [
    ("progress", "events are gathered for a tenth of a second, and those of the end go with the end"),
    ("unfinished", "asked every half minute, and only while something of a restore is kept"),
];
/// Kinds of several phases that no test of this file kills.
const NOT_HERE: [(&str, &str); 3] = [
    ("database-backup", "no service of the launcher: killed in its middle by database_operations.rs"),
    ("database-restore", "likewise: cut off there while it works, and its end is told by the next attempt"),
    (
        "test-sleep",
        "for tests: its worker is killed under load by longhaul-nemesis, with children and without",
    ),
];

async fn start(hosts: u16, lease_s: &str) -> (TestSystem, Client) {
    let options = SystemOptions { hosts, environment: leases_of(lease_s), ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    (system, client)
}

/// Takes the place of a server of the installation. From then on, nothing that ends is started again by the launcher.
async fn interpose(system: &TestSystem, server: Server, name: &str) -> Interposed {
    system.hold_restarts();
    let pid = system.kill_nine(server);
    gone(pid).await;
    Interposed::start(system, name).await.unwrap()
}

/// An operation of a project of its own.
struct Case {
    project: String,
    /// What asks for it, `lro.create` where it is nothing else.
    endpoint: &'static str,
    request: Value,
    /// The scope and the kind of the part of it that the service does, where that is not the whole.
    part: Option<(String, &'static str)>,
    /// A file that is written while the service is dead.
    written_meanwhile: Option<PathBuf>,
}

impl Case {
    fn create(project: String, kind: &str, input: Value) -> Self {
        let request = json!({ "kind": kind, "input": input });
        Self { project, endpoint: "lro.create", request, part: None, written_meanwhile: None }
    }

    /// Asks for it, and says which operation it is and which one the service has.
    async fn ask(&self, client: &Client) -> (String, String) {
        let text = |id: &Value| id.as_str().unwrap().to_owned();
        let reply = client.call(scope(&self.project), self.endpoint, self.request.clone()).await;
        let whole = text(&reply["op"]["op_id"]);
        let Some((scope, kind)) = &self.part else { return (whole.clone(), whole) };
        let part = wait_for(&format!("{kind} to be asked for"), PATIENCE, || async {
            let listed = client.call(scope, "lro.list", json!({ "kind": kind })).await;
            listed["ops"][0]["op_id"].as_str().map(str::to_owned).ok_or(listed)
        })
        .await;
        (whole, part)
    }
}

/// Has a service killed at every message about an operation of this kind, of one operation after another. How many there
/// are, and of which names, the first tells, which is left alone; and each that is killed may add to them.
async fn killed_at_every_message(
    client: &Client,
    service: &Interposed,
    kind: &str,
    prepare: impl AsyncFn(u64) -> Case,
    check: impl AsyncFn(&Case, Value),
) {
    let (mut waiting, mut tried, mut hit) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut of_the_first = BTreeSet::new();
    let mut moment: Option<Moment> = None;
    for seed in 1.. {
        let case = prepare(seed).await;
        let mut watched = service.hold().await;
        let (op_id, part) = case.ask(client).await;
        *watched = Some(Watched::new(&part, moment.clone()));
        drop(watched);
        let ended = client.ended(scope(&case.project), &op_id);
        let write = || {
            if let Some(file) = &case.written_meanwhile {
                fs::write(file, "by somebody who does not know of any of this").unwrap();
            }
        };
        let (mut op, seen) = service.while_it_is_killed(ended, write).await;
        assert_eq!(op["status"], "succeeded", "killed at {moment:?}: {seen:?}: {op:#}");
        check(&case, op["result"].take()).await;
        let moments = seen
            .messages
            .iter()
            .flat_map(|(name, count)| (1..=*count).map(|number| Moment { name: name.clone(), number }));
        waiting.extend(moments.clone());
        if moment.is_none() {
            let part_scope = case.part.as_ref().map_or_else(|| scope(&case.project), |(of, _)| of.clone());
            let part = client.operation(part_scope, &part).await;
            assert_eq!(part["kind"], kind, "{part:#}");
            // Of one that has lost a lease all by itself, no other run need have what came after.
            let all = part["lease_losses"] == 0;
            of_the_first.extend(moments.filter(|moment| all || moment.number == 1));
        }
        hit.extend(moment.filter(|_| seen.is_hit));
        waiting.retain(|moment| !tried.contains(moment));
        moment = waiting.pop_first();
        let Some(next) = &moment else { break };
        tried.insert(next.clone());
        assert!(tried.len() < MOST_MOMENTS, "{tried:?}");
    }
    eprintln!("{kind} was killed at {hit:?}");
    for name in ["lease", "claim", "answer to claim"] {
        assert!(hit.iter().any(|moment: &Moment| moment.name == name), "{name} is not among {hit:?}");
    }
    for missed in of_the_first.difference(&hit) {
        let verb = missed.name.trim_start_matches("answer to ");
        match BY_THE_CLOCK.iter().find(|(by_the_clock, _)| verb == *by_the_clock) {
            Some((_, why)) => {
                eprintln!("{kind} was not killed at {missed:?}, which did not come again: {why}")
            }
            None => panic!("{kind} was never killed at {missed:?}, only at {hit:?}"),
        }
    }
}

#[test]
fn every_kind_of_several_steps_is_killed_here_or_has_a_reason() {
    let (_, tests) = include_str!("mod.rs").split_once("async fn a_backup_and_its_proofs").unwrap();
    for kind in kinds::ALL.iter().filter(|kind| kind.phases.len() > 1) {
        // A test that names a kind watches one of it: `killed_at_every_message` asserts that.
        let is_here = tests.contains(&format!("\"{}\"", kind.name));
        let reason = NOT_HERE.iter().find(|(name, _)| *name == kind.name);
        assert!(
            is_here != reason.is_some(),
            "{} is to be killed here, or to have a reason why not",
            kind.name
        );
    }
    for (name, _) in NOT_HERE {
        assert!(kinds::ALL.iter().any(|kind| kind.name == name), "there is no kind {name}");
    }
}

/// Nothing of what an operation needs on its way stays on a host, but the receipts of copies: that of one whose end was
/// recorded, and not heard of, goes by its age. What a restore has replaced goes when the host knows that it has ended.
async fn nothing_is_left(system: &TestSystem, host: usize) {
    let root = system.data_directory().join(format!("hosts/{host}"));
    let entries = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    wait_for("everything to be tidied up", PATIENCE, async || {
        for left in entries(root.join("snapshots")).chain(entries(root.join("staging"))) {
            let names: Vec<_> = entries(left.path()).map(|entry| entry.file_name()).collect();
            if names != ["journal.json"] {
                return Err(format!("{}: {names:?}", left.path().display()));
            }
        }
        Ok(())
    })
    .await;
}

fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

async fn backups(client: &Client, project: &str) -> Vec<Value> {
    let mut listed = client.call(scope(project), "backup.list", json!({})).await;
    serde_json::from_value(listed["backups"].take()).unwrap()
}

/// What was written while nobody worked is in the backup, or in none as far as anybody says.
async fn assert_saved_or_known_not_to_be(client: &Client, case: &Case, backup: &Value) {
    if !case.written_meanwhile.as_ref().unwrap().exists() {
        return;
    }
    let place = json!({ "backup_id": backup["backup_id"], "path": "project" });
    let listed = client.call(scope(&case.project), "backup.ls", place).await;
    if listed["entries"].as_array().unwrap().iter().any(|entry| entry["name"] == WRITTEN_MEANWHILE) {
        return;
    }
    wait_for("what is in no backup to be known", PATIENCE, || async {
        let status = client.call(scope(&case.project), "project.status", json!({})).await;
        if status["changed_since_backup"] == true { Ok(()) } else { Err(format!("{status:#}")) }
    })
    .await;
}

async fn assert_newest_restores(client: &Client, project: &str) {
    let drilled = client.done(project, "restore-drill", json!({})).await;
    assert_eq!(drilled["proof"], "match", "{drilled:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_and_its_proofs() {
    let (system, client) = start(1, LEASE_S).await;
    let host = interpose(&system, Server::HostBackup(0), "host-backup-0").await;
    let prepare = async |seed| {
        let project = client.create_project_with_files(&system, seed).await;
        let written_meanwhile = Some(system.project_files(0, &project).join(WRITTEN_MEANWHILE));
        Case { written_meanwhile, ..Case::create(project, "project-backup", json!({})) }
    };
    killed_at_every_message(&client, &host, "project-backup", prepare, async |case, result| {
        assert!(result["files"].as_u64() > Some(300), "{result:#}");
        assert_eq!(backups(&client, &case.project).await.len(), 1);
        assert_saved_or_known_not_to_be(&client, case, &result).await;
        assert_newest_restores(&client, &case.project).await;
        nothing_is_left(&system, 0).await;
    })
    .await;

    let project = client.create_project_with_files(&system, 0).await;
    client.done(&project, "project-backup", json!({})).await;
    for (kind, input) in [("restore-drill", json!({})), ("repo-check", json!({ "read_data_shares": 1 }))] {
        let prepare = async |_| Case::create(project.clone(), kind, input.clone());
        killed_at_every_message(&client, &host, kind, prepare, async |_, result| {
            assert!(kind != "restore-drill" || result["proof"] == "match", "{result:#}");
            nothing_is_left(&system, 0).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune() {
    let (system, client) = start(1, LEASE_S).await;
    let host = interpose(&system, Server::HostBackup(0), "host-backup-0").await;
    let prepare = async |seed| {
        let project = client.create_project_with_files(&system, seed).await;
        let older = client.done(&project, "project-backup", json!({})).await;
        change_a_little(&system.project_files(0, &project), seed);
        client.done(&project, "project-backup", json!({})).await;
        let request = json!({ "backup_id": older["backup_id"] });
        Case { project, endpoint: "backup.delete", request, part: None, written_meanwhile: None }
    };
    killed_at_every_message(&client, &host, "repo-prune", prepare, async |case, _| {
        let left = backups(&client, &case.project).await;
        assert!(left.len() == 1 && left[0]["backup_id"] != case.request["backup_id"], "{left:#?}");
        client.done(&case.project, "repo-check", json!({ "read_data_shares": 1 })).await;
        assert_newest_restores(&client, &case.project).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_and_a_start_that_restores() {
    let (system, client) = start(1, LEASE_S).await;
    let host = interpose(&system, Server::HostBackup(0), "host-backup-0").await;
    let kept = |project: &str| system.scratch(&format!("kept-{project}"));
    for kind in ["project-restore", "project-start"] {
        // What is in place when its end was not heard is not restored again.
        let found_in_place = Cell::new(0);
        let prepare = async |seed| {
            let project = client.create_project_with_files(&system, seed).await;
            client.done(&project, "project-backup", json!({})).await;
            let files = system.project_files(0, &project);
            copy_tree(&files, &kept(&project));
            if kind == "project-start" {
                fs::remove_dir_all(&files).unwrap();
                fs::remove_dir_all(system.persist_store(0, &project)).unwrap();
                return Case::create(project, kind, json!({}));
            }
            change_a_little(&files, seed);
            Case::create(project, kind, json!({ "backup_id": "latest" }))
        };
        killed_at_every_message(&client, &host, kind, prepare, async |case, result| {
            assert!(result["files"].as_u64() > Some(300), "{result:#}");
            let listed = client.call(scope(&case.project), "lro.list", json!({ "kind": kind })).await;
            let events =
                client.events(scope(&case.project), listed["ops"][0]["op_id"].as_str().unwrap()).await;
            let is_told = |event: &Value| event["message"].to_string().contains("nothing is left to do");
            found_in_place.set(found_in_place.get() + usize::from(events.iter().any(is_told)));
            assert_same_tree(&kept(&case.project), &system.project_files(0, &case.project));
            nothing_is_left(&system, 0).await;
        })
        .await;
        assert!(found_in_place.get() > 0, "no {kind} was killed between its exchange and its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_a_path() {
    let (system, client) = start(1, LEASE_S).await;
    let host = interpose(&system, Server::HostBackup(0), "host-backup-0").await;
    let kept = |project: &str| system.scratch(&format!("kept-{project}"));
    let found_in_place = Cell::new(0);
    let prepare = async |seed| {
        let project = client.create_project_with_files(&system, seed).await;
        client.done(&project, "project-backup", json!({})).await;
        let files = system.project_files(0, &project);
        copy_tree(&files, &kept(&project));
        make_tree(&files.join("src"), seed + 1000);
        fs::write(files.join("since.txt"), "mine").unwrap();
        // What the operation itself has put there is no conflict.
        let (target, conflict) = if seed % 2 == 0 { ("src", "replace") } else { ("beside/src", "fail") };
        let input =
            json!({ "backup_id": "latest", "path": "project/src", "target": target, "conflict": conflict });
        Case::create(project, "project-restore", input)
    };
    killed_at_every_message(&client, &host, "project-restore", prepare, async |case, result| {
        assert_eq!(result["receipt"], "match", "{result:#}");
        let listed =
            client.call(scope(&case.project), "lro.list", json!({ "kind": "project-restore" })).await;
        let op_id = listed["ops"][0]["op_id"].as_str().unwrap();
        let events = client.events(scope(&case.project), op_id).await;
        let is_told = |event: &Value| event["message"].to_string().contains("nothing is left to do");
        found_in_place.set(found_in_place.get() + usize::from(events.iter().any(is_told)));
        let files = system.project_files(0, &case.project);
        let target = case.request["input"]["target"].as_str().unwrap();
        assert_same_tree(&kept(&case.project).join("src"), &files.join(target));
        assert_eq!(fs::read_to_string(files.join("since.txt")).unwrap(), "mine");
        wait_for("what was staged, or replaced, to be deleted", PATIENCE, async || {
            let names = fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().file_name());
            let is_staged = |name: &OsString| name.as_encoded_bytes().starts_with(b".longhaul");
            let left: Vec<_> = names.filter(is_staged).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        nothing_is_left(&system, 0).await;
    })
    .await;
    assert!(found_in_place.get() > 0, "none was killed between its exchange and its end");
}

/// Copies a folder of a new project to a new one on the second host.
async fn copy(system: &TestSystem, client: &Client, seed: u64) -> Case {
    let project = client.create_project(system.host(0)).await;
    system.make_volume(0, &project);
    for number in 0..5 {
        add_bytes(&system.project_files(0, &project).join("folder"), &format!("{number}"), 10_000, seed);
    }
    let destination = client.create_project(system.host(1)).await;
    system.make_volume(1, &destination);
    let dest = json!({ "project_id": destination, "path": "copied" });
    let options = json!({ "preserveTimestamps": true });
    let input = json!({ "src": { "path": "folder" }, "dest": dest, "options": options });
    Case::create(project, "project-copy", input)
}

fn destination(copy: &Case) -> String {
    copy.request["input"]["dest"]["project_id"].as_str().unwrap().to_owned()
}

/// The folder is there once, and nothing of the way that it went.
async fn assert_copied(system: &TestSystem, client: &Client, case: &Case) {
    let files = system.project_files(1, &destination(case));
    assert_same_tree(&system.project_files(0, &case.project).join("folder"), &files.join("copied"));
    let names: Vec<_> = fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["copied"]);
    let listed = client.call(scope(&case.project), "copy.list", json!({})).await;
    assert_eq!(listed["copies"][0]["status"], "done", "{listed:#}");
    assert_eq!(
        copy_objects(system, listed["copies"][0]["op_id"].as_str().unwrap()),
        0,
        "the snapshot is gone"
    );
    nothing_is_left(system, 0).await;
    nothing_is_left(system, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_the_hub() {
    let (system, client) = start(2, SHORT_LEASE_S).await;
    let hub = interpose(&system, Server::Scheduler, "scheduler").await;
    let prepare = async |seed| copy(&system, &client, seed).await;
    killed_at_every_message(&client, &hub, "project-copy", prepare, async |case, _| {
        assert_copied(&system, &client, case).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_both_hosts() {
    let (system, client) = start(2, LEASE_S).await;
    let source = interpose(&system, Server::HostBackup(0), "host-backup-0").await;
    let target = interpose(&system, Server::CopyApplier(1), "copy-applier-1").await;
    for (service, kind) in [(&source, "copy-snapshot"), (&target, "copy-apply")] {
        let prepare = async |seed| {
            let mut case = copy(&system, &client, seed).await;
            let of = match kind {
                "copy-apply" => destination(&case),
                _ => case.project.clone(),
            };
            case.part = Some((scope(&of), kind));
            case
        };
        killed_at_every_message(&client, service, kind, prepare, async |case, _| {
            assert_copied(&system, &client, case).await;
        })
        .await;
    }
}
