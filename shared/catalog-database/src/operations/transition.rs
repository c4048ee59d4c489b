//! Changes of state, each in the caller's transaction and on a locked row.

use bus_messages::{AttemptError, EventLevel, FinishError, Operation, OperationError, ProgressEvent};
use domain_model::{OperationEvent, OperationStatus, Routing, Timestamp, next_state};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::OperationRow;
use crate::error::During;
use crate::{DatabaseError, OutboxEvent, outbox};

/// An operation whose state was to change, and who is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The operation as it is now.
    pub op: Operation,
    /// Other operations that changed with it: its children, its parent.
    pub others: Vec<Operation>,
}

impl Ended {
    /// Every operation that changed.
    pub fn all(&self) -> impl Iterator<Item = &Operation> {
        std::iter::once(&self.op).chain(&self.others)
    }

    /// The workers that should look: those with something new to claim or to stop.
    pub fn to_wake(&self) -> Vec<Routing> {
        let mut routings: Vec<Routing> =
            self.all().filter(|op| !op.status.is_terminal()).map(|op| op.routing).collect();
        routings.sort_by_key(Routing::to_string);
        routings.dedup();
        routings
    }
}

/// How an operation leaves the state it is in.
pub(super) struct Change<'a> {
    pub event: OperationEvent,
    pub result: Option<&'a Value>,
    pub error: Option<&'a FinishError>,
    pub checkpoint: Option<&'a Value>,
    /// Seconds until it may be claimed again, where it is queued.
    pub wait_s: f64,
    /// For the ring.
    pub message: String,
}

pub(super) async fn lock(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<OperationRow>, DatabaseError> {
    sqlx::query_as!(OperationRow, "SELECT * FROM long_running_operations WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(connection)
        .await
        .during("lock an operation")
}

/// Carries out a change on a locked row that may take it. Tells the outbox, and the parent if it was the last child.
pub(super) async fn apply(
    connection: &mut PgConnection,
    row: &OperationRow,
    change: Change<'_>,
) -> Result<Ended, DatabaseError> {
    let status = next_state(row.status()?, change.event)
        .map_err(|illegal| DatabaseError::row("long_running_operations.status", illegal))?;
    let error = match change.error {
        Some(error) => Some(with_history(row, error, database_now(connection).await?)?),
        // A success after failures keeps no error; a cancel or an expiry keeps the last one.
        None if status == OperationStatus::Succeeded => None,
        None => row.error.clone(),
    };
    let lost = i32::from(matches!(change.event, OperationEvent::LeaseLost { .. }));
    let failed = i32::from(matches!(
        change.event,
        OperationEvent::FailedRetryably { .. } | OperationEvent::FailedPermanently
    ));
    let waits = change.event == OperationEvent::WaitsForChildren;
    // The lease id stays where its holder ended the attempt, so that a repeated finish is known again; it
    // goes where the holder did not.
    let keeps_lease = !matches!(change.event, OperationEvent::LeaseLost { .. } | OperationEvent::TimeOver);
    let updated = sqlx::query_as!(
        OperationRow,
        "UPDATE long_running_operations SET
            status = $2,
            result = coalesce($3, result),
            error = $4,
            checkpoint = coalesce($5, checkpoint),
            not_before = CASE WHEN $2 = 'queued' THEN now() + make_interval(secs => $6) ELSE not_before END,
            lease_losses = lease_losses + $7,
            failures = failures + $8,
            waiting_for_children = $9,
            ready = $2 = 'queued' AND NOT $9 AND $6 <= 0,
            finished_at = CASE WHEN $2 IN ('queued', 'running') THEN NULL ELSE now() END,
            lease_until = CASE WHEN $2 = 'running' THEN lease_until ELSE NULL END,
            lease_id = CASE WHEN $10 THEN lease_id ELSE NULL END,
            updated_at = now(),
            rev = rev + 1
         WHERE id = $1
         RETURNING *",
        row.id,
        status.as_str(),
        change.result,
        error,
        change.checkpoint,
        change.wait_s,
        lost,
        failed,
        waits && status == OperationStatus::Queued,
        keeps_lease,
    )
    .fetch_one(&mut *connection)
    .await
    .during("change the state of an operation")?;
    let event = OutboxEvent {
        attempt: u32::try_from(row.attempt).unwrap_or(0),
        phase: if status.is_terminal() { ProgressEvent::DONE } else { "queued" }.to_owned(),
        message: change.message,
        level: match status {
            OperationStatus::Failed => EventLevel::Error,
            OperationStatus::Expired | OperationStatus::Canceled => EventLevel::Warn,
            _ if change.error.is_some() || lost == 1 => EventLevel::Warn,
            _ => EventLevel::Info,
        },
        status: status.is_terminal().then_some(status),
        detail: change.error.map(|error| json!({ "code": error.code, "retryable": error.retryable })),
    };
    outbox::add(connection, row.id, &row.subject()?, Some(&event), false).await?;
    let mut others = Vec::new();
    if let (true, Some(parent)) = (status.is_terminal(), updated.parent_id) {
        others = Box::pin(child_ended(connection, parent)).await?;
    }
    Ok(Ended { op: updated.try_into()?, others })
}

async fn database_now(connection: &mut PgConnection) -> Result<OffsetDateTime, DatabaseError> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(connection).await.during("read the clock")
}

fn with_history(
    row: &OperationRow,
    error: &FinishError,
    now: OffsetDateTime,
) -> Result<Value, DatabaseError> {
    let mut history = row.error()?.map(|error| error.history).unwrap_or_default();
    history.push(AttemptError {
        attempt: u32::try_from(row.attempt).unwrap_or(0),
        code: error.code.clone(),
        message: error.message.clone(),
        at: Timestamp::from(now),
    });
    let excess = history.len().saturating_sub(20);
    history.drain(..excess);
    let error = OperationError {
        code: error.code.clone(),
        message: error.message.clone(),
        retryable: error.retryable,
        history,
    };
    serde_json::to_value(error).map_err(|e| DatabaseError::row("long_running_operations.error", e))
}

/// Goes on with a parent whose last child has ended.
pub(super) async fn child_ended(
    connection: &mut PgConnection,
    parent: Uuid,
) -> Result<Vec<Operation>, DatabaseError> {
    let Some(row) = lock(connection, parent).await? else { return Ok(Vec::new()) };
    if !row.waiting_for_children || active_children(connection, parent).await? > 0 {
        return Ok(Vec::new());
    }
    if row.cancel_requested_at.is_some() {
        let change = Change {
            event: OperationEvent::CancelRequested,
            result: None,
            error: None,
            checkpoint: None,
            wait_s: 0.0,
            message: "canceled, after its children".to_owned(),
        };
        let ended = apply(connection, &row, change).await?;
        return Ok(ended.all().cloned().collect());
    }
    let updated = sqlx::query_as!(
        OperationRow,
        "UPDATE long_running_operations
         SET waiting_for_children = false, ready = true, not_before = now(), updated_at = now(), rev = rev + 1
         WHERE id = $1 RETURNING *",
        parent
    )
    .fetch_one(&mut *connection)
    .await
    .during("queue a parent again")?;
    outbox::add(connection, parent, &updated.subject()?, None, false).await?;
    Ok(vec![updated.try_into()?])
}

async fn active_children(connection: &mut PgConnection, parent: Uuid) -> Result<i64, DatabaseError> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM long_running_operations WHERE parent_id = $1 AND status IN ('queued', 'running')"#,
        parent
    )
    .fetch_one(connection)
    .await
    .during("count the active children")
}

/// Cancels a locked operation, its children first. What runs is told; the rest ends at once.
pub(super) async fn cancel(connection: &mut PgConnection, row: OperationRow) -> Result<Ended, DatabaseError> {
    let mut others = Vec::new();
    let children = sqlx::query_as!(
        OperationRow,
        "SELECT * FROM long_running_operations WHERE parent_id = $1 AND status IN ('queued', 'running')
         ORDER BY id FOR UPDATE",
        row.id
    )
    .fetch_all(&mut *connection)
    .await
    .during("find the children of an operation")?;
    if children.is_empty() && row.status()? == OperationStatus::Queued {
        return apply(
            connection,
            &row,
            Change {
                event: OperationEvent::CancelRequested,
                result: None,
                error: None,
                checkpoint: None,
                wait_s: 0.0,
                message: "canceled before it was started".to_owned(),
            },
        )
        .await;
    }
    // First the wish, then the children: the end of the last of them then ends a waiting parent.
    let mut updated = sqlx::query_as!(
        OperationRow,
        "UPDATE long_running_operations
         SET cancel_requested_at = coalesce(cancel_requested_at, now()), updated_at = now(), rev = rev + 1
         WHERE id = $1 RETURNING *",
        row.id
    )
    .fetch_one(&mut *connection)
    .await
    .during("ask for an operation to be canceled")?;
    outbox::add(connection, row.id, &row.subject()?, None, false).await?;
    for child in children {
        let ended = Box::pin(cancel(connection, child)).await?;
        others.extend(ended.all().cloned());
    }
    if let Some(now) = lock(connection, row.id).await? {
        updated = now;
    }
    let op: Operation = updated.try_into()?;
    others.retain(|other| other.op_id != op.op_id);
    Ok(Ended { op, others })
}
