//! The file work of the local provider, blocking, in terms of paths and `io::Error`.
//!
//! Deletions remove the directories that they leave empty, and writes create those that they need, so a
//! write can find its directory gone between two steps: it then begins again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::Attributes;

/// The extended attribute that holds an object's attributes, as JSON.
const ATTRIBUTES: &str = "user.longhaul.attributes";

/// How often a write whose directory is removed under it begins again.
const PLACEMENTS: u32 = 20;

/// An unfinished write that old has nobody behind it any more.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What a write does where there is a file already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Takes its place.
    Replace,
    /// Fails with `AlreadyExists`.
    CreateOnly,
}

/// Writes `directory/name` whole, synced, or not at all. `directory` must exist, the directories inside
/// `name` need not. `incoming` is a directory of the same file system, created where it is missing.
pub(crate) fn write(
    incoming: &Path,
    directory: &Path,
    name: &Path,
    body: &[u8],
    placement: Placement,
) -> io::Result<()> {
    require_directory(directory)?;
    Temporary::write(incoming, body)?.place(directory, name, placement)
}

/// A finished file that is not in its place yet; removed when dropped.
pub(crate) struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Moves it to `directory/name` and syncs that.
    pub(crate) fn place(self, directory: &Path, name: &Path, placement: Placement) -> io::Result<()> {
        let target = directory.join(name);
        let relative_parent = name.parent().unwrap_or(Path::new(""));
        let parent = directory.join(relative_parent);
        let mut attempt = 1;
        loop {
            let placed = create_directories(directory, relative_parent)
                .and_then(|()| place(&self.path, &target, placement));
            match placed {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < PLACEMENTS => {
                    require_directory(directory)?;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
        match sync_directory(&parent) {
            // Deleted since, with the object in it.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    /// Leaves it where it is and gives its name, for [`Temporary::reopen`].
    pub(crate) fn keep(self) -> String {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        std::mem::forget(self);
        name.unwrap_or_default()
    }

    /// The path of one that was kept, if `name` can be the name of one.
    pub(crate) fn kept(incoming: &Path, name: &str) -> io::Result<PathBuf> {
        if name.len() != 32 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(incoming.join(name))
    }

    /// Takes up one that was kept and has become `size_bytes` long.
    pub(crate) fn reopen(incoming: &Path, name: &str, size_bytes: u64) -> io::Result<Self> {
        let path = Self::kept(incoming, name)?;
        let file = File::open(&path)?;
        if file.metadata()?.len() != size_bytes {
            return Err(io::Error::new(ErrorKind::InvalidData, "the upload lacks parts"));
        }
        file.sync_all()?;
        Ok(Self { path })
    }

    /// Attributes of the object to be.
    pub(crate) fn set_attributes(&self, attributes: &Attributes) -> io::Result<()> {
        if attributes.is_empty() {
            return Ok(());
        }
        xattr::set(&self.path, ATTRIBUTES, &serde_json::to_vec(attributes)?)?;
        File::open(&self.path)?.sync_all()
    }

    pub(crate) fn write(incoming: &Path, body: &[u8]) -> io::Result<Self> {
        match fs::create_dir(incoming) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        let path = incoming.join(format!("{:032x}", rand::random::<u128>()));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let temporary = Self { path };
        file.write_all(body)?;
        file.sync_all()?;
        // Now and then, so that a busy store does not read this directory with every write.
        if rand::random_ratio(1, 256) {
            remove_abandoned(incoming, &file);
        }
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already after a rename; left behind by a hard link, a failure or a conflict.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what killed processes left unfinished. The file just written tells the file system's own time.
fn remove_abandoned(incoming: &Path, just_written: &File) {
    let Ok(now) = just_written.metadata().and_then(|metadata| metadata.modified()) else { return };
    let Ok(entries) = fs::read_dir(incoming) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        if age.is_some_and(|age| age > ABANDONED_AFTER) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Attributes of an object; none where it has none or the file system keeps none.
pub(crate) fn attributes_of(path: &Path) -> io::Result<Attributes> {
    match xattr::get(path, ATTRIBUTES) {
        Ok(Some(json)) => Ok(serde_json::from_slice(&json)?),
        Ok(None) => Ok(Attributes::new()),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Attributes::new()),
        Err(error) => Err(error),
    }
}

/// Tells one version of an object from another: each write makes another file.
pub(crate) fn tag_of(path: &Path) -> io::Result<String> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Ok(format!("{:x}-{seconds:x}-{nanoseconds:x}-{:x}", metadata.ino(), metadata.len()))
}

/// Writes a part of an upload where it belongs.
pub(crate) fn write_part(path: &Path, offset: u64, body: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all_at(body, offset)
}

/// Waits for a lock that other processes hold; it ends with the value.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.lock()?;
    Ok(file)
}

fn place(temporary: &Path, target: &Path, placement: Placement) -> io::Result<()> {
    match placement {
        Placement::Replace => fs::rename(temporary, target),
        Placement::CreateOnly => {
            match rustix::fs::renameat_with(CWD, temporary, CWD, target, RenameFlags::NOREPLACE) {
                // NFS and some others have no such rename, but they have links.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::hard_link(temporary, target),
                done => Ok(done?),
            }
        }
    }
}

/// Creates the directories of `relative` under `directory`, each synced into the one above it.
fn create_directories(directory: &Path, relative: &Path) -> io::Result<()> {
    if directory.join(relative).is_dir() {
        return Ok(());
    }
    let mut above = directory.to_owned();
    for part in relative.components() {
        let below = above.join(part);
        match fs::create_dir(&below) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&below)?.is_dir() {
                    return Err(ErrorKind::NotADirectory.into());
                }
            }
            Err(error) => return Err(error),
        }
        sync_directory(&above)?;
        above = below;
    }
    Ok(())
}

/// Makes the names in a directory survive a power cut.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// `NotFound` where there is no directory of that name.
pub(crate) fn require_directory(directory: &Path) -> io::Result<()> {
    if fs::metadata(directory)?.is_dir() { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
}

/// Opens an object, and its size.
pub(crate) fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    Ok((file, metadata.len()))
}

/// The size of an object.
pub(crate) fn size_of(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(ErrorKind::NotFound.into()) }
}

/// Exactly `length` bytes from `offset`.
pub(crate) fn read_exact_at(file: &File, offset: u64, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).map_err(|_| ErrorKind::FileTooLarge)?;
    let mut body = vec![0; length];
    file.read_exact_at(&mut body, offset)?;
    Ok(body.into())
}

/// Every file under `directory/start`: its path relative to `directory`, and its size. Strict: what cannot
/// be read, and what is neither a file nor a directory, is an error. What vanishes meanwhile is skipped.
pub(crate) fn walk(directory: &Path, start: &str) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut pending = vec![start.to_owned()];
    while let Some(relative) = pending.pop() {
        let entries = match fs::read_dir(directory.join(&relative)) {
            // Deleted since it was seen; where the walk begins it may also be no directory, so without objects.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.kind() == ErrorKind::NotADirectory && relative == start => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| {
                io::Error::new(ErrorKind::InvalidData, format!("{name:?} in {relative:?} is not UTF-8"))
            })?;
            let key = if relative.is_empty() { name } else { format!("{relative}/{name}") };
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                pending.push(key);
            } else if metadata.is_file() {
                found.push((key, metadata.len()));
            } else {
                let message = format!("{key:?} is neither a file nor a directory");
                return Err(io::Error::new(ErrorKind::InvalidData, message));
            }
        }
    }
    Ok(found)
}

/// Removes `directory/name`, which need not exist, and the directories that it leaves empty.
pub(crate) fn remove(directory: &Path, name: &Path) -> io::Result<()> {
    let path = directory.join(name);
    match size_of(&path).and_then(|_| fs::remove_file(&path)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        removed => removed?,
    }
    let mut relative = name.parent();
    if let Some(parent) = relative {
        match sync_directory(&directory.join(parent)) {
            // Another deletion removed it, with the name in it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            synced => synced?,
        }
    }
    while let Some(parent) = relative.filter(|parent| !parent.as_os_str().is_empty()) {
        // Refused where it is not empty, which ends it; an empty directory is no object, so nothing is lost.
        if fs::remove_dir(directory.join(parent)).is_err() {
            break;
        }
        relative = parent.parent();
    }
    Ok(())
}

/// Removes a directory that holds no files, only directories. Anything else in it: `DirectoryNotEmpty`.
pub(crate) fn remove_empty_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        remove_empty_tree(&entry.path())?;
    }
    fs::remove_dir(directory)
}
