//! What a restore would change, without restoring: the entries of a snapshot beside those that are there.
//!
//! Both are walked in the same order, so that neither is held in memory. Contents are not read: a file of the same length
//! and modification time counts as the same, as it does for a backup.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustic_core::repofile::{Node, SnapshotFile};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::backend::RequestCounts;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::repository::{Progress, Repository};
use crate::snapshot::SnapshotId;
use crate::snapshot_tree::{SnapshotPath, SnapshotTrees};
use crate::source::{PERSIST_ROOT, PROJECT_ROOT};
use crate::tree_digest::TreeDigest;
use crate::walk::{ExtendedAttributes, OPEN_DIRECTORY, Walk};

/// What is to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// The backup.
    pub snapshot: SnapshotId,
    /// All of it or a part, and what is there now.
    pub target: PreviewTarget,
}

/// What a restore would replace. What is missing is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewTarget {
    /// The two directories that the roots would become.
    Whole {
        /// The project's files.
        project: PathBuf,
        /// Its persist store.
        persist: PathBuf,
    },
    /// The file or directory that a path of the snapshot would become, or a directory with both roots in it.
    Path {
        /// Its path in the snapshot; all of it where there is none.
        path: Option<SnapshotPath>,
        /// The directory that everything is beneath: nothing outside of it is looked at, through links neither.
        root: PathBuf,
        /// The place in it.
        place: PathBuf,
    },
}

/// So many entries that are no directories, and the bytes of the regular files among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Entries.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, node: &Node) {
        if !node.is_dir() {
            self.files += 1;
            self.bytes += node.meta.size;
        }
    }
}

/// What a restore would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The digest that a restore would have: for all of a backup its own `tree`.
    pub tree: String,
    /// All that would be restored.
    pub restored: Amount,
    /// What is not there.
    pub created: Amount,
    /// What is there otherwise; bytes as they would be.
    pub replaced: Amount,
    /// What is there and not in the backup.
    pub deleted: Amount,
    /// What is there already.
    pub unchanged: Amount,
    /// Requests to the object store.
    pub requests: RequestCounts,
}

impl Repository {
    /// Compares a snapshot, or a path of it, with what is there. Blocks.
    ///
    /// # Errors
    /// As [`Self::restore`]; `DestinationUnusable` where what is there cannot be read.
    pub fn preview(self, request: &PreviewRequest, progress: &Arc<dyn Progress>) -> Result<Preview> {
        let (snapshot, _) = self.snapshot(request.snapshot)?;
        let (root, backend) = (self.backend.root().to_owned(), Arc::clone(&self.backend));
        let rustic =
            self.rustic.to_indexed().map_err(|error| backend.error("read index of", &root, &error))?;
        let trees = SnapshotTrees { rustic: &rustic, backend: &backend };
        trees.check_roots(request.snapshot, &snapshot)?;
        let mut comparison =
            Comparison { progress: progress.as_ref(), digest: TreeDigest::new(), found: Found::default() };
        match &request.target {
            PreviewTarget::Whole { project, persist } => {
                comparison.whole(&trees, &snapshot, project, persist)?
            }
            PreviewTarget::Path { path: None, root, place } => comparison
                .compare(trees.entries(Path::new(""), snapshot.tree)?, there(root, place, OsStr::new(""))?)?,
            PreviewTarget::Path { path: Some(path), root, place } => {
                let node = trees.find(request.snapshot, &snapshot, path)?;
                let base = PathBuf::from(path.name());
                let subtree = node.subtree;
                let below = subtree.map(|tree| trees.entries(&base, tree)).transpose()?;
                let stored = std::iter::once(Ok((base.clone(), node))).chain(below.into_iter().flatten());
                comparison.compare(stored, there(root, place, base.as_os_str())?)?;
            }
        }
        let Found { restored, created, replaced, deleted, unchanged } = comparison.found;
        let tree = comparison.digest.finish();
        backend.cache().trim();
        Ok(Preview { tree, restored, created, replaced, deleted, unchanged, requests: backend.requests() })
    }
}

#[derive(Default)]
struct Found {
    restored: Amount,
    created: Amount,
    replaced: Amount,
    deleted: Amount,
    unchanged: Amount,
}

struct Comparison<'a> {
    progress: &'a dyn Progress,
    digest: TreeDigest,
    found: Found,
}

impl Comparison<'_> {
    fn whole<S: rustic_core::IndexedTree>(
        &mut self,
        trees: &SnapshotTrees<'_, S>,
        snapshot: &SnapshotFile,
        project: &Path,
        persist: &Path,
    ) -> Result<()> {
        // As the snapshot has them: persist comes before project.
        let there = [(PERSIST_ROOT, persist), (PROJECT_ROOT, project)]
            .into_iter()
            .map(|(name, directory)| there(directory, Path::new(""), OsStr::new(name)));
        let there: Vec<Entries> = there.collect::<Result<_>>()?;
        self.compare(trees.entries(Path::new(""), snapshot.tree)?, Box::new(there.into_iter().flatten()))
    }

    fn compare(
        &mut self,
        stored: impl Iterator<Item = Result<(PathBuf, Node)>>,
        mut there: Entries,
    ) -> Result<()> {
        let mut next = there.next().transpose()?;
        for entry in stored {
            if self.progress.is_canceled() {
                return Err(BackupRepositoryError::canceled("preview"));
            }
            let (path, node) = entry?;
            self.digest.add(&path, &node);
            self.found.restored.add(&node);
            while let Some((_, gone)) = next.take_if(|(found, _)| found.as_path() < path.as_path()) {
                self.found.deleted.add(&gone);
                next = there.next().transpose()?;
            }
            match next.take_if(|(found, _)| found.as_path().cmp(&path) == Ordering::Equal) {
                None => self.found.created.add(&node),
                Some((_, found)) => {
                    let amount = if is_same(&node, &found) {
                        &mut self.found.unchanged
                    } else {
                        &mut self.found.replaced
                    };
                    amount.add(&node);
                    if found.is_dir() != node.is_dir() {
                        self.found.deleted.add(&found);
                        // A directory counts as nothing; what replaces it was not there.
                    }
                    next = there.next().transpose()?;
                }
            }
        }
        while let Some((_, gone)) = next {
            self.found.deleted.add(&gone);
            next = there.next().transpose()?;
        }
        Ok(())
    }
}

/// Whether a restore would leave an entry as it is.
fn is_same(stored: &Node, found: &Node) -> bool {
    let (wanted, meta) = (&stored.meta, &found.meta);
    stored.node_type == found.node_type
        && (stored.is_symlink() || wanted.mode == meta.mode)
        && (wanted.uid, wanted.gid) == (meta.uid, meta.gid)
        && wanted.mtime == meta.mtime
        && (!stored.is_file() || wanted.size == meta.size)
        && wanted.extended_attributes == meta.extended_attributes
}

type Entries = Box<dyn Iterator<Item = Result<(PathBuf, Node)>>>;

/// What is at a place beneath a directory, under the name `name`; nothing where there is nothing. No link is followed.
fn there(root: &Path, place: &Path, name: &OsStr) -> Result<Entries> {
    let unreadable = |path: &Path, error: io::Error| {
        BackupRepositoryError::new(Kind::DestinationUnusable, "look at", path.display(), "it cannot be read")
            .with_source(error)
    };
    let opened = open_beneath(root, place);
    let (directory, only) = match opened {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Box::new(std::iter::empty())),
        Err(errno) => return Err(unreadable(&root.join(place), errno.into())),
    };
    let walk = |start: &OsStr, only: Arc<[PathBuf]>, directory| {
        Walk::new(start, directory, 1, ExtendedAttributes::Read, only)
    };
    let entry = move |entry: std::result::Result<crate::walk::WalkEntry, crate::walk::WalkFault>| match entry
    {
        Ok(entry) => Ok((entry.path, entry.node)),
        Err(fault) => Err(unreadable(&fault.path, fault.error)),
    };
    Ok(match only {
        None if place.as_os_str().is_empty() && name == PROJECT_ROOT => {
            Box::new(walk(name, Arc::from([]), directory).without_staged().map(entry))
        }
        None => Box::new(walk(name, Arc::from([]), directory).map(entry)),
        // A single entry that is no directory: found by its name in the directory that it is in, and renamed.
        Some(own_name) => {
            let wanted = Path::new("").join(&own_name);
            let renamed = PathBuf::from(name);
            let found = walk(OsStr::new(""), Arc::from([wanted.clone()]), directory).map(entry);
            Box::new(found.filter_map(move |entry| match entry {
                Ok((path, node)) if path == wanted => Some(Ok((renamed.clone(), node))),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }))
        }
    })
}

/// The directory at a place, or the one that it is in and its name there.
fn open_beneath(
    root: &Path,
    place: &Path,
) -> std::result::Result<(OwnedFd, Option<std::ffi::OsString>), Errno> {
    let mut directory = rustix::fs::openat(rustix::fs::CWD, root, OPEN_DIRECTORY, Mode::empty())?;
    let mut parts = place.iter().peekable();
    while let Some(part) = parts.next() {
        match rustix::fs::openat(&directory, part, OPEN_DIRECTORY, Mode::empty()) {
            Ok(next) => directory = next,
            Err(Errno::NOTDIR | Errno::LOOP) if parts.peek().is_none() => {
                // It is there: opening a path says so without opening what it leads to.
                rustix::fs::openat(
                    &directory,
                    part,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                return Ok((directory, Some(part.to_owned())));
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok((directory, None))
}
