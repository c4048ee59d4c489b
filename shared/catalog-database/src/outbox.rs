//! What the streams still have to be told. An entry is written with the change that it tells of, in one
//! transaction, and deleted once the stream has acknowledged it: a crash in between tells it twice, and
//! the reader of the stream drops the second (by attempt and `n`, or by `rev`).

use std::collections::{BTreeMap, HashMap, HashSet};

use bus_messages::{EventLevel, Operation};
use domain_model::{OperationId, OperationStatus, Timestamp};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError};

/// An event that a change of state adds to the ring.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEvent {
    /// The attempt that it tells of.
    pub attempt: u32,
    /// Its phase; `done` for the last event of an operation.
    pub phase: String,
    /// For people.
    pub message: String,
    /// How much it matters.
    pub level: EventLevel,
    /// How the operation ended, if it did.
    pub status: Option<OperationStatus>,
    /// More.
    pub detail: Option<Value>,
}

/// One thing to tell the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEntry {
    /// Grows with time.
    pub id: i64,
    /// Of which operation.
    pub op_id: OperationId,
    /// `persist.<scope>.lro.<op_id>`.
    pub subject: String,
    /// Added to the ring, if any.
    pub event: Option<OutboxEvent>,
    /// Both subjects are to be removed: the operation was deleted.
    pub purge: bool,
    /// When it was written.
    pub created_at: Timestamp,
}

/// What the stream is to be told of one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct ToTell {
    /// As it is now; `None` where it was deleted.
    pub op: Option<Operation>,
    /// In order; at least one.
    pub entries: Vec<OutboxEntry>,
}

struct Row {
    id: i64,
    op_id: Uuid,
    subject: String,
    event: Option<Value>,
    purge: bool,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for OutboxEntry {
    type Error = DatabaseError;

    fn try_from(row: Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            id: row.id,
            op_id: row.op_id.into(),
            subject: row.subject,
            event: row.event.map(read_event).transpose()?,
            purge: row.purge,
            created_at: row.created_at.into(),
        })
    }
}

impl OutboxEvent {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "attempt": self.attempt,
            "phase": self.phase,
            "message": self.message,
            "level": self.level,
            "status": self.status,
            "detail": self.detail,
        })
    }
}

fn read_event(value: Value) -> Result<OutboxEvent, DatabaseError> {
    let wrong = |error: serde_json::Error| DatabaseError::row("outbox.event", error);
    let field = |name: &str| value.get(name).cloned().unwrap_or(Value::Null);
    Ok(OutboxEvent {
        attempt: serde_json::from_value(field("attempt")).map_err(wrong)?,
        phase: serde_json::from_value(field("phase")).map_err(wrong)?,
        message: serde_json::from_value(field("message")).map_err(wrong)?,
        level: serde_json::from_value(field("level")).map_err(wrong)?,
        status: serde_json::from_value(field("status")).map_err(wrong)?,
        detail: serde_json::from_value(field("detail")).map_err(wrong)?,
    })
}

/// Has the summary of an operation told, in the transaction of the change that it tells of.
pub(crate) async fn add(
    connection: &mut PgConnection,
    op_id: Uuid,
    subject: &str,
) -> Result<(), DatabaseError> {
    sqlx::query!("INSERT INTO outbox (op_id, subject) VALUES ($1, $2)", op_id, subject)
        .execute(connection)
        .await
        .during("write to the outbox")
        .map(drop)
}

impl Database {
    /// What is still to be told of some operations, of each in order, and the operations as they are now: none where
    /// one was deleted.
    pub async fn outbox_of(&self, ids: &[OperationId]) -> Result<Vec<ToTell>, DatabaseError> {
        const DURING: &str = "read what is to be told of operations";
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        // First the entries: what they tell of is then in the rows.
        let rows = sqlx::query_as!(
            Row,
            "SELECT id, op_id, subject, event, purge, created_at FROM outbox WHERE op_id = ANY ($1) ORDER BY id",
            &ids
        )
        .fetch_all(&self.pool)
        .await
        .during(DURING)?;
        let mut entries: BTreeMap<Uuid, Vec<OutboxEntry>> = BTreeMap::new();
        let mut unreadable = HashSet::new();
        for row in rows {
            let op_id = row.op_id;
            match row.try_into() {
                Ok(entry) => entries.entry(op_id).or_default().push(entry),
                // Those of others are told all the same.
                Err(error) => {
                    let error: DatabaseError = error;
                    tracing::warn!(op.id = %op_id, %error, "an entry of the outbox does not read");
                    unreadable.insert(op_id);
                }
            }
        }
        entries.retain(|op_id, _| !unreadable.contains(op_id));
        let ids: Vec<OperationId> = entries.keys().copied().map(OperationId::from).collect();
        let mut ops: HashMap<Uuid, Operation> = HashMap::new();
        for op in self.operations_by_id(&ids).await? {
            ops.insert(op.op_id.as_uuid(), op);
        }
        Ok(entries.into_iter().map(|(id, entries)| ToTell { op: ops.remove(&id), entries }).collect())
    }

    /// Whether an event of an operation is still to be told.
    pub async fn outbox_has_event(&self, id: OperationId) -> Result<bool, DatabaseError> {
        sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM outbox WHERE op_id = $1 AND event IS NOT NULL) AS "has!""#,
            id.as_uuid()
        )
        .fetch_one(&self.pool)
        .await
        .during("look for an event that is still to be told")
    }

    /// Operations with entries older than `older_than_s` seconds, which somebody has failed to relay; at most `limit`. First
    /// those with events, which somebody waits for: a stream that is made anew has every summary there is behind them.
    pub async fn outbox_left_over(
        &self,
        older_than_s: f64,
        limit: i64,
    ) -> Result<Vec<OperationId>, DatabaseError> {
        let ids = sqlx::query_scalar!(
            "SELECT op_id FROM outbox WHERE created_at < now() - make_interval(secs => $1)
             GROUP BY op_id ORDER BY bool_and(event IS NULL), min(id) LIMIT $2",
            older_than_s,
            limit
        )
        .fetch_all(&self.pool)
        .await
        .during("look for left-over outbox entries")?;
        Ok(ids.into_iter().map(OperationId::from).collect())
    }

    /// Forgets entries that the stream has acknowledged. Not durably at once, so that nobody's commit waits for it: what
    /// a crash of the database brings back is told again, and dropped by whoever reads.
    pub async fn outbox_told(&self, ids: &[i64]) -> Result<(), DatabaseError> {
        sqlx::query!(
            "DELETE FROM outbox WHERE id = ANY($1) AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'",
            ids
        )
        .execute(&self.pool)
        .await
        .during("clear the outbox")
        .map(drop)
    }

    /// How many entries wait, and the age of the oldest in seconds.
    pub async fn outbox_lag(&self) -> Result<(i64, f64), DatabaseError> {
        let row = sqlx::query!(
            r#"SELECT count(*) AS "count!",
                coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS "age_s!" FROM outbox"#
        )
        .fetch_one(&self.pool)
        .await
        .during("measure the outbox")?;
        Ok((row.count, row.age_s))
    }

    /// Has the summary of every operation published again, for a stream that lost them; with `last_s`, only of those that changed
    /// in so many seconds before the last change.
    pub async fn outbox_rebuild(&self, last_s: Option<f64>) -> Result<u64, DatabaseError> {
        let written = sqlx::query!(
            "INSERT INTO outbox (op_id, subject)
             SELECT id, operation_subject(scope_type, scope_id, id) FROM long_running_operations
             WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.op_id = long_running_operations.id)
                AND ($1::float8 IS NULL OR updated_at >=
                    (SELECT max(updated_at) FROM long_running_operations) - make_interval(secs => $1))",
            last_s
        )
        .execute(&self.pool)
        .await
        .during("have all summaries published again")?;
        Ok(written.rows_affected())
    }
}
