//! What a backup reads: a read-only snapshot where there can be one, else the live trees.
//!
//! Files that change while they are read make a backup of a state that never was. A btrfs snapshot is made in
//! milliseconds and does not change, with one trap: it shows an *empty* directory in place of each nested
//! subvolume. Such a project is backed up live, and the nested subvolumes are named, so that nothing is lost silently.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use crate::VolumeError;
use crate::btrfs::{SubvolumeFacts, is_subvolume, missing_subvolumes};
use crate::deletion::delete_tree;
use crate::host_root::{Filesystem, HostRoot, directory_exists};
use crate::operation_directory::OperationDirectory;

/// Whether a backup reads frozen trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Both trees are read-only btrfs snapshots.
    BtrfsSnapshot,
    /// Both are the live trees, which may change while they are read.
    Live,
}

/// The trees that a backup reads.
#[derive(Debug)]
pub struct BackupSource {
    /// The project's files.
    pub project_dir: PathBuf,
    /// The project's persist store.
    pub persist_dir: PathBuf,
    /// Whether these are snapshots.
    pub kind: SourceKind,
    /// A time just before the first byte of the source was fixed: what was written until then is in the source.
    pub taken_at: SystemTime,
    /// The generation of what is read, see [`crate::Generations`]; `None` where it cannot be told.
    pub generation: Option<i64>,
    /// Nested subvolumes, as `project/<path>` or `persist/<path>`. If there are any, the kind is `Live`: a
    /// snapshot would lack their files. The reader has to descend into them although their device number
    /// differs from that of the project.
    pub nested_subvolumes: Vec<PathBuf>,
    /// Tells recovery in other processes that the snapshot is in use.
    _in_use: Option<OperationDirectory>,
}

/// The files of a project that a copy reads.
#[derive(Debug)]
pub struct FrozenFiles {
    /// The project's files.
    pub project_dir: PathBuf,
    /// Whether this is a snapshot.
    pub kind: SourceKind,
    /// A time just before the first byte of the source was fixed: what was written until then is in the source.
    pub taken_at: SystemTime,
    /// Tells recovery in other processes that the snapshot is in use.
    _in_use: Option<OperationDirectory>,
}

/// Snapshots that were made for an operation.
struct Snapshots {
    directory: OperationDirectory,
    taken_at: SystemTime,
}

/// What is frozen: a live tree, its name in the directory of the operation, and the paths in it that will be read.
struct ToFreeze<'a> {
    live: &'a Path,
    name: &'static str,
    paths: &'a [&'a Path],
}

impl HostRoot {
    /// Fixes what the backup `op_id` of `project` reads. A snapshot that an earlier attempt has left is deleted first. End
    /// with [`HostRoot::drop_snapshot`].
    ///
    /// # Errors
    ///
    /// `NotFound` if the project lacks one of its trees on this host; `InUse` if an earlier attempt still holds its
    /// snapshot.
    pub fn snapshot(&self, project: Uuid, op_id: Uuid) -> Result<BackupSource, VolumeError> {
        let (project_dir, persist_dir) = (self.project_dir(project), self.persist_dir(project));
        let all: &[&Path] = &[Path::new("")];
        let trees = [
            ToFreeze { live: &persist_dir, name: "persist", paths: all },
            ToFreeze { live: &project_dir, name: "project", paths: all },
        ];
        let nested_subvolumes = match self.freeze(project, op_id, &trees)? {
            Ok(Snapshots { directory, taken_at }) => {
                return Ok(BackupSource {
                    project_dir: directory.path().join("project"),
                    persist_dir: directory.path().join("persist"),
                    kind: SourceKind::BtrfsSnapshot,
                    taken_at,
                    generation: self.generation_of_snapshots(op_id),
                    nested_subvolumes: Vec::new(),
                    _in_use: Some(directory),
                });
            }
            Err(nested) => nested,
        };
        let generation = self.generation_before_reading(project);
        Ok(BackupSource {
            project_dir,
            persist_dir,
            kind: SourceKind::Live,
            taken_at: now(),
            generation,
            nested_subvolumes,
            _in_use: None,
        })
    }

    /// Fixes what the copy `op_id` reads of the files of `project`, of which it reads `paths` alone. A snapshot that an earlier
    /// attempt has left is deleted first. End with [`HostRoot::drop_snapshot`].
    ///
    /// # Errors
    ///
    /// `NotFound` if the project has no files on this host; `InUse` if an earlier attempt still holds its snapshot.
    pub fn snapshot_files(
        &self,
        project: Uuid,
        op_id: Uuid,
        paths: &[&Path],
    ) -> Result<FrozenFiles, VolumeError> {
        let project_dir = self.project_dir(project);
        let tree = ToFreeze { live: &project_dir, name: "project", paths };
        Ok(match self.freeze(project, op_id, &[tree])? {
            Ok(Snapshots { directory, taken_at }) => FrozenFiles {
                project_dir: directory.path().join("project"),
                kind: SourceKind::BtrfsSnapshot,
                taken_at,
                _in_use: Some(directory),
            },
            Err(_) => FrozenFiles { project_dir, kind: SourceKind::Live, taken_at: now(), _in_use: None },
        })
    }

    /// Makes a snapshot of each tree, in this order. Where that cannot be, there is none, and the nested subvolumes, if these
    /// are the reason, are named.
    fn freeze(
        &self,
        project: Uuid,
        op_id: Uuid,
        trees: &[ToFreeze<'_>],
    ) -> Result<Result<Snapshots, Vec<PathBuf>>, VolumeError> {
        for tree in trees {
            if !directory_exists(tree.live)? {
                return Err(VolumeError::ProjectNotFound { project, path: tree.live.to_owned() });
            }
        }
        if OperationDirectory::claim_existing(&self.snapshots(), op_id)?.is_some() {
            self.drop_snapshot(op_id)?;
        }
        if self.filesystem() != Filesystem::Btrfs {
            return Ok(Err(Vec::new()));
        }
        for tree in trees {
            if !is_subvolume(tree.live)? {
                return Ok(Err(Vec::new()));
            }
        }
        let taken_at = now();
        let directory = OperationDirectory::claim(&self.snapshots(), op_id)?;
        let nested = match self.fill_snapshot(&directory, trees) {
            Ok(nested) if nested.is_empty() => return Ok(Ok(Snapshots { directory, taken_at })),
            Ok(nested) => nested,
            Err(error) => {
                if let Err(error) = self.drop_snapshot(op_id) {
                    tracing::warn!(op.id = %op_id, %error, "a half-made snapshot is left for recovery");
                }
                return Err(error);
            }
        };
        self.drop_snapshot(op_id)?;
        tracing::warn!(
            op.id = %op_id, project.id = %project, ?nested,
            "the project holds subvolumes of its own, which a snapshot would lack; it is read live"
        );
        Ok(Err(nested))
    }

    /// Makes the snapshots; returns the nested subvolumes that they lack.
    fn fill_snapshot(
        &self,
        directory: &OperationDirectory,
        trees: &[ToFreeze<'_>],
    ) -> Result<Vec<PathBuf>, VolumeError> {
        let mut nested = Vec::new();
        for tree in trees {
            let snapshot = directory.path().join(tree.name);
            self.btrfs.snapshot_read_only(tree.live, &snapshot)?;
            self.steps.done("a snapshot is made")?;
            let mut missing: Vec<PathBuf> =
                tree.paths.iter().flat_map(|path| missing_subvolumes(&snapshot, path)).collect();
            missing.extend(self.subvolumes_within(tree.live, &missing));
            missing.sort_unstable();
            missing.dedup();
            nested.extend(missing.iter().map(|path| Path::new(tree.name).join(path)));
        }
        Ok(nested)
    }

    /// The subvolumes within the nested subvolumes `outermost` of `live`, which no snapshot shows. Paths are relative to `live`.
    /// They are named for people: what cannot be listed is left out.
    fn subvolumes_within(&self, live: &Path, outermost: &[PathBuf]) -> Vec<PathBuf> {
        if outermost.is_empty() {
            return Vec::new();
        }
        let listed =
            self.btrfs.list_subvolumes(self.path()).and_then(|all| Ok((self.btrfs.subvolume_id(live)?, all)));
        match listed {
            Ok((id, all)) => {
                let own = all.iter().find(|subvolume| subvolume.id == id).map(|own| own.path.clone());
                let below = |subvolume: SubvolumeFacts| {
                    Path::new(&subvolume.path).strip_prefix(own.as_deref()?).map(Path::to_owned).ok()
                };
                let within = |path: &PathBuf| outermost.iter().any(|outer| path.starts_with(outer));
                all.into_iter().filter_map(below).filter(within).collect()
            }
            Err(error) => {
                tracing::warn!(path = %live.display(), %error, "subvolumes within nested ones are not named");
                Vec::new()
            }
        }
    }

    /// Deletes the snapshots of the operation `op_id`; none there is fine. Only the holder of the operation calls this,
    /// once nothing reads them any more.
    pub fn drop_snapshot(&self, op_id: Uuid) -> Result<(), VolumeError> {
        let directory = self.snapshots().join(op_id.to_string());
        for name in ["project", "persist"] {
            delete_tree(&self.btrfs, &directory.join(name))?;
            self.steps.done("a snapshot is deleted")?;
        }
        delete_tree(&self.btrfs, &directory)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "when a snapshot was really taken is a fact of this host's clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::process::Command;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::test_support::{BtrfsMount, Crash, fill, is_empty, mark_of, on_each_filesystem};
    use crate::{VolumeErrorKind, VolumeOptions};

    fn filled_project(root: &HostRoot) -> Uuid {
        let project = Uuid::new_v4();
        let volume = root.ensure_volume(project).unwrap();
        assert!(volume.created);
        assert!(!root.ensure_volume(project).unwrap().created);
        fill(&volume.project_dir, "before");
        fill(&volume.persist_dir, "before");
        project
    }

    #[test]
    fn a_backup_source_is_frozen_on_btrfs_and_live_elsewhere() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = filled_project(&root);
            let op_id = Uuid::now_v7();
            let source = root.snapshot(project, op_id).unwrap();
            std::fs::remove_dir_all(root.project_dir(project).join("sub")).unwrap();
            if root.filesystem() == Filesystem::Btrfs {
                assert_eq!(source.kind, SourceKind::BtrfsSnapshot);
                assert_eq!(mark_of(&source.project_dir), "before");
                assert_eq!(mark_of(&source.persist_dir), "before");
                assert!(std::fs::write(source.project_dir.join("mark"), "after").is_err(), "it is read-only");
                assert_eq!(root.snapshot(project, op_id).unwrap_err().kind(), VolumeErrorKind::InUse);
            } else {
                assert_eq!(source.kind, SourceKind::Live);
                assert_eq!(source.project_dir, root.project_dir(project));
                assert_eq!(source.persist_dir, root.persist_dir(project));
            }
            root.drop_snapshot(op_id).unwrap();
            root.drop_snapshot(op_id).unwrap();
            assert!(is_empty(&root.snapshots()));
            assert!(root.project_dir(project).exists());
        });
    }

    #[test]
    fn a_project_without_files_is_not_found() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let error = root.snapshot(Uuid::new_v4(), Uuid::now_v7()).unwrap_err();
            assert_eq!(error.kind(), VolumeErrorKind::NotFound);
            let project = filled_project(&root);
            delete_tree(&root.btrfs, &root.persist_dir(project)).unwrap();
            let error = root.snapshot(project, Uuid::now_v7()).unwrap_err();
            assert_eq!(error.kind(), VolumeErrorKind::NotFound, "an empty persist store is not made up");
        });
    }

    #[test]
    fn a_plain_directory_on_btrfs_is_backed_up_live() {
        let Some(mount) = BtrfsMount::new() else { return };
        let root = HostRoot::open(mount.path()).unwrap();
        let project = Uuid::new_v4();
        std::fs::create_dir(root.project_dir(project)).unwrap();
        root.ensure_volume(project).unwrap();
        assert_eq!(root.snapshot(project, Uuid::now_v7()).unwrap().kind, SourceKind::Live);
    }

    #[test]
    fn nested_subvolumes_make_a_backup_live_and_are_named() {
        let Some(mount) = BtrfsMount::new() else { return };
        let root = HostRoot::open(mount.path()).unwrap();
        let project = filled_project(&root);
        let nested = root.project_dir(project).join("sub/nested");
        root.btrfs.create_subvolume(&nested).unwrap();
        std::fs::write(nested.join("precious"), "data").unwrap();
        let source = root.snapshot(project, Uuid::now_v7()).unwrap();
        assert_eq!(source.kind, SourceKind::Live);
        assert_eq!(source.nested_subvolumes, [Path::new("project/sub/nested")]);
        assert!(source.project_dir.join("sub/nested/precious").exists());
        assert!(is_empty(&root.snapshots()));
    }

    #[test]
    fn what_is_nested_in_what_is_nested_is_named_too() {
        let Some(mount) = BtrfsMount::new() else { return };
        let root = HostRoot::open(mount.path()).unwrap();
        let (project, other) = (filled_project(&root), filled_project(&root));
        for path in ["one", "one/two", "one/two/in/three", "four"] {
            let path = root.project_dir(project).join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            root.btrfs.create_subvolume(&path).unwrap();
        }
        root.btrfs.create_subvolume(&root.persist_dir(project).join("five")).unwrap();
        root.btrfs.create_subvolume(&root.project_dir(other).join("not-mine")).unwrap();
        let source = root.snapshot(project, Uuid::now_v7()).unwrap();
        let expected =
            ["persist/five", "project/four", "project/one", "project/one/two", "project/one/two/in/three"];
        assert_eq!(source.nested_subvolumes, expected.map(Path::new));
    }

    #[test]
    fn a_copy_reads_a_snapshot_of_the_files_unless_what_it_reads_lies_in_or_around_a_nested_subvolume() {
        let Some(mount) = BtrfsMount::new() else { return };
        let root = HostRoot::open(mount.path()).unwrap();
        let project = filled_project(&root);
        let files = root.project_dir(project);
        root.btrfs.create_subvolume(&files.join("nested")).unwrap();
        std::fs::write(files.join("nested/precious"), "data").unwrap();
        std::os::unix::fs::symlink("nested", files.join("link")).unwrap();
        for (path, kind) in [
            ("sub", SourceKind::BtrfsSnapshot),
            ("mark", SourceKind::BtrfsSnapshot),
            ("missing", SourceKind::BtrfsSnapshot),
            ("nested", SourceKind::Live),
            ("nested/precious", SourceKind::Live),
            ("link/precious", SourceKind::Live),
            ("", SourceKind::Live),
        ] {
            let op_id = Uuid::now_v7();
            let frozen = root.snapshot_files(project, op_id, &[Path::new("sub"), Path::new(path)]).unwrap();
            assert_eq!(frozen.kind, kind, "{path}");
            assert_eq!(std::fs::read_to_string(frozen.project_dir.join("mark")).unwrap(), "before");
            drop(frozen);
            root.drop_snapshot(op_id).unwrap();
            assert!(is_empty(&root.snapshots()), "{path}");
        }
        // It lacks nothing that a copy has no need of.
        delete_tree(&root.btrfs, &root.persist_dir(project)).unwrap();
        let op_id = Uuid::now_v7();
        assert!(root.snapshot_files(project, op_id, &[Path::new("sub")]).is_ok());
        root.drop_snapshot(op_id).unwrap();
        let error = root.snapshot_files(Uuid::new_v4(), op_id, &[Path::new("sub")]).unwrap_err();
        assert_eq!(error.kind(), VolumeErrorKind::NotFound);
    }

    #[test]
    fn trees_with_nested_and_read_only_subvolumes_are_deleted_and_their_links_not_followed() {
        let Some(mount) = BtrfsMount::new() else { return };
        let root = HostRoot::open(mount.path()).unwrap();
        let (project, other) = (filled_project(&root), filled_project(&root));
        let tree = root.project_dir(project);
        root.btrfs.create_subvolume(&tree.join("nested")).unwrap();
        root.btrfs.create_subvolume(&tree.join("nested/inner")).unwrap();
        fill(&tree.join("nested/inner"), "inner");
        root.btrfs.snapshot_read_only(&tree.join("nested/inner"), &tree.join("sub/frozen")).unwrap();
        std::os::unix::fs::symlink(root.project_dir(other), tree.join("nested/elsewhere")).unwrap();
        delete_tree(&root.btrfs, &tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(mark_of(&root.project_dir(other)), "before");
    }

    #[test]
    fn a_tree_deeper_than_any_stack_and_closed_to_its_owner_is_deleted() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let top = root.path().join("deep");
            std::fs::create_dir(&top).unwrap();
            let mut directory = rustix::fs::open(&top, OFlags::DIRECTORY, Mode::empty()).unwrap();
            for _ in 0..3_000 {
                rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
                let inner = rustix::fs::openat(&directory, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
                rustix::fs::fchmod(&directory, Mode::empty()).unwrap();
                directory = inner;
            }
            delete_tree(&root.btrfs, &top).unwrap();
            assert!(!top.exists());
        });
    }

    #[test]
    fn a_crash_in_a_snapshot_leaves_nothing_after_recovery() {
        on_each_filesystem(|new_root| {
            for steps in 1.. {
                let root = new_root();
                let project = filled_project(&root);
                let stopping = Crash::after(&root, steps);
                let op_id = Uuid::now_v7();
                let outcome = stopping.snapshot(project, op_id).and_then(|source| {
                    drop(source);
                    stopping.drop_snapshot(op_id)
                });
                let report = root.recover().unwrap();
                assert!(report.failed.is_empty() && report.in_use.is_empty(), "{report:?}");
                assert!(is_empty(&root.snapshots()));
                assert_eq!(mark_of(&root.project_dir(project)), "before");
                if !Crash::happened(&outcome) {
                    break;
                }
            }
        });
    }

    #[test]
    fn btrfs_without_a_working_program_is_treated_as_a_plain_filesystem() {
        let Some(mount) = BtrfsMount::new() else { return };
        let options = VolumeOptions { btrfs_program: "false".into(), ..VolumeOptions::default() };
        let root = HostRoot::open_with(mount.path(), options).unwrap();
        assert_eq!(root.filesystem(), Filesystem::Plain);
        assert!(is_empty(&root.staging()));
        let listed = Command::new("btrfs").args(["subvolume", "list"]).arg(mount.path()).output().unwrap();
        assert!(listed.stdout.is_empty());
    }
}
