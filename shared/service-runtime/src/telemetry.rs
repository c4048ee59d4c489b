//! Logs: one line an event, to standard error, as JSON or for people.
//!
//! Fields are dotted and the same everywhere (`op.id`, `project.id`, `host.id`), so that one search finds an operation in
//! the logs of every service: `tracing::info!(op.id = %op_id, "claimed")`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::settings_sections::{LogFormat, TelemetrySettings};

/// Logging that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// This process logs already.
    #[error("could not start logging; it runs already")]
    Running(#[source] TryInitError),
}

/// Starts logging to standard error for the whole process, panics included.
///
/// # Errors
///
/// If it was started before.
pub fn start_telemetry(settings: &TelemetrySettings) -> Result<(), TelemetryError> {
    let filter = EnvFilter::new(settings.log_filter.as_str());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match settings.log_format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).finish().try_init(),
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
    };
    started.map_err(TelemetryError::Running)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// A panic as a log event; the default hook writes lines that no log reader understands.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("(not text)");
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        panic.message = message,
        panic.location = location,
        panic.thread = thread.name().unwrap_or("unnamed"),
        panic.backtrace = backtrace,
        "a thread panicked: {message} at {location}"
    );
}
