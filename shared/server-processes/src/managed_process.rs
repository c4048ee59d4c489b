//! One child process that cannot outlive its launcher.
//!
//! A launcher may be killed without a chance to clean up. The kernel then signals each child itself
//! (`PR_SET_PDEATHSIG`, set by `setpriv`, which becomes the program). That signal is tied to the *thread* that started
//! the child, and a runtime's threads come and go: a child started from one of them could be killed while all is well.
//! So each child has a thread of its own, which starts it, waits for it, and lives as long.
//!
//! Signals go through a pidfd, so that none ever reaches a stranger that was given the same process id.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::{oneshot, watch};

use crate::unprivileged::UnprivilegedUser;

/// How much of a log an error quotes.
const LOG_TAIL_BYTES: u64 = 2_000;
/// How long a process that is dropped without [`ManagedProcess::stop`] may take to end.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// What to start, and how to end it.
#[derive(Clone)]
pub struct ProcessSpec {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    removed_environment: Vec<OsString>,
    current_directory: Option<PathBuf>,
    log_directory: PathBuf,
    stop_signal: Signal,
    death_signal: Signal,
    user: Option<UnprivilegedUser>,
    standard_input: Vec<u8>,
}

impl ProcessSpec {
    /// A process called `name`, whose output is appended to `<log_directory>/<name>.log`. It inherits this process's
    /// environment, is stopped with SIGTERM, and is killed when this process ends.
    pub fn new(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        log_directory: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            removed_environment: Vec::new(),
            current_directory: None,
            log_directory: log_directory.into(),
            stop_signal: Signal::TERM,
            death_signal: Signal::KILL,
            user: None,
            standard_input: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment. Arguments are visible to every user of the machine, the environment is not:
    /// secrets go here.
    #[must_use]
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Keeps a variable of this process from it.
    #[must_use]
    pub fn without_environment(mut self, name: impl Into<OsString>) -> Self {
        self.removed_environment.push(name.into());
        self
    }

    /// Where it runs; this process's directory by default.
    #[must_use]
    pub fn current_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.current_directory = Some(directory.into());
        self
    }

    /// The signal that asks it to stop in good order (SIGTERM by default).
    #[must_use]
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    /// The signal that it gets when its launcher has ended: SIGKILL (the default), SIGQUIT, SIGINT or SIGTERM.
    #[must_use]
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.death_signal = signal;
        self
    }

    pub(crate) fn user(mut self, user: Option<UnprivilegedUser>) -> Self {
        self.user = user;
        self
    }

    pub(crate) fn standard_input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.standard_input = input.into();
        self
    }

    fn log_file(&self) -> PathBuf {
        self.log_directory.join(format!("{}.log", self.name))
    }

    fn command(&self) -> anyhow::Result<Command> {
        if !self.program.is_file() {
            bail!("there is no program {}", self.program.display());
        }
        let log = open_log(&self.log_file())?;
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig").arg(signal_name(self.death_signal)?);
        if let Some(user) = &self.user {
            command
                .arg(format!("--reuid={}", user.uid))
                .arg(format!("--regid={}", user.gid))
                .arg("--clear-groups");
        }
        command.arg("--").arg(&self.program).args(&self.arguments);
        for name in &self.removed_environment {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.current_directory {
            command.current_dir(directory);
        }
        let input = if self.standard_input.is_empty() { Stdio::null() } else { Stdio::piped() };
        command.stdin(input).stdout(log.try_clone()?).stderr(log);
        // A group of its own: Ctrl-C on the launcher's terminal is for the launcher, which stops its children in order.
        command.process_group(0);
        Ok(command)
    }
}

fn open_log(file: &Path) -> anyhow::Result<File> {
    let open = || -> std::io::Result<File> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        OpenOptions::new().create(true).append(true).open(file)
    };
    open().with_context(|| format!("opening the log {}", file.display()))
}

fn signal_name(signal: Signal) -> anyhow::Result<&'static str> {
    let names = [
        (Signal::KILL, "SIGKILL"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::INT, "SIGINT"),
        (Signal::TERM, "SIGTERM"),
    ];
    let name = names.iter().find(|(known, _)| *known == signal).map(|(_, name)| *name);
    name.ok_or_else(|| anyhow!("{signal:?} is no signal to end a process with"))
}

/// A running (or ended) child process. Dropping it ends the process with its death signal.
pub struct ManagedProcess {
    name: String,
    pid: u32,
    handle: OwnedFd,
    exit: watch::Receiver<Option<ExitStatus>>,
    log_file: PathBuf,
    stop_signal: Signal,
    death_signal: Signal,
}

impl ManagedProcess {
    /// Starts the process. It is running when this returns, not ready: see [`crate::wait_until`].
    ///
    /// # Errors
    /// When the program does not exist, its log cannot be written, or it cannot be started.
    pub async fn spawn(spec: ProcessSpec) -> anyhow::Result<Self> {
        let name = spec.name.clone();
        let describe = || format!("starting {name}");
        let mut command = spec.command().with_context(describe)?;
        let (started, start) = oneshot::channel();
        let (ended, exit) = watch::channel(None);
        let input = spec.standard_input.clone();
        std::thread::Builder::new()
            .name(format!("child {name}"))
            .spawn(move || {
                let mut child = match start_child(&mut command, &input) {
                    Ok((child, handle)) => {
                        // Nobody waits any more when the caller was cancelled: the child goes down with its handle.
                        let Err(Ok((_, handle))) = started.send(Ok((child.id(), handle))) else {
                            return report_end(child, &ended);
                        };
                        let _ = pidfd_send_signal(&handle, Signal::KILL);
                        child
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = child.wait();
            })
            .with_context(describe)?;
        let (pid, handle) = start.await.with_context(describe)?.with_context(describe)?;
        tracing::debug!(process.name = %name, process.pid = pid, "process started");
        Ok(Self {
            name,
            pid,
            handle,
            exit,
            log_file: spec.log_file(),
            stop_signal: spec.stop_signal,
            death_signal: spec.death_signal,
        })
    }

    /// Runs a process to its end.
    ///
    /// # Errors
    /// As for [`ManagedProcess::spawn`]; when it ends with another status than 0, or not in time.
    pub(crate) async fn run(spec: ProcessSpec, patience: Duration) -> anyhow::Result<()> {
        let process = Self::spawn(spec).await?;
        match tokio::time::timeout(patience, process.wait()).await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("{} failed ({status}); its log ends:\n{}", process.name, process.log_tail()),
            Err(_) => bail!("{} did not end within {} s", process.name, patience.as_secs()),
        }
    }

    /// The name given in its [`ProcessSpec`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which may have been given to another process once this one has ended.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log_file(&self) -> &Path {
        &self.log_file
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it has ended by itself, or by a signal from anywhere.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        // The thread that waits for the child reports its end before it ends itself.
        ended.unwrap_or_else(unknown_end)
    }

    /// Sends it a signal; none when it has ended already.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("sending {signal:?} to {}", self.name)),
        }
    }

    /// Asks it to stop in good order, waits, and kills it when it has not ended in time.
    pub async fn stop(&self, patience: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(self.stop_signal)?;
        if let Ok(status) = tokio::time::timeout(patience, self.wait()).await {
            return Ok(status);
        }
        tracing::warn!(process.name = %self.name, "the process did not stop within {} s and is killed", patience.as_secs());
        self.kill().await
    }

    /// Kills it (SIGKILL), as a crash would, and waits until it is gone.
    pub async fn kill(&self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        Ok(self.wait().await)
    }

    /// The end of its log, for error messages.
    pub fn log_tail(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(&self.log_file)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut tail = Vec::new();
            log.read_to_end(&mut tail)?;
            Ok(tail)
        };
        match read() {
            Ok(tail) => String::from_utf8_lossy(&tail).into_owned(),
            Err(error) => format!("(no log {}: {error})", self.log_file.display()),
        }
    }
}

impl Drop for ManagedProcess {
    /// The last resort, for a launcher that fails half-way: whoever can wait calls [`ManagedProcess::stop`].
    fn drop(&mut self) {
        let give_up = Instant::now() + DROP_PATIENCE;
        let _ = self.signal(self.death_signal);
        while self.is_running() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.signal(Signal::KILL);
    }
}

fn start_child(command: &mut Command, input: &[u8]) -> anyhow::Result<(Child, OwnedFd)> {
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!("setpriv is not installed (package util-linux)"),
        _ => error.into(),
    })?;
    if let Some(mut pipe) = child.stdin.take() {
        // A process that has ended without reading its input says why in its log.
        let _ = pipe.write_all(input);
    }
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => Ok((child, handle)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error).context("opening a handle to the process")
        }
    }
}

fn report_end(mut child: Child, ended: &watch::Sender<Option<ExitStatus>>) {
    let status = child.wait().unwrap_or_else(|error| {
        tracing::error!("cannot learn how the process {} ended: {error}", child.id());
        unknown_end()
    });
    ended.send_replace(Some(status));
}

/// What is said of a process that is gone without having told how it ended.
fn unknown_end() -> ExitStatus {
    ExitStatus::from_raw(0xff00)
}
