//! Answers the registry's questions about what is in a backup, on a host or in the hub, and turns a grant into a
//! job on its repository.
//!
//! A listing that takes a process start, an opening and a read of the index takes a hundred milliseconds, and people
//! click faster than that; a browser that asks for everything at once takes a service's memory. So what looks is a
//! child process with a limit of its own, which stays open for a minute, and how many there are is bounded.
//!
//! Nothing is kept here. The way in comes with each question and lives no longer than the open process; what was
//! asked for has been authorized by the registry, the only one whose credentials reach this subject.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use backup_repository::{
    BackupRepositoryErrorKind, BrowseProcesses, CacheSettings, EntryKind, FindQuery, JobFailure,
    JobFailureKind, JobRequest, JobResult, JobTask, ListQuery, PageEntry, RepositoryIdentity, SnapshotId,
    SnapshotPath,
};
use bus_client::{EndpointDefinition, IncomingRequest, Reply};
use bus_messages::{
    ApiError, BackupEntry, BackupEntryKind, BrowseQuery, BrowseReply, BrowseRequest, DirectoryListing,
    ErrorCode, ObjectStoreGrant, PathMatch, RepositoryGrant,
};
use bus_subjects::BrowseSubject;
use domain_model::{BackupId, Routing, Timestamp};
use object_storage::{LocalSettings, ProviderSettings, S3Settings};
use time::OffsetDateTime;

/// A question that has not been answered by then is given up, and its process ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions answered at the same time.
const CONCURRENCY: usize = 16;

/// How a service looks into backups.
#[derive(Debug, Clone)]
pub struct Browsing {
    processes: BrowseProcesses,
    cache: CacheSettings,
    memory_bytes: u64,
}

impl Browsing {
    /// With child processes of `program` with `arguments`, each with so much memory, one for each repository that
    /// is being looked into, `most` of them at a time.
    pub fn new(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        most: usize,
        cache: CacheSettings,
        memory_bytes: u64,
    ) -> Self {
        Self { processes: BrowseProcesses::new(program, arguments, most), cache, memory_bytes }
    }

    /// Answers one question of the registry.
    ///
    /// # Errors
    /// 404 for a path that there is not, 400 for a cursor that no page gave, 412 for a repository that does not
    /// read; retryable ones for what may go better elsewhere or later.
    pub async fn answer(self, request: IncomingRequest) -> Result<Reply, ApiError> {
        let asked: BrowseRequest = request.decode()?;
        let reply = tokio::time::timeout(PATIENCE, self.look(&asked));
        let reply = reply.await.map_err(|_| {
            ApiError::new(ErrorCode::Unavailable, "looking into the backup has taken too long; try again")
        })??;
        Ok(request.reply(&reply))
    }

    async fn look(&self, asked: &BrowseRequest) -> Result<BrowseReply, ApiError> {
        let task = task_of(&asked.query)?;
        let job = job_request(&asked.grant, &self.cache, self.memory_bytes, task)?;
        match self.processes.look(&job).await.map_err(|failure| error_of(&failure))? {
            JobResult::Listed(page) if !page.exists => {
                Err(ApiError::not_found("there is no such path in this backup"))
            }
            JobResult::Listed(page) => Ok(BrowseReply::Listed(DirectoryListing {
                entries: page.entries.into_iter().map(entry_of).collect(),
                next_cursor: page.next,
            })),
            JobResult::Found(page) => {
                let found = page.matches.into_iter().map(|(id, entry)| match_of(&id, entry));
                Ok(BrowseReply::Found {
                    matches: found.collect::<Result<_, _>>()?,
                    stopped: page
                        .stopped
                        .map(|(id, after)| Ok::<_, ApiError>((backup_id(&id)?, after)))
                        .transpose()?,
                })
            }
            _ => Err(ApiError::new(ErrorCode::Internal, "the job answered with something else")),
        }
    }
}

/// The endpoint of whoever answers for this routing.
pub fn endpoint(server: Routing) -> EndpointDefinition {
    EndpointDefinition {
        name: "browse",
        subject: BrowseSubject { server }.to_string(),
        queue_group: "browse".to_owned(),
        metadata: BTreeMap::new(),
        concurrency: CONCURRENCY,
    }
}

/// A job on the repository that a grant leads to.
///
/// # Errors
/// A key that does not read.
pub fn job_request(
    grant: &RepositoryGrant,
    cache: &CacheSettings,
    memory_bytes: u64,
    task: JobTask,
) -> Result<JobRequest, ApiError> {
    let key = serde_json::from_str(grant.master_key.expose()).map_err(|error| {
        // Its text could quote the key.
        tracing::error!(
            line = error.line(),
            column = error.column(),
            "the key of a repository does not read"
        );
        ApiError::new(ErrorCode::FailedPrecondition, "the key of the repository does not read")
    })?;
    Ok(JobRequest {
        provider: provider_of(&grant.object_store),
        bucket: grant.bucket.clone(),
        root: grant.root.clone(),
        identity: RepositoryIdentity::new(grant.repository_id.as_uuid(), grant.project_id.as_uuid()),
        key,
        cache: Some(cache.clone()),
        memory_limit_bytes: Some(memory_bytes),
        stall_limit_s: None,
        write_until: None,
        task,
    })
}

fn provider_of(grant: &ObjectStoreGrant) -> ProviderSettings {
    match grant {
        ObjectStoreGrant::Local { root } => ProviderSettings::Local(LocalSettings { root: root.into() }),
        ObjectStoreGrant::S3 {
            endpoint,
            region,
            access_key_id,
            secret_access_key,
            session_token,
            path_style,
        } => ProviderSettings::S3(S3Settings {
            endpoint: endpoint.clone(),
            region: region.clone(),
            access_key_id: access_key_id.clone(),
            secret_access_key: secret_access_key.expose().into(),
            session_token: session_token.as_ref().map(|token| token.expose().into()),
            path_style: *path_style,
        }),
    }
}

fn snapshot_of(id: &BackupId) -> Result<SnapshotId, ApiError> {
    id.as_str().parse().map_err(ApiError::invalid_argument)
}

fn backup_id(id: &SnapshotId) -> Result<BackupId, ApiError> {
    id.to_string().parse().map_err(|error| ApiError::new(ErrorCode::Internal, format!("{error}")))
}

fn task_of(query: &BrowseQuery) -> Result<JobTask, ApiError> {
    Ok(match query {
        BrowseQuery::List { backup_id, path, depth, limit, after } => JobTask::List(ListQuery {
            snapshot: snapshot_of(backup_id)?,
            path: match path {
                Some(path) => Some(
                    SnapshotPath::try_from(PathBuf::from(path.to_string()))
                        .map_err(ApiError::invalid_argument)?,
                ),
                None => None,
            },
            depth: *depth,
            limit: *limit,
            after: after.clone(),
        }),
        BrowseQuery::Find { glob, backups, limit, after } => JobTask::Find(FindQuery {
            glob: glob.clone(),
            snapshots: backups.iter().map(snapshot_of).collect::<Result<_, _>>()?,
            limit: *limit,
            after: after.clone(),
        }),
    })
}

fn error_of(failure: &JobFailure) -> ApiError {
    let code = match (failure.reason, failure.kind) {
        (BackupRepositoryErrorKind::InvalidArgument, _) => ErrorCode::InvalidArgument,
        (_, JobFailureKind::Retryable | JobFailureKind::Canceled) => ErrorCode::Unavailable,
        (_, JobFailureKind::Permanent) => ErrorCode::FailedPrecondition,
    };
    ApiError::new(code, format!("the backup cannot be looked into: {}", failure.message))
}

fn moment(milliseconds: i64) -> Timestamp {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000);
    // A time that RFC 3339 cannot say.
    moment
        .ok()
        .filter(|moment| (0..=9999).contains(&moment.year()))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .into()
}

fn entry_of(entry: PageEntry) -> BackupEntry {
    BackupEntry {
        name: entry.path,
        kind: match entry.kind {
            EntryKind::File => BackupEntryKind::File,
            EntryKind::Dir => BackupEntryKind::Dir,
            EntryKind::Symlink => BackupEntryKind::Symlink,
            EntryKind::Other => BackupEntryKind::Other,
        },
        size_bytes: entry.size_bytes,
        mtime: moment(entry.mtime_ms),
        mode: entry.mode,
    }
}

fn match_of(id: &SnapshotId, entry: PageEntry) -> Result<PathMatch, ApiError> {
    Ok(PathMatch {
        backup_id: backup_id(id)?,
        path: entry.path,
        size_bytes: entry.size_bytes,
        mtime: moment(entry.mtime_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_cannot_be_said_is_no_error() {
        assert_eq!(moment(1_795_246_707_123).to_string(), "2026-11-21T07:38:27.123Z");
        for out_of_range in [i64::MAX, i64::MIN, 300_000_000_000_000] {
            assert_eq!(moment(out_of_range).to_string(), "1970-01-01T00:00:00.000Z");
        }
    }
}
