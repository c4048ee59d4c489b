//! The worker protocol, `work.v1.<caller>.<verb>`. Who calls is the token in the subject, which the
//! caller's credentials pin.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds::{self, RoutingRule};
use bus_messages::{
    ApiError, ChildOperation, ClaimReply, ClaimRequest, ErrorCode, FinishReply, FinishRequest, Grant, Lease,
    Operation, OperationProgress, OperationProgressReply, Outcome, ProgressReply, ProgressRequest,
    RepositoryReply, RepositoryRequest, RetentionReply, RetentionRequest,
};
use bus_subjects::{OperationSubject, WorkSubject};
use catalog_database::{
    ClaimWanted, FinishOutcome, Finished, Heartbeat, KindWanted, LeaseFence, LeasedOperation,
};
use domain_model::{OperationId, Routing, Scope};
use futures::future::join_all;
use uuid::Uuid;

use crate::api::operations::{exclusive_key, input_hash, routing_of};
use crate::errors::{chain, from_database};
use crate::nul::{replace_nul, replace_nul_in};
use crate::registry::Registry;

/// A worker may hold so many operations, and ask for so many at once.
const MOST_OPERATIONS: usize = 1000;
const MOST_KINDS: usize = 64;
const MOST_CHECKPOINT_BYTES: usize = 64 * 1024;
/// Of the last error; twenty of them are kept, and the summary has to fit into one message of the stream.
const MOST_ERROR_BYTES: usize = 1000;
const MOST_RESULT_BYTES: usize = 24 * 1024;
/// The leases of one answer, in bytes as JSON: a message has at most 1 MiB, and what an answer cannot carry would be
/// nobody's until its lease is over.
const MOST_LEASE_BYTES: usize = 600 * 1024;
/// The registry names no more than a thousand at a time.
const MOST_GONE: usize = 1000;
const MOST_EVENT_BYTES: usize = 60 * 1024;
/// So often a `project-start` is put off for copies that come first, with growing pauses: a minute in all.
const MOST_STARTS_PUT_OFF: u32 = 10;
/// An operation that waits for another one's turn is looked at again after this many seconds at most.
const MOST_PUT_OFF_S: f64 = 15.0;
/// Telling the stream may take so long before the heartbeat is answered without it.
const PATIENCE_WITH_THE_STREAM: Duration = Duration::from_secs(2);

pub(crate) fn caller(request: &IncomingRequest) -> Result<Routing, ApiError> {
    let subject: WorkSubject = request.subject().parse().map_err(ApiError::invalid_argument)?;
    Ok(subject.caller)
}

pub(crate) async fn claim(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let began = Instant::now();
    let caller = caller(&request)?;
    let claim: ClaimRequest = request.decode()?;
    if claim.worker_id.is_empty() || claim.worker_id.len() > 200 || claim.worker_id.contains('\0') {
        return Err(ApiError::invalid_argument("worker_id is to have 1 to 200 characters, none of them NUL"));
    }
    if claim.kinds.len() > MOST_KINDS {
        return Err(ApiError::invalid_argument(format!("at most {MOST_KINDS} kinds in one claim")));
    }
    if let Routing::Host(host) = caller {
        registry.database.host_seen(host).await.map_err(from_database)?;
    }
    let wanted = ClaimWanted {
        caller,
        worker_id: claim.worker_id,
        kinds: claim
            .kinds
            .into_iter()
            .map(|(kind, slots)| KindWanted { caps: registry.caps(&kind), kind, slots })
            .collect(),
        max: claim.max.min(MOST_OPERATIONS as u32),
        lease_s: registry.settings.lease_s,
    };
    let leased = registry.database.claim_operations(&wanted).await.map_err(from_database)?;
    let leased = without_those_that_wait(&registry, leased).await?;
    let leased = as_much_as_fits(&registry, leased).await?;
    let leases = leased.into_iter().map(|leased| {
        let registry = &registry;
        async move {
            registry.streams.tell(leased.op.op_id);
            let label = vec![("kind", leased.op.kind.to_string())];
            registry.metrics.claimed.get_or_create(&label).inc();
            let grant = match kinds::find(&leased.op.kind) {
                Some(kind) if kind.uses_repository => Some(
                    // What is not ready, or cannot be granted now, the worker asks `repository` for: that
                    // answers with the reason.
                    match registry.repositories.grant_if_ready(&leased.op, leased.lease_until).await {
                        Ok(Some(grant)) => grant,
                        Ok(None) | Err(_) => Grant::default(),
                    },
                ),
                _ => None,
            };
            Lease {
                attempt: leased.op.attempt,
                op: leased.op,
                lease_id: leased.lease_id,
                lease_until: leased.lease_until,
                lease_s: registry.settings.lease_s,
                checkpoint: leased.checkpoint,
                grant,
            }
        }
    });
    let leases = join_all(leases).await;
    if !leases.is_empty() {
        registry.metrics.claim_seconds.observe(began.elapsed().as_secs_f64());
    }
    Ok(request.reply(&ClaimReply { leases }))
}

/// Hands back what one answer cannot carry; the worker is nudged, and claims again.
async fn as_much_as_fits(
    registry: &Registry,
    leased: Vec<LeasedOperation>,
) -> Result<Vec<LeasedOperation>, ApiError> {
    let mut left = MOST_LEASE_BYTES;
    let mut fitting = Vec::with_capacity(leased.len());
    let mut handed_back = Vec::new();
    for leased in leased {
        let bytes = json_length(&leased.op) + json_length(&leased.checkpoint);
        if bytes <= left || fitting.is_empty() {
            left = left.saturating_sub(bytes);
            fitting.push(leased);
            continue;
        }
        handed_back.push(handing_back(&leased, 0.0, None));
    }
    hand_back(registry, handed_back).await?;
    Ok(fitting)
}

/// Hands back those whose turn is after that of copies which wait themselves, until later.
async fn without_those_that_wait(
    registry: &Registry,
    leased: Vec<LeasedOperation>,
) -> Result<Vec<LeasedOperation>, ApiError> {
    let (mut begin, mut handed_back) = (Vec::with_capacity(leased.len()), Vec::new());
    for leased in leased {
        let op = &leased.op;
        // A project is not kept from starting for ever because of a copy that nobody applies.
        let patience = op.kind.as_str() != "project-start" || op.attempt <= MOST_STARTS_PUT_OFF;
        let reason = match patience {
            true => registry.database.waits_for_copies(op).await.map_err(from_database)?,
            false => None,
        };
        match reason {
            Some(_) => {
                let wait_s = f64::from(op.attempt).clamp(1.0, MOST_PUT_OFF_S);
                handed_back.push(handing_back(&leased, wait_s, reason));
            }
            None => begin.push(leased),
        }
    }
    hand_back(registry, handed_back).await?;
    Ok(begin)
}

fn handing_back(leased: &LeasedOperation, wait_s: f64, reason: Option<String>) -> Finished {
    Finished {
        fence: LeaseFence { op_id: leased.op.op_id, attempt: leased.op.attempt, lease_id: leased.lease_id },
        outcome: Outcome::HandedBack,
        result: None,
        error: None,
        checkpoint: None,
        children: Vec::new(),
        jitter: 0.0,
        wait_s,
        reason,
    }
}

async fn hand_back(registry: &Registry, handed_back: Vec<Finished>) -> Result<(), ApiError> {
    if handed_back.is_empty() {
        return Ok(());
    }
    let outcomes = registry.database.finish_operations(&handed_back).await.map_err(from_database)?;
    for outcome in outcomes {
        if let FinishOutcome::Recorded(ended) = outcome {
            registry.changed(&ended).await;
        }
    }
    Ok(())
}

fn fence_of(progress: &OperationProgress) -> LeaseFence {
    LeaseFence { op_id: progress.op_id, attempt: progress.attempt, lease_id: progress.lease_id }
}

pub(crate) fn json_length(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |text| text.len())
}

/// What of an operation's progress cannot be taken. The lease is renewed all the same.
fn refusal(progress: &mut OperationProgress) -> Option<String> {
    let mut refused = None;
    if let Some(checkpoint) = &mut progress.checkpoint {
        replace_nul(checkpoint);
    }
    if let Some(summary) = &mut progress.summary {
        replace_nul_in(&mut summary.message);
        replace_nul_in(&mut summary.phase);
    }
    if let Some(bytes) =
        progress.checkpoint.as_ref().map(json_length).filter(|bytes| *bytes > MOST_CHECKPOINT_BYTES)
    {
        progress.checkpoint = None;
        refused =
            Some(format!("the checkpoint has {bytes} bytes; at most {MOST_CHECKPOINT_BYTES} are stored"));
    }
    let (op_id, attempt) = (progress.op_id, progress.attempt);
    let known = progress.events.len();
    progress.events.retain(|event| {
        event.op_id == op_id
            && event.attempt == attempt
            && json_length(event) <= MOST_EVENT_BYTES
            && event.status.is_none()
    });
    if progress.events.len() < known {
        refused = Some(
            "an event is of another operation or attempt, too large, or says that it is the last".to_owned(),
        );
    }
    if let Some(summary) = &mut progress.summary {
        summary.progress =
            if summary.progress.is_finite() { summary.progress.clamp(0.0, 100.0) } else { 0.0 };
        summary.message.truncate(summary.message.floor_char_boundary(2000));
        summary.phase.truncate(summary.phase.floor_char_boundary(63));
    }
    refused
}

pub(crate) async fn progress(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let mut progress: ProgressRequest = request.decode()?;
    if progress.ops.len() > MOST_OPERATIONS {
        return Err(ApiError::invalid_argument(format!(
            "at most {MOST_OPERATIONS} operations in one message"
        )));
    }
    let refused: Vec<Option<String>> = progress.ops.iter_mut().map(refusal).collect();
    let heartbeats: Vec<Heartbeat> = progress
        .ops
        .iter()
        .map(|op| Heartbeat {
            fence: fence_of(op),
            number: op.number,
            summary: op.summary.clone(),
            checkpoint: op.checkpoint.clone(),
        })
        .collect();
    let outcomes = registry
        .database
        .heartbeat_operations(&heartbeats, registry.settings.lease_s)
        .await
        .map_err(from_database)?;
    let held: HashMap<OperationId, _> =
        outcomes.into_iter().map(|outcome| (outcome.op.op_id, outcome)).collect();
    let replies = progress.ops.iter().zip(refused).map(|(entry, refused)| {
        let (registry, held) = (&registry, &held);
        async move {
            let Some(outcome) = held.get(&entry.op_id) else {
                registry.metrics.refused_writes.inc();
                return lost(entry.op_id);
            };
            let stored_n = tell(registry, &outcome.op, entry, outcome.changed).await;
            OperationProgressReply {
                op_id: entry.op_id,
                ok: true,
                lost: false,
                lease_until: outcome.op.lease_until,
                lease_s: registry.settings.lease_s,
                cancel_requested: outcome.op.cancel_requested_at.is_some(),
                stored_n,
                refused,
            }
        }
    });
    let ops = join_all(replies).await;
    Ok(request.reply(&ProgressReply { ops }))
}

fn lost(op_id: OperationId) -> OperationProgressReply {
    OperationProgressReply {
        op_id,
        ok: false,
        lost: true,
        lease_until: None,
        lease_s: 0.0,
        cancel_requested: false,
        stored_n: 0,
        refused: None,
    }
}

/// Tells the stream, as far as it listens: no operation fails because its progress cannot be published.
async fn tell(registry: &Registry, op: &Operation, entry: &OperationProgress, changed: bool) -> u64 {
    let telling = async {
        let subject = OperationSubject { scope: op.scope, op_id: op.op_id };
        let stored = match entry.events.is_empty() {
            true => 0,
            false => registry.streams.tell_worker_events(op, subject, &entry.events).await?,
        };
        if changed {
            registry.streams.tell_state(op).await?;
        }
        Ok::<u64, crate::streams::StreamError>(stored)
    };
    match tokio::time::timeout(PATIENCE_WITH_THE_STREAM, telling).await {
        Ok(Ok(stored)) => stored,
        Ok(Err(error)) => {
            tracing::debug!(op.id = %op.op_id, error = chain(&error), "progress is not in the stream yet");
            0
        }
        Err(_) => 0,
    }
}

pub(crate) async fn finish(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let mut finish: FinishRequest = request.decode()?;
    for value in [&mut finish.result, &mut finish.checkpoint].into_iter().flatten() {
        replace_nul(value);
    }
    if let Some(error) = &mut finish.error {
        replace_nul_in(&mut error.message);
        replace_nul_in(&mut error.code);
        error.message.truncate(error.message.floor_char_boundary(MOST_ERROR_BYTES));
        error.code.truncate(error.code.floor_char_boundary(63));
    }
    if json_length(&finish.result) > MOST_RESULT_BYTES {
        return Err(ApiError::invalid_argument(format!(
            "a result has at most {MOST_RESULT_BYTES} bytes: what is larger belongs into the project"
        )));
    }
    if !finish.children.is_empty() && finish.outcome != Outcome::WaitsForChildren {
        return Err(ApiError::invalid_argument(
            "only an operation that waits for its children has any: the outcome is to be waits_for_children",
        ));
    }
    let fence = LeaseFence { op_id: finish.op_id, attempt: finish.attempt, lease_id: finish.lease_id };
    if json_length(&finish.checkpoint) > MOST_CHECKPOINT_BYTES {
        return Err(ApiError::invalid_argument(format!(
            "a checkpoint has at most {MOST_CHECKPOINT_BYTES} bytes"
        )));
    }
    let mut children = Vec::new();
    if !finish.children.is_empty() {
        let parents = registry.database.operations_by_id(&[finish.op_id]).await.map_err(from_database)?;
        let Some(parent) = parents.first() else {
            return Ok(request.reply(&FinishReply { ok: false, lost: true }));
        };
        let caller = caller(&request)?;
        let made = finish.children.iter().map(|child| child_of(&registry, caller, parent, child));
        children = join_all(made).await.into_iter().collect::<Result<_, _>>()?;
    }
    // Whether the caller holds the operation is decided under the row's lock.
    let finished = Finished {
        fence,
        outcome: finish.outcome,
        result: finish.result,
        error: finish.error,
        checkpoint: finish.checkpoint,
        children,
        jitter: rand::random(),
        wait_s: 0.0,
        reason: None,
    };
    let reply = match registry.finishes.ask(finished).await? {
        FinishOutcome::Recorded(ended) => {
            note_bad_backup(&registry, &ended.op);
            registry.changed(&ended).await;
            FinishReply { ok: true, lost: false }
        }
        FinishOutcome::Repeated => FinishReply { ok: true, lost: false },
        FinishOutcome::Lost => {
            registry.metrics.refused_writes.inc();
            FinishReply { ok: false, lost: true }
        }
        FinishOutcome::Refused { reason } => return Err(ApiError::invalid_argument(reason)),
    };
    Ok(request.reply(&reply))
}

/// A drill that has found a backup to be bad: never a silence.
fn note_bad_backup(registry: &Registry, op: &Operation) {
    let result = op.result.as_ref().filter(|_| op.kind.as_str() == "restore-drill");
    if let Some(result) = result.filter(|result| result["proof"] == "mismatch") {
        registry.metrics.bad_backups.inc();
        tracing::error!(
            op.id = %op.op_id, scope = %op.scope, backup.id = %result["backup_id"], reason = %result["reason"],
            "a backup is bad"
        );
    }
}

async fn child_of(
    registry: &Registry,
    caller: Routing,
    parent: &Operation,
    child: &ChildOperation,
) -> Result<catalog_database::NewOperation, ApiError> {
    let kind = kinds::find(&child.kind)
        .ok_or_else(|| ApiError::invalid_argument(format!("there is no kind {}", child.kind)))?;
    if kind.part_of.is_some_and(|whole| parent.kind.as_str() != whole) {
        return Err(ApiError::invalid_argument(format!("{} is never a part of {}", child.kind, parent.kind)));
    }
    // A host has work of its own projects done by hosts, and nothing else.
    let is_own = child.scope == parent.scope && kind.routing == RoutingRule::ProjectHost;
    if matches!(caller, Routing::Host(_)) && !is_own {
        return Err(ApiError::new(
            ErrorCode::PermissionDenied,
            format!("an operation of {} has no child {} of {}", parent.scope, child.kind, child.scope),
        ));
    }
    // What is a part of another operation has to end before it.
    let time_to_live_s = match kind.part_of {
        Some(_) => {
            let left_s = parent.expires_at.seconds_since(parent.updated_at) - f64::from(kinds::COPY_GRACE_S);
            left_s.max(1.0) as u32
        }
        None => kind.time_to_live_s,
    };
    let input = (kind.normalise_input)(&child.input)?;
    let routing = routing_of(registry, kind, child.scope, &input).await?;
    Ok(catalog_database::NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: child.kind.clone(),
        scope: child.scope,
        created_by: parent.created_by.clone(),
        routing,
        input_hash: input_hash(&input),
        input,
        max_attempts: kind.max_attempts,
        priority: parent.priority,
        not_before: None,
        time_to_live_s,
        dedupe_key: None,
        // A parent that waits does not run, and so does not keep its own children from it.
        exclusive_key: kind.exclusive.then(|| exclusive_key(child.scope)),
        parent: Some((parent.op_id, child.key.clone())),
        retry_of: None,
        checkpoint: None,
    })
}

/// The operation that the caller holds.
pub(crate) async fn leased(registry: &Registry, fence: &LeaseFence) -> Result<Operation, ApiError> {
    let op = registry.database.leased_operation(fence).await.map_err(from_database)?;
    op.ok_or_else(|| {
        registry.metrics.refused_writes.inc();
        ApiError::new(ErrorCode::Conflict, "this lease is over: stop the work on the operation")
    })
}

pub(crate) async fn repository(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let wanted: RepositoryRequest = request.decode()?;
    let fence = LeaseFence { op_id: wanted.op_id, attempt: wanted.attempt, lease_id: wanted.lease_id };
    let op = leased(&registry, &fence).await?;
    let until = op.lease_until.unwrap_or(op.updated_at);
    let grant = registry.repositories.prepare(&op, until).await?;
    Ok(request.reply(&RepositoryReply { grant }))
}

/// What a prune is to forget. The worker asks before it deletes, and again with what is gone, until there is no more:
/// what the policy drops is marked here, in the same transaction that says so.
pub(crate) async fn retention(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let wanted: RetentionRequest = request.decode()?;
    if wanted.gone.len().max(wanted.bad.len()) > MOST_GONE {
        return Err(ApiError::invalid_argument(format!(
            "at most {MOST_GONE} backups can be gone or bad at once"
        )));
    }
    let fence = LeaseFence { op_id: wanted.op_id, attempt: wanted.attempt, lease_id: wanted.lease_id };
    let op = leased(&registry, &fence).await?;
    let (Scope::Project(project), "repo-prune") = (op.scope, op.kind.as_str()) else {
        return Err(ApiError::new(
            ErrorCode::FailedPrecondition,
            "only a repo-prune of a project forgets backups",
        ));
    };
    let standing = registry.database.backup_standing(project).await.map_err(from_database)?;
    let policy = standing.map(|standing| standing.policy).unwrap_or_default().over(&registry.backups).keep;
    let round = registry.database.retention_round(project, op.op_id, &wanted.gone, &wanted.bad, policy);
    let round = round.await.map_err(from_database)?;
    for backup in &wanted.bad {
        registry.metrics.bad_backups.inc();
        tracing::error!(op.id = %op.op_id, project.id = %project, backup.id = %backup, "the snapshot of a backup is lost");
    }
    tracing::info!(
        op.id = %op.op_id, gone = wanted.gone.len(), forget = round.forget.len(), keep = round.keep.len(),
        grace_s = round.grace_s, "decided what a prune forgets"
    );
    Ok(request.reply(&RetentionReply {
        keep: round.keep,
        forget: round.forget,
        spare: round.spare,
        unfinished: round.unfinished,
        grace_s: round.grace_s,
    }))
}
