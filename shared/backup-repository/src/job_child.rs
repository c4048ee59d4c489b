//! The child's side of a job: read the request, do it, say how it goes, never outlive the parent.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::job::{JobEvent, JobFailure, JobFailureKind, JobProgress, JobRequest, JobResult, run_job};
use crate::repository::{Progress, RepositoryLocation};

/// The pause between two progress events.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// The longest request, in bytes.
const LONGEST_REQUEST: u64 = 1024 * 1024;

/// The line that asks for an orderly end.
pub(crate) const CANCEL_LINE: &str = "cancel";

/// Does one job as the child of a [`JobProcess`](crate::JobProcess): for a hidden subcommand of a service's
/// own program. Standard input and output belong to the protocol. The exit status is 0 only after a
/// `finished` event.
pub fn run_job_child() -> ExitCode {
    end_with_any_panic();
    let events = Arc::new(EventWriter::default());
    let progress = Arc::new(ChildProgress::default());
    let result = read_request().and_then(|request| {
        limit_resources(&request)?;
        watch_parent(Arc::clone(&progress));
        report_progress(Arc::clone(&progress), Arc::clone(&events));
        run(request, progress)
    });
    let (event, status) = match result {
        Ok(result) => (JobEvent::Finished(result), ExitCode::SUCCESS),
        Err(failure) => (JobEvent::Failed(failure), ExitCode::FAILURE),
    };
    if events.write_last(&event).is_err() {
        return ExitCode::FAILURE;
    }
    status
}

/// A panic in one of rustic's threads (no memory for another one, say) would leave the others waiting for it
/// forever. Here it ends the process, after its words, and the parent takes that for a retryable failure. Not
/// after a backtrace: that needs memory under a lock, and where there is none the thread waits for itself.
fn end_with_any_panic() {
    std::panic::set_hook(Box::new(|panic| {
        // Standard error may be gone as well; the end is what counts.
        let _ = writeln!(io::stderr(), "{panic}");
        std::process::abort();
    }));
}

fn invalid(message: String) -> JobFailure {
    JobFailure { kind: JobFailureKind::Permanent, reason: Kind::InvalidArgument, message }
}

fn read_request() -> std::result::Result<JobRequest, JobFailure> {
    let mut line = String::new();
    io::Read::take(io::stdin().lock(), LONGEST_REQUEST)
        .read_line(&mut line)
        .map_err(|error| JobFailure::of_process(format!("the request cannot be read: {error}")))?;
    // The parser's own message could quote a secret.
    serde_json::from_str(&line).map_err(|error| {
        invalid(format!("the request is not understood (line {}, column {})", error.line(), error.column()))
    })
}

fn limit_resources(request: &JobRequest) -> std::result::Result<(), JobFailure> {
    let set = |resource, limit: Rlimit| {
        rustix::process::setrlimit(resource, limit)
            .map_err(|error| JobFailure::of_process(format!("a resource limit cannot be set: {error}")))
    };
    // A dump of this process would hold the key.
    set(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A walk holds a descriptor for each level of directories.
    let files = rustix::process::getrlimit(Resource::Nofile);
    set(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })?;
    if let Some(limit) = request.memory_limit_bytes {
        // RLIMIT_DATA counts private writable memory, so that neither mapped libraries nor the stacks'
        // reserved addresses come into it, as they would with RLIMIT_AS.
        set(Resource::Data, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    Ok(())
}

/// Hears `cancel`; at the end of the input, the parent is gone and nobody wants this job any more.
fn watch_parent(progress: Arc<ChildProgress>) {
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_ok_and(|line| line.trim() == CANCEL_LINE) {
                progress.canceled.store(true, Ordering::SeqCst);
            } else {
                break;
            }
        }
        std::process::abort();
    });
}

fn report_progress(progress: Arc<ChildProgress>, events: Arc<EventWriter>) {
    std::thread::spawn(move || {
        let mut last = JobProgress::default();
        loop {
            std::thread::sleep(PROGRESS_PAUSE);
            let now = progress.now();
            if now != last {
                last = now;
                if events.write(&JobEvent::Progress(now)).is_err() {
                    // Nobody reads any more.
                    std::process::abort();
                }
            }
        }
    });
}

fn run(request: JobRequest, progress: Arc<ChildProgress>) -> std::result::Result<JobResult, JobFailure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| JobFailure::of_process(format!("the runtime cannot start: {error}")))?;
    let handle = runtime.handle().clone();
    let job = std::thread::spawn(move || -> Result<JobResult> {
        let store = handle
            .block_on(async { request.provider.connect() })
            .map_err(|error| BackupRepositoryError::from_storage("connect", error))?
            .open_bucket(&request.bucket);
        let location = RepositoryLocation {
            store,
            root: request.root,
            identity: request.identity,
            key: request.key,
            cache: request.cache,
        };
        let progress: Arc<dyn Progress> = progress;
        run_job(&request.task, location, handle, &progress)
    });
    let result = match job.join() {
        Ok(result) => result.map_err(|error| JobFailure::from(&error)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(JobFailure::of_process(format!("the job panicked: {text}")))
        }
    };
    runtime.shutdown_background();
    result
}

/// Writes events line by line; nothing comes after the last one.
#[derive(Debug, Default)]
struct EventWriter {
    ended: Mutex<bool>,
}

impl EventWriter {
    fn write(&self, event: &JobEvent) -> io::Result<()> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended { Ok(()) } else { write_line(event) }
    }

    fn write_last(&self, event: &JobEvent) -> io::Result<()> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        write_line(event)
    }
}

fn write_line(event: &JobEvent) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}

/// Unknown totals.
const UNKNOWN: u64 = u64::MAX;

#[derive(Debug)]
struct ChildProgress {
    files: AtomicU64,
    bytes: AtomicU64,
    total_files: AtomicU64,
    total_bytes: AtomicU64,
    canceled: AtomicBool,
}

impl Default for ChildProgress {
    fn default() -> Self {
        Self {
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total_files: AtomicU64::new(UNKNOWN),
            total_bytes: AtomicU64::new(UNKNOWN),
            canceled: AtomicBool::new(false),
        }
    }
}

impl ChildProgress {
    fn now(&self) -> JobProgress {
        let total = |total: &AtomicU64| Some(total.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN);
        JobProgress {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            total_files: total(&self.total_files),
            total_bytes: total(&self.total_bytes),
        }
    }
}

impl Progress for ChildProgress {
    fn scanned(&self, files: u64, bytes: u64) {
        self.total_files.store(files, Ordering::Relaxed);
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    fn stored(&self, files: u64, bytes: u64) {
        // Several threads report: an older number must not overwrite a newer one.
        self.files.fetch_max(files, Ordering::Relaxed);
        self.bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::SeqCst)
    }
}
