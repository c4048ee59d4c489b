//! Putting a staged tree into a live one, by renames alone.
//!
//! A directory that is not there yet arrives whole, by one rename. One that is there is merged: entered on both
//! sides, and its entries put in place one by one. What has been put in place is no longer staged, so that doing it
//! again after a crash never touches it twice, whatever its owner has made of it since.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

use crate::VolumeError;
use crate::copy_into::Overwrite;
use crate::pair_walk::{DIRECTORY, Pair, PairWalk};
use crate::rename::place;
use crate::steps::Steps;

/// How often a target that others change between a look and a rename is tried again.
const MAX_TRIES: usize = 32;

/// Something staged, on its way into the files of a project.
pub(crate) struct Merge<'a> {
    /// The staging directory.
    pub(crate) staging: BorrowedFd<'a>,
    /// The root of the project's files.
    pub(crate) volume: BorrowedFd<'a>,
    /// The path of that root, for messages.
    pub(crate) project_dir: &'a Path,
    pub(crate) overwrite: Overwrite,
}

/// What became of one staged entry.
enum Placed {
    InPlace,
    /// Something else is there and stays.
    Kept,
    /// Directories on both sides.
    Enter(Pair),
}

impl Merge<'_> {
    /// Looks for what stands in the way of what is staged in the directory `wrapper`; nothing is touched. Returns how
    /// many files would be replaced.
    pub(crate) fn check(&self, wrapper: &str) -> Result<u64, VolumeError> {
        let mut replaced = 0;
        let device = self.device()?;
        let mut walk = self.walk(wrapper)?;
        while !walk.is_over() {
            let Some(name) = walk.next_name() else {
                walk.leave().map_err(|errno| self.failed(errno, Path::new("")))?;
                continue;
            };
            let path = walk.path_of(&name);
            let failed = |errno| self.failed(errno, &path);
            let pair = walk.pair().map_err(failed)?;
            let staged = look(&pair.first, &name).map_err(failed)?;
            let found = look(&pair.second, &name).map_err(failed)?;
            let (Some(staged), Some(found)) = (staged, found) else { continue };
            match (is_directory(&staged), is_directory(&found)) {
                (true, true) if found.st_dev != device => {
                    return Err(VolumeError::OtherVolume { path: self.project_dir.join(path) });
                }
                (true, true) => match Pair::open(pair, &name) {
                    Ok(pair) => walk.enter(name, pair, false, ()).map_err(failed)?,
                    Err(Errno::LOOP | Errno::NOTDIR) => return Err(self.conflict(&staged, &found, &path)),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed(errno)),
                },
                (false, false) => match self.overwrite {
                    Overwrite::Replace => replaced += 1,
                    Overwrite::Keep => {}
                    Overwrite::Refuse => {
                        return Err(VolumeError::TargetExists { path: self.project_dir.join(path) });
                    }
                },
                _ => return Err(self.conflict(&staged, &found, &path)),
            }
        }
        Ok(replaced)
    }

    /// Puts in place what is staged in the directory `wrapper`, as far as it still is. Returns how many entries were
    /// kept as they were in the project. Nothing is durable yet on return.
    pub(crate) fn put_in_place(&self, wrapper: &str, steps: &Steps) -> Result<u64, VolumeError> {
        let mut kept = 0;
        let device = self.device()?;
        let mut walk = self.walk(wrapper)?;
        while !walk.is_over() {
            let Some(name) = walk.next_name() else {
                let failed = |errno| self.failed(errno, Path::new(""));
                let left = walk.leave().map_err(failed)?;
                if let Some(left) = left
                    && !walk.is_over()
                {
                    // So that it is not put in place as an empty one after a crash, if its owner has deleted it. It is not
                    // empty, and stays, if something in it was kept.
                    let above = walk.first().map_err(failed)?;
                    let removed = rustix::fs::unlinkat(above, &left.name, AtFlags::REMOVEDIR);
                    if removed.is_ok() {
                        steps.done("a directory is merged")?;
                    }
                }
                continue;
            };
            let path = walk.path_of(&name);
            let failed = |errno| self.failed(errno, &path);
            match self.place_one(walk.pair().map_err(failed)?, &name, device).map_err(failed)? {
                Placed::InPlace => steps.done("an entry of a copy is in place")?,
                Placed::Kept => kept += 1,
                Placed::Enter(pair) => walk.enter(name, pair, false, ()).map_err(failed)?,
            }
        }
        Ok(kept)
    }

    fn place_one(&self, pair: &Pair, name: &CStr, device: u64) -> Result<Placed, Errno> {
        for _ in 0..MAX_TRIES {
            match place(&pair.first, name, &pair.second, name) {
                Ok(()) => return Ok(Placed::InPlace),
                Err(Errno::EXIST) => {}
                Err(errno) if is_in_the_way(errno) => return Ok(Placed::Kept),
                Err(errno) => return Err(errno),
            }
            let (staged, found) = (look(&pair.first, name)?, look(&pair.second, name)?);
            let Some(staged) = staged else { return Ok(Placed::Kept) };
            let Some(found) = found else { continue };
            match (is_directory(&staged), is_directory(&found)) {
                (true, true) if found.st_dev != device => return Ok(Placed::Kept),
                (true, true) => match Pair::open(pair, name) {
                    Ok(pair) => return Ok(Placed::Enter(pair)),
                    Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                },
                (false, false) if self.overwrite == Overwrite::Replace => {
                    match rustix::fs::renameat(&pair.first, name, &pair.second, name) {
                        Ok(()) => return Ok(Placed::InPlace),
                        Err(Errno::ISDIR | Errno::NOTDIR) => {}
                        Err(errno) if is_in_the_way(errno) => return Ok(Placed::Kept),
                        Err(errno) => return Err(errno),
                    }
                }
                _ => return Ok(Placed::Kept),
            }
        }
        Ok(Placed::Kept)
    }

    fn walk(&self, wrapper: &str) -> Result<PairWalk<()>, VolumeError> {
        let failed = |errno| self.failed(errno, Path::new(""));
        let first = rustix::fs::openat(self.staging, wrapper, DIRECTORY, Mode::empty()).map_err(failed)?;
        let second = rustix::fs::openat(self.volume, ".", DIRECTORY, Mode::empty()).map_err(failed)?;
        PairWalk::new(Pair { first, second }, ()).map_err(failed)
    }

    fn device(&self) -> Result<u64, VolumeError> {
        let stat = rustix::fs::fstat(self.volume).map_err(|errno| self.failed(errno, Path::new("")))?;
        Ok(stat.st_dev)
    }

    fn failed(&self, errno: Errno, path: &Path) -> VolumeError {
        VolumeError::io("put copied files at", &self.shown(path))(errno)
    }

    fn conflict(&self, staged: &Stat, found: &Stat, path: &Path) -> VolumeError {
        VolumeError::TypeConflict {
            path: self.shown(path),
            found: type_name(found),
            wanted: type_name(staged),
        }
    }

    fn shown(&self, path: &Path) -> PathBuf {
        self.project_dir.join(path)
    }
}

/// Whether a rename failed by what its owner has done to the target, so that trying again would not help.
fn is_in_the_way(errno: Errno) -> bool {
    // Not to be changed, mounted on; gone on either side, another volume, a directory with something in it.
    if matches!(errno, Errno::PERM | Errno::ACCESS | Errno::BUSY) {
        tracing::warn!(error = %errno, "something in the way of a copy cannot be replaced, and is kept");
        return true;
    }
    matches!(errno, Errno::NOENT | Errno::XDEV | Errno::NOTEMPTY)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

fn type_name(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::RegularFile => "a file",
        _ => "a special file",
    }
}

/// What `name` in an open directory is, following no link; `None` if there is nothing.
fn look(directory: impl std::os::fd::AsFd, name: &CStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
