//! Where the servers' programs are.
//!
//! `./dev` finds or fetches them and names them in the environment; without it, what is on PATH is used. Nothing is
//! ever downloaded from here.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The nats-server program: `LONGHAUL_NATS_SERVER`, else `nats-server` on PATH.
pub fn nats_server_program() -> anyhow::Result<PathBuf> {
    find("LONGHAUL_NATS_SERVER", "nats-server")
}

/// The program of the S3 server (SeaweedFS): `LONGHAUL_WEED`, else `weed` on PATH.
pub fn object_store_program() -> anyhow::Result<PathBuf> {
    find("LONGHAUL_WEED", "weed")
}

/// The `nats` command line, where there is one: `LONGHAUL_NATS_CLI`, else `nats` on PATH.
pub fn nats_command_line() -> Option<PathBuf> {
    find("LONGHAUL_NATS_CLI", "nats").ok()
}

/// `restic`, where it is installed: `LONGHAUL_RESTIC`, else `restic` on PATH.
pub fn restic_program() -> Option<PathBuf> {
    find("LONGHAUL_RESTIC", "restic").ok()
}

/// The directory with `postgres` and `initdb`: `LONGHAUL_POSTGRES_BIN`, else that of the `postgres` on PATH, else the
/// newest under `/usr/lib/postgresql`.
pub fn postgres_bin_directory() -> anyhow::Result<PathBuf> {
    if let Some(directory) = std::env::var_os("LONGHAUL_POSTGRES_BIN").map(PathBuf::from) {
        if has_postgres(&directory) {
            return Ok(directory);
        }
        bail!("LONGHAUL_POSTGRES_BIN={} holds no postgres and initdb", directory.display());
    }
    // A link on PATH stands outside the installation that its program belongs to.
    let on_path = on_path("postgres").and_then(|program| program.canonicalize().ok());
    if let Some(directory) =
        on_path.as_deref().and_then(Path::parent).filter(|directory| has_postgres(directory))
    {
        return Ok(directory.to_owned());
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, directory)| has_postgres(directory))
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, directory)| directory);
    newest.context("no Postgres found: run through ./dev, which sets it up, or set LONGHAUL_POSTGRES_BIN to its bin directory")
}

fn has_postgres(directory: &Path) -> bool {
    directory.join("postgres").is_file() && directory.join("initdb").is_file()
}

fn find(variable: &str, name: &str) -> anyhow::Result<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(program) if program.is_file() => Ok(program),
        Some(program) => bail!("{variable}={} is not a file", program.display()),
        None => on_path(name).with_context(|| {
            format!("no {name} found: run through ./dev, which sets it up, or set {variable} to the program")
        }),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}
