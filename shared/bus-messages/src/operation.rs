use domain_model::{OperationId, OperationKind, OperationStatus, Routing, Scope, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ProgressEvent;

/// A long-running operation, as every reply and every summary shows it: all public columns, never a lease
/// id, a checkpoint or a secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub op_id: OperationId,
    /// Its kind.
    pub kind: OperationKind,
    /// What it is about.
    pub scope: Scope,
    /// The type of the scope: `project`, `account`, `host` or `hub`.
    pub scope_type: String,
    /// The UUID of the scope; null for the hub.
    pub scope_id: Option<String>,
    /// Its state.
    pub status: OperationStatus,
    /// Who asked for it: an account id, or the name of a hub identity.
    pub created_by: String,
    /// The worker that holds it, or held it last.
    pub owner: Option<String>,
    /// Which workers may claim it.
    pub routing: Routing,
    /// Its input.
    pub input: Value,
    /// Its result, once it has succeeded.
    pub result: Option<Value>,
    /// Why it failed, or why its last attempt did.
    pub error: Option<OperationError>,
    /// The latest progress that its worker reported.
    pub progress_summary: Option<ProgressSummary>,
    /// Overall progress, 0–100.
    pub progress: f64,
    /// The phase it is in.
    pub phase: Option<String>,
    /// The latest message, for people.
    pub message: Option<String>,
    /// Counts claims, from 1; 0 before the first.
    pub attempt: u32,
    /// How many attempts may fail.
    pub max_attempts: u32,
    /// How often a worker lost its lease on it.
    pub lease_losses: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Not claimed before.
    pub not_before: Timestamp,
    /// Until when its worker holds it.
    pub lease_until: Option<Timestamp>,
    /// When its worker was last heard of.
    pub heartbeat_at: Option<Timestamp>,
    /// When somebody asked for it to be canceled.
    pub cancel_requested_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its first attempt started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it ends if it has not yet, and is deleted if it has.
    pub expires_at: Timestamp,
    /// At most one active operation of a kind and scope has this key.
    pub dedupe_key: Option<String>,
    /// At most one running operation has this key.
    pub exclusive_key: Option<String>,
    /// The operation that it is a part of.
    pub parent_id: Option<OperationId>,
    /// Whether it waits for its children, without a lease.
    pub waiting_for_children: bool,
    /// The operation that it tries again.
    pub retry_of: Option<OperationId>,
    /// Grows with every change; a reader drops a lower one.
    pub rev: u64,
}

/// Why an operation or an attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationError {
    /// For programs: `bucket_unreachable`, `not_found` …
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
    /// The error of each attempt that failed, oldest first; the last twenty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<AttemptError>,
}

/// Why one attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptError {
    /// Which attempt.
    pub attempt: u32,
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// What a worker reports with its heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgressSummary {
    /// The phase it is in.
    pub phase: String,
    /// For people.
    pub message: String,
    /// Overall progress, 0–100.
    pub progress: f64,
}

/// `lro.create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateOperation {
    /// The kind.
    pub kind: OperationKind,
    /// The input, as the kind's schema has it.
    #[serde(default = "empty_object")]
    pub input: Value,
    /// At most one active operation of a kind and scope has this key (1–200 characters).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_key: Option<String>,
    /// Cancels the active operation with the same dedupe key and takes the key.
    #[serde(default)]
    pub force: bool,
    /// Higher goes first; -100 to 100, 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Seconds until it expires, and after which it is deleted; at most 90 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
    /// Not to be started before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Where it is to run, for kinds that leave that open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

/// Reply to `lro.create` and `lro.retry`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreatedOperation {
    /// The operation.
    pub op: Operation,
    /// `persist.<scope>.lro.<op_id>`: subscribe to it with `.*` behind.
    pub subject: String,
    /// False where an active one with the same dedupe key was there already.
    pub created: bool,
}

/// `lro.get`, `lro.cancel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetOperation {
    /// Which operation.
    pub op_id: OperationId,
}

/// Reply to `lro.get` and `lro.cancel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationReply {
    /// The operation.
    pub op: Operation,
}

/// `lro.list`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListOperations {
    /// Only this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<OperationKind>,
    /// Only this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<OperationStatus>,
    /// Only the children of this operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<OperationId>,
    /// At most so many, 1–200; 50 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Reply to `lro.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationList {
    /// The operations, newest first.
    pub ops: Vec<Operation>,
    /// Where the next page starts; null on the last.
    pub next_cursor: Option<String>,
}

/// `lro.wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitOperation {
    /// Which operation.
    pub op_id: OperationId,
    /// How long to wait for its end, in seconds; at most 30.
    pub timeout_s: f64,
}

/// Reply to `lro.wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitReply {
    /// The operation.
    pub op: Operation,
    /// Whether it has ended.
    pub done: bool,
}

/// `lro.retry`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryOperation {
    /// A failed, canceled or expired operation.
    pub op_id: OperationId,
    /// Leave its checkpoint aside.
    #[serde(default)]
    pub from_start: bool,
}

/// `lro.events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListEvents {
    /// Which operation.
    pub op_id: OperationId,
    /// Only events of the latest attempt with a higher `n`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_n: Option<u64>,
    /// Which attempt `after_n` is of: only the events after that one, those of later attempts among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_attempt: Option<u32>,
}

/// Reply to `lro.events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventList {
    /// The ring, oldest first.
    pub events: Vec<ProgressEvent>,
    /// The latest summary.
    pub state: Operation,
    /// Whether there are more events than one message holds: those after the last of these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Whether the operation has ended and its last event is still to come: the stream does not have it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end_pending: bool,
}
