//! Listing and searching in pages: a directory of 100,000 entries, or a search through a thousand backups, costs
//! bounded memory and time per answer, and the next page goes on where the last one ended.
//!
//! The order is that of a walk: names by their bytes, a directory before what is in it. A page ends with a
//! cursor, the last path that was looked at; the next one begins with whatever comes after it, and nothing is
//! remembered in between.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use globset::{GlobBuilder, GlobMatcher};
use rustic_core::TreeId;
use rustic_core::repofile::Node;
use serde::{Deserialize, Serialize};

use crate::browse::{Browser, EntryKind, entry_kind};
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::node_metadata::permissions;
use crate::repository::read_snapshot;
use crate::snapshot::SnapshotId;
use crate::snapshot_tree::{SnapshotPath, SnapshotTrees};

/// Entries of directories that are kept as they were read, all together.
const KEPT_ENTRIES: usize = 150_000;

/// Snapshots whose root is remembered.
const KEPT_SNAPSHOTS: usize = 1_000;

/// Directories that are read ahead after a listing.
const PREFETCHED: usize = 256;

/// What the entries of one page may have as text: an answer has to fit into a message.
const PAGE_BYTES: usize = 400 * 1024;

/// What an entry costs beside its name.
const ENTRY_BYTES: usize = 200;

/// A search ends its page when it has taken so long.
const SEARCH_TIME: Duration = Duration::from_secs(2);

/// Directories without a match that a search remembers, to pass over them in the next backup.
const KEPT_BARREN: usize = 100_000;

/// A page of a directory to be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// The backup.
    pub snapshot: SnapshotId,
    /// The directory; the two roots where it is `None`.
    pub path: Option<SnapshotPath>,
    /// How many levels down; 1 for its entries.
    pub depth: u32,
    /// At most so many entries.
    pub limit: u32,
    /// Go on after this: `next` of the page before.
    pub after: Option<String>,
}

/// Paths to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FindQuery {
    /// What they have to look like.
    pub glob: String,
    /// In these backups, one after the other.
    pub snapshots: Vec<SnapshotId>,
    /// At most so many.
    pub limit: u32,
    /// In the first backup, go on after this.
    pub after: Option<String>,
}

/// An entry on a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageEntry {
    /// Its path below what was listed, as text: what is no UTF-8 is replaced.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Size in bytes; 0 for everything but files.
    pub size_bytes: u64,
    /// When it was last modified, in milliseconds since 1970.
    pub mtime_ms: i64,
    /// The twelve permission bits.
    pub mode: u32,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPage {
    /// Whether there is such a path.
    pub exists: bool,
    /// Its entries.
    pub entries: Vec<PageEntry>,
    /// Where the next page starts; `None` on the last.
    pub next: Option<String>,
}

/// A page of a search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindPage {
    /// What was found, in which backup.
    pub matches: Vec<(SnapshotId, PageEntry)>,
    /// Where it stopped before the end of the last backup: in this one, after this.
    pub stopped: Option<(SnapshotId, String)>,
}

/// What a listing needs of a node; a page of 100,000 whole ones would take 100 MB.
#[derive(Debug)]
struct ListedNode {
    name: Box<OsStr>,
    kind: EntryKind,
    size_bytes: u64,
    mtime_ms: i64,
    mode: u32,
    subtree: Option<TreeId>,
}

type Directory = Arc<[ListedNode]>;

/// What a browser remembers; bounded.
#[derive(Debug, Default)]
pub(crate) struct BrowserMemory {
    roots: HashMap<SnapshotId, TreeId>,
    directories: HashMap<TreeId, Directory>,
    order: VecDeque<TreeId>,
    entries: usize,
    ahead: VecDeque<TreeId>,
}

/// One directory on the way of a walk.
struct Level {
    /// The path of the directory below the top, with a slash behind it unless it is empty.
    prefix: Vec<u8>,
    tree: TreeId,
    directory: Directory,
    next: usize,
    /// Whether all of it is walked, and nothing in it matched.
    barren: bool,
}

/// A walk through a tree, which can begin in the middle.
struct PagedWalk<'a> {
    browser: &'a Browser,
    depth: usize,
    levels: Vec<Level>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Browser {
    /// A page of a directory. The directories that it shows are read ahead by [`Self::read_ahead`]. Blocks.
    pub fn list_page(&self, query: &ListQuery) -> Result<ListPage> {
        let root = self.root_of(query.snapshot)?;
        let after = query.after.as_deref().map(read_cursor).transpose()?;
        let mut page = ListPage { exists: true, entries: Vec::new(), next: None };
        let mut tree = root;
        if let Some(path) = &query.path {
            let parts: Vec<&OsStr> = path.as_path().iter().collect();
            for (number, part) in parts.iter().enumerate() {
                let directory = self.directory(tree)?;
                let found = directory.binary_search_by(|node| node.name.as_ref().cmp(part));
                let Ok(found) = found else { return Ok(ListPage { exists: false, ..page }) };
                match directory[found].subtree {
                    Some(subtree) => tree = subtree,
                    None if number + 1 == parts.len() => {
                        page.entries.push(directory[found].entry(part.as_bytes()));
                        return Ok(page);
                    }
                    None => return Ok(ListPage { exists: false, ..page }),
                }
            }
        }
        let mut walk = PagedWalk::new(self, tree, query.depth.max(1) as usize, after.as_deref())?;
        let mut bytes = 0;
        let mut ahead = Vec::new();
        while let Some((path, node, level)) = walk.step()? {
            let entry = node.entry(&path);
            bytes += ENTRY_BYTES + escaped_length(&entry.path);
            if let Some(subtree) = node.subtree.filter(|_| level >= walk.depth && ahead.len() < PREFETCHED) {
                ahead.push(subtree);
            }
            page.entries.push(entry);
            if (page.entries.len() >= query.limit as usize || bytes >= PAGE_BYTES) && walk.has_more() {
                page.next = Some(BASE64URL_NOPAD.encode(&path));
                break;
            }
        }
        let mut memory = lock(&self.memory);
        memory.ahead = ahead.into();
        Ok(page)
    }

    /// Reads one of the directories that the last listing showed, and says whether there was one left: for
    /// when there is nothing else to do. What fails here fails again, and is reported, when somebody asks for it.
    pub fn read_ahead(&self) -> bool {
        let Some(tree) = lock(&self.memory).ahead.pop_front() else { return false };
        if let Err(error) = self.directory(tree) {
            tracing::debug!(%error, "a directory could not be read ahead");
        }
        true
    }

    /// Paths that look like a glob, in several snapshots. Blocks, for a few seconds at most.
    pub fn find_page(&self, query: &FindQuery) -> Result<FindPage> {
        let matcher = glob_matcher(&query.glob)?;
        let began = Instant::now();
        let mut page = FindPage { matches: Vec::new(), stopped: None };
        let mut bytes = 0;
        // What is the same tree at the same place in two backups has no match in the second either.
        let mut barren: HashSet<(TreeId, Vec<u8>)> = HashSet::new();
        let mut after = query.after.as_deref().map(read_cursor).transpose()?;
        for snapshot in &query.snapshots {
            let root = self.root_of(*snapshot)?;
            let mut walk = PagedWalk::new(self, root, usize::MAX, after.take().as_deref())?;
            loop {
                let step = walk.step_over(|tree, prefix| barren.contains(&(tree, prefix.to_vec())))?;
                for (tree, prefix) in step.finished {
                    if barren.len() < KEPT_BARREN {
                        barren.insert((tree, prefix));
                    }
                }
                let Some((path, node)) = step.entry else { break };
                if matcher.is_match(Path::new(OsStr::from_bytes(&path))) {
                    let entry = node.entry(&path);
                    bytes += ENTRY_BYTES + escaped_length(&entry.path);
                    page.matches.push((*snapshot, entry));
                    walk.matched();
                }
                let full = page.matches.len() >= query.limit as usize || bytes >= PAGE_BYTES;
                if full || began.elapsed() >= SEARCH_TIME {
                    // Even where it was the last path of this backup: the next page then goes on with the next.
                    page.stopped = Some((*snapshot, BASE64URL_NOPAD.encode(&path)));
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    /// Keeps the cache of metadata on the disk within its limit, for whoever keeps looking.
    pub(crate) fn trim_cache(&self) {
        self.backend.cache().trim();
    }

    fn root_of(&self, snapshot: SnapshotId) -> Result<TreeId> {
        if let Some(root) = lock(&self.memory).roots.get(&snapshot) {
            return Ok(*root);
        }
        let (file, _) = read_snapshot(&self.rustic, &self.backend, &self.identity, snapshot)?;
        let mut memory = lock(&self.memory);
        if memory.roots.len() >= KEPT_SNAPSHOTS {
            memory.roots.clear();
        }
        memory.roots.insert(snapshot, file.tree);
        Ok(file.tree)
    }

    /// The entries of a directory, in the order of their names' bytes.
    fn directory(&self, tree: TreeId) -> Result<Directory> {
        if let Some(directory) = lock(&self.memory).directories.get(&tree) {
            return Ok(Arc::clone(directory));
        }
        let trees = SnapshotTrees { rustic: &self.rustic, backend: &self.backend };
        let directory: Directory = trees
            .directory(Path::new(""), tree)?
            .into_iter()
            .map(|(name, node)| ListedNode::of(name.into_boxed_os_str(), &node))
            .collect();
        let mut memory = lock(&self.memory);
        memory.entries += directory.len() + 1;
        if memory.directories.insert(tree, Arc::clone(&directory)).is_none() {
            memory.order.push_back(tree);
        }
        while memory.entries > KEPT_ENTRIES
            && memory.order.len() > 1
            && let Some(oldest) = memory.order.pop_front()
        {
            if let Some(dropped) = memory.directories.remove(&oldest) {
                memory.entries -= dropped.len() + 1;
            }
        }
        Ok(directory)
    }
}

/// What a walk has done in one step.
struct FindStep {
    entry: Option<(Vec<u8>, NodeView)>,
    /// Directories that were walked from their first entry to their last and have nothing that matches.
    finished: Vec<(TreeId, Vec<u8>)>,
}

/// A node by its place, so that it outlives the borrow of the walk.
struct NodeView {
    directory: Directory,
    index: usize,
}

impl std::ops::Deref for NodeView {
    type Target = ListedNode;

    fn deref(&self) -> &ListedNode {
        &self.directory[self.index]
    }
}

impl<'a> PagedWalk<'a> {
    fn new(browser: &'a Browser, tree: TreeId, depth: usize, after: Option<&[u8]>) -> Result<Self> {
        let mut walk = Self { browser, depth, levels: Vec::new() };
        walk.enter(Vec::new(), tree)?;
        let Some(after) = after else { return Ok(walk) };
        for level in &mut walk.levels {
            level.barren = false;
        }
        for part in after.split(|byte| *byte == b'/') {
            let Some(level) = walk.levels.last_mut() else { break };
            let name = OsStr::from_bytes(part);
            match level.directory.binary_search_by(|node| node.name.as_ref().cmp(name)) {
                Err(place) => {
                    // It is gone, which cannot be in a snapshot: the cursor was made up, and does no harm.
                    level.next = place;
                    break;
                }
                Ok(place) => {
                    level.next = place + 1;
                    let prefix = [level.prefix.as_slice(), part, b"/"].concat();
                    match level.directory[place].subtree.filter(|_| walk.levels.len() < walk.depth) {
                        Some(subtree) => walk.enter(prefix, subtree)?,
                        None => break,
                    }
                    // It may have been begun by the page before.
                    if let Some(level) = walk.levels.last_mut() {
                        level.barren = false;
                    }
                }
            }
        }
        Ok(walk)
    }

    fn enter(&mut self, prefix: Vec<u8>, tree: TreeId) -> Result<()> {
        let directory = self.browser.directory(tree)?;
        self.levels.push(Level { prefix, tree, directory, next: 0, barren: true });
        Ok(())
    }

    /// Whether any entry is left.
    fn has_more(&self) -> bool {
        self.levels.iter().any(|level| level.next < level.directory.len())
    }

    /// Something matched in the directory of the last step: it, and all above it, are worth a look again.
    fn matched(&mut self) {
        for level in &mut self.levels {
            level.barren = false;
        }
    }

    /// The next entry: its path, itself, and its level from 1.
    fn step(&mut self) -> Result<Option<(Vec<u8>, NodeView, usize)>> {
        let step = self.step_over(|_, _| false)?;
        Ok(step.entry.map(|(path, node)| {
            let level = path.iter().filter(|byte| **byte == b'/').count() + 1;
            (path, node, level)
        }))
    }

    /// As `step`, without entering directories that `skip` names.
    fn step_over(&mut self, skip: impl Fn(TreeId, &[u8]) -> bool) -> Result<FindStep> {
        let mut finished = Vec::new();
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(FindStep { entry: None, finished }) };
            let index = level.next;
            if index >= level.directory.len() {
                if let Some(level) = self.levels.pop()
                    && level.barren
                {
                    finished.push((level.tree, level.prefix));
                }
                continue;
            }
            level.next += 1;
            let node = NodeView { directory: Arc::clone(&level.directory), index };
            let path = [level.prefix.as_slice(), node.name.as_bytes()].concat();
            if let Some(subtree) = node.subtree.filter(|_| self.levels.len() < self.depth) {
                let prefix = [path.as_slice(), b"/"].concat();
                if !skip(subtree, &prefix) {
                    self.enter(prefix, subtree)?;
                }
            }
            return Ok(FindStep { entry: Some((path, node)), finished });
        }
    }
}

impl ListedNode {
    fn of(name: Box<OsStr>, node: &Node) -> Self {
        Self {
            name,
            kind: entry_kind(node),
            size_bytes: if node.is_file() { node.meta.size } else { 0 },
            mtime_ms: node.meta.mtime.unwrap_or_default().as_millisecond(),
            mode: permissions(node.meta.mode.unwrap_or_default()),
            subtree: node.subtree.filter(|_| node.is_dir()),
        }
    }

    fn entry(&self, path: &[u8]) -> PageEntry {
        PageEntry {
            path: String::from_utf8_lossy(path).into_owned(),
            kind: self.kind,
            size_bytes: self.size_bytes,
            mtime_ms: self.mtime_ms,
            mode: self.mode,
        }
    }
}

/// The length that a text has in JSON.
fn escaped_length(text: &str) -> usize {
    text.bytes().map(|byte| if byte < 0x20 { 6 } else { 1 + usize::from(matches!(byte, b'"' | b'\\')) }).sum()
}

fn read_cursor(cursor: &str) -> Result<Vec<u8>> {
    BASE64URL_NOPAD.decode(cursor.as_bytes()).map_err(|error| {
        BackupRepositoryError::new(Kind::InvalidArgument, "read cursor", cursor, "no page gave it")
            .with_source(error)
    })
}

/// Checks a glob: `*` and `?` stay within a name, `**` goes over directories.
pub fn check_glob(glob: &str) -> Result<()> {
    glob_matcher(glob).map(drop)
}

fn glob_matcher(glob: &str) -> Result<GlobMatcher> {
    let built = GlobBuilder::new(glob).literal_separator(true).backslash_escape(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|error| {
        BackupRepositoryError::new(Kind::InvalidArgument, "read glob", glob, error.kind().to_string())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn a_star_stays_within_a_name_and_two_go_over_directories() {
        let matches = |glob: &str, path: &str| glob_matcher(glob).unwrap().is_match(Path::new(path));
        assert!(matches("**/*.rs", "project/src/main.rs"));
        assert!(matches("project/*.rs", "project/main.rs"));
        assert!(!matches("project/*.rs", "project/src/main.rs"));
        assert!(matches("project/{a,b}/[0-9]?", "project/b/7x"));
        assert!(check_glob("project/[").is_err());
    }

    #[test]
    fn a_name_costs_what_it_takes_in_json() {
        for text in ["plain", "a\"b\\c", "\u{1}\u{1f}", "日本語"] {
            assert!(escaped_length(text) + 2 >= serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
    }
}
