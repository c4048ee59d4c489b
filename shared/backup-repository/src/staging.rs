//! Creating entries in a staging directory.
//!
//! Everything happens relative to the directory's descriptor, so that exchanging it for a link does not lead
//! a restore elsewhere, and a tree deeper than the kernel's longest path is restored as it was backed up. The
//! directory is locked as long as anything is created in it, so that nobody else goes on with it meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustic_core::repofile::NodeType;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps};
use rustix::fs::{Gid, Uid};

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::node_metadata::permissions;
use crate::planned_entry::PlannedMetadata;
use crate::source::open_root;
use crate::walk::{OPEN_DIRECTORY, descriptor_path};

/// The kernel takes paths of up to 4,095 bytes.
const LONGEST_PATH: usize = 3_000;

#[derive(Debug)]
pub(crate) struct StagingDirectory {
    directory: OwnedFd,
}

/// A directory on the way, and the rest of a path.
pub(crate) enum Handle<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Handle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(directory) => *directory,
            Self::Below(directory) => directory.as_fd(),
        }
    }
}

impl StagingDirectory {
    /// Opens a directory for a restore, creating it where it is missing. It must be empty, unless what is there `stays`.
    /// It is locked while this lives.
    pub(crate) fn open(path: &Path, stays: bool) -> Result<Self> {
        let fail = |message: &str| {
            BackupRepositoryError::new(Kind::DestinationUnusable, "restore into", path.display(), message)
        };
        std::fs::create_dir_all(path).map_err(|error| fail("it cannot be created").with_source(error))?;
        let directory = open_root(path, "restore into")?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| fail("another restore is writing to it").with_source(error))?;
        if stays {
            return Ok(Self { directory });
        }
        let mut entries = rustix::fs::Dir::read_from(&directory)
            .map_err(|error| fail("it cannot be read").with_source(error))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|error| fail("it cannot be read").with_source(error))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return Err(fail("a staging directory has to be empty"));
            }
        }
        Ok(Self { directory })
    }

    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.directory, 0)?)
    }

    /// The handle and the remaining path under which `path` can be reached.
    fn at<'a>(&'a self, path: &'a Path) -> io::Result<(Handle<'a>, &'a Path)> {
        let mut handle = Handle::Root(self.directory.as_fd());
        let mut rest = path;
        while rest.as_os_str().len() > LONGEST_PATH {
            let bytes = rest.as_os_str().as_bytes();
            let cut = bytes[..LONGEST_PATH]
                .iter()
                .rposition(|byte| *byte == b'/')
                .ok_or_else(|| io::Error::from(rustix::io::Errno::NAMETOOLONG))?;
            let step = Path::new(std::ffi::OsStr::from_bytes(&bytes[..cut]));
            let next = rustix::fs::openat(&handle, step, OPEN_DIRECTORY, Mode::empty())?;
            rest = Path::new(std::ffi::OsStr::from_bytes(&bytes[cut + 1..]));
            handle = Handle::Below(next);
        }
        Ok((handle, if rest.as_os_str().is_empty() { Path::new(".") } else { rest }))
    }

    pub(crate) fn create_directory(&self, path: &Path) -> io::Result<()> {
        let (handle, name) = self.at(path)?;
        Ok(rustix::fs::mkdirat(handle, name, Mode::RWXU)?)
    }

    /// Opens a file for writing, creating it where it is missing.
    pub(crate) fn open_for_writing(&self, path: &Path) -> io::Result<File> {
        let (handle, name) = self.at(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(handle, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Opens a file that is there, for reading and writing.
    pub(crate) fn open_for_update(&self, path: &Path) -> io::Result<File> {
        let (handle, name) = self.at(path)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(handle, name, flags, Mode::empty())?.into())
    }

    pub(crate) fn open_for_reading(&self, path: &Path) -> io::Result<File> {
        let (handle, name) = self.at(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(handle, name, flags, Mode::empty())?.into())
    }

    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (handle, name) = self.at(path)?;
        Ok(rustix::fs::unlinkat(handle, name, AtFlags::empty())?)
    }

    /// Creates what is neither a directory nor a regular file.
    pub(crate) fn create_special(&self, path: &Path, node_type: &NodeType) -> io::Result<()> {
        let (handle, name) = self.at(path)?;
        let make = |file_type, device| {
            rustix::fs::mknodat(&handle, name, file_type, Mode::RUSR | Mode::WUSR, device)
        };
        match node_type {
            NodeType::Symlink { .. } => rustix::fs::symlinkat(node_type.to_link(), &handle, name)?,
            NodeType::Dev { device } => make(FileType::BlockDevice, *device)?,
            NodeType::Chardev { device } => make(FileType::CharacterDevice, *device)?,
            NodeType::Fifo => make(FileType::Fifo, 0)?,
            NodeType::Socket => make(FileType::Socket, 0)?,
            NodeType::File | NodeType::Dir => {}
        }
        Ok(())
    }

    pub(crate) fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        let (from, from_name) = self.at(existing)?;
        let (to, to_name) = self.at(new)?;
        Ok(rustix::fs::linkat(from, from_name, to, to_name, AtFlags::empty())?)
    }

    /// Gives an entry its owner, attributes, mode and time. In this order: a change of owner clears setuid
    /// and capabilities, attributes of a read-only file cannot be set, and everything changes the time.
    pub(crate) fn set_metadata(
        &self,
        path: &Path,
        metadata: &PlannedMetadata,
        is_symlink: bool,
    ) -> io::Result<()> {
        let (handle, name) = self.at(path)?;
        let owner = metadata.uid.map(Uid::from_raw);
        let group = metadata.gid.map(Gid::from_raw);
        rustix::fs::chownat(&handle, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| with_text(error, "its owner cannot be set"))?;
        self.set_attributes(&handle, name, &metadata.attributes)?;
        if !is_symlink {
            let mode = Mode::from_raw_mode(permissions(metadata.mode.unwrap_or(0o600)));
            rustix::fs::chmodat(&handle, name, mode, AtFlags::empty())
                .map_err(|error| with_text(error, "its mode cannot be set"))?;
        }
        let mtime = metadata.mtime.unwrap_or_default();
        let nanoseconds = mtime.as_nanosecond();
        let time = Timespec {
            tv_sec: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).unwrap_or_default(),
            tv_nsec: i64::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or_default(),
        };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(&handle, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| with_text(error, "its time cannot be set"))
    }

    fn set_attributes(
        &self,
        handle: &Handle<'_>,
        name: &Path,
        wanted: &[(String, Vec<u8>)],
    ) -> io::Result<()> {
        let directory = match handle {
            Handle::Root(_) => descriptor_path(&self.directory),
            Handle::Below(directory) => descriptor_path(directory),
        };
        let path = Path::new(&directory).join(name);
        let present = match xattr::list(&path) {
            Ok(present) => present,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTSUP.raw_os_error()) => {
                if wanted.is_empty() {
                    return Ok(());
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        // What the directory above made it inherit.
        for name in present {
            if !wanted.iter().any(|(wanted, _)| name == wanted.as_str()) {
                xattr::remove(&path, &name)?;
            }
        }
        for (name, value) in wanted {
            xattr::set(&path, name, value)
                .map_err(|error| with_text(error, &format!("its extended attribute {name} cannot be set")))?;
        }
        Ok(())
    }
}

impl Drop for StagingDirectory {
    /// Unlocks in so many words: a process that is just being started may hold a copy of the handle for a moment.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.directory, FlockOperation::Unlock) {
            tracing::debug!(%error, "could not unlock a staging directory");
        }
    }
}

fn with_text(error: impl Into<io::Error>, text: &str) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{text}: {error}"))
}
