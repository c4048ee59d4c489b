//! Backups by schedule, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use bus_messages::{BackupPolicy, Outcome, ProjectGeneration};
use catalog_database::{
    Database, DueProject, FinishOutcome, Finished, NewBucket, NewOperation, NewProject, Upkeep,
};
use domain_model::{BackupDecision, HostId, OperationId, ProjectId, Routing, Scope, Timestamp};
use futures::future::join_all;
use serde_json::json;
use support::{catalog, fence, finished, new_operation, wanted};
use uuid::Uuid;

async fn projects(database: &Database, count: usize) -> (HostId, Vec<ProjectId>) {
    let host = HostId::from(Uuid::new_v4());
    database.create_host(host, "host", "weur").await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = ProjectId::from(Uuid::new_v4());
        let project = NewProject { id, title: "t".to_owned(), host_id: host, account_id: None, region: None };
        database.create_project(&project).await.unwrap().unwrap();
        ids.push(id);
    }
    (host, ids)
}

fn in_an_hour(project: &DueProject) -> Timestamp {
    (project.now.as_date_time() + time::Duration::hours(1)).into()
}

fn back_up(project: &DueProject) -> (BackupDecision, Vec<NewOperation>) {
    let decision = BackupDecision { back_up: Some(-10), missed: false, look_again_at: in_an_hour(project) };
    let new = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: "project-backup".parse().unwrap(),
        scope: Scope::Project(project.state.project),
        dedupe_key: Some("schedule".to_owned()),
        ..new_operation()
    };
    (decision, vec![new])
}

#[tokio::test(flavor = "multi_thread")]
async fn several_who_look_at_once_ask_for_each_backup_once() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (_, ids) = projects(database, 60).await;
    let looks = join_all((0..8).map(|_| database.schedule_backups(10, &[], back_up))).await;
    let mut asked_for: Vec<Scope> = Vec::new();
    for look in looks {
        asked_for.extend(look.unwrap().created.iter().map(|op| op.scope));
    }
    loop {
        let look = database.schedule_backups(10, &[], back_up).await.unwrap();
        asked_for.extend(look.created.iter().map(|op| op.scope));
        if look.looked_at == 0 {
            break;
        }
    }
    let distinct: HashSet<Scope> = asked_for.iter().copied().collect();
    assert_eq!(distinct, ids.into_iter().map(Scope::Project).collect());
    assert_eq!(asked_for.len(), 60, "none was asked for twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_tells_of_its_own_projects_only_and_only_changes_are_edits() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (host, ids) = projects(database, 2).await;
    let (other, _) = projects(database, 0).await;
    let tell = |generation| [ProjectGeneration { project_id: ids[0], generation }];
    let edited = async || database.project(ids[0]).await.unwrap().unwrap().last_edited;

    database.note_generations(other, &tell(7)).await.unwrap();
    assert_eq!(edited().await, None, "another host has nothing to say of it");
    database.note_generations(host, &tell(7)).await.unwrap();
    let first = edited().await;
    assert!(first.is_some());
    database.note_generations(host, &tell(7)).await.unwrap();
    assert_eq!(edited().await, first, "the same again is no edit");
    let standing = database.backup_standing(ids[0]).await.unwrap().unwrap();
    assert!(standing.is_unsaved && !standing.backed_up_here);

    let seen: HashMap<ProjectId, bool> = {
        let changed = std::sync::Mutex::new(HashMap::new());
        let note = |project: &DueProject| {
            changed.lock().unwrap().insert(project.state.project, project.state.changed);
            let decision =
                BackupDecision { back_up: None, missed: false, look_again_at: in_an_hour(project) };
            (decision, Vec::new())
        };
        database.schedule_backups(10, &[], note).await.unwrap();
        changed.into_inner().unwrap()
    };
    assert_eq!(seen, HashMap::from([(ids[0], true), (ids[1], false)]), "what has no files is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_is_looked_at_anew() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (_, ids) = projects(database, 1).await;
    let rest = |project: &DueProject| {
        (BackupDecision { back_up: None, missed: false, look_again_at: in_an_hour(project) }, Vec::new())
    };
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 1);
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 0);
    assert!(database.update_project(ids[0], Some("new title"), None).await.unwrap());
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 0, "a title is no policy");
    let policy = BackupPolicy { every_s: Some(7200), ..BackupPolicy::default() };
    assert!(database.update_project(ids[0], None, Some(&policy)).await.unwrap());
    assert_eq!(database.backup_standing(ids[0]).await.unwrap().unwrap().policy, policy);
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_is_asked_for_where_there_is_a_backup_and_once_a_period() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (host, ids) = projects(database, 2).await;
    let bucket = NewBucket {
        id: Uuid::now_v7().into(),
        purpose: "backups",
        provider: "local".to_owned(),
        account_id: None,
        region: "weur".to_owned(),
        name: "bucket".to_owned(),
        endpoint: None,
    };
    let bucket = database.bucket_in_use(&bucket).await.unwrap();
    database.bind_backup_bucket(ids[0], bucket.id).await.unwrap();
    let backup = NewOperation {
        kind: "project-backup".parse().unwrap(),
        scope: Scope::Project(ids[0]),
        routing: Routing::Host(host),
        input: json!({ "tags": [], "pinned": false }),
        ..new_operation()
    };
    database.create_operation(&backup, false).await.unwrap();
    let wanted = wanted(Routing::Host(host), "project-backup", 1);
    let leased = database.claim_operations(&wanted).await.unwrap().remove(0);
    let result = json!({ "backup_id": "a".repeat(64), "files": 1, "bytes": 1, "bytes_added": 1, "parent": null,
        "source": "live", "tree": "b".repeat(64), "snapshot_at": "2026-11-21T07:38:27.123Z", "duration_s": 1.0 });
    let finished = Finished { result: Some(result), ..finished(fence(&leased), Outcome::Succeeded) };
    let outcome = database.finish_operation(&finished).await.unwrap();
    assert!(matches!(outcome, FinishOutcome::Recorded(_)), "{outcome:?}");

    let prune = |project: &DueProject| {
        // Due again at once, as if a period had gone by.
        let decision = BackupDecision { back_up: None, missed: false, look_again_at: project.now };
        let upkeep = project.upkeep.iter().map(|kind| NewOperation {
            id: OperationId::from(Uuid::now_v7()),
            kind: kind.parse().unwrap(),
            scope: Scope::Project(project.state.project),
            ..new_operation()
        });
        (decision, upkeep.collect())
    };
    let asked_for = async |every_s: f64| {
        let upkeep = [Upkeep { kind: "repo-prune", every_s }];
        let scheduled = database.schedule_backups(10, &upkeep, prune).await.unwrap();
        assert_eq!(scheduled.looked_at, 2);
        scheduled.created.iter().map(|op| op.scope).collect::<Vec<_>>()
    };
    assert_eq!(asked_for(3600.0).await, [], "the project is younger than that");
    assert_eq!(asked_for(0.0).await, [Scope::Project(ids[0])], "the other has no backup");
    assert_eq!(asked_for(3600.0).await, []);
    assert_eq!(asked_for(0.0).await, [Scope::Project(ids[0])]);

    let checks = Mutex::new(Vec::new());
    for _ in 0..3 {
        let check = |project: &DueProject| {
            if !project.upkeep.is_empty() {
                checks.lock().unwrap().push(project.checks);
            }
            prune(project)
        };
        let upkeep = [Upkeep { kind: "repo-check", every_s: 0.0 }];
        database.schedule_backups(10, &upkeep, check).await.unwrap();
    }
    assert_eq!(checks.into_inner().unwrap(), [0, 1, 2]);
}
