//! SQLite: its own online backup, which is consistent whatever other processes write meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::{TableRows, blocking};
use crate::failure::{Failure, FailureKind, Result};

/// Wait after somebody else had the lock.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn copy(source: &Path, target: &Path, patience: Duration) -> Result<()> {
    let (source, target) = (source.to_owned(), target.to_owned());
    blocking(move || {
        let failed = |error: rusqlite::Error| {
            let message = format!("{} cannot be copied by SQLite", source.display());
            Failure::new(FailureKind::NotValid, message).with_source(error)
        };
        match std::fs::remove_file(&target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::io(format_args!("removing {}", target.display()), error));
            }
            _ => {}
        }
        // Writable, because who reads a database with a log or a hot journal may have to recover it first.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let from = Connection::open_with_flags(&source, flags).map_err(failed)?;
        let mut to = Connection::open(&target).map_err(failed)?;
        {
            let backup = Backup::new(&from, &mut to).map_err(failed)?;
            let deadline = Instant::now() + patience;
            // All pages in one step: a copy in several begins anew with each write of another process.
            loop {
                match backup.step(-1).map_err(failed)? {
                    StepResult::Done => break,
                    _ if Instant::now() >= deadline => {
                        let message = format!(
                            "{} was locked by another process for {} s",
                            source.display(),
                            patience.as_secs()
                        );
                        return Err(Failure::new(FailureKind::DatabaseChanging, message));
                    }
                    _ => std::thread::sleep(PAUSE),
                }
            }
        }
        // One file, whatever the journal mode of the original.
        to.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
        to.close().map_err(|(_, error)| failed(error))
    })
    .await
}

pub(super) async fn validate(file: &Path) -> Result<Vec<TableRows>> {
    let file = file.to_owned();
    blocking(move || {
        let failed = |error: rusqlite::Error| {
            Failure::new(FailureKind::NotValid, "the copy cannot be read by SQLite").with_source(error)
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(&file, flags).map_err(failed)?;
        let mut check = database.prepare("PRAGMA integrity_check(3)").map_err(failed)?;
        let found: Vec<String> = check
            .query_map([], |row| row.get(0))
            .and_then(Iterator::collect)
            .map_err(failed)?;
        if found != ["ok"] {
            let message = format!("integrity_check of the copy says: {}", found.join("; "));
            return Err(Failure::new(FailureKind::NotValid, message));
        }
        let mut names = database
            .prepare(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
                 AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name",
            )
            .map_err(failed)?;
        let names: Vec<String> =
            names.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
        names
            .into_iter()
            .map(|table| {
                let query = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
                let rows: i64 = database.query_row(&query, [], |row| row.get(0)).map_err(failed)?;
                Ok(TableRows { table, rows: u64::try_from(rows).unwrap_or(0) })
            })
            .collect()
    })
    .await
}
