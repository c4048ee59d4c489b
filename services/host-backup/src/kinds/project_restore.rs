//! `project-restore`: stage, verify, exchange.
//!
//! Whole or a path of it; in the place of the project's files, or beside them. The live files are never written in place.
//! What a crash leaves before the exchange is a staged tree, which the next attempt goes on with. In the middle of the
//! exchange it is a journal from which the next start finishes it. After it, the next attempt has nothing left to do, and
//! what was replaced goes when the operation has ended. A dry run writes nothing.

use std::fmt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
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
use volumes::{HostRoot, PathOutcome, Presence, StagedPath, VolumeError};

use crate::estimate::estimate;
use crate::host::SharedHost;
use crate::staged_restore::Download;

/// The receipt of a restore that has restored nothing.
const NOTHING_RESTORED: &str = "none";

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
        let in_place_of_all = input.path.is_none() && input.target.is_none();
        if !input.dry_run
            && let Some((backup, receipt)) = self.host.restored_before(operation, project).await?
        {
            let target = Placed::at(place_of(&input)?, &receipt);
            return Ok(restored(backup, receipt.tree, &target, began));
        }
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
        if in_place_of_all && input.conflict != Conflict::Replace {
            let project = project.as_uuid();
            presence = self.host.volumes(move |root| root.presence(project)).await?;
            if presence == Presence::Whole {
                return self.not_replaced(operation, input.conflict, backup, &grant, began);
            }
        }
        let (tree, target) = if in_place_of_all {
            let receipt = self.host.restore_whole(operation, project, &grant, &backup, presence).await?;
            let target = Placed::at(place_of(&input)?, &receipt);
            (receipt.tree, target)
        } else {
            self.at_target(operation, project, &grant, &backup, &input).await?
        };
        Ok(restored(backup, tree, &target, began))
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
        let target = match (&input.path, &input.target) {
            (None, None) => {
                PreviewTarget::Whole { project: root, persist: self.host.root.persist_dir(project.as_uuid()) }
            }
            (path, _) => PreviewTarget::Path {
                path: path.as_ref().map(snapshot_path).transpose()?,
                root,
                place: target_of(input)?.as_path().to_owned(),
            },
        };
        let preview = self.host.runner.preview(operation, grant, &backup, target).await?;
        let amount = |amount: Amount| FileAmount { files: amount.files, bytes: amount.bytes };
        Ok(ProjectRestoreResult {
            backup_id: backup,
            files: preview.restored.files,
            bytes: preview.restored.bytes,
            tree: preview.tree,
            receipt: NOTHING_RESTORED.to_owned(),
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
        let tree = grant.tree.clone().unwrap_or_default();
        Ok(restored(backup_id, tree, &Placed::Kept("project".to_owned()), began))
    }

    /// Restores a path of the backup, or all of it, to a place in the project's files: the digest of its tree, and what
    /// became of it.
    async fn at_target(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        grant: &RepositoryGrant,
        backup: &BackupId,
        input: &ProjectRestoreInput,
    ) -> Result<(String, Placed), OperationFailure> {
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        let target = target_of(input)?.clone();
        let path = input.path.as_ref().map(snapshot_path).transpose()?;
        let name = path.as_ref().map(|path| path.name().to_owned());
        let stage = move |root: &HostRoot| {
            root.stage_path(project, op_id, &target).map(|staged| {
                let into = staged.download_path();
                let target = match path.clone() {
                    Some(path) => RestoreTarget::Path { path, into },
                    None => {
                        RestoreTarget::Whole { project: into.join("project"), persist: into.join("persist") }
                    }
                };
                (Download { target, resume: staged.resumed }, staged)
            })
        };
        let discard = |root: &HostRoot, staged| root.discard_path(staged);
        let (staged, receipt) = self.host.download_staged(operation, grant, backup, stage, discard).await?;
        let conflict = match input.conflict {
            Conflict::Replace => volumes::Conflict::Replace,
            Conflict::Keep => volumes::Conflict::Keep,
            Conflict::Fail => volumes::Conflict::Fail,
        };
        let exchange = move |root: &HostRoot| {
            let placed = own(&staged, name.is_none())
                .and_then(|()| root.complete_path(&staged, name.as_deref()))
                .and_then(|()| root.exchange_path(&staged, conflict));
            Ok((placed, staged))
        };
        let (placed, staged) = self.host.volumes(exchange).await?;
        let place = place_of(input)?;
        match placed {
            Ok(PathOutcome::Created | PathOutcome::Replaced) => drop(staged),
            Ok(PathOutcome::Kept) => {
                operation.progress("clean-up", "deleting what was staged", None);
                self.host.tidy(operation, move |root| root.discard_path(staged)).await?;
                let message = format!("{place} is there already and is kept as it is");
                operation.event(EventLevel::Warn, "exchange", message, None);
                return Ok((receipt.tree, Placed::Kept(place)));
            }
            Err(error) => {
                drop(staged);
                if !self.host.volumes(move |root| root.was_exchanged(project, op_id)).await? {
                    return Err(self.host.not_placed(operation, error).await);
                }
            }
        }
        self.host.is_in_place(operation);
        let placed = Placed::at(place, &receipt);
        Ok((receipt.tree, placed))
    }
}

/// Gives what is staged of all of a backup the owner and the mode of the project's files.
fn own(staged: &StagedPath, is_whole: bool) -> Result<(), VolumeError> {
    if !is_whole {
        return Ok(());
    }
    let all = staged.download_path();
    let owned = take_after(&all, &all.join("project"));
    owned.map_err(|source| VolumeError::Io { operation: "set the owner of", path: all, source })
}

fn restored(backup_id: BackupId, tree: String, target: &Placed, began: Instant) -> ProjectRestoreResult {
    let (files, bytes, compared) = match target {
        Placed::At { files, bytes, .. } => (*files, *bytes, "match"),
        Placed::Kept(_) => (0, 0, NOTHING_RESTORED),
    };
    ProjectRestoreResult {
        backup_id,
        files,
        bytes,
        tree,
        receipt: compared.to_owned(),
        target: target.to_string(),
        duration_s: began.elapsed().as_secs_f64(),
        changes: None,
        estimate: None,
    }
}

/// What became of the target of a restore.
enum Placed {
    /// So much was restored, and is here.
    At { place: String, files: u64, bytes: u64 },
    /// Something else is here, and stays.
    Kept(String),
}

impl Placed {
    fn at(place: impl Into<String>, receipt: &RestoreReceipt) -> Self {
        Self::At { place: place.into(), files: receipt.files, bytes: receipt.bytes }
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { place, .. } => formatter.write_str(place),
            Self::Kept(place) => write!(formatter, "nothing: kept {place}"),
        }
    }
}

/// Gives a directory the owner and the mode of another.
fn take_after(directory: &Path, other: &Path) -> std::io::Result<()> {
    let like = other.symlink_metadata()?;
    chown(directory, Some(like.uid()), Some(like.gid()))?;
    std::fs::set_permissions(directory, like.permissions())
}

/// Where a restore goes, as its result says it.
fn place_of(input: &ProjectRestoreInput) -> Result<String, OperationFailure> {
    if input.path.is_none() && input.target.is_none() {
        return Ok("project".to_owned());
    }
    target_of(input).map(|target| format!("project/{target}"))
}

/// Where in the project's files what is restored is to go.
fn target_of(input: &ProjectRestoreInput) -> Result<&ProjectPath, OperationFailure> {
    let own_place = input.path.as_ref().and_then(|path| path.rest());
    input.target.as_ref().or(own_place).ok_or_else(|| {
        OperationFailure::permanent("invalid_argument", "a path of a backup needs a target".to_owned())
    })
}

fn snapshot_path(path: &LayoutPath) -> Result<SnapshotPath, OperationFailure> {
    SnapshotPath::try_from(PathBuf::from(path.to_string()))
        .map_err(|error| OperationFailure::permanent("invalid_argument", error.to_string()))
}
