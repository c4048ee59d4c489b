//! Contexts for the `nats` command line: those of `nats-config/contexts`, filled in.
//!
//! `nats --context <file>` takes such a file by its path.

use std::path::{Path, PathBuf};

use server_processes::Identity;

use super::private_file;

const OPS: &str = include_str!("../../../../nats-config/contexts/ops.json");
const USER: &str = include_str!("../../../../nats-config/contexts/user.json");

/// Writes the contexts and returns their directory. That of a user lacks its token, which only `account token` shows.
pub(super) fn write(data_directory: &Path, url: &str, ops: &Identity) -> anyhow::Result<PathBuf> {
    let directory = data_directory.join("nats-contexts");
    let mut operator: serde_json::Value = serde_json::from_str(OPS)?;
    operator["url"] = url.into();
    operator["user"] = ops.user.clone().into();
    operator["password"] = ops.password.clone().into();
    operator["inbox_prefix"] = ops.inbox_prefix.clone().into();
    let mut user: serde_json::Value = serde_json::from_str(USER)?;
    user["url"] = url.into();
    private_file::write(&directory.join("ops.json"), &serde_json::to_vec_pretty(&operator)?)?;
    private_file::write(&directory.join("user.json"), &serde_json::to_vec_pretty(&user)?)?;
    Ok(directory)
}
