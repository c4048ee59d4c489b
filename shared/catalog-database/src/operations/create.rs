use std::collections::HashMap;

use bus_messages::Operation;
use domain_model::{OperationId, OperationKind, Routing, Scope, Timestamp};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::OperationRow;
use super::transition::{self, Ended};
use crate::error::{During, despite_deadlocks};
use crate::{Database, DatabaseError, copies};

const DURING: &str = "create operations";

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
    /// There is a new operation.
    Created {
        /// The new one.
        op: Box<Operation>,
        /// What was canceled for it: the one whose key it took (`force`), copies that it supersedes.
        canceled: Vec<Ended>,
    },
    /// One with the same key and input is active.
    Active(Box<Operation>),
    /// One with the same key and another input is active.
    DedupeMismatch(Box<Operation>),
    /// Its key changes hands all the time: others create and end with the same one.
    Contended,
}

impl Database {
    /// Creates operations whose dedupe keys are free, all in one statement: which of them were created, in the order
    /// of `new`. `None` is for [`Database::create_operation`] to look into. Not for kinds that something is to be taken down
    /// for with them (`project-copy`).
    pub async fn create_operations(
        &self,
        new: &[NewOperation],
    ) -> Result<Vec<Option<Operation>>, DatabaseError> {
        let mut connection = self.pool.acquire().await.during(DURING)?;
        let new: Vec<&NewOperation> = new.iter().collect();
        let mut created = insert(&mut connection, &new).await?;
        new.iter().map(|new| created.remove(&new.id.as_uuid()).map(Operation::try_from).transpose()).collect()
    }

    /// Creates an operation, or finds the active one with the same dedupe key.
    pub async fn create_operation(
        &self,
        new: &NewOperation,
        force: bool,
    ) -> Result<CreateOutcome, DatabaseError> {
        despite_deadlocks(|| self.try_to_create(new, force)).await
    }

    async fn try_to_create(&self, new: &NewOperation, force: bool) -> Result<CreateOutcome, DatabaseError> {
        // The active one may end between the two statements; then the key is free, and the next turn takes it.
        for _ in 0..5 {
            let mut transaction = self.pool.begin().await.during(DURING)?;
            if let Some(op) = insert_one(&mut transaction, new).await? {
                let canceled = copies::record(&mut transaction, &op).await?;
                transaction.commit().await.during(DURING)?;
                return Ok(CreateOutcome::Created { op: Box::new(op), canceled });
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
            if let Some(op) = insert_one(&mut transaction, new).await? {
                let mut canceled = copies::record(&mut transaction, &op).await?;
                canceled.push(ended);
                transaction.commit().await.during(DURING)?;
                return Ok(CreateOutcome::Created { op: Box::new(op), canceled });
            }
        }
        Ok(CreateOutcome::Contended)
    }
}

async fn insert_one(
    connection: &mut PgConnection,
    new: &NewOperation,
) -> Result<Option<Operation>, DatabaseError> {
    let mut created = insert(connection, &[new]).await?;
    created.remove(&new.id.as_uuid()).map(Operation::try_from).transpose()
}

/// Inserts those that no unique key stands against, with a word to the outbox for each; by id.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    new: &[&NewOperation],
) -> Result<HashMap<Uuid, OperationRow>, DatabaseError> {
    fn column<T>(new: &[&NewOperation], of: impl Fn(&NewOperation) -> T) -> Vec<T> {
        new.iter().map(|new| of(new)).collect()
    }
    let rows = sqlx::query_as!(
        OperationRow,
        "WITH new AS (
            INSERT INTO long_running_operations (id, kind, scope_type, scope_id, created_by, routing, input, input_hash,
                max_attempts, priority, not_before, expires_at, dedupe_key, exclusive_key, parent_id, child_key, retry_of,
                checkpoint, ready, account_id)
            SELECT sent.id, sent.kind, sent.scope_type, sent.scope_id, sent.created_by, sent.routing, sent.input,
                sent.input_hash, sent.max_attempts, sent.priority, coalesce(sent.not_before, now()),
                greatest(coalesce(sent.not_before, now()), now()) + make_interval(secs => sent.time_to_live_s),
                sent.dedupe_key, sent.exclusive_key, sent.parent_id, sent.child_key, sent.retry_of, sent.checkpoint,
                coalesce(sent.not_before, now()) <= now(),
                coalesce(
                    CASE sent.scope_type WHEN 'account' THEN sent.scope_id WHEN 'project' THEN projects.account_id END,
                    '00000000-0000-0000-0000-000000000000')
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::jsonb[], $8::bytea[],
                    $9::integer[], $10::integer[], $11::timestamptz[], $12::float8[], $13::text[], $14::text[],
                    $15::uuid[], $16::text[], $17::uuid[], $18::jsonb[])
                AS sent (id, kind, scope_type, scope_id, created_by, routing, input, input_hash, max_attempts, priority,
                    not_before, time_to_live_s, dedupe_key, exclusive_key, parent_id, child_key, retry_of, checkpoint)
                LEFT JOIN projects ON projects.id = sent.scope_id
            -- Two statements that want the same keys wait for each other in one order only.
            ORDER BY sent.dedupe_key, sent.id
            ON CONFLICT DO NOTHING
            RETURNING *),
         told AS (
            INSERT INTO outbox (op_id, subject) SELECT id, operation_subject(scope_type, scope_id, id) FROM new)
         SELECT * FROM new",
        &column(new, |new| new.id.as_uuid()),
        &column(new, |new| new.kind.to_string()),
        &column(new, |new| new.scope.scope_type().as_str().to_owned()),
        &column(new, |new| new.scope.uuid()) as &[Option<Uuid>],
        &column(new, |new| new.created_by.clone()),
        &column(new, |new| new.routing.to_string()),
        &column(new, |new| new.input.clone()),
        &column(new, |new| new.input_hash.clone()),
        &column(new, |new| i32::try_from(new.max_attempts).unwrap_or(i32::MAX)),
        &column(new, |new| new.priority),
        &column(new, |new| new.not_before.map(|moment| moment.as_date_time())) as &[Option<OffsetDateTime>],
        &column(new, |new| f64::from(new.time_to_live_s)),
        &column(new, |new| new.dedupe_key.clone()) as &[Option<String>],
        &column(new, |new| new.exclusive_key.clone()) as &[Option<String>],
        &column(new, |new| new.parent.as_ref().map(|(id, _)| id.as_uuid())) as &[Option<Uuid>],
        &column(new, |new| new.parent.as_ref().map(|(_, key)| key.clone())) as &[Option<String>],
        &column(new, |new| new.retry_of.map(|id| id.as_uuid())) as &[Option<Uuid>],
        &column(new, |new| new.checkpoint.clone()) as &[Option<Value>],
    )
    .fetch_all(connection)
    .await
    .during(DURING)?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
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
