use std::path::Path;

use domain_model::{ProjectId, ProjectPath};
use operation_engine::OperationFailure;
use uuid::Uuid;
use volumes::{BackupSource, FrozenFiles, HostRoot, VolumeError, VolumeErrorKind};

/// Runs blocking work on the volumes of a host.
///
/// # Errors
/// What went wrong there, as the failure of an operation.
pub async fn volume_work<T, F>(root: &HostRoot, work: F) -> Result<T, OperationFailure>
where
    T: Send + 'static,
    F: FnOnce(&HostRoot) -> Result<T, VolumeError> + Send + 'static,
{
    let root = root.clone();
    match tokio::task::spawn_blocking(move || work(&root)).await {
        Ok(result) => result.map_err(|error| volume_failure(&error)),
        Err(error) => {
            Err(OperationFailure::retryable("volume", format!("work on the volume ended early: {error}")))
        }
    }
}

/// Fixes what is read of a project, under the name `id`; see [`HostRoot::snapshot`].
///
/// # Errors
/// As [`volume_work`]. A project without files is no empty project: its host may have lost a disk. Only the persist store
/// may be missing, where a project never had one.
pub async fn freeze(root: &HostRoot, project: ProjectId, id: Uuid) -> Result<BackupSource, OperationFailure> {
    let project = project.as_uuid();
    volume_work(root, move |root| {
        if root.project_dir(project).is_dir() {
            root.ensure_volume(project)?;
        }
        root.snapshot(project, id)
    })
    .await
}

/// Fixes what a copy reads of the files of a project, under the name `id`: `paths`, and where links are followed
/// (`dereference`), any place. See [`HostRoot::snapshot_files`].
///
/// # Errors
/// As [`volume_work`].
pub async fn freeze_files(
    root: &HostRoot,
    project: ProjectId,
    id: Uuid,
    paths: impl IntoIterator<Item = &ProjectPath>,
    dereference: bool,
) -> Result<FrozenFiles, OperationFailure> {
    let paths: Vec<ProjectPath> = paths.into_iter().cloned().collect();
    volume_work(root, move |root| {
        let paths: Vec<&Path> = match dereference {
            true => vec![Path::new("")],
            false => paths.iter().map(ProjectPath::as_path).collect(),
        };
        root.snapshot_files(project.as_uuid(), id, &paths)
    })
    .await
}

/// What went wrong with a volume, as the failure of an operation.
pub fn volume_failure(error: &VolumeError) -> OperationFailure {
    let (code, retryable) = match error.kind() {
        VolumeErrorKind::NotFound => ("not_found", false),
        VolumeErrorKind::AlreadyExists => ("already_exists", false),
        VolumeErrorKind::InvalidPath => ("invalid_argument", false),
        VolumeErrorKind::PermissionDenied => ("permission_denied", false),
        VolumeErrorKind::Damaged => ("volume_damaged", false),
        VolumeErrorKind::InUse => ("in_use", true),
        VolumeErrorKind::NoSpace => ("no_space", true),
        VolumeErrorKind::Canceled => return OperationFailure::Canceled,
        VolumeErrorKind::Other => ("volume", true),
    };
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    OperationFailure::Failed { code: code.to_owned(), message, retryable }
}
