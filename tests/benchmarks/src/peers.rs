//! The command lines that others use for the same jobs, `rustic` and `restic`, each with its cache, on the same object
//! store.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use test_harness::ReadyObjectStore;

use crate::peak_memory::PeakMemory;

const PASSWORD: &str = "the password of a benchmark";
const REGION: &str = "us-east-1";

/// Which command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// Its repository has the format that ours has.
    Rustic,
    /// The one that defined the format.
    Restic,
}

impl Tool {
    /// As in the names of figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rustic => "rustic",
            Self::Restic => "restic",
        }
    }

    /// The program, or `None`, said aloud.
    fn program(self) -> Option<PathBuf> {
        let variable = format!("LONGHAUL_{}", self.name().to_uppercase());
        let found = match std::env::var_os(&variable) {
            Some(program) => Some(PathBuf::from(program)).filter(|program| program.is_file()),
            None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|directory| directory.join(self.name()))
                .find(|program| program.is_file()),
        };
        if found.is_none() {
            eprintln!("NOT MEASURED: {} ({variable}, or on PATH)", self.name());
        }
        found
    }
}

/// How a repository is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secret {
    /// A key is derived from the password each time.
    Password,
    /// The key itself: rustic only.
    KeyFile,
}

/// One tool, and where its repositories are to be.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    tool: Tool,
    program: PathBuf,
    place: Place,
    directory: PathBuf,
}

#[derive(Debug, Clone)]
enum Place {
    Local { root: PathBuf },
    S3 { endpoint: String, access_key_id: String, secret_access_key: String, bucket: String },
}

/// What one run of a command line took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) seconds: f64,
    pub(crate) peak_mb: f64,
}

impl Peer {
    /// Where the tool is on this machine. Its repositories are in the object store (in `bucket`, where it has such), its
    /// own files below `directory`.
    pub(crate) fn find(tool: Tool, store: &ReadyObjectStore, bucket: &str, directory: &Path) -> Option<Self> {
        let program = tool.program()?;
        let place = match store.clone() {
            ReadyObjectStore::Local { .. } => Place::Local { root: directory.join("repositories") },
            ReadyObjectStore::S3 { endpoint, access_key_id, secret_access_key } => {
                Place::S3 { endpoint, access_key_id, secret_access_key, bucket: bucket.to_owned() }
            }
        };
        Some(Self { tool, program, place, directory: directory.join(tool.name()) })
    }

    /// Makes an empty repository.
    pub(crate) fn initialise(&self, name: &str) -> anyhow::Result<PeerRepository> {
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let repository = PeerRepository { peer: self.clone(), name: name.to_owned(), directory };
        match self.tool {
            Tool::Restic => repository.run(Secret::Password, ["init"])?,
            Tool::Rustic => {
                fs::write(repository.directory.join("rustic.toml"), repository.rustic_profile())?;
                repository.run(Secret::Password, ["init"])?;
                let key = repository.key_file();
                repository.run(Secret::Password, ["key".as_ref(), "export".as_ref(), key.as_os_str()])?
            }
        };
        Ok(repository)
    }
}

/// A repository of a tool.
#[derive(Debug, Clone)]
pub(crate) struct PeerRepository {
    peer: Peer,
    name: String,
    directory: PathBuf,
}

impl PeerRepository {
    pub(crate) fn tool(&self) -> Tool {
        self.peer.tool
    }

    /// Backs up a directory.
    pub(crate) fn back_up(&self, source: &Path, secret: Secret) -> anyhow::Result<Taken> {
        self.run(secret, ["backup".as_ref(), source.as_os_str()])
    }

    /// Restores the latest backup, which is of `source`, into a new directory, and returns where the files are.
    pub(crate) fn restore(
        &self,
        source: &Path,
        into: &Path,
        secret: Secret,
    ) -> anyhow::Result<(Taken, PathBuf)> {
        match self.peer.tool {
            Tool::Rustic => {
                let snapshot = format!("latest:{}", source.display());
                let arguments = ["restore".as_ref(), OsStr::new(&snapshot), into.as_os_str()];
                Ok((self.run(secret, arguments)?, into.to_owned()))
            }
            Tool::Restic => {
                let arguments =
                    ["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), into.as_os_str()];
                let below = source.strip_prefix("/").context("a source has an absolute path")?;
                Ok((self.run(secret, arguments)?, into.join(below)))
            }
        }
    }

    fn key_file(&self) -> PathBuf {
        self.directory.join("key.json")
    }

    /// What rustic is told about the repository. A string of JSON is one of TOML.
    fn rustic_profile(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        match &self.peer.place {
            Place::Local { root } => {
                format!("[repository]\nrepository = {}\n", text(&root.join(self.path()).to_string_lossy()))
            }
            Place::S3 { endpoint, access_key_id, secret_access_key, bucket } => format!(
                "[repository]\nrepository = \"opendal:s3\"\n\n[repository.options]\nendpoint = {}\nregion = \"{REGION}\"\n\
                 access_key_id = {}\nsecret_access_key = {}\nbucket = {}\nroot = {}\n\
                 disable_config_load = \"true\"\ndisable_ec2_metadata = \"true\"\n",
                text(endpoint),
                text(access_key_id),
                text(secret_access_key),
                text(bucket),
                text(&format!("/{}", self.path())),
            ),
        }
    }

    fn path(&self) -> String {
        format!("peers/{}/{}", self.peer.tool.name(), self.name)
    }

    fn run<'a>(
        &self,
        secret: Secret,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr> + 'a>,
    ) -> anyhow::Result<Taken> {
        let mut command = Command::new(&self.peer.program);
        // None of the settings and caches of whoever measures.
        command.current_dir(&self.directory).env_clear().env("HOME", &self.directory);
        for kept in ["PATH", "TMPDIR"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        let cache = self.directory.join("cache");
        match self.peer.tool {
            Tool::Rustic => {
                command.env("RUSTIC_CACHE_DIR", cache).env("RUSTIC_NO_PROGRESS", "true");
                match secret {
                    Secret::Password => command.env("RUSTIC_PASSWORD", PASSWORD),
                    Secret::KeyFile => command.env("RUSTIC_KEY_FILE", self.key_file()),
                };
            }
            Tool::Restic => {
                let repository = match &self.peer.place {
                    Place::Local { root } => root.join(self.path()).to_string_lossy().into_owned(),
                    Place::S3 { endpoint, access_key_id, secret_access_key, bucket } => {
                        command
                            .env("AWS_ACCESS_KEY_ID", access_key_id)
                            .env("AWS_SECRET_ACCESS_KEY", secret_access_key)
                            .env("AWS_DEFAULT_REGION", REGION);
                        format!("s3:{endpoint}/{bucket}/{}", self.path())
                    }
                };
                command.env("RESTIC_CACHE_DIR", cache);
                command.env("RESTIC_REPOSITORY", repository).env("RESTIC_PASSWORD", PASSWORD);
            }
        }
        command.args(arguments);
        self.time(command)
    }

    fn time(&self, mut command: Command) -> anyhow::Result<Taken> {
        let log = self.directory.join("log");
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        let began = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("starting {}", self.peer.program.display()))?;
        let memory = PeakMemory::of_process(child.id());
        let status = child.wait().context("waiting for a command line")?;
        let seconds = elapsed(began);
        let peak_mb = memory.megabytes();
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("{command:?} ended with {status}:\n{said}");
        }
        Ok(Taken { seconds, peak_mb })
    }
}

pub(crate) fn elapsed(since: Instant) -> f64 {
    Duration::as_secs_f64(&since.elapsed())
}
