//! The parent's side of jobs: child processes that can be stopped, that cannot hurt the service, and whose end
//! is always known.
//!
//! rustic_core panics, has no way to cancel and takes the memory it likes: in a process of its own, all of
//! that is a retryable failure. The child is killed when its handle is dropped, and ends by itself when the
//! parent dies, because its standard input ends then (the kernel's death signal is no help: it follows the
//! parent's *thread*, and a runtime's threads come and go).
//!
//! A child does one job at a time. One that has ended a job with success is kept warm for a minute: starting a
//! process and connecting it costs more than a small backup. Any other end is the end of the process, too.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::job::{JobEvent, JobFailure, JobFailureKind, JobRequest};
use crate::job_child::{CANCEL_LINE, READY_LINE, UNTIL_WORD};
use crate::write_deadline::WriteUntil;

/// How long a process may take for what is no work: to end, or to say that it takes another job.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what a process wrote last may be on its way.
const PATIENCE_FOR_LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a process without a job is kept.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// The longest part of the child's last words that is passed on, in characters.
const LAST_WORDS_CHARS: usize = 300;

/// Starts jobs, in processes that are kept for the next one. Its clones share them; the last one to go ends
/// those that are idle.
#[derive(Debug, Clone)]
pub struct JobProcesses(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// The one that was used last is at the end.
    idle: Mutex<Vec<(Instant, JobChild)>>,
}

/// A process that takes requests.
#[derive(Debug)]
struct JobChild {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    last_words: Arc<Mutex<String>>,
    /// Ends when all of them are read.
    listening: Option<JoinHandle<()>>,
    /// The limit that it was started with, which cannot be raised again.
    memory_limit_bytes: Option<u64>,
}

impl JobProcesses {
    /// Jobs will be done by `program` with `arguments`, which must lead to
    /// [`run_job_child`](crate::run_job_child).
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        Self(Arc::new(Pool { program: program.into(), arguments, idle: Mutex::default() }))
    }

    /// Others of the same program, which share none with these.
    pub(crate) fn like(&self) -> Self {
        Self::new(self.0.program.clone(), &self.0.arguments)
    }

    /// Starts a job. Call it inside a runtime.
    pub fn start(&self, request: &JobRequest) -> Result<JobProcess> {
        let mut line = serde_json::to_vec(request)
            .map_err(|error| self.0.fail("its request cannot be written").with_source(error))?;
        line.push(b'\n');
        let child = match self.0.take_idle(request.memory_limit_bytes) {
            Some(child) => child,
            None => self.0.spawn(request.memory_limit_bytes)?,
        };
        let process_id = child.process.id();
        let (sender, events) = mpsc::channel(64);
        let (cancel, canceled) = watch::channel(None);
        let (until, moved) = watch::channel(request.write_until);
        let pool = Arc::downgrade(&self.0);
        let supervisor = Supervisor {
            child,
            sender,
            cancel: canceled,
            until: moved,
            stall_limit: request.stall_limit_s.and_then(|limit| Duration::try_from_secs_f64(limit).ok()),
            pool,
        };
        let supervisor = tokio::spawn(supervisor.run(line)).abort_handle();
        Ok(JobProcess { process_id, events, cancel, until, supervisor, ended: false })
    }
}

impl Pool {
    fn fail(&self, message: &str) -> BackupRepositoryError {
        BackupRepositoryError::new(Kind::Retryable, "start job", self.program.display(), message)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, JobChild)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self, memory_limit_bytes: Option<u64>) -> Option<JobChild> {
        let mut idle = self.idle();
        idle.retain_mut(|(_, child)| matches!(child.process.try_wait(), Ok(None)));
        let fits = idle.iter().rposition(|(_, child)| child.memory_limit_bytes == memory_limit_bytes)?;
        Some(idle.remove(fits).1)
    }

    /// Keeps a process for the next job, for a while.
    fn keep(self: &Arc<Self>, child: JobChild) {
        self.idle().push((Instant::now(), child));
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(IDLE_TIME).await;
            if let Some(pool) = pool.upgrade() {
                pool.idle().retain(|(since, _)| since.elapsed() < IDLE_TIME);
            }
        });
    }

    fn spawn(&self, memory_limit_bytes: Option<u64>) -> Result<JobChild> {
        let mut process = Command::new(&self.program)
            .args(&self.arguments)
            // Times in a snapshot carry the offset of the local zone; the same tree has to give the same bytes.
            // Empty is UTC without a search through the zones' files.
            .env("TZ", "")
            // glibc keeps freed memory per thread and processor: rustic's many threads would hold hundreds of MB.
            .env("MALLOC_ARENA_MAX", "2")
            // Where memory is at its end, a backtrace makes the thread wait for itself; see `job_child`.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.fail("its process cannot start").with_source(error))?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (input, output) = pipes.ok_or_else(|| self.fail("its pipes are missing"))?;
        let last_words = Arc::new(Mutex::new(String::new()));
        let stderr = process.stderr.take();
        let listening = stderr.map(|stderr| tokio::spawn(listen(stderr, Arc::clone(&last_words))));
        let output = BufReader::new(output).lines();
        Ok(JobChild { process, input, output, last_words, listening, memory_limit_bytes })
    }
}

/// A job in a child process. Dropping it before its last event kills the child.
#[derive(Debug)]
pub struct JobProcess {
    process_id: Option<u32>,
    events: mpsc::Receiver<JobEvent>,
    cancel: watch::Sender<Option<Duration>>,
    until: watch::Sender<Option<WriteUntil>>,
    supervisor: AbortHandle,
    /// Whether the last event was given out: then the process may be another job's already.
    ended: bool,
}

impl Drop for JobProcess {
    fn drop(&mut self) {
        if !self.ended {
            self.supervisor.abort();
        }
    }
}

impl JobProcess {
    /// The next event. Every job ends with exactly one `Finished` or `Failed`, after which there is `None`.
    pub async fn next_event(&mut self) -> Option<JobEvent> {
        let event = self.events.recv().await;
        self.ended |= matches!(event, Some(JobEvent::Finished(_) | JobEvent::Failed(_)));
        event
    }

    /// Asks the job to stop; it is killed if it has not ended after `patience`. Goes on delivering events,
    /// of which the last may still be `Finished` if the job was faster.
    pub fn cancel(&self, patience: Duration) {
        self.cancel.send_replace(Some(patience));
    }

    /// Moves the time until which it may write and delete.
    pub fn write_until(&self, until: WriteUntil) {
        self.until.send_if_modified(|latest| latest.replace(until) != Some(until));
    }

    /// Waits, after the last event, until the process takes the next job or is gone.
    pub async fn settled(mut self) {
        while self.next_event().await.is_some() {}
    }

    /// The child's process id.
    pub fn process_id(&self) -> Option<u32> {
        self.process_id
    }
}

struct Supervisor {
    child: JobChild,
    sender: mpsc::Sender<JobEvent>,
    cancel: watch::Receiver<Option<Duration>>,
    until: watch::Receiver<Option<WriteUntil>>,
    stall_limit: Option<Duration>,
    pool: Weak<Pool>,
}

impl Supervisor {
    async fn run(mut self, request: Vec<u8>) {
        // A child that dies at once is noticed below.
        let _ = self.child.input.write_all(&request).await;
        let mut last = None;
        let mut kill_at: Option<Instant> = None;
        let mut alive_at = Instant::now();
        while last.is_none() {
            let far = Instant::now() + Duration::from_secs(86_400);
            let deadline = kill_at.unwrap_or(far);
            let stalled_at = self.stall_limit.map_or(far, |limit| alive_at + limit);
            tokio::select! {
                event = self.child.next_event() => match event {
                    Some(JobEvent::Progress(progress)) => {
                        alive_at = Instant::now();
                        // A slow listener misses some progress, never the end.
                        let _ = self.sender.try_send(JobEvent::Progress(progress));
                    }
                    Some(event) => last = Some(event),
                    None => break,
                },
                Ok(()) = self.cancel.changed(), if kill_at.is_none() => {
                    let patience = self.cancel.borrow_and_update().unwrap_or_default();
                    kill_at = Some(Instant::now() + patience);
                    let _ = self.child.input.write_all(format!("{CANCEL_LINE}\n").as_bytes()).await;
                }
                Ok(()) = self.until.changed() => {
                    let until = *self.until.borrow_and_update();
                    if let Some(until) = until {
                        let line = format!("{UNTIL_WORD} {}\n", until.milliseconds());
                        let _ = self.child.input.write_all(line.as_bytes()).await;
                    }
                }
                () = tokio::time::sleep_until(stalled_at), if self.stall_limit.is_some() && kill_at.is_none() => {
                    let _ = self.child.process.kill().await;
                    last = Some(JobEvent::Failed(stalled(alive_at.elapsed())));
                }
                () = tokio::time::sleep_until(deadline), if kill_at.is_some() => {
                    let _ = self.child.process.start_kill();
                    break;
                }
            }
        }
        match last {
            Some(event) => {
                let _ = self.sender.send(event).await;
                let ready = tokio::time::timeout(PATIENCE, self.child.output.next_line()).await;
                if kill_at.is_none()
                    && matches!(ready, Ok(Ok(Some(line))) if line == READY_LINE)
                    && let Some(pool) = self.pool.upgrade()
                {
                    pool.keep(self.child);
                } else {
                    // What it had to do is done.
                    let _ = self.child.process.kill().await;
                }
            }
            None => {
                let status = self.child.end().await;
                let death = JobEvent::Failed(self.child.death(status, kill_at.is_some()));
                let _ = self.sender.send(death).await;
            }
        }
    }
}

fn stalled(silence: Duration) -> JobFailure {
    let reason = Kind::Stalled;
    let message = format!("nothing has moved for {:.0} s, and the job was ended", silence.as_secs_f64());
    JobFailure { kind: JobFailureKind::Retryable, reason, message }
}

impl JobChild {
    /// `None` at the end of its output.
    async fn next_event(&mut self) -> Option<JobEvent> {
        while let Ok(Some(line)) = self.output.next_line().await {
            match serde_json::from_str(&line) {
                Ok(event) => return Some(event),
                Err(_) => tracing::debug!("passed over output of a job that is no event"),
            }
        }
        None
    }

    /// Waits for a process that has nothing more to say: it ends, or it is no use any more.
    async fn end(&mut self) -> Option<ExitStatus> {
        let status = match tokio::time::timeout(PATIENCE, self.process.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                let _ = self.process.start_kill();
                self.process.wait().await.ok()
            }
        };
        // What it wrote last is on its way still; whoever it has started may hold the pipe open.
        if let Some(listening) = self.listening.take() {
            let _ = tokio::time::timeout(PATIENCE_FOR_LAST_WORDS, listening).await;
        }
        status
    }

    /// What to make of a process that ended without a last event.
    fn death(&self, status: Option<ExitStatus>, canceled: bool) -> JobFailure {
        if canceled {
            return JobFailure {
                kind: JobFailureKind::Canceled,
                reason: Kind::Canceled,
                message: "the job was stopped by force".to_owned(),
            };
        }
        // So ends who gets no memory, with its last words or in the middle of them. A panic alone is an exit status.
        let is_aborted = status.and_then(|status| status.signal()) == Some(Signal::ABORT.as_raw());
        let status = status.map_or_else(|| "for an unknown reason".to_owned(), |status| status.to_string());
        let mut message = format!("the job's process ended ({status})");
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if !words.is_empty() {
            message.push_str(": ");
            message.push_str(&words);
        }
        // Who wants a stack for a thread may end by a panic.
        let is_aborted = is_aborted && !words.contains("overflowed its stack");
        let is_at_limit = is_aborted || words.contains("failed to spawn thread");
        if let Some(limit) = self.memory_limit_bytes.filter(|_| is_at_limit) {
            message.push_str(&format!(" (it may use {limit} bytes: memory_bytes in the service's settings)"));
        }
        JobFailure::of_process(message)
    }
}

/// Keeps the last line that the child wrote to its standard error.
async fn listen(stderr: impl AsyncRead + Unpin, last_words: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line: String = line.trim().chars().take(LAST_WORDS_CHARS).collect();
        // After a panic, rustc's hint about backtraces is no news.
        if !line.is_empty() && !line.starts_with("note:") {
            tracing::debug!(job.stderr = %line, "a job wrote to its standard error");
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
        }
    }
}
