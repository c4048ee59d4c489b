use std::collections::{BTreeMap, BTreeSet};

use domain_model::{BackupId, LeaseId, OperationId, OperationKind, ProjectId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ApiError, Grant, Operation, ProgressEvent, ProgressSummary};

/// `wake.<routing>`: there may be something to do. It is a hint: whoever misses it, or does not understand it, looks for work
/// all the same. Whatever it is about, a worker asks what is to become of what it runs: that may be to stop, or to give way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Nudge {
    /// The kinds of which there is something to claim; of any kind where there are none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kinds: BTreeSet<OperationKind>,
}

/// `work.v1.<caller>.claim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Names this process of the worker, for people and logs.
    pub worker_id: String,
    /// How many operations of each kind it could start now.
    pub kinds: BTreeMap<OperationKind, u32>,
    /// How many it could start in all.
    pub max: u32,
    /// Attempts of the worker that have ended, many in one message. They are recorded before it is given others, for which
    /// they may make place, by a cap or an exclusive key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finished: Vec<FinishRequest>,
}

/// Reply to `claim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// What the worker may now work on.
    pub leases: Vec<Lease>,
    /// What became of each of `finished`, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finished: Vec<FinishReply>,
}

/// The right to work on an operation, until `lease_until`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The operation.
    pub op: Operation,
    /// The attempt: part of the fence of every write.
    pub attempt: u32,
    /// The lease: part of the fence of every write.
    pub lease_id: LeaseId,
    /// When the lease ends by the database's clock, unless renewed.
    pub lease_until: Timestamp,
    /// Seconds from the answer to that moment: clocks of hosts differ.
    pub lease_s: f64,
    /// What an earlier attempt left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Value>,
    /// What the operation needs and no more; never stored, logged or put on a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
}

/// `work.v1.<caller>.progress`: the heartbeats of all operations of a worker in one message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgressRequest {
    /// Names the process of the worker.
    pub worker_id: String,
    /// One entry an operation.
    pub ops: Vec<OperationProgress>,
}

/// The heartbeat of one operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationProgress {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt of the lease.
    pub attempt: u32,
    /// The lease.
    pub lease_id: LeaseId,
    /// Counts the heartbeats of the attempt from 1, where the worker numbers them: one that was held up on its way renews
    /// the lease, but does not put its summary and checkpoint over those of a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// New events, in the order of `n`.
    #[serde(default)]
    pub events: Vec<ProgressEvent>,
    /// The latest progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ProgressSummary>,
    /// To be stored for a later attempt, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Value>,
}

/// Reply to `progress`, one entry for each of the request's, in its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressReply {
    /// What became of each.
    pub ops: Vec<OperationProgressReply>,
}

/// What became of one heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationProgressReply {
    /// Which operation.
    pub op_id: OperationId,
    /// The lease is renewed.
    #[serde(default)]
    pub ok: bool,
    /// The worker has lost the operation and stops its work.
    #[serde(default)]
    pub lost: bool,
    /// When the lease now ends, by the database's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Timestamp>,
    /// Seconds from the answer to that moment.
    #[serde(default)]
    pub lease_s: f64,
    /// The worker is to stop, clean up and finish as canceled.
    #[serde(default)]
    pub cancel_requested: bool,
    /// The worker is to stop, clean up and hand the operation back: another one waits for its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub give_way: bool,
    /// The highest `n` of this attempt that is in the stream; later events are to be sent again.
    #[serde(default)]
    pub stored_n: u64,
    /// Why a part of this entry was refused, for example a checkpoint that is too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The work is done.
    Succeeded,
    /// It is not; `error` says whether another attempt may help.
    Failed,
    /// Stopped on request, and cleaned up.
    Canceled,
    /// Handed back unfinished, because the worker is being stopped or was told to give way; does not count as a failure.
    HandedBack,
    /// Children are at work; to be queued again when the last of them ends.
    WaitsForChildren,
}

/// `work.v1.<caller>.finish`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishRequest {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt of the lease.
    pub attempt: u32,
    /// The lease.
    pub lease_id: LeaseId,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it is `handed_back` because the worker was told to give way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gives_way: bool,
    /// The result, for `succeeded`; a failure may have one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why, for `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FinishError>,
    /// Operations to create as children, for `waits_for_children`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ChildOperation>,
    /// What the next attempt goes on from, stored with the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Value>,
    /// What no heartbeat has told of yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<LastProgress>,
}

impl FinishRequest {
    /// An end of which nothing more is to be said.
    pub fn new(op_id: OperationId, attempt: u32, lease_id: LeaseId, outcome: Outcome) -> Self {
        Self {
            op_id,
            attempt,
            lease_id,
            outcome,
            gives_way: false,
            result: None,
            error: None,
            children: Vec::new(),
            checkpoint: None,
            progress: None,
        }
    }
}

/// The progress of an attempt since its last heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastProgress {
    /// New events, in the order of `n`. They are in the stream before the end is, or nowhere: none is sent again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<ProgressEvent>,
    /// The latest progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ProgressSummary>,
}

/// An operation that a parent wants done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildOperation {
    /// Names the child within its parent, so that asking twice makes one.
    pub key: String,
    /// What it is about.
    pub scope: domain_model::Scope,
    /// Its kind.
    pub kind: OperationKind,
    /// Its input.
    pub input: Value,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishError {
    /// For programs.
    pub code: String,
    /// For people; no secrets.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

/// Reply to `finish`. Repeating a finish that was recorded is `ok` again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinishReply {
    /// The outcome is recorded.
    #[serde(default)]
    pub ok: bool,
    /// The worker had lost the operation; nothing was recorded.
    #[serde(default)]
    pub lost: bool,
    /// Why nothing was recorded, where the end came with a claim: a `finish` is answered with the error itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

impl FinishReply {
    /// The outcome is recorded.
    pub const OK: Self = Self { ok: true, lost: false, error: None };
    /// The worker had lost the operation.
    pub const LOST: Self = Self { ok: false, lost: true, error: None };

    /// Nothing was recorded, and why.
    pub fn refused(error: ApiError) -> Self {
        Self { ok: false, lost: false, error: Some(error) }
    }
}

/// `work.v1.<caller>.repository`: makes the repository of the project of a leased operation ready, on its
/// first backup with a bucket and a key, and hands over what is needed to use it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryRequest {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt of the lease.
    pub attempt: u32,
    /// The lease.
    pub lease_id: LeaseId,
}

/// Reply to `repository`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepositoryReply {
    /// The grant, with a repository in it.
    pub grant: Grant,
}

/// `work.v1.host-<id>.freshness`: what a host says of its projects and of itself, when something is new and now and then.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessRequest {
    /// At most 1000.
    pub projects: Vec<ProjectGeneration>,
    /// Shares of time, in percent, in which something waited for memory (pressure stall information, "some", ten
    /// seconds); none where the kernel does not tell.
    pub memory_pressure: Option<f32>,
    /// The same for input and output.
    pub io_pressure: Option<f32>,
    /// Its cache of metadata; none where it was not looked at this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheUse>,
}

/// How full a cache is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheUse {
    /// What it holds.
    pub bytes: u64,
    /// What it may hold.
    pub limit_bytes: u64,
}

/// Changes whenever the files of a project change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectGeneration {
    /// Which project.
    pub project_id: ProjectId,
    /// Only ever compared for equality.
    pub generation: i64,
}

/// `work.v1.host-<id>.unfinished`: which of these operations, of which the host keeps something, it may be given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnfinishedRequest {
    /// At most 1000.
    pub op_ids: Vec<OperationId>,
}

/// Reply to `unfinished`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedReply {
    /// Those that have not ended and are this host's. What is kept of any other is nobody's.
    pub unfinished: Vec<OperationId>,
}

/// `work.v1.hub.schedule`: has the registry ask for the backups that are due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    /// How many projects to look at, at most 1000.
    pub limit: u32,
}

/// Reply to `schedule`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleReply {
    /// How many projects it has looked at; as many as the limit if there may be more.
    pub looked_at: u32,
    /// How many backups it has asked for.
    pub scheduled: u32,
    /// Of those, how many in place of one that did not come about.
    pub missed: u32,
}

/// `work.v1.<caller>.retention`: asked by a `repo-prune` before it deletes anything, and after, with what it has
/// forgotten. The registry marks what the policy drops, and says what is to go and what has to stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionRequest {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt of the lease.
    pub attempt: u32,
    /// The lease.
    pub lease_id: LeaseId,
    /// Backups that were to be forgotten, and are no longer in the repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<BackupId>,
    /// Backups whose snapshot is lost or spoilt: they are bad from now on, and the repository need not have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad: Vec<BackupId>,
}

/// Reply to `retention`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetentionReply {
    /// Backups that have to be in the repository: where one is not, nothing may be deleted.
    pub keep: Vec<BackupId>,
    /// Backups that are to be forgotten now.
    pub forget: Vec<BackupId>,
    /// Backups that are not to be touched: bad ones, which may be missing, and such that are being deleted, and are in use or
    /// left for the next round.
    pub spare: Vec<BackupId>,
    /// Operations of the project that have not ended: what they have stored may be wanted yet.
    pub unfinished: Vec<OperationId>,
    /// Seconds that what is no longer named must be kept for the sake of somebody who may still be writing; null
    /// where nobody can be.
    pub grace_s: Option<f64>,
}
