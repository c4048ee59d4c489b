//! `<prefix>-backup-YYYYMMDD-HHMMSS.duckdb` and `<prefix>-manual-…`: how a backup is called, and what its key is.
//!
//! An id comes from outside and becomes a part of a key, so it is parsed, and nothing but such a name passes.

use std::fmt;

use object_storage::ObjectKey;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

const STAMP: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]-[hour][minute][second]");

/// Longest prefix.
const LONGEST_PREFIX: usize = 100;

/// Why a backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupKind {
    /// The application, or this service, ended.
    Shutdown,
    /// Somebody asked for it.
    Manual,
    /// Its time had come.
    Scheduled,
}

impl BackupKind {
    /// The word for it in answers and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Manual => "manual",
            Self::Scheduled => "scheduled",
        }
    }

    /// The word for it in a name.
    fn in_name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Shutdown | Self::Scheduled => "backup",
        }
    }
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// DuckDB.
    Duckdb,
    /// SQLite.
    Sqlite,
}

impl Engine {
    /// Its name, which is also the extension of its backups.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duckdb => "duckdb",
            Self::Sqlite => "sqlite",
        }
    }
}

/// The name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A text that is no name of a backup of this database, or no prefix or path for such names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

/// What a name tells without a look at the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameFacts {
    /// When.
    pub timestamp: OffsetDateTime,
    /// Whether somebody asked for it.
    pub manual: bool,
    /// What it is of.
    pub engine: Engine,
    /// The how-manieth of its second, from 1.
    pub number: u32,
}

/// Names and keys of the backups of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    /// Empty, or with a `/` at its end.
    directory: String,
}

impl Names {
    /// `path` as in `R2_BACKUP_PATH`: with or without `/` at either end.
    ///
    /// # Errors
    ///
    /// If they cannot be parts of a key.
    pub fn new(prefix: &str, path: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if prefix.is_empty()
            || prefix.len() > LONGEST_PREFIX
            || !prefix.bytes().all(allowed)
            || prefix.starts_with('.')
        {
            return Err(NameError(format!(
                "{prefix:?} cannot begin the names of backups: give backup.prefix 1 to {LONGEST_PREFIX} letters, digits, '-', '_' and '.'"
            )));
        }
        let path = path.trim_matches('/');
        let directory = if path.is_empty() { String::new() } else { format!("{path}/") };
        format!("{directory}x")
            .parse::<ObjectKey>()
            .map_err(|error| NameError(format!("storage.path (R2_BACKUP_PATH): {error}")))?;
        Ok(Self { prefix: prefix.to_owned(), directory })
    }

    /// The name of a backup of that moment, the `number`th of its second (from 1).
    pub fn id(&self, kind: BackupKind, engine: Engine, at: OffsetDateTime, number: u32) -> BackupId {
        let at = at.to_offset(time::UtcOffset::UTC);
        let stamp = at.format(STAMP).unwrap_or_default();
        let suffix = if number > 1 { format!("-{number}") } else { String::new() };
        let (prefix, kind, extension) = (&self.prefix, kind.in_name(), engine.as_str());
        BackupId(format!("{prefix}-{kind}-{stamp}{suffix}.{extension}"))
    }

    /// Reads a name.
    ///
    /// # Errors
    ///
    /// If it is none of this database: a path, another prefix, a moment that never was.
    pub fn parse(&self, text: &str) -> Result<(BackupId, NameFacts), NameError> {
        let facts = self.facts(text).ok_or_else(|| {
            let shown: String = text.chars().take(200).collect();
            NameError(format!("{shown:?} is not the id of a backup of {:?}", self.prefix))
        })?;
        Ok((BackupId(text.to_owned()), facts))
    }

    fn facts(&self, text: &str) -> Option<NameFacts> {
        let rest = text.strip_prefix(&self.prefix)?.strip_prefix('-')?;
        let (manual, rest) = match rest.strip_prefix("manual-") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix("backup-")?),
        };
        let (rest, engine) = match rest.strip_suffix(".duckdb") {
            Some(rest) => (rest, Engine::Duckdb),
            None => (rest.strip_suffix(".sqlite")?, Engine::Sqlite),
        };
        if !rest.is_ascii() || rest.len() < 15 {
            return None;
        }
        let (stamp, number) = rest.split_at(15);
        if !stamp.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
            return None;
        }
        let timestamp = PrimitiveDateTime::parse(stamp, STAMP).ok()?.assume_utc();
        let number = match number.strip_prefix('-') {
            None if number.is_empty() => 1,
            None => return None,
            Some(number) if number.starts_with('0') || !number.bytes().all(|byte| byte.is_ascii_digit()) => {
                return None;
            }
            Some(number) => number.parse().ok().filter(|number| *number > 1)?,
        };
        Some(NameFacts { timestamp, manual, engine, number })
    }

    /// Where a backup is.
    ///
    /// # Errors
    ///
    /// If the path is too long for a key.
    pub fn key(&self, id: &BackupId) -> Result<ObjectKey, NameError> {
        let key = format!("{}{id}", self.directory);
        key.parse().map_err(|error: object_storage::ObjectKeyError| NameError(error.to_string()))
    }

    /// Where the changeable status of all backups is.
    ///
    /// # Errors
    ///
    /// If the path is too long for a key.
    pub fn manifest_key(&self) -> Result<ObjectKey, NameError> {
        let key = format!("{}{}-manifest.json", self.directory, self.prefix);
        key.parse().map_err(|error: object_storage::ObjectKeyError| NameError(error.to_string()))
    }

    /// What all keys of backups begin with.
    pub fn key_prefix(&self) -> String {
        format!("{}{}-", self.directory, self.prefix)
    }

    /// What keys begin with, without the name.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// What names begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn names_are_those_of_the_document_and_read_back() {
        let names = Names::new("hesocial", "/backups/").unwrap();
        let at = datetime!(2024-12-30 12:00:00 UTC);
        for (kind, number, text) in [
            (BackupKind::Shutdown, 1, "hesocial-backup-20241230-120000.duckdb"),
            (BackupKind::Scheduled, 1, "hesocial-backup-20241230-120000.duckdb"),
            (BackupKind::Manual, 1, "hesocial-manual-20241230-120000.duckdb"),
            (BackupKind::Manual, 12, "hesocial-manual-20241230-120000-12.duckdb"),
        ] {
            let id = names.id(kind, Engine::Duckdb, at, number);
            assert_eq!(id.as_str(), text);
            let (parsed, facts) = names.parse(text).unwrap();
            assert_eq!(parsed, id);
            let manual = kind == BackupKind::Manual;
            assert_eq!(facts, NameFacts { timestamp: at, manual, engine: Engine::Duckdb, number });
            assert_eq!(names.key(&id).unwrap().as_str(), format!("backups/{text}"));
        }
        let elsewhere = datetime!(2024-12-30 01:00:00 +02:00);
        let id = names.id(BackupKind::Manual, Engine::Sqlite, elsewhere, 1);
        assert_eq!(id.as_str(), "hesocial-manual-20241229-230000.sqlite");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let names = Names::new("hesocial", "backups").unwrap();
        for text in [
            "",
            "../../etc/passwd",
            "a/b",
            "backups/hesocial-backup-20241230-120000.duckdb",
            "hesocial-backup-20241230-120000.duckdb/..",
            "other-backup-20241230-120000.duckdb",
            "hesocial-backup-20241330-120000.duckdb",
            "hesocial-backup-20241230-250000.duckdb",
            "hesocial-backup-20241230-120000-1.duckdb",
            "hesocial-backup-20241230-120000-02.duckdb",
            "hesocial-backup-20241230-120000-+2.duckdb",
            "hesocial-backup-20241230-120000.txt",
            "hesocial-backup-20241230-12000\u{e9}.duckdb",
            "hesocial-manifest.json",
        ] {
            assert!(names.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_and_prefixes_that_cannot_be_keys_are_refused() {
        for path in ["", "/", "a", "/a/b/"] {
            assert!(Names::new("x", path).is_ok(), "{path}");
        }
        for path in ["../x", "a//b", "a/./b"] {
            assert!(Names::new("x", path).is_err(), "{path}");
        }
        for prefix in ["", "a/b", ".a", "a b", "\u{e9}", &"x".repeat(101)] {
            assert!(Names::new(prefix, "/").is_err(), "{prefix}");
        }
    }
}
