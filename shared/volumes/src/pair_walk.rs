//! Walking down two trees side by side, however deep they are.
//!
//! A tenant can nest directories deeper than any stack, and deeper than the number of files that a process may have
//! open. So there is no recursion, and only the innermost levels are kept open. A level that was closed is opened again
//! from the nearest one that is open, name by name and following no link; never through `..`, which leads
//! wherever the directory has been moved to.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::deletion::names_in;

/// So many levels are kept open, with two handles each.
const OPEN_LEVELS: usize = 32;

/// For opening a directory by its name in an open one: whatever else has the name is refused.
pub(crate) const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Two directories that belong together.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) first: OwnedFd,
    pub(crate) second: OwnedFd,
}

impl Pair {
    /// The directories of this name in both.
    pub(crate) fn open(above: &Self, name: &CStr) -> Result<Self, Errno> {
        Ok(Self {
            first: rustix::fs::openat(&above.first, name, DIRECTORY, Mode::empty())?,
            second: rustix::fs::openat(&above.second, name, DIRECTORY, Mode::empty())?,
        })
    }
}

/// A way down two trees. `About` is what the walker notes about each level.
#[derive(Debug)]
pub(crate) struct PairWalk<About> {
    levels: Vec<Level<About>>,
}

#[derive(Debug)]
struct Level<About> {
    name: CString,
    pair: Option<Pair>,
    /// Whether it is kept open, because its name does not lead to it.
    pinned: bool,
    /// The names in the first directory that are yet to be seen.
    names: Vec<CString>,
    about: About,
}

/// A level that was left.
#[derive(Debug)]
pub(crate) struct Left<About> {
    pub(crate) name: CString,
    pub(crate) pair: Pair,
    pub(crate) about: About,
}

impl<About> PairWalk<About> {
    /// A walk that begins in `pair`.
    pub(crate) fn new(pair: Pair, about: About) -> Result<Self, Errno> {
        let mut walk = Self { levels: Vec::new() };
        walk.enter(CString::default(), pair, true, about)?;
        Ok(walk)
    }

    /// Whether the walk is over.
    pub(crate) fn is_over(&self) -> bool {
        self.levels.is_empty()
    }

    /// The next name in the first of the innermost directories, each once.
    pub(crate) fn next_name(&mut self) -> Option<CString> {
        self.levels.last_mut()?.names.pop()
    }

    /// The innermost directories.
    pub(crate) fn pair(&self) -> Result<&Pair, Errno> {
        self.levels.last().and_then(|level| level.pair.as_ref()).ok_or(Errno::BADF)
    }

    /// The innermost of the first directories.
    pub(crate) fn first(&self) -> Result<BorrowedFd<'_>, Errno> {
        Ok(self.pair()?.first.as_fd())
    }

    /// The innermost of the second directories.
    pub(crate) fn second(&self) -> Result<BorrowedFd<'_>, Errno> {
        Ok(self.pair()?.second.as_fd())
    }

    /// What was noted about each level, the outermost first.
    pub(crate) fn about(&self) -> impl DoubleEndedIterator<Item = &About> {
        self.levels.iter().map(|level| &level.about)
    }

    /// The way from where the walk began to `name` in the innermost directories.
    pub(crate) fn path_of(&self, name: &CStr) -> PathBuf {
        let names = self.levels.iter().skip(1).map(|level| level.name.as_c_str()).chain([name]);
        names.map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }

    /// Goes down into `pair`, which has `name` in the innermost directories. With `pinned` it is kept open: its name
    /// does not lead to it (there is a link at it, say).
    pub(crate) fn enter(
        &mut self,
        name: CString,
        pair: Pair,
        pinned: bool,
        about: About,
    ) -> Result<(), Errno> {
        let names = names_in(pair.first.as_fd())?;
        self.levels.push(Level { name, pair: Some(pair), pinned, names, about });
        self.close_outer(self.levels.len() - 1);
        Ok(())
    }

    /// Goes up one level. `STALE` if the way back up is not there any more.
    pub(crate) fn leave(&mut self) -> Result<Option<Left<About>>, Errno> {
        let Some(level) = self.levels.pop() else { return Ok(None) };
        self.open_innermost()?;
        let pair = level.pair.ok_or(Errno::BADF)?;
        Ok(Some(Left { name: level.name, pair, about: level.about }))
    }

    fn open_innermost(&mut self) -> Result<(), Errno> {
        let open = self.levels.iter().rposition(|level| level.pair.is_some());
        for index in open.map_or(0, |open| open + 1)..self.levels.len() {
            let above = index.checked_sub(1).and_then(|above| self.levels[above].pair.as_ref());
            let pair = match Pair::open(above.ok_or(Errno::BADF)?, &self.levels[index].name) {
                // Its owner has moved it in the meantime. What is there now is for another attempt to see.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(Errno::STALE),
                other => other?,
            };
            self.levels[index].pair = Some(pair);
            self.close_outer(index);
        }
        Ok(())
    }

    /// Closes the level that is too far out to be kept open with the one at `index`.
    fn close_outer(&mut self, index: usize) {
        if let Some(outer) = index.checked_sub(OPEN_LEVELS)
            && !self.levels[outer].pinned
        {
            self.levels[outer].pair = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::path::Path;

    use super::*;

    const DEPTH: usize = 200;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    /// Two trees with `d/d/d…` and, at each level, a file that is named after it.
    fn deep_trees() -> (tempfile::TempDir, Pair) {
        let directory = crate::test_support::temporary_directory();
        for tree in ["first", "second"] {
            let mut path = directory.path().join(tree);
            for level in 0..=DEPTH {
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join(level.to_string()), "").unwrap();
                path.push("d");
            }
        }
        let pair = Pair {
            first: open(&directory.path().join("first")),
            second: open(&directory.path().join("second")),
        };
        (directory, pair)
    }

    /// Goes down as far as it goes, and calls `at_the_bottom` there.
    fn walk(pair: Pair, pinned_every: usize, at_the_bottom: impl Fn()) -> Result<Vec<String>, Errno> {
        let mut walk = PairWalk::new(pair, ())?;
        let mut seen = Vec::new();
        let mut left = false;
        while !walk.is_over() {
            // Directories first, so that every file is seen on the way up.
            if !left && let Ok(pair) = Pair::open(walk.pair()?, c"d") {
                let pinned = walk.levels.len().is_multiple_of(pinned_every);
                walk.enter(c"d".to_owned(), pair, pinned, ())?;
                let open = walk.levels.iter().filter(|level| level.pair.is_some()).count();
                assert!(open <= OPEN_LEVELS + 1 + DEPTH / pinned_every, "{open} levels are open");
                continue;
            }
            if !left {
                at_the_bottom();
            }
            left = true;
            while let Some(name) = walk.next_name() {
                let pair = walk.pair()?;
                if name.as_c_str() != c"d" {
                    rustix::fs::statat(&pair.second, &name, rustix::fs::AtFlags::empty())?;
                    seen.push(walk.path_of(&name).to_str().unwrap().to_owned());
                }
            }
            walk.leave()?;
        }
        Ok(seen)
    }

    #[test]
    fn a_deep_walk_keeps_few_levels_open_and_finds_its_way_back() {
        for pinned_every in [10, 1_000] {
            let (_directory, pair) = deep_trees();
            let seen = walk(pair, pinned_every, || {}).unwrap();
            let expected: Vec<String> =
                (0..=DEPTH).rev().map(|level| format!("{}{level}", "d/".repeat(level))).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_way_back_that_was_moved_away_or_leads_elsewhere_ends_the_walk() {
        for tree in ["first", "second"] {
            for link in [false, true] {
                let (directory, pair) = deep_trees();
                let other = directory.path().join("other");
                let outcome = walk(pair, 1_000, || {
                    let moved = directory.path().join(tree).join("d/d/d");
                    std::fs::rename(&moved, &other).unwrap();
                    if link {
                        std::os::unix::fs::symlink(&other, &moved).unwrap();
                    }
                });
                assert_eq!(outcome.unwrap_err(), Errno::STALE);
            }
        }
    }
}
