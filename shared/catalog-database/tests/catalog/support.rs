//! What the tests of the catalog start from.

use bus_messages::{FinishError, Outcome};
use catalog_database::{
    Caps, ClaimWanted, Database, Finished, KindWanted, LeaseFence, LeasedOperation, NewOperation, NewProject,
};
use domain_model::{HostId, OperationId, ProjectId, Routing, Scope};
use futures::future::join_all;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use server_processes::{PostgresServer, postgres_bin_directory};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

/// A catalog on a Postgres of its own.
pub(crate) struct Catalog {
    pub(crate) database: Database,
    url: SecretString,
    _server: PostgresServer,
    _directory: tempfile::TempDir,
}

/// `None`, said aloud, where there is no Postgres and it is not required.
pub(crate) async fn catalog() -> Option<Catalog> {
    let programs = match postgres_bin_directory() {
        Ok(programs) => programs,
        Err(error) if std::env::var_os("LONGHAUL_REQUIRE_TOOLS").is_none() => {
            eprintln!("SKIPPED: {error:#}");
            return None;
        }
        Err(error) => panic!("{error:#}"),
    };
    let directory = tempfile::tempdir().unwrap();
    let server = PostgresServer::start(&programs, directory.path()).await.unwrap();
    let url = SecretString::from(server.database_url().to_owned());
    let database = Database::connect(&url, 12).await.unwrap();
    let others = [database.clone(), Database::connect(&url, 2).await.unwrap()];
    // Several registries start at once.
    for migrated in join_all(others.iter().map(Database::migrate)).await {
        migrated.unwrap();
    }
    Some(Catalog { database, url, _server: server, _directory: directory })
}

impl Catalog {
    /// Carries out a statement that no part of Longhaul would: it puts moments into the past.
    pub(crate) async fn turn_back(&self, statement: &'static str) {
        sqlx::query(statement).execute(&mut self.connection().await).await.unwrap();
    }

    /// A connection past what Longhaul has.
    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(self.url.expose_secret()).await.unwrap()
    }
}

/// A new host with so many projects.
pub(crate) async fn projects(database: &Database, count: usize) -> (HostId, Vec<ProjectId>) {
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

/// An operation of the hub that anybody may claim at once.
pub(crate) fn new_operation() -> NewOperation {
    NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: "test-sleep".parse().unwrap(),
        scope: Scope::Hub,
        created_by: "test".to_owned(),
        routing: Routing::Hub,
        input: json!({ "seconds": 1 }),
        input_hash: vec![1],
        max_attempts: 2,
        priority: 0,
        not_before: None,
        time_to_live_s: 600,
        dedupe_key: None,
        exclusive_key: None,
        parent: None,
        retry_of: None,
        checkpoint: None,
    }
}

/// A wish for operations of one kind, as many as there may be.
pub(crate) fn wanted(caller: Routing, kind: &str, max: u32) -> ClaimWanted {
    ClaimWanted {
        caller,
        worker_id: "worker".to_owned(),
        kinds: vec![KindWanted { kind: kind.parse().unwrap(), slots: max, caps: Caps::default() }],
        max,
        lease_s: 30.0,
    }
}

/// What proves that a lease is held.
pub(crate) fn fence(leased: &LeasedOperation) -> LeaseFence {
    LeaseFence { op_id: leased.op.op_id, attempt: leased.op.attempt, lease_id: leased.lease_id }
}

/// An end, and nothing else that comes with one.
pub(crate) fn finished(fence: LeaseFence, outcome: Outcome) -> Finished {
    Finished {
        fence,
        outcome,
        result: (outcome == Outcome::Succeeded).then(|| json!({ "done": true })),
        error: (outcome == Outcome::Failed).then(|| FinishError {
            code: "test".to_owned(),
            message: "failed".to_owned(),
            retryable: true,
        }),
        checkpoint: None,
        summary: None,
        children: Vec::new(),
        jitter: 0.0,
        wait_s: 0.0,
        reason: None,
    }
}
