//! `restore-drill`: restore a backup, or a sample of its files, where nobody works, compare it with what was recorded when it was made, and
//! delete it.
//!
//! The proof is that of a real restore: the job reads back what it wrote and compares it with the repository, and what
//! comes out is compared with the hub's record; of a sample, the record is compared with all that the repository says of
//! all files, and the bytes of some with that. Whether it holds is the result; the hub notes it in the transaction that
//! ends the operation. A crash leaves a staged tree, which the next start deletes.

use std::time::Instant;

use async_trait::async_trait;
use backup_repository::{RestoreTarget, Sample};
use bus_messages::EventLevel;
use bus_messages::kinds::{self, DrillSample, KindDefinition, Proof, RestoreDrillInput, RestoreDrillResult};
use domain_model::ProjectId;
use host_operations::{Record, project_of, result_value};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::Value;
use volumes::HostRoot;

use crate::host::SharedHost;

/// Failures of a restore that say something about the backup, and not about the way to it.
const DAMAGE: [&str; 2] = ["repository_damaged", "not_found"];

/// The share of the host's disk that a drill leaves free.
const LEFT_FREE: f64 = 0.05;

/// Does `restore-drill`.
pub(crate) struct RestoreDrill {
    pub host: SharedHost,
}

#[async_trait]
impl OperationHandler for RestoreDrill {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("restore-drill")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.drill(operation, project, &mut record).await;
        let (files, bytes) = outcome.as_ref().map_or((0, 0), |result| (result.files, result.bytes));
        record.ended(&outcome, files, bytes);
        outcome.and_then(result_value)
    }
}

impl RestoreDrill {
    /// Refuses a drill that may fill the disk that people work on.
    async fn require_space(&self, bytes: u64, share: f64) -> Result<(), OperationFailure> {
        let space = self.host.volumes(HostRoot::space).await?;
        let left = space.available_bytes as f64 - bytes as f64 * share;
        if left >= space.total_bytes as f64 * LEFT_FREE {
            return Ok(());
        }
        let message = format!(
            "a drill of {bytes} bytes, or {share} of them, might leave less than {:.0}% of the host's disk free: {} of {} bytes \
             are available",
            LEFT_FREE * 100.0,
            space.available_bytes,
            space.total_bytes
        );
        Err(OperationFailure::retryable("no_space", message))
    }

    async fn drill(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
    ) -> Result<RestoreDrillResult, OperationFailure> {
        let began = Instant::now();
        let input: RestoreDrillInput = operation.input()?;
        operation.progress("repository", "opening the repository", None);
        let grant = operation.repository().await?;
        record.started(&grant.bucket);
        let named = grant.backup.clone().zip(grant.tree.clone());
        let (backup, recorded) = named
            .ok_or_else(|| OperationFailure::permanent("not_found", "the hub named no backup".to_owned()))?;
        self.require_space(grant.bytes.unwrap_or(0), input.share.unwrap_or(1.0)).await?;
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        let staged = self.host.volumes(move |root| root.stage(project, op_id)).await?;
        let target =
            RestoreTarget::Whole { project: staged.project_dir.clone(), persist: staged.persist_dir.clone() };
        let sample = input.share.map(|share| Sample {
            share,
            // The end of an operation's id is random; as much of it as every reader of JSON can hold.
            seed: input.seed.unwrap_or_else(|| operation.op_id().as_uuid().as_u64_pair().1 >> 11),
        });
        operation.progress("download", "reading the backup", None);
        let restored = self.host.runner.restore(operation, &grant, &backup, target, sample, false).await;
        operation.progress("clean-up", "deleting what was restored", None);
        self.host.tidy(operation, move |root| root.discard(staged)).await?;
        let (reason, files, bytes, of_files) = match restored {
            Ok(receipt) if receipt.tree == recorded => (None, receipt.files, receipt.bytes, receipt.of_files),
            Ok(receipt) => {
                let reason = format!("its tree is {}, and {recorded} was recorded", receipt.tree);
                (Some(reason), receipt.files, receipt.bytes, receipt.of_files)
            }
            Err(OperationFailure::Failed { code, message, .. }) if DAMAGE.contains(&code.as_str()) => {
                (Some(message), 0, 0, 0)
            }
            Err(failure) => return Err(failure),
        };
        if let Some(reason) = &reason {
            tracing::error!(op.id = %operation.op_id(), backup.id = %backup, reason, "a backup is bad");
            operation.event(
                EventLevel::Error,
                "clean-up",
                format!("the backup {backup} is bad: {reason}"),
                None,
            );
        }
        Ok(RestoreDrillResult {
            backup_id: backup,
            proof: if reason.is_none() { Proof::Match } else { Proof::Mismatch },
            reason: reason.map(|reason| reason.chars().take(1000).collect()),
            files,
            bytes,
            duration_s: began.elapsed().as_secs_f64(),
            sample: sample.map(|Sample { share, seed }| DrillSample { share, seed, of_files }),
        })
    }
}
