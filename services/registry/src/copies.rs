//! What is to be done next for a `project-copy`, decided from the catalog alone: the worker that holds it keeps nothing.
//!
//! 1. One snapshot of the paths, if any destination is on another host than the source.
//! 2. A `copy-apply` for each destination. Those of hosts that are away wait in the queue, and the operation with them,
//!    without a lease.
//! 3. The snapshot is deleted once every destination has come to an end: at once where none has failed.
//!
//! Each step is asked for again by whoever holds the operation after a crash: children have keys, so that asking twice
//! makes one, and deleting twice deletes once.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds::{
    self, CopiedFrom, CopyApplyInput, CopyOutcome, CopySnapshotInput, ProjectCopyInput, ProjectCopyResult,
};
use bus_messages::{
    ApiError, ChildOperation, CopyStepReply, CopyStepRequest, ErrorCode, FinishError, Operation,
};
use catalog_database::{CopyStanding, LeaseFence, PendingCopy};
use domain_model::{CopyId, CopyStatus, OperationStatus, Scope};
use serde_json::{Value, json};

use crate::errors::{chain, from_database};
use crate::registry::Registry;
use crate::work::{json_length, leased};

/// Of the error of a destination in the result: all of it is in `copy.list`.
const MOST_ERROR_BYTES: usize = 200;
/// Of all outcomes: a result has at most 24 KiB.
const MOST_RESULT_BYTES: usize = 20 * 1024;
/// Results have to stay small: with more destinations than this, errors are left to `copy.list`.
const MOST_OUTCOMES_WITH_ERRORS: usize = 50;

pub(crate) async fn step(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let wanted: CopyStepRequest = request.decode()?;
    let fence = LeaseFence { op_id: wanted.op_id, attempt: wanted.attempt, lease_id: wanted.lease_id };
    let op = leased(&registry, &fence).await?;
    if op.kind.as_str() != "project-copy" {
        return Err(ApiError::new(ErrorCode::FailedPrecondition, "only a project-copy has such steps"));
    }
    let mut standing = standing(&registry, &op).await?;
    let input: ProjectCopyInput =
        serde_json::from_value(op.input.clone()).map_err(ApiError::invalid_argument)?;
    if standing.snapshot_id.is_none() && from_bucket(&standing).next().is_some() {
        match &standing.snapshot_ended {
            None => return Ok(request.reply(&snapshot(&op, &input))),
            Some(end) => {
                let copies: Vec<CopyId> = from_bucket(&standing).map(|copy| copy.copy.copy_id).collect();
                let status = match end.status {
                    OperationStatus::Expired => CopyStatus::Expired,
                    OperationStatus::Canceled => CopyStatus::Canceled,
                    _ => CopyStatus::Failed,
                };
                let ended = registry.database.end_copies(&copies, status, end.message.as_deref()).await;
                ended.map_err(from_database)?;
            }
        }
        standing = self::standing(&registry, &op).await?;
    }
    let pending = standing.copies.iter().filter(|pending| is_pending(pending));
    let children: Vec<ChildOperation> =
        pending.map(|pending| apply(&standing, pending)).collect::<Result<_, _>>()?;
    if !children.is_empty() {
        let message = format!("copying to {} destinations", children.len());
        let phase = "apply".to_owned();
        return Ok(request.reply(&CopyStepReply { phase, message, children, result: None, error: None }));
    }
    // What is left to be deleted later is no reason to fail.
    let snapshot_deleted = match registry.repositories.delete_copy_repositories(Some(op.op_id)).await {
        Ok(deleted) => deleted,
        Err(error) => {
            tracing::warn!(op.id = %op.op_id, error = chain(&error), "the snapshot of a copy is not deleted yet");
            false
        }
    };
    let result = result_of(&standing, snapshot_deleted);
    Ok(request.reply(&CopyStepReply {
        phase: "clean-up".to_owned(),
        message: "every destination has come to an end".to_owned(),
        children: Vec::new(),
        result: Some(result),
        error: failure_of(&standing),
    }))
}

async fn standing(registry: &Registry, op: &Operation) -> Result<CopyStanding, ApiError> {
    let standing = registry.database.copy_standing(op.op_id).await.map_err(from_database)?;
    standing.ok_or_else(|| ApiError::not_found("the projects of this copy are gone"))
}

fn is_pending(pending: &PendingCopy) -> bool {
    pending.copy.status == CopyStatus::Pending
}

/// The copies that are still to be applied and cannot be had on the host of the source.
fn from_bucket(standing: &CopyStanding) -> impl Iterator<Item = &PendingCopy> {
    let host = standing.src_host_id;
    standing.copies.iter().filter(move |pending| is_pending(pending) && pending.dest_host_id != host)
}

fn snapshot(op: &Operation, input: &ProjectCopyInput) -> CopyStepReply {
    let snapshot = CopySnapshotInput {
        paths: input.paths().to_vec(),
        dereference: input.options.dereference,
        force: input.options.force,
    };
    let child = ChildOperation {
        key: "snapshot".to_owned(),
        scope: op.scope,
        kind: kinds::named("copy-snapshot").kind(),
        input: json!(snapshot),
    };
    CopyStepReply {
        phase: "snapshot".to_owned(),
        message: "one snapshot for all destinations".to_owned(),
        children: vec![child],
        result: None,
        error: None,
    }
}

fn apply(standing: &CopyStanding, pending: &PendingCopy) -> Result<ChildOperation, ApiError> {
    let copy = &pending.copy;
    let mut options = copy.options;
    let from = if pending.dest_host_id == standing.src_host_id {
        CopiedFrom::Host
    } else {
        // Links were followed when the snapshot was made.
        options.dereference = false;
        CopiedFrom::Bucket
    };
    let input = CopyApplyInput {
        copy_id: copy.copy_id,
        copy_op_id: copy.op_id,
        source_project_id: copy.src_project_id,
        from,
        entries: pending.entries.clone(),
        options,
    };
    Ok(ChildOperation {
        key: copy.copy_id.to_string(),
        scope: Scope::Project(copy.dest_project_id),
        kind: kinds::named("copy-apply").kind(),
        input: serde_json::to_value(input).unwrap_or(Value::Null),
    })
}

/// Where every destination has failed, the copy has: with the error of all, or of the first.
fn failure_of(standing: &CopyStanding) -> Option<FinishError> {
    if standing.copies.iter().any(|pending| pending.copy.status != CopyStatus::Failed) {
        return None;
    }
    let snapshot = standing.snapshot_ended.as_ref().and_then(|end| end.code.as_ref());
    let code = |pending: &PendingCopy| pending.error_code.clone().or_else(|| snapshot.cloned());
    let first = standing.copies.first()?;
    let same = standing.copies.iter().all(|pending| code(pending) == code(first));
    let message = first.copy.last_error.clone().unwrap_or_default();
    Some(FinishError {
        code: code(first).filter(|_| same).unwrap_or_else(|| "copy_failed".to_owned()),
        message: match standing.copies.len() {
            1 => message,
            all => format!("none of {all} destinations has got a copy; the first, since: {message}"),
        },
        retryable: false,
    })
}

fn result_of(standing: &CopyStanding, snapshot_deleted: bool) -> ProjectCopyResult {
    let room = standing.copies.len() <= MOST_OUTCOMES_WITH_ERRORS;
    let outcome = |pending: &PendingCopy| {
        let copy = &pending.copy;
        CopyOutcome {
            project_id: copy.dest_project_id,
            path: copy.dest_path.clone(),
            status: copy.status,
            error: copy.last_error.clone().filter(|_| room && copy.status == CopyStatus::Failed).map(
                |mut error| {
                    error.truncate(error.floor_char_boundary(MOST_ERROR_BYTES));
                    error
                },
            ),
        }
    };
    let mut dests: Vec<CopyOutcome> = standing.copies.iter().map(outcome).collect();
    let mut left_out = 0;
    let mut bytes: usize = dests.iter().map(json_length).sum();
    while bytes > MOST_RESULT_BYTES {
        let done = dests.iter().rposition(|dest| dest.status == CopyStatus::Done);
        let Some(last) = done.or_else(|| dests.len().checked_sub(1)) else { break };
        bytes -= json_length(&dests.remove(last));
        left_out += 1;
    }
    ProjectCopyResult { dests, left_out, snapshot_deleted }
}
