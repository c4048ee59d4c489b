//! Making a snapshot of layout 2.
//!
//! The snapshot file is the last thing written, by us and not by rustic: only after the source has told that
//! nothing was left out, every pack and index is acknowledged, and every directory of the new tree has been
//! read back from the repository and put into the digest. That last step is no luxury: rustic takes over an
//! unchanged directory from the parent without looking whether it is still there, and so carries damage from
//! backup to backup unseen. Where it is found, the backup is repeated without a parent, which writes whatever
//! is missing anew.
//!
//! A crash at any point leaves packs and perhaps an index that no snapshot names: a later backup reuses them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustic_core::repofile::{SnapshotFile, SnapshotSummary};
use rustic_core::{BackupOptions, IndexedFull, IndexedTree, SnapshotOptions};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backend::{RepositoryBackend, RequestCounts, SnapshotWrites};
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::repository::{Progress, ProgressRelay, Repository, Rustic};
use crate::snapshot::{Purpose, SnapshotId, SnapshotTags, validate_tags};
use crate::snapshot_tree::SnapshotTrees;
use crate::source::{BackupSource, CountedPaths, PERSIST_ROOT, PROJECT_ROOT, SourceFindings, SourceState};
use crate::tree_digest::{TreeCounts, TreeDigest};

/// What is to be backed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// The directory that becomes `project/`.
    pub project: PathBuf,
    /// The directory that becomes `persist/`; it may be empty.
    pub persist: PathBuf,
    /// Only these paths of `project`, relative to it, and what is beneath them; all where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<PathBuf>,
    /// Whether these can change meanwhile.
    pub source: SourceState,
    /// The snapshot to compare with, never searched for. One that does not exist (any more) costs a full
    /// read and is said in the receipt.
    pub parent: Option<SnapshotId>,
    /// Why.
    pub purpose: Purpose,
    /// The operation that this backup belongs to.
    pub op_id: Uuid,
    /// Which attempt of it this is, from 1. A later one first looks for the snapshot of an earlier one.
    pub attempt: u32,
    /// Tags that people chose, see [`validate_tags`].
    pub tags: Vec<String>,
}

/// What became of the parent that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParentUse {
    /// None was asked for: everything was read.
    NotGiven,
    /// Unchanged files were not read again.
    Used,
    /// Nothing had changed since: its tree is the tree of this backup, too.
    Unchanged,
    /// It does not exist or is not one of ours: everything was read.
    Missing,
    /// Data that it shares with this backup was missing in the repository: everything was read and what was
    /// missing written again.
    Damaged,
}

/// What a finished backup is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupReceipt {
    /// The backup's id.
    pub snapshot: SnapshotId,
    /// Digest of the whole tree, 64 hexadecimal digits: the same after a correct restore on any host.
    pub tree: String,
    /// Entries that are not directories.
    pub files: u64,
    /// Directories, the two roots among them.
    pub directories: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// Bytes that were new to the repository, before compression.
    pub bytes_added: u64,
    /// The parent that was used.
    pub parent: Option<SnapshotId>,
    /// What became of the parent that was asked for.
    pub parent_use: ParentUse,
    /// Seconds from the start to the stored snapshot.
    pub duration_s: f64,
    /// Entries of a live tree that were gone when their turn came.
    pub vanished: CountedPaths,
    /// Files of a live tree that changed while they were read.
    pub changed: CountedPaths,
    /// When what was read was fixed, or when the reading of a live tree began: Unix time in seconds, with fraction.
    pub taken_at: f64,
    /// Whether an earlier attempt had already made this snapshot. What it has is of that time, not of this attempt's.
    pub found: bool,
    /// Requests to the object store.
    pub requests: RequestCounts,
}

/// A tree that is wholly in the repository, without a snapshot yet.
struct Archived {
    snapshot: SnapshotFile,
    tree: String,
    counts: TreeCounts,
    findings: SourceFindings,
    /// Whether it is the parent's tree.
    unchanged: bool,
}

impl Repository {
    /// Makes a backup, or finds the one that an earlier attempt of the same operation made. Blocks.
    ///
    /// Errors: `NotFound` if one of the paths that it is to be limited to is not there, `SourceUnreadable` if anything could not be read (on a live tree: for another reason than
    /// that it is gone), `Canceled` if the progress said so. In neither case is there a snapshot.
    pub fn back_up(self, request: &BackupRequest, progress: &Arc<dyn Progress>) -> Result<BackupReceipt> {
        let (started, began) = (Instant::now(), jiff::Timestamp::now());
        validate_tags(&request.tags)?;
        if request.attempt > 1
            && let Some(receipt) = self.find_backup_of(request.op_id)?
        {
            return Ok(receipt);
        }
        let (parent, parent_use) = self.parent(request.parent)?;
        if let Some(summary) = parent.as_ref().and_then(|parent| parent.summary.as_ref()) {
            progress.scanned(summary.total_files_processed, summary.total_bytes_processed);
        }
        let Self { rustic, backend, identity, relay, .. } = self;
        let mut tags = SnapshotTags {
            project_id: identity.project_id,
            purpose: request.purpose,
            op_id: request.op_id,
            tree: None,
            user: request.tags.clone(),
        };
        let job = BackupJob { backend: &backend, relay: &relay, request, progress, started, began };
        let parent_id =
            parent.as_ref().map(|parent| SnapshotId::from_rustic(parent.id.into_inner())).transpose()?;

        let (rustic, archived) = job.archive(rustic, parent.as_ref())?;
        let (rustic, archived, parent_id, parent_use) = match archived {
            Err(damage) if damage.kind() == Kind::Damaged && parent_id.is_some() => {
                tracing::warn!(error = %damage.chain(), "the repository misses data: everything is read anew");
                let (rustic, archived) = job.archive(rustic, None)?;
                (rustic, archived?, None, ParentUse::Damaged)
            }
            archived => (rustic, archived?, parent_id, parent_use),
        };
        // rustic passes over a parent that it cannot read.
        let (parent_id, parent_use) = match (parent_id, archived.snapshot.parent) {
            (Some(_), None) => (None, ParentUse::Missing),
            (Some(_), Some(_)) if archived.unchanged => (parent_id, ParentUse::Unchanged),
            _ => (parent_id, parent_use),
        };
        tags.tree = Some(archived.tree.clone());
        let (snapshot, bytes_added) = job.store_snapshot(&rustic, &archived, &tags)?;
        backend.cache().trim();
        Ok(BackupReceipt {
            snapshot,
            tree: archived.tree,
            files: archived.counts.files,
            directories: archived.counts.directories,
            bytes: archived.counts.bytes,
            bytes_added,
            parent: parent_id,
            parent_use,
            duration_s: started.elapsed().as_secs_f64(),
            vanished: archived.findings.vanished,
            changed: archived.findings.changed,
            taken_at: taken_at(&archived.snapshot),
            found: false,
            requests: backend.requests(),
        })
    }

    fn parent(&self, id: Option<SnapshotId>) -> Result<(Option<SnapshotFile>, ParentUse)> {
        let Some(id) = id else {
            return Ok((None, ParentUse::NotGiven));
        };
        match self.snapshot(id) {
            Ok((snapshot, _)) => Ok((Some(snapshot), ParentUse::Used)),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::UnsupportedLayout) => {
                tracing::warn!(backup.parent = %id, %error, "the parent cannot be used: everything is read");
                Ok((None, ParentUse::Missing))
            }
            Err(error) => Err(error),
        }
    }

    /// The backup that an operation made, if it got that far: for a step that is repeated after its answer
    /// was lost. Reads every snapshot that is not in the cache, so ask only on a repetition.
    ///
    /// An attempt that did not know yet that it had lost its lease may have counted on packs that a prune has marked since.
    /// Its backup would not restore before another prune had taken them back, so it is none. Its snapshot, which nobody else
    /// knows of, goes at once: a check would call the repository damaged for it.
    fn find_backup_of(&self, op_id: Uuid) -> Result<Option<BackupReceipt>> {
        let tag = format!("op={op_id}");
        let snapshots = self
            .rustic
            .get_matching_snapshots(|snapshot| snapshot.tags.contains(&tag))
            .map_err(|error| self.error("list snapshots of", &error))?;
        for snapshot in snapshots {
            let tags = SnapshotTags::of(&snapshot)?;
            let Some(tree) = tags.tree.filter(|_| tags.project_id == self.identity.project_id) else {
                continue;
            };
            let id = SnapshotId::from_rustic(snapshot.id.into_inner())?;
            if !self.lacking([&id].into_iter())?.is_empty() {
                tracing::warn!(backup.id = %id, "what an earlier attempt made lacks data: it is made anew");
                self.forget(&[id])?;
                continue;
            }
            let taken_at = taken_at(&snapshot);
            let summary = snapshot.summary.unwrap_or_default();
            let parent = snapshot.parent.map(|id| SnapshotId::from_rustic(id.into_inner())).transpose()?;
            return Ok(Some(BackupReceipt {
                snapshot: id,
                tree,
                files: summary.total_files_processed,
                directories: summary.total_dirs_processed,
                bytes: summary.total_bytes_processed,
                bytes_added: summary.data_added,
                parent,
                parent_use: if parent.is_some() { ParentUse::Used } else { ParentUse::NotGiven },
                duration_s: summary.total_duration,
                vanished: CountedPaths::default(),
                changed: CountedPaths::default(),
                taken_at,
                found: true,
                requests: self.requests(),
            }));
        }
        Ok(None)
    }
}

struct BackupJob<'a> {
    backend: &'a RepositoryBackend,
    relay: &'a ProgressRelay,
    request: &'a BackupRequest,
    progress: &'a Arc<dyn Progress>,
    started: Instant,
    /// Before anything was read.
    began: jiff::Timestamp,
}

/// When what a snapshot has was fixed, see [`BackupReceipt::taken_at`].
fn taken_at(snapshot: &SnapshotFile) -> f64 {
    snapshot.time.timestamp().as_duration().as_secs_f64()
}

impl BackupJob<'_> {
    /// Brings everything into the repository but the snapshot. The inner error is damage that was found in
    /// the repository, after which the repository can still be used.
    fn archive(&self, rustic: Rustic, parent: Option<&SnapshotFile>) -> Result<(Rustic, Result<Archived>)> {
        let root = self.backend.root();
        let source = BackupSource::new(
            &self.request.project,
            &self.request.persist,
            &self.request.only,
            self.request.source,
            self.backend.guard().clone(),
            Arc::clone(self.progress),
        )?;
        self.relay.listen(source.byte_listener());
        let indexed =
            rustic.to_indexed().map_err(|error| self.backend.error("read index of", root, &error))?;
        if let Some(parent) = parent
            && let Some(archived) = self.unchanged(&indexed, &source, parent)?
        {
            return Ok((indexed.drop_index(), Ok(archived)));
        }

        let mut options = BackupOptions::default();
        options.parent_opts.force = parent.is_none();
        options.parent_opts.parents = parent.iter().map(|parent| parent.id.to_hex().to_string()).collect();
        // With a parent, its totals are near enough for the progress display, and cost nothing.
        options.no_scan = parent.is_some();
        let index_writes = self.backend.index_writes();
        self.backend.set_snapshot_writes(SnapshotWrites::HeldBack);
        let outcome = indexed.archive(
            &options,
            &source,
            self.blank_snapshot()?,
            &[PathBuf::from(PROJECT_ROOT), PathBuf::from(PERSIST_ROOT)],
        );

        let findings = source.findings();
        if self.progress.is_canceled() {
            return Err(BackupRepositoryError::canceled("back up"));
        }
        if findings.unreadable.count > 0 {
            let CountedPaths { count, first } = findings.unreadable;
            let message = format!("{count} could not be read: {}", first.join("; "));
            return Err(BackupRepositoryError::new(Kind::SourceUnreadable, "back up", root, message));
        }
        let snapshot = outcome.map_err(|error| self.backend.error("back up", root, &error))?;
        let failure = self.backend.take_failure("back up");
        if self.backend.guard().is_closed() {
            let message = "the writing was stopped";
            return Err(failure
                .unwrap_or_else(|| BackupRepositoryError::new(Kind::Retryable, "back up", root, message)));
        }
        // What is left are failed reads of the parent, in whose place the files themselves were read.

        let indexed = if self.backend.index_writes() == index_writes {
            indexed
        } else {
            indexed
                .drop_index()
                .to_indexed()
                .map_err(|error| self.backend.error("read index of", root, &error))?
        };
        let digest = self.digest(&indexed, &snapshot);
        let archived = match digest {
            Ok(digest) => {
                let counts = digest.counts();
                Ok(Archived { snapshot, tree: digest.finish(), counts, findings, unchanged: false })
            }
            Err(error) if error.kind() == Kind::Damaged => Err(error),
            Err(error) => return Err(error),
        };
        Ok((indexed.drop_index(), archived))
    }

    /// Reads the whole new tree back from the repository.
    fn digest<S: IndexedTree>(
        &self,
        indexed: &rustic_core::Repository<S>,
        snapshot: &SnapshotFile,
    ) -> Result<TreeDigest> {
        let mut digest = TreeDigest::new();
        let trees = SnapshotTrees { rustic: indexed, backend: self.backend };
        let wanted = |path: &PathBuf| Path::new(PROJECT_ROOT).join(path);
        let mut missing: BTreeSet<PathBuf> = self.request.only.iter().map(wanted).collect();
        for entry in trees.entries(Path::new(""), snapshot.tree)? {
            let (path, node) = entry?;
            if self.progress.is_canceled() {
                return Err(BackupRepositoryError::canceled("back up"));
            }
            missing.remove(&path);
            digest.add(&path, &node);
        }
        match missing.first() {
            None => Ok(digest),
            Some(path) => Err(BackupRepositoryError::new(
                Kind::NotFound,
                "back up",
                path.display(),
                "it is not among the files of the project",
            )),
        }
    }

    /// The parent's tree, if nothing has changed since: read from the repository and compared with the source
    /// in one pass, up to the first difference. rustic would take every entry through its pipeline of
    /// threads, which costs several times as much. `None` where it has to: something changed or is missing.
    fn unchanged<S: IndexedFull>(
        &self,
        indexed: &rustic_core::Repository<S>,
        source: &BackupSource,
        parent: &SnapshotFile,
    ) -> Result<Option<Archived>> {
        let mut digest = TreeDigest::new();
        let trees = SnapshotTrees { rustic: indexed, backend: self.backend };
        let compared = trees.entries(Path::new(""), parent.tree).and_then(|entries| {
            source.equals(entries.map(|entry| {
                let (path, node) = entry?;
                if let Some(missing) =
                    node.content.iter().flatten().find(|chunk| indexed.get_index_entry(*chunk).is_err())
                {
                    let message = format!("chunk {} is not in the index", missing.to_hex().as_str());
                    return Err(BackupRepositoryError::new(
                        Kind::Damaged,
                        "read file",
                        path.display(),
                        message,
                    ));
                }
                digest.add(&path, &node);
                Ok((path, node))
            }))
        });
        match compared {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if error.kind() == Kind::Damaged => return Ok(None),
            Err(error) => return Err(error),
        }
        let counts = digest.counts();
        self.progress.stored(counts.files, counts.bytes);
        let mut snapshot = self.blank_snapshot()?;
        snapshot.tree = parent.tree;
        snapshot.paths = parent.paths.clone();
        snapshot.parent = Some(parent.id);
        snapshot.parents = vec![parent.id];
        let mut summary = SnapshotSummary::default();
        summary.files_unmodified = counts.files;
        summary.dirs_unmodified = counts.directories;
        snapshot.summary = Some(summary);
        let findings = SourceFindings::default();
        Ok(Some(Archived { snapshot, tree: digest.finish(), counts, findings, unchanged: true }))
    }

    fn blank_snapshot(&self) -> Result<SnapshotFile> {
        let mut options = SnapshotOptions::default();
        options.host = Some("longhaul".to_owned());
        options.command = Some("longhaul".to_owned());
        let taken_at = match self.request.source {
            SourceState::ReadOnly { taken_at } => jiff::SignedDuration::try_from_secs_f64(taken_at)
                .and_then(jiff::Timestamp::from_duration)
                .map_err(|error| {
                    let message = "the time of the snapshot is no time";
                    BackupRepositoryError::new(Kind::InvalidArgument, "back up", self.backend.root(), message)
                        .with_source(error)
                })?,
            SourceState::Live => self.began,
        };
        options.time = Some(taken_at.to_zoned(jiff::tz::TimeZone::UTC));
        options.to_snapshot().map_err(|error| self.backend.error("back up", self.backend.root(), &error))
    }

    /// The last step: from here on the backup exists. Returns its id and the bytes added.
    fn store_snapshot(
        &self,
        rustic: &Rustic,
        archived: &Archived,
        tags: &SnapshotTags,
    ) -> Result<(SnapshotId, u64)> {
        let root = self.backend.root();
        let mut snapshot = archived.snapshot.clone();
        let mut summary = snapshot.summary.take().unwrap_or_default();
        summary.total_files_processed = archived.counts.files;
        summary.total_dirs_processed = archived.counts.directories;
        summary.total_bytes_processed = archived.counts.bytes;
        summary.total_duration = self.started.elapsed().as_secs_f64();
        let bytes_added = summary.data_added;
        snapshot.summary = Some(summary);
        snapshot.tags = tags.to_list();
        self.backend.set_snapshot_writes(SnapshotWrites::Stored);
        rustic
            .save_snapshots(vec![snapshot])
            .map_err(|error| self.backend.error("save snapshot in", root, &error))?;
        let id = self.backend.last_snapshot().ok_or_else(|| {
            BackupRepositoryError::new(Kind::Permanent, "save snapshot in", root, "no snapshot was written")
        })?;
        Ok((SnapshotId::from_rustic(id)?, bytes_added))
    }
}
