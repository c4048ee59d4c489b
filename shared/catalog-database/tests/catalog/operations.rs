//! Operations: what must hold when several registries and workers come at once.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{catalog, fence, finished, new_operation, wanted};
use bus_messages::{Operation, Outcome};
use catalog_database::{
    BucketPlacement, CancelOutcome, Caps, ClaimWanted, CreateOutcome, Database, FinishOutcome, Finished,
    Heartbeat, HeartbeatOutcome, LeasedOperation, NewBucket, NewOperation, NewProject, ToTell,
};
use domain_model::{AccountId, HostId, OperationId, OperationStatus, ProjectId, Routing, Scope, Timestamp};
use futures::future::join_all;
use serde_json::json;
use uuid::Uuid;

async fn create(database: &Database, new: &NewOperation) -> OperationId {
    match database.create_operation(new, false).await.unwrap() {
        CreateOutcome::Created { op, .. } => op.op_id,
        other => panic!("{other:?}"),
    }
}

async fn claim(database: &Database, max: u32) -> Vec<LeasedOperation> {
    claim_for(database, max, 30.0).await
}

const LEASE_S: f64 = 30.0;

async fn claim_for(database: &Database, max: u32, lease_s: f64) -> Vec<LeasedOperation> {
    claim_as(database, Routing::Hub, Caps::default(), max, lease_s).await
}

async fn claim_as(
    database: &Database,
    caller: Routing,
    caps: Caps,
    max: u32,
    lease_s: f64,
) -> Vec<LeasedOperation> {
    let mut wanted = ClaimWanted { lease_s, ..wanted(caller, "test-sleep", max) };
    wanted.kinds[0].caps = caps;
    database.claim_operations(&wanted).await.unwrap()
}

async fn operation(database: &Database, id: OperationId) -> Operation {
    database.operations_by_id(&[id]).await.unwrap().remove(0)
}

async fn status(database: &Database, id: OperationId) -> OperationStatus {
    operation(database, id).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_goes_to_one_of_many_claimers() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    for _ in 0..60 {
        create(database, &new_operation()).await;
    }
    let claims = join_all((0..10).map(|_| claim(database, 9))).await;
    let leased: Vec<OperationId> = claims.iter().flatten().map(|leased| leased.op.op_id).collect();
    let distinct: HashSet<OperationId> = leased.iter().copied().collect();
    assert_eq!(leased.len(), distinct.len(), "no operation was leased twice");
    let rest = claim(database, 100).await;
    assert_eq!(leased.len() + rest.len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_exclusive_key_one_operation_runs_at_a_time() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    for _ in 0..5 {
        create(database, &NewOperation { exclusive_key: Some("project:x".to_owned()), ..new_operation() })
            .await;
    }
    for left in (0..5).rev() {
        let claims = join_all((0..4).map(|_| claim(database, 5))).await;
        let leased: Vec<&LeasedOperation> = claims.iter().flatten().collect();
        assert_eq!(leased.len(), 1, "with {left} left");
        let outcome =
            database.finish_operation(&finished(fence(leased[0]), Outcome::Succeeded)).await.unwrap();
        assert!(matches!(outcome, FinishOutcome::Recorded(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_dedupe_key_one_operation_is_active() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let keyed = || NewOperation { dedupe_key: Some("nightly".to_owned()), ..new_operation() };
    let wishes: Vec<NewOperation> = (0..8).map(|_| keyed()).collect();
    let outcomes = join_all(wishes.iter().map(|new| database.create_operation(new, false))).await;
    let created =
        outcomes.iter().filter(|outcome| matches!(outcome, Ok(CreateOutcome::Created { .. }))).count();
    assert_eq!(created, 1);
    let other_input = NewOperation { input_hash: vec![2], ..keyed() };
    let refused = database.create_operation(&other_input, false).await.unwrap();
    assert!(matches!(refused, CreateOutcome::DedupeMismatch(_)));
    let CreateOutcome::Created { op, canceled } =
        database.create_operation(&other_input, true).await.unwrap()
    else {
        panic!("force takes the key")
    };
    assert_eq!(canceled[0].op.status, OperationStatus::Canceled);
    assert_eq!(op.dedupe_key.as_deref(), Some("nightly"));
    // What has ended holds no key.
    let leased = claim(database, 1).await;
    database.finish_operation(&finished(fence(&leased[0]), Outcome::Succeeded)).await.unwrap();
    create(database, &keyed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_can_write_nothing() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let id = create(database, &new_operation()).await;
    let zombie = claim_for(database, 1, -1.0).await.remove(0);
    let swept = database.sweep_operations(10, LEASE_S, 0.0).await.unwrap();
    assert_eq!(swept.leases_lost.len(), 1);
    assert_eq!(status(database, id).await, OperationStatus::Queued);
    let current = claim(database, 1).await.remove(0);
    assert_eq!(current.op.attempt, 2);
    assert_eq!(current.op.lease_losses, 1);

    let beat = |leased: &LeasedOperation| Heartbeat {
        number: None,
        fence: fence(leased),
        summary: None,
        checkpoint: Some(json!({ "by": leased.op.attempt })),
        for_events: false,
    };
    assert!(database.heartbeat_operations(&[beat(&zombie)], 30.0).await.unwrap().is_empty());
    assert_eq!(database.heartbeat_operations(&[beat(&current)], 30.0).await.unwrap().len(), 1);
    assert_eq!(database.checkpoint(id).await.unwrap(), Some(json!({ "by": 2 })));
    for outcome in [Outcome::Succeeded, Outcome::Failed, Outcome::Canceled, Outcome::HandedBack] {
        let answer = database.finish_operation(&finished(fence(&zombie), outcome)).await.unwrap();
        assert_eq!(answer, FinishOutcome::Lost);
    }
    let success = finished(fence(&current), Outcome::Succeeded);
    assert!(matches!(database.finish_operation(&success).await.unwrap(), FinishOutcome::Recorded(_)));
    assert_eq!(database.finish_operation(&success).await.unwrap(), FinishOutcome::Repeated);
    let late = database.cancel_operation(Scope::Hub, id).await.unwrap();
    assert!(matches!(late, CancelOutcome::Unchanged(op) if op.status == OperationStatus::Succeeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_a_clock_that_was_ahead_is_no_longer_than_one_of_today() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let id = create(database, &new_operation()).await;
    let leased = claim_for(database, 1, 3600.0).await.remove(0);
    // Within what registries may differ by, it is none of ours.
    assert!(!database.due_operations(3600.0).await.unwrap().to_sweep);
    assert!(database.due_operations(LEASE_S).await.unwrap().to_sweep);
    let swept = database.sweep_operations(10, LEASE_S, 0.0).await.unwrap();
    assert!(swept.leases_lost.is_empty(), "who holds it may be alive");
    assert!(!database.due_operations(LEASE_S).await.unwrap().to_sweep);
    let left_s = operation(database, id).await.lease_until.unwrap().seconds_since(leased.op.updated_at);
    assert!((LEASE_S - 1.0..LEASE_S + 600.0).contains(&left_s), "{left_s}");
    let success = finished(fence(&leased), Outcome::Succeeded);
    assert!(matches!(database.finish_operation(&success).await.unwrap(), FinishOutcome::Recorded(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_used_up_and_their_errors_kept() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let id = create(database, &new_operation()).await;
    for attempt in 1..=2 {
        let leased = claim(database, 1).await.remove(0);
        assert_eq!(leased.op.attempt, attempt);
        database.finish_operation(&finished(fence(&leased), Outcome::Failed)).await.unwrap();
    }
    let op = operation(database, id).await;
    assert_eq!(op.status, OperationStatus::Failed);
    assert_eq!(op.error.unwrap().history.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_ends_each_of_its_workers_fails_in_the_end() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let id = create(database, &new_operation()).await;
    for losses in 1..=10 {
        let poisoned = claim_for(database, 1, -1.0).await.remove(0);
        assert_eq!((poisoned.op.attempt, poisoned.op.lease_losses), (losses, losses - 1));
        // Losing a lease counts apart from failing.
        assert!(poisoned.op.max_attempts < 10);
        assert_eq!(database.sweep_operations(10, LEASE_S, 0.0).await.unwrap().leases_lost.len(), 1);
    }
    let op = operation(database, id).await;
    let error = op.error.unwrap();
    assert_eq!((op.status, error.code.as_str()), (OperationStatus::Failed, "lease_lost"));
    assert_eq!(error.history.len(), 10, "{:?}", error.history);
    assert!(claim(database, 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_waits_without_a_lease_and_goes_on_after_its_last_child() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let parent = create(database, &new_operation()).await;
    let leased = claim(database, 1).await.remove(0);
    let child = |key: &str| NewOperation { parent: Some((parent, key.to_owned())), ..new_operation() };
    let mut waiting = finished(fence(&leased), Outcome::WaitsForChildren);
    waiting.children = vec![child("a"), child("b"), child("a")];
    let FinishOutcome::Recorded(ended) = database.finish_operation(&waiting).await.unwrap() else { panic!() };
    assert!(ended.op.waiting_for_children && ended.op.lease_until.is_none());
    assert_eq!(ended.others.len(), 2, "the same key makes one child");

    let children = claim(database, 10).await;
    assert_eq!(children.len(), 2, "the parent is not claimed");
    database.finish_operation(&finished(fence(&children[0]), Outcome::Succeeded)).await.unwrap();
    assert!(claim(database, 10).await.is_empty());
    database.finish_operation(&finished(fence(&children[1]), Outcome::Canceled)).await.unwrap();
    let again = claim(database, 10).await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].op.op_id, parent);
}

#[tokio::test(flavor = "multi_thread")]
async fn canceling_a_waiting_parent_ends_its_children_first() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let parent = create(database, &new_operation()).await;
    let leased = claim(database, 1).await.remove(0);
    let mut waiting = finished(fence(&leased), Outcome::WaitsForChildren);
    waiting.children = (0..2)
        .map(|n| NewOperation { parent: Some((parent, format!("child-{n}"))), ..new_operation() })
        .collect();
    database.finish_operation(&waiting).await.unwrap();
    let running = claim(database, 1).await.remove(0);
    let CancelOutcome::Asked(asked) = database.cancel_operation(Scope::Hub, parent).await.unwrap() else {
        panic!()
    };
    assert_eq!(asked.op.status, OperationStatus::Queued, "a child still runs");
    database.finish_operation(&finished(fence(&running), Outcome::Canceled)).await.unwrap();
    assert_eq!(status(database, parent).await, OperationStatus::Canceled);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_its_time_expires_and_is_deleted_with_a_word_to_the_stream() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let short = NewOperation { time_to_live_s: 0, ..new_operation() };
    let id = create(database, &short).await;
    let done = create(database, &new_operation()).await;
    let leased = claim(database, 1).await.remove(0);
    assert_eq!(leased.op.op_id, done, "what has expired is not claimed");
    let swept = database.sweep_operations(10, LEASE_S, 0.0).await.unwrap();
    assert_eq!(swept.expired.len(), 1);
    assert_eq!(status(database, id).await, OperationStatus::Expired);
    database.finish_operation(&finished(fence(&leased), Outcome::Succeeded)).await.unwrap();
    assert!(
        database.sweep_operations(10, LEASE_S, 0.0).await.unwrap().deleted.is_empty(),
        "it is kept for its time"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_while_a_worker_works_on_it_keeps_its_key_until_the_lease_is_over() {
    const LONG_S: f64 = 600.0;
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let keyed = || NewOperation { exclusive_key: Some("project:x".to_owned()), ..new_operation() };
    let first = create(database, &keyed()).await;
    let leased = claim_for(database, 1, LONG_S).await.remove(0);
    let second = create(database, &keyed()).await;
    catalog
        .turn_back(
            "UPDATE long_running_operations SET expires_at = now() - interval '1 s' WHERE status = 'running'",
        )
        .await;
    let swept = database.sweep_operations(10, LONG_S, 0.0).await.unwrap();
    assert_eq!((leased.op.op_id, swept.expired[0].op.op_id), (first, first));
    assert_eq!(claim_for(database, 1, LONG_S).await, [], "its worker has not heard of it");
    catalog
        .turn_back("UPDATE long_running_operations SET lease_until = now() - interval '1 s' WHERE status = 'expired'")
        .await;
    assert_eq!(claim_for(database, 1, LONG_S).await.remove(0).op.op_id, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_still_to_be_told_goes_ahead_of_summaries_of_a_stream_made_anew() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let (first, second) =
        (create(database, &new_operation()).await, create(database, &new_operation()).await);
    let told = |entries: Vec<ToTell>| -> Vec<i64> {
        entries.iter().flat_map(|to_tell| &to_tell.entries).map(|entry| entry.id).collect()
    };
    database.outbox_told(&told(database.outbox_of(&[first, second]).await.unwrap())).await.unwrap();
    assert!(!database.outbox_has_event(first).await.unwrap());
    assert_eq!(database.outbox_rebuild(Some(0.0)).await.unwrap(), 1, "the last change");
    assert_eq!(database.outbox_rebuild(None).await.unwrap(), 1, "the other one");
    assert_eq!(database.outbox_left_over(-1.0, 10).await.unwrap().len(), 2);

    let leased = claim(database, 2).await;
    let leased = leased.into_iter().find(|leased| leased.op.op_id == second).unwrap();
    assert!(!database.outbox_has_event(second).await.unwrap(), "a summary is no event");
    database.finish_operation(&finished(fence(&leased), Outcome::Succeeded)).await.unwrap();
    assert!(database.outbox_has_event(second).await.unwrap());
    assert_eq!(database.outbox_left_over(-1.0, 10).await.unwrap(), [second, first]);
    assert!(database.outbox_left_over(600.0, 10).await.unwrap().is_empty(), "they are not left over yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_first_backups_make_one_bucket_and_a_project_keeps_its_own() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let new_bucket = || NewBucket {
        id: Uuid::now_v7().into(),
        purpose: "backups",
        provider: "local".to_owned(),
        account_id: None,
        region: "weur".to_owned(),
        name: format!("bucket-{}", Uuid::new_v4()),
        endpoint: None,
    };
    let wishes: Vec<NewBucket> = (0..8).map(|_| new_bucket()).collect();
    let buckets = join_all(wishes.iter().map(|new| database.bucket_in_use(new))).await;
    let ids: HashSet<_> = buckets.iter().map(|bucket| bucket.as_ref().unwrap().id).collect();
    assert_eq!(ids.len(), 1);
    let id = *ids.iter().next().unwrap();
    // One that is elsewhere is never used: the next wish makes another.
    let placed = database.bucket_placed(id, &BucketPlacement::Mismatch("ENAM".to_owned())).await.unwrap();
    assert_eq!((placed.status.as_str(), placed.location.as_deref()), ("mismatch", Some("ENAM")));
    let other = database.bucket_in_use(&new_bucket()).await.unwrap();
    assert_ne!(other.id, id);
    assert_eq!(
        database.bucket_placed(other.id, &BucketPlacement::Active(None)).await.unwrap().status,
        "active"
    );

    let host = HostId::from(Uuid::new_v4());
    database.create_host(host, "host", "weur").await.unwrap();
    let project = NewProject {
        id: ProjectId::from(Uuid::new_v4()),
        title: "t".to_owned(),
        host_id: host,
        account_id: None,
        region: None,
    };
    database.create_project(&project).await.unwrap().unwrap();
    assert_eq!(database.bind_backup_bucket(project.id, other.id).await.unwrap(), Some(other.id));
    assert_eq!(
        database.bind_backup_bucket(project.id, id).await.unwrap(),
        Some(other.id),
        "it stays where it is"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_take_turns_however_much_one_of_them_has_queued() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let of = |account: u128, priority| {
        let scope = Scope::Account(AccountId::from(Uuid::from_u128(account)));
        NewOperation { id: OperationId::from(Uuid::now_v7()), scope, priority, ..new_operation() }
    };
    for _ in 0..200 {
        create(database, &of(1, 0)).await;
    }
    for account in [2, 3, 3] {
        create(database, &of(account, 0)).await;
    }
    let scopes = |leased: &[LeasedOperation]| {
        let mut scopes: Vec<_> =
            leased.iter().map(|lease| lease.op.scope.uuid().unwrap().as_u128()).collect();
        scopes.sort_unstable();
        scopes
    };
    // One each, though the first account was there long before.
    let first = claim(database, 3).await;
    assert_eq!(scopes(&first), [1, 2, 3]);
    // Each runs one: the two that have more get one more each.
    let second = claim(database, 2).await;
    assert_eq!(scopes(&second), [1, 3]);
    // The others have nothing more, so the rest is the first one's.
    assert_eq!(scopes(&claim(database, 4).await), [1, 1, 1, 1]);
    // It runs six by now, and a newcomer goes ahead of it.
    create(database, &of(4, 0)).await;
    create(database, &of(4, 0)).await;
    assert_eq!(scopes(&claim(database, 2).await), [4, 4]);
    // Only what is more urgent goes before turns.
    create(database, &of(5, -1)).await;
    assert_eq!(scopes(&claim(database, 1).await), [1]);
    // More accounts than are looked at in one claim: each comes up in some claim.
    for account in 100..400 {
        create(database, &of(account, 50)).await;
    }
    let mut served = Vec::new();
    for _ in 0..300 {
        served.extend(scopes(&claim(database, 1).await));
    }
    served.sort_unstable();
    assert_eq!(served, (100..400).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_hold_against_many_claimers_at_once() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let hosts = [1, 2, 3].map(|number| Routing::Host(HostId::from(Uuid::from_u128(number))));
    for routing in hosts {
        for _ in 0..30 {
            let id = OperationId::from(Uuid::now_v7());
            create(database, &NewOperation { id, routing, ..new_operation() }).await;
        }
    }
    let caps = Caps { in_all: Some(10), per_caller: Some(4) };
    let claimers = (0..24).map(|claimer| claim_as(database, hosts[claimer % 3], caps, 3, 30.0));
    let leased: Vec<_> = join_all(claimers).await.into_iter().flatten().collect();
    assert_eq!(leased.len(), 10, "the cap in all is reached, and not passed");
    for host in hosts {
        assert!(leased.iter().filter(|lease| lease.op.routing == host).count() <= 4, "{host}");
    }
    // One that ends makes room for one, on a host that has any.
    let ended = fence(&leased[0]);
    database.finish_operation(&finished(ended, Outcome::Succeeded)).await.unwrap();
    let claimers = (0..12).map(|claimer| claim_as(database, hosts[claimer % 3], caps, 3, 30.0));
    assert_eq!(join_all(claimers).await.into_iter().flatten().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_due_is_not_claimed_and_is_made_ready_when_it_is() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let far_ahead = Timestamp::from(time::OffsetDateTime::now_utc() + Duration::from_secs(3600));
    create(database, &NewOperation { not_before: Some(far_ahead), ..new_operation() }).await;
    assert_eq!(database.make_operations_ready(10).await.unwrap(), []);
    assert!(claim(database, 1).await.is_empty());

    // A failure puts it off, by the database's clock.
    let id =
        create(database, &NewOperation { id: OperationId::from(Uuid::now_v7()), ..new_operation() }).await;
    let leased = claim(database, 1).await;
    let failed = Finished { jitter: 1.0, ..finished(fence(&leased[0]), Outcome::Failed) };
    database.finish_operation(&failed).await.unwrap();
    assert!(claim(database, 1).await.is_empty());
    let op = database.operation(Scope::Hub, id).await.unwrap().unwrap();
    let wait_s = op.not_before.seconds_since(op.updated_at);
    assert!(wait_s > 0.0, "{op:?}");
    tokio::time::sleep(Duration::from_secs_f64(wait_s + 0.1)).await;
    assert!(claim(database, 1).await.is_empty(), "until it is made ready");
    assert_eq!(database.make_operations_ready(10).await.unwrap(), [Routing::Hub]);
    assert_eq!(claim(database, 1).await[0].op.op_id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_kinds_a_claim_takes_what_is_ready_for_the_caller_or_for_anybody() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let new = |kind: &str, routing, not_before| NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: kind.parse().unwrap(),
        routing,
        not_before,
        ..new_operation()
    };
    let other_host = Routing::Host(HostId::from(Uuid::now_v7()));
    let far_ahead = Timestamp::from(time::OffsetDateTime::now_utc() + Duration::from_secs(3600));
    let mut ready = [
        create(database, &new("test-sleep", Routing::Hub, None)).await,
        create(database, &new("project-copy", Routing::Any, None)).await,
    ];
    create(database, &new("project-backup", other_host, None)).await;
    create(database, &new("project-start", Routing::Hub, Some(far_ahead))).await;
    let kinds = ["test-sleep", "project-backup", "project-copy", "project-start", "project-stop"];
    let mut several = wanted(Routing::Hub, "test-sleep", 10);
    several.kinds = kinds.into_iter().flat_map(|kind| wanted(Routing::Hub, kind, 10).kinds).collect();
    let leased = database.claim_operations(&several).await.unwrap();
    let mut claimed: Vec<_> = leased.iter().map(|leased| leased.op.op_id).collect();
    ready.sort();
    claimed.sort();
    assert_eq!(claimed, ready);
    assert!(database.claim_operations(&several).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_was_held_up_renews_the_lease_and_changes_nothing_else() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let id = create(database, &new_operation()).await;
    let leased = claim(database, 1).await.remove(0);
    let beat = |number, step: u32| Heartbeat {
        fence: fence(&leased),
        number,
        summary: None,
        checkpoint: Some(json!({ "step": step })),
        for_events: true,
    };
    for (number, step, stored) in
        [(Some(1), 1, 1), (Some(3), 3, 3), (Some(2), 2, 3), (Some(3), 9, 3), (None, 4, 4)]
    {
        let outcome = database.heartbeat_operations(&[beat(number, step)], 30.0).await.unwrap();
        assert_eq!(outcome.len(), 1, "it still holds the lease");
        assert_eq!(database.checkpoint(id).await.unwrap(), Some(json!({ "step": stored })), "{number:?}");
    }
    // The next attempt counts from the beginning.
    let failed = Finished { checkpoint: None, ..finished(fence(&leased), Outcome::HandedBack) };
    database.finish_operation(&failed).await.unwrap();
    let again = claim(database, 1).await.remove(0);
    let first = Heartbeat { fence: fence(&again), ..beat(Some(1), 5) };
    database.heartbeat_operations(&[first], 30.0).await.unwrap();
    assert_eq!(database.checkpoint(id).await.unwrap(), Some(json!({ "step": 5 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_alone_leave_a_lease_that_was_given_a_moment_ago_as_it_is() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    for _ in 0..2 {
        create(database, &NewOperation { id: OperationId::from(Uuid::now_v7()), ..new_operation() }).await;
    }
    let leased = claim_for(database, 1, 3000.0).await.remove(0);
    let older = claim_for(database, 1, 2000.0).await.remove(0);
    let beat = |leased: &LeasedOperation, for_events| Heartbeat {
        fence: fence(leased),
        number: Some(1),
        summary: None,
        checkpoint: None,
        for_events,
    };
    let until = |outcome: &HeartbeatOutcome| outcome.op.lease_until.unwrap();
    let beats = [beat(&leased, true), beat(&older, true)];
    let outcomes = database.heartbeat_operations(&beats, 3000.0).await.unwrap();
    let of = |leased: &LeasedOperation| {
        outcomes.iter().find(|outcome| outcome.op.op_id == leased.op.op_id).expect("it is held")
    };
    assert_eq!((until(of(&leased)), of(&leased).lease_s), (leased.lease_until, 2700.0), "nothing is written");
    assert_eq!(of(&older).lease_s, 3000.0);
    assert!(until(of(&older)).seconds_since(older.lease_until) > 900.0, "it is renewed");
    // Not where it is the heartbeat that is due, nor with news. Each lease is a second longer than the one before:
    // two statements may come within one millisecond, finer than which no moment is told.
    let outcome = database.heartbeat_operations(&[beat(&leased, false)], 3001.0).await.unwrap().remove(0);
    let renewed = until(&outcome);
    assert!(renewed > leased.lease_until && outcome.lease_s == 3001.0);
    let with_checkpoint = Heartbeat { checkpoint: Some(json!({ "step": 1 })), ..beat(&leased, true) };
    let outcome = database.heartbeat_operations(&[with_checkpoint], 3002.0).await.unwrap().remove(0);
    assert!(until(&outcome) > renewed);
    // Whoever does not hold it is told so.
    let mut zombie = beat(&leased, true);
    zombie.fence.attempt += 1;
    assert!(database.heartbeat_operations(&[zombie], 3000.0).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_was_asked_to_cancel_has_no_children_made() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let id = create(database, &new_operation()).await;
    let leased = claim(database, 1).await.remove(0);
    database.cancel_operation(Scope::Hub, id).await.unwrap();
    let child = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        parent: Some((id, "one".to_owned())),
        ..new_operation()
    };
    let waits = Finished { children: vec![child], ..finished(fence(&leased), Outcome::WaitsForChildren) };
    database.finish_operation(&waits).await.unwrap();
    assert_eq!(status(database, id).await, OperationStatus::Canceled);
    assert!(claim(database, 10).await.is_empty(), "there is no child");
}
