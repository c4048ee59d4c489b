//! What is done with every repository now and then: when it is asked for, and when it is done.

use std::sync::Mutex;

use bus_messages::{FinishError, Outcome, ProjectGeneration};
use catalog_database::{
    Database, DueProject, FinishOutcome, Finished, NewBucket, NewOperation, SCHEDULED, URGENT, Upkeep,
};
use domain_model::{BackupDecision, HostId, OperationId, ProjectId, Routing, Scope};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Catalog, catalog, fence, finished, new_operation, projects, wanted};

const HOUR_S: f64 = 3600.0;
const WEEK_S: f64 = 7.0 * 24.0 * HOUR_S;

/// Two projects of a host, of which the first has a backup.
struct Kept {
    catalog: Catalog,
    host: HostId,
    project: ProjectId,
}

impl Kept {
    async fn new() -> Option<Self> {
        let catalog = catalog().await?;
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
        let kept = Self { host, project: ids[0], catalog };
        kept.back_up("2026-11-21T07:38:27.123Z").await;
        Some(kept)
    }

    fn database(&self) -> &Database {
        &self.catalog.database
    }

    async fn back_up(&self, at: &str) {
        let result = json!({ "backup_id": Uuid::new_v4().simple().to_string().repeat(2), "files": 1, "bytes": 1,
            "bytes_added": 1, "parent": null, "source": "live", "tree": "b".repeat(64), "snapshot_at": at,
            "generation": 5, "duration_s": 1.0 });
        let input = json!({ "tags": [], "pinned": false });
        self.database()
            .note_generations(self.host, &[ProjectGeneration { project_id: self.project, generation: 5 }])
            .await
            .unwrap();
        let asked = self.asked("project-backup", input, None);
        self.database().create_operation(&asked, false).await.unwrap();
        self.end("project-backup", Ok(result)).await;
    }

    fn asked(&self, kind: &str, input: Value, dedupe_key: Option<&str>) -> NewOperation {
        NewOperation {
            id: OperationId::from(Uuid::now_v7()),
            kind: kind.parse().unwrap(),
            scope: Scope::Project(self.project),
            routing: Routing::Host(self.host),
            input,
            dedupe_key: dedupe_key.map(str::to_owned),
            ..new_operation()
        }
    }

    /// Ends the next operation of a kind, well or with the code of an error.
    async fn end(&self, kind: &str, outcome: Result<Value, &str>) {
        let wanted = wanted(Routing::Host(self.host), kind, 1);
        let leased = self.database().claim_operations(&wanted).await.unwrap().remove(0);
        let finished = match outcome {
            Ok(result) => Finished { result: Some(result), ..finished(fence(&leased), Outcome::Succeeded) },
            Err(code) => {
                let error = FinishError {
                    code: code.to_owned(),
                    message: "it was not to be".to_owned(),
                    retryable: false,
                };
                // A check that has come to its end says what it has found.
                let result = (code == "repository_damaged").then(|| json!({ "lacking": [] }));
                Finished { error: Some(error), result, ..finished(fence(&leased), Outcome::Failed) }
            }
        };
        let outcome = self.database().finish_operation(&finished).await.unwrap();
        assert!(matches!(outcome, FinishOutcome::Recorded(_)), "{outcome:?}");
    }

    /// Has the scheduler look, and returns what it was told of each project with upkeep that is due, after asking for that.
    async fn look(&self, kind: &'static str, every_s: f64) -> Vec<Seen> {
        let seen = Mutex::new(Vec::new());
        let decide = |project: &DueProject| {
            let decision =
                BackupDecision { back_up: None, raise_to: None, missed: false, look_again_at: project.now };
            let key = if project.check_all { URGENT } else { SCHEDULED };
            let asked = |kind: &String| NewOperation {
                scope: Scope::Project(project.state.project),
                ..self.asked(
                    kind,
                    json!({ "read_data_shares": if project.check_all { 1 } else { 8 } }),
                    Some(key),
                )
            };
            if !project.upkeep.is_empty() {
                seen.lock().unwrap().push(Seen {
                    project: project.state.project,
                    checks: project.checks,
                    check_all: project.check_all,
                });
            }
            (decision, project.upkeep.iter().map(asked).collect())
        };
        let look = self.database().schedule_backups(10, &[Upkeep { kind, every_s }], decide).await.unwrap();
        assert_eq!(look.looked_at, 2);
        seen.into_inner().unwrap()
    }

    fn due(&self, checks: u32) -> Vec<Seen> {
        vec![Seen { project: self.project, checks, check_all: false }]
    }

    async fn a_day_passes(&self) {
        self.catalog
            .turn_back("UPDATE project_upkeep SET asked_at = asked_at - interval '25 hours' WHERE asked_at > '-infinity'")
            .await;
    }
}

/// What the scheduler is told of a project.
#[derive(Debug, PartialEq)]
struct Seen {
    project: ProjectId,
    checks: u32,
    check_all: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_is_asked_for_where_there_is_a_backup_daily_until_it_is_done_and_then_once_a_period() {
    let Some(kept) = Kept::new().await else { return };
    assert_eq!(kept.look("repo-prune", WEEK_S).await, [], "the project is younger than that");
    kept.catalog.turn_back("UPDATE projects SET created_at = created_at - interval '8 days'").await;
    assert_eq!(kept.look("repo-prune", WEEK_S).await, kept.due(0), "the other has no backup");
    assert_eq!(kept.look("repo-prune", WEEK_S).await, [], "it was asked for");
    kept.end("repo-prune", Err("bucket")).await;
    assert_eq!(kept.look("repo-prune", WEEK_S).await, []);
    kept.a_day_passes().await;
    assert_eq!(kept.look("repo-prune", WEEK_S).await, kept.due(0), "the one before failed");
    kept.end("repo-prune", Ok(json!({}))).await;
    kept.a_day_passes().await;
    assert_eq!(kept.look("repo-prune", WEEK_S).await, [], "it is done");

    let longest = async |kind| {
        let upkeep = [Upkeep { kind, every_s: WEEK_S }];
        kept.database().longest_without_upkeep(&upkeep).await.unwrap().remove(0).1
    };
    assert!(longest("repo-prune").await < HOUR_S);
    assert!(longest("restore-drill").await > WEEK_S, "since there is the project");
    kept.catalog.turn_back("UPDATE project_upkeep SET done_at = done_at - interval '8 days'").await;
    assert!(longest("repo-prune").await > WEEK_S);
    assert_eq!(kept.look("repo-prune", WEEK_S).await, kept.due(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_are_counted_when_they_are_done_and_what_somebody_asks_for_in_between_does_not_count() {
    let Some(kept) = Kept::new().await else { return };
    for (key, outcome, checks) in [
        (Some(SCHEDULED), Err("bucket"), 0),
        (Some(SCHEDULED), Ok(json!({})), 1),
        (None, Ok(json!({})), 1),
        (Some(SCHEDULED), Err("repository_damaged"), 2),
    ] {
        // The row that asking for it makes.
        kept.look("repo-check", 0.0).await;
        kept.end("repo-check", Err("canceled")).await;
        let asked = kept.asked("repo-check", json!({ "read_data_shares": 8 }), key);
        kept.database().create_operation(&asked, false).await.unwrap();
        kept.end("repo-check", outcome.clone()).await;
        assert_eq!(kept.look("repo-check", 0.0).await, kept.due(checks), "{key:?} {outcome:?}");
        kept.end("repo-check", Err("canceled")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_waits_for_a_busy_host_until_it_is_late_by_a_period() {
    let Some(kept) = Kept::new().await else { return };
    let busy =
        async |pressure| kept.database().note_load(kept.host, Some(pressure), None, None).await.unwrap();
    busy(90.0).await;
    kept.catalog.turn_back("UPDATE projects SET created_at = created_at - interval '8 days'").await;
    assert_eq!(kept.look("restore-drill", WEEK_S).await, []);
    kept.catalog.turn_back("UPDATE projects SET created_at = created_at - interval '7 days'").await;
    assert_eq!(kept.look("restore-drill", WEEK_S).await, kept.due(0));
    // One that is not late by so much waits no longer than for the host.
    assert_eq!(kept.look("repo-prune", 2.0 * WEEK_S).await, []);
    busy(0.0).await;
    assert_eq!(kept.look("repo-prune", 2.0 * WEEK_S).await, kept.due(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_needs_what_is_lost_has_all_data_checked_at_once_until_that_is_done() {
    let Some(kept) = Kept::new().await else { return };
    let check_all = [Seen { project: kept.project, checks: 0, check_all: true }];
    let restore = kept.asked("project-restore", json!({}), None);
    kept.database().create_operation(&restore, false).await.unwrap();
    kept.end("project-restore", Err("repository_damaged")).await;
    assert_eq!(kept.look("repo-check", WEEK_S).await, check_all);
    assert_eq!(kept.look("repo-check", WEEK_S).await, [], "it was asked for");
    kept.end("repo-check", Err("bucket")).await;
    kept.a_day_passes().await;
    assert_eq!(kept.look("repo-check", WEEK_S).await, check_all, "the one before did not read it all");
    assert!(!standing(&kept).await.damaged, "nobody has found out yet");
    kept.end("repo-check", Err("repository_damaged")).await;
    kept.a_day_passes().await;
    assert_eq!(kept.look("repo-check", WEEK_S).await, []);

    // Until the next backup.
    let found = standing(&kept).await;
    assert!(found.is_unsaved && found.damaged && !found.touched, "{found:?}");
    kept.back_up("2999-11-21T07:38:27.123Z").await;
    let saved = standing(&kept).await;
    assert!(!saved.is_unsaved && !saved.damaged, "{saved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_that_lack_data_are_bad_until_a_check_finds_none_and_the_same_damage_is_no_news() {
    let Some(kept) = Kept::new().await else { return };
    let backup = async || kept.database().list_backups(kept.project, None, 10).await.unwrap().remove(0);
    let lacking = json!({ "lacking": [backup().await.backup_id] });
    let check = async |key| {
        let asked = kept.asked("repo-check", json!({ "read_data_shares": 8 }), key);
        kept.database().create_operation(&asked, false).await.unwrap();
        let wanted = wanted(Routing::Host(kept.host), "repo-check", 1);
        let leased = kept.database().claim_operations(&wanted).await.unwrap().remove(0);
        let error = FinishError {
            code: "repository_damaged".to_owned(),
            message: "a pack is missing".to_owned(),
            retryable: false,
        };
        let result = Some(lacking.clone());
        let damaged = Finished { error: Some(error), result, ..finished(fence(&leased), Outcome::Failed) };
        kept.database().finish_operation(&damaged).await.unwrap();
    };
    check(None).await;
    assert!(backup().await.bad_since.is_some());
    assert!(standing(&kept).await.damaged);
    // The backup after it has not brought back what is lost.
    kept.back_up("2999-11-21T07:38:27.123Z").await;
    check(None).await;
    let known = standing(&kept).await;
    assert!(!known.damaged && !known.is_unsaved, "{known:?}");
    // A prune that needs the same fails each time; whoever else does, tells of something new.
    for (kind, is_news) in [("repo-prune", false), ("project-restore", true)] {
        kept.database().create_operation(&kept.asked(kind, json!({}), None), false).await.unwrap();
        kept.end(kind, Err("repository_damaged")).await;
        let seen = kept.look("repo-check", WEEK_S).await;
        assert_eq!(seen.iter().any(|seen| seen.check_all), is_news, "{kind}: {seen:?}");
    }
    kept.end("repo-check", Ok(json!({}))).await;
    let all = kept.database().list_backups(kept.project, None, 10).await.unwrap();
    assert!(all.iter().all(|backup| backup.bad_since.is_none()), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_told_so_three_times_and_only_by_those_that_do_not_give_way() {
    let Some(kept) = Kept::new().await else { return };
    let asked = |kind: &str, priority| NewOperation {
        exclusive_key: Some("project:x".to_owned()),
        priority,
        ..kept.asked(kind, json!({}), None)
    };
    let drill = asked("restore-drill", 0);
    kept.database().create_operation(&drill, false).await.unwrap();
    let claim = async || {
        let wanted = wanted(Routing::Host(kept.host), "restore-drill", 1);
        kept.database().claim_operations(&wanted).await.unwrap().remove(0)
    };
    let mut leased = claim().await;
    let is_in_the_way =
        async || !kept.database().operations_in_the_way(&[drill.id]).await.unwrap().is_empty();
    for (kind, priority) in [("repo-check", 0), ("project-start", -1)] {
        kept.database().create_operation(&asked(kind, priority), false).await.unwrap();
        assert!(!is_in_the_way().await, "{kind}");
    }
    let start = NewOperation { routing: Routing::Hub, ..asked("project-start", 0) };
    kept.database().create_operation(&start, false).await.unwrap();
    assert!(!is_in_the_way().await, "it waits for somebody else");
    kept.database().create_operation(&asked("project-start", 0), false).await.unwrap();
    for _ in 0..3 {
        assert!(is_in_the_way().await);
        let handed_back = finished(fence(&leased), Outcome::HandedBack);
        kept.database().finish_operation(&handed_back).await.unwrap();
        leased = claim().await;
    }
    assert!(!is_in_the_way().await, "it has given way often enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_a_backup_ran_is_unsaved_since_the_files_were_frozen() {
    // Frozen at generation 5, or nobody can tell at which.
    for generation in [json!(5), json!(null)] {
        let Some(kept) = Kept::new().await else { return };
        let backup = kept.asked("project-backup", json!({ "tags": [], "pinned": false }), None);
        kept.database().create_operation(&backup, false).await.unwrap();
        let tell = async |generation| {
            let later = [ProjectGeneration { project_id: kept.project, generation }];
            kept.database().note_generations(kept.host, &later).await.unwrap();
        };
        tell(9).await;
        let result = json!({ "backup_id": "a".repeat(64), "files": 1, "bytes": 1, "bytes_added": 1, "parent": null,
            "source": "live", "tree": "b".repeat(64), "snapshot_at": "2999-11-21T07:38:27.123Z",
            "generation": generation, "duration_s": 1.0 });
        kept.end("project-backup", Ok(result)).await;
        tell(11).await;
        let standing = standing(&kept).await;
        assert!(standing.is_unsaved && standing.unsaved_s < 0.0, "{standing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_said_does_not_count_once_it_is_silent() {
    let Some(kept) = Kept::new().await else { return };
    kept.database().note_load(kept.host, Some(0.0), None, None).await.unwrap();
    let heard = standing(&kept).await;
    assert!(!heard.is_unsaved && heard.host_silent_since.is_none(), "{heard:?}");
    assert_eq!(kept.database().silent_hosts().await.unwrap(), 0);
    kept.catalog.turn_back("UPDATE hosts SET load_seen = now() - interval '1 hour'").await;
    kept.catalog
        .turn_back("UPDATE projects SET last_backup_at = now() - interval '2 hours' WHERE last_backup_at IS NOT NULL")
        .await;
    let silent = standing(&kept).await;
    assert!(!silent.is_unsaved && silent.host_silent_since.is_some(), "{silent:?}");
    assert!((3590.0..3700.0).contains(&silent.unsaved_s), "since it was last heard of: {silent:?}");
    assert_eq!(kept.database().silent_hosts().await.unwrap(), 1);
    kept.catalog.turn_back("UPDATE hosts SET status = 'off'").await;
    assert_eq!(kept.database().silent_hosts().await.unwrap(), 0);
}

async fn standing(kept: &Kept) -> catalog_database::BackupStanding {
    kept.database().backup_standing(kept.project).await.unwrap().unwrap()
}
