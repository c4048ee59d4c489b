//! The child's side of jobs: read a request, do it, say how it goes, wait for the next, never outlive the parent.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_storage::{BucketControl, ConnectOptions, ProviderSettings, RequestCounter, RequestCounts};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::Runtime;

use crate::browse::Browser;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::initialise::RepositoryIdentity;
use crate::job::{JobEvent, JobFailure, JobFailureKind, JobProgress, JobRequest, JobResult, browse, run_job};
use crate::repository::{Progress, Repository, RepositoryLocation};
use crate::repository_key::RepositoryKey;
use crate::write_deadline::{WriteDeadline, WriteUntil};

/// The pause between two progress events.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// The longest request, in bytes.
const LONGEST_REQUEST: u64 = 1024 * 1024;

/// The line that asks for an orderly end.
pub(crate) const CANCEL_LINE: &str = "cancel";

/// The word before the time until which the job may write.
pub(crate) const UNTIL_WORD: &str = "until";

/// The line that says that another request is taken.
pub(crate) const READY_LINE: &str = "ready";

/// So many jobs are done before the process makes way for a fresh one, whatever it has leaked by then.
const MOST_JOBS: u32 = 100;

/// A process that has taken more memory than this is not kept: an idle one is to cost next to nothing.
const MOST_KEPT_BYTES: u64 = 128 * 1024 * 1024;

/// As `MOST_KEPT_BYTES`, for one that keeps a repository open to look into.
const MOST_KEPT_WHILE_BROWSING: u64 = 256 * 1024 * 1024;

/// Does jobs as the child of a [`JobProcess`](crate::JobProcess): for a hidden subcommand of a service's own
/// program. Standard input and output belong to the protocol. A second job finds the process started, its
/// memory mapped and its connections to the object store open. The exit status is 0 only after a `finished`
/// event.
pub fn run_job_child() -> ExitCode {
    end_with_any_panic();
    let requests = hear_parent();
    let mut executor: Option<Executor> = None;
    let counter = RequestCounter::new();
    let mut jobs = 0;
    loop {
        // The end of the input ends the process elsewhere.
        let Some((request, progress)) = next_request(&requests, executor.as_ref()) else {
            return ExitCode::SUCCESS;
        };
        let browsing = request.as_ref().is_ok_and(|request| request.task.is_browsing());
        // Browsing is asked for a thousand times, and its memory is bounded.
        jobs += u32::from(!browsing);
        let events = Arc::new(EventWriter::default());
        let result = request.and_then(|request| {
            limit_resources(&request)?;
            report_progress(Arc::clone(&progress), Arc::clone(&counter), Arc::clone(&events));
            let executor = match &mut executor {
                Some(executor) => executor,
                none => none.insert(Executor::new(Arc::clone(&counter))?),
            };
            executor.run(request, progress)
        });
        let (event, status) = match result {
            Ok(result) => (JobEvent::Finished(result), ExitCode::SUCCESS),
            Err(failure) => (JobEvent::Failed(failure), ExitCode::FAILURE),
        };
        if events.write_last(&event).is_err() {
            return ExitCode::FAILURE;
        }
        let most_bytes = if browsing { MOST_KEPT_WHILE_BROWSING } else { MOST_KEPT_BYTES };
        let stays = status == ExitCode::SUCCESS && jobs < MOST_JOBS && resident_bytes() <= most_bytes;
        if !stays || write_line(READY_LINE.to_owned()).is_err() {
            return status;
        }
    }
}

/// The next request. Until it comes, what was listed is read ahead.
fn next_request(requests: &Receiver<HeardRequest>, executor: Option<&Executor>) -> Option<HeardRequest> {
    loop {
        match requests.try_recv() {
            Ok(request) => return Some(request),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        if !executor.is_some_and(Executor::read_ahead) {
            return requests.recv().ok();
        }
    }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| {
        let resident = text.split_whitespace().nth(1)?;
        resident.parse::<u64>().ok()
    });
    pages.map_or(u64::MAX, |pages| pages * rustix::param::page_size() as u64)
}

/// A panic in one of rustic's threads (no memory for another one, say) would leave the others waiting for it
/// forever. Here it ends the process, after its words, and the parent takes that for a retryable failure. Not
/// after a backtrace: that needs memory under a lock, and where there is none the thread waits for itself.
fn end_with_any_panic() {
    std::panic::set_hook(Box::new(|panic| {
        // A thread that has found more than anybody still wants to hear: nobody waits for it.
        if panic.payload_as_str().is_some_and(|text| text.contains("SendError")) {
            return;
        }
        // Standard error may be gone as well; the end is what counts.
        let _ = writeln!(io::stderr(), "{panic}");
        std::process::abort();
    }));
}

fn invalid(message: String) -> JobFailure {
    JobFailure { kind: JobFailureKind::Permanent, reason: Kind::InvalidArgument, message }
}

fn read_request(line: &str) -> std::result::Result<JobRequest, JobFailure> {
    // The parser's own message could quote a secret.
    serde_json::from_str(line).map_err(|error| {
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

type HeardRequest = (std::result::Result<JobRequest, JobFailure>, Arc<ChildProgress>);

/// Hears requests, and `cancel` for the latest of them; at the end of the input, the parent is gone and
/// nobody wants any job any more.
fn hear_parent() -> Receiver<HeardRequest> {
    let (sender, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut latest = Arc::new(ChildProgress::default());
        let mut input = io::stdin().lock();
        loop {
            let mut line = String::new();
            match io::Read::take(&mut input, LONGEST_REQUEST).read_line(&mut line) {
                Ok(0) | Err(_) => std::process::abort(),
                Ok(_) if line.trim() == CANCEL_LINE => latest.canceled.store(true, Ordering::SeqCst),
                Ok(_) if line.starts_with(UNTIL_WORD) => {
                    let milliseconds = line.trim_start_matches(UNTIL_WORD).trim().parse();
                    // A line that does not read gives no time.
                    let until = milliseconds.map(WriteUntil::from_milliseconds);
                    latest.deadline.set(until.unwrap_or(WriteUntil::now()));
                }
                Ok(_) => {
                    latest = Arc::new(ChildProgress::default());
                    let request = read_request(&line);
                    // Here, so that a line that moves it cannot come earlier.
                    if let Ok(Some(until)) = request.as_ref().map(|request| request.write_until) {
                        latest.deadline.set(until);
                    }
                    // Nobody receives any more: the process is ending.
                    let _ = sender.send((request, Arc::clone(&latest)));
                }
            }
        }
    });
    requests
}

fn report_progress(progress: Arc<ChildProgress>, counter: Arc<RequestCounter>, events: Arc<EventWriter>) {
    std::thread::spawn(move || {
        let mut last = JobProgress::default();
        loop {
            std::thread::sleep(PROGRESS_PAUSE);
            let mut now = progress.now();
            let RequestCounts { put, get, head, list, delete, received_bytes, .. } = counter.counts();
            now.steps += put + get + head + list + delete + received_bytes;
            if now != last {
                last = now;
                match events.write(&JobEvent::Progress(now)) {
                    Ok(Written::Written) => {}
                    Ok(Written::JobHasEnded) => return,
                    // Nobody reads any more.
                    Err(_) => std::process::abort(),
                }
            }
        }
    });
}

/// What serves job after job: the runtime that carries requests, and the latest object store, connected.
struct Executor {
    runtime: Runtime,
    store: Option<(ProviderSettings, Arc<dyn BucketControl>)>,
    counter: Arc<RequestCounter>,
    /// The repository that was looked into last, open.
    browser: Option<(OpenRepository, Browser)>,
}

/// What a repository was opened as. For other credentials it is opened again.
#[derive(PartialEq)]
struct OpenRepository {
    provider: ProviderSettings,
    bucket: String,
    root: String,
    identity: RepositoryIdentity,
    key: RepositoryKey,
}

impl Executor {
    fn new(counter: Arc<RequestCounter>) -> std::result::Result<Self, JobFailure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| JobFailure::of_process(format!("the runtime cannot start: {error}")))?;
        Ok(Self { runtime, store: None, counter, browser: None })
    }

    fn connected(&mut self, provider: ProviderSettings) -> Result<Arc<dyn BucketControl>> {
        match &self.store {
            Some((settings, store)) if *settings == provider => Ok(Arc::clone(store)),
            _ => {
                let request_counter = Some(Arc::clone(&self.counter));
                let options = ConnectOptions { request_counter, ..ConnectOptions::default() };
                let store = self
                    .runtime
                    .block_on(async { provider.connect_with(options) })
                    .map_err(|error| BackupRepositoryError::from_storage("connect", error))?;
                self.store = Some((provider, Arc::clone(&store)));
                Ok(store)
            }
        }
    }

    fn run(
        &mut self,
        request: JobRequest,
        progress: Arc<ChildProgress>,
    ) -> std::result::Result<JobResult, JobFailure> {
        if request.task.is_browsing() {
            return self.browse(request).map_err(|error| JobFailure::from(&error));
        }
        self.browser = None;
        let store = self.connected(request.provider).map_err(|error| JobFailure::from(&error))?;
        let location = RepositoryLocation {
            store: store.open_bucket(&request.bucket),
            root: request.root,
            identity: request.identity,
            key: request.key,
            cache: request.cache,
        };
        let handle = self.runtime.handle().clone();
        let progress: Arc<dyn Progress> = progress;
        run_job(&request.task, location, handle, &progress).map_err(|error| JobFailure::from(&error))
    }
}

impl Executor {
    /// Looks into a repository, in the one that is open if it is the same. An open one does not know what was
    /// stored since, and counts on what may have been pruned since: where it misses something, it is opened again.
    fn browse(&mut self, request: JobRequest) -> Result<JobResult> {
        let wanted = OpenRepository {
            provider: request.provider.clone(),
            bucket: request.bucket.clone(),
            root: request.root.clone(),
            identity: request.identity.clone(),
            key: request.key.clone(),
        };
        if let Some((opened, browser)) = self.browser.take()
            && opened == wanted
        {
            match browse(&request.task, &browser) {
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => {}
                result => {
                    browser.trim_cache();
                    self.browser = Some((opened, browser));
                    return result;
                }
            }
        }
        let store = self.connected(request.provider)?;
        let location = RepositoryLocation {
            store: store.open_bucket(&request.bucket),
            root: request.root,
            identity: request.identity,
            key: request.key,
            cache: request.cache,
        };
        let handle = self.runtime.handle().clone();
        let browser = Repository::open_for_reading(location, handle)?.into_browser()?;
        let result = browse(&request.task, &browser);
        browser.trim_cache();
        self.browser = Some((wanted, browser));
        result
    }

    /// Whether there was something to read ahead.
    fn read_ahead(&self) -> bool {
        self.browser.as_ref().is_some_and(|(_, browser)| browser.read_ahead())
    }
}

/// Writes events line by line; nothing comes after the last one.
#[derive(Debug, Default)]
struct EventWriter {
    ended: Mutex<bool>,
}

enum Written {
    Written,
    JobHasEnded,
}

impl EventWriter {
    fn write(&self, event: &JobEvent) -> io::Result<Written> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended { Ok(Written::JobHasEnded) } else { write_event(event).map(|()| Written::Written) }
    }

    fn write_last(&self, event: &JobEvent) -> io::Result<()> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        write_event(event)
    }
}

fn write_event(event: &JobEvent) -> io::Result<()> {
    write_line(serde_json::to_string(event)?)
}

fn write_line(mut line: String) -> io::Result<()> {
    line.push('\n');
    let mut output = io::stdout().lock();
    output.write_all(line.as_bytes())?;
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
    steps: AtomicU64,
    canceled: AtomicBool,
    deadline: WriteDeadline,
}

impl Default for ChildProgress {
    fn default() -> Self {
        Self {
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total_files: AtomicU64::new(UNKNOWN),
            total_bytes: AtomicU64::new(UNKNOWN),
            steps: AtomicU64::new(0),
            canceled: AtomicBool::new(false),
            deadline: WriteDeadline::default(),
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
            steps: self.steps.load(Ordering::Relaxed),
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
        // Asked before every step, whatever it is: that it goes on shows here.
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.canceled.load(Ordering::SeqCst)
    }

    fn write_deadline(&self) -> WriteDeadline {
        self.deadline.clone()
    }
}
