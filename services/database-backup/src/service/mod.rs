//! What the service does: takes backups, restores them, and looks after what is there.

mod backup;
mod restore;

pub use backup::PART_BYTES;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use age::x25519::Recipient;
use time::OffsetDateTime;

use crate::copy::Database;
use crate::exchange::Place;
use crate::failure::{Failure, FailureKind, Result};
use crate::names::{BackupId, BackupKind, Engine};
use crate::operations::{OperationHandle, OperationKind, Operations, Outcome, Progress};
use crate::settings::Settings;
use crate::store::{Backup, BackupStore, rfc3339};
use crate::work_directory::WorkDirectory;

/// Tells the time. A test has its own.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

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
    recipients: Vec<Recipient>,
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
            recipients: settings.recipients().map_err(wrong)?,
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
        self.begin_backup_for(kind, None)
    }

    /// The same for an operation on the bus, whose id the backup then carries.
    pub(crate) fn begin_backup_for(
        &self,
        kind: BackupKind,
        operation: Option<String>,
    ) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Backup, |progress| async move {
            let taken = service.take_backup(kind, operation, &progress).await;
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
        self.begin_restore_for(id, None)
    }

    /// The same for an operation on the bus, which happens once, however often it is begun.
    pub(crate) fn begin_restore_for(&self, id: String, operation: Option<String>) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Restore, |progress| async move {
            service.restore(&id, operation, &progress).await.map(Outcome::Restore)
        })
    }

    /// Begins to put back what was there before the last restore.
    ///
    /// # Errors
    ///
    /// If it is disabled, or something else runs.
    pub fn begin_rollback(&self) -> Result<OperationHandle> {
        self.begin_rollback_for(None)
    }

    /// The same for an operation on the bus, which happens once, however often it is begun.
    pub(crate) fn begin_rollback_for(&self, operation: Option<String>) -> Result<OperationHandle> {
        self.require_enabled()?;
        let service = self.clone();
        self.begin(OperationKind::Restore, |progress| async move {
            service.roll_back(operation, &progress).await.map(Outcome::Restore)
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

    /// The newest backup.
    ///
    /// # Errors
    ///
    /// If there is none, or the bucket does not answer.
    pub async fn newest(&self) -> Result<BackupId> {
        let missing = || Failure::new(FailureKind::NotFound, "there is no backup");
        self.list().await?.into_iter().next().map(|backup| backup.id).ok_or_else(missing)
    }

    /// One backup.
    ///
    /// # Errors
    ///
    /// If there is none of that id, or the bucket does not answer.
    pub(crate) async fn find(&self, id: &str) -> Result<Backup> {
        self.parts.store.find(id).await
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

/// A disabled service may have no credentials, and connects nowhere.
fn with_credentials(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    if !settings.backup.enabled {
        settings.storage.directory = settings.work_directory();
    }
    settings
}
