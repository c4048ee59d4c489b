//! The `btrfs` program, and how a subvolume is recognised.
//!
//! Subvolumes are made and deleted by the program of the distribution rather than by ioctls: it needs no unsafe
//! code and it knows the kernel it runs on. Paths given to it are walked by it, symbolic links and all, so only
//! paths of directories that the host alone can write are passed; inside a tenant's tree a handle is passed
//! instead, as `/proc/<pid>/fd/<n>`.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::VolumeError;

/// `f_type` of btrfs in `statfs`.
const BTRFS_MAGIC: u64 = 0x9123_683E;
/// The inode number that the root directory of every subvolume has.
const SUBVOLUME_ROOT_INODE: u64 = 256;
/// The inode number of the empty directory that a snapshot shows in place of a nested subvolume.
const MISSING_SUBVOLUME_INODE: u64 = 2;

/// The program that manages subvolumes.
#[derive(Debug, Clone)]
pub(crate) struct Btrfs {
    program: PathBuf,
}

/// What the filesystem knows of one of its subvolumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubvolumeFacts {
    /// Its number.
    pub id: u64,
    /// The number of the subvolume that it lies in.
    pub top_level: u64,
    /// The transaction that last wrote to it.
    pub generation: u64,
    /// The transaction that it was made in.
    pub made_in: u64,
    /// Names it for ever.
    pub uuid: String,
    /// What it is a snapshot of; `-` for none.
    pub parent_uuid: String,
    /// From the root of the filesystem.
    pub path: String,
}

impl SubvolumeFacts {
    /// From a line such as `ID 257 gen 8 cgen 8 top level 5 parent_uuid … uuid … path snap/s1`.
    fn read(line: &str) -> Option<Self> {
        let (fields, path) = line.split_once(" path ")?;
        let words: Vec<&str> = fields.split_whitespace().collect();
        let after =
            |name: &str| words.iter().position(|word| *word == name).and_then(|place| words.get(place + 1));
        Some(Self {
            id: after("ID")?.parse().ok()?,
            top_level: after("level")?.parse().ok()?,
            generation: after("gen")?.parse().ok()?,
            made_in: after("cgen")?.parse().ok()?,
            uuid: (*after("uuid")?).to_owned(),
            parent_uuid: (*after("parent_uuid")?).to_owned(),
            path: path.to_owned(),
        })
    }
}

/// Whether `path` is on btrfs, whatever it may do there.
pub(crate) fn is_on_btrfs(path: &Path) -> Result<bool, VolumeError> {
    let answer = rustix::fs::statfs(path).map_err(VolumeError::io("look at the filesystem of", path))?;
    Ok(is_magic(answer.f_type as u64))
}

fn is_magic(f_type: u64) -> bool {
    f_type & 0xFFFF_FFFF == BTRFS_MAGIC
}

/// Whether `path` is the root of a btrfs subvolume. A symbolic link or something missing is not.
pub(crate) fn is_subvolume(path: &Path) -> Result<bool, VolumeError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(metadata.is_dir() && metadata.ino() == SUBVOLUME_ROOT_INODE && is_on_btrfs(path)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(VolumeError::io("look at", path)(error)),
    }
}

/// The same for an open directory.
pub(crate) fn is_subvolume_handle(directory: impl AsFd) -> bool {
    let root = rustix::fs::fstat(&directory).is_ok_and(|stat| stat.st_ino == SUBVOLUME_ROOT_INODE);
    root && rustix::fs::fstatfs(&directory).is_ok_and(|answer| is_magic(answer.f_type as u64))
}

/// Where nested subvolumes were at `path`, beneath it or above it, when the read-only `snapshot` was made: a snapshot shows
/// an empty directory for each, so without this look their files would be missing in what is read, without a word. Paths
/// are relative to `snapshot`. A directory that cannot be read is passed over; who reads it reports it.
pub(crate) fn missing_subvolumes(snapshot: &Path, path: &Path) -> Vec<PathBuf> {
    // Where a link leads is not known here: all of it is looked at then.
    let through_link = path.ancestors().any(|path| snapshot.join(path).is_symlink());
    let path = if through_link { Path::new("") } else { path };
    let is_missing = |path: &Path| {
        let metadata = path.symlink_metadata();
        metadata.is_ok_and(|metadata| metadata.is_dir() && metadata.ino() == MISSING_SUBVOLUME_INODE)
    };
    let below = walkdir::WalkDir::new(snapshot.join(path))
        .min_depth(1)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_dir())
        .map(walkdir::DirEntry::into_path);
    let above = path.ancestors().map(|path| snapshot.join(path));
    above
        .chain(below)
        .filter(|path| is_missing(path))
        .filter_map(|path| path.strip_prefix(snapshot).map(Path::to_owned).ok())
        .collect()
}

impl Btrfs {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program }
    }

    pub(crate) fn create_subvolume(&self, path: &Path) -> Result<(), VolumeError> {
        self.run(
            "create the subvolume",
            path,
            Command::new(&self.program).args(["subvolume", "create"]).arg(path),
        )
        .map(drop)
    }

    pub(crate) fn snapshot_read_only(&self, source: &Path, snapshot: &Path) -> Result<(), VolumeError> {
        let mut command = Command::new(&self.program);
        command.args(["subvolume", "snapshot", "-r"]).arg(source).arg(snapshot);
        self.run("make a snapshot of", source, &mut command).map(drop)
    }

    /// Deletes a subvolume that holds no other. `path` must lie in a directory that only the host can write.
    pub(crate) fn delete_subvolume(&self, path: &Path) -> Result<(), VolumeError> {
        self.run(
            "delete the subvolume",
            path,
            Command::new(&self.program).args(["subvolume", "delete"]).arg(path),
        )
        .map(drop)
    }

    /// Makes a read-only subvolume writable, so that it can be emptied.
    pub(crate) fn make_writable(&self, subvolume: impl AsFd, path: &Path) -> Result<(), VolumeError> {
        let mut command = Command::new(&self.program);
        command
            .args(["property", "set", "-f", "-t", "subvol"])
            .arg(handle_path(subvolume))
            .args(["ro", "false"]);
        self.run("make writable the subvolume", path, &mut command).map(drop)
    }

    /// All subvolumes of the filesystem that `path` is on, as of its last commit.
    pub(crate) fn list_subvolumes(&self, path: &Path) -> Result<Vec<SubvolumeFacts>, VolumeError> {
        let mut command = Command::new(&self.program);
        command.args(["subvolume", "list", "-c", "-u", "-q"]).arg(path);
        let output = self.run("list the subvolumes of", path, &mut command)?;
        Ok(output.lines().filter_map(SubvolumeFacts::read).collect())
    }

    /// The number of the subvolume that `path` lies in; never reused within a filesystem.
    pub(crate) fn subvolume_id(&self, path: &Path) -> Result<u64, VolumeError> {
        let mut command = Command::new(&self.program);
        command.args(["inspect-internal", "rootid"]).arg(path);
        let output = self.run("find the number of the subvolume", path, &mut command)?;
        output.trim().parse().map_err(|_| VolumeError::Btrfs {
            operation: "find the number of the subvolume",
            path: path.to_owned(),
            message: format!("answered {output:?}"),
        })
    }

    fn run(
        &self,
        operation: &'static str,
        path: &Path,
        command: &mut Command,
    ) -> Result<String, VolumeError> {
        let output = command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(VolumeError::io("run the program", &self.program))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(VolumeError::Btrfs {
            operation,
            path: path.to_owned(),
            message: format!("{message} ({})", output.status),
        })
    }
}

/// A path by which this process and its children reach what `handle` holds open, wherever it has been moved to.
pub(crate) fn handle_path(handle: impl AsFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), handle.as_fd().as_raw_fd()).into()
}
