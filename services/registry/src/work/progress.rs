//! Heartbeats: leases are renewed, and the stream is told of progress.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds;
use bus_messages::{
    ApiError, Operation, OperationProgress, OperationProgressReply, ProgressReply, ProgressRequest,
};
use catalog_database::{Heartbeat, LeaseFence};
use domain_model::OperationId;
use futures::future::join_all;

use super::{MOST_CHECKPOINT_BYTES, json_length, not_too_many};
use crate::errors::{chain, from_database};
use crate::nul::{replace_nul, replace_nul_in};
use crate::registry::Registry;
use crate::streams::subject_of;

const MOST_EVENT_BYTES: usize = 60 * 1024;
/// The largest whole number that every reader of JSON keeps exactly (RFC 8259, 6).
const MOST_N: u64 = (1 << 53) - 1;
/// Telling the stream may take so long before the heartbeat is answered without it.
const PATIENCE_WITH_THE_STREAM: Duration = Duration::from_secs(2);

pub(crate) async fn progress(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let mut progress: ProgressRequest = request.decode()?;
    not_too_many(progress.ops.len(), "operations")?;
    let refused: Vec<Option<String>> = progress.ops.iter_mut().map(refusal).collect();
    let heartbeats: Vec<Heartbeat> = progress
        .ops
        .iter()
        .map(|op| Heartbeat {
            fence: fence_of(op),
            number: op.number,
            summary: op.summary.clone(),
            checkpoint: op.checkpoint.clone(),
            for_events: !op.events.is_empty(),
        })
        .collect();
    let read = Instant::now();
    let outcomes = registry
        .database
        .heartbeat_operations(&heartbeats, registry.settings.lease_s)
        .await
        .map_err(from_database)?;
    let may_give_way: Vec<OperationId> = outcomes
        .iter()
        .filter(|outcome| kinds::find(&outcome.op.kind).is_some_and(|kind| kind.gives_way))
        .map(|outcome| outcome.op.op_id)
        .collect();
    let in_the_way = match may_give_way.as_slice() {
        [] => HashSet::new(),
        some => registry.database.operations_in_the_way(some).await.map_err(from_database)?,
    };
    let held: HashMap<OperationId, _> =
        outcomes.into_iter().map(|outcome| (outcome.op.op_id, outcome)).collect();
    let replies = progress.ops.iter().zip(refused).map(|(entry, refused)| {
        let (registry, held, in_the_way) = (&registry, &held, &in_the_way);
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
                lease_s: outcome.lease_s,
                cancel_requested: outcome.op.cancel_requested_at.is_some(),
                give_way: in_the_way.contains(&entry.op_id),
                stored_n,
                refused,
            }
        }
    });
    let ops = join_all(replies).await;
    // A bare heartbeat tells nothing.
    let told = progress.ops.iter().filter_map(|entry| {
        let outcome = held.get(&entry.op_id)?;
        (outcome.changed || !entry.events.is_empty()).then(|| subject_of(&outcome.op))
    });
    let told: Vec<_> = told.collect();
    registry.streams.purge_what_is_gone(&told, read).await;
    Ok(request.reply(&ProgressReply { ops }))
}

pub(super) fn fence_of(progress: &OperationProgress) -> LeaseFence {
    LeaseFence { op_id: progress.op_id, attempt: progress.attempt, lease_id: progress.lease_id }
}

/// What of an operation's progress cannot be taken. The lease is renewed all the same.
pub(super) fn refusal(progress: &mut OperationProgress) -> Option<String> {
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
            && event.n <= MOST_N
    });
    if progress.events.len() < known {
        refused = Some(
            "an event is of another operation or attempt, too large, has a number that no counting comes to, or says that it is the last"
                .to_owned(),
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

fn lost(op_id: OperationId) -> OperationProgressReply {
    OperationProgressReply {
        op_id,
        ok: false,
        lost: true,
        lease_until: None,
        lease_s: 0.0,
        cancel_requested: false,
        give_way: false,
        stored_n: 0,
        refused: None,
    }
}

/// Tells the stream, as far as it listens: no operation fails because its progress cannot be published.
pub(super) async fn tell(
    registry: &Registry,
    op: &Operation,
    entry: &OperationProgress,
    changed: bool,
) -> u64 {
    let telling = async {
        let subject = subject_of(op);
        let stored = match entry.events.is_empty() {
            true => 0,
            false => {
                registry.streams.tell_worker_events(op, subject, &entry.events, &registry.event_limit).await?
            }
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
