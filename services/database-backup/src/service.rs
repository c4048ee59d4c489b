//! What the service does: takes backups, restores them, and looks after what is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_storage::{FileUpload, ObjectStorageErrorKind, UploadState};
use time::OffsetDateTime;

use crate::answers::{BackupTaken, Restored, Tags, size_for_people};
use crate::copy::{Database, TableRows};
use crate::exchange::{Exchange, Place, directory_of};
use crate::failure::{Failure, FailureKind, Result};
use crate::names::{BackupId, BackupKind, Engine};
use crate::operations::{OperationHandle, OperationKind, Operations, Outcome, Progress};
use crate::settings::Settings;
use crate::store::{Backup, BackupFacts, BackupStore, rfc3339};
use crate::transfer;
use crate::work_directory::{PendingUpload, WorkDirectory, require_space};

/// Tells the time. A test has its own.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// How many backups of one second get names.
const MOST_OF_ONE_SECOND: u32 = 100;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct DatabaseBackup {
    parts: Arc<Parts>,
}

struct Parts {
    settings: Settings,
    database: Database,
    store: BackupStore,
    work: WorkDirectory,
    operations: Operations,
    clock: Clock,
    last_success: AtomicI64,
    last_failed: AtomicBool,
}

impl std::fmt::Debug for DatabaseBackup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DatabaseBackup")
            .field("database", &self.parts.database)
            .finish_non_exhaustive()
    }
}

impl DatabaseBackup {
    /// The service of these settings. Reaches for no network.
    ///
    /// # Errors
    ///
    /// If the settings make no sense, or the work directory cannot be made.
    pub fn new(settings: Settings, clock: Clock) -> Result<Self> {
        let wrong = |error: crate::settings::SettingsMistake| {
            Failure::new(FailureKind::InvalidArgument, error.to_string())
        };
        settings.check().map_err(wrong)?;
        let names = settings.names().map_err(wrong)?;
        let parts = Parts {
            database: Database::new(&settings.database),
            store: BackupStore::new(&with_credentials(&settings), names)?,
            work: WorkDirectory::open(settings.work_directory())?,
            operations: Operations::default(),
            clock,
            last_success: AtomicI64::new(0),
            last_failed: AtomicBool::new(false),
            settings,
        };
        Ok(Self { parts: Arc::new(parts) })
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.parts.settings
    }

    /// Its operations.
    pub fn operations(&self) -> &Operations {
        &self.parts.operations
    }

    /// The time.
    pub fn now(&self) -> OffsetDateTime {
        (self.parts.clock)()
    }

    /// Requests to the object store so far.
    pub fn requests(&self) -> object_storage::RequestCounts {
        self.parts.store.requests()
    }

    /// When the newest backup was taken that this process knows of.
    pub fn last_success(&self) -> Option<OffsetDateTime> {
        let seconds = self.parts.last_success.load(Ordering::Relaxed);
        (seconds > 0).then(|| OffsetDateTime::from_unix_timestamp(seconds).ok()).flatten()
    }

    /// Whether the last backup failed.
    pub fn last_failed(&self) -> bool {
        self.parts.last_failed.load(Ordering::Relaxed)
    }

    /// How many copies wait for their upload.
    pub fn pending_uploads(&self) -> usize {
        self.parts.work.pending().map_or(0, |pending| pending.len())
    }

    /// Refuses where nothing is to be done.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Disabled`].
    pub fn require_enabled(&self) -> Result<()> {
        if self.parts.settings.backup.enabled {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Disabled, "backups are disabled (BACKUP_ENABLED=false)"))
    }

    /// Begins a backup, or joins the one that runs.
    ///
    /// # Errors
    ///
    /// If it is disabled, or something else runs.
    pub fn begin_backup(&self, kind: BackupKind) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Backup, |progress| async move {
            let taken = service.take_backup(kind, &progress).await;
            service.parts.last_failed.store(taken.is_err(), Ordering::Relaxed);
            taken.map(Outcome::Backup)
        })
    }

    /// Begins a restore.
    ///
    /// # Errors
    ///
    /// If it is disabled, or something else runs.
    pub fn begin_restore(&self, id: String) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Restore, |progress| async move {
            service.restore(&id, &progress).await.map(Outcome::Restore)
        })
    }

    /// Begins to put back what was there before the last restore.
    ///
    /// # Errors
    ///
    /// If it is disabled, or something else runs.
    pub fn begin_rollback(&self) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Restore, |progress| async move {
            service.roll_back(&progress).await.map(Outcome::Restore)
        })
    }

    /// Begins to end what an earlier process could not, and to delete what is old.
    ///
    /// # Errors
    ///
    /// If it is disabled, or something else runs.
    pub fn begin_maintenance(&self) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Maintenance, |progress| async move {
            service.maintain(&progress).await.map(|()| Outcome::Done)
        })
    }

    fn begin<Work, Done>(&self, kind: OperationKind, work: Work) -> Result<OperationHandle>
    where
        Work: FnOnce(Progress) -> Done,
        Done: Future<Output = Result<Outcome>> + Send + 'static,
    {
        self.parts.operations.begin(kind, rfc3339(self.now()), work)
    }

    /// Every backup, newest first.
    ///
    /// # Errors
    ///
    /// If it is disabled, or the bucket does not answer.
    pub async fn list(&self) -> Result<Vec<Backup>> {
        self.require_enabled()?;
        let backups = self.parts.store.list().await?;
        if let Some(newest) = backups.iter().find(|backup| backup.facts.is_some()) {
            self.remember_success(newest.timestamp);
        }
        Ok(backups)
    }

    /// Writes down that a backup is the one restored last.
    ///
    /// # Errors
    ///
    /// If there is none of that id.
    pub async fn set_latest_restored(&self, id: &str) -> Result<BackupId> {
        self.require_enabled()?;
        let found = self.parts.store.find(id).await?;
        self.parts.store.set_latest_restored(Some(found.id.as_str()), self.now()).await?;
        Ok(found.id)
    }

    fn remember_success(&self, at: OffsetDateTime) {
        self.parts.last_success.fetch_max(at.unix_timestamp(), Ordering::Relaxed);
    }

    // --- backup ----------------------------------------------------------------------------------------------

    async fn take_backup(&self, kind: BackupKind, progress: &Progress) -> Result<BackupTaken> {
        let deadline = Instant::now() + self.parts.settings.deadline();
        let _lock = self.parts.work.lock()?;
        let prepared = in_time(deadline, "copying and checking the database", self.prepare(kind, progress));
        let (pending, tables) = prepared.await?;
        let uploaded = in_time(deadline, "uploading", self.upload(pending.clone(), progress)).await;
        let (id, facts) = match uploaded {
            Ok(uploaded) => uploaded,
            Err(failure) => {
                self.drop_old_pending();
                let kept = self.parts.work.pending_path(&pending.id);
                return Err(if kept.exists() { failure.with_kept(kept) } else { failure });
            }
        };
        let timestamp = self
            .parts
            .store
            .names()
            .parse(id.as_str())
            .map_or_else(|_| self.now(), |(_, facts)| facts.timestamp);
        self.remember_success(timestamp);
        if kind != BackupKind::Shutdown
            && let Err(failure) = self.delete_old().await
        {
            tracing::error!(error = failure.describe(), "old backups could not be deleted");
        }
        Ok(BackupTaken {
            success: true,
            backup_id: id.to_string(),
            timestamp: rfc3339(timestamp),
            size: size_for_people(facts.bytes),
            tags: Tags { kind: kind.as_str().to_owned() },
            bytes: facts.bytes,
            sha256: facts.sha256,
            tables,
        })
    }

    /// A checked copy, waiting for its upload.
    async fn prepare(
        &self,
        kind: BackupKind,
        progress: &Progress,
    ) -> Result<(PendingUpload, Vec<TableRows>)> {
        let parts = &self.parts;
        progress.phase("looking", 0);
        let engine = parts.database.engine()?;
        self.recover(engine)?;
        let size = parts.database.size_bytes(engine)?;
        let compressed = if parts.settings.backup.compress { size } else { 0 };
        parts.work.require_space(size.saturating_add(compressed))?;
        let temporary = parts.work.temporary()?;
        let copy = temporary.join("copy");
        progress.phase("copying", size);
        // The moment whose state the backup is of.
        let timestamp = self.now();
        parts.database.copy(engine, &copy).await?;
        progress.phase("checking", size);
        let tables = parts.database.validate(engine, &copy).await?;
        progress.phase("hashing", size);
        let packed = parts.settings.backup.compress.then(|| temporary.join("packed"));
        let (sha256, bytes) = transfer::hash_and_compress(&copy, packed.as_deref()).await?;
        let facts = BackupFacts {
            bytes,
            sha256,
            encoding: if packed.is_some() { "zstd" } else { "none" }.to_owned(),
            tables: tables.len() as u64,
            rows: tables.iter().map(|table| table.rows).sum(),
        };
        let mut attributes = facts.attributes(kind, engine, timestamp, &tables);
        // Tells this very copy from another one of the same second and content.
        attributes.insert("copy".to_owned(), format!("{:016x}", rand::random::<u64>()));
        // No other process has this directory, so only a pending copy could have the same name.
        let id = (1..=MOST_OF_ONE_SECOND)
            .map(|number| parts.store.names().id(kind, engine, timestamp, number))
            .find(|id| !parts.work.pending_path(id.as_str()).exists())
            .ok_or_else(|| Failure::new(FailureKind::Internal, "too many backups of one second wait"))?;
        let pending = PendingUpload { id: id.to_string(), attributes, state: None };
        parts.work.add_pending(packed.as_deref().unwrap_or(&copy), &pending)?;
        Ok((pending, tables))
    }

    /// Uploads a pending copy under its name, or the next one that is free.
    async fn upload(
        &self,
        mut pending: PendingUpload,
        progress: &Progress,
    ) -> Result<(BackupId, BackupFacts)> {
        let parts = &self.parts;
        let unreadable = || {
            Failure::new(FailureKind::Internal, format!("the pending copy {} is not described", pending.id))
        };
        let facts = BackupFacts::read(&pending.attributes).ok_or_else(unreadable)?;
        let (first, name) = parts.store.names().parse(&pending.id).map_err(|_| unreadable())?;
        let kind = match pending.attributes.get("type").map(String::as_str) {
            Some("manual") => BackupKind::Manual,
            Some("scheduled") => BackupKind::Scheduled,
            _ => BackupKind::Shutdown,
        };
        let path = parts.work.pending_path(&pending.id);
        let stored = std::fs::metadata(&path)
            .map_err(|error| Failure::io(format_args!("reading {}", path.display()), error))?
            .len();
        progress.phase("uploading", stored);
        let mut id = first;
        let mut number = name.number;
        loop {
            let key = parts.store.key(&id)?;
            match parts.store.objects().describe(&key).await {
                // Uploaded by an earlier try, whose answer or whose process was lost.
                Ok(found) if found.attributes == pending.attributes && found.size_bytes == stored => break,
                Ok(_) => {
                    number += 1;
                    if number > MOST_OF_ONE_SECOND {
                        return Err(Failure::new(
                            FailureKind::StorageFailed,
                            "every name of this second is taken",
                        ));
                    }
                    id = parts.store.names().id(kind, name.engine, name.timestamp, number);
                    pending.state = None;
                    continue;
                }
                Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => {}
                Err(error) => return Err(Failure::storage(error)),
            }
            let upload = FileUpload {
                attributes: pending.attributes.clone(),
                resume: pending.state.clone(),
                progress: Some(self.upload_progress(&pending, progress)),
                ..FileUpload::default()
            };
            match parts.store.objects().upload_file(&key, &path, &upload).await {
                Ok(_) => break,
                Err(error) if error.kind() == ObjectStorageErrorKind::AlreadyExists => pending.state = None,
                Err(error) => return Err(Failure::storage(error)),
            }
        }
        parts.work.remove_pending(&pending.id)?;
        tracing::info!(backup.id = %id, backup.bytes = facts.bytes, "a backup is stored");
        Ok((id, facts))
    }

    /// Tells how far an upload is, and writes down where a later process can go on.
    fn upload_progress(
        &self,
        pending: &PendingUpload,
        progress: &Progress,
    ) -> object_storage::UploadProgress {
        let (work, progress) = (self.parts.work.clone(), progress.clone());
        let pending = Mutex::new(pending.clone());
        Arc::new(move |state: &UploadState, stored| {
            progress.done(stored);
            if state.upload_id.is_empty() {
                return;
            }
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.state = Some(state.clone());
            if let Err(failure) = work.describe_pending(&pending) {
                tracing::warn!(error = failure.describe(), "how far an upload is could not be written down");
            }
        })
    }

    /// Keeps the newest copies that wait, so that a bucket that is away for long does not fill the disk.
    fn drop_old_pending(&self) {
        let keep = self.parts.settings.backup.pending_copies.max(1);
        let dropped = self.parts.work.pending().and_then(|pending| {
            let superfluous = pending.len().saturating_sub(keep);
            pending[..superfluous].iter().try_for_each(|old| {
                tracing::warn!(
                    backup.id = old.id,
                    "a copy that was never uploaded is removed: newer ones wait, too"
                );
                self.parts.work.remove_pending(&old.id)
            })
        });
        if let Err(failure) = dropped {
            tracing::error!(
                error = failure.describe(),
                "copies that wait for their upload could not be looked at"
            );
        }
    }

    // --- restore ---------------------------------------------------------------------------------------------

    async fn restore(&self, id: &str, progress: &Progress) -> Result<Restored> {
        let parts = &self.parts;
        let _lock = parts.work.lock()?;
        progress.phase("looking", 0);
        let backup = parts.store.find(id).await?;
        let place = Place::new(parts.database.path(), backup.engine);
        self.recover(backup.engine)?;
        place.require_closed()?;
        let size = backup.facts.as_ref().map_or(backup.stored_bytes, |facts| facts.bytes);
        require_space(directory_of(parts.database.path()), size)?;
        let incoming = Incoming { path: place.incoming(), place: place.clone() };
        let key = parts.store.key(&backup.id)?;
        progress.phase("downloading", backup.stored_bytes);
        let zstd = backup.facts.as_ref().is_some_and(|facts| facts.encoding == "zstd");
        let objects = parts.store.objects();
        let (sha256, bytes) =
            transfer::download(objects, &key, backup.stored_bytes, zstd, &incoming.path, |done| {
                progress.done(done)
            })
            .await?;
        if let Some(facts) = &backup.facts
            && (facts.sha256 != sha256 || facts.bytes != bytes)
        {
            let message = format!(
                "{} was downloaded as {bytes} bytes with SHA-256 {sha256}, and was uploaded as {} with {}; nothing was changed",
                backup.id, facts.bytes, facts.sha256
            );
            return Err(Failure::new(FailureKind::ChecksumMismatch, message));
        }
        progress.phase("checking", bytes);
        let tables = self.check_incoming(backup.engine, &incoming.path, backup.facts.as_ref()).await?;
        progress.phase("exchanging", 0);
        let exchange = Exchange {
            incoming: incoming.path.clone(),
            latest_restored: Some(backup.id.to_string()),
            latest_restored_before: parts.store.latest_restored().await?,
        };
        self.exchange(&place, &exchange).await?;
        Ok(Restored {
            success: true,
            backup_id: Some(backup.id.to_string()),
            rolled_back: false,
            bytes,
            sha256: backup.facts.is_some().then_some(sha256),
            tables,
            rollback_copy: self.rollback_copy(&place)?,
        })
    }

    /// Opens a file before it is put in place. DuckDB and SQLite are asked as they are asked about a copy.
    async fn check_incoming(
        &self,
        engine: Engine,
        file: &Path,
        facts: Option<&BackupFacts>,
    ) -> Result<Vec<TableRows>> {
        let tables = self.parts.database.validate(engine, file).await?;
        let rows: u64 = tables.iter().map(|table| table.rows).sum();
        if let Some(facts) = facts
            && (facts.tables, facts.rows) != (tables.len() as u64, rows)
        {
            let message = format!(
                "{} tables with {rows} rows were read, and {} with {} were recorded; nothing was changed",
                tables.len(),
                facts.tables,
                facts.rows
            );
            return Err(Failure::new(FailureKind::NotValid, message));
        }
        Ok(tables)
    }

    async fn roll_back(&self, progress: &Progress) -> Result<Restored> {
        let parts = &self.parts;
        let _lock = parts.work.lock()?;
        progress.phase("looking", 0);
        let missing =
            || Failure::new(FailureKind::NotFound, "there is no rollback copy: nothing was restored here");
        // The rollback copy tells by itself what it is.
        let any = Place::new(parts.database.path(), Engine::Duckdb);
        let rollback = any.rollback()?.ok_or_else(missing)?;
        let copy = any.rollback_path(&rollback);
        let engine = parts.database.engine_of(&copy)?;
        let place = Place::new(parts.database.path(), engine);
        self.recover(engine)?;
        place.require_closed()?;
        let incoming = Incoming { path: place.incoming(), place: place.clone() };
        let link = |from: &Path, to: &Path| {
            std::fs::hard_link(from, to)
                .map_err(|error| Failure::io(format_args!("linking {}", from.display()), error))
        };
        link(&copy, &incoming.path)?;
        for suffix in Database::companions(engine) {
            let beside = crate::copy::with_suffix(&copy, suffix);
            if beside.exists() {
                link(&beside, &crate::copy::with_suffix(&incoming.path, suffix))?;
            }
        }
        progress.phase("exchanging", 0);
        let bytes = std::fs::metadata(&copy).map(|metadata| metadata.len()).unwrap_or(0);
        let exchange = Exchange {
            incoming: incoming.path.clone(),
            latest_restored: rollback.latest_restored.clone(),
            latest_restored_before: parts.store.latest_restored().await?,
        };
        self.exchange(&place, &exchange).await?;
        Ok(Restored {
            success: true,
            backup_id: rollback.latest_restored,
            rolled_back: true,
            bytes,
            sha256: None,
            tables: Vec::new(),
            rollback_copy: self.rollback_copy(&place)?,
        })
    }

    async fn exchange(&self, place: &Place, exchange: &Exchange) -> Result<()> {
        place.exchange(exchange, self.now())?;
        // The database is restored; that the manifest cannot say so now is mended at the next opportunity.
        if let Err(failure) = self.record_restore(place).await {
            tracing::error!(
                error = failure.describe(),
                "the restore could not be written down in the bucket yet"
            );
        }
        Ok(())
    }

    async fn record_restore(&self, place: &Place) -> Result<()> {
        if let Some(latest_restored) = place.unrecorded()? {
            self.parts.store.set_latest_restored(latest_restored.as_deref(), self.now()).await?;
            place.recorded()?;
        }
        Ok(())
    }

    fn rollback_copy(&self, place: &Place) -> Result<Option<String>> {
        let rollback = place.rollback()?;
        Ok(rollback.map(|rollback| place.rollback_path(&rollback).display().to_string()))
    }

    /// Ends an exchange that a crash has interrupted; until then nothing else may happen.
    fn recover(&self, engine: Engine) -> Result<()> {
        let place = Place::new(self.parts.database.path(), engine);
        place.recover()?;
        place.sweep()
    }

    // --- looking after it --------------------------------------------------------------------------------------

    async fn maintain(&self, progress: &Progress) -> Result<()> {
        let parts = &self.parts;
        let _lock = parts.work.lock()?;
        progress.phase("recovering", 0);
        let place = Place::new(parts.database.path(), Engine::Duckdb);
        place.recover()?;
        self.record_restore(&place).await?;
        for pending in parts.work.pending()? {
            let (id, _) = self.upload(pending, progress).await?;
            if let Ok((_, facts)) = parts.store.names().parse(id.as_str()) {
                self.remember_success(facts.timestamp);
            }
        }
        progress.phase("looking", 0);
        let backups = self.list().await?;
        let lifecycle = parts.settings.backup.lifecycle_days;
        if lifecycle > 0 {
            match parts.store.set_expiry(lifecycle).await {
                Ok(true) => {}
                Ok(false) => tracing::info!(
                    "the provider has no lifecycle rules: only this service deletes old backups"
                ),
                // Keys for objects alone may not do this; backups do not depend on it.
                Err(failure) => {
                    tracing::warn!(error = failure.describe(), "the bucket's lifecycle rule could not be set")
                }
            }
            let half = time::Duration::days(i64::from(lifecycle) / 2);
            if backups.first().is_some_and(|newest| self.now() - newest.timestamp > half) {
                tracing::error!(
                    "the newest backup is older than half of the {lifecycle} days after which the bucket deletes it: take one"
                );
            }
        }
        progress.phase("deleting", 0);
        self.delete_old().await
    }

    async fn delete_old(&self) -> Result<()> {
        let days = self.parts.settings.backup.retention_days;
        // What runs has the lock, so no restore of this machine is at work on one of them.
        let deleted = self.parts.store.delete_old(days, self.now(), &BTreeSet::new()).await?;
        if !deleted.is_empty() {
            let ids: Vec<&str> = deleted.iter().map(BackupId::as_str).collect();
            tracing::info!(
                backups = ids.join(" "),
                "{} backups older than {days} days are deleted",
                ids.len()
            );
        }
        Ok(())
    }

    /// How long ago the newest backup was, if that is too long; without any, since `started`.
    pub fn at_risk(&self, started: OffsetDateTime) -> Option<Duration> {
        let since = self.last_success().unwrap_or(started);
        let age = Duration::try_from(self.now() - since).unwrap_or_default();
        (age > Duration::from_secs(self.parts.settings.backup.at_risk_after_s)).then_some(age)
    }
}

/// A file that is to be put in place; removed where it was not.
struct Incoming {
    path: std::path::PathBuf,
    place: Place,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // An exchange that has begun is gone on with, and needs it.
        if !self.place.exchange_has_begun()
            && self.path.exists()
            && let Err(error) = self.place.sweep()
        {
            tracing::warn!(%error, path = %self.path.display(), "a file that was not put in place is left until the next operation");
        }
    }
}

async fn in_time<T>(deadline: Instant, doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(done) => done,
        Err(_) => {
            let message = format!("the deadline (backup.deadline_s) came while {doing}");
            Err(Failure::new(FailureKind::DeadlineExceeded, message))
        }
    }
}

/// A disabled service may have no credentials, and connects nowhere.
fn with_credentials(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    if !settings.backup.enabled {
        settings.storage.directory = settings.work_directory();
    }
    settings
}
