use domain_model::{OperationId, OperationStatus, Progress, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Operation;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// For whoever looks for the cause of something.
    Debug,
    /// As expected.
    Info,
    /// Not as expected, and dealt with.
    Warn,
    /// Not dealt with.
    Error,
}

/// One event of an operation, on `persist.<scope>.lro.<op_id>.evt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressEvent {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt that it tells of.
    pub attempt: u32,
    /// Counts from 1 within an attempt, without holes.
    pub n: u64,
    /// When it was made.
    pub ts: Timestamp,
    /// The phase, one of those that the kind documents; `done` for the last event of an operation.
    pub phase: String,
    /// For people.
    pub message: String,
    /// How much it matters; `info` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<EventLevel>,
    /// How far the phase has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// More, by kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
    /// How the operation ended; on the last event only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<OperationStatus>,
}

/// The phase of the last event of an operation.
pub(crate) const DONE: &str = "done";

impl ProgressEvent {
    /// The phase of the last event of an operation.
    pub const DONE: &'static str = DONE;
}

/// The latest summary of an operation, on `persist.<scope>.lro.<op_id>.state`: enough by itself when the
/// ring has wrapped. It is the operation as `get` gives it; `op_id` and `rev` are repeated by name there.
pub type Summary = Operation;
