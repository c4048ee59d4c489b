//! The ends of attempts, with what follows from them.

use std::sync::Arc;
use std::time::Instant;

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds::{self, RoutingRule};
use bus_messages::{
    ApiError, ChildOperation, ErrorCode, FinishReply, FinishRequest, Operation, OperationProgress, Outcome,
};
use catalog_database::{FinishOutcome, Finished, LeaseFence};
use domain_model::{OperationId, Routing};
use futures::future::join_all;
use uuid::Uuid;

use super::progress::{fence_of, refusal, tell};
use super::{MOST_CHECKPOINT_BYTES, caller, json_length};
use crate::api::operations::{exclusive_key, input_hash, routing_of};
use crate::errors::{chain, from_database};
use crate::nul::{replace_nul, replace_nul_in};
use crate::registry::Registry;
use crate::streams::subject_of;

/// Of the last error; twenty of them are kept, and the summary has to fit into one message of the stream.
const MOST_ERROR_BYTES: usize = 1000;
/// What has given way may be claimed again after so many seconds: by then whoever waited has begun.
const GIVES_WAY_S: f64 = 5.0;
const MOST_RESULT_BYTES: usize = 24 * 1024;

pub(crate) async fn finish(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let caller = caller(&request)?;
    let mut replies = finish_all(&registry, caller, vec![request.decode()?]).await;
    let reply = replies.pop().unwrap_or(Ok(FinishReply::LOST))?;
    Ok(request.reply(&reply))
}

/// Records the ends of some attempts, those that come together in one transaction; the answers are in their order.
pub(super) async fn finish_all(
    registry: &Registry,
    caller: Routing,
    mut finished: Vec<FinishRequest>,
) -> Vec<Result<FinishReply, ApiError>> {
    // What there was before the end is in the stream before it.
    tell_last_progress(registry, &mut finished).await;
    join_all(finished.into_iter().map(|finish| finish_one(registry, caller, finish))).await
}

/// Tells the stream of the last events, as far as it listens and the worker holds the operation. Of the progress that
/// is left, the summary goes into the row with the end.
async fn tell_last_progress(registry: &Registry, finished: &mut [FinishRequest]) {
    let mut told = Vec::new();
    for finish in finished.iter_mut() {
        let Some(progress) = &mut finish.progress else { continue };
        let mut last = OperationProgress {
            op_id: finish.op_id,
            attempt: finish.attempt,
            lease_id: finish.lease_id,
            number: None,
            events: std::mem::take(&mut progress.events),
            summary: progress.summary.take(),
            checkpoint: None,
        };
        if let Some(reason) = refusal(&mut last) {
            tracing::warn!(op.id = %finish.op_id, reason, "refused a part of the last progress of an operation");
        }
        progress.summary = last.summary.take();
        if !last.events.is_empty() {
            told.push(last);
        }
    }
    if told.is_empty() {
        return;
    }
    let fences: Vec<LeaseFence> = told.iter().map(fence_of).collect();
    let read = Instant::now();
    match registry.database.leased_operations(&fences, None).await {
        Ok(held) => {
            let telling = told.iter().filter_map(|last| {
                let op = held.iter().find(|op| op.op_id == last.op_id)?;
                Some(tell(registry, op, last, false))
            });
            join_all(telling).await;
            let told: Vec<_> = held.iter().map(subject_of).collect();
            registry.streams.purge_what_is_gone(&told, read).await;
        }
        Err(error) => {
            tracing::debug!(error = chain(&error), "the last progress of operations is not in the stream")
        }
    }
}

async fn finish_one(
    registry: &Registry,
    caller: Routing,
    mut finish: FinishRequest,
) -> Result<FinishReply, ApiError> {
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
            return Ok(FinishReply::LOST);
        };
        let made = finish.children.iter().map(|child| child_of(registry, caller, parent, child));
        children = join_all(made).await.into_iter().collect::<Result<_, _>>()?;
    }
    let (wait_s, reason) = match finish.gives_way {
        true => (GIVES_WAY_S, Some("gives way to an operation that waits for it to end".to_owned())),
        false => (0.0, None),
    };
    let new_ids: Vec<OperationId> = children.iter().map(|child| child.id).collect();
    // Whether the caller holds the operation is decided under the row's lock.
    let finished = Finished {
        fence,
        outcome: finish.outcome,
        result: finish.result,
        error: finish.error,
        checkpoint: finish.checkpoint,
        summary: finish.progress.and_then(|progress| progress.summary),
        children,
        jitter: rand::random(),
        wait_s,
        reason,
    };
    match registry.finishes.ask(finished).await? {
        FinishOutcome::Recorded(ended) => {
            note_bad_backups(registry, &ended.op);
            // Those that an earlier attempt has made are not made again.
            registry.count_created(ended.others.iter().filter(|other| new_ids.contains(&other.op_id)));
            registry.changed(&ended);
            Ok(FinishReply::OK)
        }
        FinishOutcome::Repeated => Ok(FinishReply::OK),
        FinishOutcome::Lost => {
            registry.metrics.refused_writes.inc();
            Ok(FinishReply::LOST)
        }
        FinishOutcome::Refused { reason } => Err(ApiError::invalid_argument(reason)),
    }
}

/// Backups that a drill or a check has found to be bad: never a silence.
fn note_bad_backups(registry: &Registry, op: &Operation) {
    let Some(result) = &op.result else { return };
    let bad = match op.kind.as_str() {
        "restore-drill" if result["proof"] == "mismatch" => std::slice::from_ref(&result["backup_id"]),
        "repo-check" => result["lacking"].as_array().map_or(&[][..], Vec::as_slice),
        _ => return,
    };
    for backup in bad {
        registry.metrics.bad_backups.inc();
        tracing::error!(
            op.id = %op.op_id, scope = %op.scope, backup.id = %backup, reason = %result["reason"],
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
