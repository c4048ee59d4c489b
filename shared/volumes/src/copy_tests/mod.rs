//! Copies into a project, tried from outside: what they mean, what a hostile owner can do, and crashes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod crashes;
mod directories;
mod hostile;
mod meaning;
mod races;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::{CopyEntry, CopyOptions, CopyReceipt, CopyRequest, HostRoot, Overwrite, VolumeError};

/// Two projects of a host root: one to copy from, one to copy to.
struct Projects {
    root: HostRoot,
    source: Uuid,
    target: Uuid,
}

impl Projects {
    fn new(root: HostRoot) -> Self {
        let (source, target) = (Uuid::new_v4(), Uuid::new_v4());
        for project in [source, target] {
            root.ensure_volume(project).unwrap();
        }
        Self { root, source, target }
    }

    fn source(&self) -> PathBuf {
        self.root.project_dir(self.source)
    }

    fn target(&self) -> PathBuf {
        self.root.project_dir(self.target)
    }

    /// A request for `(from, to)` pairs, of directories too, that replaces files.
    fn request(&self, entries: &[(&str, &str)]) -> CopyRequest {
        request(&self.source(), entries)
    }

    /// Copies, with nothing left but what was copied.
    fn copy(&self, request: &CopyRequest) -> Result<CopyReceipt, VolumeError> {
        let op_id = Uuid::now_v7();
        let outcome = self.copy_as(op_id, request);
        if outcome.is_err() {
            self.assert_nothing_staged();
        }
        self.root.forget_copy(self.target, op_id).unwrap();
        self.assert_nothing_staged();
        outcome
    }

    fn copy_as(&self, op_id: Uuid, request: &CopyRequest) -> Result<CopyReceipt, VolumeError> {
        self.root.copy_into(self.target, op_id, request, &mut |_| ControlFlow::Continue(()))
    }

    fn assert_nothing_staged(&self) {
        assert!(crate::test_support::is_empty(&self.root.staging()));
        let staged = names(&self.target()).into_iter().find(|name| name.starts_with(".longhaul"));
        assert_eq!(staged, None);
    }
}

fn request(source: &Path, entries: &[(&str, &str)]) -> CopyRequest {
    let entries = entries
        .iter()
        .map(|(from, to)| CopyEntry { from: from.parse().unwrap(), to: to.parse().unwrap() })
        .collect();
    let options = CopyOptions {
        overwrite: Overwrite::Replace,
        recursive: true,
        dereference: false,
        preserve_timestamps: false,
    };
    CopyRequest { source: source.to_owned(), source_is_live: true, entries, options }
}

/// Writes a file, with its parents.
fn write(path: impl AsRef<Path>, text: &str) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
