//! Looking into repositories from a service, in child processes that stay open for the next look.
//!
//! A listing takes a millisecond where the repository is open and its index read, and a hundred where it is not.
//! So each repository that somebody looks into has a process of its own, which does one look after another, is kept
//! for a minute, and holds bounded memory. There are only so many: the one that was asked longest ago makes way.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use uuid::Uuid;

use crate::job::{JobEvent, JobFailure, JobRequest, JobResult};
use crate::job_process::JobProcesses;

/// Processes that look into repositories. Its clones share them.
#[derive(Debug, Clone)]
pub struct BrowseProcesses(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    new: JobProcesses,
    most: usize,
    open: Mutex<HashMap<Uuid, Opened>>,
}

#[derive(Debug)]
struct Opened {
    used: Instant,
    /// One look after another: they are short, and a second process would have to open it again.
    processes: Arc<tokio::sync::Mutex<JobProcesses>>,
}

impl BrowseProcesses {
    /// They will run `program` with `arguments`, which must lead to [`run_job_child`](crate::run_job_child); at
    /// most `most` of them at a time.
    pub fn new(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        most: usize,
    ) -> Self {
        let new = JobProcesses::new(program, arguments);
        Self(Arc::new(Shared { new, most: most.max(1), open: Mutex::default() }))
    }

    /// Does a job that only looks. Dropping the future kills the process.
    ///
    /// # Errors
    /// Whatever the job failed with.
    pub async fn look(&self, request: &JobRequest) -> Result<JobResult, JobFailure> {
        let processes = self.processes_of(request.identity.repository_id).lock_owned().await;
        let mut job = processes.start(request).map_err(|error| JobFailure::from(&error))?;
        loop {
            match job.next_event().await {
                Some(JobEvent::Progress(_)) => {}
                Some(JobEvent::Finished(result)) => {
                    // The next look waits until this process takes it, instead of starting another.
                    tokio::spawn(async move {
                        job.settled().await;
                        drop(processes);
                    });
                    return Ok(result);
                }
                Some(JobEvent::Failed(failure)) => return Err(failure),
                None => return Err(JobFailure::of_process("the job ended without a word".to_owned())),
            }
        }
    }

    fn processes_of(&self, repository: Uuid) -> Arc<tokio::sync::Mutex<JobProcesses>> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !open.contains_key(&repository)
            && open.len() >= self.0.most
            && let Some(oldest) = open.iter().min_by_key(|(_, opened)| opened.used).map(|(id, _)| *id)
        {
            open.remove(&oldest);
        }
        let opened = open.entry(repository).or_insert_with(|| Opened {
            used: Instant::now(),
            processes: Arc::new(tokio::sync::Mutex::new(self.0.new.like())),
        });
        opened.used = Instant::now();
        Arc::clone(&opened.processes)
    }
}
