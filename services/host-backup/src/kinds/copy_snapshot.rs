//! `copy-snapshot`: freeze, upload the paths that are copied, drop the snapshot.
//!
//! What a crash leaves is what it leaves of a backup, in the copy's own repository, and a directory of the host's own, which
//! goes at the next start.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use async_trait::async_trait;
use backup_repository::{BackupReceipt, BackupRequest, MAX_USER_TAGS, Purpose, SourceState, validate_tags};
use bus_messages::kinds::{self, CopySnapshotInput, CopySnapshotResult, KindDefinition};
use bus_messages::{ChildOperation, EventLevel, RepositoryGrant};
use domain_model::ProjectId;
use host_operations::{Record, freeze_files, project_of, result_value};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use volumes::{CopyDirectory, FrozenFiles};

use crate::host::{SharedHost, source_kind, source_state};

/// Does `copy-snapshot`.
pub(crate) struct CopySnapshot {
    pub host: SharedHost,
}

/// What a later attempt goes on from.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Checkpoint {
    /// The project was asked to stop.
    asked_to_stop: bool,
}

#[async_trait]
impl OperationHandler for CopySnapshot {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("copy-snapshot")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.snapshot(operation, project, &mut record).await;
        let (files, bytes) = outcome.as_ref().map_or((0, 0), |result| (result.files, result.bytes));
        record.ended(&outcome, files, bytes);
        outcome.and_then(result_value)
    }
}

impl CopySnapshot {
    async fn snapshot(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
    ) -> Result<CopySnapshotResult, OperationFailure> {
        let began = Instant::now();
        let input: CopySnapshotInput = operation.input()?;
        operation.progress("repository", "opening the repository of the copy", None);
        let grant = operation.fresh_grant().await?;
        let is_running = grant.is_running;
        let grant = grant
            .repository
            .ok_or_else(|| OperationFailure::retryable("no_repository", "the registry gave no repository"))?;
        record.started(&grant.bucket);

        operation.progress("snapshot", "freezing the files", None);
        let op_uuid = operation.op_id().as_uuid();
        let source = freeze_files(&self.host.root, project, op_uuid, &input.paths, input.dereference).await?;
        if source.kind == volumes::SourceKind::Live && is_running {
            self.stop_first(operation, &input)?;
        }
        let outcome = self.copy_out(operation, &grant, &input, &source).await;
        let kind = source_kind(source.kind);
        operation.progress("clean-up", "dropping the snapshot", None);
        drop(source);
        if let Err(error) = self.host.volumes(move |root| root.drop_snapshot(op_uuid)).await {
            tracing::warn!(op.id = %operation.op_id(), ?error, "a snapshot could not be dropped");
        }
        let receipt = outcome?;
        let snapshot_id = receipt.snapshot.to_string().parse().map_err(|error| {
            OperationFailure::permanent("job", format!("the job named a strange snapshot: {error}"))
        })?;
        Ok(CopySnapshotResult {
            snapshot_id,
            files: receipt.files,
            bytes: receipt.bytes,
            source: kind,
            duration_s: began.elapsed().as_secs_f64(),
        })
    }

    /// A project that runs, and whose files cannot be frozen, is stopped first, unless somebody insists.
    fn stop_first(
        &self,
        operation: &OperationContext,
        input: &CopySnapshotInput,
    ) -> Result<(), OperationFailure> {
        let checkpoint: Checkpoint = operation.checkpoint()?.unwrap_or_default();
        if input.force || checkpoint.asked_to_stop {
            let message = "the project is running and its files cannot be frozen: what changes now may be copied in part";
            operation.event(EventLevel::Warn, "snapshot", message, None);
            return Ok(());
        }
        let stop = ChildOperation {
            key: "stop".to_owned(),
            scope: operation.op().scope,
            kind: kinds::named("project-stop").kind(),
            input: json!({}),
        };
        Err(OperationFailure::WaitsForChildren {
            children: vec![stop],
            checkpoint: Some(json!(Checkpoint { asked_to_stop: true })),
        })
    }

    /// Uploads the paths, in a directory of the host's own for what has to be made for it.
    async fn copy_out(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        input: &CopySnapshotInput,
        source: &FrozenFiles,
    ) -> Result<BackupReceipt, OperationFailure> {
        let op_uuid = operation.op_id().as_uuid();
        let directory = self.host.volumes(move |root| root.copy_directory(op_uuid)).await?;
        let outcome = self.upload(operation, grant, input, source, &directory).await;
        if let Err(error) =
            self.host.tidy(operation, move |root| root.discard_copy_directory(directory)).await
        {
            tracing::warn!(op.id = %operation.op_id(), ?error, "what was made for a copy could not be deleted");
        }
        outcome
    }

    async fn upload(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        input: &CopySnapshotInput,
        source: &FrozenFiles,
        directory: &CopyDirectory,
    ) -> Result<BackupReceipt, OperationFailure> {
        // There is no persist store in a copy.
        let persist = make(directory, "persist")?;
        let (project, state) = if input.dereference {
            let gathered = self.gather(operation, input, source, directory).await?;
            (gathered, SourceState::Live)
        } else {
            (source.project_dir.clone(), source_state(source.kind, source.taken_at))
        };
        let request = BackupRequest {
            project,
            persist,
            only: input.paths.iter().map(|path| path.as_path().to_owned()).collect(),
            source: state,
            parent: None,
            purpose: Purpose::Copy,
            // The copy that it is made for; the source project is in the tags by itself.
            op_id: operation.op().parent_id.unwrap_or(operation.op_id()).as_uuid(),
            attempt: operation.attempt(),
            tags: path_tags(input),
        };
        operation.progress("upload", "reading the files", None);
        self.host.runner.back_up(operation, grant, request).await
    }

    /// The paths with what their links lead to in place of the links.
    async fn gather(
        &self,
        operation: &OperationContext,
        input: &CopySnapshotInput,
        source: &FrozenFiles,
        directory: &CopyDirectory,
    ) -> Result<PathBuf, OperationFailure> {
        let into = make(directory, "project")?;
        let (files, is_live) = (source.project_dir.clone(), source.kind == volumes::SourceKind::Live);
        let (paths, gathered) = (input.paths.clone(), into.clone());
        let cancellation = operation.cancellation();
        operation.progress("snapshot", "following links", None);
        let outcome = self
            .host
            .volumes(move |root| {
                root.gather(&files, is_live, &paths, &gathered, &mut |_| {
                    if cancellation.is_cancelled() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
            })
            .await;
        operation.check()?;
        outcome.map(|_| into)
    }
}

/// The paths, as far as they make good tags.
fn path_tags(input: &CopySnapshotInput) -> Vec<String> {
    let tags = input.paths.iter().map(|path| format!("path={path}"));
    tags.filter(|tag| validate_tags(std::slice::from_ref(tag)).is_ok()).take(MAX_USER_TAGS).collect()
}

fn make(directory: &CopyDirectory, name: &str) -> Result<PathBuf, OperationFailure> {
    let path = directory.path().join(name);
    match std::fs::create_dir(&path) {
        Ok(()) => Ok(path),
        Err(error) => {
            let message = format!("could not make {}: {error}", path.display());
            Err(OperationFailure::retryable("volume", message))
        }
    }
}
