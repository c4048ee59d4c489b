//! What this host knows of its own jobs, apart from the hub: one small file a job, written before the work
//! begins and after each change.
//!
//! Without it, a host that was killed comes back without a memory of what it was doing: the hub would wait
//! for the lease to end, and nobody could say on the host what had happened. With it, the host says at its
//! next start what became of each job, and the hub goes on at once.
//!
//! A crash between two writes leaves the older state, which is `pending` or `running`, and so is ended at the
//! next start. A file holds its lease, so only the host itself may read it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bus_client::Bus;
use bus_messages::{Encoding, FinishError, FinishReply, FinishRequest, Outcome};
use bus_subjects::WorkSubject;
use domain_model::{LeaseId, OperationId, OperationKind, ProjectId, Routing, Timestamp};
use operation_engine::{OperationContext, OperationFailure};
use serde::{Deserialize, Serialize};

/// Ended jobs that are remembered.
const REMEMBERED: usize = 1000;

/// The state of a job on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Claimed, not begun.
    Pending,
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Not done; see the error.
    Failed,
    /// Stopped because somebody asked.
    Canceled,
}

/// One attempt of an operation on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// The operation.
    pub op_id: OperationId,
    /// The attempt.
    pub attempt: u32,
    /// The lease, with which a restarted host can say what became of it.
    pub lease_id: LeaseId,
    /// The kind.
    pub kind: OperationKind,
    /// The project.
    pub project_id: ProjectId,
    /// The state.
    pub state: JobState,
    /// When it was claimed.
    pub created_at: Timestamp,
    /// When work began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The bucket of the repository.
    pub bucket: Option<String>,
    /// Files done.
    pub files: u64,
    /// Bytes done.
    pub bytes: u64,
    /// Why it failed.
    pub error: Option<String>,
}

impl JobRecord {
    fn has_ended(&self) -> bool {
        !matches!(self.state, JobState::Pending | JobState::Running)
    }
}

/// The records of a service on a host, in a directory of its own.
#[derive(Debug, Clone)]
pub struct JobRecords {
    directory: PathBuf,
}

impl JobRecords {
    /// Opens the records in a directory, making it where it is missing.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Writes a record, whole or not at all. It is to outlast this process; should the machine itself go down before it is on
    /// the disk, the hub waits for the lease to end.
    pub fn write(&self, record: &JobRecord) -> io::Result<()> {
        let path = self.directory.join(format!("{}-{}.json", record.op_id, record.attempt));
        let temporary = path.with_extension("json.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        drop(file);
        fs::rename(&temporary, &path)
    }

    /// All records that read, oldest first. One that does not is logged and left.
    pub fn list(&self) -> io::Result<Vec<JobRecord>> {
        let mut records: Vec<JobRecord> = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a job record does not read"),
            }
        }
        records.sort_by_key(|record| (record.created_at, record.op_id, record.attempt));
        Ok(records)
    }

    /// Ends what was pending or running when the service was stopped, and tells the hub, so that it need not wait for
    /// their leases to end; where it does not listen, it waits.
    pub async fn end_interrupted(&self, bus: &Bus, caller: Routing) -> io::Result<()> {
        for record in self.end_interrupted_at(now())? {
            let request = FinishRequest {
                error: Some(FinishError {
                    code: "interrupted".to_owned(),
                    message: "the service on the host was restarted in the middle of it".to_owned(),
                    retryable: true,
                }),
                ..FinishRequest::new(record.op_id, record.attempt, record.lease_id, Outcome::Failed)
            };
            let subject = WorkSubject::new(caller, "finish").to_string();
            let told: Result<FinishReply, _> =
                bus.request(subject, &request, Encoding::MessagePack, Duration::from_secs(5)).await;
            tracing::warn!(
                op.id = %record.op_id, op.attempt = record.attempt, told = told.is_ok_and(|reply| reply.ok),
                "a job was interrupted by a restart"
            );
        }
        Ok(())
    }

    /// Ends what was pending or running when the service was stopped, and forgets the oldest of many. Returns
    /// the jobs that it ended.
    fn end_interrupted_at(&self, now: Timestamp) -> io::Result<Vec<JobRecord>> {
        let records = self.list()?;
        let mut interrupted = Vec::new();
        for mut record in records.iter().filter(|record| !record.has_ended()).cloned() {
            record.state = JobState::Failed;
            record.finished_at = Some(now);
            record.error = Some("interrupted: host-backup was restarted".to_owned());
            self.write(&record)?;
            interrupted.push(record);
        }
        let ended: Vec<&JobRecord> = records.iter().filter(|record| record.has_ended()).collect();
        for old in &ended[..ended.len().saturating_sub(REMEMBERED)] {
            fs::remove_file(self.directory.join(format!("{}-{}.json", old.op_id, old.attempt)))?;
        }
        Ok(interrupted)
    }
}

/// The record of a job, kept up to date. A record that cannot be written is logged: it never fails a job.
#[derive(Debug)]
pub struct Record {
    records: JobRecords,
    record: JobRecord,
}

impl Record {
    /// Begins the record of an attempt, before its work begins.
    pub fn begin(records: &JobRecords, operation: &OperationContext, project_id: ProjectId) -> Self {
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
        let record = Self { records: records.clone(), record };
        record.write();
        record
    }

    /// Its work has begun.
    pub fn started(&mut self, bucket: &str) {
        self.record.state = JobState::Running;
        self.record.started_at = Some(now());
        self.record.bucket = Some(bucket.to_owned());
        self.write();
    }

    /// It has ended, with so much done.
    pub fn ended<T>(mut self, outcome: &Result<T, OperationFailure>, files: u64, bytes: u64) {
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

/// The host's clock: dates of its own records, never of a lease.
fn now() -> Timestamp {
    Timestamp::from_date_time(SystemTime::now().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u32, state: JobState) -> JobRecord {
        let id = format!("0199c4a2-7c1e-7d6b-9d0c-{n:012x}");
        JobRecord {
            op_id: id.parse().unwrap(),
            attempt: 1,
            lease_id: id.parse().unwrap(),
            kind: "project-backup".parse().unwrap(),
            project_id: id.parse().unwrap(),
            state,
            created_at: format!("2026-11-21T07:{:02}:{:02}Z", n / 60, n % 60).parse().unwrap(),
            started_at: None,
            finished_at: None,
            bucket: None,
            files: 0,
            bytes: 0,
            error: None,
        }
    }

    #[test]
    fn a_restart_ends_what_was_under_way_and_only_that() {
        let root = tempfile::tempdir().unwrap();
        let records = JobRecords::open(&root.path().join("jobs")).unwrap();
        for (n, state) in [(1, JobState::Pending), (2, JobState::Running), (3, JobState::Succeeded)] {
            records.write(&record(n, state)).unwrap();
        }
        fs::write(root.path().join("jobs/torn.json"), "{").unwrap();
        let now = "2026-11-21T08:00:00Z".parse().unwrap();
        let interrupted = records.end_interrupted_at(now).unwrap();
        assert_eq!(interrupted.len(), 2);
        let states: Vec<JobState> = records.list().unwrap().iter().map(|record| record.state).collect();
        assert_eq!(states, [JobState::Failed, JobState::Failed, JobState::Succeeded]);
        assert!(records.end_interrupted_at(now).unwrap().is_empty(), "a second restart has nothing to say");
    }

    #[test]
    fn old_records_are_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let records = JobRecords::open(&root.path().join("jobs")).unwrap();
        for n in 0..REMEMBERED + 5 {
            records.write(&record(u32::try_from(n).unwrap(), JobState::Succeeded)).unwrap();
        }
        records.end_interrupted_at("2026-11-21T09:00:00Z".parse().unwrap()).unwrap();
        let left = records.list().unwrap();
        assert_eq!(left.len(), REMEMBERED);
        assert_eq!(left[0].op_id, record(5, JobState::Succeeded).op_id);
    }
}
