//! From `main` to the end of the process: arguments, settings, logs, metrics, signals, and one place where errors end.

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use serde::de::DeserializeOwned;

use crate::health::Health;
use crate::http_server::HttpServer;
use crate::metrics::Metrics;
use crate::process_lifetime::exit_with_parent;
use crate::settings::{ServiceArguments, load_settings};
use crate::settings_sections::{HttpSettings, ShutdownSettings, TelemetrySettings};
use crate::shutdown::Shutdown;
use crate::telemetry::start_telemetry;

/// How long a service may take to return once it is told to stop; after that its process ends anyway.
const STOPPING_LIMIT: Duration = Duration::from_secs(10);
const FAILURE: u8 = 1;
const USAGE: u8 = 2;

/// The settings of a service: where those that the runtime needs are found in them.
pub trait ServiceSettings: DeserializeOwned {
    /// How to log.
    fn telemetry(&self) -> &TelemetrySettings;

    /// Where to answer `/metrics` and `/healthz`.
    fn http(&self) -> &HttpSettings;

    /// How to end; with a grace of 20 seconds unless the service has a setting for it.
    fn shutdown(&self) -> ShutdownSettings {
        ShutdownSettings::default()
    }
}

/// What the runtime offers to a running service. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    /// To register metrics with.
    pub metrics: Metrics,
    /// To register health checks with.
    pub health: Health,
}

#[derive(clap::Parser)]
#[command(about = None, long_about = None)]
struct OnlyServiceArguments {
    #[command(flatten)]
    arguments: ServiceArguments,
}

/// The whole `main` of a service that has no arguments of its own: parses them, then does as [`service_main_with`].
/// Bad arguments end the process with status 2.
pub fn service_main<S, F, E>(
    service_name: &'static str,
    default_toml: &'static str,
    run: impl FnOnce(S, Shutdown, Runtime) -> F,
) -> ExitCode
where
    S: ServiceSettings,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let matches = OnlyServiceArguments::command().name(service_name).get_matches();
    match OnlyServiceArguments::from_arg_matches(&matches) {
        Ok(parsed) => service_main_with(service_name, default_toml, &parsed.arguments, run),
        Err(error) => error.exit(),
    }
}

/// Runs a service until it returns: loads its settings, starts logging, a tokio runtime, the server of `/metrics` and
/// `/healthz`, listens for signals, and runs `run(settings, shutdown, runtime)`. To be called on the main thread.
///
/// The exit status is 0 if `run` succeeds (and for `--check-config` with good settings), 2 for settings that cannot
/// be used, 1 for any other failure, whose chain of causes is logged here, once. A service that does not return within
/// ten seconds of `stopping` is left behind, with status 1.
pub fn service_main_with<S, F, E>(
    service_name: &'static str,
    default_toml: &'static str,
    arguments: &ServiceArguments,
    run: impl FnOnce(S, Shutdown, Runtime) -> F,
) -> ExitCode
where
    S: ServiceSettings,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let settings: S = match load_settings(service_name, default_toml, arguments) {
        Ok(settings) => settings,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("{service_name}: {}", with_causes(&error)));
            return ExitCode::from(USAGE);
        }
    };
    if arguments.check_config {
        say(&mut std::io::stdout(), "ok");
        return ExitCode::SUCCESS;
    }
    let started = exit_with_parent().map_err(Into::into).and_then(|()| {
        start_telemetry(settings.telemetry())?;
        Ok(tokio::runtime::Builder::new_multi_thread().enable_all().thread_name(service_name).build()?)
    });
    let tokio_runtime = match started {
        Ok(tokio_runtime) => tokio_runtime,
        Err(error) => {
            let error: Box<dyn Error + Send + Sync> = error;
            say(
                &mut std::io::stderr(),
                &format!("{service_name}: could not start: {}", with_causes(&*error)),
            );
            return ExitCode::from(FAILURE);
        }
    };
    let outcome = tokio_runtime.block_on(run_to_end(service_name, settings, run));
    // Threads for blocking work may hang; they end with the process.
    tokio_runtime.shutdown_background();
    match outcome {
        Ok(()) => {
            tracing::info!(service = service_name, "ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(service = service_name, error = with_causes(&*error), "failed");
            ExitCode::from(FAILURE)
        }
    }
}

async fn run_to_end<S, F, E>(
    service_name: &'static str,
    settings: S,
    run: impl FnOnce(S, Shutdown, Runtime) -> F,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    S: ServiceSettings,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let shutdown = Shutdown::from_signals(settings.shutdown().grace())?;
    let runtime = Runtime::default();
    let _server = HttpServer::start(settings.http(), runtime.metrics.clone(), runtime.health.clone()).await?;
    tracing::info!(service = service_name, version = env!("CARGO_PKG_VERSION"), "started");
    let overdue = {
        let stopping = shutdown.stopping.clone();
        async move {
            stopping.cancelled().await;
            tokio::time::sleep(STOPPING_LIMIT).await;
        }
    };
    tokio::select! {
        outcome = run(settings, shutdown, runtime) => outcome.map_err(Into::into),
        () = overdue => Err(format!("did not stop within {} seconds", STOPPING_LIMIT.as_secs()).into()),
    }
}

/// An error and its causes, on one line.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// Writes a line; a reader that is gone is no reason to fail.
fn say(stream: &mut dyn std::io::Write, line: &str) {
    let _ = writeln!(stream, "{line}");
}
