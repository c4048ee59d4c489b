//! What a prune is told.

use crate::support::{catalog, fence, finished, new_operation, wanted};
use bus_messages::Outcome;
use catalog_database::{ClaimWanted, Database, LeasedOperation, NewOperation, NewProject};
use domain_model::{HostId, OperationId, ProjectId, Routing, Scope};
use uuid::Uuid;

const LEASE_S: f64 = 30.0;
/// What is added to the age of the oldest who may be writing.
const MARGIN_S: f64 = 3600.0;

async fn claim(database: &Database, lease_s: f64) -> LeasedOperation {
    let wanted = ClaimWanted { lease_s, ..wanted(Routing::Hub, "test-sleep", 1) };
    database.claim_operations(&wanted).await.unwrap().remove(0)
}

async fn succeed(database: &Database, leased: &LeasedOperation) {
    database.finish_operation(&finished(fence(leased), Outcome::Succeeded)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_at_once_while_somebody_may_still_be_writing() {
    let Some(catalog) = catalog().await else { return };
    let database = &catalog.database;
    let host = HostId::from(Uuid::new_v4());
    database.create_host(host, "host", "weur").await.unwrap();
    let project = ProjectId::from(Uuid::new_v4());
    let new =
        NewProject { id: project, title: "t".to_owned(), host_id: host, account_id: None, region: None };
    database.create_project(&new).await.unwrap().unwrap();
    let prune = OperationId::from(Uuid::now_v7());
    let grace_s = async || database.retention_round(project, prune, &[], &[], None).await.unwrap().grace_s;
    let is_margin = |grace_s: Option<f64>| grace_s.is_some_and(|s| (MARGIN_S..MARGIN_S + 600.0).contains(&s));
    let create = async || {
        let new = NewOperation { scope: Scope::Project(project), ..new_operation() };
        database.create_operation(&new, false).await.unwrap();
    };

    create().await;
    assert_eq!(grace_s().await, None, "one that nobody has begun writes nothing");
    let orderly = claim(database, LEASE_S).await;
    assert!(is_margin(grace_s().await), "one that runs");
    succeed(database, &orderly).await;
    assert_eq!(grace_s().await, None, "one that has ended in order");

    create().await;
    claim(database, -1.0).await;
    assert_eq!(database.sweep_operations(10, LEASE_S, 0.0).await.unwrap().leases_lost.len(), 1);
    assert!(is_margin(grace_s().await), "one that waits for its next attempt");
    let second = claim(database, LEASE_S).await;
    succeed(database, &second).await;
    assert!(is_margin(grace_s().await), "one whose first attempt may not know that it is over");
}
