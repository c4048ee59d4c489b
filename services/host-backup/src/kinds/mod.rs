//! The kinds of operation that this service does; one file a kind.

mod project_backup;
mod project_restore;
mod project_start;
mod repo_check;
mod repo_prune;
mod restore_drill;

pub(crate) use project_backup::ProjectBackup;
pub(crate) use project_restore::ProjectRestore;
pub(crate) use project_start::{ProjectStart, ProjectStop};
pub(crate) use repo_check::RepoCheck;
pub(crate) use repo_prune::RepoPrune;
pub(crate) use restore_drill::RestoreDrill;

/// A result as the operation stores it.
fn result_value<T: serde::Serialize>(
    result: T,
) -> Result<serde_json::Value, operation_engine::OperationFailure> {
    serde_json::to_value(result)
        .map_err(|error| operation_engine::OperationFailure::permanent("result", error))
}
