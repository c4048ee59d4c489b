//! Deleting whole trees, without being led out of them.
//!
//! What is deleted was a tenant's: it may hold symbolic links, directories that forbid their own deletion,
//! subvolumes (which block the deletion of the one around them), read-only ones among them, and somebody may still be
//! moving things about inside. So the walk goes by directory handles, follows nothing, and never uses a path
//! twice.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::btrfs::{self, Btrfs, handle_path};
use crate::error::VolumeError;

/// Below this depth directories are moved up before they are emptied, so that no tree can use up the stack or the
/// open files of this process.
const MAX_DEPTH: usize = 100;
/// How often a directory that somebody fills while it is being emptied is emptied again.
const MAX_ROUNDS: usize = 8;

/// Deletes whatever is at `path`; nothing there is fine. The directory around `path` must be one that only the
/// host can write.
pub(crate) fn delete_tree(btrfs: &Btrfs, path: &Path) -> Result<(), VolumeError> {
    if btrfs::is_subvolume(path)? {
        match btrfs.delete_subvolume(path) {
            Ok(()) => return Ok(()),
            // It holds other subvolumes, or the program is not allowed to: emptying it works in both cases.
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "emptying a subvolume before its deletion")
            }
        }
    }
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|error| VolumeError::io("delete", path)(std::io::Error::from(error)))?;
    delete_at(btrfs, CWD, &name, path)
}

/// Deletes the entry `name` of the open directory `parent`; nothing there is fine. `shown` is its path in messages.
pub(crate) fn delete_at(
    btrfs: &Btrfs,
    parent: BorrowedFd<'_>,
    name: &CStr,
    shown: &Path,
) -> Result<(), VolumeError> {
    let failed = |errno: Errno| VolumeError::io("delete", shown)(errno);
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let mut deletion = Deletion { btrfs, shown, moved_up: 0 };
    let top = match open_directory(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(failed)?,
    };
    let mut rounds = 0;
    while rounds < MAX_ROUNDS {
        let moved_up_before = deletion.moved_up;
        deletion.empty(top.as_fd(), top.as_fd(), 0)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Directories from far below were moved up, or somebody has added one.
            Err(Errno::NOTEMPTY) if deletion.moved_up > moved_up_before => {}
            Err(Errno::NOTEMPTY) => rounds += 1,
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::NOTEMPTY))
}

/// Opens a directory for reading and makes sure that its owner may empty it (a subvolume may be read-only yet).
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(parent, name, flags | OFlags::RDONLY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let handle = rustix::fs::openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
            rustix::fs::chmodat(CWD, handle_path(&handle), Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, flags | OFlags::RDONLY, Mode::empty())?
        }
        other => other?,
    };
    if btrfs::is_subvolume_handle(&directory) {
        return Ok(directory);
    }
    if !Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode).contains(Mode::RWXU) {
        rustix::fs::fchmod(&directory, Mode::RWXU)?;
    }
    Ok(directory)
}

/// The names in an open directory, without `.` and `..`.
pub(crate) fn names_in(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

struct Deletion<'a> {
    btrfs: &'a Btrfs,
    shown: &'a Path,
    moved_up: u64,
}

impl Deletion<'_> {
    fn empty(
        &mut self,
        top: BorrowedFd<'_>,
        directory: BorrowedFd<'_>,
        depth: usize,
    ) -> Result<(), VolumeError> {
        let failed = |errno: Errno| VolumeError::io("delete what is in", self.shown)(errno);
        if btrfs::is_subvolume_handle(directory) {
            self.btrfs.make_writable(directory, self.shown)?;
            rustix::fs::fchmod(directory, Mode::RWXU).map_err(failed)?;
        }
        let names = names_in(directory).map_err(failed)?;
        for name in names {
            match rustix::fs::unlinkat(directory, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    let child = open_directory(directory, &name).map_err(failed)?;
                    if depth >= MAX_DEPTH {
                        self.moved_up += 1;
                        let up = format!(".longhaul-deleting-{}", self.moved_up);
                        rustix::fs::renameat(directory, &name, top, up).map_err(failed)?;
                        continue;
                    }
                    self.empty(top, child.as_fd(), depth + 1)?;
                    match rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR) {
                        // Not empty: somebody has added to it. The next round gets it.
                        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                        Err(errno) => return Err(failed(errno)),
                    }
                }
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}
