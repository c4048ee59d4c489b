//! File systems of a test's own: a btrfs in a file, and a small one in memory.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// Sparse: it takes what is written to it.
const SIZE_BYTES: u64 = 4 << 30;

/// Makes a btrfs in the file `image` and mounts it at `place`.
pub(crate) fn mount_btrfs(image: &Path, place: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(place).with_context(|| format!("creating {}", place.display()))?;
    File::create(image)
        .and_then(|file| file.set_len(SIZE_BYTES))
        .with_context(|| format!("creating {}", image.display()))?;
    run(Command::new("mkfs.btrfs").arg("--quiet").arg(image))?;
    run(Command::new("mount").args(["-t", "btrfs", "-o", "loop,noatime"]).arg(image).arg(place))
}

/// Mounts a file system of so many bytes at `place`, or gives the one that is mounted there another size.
pub(crate) fn mount_in_memory(place: &Path, bytes: u64, is_mounted: bool) -> anyhow::Result<()> {
    fs::create_dir_all(place).with_context(|| format!("creating {}", place.display()))?;
    let options = format!("{}size={bytes}", if is_mounted { "remount," } else { "" });
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
