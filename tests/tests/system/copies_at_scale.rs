//! One folder to a hundred projects on four hosts, while hosts are away and their services are killed: every destination
//! comes to its own right end, and the snapshot goes once and last.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use test_harness::{Client, Server, SystemOptions, TestSystem, add_bytes, btrfs_is_available, wait_for};

use crate::copies::copy_objects;
use crate::scope;

const HOSTS: usize = 4;
const PROJECTS: usize = 100;
/// The host that is away at first.
const AWAY: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);
/// Whatever it is, a failure is to be tried again with the same.
const SEED: u64 = 7;

struct Destination {
    project: String,
    host: usize,
}

async fn destinations(system: &TestSystem, client: &Client) -> Vec<Destination> {
    let mut destinations = Vec::new();
    for number in 0..PROJECTS {
        let host = number % HOSTS;
        let project = client.create_project(system.host(host)).await;
        system.make_volume(host, &project);
        destinations.push(Destination { project, host });
    }
    destinations
}

fn input(path: &str, to: &[&Destination]) -> Value {
    let dests: Vec<Value> =
        to.iter().map(|to| json!({ "project_id": to.project, "path": "handout" })).collect();
    json!({ "src": { "path": path }, "dests": dests })
}

async fn statuses(client: &Client, project: &str, op_id: &str) -> BTreeMap<String, String> {
    let request = json!({ "op_id": op_id, "limit": 200 });
    let reply = client.call(scope(project), "copy.list", request).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let copies = reply["copies"].as_array().unwrap().iter();
    copies.map(|copy| (text(&copy["dest_project_id"]), text(&copy["status"]))).collect()
}

/// Lets a project have no more than a few kilobytes.
fn fill_up(system: &TestSystem, destination: &Destination) {
    let files = system.project_files(destination.host, &destination.project);
    for arguments in [&["quota", "enable"][..], &["qgroup", "limit", "64K"][..]] {
        let output = Command::new("btrfs").args(arguments).arg(&files).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_destinations_each_come_to_their_own_end() {
    let btrfs = btrfs_is_available();
    let options = SystemOptions { hosts: HOSTS as u16, btrfs, ..SystemOptions::default() };
    let mut system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let source = client.create_project(system.host(0)).await;
    system.make_volume(0, &source);
    let handout = system.project_files(0, &source).join("handout");
    for number in 0..20 {
        add_bytes(&handout.join(format!("week {}", number % 5)), &format!("{number}"), 10_000, number);
    }
    let all = destinations(&system, &client).await;
    let full = btrfs.then(|| all.iter().find(|to| to.host == 1).unwrap());
    if let Some(full) = full {
        fill_up(&system, full);
    }

    system.hold_restarts();
    let away = system.kill_nine(Server::CopyApplier(AWAY));
    let whole =
        client.create(scope(&source), "project-copy", input("handout", &all.iter().collect::<Vec<_>>()));
    let whole = whole.await;
    let waiting = all.iter().filter(|to| to.host == AWAY).count();
    wait_for("those that are not away to have their copies", PATIENCE, || async {
        let statuses = statuses(&client, &source, &whole).await;
        let pending = statuses.values().filter(|status| *status == "pending").count();
        if pending == waiting { Ok(()) } else { Err(format!("{pending} are pending")) }
    })
    .await;
    assert!(copy_objects(&system, &whole) > 0, "the snapshot stays for those who are away");
    let told = client.operation(scope(&source), &whole).await;
    assert!(told["message"].as_str().unwrap().contains("waiting"), "{told:#}");

    // Of those of the host that is away some are canceled, and some get a later edition.
    let mut late: Vec<&Destination> = all.iter().filter(|to| to.host == AWAY).collect();
    let (canceled, superseded) = (late.split_off(late.len() - 3), late.split_off(late.len() - 3));
    let listed = client.call(scope(&source), "copy.list", json!({ "op_id": whole, "limit": 200 })).await;
    for copy in listed["copies"].as_array().unwrap() {
        if canceled.iter().any(|to| copy["dest_project_id"] == *to.project) {
            let request = json!({ "copy_id": copy["copy_id"] });
            client.call(scope(&source), "copy.cancel", request).await;
        }
    }
    // What nobody comes for in time expires.
    let mut brief = input("handout", &late);
    for dest in brief["dests"].as_array_mut().unwrap() {
        dest["path"] = json!("for a moment");
    }
    let request = json!({ "kind": "project-copy", "input": brief, "ttl_s": 1 });
    let brief = client.call(scope(&source), "lro.create", request).await["op"]["op_id"].take();
    let brief = brief.as_str().unwrap();
    client.ended(scope(&source), brief).await;
    let ends = statuses(&client, &source, brief).await;
    assert!(ends.len() == late.len() && ends.values().all(|status| status == "expired"), "{ends:?}");

    fs::write(handout.join("edition"), "second").unwrap();
    let second = client.create(scope(&source), "project-copy", input("handout", &superseded)).await;

    system.allow_restarts();
    system.restarted(Server::CopyApplier(AWAY), away).await;
    let ended = client.ended(scope(&source), &whole).await;
    assert_eq!(ended["status"], "succeeded", "{ended:#}");
    client.result(scope(&source), &second).await;
    let ends = statuses(&client, &source, &whole).await;
    for to in &all {
        let is_among = |those: &[&Destination]| those.iter().any(|one| one.project == to.project);
        let expected = match () {
            () if is_among(&canceled) => "canceled",
            () if is_among(&superseded) => "superseded",
            () if full.is_some_and(|full| full.project == to.project) => "failed",
            () => "done",
        };
        assert_eq!(ends[&to.project], expected, "{} on host {}", to.project, to.host);
        let target = system.project_files(to.host, &to.project).join("handout");
        assert_eq!(target.exists(), expected == "done" || expected == "superseded", "{expected}");
        assert_eq!(target.join("edition").exists(), expected == "superseded");
        assert!(!target.with_file_name("for a moment").exists());
        if target.exists() {
            assert_eq!(
                fs::read(target.join("week 4/19")).unwrap(),
                fs::read(handout.join("week 4/19")).unwrap()
            );
        }
    }
    let result = &ended["result"];
    assert_eq!(result["dests"].as_array().unwrap().len(), PROJECTS);
    assert_eq!(result["snapshot_deleted"], full.is_none(), "one that has failed keeps the snapshot");
    assert_eq!(copy_objects(&system, &whole) == 0, full.is_none());
    assert_eq!(copy_objects(&system, &second), 0, "all have that one");
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_nothing_is_lost_and_nothing_applied_twice() {
    let options = SystemOptions { hosts: 2, btrfs: btrfs_is_available(), ..SystemOptions::default() };
    let mut system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let source = client.create_project(system.host(0)).await;
    system.make_volume(0, &source);
    let handout = system.project_files(0, &source).join("handout");
    for number in 0..300 {
        add_bytes(&handout.join(format!("week {}", number % 10)), &format!("{number}"), 3_000, number);
    }
    let mut all = Vec::new();
    for number in 0..24 {
        let host = number % 2;
        let project = client.create_project(system.host(host)).await;
        system.make_volume(host, &project);
        // Half of them have a folder of that name already, so that there is a rename for each file.
        if number % 4 < 2 {
            let mine = system.project_files(host, &project).join("handout");
            fs::create_dir_all(mine.join("week 3")).unwrap();
            fs::write(mine.join("mine"), "mine").unwrap();
            fs::write(mine.join("week 3/3"), "old").unwrap();
        }
        all.push(Destination { project, host });
    }
    let mut random = StdRng::seed_from_u64(SEED);
    let op_id =
        client.create(scope(&source), "project-copy", input("handout", &all.iter().collect::<Vec<_>>()));
    let op_id = op_id.await;
    for round in 0..8 {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..600))).await;
        let server = match round % 4 {
            3 => Server::Scheduler,
            _ => Server::CopyApplier(random.random_range(0..2)),
        };
        let old = system.kill_nine(server);
        system.restarted(server, old).await;
    }
    // What is put in place is the person's from then on, although the end may not be told yet.
    let mut edited = Vec::new();
    for to in &all {
        let file = system.project_files(to.host, &to.project).join("handout/week 9/299");
        if file.exists() {
            fs::write(&file, "edited").unwrap();
            edited.push(file);
        }
    }
    let result = client.result(scope(&source), &op_id).await;
    assert_eq!(result["snapshot_deleted"], true);
    for to in &all {
        let files = system.project_files(to.host, &to.project);
        let target = files.join("handout");
        for number in 0..300 {
            let name = format!("week {}/{number}", number % 10);
            let expected = if edited.contains(&target.join(&name)) {
                b"edited".to_vec()
            } else {
                fs::read(handout.join(&name)).unwrap()
            };
            assert!(fs::read(target.join(&name)).unwrap() == expected, "{name} in {}", to.project);
        }
        for entry in fs::read_dir(&files).unwrap() {
            assert_eq!(entry.unwrap().file_name(), "handout", "nothing else is left");
        }
    }
    for to in statuses(&client, &source, &op_id).await.values() {
        assert_eq!(to, "done");
    }
    system.stop().await.unwrap();
}
