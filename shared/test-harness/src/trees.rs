//! Files as people have them, with everything that is easily lost on the way.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

/// Makes a tree at `root` (some 200 files, 2 MB): text, binary and empty files, deep and empty directories, modes,
/// owners (as root), times, symbolic and hard links, extended attributes, and names that are not UTF-8. Another seed makes other contents.
///
/// # Panics
/// Where a file cannot be written.
pub fn make_tree(root: &Path, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for directory in ["src/deep/er/still", "empty", "data", "links"] {
        fs::create_dir_all(root.join(directory)).expect("make a directory");
    }
    write(&root.join("README.md"), format!("# A project with the seed {seed}\n").as_bytes());
    write(&root.join("nothing"), b"");
    for number in 0..180 {
        let text =
            format!("fn function_{number}() -> u64 {{ {} }}\n", random.next_u64()).repeat(1 + number % 7);
        write(&root.join(format!("src/file-{number:03}.rs")), text.as_bytes());
    }
    write(&root.join("src/deep/er/still/here.txt"), b"deep");
    let mut bytes = vec![0; 1_500_000];
    random.fill_bytes(&mut bytes);
    write(&root.join("data/noise.bin"), &bytes);
    write(&root.join("data/zeros.bin"), &vec![0; 700_000]);
    write(&root.join("a name with spaces, \"quotes\"\nand a second line"), b"odd");
    write(&root.join("Grüße – 日本語.txt"), "Grüße".as_bytes());
    write(&root.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"bytes");

    let script = root.join("src/run.sh");
    write(&script, b"#!/bin/sh\n");
    set_mode(&script, 0o750);
    set_mode(&root.join("nothing"), 0o400);
    set_mode(&root.join("data"), 0o2770);
    symlink("../src/run.sh", root.join("links/to-a-file")).expect("make a link");
    symlink("nowhere/at all", root.join("links/to-nothing")).expect("make a link");
    fs::hard_link(root.join("README.md"), root.join("links/the-same-file")).expect("make a hard link");
    xattr::set(root.join("README.md"), "user.comment", b"kept \x00 too").expect("set an attribute");
    xattr::set(root.join("data"), "user.on-a-directory", b"1").expect("set an attribute");
    if rustix::process::geteuid().is_root() {
        // chown clears set-id bits, so the mode comes after it.
        chown(&script, Some(1234), Some(2345)).expect("change an owner");
        set_mode(&script, 0o4750);
        chown(root.join("src"), Some(1234), Some(2345)).expect("change an owner");
    }
    set_time(&root.join("README.md"), 1_234_567_890, 123_456_789);
    set_time(&root.join("src"), 1_600_000_000, 1);
    set_time(&root.join("empty"), 42, 999_999_999);
}

/// Changes a few files of such a tree: one shorter, one new, and (the first time) one gone.
///
/// # Panics
/// Where a file cannot be written.
pub fn change_a_little(root: &Path, seed: u64) {
    write(&root.join("src/file-001.rs"), format!("// changed: {seed}\n").as_bytes());
    write(&root.join(format!("new-{seed}.txt")), format!("new: {seed}\n").as_bytes());
    if let Err(error) = fs::remove_file(root.join("src/file-002.rs")) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "remove a file");
    }
}

/// Adds a file of so many bytes that nothing can compress or deduplicate.
///
/// # Panics
/// Where it cannot be written.
pub fn add_bytes(root: &Path, name: &str, bytes: usize, seed: u64) {
    let mut contents = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut contents);
    fs::create_dir_all(root).expect("make a directory");
    write(&root.join(name), &contents);
}

fn write(file: &Path, contents: &[u8]) {
    fs::write(file, contents).expect("write a file");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set a mode");
}

fn set_time(path: &Path, seconds: u64, nanoseconds: u32) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    File::open(path).and_then(|file| file.set_modified(time)).expect("set a time");
}
