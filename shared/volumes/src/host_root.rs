//! The directory that holds everything of a project-host, and the volumes of its projects.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::VolumeError;
use crate::btrfs::{self, Btrfs};
use crate::deletion::delete_tree;
use crate::grouped_sync::GroupedSync;
use crate::operation_directory::{OperationDirectory, sync_directory};
use crate::steps::Steps;

/// What a host root can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    /// btrfs, and this process can make and delete subvolumes there: volumes are subvolumes, backups read snapshots.
    Btrfs,
    /// Anything else: volumes are directories, backups read them live.
    Plain,
}

/// How to open a host root; the default suits production.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// The program that manages subvolumes; looked up on `PATH` if it is a bare name. Default: `btrfs`.
    pub btrfs_program: PathBuf,
    /// Whether two names may be exchanged in one step (`RENAME_EXCHANGE`). Off means the journaled pair of renames
    /// that is otherwise used only where the filesystem has no exchange. Default: on.
    pub use_rename_exchange: bool,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self { btrfs_program: "btrfs".into(), use_rename_exchange: true }
    }
}

/// The two trees of a project, made if they were missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The project's files.
    pub project_dir: PathBuf,
    /// The project's persist store.
    pub persist_dir: PathBuf,
    /// Whether at least one of the two was missing before.
    pub created: bool,
}

/// What a host has of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Nothing,
    /// A persist store with something in it, and no directory for the files.
    PersistStoreOnly,
    /// What there is of it.
    Whole,
}

/// The directory that holds everything of a project-host. Cheap to clone; any number of processes may open the
/// same one.
#[derive(Debug, Clone)]
pub struct HostRoot {
    path: PathBuf,
    pub(crate) btrfs: Btrfs,
    on_btrfs: bool,
    filesystem: Filesystem,
    pub(crate) use_rename_exchange: bool,
    pub(crate) steps: Steps,
    pub(crate) syncs: GroupedSync,
}

/// How much room there is on a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may still be written.
    pub available_bytes: u64,
    /// Bytes that it has in all.
    pub total_bytes: u64,
}

impl HostRoot {
    /// Opens the host root at `path` with the default options. See [`HostRoot::open_with`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, VolumeError> {
        Self::open_with(path, VolumeOptions::default())
    }

    /// Opens the host root at `path`, making it and its directories where they are missing, and tries whether
    /// subvolumes can be made and deleted there. Call [`HostRoot::recover`] next, before any other operation.
    ///
    /// # Errors
    ///
    /// Directories that cannot be made, or that lie on more than one filesystem.
    pub fn open_with(path: impl AsRef<Path>, options: VolumeOptions) -> Result<Self, VolumeError> {
        let path = std::path::absolute(path.as_ref()).map_err(VolumeError::io("find", path.as_ref()))?;
        let btrfs = Btrfs::new(options.btrfs_program);
        let mut root = Self {
            path,
            btrfs,
            on_btrfs: false,
            filesystem: Filesystem::Plain,
            use_rename_exchange: options.use_rename_exchange,
            steps: Steps::default(),
            syncs: GroupedSync::default(),
        };
        // Only the host itself may look into snapshots and staged trees, whatever modes the files inside have.
        for (directory, mode) in [
            (root.projects(), 0o755),
            (root.persist(), 0o755),
            (root.staging(), 0o700),
            (root.snapshots(), 0o700),
            (root.copies(), 0o700),
        ] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(&directory);
            made.map_err(VolumeError::io("create the directory", &directory))?;
        }
        root.check_one_filesystem()?;
        root.on_btrfs = btrfs::is_on_btrfs(&root.staging())?;
        if root.on_btrfs {
            root.filesystem = root.try_subvolumes()?;
        }
        Ok(root)
    }

    /// How much room there is on the filesystem of all of it.
    pub fn space(&self) -> Result<Space, VolumeError> {
        let place = self.staging();
        let found =
            rustix::fs::statvfs(&place).map_err(VolumeError::io("ask for the free space of", &place))?;
        Ok(Space {
            available_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }

    fn check_one_filesystem(&self) -> Result<(), VolumeError> {
        let device =
            |path: &Path| path.metadata().map(|found| found.dev()).map_err(VolumeError::io("look at", path));
        let staging = self.staging();
        for other in [self.projects(), self.persist(), self.snapshots(), self.copies()] {
            if device(&other)? != device(&staging)? {
                return Err(VolumeError::DifferentFilesystems { first: staging, second: other });
            }
        }
        Ok(())
    }

    fn try_subvolumes(&self) -> Result<Filesystem, VolumeError> {
        let trial = OperationDirectory::claim(&self.staging(), Uuid::new_v4())?;
        let subvolume = trial.path().join("trial");
        let outcome =
            self.btrfs.create_subvolume(&subvolume).and_then(|()| delete_tree(&self.btrfs, &subvolume));
        let filesystem = match outcome {
            Ok(()) => Filesystem::Btrfs,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(
                    path = %self.path.display(), %error, cause,
                    "on btrfs, but subvolumes cannot be made and deleted here; backups will read live trees"
                );
                Filesystem::Plain
            }
        };
        delete_tree(&self.btrfs, trial.path())?;
        Ok(filesystem)
    }

    /// The absolute path of the host root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the host root can do.
    pub fn filesystem(&self) -> Filesystem {
        self.filesystem
    }

    /// Where the files of `project` are, whether or not they exist.
    pub fn project_dir(&self, project: Uuid) -> PathBuf {
        self.projects().join(project.to_string())
    }

    /// Where the persist store of `project` is, whether or not it exists.
    pub fn persist_dir(&self, project: Uuid) -> PathBuf {
        self.persist().join(project.to_string())
    }

    /// Makes the two trees of `project` where they are missing: subvolumes on btrfs, else directories. A plain
    /// directory that exists is fine on btrfs too; it is then backed up live.
    ///
    /// # Errors
    ///
    /// A tree that cannot be made, or something in its place that is no directory.
    pub fn ensure_volume(&self, project: Uuid) -> Result<Volume, VolumeError> {
        let project_dir = self.project_dir(project);
        let persist_dir = self.persist_dir(project);
        let mut created = false;
        for tree in [&project_dir, &persist_dir] {
            created |= self.ensure_tree(tree)?;
        }
        Ok(Volume { project_dir, persist_dir, created })
    }

    /// What this host has of `project`. An empty directory, or one with nothing but what a restore has staged, is nothing:
    /// somebody may have made it by accident, or a disk may not be mounted. An empty one beside a persist store that has
    /// something is a project without files.
    ///
    /// # Errors
    ///
    /// Where that cannot be seen.
    pub fn presence(&self, project: Uuid) -> Result<Presence, VolumeError> {
        let (files, persist) = (self.project_dir(project), self.persist_dir(project));
        let is_there = directory_exists(&files)?;
        if is_there && has_entries(&files)? {
            return Ok(Presence::Whole);
        }
        let has_persist_store = directory_exists(&persist)? && has_entries(&persist)?;
        Ok(match (has_persist_store, is_there) {
            (false, _) => Presence::Nothing,
            (true, false) => Presence::PersistStoreOnly,
            (true, true) => Presence::Whole,
        })
    }

    fn ensure_tree(&self, tree: &Path) -> Result<bool, VolumeError> {
        if directory_exists(tree)? {
            return Ok(false);
        }
        match self.create_tree(tree) {
            Ok(()) => {}
            // Somebody else was faster.
            Err(_) if directory_exists(tree)? => return Ok(false),
            Err(error) => return Err(error),
        }
        sync_directory(tree.parent().unwrap_or(&self.path))?;
        Ok(true)
    }

    /// Makes one tree: a subvolume where possible, else a directory.
    pub(crate) fn create_tree(&self, tree: &Path) -> Result<(), VolumeError> {
        match self.filesystem {
            Filesystem::Btrfs => self.btrfs.create_subvolume(tree),
            Filesystem::Plain => DirBuilder::new()
                .mode(0o755)
                .create(tree)
                .map_err(VolumeError::io("create the directory", tree)),
        }
    }

    /// The program for trees of this host root, if it is on btrfs at all.
    pub(crate) fn btrfs_if_there(&self) -> Option<&Btrfs> {
        self.on_btrfs.then_some(&self.btrfs)
    }

    pub(crate) fn projects(&self) -> PathBuf {
        self.path.join("projects")
    }

    pub(crate) fn persist(&self) -> PathBuf {
        self.path.join("persist")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub(crate) fn copies(&self) -> PathBuf {
        self.path.join("copies")
    }
}

/// Whether a directory has anything in it that is not our own.
fn has_entries(directory: &Path) -> Result<bool, VolumeError> {
    for entry in std::fs::read_dir(directory).map_err(VolumeError::io("list", directory))? {
        let entry = entry.map_err(VolumeError::io("list", directory))?;
        if !entry.file_name().to_string_lossy().starts_with(domain_model::RESERVED_PREFIX) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a directory is at `path`; something else there is an error.
pub(crate) fn directory_exists(path: &Path) -> Result<bool, VolumeError> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(metadata) => {
            let found = if metadata.is_symlink() { "a symbolic link" } else { "not a directory" };
            Err(VolumeError::NotADirectory { path: path.to_owned(), found })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(VolumeError::io("look at", path)(error)),
    }
}
