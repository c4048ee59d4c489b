//! What is said between a service and the child process that does jobs for it, one after another.
//!
//! The parent writes one line of JSON, the [`JobRequest`], to the child's standard input, and keeps it open:
//! a line `cancel` asks for an orderly end, a line `until` with a number moves the time until which it may write, and the end of the input means that the parent is dead, after
//! which the child ends at once. The child answers on its standard output with lines of JSON, each a
//! [`JobEvent`], the last one of a job being `finished` or `failed`. After a success the child may add a line `ready`
//! and wait for the next request; otherwise it ends. The request holds secrets, which is why it goes over a
//! pipe: arguments and environments can be read by others.

use std::sync::Arc;

use object_storage::ProviderSettings;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::backup::{BackupReceipt, BackupRequest};
use crate::browse::{Browser, CheckReport};
use crate::browse_page::{FindPage, FindQuery, ListPage, ListQuery};
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind, Result};
use crate::initialise::RepositoryIdentity;
use crate::mend::MendReceipt;
use crate::metadata_cache::CacheSettings;
use crate::preview::{Preview, PreviewRequest};
use crate::prune::{PruneReceipt, PruneRequest};
use crate::repository::{Progress, Repository, RepositoryLocation};
use crate::repository_key::RepositoryKey;
use crate::restore::{RestoreReceipt, RestoreRequest};
use crate::write_deadline::WriteUntil;

/// One job, with everything that it needs. `Debug` shows no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The object store.
    pub provider: ProviderSettings,
    /// The bucket of the repository.
    pub bucket: String,
    /// The prefix inside the bucket.
    pub root: String,
    /// Which repository has to be there.
    pub identity: RepositoryIdentity,
    /// Its key.
    pub key: RepositoryKey,
    /// The local cache of metadata.
    pub cache: Option<CacheSettings>,
    /// The most data memory (`RLIMIT_DATA`, in bytes) that the child may take. At the limit it dies, which
    /// is a retryable failure.
    pub memory_limit_bytes: Option<u64>,
    /// Seconds without a sign of life after which the parent ends the job; no limit where `None`.
    #[serde(default)]
    pub stall_limit_s: Option<f64>,
    /// Until when it may write and delete; for ever where `None`. Can be moved while it works.
    #[serde(default)]
    pub write_until: Option<WriteUntil>,
    /// What is to be done.
    pub task: JobTask,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobTask {
    /// Make a backup.
    Backup(BackupRequest),
    /// Restore one.
    Restore(RestoreRequest),
    /// Say what a restore would change.
    Preview(PreviewRequest),
    /// Check the repository.
    Check {
        /// Whether to read all packs.
        read_data: bool,
        /// Which share of them only, and of how many; shares are counted from 0.
        #[serde(default)]
        share: Option<(u32, u32)>,
    },
    /// Make the index say what is there.
    Mend {
        /// Of which share the content is read, and of how many, as in a check.
        share: Option<(u32, u32)>,
    },
    /// Forget backups and free their space.
    Prune(PruneRequest),
    /// List a directory of a backup.
    List(ListQuery),
    /// Find paths in backups.
    Find(FindQuery),
}

impl JobTask {
    /// Whether it only looks, and is asked again soon: the repository stays open for the next such job.
    pub(crate) fn is_browsing(&self) -> bool {
        matches!(self, Self::List(_) | Self::Find(_))
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobProgress {
    /// Entries done.
    pub files: u64,
    /// Bytes done.
    pub bytes: u64,
    /// Entries in all, once known (with a parent: its number).
    pub total_files: Option<u64>,
    /// Bytes in all, once known (with a parent: its number).
    pub total_bytes: Option<u64>,
    /// Grows with every step and every request: a sign of life where nothing else changes.
    #[serde(default)]
    pub steps: u64,
}

/// What a finished job has to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// Of a backup.
    Backup(BackupReceipt),
    /// Of a restore.
    Restore(RestoreReceipt),
    /// Of a preview.
    Preview(Preview),
    /// Of a check.
    Check(CheckReport),
    /// Of mending.
    Mend(MendReceipt),
    /// Of a prune.
    Prune(PruneReceipt),
    /// Of a listing.
    Listed(ListPage),
    /// Of a search.
    Found(FindPage),
}

/// What the caller of a failed job can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobFailureKind {
    /// Try again later.
    Retryable,
    /// Another attempt would fail alike.
    Permanent,
    /// It was asked to stop, and left nothing behind.
    Canceled,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFailure {
    /// What the caller can do.
    pub kind: JobFailureKind,
    /// The reason more exactly.
    pub reason: BackupRepositoryErrorKind,
    /// In words, without secrets.
    pub message: String,
}

impl From<&BackupRepositoryError> for JobFailure {
    fn from(error: &BackupRepositoryError) -> Self {
        let reason = error.kind();
        let kind = match reason {
            BackupRepositoryErrorKind::Canceled => JobFailureKind::Canceled,
            reason if reason.is_retryable() => JobFailureKind::Retryable,
            _ => JobFailureKind::Permanent,
        };
        Self { kind, reason, message: error.chain() }
    }
}

impl JobFailure {
    /// The process, not the job, went wrong.
    pub(crate) fn of_process(message: String) -> Self {
        Self { kind: JobFailureKind::Retryable, reason: BackupRepositoryErrorKind::ProcessEnded, message }
    }
}

/// What a job says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEvent {
    /// How far it is; at most ten times a second.
    Progress(JobProgress),
    /// It is done. The last event.
    Finished(JobResult),
    /// It has failed. The last event.
    Failed(JobFailure),
}

/// Does a job in this process. Blocks; `runtime` carries the requests. A panic of rustic_core goes through,
/// which is why services run jobs as [`JobProcess`](crate::JobProcess)es.
pub fn run_job(
    task: &JobTask,
    location: RepositoryLocation,
    runtime: Handle,
    progress: &Arc<dyn Progress>,
) -> Result<JobResult> {
    match task {
        JobTask::Backup(request) => {
            let repository = Repository::open_for_writing(location, runtime)?;
            repository.obey(progress.write_deadline());
            repository.back_up(request, progress).map(JobResult::Backup)
        }
        JobTask::Restore(request) => {
            let repository = Repository::open_for_reading(location, runtime)?;
            repository.restore(request, progress).map(JobResult::Restore)
        }
        JobTask::Preview(request) => Repository::open_for_reading(location, runtime)?
            .preview(request, progress)
            .map(JobResult::Preview),
        JobTask::Check { read_data, share } => Repository::open_for_reading(location, runtime)?
            .check_share(*read_data, *share)
            .map(JobResult::Check),
        JobTask::Mend { share } => {
            let repository = Repository::open_for_writing(location, runtime)?;
            repository.obey(progress.write_deadline());
            repository.mend(*share, progress.as_ref()).map(JobResult::Mend)
        }
        JobTask::Prune(request) => {
            let repository = Repository::open_for_writing(location, runtime)?;
            repository.obey(progress.write_deadline());
            repository.prune(request, progress.as_ref()).map(JobResult::Prune)
        }
        JobTask::List(_) | JobTask::Find(_) => {
            let browser = Repository::open_for_reading(location, runtime)?.into_browser()?;
            browse(task, &browser)
        }
    }
}

/// Does a job that only looks, in a repository that is open.
pub(crate) fn browse(task: &JobTask, browser: &Browser) -> Result<JobResult> {
    match task {
        JobTask::List(query) => browser.list_page(query).map(JobResult::Listed),
        JobTask::Find(query) => browser.find_page(query).map(JobResult::Found),
        JobTask::Backup(_)
        | JobTask::Restore(_)
        | JobTask::Preview(_)
        | JobTask::Check { .. }
        | JobTask::Mend { .. }
        | JobTask::Prune(_) => {
            let message = "it does more than look";
            Err(BackupRepositoryError::new(
                BackupRepositoryErrorKind::InvalidArgument,
                "browse",
                "a job",
                message,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use object_storage::LocalSettings;
    use rustic_core::repofile::MasterKey;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_request_survives_its_json_and_shows_no_key() {
        let request = JobRequest {
            provider: ProviderSettings::Local(LocalSettings { root: "/objects".into() }),
            bucket: "backups".into(),
            root: "rustic/project-x".into(),
            identity: RepositoryIdentity::new(Uuid::from_u128(1), Uuid::from_u128(2)),
            key: RepositoryKey::new(MasterKey::new()),
            cache: None,
            memory_limit_bytes: Some(1 << 30),
            stall_limit_s: Some(300.0),
            write_until: Some(WriteUntil::after(std::time::Duration::from_secs(60))),
            task: JobTask::Check { read_data: true, share: None },
        };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<JobRequest>(&json).unwrap(), request);
        assert!(format!("{request:?}").contains("RepositoryKey(redacted)"));
    }
}
