//! Backs one database file (DuckDB, SQLite) up to a bucket: when its application ends, by hand, and by the clock.
//!
//! Works alone: one program, a bucket, and for DuckDB its command line. `README.md` says how it is used and what a crash
//! leaves; the modules say why they do what they do.

mod answers;
mod application;
mod bus_operations;
mod copy;
mod encryption;
mod exchange;
mod failure;
mod held_open;
mod http_api;
mod names;
mod openapi;
mod operations;
mod service;
mod settings;
mod store;
mod transfer;
mod watch;
mod work_directory;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use service_runtime::{HttpServer, Runtime, ServiceArguments, load_settings_with_variables, start_telemetry};
use time::OffsetDateTime;

pub use answers::{BackupListed, BackupTaken, HealthAnswer, RestoreRequest, Restored, size_for_people};
pub use copy::{Database, TableRows};
pub use exchange::{Exchange, Place, Rollback};
pub use failure::{Failure, FailureKind};
pub use http_api::AdminServer;
pub use names::{BackupId, BackupKind, Engine, NameError, Names};
pub use openapi::openapi;
pub use operations::{
    FailureAnswer, Operation, OperationHandle, OperationKind, OperationState, Operations, Outcome, PhaseTime,
};
pub use service::{Clock, DatabaseBackup, PART_BYTES};
pub use settings::{DEFAULT_SETTINGS, Settings, SettingsMistake, VARIABLES};
pub use store::{Backup, BackupFacts, BackupStore, LATEST_RESTORED, Manifest};

use application::{Signals, accompany, code_of, shutdown_backup};
use bus_operations::BusOperations;

const NAME: &str = "database-backup";
const FAILURE: u8 = 1;
const USAGE: u8 = 2;
/// A small program beside another one. Each thread also keeps some of the buffers that went through it.
const THREADS: usize = 2;
/// For files: a part that is read, a download that is written, and names that are looked up meanwhile.
const BLOCKING_THREADS: usize = 6;
/// As shells say it of a program that cannot be started.
const NOT_STARTED: u8 = 127;

/// Back a database file (DuckDB, SQLite) up to a bucket.
#[derive(Parser)]
#[command(name = NAME, version)]
struct Arguments {
    /// A TOML file whose values take the place of the built-in defaults.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Check the settings, say "ok" or what is wrong (exit status 2), and do nothing else.
    #[arg(long, global = true)]
    check_config: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the application, pass signals on, and back the database up when it has ended.
    Run {
        /// The application and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Run beside an application that is started elsewhere; back the database up at SIGTERM.
    Serve,
    /// Back the database up now.
    Backup,
    /// List the backups, newest first, one JSON object a line.
    List,
    /// Restore a backup. The application must not run.
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Restore {
        /// The backup.
        #[arg(group = "which")]
        id: Option<String>,
        /// The newest backup.
        #[arg(long, group = "which")]
        latest: bool,
        /// What was there before the last restore.
        #[arg(long, group = "which")]
        rollback: bool,
    },
    /// Upload copies that could not be uploaded before, and delete what is old.
    UploadPending,
    /// Print the description of the admin API.
    Openapi,
}

/// Runs the command line of this process and returns its exit status.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::Openapi) {
        let text = serde_json::to_string_pretty(&openapi()).unwrap_or_default();
        return say(&text);
    }
    let service_arguments =
        ServiceArguments { config: arguments.config.clone(), check_config: arguments.check_config };
    let settings = load_settings_with_variables(NAME, DEFAULT_SETTINGS, &service_arguments, VARIABLES)
        .map_err(anyhow::Error::from)
        .and_then(|settings: Settings| settings.check().map(|()| settings).map_err(anyhow::Error::from));
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    if arguments.check_config {
        return say("ok");
    }
    let started = start_telemetry(&settings.telemetry).map_err(anyhow::Error::from).and_then(|()| {
        Ok(tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .thread_name(NAME)
            .build()?)
    });
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{NAME}: could not start: {error:#}");
            return ExitCode::from(FAILURE);
        }
    };
    let outcome = runtime.block_on(run(arguments.command, settings));
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

fn say(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILURE),
    }
}

async fn run(command: Command, settings: Settings) -> anyhow::Result<u8> {
    let describe = |failure: Failure| anyhow::anyhow!(failure.describe());
    let clock: Clock = Arc::new(OffsetDateTime::now_utc);
    let service = DatabaseBackup::new(settings, clock).map_err(describe)?;
    let begun = match command {
        Command::Run { command } => return accompany_application(&service, &command).await,
        Command::Serve => return serve(&service).await,
        Command::Openapi => return Ok(0),
        Command::List => {
            for backup in service.list().await.map_err(describe)? {
                say(&serde_json::to_string(&BackupListed::from(&backup))?);
            }
            return Ok(0);
        }
        Command::Backup => service.begin_backup(BackupKind::Manual),
        Command::Restore { id: Some(id), .. } => service.begin_restore(id),
        Command::Restore { rollback: true, .. } => service.begin_rollback(),
        Command::Restore { .. } => {
            let newest = service.newest().await.map_err(describe)?;
            service.begin_restore(newest.to_string())
        }
        Command::UploadPending => service.begin_maintenance(),
    };
    let ended = begun.map_err(describe)?.ended().await;
    match (ended.outcome, ended.error) {
        (_, Some(error)) => Err(anyhow::anyhow!(error.message)),
        (Some(Outcome::Backup(taken)), _) => {
            say(&serde_json::to_string(&taken)?);
            Ok(0)
        }
        (Some(Outcome::Restore(restored)), _) => {
            say(&serde_json::to_string(&restored)?);
            Ok(0)
        }
        _ => Ok(0),
    }
}

/// What both long-running forms have.
struct Servers {
    _metrics: HttpServer,
    admin: Option<AdminServer>,
    bus: Option<BusOperations>,
    watch: tokio::task::JoinHandle<()>,
}

impl Servers {
    async fn start(service: &DatabaseBackup) -> anyhow::Result<Self> {
        let runtime = Runtime::default();
        let metrics =
            HttpServer::start(&service.settings().http, runtime.metrics.clone(), runtime.health.clone())
                .await?;
        let admin = AdminServer::start(service).await?;
        let bus = BusOperations::start(service, &runtime);
        let watch = tokio::spawn(watch::watch(service.clone(), runtime));
        Ok(Self { _metrics: metrics, admin, bus, watch })
    }

    /// Nothing new begins: the shutdown backup is the last.
    fn close(&mut self) {
        self.watch.abort();
        self.admin = None;
        if let Some(bus) = &self.bus {
            bus.drain();
        }
    }

    /// Tells the bus what became of its operations.
    async fn leave(self) {
        if let Some(bus) = self.bus {
            bus.stop().await;
        }
    }
}

async fn serve(service: &DatabaseBackup) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let mut servers = Servers::start(service).await?;
    tracing::info!(database = %service.settings().database.path.display(), "started");
    let signal = signals.next_end().await;
    tracing::info!(signal = signal.as_raw(), "ending");
    servers.close();
    let backed_up = last_backup(service, &mut signals).await;
    servers.leave().await;
    Ok(if backed_up { 0 } else { FAILURE })
}

async fn accompany_application(service: &DatabaseBackup, command: &[OsString]) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let mut servers = Servers::start(service).await?;
    let mut child = match application::start(command) {
        Ok(child) => child,
        Err(error) => {
            let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
            eprintln!("{NAME}: {program} cannot be started: {error}");
            return Ok(NOT_STARTED);
        }
    };
    let status = accompany(&mut child, &mut signals).await?;
    tracing::info!(application.status = %status, "the application has ended");
    servers.close();
    let backed_up = last_backup(service, &mut signals).await;
    servers.leave().await;
    Ok(match code_of(status) {
        0 if !backed_up => FAILURE,
        code => code,
    })
}

/// Whether there is now a backup, or is not to be one.
async fn last_backup(service: &DatabaseBackup, signals: &mut Signals) -> bool {
    if service.require_enabled().is_err() {
        tracing::warn!("no shutdown backup: backups are disabled (BACKUP_ENABLED=false)");
        return true;
    }
    match shutdown_backup(service, signals).await {
        Ok(_) => true,
        Err(error) => {
            eprintln!("{NAME}: THE SHUTDOWN BACKUP FAILED: {}", error.message);
            let pending = service.pending_uploads();
            if pending > 0 && error.kept.is_none() {
                let directory = service.settings().work_directory();
                eprintln!(
                    "{NAME}: {pending} checked copies wait in {}/pending: `{NAME} upload-pending` uploads them, and so does the next start",
                    directory.display()
                );
            }
            false
        }
    }
}
