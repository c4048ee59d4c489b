//! A restore, and the way back.

use std::path::Path;

use super::DatabaseBackup;
use crate::answers::Restored;
use crate::copy::{Database, TableRows};
use crate::encryption::{AGE, identities};
use crate::exchange::{Exchange, Place, directory_of};
use crate::failure::{Failure, FailureKind, Result};
use crate::names::Engine;
use crate::operations::Progress;
use crate::store::BackupFacts;
use crate::transfer::{Packed, download};
use crate::work_directory::require_space;

impl DatabaseBackup {
    pub(super) async fn restore(
        &self,
        id: &str,
        operation: Option<String>,
        progress: &Progress,
    ) -> Result<Restored> {
        let parts = &self.parts;
        let _lock = parts.work.lock()?;
        progress.phase("looking", 0);
        let backup = parts.store.find(id).await?;
        let place = Place::new(parts.database.path(), backup.engine);
        self.recover(backup.engine)?;
        if let Some(rollback) = self.done_by(&place, operation.as_deref())? {
            self.record_restore(&place).await?;
            let (bytes, sha256) = match &backup.facts {
                Some(facts) => (facts.bytes, Some(facts.sha256.clone())),
                None => (backup.stored_bytes, None),
            };
            return Ok(Restored {
                success: true,
                backup_id: Some(backup.id.to_string()),
                rolled_back: false,
                bytes,
                sha256,
                tables: Vec::new(),
                rollback_copy: Some(rollback),
            });
        }
        place.require_closed()?;
        let size = backup.facts.as_ref().map_or(backup.stored_bytes, |facts| facts.bytes);
        require_space(directory_of(parts.database.path()), size)?;
        let encrypted = backup.facts.as_ref().is_some_and(|facts| facts.encryption == AGE);
        let packed = Packed {
            zstd: backup.facts.as_ref().is_some_and(|facts| facts.encoding == "zstd"),
            identities: encrypted
                .then(|| identities(&parts.settings.encryption.identity_file))
                .transpose()?,
        };
        let incoming = Incoming { path: place.incoming(), place: place.clone() };
        let key = parts.store.key(&backup.id)?;
        progress.phase("downloading", backup.stored_bytes);
        let objects = parts.store.objects();
        let told = |done| progress.done(done);
        let downloaded = download(objects, &key, backup.stored_bytes, packed, &incoming.path, told);
        let (sha256, bytes) = downloaded.await?;
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
            operation,
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

    pub(super) async fn roll_back(&self, operation: Option<String>, progress: &Progress) -> Result<Restored> {
        let parts = &self.parts;
        let _lock = parts.work.lock()?;
        progress.phase("looking", 0);
        let missing =
            || Failure::new(FailureKind::NotFound, "there is no rollback copy: nothing was restored here");
        // The rollback copy tells by itself what it is.
        let any = Place::new(parts.database.path(), Engine::Duckdb);
        any.recover()?;
        let rollback = any.rollback()?.ok_or_else(missing)?;
        let copy = any.rollback_path(&rollback);
        let engine = parts.database.engine_of(&copy)?;
        let place = Place::new(parts.database.path(), engine);
        if let Some(rollback) = self.done_by(&place, operation.as_deref())? {
            self.record_restore(&place).await?;
            return Ok(Restored {
                success: true,
                backup_id: parts.store.latest_restored().await?,
                rolled_back: true,
                bytes: std::fs::metadata(parts.database.path()).map(|metadata| metadata.len()).unwrap_or(0),
                sha256: None,
                tables: Vec::new(),
                rollback_copy: Some(rollback),
            });
        }
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
            operation,
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

    pub(super) async fn record_restore(&self, place: &Place) -> Result<()> {
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

    /// The rollback copy, if this operation has exchanged the files already and its end was not heard of: done twice, it
    /// would be a copy of what was restored.
    fn done_by(&self, place: &Place, operation: Option<&str>) -> Result<Option<String>> {
        let rollback = place.rollback()?.filter(|rollback| rollback.operation.as_deref() == operation);
        Ok(operation.and(rollback).map(|rollback| place.rollback_path(&rollback).display().to_string()))
    }

    /// Ends an exchange that a crash has interrupted; until then nothing else may happen.
    pub(super) fn recover(&self, engine: Engine) -> Result<()> {
        let place = Place::new(self.parts.database.path(), engine);
        place.recover()?;
        place.sweep()
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
