//! What happened, as three witnesses tell it: the clients (what they asked and what they were told), the database (every
//! change of every row, in order) and the stream (what it keeps, and what live watchers got of it).

use std::collections::{BTreeMap, HashMap};

use bus_messages::{Operation, OperationError, ProgressEvent};
use domain_model::{LeaseId, OperationId, OperationStatus, Scope, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// All that is known of a run.
#[derive(Default)]
pub(crate) struct History {
    /// What clients asked for.
    pub(crate) requests: Vec<Request>,
    /// Changes of rows, in the order in which the database made them.
    pub(crate) changes: Vec<Change>,
    /// What the stream keeps of each operation at the end.
    pub(crate) kept: HashMap<OperationId, Kept>,
    /// What live watchers got.
    pub(crate) watched: Vec<Watched>,
    /// Moments at which the store of nats-server was gone.
    pub(crate) wipes: Vec<Timestamp>,
    /// Outbox entries that nobody has relayed at the end.
    pub(crate) left_in_outbox: Vec<OperationId>,
    /// How many operations may run at once, by their kind.
    pub(crate) caps: BTreeMap<String, Cap>,
}

/// How many operations of a kind may run at once; no limit where `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cap {
    pub(crate) in_all: Option<u32>,
    /// On each host, or in the hub, however many workers it has.
    pub(crate) per_host: Option<u32>,
}

/// One request that may create or cancel something.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request {
    pub(crate) asked: Asked,
    pub(crate) answer: Answer,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum Asked {
    /// A new operation, which carries this mark in its input. Requests that mean the same have the same mark.
    Create { mark: u64 },
    /// Another try of an operation, with its mark.
    Retry { mark: u64, of: OperationId },
    /// The end of an operation.
    Cancel { op_id: OperationId },
}

/// What became of a request, as its client sees it.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum Answer {
    /// It was carried out: on this operation, which was new or not, and had this state.
    Done { op_id: OperationId, created: bool, status: OperationStatus },
    /// It was refused, or reached nobody: nothing may have happened.
    Refused(String),
    /// No answer, or one that leaves it open: looked up afterwards.
    Unclear(String),
}

/// A row after a change, as a trigger of the database wrote it down in the same transaction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) at: Timestamp,
    pub(crate) what: What,
    pub(crate) op_id: OperationId,
    pub(crate) kind: String,
    pub(crate) scope: Scope,
    pub(crate) input: Value,
    pub(crate) status: OperationStatus,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) failures: u32,
    pub(crate) lease_losses: u32,
    pub(crate) lease_id: Option<LeaseId>,
    pub(crate) lease_until: Option<Timestamp>,
    /// Until when the lease lasted before the change.
    pub(crate) old_lease_until: Option<Timestamp>,
    pub(crate) owner: Option<String>,
    /// The host, or the hub, whose worker had it last.
    pub(crate) claimed_by: Option<String>,
    pub(crate) checkpoint: Option<Value>,
    pub(crate) waiting_for_children: bool,
    pub(crate) cancel_requested: bool,
    pub(crate) dedupe_key: Option<String>,
    pub(crate) exclusive_key: Option<String>,
    pub(crate) parent_id: Option<OperationId>,
    pub(crate) retry_of: Option<OperationId>,
    pub(crate) result: Option<Value>,
    pub(crate) error: Option<OperationError>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) not_before: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) rev: u64,
}

impl Change {
    /// Whether its time is so far away that it waits for it all through a run.
    pub(crate) fn is_far_away(&self) -> bool {
        self.not_before.seconds_since(self.at) > FAR_AWAY_S
    }
}

/// Nothing in a run lasts so many seconds.
const FAR_AWAY_S: f64 = 24.0 * 3600.0;

/// What was done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum What {
    Insert,
    Update,
    Delete,
}

/// What the stream keeps of an operation.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Kept {
    /// The ring, in the order of the stream.
    pub(crate) events: Vec<ProgressEvent>,
    /// The summary.
    pub(crate) state: Option<Operation>,
}

/// What a watcher got.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Watched {
    pub(crate) op_id: OperationId,
    /// When it began to watch.
    pub(crate) since: Timestamp,
    /// In the order in which they came.
    pub(crate) events: Vec<ProgressEvent>,
    /// Revisions and states of the summaries, likewise.
    pub(crate) states: Vec<(u64, OperationStatus)>,
    /// Whether the watch came to its end by itself.
    pub(crate) ended: bool,
}

/// How many steps a checkpoint of `test-sleep` says are done.
pub(crate) fn steps_done(checkpoint: Option<&Value>) -> Option<u64> {
    checkpoint?.get("done")?.as_u64()
}

/// The mark in the input of an operation that a client created: that tells it apart from all others.
pub(crate) fn mark_of(kind: &str, input: &Value) -> Option<u64> {
    match kind {
        "test-sleep" => Some((input.get("seconds")?.as_f64()? * NANOSECONDS).round() as u64),
        "project-backup" => input.get("tags")?.get(0)?.as_str()?.strip_prefix("mark-")?.parse().ok(),
        _ => None,
    }
}

/// Marks of `test-sleep` are in the nanoseconds that it is to sleep.
pub(crate) const NANOSECONDS: f64 = 1e9;
