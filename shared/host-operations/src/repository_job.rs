//! A job on a repository: in a child process of the service's own program (`host-backup job`), told what to do over
//! a pipe, its progress passed on to the operation.

use backup_repository::{
    BackupReceipt, BackupRepositoryErrorKind, BackupRequest, CacheSettings, JobEvent, JobFailure,
    JobFailureKind, JobProcesses, JobProgress, JobResult, JobTask, Preview, PreviewRequest, PreviewTarget,
    RequestCounts, RestoreReceipt, RestoreRequest, RestoreTarget, Sample, SnapshotId, WriteUntil,
};
use bus_messages::RepositoryGrant;
use domain_model::{BackupId, Progress};
use operation_engine::{OperationContext, OperationFailure};
use service_runtime::{Counter, Family, Labels, Metrics};
use tokio::time::{Duration, Instant};

/// How jobs are run on this host.
#[derive(Debug, Clone)]
pub struct JobRunner {
    /// Of this very program.
    pub processes: JobProcesses,
    /// Where metadata of repositories is kept.
    pub cache: CacheSettings,
    /// Bytes of memory that one job may use.
    pub memory_bytes: u64,
    /// Seconds after which a job of which nothing moves is ended.
    pub stall_s: f64,
    /// What finished jobs have cost.
    pub requests: ObjectStoreRequests,
}

/// How many requests to the object store the finished jobs have made: they are billed.
#[derive(Debug, Clone)]
pub struct ObjectStoreRequests(Family<Labels, Counter>);

impl ObjectStoreRequests {
    /// Registers the metric.
    pub fn register(metrics: &Metrics) -> Self {
        let help = "Requests to the object store by finished jobs, by job and request";
        Self(metrics.counter_family("longhaul_object_store_requests", help))
    }

    fn add(&self, result: &JobResult) {
        let (job, requests) = match result {
            JobResult::Backup(receipt) => ("backup", receipt.requests),
            JobResult::Restore(receipt) => ("restore", receipt.requests),
            JobResult::Prune(receipt) => ("prune", receipt.requests),
            JobResult::Preview(preview) => ("preview", preview.requests),
            JobResult::Check(report) => ("check", report.requests),
            JobResult::Mend(receipt) => ("mend", receipt.requests),
            JobResult::Listed(_) | JobResult::Found(_) => return,
        };
        let RequestCounts { get, put, list, delete } = requests;
        for (request, count) in [("get", get), ("put", put), ("list", list), ("delete", delete)] {
            let labels = vec![("job", job.to_owned()), ("request", request.to_owned())];
            self.0.get_or_create(&labels).inc_by(count);
        }
    }
}

/// The hidden argument that makes a service's program a job of itself.
pub const JOB_ARGUMENT: &str = "job";

/// How long the job of a canceled operation may take to end in order before it is killed.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
/// As `CANCEL_PATIENCE`, where the service is being stopped: its leases are to be handed back at once.
const STOP_PATIENCE: Duration = Duration::from_millis(400);
/// The pause between two looks whether the lease was renewed.
const LOOK_AT_LEASE: Duration = Duration::from_millis(500);

impl JobRunner {
    /// Runs a job to its end. `phase` is what its progress is reported as. A job whose operation is canceled
    /// or lost is stopped, and leaves nothing that counts.
    pub async fn run(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        task: JobTask,
        phase: &str,
    ) -> Result<JobResult, OperationFailure> {
        let mut request = backup_browsing::job_request(grant, &self.cache, self.memory_bytes, task)
            .map_err(|error| OperationFailure::permanent("repository_key", error))?;
        request.stall_limit_s = Some(self.stall_s);
        request.write_until = Some(end_of_lease(operation));
        let mut job = self
            .processes
            .start(&request)
            .map_err(|error| OperationFailure::retryable("job", error.chain()))?;
        let cancellation = operation.cancellation();
        let mut asked = false;
        let mut told = JobProgress::default();
        let mut looks_at_lease = tokio::time::interval(LOOK_AT_LEASE);
        let mut lease = operation.lease_deadline();
        loop {
            let event = tokio::select! {
                event = job.next_event() => event,
                _ = looks_at_lease.tick() => {
                    if lease != operation.lease_deadline() {
                        lease = operation.lease_deadline();
                        job.write_until(end_of_lease(operation));
                    }
                    continue;
                }
                () = cancellation.cancelled(), if !asked => {
                    asked = true;
                    job.cancel(if operation.is_stopping() { STOP_PATIENCE } else { CANCEL_PATIENCE });
                    continue;
                }
            };
            match event {
                Some(JobEvent::Progress(progress)) => {
                    // Steps are signs of life, and no news to people.
                    let progress = JobProgress { steps: 0, ..progress };
                    if progress != told {
                        told = progress;
                        operation.progress(phase, message_of(&progress), Some(progress_of(&progress)));
                    }
                }
                Some(JobEvent::Finished(result)) => {
                    self.requests.add(&result);
                    return Ok(result);
                }
                Some(JobEvent::Failed(failure)) => return Err(failure_of(operation, &failure)),
                None => return Err(OperationFailure::retryable("job", "the job ended without a word")),
            }
        }
    }
}

impl JobRunner {
    /// Has a job make a backup.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn back_up(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        request: BackupRequest,
    ) -> Result<BackupReceipt, OperationFailure> {
        match self.run(operation, grant, JobTask::Backup(request), "upload").await? {
            JobResult::Backup(receipt) => Ok(receipt),
            other => Err(something_else(&other)),
        }
    }

    /// Has a job say what a restore would change.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub async fn preview(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        target: PreviewTarget,
    ) -> Result<Preview, OperationFailure> {
        let task = JobTask::Preview(PreviewRequest { snapshot: snapshot_of(backup)?, target });
        match self.run(operation, grant, task, "download").await? {
            JobResult::Preview(preview) => Ok(preview),
            other => Err(something_else(&other)),
        }
    }

    /// Has a job restore a backup or a sample of it, and compare what it has written with what it has read. With `resume` it
    /// goes on with what an earlier job has written.
    ///
    /// # Errors
    /// As [`Self::run`]; a permanent failure where the backup's id does not read.
    pub async fn restore(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        target: RestoreTarget,
        sample: Option<Sample>,
        resume: bool,
    ) -> Result<RestoreReceipt, OperationFailure> {
        let snapshot = snapshot_of(backup)?;
        let task = JobTask::Restore(RestoreRequest { snapshot, target, sample, resume });
        match self.run(operation, grant, task, "download").await? {
            JobResult::Restore(receipt) => Ok(receipt),
            other => Err(something_else(&other)),
        }
    }
}

/// The end of the lease by the clock of the job. The clock is read first: what passes in between makes it earlier.
fn end_of_lease(operation: &OperationContext) -> WriteUntil {
    let now = WriteUntil::now();
    now.plus(operation.lease_deadline().saturating_duration_since(Instant::now()))
}

fn snapshot_of(backup: &BackupId) -> Result<SnapshotId, OperationFailure> {
    let read = backup.as_str().parse();
    read.map_err(|error| OperationFailure::permanent("invalid_argument", format!("{backup}: {error}")))
}

/// A job has answered what no such task is answered with: a mistake of ours.
pub fn something_else(result: &JobResult) -> OperationFailure {
    OperationFailure::permanent("job", format!("the job answered with something else: {result:?}"))
}

fn failure_of(operation: &OperationContext, failure: &JobFailure) -> OperationFailure {
    if let Err(stopped) = operation.check() {
        return stopped;
    }
    OperationFailure::Failed {
        code: code_of(failure.reason).to_owned(),
        message: failure.message.clone(),
        retryable: failure.kind == JobFailureKind::Retryable,
    }
}

fn code_of(reason: BackupRepositoryErrorKind) -> &'static str {
    match reason {
        BackupRepositoryErrorKind::NotFound => "not_found",
        BackupRepositoryErrorKind::IdentityMismatch => "repository_identity",
        BackupRepositoryErrorKind::Occupied => "repository_occupied",
        BackupRepositoryErrorKind::UnsupportedLayout => "unsupported_layout",
        BackupRepositoryErrorKind::WrongCredentials => "wrong_credentials",
        BackupRepositoryErrorKind::InvalidArgument => "invalid_argument",
        BackupRepositoryErrorKind::SourceUnreadable => "source_unreadable",
        BackupRepositoryErrorKind::DestinationUnusable => "destination_unusable",
        BackupRepositoryErrorKind::NoSpace => "no_space",
        BackupRepositoryErrorKind::StoreFull => "store_full",
        BackupRepositoryErrorKind::Damaged => "repository_damaged",
        BackupRepositoryErrorKind::VerificationFailed => "verification_failed",
        BackupRepositoryErrorKind::Canceled => "canceled",
        BackupRepositoryErrorKind::Stalled => "stalled",
        BackupRepositoryErrorKind::ProcessEnded => "job_died",
        BackupRepositoryErrorKind::Retryable => "bucket_unreachable",
        BackupRepositoryErrorKind::Permanent => "job",
    }
}

fn progress_of(progress: &JobProgress) -> Progress {
    Progress::count(progress.bytes, progress.total_bytes, "bytes")
}

fn message_of(progress: &JobProgress) -> String {
    let bytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    match (progress.total_files, progress.total_bytes) {
        (Some(files), Some(total)) => {
            format!("{} of {files} files, {} of {}", progress.files, bytes(progress.bytes), bytes(total))
        }
        _ => format!("{} files, {}", progress.files, bytes(progress.bytes)),
    }
}
