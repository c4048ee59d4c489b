//! Files that hold secrets: readable by their owner alone, and whole or not there.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context;

/// Replaces `file` by one with these contents and mode 0600; its directory is made where it is missing.
pub(super) fn write(file: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let partial = file.with_extension("partial");
    let write = || -> std::io::Result<()> {
        if let Some(directory) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // A leftover of an interrupted write may have another mode.
        if let Err(error) = fs::remove_file(&partial)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut writer = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        writer.write_all(contents)?;
        writer.sync_all()?;
        fs::rename(&partial, file)
    };
    write().with_context(|| format!("writing {}", file.display()))
}
