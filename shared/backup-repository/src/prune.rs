//! Forgetting snapshots and freeing what only they needed.
//!
//! What could go wrong, and does not here:
//! - A listing that misses something makes a prune delete what is alive. A listing that fails is an error (see
//!   `backend`). One that lacks a snapshot which the catalog knows is an error, whichever of the two is wrong.
//!   One that lacks an index makes a blob of some snapshot unknown, which ends the plan before anything is deleted.
//! - A snapshot that is lost or spoilt is needed by nobody any more, but nobody says so lightly: it is asked for by its name,
//!   and what is there is read twice. One that the local cache has is stored again. Of any other that has to be there
//!   the caller is told before anything is deleted, and decides; one that the caller does not need is passed over.
//! - Somebody who is still writing counts on packs that no snapshot names yet. Prunes, backups and restores of a
//!   project exclude each other; where one of them may have outlived its lease (the registry knows: `grace_s`),
//!   packs are only marked now, and deleted by a later prune, when the grace is over.
//! - A crash: snapshots go first, so what is left over is too much, never too little. Then new packs are stored,
//!   then new indexes, then old indexes go, then packs that no index names. After each of these steps every blob of
//!   every snapshot is in an index whose pack is there, and the next prune takes up what is left.
//! - A deletion that was acknowledged and did not happen: the object store verifies each; the packs are listed
//!   again at the end, and the bytes freed are what is really missing then.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use jiff::Span;
use rustic_core::{FileType, LimitOption, PruneOptions, ReadBackend};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backend::RequestCounts;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result, lacks_memory};
use crate::metadata_cache::hash;
use crate::repository::{Progress, Repository};
use crate::snapshot::{Purpose, SnapshotId, SnapshotTags};

/// Unused bytes in packs that are in use otherwise are not worth a copy below this share, in percent.
const TOLERATED_UNUSED_PERCENT: u64 = 5;

/// Of backups that lack data, so many are named.
const MOST_NAMED: usize = 10;

/// What one prune copies at most out of packs that are in use otherwise. The next one goes on.
const MOST_COPIED: &str = "2GiB";

/// What a prune is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Has to be there, or nothing is deleted.
    pub keep: Vec<SnapshotId>,
    /// Is to go. What is gone already counts as gone.
    pub forget: Vec<SnapshotId>,
    /// Stays if it is there, and if it reads.
    pub spare: Vec<SnapshotId>,
    /// Operations whose snapshots stay, known or not.
    pub unfinished: Vec<Uuid>,
    /// What is no longer needed is deleted only after so many seconds; at once where `None`.
    pub grace_s: Option<f64>,
}

/// What a prune has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PruneReceipt {
    /// Snapshots that were to go, and are gone.
    pub forgotten: u64,
    /// Snapshots that nobody knew, and are gone.
    pub orphans: u64,
    /// Snapshots that have to be there, and are lost or spoilt. Where there are any, nothing was deleted.
    pub bad: Vec<SnapshotId>,
    /// Snapshots that were lost or spoilt, and that the local cache had.
    pub stored_again: Vec<SnapshotId>,
    /// Bytes of all packs before, as listed.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// Bytes of packs that wait for their grace to be over.
    pub bytes_waiting: u64,
    /// Seconds.
    pub duration_s: f64,
    /// Requests to the object store.
    pub requests: RequestCounts,
}

impl Repository {
    /// Forgets snapshots and frees their space. Blocks.
    ///
    /// Errors: `Damaged` where a listing lacks a snapshot that is there, or an index a blob; nothing was deleted then.
    /// After any other error, a later prune finishes it.
    pub fn prune(&self, request: &PruneRequest, progress: &dyn Progress) -> Result<PruneReceipt> {
        let began = Instant::now();
        if let Some(both) = request.forget.iter().find(|id| request.keep.contains(id)) {
            let message = "it is both to stay and to go";
            return Err(BackupRepositoryError::new(Kind::InvalidArgument, "prune", both, message));
        }
        self.backend.require_snapshots(request.keep.iter().map(|id| *id.to_rustic()).collect());
        let mut seen = SeenSnapshots::default();
        let orphans = match self.orphans(request) {
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {
                tracing::warn!(%error, "a snapshot is lost or spoilt, or a listing lacks one");
                seen = self.look_at_snapshots(request, progress)?;
                if !seen.bad.is_empty() {
                    return Ok(PruneReceipt {
                        forgotten: 0,
                        orphans: 0,
                        bad: seen.bad,
                        stored_again: seen.stored_again,
                        bytes_before: 0,
                        bytes_after: 0,
                        bytes_waiting: 0,
                        duration_s: began.elapsed().as_secs_f64(),
                        requests: self.requests(),
                    });
                }
                self.orphans(request)?
            }
            orphans => orphans?,
        };
        let check = || {
            if progress.is_canceled() {
                self.backend.guard().close();
                return Err(BackupRepositoryError::canceled("prune"));
            }
            Ok(())
        };
        check()?;
        self.forget(&[request.forget.as_slice(), &orphans].concat())?;
        check()?;

        let options = options(request.grace_s);
        let plan = self.rustic.prune_plan(&options).map_err(|error| self.plan_error(request, &error))?;
        let bytes_before = self.backend.listed_pack_bytes();
        let something_to_do = plan.stats.index_files_rebuild > 0 || plan.stats.packs_unref > 0;
        let freed: u64 = plan.stats.size_to_delete.total() + plan.stats.size_unref;
        progress.scanned(plan.stats.packs_to_delete.total() + plan.stats.packs_unref, freed);
        let bytes_waiting = if request.grace_s.is_some() {
            let size = plan.stats.size_sum();
            plan.stats.size_to_delete.keep + size.remove + size.repack + plan.stats.size_unref
        } else {
            0
        };
        check()?;
        let mut bytes_after = bytes_before;
        if something_to_do {
            self.rustic.prune(&options, plan).map_err(|error| self.error("prune", &error))?;
            self.backend.finish_uploads().map_err(|error| self.error("prune", &error))?;
            self.backend
                .list_with_size(FileType::Pack)
                .map_err(|error| self.error("list packs of", &error))?;
            bytes_after = self.backend.listed_pack_bytes();
        }
        self.backend.cache().trim();
        Ok(PruneReceipt {
            forgotten: request.forget.len() as u64,
            orphans: orphans.len() as u64,
            bad: Vec::new(),
            stored_again: seen.stored_again,
            bytes_before,
            bytes_after,
            bytes_waiting,
            duration_s: began.elapsed().as_secs_f64(),
            requests: self.requests(),
        })
    }

    /// Snapshots of this project that no backup stands for: an attempt stored them, and its operation has ended
    /// otherwise. Where somebody may still be writing, there are none.
    fn orphans(&self, request: &PruneRequest) -> Result<Vec<SnapshotId>> {
        let known: HashSet<&SnapshotId> =
            request.keep.iter().chain(&request.forget).chain(&request.spare).collect();
        let snapshots =
            self.rustic.get_all_snapshots().map_err(|error| self.error("list snapshots of", &error))?;
        let mut orphans = Vec::new();
        let mut listed = HashSet::new();
        for snapshot in snapshots {
            let id = SnapshotId::from_rustic(snapshot.id.into_inner())?;
            listed.insert(id);
            // What is not ours, somebody else has put there, and has to delete.
            let Ok(tags) = SnapshotTags::of(&snapshot) else { continue };
            let is_orphan = request.grace_s.is_none()
                && tags.purpose == Purpose::Backup
                && tags.project_id == self.identity.project_id
                && !known.contains(&id)
                && !request.unfinished.contains(&tags.op_id);
            if is_orphan {
                orphans.push(id);
            }
        }
        // What has to be there is required of every listing. What may be missing is asked for.
        for id in request.spare.iter().filter(|id| !listed.contains(*id)) {
            if self.backend.get_snapshot_as_it_is(&id.to_rustic())?.is_some_and(|bytes| is_of(id, &bytes)) {
                let message = "it is there, and a listing lacks it";
                return Err(BackupRepositoryError::new(Kind::Damaged, "list snapshot", id, message));
            }
        }
        Ok(orphans)
    }

    /// Looks at every snapshot that is known or listed, stores again what the local cache has of those that are lost or spoilt,
    /// and hides from now on the others of these that need not be there.
    fn look_at_snapshots(&self, request: &PruneRequest, progress: &dyn Progress) -> Result<SeenSnapshots> {
        let listed = self.backend.list_snapshots()?;
        let known = request.keep.iter().chain(&request.spare).copied();
        let listed = listed.into_iter().map(SnapshotId::from_rustic).collect::<Result<Vec<_>>>()?;
        let all: BTreeSet<SnapshotId> = known.chain(listed).collect();
        let mut seen = SeenSnapshots::default();
        let mut hidden = Vec::new();
        for id in all {
            if progress.is_canceled() {
                return Err(BackupRepositoryError::canceled("prune"));
            }
            let rustic_id = id.to_rustic();
            let reads = || {
                let bytes = self.backend.get_snapshot_as_it_is(&rustic_id)?;
                Ok::<_, BackupRepositoryError>(bytes.is_some_and(|bytes| is_of(&id, &bytes)))
            };
            if reads()? || reads()? {
                continue;
            }
            if let Some(whole) = self.backend.cache().get(&rustic_id) {
                self.store(FileType::Snapshot, *rustic_id, whole)?;
                seen.stored_again.push(id);
            } else if request.keep.contains(&id) {
                seen.bad.push(id);
            } else {
                hidden.push(*rustic_id);
            }
        }
        self.backend.hide_snapshots(hidden);
        Ok(seen)
    }

    /// A blob that no index knows means that the repository is damaged, or that a listing has missed an index. Somebody has to
    /// decide what becomes of the backups that need it, so these are named.
    fn plan_error(&self, request: &PruneRequest, error: &rustic_core::RusticError) -> BackupRepositoryError {
        if let Some(failure) = self.backend.take_failure("plan a prune of") {
            return failure;
        }
        if lacks_memory(error) {
            return self.error("plan a prune of", error);
        }
        let mut message = format!("nothing was deleted: {}", error.display_log());
        match self.lacking(request.keep.iter().chain(&request.spare)) {
            Ok(lacking) if !lacking.is_empty() => {
                let named: Vec<String> = lacking.iter().take(MOST_NAMED).map(ToString::to_string).collect();
                message = format!(
                    "nothing was deleted: {} backups need data that no index has ({}); a repo-check tells whether it is lost, a \
                     new backup then brings back what the project still has of it, and once the backups that stay \
                     incomplete are deleted, space is freed again",
                    lacking.len(),
                    named.join(", ")
                );
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "it cannot be told which backups lack data"),
        }
        BackupRepositoryError::new(Kind::Damaged, "plan a prune of", self.backend.root(), message)
    }
}

/// What became of snapshots that were lost or spoilt.
#[derive(Debug, Default)]
struct SeenSnapshots {
    bad: Vec<SnapshotId>,
    stored_again: Vec<SnapshotId>,
}

fn is_of(id: &SnapshotId, bytes: &[u8]) -> bool {
    hash(bytes) == *id.to_rustic()
}

fn options(grace_s: Option<f64>) -> PruneOptions {
    let mut options = PruneOptions::default();
    options.max_unused = LimitOption::Percentage(TOLERATED_UNUSED_PERCENT);
    options.max_repack = MOST_COPIED.parse().expect("a size in the notation of bytesize");
    options.instant_delete = grace_s.is_none();
    let grace = Span::new().seconds(grace_s.unwrap_or_default().clamp(0.0, 1e9) as i64);
    options.keep_delete = grace;
    // What was stored within the grace may be of somebody who has not named it yet.
    options.keep_pack = grace;
    options
}
