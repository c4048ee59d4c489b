//! Whether some process has the database open. To exchange the file under it would lose what it writes afterwards.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::failure::{Failure, FailureKind, Result};

/// The lock that keeps DuckDB and SQLite out for the moment of the exchange. Ends when dropped. This process must not
/// open and close the file meanwhile: that would end it, too.
#[derive(Debug)]
pub(crate) struct ExclusiveLock {
    _file: File,
}

/// Refuses where a process has any of these files open, and then locks the first, if it is there.
pub(crate) fn require_closed(files: &[PathBuf]) -> Result<Option<ExclusiveLock>> {
    if let Some(holder) = holder_of(files) {
        return Err(open_by(&files[0], &holder));
    }
    let path = &files[0];
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io(format_args!("opening {}", path.display()), error)),
    };
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(ExclusiveLock { _file: file })),
        // Processes of other users show their locks, if not their files.
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Err(open_by(path, "another process")),
        // Some network file systems have no locks; then what /proc says must do.
        Err(Errno::NOLCK | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(Failure::io(format_args!("locking {}", path.display()), error.into())),
    }
}

fn open_by(path: &Path, holder: &str) -> Failure {
    let message = format!("{} is held open by {holder}: stop the application first", path.display());
    Failure::new(FailureKind::DatabaseOpen, message)
}

/// A process that has one of the files open, as far as this one may look; itself, too: nothing here has them open now.
fn holder_of(files: &[PathBuf]) -> Option<String> {
    let wanted: HashSet<(u64, u64)> = files
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(metadata) = fs::metadata(descriptor.path()) else { continue };
            if wanted.contains(&(metadata.dev(), metadata.ino())) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("process {id} ({})", name.trim()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_file_that_another_process_has_open_is_not_closed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.duckdb");
        assert!(require_closed(std::slice::from_ref(&file)).unwrap().is_none(), "no file, nobody");
        fs::write(&file, "x").unwrap();
        let lock = require_closed(std::slice::from_ref(&file)).unwrap();
        assert!(lock.is_some());
        drop(lock);
        let mut holder = Command::new("sleep")
            .arg("60")
            .stdin(File::open(&file).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let refused = require_closed(&[directory.path().join("x.duckdb")]).unwrap_err();
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(refused.kind(), FailureKind::DatabaseOpen);
        assert!(refused.to_string().contains(&format!("process {} (sleep)", holder.id())), "{refused}");
        assert!(require_closed(&[file]).unwrap().is_some());
    }
}
