//! `longhaul`: the command line for people, `up` (the whole system on one machine) and `demo` (the main job on real input).
//!
//! A script must be able to trust it: the exit status is 0 only when what was asked for has happened (a backup that was
//! created and then failed is a failure), 1 for a failure, 2 for a command line that makes no sense; results go to
//! standard output and everything else to standard error; with `--json` each line of the output is one JSON object.

mod api;
mod commands;
mod connection;
mod demo;
mod drawing;
mod output;
mod up;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use bus_client::RequestError;
use clap::Parser;
use clap::error::ErrorKind;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

/// A command line that reads and makes no sense: exit status 2.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Runs the command line of this process and returns its exit status.
pub fn main() -> ExitCode {
    let arguments = match commands::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help that was asked for is a result; a reader that is gone is no reason to fail.
            let _ = error.print();
            let wanted = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if wanted { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    // A connection that comes and goes is the client library's business: it goes on by itself.
    let filter =
        std::env::var("LONGHAUL_LOG").unwrap_or_else(|_| "warn,bus_client=error,async_nats=error".to_owned());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let json = arguments.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("longhaul: could not start: {error}");
            return ExitCode::from(FAILURE);
        }
    };
    let outcome = runtime.block_on(commands::run(arguments));
    // A thread that reads a terminal or a slow disk is not waited for.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error, json);
            ExitCode::from(if error.is::<UsageError>() { USAGE } else { FAILURE })
        }
    }
}

/// The error on standard error; with `--json` as the object that the service answered, or one like it.
fn tell(error: &anyhow::Error, json: bool) {
    if !json {
        eprintln!("longhaul: {error:#}");
        return;
    }
    let answered = error.chain().find_map(|cause| match cause.downcast_ref::<RequestError>() {
        Some(RequestError::Api(error)) => serde_json::to_value(error).ok(),
        _ => None,
    });
    let body = answered.unwrap_or_else(|| {
        let code = if error.is::<UsageError>() { "usage" } else { "failed" };
        serde_json::json!({ "code": code, "message": format!("{error:#}") })
    });
    eprintln!("{}", serde_json::json!({ "error": body }));
}
