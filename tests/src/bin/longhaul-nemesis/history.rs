//! What happened, as three witnesses tell it: the clients (what they asked and what they were told), the database (every
//! change of every row, in order) and the stream (what it keeps, and what live watchers got of it).

use std::collections::{BTreeMap, HashMap};

use bus_messages::{Operation, OperationError, ProgressEvent};
use domain_model::{BackupId, LeaseId, OperationId, OperationStatus, ProjectId, Scope, Timestamp};
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
    /// The backups in the catalog at the end.
    pub(crate) backups: Vec<Backup>,
    /// What proofs after the faults came to, one of each project.
    pub(crate) proofs: Vec<Proof>,
    /// What operations have left on the hosts.
    pub(crate) left_on_hosts: Vec<LeftOnHost>,
}

/// How many operations of a kind may run at once; no limit where `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cap {
    pub(crate) in_all: Option<u32>,
    /// On each host, or in the hub, however many workers it has.
    pub(crate) per_host: Option<u32>,
}

/// A backup, as the catalog has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Backup {
    pub(crate) project: ProjectId,
    pub(crate) backup_id: BackupId,
    pub(crate) bucket: String,
    pub(crate) op_id: OperationId,
    /// When its files were frozen, or reading them began.
    pub(crate) created_at: Timestamp,
    /// The digest that a restore must arrive at.
    pub(crate) tree: String,
    pub(crate) is_being_deleted: bool,
    /// Why it is bad, where it was found to be.
    pub(crate) bad: Option<String>,
    /// Whether the repository has its snapshot.
    #[serde(default)]
    pub(crate) has_snapshot: bool,
}

impl Backup {
    /// Whether it is to be restored whenever somebody asks.
    pub(crate) fn is_good(&self) -> bool {
        !self.is_being_deleted && self.bad.is_none()
    }
}

/// What a project's repository and its newest good backup are, after the faults.
#[derive(Debug, Clone)]
pub(crate) struct Proof {
    pub(crate) project: ProjectId,
    /// A `repo-check` of all data; nothing where the project has no repository.
    pub(crate) check: Option<Ended>,
    /// A restore of the whole backup, beside the files; nothing where there is none.
    pub(crate) restore: Option<Restored>,
}

/// How an operation has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) op_id: OperationId,
    pub(crate) status: OperationStatus,
    pub(crate) error: Option<String>,
}

/// What a restore of a backup came to.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    pub(crate) backup_id: BackupId,
    pub(crate) ended: Ended,
    /// The digest that it arrived at.
    pub(crate) tree: Option<String>,
    pub(crate) receipt: Option<String>,
    /// Files that nobody has touched since the backup, and that were compared with what was restored.
    pub(crate) compared: usize,
    /// Those of them that are not the same there.
    pub(crate) differ: Vec<String>,
}

/// Something in a directory where hosts keep what they work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOnHost {
    pub(crate) path: String,
    /// The operation that it is named by.
    pub(crate) op_id: Option<OperationId>,
    /// The names in it.
    pub(crate) entries: Vec<String>,
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
    /// The mark that its client gave it; children have none.
    pub(crate) fn mark(&self) -> Option<u64> {
        let mark = mark_of(&self.kind, &self.input, self.dedupe_key.as_deref());
        mark.filter(|_| self.parent_id.is_none())
    }

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

/// The mark of an operation that a client created: that tells it apart from all others. It is in the input, or where that
/// has no place for it, in the key.
pub(crate) fn mark_of(kind: &str, input: &Value, dedupe_key: Option<&str>) -> Option<u64> {
    let text = match kind {
        "test-sleep" => return Some((input.get("seconds")?.as_f64()? * NANOSECONDS).round() as u64),
        "project-backup" => input.get("tags")?.get(0)?.as_str(),
        _ => dedupe_key,
    };
    text?.strip_prefix("mark-")?.parse().ok()
}

/// Marks of `test-sleep` are in the nanoseconds that it is to sleep.
pub(crate) const NANOSECONDS: f64 = 1e9;
