//! Going on with what an earlier attempt of a restore has left in its staging directories.
//!
//! What is there is material and nothing more. It may be of another backup, half-written, without what the kernel had not
//! stored when the machine went down, or spoilt. So nothing is believed of it but what is looked at: an entry that does
//! not belong there is deleted, every chunk of a file that stays is hashed, and one that is not the backup's is
//! downloaded as if it were not there. Everything else (owners, modes, times, links) is done again, and the
//! verification at the end reads all of it once more.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode};
use rustix::io::Errno;

use crate::error::Result;
use crate::metadata_cache::hash;
use crate::restore::RestoreJob;
use crate::restore_content::chunk_length;
use crate::side_by_side::{busy_threads, side_by_side};
use crate::walk::OPEN_DIRECTORY;

/// What a job found in its staging directories that belongs there, by the numbers of its entries.
#[derive(Debug, Default)]
pub(crate) struct AlreadyThere {
    /// Directories.
    pub(crate) directories: HashSet<usize>,
    /// Of files, which chunks are right.
    pub(crate) chunks: HashMap<usize, Vec<bool>>,
}

/// A directory on the way down.
struct Level {
    directory: OwnedFd,
    /// In the digest.
    path: PathBuf,
    names: Vec<Box<CStr>>,
    /// Whether it stays.
    stays: bool,
}

/// Deletes what does not belong into the staging directories, and looks through what does.
pub(crate) fn look_through(job: &RestoreJob) -> Result<AlreadyThere> {
    let mut found = AlreadyThere::default();
    let mut files = Vec::new();
    for (number, staging) in job.staging.iter().enumerate() {
        let prefix = &job.prefixes[number];
        let failed = |error: io::Error| job.unusable(prefix, error);
        let directory = staging.descriptor().map_err(failed)?;
        delete_what_does_not_belong(job, directory, prefix, &mut found, &mut files)?;
    }
    let chunks = side_by_side(&files, busy_threads(), |buffer, number| {
        Ok((*number, right_chunks(job, *number, buffer)?))
    });
    found.chunks = chunks?.into_iter().collect();
    Ok(found)
}

fn delete_what_does_not_belong(
    job: &RestoreJob,
    root: OwnedFd,
    prefix: &Path,
    found: &mut AlreadyThere,
    files: &mut Vec<usize>,
) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |errno: Errno| job.unusable(&path, errno.into())
    };
    rustix::fs::fchmod(&root, Mode::RWXU).map_err(failed(prefix))?;
    let mut levels = vec![level(root, prefix.to_owned(), true).map_err(failed(prefix))?];
    while let Some(Level { directory, path, names, stays }) = levels.last_mut() {
        job.check_canceled()?;
        let Some(name) = names.pop() else {
            let Some(done) = levels.pop() else { break };
            if let (false, Some(above), Some(name)) = (done.stays, levels.last(), done.path.file_name()) {
                rustix::fs::unlinkat(&above.directory, name, AtFlags::REMOVEDIR)
                    .map_err(failed(&done.path))?;
            }
            continue;
        };
        let below = path.join(OsStr::from_bytes(name.to_bytes()));
        let stat =
            rustix::fs::statat(&*directory, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&below))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let planned = if *stays { job.entry_at(&below) } else { None };
        let belongs = planned.filter(|number| {
            let entry = &job.entries[*number];
            match kind {
                FileType::Directory => entry.is_directory(),
                FileType::RegularFile => entry.has_own_content(),
                // Made anew faster than compared.
                _ => false,
            }
        });
        if kind == FileType::Directory {
            // As it was when it was made: its final mode may forbid what is done below it.
            rustix::fs::chmodat(&*directory, &*name, Mode::RWXU, AtFlags::empty()).map_err(failed(&below))?;
            let opened = rustix::fs::openat(&*directory, &*name, OPEN_DIRECTORY, Mode::empty())
                .map_err(failed(&below))?;
            found.directories.extend(belongs);
            let next = level(opened, below.clone(), belongs.is_some()).map_err(failed(&below))?;
            levels.push(next);
        } else if let Some(number) = belongs {
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::chmodat(&*directory, &*name, mode, AtFlags::empty()).map_err(failed(&below))?;
            files.push(number);
        } else {
            rustix::fs::unlinkat(&*directory, &*name, AtFlags::empty()).map_err(failed(&below))?;
        }
    }
    Ok(())
}

fn level(directory: OwnedFd, path: PathBuf, stays: bool) -> std::result::Result<Level, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory.as_fd())? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().into());
        }
    }
    Ok(Level { directory, path, names, stays })
}

/// Which chunks of a file are those of the backup. The others read as zeros afterwards, or are not there: what is written
/// later leaves holes where zeros belong.
fn right_chunks(job: &RestoreJob, number: usize, buffer: &mut Vec<u8>) -> Result<Vec<bool>> {
    let entry = &job.entries[number];
    let failed = |error: io::Error| job.failed(entry, error);
    let staging = &job.staging[entry.staging];
    let file = staging.open_for_update(job.below(entry)).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.nlink() > 1 {
        // The other names that belong to it are gone by now: its bytes are somebody else's, too.
        staging.remove_file(job.below(entry)).map_err(failed)?;
        return Ok(vec![false; entry.content().len()]);
    }
    let present = metadata.len();
    let mut position = 0;
    let mut chunks = Vec::new();
    let mut wrong = Vec::new();
    for id in entry.content() {
        job.check_canceled()?;
        let length = u64::from(chunk_length(job, id)?);
        buffer.resize(buffer.len().max(length as usize), 0);
        let chunk = &mut buffer[..length as usize];
        // A part of the disk that does not read is as good as one that is wrong.
        let right = position + length <= present
            && file.read_exact_at(chunk, position).is_ok()
            && hash(chunk) == id.into_inner();
        if !right && position < present {
            wrong.push((position, length));
        }
        chunks.push(right);
        position += length;
    }
    if present > position {
        file.set_len(position).map_err(failed)?;
    }
    if !make_zeros(&file, &wrong).map_err(failed)? {
        file.set_len(0).map_err(failed)?;
        chunks.fill(false);
    }
    Ok(chunks)
}

/// Makes holes of parts of a file; `false` where the file system cannot.
fn make_zeros(file: &File, parts: &[(u64, u64)]) -> io::Result<bool> {
    for (position, length) in parts {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, *position, *length) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
