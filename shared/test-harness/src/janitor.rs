//! Cleaning up after a test, however it ended.
//!
//! A process that is killed runs no destructor, and a system that several tests share is never dropped at all. So a
//! process of its own waits for the end of this one (its standard input ends with it), then for the end of the
//! launcher, whom the kernel has told to stop, and then unmounts and removes what is left.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `$1` the directory, the others where something may be mounted. The launcher's id is in a file: it may be started again.
const SCRIPT: &str = r#"
trap '' INT TERM
cat >/dev/null
directory=$1
shift
for _ in $(seq 600); do
  pid=$(cat "$directory/launcher.pid" 2>/dev/null) || break
  [ -d "/proc/$pid" ] || break
  sleep 0.1
done
for mount; do
  if mountpoint -q "$mount"; then umount "$mount" 2>/dev/null || umount -l "$mount"; fi
done
rm -rf --one-file-system "$directory"
"#;

/// Removes a directory when this process has ended, or when it is told to.
pub(crate) struct Janitor(Child);

impl Janitor {
    /// For `directory`, and what is mounted at `mounts`.
    pub(crate) fn hire(directory: &Path, mounts: &[&Path]) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "janitor"]).arg(directory).args(mounts);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }

    /// Cleans up now, and waits until it is done.
    pub(crate) fn clean_up(mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }

    /// Leaves everything as it is, for people who look for a cause.
    pub(crate) fn dismiss(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
