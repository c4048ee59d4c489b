//! From the errors of libraries to those of the wire: a code and a message that says what to do. What the
//! client cannot do anything about is logged here, once, with its chain, and answered as `internal`.

use std::error::Error;

use backup_repository::{BackupRepositoryError, BackupRepositoryErrorKind};
use bus_messages::{ApiError, ErrorCode};
use catalog_database::{DatabaseError, DatabaseErrorKind};
use object_storage::{ObjectStorageError, ObjectStorageErrorKind};

/// An error and everything beneath it, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(crate) fn from_database(error: DatabaseError) -> ApiError {
    match (error.kind(), error.constraint()) {
        (
            DatabaseErrorKind::Constraint,
            Some("projects_account_id_fkey" | "project_collaborators_account_id_fkey"),
        ) => ApiError::not_found("there is no such account; api.v1.hub.account.create makes one"),
        (DatabaseErrorKind::Constraint, Some(constraint)) => {
            ApiError::new(ErrorCode::Conflict, format!("refused by the rule {constraint}"))
        }
        (DatabaseErrorKind::Unavailable, _) => {
            tracing::warn!(error = chain(&error), "the database does not answer");
            ApiError::new(ErrorCode::Unavailable, "the database does not answer now; try again in a moment")
        }
        _ => {
            tracing::error!(error = chain(&error), "a statement failed");
            ApiError::new(ErrorCode::Internal, "a defect here; it is in the registry's log")
        }
    }
}

pub(crate) fn from_object_storage(bucket: &str, error: &ObjectStorageError) -> ApiError {
    tracing::warn!(bucket, error = chain(error), "a bucket cannot be used");
    match error.kind() {
        ObjectStorageErrorKind::Retryable => {
            ApiError::new(ErrorCode::Unavailable, format!("the bucket {bucket} cannot be reached: {error}"))
                .with_detail("code", "bucket_unreachable")
        }
        _ => ApiError::new(
            ErrorCode::FailedPrecondition,
            format!("the bucket {bucket} cannot be used: {error}"),
        ),
    }
}

pub(crate) fn from_repository(bucket: &str, error: &BackupRepositoryError) -> ApiError {
    tracing::warn!(bucket, error = chain(error), "a repository cannot be made ready");
    let code =
        if error.kind().is_retryable() { ErrorCode::Unavailable } else { ErrorCode::FailedPrecondition };
    let detail = match error.kind() {
        BackupRepositoryErrorKind::StoreFull => "store_full",
        kind if kind.is_retryable() => "bucket_unreachable",
        _ => "repository",
    };
    ApiError::new(code, format!("the repository in bucket {bucket} cannot be made ready: {}", chain(error)))
        .with_detail("code", detail)
}
