//! A consistent copy of a database that may be in use, and the proof that it is one.
//!
//! The copy is a file of its own, beside nothing: what a write-ahead log holds is in it. It is opened and every table of it
//! is read, because a copy that cannot be opened on the day when it is needed is worse than none: it was believed in.

mod duckdb;
mod sqlite;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind, Result};
use crate::names::Engine;
use crate::settings::{DatabaseSettings, EngineChoice};

/// A table and how many rows of it were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableRows {
    /// Its name, with its schema where that is not the usual one.
    pub table: String,
    /// Its rows.
    pub rows: u64,
}

/// A database file and the means to copy and check it.
#[derive(Debug, Clone)]
pub struct Database {
    path: PathBuf,
    choice: EngineChoice,
    duckdb_program: PathBuf,
    patience: Duration,
}

impl Database {
    /// The database of the settings.
    pub fn new(settings: &DatabaseSettings) -> Self {
        Self {
            path: settings.path.clone(),
            choice: settings.engine,
            duckdb_program: settings.duckdb_program.clone(),
            patience: Duration::from_secs(settings.copy_patience_s),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is, as its settings or the file itself say.
    ///
    /// # Errors
    ///
    /// If there is no file, or it is neither.
    pub fn engine(&self) -> Result<Engine> {
        let found = engine_of(&self.path)?;
        let expected = match self.choice {
            EngineChoice::Auto => None,
            EngineChoice::Duckdb => Some(Engine::Duckdb),
            EngineChoice::Sqlite => Some(Engine::Sqlite),
        };
        match (expected, found) {
            (None, Some(found)) => Ok(found),
            (Some(expected), Some(found)) if expected == found => Ok(found),
            _ => {
                let expected = expected.map_or("DuckDB or SQLite", Engine::as_str);
                let message = format!("{} is no database of {expected}", self.path.display());
                Err(Failure::new(FailureKind::NotValid, message))
            }
        }
    }

    /// What some other file is.
    ///
    /// # Errors
    ///
    /// If it is neither.
    pub fn engine_of(&self, file: &Path) -> Result<Engine> {
        let unknown = || Failure::new(FailureKind::NotValid, format!("{} is no database", file.display()));
        engine_of(file)?.ok_or_else(unknown)
    }

    /// What stands beside the file and belongs to it, as suffixes of its name.
    pub fn companions(engine: Engine) -> &'static [&'static str] {
        match engine {
            Engine::Duckdb => &[".wal", ".wal.checkpoint", ".wal.recovery"],
            Engine::Sqlite => &["-wal", "-shm", "-journal"],
        }
    }

    /// Bytes of the file and of what belongs to it.
    ///
    /// # Errors
    ///
    /// If there is no file.
    pub fn size_bytes(&self, engine: Engine) -> Result<u64> {
        let size = std::fs::metadata(&self.path).map_err(|error| self.missing(error))?.len();
        let beside = Self::companions(engine).iter().filter_map(|suffix| {
            std::fs::metadata(with_suffix(&self.path, suffix)).ok().map(|metadata| metadata.len())
        });
        Ok(size + beside.sum::<u64>())
    }

    /// Copies it to `target`, which does not exist yet. Files beside `target` with its name in front are used, too.
    ///
    /// # Errors
    ///
    /// If it cannot be copied consistently.
    pub async fn copy(&self, engine: Engine, target: &Path) -> Result<()> {
        match engine {
            Engine::Duckdb => duckdb::copy(&self.path, target, self.patience, &self.duckdb_program).await,
            Engine::Sqlite => sqlite::copy(&self.path, target, self.patience).await,
        }
    }

    /// Opens a file that is not in use, reads every table of it, and tells how many rows there are.
    ///
    /// # Errors
    ///
    /// If anything in it cannot be read.
    pub async fn validate(&self, engine: Engine, file: &Path) -> Result<Vec<TableRows>> {
        if engine_of(file)? != Some(engine) {
            let message = format!("the copy does not begin as a database of {}", engine.as_str());
            return Err(Failure::new(FailureKind::NotValid, message));
        }
        match engine {
            Engine::Duckdb => duckdb::validate(file, &self.duckdb_program).await,
            Engine::Sqlite => sqlite::validate(file).await,
        }
    }

    fn missing(&self, error: std::io::Error) -> Failure {
        missing(&self.path, error)
    }
}

fn missing(path: &Path, error: std::io::Error) -> Failure {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => FailureKind::DatabaseMissing,
        _ => FailureKind::FileSystem,
    };
    Failure::new(kind, format!("the database {} cannot be read", path.display())).with_source(error)
}

/// What a file begins as.
fn engine_of(path: &Path) -> Result<Option<Engine>> {
    let mut head = Vec::with_capacity(16);
    File::open(path)
        .and_then(|file| file.take(16).read_to_end(&mut head))
        .map_err(|error| missing(path, error))?;
    Ok(match head.as_slice() {
        b"SQLite format 3\0" => Some(Engine::Sqlite),
        // A checksum stands before it.
        [_, _, _, _, _, _, _, _, b'D', b'U', b'C', b'K', ..] => Some(Engine::Duckdb),
        _ => None,
    })
}

/// A path with something at the end of its name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Failure::new(FailureKind::Internal, "the work on the file was given up").with_source(error))
        }
    }
}
