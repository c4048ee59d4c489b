//! Changes of state, each in the caller's transaction and on a locked row.

use std::collections::{BTreeSet, HashMap};

use bus_messages::{
    AttemptError, EventLevel, FinishError, Operation, OperationError, ProgressEvent, ProgressSummary,
};
use domain_model::{OperationEvent, OperationId, OperationStatus, Timestamp, next_state};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::OperationRow;
use crate::error::During;
use crate::{DatabaseError, OutboxEvent, copies, outbox, project_states};

/// An operation whose state was to change, and who is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The operation as it is now.
    pub op: Operation,
    /// Other operations that changed with it: its children, its parent.
    pub others: Vec<Operation>,
    /// Operations that have something new to show, and have changed in nothing else.
    pub shown: Vec<OperationId>,
    /// Whether an attempt of `op` was under way, and has ended with this.
    pub attempt_ended: bool,
    /// Whether that attempt failed, and there will be another one for it.
    pub to_be_retried: bool,
}

impl Ended {
    /// Every operation that changed.
    pub fn all(&self) -> impl Iterator<Item = &Operation> {
        std::iter::once(&self.op).chain(&self.others)
    }
}

/// How an operation leaves the state it is in.
pub(super) struct Change<'a> {
    pub event: OperationEvent,
    pub result: Option<&'a Value>,
    pub error: Option<&'a FinishError>,
    pub checkpoint: Option<&'a Value>,
    /// The latest progress, where there is news.
    pub summary: Option<&'a ProgressSummary>,
    /// Seconds until it may be claimed again, where it is queued.
    pub wait_s: f64,
    /// For the ring.
    pub message: String,
}

pub(crate) async fn lock(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<OperationRow>, DatabaseError> {
    sqlx::query_as!(OperationRow, "SELECT * FROM long_running_operations WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(connection)
        .await
        .during("lock an operation")
}

/// Locks those of some operations that there are, in the order of their ids.
pub(crate) async fn lock_all(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, OperationRow>, DatabaseError> {
    let rows = sqlx::query_as!(
        OperationRow,
        "SELECT * FROM long_running_operations WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
        ids
    )
    .fetch_all(connection)
    .await
    .during("lock operations")?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

/// Carries out a change on a locked row that may take it.
pub(super) async fn apply(
    connection: &mut PgConnection,
    row: &OperationRow,
    change: Change<'_>,
) -> Result<Ended, DatabaseError> {
    let mut ended = apply_all(connection, &[(row, change)]).await?;
    ended.pop().ok_or_else(|| DatabaseError::row("long_running_operations.id", "a locked row is gone"))
}

/// Carries out a change on each of several locked rows that may take it, in one statement. Tells the outbox, and the
/// parents whose last child has ended.
pub(super) async fn apply_all(
    connection: &mut PgConnection,
    changes: &[(&OperationRow, Change<'_>)],
) -> Result<Vec<Ended>, DatabaseError> {
    let now = match changes.iter().any(|(_, change)| change.error.is_some()) {
        true => Some(database_now(connection).await?),
        false => None,
    };
    let columns = changes
        .iter()
        .map(|(row, change)| ChangedColumns::of(row, change, now))
        .collect::<Result<Vec<_>, DatabaseError>>()?;
    fn column<T>(changed: &[ChangedColumns], of: impl Fn(&ChangedColumns) -> T) -> Vec<T> {
        changed.iter().map(of).collect()
    }
    let updated = sqlx::query_as!(
        OperationRow,
        "WITH told AS (
            INSERT INTO outbox (op_id, subject, event)
            SELECT * FROM unnest($1::uuid[], $10::text[], $11::jsonb[]))
         UPDATE long_running_operations AS operation SET
            status = changed.status,
            result = coalesce(changed.result, operation.result),
            error = changed.error,
            checkpoint = coalesce(changed.checkpoint, operation.checkpoint),
            progress_summary = coalesce(changed.summary, operation.progress_summary),
            not_before = CASE WHEN changed.status = 'queued' THEN now() + make_interval(secs => changed.wait_s)
                ELSE operation.not_before END,
            lease_losses = operation.lease_losses + changed.lost,
            failures = operation.failures + changed.failed,
            waiting_for_children = changed.waits,
            ready = changed.status = 'queued' AND NOT changed.waits AND changed.wait_s <= 0,
            finished_at = CASE WHEN changed.status IN ('queued', 'running') THEN NULL ELSE now() END,
            -- Whose time is over does not know it yet: what it works on is its own for as long as it may believe so.
            lease_until = CASE WHEN changed.status IN ('running', 'expired') THEN operation.lease_until ELSE NULL END,
            lease_id = CASE WHEN changed.keeps_lease THEN operation.lease_id ELSE NULL END,
            updated_at = now(),
            rev = operation.rev + 1
         FROM unnest($1::uuid[], $2::text[], $3::jsonb[], $4::jsonb[], $5::jsonb[], $6::float8[], $7::integer[],
                $8::integer[], $9::boolean[], $12::boolean[], $13::jsonb[])
            AS changed (id, status, result, error, checkpoint, wait_s, lost, failed, waits, keeps_lease, summary)
         WHERE operation.id = changed.id
         RETURNING operation.*",
        &column(&columns, |changed| changed.id),
        &column(&columns, |changed| changed.status.as_str().to_owned()),
        &column(&columns, |changed| changed.result.clone()) as &[Option<Value>],
        &column(&columns, |changed| changed.error.clone()) as &[Option<Value>],
        &column(&columns, |changed| changed.checkpoint.clone()) as &[Option<Value>],
        &column(&columns, |changed| changed.wait_s),
        &column(&columns, |changed| changed.lost),
        &column(&columns, |changed| changed.failed),
        &column(&columns, |changed| changed.waits),
        &column(&columns, |changed| changed.subject.clone()),
        &column(&columns, |changed| changed.event.clone()),
        &column(&columns, |changed| changed.keeps_lease),
        &column(&columns, |changed| changed.summary.clone()) as &[Option<Value>],
    )
    .fetch_all(&mut *connection)
    .await
    .during("change the state of operations")?;
    project_states::note(connection, &updated).await?;
    let mut shown = copies::note(connection, &updated).await?;
    let mut updated: HashMap<Uuid, OperationRow> = updated.into_iter().map(|row| (row.id, row)).collect();
    let mut ended = Vec::with_capacity(changes.len());
    for changed in &columns {
        let row = updated.remove(&changed.id);
        let row =
            row.ok_or_else(|| DatabaseError::row("long_running_operations.id", "a locked row is gone"))?;
        let parent = row.parent_id.filter(|_| changed.status.is_terminal());
        let shown = shown.extract_if(.., |shown| Some(shown.as_uuid()) == parent).collect();
        let one = Ended {
            op: row.try_into()?,
            others: Vec::new(),
            shown,
            attempt_ended: changed.ends_attempt,
            to_be_retried: changed.to_be_retried,
        };
        ended.push((one, parent));
    }
    // In the order of their ids, so that two who tell the same parents wait for each other in one order only.
    let parents: BTreeSet<Uuid> = ended.iter().filter_map(|(_, parent)| *parent).collect();
    for parent in parents {
        let changed = Box::pin(child_ended(connection, parent)).await?;
        if let Some((child, _)) = ended.iter_mut().find(|(_, of)| *of == Some(parent)) {
            child.others.extend(changed);
        }
    }
    Ok(ended.into_iter().map(|(ended, _)| ended).collect())
}

/// What a change writes.
struct ChangedColumns {
    id: Uuid,
    subject: String,
    event: Value,
    status: OperationStatus,
    result: Option<Value>,
    error: Option<Value>,
    checkpoint: Option<Value>,
    summary: Option<Value>,
    wait_s: f64,
    lost: i32,
    failed: i32,
    waits: bool,
    keeps_lease: bool,
    ends_attempt: bool,
    to_be_retried: bool,
}

impl ChangedColumns {
    /// `now` is by the database's clock, where there is an error to date.
    fn of(
        row: &OperationRow,
        change: &Change<'_>,
        now: Option<OffsetDateTime>,
    ) -> Result<Self, DatabaseError> {
        let status = next_state(row.status()?, change.event)
            .map_err(|illegal| DatabaseError::row("long_running_operations.status", illegal))?;
        let error = match (change.error, now) {
            (Some(error), Some(now)) => Some(with_history(row, error, now)?),
            // A success after failures keeps no error; a cancel or an expiry keeps the last one.
            _ if status == OperationStatus::Succeeded => None,
            _ => row.error.clone(),
        };
        let lost = matches!(change.event, OperationEvent::LeaseLost { .. });
        let failed = matches!(
            change.event,
            OperationEvent::FailedRetryably { .. } | OperationEvent::FailedPermanently
        );
        let event = OutboxEvent {
            attempt: u32::try_from(row.attempt).unwrap_or(0),
            phase: if status.is_terminal() { ProgressEvent::DONE } else { "queued" }.to_owned(),
            message: change.message.clone(),
            level: match status {
                OperationStatus::Failed => EventLevel::Error,
                OperationStatus::Expired | OperationStatus::Canceled => EventLevel::Warn,
                _ if change.error.is_some() || lost => EventLevel::Warn,
                _ => EventLevel::Info,
            },
            status: status.is_terminal().then_some(status),
            detail: change.error.map(|error| json!({ "code": error.code, "retryable": error.retryable })),
        };
        Ok(Self {
            id: row.id,
            subject: row.subject()?,
            event: event.to_json(),
            status,
            result: change.result.cloned(),
            error,
            checkpoint: change.checkpoint.cloned(),
            summary: change.summary.and_then(|summary| serde_json::to_value(summary).ok()),
            wait_s: change.wait_s,
            lost: lost.into(),
            failed: failed.into(),
            waits: change.event == OperationEvent::WaitsForChildren && status == OperationStatus::Queued,
            // The lease id stays where its holder ended the attempt, so that a repeated finish is known again; it
            // goes where the holder did not.
            keeps_lease: !lost && change.event != OperationEvent::TimeOver,
            ends_attempt: row.status()? == OperationStatus::Running && status != OperationStatus::Running,
            to_be_retried: matches!(change.event, OperationEvent::FailedRetryably { .. })
                && status == OperationStatus::Queued,
        })
    }
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
    if !waits_for_none(connection, parent).await? {
        return Ok(Vec::new());
    }
    let Some(row) = lock(connection, parent).await? else { return Ok(Vec::new()) };
    if row.cancel_requested_at.is_some() {
        let change = Change {
            event: OperationEvent::CancelRequested,
            result: None,
            error: None,
            checkpoint: None,
            summary: None,
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
    outbox::add(connection, parent, &updated.subject()?).await?;
    Ok(vec![updated.try_into()?])
}

/// Locks an operation, and says whether it waits for children of which none is active. Apart from [`lock`], because the
/// operation may be large and most of its children are not the last.
async fn waits_for_none(connection: &mut PgConnection, parent: Uuid) -> Result<bool, DatabaseError> {
    const DURING: &str = "look for active children";
    let waiting = sqlx::query_scalar!(
        "SELECT waiting_for_children FROM long_running_operations WHERE id = $1 FOR UPDATE",
        parent
    );
    if !waiting.fetch_optional(&mut *connection).await.during(DURING)?.unwrap_or(false) {
        return Ok(false);
    }
    // After the lock: whoever ended another child at the same moment has been waited for.
    sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (SELECT 1 FROM long_running_operations
            WHERE parent_id = $1 AND status IN ('queued', 'running')) AS "none!""#,
        parent
    )
    .fetch_one(connection)
    .await
    .during(DURING)
}

/// Cancels a locked operation, its children first. What runs is told; the rest ends at once.
pub(crate) async fn cancel(connection: &mut PgConnection, row: OperationRow) -> Result<Ended, DatabaseError> {
    let (mut others, mut shown) = (Vec::new(), Vec::new());
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
                summary: None,
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
    outbox::add(connection, row.id, &row.subject()?).await?;
    for child in children {
        let ended = Box::pin(cancel(connection, child)).await?;
        others.extend(ended.all().cloned());
        shown.extend(ended.shown);
    }
    if let Some(now) = lock(connection, row.id).await? {
        updated = now;
    }
    let op: Operation = updated.try_into()?;
    others.retain(|other| other.op_id != op.op_id);
    Ok(Ended { op, others, shown, attempt_ended: false, to_be_retried: false })
}
