//! The kinds `database-backup` and `database-restore`, where this database belongs to an installation of Longhaul.
//!
//! The service is a host there: its operations are those of `host-<id>`, which the registry routes to it, and one id is
//! one database. Nothing here may hold up what the service does alone: it joins the bus in the background, as soon as
//! that answers, and a backup that nobody asked for on the bus does not know of it.
//!
//! The bus may have an operation begun twice, where a worker was killed or its answer lost. A backup therefore carries the
//! operation's id in its metadata, and an exchange of files carries it in its journal: the second attempt finds what the
//! first one has done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bus_client::{Bus, BusError, ConnectSettings, Credentials};
use bus_messages::kinds::{
    self, DatabaseBackupResult, DatabaseRestoreInput, DatabaseRestoreResult, KindDefinition,
};
use domain_model::{HostId, Progress, Routing};
use operation_engine::{OperationContext, OperationFailure, OperationHandler, Worker};
use serde::Serialize;
use serde_json::Value;
use service_runtime::{HealthCheck, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, FailureKind};
use crate::names::BackupKind;
use crate::operations::{FailureAnswer, Operation, OperationHandle, OperationKind, OperationState, Outcome};
use crate::service::DatabaseBackup;
use crate::store::Backup;

/// How often the connection is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Wait after the bus has refused to let this service in.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// How long the end of what ran here may take to be told.
const FAREWELL: Duration = Duration::from_secs(10);

/// The service on the bus, or on its way there.
pub(crate) struct BusOperations {
    draining: CancellationToken,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

impl BusOperations {
    /// Joins the bus of the settings, if they name one.
    pub(crate) fn start(service: &DatabaseBackup, runtime: &Runtime) -> Option<Self> {
        if service.settings().nats.url.is_empty() {
            return None;
        }
        let host = service.settings().host.id.parse().ok()?;
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let health = runtime.health.register("bus");
        let work = work(service.clone(), host, health, draining.clone(), stopping.clone());
        // Before there is a connection, there is nothing to hand back.
        let joined = stopping.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = async { joined.cancelled().await; tokio::time::sleep(FAREWELL).await } => {}
            }
        });
        Some(Self { draining, stopping, task })
    }

    /// Takes no more operations; what runs goes on.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    /// Tells how what ran has ended, and leaves.
    pub(crate) async fn stop(mut self) {
        self.draining.cancel();
        self.stopping.cancel();
        let _ = (&mut self.task).await;
    }
}

impl Drop for BusOperations {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn work(
    service: DatabaseBackup,
    host: HostId,
    health: HealthCheck,
    draining: CancellationToken,
    stopping: CancellationToken,
) {
    health.set_failed("not connected to NATS");
    let Some(bus) = draining.run_until_cancelled(connect(&service, host, &health)).await else { return };
    let description = format!("Backs up a database of the host {host}");
    let database = service.settings().database.path.display().to_string();
    let metadata =
        BTreeMap::from([("host_id".to_owned(), host.to_string()), ("database".to_owned(), database)]);
    let shown = bus.service("database-backup", env!("CARGO_PKG_VERSION"), &description, metadata);
    let shown = match shown.start().await {
        Ok(shown) => Some(shown),
        Err(error) => {
            tracing::warn!(%error, "the service is not shown by `nats micro ls`");
            None
        }
    };
    let worker_id = format!("database-backup/{host}/{}", std::process::id());
    let worker = Worker::new(bus.clone(), Routing::Host(host), worker_id)
        .handler(Arc::new(BackupHandler { service: service.clone() }), 1)
        .handler(Arc::new(RestoreHandler { service }), 1);
    tracing::info!(host.id = %host, "takes operations from the bus");
    tokio::select! {
        () = worker.run(draining, stopping) => {}
        () = watch_connection(&bus, &health) => {}
    }
    if let Some(shown) = shown {
        shown.stop().await;
    }
    bus.drain().await;
}

/// Tries until it is let in: a wrong password must not keep the database from being backed up.
async fn connect(service: &DatabaseBackup, host: HostId, health: &HealthCheck) -> Bus {
    let nats = &service.settings().nats;
    let user = if nats.user.is_empty() { format!("host-{host}") } else { nats.user.clone() };
    let inbox_prefix = nats.inbox_prefix.clone().filter(|prefix| !prefix.is_empty());
    loop {
        let connected: Result<Bus, BusError> = Bus::connect(ConnectSettings {
            url: nats.url.clone(),
            credentials: Credentials::UserPassword { user: user.clone(), password: nats.password.clone() },
            inbox_prefix: Some(inbox_prefix.clone().unwrap_or_else(|| format!("_INBOX_{user}"))),
            name: format!("database-backup {host}"),
        })
        .await;
        match connected {
            Ok(bus) => return bus,
            Err(error) => {
                tracing::error!(%error, nats.user = user, "the bus does not let this service in: no operations from there");
                health.set_failed("refused by NATS");
                tokio::time::sleep(REFUSED_WAIT).await;
            }
        }
    }
}

async fn watch_connection(bus: &Bus, health: &HealthCheck) {
    loop {
        match bus.is_connected() {
            true => health.set_ok(),
            false => health.set_failed("not connected to NATS"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Does `database-backup`.
struct BackupHandler {
    service: DatabaseBackup,
}

#[async_trait]
impl OperationHandler for BackupHandler {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("database-backup")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let began = Instant::now();
        let id = operation.op_id().to_string();
        loop {
            others_ended(operation, &self.service).await?;
            if operation.attempt() > 1
                && let Some(taken) = self.taken_by(operation, &id).await?
            {
                return result(taken, began);
            }
            match self.service.begin_backup_for(BackupKind::Manual, Some(id.clone())) {
                Ok(handle) => {
                    let Outcome::Backup(taken) = followed(operation, handle).await? else {
                        return Err(internal("a backup has ended as something else"));
                    };
                    let found = self.service.find(&taken.backup_id).await;
                    return result(found.map_err(|failure| failed(&(&failure).into()))?, began);
                }
                // Something else began in between.
                Err(failure) if failure.kind() == FailureKind::Busy => {}
                Err(failure) => return Err(failed(&(&failure).into())),
            }
        }
    }
}

impl BackupHandler {
    /// The backup that an earlier attempt has stored.
    async fn taken_by(
        &self,
        operation: &OperationContext,
        id: &str,
    ) -> Result<Option<Backup>, OperationFailure> {
        let backups = operation.unless_stopped(self.service.list()).await?;
        let backups = backups.map_err(|failure| failed(&(&failure).into()))?;
        Ok(backups.into_iter().find(|backup| backup.operation.as_deref() == Some(id)))
    }
}

fn result(backup: Backup, began: Instant) -> Result<Value, OperationFailure> {
    let facts = backup.facts.ok_or_else(|| internal("the backup does not say what it is"))?;
    to_value(&DatabaseBackupResult {
        backup_id: backup.id.to_string(),
        timestamp: backup.timestamp.into(),
        bytes: facts.bytes,
        sha256: facts.sha256,
        tables: facts.tables,
        rows: facts.rows,
        duration_s: began.elapsed().as_secs_f64(),
    })
}

/// Does `database-restore`.
struct RestoreHandler {
    service: DatabaseBackup,
}

#[async_trait]
impl OperationHandler for RestoreHandler {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("database-restore")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let began = Instant::now();
        let input: DatabaseRestoreInput = operation.input()?;
        let id = operation.op_id().to_string();
        // The newest one of now: a later attempt restores the same.
        let wanted = match (input.backup_id.as_deref(), operation.checkpoint::<String>()?) {
            (Some("latest"), None) => {
                let newest = operation.unless_stopped(self.service.newest()).await?;
                let newest = newest.map_err(|failure| failed(&(&failure).into()))?.to_string();
                operation.save_checkpoint(&newest).await?;
                Some(newest)
            }
            (Some("latest"), Some(chosen)) => Some(chosen),
            (wanted, _) => wanted.map(str::to_owned),
        };
        loop {
            others_ended(operation, &self.service).await?;
            let begun = match &wanted {
                Some(wanted) => self.service.begin_restore_for(wanted.clone(), Some(id.clone())),
                None => self.service.begin_rollback_for(Some(id.clone())),
            };
            match begun {
                Ok(handle) => {
                    let Outcome::Restore(restored) = followed(operation, handle).await? else {
                        return Err(internal("a restore has ended as something else"));
                    };
                    return to_value(&DatabaseRestoreResult {
                        backup_id: restored.backup_id,
                        rolled_back: restored.rolled_back,
                        bytes: restored.bytes,
                        sha256: restored.sha256,
                        rollback_copy: restored.rollback_copy,
                        duration_s: began.elapsed().as_secs_f64(),
                    });
                }
                Err(failure) if failure.kind() == FailureKind::Busy => {}
                Err(failure) => return Err(failed(&(&failure).into())),
            }
        }
    }
}

/// Waits for the end of what is no backup and runs here; a backup is joined.
async fn others_ended(
    operation: &OperationContext,
    service: &DatabaseBackup,
) -> Result<(), OperationFailure> {
    while let Some(mut running) = service.operations().running() {
        let now = running.now();
        if now.kind == OperationKind::Backup && operation.op().kind.as_str() == "database-backup" {
            return Ok(());
        }
        operation.progress("looking", format!("waiting for the end of {} here", now.op), None);
        operation.unless_stopped(running.ended()).await?;
        // It is told a moment before it makes room.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Tells the bus what an operation of this service tells, until its end. Where the bus wants it to stop, it is abandoned,
/// unless somebody else began it.
async fn followed(
    operation: &OperationContext,
    mut handle: OperationHandle,
) -> Result<Outcome, OperationFailure> {
    let cancellation = operation.cancellation();
    let mut now = handle.now();
    while now.state == OperationState::Running {
        tell(operation, &now);
        tokio::select! {
            changed = handle.changed() => now = changed,
            () = cancellation.cancelled() => {
                if !handle.was_joined() {
                    handle.abandon();
                    handle.ended().await;
                }
                operation.check()?;
            }
        }
    }
    match (now.outcome, now.error) {
        (Some(outcome), _) => Ok(outcome),
        (None, Some(error)) => Err(failed(&error)),
        (None, None) => Err(internal("an operation has ended without a word")),
    }
}

fn tell(operation: &OperationContext, now: &Operation) {
    let progress = match now.total_bytes {
        0 => None,
        total => Some(Progress::count(now.done_bytes, Some(total), "bytes")),
    };
    let known = operation_phases(operation).any(|phase| phase == now.phase);
    operation.progress(if known { &now.phase } else { "looking" }, now.phase.clone(), progress);
}

fn operation_phases(operation: &OperationContext) -> impl Iterator<Item = &'static str> {
    let definition = kinds::find(&operation.op().kind);
    definition.into_iter().flat_map(|definition| definition.phases).map(|phase| phase.name)
}

fn failed(error: &FailureAnswer) -> OperationFailure {
    if error.code == FailureKind::Abandoned {
        return OperationFailure::HandedBack;
    }
    let code = serde_json::to_value(error.code).ok();
    let code = code.as_ref().and_then(Value::as_str).unwrap_or("internal");
    if error.code.is_retryable() {
        OperationFailure::retryable(code, &error.message)
    } else {
        OperationFailure::permanent(code, &error.message)
    }
}

fn internal(message: &str) -> OperationFailure {
    failed(&FailureAnswer::from(&Failure::new(FailureKind::Internal, message)))
}

fn to_value(result: &impl Serialize) -> Result<Value, OperationFailure> {
    serde_json::to_value(result).map_err(|error| OperationFailure::permanent("internal", error))
}
