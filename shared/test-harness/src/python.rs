//! A client in another language: Python with nats-py, pinned by version and checksum, in the cache folder.

use std::fs;
use std::path::PathBuf;

use tokio::process::Command;

use crate::{run, skip};

const VERSION: &str = "2.16.0";
const SHA256: &str = "aeb1ff123966c05833d26c7df7e1d54c1c6d32b612428b21677a2e921f1fecae";

/// A Python that can `import nats`, or `None`, said aloud. Fetched once.
///
/// # Panics
/// Where the cache folder cannot be written.
pub async fn python_with_nats() -> Option<PathBuf> {
    let Some(cache) = cache_directory() else {
        skip("there is no home directory for a cache");
        return None;
    };
    let directory = cache.join(format!("python-nats-py-{VERSION}"));
    let python = directory.join("bin/python");
    if python.is_file() {
        return Some(python);
    }
    fs::create_dir_all(&cache).expect("make the cache folder");
    // Made elsewhere and renamed: another test may be at it, and this one may be killed.
    let staging = cache.join(format!(".python-{}", std::process::id()));
    let made = make(&staging).await;
    if let Err(why) = made {
        let _ = fs::remove_dir_all(&staging);
        skip(&format!("nats-py cannot be set up: {why}"));
        return None;
    }
    if fs::rename(&staging, &directory).is_err() {
        // Somebody else was faster.
        let _ = fs::remove_dir_all(&staging);
    }
    Some(python)
}

async fn make(staging: &PathBuf) -> Result<(), String> {
    let mut make = Command::new("python3");
    // Without its own pip, which needs a package that Debian leaves out; that of the system installs into it.
    make.args(["-m", "venv", "--without-pip"]).arg(staging);
    let made = run(make).await;
    if !made.status.success() {
        return Err(made.errors);
    }
    let requirements = staging.join("requirements.txt");
    fs::write(&requirements, format!("nats-py=={VERSION} --hash=sha256:{SHA256}\n"))
        .map_err(|error| error.to_string())?;
    let packages = run({
        let mut ask = Command::new(staging.join("bin/python"));
        ask.args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]);
        ask
    })
    .await;
    let mut install = Command::new("python3");
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
    ]);
    install
        .args(["--only-binary=:all:", "--target", packages.output.trim(), "--requirement"])
        .arg(&requirements);
    let installed = run(install).await;
    if installed.status.success() { Ok(()) } else { Err(installed.errors) }
}

fn cache_directory() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    set("LONGHAUL_CACHE").or_else(|| Some(user()?.join("longhaul")))
}
