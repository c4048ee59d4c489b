//! Where the demo runs: a directory of its own, each host on a btrfs image of its own where that is possible.
//!
//! What is mounted outlives the process that mounted it. So it is unmounted by [`Workplace::remove`], and, should that
//! not be reached, when the value is dropped.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::say;
use crate::up::host_root;

/// Sparse: it takes what is written to it.
const IMAGE_BYTES: u64 = 4 << 30;

/// The directory of the demo.
pub(super) struct Workplace {
    directory: PathBuf,
    keep: bool,
    mounts: Vec<PathBuf>,
}

impl Workplace {
    /// Makes the directory and mounts the hosts' file systems.
    pub(super) fn prepare(directory: Option<&Path>, keep: bool, hosts: usize) -> anyhow::Result<Self> {
        let directory = match directory {
            Some(directory) => std::path::absolute(directory)?,
            None => {
                let name = format!("longhaul-demo-{:08x}", rand::random::<u32>());
                std::path::absolute(std::env::temp_dir())?.join(name)
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        if fs::read_dir(&directory)
            .with_context(|| format!("reading {}", directory.display()))?
            .next()
            .is_some()
        {
            // What is in it may be somebody's only copy, and the demo removes its directory.
            bail!("{} is not empty: give a new directory", directory.display());
        }
        say(&format!("working in {}", directory.display()));
        let mut workplace = Self { directory, keep, mounts: Vec::new() };
        if keep {
            say("the hosts' files are in plain directories, which can be kept; backups read them live");
        } else if let Err(error) = workplace.mount_images(hosts) {
            workplace.unmount()?;
            say(&format!(
                "no btrfs here ({error:#}): the hosts' files are in plain directories, and backups read them live"
            ));
        } else {
            say("each host has a btrfs file system of its own (loop-mounted images): backups read snapshots");
        }
        Ok(workplace)
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unmounts and removes everything, unless it is to be kept.
    pub(super) fn remove(mut self) -> anyhow::Result<()> {
        self.unmount()?;
        if self.keep {
            say(&format!("kept: longhaul up --data-dir {}", self.directory.display()));
            return Ok(());
        }
        remove_tree(&self.directory).with_context(|| format!("removing {}", self.directory.display()))?;
        say("everything has been removed");
        Ok(())
    }

    fn mount_images(&mut self, hosts: usize) -> anyhow::Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root");
        }
        let images = self.directory.join("images");
        fs::create_dir_all(&images)?;
        for index in 0..hosts {
            let image = images.join(format!("host-{index}.btrfs"));
            File::create_new(&image)?.set_len(IMAGE_BYTES)?;
            run(Command::new("mkfs.btrfs").arg("--quiet").arg(&image))?;
            let root = host_root(&self.directory, index);
            fs::create_dir_all(&root)?;
            run(Command::new("mount").args(["-t", "btrfs", "-o", "loop"]).arg(&image).arg(&root))?;
            self.mounts.push(root);
        }
        Ok(())
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        while let Some(mount) = self.mounts.last() {
            // The last process that had something open there may be ending still: lazily then, and it goes with it.
            run(Command::new("umount").arg(mount))
                .or_else(|_| run(Command::new("umount").arg("--lazy").arg(mount)))?;
            self.mounts.pop();
        }
        match fs::remove_dir_all(self.directory.join("images")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("removing the images of the hosts")
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if !self.mounts.is_empty()
            && let Err(error) = self.unmount()
        {
            say(&format!("left mounted: {error:#}"));
        }
    }
}

/// Removes a tree of our own with all that is in it. Whoever is not root needs the permission to change a directory in
/// order to empty it, and some of those that the demo makes do not give it.
fn remove_tree(tree: &Path) -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        for entry in
            walkdir::WalkDir::new(tree).into_iter().flatten().filter(|entry| entry.file_type().is_dir())
        {
            // Where this fails, the removal says why.
            let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700));
        }
    }
    fs::remove_dir_all(tree)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    #[test]
    fn a_directory_with_something_in_it_is_never_taken() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("thesis.tex"), "the only copy").unwrap();
        assert!(Workplace::prepare(Some(directory.path()), false, 0).is_err());
        assert!(directory.path().join("thesis.tex").exists());
    }

    #[test]
    fn nothing_is_left_of_a_directory_that_is_not_kept() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("demo");
        let workplace = Workplace::prepare(Some(&directory), false, 0).unwrap();
        fs::write(workplace.directory().join("file"), "x").unwrap();
        workplace.remove().unwrap();
        assert!(!directory.exists());
    }
}
