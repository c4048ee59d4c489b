//! `project-restore`: stage, verify, exchange.
//!
//! The live files are never written in place. What a crash leaves before the exchange is a staged tree: of a whole
//! restore, the next attempt goes on with it, and of a path the next start deletes it. In the middle of the exchange
//! it is a journal from which the next start finishes it; after it, the old tree (deleted at the next start). Repeating a restore that was done restores again, to the
//! same end. A dry run writes nothing.

use std::path::PathBuf;
use std::time::Instant;

use async_trait::async_trait;
use backup_repository::{Amount, PreviewTarget, RestoreReceipt, RestoreTarget, SnapshotPath};
use bus_messages::kinds::{
    self, Conflict, FileAmount, KindDefinition, ProjectRestoreInput, ProjectRestoreResult, RestoreChanges,
};
use bus_messages::{EventLevel, RepositoryGrant};
use domain_model::{BackupId, LayoutPath, ProjectId, ProjectPath};
use host_operations::{Record, project_of, result_value};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::Value;
use volumes::{PathOutcome, Presence};

use crate::estimate::estimate;
use crate::host::SharedHost;

/// Does `project-restore`.
pub(crate) struct ProjectRestore {
    pub host: SharedHost,
}

#[async_trait]
impl OperationHandler for ProjectRestore {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("project-restore")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.restore(operation, project, &mut record).await;
        let (files, bytes) = outcome.as_ref().map_or((0, 0), |result| (result.files, result.bytes));
        record.ended(&outcome, files, bytes);
        outcome.and_then(result_value)
    }
}

impl ProjectRestore {
    async fn restore(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
    ) -> Result<ProjectRestoreResult, OperationFailure> {
        let began = Instant::now();
        let input: ProjectRestoreInput = operation.input()?;
        operation.progress("repository", "opening the repository", None);
        let grant = operation.repository().await?;
        record.started(&grant.bucket);
        let backup = grant
            .backup
            .clone()
            .ok_or_else(|| OperationFailure::permanent("not_found", "the hub named no backup".to_owned()))?;
        if input.dry_run {
            return self.preview(operation, project, &grant, backup, &input, began).await;
        }
        // What is replaced is as good as not there.
        let mut presence = Presence::Nothing;
        if input.path.is_none() && input.conflict != Conflict::Replace {
            let project = project.as_uuid();
            presence = self.host.volumes(move |root| root.presence(project)).await?;
            if presence == Presence::Whole {
                return self.not_replaced(operation, input.conflict, backup, &grant, began);
            }
        }
        let (receipt, target) = match &input.path {
            None => self.host.restore_whole(operation, project, &grant, &backup, presence).await?,
            Some(path) => self.path(operation, project, &grant, &backup, path, &input).await?,
        };
        Ok(ProjectRestoreResult {
            backup_id: backup,
            files: receipt.files,
            bytes: receipt.bytes,
            tree: receipt.tree,
            receipt: "match".to_owned(),
            target,
            duration_s: began.elapsed().as_secs_f64(),
            changes: None,
            estimate: None,
        })
    }

    /// What a restore would change, and how long it would take.
    async fn preview(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        grant: &RepositoryGrant,
        backup: BackupId,
        input: &ProjectRestoreInput,
        began: Instant,
    ) -> Result<ProjectRestoreResult, OperationFailure> {
        operation.progress("download", "comparing the backup with the files", None);
        let root = self.host.root.project_dir(project.as_uuid());
        let target = match &input.path {
            None => {
                PreviewTarget::Whole { project: root, persist: self.host.root.persist_dir(project.as_uuid()) }
            }
            Some(path) => PreviewTarget::Path {
                path: snapshot_path(path)?,
                root,
                place: target_of(path, input)?.as_path().to_owned(),
            },
        };
        let preview = self.host.runner.preview(operation, grant, &backup, target).await?;
        let amount = |amount: Amount| FileAmount { files: amount.files, bytes: amount.bytes };
        Ok(ProjectRestoreResult {
            backup_id: backup,
            files: preview.restored.files,
            bytes: preview.restored.bytes,
            tree: preview.tree,
            receipt: "none".to_owned(),
            target: "nothing: dry run".to_owned(),
            duration_s: began.elapsed().as_secs_f64(),
            changes: Some(RestoreChanges {
                created: amount(preview.created),
                replaced: amount(preview.replaced),
                deleted: amount(preview.deleted),
                unchanged: amount(preview.unchanged),
            }),
            estimate: Some(estimate(&self.host.records, preview.restored)),
        })
    }

    /// A whole restore that is not to replace the files that are there.
    fn not_replaced(
        &self,
        operation: &OperationContext,
        conflict: Conflict,
        backup_id: BackupId,
        grant: &RepositoryGrant,
        began: Instant,
    ) -> Result<ProjectRestoreResult, OperationFailure> {
        let message = "the project has files here, which are kept as they are";
        if conflict == Conflict::Fail {
            return Err(OperationFailure::permanent("already_exists", message));
        }
        operation.event(EventLevel::Warn, "exchange", message, None);
        Ok(ProjectRestoreResult {
            backup_id,
            files: 0,
            bytes: 0,
            tree: grant.tree.clone().unwrap_or_default(),
            receipt: "match".to_owned(),
            target: "nothing: kept project".to_owned(),
            duration_s: began.elapsed().as_secs_f64(),
            changes: None,
            estimate: None,
        })
    }

    async fn path(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        grant: &RepositoryGrant,
        backup: &BackupId,
        path: &LayoutPath,
        input: &ProjectRestoreInput,
    ) -> Result<(RestoreReceipt, String), OperationFailure> {
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        let target = target_of(path, input)?;
        let place = target.clone();
        let snapshot_path = snapshot_path(path)?;
        let name = snapshot_path.name().to_owned();
        let staged = self.host.volumes(move |root| root.stage_path(project, op_id, &place)).await?;
        // The job makes `<into>/<name>`; the exchange wants it as `content`, beside it.
        let content = staged.content_path().to_owned();
        let into = content.with_file_name("restored");
        let restored = self
            .host
            .download(
                operation,
                grant,
                backup,
                RestoreTarget::Path { path: snapshot_path, into: into.clone() },
                false,
            )
            .await;
        let conflict = match input.conflict {
            Conflict::Replace => volumes::Conflict::Replace,
            Conflict::Keep => volumes::Conflict::Keep,
            Conflict::Fail => volumes::Conflict::Fail,
        };
        let placed = match restored.and_then(|receipt| operation.check().map(|()| receipt)) {
            Err(failure) => Err(failure),
            Ok(receipt) => {
                operation.progress("exchange", "putting the path in place", None);
                let source = into.join(&name);
                let moved = std::fs::rename(&source, &content);
                match moved {
                    Err(error) => Err(OperationFailure::retryable(
                        "volume",
                        format!("could not move what was staged: {error}"),
                    )),
                    Ok(()) => Ok(receipt),
                }
            }
        };
        let receipt = match placed {
            Ok(receipt) => receipt,
            Err(failure) => {
                self.host.tidy(operation, move |root| root.discard_path(staged)).await?;
                return Err(failure);
            }
        };
        let (outcome, staged) =
            self.host.volumes(move |root| Ok((root.exchange_path(&staged, conflict), staged))).await?;
        let outcome = self.host.volumes(move |_| outcome).await;
        operation.progress("clean-up", "deleting what was staged or replaced", None);
        self.host.tidy(operation, move |root| root.discard_path(staged)).await?;
        if outcome? == PathOutcome::Kept {
            let message = format!("{target} is there already and is kept as it is");
            operation.event(EventLevel::Warn, "exchange", message, None);
            return Ok((receipt, format!("nothing: kept project/{target}")));
        }
        Ok((receipt, format!("project/{target}")))
    }
}

/// Where a path of the backup is to go.
fn target_of<'a>(
    path: &'a LayoutPath,
    input: &'a ProjectRestoreInput,
) -> Result<&'a ProjectPath, OperationFailure> {
    input.target.as_ref().or(path.rest()).ok_or_else(|| {
        OperationFailure::permanent("invalid_argument", "a path of a backup needs a target".to_owned())
    })
}

fn snapshot_path(path: &LayoutPath) -> Result<SnapshotPath, OperationFailure> {
    SnapshotPath::try_from(PathBuf::from(path.to_string()))
        .map_err(|error| OperationFailure::permanent("invalid_argument", error.to_string()))
}
