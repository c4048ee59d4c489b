//! Backups by schedule.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use crate::support::{catalog, new_operation, projects};
use bus_messages::{BackupPolicy, ProjectGeneration};
use catalog_database::{DueProject, NewOperation, NewProject};
use domain_model::{AccountId, BackupDecision, BackupUnderWay, OperationId, ProjectId, Scope, Timestamp};
use futures::future::join_all;
use uuid::Uuid;

fn in_an_hour(project: &DueProject) -> Timestamp {
    (project.now.as_date_time() + time::Duration::hours(1)).into()
}

fn rest_until(look_again_at: Timestamp) -> BackupDecision {
    BackupDecision { back_up: None, raise_to: None, missed: false, look_again_at }
}

fn rest(project: &DueProject) -> (BackupDecision, Vec<NewOperation>) {
    (rest_until(in_an_hour(project)), Vec::new())
}

fn back_up(project: &DueProject) -> (BackupDecision, Vec<NewOperation>) {
    let decision = BackupDecision { back_up: Some(-10), ..rest_until(in_an_hour(project)) };
    let new = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: "project-backup".parse().unwrap(),
        scope: Scope::Project(project.state.project),
        priority: -10,
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
            rest(project)
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
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 1);
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 0);
    assert!(database.update_project(ids[0], Some("new title"), None).await.unwrap());
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 0, "a title is no policy");
    let policy = BackupPolicy { every_s: Some(7200), ..BackupPolicy::default() };
    assert!(database.update_project(ids[0], None, Some(&policy)).await.unwrap());
    assert_eq!(database.backup_standing(ids[0]).await.unwrap().unwrap().policy, policy);
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 1);

    let account = AccountId::from(Uuid::new_v4());
    database.create_account(account, "eve").await.unwrap();
    let of_account = ProjectId::from(Uuid::new_v4());
    let place = database.project_place(ids[0]).await.unwrap().unwrap();
    let project = NewProject {
        id: of_account,
        title: "t".to_owned(),
        host_id: place.host_id,
        account_id: Some(account),
        region: None,
    };
    database.create_project(&project).await.unwrap().unwrap();
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 1);
    database.update_account(account, Some("adam"), None).await.unwrap().unwrap();
    assert_eq!(database.schedule_backups(10, &[], rest).await.unwrap().looked_at, 0, "a name is no policy");
    database.update_account(account, None, Some(&policy)).await.unwrap().unwrap();
    let seen = Mutex::new(Vec::new());
    let note = |project: &DueProject| {
        seen.lock().unwrap().push((project.state.project, project.policy.clone()));
        rest(project)
    };
    database.schedule_backups(10, &[], note).await.unwrap();
    assert_eq!(seen.into_inner().unwrap(), [(of_account, policy)], "its projects, and nobody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_waits_goes_ahead_and_its_events_tell_of_the_miss() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (_, ids) = projects(database, 3).await;
    let at_once = |project: &DueProject| {
        let (decision, new) = back_up(project);
        (BackupDecision { look_again_at: project.now, ..decision }, new)
    };
    let asked = database.schedule_backups(10, &[], at_once).await.unwrap();
    assert_eq!((asked.created.len(), asked.urged.len()), (3, 0));
    let waiting: HashMap<Scope, OperationId> = asked.created.iter().map(|op| (op.scope, op.op_id)).collect();

    // The first is overdue; the second is missed, too; the third waits as it is.
    let (overdue, missed) = (ids[0], ids[1]);
    let look = |project: &DueProject| {
        assert!(project.state.is_asked_for && project.state.under_way == BackupUnderWay::Waits);
        let (decision, none) = rest(project);
        let id = project.state.project;
        let raise_to = (id == overdue || id == missed).then_some(0);
        (BackupDecision { raise_to, missed: id == missed, ..decision }, none)
    };
    let looked = database.schedule_backups(10, &[], look).await.unwrap();
    assert_eq!(looked.missed, [missed]);
    assert_eq!(looked.urged.len(), 2, "{looked:?}");
    for (project, priority, events) in [(overdue, 0, 0), (missed, 0, 1), (ids[2], -10, 0)] {
        let op_id = waiting[&Scope::Project(project)];
        let told = database.outbox_of(&[op_id]).await.unwrap().remove(0);
        assert_eq!(told.op.unwrap().priority, priority);
        let told: Vec<_> = told.entries.iter().filter_map(|entry| entry.event.as_ref()).collect();
        assert_eq!(told.len(), events);
        assert!(told.iter().all(|event| event.message.contains("missed") && event.status.is_none()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_busy_by_its_own_pressure_as_long_as_it_says_so() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (host, _) = projects(database, 1).await;
    let (other, _) = projects(database, 1).await;
    let busy_hosts = async || {
        let seen = Mutex::new(HashSet::new());
        let note = |project: &DueProject| {
            if project.state.host_is_busy {
                seen.lock().unwrap().insert(project.host_id);
            }
            (rest_until(project.now), Vec::new())
        };
        assert_eq!(database.schedule_backups(10, &[], note).await.unwrap().looked_at, 2);
        seen.into_inner().unwrap()
    };
    assert_eq!(busy_hosts().await, HashSet::new(), "who has said nothing is not busy");
    for (memory, io, is_busy) in
        [(19.0, 59.0, false), (21.0, 0.0, true), (0.0, 0.0, false), (0.0, 61.0, true), (0.0, 0.0, false)]
    {
        database.note_load(host, Some(memory), Some(io), None).await.unwrap();
        database.note_load(other, Some(0.0), None, None).await.unwrap();
        assert_eq!(busy_hosts().await, HashSet::from_iter(is_busy.then_some(host)), "{memory} {io}");
    }
}
