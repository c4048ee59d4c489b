//! Running a program to its end, with all that it said.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(120);

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
    described: String,
}

impl Finished {
    /// Its standard output.
    ///
    /// # Panics
    /// Where it failed, with all that it said.
    #[track_caller]
    pub fn expect_success(&self) -> &str {
        assert!(
            self.status.success(),
            "{} failed ({})\n{}\n{}",
            self.described,
            self.status,
            self.output,
            self.errors
        );
        &self.output
    }
}

/// Runs a command for at most two minutes. See [`run_with_patience`].
pub async fn run(command: Command) -> Finished {
    run_with_patience(command, PATIENCE).await
}

/// Runs a command to its end, without standard input.
///
/// # Panics
/// Where it cannot be started or does not end in time (it is killed then).
pub async fn run_with_patience(mut command: Command, patience: Duration) -> Finished {
    let parts = std::iter::once(command.as_std().get_program()).chain(command.as_std().get_args());
    let described = parts.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(patience, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => panic!("{described} cannot be started: {error}"),
        Err(_) => panic!("{described} did not end within {} s", patience.as_secs()),
    };
    Finished {
        status: output.status,
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        described,
    }
}
