//! Copying files and directories out of a tree that somebody else can change at any moment.
//!
//! The source may be a live project, and its owner may be hostile: each name can be a link a moment later. So
//! whatever is copied is first opened as a bare handle (`O_PATH`, which runs no driver and reads nothing), looked at
//! through it, and read through it. Only the files of a source that stands still, which nobody but the host can write, are
//! looked at by their names and opened at once: three calls less of the kernel for each.
//!
//! Links are copied as links. Where the caller wants them followed, the kernel resolves them beneath the root of the
//! source, and refuses what leads out of it.

use std::ffi::{CStr, CString, OsStr};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use domain_model::{ProjectPath, RESERVED_PREFIX};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timestamps, Uid};
use rustix::io::Errno;

use crate::VolumeError;
use crate::btrfs::handle_path;
use crate::copy_into::{CopyProgress, CopyReceipt};
use crate::file_data::{DataCopy, copy_data};
use crate::pair_walk::{DIRECTORY, Left, Pair, PairWalk};

/// A handle to whatever has a name, a link included.
const BARE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A handle to a file that is known to be one, to read it.
const READABLE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// How often the kernel is asked again to resolve a path while others rename directories.
const MAX_TRIES: usize = 128;

/// Whom copied files belong to, and with which permissions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ownership {
    /// To one owner. Programs lose the right to run as theirs.
    Of(Uid, Gid),
    /// As in the source.
    Kept,
}

/// How a tree is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyStyle {
    pub(crate) ownership: Ownership,
    pub(crate) recursive: bool,
    pub(crate) dereference: bool,
    pub(crate) timestamps: bool,
    /// Whether others may change the source meanwhile.
    pub(crate) source_is_live: bool,
}

/// Copies out of one source, and counts.
pub(crate) struct TreeCopy<'a> {
    source: &'a Path,
    root: OwnedFd,
    root_identity: Identity,
    style: CopyStyle,
    go_on: &'a mut dyn FnMut(CopyProgress) -> ControlFlow<()>,
    receipt: CopyReceipt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// What is noted about a directory until all in it is copied.
#[derive(Debug)]
struct Around {
    identity: Identity,
    stat: Stat,
}

/// Something to be copied, held open.
struct Found {
    handle: OwnedFd,
    stat: Stat,
    /// Whether a link led to it.
    through_link: bool,
    /// Whether it can be read by its handle.
    is_readable: bool,
}

impl Found {
    fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

impl<'a> TreeCopy<'a> {
    pub(crate) fn new(
        source: &'a Path,
        style: CopyStyle,
        go_on: &'a mut dyn FnMut(CopyProgress) -> ControlFlow<()>,
    ) -> Result<Self, VolumeError> {
        let root = rustix::fs::open(source, DIRECTORY, Mode::empty())
            .map_err(VolumeError::io("open the directory", source))?;
        let stat = rustix::fs::fstat(&root).map_err(VolumeError::io("look at", source))?;
        let receipt = CopyReceipt { cloned: true, ..CopyReceipt::default() };
        Ok(Self { source, root, root_identity: Identity::of(&stat), style, go_on, receipt })
    }

    /// What was copied so far.
    pub(crate) fn receipt(&self) -> &CopyReceipt {
        &self.receipt
    }

    /// Copies what is at `from` to `name`, which is free, in the open directory `target`. Tells whether anything is
    /// there now: devices and sockets are passed over.
    pub(crate) fn copy(
        &mut self,
        from: &ProjectPath,
        target: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<bool, VolumeError> {
        let path = from.as_path();
        self.ask(path)?;
        let found = self.find(from)?;
        if !found.file_type().is_dir() {
            return self.copy_leaf(&found, target, name, path);
        }
        if !self.style.recursive {
            return Err(VolumeError::DirectoryNotRecursive { path: path.to_owned() });
        }
        let failed = |errno: Errno| VolumeError::io("copy", &self.source.join(path))(errno);
        let around = Around { identity: Identity::of(&found.stat), stat: found.stat };
        let second = self.make_directory(target, name).map_err(failed)?;
        let first = open_directory(&found).map_err(failed)?;
        let mut walk = PairWalk::new(Pair { first, second }, around).map_err(failed)?;
        while !walk.is_over() {
            self.ask(path)?;
            match walk.next_name() {
                Some(name) => self.copy_next(from, &mut walk, name)?,
                None => {
                    let failed = |errno: Errno| VolumeError::io("copy", &self.source.join(path))(errno);
                    if let Some(left) = walk.leave().map_err(failed)? {
                        let left_path = if walk.is_over() {
                            path.to_owned()
                        } else {
                            path.join(walk.path_of(&left.name))
                        };
                        self.check_unchanged(&left, &left_path)?;
                        self.take_after(left.pair.second.as_fd(), &left.about.stat).map_err(failed)?;
                        self.receipt.directories += 1;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Copies `name` out of the innermost directory of `walk`, or enters it.
    fn copy_next(
        &mut self,
        from: &ProjectPath,
        walk: &mut PairWalk<Around>,
        name: CString,
    ) -> Result<(), VolumeError> {
        let in_root = walk.about().next_back().is_some_and(|around| around.identity == self.root_identity);
        if in_root && name.as_bytes().starts_with(RESERVED_PREFIX.as_bytes()) {
            return Ok(());
        }
        let path = from.as_path().join(walk.path_of(&name));
        let failed = |errno: Errno| VolumeError::io("copy", &self.source.join(&path))(errno);
        let found = match self.open(walk.first().map_err(failed)?, &name) {
            Err(Errno::NOENT) => return self.vanished(path),
            other => other.map_err(failed)?,
        };
        let found = match self.followed(found, &path) {
            Err(VolumeError::SourceMissing { path }) => return self.vanished(path),
            other => other?,
        };
        if !found.file_type().is_dir() {
            self.copy_leaf(&found, walk.second().map_err(failed)?, &name, &path)?;
            return Ok(());
        }
        let around = Around { identity: Identity::of(&found.stat), stat: found.stat };
        if found.through_link && walk.about().any(|outer| outer.identity == around.identity) {
            return Err(VolumeError::LinkRefused { path, reason: "leads to a directory that it is in" });
        }
        let second = self.make_directory(walk.second().map_err(failed)?, &name).map_err(failed)?;
        let first = open_directory(&found).map_err(failed)?;
        walk.enter(name, Pair { first, second }, found.through_link, around).map_err(failed)
    }

    /// Deals with something that was deleted since it was listed.
    fn vanished(&mut self, path: PathBuf) -> Result<(), VolumeError> {
        if !self.style.source_is_live {
            return Err(VolumeError::SourceChanged { path });
        }
        self.receipt.vanished += 1;
        Ok(())
    }

    /// Refuses a directory of a source that should stand still if something was added to it or deleted from it since it
    /// was looked at. What was deleted before it was listed is not missed otherwise.
    fn check_unchanged(&self, left: &Left<Around>, path: &Path) -> Result<(), VolumeError> {
        if self.style.source_is_live {
            return Ok(());
        }
        let (before, shown) = (&left.about.stat, self.source.join(path));
        let now = rustix::fs::fstat(&left.pair.first).map_err(VolumeError::io("look at", &shown))?;
        let changed = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        if now.st_nlink == 0 || changed(&now) != changed(before) {
            return Err(VolumeError::SourceChanged { path: path.to_owned() });
        }
        Ok(())
    }

    /// Opens what is at `from`. Links on the way are refused unless links are to be followed.
    fn find(&self, from: &ProjectPath) -> Result<Found, VolumeError> {
        let mut way = PathBuf::new();
        let mut directory: Option<OwnedFd> = None;
        if self.style.dereference {
            let handle = self.resolve(from.as_path())?;
            return self.look(handle, true, from.as_path());
        }
        let count = from.components().count();
        for (index, name) in from.components().enumerate() {
            let above = directory.as_ref().unwrap_or(&self.root);
            way.push(name);
            let failed = |errno: Errno| VolumeError::io("open", &self.source.join(&way))(errno);
            let handle = match rustix::fs::openat(above, name, BARE, Mode::empty()) {
                Err(Errno::NOENT) => return Err(VolumeError::SourceMissing { path: way }),
                other => other.map_err(failed)?,
            };
            let found = self.look(handle, false, &way)?;
            if index + 1 == count {
                return Ok(found);
            }
            if found.file_type().is_symlink() {
                let reason = "is on the way, and links are followed only with 'dereference'";
                return Err(VolumeError::LinkRefused { path: way, reason });
            }
            if !found.file_type().is_dir() {
                return Err(VolumeError::SourceMissing { path: from.as_path().to_owned() });
            }
            directory = Some(found.handle);
        }
        Err(VolumeError::SourceMissing { path: way })
    }

    /// Opens what has this name in a directory of the source.
    fn open(&self, above: BorrowedFd<'_>, name: &CStr) -> Result<Found, Errno> {
        if !self.style.source_is_live {
            let stat = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode).is_file() {
                let handle = rustix::fs::openat(above, name, READABLE, Mode::empty())?;
                return Ok(Found { handle, stat, through_link: false, is_readable: true });
            }
        }
        look(rustix::fs::openat(above, name, BARE, Mode::empty())?, false)
    }

    /// What was found, or where it leads to if it is a link and links are to be followed.
    fn followed(&self, found: Found, path: &Path) -> Result<Found, VolumeError> {
        if self.style.dereference && found.file_type().is_symlink() {
            return self.look(self.resolve(path)?, true, path);
        }
        Ok(found)
    }

    fn look(&self, handle: OwnedFd, through_link: bool, path: &Path) -> Result<Found, VolumeError> {
        look(handle, through_link).map_err(VolumeError::io("look at", &self.source.join(path)))
    }

    /// Opens `path` with the links in it followed, but only beneath the root of the source.
    fn resolve(&self, path: &Path) -> Result<OwnedFd, VolumeError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let refused = |reason| Err(VolumeError::LinkRefused { path: path.to_owned(), reason });
        for _ in 0..MAX_TRIES {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), beneath) {
                Ok(handle) => return Ok(handle),
                // Somebody renames directories just now, and `..` cannot be trusted.
                Err(Errno::AGAIN) => {}
                Err(Errno::XDEV) => return refused("leads out of the project"),
                Err(Errno::LOOP) => return refused("leads in a circle, or over too many links"),
                Err(Errno::NAMETOOLONG) => return refused("lies too deep to be followed"),
                Err(Errno::NOSYS) => return refused("cannot be followed safely by the kernel of this host"),
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    return match rustix::fs::openat2(&self.root, path, BARE, Mode::empty(), beneath) {
                        Ok(_link) => refused("leads to nothing"),
                        Err(Errno::NOENT | Errno::NOTDIR) => {
                            Err(VolumeError::SourceMissing { path: path.to_owned() })
                        }
                        Err(errno) => Err(VolumeError::io("open", &self.source.join(path))(errno)),
                    };
                }
                Err(errno) => return Err(VolumeError::io("open", &self.source.join(path))(errno)),
            }
        }
        Err(VolumeError::io("open", &self.source.join(path))(Errno::AGAIN))
    }

    /// Copies what is no directory; tells whether it is something that is copied.
    fn copy_leaf(
        &mut self,
        found: &Found,
        target: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
    ) -> Result<bool, VolumeError> {
        let copied = match found.file_type() {
            FileType::RegularFile => {
                let copied = self.copy_file(found, target, name);
                let copied = copied.map_err(VolumeError::io("copy", &self.source.join(path)))?;
                if copied.is_break() {
                    return Err(VolumeError::Canceled { path: path.to_owned() });
                }
                Ok(())
            }
            FileType::Symlink => self.copy_link(found, target, name),
            FileType::Fifo => self.copy_fifo(found, target, name),
            _ => {
                self.receipt.skipped_special += 1;
                return Ok(false);
            }
        };
        copied.map_err(VolumeError::io("copy", &self.source.join(path)))?;
        self.receipt.files += 1;
        Ok(true)
    }

    fn copy_file(
        &mut self,
        found: &Found,
        target: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<ControlFlow<()>, Errno> {
        // By the handle, so that it is the very file that was looked at: opening a device can do things.
        let opened = if found.is_readable {
            None
        } else {
            let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
            Some(rustix::fs::open(handle_path(&found.handle), flags, Mode::empty())?)
        };
        let source = opened.as_ref().unwrap_or(&found.handle);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // As it is to be, without what a new owner takes away: nobody else reaches what is staged.
        let file =
            rustix::fs::openat(target, name, flags, self.mode(&found.stat) & Mode::from_raw_mode(0o777))?;
        let size = u64::try_from(found.stat.st_size).unwrap_or(0);
        let (receipt, go_on) = (&mut self.receipt, &mut self.go_on);
        let copied = copy_data(source.as_fd(), file.as_fd(), size, &mut |bytes| {
            receipt.bytes += bytes;
            go_on(CopyProgress { files: receipt.files, bytes: receipt.bytes })
        })?;
        let ControlFlow::Continue(copied) = copied else { return Ok(ControlFlow::Break(())) };
        self.receipt.cloned &= copied == DataCopy::Shared;
        self.take_after(file.as_fd(), &found.stat)?;
        Ok(ControlFlow::Continue(()))
    }

    fn copy_link(&self, found: &Found, target: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let leads_to = rustix::fs::readlinkat(&found.handle, "", Vec::new())?;
        rustix::fs::symlinkat(&leads_to, target, name)?;
        self.take_after_by_name(target, name, &found.stat)
    }

    fn copy_fifo(&self, found: &Found, target: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        rustix::fs::mknodat(target, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        self.take_after_by_name(target, name, &found.stat)?;
        let made = rustix::fs::openat(target, name, BARE, Mode::empty())?;
        rustix::fs::chmodat(CWD, handle_path(&made), self.mode(&found.stat), AtFlags::empty())
    }

    fn make_directory(&self, above: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        rustix::fs::mkdirat(above, name, Mode::RWXU)?;
        rustix::fs::openat(above, name, DIRECTORY, Mode::empty())
    }

    /// Gives an open file or directory its owner, permissions and times.
    fn take_after(&self, made: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
        let (owner, group) = self.owner(stat);
        // Looking costs nothing; each change is one of the filesystem's own.
        let is = rustix::fs::fstat(made)?;
        if (is.st_uid, is.st_gid) != (owner.as_raw(), group.as_raw()) {
            unless_forbidden(rustix::fs::fchown(made, Some(owner), Some(group)))?;
        }
        // After the owner: a new one takes permissions away.
        let mode = self.mode(stat);
        if is.st_mode & 0o7777 != mode.as_raw_mode() || mode.as_raw_mode() & 0o7000 != 0 {
            rustix::fs::fchmod(made, mode)?;
        }
        if self.style.timestamps {
            rustix::fs::futimens(made, &times(stat))?;
        }
        Ok(())
    }

    /// The same, but for permissions, for what cannot be opened.
    fn take_after_by_name(&self, above: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        let (owner, group) = self.owner(stat);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        unless_forbidden(rustix::fs::chownat(above, name, Some(owner), Some(group), flags))?;
        if self.style.timestamps {
            rustix::fs::utimensat(above, name, &times(stat), flags)?;
        }
        Ok(())
    }

    fn owner(&self, stat: &Stat) -> (Uid, Gid) {
        match self.style.ownership {
            Ownership::Of(owner, group) => (owner, group),
            Ownership::Kept => (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)),
        }
    }

    fn mode(&self, stat: &Stat) -> Mode {
        let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let kept = matches!(self.style.ownership, Ownership::Kept);
        Mode::from_raw_mode(stat.st_mode & if directory || kept { 0o7777 } else { 0o777 })
    }

    /// Asks whether to go on copying `path`.
    fn ask(&mut self, path: &Path) -> Result<(), VolumeError> {
        let progress = CopyProgress { files: self.receipt.files, bytes: self.receipt.bytes };
        match (self.go_on)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(VolumeError::Canceled { path: path.to_owned() }),
        }
    }
}

/// What a bare handle holds.
fn look(handle: OwnedFd, through_link: bool) -> Result<Found, Errno> {
    let stat = rustix::fs::fstat(&handle)?;
    Ok(Found { handle, stat, through_link, is_readable: false })
}

/// Opens a directory for reading by a handle that is not.
fn open_directory(found: &Found) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(&found.handle, ".", DIRECTORY, Mode::empty())
}

/// Makes the directories of `way` in `above`, where they are missing; returns the innermost.
pub(crate) fn make_parents<'a>(
    above: BorrowedFd<'_>,
    way: impl Iterator<Item = &'a str>,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, Errno> {
    let mut innermost = rustix::fs::openat(above, ".", DIRECTORY, Mode::empty())?;
    for name in way {
        match rustix::fs::mkdirat(&innermost, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        innermost = rustix::fs::openat(&innermost, name, DIRECTORY, Mode::empty())?;
        if let Some((owner, group)) = owner {
            unless_forbidden(rustix::fs::fchown(&innermost, Some(owner), Some(group)))?;
        }
        rustix::fs::fchmod(&innermost, Mode::from_raw_mode(0o755))?;
    }
    Ok(innermost)
}

/// A name as the system takes it.
pub(crate) fn c_name(name: &str) -> Result<CString, Errno> {
    CString::new(OsStr::new(name).as_bytes()).map_err(|_| Errno::INVAL)
}

/// A process that is not privileged may give nothing away; what it makes is then its own.
fn unless_forbidden(changed: Result<(), Errno>) -> Result<(), Errno> {
    match changed {
        Err(Errno::PERM) => Ok(()),
        other => other,
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
