//! A backup: a checked copy that waits in the work directory, and its upload.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use object_storage::{FileUpload, ObjectStorageErrorKind, UploadState};

use super::DatabaseBackup;
use crate::answers::{BackupTaken, Tags, size_for_people};
use crate::copy::TableRows;
use crate::encryption::AGE;
use crate::failure::{Failure, FailureKind, Result};
use crate::names::{BackupId, BackupKind};
use crate::operations::Progress;
use crate::store::{BackupFacts, OPERATION, rfc3339};
use crate::transfer::{Packing, hash_and_pack};
use crate::work_directory::PendingUpload;

/// Parts of an upload under way at once; each is in memory.
const PARTS_AT_ONCE: usize = 3;
/// Bytes of a part. S3 takes no less than 5 MiB; larger ones are fewer requests.
pub const PART_BYTES: u64 = 8 * 1024 * 1024;

/// How many backups of one second get names.
const MOST_OF_ONE_SECOND: u32 = 100;

impl DatabaseBackup {
    pub(super) async fn take_backup(
        &self,
        kind: BackupKind,
        operation: Option<String>,
        progress: &Progress,
    ) -> Result<BackupTaken> {
        let deadline = Instant::now() + self.parts.settings.deadline();
        let _lock = self.parts.work.lock()?;
        let prepared = self.prepare(kind, operation, progress);
        let (pending, tables) = in_time(deadline, "copying and checking the database", prepared).await?;
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
        operation: Option<String>,
        progress: &Progress,
    ) -> Result<(PendingUpload, Vec<TableRows>)> {
        let parts = &self.parts;
        progress.phase("looking", 0);
        let engine = parts.database.engine()?;
        self.recover(engine)?;
        let size = parts.database.size_bytes(engine)?;
        let compress = parts.settings.backup.compress;
        let encrypt = !parts.recipients.is_empty();
        let packed = if compress || encrypt { size } else { 0 };
        parts.work.require_space(size.saturating_add(packed))?;
        let temporary = parts.work.temporary()?;
        let copy = temporary.join("copy");
        progress.phase("copying", size);
        // The moment whose state the backup is of.
        let timestamp = self.now();
        parts.database.copy(engine, &copy).await?;
        progress.phase("checking", size);
        let tables = parts.database.validate(engine, &copy).await?;
        progress.phase("hashing", size);
        let packed = (compress || encrypt).then(|| temporary.join("packed"));
        let packing =
            packed.clone().map(|file| Packing { file, compress, recipients: parts.recipients.clone() });
        let (sha256, bytes) = hash_and_pack(&copy, packing).await?;
        let facts = BackupFacts {
            bytes,
            sha256,
            encoding: if compress { "zstd" } else { "none" }.to_owned(),
            encryption: if encrypt { AGE } else { "none" }.to_owned(),
            tables: tables.len() as u64,
            rows: tables.iter().map(|table| table.rows).sum(),
        };
        let mut attributes = facts.attributes(kind, engine, timestamp, &tables);
        // Tells this very copy from another one of the same second and content.
        attributes.insert("copy".to_owned(), format!("{:016x}", rand::random::<u64>()));
        attributes.extend(operation.map(|operation| (OPERATION.to_owned(), operation)));
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
    pub(super) async fn upload(
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
                part_bytes: PART_BYTES,
                parallel: PARTS_AT_ONCE,
                resume: pending.state.clone(),
                progress: Some(self.upload_progress(&pending, progress)),
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
