//! Looking into a repository without restoring: its snapshots, their directories, its health.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use rustic_core::repofile::{Node, NodeType, SnapshotFile};
use rustic_core::{CheckOptions, IndexedFullStatus, ReadSubsetOption};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backend::{RepositoryBackend, RequestCounts};
use crate::browse_page::BrowserMemory;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result, lacks_memory};
use crate::initialise::RepositoryIdentity;
use crate::node_metadata::permissions;
use crate::repository::{Repository, read_snapshot};
use crate::snapshot::{Purpose, SnapshotId, SnapshotTags};
use crate::snapshot_tree::{SnapshotPath, SnapshotTrees};

/// A snapshot as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// Its id.
    pub id: SnapshotId,
    /// The time that its content is of.
    pub time: SystemTime,
    /// Why it was made.
    pub purpose: Purpose,
    /// The operation that made it.
    pub op_id: Uuid,
    /// Digest of its tree, 64 hexadecimal digits.
    pub tree: Option<String>,
    /// Tags that people chose.
    pub tags: Vec<String>,
    /// Entries that are not directories.
    pub files: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// Bytes that were new to the repository.
    pub bytes_added: u64,
    /// The snapshot that it was compared with.
    pub parent: Option<SnapshotId>,
}

/// What kind of thing an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket.
    Other,
}

/// One entry of a directory in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its path in the snapshot.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Size in bytes; 0 for everything but files.
    pub size_bytes: u64,
    /// When it was last modified.
    pub mtime: SystemTime,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Where a symbolic link leads.
    pub link_target: Option<PathBuf>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// What is wrong; empty for a sound repository.
    pub errors: Vec<String>,
    /// What is strange and harmless, for example packs that no index names after a killed backup.
    pub warnings: Vec<String>,
    /// Whether every pack was read and compared with its hashes.
    pub read_data: bool,
    /// Requests to the object store.
    pub requests: RequestCounts,
}

impl CheckReport {
    /// Whether there is no error.
    pub fn is_sound(&self) -> bool {
        self.errors.is_empty()
    }
}

/// What rustic says of a pack that no index had, because who wrote it was killed, and that a prune has marked to be deleted by a
/// later one: it notes such a pack without what is in it, and so with a wrong size (`rustic_core::commands::prune`, "marking
/// unneeded unindexed pack files for deletion"). Nothing needs it.
const MARKED_WITHOUT_SIZE: &str = "marked to delete: true: size computed by index";

impl Repository {
    /// All snapshots of layout 2 of this project, oldest first; others are passed over. Blocks.
    pub fn snapshots(&self) -> Result<Vec<SnapshotSummary>> {
        let snapshots =
            self.rustic.get_all_snapshots().map_err(|error| self.error("list snapshots of", &error))?;
        let mut summaries = Vec::new();
        for snapshot in snapshots {
            match SnapshotTags::of(&snapshot) {
                Ok(tags) if tags.project_id == self.identity.project_id => {
                    summaries.push(summary(&snapshot, tags)?);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "passed over a snapshot"),
            }
        }
        summaries.sort_by_key(|summary| (summary.time, summary.id));
        Ok(summaries)
    }

    /// Deletes snapshots; deleted ones count as success. Their space comes back with a prune. Blocks.
    pub fn forget(&self, ids: &[SnapshotId]) -> Result<()> {
        let ids: Vec<_> = ids.iter().map(|id| id.to_rustic()).collect();
        self.rustic.delete_snapshots(&ids).map_err(|error| self.error("delete snapshots of", &error))
    }

    /// Checks that everything a snapshot names is there; with `read_data`, reads every pack as well. The
    /// report says what is wrong with the repository; an error, that it could not be checked. Blocks.
    pub fn check(&self, read_data: bool) -> Result<CheckReport> {
        self.check_share(read_data, None)
    }

    /// As [`Self::check`], of whose packs only one of several shares is read: which, from 0, and of how many. All
    /// shares together are all packs. Blocks.
    pub fn check_share(&self, read_data: bool, share: Option<(u32, u32)>) -> Result<CheckReport> {
        let report = self.check_once(read_data, share)?;
        // A listing that lacked an index, or bytes spoilt on their way, look like damage. Damage is found twice.
        if report.is_sound() { Ok(report) } else { self.check_once(read_data, share) }
    }

    fn check_once(&self, read_data: bool, share: Option<(u32, u32)>) -> Result<CheckReport> {
        let mut options = CheckOptions::default();
        options.read_data = read_data;
        if let Some((share, shares)) = share {
            options.read_data_subset = ReadSubsetOption::IdSubSet((share, shares.max(1)));
        }
        options.trust_cache = true;
        let results = self.rustic.check(options);
        // A request that failed is no finding about the repository.
        let failure = self.backend.take_failure("check");
        let is_finding = |kind| matches!(kind, Kind::NotFound | Kind::Damaged);
        let mut report =
            CheckReport { errors: Vec::new(), warnings: Vec::new(), read_data, requests: self.requests() };
        let results = match (results, failure) {
            (_, Some(failure)) if !is_finding(failure.kind()) => return Err(failure),
            (Ok(results), _) => results,
            (Err(_), Some(failure)) => {
                report.errors.push(failure.chain());
                return Ok(report);
            }
            (Err(error), None) => return Err(self.error("check", &error)),
        };
        // Nor is memory that was not there.
        if let Some((_, finding)) = results.0.iter().find(|(_, finding)| lacks_memory(finding)) {
            let root = self.backend.root();
            return Err(BackupRepositoryError::new(Kind::ProcessEnded, "check", root, finding.to_string()));
        }
        for (level, finding) in results.0 {
            let finding = finding.to_string();
            // The type of the level is not exported.
            if format!("{level:?}") == "Error" && !finding.contains(MARKED_WITHOUT_SIZE) {
                report.errors.push(finding);
            } else {
                report.warnings.push(finding);
            }
        }
        Ok(report)
    }

    /// Reads the index, after which directories can be listed fast and by many at a time. Blocks.
    pub fn into_browser(self) -> Result<Browser> {
        let Self { rustic, backend, identity, .. } = self;
        let rustic =
            rustic.to_indexed().map_err(|error| backend.error("read index of", backend.root(), &error))?;
        Ok(Browser { rustic, backend, identity, memory: Mutex::default() })
    }
}

/// A repository as it was when it was opened, for listing directories. Snapshots made later may not be
/// readable: open it again for those.
#[derive(Debug)]
pub struct Browser {
    pub(crate) rustic: rustic_core::Repository<IndexedFullStatus>,
    pub(crate) backend: std::sync::Arc<RepositoryBackend>,
    pub(crate) identity: RepositoryIdentity,
    pub(crate) memory: Mutex<BrowserMemory>,
}

impl Browser {
    /// What is in a directory of a snapshot, `depth` levels down (1: its entries); for a file, the file
    /// itself. Without a path, the two roots. Blocks.
    pub fn list(
        &self,
        snapshot: SnapshotId,
        path: Option<&SnapshotPath>,
        depth: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        let (file, _) = read_snapshot(&self.rustic, &self.backend, &self.identity, snapshot)?;
        let trees = SnapshotTrees { rustic: &self.rustic, backend: &self.backend };
        let mut listed = Vec::new();
        let (base, tree) = match path {
            None => (Path::new(""), file.tree),
            Some(path) => {
                let node = trees.find(snapshot, &file, path)?;
                match node.subtree {
                    Some(subtree) => (path.as_path(), subtree),
                    None => return Ok(vec![directory_entry(path.as_path().to_owned(), &node)]),
                }
            }
        };
        let mut directories = vec![(base.to_owned(), tree, 1)];
        while let Some((directory, tree, level)) = directories.pop() {
            for (name, node) in trees.directory(&directory, tree)? {
                let path = directory.join(name);
                if let Some(subtree) = node.subtree
                    && level < depth
                {
                    directories.push((path.clone(), subtree, level + 1));
                }
                listed.push(directory_entry(path, &node));
            }
        }
        listed.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(listed)
    }

    /// Requests to the object store since the opening.
    pub fn requests(&self) -> RequestCounts {
        self.backend.requests()
    }
}

fn summary(snapshot: &SnapshotFile, tags: SnapshotTags) -> Result<SnapshotSummary> {
    let counts = snapshot.summary.clone().unwrap_or_default();
    Ok(SnapshotSummary {
        id: SnapshotId::from_rustic(snapshot.id.into_inner())?,
        time: snapshot.time.timestamp().into(),
        purpose: tags.purpose,
        op_id: tags.op_id,
        tree: tags.tree,
        tags: tags.user,
        files: counts.total_files_processed,
        bytes: counts.total_bytes_processed,
        bytes_added: counts.data_added,
        parent: snapshot.parent.map(|id| SnapshotId::from_rustic(id.into_inner())).transpose()?,
    })
}

pub(crate) fn entry_kind(node: &Node) -> EntryKind {
    match node.node_type {
        NodeType::File => EntryKind::File,
        NodeType::Dir => EntryKind::Dir,
        NodeType::Symlink { .. } => EntryKind::Symlink,
        NodeType::Dev { .. } | NodeType::Chardev { .. } | NodeType::Fifo | NodeType::Socket => {
            EntryKind::Other
        }
    }
}

fn directory_entry(path: PathBuf, node: &Node) -> DirectoryEntry {
    DirectoryEntry {
        path,
        kind: entry_kind(node),
        size_bytes: node.meta.size,
        mtime: node.meta.mtime.unwrap_or_default().into(),
        mode: permissions(node.meta.mode.unwrap_or_default()),
        uid: node.meta.uid.unwrap_or_default(),
        gid: node.meta.gid.unwrap_or_default(),
        link_target: node.is_symlink().then(|| node.node_type.to_link().to_owned()),
    }
}
