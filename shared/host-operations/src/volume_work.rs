use operation_engine::OperationFailure;
use volumes::{HostRoot, VolumeError, VolumeErrorKind};

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

fn volume_failure(error: &VolumeError) -> OperationFailure {
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
