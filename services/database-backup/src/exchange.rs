//! Another file in the database's place, and the way back.
//!
//! A database is a file and what stands beside it. A log of the old file beside the new one would be replayed into it and
//! ruin it; the old file without its log lacks the last transactions. So, with a journal that is written first:
//!
//! 1. the present file and what is beside it get second names (hard links): the rollback copy, which opens by itself;
//! 2. what is beside the present file is removed (it has its second name);
//! 3. the new file takes the present one's name, in one rename;
//! 4. what belongs to the new file (only a rollback has something) takes its names;
//! 5. the journal is removed.
//!
//! Each step can be repeated. A crash leaves the journal, and whoever comes next ([`recover`]) goes on from the first step;
//! until then no backup is taken and nothing is restored. The rollback copy of the exchange before is removed at the end.
//!
//! ```text
//! hesocial.duckdb                                       the database
//! .hesocial.duckdb.incoming-<random>                    the file to be put in place, checked
//! hesocial.duckdb.rollback-20241230-120000 (and .wal)   what was there before
//! .hesocial.duckdb.rollback.json                        which one that is
//! .hesocial.duckdb.exchange.json                        the journal
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::copy::{Database, with_suffix};
use crate::failure::{Failure, FailureKind, Result};
use crate::held_open::require_closed;
use crate::names::Engine;
use crate::work_directory::{sync_directory_of, write_json};

/// An exchange that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    engine: String,
    /// Name of the file to be put in place.
    incoming: String,
    /// Name that the present file gets.
    rollback: String,
    /// What the manifest says then.
    latest_restored: Option<String>,
    /// What the manifest said before.
    latest_restored_before: Option<String>,
    /// The operation on the bus that it is a part of.
    operation: Option<String>,
}

/// The rollback copy that there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Its file's name, beside the database.
    pub file: String,
    /// What the manifest said when it was in place.
    pub latest_restored: Option<String>,
    /// The operation on the bus that put another file in its place.
    pub operation: Option<String>,
}

/// The database's place.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
    engine: Engine,
}

/// What is to be put in place.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// A file that [`Place::incoming`] named.
    pub incoming: PathBuf,
    /// What the manifest says afterwards.
    pub latest_restored: Option<String>,
    /// What it says now.
    pub latest_restored_before: Option<String>,
    /// The operation on the bus that it is a part of.
    pub operation: Option<String>,
}

impl Place {
    /// The place of a database, which may be missing.
    pub fn new(path: &Path, engine: Engine) -> Self {
        Self { path: path.to_owned(), engine }
    }

    fn hidden(&self, what: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{what}"))
    }

    /// A name for a file that is to be put in place.
    pub fn incoming(&self) -> PathBuf {
        self.hidden(&format!("incoming-{:016x}", rand::random::<u64>()))
    }

    /// Removes what killed restores have left, if no exchange has begun.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn sweep(&self) -> Result<()> {
        if self.exchange_has_begun() {
            return Ok(());
        }
        let prefix = self.hidden("incoming-");
        let prefix = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let directory = directory_of(&self.path);
        let sweep = || -> io::Result<()> {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        sweep().map_err(|error| Failure::io(format_args!("sweeping {}", directory.display()), error))
    }

    /// Every file that an application may have open.
    fn files(&self) -> Vec<PathBuf> {
        let companions =
            Database::companions(self.engine).iter().map(|suffix| with_suffix(&self.path, suffix));
        std::iter::once(self.path.clone()).chain(companions).collect()
    }

    /// Refuses where a process has the database open.
    ///
    /// # Errors
    ///
    /// [`FailureKind::DatabaseOpen`].
    pub fn require_closed(&self) -> Result<()> {
        require_closed(&self.files()).map(drop)
    }

    /// The rollback copy, where there is one.
    ///
    /// # Errors
    ///
    /// If its description cannot be read.
    pub fn rollback(&self) -> Result<Option<Rollback>> {
        read_json(&self.hidden("rollback.json"))
    }

    /// Where the rollback copy is.
    pub fn rollback_path(&self, rollback: &Rollback) -> PathBuf {
        self.path.with_file_name(&rollback.file)
    }

    /// Whether an exchange has begun and not ended.
    pub fn exchange_has_begun(&self) -> bool {
        self.hidden("exchange.json").exists()
    }

    /// Puts a file in place. It gets the mode and the owner of the present one. Where a process has the database open,
    /// nothing happens.
    ///
    /// # Errors
    ///
    /// If nothing has happened; or, once the exchange has begun, if it must be gone on with ([`Place::recover`]).
    pub fn exchange(&self, exchange: &Exchange, now: OffsetDateTime) -> Result<()> {
        let failed = |error| Failure::io(format_args!("exchanging {}", self.path.display()), error);
        adopt_owner(&self.path, &exchange.incoming).map_err(failed)?;
        let stamp = now
            .to_offset(time::UtcOffset::UTC)
            .format(format_description!("[year][month][day]-[hour][minute][second]"))
            .unwrap_or_default();
        let mut rollback = with_suffix(&self.path, &format!(".rollback-{stamp}"));
        let mut number = 2;
        while rollback.exists() {
            rollback = with_suffix(&self.path, &format!(".rollback-{stamp}-{number}"));
            number += 1;
        }
        let journal = Journal {
            engine: self.engine.as_str().to_owned(),
            incoming: name_of(&exchange.incoming),
            rollback: name_of(&rollback),
            latest_restored: exchange.latest_restored.clone(),
            latest_restored_before: exchange.latest_restored_before.clone(),
            operation: exchange.operation.clone(),
        };
        let _lock = require_closed(&self.files())?;
        write_json(&self.hidden("exchange.json"), &journal).map_err(failed)?;
        self.go_on(&journal, &mut || Ok(())).map_err(failed)
    }

    /// Ends an exchange that a crash has interrupted, and answers whether there was one.
    ///
    /// # Errors
    ///
    /// If a process has the database open, or a step fails.
    pub fn recover(&self) -> Result<bool> {
        let Some(journal) = read_json::<Journal>(&self.hidden("exchange.json"))? else { return Ok(false) };
        let _lock = require_closed(&self.files())?;
        let engine = if journal.engine == "sqlite" { Engine::Sqlite } else { Engine::Duckdb };
        let place = Self { path: self.path.clone(), engine };
        tracing::warn!(path = %self.path.display(), "a restore was interrupted while it put its file in place: going on");
        place.go_on(&journal, &mut || Ok(())).map_err(|error| {
            Failure::io(format_args!("going on with the exchange of {}", self.path.display()), error)
        })?;
        Ok(true)
    }

    /// All steps that are not done yet. `step` comes before each, so that a test can end it there.
    fn go_on(&self, journal: &Journal, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let incoming = self.path.with_file_name(&journal.incoming);
        let rollback = self.path.with_file_name(&journal.rollback);
        let companions = Database::companions(self.engine);
        if incoming.exists() {
            if self.path.exists() {
                step()?;
                link(&self.path, &rollback)?;
                for suffix in companions {
                    let beside = with_suffix(&self.path, suffix);
                    if beside.exists() {
                        step()?;
                        link(&beside, &with_suffix(&rollback, suffix))?;
                    }
                }
                sync_directory_of(&self.path)?;
            }
            for suffix in companions {
                step()?;
                remove(&with_suffix(&self.path, suffix))?;
            }
            sync_directory_of(&self.path)?;
            step()?;
            fs::rename(&incoming, &self.path)?;
            sync_directory_of(&self.path)?;
        }
        for suffix in companions {
            let beside = with_suffix(&incoming, suffix);
            if beside.exists() {
                step()?;
                fs::rename(&beside, with_suffix(&self.path, suffix))?;
            }
        }
        step()?;
        let described = self.hidden("rollback.json");
        let before: Option<Rollback> = read_json(&described).map_err(io::Error::other)?;
        if let Some(before) = before.filter(|before| before.file != journal.rollback) {
            let file = self.path.with_file_name(&before.file);
            for suffix in companions {
                remove(&with_suffix(&file, suffix))?;
            }
            remove(&file)?;
        }
        step()?;
        if rollback.exists() {
            let file = journal.rollback.clone();
            let present = Rollback {
                file,
                latest_restored: journal.latest_restored_before.clone(),
                operation: journal.operation.clone(),
            };
            write_json(&described, &present)?;
        } else {
            remove(&described)?;
        }
        step()?;
        write_json(&self.hidden("restored.json"), &journal.latest_restored)?;
        step()?;
        remove(&self.hidden("exchange.json"))?;
        sync_directory_of(&self.path)
    }

    /// What the manifest is to say and may not say yet; outer none: nothing.
    ///
    /// # Errors
    ///
    /// If the note cannot be read.
    pub fn unrecorded(&self) -> Result<Option<Option<String>>> {
        // `null` in the file is a value, too.
        read_json::<serde_json::Value>(&self.hidden("restored.json"))
            .map(|value| value.map(|value| value.as_str().map(str::to_owned)))
    }

    /// The manifest says it now.
    ///
    /// # Errors
    ///
    /// If the note cannot be removed.
    pub fn recorded(&self) -> Result<()> {
        remove(&self.hidden("restored.json"))
            .map_err(|error| Failure::io("removing the note of the restore", error))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|error| {
            Failure::new(FailureKind::FileSystem, format!("{} cannot be read", path.display()))
                .with_source(error)
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format_args!("reading {}", path.display()), error)),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A second name, where it is not there yet from an earlier try.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let (from, there) = (fs::metadata(from)?, fs::metadata(to)?);
            if (from.dev(), from.ino()) == (there.dev(), there.ino()) { Ok(()) } else { Err(error) }
        }
        done => done,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The application must be able to open what it finds in the place of its file.
fn adopt_owner(present: &Path, incoming: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::metadata(present) else { return Ok(()) };
    fs::set_permissions(incoming, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    let there = fs::metadata(incoming)?;
    if (there.uid(), there.gid()) != (metadata.uid(), metadata.gid()) {
        std::os::unix::fs::chown(incoming, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
    }

    /// Every file that is no note of ours, with its content.
    fn files(directory: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        let shown = entries.map(|entry| {
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        });
        shown.filter(|(name, _)| !name.ends_with(".json")).collect()
    }

    fn expected(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    /// A database with a log, an older rollback copy, and a file to be put in place.
    fn begin(directory: &Path) -> (Place, Exchange) {
        let path = directory.join("x.duckdb");
        let place = Place::new(&path, Engine::Duckdb);
        write(&path, "old");
        write(&with_suffix(&path, ".wal"), "old log");
        write(&directory.join("x.duckdb.rollback-older"), "older");
        write(&directory.join("x.duckdb.rollback-older.wal"), "older log");
        let older =
            Rollback { file: "x.duckdb.rollback-older".to_owned(), latest_restored: None, operation: None };
        write_json(&place.hidden("rollback.json"), &older).unwrap();
        let incoming = place.incoming();
        write(&incoming, "new");
        let exchange = Exchange {
            incoming,
            latest_restored: Some("new-id".to_owned()),
            latest_restored_before: Some("old-id".to_owned()),
            operation: Some("op".to_owned()),
        };
        (place, exchange)
    }

    const EXCHANGED: &[(&str, &str)] = &[
        ("x.duckdb", "new"),
        ("x.duckdb.rollback-20260102-030405", "old"),
        ("x.duckdb.rollback-20260102-030405.wal", "old log"),
    ];

    #[test]
    fn the_new_file_has_no_foreign_log_and_the_old_one_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let (place, exchange) = begin(directory.path());
        place.exchange(&exchange, NOW).unwrap();
        assert_eq!(files(directory.path()), expected(EXCHANGED));
        let rollback = place.rollback().unwrap().unwrap();
        assert_eq!(rollback.latest_restored.as_deref(), Some("old-id"));
        assert_eq!(rollback.operation.as_deref(), Some("op"));
        assert_eq!(place.unrecorded().unwrap(), Some(Some("new-id".to_owned())));
        place.recorded().unwrap();
        assert_eq!(place.unrecorded().unwrap(), None);
        assert!(!place.exchange_has_begun() && !place.recover().unwrap());
    }

    #[test]
    fn an_exchange_that_stops_at_any_step_is_gone_on_with() {
        let mut stopped = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let (place, exchange) = begin(directory.path());
            let journal = Journal {
                engine: "duckdb".to_owned(),
                incoming: name_of(&exchange.incoming),
                rollback: "x.duckdb.rollback-20260102-030405".to_owned(),
                latest_restored: exchange.latest_restored.clone(),
                latest_restored_before: exchange.latest_restored_before.clone(),
                operation: exchange.operation.clone(),
            };
            write_json(&place.hidden("exchange.json"), &journal).unwrap();
            let mut left = stopped;
            let mut crash = || {
                left -= 1;
                if left < 0 { Err(io::Error::other("crash")) } else { Ok(()) }
            };
            let ended = place.go_on(&journal, &mut crash);
            // Whatever the step, the data of before is there under one name or the other.
            let now = files(directory.path());
            assert!(
                now.values().any(|text| text == "old") && now.values().any(|text| text == "old log"),
                "{now:?}"
            );
            // No moment has the new file beside the old log.
            assert!(now["x.duckdb"] == "old" || !now.contains_key("x.duckdb.wal"), "{now:?}");
            if ended.is_err() {
                assert!(place.exchange_has_begun());
                place.sweep().unwrap();
                assert!(place.recover().unwrap());
            }
            assert_eq!(files(directory.path()), expected(EXCHANGED), "stopped at step {stopped}");
            assert_eq!(place.unrecorded().unwrap(), Some(Some("new-id".to_owned())));
            if ended.is_ok() {
                break;
            }
            stopped += 1;
        }
        assert!(stopped > 8, "only {stopped} steps");
    }

    #[test]
    fn what_a_killed_restore_left_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let (place, exchange) = begin(directory.path());
        place.sweep().unwrap();
        assert!(!exchange.incoming.exists());
        assert_eq!(files(directory.path()).len(), 4);
    }
}
