//! Secrets made at the first start of a data directory and kept in it, readable by its owner alone.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::RngCore as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// 192 random bits in hexadecimal, after a letter: safe in a URL, in SQL and in the servers' configuration languages,
/// where digits alone would be read as a number.
pub(crate) fn random_password() -> String {
    let mut bytes = [0; 24];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().fold(String::from("p"), |text, byte| format!("{text}{byte:02x}"))
}

/// What `<data directory>/secrets/<name>.json` holds; made by `create` and stored where it does not exist yet.
pub(crate) fn load_or_create<T: Serialize + DeserializeOwned>(
    data_directory: &Path,
    name: &str,
    create: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let file = file(data_directory, name);
    match fs::read(&file) {
        Ok(json) => serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secrets = create()?;
            store(data_directory, name, &secrets)?;
            Ok(secrets)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Replaces what `<data directory>/secrets/<name>.json` holds.
pub(crate) fn store(data_directory: &Path, name: &str, secrets: &impl Serialize) -> anyhow::Result<()> {
    let file = file(data_directory, name);
    let folder = file.parent().unwrap_or(data_directory);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("creating {}", folder.display()))?;
    write_private(&file, &serde_json::to_vec_pretty(secrets)?)
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(file: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let partial = file.with_extension("partial");
    let write = || -> std::io::Result<()> {
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

fn file(data_directory: &Path, name: &str) -> PathBuf {
    data_directory.join("secrets").join(format!("{name}.json"))
}
