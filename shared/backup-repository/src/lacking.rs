//! Which snapshots need data that the repository does not have.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::Path;

use rustic_core::{IndexedFullStatus, TreeId};

use crate::error::{BackupRepositoryErrorKind as Kind, Result};
use crate::repository::{Repository, open_rustic, read_snapshot};
use crate::snapshot::SnapshotId;
use crate::snapshot_tree::SnapshotTrees;

impl Repository {
    /// Of some snapshots, those that need what no index has, and so restore in part at most; the newest first. It says what is in
    /// no index now: a listing may lack one, so it is no reason to delete anything. Reads every directory; blocks.
    pub(crate) fn lacking<'a>(
        &self,
        snapshots: impl Iterator<Item = &'a SnapshotId>,
    ) -> Result<Vec<SnapshotId>> {
        let opened =
            open_rustic(&self.backend, &self.key, &self.relay).and_then(rustic_core::Repository::to_indexed);
        let rustic = opened.map_err(|error| self.error("read index of", &error))?;
        let trees = SnapshotTrees { rustic: &rustic, backend: &self.backend };
        let mut whole = HashSet::new();
        let mut lacking = Vec::new();
        for id in snapshots {
            let snapshot = match read_snapshot(&rustic, &self.backend, &self.identity, *id) {
                // Nothing is known of what it needs.
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => continue,
                read => read?.0,
            };
            match whole_trees(&trees, snapshot.tree, &whole)? {
                Some(seen) => whole.extend(seen),
                None => lacking.push((snapshot.time.timestamp(), *id)),
            }
        }
        lacking.sort_by_key(|(time, _)| Reverse(*time));
        Ok(lacking.into_iter().map(|(_, id)| id).collect())
    }
}

/// All trees below one that are not known to be whole, and are; `None` where anything is missing.
fn whole_trees(
    trees: &SnapshotTrees<'_, IndexedFullStatus>,
    top: TreeId,
    whole: &HashSet<TreeId>,
) -> Result<Option<HashSet<TreeId>>> {
    let mut seen = HashSet::from([top]);
    let mut next = vec![top];
    while let Some(tree) = next.pop() {
        let entries = match trees.directory(Path::new(""), tree) {
            Err(error) if error.kind() == Kind::Damaged => return Ok(None),
            entries => entries?,
        };
        for (_, node) in entries {
            if node.content.iter().flatten().any(|blob| trees.rustic.get_index_entry(blob).is_err()) {
                return Ok(None);
            }
            next.extend(node.subtree.filter(|tree| !whole.contains(tree) && seen.insert(*tree)));
        }
    }
    Ok(Some(seen))
}
