//! Copies that something comes between: a later edition, a cancel, another source with the same place in mind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use test_harness::{Client, Server, SystemOptions, TestSystem, add_bytes, wait_for};

use crate::{scope, system};

const PATIENCE: Duration = Duration::from_secs(300);
/// The source's host, and that of the destinations.
const NEAR: usize = 0;
const FAR: usize = 1;

async fn project_on(system: &TestSystem, client: &Client, host: usize) -> (String, PathBuf) {
    let project = client.create_project(system.host(host)).await;
    system.make_volume(host, &project);
    let files = system.project_files(host, &project);
    (project, files)
}

async fn hosts(hosts: u16) -> TestSystem {
    TestSystem::start(SystemOptions { hosts, ..SystemOptions::default() }).await.unwrap()
}

/// A copy of `handout` to a place in each of these projects.
fn handout(dests: &[(&str, &str)]) -> Value {
    let dests: Vec<Value> =
        dests.iter().map(|(project, path)| json!({ "project_id": project, "path": path })).collect();
    json!({ "src": { "path": "handout" }, "dests": dests })
}

async fn copies(client: &Client, project: &str, op_id: &str) -> Vec<Value> {
    let mut copies = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let request = json!({ "op_id": op_id, "limit": 100, "cursor": cursor });
        let mut page = client.call(scope(project), "copy.list", request).await;
        copies.append(page["copies"].as_array_mut().unwrap());
        cursor = page["next_cursor"].take();
        if cursor.is_null() {
            return copies;
        }
    }
}

fn assert_nothing_but(files: &Path, names: &[&str]) {
    let mut found: Vec<String> =
        fs::read_dir(files).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, names, "in {}", files.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_into_one_place_come_in_the_order_in_which_they_were_asked_for() {
    let mut system = hosts(2).await;
    let client = system.operator().await;
    let mut sources = Vec::new();
    for name in ["first", "second", "third"] {
        let (project, files) = project_on(&system, &client, NEAR).await;
        fs::create_dir(files.join("handout")).unwrap();
        fs::write(files.join("handout/who"), name).unwrap();
        fs::write(files.join("handout").join(name), name).unwrap();
        sources.push((project, name));
    }
    let mut random = StdRng::seed_from_u64(11);
    system.hold_restarts();
    let away = system.kill_nine(Server::CopyApplier(FAR));
    let (mut targets, mut operations) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let (project, files) = project_on(&system, &client, FAR).await;
        sources.shuffle(&mut random);
        for (source, _) in &sources {
            let op_id = client.create(scope(source), "project-copy", handout(&[(&project, "place")])).await;
            operations.push((source.clone(), op_id));
        }
        targets.push((files, sources.last().unwrap().1));
    }
    system.allow_restarts();
    system.restarted(Server::CopyApplier(FAR), away).await;
    for (source, op_id) in &operations {
        assert_eq!(client.result(scope(source), op_id).await["dests"][0]["status"], "done");
    }
    for (files, last) in targets {
        assert_eq!(fs::read_to_string(files.join("place/who")).unwrap(), last);
        assert_nothing_but(&files.join("place"), &["first", "second", "third", "who"]);
        assert_nothing_but(&files, &["place"]);
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_edition_takes_over_from_one_that_is_just_being_applied() {
    let mut system = hosts(2).await;
    let client = system.operator().await;
    let (source, files) = project_on(&system, &client, NEAR).await;
    let edition = files.join("handout");
    for number in 0..2_000 {
        add_bytes(&edition.join(format!("week {}", number % 10)), &format!("{number}"), 5_000, number);
    }
    let mut random = StdRng::seed_from_u64(23);
    // Another destination each time, until one was paused in the middle.
    for round in 0.. {
        assert!(round < 50, "a copy was never caught in the middle");
        let (project, target) = project_on(&system, &client, FAR).await;
        fs::create_dir_all(target.join("handout/week 3")).unwrap();
        fs::write(target.join("handout/mine"), "mine").unwrap();
        fs::write(edition.join("week 3/edition"), format!("{round}, the first")).unwrap();
        let dest = [(project.as_str(), "handout")];
        let first = client.create(scope(&source), "project-copy", handout(&dest)).await;
        let apply = wait_for("the copy to have its operation", PATIENCE, || async {
            let apply = copies(&client, &source, &first).await[0]["apply_op_id"].take();
            apply.as_str().map(str::to_owned).ok_or("none yet")
        })
        .await;
        client.until(scope(&project), &apply, "status", &["running", "succeeded"]).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..250))).await;
        system.signal(Server::CopyApplier(FAR), Signal::STOP);
        let caught = client.operation(scope(&project), &apply).await["status"] == "running";
        fs::write(edition.join("week 3/edition"), format!("{round}, the second")).unwrap();
        let second = client.create(scope(&source), "project-copy", handout(&dest)).await;
        let status = copies(&client, &source, &first).await[0]["status"].take();
        system.signal(Server::CopyApplier(FAR), Signal::CONT);
        assert_eq!(status, if caught { "superseded" } else { "done" });
        assert_eq!(client.result(scope(&source), &second).await["dests"][0]["status"], "done");
        let first = client.ended(scope(&source), &first).await;
        assert_eq!(first["result"]["dests"][0]["status"], status, "{first:#}");
        assert_eq!(
            fs::read_to_string(target.join("handout/week 3/edition")).unwrap(),
            format!("{round}, the second")
        );
        assert_eq!(fs::read_to_string(target.join("handout/mine")).unwrap(), "mine");
        assert_nothing_but(&target, &["handout"]);
        for week in 0..10 {
            let week = format!("week {week}");
            assert_same_files(&edition.join(&week), &target.join("handout").join(&week));
        }
        if caught {
            break;
        }
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_it_for_those_who_have_not_got_it_and_a_retry_is_for_them() {
    const AWAY: usize = 2;
    let mut system = hosts(3).await;
    let client = system.operator().await;
    let (source, files) = project_on(&system, &client, NEAR).await;
    for number in 0..100 {
        add_bytes(&files.join("handout"), &format!("{number}"), 20_000, number);
    }
    // Every third is on a host that is away: whoever is quick, somebody has not got it when the cancel comes.
    system.hold_restarts();
    let away = system.kill_nine(Server::CopyApplier(AWAY));
    let mut targets = BTreeMap::new();
    for number in 0..30 {
        let (project, files) = project_on(&system, &client, [NEAR, FAR, AWAY][number % 3]).await;
        targets.insert(project, files);
    }
    let dests: Vec<(&str, &str)> = targets.keys().map(|project| (project.as_str(), "handout")).collect();
    let op_id = client.create(scope(&source), "project-copy", handout(&dests)).await;
    wait_for("some to have it", PATIENCE, || async {
        let done =
            copies(&client, &source, &op_id).await.iter().filter(|copy| copy["status"] == "done").count();
        if done >= 3 { Ok(()) } else { Err(format!("{done} have it")) }
    })
    .await;
    client.call(scope(&source), "lro.cancel", json!({ "op_id": op_id })).await;
    let ended = client.ended(scope(&source), &op_id).await;
    assert_eq!(ended["status"], "canceled", "{ended:#}");
    let mut missing = Vec::new();
    for copy in copies(&client, &source, &op_id).await {
        let project = copy["dest_project_id"].as_str().unwrap();
        match copy["status"].as_str().unwrap() {
            "done" => assert_same_files(&files.join("handout"), &targets[project].join("handout")),
            "canceled" => missing.push(project.to_owned()),
            other => panic!("{other}: {copy:#}"),
        }
    }
    // What is being put in place when the cancel comes is put in place whole, or not at all.
    wait_for("what was staged to be gone", PATIENCE, || async {
        for (project, files) in &targets {
            let names = fs::read_dir(files).unwrap().flatten().map(|entry| entry.file_name());
            let names: Vec<_> =
                names.filter(|name| name.to_string_lossy().starts_with(".longhaul")).collect();
            if !names.is_empty() {
                return Err(format!("{names:?} in {project}"));
            }
        }
        Ok(())
    })
    .await;
    system.allow_restarts();
    system.restarted(Server::CopyApplier(AWAY), away).await;
    let retried = client.call(scope(&source), "lro.retry", json!({ "op_id": op_id })).await["op"].take();
    let asked = retried["input"]["dests"].as_array().unwrap().iter();
    let mut asked: Vec<&str> = asked.map(|dest| dest["project_id"].as_str().unwrap()).collect();
    asked.sort_unstable();
    missing.sort_unstable();
    assert_eq!(asked, missing);
    client.result(scope(&source), retried["op_id"].as_str().unwrap()).await;
    for target in targets.values() {
        assert_same_files(&files.join("handout"), &target.join("handout"));
    }
    system.stop().await.unwrap();
}

/// The names and contents of two directories of files.
#[track_caller]
fn assert_same_files(one: &Path, other: &Path) {
    let contents = |directory: &Path| -> BTreeMap<_, _> {
        let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect()
    };
    assert!(contents(one) == contents(other), "{} and {} differ", one.display(), other.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_places_than_a_result_has_room_for_are_all_served_and_listed() {
    let system = system().await;
    let client = system.operator().await;
    let (source, files) = project_on(&system, &client, NEAR).await;
    fs::create_dir(files.join("handout")).unwrap();
    fs::write(files.join("handout/notes"), "notes").unwrap();
    let mut targets = Vec::new();
    for number in 0..8 {
        targets.push(project_on(&system, &client, number % 2).await);
    }
    let places: Vec<String> =
        (0..30).map(|number| format!("a place with a longer name, {number:03}")).collect();
    let dests: Vec<(&str, &str)> = targets
        .iter()
        .flat_map(|(project, _)| places.iter().map(move |place| (project.as_str(), place.as_str())))
        .collect();
    // Longer than the week that is the rule.
    let thirty_days = 30 * 24 * 3600;
    let request = json!({ "kind": "project-copy", "input": handout(&dests), "ttl_s": thirty_days });
    let op = client.call(scope(&source), "lro.create", request).await["op"].take();
    let op_id = op["op_id"].as_str().unwrap();
    let result = client.result(scope(&source), op_id).await;
    let listed = result["dests"].as_array().unwrap().len();
    let left_out = result["left_out"].as_u64().unwrap();
    assert!(left_out > 0 && listed as u64 + left_out == dests.len() as u64, "{listed} and {left_out}");
    assert_eq!(result["snapshot_deleted"], true);
    let copies = copies(&client, &source, op_id).await;
    assert_eq!(copies.len(), dests.len());
    let day = |text: &Value| text.as_str().unwrap()[..10].to_owned();
    for copy in &copies {
        assert_eq!(copy["status"], "done");
        assert!(day(&copy["expires_at"]) > day(&copy["created_at"]), "{copy:#}");
    }
    let apply = copies[0]["apply_op_id"].as_str().unwrap();
    let apply = client.operation(scope(copies[0]["dest_project_id"].as_str().unwrap()), apply).await;
    assert_eq!(day(&apply["expires_at"]), day(&op["expires_at"]), "a part of it lives as long");
    for (_, files) in &targets {
        for place in &places {
            assert_eq!(fs::read_to_string(files.join(place).join("notes")).unwrap(), "notes");
        }
    }
}
