//! Host roots on a plain directory and on btrfs, and crashes, for the tests of this crate.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::steps::Steps;
use crate::{Filesystem, HostRoot, VolumeError, VolumeOptions};

/// In memory where possible: an exchange syncs the filesystem, which on a busy disk takes seconds.
pub(crate) fn temporary_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A btrfs filesystem in a file, mounted until this is dropped.
pub(crate) struct BtrfsMount {
    directory: tempfile::TempDir,
    mounted: bool,
}

impl BtrfsMount {
    /// `None`, said aloud, where this process may not mount; a failure if `LONGHAUL_REQUIRE_TOOLS` is `1`.
    pub(crate) fn new() -> Option<Self> {
        let mut mount = Self { directory: temporary_directory(), mounted: false };
        let image = mount.directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(mount.path()).unwrap();
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        };
        let made = run("mkfs.btrfs", &["-q".as_ref(), image.as_ref()]).and_then(|()| {
            run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), mount.path().as_ref()])
        });
        match made {
            Ok(()) => {
                mount.mounted = true;
                Some(mount)
            }
            Err(reason) => {
                let required = std::env::var("LONGHAUL_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
                assert!(!required, "LONGHAUL_REQUIRE_TOOLS=1, but no btrfs can be mounted: {reason}");
                // Past the capture of the test harness, which would keep it quiet.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED ON BTRFS: it cannot be mounted here: {}",
                    reason.trim()
                );
                None
            }
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }
}

impl Drop for BtrfsMount {
    fn drop(&mut self) {
        // A child process that another test is just starting may hold a handle into it for a moment.
        let deadline = Instant::now() + Duration::from_secs(5);
        if !self.mounted {
            return;
        }
        loop {
            let unmounted = Command::new("umount").arg(self.path()).output();
            if unmounted.is_ok_and(|output| output.status.success()) || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Runs `test` with a fresh host root for each kind of filesystem and of rename.
pub(crate) fn on_each_filesystem(test: impl Fn(&dyn Fn() -> HostRoot)) {
    let plain = temporary_directory();
    let btrfs = BtrfsMount::new();
    let mut places = vec![(plain.path().to_owned(), Filesystem::Plain)];
    places.extend(btrfs.as_ref().map(|mount| (mount.path(), Filesystem::Btrfs)));
    for (place, filesystem) in places {
        for use_rename_exchange in [true, false] {
            test(&|| {
                let path = place.join(Uuid::new_v4().to_string());
                let options = VolumeOptions { use_rename_exchange, ..VolumeOptions::default() };
                let root = HostRoot::open_with(path, options).unwrap();
                assert_eq!(root.filesystem(), filesystem);
                root
            });
        }
    }
}

/// Lets a host root go on for a number of steps and then stops it, as a crash would.
pub(crate) struct Crash {
    steps_left: AtomicUsize,
}

impl Crash {
    /// The same host root, which will stop after `steps` more steps.
    pub(crate) fn after(root: &HostRoot, steps: usize) -> HostRoot {
        let crash = Arc::new(Self { steps_left: AtomicUsize::new(steps) });
        let mut root = root.clone();
        root.steps = Steps::new(Arc::new(move |step| {
            let left =
                crash.steps_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            match left {
                Ok(1) | Err(_) => {
                    Err(VolumeError::io(step, Path::new("(crash)"))(std::io::Error::other("injected crash")))
                }
                Ok(_) => Ok(()),
            }
        }));
        root
    }

    /// Whether `outcome` is that of an injected crash; any other error fails the test.
    pub(crate) fn happened<T>(outcome: &Result<T, VolumeError>) -> bool {
        match outcome {
            Ok(_) => false,
            Err(VolumeError::Io { path, .. }) if path == Path::new("(crash)") => true,
            Err(error) => panic!("not the injected crash, but {error:?}"),
        }
    }
}

/// A tree with a little of everything, all of it marked with `mark`.
pub(crate) fn fill(tree: &Path, mark: &str) {
    std::fs::create_dir_all(tree.join("sub/empty")).unwrap();
    std::fs::write(tree.join("mark"), mark).unwrap();
    std::fs::write(tree.join("sub").join(mark), mark.repeat(1000)).unwrap();
    std::os::unix::fs::symlink("../mark", tree.join("sub/link")).unwrap();
}

/// The mark of a tree, which must be whole.
pub(crate) fn mark_of(tree: &Path) -> String {
    let mark = std::fs::read_to_string(tree.join("mark")).unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("sub").join(&mark)).unwrap(), mark.repeat(1000));
    assert_eq!(std::fs::read_dir(tree).unwrap().count(), 2, "{}", tree.display());
    assert_eq!(std::fs::read_dir(tree.join("sub")).unwrap().count(), 3, "{}", tree.display());
    mark
}

pub(crate) fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}
