use bus_messages::Operation;
use domain_model::{OperationId, OperationKind, Routing, Scope, Timestamp};
use serde_json::Value;
use sqlx::PgConnection;

use super::row::OperationRow;
use super::transition::{self, Ended};
use crate::error::During;
use crate::{Database, DatabaseError, outbox};

/// An operation to be created.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Its id, a UUIDv7.
    pub id: OperationId,
    /// Its kind.
    pub kind: OperationKind,
    /// What it is about.
    pub scope: Scope,
    /// Who asked for it.
    pub created_by: String,
    /// Which workers may claim it.
    pub routing: Routing,
    /// Its input, every default filled in.
    pub input: Value,
    /// SHA-256 of the input.
    pub input_hash: Vec<u8>,
    /// How many attempts may fail.
    pub max_attempts: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Not to be claimed before; at once where `None`.
    pub not_before: Option<Timestamp>,
    /// Seconds until it expires.
    pub time_to_live_s: u32,
    /// At most one active operation of a kind and scope has this key.
    pub dedupe_key: Option<String>,
    /// At most one running operation has this key.
    pub exclusive_key: Option<String>,
    /// The operation that it is a part of, and its name in there.
    pub parent: Option<(OperationId, String)>,
    /// The operation that it tries again.
    pub retry_of: Option<OperationId>,
    /// What that one left.
    pub checkpoint: Option<Value>,
}

/// What became of a wish to create.
#[derive(Debug, Clone, PartialEq)]
pub enum CreateOutcome {
    /// There is a new operation; `replaced` was cancelled for it (`force`).
    Created {
        /// The new one.
        op: Box<Operation>,
        /// The one whose key it took.
        replaced: Option<Box<Ended>>,
    },
    /// One with the same key and input is active.
    Active(Box<Operation>),
    /// One with the same key and another input is active.
    DedupeMismatch(Box<Operation>),
    /// Its key changes hands all the time: others create and end with the same one.
    Contended,
}

impl Database {
    /// Creates an operation, or finds the active one with the same dedupe key.
    pub async fn create_operation(
        &self,
        new: &NewOperation,
        force: bool,
    ) -> Result<CreateOutcome, DatabaseError> {
        const DURING: &str = "create an operation";
        // The active one may end between the two statements; then the key is free, and the next turn takes it.
        for _ in 0..5 {
            let mut transaction = self.pool.begin().await.during(DURING)?;
            if let Some(row) = insert(&mut transaction, new).await? {
                outbox::add(&mut transaction, row.id, &row.subject()?, None, false).await?;
                transaction.commit().await.during(DURING)?;
                return Ok(CreateOutcome::Created { op: Box::new(row.try_into()?), replaced: None });
            }
            let Some(active) = active_with_key(&mut transaction, new).await? else { continue };
            if !force {
                let same = active.input_hash == new.input_hash;
                let active = Box::new(active.try_into()?);
                return Ok(if same {
                    CreateOutcome::Active(active)
                } else {
                    CreateOutcome::DedupeMismatch(active)
                });
            }
            // The key goes over at once, though the work of a running one may take a moment to stop.
            let mut ended = transition::cancel(&mut transaction, active.clone()).await?;
            sqlx::query!("UPDATE long_running_operations SET dedupe_key = NULL WHERE id = $1", active.id)
                .execute(&mut *transaction)
                .await
                .during(DURING)?;
            ended.op.dedupe_key = None;
            // In the same transaction, so that nobody is canceled for an operation that does not come to be.
            if let Some(row) = insert(&mut transaction, new).await? {
                outbox::add(&mut transaction, row.id, &row.subject()?, None, false).await?;
                transaction.commit().await.during(DURING)?;
                let replaced = Some(Box::new(ended));
                return Ok(CreateOutcome::Created { op: Box::new(row.try_into()?), replaced });
            }
        }
        Ok(CreateOutcome::Contended)
    }
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    new: &NewOperation,
) -> Result<Option<OperationRow>, DatabaseError> {
    sqlx::query_as!(
        OperationRow,
        "INSERT INTO long_running_operations (id, kind, scope_type, scope_id, created_by, routing, input, input_hash,
            max_attempts, priority, not_before, expires_at, dedupe_key, exclusive_key, parent_id, child_key, retry_of,
            checkpoint, ready, account_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, coalesce($11, now()),
            greatest(coalesce($11, now()), now()) + make_interval(secs => $12), $13, $14, $15, $16, $17, $18,
            coalesce($11, now()) <= now(),
            coalesce(
                CASE $3 WHEN 'account' THEN $4 WHEN 'project' THEN (SELECT account_id FROM projects WHERE id = $4) END,
                '00000000-0000-0000-0000-000000000000'))
         ON CONFLICT DO NOTHING
         RETURNING *",
        new.id.as_uuid(),
        new.kind.as_str(),
        new.scope.scope_type().as_str(),
        new.scope.uuid(),
        new.created_by,
        new.routing.to_string(),
        new.input,
        new.input_hash,
        i32::try_from(new.max_attempts).unwrap_or(i32::MAX),
        new.priority,
        new.not_before.map(|moment| moment.as_date_time()),
        f64::from(new.time_to_live_s),
        new.dedupe_key,
        new.exclusive_key,
        new.parent.as_ref().map(|(id, _)| id.as_uuid()),
        new.parent.as_ref().map(|(_, key)| key.clone()),
        new.retry_of.map(|id| id.as_uuid()),
        new.checkpoint,
    )
    .fetch_optional(connection)
    .await
    .during("create an operation")
}

async fn active_with_key(
    connection: &mut PgConnection,
    new: &NewOperation,
) -> Result<Option<OperationRow>, DatabaseError> {
    sqlx::query_as!(
        OperationRow,
        "SELECT * FROM long_running_operations
         WHERE scope_type = $1 AND scope_id IS NOT DISTINCT FROM $2 AND kind = $3 AND dedupe_key = $4
            AND status IN ('queued', 'running')
         FOR UPDATE",
        new.scope.scope_type().as_str(),
        new.scope.uuid(),
        new.kind.as_str(),
        new.dedupe_key,
    )
    .fetch_optional(connection)
    .await
    .during("find the active operation with a dedupe key")
}
