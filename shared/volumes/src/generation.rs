//! Whether a project's files have changed, without reading them.
//!
//! A *generation* is a number that is another one after every change: on btrfs the highest transaction that wrote into
//! the project's subvolumes, elsewhere the newest change time (ctime, which no tenant can set) of all files, in
//! milliseconds. Two generations are only ever compared for equality, so that a tree which was a directory and is a
//! subvolume now counts as changed. btrfs writes its numbers with each commit, by default every 30 seconds: a change
//! shows that much later.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::VolumeError;
use crate::btrfs::{SubvolumeFacts, is_subvolume};
use crate::host_root::{Filesystem, HostRoot, directory_exists};

/// A clock of a filesystem moves in steps: what changes within one of a change seen before has the same time. The step
/// is at most 10 ms (`CONFIG_HZ=100`).
const COARSEST_STEP_MS: i64 = 50;

/// Reads the generations of all projects of a host, again and again.
#[derive(Debug)]
pub struct Generations {
    root: HostRoot,
    /// What comes before the paths below the root where btrfs lists subvolumes (from the subvolume that the root lies in),
    /// once that is known.
    above_root: Option<String>,
}

impl Generations {
    /// Of the projects below `root`.
    pub fn new(root: HostRoot) -> Self {
        Self { root, above_root: None }
    }

    /// The generation of every project that has files on this host. One that cannot be read is passed over.
    ///
    /// # Errors
    ///
    /// Where the projects cannot be listed.
    pub fn read(&mut self) -> Result<HashMap<Uuid, i64>, VolumeError> {
        let folder = self.root.projects();
        let entries = std::fs::read_dir(&folder).map_err(VolumeError::io("list", &folder))?;
        let projects: Vec<Uuid> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let facts = match self.root.filesystem() {
            Filesystem::Btrfs => Some(self.root.btrfs.list_subvolumes(self.root.path())?),
            Filesystem::Plain => None,
        };
        let subvolumes = facts.as_deref().map(Subvolumes::new);
        let mut generations = HashMap::with_capacity(projects.len());
        for project in projects {
            match self.generation(project, subvolumes.as_ref()) {
                Ok(generation) => {
                    generations.insert(project, generation);
                }
                Err(error) => tracing::debug!(project.id = %project, %error, "its generation cannot be read"),
            }
        }
        Ok(generations)
    }

    /// `subvolumes` are `None` where the root is not used as btrfs, whatever lies there.
    fn generation(&mut self, project: Uuid, subvolumes: Option<&Subvolumes<'_>>) -> Result<i64, VolumeError> {
        let trees = [self.root.project_dir(project), self.root.persist_dir(project)];
        if let Some(subvolumes) = subvolumes
            && is_subvolume(&trees[0])?
            && is_subvolume(&trees[1])?
        {
            let ids = [self.subvolume_id(&trees[0], subvolumes)?, self.subvolume_id(&trees[1], subvolumes)?];
            return Ok(subvolumes.newest_generation(&ids));
        }
        newest_change(&trees)
    }

    /// The number of a subvolume below the root: by its place in the list. Only for the first one, from which it is seen
    /// where the root is, and for what is not in the list, the program is asked, which is a process each time.
    fn subvolume_id(&mut self, path: &Path, subvolumes: &Subvolumes<'_>) -> Result<u64, VolumeError> {
        let below_root = path.strip_prefix(self.root.path()).unwrap_or(path).to_string_lossy();
        if let Some(above) = &self.above_root
            && let Some(id) = subvolumes.only_one_at(&format!("{above}{below_root}"))
        {
            return Ok(id);
        }
        let id = self.root.btrfs.subvolume_id(path)?;
        if let Some(above) = subvolumes.path(id).and_then(|listed| listed.strip_suffix(&*below_root)) {
            self.above_root = Some(above.to_owned());
        }
        Ok(id)
    }
}

/// The subvolumes of a filesystem by what they are looked up by, once a look.
struct Subvolumes<'a> {
    by_id: HashMap<u64, &'a SubvolumeFacts>,
    /// `None` where several are listed by the same path, as those that lie elsewhere on the filesystem may be.
    at: HashMap<&'a str, Option<u64>>,
    /// The highest generation of each subvolume and all that are nested in it.
    newest: HashMap<u64, u64>,
}

impl<'a> Subvolumes<'a> {
    fn new(facts: &'a [SubvolumeFacts]) -> Self {
        let by_id: HashMap<_, _> = facts.iter().map(|subvolume| (subvolume.id, subvolume)).collect();
        let (mut at, mut newest) = (HashMap::with_capacity(facts.len()), HashMap::with_capacity(facts.len()));
        for subvolume in facts {
            at.entry(&*subvolume.path).and_modify(|id| *id = None).or_insert(Some(subvolume.id));
            // Itself, and all that it lies in.
            let outwards = |inner: &&'a SubvolumeFacts| {
                by_id.get(&inner.top_level).copied().filter(|outer| outer.id != inner.id)
            };
            for outer in std::iter::successors(Some(subvolume), outwards) {
                let newest = newest.entry(outer.id).or_default();
                *newest = subvolume.generation.max(*newest);
            }
        }
        Self { by_id, at, newest }
    }

    fn only_one_at(&self, path: &str) -> Option<u64> {
        self.at.get(path).copied().flatten()
    }

    fn path(&self, id: u64) -> Option<&str> {
        self.by_id.get(&id).map(|subvolume| &*subvolume.path)
    }

    fn newest_generation(&self, ids: &[u64]) -> i64 {
        let newest = ids.iter().filter_map(|id| self.newest.get(id)).max();
        newest.and_then(|generation| i64::try_from(*generation).ok()).unwrap_or(0)
    }
}

impl HostRoot {
    /// The generation that a backup of the live trees, which begins now, is of. `None` where it cannot be told: what
    /// changes in the next moment could have the same.
    pub(crate) fn generation_before_reading(&self, project: Uuid) -> Option<i64> {
        let began = milliseconds(now());
        let trees = [self.project_dir(project), self.persist_dir(project)];
        let on_subvolumes = self.filesystem() == Filesystem::Btrfs
            && trees.iter().all(|tree| is_subvolume(tree).unwrap_or(false));
        if !on_subvolumes {
            return newest_change(&trees).ok().filter(|newest| *newest < began - COARSEST_STEP_MS);
        }
        let facts = self.btrfs.list_subvolumes(self.path()).ok()?;
        let ids: Result<Vec<u64>, _> = trees.iter().map(|tree| self.btrfs.subvolume_id(tree)).collect();
        Some(Subvolumes::new(&facts).newest_generation(&ids.ok()?))
    }

    /// The generation that the snapshots of the operation `op_id` are of. Making a snapshot gives its source the
    /// transaction of the snapshot, and whatever changes the source later a higher one: so this is exact.
    pub(crate) fn generation_of_snapshots(&self, op_id: Uuid) -> Option<i64> {
        let facts = self.btrfs.list_subvolumes(self.path()).ok()?;
        let snapshot = |name: &str| {
            let path = format!("/{op_id}/{name}");
            facts.iter().find(|subvolume| subvolume.path.ends_with(&path))
        };
        let (project, persist) = (snapshot("project")?, snapshot("persist")?);
        let live_persist = facts.iter().find(|subvolume| subvolume.uuid == persist.parent_uuid)?;
        // The persist store was first. What was written to it until the project's snapshot is in no backup.
        let of_both = if live_persist.generation == persist.made_in { project } else { persist };
        i64::try_from(of_both.made_in).ok()
    }
}

/// The newest change time below some directories, in milliseconds; those that are not there are passed over.
fn newest_change(trees: &[PathBuf]) -> Result<i64, VolumeError> {
    let mut newest = 0;
    for tree in trees {
        if !directory_exists(tree)? {
            continue;
        }
        for entry in walkdir::WalkDir::new(tree).into_iter().filter_map(Result::ok) {
            // What is gone has changed its directory.
            let Ok(metadata) = entry.metadata() else { continue };
            newest = newest.max(metadata.ctime() * 1000 + metadata.ctime_nsec() / 1_000_000);
        }
    }
    Ok(newest)
}

fn milliseconds(moment: SystemTime) -> i64 {
    moment
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[allow(clippy::disallowed_methods, reason = "compared with the change times of this host's files")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::SourceKind;
    use crate::test_support::{BtrfsMount, fill, on_each_filesystem};

    fn settle(root: &HostRoot) {
        // btrfs tells with its next commit; elsewhere two changes need two steps of the clock.
        rustix::fs::syncfs(std::fs::File::open(root.path()).unwrap()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2 * COARSEST_STEP_MS as u64));
    }

    #[test]
    fn a_generation_changes_with_every_change_and_with_nothing_else() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let mut generations = Generations::new(root.clone());
            assert!(generations.read().unwrap().is_empty());
            let project = Uuid::new_v4();
            let volume = root.ensure_volume(project).unwrap();
            let other = Uuid::new_v4();
            root.ensure_volume(other).unwrap();
            settle(&root);
            let mut read = || {
                let generations = generations.read().unwrap();
                (generations[&project], generations[&other])
            };
            let (mut last, of_other) = read();
            let persist = volume.persist_dir.join("store");
            let file = volume.project_dir.join("file");
            let changes: [&dyn Fn(); 4] = [
                &|| std::fs::write(&file, "one").unwrap(),
                &|| std::fs::write(&file, "two").unwrap(),
                &|| std::fs::write(&persist, "one").unwrap(),
                &|| std::fs::remove_file(&file).unwrap(),
            ];
            for change in changes {
                change();
                settle(&root);
                let (now, _) = read();
                assert_ne!(now, last);
                last = now;
            }
            settle(&root);
            assert_eq!(read(), (last, of_other));
        });
    }

    #[test]
    fn what_a_backup_reads_has_the_generation_of_the_files_until_they_change() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let project = Uuid::new_v4();
            let volume = root.ensure_volume(project).unwrap();
            fill(&volume.project_dir, "before");
            fill(&volume.persist_dir, "before");
            settle(&root);
            let op_id = Uuid::now_v7();
            let source = root.snapshot(project, op_id).unwrap();
            settle(&root);
            let mut generations = Generations::new(root.clone());
            assert_eq!(Some(generations.read().unwrap()[&project]), source.generation);
            std::fs::write(volume.persist_dir.join("later"), "later").unwrap();
            settle(&root);
            assert_ne!(Some(generations.read().unwrap()[&project]), source.generation);
            drop(source);
            root.drop_snapshot(op_id).unwrap();
        });
    }

    #[test]
    fn a_subvolume_that_took_the_place_of_another_is_the_one_that_counts() {
        let Some(mount) = BtrfsMount::new() else { return };
        // The root is no subvolume, and lies in one.
        let above = HostRoot::open(mount.path()).unwrap();
        above.btrfs.create_subvolume(&mount.path().join("above")).unwrap();
        let root = HostRoot::open(mount.path().join("above/root")).unwrap();
        let projects: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
        for project in &projects {
            fill(&root.ensure_volume(*project).unwrap().project_dir, "old");
        }
        settle(&root);
        let mut generations = Generations::new(root.clone());
        let before = generations.read().unwrap();
        assert_eq!(generations.above_root.as_deref(), Some("root/"));
        let staged = root.stage(projects[1], Uuid::now_v7()).unwrap();
        fill(&staged.project_dir, "new");
        root.exchange(&staged).unwrap();
        root.discard(staged).unwrap();
        settle(&root);
        let after = generations.read().unwrap();
        assert_ne!(before[&projects[1]], after[&projects[1]]);
        for project in [projects[0], projects[2]] {
            assert_eq!(before[&project], after[&project]);
        }
    }

    #[test]
    fn what_a_nested_subvolume_holds_counts() {
        let Some(mount) = BtrfsMount::new() else { return };
        let root = HostRoot::open(mount.path()).unwrap();
        let project = Uuid::new_v4();
        let nested = root.ensure_volume(project).unwrap().project_dir.join("nested");
        root.btrfs.create_subvolume(&nested).unwrap();
        settle(&root);
        let mut generations = Generations::new(root.clone());
        let before = generations.read().unwrap()[&project];
        let source = root.snapshot(project, Uuid::now_v7()).unwrap();
        assert_eq!(source.kind, SourceKind::Live);
        std::fs::write(nested.join("file"), "data").unwrap();
        settle(&root);
        let after = generations.read().unwrap()[&project];
        assert_ne!(before, after);
        assert_ne!(source.generation, Some(after));
    }
}
