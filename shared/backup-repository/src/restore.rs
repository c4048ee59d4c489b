//! Bringing a snapshot back, into fresh staging directories, with a receipt that it is the same.
//!
//! rustic_core's own restore is not used: it panics where a read fails, leaves full-length files with holes,
//! logs and forgets what it cannot set, and held 1.04 GB for a restore of 1 GB. Here every failure ends the
//! restore with an error, memory is bounded by the parts of packs being read (see `restore_content`) and half a
//! kilobyte for each entry, and what was written is read back and compared before anybody is told that it is there.
//!
//! The order matters. Directories come first, then the content of files, then links and special files, then
//! metadata, directories last: nothing is ever written through a link that came from the snapshot.
//!
//! A crash leaves staging directories, to be deleted or to be gone on with (see `resume`). Whoever makes the result visible (exchange,
//! rename) first makes it durable (`syncfs`): nothing is flushed here.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustic_core::IndexedFullStatus;
use rustic_core::repofile::Node;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::{RepositoryBackend, RequestCounts};
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::planned_entry::{PlannedEntry, PlannedKind};
use crate::repository::{Progress, Repository};
use crate::restore_content::restore_content;
use crate::resume::{AlreadyThere, look_through};
use crate::snapshot::SnapshotId;
use crate::snapshot_tree::{SnapshotPath, SnapshotTrees};
use crate::source::{PERSIST_ROOT, PROJECT_ROOT};
use crate::staging::StagingDirectory;
use crate::tree_digest::{TreeDigest, hard_link_group};
use crate::verification::verify;

/// How many of the files that cannot be restored an error names.
const NAMED_FILES: usize = 5;

/// What is to be restored, and where to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// The backup.
    pub snapshot: SnapshotId,
    /// All of it or a part.
    pub target: RestoreTarget,
    /// Only some of the files, to prove that the backup restores; all of them where `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// Whether what is in the staging directories is an earlier attempt's, to be gone on with; else they have to be empty.
    #[serde(default)]
    pub resume: bool,
}

/// Which files of a backup are restored for a proof: the same ones for the same seed. Directories all are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The share of the files, from 0 to 1.
    pub share: f64,
    /// What chooses them.
    pub seed: u64,
}

impl Sample {
    /// Whether an entry is one of them. All names of a file are, or none is.
    fn takes(&self, path: &Path, node: &Node) -> bool {
        let mut hasher = Sha256::new_with_prefix(self.seed.to_le_bytes());
        match hard_link_group(node) {
            Some((device, inode)) => hasher.update([device.to_le_bytes(), inode.to_le_bytes()].concat()),
            None => hasher.update(path.as_os_str().as_bytes()),
        }
        let hash: [u8; 32] = hasher.finalize().into();
        let number = hash.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        node.is_dir() || f64::from(number) < self.share * 2_f64.powi(32)
    }
}

/// Where a restore goes. Each directory has to be empty unless the restore is resumed; one that is missing is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreTarget {
    /// Everything: the roots become these two directories.
    Whole {
        /// Becomes `project/`.
        project: PathBuf,
        /// Becomes `persist/`.
        persist: PathBuf,
    },
    /// One file or directory: `project/src` becomes `<into>/src`.
    Path {
        /// Its path in the snapshot.
        path: SnapshotPath,
        /// The staging directory.
        into: PathBuf,
    },
}

/// What a finished restore is: everything read back and found to be what was backed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReceipt {
    /// The backup.
    pub snapshot: SnapshotId,
    /// Digest of what was to be restored: for all of a backup, and a sample of it, the backup's own `tree`. What is in the
    /// staging directories now is that, or the sample of it.
    pub tree: String,
    /// Entries that are not directories in the backup, or in the path that was asked for; of a sample, more than were
    /// restored.
    pub of_files: u64,
    /// Entries that are not directories.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// Bytes of them that an earlier attempt had restored, and this one found to be right.
    pub resumed_bytes: u64,
    /// Seconds, verification included.
    pub duration_s: f64,
    /// Requests to the object store.
    pub requests: RequestCounts,
}

/// What a restore has to come to.
struct Expected {
    /// The digest of everything that was asked for.
    tree: String,
    files: u64,
    /// The digest of what is restored of it.
    restored: String,
}

/// Everything that a restore works on.
pub(crate) struct RestoreJob {
    pub(crate) rustic: rustic_core::Repository<IndexedFullStatus>,
    pub(crate) backend: Arc<RepositoryBackend>,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) staging: Vec<StagingDirectory>,
    /// How the paths of each staging directory begin in the digest; cut off below it.
    pub(crate) prefixes: Vec<PathBuf>,
    pub(crate) entries: Vec<PlannedEntry>,
    /// What an earlier attempt has left.
    pub(crate) already_there: AlreadyThere,
}

impl Repository {
    /// Restores a snapshot or a path of it and verifies the result. Blocks.
    ///
    /// Errors: `UnsupportedLayout` for a snapshot that is not of layout 2 or another project's, `NotFound`
    /// for an unknown one or an unknown path in it, `Damaged` where the repository misses something,
    /// `VerificationFailed` where what was written is not what was backed up. After any error the staging
    /// directories are to be deleted, or gone on with (`resume`).
    pub fn restore(self, request: &RestoreRequest, progress: &Arc<dyn Progress>) -> Result<RestoreReceipt> {
        let started = Instant::now();
        let (snapshot, tags) = self.snapshot(request.snapshot)?;
        let open = |path: &Path| StagingDirectory::open(path, request.resume);
        let (staging, prefixes) = match &request.target {
            RestoreTarget::Whole { project, persist } => (
                vec![open(persist)?, open(project)?],
                vec![PathBuf::from(PERSIST_ROOT), PathBuf::from(PROJECT_ROOT)],
            ),
            RestoreTarget::Path { into, .. } => (vec![open(into)?], vec![PathBuf::new()]),
        };
        let root = self.backend.root().to_owned();
        let backend = self.backend;
        let rustic =
            self.rustic.to_indexed().map_err(|error| backend.error("read index of", &root, &error))?;
        let mut job = RestoreJob {
            rustic,
            backend,
            progress: Arc::clone(progress),
            staging,
            prefixes,
            entries: Vec::new(),
            already_there: AlreadyThere::default(),
        };
        let mut planned = job.plan(request, &snapshot);
        if planned.as_ref().is_err_and(|error| error.kind() == Kind::Damaged) {
            // A listing may have lacked an index: nothing is called damaged before it was listed again.
            job.rustic = job
                .rustic
                .drop_index()
                .to_indexed()
                .map_err(|error| job.backend.error("read index of", &root, &error))?;
            planned = job.plan(request, &snapshot);
        }
        let expected = planned?;
        if let (RestoreTarget::Whole { .. }, Some(recorded)) = (&request.target, &tags.tree)
            && *recorded != expected.tree
        {
            let tree = &expected.tree;
            let message = format!("its tree is {tree}, but {recorded} was recorded when it was made");
            return Err(BackupRepositoryError::new(Kind::Damaged, "restore", request.snapshot, message));
        }
        if request.resume {
            job.already_there = look_through(&job)?;
        }
        job.create_directories()?;
        let resumed_bytes = restore_content(&job)?;
        job.create_the_rest()?;
        job.set_metadata()?;
        let restored = verify(&job, &expected.restored)?;
        job.backend.cache().trim();
        Ok(RestoreReceipt {
            snapshot: request.snapshot,
            tree: expected.tree,
            of_files: expected.files,
            files: restored.files,
            directories: restored.directories,
            bytes: restored.bytes,
            resumed_bytes,
            duration_s: started.elapsed().as_secs_f64(),
            requests: job.backend.requests(),
        })
    }
}

impl RestoreJob {
    /// The path of an entry below its staging directory; empty for the directory itself.
    pub(crate) fn below<'a>(&self, entry: &'a PlannedEntry) -> &'a Path {
        entry.path.strip_prefix(&self.prefixes[entry.staging]).unwrap_or(&entry.path)
    }

    pub(crate) fn check_canceled(&self) -> Result<()> {
        if self.progress.is_canceled() { Err(BackupRepositoryError::canceled("restore")) } else { Ok(()) }
    }

    /// The number of the entry with this path in the digest. Entries are in the order of their paths.
    pub(crate) fn entry_at(&self, path: &Path) -> Option<usize> {
        self.entries.binary_search_by(|entry| (*entry.path).cmp(path)).ok()
    }

    pub(crate) fn failed(&self, entry: &PlannedEntry, error: io::Error) -> BackupRepositoryError {
        self.unusable(&entry.path, error)
    }

    pub(crate) fn unusable(&self, path: &Path, error: io::Error) -> BackupRepositoryError {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let kind = if full { Kind::NoSpace } else { Kind::DestinationUnusable };
        let message = "it cannot be restored there";
        BackupRepositoryError::new(kind, "restore", path.display(), message).with_source(error)
    }

    /// Lists what is to be restored and returns the digests that it has to have.
    fn plan(
        &mut self,
        request: &RestoreRequest,
        snapshot: &rustic_core::repofile::SnapshotFile,
    ) -> Result<Expected> {
        let trees = SnapshotTrees { rustic: &self.rustic, backend: &self.backend };
        trees.check_roots(request.snapshot, snapshot)?;
        let mut digest = TreeDigest::new();
        // Of what is restored; where that is everything, the other is the same.
        let mut sampled = request.sample.map(|sample| (sample, TreeDigest::new()));
        let mut entries: Vec<PlannedEntry> = Vec::new();
        let mut groups: HashMap<(usize, u64, u64), usize> = HashMap::new();
        let progress = &self.progress;
        let prefixes = &self.prefixes;
        let mut add = |path: &Path, node: Node| {
            if progress.is_canceled() {
                return Err(BackupRepositoryError::canceled("restore"));
            }
            digest.add(path, &node);
            if let Some((sample, sampled)) = &mut sampled {
                if !sample.takes(path, &node) {
                    return Ok(());
                }
                sampled.add(path, &node);
            }
            let staging = prefixes.iter().position(|prefix| path.starts_with(prefix)).unwrap_or_default();
            let number = entries.len();
            let link_to = hard_link_group(&node).and_then(|(device, inode)| {
                let first = *groups.entry((staging, device, inode)).or_insert(number);
                (first != number).then_some(first)
            });
            if entries.len() == entries.capacity() {
                // What doubling would add counts as used, and never is.
                entries.reserve_exact(entries.len() / 8 + 1024);
            }
            entries.push(PlannedEntry::new(staging, path, node, link_to));
            Ok(())
        };
        match &request.target {
            RestoreTarget::Whole { .. } => {
                for entry in trees.entries(Path::new(""), snapshot.tree)? {
                    let (path, node) = entry?;
                    add(&path, node)?;
                }
            }
            RestoreTarget::Path { path, .. } => {
                let node = trees.find(request.snapshot, snapshot, path)?;
                let base = PathBuf::from(path.name());
                let subtree = node.subtree;
                add(&base, node)?;
                if let Some(subtree) = subtree {
                    for entry in trees.entries(&base, subtree)? {
                        let (path, node) = entry?;
                        add(&path, node)?;
                    }
                }
            }
        }
        let all = digest.counts();
        let restored = sampled.as_ref().map_or(all, |(_, sampled)| sampled.counts());
        self.progress.scanned(restored.files, restored.bytes);
        self.entries = entries;
        self.require_content()?;
        let tree = digest.finish();
        let restored = sampled.map_or_else(|| tree.clone(), |(_, sampled)| sampled.finish());
        Ok(Expected { tree, files: all.files, restored })
    }

    /// Finds out which files cannot be restored before any of them is.
    fn require_content(&self) -> Result<()> {
        let is_lost = |number: &usize| {
            self.entries[*number].content().iter().any(|id| self.rustic.get_index_entry(id).is_err())
        };
        let lost: Vec<usize> = self.files().filter(is_lost).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = lost
            .iter()
            .take(NAMED_FILES)
            .map(|number| self.entries[*number].path.display().to_string())
            .collect();
        let more = if lost.len() > named.len() { " and others" } else { "" };
        let message =
            format!("the repository has not all data of {} files: {}{more}", lost.len(), named.join(", "));
        Err(BackupRepositoryError::new(Kind::Damaged, "restore", self.backend.root(), message))
    }

    fn create_directories(&self) -> Result<()> {
        for (number, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.is_directory()) {
            if self.already_there.directories.contains(&number) {
                continue;
            }
            let below = self.below(entry);
            if !below.as_os_str().is_empty() {
                self.staging[entry.staging]
                    .create_directory(below)
                    .map_err(|error| self.failed(entry, error))?;
            }
        }
        Ok(())
    }

    /// Links, devices, pipes and sockets, when nothing is written by path any more.
    fn create_the_rest(&self) -> Result<()> {
        for entry in &self.entries {
            let staging = &self.staging[entry.staging];
            let created = match (entry.link_to, &entry.kind) {
                (Some(first), _) => staging.hard_link(self.below(&self.entries[first]), self.below(entry)),
                (None, PlannedKind::Special(special)) => staging.create_special(self.below(entry), special),
                (None, PlannedKind::Directory | PlannedKind::File(_)) => Ok(()),
            };
            created.map_err(|error| self.failed(entry, error))?;
        }
        Ok(())
    }

    fn set_metadata(&self) -> Result<()> {
        let (directories, others): (Vec<_>, Vec<_>) =
            self.entries.iter().partition(|entry| entry.is_directory());
        // A directory's time changes with its content, and its mode may forbid any change: deepest first.
        for (number, entry) in others.into_iter().chain(directories.into_iter().rev()).enumerate() {
            if number % 1024 == 0 {
                self.check_canceled()?;
            }
            if entry.link_to.is_none() {
                self.staging[entry.staging]
                    .set_metadata(self.below(entry), &entry.metadata, entry.is_symlink())
                    .map_err(|error| self.failed(entry, error))?;
            }
        }
        Ok(())
    }

    /// Numbers of the entries that have content of their own.
    pub(crate) fn files(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries.iter().enumerate().filter(|(_, entry)| entry.has_own_content()).map(|(number, _)| number)
    }
}
