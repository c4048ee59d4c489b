//! Programs that are not on every machine: where one is missing, its tests are skipped aloud, or fail where
//! `LONGHAUL_REQUIRE_TOOLS=1`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// Says that a test is skipped.
///
/// # Panics
/// Where `LONGHAUL_REQUIRE_TOOLS=1`: there nothing may be skipped.
pub fn skip(why: &str) {
    let required = std::env::var("LONGHAUL_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!required, "LONGHAUL_REQUIRE_TOOLS=1, but {why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not `eprintln!`, which is captured where a test passes: a skip is to be heard.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// The pinned `nats` command line, or `None`, said aloud.
pub fn nats_command_line() -> Option<PathBuf> {
    let program = server_processes::nats_command_line();
    if program.is_none() {
        skip("there is no nats command line (LONGHAUL_NATS_CLI, or `nats` on PATH)");
    }
    program
}

/// `restic`, or `None`, said aloud.
pub fn restic() -> Option<PathBuf> {
    let program = server_processes::restic_program();
    if program.is_none() {
        skip("there is no restic (LONGHAUL_RESTIC, or on PATH)");
    }
    program
}

/// Whether the command line of age is installed; a no is said aloud.
pub fn age_is_available() -> bool {
    let is_available = Command::new("age").arg("--version").output().is_ok();
    if !is_available {
        skip("there is no age (Debian's package age)");
    }
    is_available
}

/// Whether this process may mount a file system of its own; a no is said aloud.
pub fn may_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("only root may mount a file system");
    }
    is_root
}

/// Whether this process may mount a btrfs of its own; a no is said aloud.
pub fn btrfs_is_available() -> bool {
    if !may_mount() {
        return false;
    }
    if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
        skip("there is no mkfs.btrfs (btrfs-progs)");
        return false;
    }
    let known =
        || std::fs::read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("\tbtrfs\n"));
    if !known() {
        // It may be a module that nobody needed so far.
        let _ = Command::new("modprobe").arg("btrfs").output();
    }
    if !known() {
        skip("this kernel has no btrfs");
        return false;
    }
    true
}
