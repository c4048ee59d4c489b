//! What most ways of copying lose: links, attributes, modes, owners, times, names that are no UTF-8, holes.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::say;
use super::tree::{Filled, write};

const HOLE_BYTES: u64 = 16 << 20;

/// Makes one of each kind in `directory`.
pub(super) fn create(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let at = |name: &str| directory.join(name);
    fs::create_dir_all(directory)?;
    names(directory, filled)?;
    links(directory, filled)?;
    attributes(directory, filled)?;
    modes(directory, filled)?;
    if rustix::process::geteuid().is_root() {
        owners(directory, filled)?;
    }
    fs::create_dir(at("empty directory"))?;
    write(&at("empty file"), b"", filled)?;
    let sparse = File::create(at("sparse"))?;
    sparse.set_len(HOLE_BYTES)?;
    sparse.write_all_at(b"in the middle", HOLE_BYTES / 2)?;
    filled.files += 1;
    filled.bytes += HOLE_BYTES;
    times(directory, filled)
}

fn names(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let long = "n".repeat(255);
    for name in ["Grüße 漢字 🦀.txt", " space first", "new\nline", "back\\slash", "-rf", "quote'\"", &long]
    {
        write(&directory.join(name), name.as_bytes(), filled)?;
    }
    write(&directory.join(OsStr::from_bytes(b"no utf-8 \xe9\xff")), b"latin", filled)
}

fn links(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let links = directory.join("links");
    fs::create_dir_all(links.join("deeper"))?;
    write(&links.join("file"), b"one file, three names", filled)?;
    fs::hard_link(links.join("file"), links.join("hard link"))?;
    fs::hard_link(links.join("file"), links.join("deeper/hard link"))?;
    filled.files += 2;
    for (name, target) in [
        ("relative", "file"),
        ("to a directory", "deeper"),
        ("upwards", "../empty directory"),
        ("absolute", "/usr/bin/env"),
        ("dangling", "nowhere/at all"),
        ("to itself", "to itself"),
    ] {
        symlink(target, links.join(name))?;
        filled.files += 1;
    }
    Ok(())
}

fn attributes(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let file = directory.join("attributes");
    write(&file, b"x", filled)?;
    match xattr::set(&file, "user.longhaul.note", b"text") {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTSUP.raw_os_error()) => {
            say("the file system has no extended attributes: none are in the tree");
            return Ok(());
        }
        set => set.with_context(|| format!("setting an attribute of {}", file.display()))?,
    }
    xattr::set(&file, "user.longhaul.binary", &[0, 255, 10, 0])?;
    xattr::set(&file, "user.longhaul.empty", b"")?;
    xattr::set(directory, "user.longhaul.directory", b"text")?;
    Ok(())
}

fn modes(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let modes = directory.join("modes");
    fs::create_dir(&modes)?;
    // Nobody but root can read, and back up, a file without any permission.
    let none = if rustix::process::geteuid().is_root() { 0o000 } else { 0o400 };
    for mode in [none, 0o444, 0o600, 0o755, 0o777, 0o4755, 0o2711] {
        let file = modes.join(format!("file {mode:o}"));
        write(&file, b"mode", filled)?;
        fs::set_permissions(&file, Permissions::from_mode(mode))?;
    }
    for mode in [0o500, 0o700, 0o1777, 0o2775] {
        let inner = modes.join(format!("directory {mode:o}"));
        fs::create_dir(&inner)?;
        write(&inner.join("file"), b"mode", filled)?;
        fs::set_permissions(&inner, Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn owners(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let owners = directory.join("owners");
    fs::create_dir(&owners)?;
    write(&owners.join("file"), b"somebody else's", filled)?;
    symlink("file", owners.join("link"))?;
    filled.files += 1;
    for (name, user, group) in [("file", 1234, 2345), ("link", 3456, 4567), ("", 65_534, 100)] {
        std::os::unix::fs::lchown(owners.join(name), Some(user), Some(group))?;
    }
    Ok(())
}

/// Times before and long after now, in nanoseconds; of a directory last, because its entries change it.
fn times(directory: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    let times = directory.join("times");
    fs::create_dir(&times)?;
    write(&times.join("old"), b"1985", filled)?;
    write(&times.join("future"), b"2100", filled)?;
    symlink("old", times.join("link"))?;
    filled.files += 1;
    for (name, seconds, nanoseconds) in [
        ("old", 480_000_000, 123_456_789),
        ("future", 4_102_444_800, 1),
        ("link", 1_000_000_000, 999_999_999),
        ("", 1_234_567_890, 5),
    ] {
        let moment = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let both = Timestamps { last_access: moment, last_modification: moment };
        utimensat(CWD, times.join(name), &both, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn one_of_each_kind_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let special = directory.path().join("special");
        let mut filled = Filled::default();
        create(&special, &mut filled).unwrap();
        let look = |name: &str| special.join(name).symlink_metadata().unwrap();
        assert_eq!(look("links/file").ino(), look("links/deeper/hard link").ino());
        assert_eq!((look("times/old").mtime(), look("times/old").mtime_nsec()), (480_000_000, 123_456_789));
        assert_eq!(look("modes/file 4755").mode() & 0o7777, 0o4755);
        assert!(look("sparse").blocks() * 512 < HOLE_BYTES);
        assert!(!special.join("links/dangling").exists());
        let entries = walkdir::WalkDir::new(&special).into_iter();
        let files = entries.filter(|entry| !entry.as_ref().unwrap().file_type().is_dir());
        assert_eq!(files.count() as u64, filled.files);
    }
}
