//! `project-backup`: freeze, upload, drop the snapshot.
//!
//! What a crash leaves, and who ends it: a snapshot on the host (deleted at the next start, or by the next
//! attempt), packs in the bucket that no snapshot names (reused by the next backup), or a whole snapshot in
//! the repository that the hub does not know (found by its operation's id in the next attempt, and told to be of the moment in
//! which the files were frozen for it: what has changed since is in no backup). Nothing is a backup before the hub has
//! recorded the success.

use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use async_trait::async_trait;
use backup_repository::{BackupRequest, Purpose};
use bus_messages::kinds::{self, KindDefinition, ProjectBackupInput, ProjectBackupResult};
use bus_messages::{EventLevel, RepositoryGrant};
use domain_model::ProjectId;
use host_operations::{Record, freeze, project_of, result_value};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::Value;
use volumes::BackupSource;

use crate::host::{SharedHost, source_kind, source_state, timestamp};

/// How many nested subvolumes an event names.
const MOST_NAMED: usize = 20;

/// Does `project-backup`.
pub(crate) struct ProjectBackup {
    pub host: SharedHost,
}

#[async_trait]
impl OperationHandler for ProjectBackup {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("project-backup")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.back_up(operation, project, &mut record).await;
        let (files, bytes) = outcome.as_ref().map_or((0, 0), |result| (result.files, result.bytes));
        record.ended(&outcome, files, bytes);
        outcome.and_then(result_value)
    }
}

impl ProjectBackup {
    async fn back_up(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
    ) -> Result<ProjectBackupResult, OperationFailure> {
        let began = Instant::now();
        let input: ProjectBackupInput = operation.input()?;
        operation.progress("repository", "opening the repository", None);
        let grant = operation.repository().await?;
        record.started(&grant.bucket);

        operation.progress("snapshot", "freezing the files", None);
        let op_uuid = operation.op_id().as_uuid();
        let source = freeze(&self.host.root, project, op_uuid).await?;
        if !source.nested_subvolumes.is_empty() {
            let message = format!(
                "read live, since a snapshot lacks the nested subvolumes {}",
                some_of(&source.nested_subvolumes)
            );
            operation.event(EventLevel::Warn, "snapshot", message, None);
        }
        let outcome = self.upload(operation, &grant, input, &source).await;
        let (frozen, kind, generation) = (source.taken_at, source_kind(source.kind), source.generation);
        operation.progress("clean-up", "dropping the snapshot", None);
        drop(source);
        let dropped = self.host.volumes(move |root| root.drop_snapshot(op_uuid)).await;
        if let (Ok(_), Err(error)) = (&outcome, dropped) {
            // The backup is whole; the snapshot goes with the next start of the service.
            tracing::warn!(op.id = %operation.op_id(), ?error, "a snapshot could not be dropped");
        }
        let receipt = outcome?;
        if receipt.vanished.count > 0 {
            let message = format!(
                "{} files were gone before they were read, such as {}",
                receipt.vanished.count,
                receipt.vanished.first.join(", ")
            );
            operation.event(EventLevel::Warn, "upload", message, None);
        }
        let (snapshot_at, generation) = match receipt.found {
            // Nobody has kept of which generation that was: the project counts as changed.
            true => (UNIX_EPOCH + Duration::try_from_secs_f64(receipt.taken_at).unwrap_or_default(), None),
            false => (frozen, generation),
        };
        let id = |id: &backup_repository::SnapshotId| {
            id.to_string().parse().map_err(|error| {
                OperationFailure::permanent("job", format!("the job named a strange snapshot: {error}"))
            })
        };
        Ok(ProjectBackupResult {
            backup_id: id(&receipt.snapshot)?,
            files: receipt.files,
            bytes: receipt.bytes,
            bytes_added: receipt.bytes_added,
            parent: receipt.parent.as_ref().map(id).transpose()?,
            source: kind,
            tree: receipt.tree,
            snapshot_at: timestamp(snapshot_at),
            generation,
            vanished: receipt.vanished.count,
            duration_s: began.elapsed().as_secs_f64(),
        })
    }

    async fn upload(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        input: ProjectBackupInput,
        source: &BackupSource,
    ) -> Result<backup_repository::BackupReceipt, OperationFailure> {
        let request = BackupRequest {
            project: source.project_dir.clone(),
            persist: source.persist_dir.clone(),
            only: Vec::new(),
            source: source_state(source.kind, source.taken_at),
            // A parent that does not read is none: the whole is read then, and the receipt says so.
            parent: grant.backup.as_ref().and_then(|id| id.as_str().parse().ok()),
            purpose: Purpose::Backup,
            op_id: operation.op_id().as_uuid(),
            attempt: operation.attempt(),
            tags: input.tags.iter().map(ToString::to_string).collect(),
        };
        operation.progress("upload", "reading the files", None);
        self.host.runner.back_up(operation, grant, request).await
    }
}

/// Some of many paths, in words.
fn some_of(paths: &[PathBuf]) -> String {
    let named: Vec<String> = paths.iter().take(MOST_NAMED).map(|path| path.display().to_string()).collect();
    let more = match paths.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_paths_are_named_in_part() {
        let paths = |count: usize| -> Vec<PathBuf> {
            (0..count).map(|number| PathBuf::from(format!("project/{number}"))).collect()
        };
        assert_eq!(some_of(&paths(2)), "project/0, project/1");
        assert!(some_of(&paths(MOST_NAMED)).ends_with("project/19"));
        assert!(some_of(&paths(MOST_NAMED + 3)).ends_with("project/19 and 3 more"));
    }
}
