//! The command that starts and stops projects, which this host's settings name.

use std::process::Stdio;
use std::time::Duration;

use bus_messages::EventLevel;
use domain_model::ProjectId;
use operation_engine::{OperationContext, OperationFailure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use volumes::HostRoot;

/// What a command writes is told line by line, so many bytes a line.
const MOST_OF_A_LINE: u64 = 500;
/// How long a command that is told to end (SIGTERM) has before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How long its output is read after its end, where something that it has started still holds it open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A program, run with `start` or `stop`. It is told of the project by `LONGHAUL_PROJECT_ID`, `LONGHAUL_PROJECT_DIR` and
/// `LONGHAUL_PERSIST_DIR`; what it writes are events of the operation; its exit status is the outcome. It may be run
/// again after it was interrupted.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeCommand {
    program: String,
    timeout: Duration,
}

impl RuntimeCommand {
    /// `None` where there is no program.
    pub(crate) fn new(program: String, timeout: Duration) -> Option<Self> {
        (!program.is_empty()).then_some(Self { program, timeout })
    }

    pub(crate) async fn run(
        &self,
        verb: &str,
        operation: &OperationContext,
        project: ProjectId,
        root: &HostRoot,
    ) -> Result<(), OperationFailure> {
        let mut child = Command::new(&self.program)
            .arg(verb)
            .env("LONGHAUL_PROJECT_ID", project.to_string())
            .env("LONGHAUL_PROJECT_DIR", root.project_dir(project.as_uuid()))
            .env("LONGHAUL_PERSIST_DIR", root.persist_dir(project.as_uuid()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                OperationFailure::permanent("command", format!("could not run {}: {error}", self.program))
            })?;
        let out = tell(operation, child.stdout.take(), EventLevel::Info);
        let err = tell(operation, child.stderr.take(), EventLevel::Warn);
        let ended = {
            // What it has left running may hold on to its output: its own end is what counts.
            let told = async { tokio::join!(out, err) };
            tokio::pin!(told);
            let mut still_told = true;
            let deadline = tokio::time::Instant::now() + self.timeout;
            let canceled = operation.cancellation();
            let ended = loop {
                tokio::select! {
                    status = child.wait() => break status.map_err(|error| {
                        OperationFailure::retryable("command", format!("{}: {error}", self.program))
                    }),
                    _ = &mut told, if still_told => still_told = false,
                    () = tokio::time::sleep_until(deadline) => break Err(OperationFailure::permanent(
                        "command",
                        format!("{} did not end within {} s", self.program, self.timeout.as_secs()),
                    )),
                    () = canceled.cancelled() => break Err(
                        operation.check().err().unwrap_or(OperationFailure::Canceled)
                    ),
                }
            };
            if still_told && ended.is_ok() {
                // Its last words.
                let _ = tokio::time::timeout(LAST_WORDS, told).await;
            }
            ended
        };
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(OperationFailure::permanent(
                "command",
                format!("{} ended with {status}; what it wrote is in the events", self.program),
            )),
            Err(failure) => {
                end(&mut child).await;
                Err(failure)
            }
        }
    }
}

/// Every line as an event.
async fn tell(operation: &OperationContext, from: Option<impl AsyncRead + Unpin>, level: EventLevel) {
    let Some(from) = from else { return };
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    // Longer lines are told in parts; and whatever they hold, they are read, or the command would wait for ever.
    while let Ok(1..) = (&mut reader).take(MOST_OF_A_LINE).read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() {
            operation.event(level, "command", text, None);
        }
        line.clear();
    }
}

/// Ends a command with all that it has started.
async fn end(child: &mut Child) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else {
        return;
    };
    for signal in [Signal::TERM, Signal::KILL] {
        // Fails only where it has ended.
        let _ = kill_process_group(group, signal);
        if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
            return;
        }
    }
}
