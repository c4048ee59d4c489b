use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use backup_repository::SourceState;
use bus_messages::kinds;
use domain_model::{ProjectId, Timestamp};
use host_operations::{JobRecords, JobRunner, Record, volume_work};
use operation_engine::{OperationContext, OperationFailure};
use tokio::sync::Notify;
use volumes::{HostRoot, VolumeError};

/// What the kinds share.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub root: HostRoot,
    pub records: JobRecords,
    pub runner: JobRunner,
    /// A restore has: what it has replaced can go once that is recorded.
    pub restore_has_ended: Arc<Notify>,
}

impl Host {
    /// Runs blocking work on the host's volumes.
    pub(crate) async fn volumes<T, F>(&self, work: F) -> Result<T, OperationFailure>
    where
        T: Send + 'static,
        F: FnOnce(&HostRoot) -> Result<T, VolumeError> + Send + 'static,
    {
        volume_work(&self.root, work).await
    }

    /// Deletes what is no longer needed. Where the service is being stopped, that is left to its next start, which
    /// finds it: whoever waits for the operation is not to wait for a tree to be deleted.
    pub(crate) async fn tidy<F>(
        &self,
        operation: &OperationContext,
        delete: F,
    ) -> Result<(), OperationFailure>
    where
        F: FnOnce(&HostRoot) -> Result<(), VolumeError> + Send + 'static,
    {
        let left = async {
            operation.cancellation().cancelled().await;
            if !operation.is_stopping() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = left => Ok(()),
            deleted = self.volumes(delete) => deleted,
        }
    }

    /// Begins the record of a job.
    pub(crate) fn record(&self, operation: &OperationContext, project: ProjectId) -> Record {
        Record::begin(&self.records, operation, project)
    }
}

/// A moment of the host's clock: dates of snapshots, never of a lease.
pub(crate) fn timestamp(moment: SystemTime) -> Timestamp {
    Timestamp::from_date_time(moment.into())
}

/// What was frozen, as results say it.
pub(crate) fn source_kind(kind: volumes::SourceKind) -> kinds::SourceKind {
    match kind {
        volumes::SourceKind::BtrfsSnapshot => kinds::SourceKind::BtrfsSnapshot,
        volumes::SourceKind::Live => kinds::SourceKind::Live,
    }
}

/// The same for the job that reads it.
pub(crate) fn source_state(kind: volumes::SourceKind, taken_at: SystemTime) -> SourceState {
    match kind {
        volumes::SourceKind::BtrfsSnapshot => SourceState::ReadOnly {
            taken_at: taken_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        },
        volumes::SourceKind::Live => SourceState::Live,
    }
}

/// Shared by the kinds of this host.
pub(crate) type SharedHost = Arc<Host>;
