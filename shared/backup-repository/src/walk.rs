//! Reading a directory tree entry by entry, in the order of a snapshot, without ever leaving it.
//!
//! A backup runs as root over files that a tenant may rearrange at that very moment: a directory that is
//! swapped for a link between a look and a read would pull the host's own files into the tenant's backup.
//! So the walk holds a descriptor of each directory and opens every name relative to it, never following a
//! link. It also makes depth no matter: no path ever gets too long for the kernel.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::node_metadata::{extended_attributes, go_mode, set_extended_attributes};

/// How the names of directories begin that a host makes in the top directory of a project, to stage there what it restores or
/// copies into it.
pub const STAGING_PREFIX: &str = ".longhaul-staging-";

/// One entry found.
#[derive(Debug)]
pub(crate) struct WalkEntry {
    /// Its path in the snapshot.
    pub(crate) path: PathBuf,
    /// As rustic stores it, without content.
    pub(crate) node: Node,
    /// The directory that it is in, and its name there.
    pub(crate) directory: Arc<OwnedFd>,
    pub(crate) name: OsString,
}

/// One entry that could not be read.
#[derive(Debug)]
pub(crate) struct WalkFault {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

#[derive(Debug)]
struct Level {
    path: PathBuf,
    directory: Arc<OwnedFd>,
    names: std::vec::IntoIter<OsString>,
}

/// Whether a walk asks for extended attributes: that is a request to the kernel for every entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExtendedAttributes {
    Read,
    /// The nodes of regular files have none.
    ReadExceptOfFiles,
}

/// The walk over the directory `root`, whose entries get the paths `<name>/…`; the first entry is the
/// directory itself, as `<name>`.
#[derive(Debug)]
pub(crate) struct Walk {
    levels: Vec<Level>,
    /// Device numbers differ from snapshot to snapshot: what is stored is the order in which they appear.
    devices: Vec<u64>,
    /// Added to device numbers, so that two walks never share one.
    device_offset: u64,
    attributes: ExtendedAttributes,
    start: Option<(PathBuf, OwnedFd)>,
    /// Only these paths, what leads to them and what is beneath them; everything where empty.
    only: Arc<[PathBuf]>,
    /// Whether what is staged in the root directory is no part of it.
    without_staged: bool,
}

pub(crate) const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Walk {
    pub(crate) fn new(
        name: &OsStr,
        root: OwnedFd,
        device_offset: u64,
        attributes: ExtendedAttributes,
        only: Arc<[PathBuf]>,
    ) -> Self {
        Self {
            levels: Vec::new(),
            devices: Vec::new(),
            device_offset,
            attributes,
            start: Some((PathBuf::from(name), root)),
            only,
            without_staged: false,
        }
    }

    /// Leaves out what begins with [`STAGING_PREFIX`] in the root directory.
    pub(crate) fn without_staged(self) -> Self {
        Self { without_staged: true, ..self }
    }

    fn device(&mut self, device: u64) -> u64 {
        let position = self.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        self.device_offset + position as u64
    }

    fn enter(&mut self, path: PathBuf, directory: OwnedFd) -> Result<(), WalkFault> {
        let mut names = match sorted_names(&directory) {
            Ok(names) => names,
            Err(error) => return Err(WalkFault { path, error: error.into() }),
        };
        if self.without_staged && self.levels.is_empty() {
            names.retain(|name| !name.as_bytes().starts_with(STAGING_PREFIX.as_bytes()));
        }
        if !self.only.is_empty() && !self.only.iter().any(|wanted| path.starts_with(wanted)) {
            names.retain(|name| {
                let path = path.join(name);
                self.only.iter().any(|wanted| wanted.starts_with(&path))
            });
        }
        self.levels.push(Level { path, directory: Arc::new(directory), names: names.into_iter() });
        Ok(())
    }

    fn begin(&mut self, name: PathBuf, root: OwnedFd) -> Result<WalkEntry, WalkFault> {
        let result = (|| {
            let stat = rustix::fs::fstat(&root)?;
            let node = self.node(name.as_os_str(), &stat, &own_path(&root), None)?;
            let copy = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
            Ok::<_, io::Error>((node, copy))
        })();
        match result {
            Ok((node, copy)) => {
                self.enter(name.clone(), root)?;
                let directory = Arc::new(copy);
                Ok(WalkEntry { path: name.clone(), node, directory, name: OsString::from(".") })
            }
            Err(error) => Err(WalkFault { path: name, error }),
        }
    }

    fn look(
        &mut self,
        directory: &Arc<OwnedFd>,
        name: OsString,
        path: PathBuf,
    ) -> Result<WalkEntry, WalkFault> {
        let result = (|| {
            let stat = rustix::fs::statat(directory, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory {
                let child = rustix::fs::openat(directory, name.as_os_str(), OPEN_DIRECTORY, Mode::empty())?;
                // What counts is the directory that was opened, should it just have been exchanged.
                let stat = rustix::fs::fstat(&child)?;
                let node = self.node(&name, &stat, &own_path(&child), None)?;
                return Ok::<_, io::Error>((node, Some(child)));
            }
            let target = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    Some(rustix::fs::readlinkat(directory, name.as_os_str(), Vec::new())?.into_bytes())
                }
                _ => None,
            };
            let attributes_path = Path::new(&descriptor_path(directory)).join(&name);
            Ok((self.node(&name, &stat, &attributes_path, target)?, None))
        })();
        match result {
            Ok((node, child)) => {
                if let Some(child) = child {
                    self.enter(path.clone(), child)?;
                }
                Ok(WalkEntry { path, node, directory: Arc::clone(directory), name })
            }
            Err(error) => Err(WalkFault { path, error }),
        }
    }

    fn node(
        &mut self,
        name: &OsStr,
        stat: &Stat,
        attributes_path: &Path,
        link_target: Option<Vec<u8>>,
    ) -> io::Result<Node> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let node_type = match (file_type, link_target) {
            (FileType::Directory, _) => NodeType::Dir,
            (FileType::Symlink, Some(target)) => NodeType::from_link(Path::new(OsStr::from_bytes(&target))),
            (FileType::RegularFile, _) => NodeType::File,
            (FileType::Fifo, _) => NodeType::Fifo,
            (FileType::Socket, _) => NodeType::Socket,
            (FileType::BlockDevice, _) => NodeType::Dev { device: stat.st_rdev },
            (FileType::CharacterDevice, _) => NodeType::Chardev { device: stat.st_rdev },
            _ => return Err(io::Error::other(format!("an unknown type of file: {file_type:?}"))),
        };
        let mtime = timestamp(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or_default());
        let is_directory = file_type == FileType::Directory;
        #[allow(clippy::useless_conversion, reason = "a u32 on other architectures")]
        let links = if is_directory { 0 } else { u64::from(stat.st_nlink) };
        let mut meta = Metadata {
            mode: Some(go_mode(stat.st_mode)),
            mtime: Some(mtime),
            atime: Some(mtime),
            ctime: Some(timestamp(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or_default())),
            uid: Some(stat.st_uid),
            gid: Some(stat.st_gid),
            // Names of users differ from host to host: the numbers are what is restored.
            user: None,
            group: None,
            inode: stat.st_ino,
            device_id: if links > 1 { self.device(stat.st_dev) } else { 0 },
            size: if file_type == FileType::RegularFile {
                u64::try_from(stat.st_size).unwrap_or(0)
            } else {
                0
            },
            links,
            extended_attributes: Vec::new(),
        };
        if self.attributes == ExtendedAttributes::Read || file_type != FileType::RegularFile {
            set_extended_attributes(&mut meta, extended_attributes(attributes_path)?)?;
        }
        Ok(Node::new_node(name, node_type, meta))
    }
}

impl Iterator for Walk {
    type Item = Result<WalkEntry, WalkFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((name, root)) = self.start.take() {
            return Some(self.begin(name, root));
        }
        loop {
            let level = self.levels.last_mut()?;
            match level.names.next() {
                Some(name) => {
                    let path = level.path.join(&name);
                    let directory = Arc::clone(&level.directory);
                    return Some(self.look(&directory, name, path));
                }
                None => {
                    self.levels.pop();
                }
            }
        }
    }
}

/// A path to an open directory itself, and not to the link in `/proc` that leads there.
fn own_path(directory: &OwnedFd) -> PathBuf {
    Path::new(&descriptor_path(directory)).join(".")
}

/// A path that leads to an open directory, wherever it has been moved to.
pub(crate) fn descriptor_path(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// The names in a directory in the order of their bytes, which is the order of a snapshot.
fn sorted_names(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Times outside the years 0 to 9999 cannot be written in a snapshot that restic reads: the nearest that
/// can is used.
fn timestamp(seconds: i64, nanoseconds: i64) -> Timestamp {
    const YEAR_0: i64 = -62_167_219_200;
    const LAST: i64 = 253_402_207_200;
    let (seconds, nanoseconds) = if (YEAR_0..LAST).contains(&seconds) {
        (seconds, i32::try_from(nanoseconds).unwrap_or_default())
    } else {
        (seconds.clamp(YEAR_0, LAST - 1), 0)
    };
    Timestamp::new(seconds, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
