//! `repo-prune`: ask what is to go, forget it, free its space, say what is gone.
//!
//! The registry marks a backup before anything of it is deleted, and from then on it is neither listed nor
//! restored. A crash after that leaves marked backups, whole or in part; the next attempt is told of them again.
//! What a crash in the middle of a prune leaves, `backup-repository` says. The row of a backup goes last, when its
//! snapshot is gone. A backup whose snapshot is lost or spoilt is told of before anything is deleted: the registry calls it bad
//! from then on, and the prune goes on without it.

use std::time::Instant;

use async_trait::async_trait;
use backup_repository::{JobResult, JobTask, PruneReceipt, PruneRequest, SnapshotId};
use bus_messages::kinds::{self, KindDefinition, RepoPruneInput, RepoPruneResult};
use bus_messages::{EventLevel, RepositoryGrant, RetentionReply};
use domain_model::BackupId;
use host_operations::{Record, project_of, result_value, something_else};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::Value;

use crate::bad_backups::{backups, some_of};
use crate::host::SharedHost;

/// Each round forgets what the registry names, a thousand backups at most; more rounds than this are a defect.
const MOST_ROUNDS: u32 = 1000;

/// Does `repo-prune`.
pub(crate) struct RepoPrune {
    pub host: SharedHost,
}

#[async_trait]
impl OperationHandler for RepoPrune {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("repo-prune")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.prune(operation, &mut record).await;
        let bytes = outcome.as_ref().map_or(0, |result| result.bytes_freed);
        record.ended(&outcome, 0, bytes);
        outcome.and_then(result_value)
    }
}

impl RepoPrune {
    async fn prune(
        &self,
        operation: &OperationContext,
        record: &mut Record,
    ) -> Result<RepoPruneResult, OperationFailure> {
        let began = Instant::now();
        let RepoPruneInput {} = operation.input()?;
        operation.progress("repository", "opening the repository", None);
        let grant = operation.repository().await?;
        record.started(&grant.bucket);

        operation.progress("retention", "asking what is to go", None);
        let mut result: Option<RepoPruneResult> = None;
        let mut gone: Vec<BackupId> = Vec::new();
        let mut bad: Vec<BackupId> = Vec::new();
        for _ in 0..MOST_ROUNDS {
            let round = operation.retention(std::mem::take(&mut gone), std::mem::take(&mut bad)).await?;
            if let Some(result) = result.take_if(|_| round.forget.is_empty()) {
                return Ok(RepoPruneResult { duration_s: began.elapsed().as_secs_f64(), ..result });
            }
            let receipt = self.round(operation, &grant, &round).await?;
            for id in &receipt.stored_again {
                let message =
                    format!("the snapshot {id} was lost or spoilt, and is stored again from the cache");
                operation.event(EventLevel::Warn, "prune", message, None);
            }
            if !receipt.bad.is_empty() {
                bad = backups(&receipt.bad)?;
                let message = format!(
                    "nothing was deleted yet: {} bad backups, whose snapshots are lost or spoilt: {}",
                    bad.len(),
                    some_of(&bad)
                );
                tracing::error!(op.id = %operation.op_id(), message);
                operation.event(EventLevel::Error, "prune", message, None);
                continue;
            }
            let result = result.get_or_insert(RepoPruneResult {
                forgotten: 0,
                orphans: 0,
                bytes_before: receipt.bytes_before,
                bytes_after: 0,
                bytes_freed: 0,
                bytes_waiting: 0,
                requests: 0,
                duration_s: 0.0,
            });
            result.forgotten += receipt.forgotten;
            result.orphans += receipt.orphans;
            result.bytes_after = receipt.bytes_after;
            result.bytes_freed = result.bytes_before.saturating_sub(receipt.bytes_after);
            result.bytes_waiting = receipt.bytes_waiting;
            result.requests += receipt.requests.total();
            gone = round.forget;
        }
        Err(OperationFailure::permanent(
            "retention",
            "there is always more to forget; nothing else was tried",
        ))
    }

    async fn round(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        round: &RetentionReply,
    ) -> Result<PruneReceipt, OperationFailure> {
        let request = PruneRequest {
            keep: snapshots(&round.keep)?,
            forget: snapshots(&round.forget)?,
            spare: snapshots(&round.spare)?,
            unfinished: round.unfinished.iter().map(|id| id.as_uuid()).collect(),
            grace_s: round.grace_s,
        };
        operation.progress("prune", format!("forgetting {} backups", request.forget.len()), None);
        if let Some(grace_s) = round.grace_s {
            let message = format!(
                "an operation of the project may still be writing: what is no longer needed is kept {grace_s:.0} s"
            );
            operation.event(EventLevel::Info, "prune", message, None);
        }
        match self.host.runner.run(operation, grant, JobTask::Prune(request), "prune").await? {
            JobResult::Prune(receipt) => Ok(receipt),
            other => Err(something_else(&other)),
        }
    }
}

fn snapshots(backups: &[BackupId]) -> Result<Vec<SnapshotId>, OperationFailure> {
    let read = |id: &BackupId| {
        id.as_str()
            .parse()
            .map_err(|error| OperationFailure::permanent("invalid_argument", format!("{id}: {error}")))
    };
    backups.iter().map(read).collect()
}
