use std::sync::Arc;
use std::time::SystemTime;

use domain_model::{ProjectId, Scope, Timestamp};
use operation_engine::{OperationContext, OperationFailure};
use volumes::{HostRoot, VolumeError, VolumeErrorKind};

use crate::job_records::{JobRecord, JobRecords, JobState};
use crate::repository_job::JobRunner;

/// What the kinds share.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub root: HostRoot,
    pub records: JobRecords,
    pub runner: JobRunner,
}

/// The record of a job, kept up to date. A record that cannot be written is logged: it never fails a job.
pub(crate) struct Record {
    records: JobRecords,
    record: JobRecord,
}

impl Host {
    /// Runs blocking work on the host's volumes.
    pub(crate) async fn volumes<T, F>(&self, work: F) -> Result<T, OperationFailure>
    where
        T: Send + 'static,
        F: FnOnce(&HostRoot) -> Result<T, VolumeError> + Send + 'static,
    {
        let root = self.root.clone();
        match tokio::task::spawn_blocking(move || work(&root)).await {
            Ok(result) => result.map_err(|error| volume_failure(&error)),
            Err(error) => {
                Err(OperationFailure::retryable("volume", format!("work on the volume ended early: {error}")))
            }
        }
    }

    pub(crate) fn record(&self, operation: &OperationContext, project_id: ProjectId) -> Record {
        let record = JobRecord {
            op_id: operation.op_id(),
            attempt: operation.attempt(),
            lease_id: operation.lease_id(),
            kind: operation.op().kind.clone(),
            project_id,
            state: JobState::Pending,
            created_at: now(),
            started_at: None,
            finished_at: None,
            bucket: None,
            files: 0,
            bytes: 0,
            error: None,
        };
        let record = Record { records: self.records.clone(), record };
        record.write();
        record
    }
}

impl Record {
    pub(crate) fn started(&mut self, bucket: &str) {
        self.record.state = JobState::Running;
        self.record.started_at = Some(now());
        self.record.bucket = Some(bucket.to_owned());
        self.write();
    }

    pub(crate) fn ended<T>(mut self, outcome: &Result<T, OperationFailure>, files: u64, bytes: u64) {
        self.record.finished_at = Some(now());
        (self.record.files, self.record.bytes) = (files, bytes);
        let (state, error) = match outcome {
            Ok(_) => (JobState::Succeeded, None),
            Err(OperationFailure::Canceled) => (JobState::Canceled, None),
            Err(OperationFailure::Failed { message, .. }) => (JobState::Failed, Some(message.clone())),
            Err(_) => (JobState::Failed, Some("stopped before its end".to_owned())),
        };
        self.record.state = state;
        self.record.error = error;
        self.write();
    }

    fn write(&self) {
        if let Err(error) = self.records.write(&self.record) {
            tracing::warn!(op.id = %self.record.op_id, %error, "the record of a job could not be written");
        }
    }
}

/// The project that an operation is about.
pub(crate) fn project_of(operation: &OperationContext) -> Result<ProjectId, OperationFailure> {
    match operation.op().scope {
        Scope::Project(id) => Ok(id),
        other => Err(OperationFailure::permanent("invalid_argument", format!("{other} is no project"))),
    }
}

/// The host's clock: dates of its own records and of snapshots, never of a lease.
pub(crate) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

pub(crate) fn timestamp(moment: SystemTime) -> Timestamp {
    Timestamp::from_date_time(moment.into())
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

/// Shared by the kinds of this host.
pub(crate) type SharedHost = Arc<Host>;
