//! What a backup reads: two directories as the roots `persist/` and `project/` of one snapshot.
//!
//! rustic_core drops whatever it cannot read, with a line in a log, and calls the backup a success. So this
//! source keeps its own account of everything that did not get in: on a read-only snapshot any such entry
//! is an error; on a live tree an entry that vanished in between is normal and is reported, anything else
//! is an error as well.
//!
//! Change detection trusts modification time, size *and* change time. A file changed within the clock's
//! grain of being read can change once more without a new change time ("racy"): its change time is stored as
//! one that no file has, so that the next backup reads it again.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustic_core::repofile::Node;
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::backend::WriteGuard;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::repository::Progress;
use crate::walk::{ExtendedAttributes, OPEN_DIRECTORY, Walk, WalkEntry, WalkFault};

/// The name of the root that holds the project's files.
pub const PROJECT_ROOT: &str = "project";

/// The name of the root that holds the project's persist store.
pub const PERSIST_ROOT: &str = "persist";

/// How many paths a receipt or an error names; the rest is only counted.
const NAMED_PATHS: usize = 10;

/// Clocks of file systems tick this coarsely at worst.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);

/// These take their times from the kernel's clock, which ticks every 10 ms or oftener; and five ticks are
/// allowed for.
const FINE_CLOCK_GRAIN: Duration = Duration::from_millis(50);

/// Their numbers in the kernel's `magic.h`: btrfs, ext2 to ext4, XFS, tmpfs.
const FILE_SYSTEMS_WITH_FINE_CLOCKS: [i64; 4] = [0x9123_683e, 0xef53, 0x5846_5342, 0x0102_1994];

/// Whether what is backed up can change meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SourceState {
    /// A read-only snapshot of the file system, taken at that time.
    ReadOnly {
        /// Unix time in seconds, with fraction.
        taken_at: f64,
    },
    /// The tree itself, in use.
    Live,
}

/// Entries counted, the first few by path.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct CountedPaths {
    /// How many.
    pub count: u64,
    /// The first ten of them.
    pub first: Vec<String>,
}

impl CountedPaths {
    fn add(&mut self, text: String) {
        self.count += 1;
        if self.first.len() < NAMED_PATHS {
            self.first.push(text);
        }
    }
}

/// What did not get into the backup as it should.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceFindings {
    /// Gone, or replaced by something else, between the look and the read.
    pub(crate) vanished: CountedPaths,
    /// Not readable, each with its reason.
    pub(crate) unreadable: CountedPaths,
    /// Changed during the reading.
    pub(crate) changed: CountedPaths,
}

/// What the walk, the readers and rustic's threads share.
struct Shared {
    live: bool,
    taken_at: Option<SystemTime>,
    clock_grain: Duration,
    guard: WriteGuard,
    progress: Arc<dyn Progress>,
    findings: Mutex<SourceFindings>,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("live", &self.live).finish_non_exhaustive()
    }
}

impl Shared {
    fn findings(&self) -> MutexGuard<'_, SourceFindings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        if self.progress.is_canceled() {
            self.guard.close();
        }
        self.guard.is_closed()
    }

    /// Whether a file may have changed again after it was looked at, without a new change time. Of anything
    /// else nothing is ever taken over because of its change time.
    fn is_racy(&self, node: &Node, looked_at: SystemTime) -> bool {
        let still_until = self.taken_at.unwrap_or(looked_at);
        node.is_file() && is_racy(node.meta.ctime, still_until, self.clock_grain)
    }

    /// Takes down what could not be read.
    fn fault(&self, path: &Path, error: &io::Error) {
        let gone = error.raw_os_error().is_some_and(|code| {
            // Replaced by a link (LOOP) or by something that is no directory (NOTDIR), removed (NOENT), or
            // removed on a network file system (STALE).
            [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::STALE]
                .iter()
                .any(|gone| gone.raw_os_error() == code)
        });
        if gone && self.live {
            self.findings().vanished.add(path.display().to_string());
        } else {
            self.findings().unreadable.add(format!("{}: {error}", path.display()));
        }
    }

    fn report(&self) {
        self.progress.stored(self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
    }
}

/// The two directories, as rustic reads them.
#[derive(Debug)]
pub(crate) struct BackupSource {
    roots: [(&'static str, OwnedFd); 2],
    /// As paths in the snapshot; everything where empty.
    only: Arc<[PathBuf]>,
    shared: Arc<Shared>,
}

impl BackupSource {
    /// Opens both directories; neither may be a link. Of `project` only the paths `only` are read, if there are any.
    pub(crate) fn new(
        project: &Path,
        persist: &Path,
        only: &[PathBuf],
        state: SourceState,
        guard: WriteGuard,
        progress: Arc<dyn Progress>,
    ) -> Result<Self> {
        let taken_at = match state {
            SourceState::Live => None,
            SourceState::ReadOnly { taken_at } => {
                let since_epoch = Duration::try_from_secs_f64(taken_at).map_err(|error| {
                    let message = "the time of the snapshot is no time";
                    BackupRepositoryError::new(Kind::InvalidArgument, "back up", project.display(), message)
                        .with_source(error)
                })?;
                Some(SystemTime::UNIX_EPOCH + since_epoch)
            }
        };
        // In the order of a snapshot.
        let roots =
            [(PERSIST_ROOT, open_root(persist, "back up")?), (PROJECT_ROOT, open_root(project, "back up")?)];
        let fine = roots.iter().all(|(_, root)| has_fine_clock(root));
        Ok(Self {
            roots,
            only: only.iter().map(|path| Path::new(PROJECT_ROOT).join(path)).collect(),
            shared: Arc::new(Shared {
                live: state == SourceState::Live,
                taken_at,
                clock_grain: if fine { FINE_CLOCK_GRAIN } else { CLOCK_GRAIN },
                guard,
                progress,
                findings: Mutex::default(),
                files: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
            }),
        })
    }

    pub(crate) fn findings(&self) -> SourceFindings {
        self.shared.findings().clone()
    }

    /// Called with the bytes that rustic says are done, read or found unchanged.
    pub(crate) fn byte_listener(&self) -> Arc<dyn Fn(u64) + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |bytes| {
            shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            shared.report();
        })
    }

    /// Whether the tree is, entry by entry, what `stored` lists. Neither contents nor extended attributes of
    /// files are read: both cannot change without the change time, which is compared, and a file whose change
    /// time is too young to trust counts as changed. So does whatever cannot be read: the backup will say why.
    pub(crate) fn equals(&self, stored: impl Iterator<Item = Result<(PathBuf, Node)>>) -> Result<bool> {
        let mut found = self.walks(ExtendedAttributes::ReadExceptOfFiles).into_iter().flatten();
        for entry in stored {
            if self.shared.is_stopped() {
                return Ok(false);
            }
            let (path, mut node) = entry?;
            let looked_at = SystemTime::now();
            let Some(Ok(found)) = found.next() else { return Ok(false) };
            (node.content, node.subtree) = (None, None);
            if node.is_file() {
                node.meta.extended_attributes.clear();
            }
            if found.path != path || found.node != node || self.shared.is_racy(&found.node, looked_at) {
                return Ok(false);
            }
        }
        Ok(found.next().is_none())
    }

    fn walks(&self, attributes: ExtendedAttributes) -> Vec<Walk> {
        let mut walks = Vec::new();
        for (number, (name, root)) in self.roots.iter().enumerate() {
            match rustix::io::fcntl_dupfd_cloexec(root, 0) {
                // From 1, because rustic takes 0 for "no device"; far apart, because a hard link never
                // reaches from one root into the other in a restored project.
                Ok(root) => {
                    let device_offset = 1 + 1000 * number as u64;
                    let walk = |only| Walk::new(OsStr::new(name), root, device_offset, attributes, only);
                    walks.push(match *name == PROJECT_ROOT {
                        true => walk(Arc::clone(&self.only)).without_staged(),
                        false => walk(Arc::from([])),
                    });
                }
                Err(error) => self.shared.fault(Path::new(name), &error.into()),
            }
        }
        walks
    }
}

/// Opens a directory that has to be one, not a link to one.
pub(crate) fn open_root(path: &Path, operation: &'static str) -> Result<OwnedFd> {
    rustix::fs::openat(rustix::fs::CWD, path, OPEN_DIRECTORY, Mode::empty()).map_err(|error| {
        let kind = match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Kind::InvalidArgument,
            _ => Kind::SourceUnreadable,
        };
        BackupRepositoryError::new(kind, operation, path.display(), "it cannot be opened as a directory")
            .with_source(error)
    })
}

impl ReadSource for BackupSource {
    type Open = SourceFile;
    type Iter = SourceEntries;

    /// Counts everything for the progress display; runs beside the backup.
    fn size(&self) -> RusticResult<Option<u64>> {
        let (mut files, mut bytes) = (0, 0);
        for entry in self.walks(ExtendedAttributes::ReadExceptOfFiles).into_iter().flatten() {
            if self.shared.is_stopped() {
                return Ok(None);
            }
            if let Ok(entry) = entry {
                files += u64::from(!entry.node.is_dir());
                bytes += entry.node.meta.size;
            }
        }
        self.shared.progress.scanned(files, bytes);
        Ok(Some(bytes))
    }

    fn entries(&self) -> Self::Iter {
        let mut walks = self.walks(ExtendedAttributes::Read);
        walks.reverse();
        SourceEntries { walks, shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
pub(crate) struct SourceEntries {
    /// The next one last.
    walks: Vec<Walk>,
    shared: Arc<Shared>,
}

impl Iterator for SourceEntries {
    type Item = RusticResult<ReadSourceEntry<SourceFile>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.shared.is_stopped() {
                return None;
            }
            let looked_at = SystemTime::now();
            match self.walks.last_mut()?.next() {
                None => {
                    self.walks.pop();
                }
                Some(Err(WalkFault { path, error })) => self.shared.fault(&path, &error),
                Some(Ok(entry)) => {
                    if !entry.node.is_dir() {
                        self.shared.files.fetch_add(1, Ordering::Relaxed);
                        self.shared.report();
                    }
                    return Some(Ok(self.source_entry(entry, looked_at)));
                }
            }
        }
    }
}

impl SourceEntries {
    fn source_entry(&self, entry: WalkEntry, looked_at: SystemTime) -> ReadSourceEntry<SourceFile> {
        let WalkEntry { path, mut node, directory, name } = entry;
        let open = node.is_file().then(|| SourceFile {
            path: path.clone(),
            directory,
            name,
            expected: Expected::of(&node),
            shared: Arc::clone(&self.shared),
        });
        if self.shared.is_racy(&node, looked_at) {
            node.meta.ctime = Some(never_again(looked_at));
        }
        ReadSourceEntry { path, node, open }
    }
}

/// A change time that no file has and no other backup stores: the time of the look, as far before 1970 as
/// it is after. (One constant for all would match itself in the next backup.)
fn never_again(looked_at: SystemTime) -> Timestamp {
    let since_epoch = looked_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or_default();
    let nanoseconds = i32::try_from(since_epoch.subsec_nanos()).unwrap_or_default();
    Timestamp::new(-seconds, -nanoseconds).unwrap_or(Timestamp::MIN)
}

/// Whether an entry with this change time may have changed again until then, without a new change time.
fn is_racy(changed: Option<Timestamp>, still_until: SystemTime, clock_grain: Duration) -> bool {
    changed.is_some_and(|changed| {
        SystemTime::from(changed).checked_add(clock_grain).is_none_or(|settled| settled >= still_until)
    })
}

#[allow(clippy::useless_conversion, reason = "of another type on other architectures")]
fn has_fine_clock(root: &OwnedFd) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|found| {
        i64::try_from(found.f_type).is_ok_and(|number| FILE_SYSTEMS_WITH_FINE_CLOCKS.contains(&number))
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    size: u64,
    mtime: Option<Timestamp>,
    ctime: Option<Timestamp>,
}

impl Expected {
    fn of(node: &Node) -> Self {
        Self { size: node.meta.size, mtime: node.meta.mtime, ctime: node.meta.ctime }
    }
}

/// A file to be opened when its turn comes.
#[derive(Debug)]
pub(crate) struct SourceFile {
    path: PathBuf,
    directory: Arc<OwnedFd>,
    name: std::ffi::OsString,
    expected: Expected,
    shared: Arc<Shared>,
}

impl ReadSourceOpen for SourceFile {
    type Reader = SourceReader;

    fn open(self) -> RusticResult<SourceReader> {
        // A fifo in the file's place must not block us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.directory, self.name.as_os_str(), flags, Mode::empty())
            .and_then(|file| {
                let stat = rustix::fs::fstat(&file)?;
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                if is_file { Ok(std::fs::File::from(file)) } else { Err(Errno::NOTDIR) }
            })
            .map_err(io::Error::from);
        match opened {
            Ok(file) => Ok(SourceReader {
                remaining: self.expected.size,
                file,
                path: self.path,
                expected: self.expected,
                shared: self.shared,
                ended: false,
            }),
            Err(error) => {
                self.shared.fault(&self.path, &error);
                Err(RusticError::with_source(ErrorKind::InputOutput, "a file cannot be opened", error))
            }
        }
    }
}

/// Reads a file up to the size it had: one that grows meanwhile is cut there, which is a state it once had.
#[derive(Debug)]
pub(crate) struct SourceReader {
    file: std::fs::File,
    remaining: u64,
    path: PathBuf,
    expected: Expected,
    shared: Arc<Shared>,
    ended: bool,
}

impl SourceReader {
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let now = rustix::fs::fstat(&self.file).ok().map(|stat| {
            let time = |seconds: i64, nanoseconds| {
                Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or_default()).ok()
            };
            Expected {
                size: u64::try_from(stat.st_size).unwrap_or_default(),
                mtime: time(stat.st_mtime, stat.st_mtime_nsec),
                ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            }
        });
        let path = self.path.display().to_string();
        if self.remaining > 0 && !self.shared.live {
            self.shared.findings().unreadable.add(format!("{path}: it is shorter than the file system says"));
        } else if self.shared.live && (self.remaining > 0 || now.as_ref() != Some(&self.expected)) {
            self.shared.findings().changed.add(path);
        }
    }
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.shared.is_stopped() {
            return Err(io::Error::other("the backup was stopped"));
        }
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            if self.remaining == 0 {
                self.end();
            }
            return Ok(0);
        }
        match self.file.read(&mut buffer[..wanted]) {
            Ok(0) => {
                self.end();
                Ok(0)
            }
            Ok(count) => {
                self.remaining -= count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.shared.fault(&self.path, &error);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn a_file_changed_within_the_clocks_grain_is_read_again_next_time() {
        let now = SystemTime::now();
        let racy = |ago_ms: u64, grain| {
            let changed = Timestamp::try_from(now - Duration::from_millis(ago_ms)).unwrap();
            is_racy(Some(changed), now, grain)
        };
        assert!(racy(0, CLOCK_GRAIN));
        assert!(racy(1000, CLOCK_GRAIN));
        assert!(!racy(3000, CLOCK_GRAIN));
        assert!(racy(20, FINE_CLOCK_GRAIN));
        assert!(!racy(100, FINE_CLOCK_GRAIN));
        assert!(never_again(now) < Timestamp::UNIX_EPOCH);
        assert_ne!(never_again(now), never_again(now + Duration::from_nanos(1)));
    }
}
