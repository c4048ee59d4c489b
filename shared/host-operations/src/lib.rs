//! What the services on a project-host have in common: work on its volumes, off the threads of async code, and jobs on
//! repositories, in child processes; both with their failures as those of operations. And the records of what they do.

mod job_records;
mod repository_job;
mod volume_work;

pub use job_records::{JobRecord, JobRecords, JobState, Record};
pub use repository_job::{JOB_ARGUMENT, JobRunner, ObjectStoreRequests, something_else};
pub use volume_work::{freeze, freeze_files, volume_failure, volume_work};

use domain_model::{ProjectId, Scope};
use operation_engine::{OperationContext, OperationFailure};

/// The project that an operation is about.
///
/// # Errors
/// A permanent failure where it is about something else.
pub fn project_of(operation: &OperationContext) -> Result<ProjectId, OperationFailure> {
    match operation.op().scope {
        Scope::Project(id) => Ok(id),
        other => Err(OperationFailure::permanent("invalid_argument", format!("{other} is no project"))),
    }
}

/// A result as the operation stores it.
///
/// # Errors
/// A permanent failure where it cannot be written as JSON: a mistake in its type.
pub fn result_value<T: serde::Serialize>(result: T) -> Result<serde_json::Value, OperationFailure> {
    serde_json::to_value(result).map_err(|error| OperationFailure::permanent("result", error))
}

#[cfg(test)]
mod tests {
    #[test]
    fn backups_leave_out_what_volumes_stage() {
        assert_eq!(backup_repository::STAGING_PREFIX, domain_model::RESERVED_PREFIX);
    }
}
