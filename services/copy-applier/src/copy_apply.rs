//! `copy-apply`: stage in the destination's volume, put in place, forget.
//!
//! | a crash after | leaves | the next attempt |
//! |---|---|---|
//! | staging | a directory in the volume | begins anew |
//! | the first rename | a journal that says so | puts the rest in place, and nothing a second time |
//! | the last rename | a journal with the receipt | ends with the receipt |
//! | the end | that journal | there is none; the journal goes by its age |
//!
//! So what people change after it was put in place stays changed, however often the end has to be told.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bus_messages::kinds::{self, CopyApplyInput, CopyApplyResult, KindDefinition};
use bus_messages::{ChildOperation, EventLevel};
use domain_model::{Progress, ProjectId};
use host_operations::{JobRecords, Record, project_of, result_value, volume_work};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use volumes::{CopyEntry, CopyOptions, CopyReceipt, CopyRequest, HostRoot, Overwrite, Presence};

use crate::sources::Sources;

/// Does `copy-apply`.
pub(crate) struct CopyApply {
    pub root: HostRoot,
    pub records: JobRecords,
    pub sources: Arc<Sources>,
}

/// What a later attempt goes on from.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Checkpoint {
    /// The destination was asked to be restored.
    #[serde(default)]
    asked_to_restore: bool,
}

#[async_trait]
impl OperationHandler for CopyApply {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("copy-apply")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = Record::begin(&self.records, operation, project);
        let outcome = self.run_once(operation, project, &mut record).await;
        let (files, bytes) = outcome.as_ref().map_or((0, 0), |result| (result.files, result.bytes));
        record.ended(&outcome, files, bytes);
        outcome.and_then(result_value)
    }

    async fn recorded(&self, operation: &OperationContext) {
        let Ok(project) = project_of(operation) else { return };
        self.forget(project.as_uuid(), operation.op_id().as_uuid()).await;
    }
}

impl CopyApply {
    async fn run_once(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
    ) -> Result<CopyApplyResult, OperationFailure> {
        let began = Instant::now();
        let checkpoint: Checkpoint = operation.checkpoint()?.unwrap_or_default();
        let (project_uuid, op_uuid) = (project.as_uuid(), operation.op_id().as_uuid());
        let earlier = volume_work(&self.root, move |root| root.copy_receipt(project_uuid, op_uuid)).await?;
        let receipt = match earlier {
            Some(receipt) => receipt,
            None => match self.apply(operation, project, record, checkpoint.asked_to_restore).await {
                Ok(receipt) => receipt,
                Err(failure) => return Err(self.given_up(project_uuid, op_uuid, failure).await),
            },
        };
        Ok(CopyApplyResult {
            files: receipt.files,
            directories: receipt.directories,
            bytes: receipt.bytes,
            replaced: receipt.replaced,
            kept: receipt.kept,
            skipped_special: receipt.skipped_special,
            cloned: receipt.cloned,
            duration_s: began.elapsed().as_secs_f64(),
        })
    }

    /// Where there will be no other attempt, what this one has staged goes.
    async fn given_up(&self, project: Uuid, op_id: Uuid, failure: OperationFailure) -> OperationFailure {
        let is_over =
            matches!(failure, OperationFailure::Failed { retryable: false, .. } | OperationFailure::Canceled);
        if is_over {
            self.forget(project, op_id).await;
        }
        failure
    }

    async fn forget(&self, project: Uuid, op_id: Uuid) {
        if let Err(error) = volume_work(&self.root, move |root| root.forget_copy(project, op_id)).await {
            tracing::warn!(op.id = %op_id, ?error, "what was staged for a copy is left for the next start");
        }
    }

    async fn apply(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
        asked_to_restore: bool,
    ) -> Result<CopyReceipt, OperationFailure> {
        let input: CopyApplyInput = operation.input()?;
        let grant = operation.grant().await?;
        record.started(grant.repository.as_ref().map_or("", |repository| &repository.bucket));
        let (project_uuid, op_uuid) = (project.as_uuid(), operation.op_id().as_uuid());
        // A copy into a project whose files are elsewhere would pass for all that it has.
        let presence = volume_work(&self.root, move |root| root.presence(project_uuid)).await?;
        if grant.has_backups && presence != Presence::Whole {
            return Err(restore_first(operation, asked_to_restore));
        }
        volume_work(&self.root, move |root| root.ensure_volume(project_uuid)).await?;
        let source = self.sources.get(operation, &input, grant.repository.as_ref()).await?;
        operation.check()?;

        let request = CopyRequest {
            source: source.project_dir().to_owned(),
            source_is_live: source.is_live(),
            entries: input
                .entries
                .iter()
                .map(|entry| CopyEntry { from: entry.from.clone(), to: entry.to.clone() })
                .collect(),
            options: options_of(input.options),
        };
        operation.progress("copy", "copying", None);
        let telling = operation.clone();
        let cancellation = operation.cancellation();
        let outcome = volume_work(&self.root, move |root| {
            root.copy_into(project_uuid, op_uuid, &request, &mut |progress| {
                let message = format!("{} files, {:.1} MB", progress.files, progress.bytes as f64 / 1e6);
                telling.progress("copy", message, Some(Progress::count(progress.bytes, None, "bytes")));
                if cancellation.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })
        .await;
        drop(source);
        let receipt = match outcome {
            Ok(receipt) => receipt,
            // Stopped in between; or its own reason.
            Err(failure) => {
                operation.check()?;
                return Err(failure);
            }
        };
        if receipt.skipped_special > 0 {
            let message = format!("{} devices or sockets are not copied", receipt.skipped_special);
            operation.event(EventLevel::Warn, "copy", message, None);
        }
        Ok(receipt)
    }
}

fn restore_first(operation: &OperationContext, asked: bool) -> OperationFailure {
    if asked {
        return OperationFailure::permanent(
            "not_restored",
            "the project has backups and no files here, and could not be restored before the copy; restore it, then copy again",
        );
    }
    OperationFailure::WaitsForChildren {
        children: vec![ChildOperation {
            key: "restore".to_owned(),
            scope: operation.op().scope,
            kind: kinds::named("project-restore").kind(),
            // Somebody may have started the project, and so restored it, before this has its turn.
            input: json!({ "backup_id": "latest", "conflict": "keep" }),
        }],
        checkpoint: Some(json!(Checkpoint { asked_to_restore: true })),
    }
}

fn options_of(options: kinds::CopyOptions) -> CopyOptions {
    CopyOptions {
        overwrite: match (options.force, options.error_on_exist) {
            (true, _) => Overwrite::Replace,
            (false, false) => Overwrite::Keep,
            (false, true) => Overwrite::Refuse,
        },
        recursive: options.recursive,
        dereference: options.dereference,
        preserve_timestamps: options.preserve_timestamps,
    }
}
