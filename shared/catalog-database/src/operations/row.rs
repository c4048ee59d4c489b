use bus_messages::{Operation, OperationError, ProgressSummary};
use bus_subjects::OperationSubject;
use domain_model::{OperationId, OperationStatus, Scope, Timestamp};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::DatabaseError;

/// A row of `long_running_operations`, column for column.
#[derive(Debug, Clone)]
pub(crate) struct OperationRow {
    pub id: Uuid,
    pub kind: String,
    pub scope_type: String,
    pub scope_id: Option<Uuid>,
    pub status: String,
    pub created_by: String,
    pub owner: Option<String>,
    pub routing: String,
    pub input: Value,
    pub result: Option<Value>,
    pub error: Option<Value>,
    pub progress_summary: Option<Value>,
    pub checkpoint: Option<Value>,
    pub attempt: i32,
    pub max_attempts: i32,
    pub lease_losses: i32,
    pub failures: i32,
    pub priority: i32,
    pub not_before: OffsetDateTime,
    pub lease_id: Option<Uuid>,
    pub lease_until: Option<OffsetDateTime>,
    pub heartbeat_at: Option<OffsetDateTime>,
    pub cancel_requested_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub finished_at: Option<OffsetDateTime>,
    pub updated_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    pub dedupe_key: Option<String>,
    pub input_hash: Vec<u8>,
    pub exclusive_key: Option<String>,
    pub parent_id: Option<Uuid>,
    #[expect(dead_code, reason = "read by the unique index that makes each child once")]
    pub child_key: Option<String>,
    pub waiting_for_children: bool,
    pub retry_of: Option<Uuid>,
    pub rev: i64,
    #[expect(dead_code, reason = "read by claims")]
    pub account_id: Uuid,
    #[expect(dead_code, reason = "read by claims")]
    pub claimed_by: Option<String>,
    #[expect(dead_code, reason = "read by claims")]
    pub ready: bool,
    #[expect(dead_code, reason = "read by heartbeats")]
    pub heartbeats: i64,
}

/// A scope as the columns of an operation have it.
pub(crate) fn scope_of(scope_type: &str, scope_id: Option<Uuid>) -> Result<Scope, DatabaseError> {
    let wrong = |error: String| DatabaseError::row("long_running_operations.scope", error);
    match (scope_type, scope_id) {
        ("project", Some(id)) => Ok(Scope::Project(id.into())),
        ("account", Some(id)) => Ok(Scope::Account(id.into())),
        ("host", Some(id)) => Ok(Scope::Host(id.into())),
        ("hub", None) => Ok(Scope::Hub),
        (other, id) => Err(wrong(format!("{other} {id:?}"))),
    }
}

impl OperationRow {
    pub(crate) fn scope(&self) -> Result<Scope, DatabaseError> {
        scope_of(&self.scope_type, self.scope_id)
    }

    pub(crate) fn status(&self) -> Result<OperationStatus, DatabaseError> {
        self.status.parse().map_err(|error| DatabaseError::row("long_running_operations.status", error))
    }

    pub(crate) fn subject(&self) -> Result<String, DatabaseError> {
        Ok(OperationSubject { scope: self.scope()?, op_id: OperationId::from(self.id) }.to_string())
    }

    /// The error of the last attempt, with the history of those before.
    pub(crate) fn error(&self) -> Result<Option<OperationError>, DatabaseError> {
        let read = |value: &Value| serde_json::from_value(value.clone());
        self.error
            .as_ref()
            .map(read)
            .transpose()
            .map_err(|e| DatabaseError::row("long_running_operations.error", e))
    }
}

impl TryFrom<OperationRow> for Operation {
    type Error = DatabaseError;

    fn try_from(row: OperationRow) -> Result<Self, DatabaseError> {
        let column = |what: &'static str| move |message: String| DatabaseError::row(what, message);
        let status = row.status()?;
        let scope = row.scope()?;
        let error = row.error()?;
        let summary: Option<ProgressSummary> =
            row.progress_summary
                .map(serde_json::from_value)
                .transpose()
                .map_err(|e| column("long_running_operations.progress_summary")(e.to_string()))?;
        let progress = match (status, &summary) {
            (OperationStatus::Succeeded, _) => 100.0,
            (_, Some(summary)) => summary.progress,
            (_, None) => 0.0,
        };
        let count = |value: i32| u32::try_from(value).unwrap_or(0);
        Ok(Self {
            op_id: row.id.into(),
            kind: row.kind.parse().map_err(|e| column("long_running_operations.kind")(format!("{e}")))?,
            scope,
            scope_type: row.scope_type,
            scope_id: row.scope_id.map(|id| id.to_string()),
            status,
            created_by: row.created_by,
            owner: row.owner,
            routing: row
                .routing
                .parse()
                .map_err(|e| column("long_running_operations.routing")(format!("{e}")))?,
            input: row.input,
            result: row.result,
            error,
            progress,
            phase: if status.is_terminal() {
                Some(bus_messages::ProgressEvent::DONE.to_owned())
            } else {
                summary.as_ref().map(|summary| summary.phase.clone())
            },
            message: summary.as_ref().map(|summary| summary.message.clone()),
            progress_summary: summary,
            attempt: count(row.attempt),
            max_attempts: count(row.max_attempts),
            lease_losses: count(row.lease_losses),
            priority: row.priority,
            not_before: row.not_before.into(),
            lease_until: row.lease_until.map(Timestamp::from),
            heartbeat_at: row.heartbeat_at.map(Timestamp::from),
            cancel_requested_at: row.cancel_requested_at.map(Timestamp::from),
            created_at: row.created_at.into(),
            started_at: row.started_at.map(Timestamp::from),
            finished_at: row.finished_at.map(Timestamp::from),
            updated_at: row.updated_at.into(),
            expires_at: row.expires_at.into(),
            dedupe_key: row.dedupe_key,
            exclusive_key: row.exclusive_key,
            parent_id: row.parent_id.map(OperationId::from),
            waiting_for_children: row.waiting_for_children,
            retry_of: row.retry_of.map(OperationId::from),
            rev: u64::try_from(row.rev).unwrap_or(0),
        })
    }
}
