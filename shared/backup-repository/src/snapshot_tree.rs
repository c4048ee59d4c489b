//! Reading the trees of a snapshot, trusting nothing in them.
//!
//! A repository is written by hosts, and a host may be hostile: a name with a slash, or the same name twice
//! (once as a link, once as a directory), would lead a restore out of its directory. Such a tree is refused.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustic_core::repofile::{Node, SnapshotFile};
use rustic_core::{IndexedTree, Repository, TreeId};

use crate::backend::RepositoryBackend;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result, lacks_memory};
use crate::snapshot::SnapshotId;
use crate::source::{PERSIST_ROOT, PROJECT_ROOT};

/// The trees of one repository.
#[derive(Clone, Copy)]
pub(crate) struct SnapshotTrees<'a, S> {
    pub(crate) rustic: &'a Repository<S>,
    pub(crate) backend: &'a RepositoryBackend,
}

impl<S: IndexedTree> SnapshotTrees<'_, S> {
    fn damaged(&self, path: &Path, message: &str) -> BackupRepositoryError {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        BackupRepositoryError::new(Kind::Damaged, "read directory", path.display(), message)
    }

    /// The entries of one directory, names checked, in the order of their bytes.
    pub(crate) fn directory(&self, path: &Path, tree: TreeId) -> Result<Vec<(OsString, Node)>> {
        let tree = self.rustic.get_tree(&tree).map_err(|error| {
            if lacks_memory(&*error) {
                return BackupRepositoryError::from_rustic("read directory", path.display(), &error);
            }
            // Without a failed request, the tree is missing in the index or does not decrypt.
            self.backend.take_failure("read directory").map_or_else(
                || {
                    let message = format!("the repository has not all of it: {}", error.display_log());
                    self.damaged(path, &message)
                },
                |failure| match failure.kind() {
                    Kind::NotFound => {
                        self.damaged(path, "the pack that holds it is missing").with_source(failure)
                    }
                    _ => failure,
                },
            )
        })?;
        let mut entries: Vec<(OsString, Node)> = Vec::with_capacity(tree.nodes.len());
        for node in tree.nodes {
            let name = node.name().into_owned();
            let bytes = name.as_bytes();
            if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') || bytes.contains(&0) {
                return Err(self.damaged(path, "an entry has a name that no file can have"));
            }
            if entries.last().is_some_and(|(last, _)| *last >= name) {
                return Err(self.damaged(path, "its entries are out of order or not unique"));
            }
            entries.push((name, node));
        }
        Ok(entries)
    }

    /// Checks that the snapshot has exactly the roots of layout 2.
    pub(crate) fn check_roots(&self, id: SnapshotId, snapshot: &SnapshotFile) -> Result<()> {
        let roots = self.directory(Path::new("/"), snapshot.tree)?;
        let named: Vec<_> = roots.iter().map(|(name, node)| (name.as_os_str(), node.is_dir())).collect();
        if named == [(OsStr::new(PERSIST_ROOT), true), (OsStr::new(PROJECT_ROOT), true)] {
            return Ok(());
        }
        Err(BackupRepositoryError::new(
            Kind::UnsupportedLayout,
            "read snapshot",
            id,
            "its roots are not exactly the directories project/ and persist/",
        ))
    }

    /// Everything below `tree`, parents before children, siblings in the order of their names. Paths begin
    /// with `base`.
    pub(crate) fn entries(&self, base: &Path, tree: TreeId) -> Result<SnapshotEntries<'_, S>> {
        let top = self.directory(base, tree)?.into_iter();
        Ok(SnapshotEntries { trees: self, levels: vec![(base.to_owned(), top)], next: None })
    }

    /// The entry at a path of the snapshot, for example `project/src`.
    pub(crate) fn find(&self, id: SnapshotId, snapshot: &SnapshotFile, path: &SnapshotPath) -> Result<Node> {
        let mut tree = Some(snapshot.tree);
        let mut parent = PathBuf::new();
        let mut found = None;
        for part in path.parts() {
            let entry = match tree {
                Some(tree) => self.directory(&parent, tree)?.into_iter().find(|(name, _)| name == part),
                None => None,
            };
            let Some((_, node)) = entry else {
                return Err(BackupRepositoryError::new(
                    Kind::NotFound,
                    "find path",
                    path.as_path().display(),
                    format!("snapshot {id} has no such path"),
                ));
            };
            parent.push(part);
            tree = node.subtree;
            found = Some(node);
        }
        found.ok_or_else(|| self.damaged(path.as_path(), "the path is empty"))
    }
}

/// See [`SnapshotTrees::entries`]. The first error is the end.
pub(crate) struct SnapshotEntries<'a, S> {
    trees: &'a SnapshotTrees<'a, S>,
    levels: Vec<(PathBuf, std::vec::IntoIter<(OsString, Node)>)>,
    /// The directory that was yielded last, to be entered.
    next: Option<(PathBuf, TreeId)>,
}

impl<S: IndexedTree> SnapshotEntries<'_, S> {
    fn step(&mut self) -> Result<Option<(PathBuf, Node)>> {
        if let Some((path, tree)) = self.next.take() {
            let entries = self.trees.directory(&path, tree)?.into_iter();
            self.levels.push((path, entries));
        }
        while let Some((directory, entries)) = self.levels.last_mut() {
            let Some((name, node)) = entries.next() else {
                self.levels.pop();
                continue;
            };
            let path = directory.join(name);
            self.next = match (node.is_dir(), node.subtree) {
                (false, _) => None,
                (true, Some(subtree)) => Some((path.clone(), subtree)),
                (true, None) => return Err(self.trees.damaged(&path, "the directory has no content")),
            };
            return Ok(Some((path, node)));
        }
        Ok(None)
    }
}

impl<S: IndexedTree> Iterator for SnapshotEntries<'_, S> {
    type Item = Result<(PathBuf, Node)>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.step().transpose();
        if matches!(entry, Some(Err(_))) {
            self.levels.clear();
        }
        entry
    }
}

/// A path inside a snapshot: relative, beginning with `project` or `persist`, without empty, `.` and `..`
/// parts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct SnapshotPath(PathBuf);

impl SnapshotPath {
    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The name of the entry that it leads to.
    pub fn name(&self) -> &OsStr {
        self.0.file_name().unwrap_or_else(|| self.0.as_os_str())
    }

    fn parts(&self) -> impl Iterator<Item = &OsStr> {
        self.0.iter()
    }
}

impl TryFrom<PathBuf> for SnapshotPath {
    type Error = BackupRepositoryError;

    fn try_from(path: PathBuf) -> Result<Self> {
        let parts: Vec<&[u8]> = path.as_os_str().as_bytes().split(|byte| *byte == b'/').collect();
        let message = if parts.iter().any(|part| matches!(*part, b"" | b"." | b"..") || part.contains(&0)) {
            "a path has no empty, '.' or '..' part"
        } else if ![PROJECT_ROOT.as_bytes(), PERSIST_ROOT.as_bytes()].contains(&parts[0]) {
            "a path begins with project or persist"
        } else {
            return Ok(Self(path));
        };
        Err(BackupRepositoryError::new(Kind::InvalidArgument, "read path", path.display(), message))
    }
}

impl From<SnapshotPath> for PathBuf {
    fn from(path: SnapshotPath) -> Self {
        path.0
    }
}

impl std::str::FromStr for SnapshotPath {
    type Err = BackupRepositoryError;

    fn from_str(text: &str) -> Result<Self> {
        PathBuf::from(text).try_into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn a_path_cannot_leave_the_snapshot() {
        for bad in ["", "/project", "project/", "project//a", "project/../x", "other", "project/./a", ".."] {
            bad.parse::<SnapshotPath>().unwrap_err();
        }
        assert_eq!("project/src/main.rs".parse::<SnapshotPath>().unwrap().name(), "main.rs");
        assert_eq!("persist".parse::<SnapshotPath>().unwrap().name(), "persist");
    }
}
