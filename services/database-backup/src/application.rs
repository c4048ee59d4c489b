//! An application as a child process: its signals, its end, and the backup after it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use crate::names::BackupKind;
use crate::operations::{FailureAnswer, Operation, OperationKind, OperationState};
use crate::service::DatabaseBackup;

/// Signals that somebody may send to what looks like the application.
pub(crate) struct Signals {
    streams: [(Signal, SignalStream); 6],
}

impl Signals {
    /// Listens from now on; none ends this process any more.
    ///
    /// # Errors
    ///
    /// If they cannot be listened for.
    pub(crate) fn listen() -> io::Result<Self> {
        let stream = |name: Signal| Ok::<_, io::Error>((name, signal(SignalKind::from_raw(name.as_raw()))?));
        Ok(Self {
            streams: [
                stream(Signal::TERM)?,
                stream(Signal::INT)?,
                stream(Signal::HUP)?,
                stream(Signal::QUIT)?,
                stream(Signal::USR1)?,
                stream(Signal::USR2)?,
            ],
        })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Signal {
        let [term, int, hup, quit, usr1, usr2] = &mut self.streams;
        tokio::select! {
            _ = term.1.recv() => term.0,
            _ = int.1.recv() => int.0,
            _ = hup.1.recv() => hup.0,
            _ = quit.1.recv() => quit.0,
            _ = usr1.1.recv() => usr1.0,
            _ = usr2.1.recv() => usr2.0,
        }
    }

    /// The next one that asks for the end.
    pub(crate) async fn next_end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT) {
                return signal;
            }
        }
    }
}

/// Starts the application, with our standard input and outputs.
///
/// # Errors
///
/// If it cannot be started.
pub(crate) fn start(command: &[std::ffi::OsString]) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Command::new(program).args(arguments).spawn()
}

/// Passes signals on until the application has ended.
///
/// # Errors
///
/// If it cannot be waited for.
pub(crate) async fn accompany(child: &mut Child, signals: &mut Signals) -> io::Result<ExitStatus> {
    let process = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    loop {
        tokio::select! {
            status = child.wait() => return status,
            signal = signals.next() => {
                if terminal_sent_it(signal) {
                    continue;
                }
                tracing::info!(signal = signal.as_raw(), "passing a signal on to the application");
                if let Some(process) = process {
                    // It may have ended in this moment.
                    let _ = kill_process(process, signal);
                }
            }
        }
    }
}

/// Ctrl-C at a terminal reaches every process of the group in front, the application included; twice would be hard.
fn terminal_sent_it(signal: Signal) -> bool {
    let stdin = io::stdin();
    matches!(signal, Signal::INT | Signal::QUIT)
        && rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// The exit status as a shell tells it.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Takes the shutdown backup, once what runs has ended. The first signal to end is answered by going on, since that is what
/// it asks for; the second abandons.
///
/// # Errors
///
/// With what went wrong.
pub(crate) async fn shutdown_backup(
    service: &DatabaseBackup,
    signals: &mut Signals,
) -> Result<Operation, FailureAnswer> {
    // What maintenance does can be gone on with, and may take long.
    if service.operations().running().is_some_and(|running| running.now().kind == OperationKind::Maintenance)
    {
        service.operations().abandon();
    }
    let mut asked = 0;
    let mut ours = false;
    loop {
        let mut operation = match service.operations().running() {
            // Which may have begun before the application's last write.
            Some(running) if !ours => running,
            _ => {
                ours = true;
                service.begin_backup(BackupKind::Shutdown).map_err(|failure| FailureAnswer::from(&failure))?
            }
        };
        let ended = loop {
            tokio::select! {
                ended = operation.ended() => break ended,
                signal = signals.next_end() => {
                    asked += 1;
                    if asked > 1 {
                        tracing::warn!(signal = signal.as_raw(), "abandoning the shutdown backup");
                        service.operations().abandon();
                        ours = true;
                        break operation.ended().await;
                    }
                    tracing::warn!(
                        signal = signal.as_raw(),
                        "the shutdown backup is being taken, for {} s at most; the next signal abandons it",
                        service.settings().backup.deadline_s
                    );
                }
            }
        };
        if !ours {
            continue;
        }
        return match (ended.state, ended.kind, ended.error.clone()) {
            (OperationState::Succeeded, OperationKind::Backup, _) => Ok(ended),
            (_, _, Some(error)) => Err(error),
            // Something else began in between: after it.
            _ => continue,
        };
    }
}
