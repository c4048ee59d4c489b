//! The parent's side of a job: a child process that can be stopped, that cannot hurt the service, and whose
//! end is always known.
//!
//! rustic_core panics, has no way to cancel and takes the memory it likes: in a process of its own, all of
//! that is a retryable failure. The child is killed when its handle is dropped, and ends by itself when the
//! parent dies, because its standard input ends then (the kernel's death signal is no help: it follows the
//! parent's *thread*, and a runtime's threads come and go).

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::job::{JobEvent, JobFailure, JobFailureKind, JobRequest};
use crate::job_child::CANCEL_LINE;

/// How long a canceled job may take to end before it is killed.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// The longest part of the child's last words that is passed on, in characters.
const LAST_WORDS_CHARS: usize = 300;

/// A job in a child process. Dropping it kills the child.
#[derive(Debug)]
pub struct JobProcess {
    process_id: Option<u32>,
    events: mpsc::Receiver<JobEvent>,
    cancel: Arc<Notify>,
    supervisor: AbortHandle,
}

impl Drop for JobProcess {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl JobProcess {
    /// Starts `program` with `args`, which must lead to [`run_job_child`](crate::run_job_child), and hands
    /// it the request. Call it inside a runtime.
    pub fn spawn(
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        request: &JobRequest,
    ) -> Result<Self> {
        let fail = |message: &str| {
            BackupRepositoryError::new(Kind::Retryable, "start job", program.display(), message)
        };
        let mut line = serde_json::to_vec(request)
            .map_err(|error| fail("its request cannot be written").with_source(error))?;
        line.push(b'\n');
        let mut child = Command::new(program)
            .args(args)
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
            .map_err(|error| fail("its process cannot start").with_source(error))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or_else(|| fail("its pipes are missing"))?;
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(listen(stderr, Arc::clone(&last_words)));
        }
        let process_id = child.id();
        let (sender, events) = mpsc::channel(64);
        let cancel = Arc::new(Notify::new());
        let supervisor = Supervisor { child, stdin, sender, cancel: Arc::clone(&cancel), last_words };
        let supervisor = tokio::spawn(supervisor.run(line, stdout)).abort_handle();
        Ok(Self { process_id, events, cancel, supervisor })
    }

    /// The next event. Every job ends with exactly one `Finished` or `Failed`, after which there is `None`.
    pub async fn next_event(&mut self) -> Option<JobEvent> {
        self.events.recv().await
    }

    /// Asks the job to stop; it is killed if it has not ended after five seconds. Goes on delivering events,
    /// of which the last may still be `Finished` if the job was faster.
    pub fn cancel(&self) {
        self.cancel.notify_one();
    }

    /// The child's process id.
    pub fn process_id(&self) -> Option<u32> {
        self.process_id
    }
}

struct Supervisor {
    child: Child,
    stdin: ChildStdin,
    sender: mpsc::Sender<JobEvent>,
    cancel: Arc<Notify>,
    last_words: Arc<Mutex<String>>,
}

impl Supervisor {
    async fn run(mut self, request: Vec<u8>, stdout: ChildStdout) {
        // A child that dies at once is noticed below.
        let _ = self.stdin.write_all(&request).await;
        let mut lines = BufReader::new(stdout).lines();
        let mut last = None;
        let mut kill_at: Option<Instant> = None;
        loop {
            let deadline = kill_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => match serde_json::from_str(&line) {
                        Ok(JobEvent::Progress(progress)) => {
                            // A slow listener misses some progress, never the end.
                            let _ = self.sender.try_send(JobEvent::Progress(progress));
                        }
                        Ok(event) => last = Some(event),
                        Err(_) => tracing::debug!("passed over output of a job that is no event"),
                    },
                    Ok(None) | Err(_) => break,
                },
                () = self.cancel.notified(), if kill_at.is_none() => {
                    kill_at = Some(Instant::now() + CANCEL_GRACE);
                    let _ = self.stdin.write_all(format!("{CANCEL_LINE}\n").as_bytes()).await;
                }
                () = tokio::time::sleep_until(deadline), if kill_at.is_some() => {
                    let _ = self.child.start_kill();
                    break;
                }
            }
        }
        // Its output has ended: so has the process, or it is no use any more.
        let status = match tokio::time::timeout(CANCEL_GRACE, self.child.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                let _ = self.child.start_kill();
                self.child.wait().await.ok()
            }
        };
        let event = last.unwrap_or_else(|| JobEvent::Failed(self.death(status, kill_at.is_some())));
        let _ = self.sender.send(event).await;
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
        let status = status.map_or_else(|| "for an unknown reason".to_owned(), |status| status.to_string());
        let mut message = format!("the job's process ended ({status})");
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if !words.is_empty() {
            message.push_str(": ");
            message.push_str(&words);
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
