//! DuckDB: a file, of which a checkpoint replaces the header last, and a write-ahead log.
//!
//! DuckDB locks its file, so nobody else can open it while the application runs, and the bytes are all there is. They can
//! be copied safely because DuckDB itself must survive a power cut at any moment: blocks that the present header refers to
//! are not written until another header is in place, and the log only grows until then. So a copy of the file and, after
//! it, of the log belongs together exactly if the headers were the same before and after. A log that is cut in the middle
//! of its last entry is what a power cut leaves, too: the transactions before it are there.
//!
//! (SQL cannot be asked to do it: `EXPORT` and `COPY FROM DATABASE` need the lock, which the application has.)

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::process::Command;

use super::{TableRows, blocking, missing, with_suffix};
use crate::failure::{Failure, FailureKind, Result};

/// The main header and the two database headers that take turns.
const HEADER_BYTES: u64 = 3 * 4096;

/// What DuckDB has only while it checkpoints or recovers.
const WHILE_CHECKPOINTING: [&str; 2] = [".wal.checkpoint", ".wal.recovery"];

/// What DuckDB may use to check a copy; it works in a process of its own.
const MEMORY_LIMIT: &str = "256MB";

/// Wait between two tries to copy.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn copy(source: &Path, target: &Path, patience: Duration, program: &Path) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let (from, to) = (source.to_owned(), target.to_owned());
        let copied = blocking(move || copy_once(&from, &to).map_err(|error| missing(&from, error))).await?;
        if copied {
            break;
        }
        if Instant::now() >= deadline {
            let message = format!(
                "{} was checkpointed all the time and could not be copied within {} s: try again, or let the application checkpoint less often",
                source.display(),
                patience.as_secs()
            );
            return Err(Failure::new(FailureKind::DatabaseChanging, message));
        }
        tokio::time::sleep(PAUSE).await;
    }
    let log = with_suffix(target, ".wal");
    if log.exists() {
        // A backup is one file: what the log has moves into it.
        ask(program, target, &["-c", "CHECKPOINT"], "the copy's log cannot be replayed").await?;
        if log.exists() {
            let message = "DuckDB has not taken the log into the copy";
            return Err(Failure::new(FailureKind::NotValid, message));
        }
    }
    Ok(())
}

/// Whether the copy belongs together.
fn copy_once(source: &Path, target: &Path) -> io::Result<bool> {
    let log = with_suffix(source, ".wal");
    let checkpointing = || WHILE_CHECKPOINTING.iter().any(|suffix| with_suffix(source, suffix).exists());
    if checkpointing() {
        return Ok(false);
    }
    let from = File::open(source)?;
    let before = header(&from)?;
    copy_bytes(&from, target, None)?;
    let target_log = with_suffix(target, ".wal");
    match std::fs::remove_file(&target_log) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let log_copied = match File::open(&log) {
        Ok(file) => {
            let length = file.metadata()?.len();
            if length > 0 {
                copy_bytes(&file, &target_log, Some(length))?;
            }
            Some((file.metadata()?.ino(), length))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let log_is_the_same = match (log_copied, std::fs::metadata(&log)) {
        (Some((inode, length)), Ok(now)) => now.ino() == inode && now.len() >= length,
        (None, Err(error)) => error.kind() == ErrorKind::NotFound,
        // Made since: what it has came after the copy. It is not empty only if the header is still the same.
        (None, Ok(_)) => true,
        (Some(_), Err(_)) => false,
    };
    let file_is_the_same = std::fs::metadata(source)?.ino() == from.metadata()?.ino();
    Ok(log_is_the_same
        && file_is_the_same
        && header(&from)? == before
        && header(&File::open(target)?)? == before
        && !checkpointing())
}

fn header(file: &File) -> io::Result<Vec<u8>> {
    let mut header = vec![0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0)?;
    Ok(header)
}

/// Shares the bytes where the file system can (a moment, whatever the size), else copies them.
fn copy_bytes(from: &File, target: &Path, length: Option<u64>) -> io::Result<()> {
    let to = OpenOptions::new().write(true).create(true).truncate(true).open(target)?;
    if rustix::fs::ioctl_ficlone(&to, from).is_ok() {
        return match length {
            Some(length) => to.set_len(length),
            None => Ok(()),
        };
    }
    let mut from = from.try_clone()?;
    io::Seek::seek(&mut from, io::SeekFrom::Start(0))?;
    let limit = length.unwrap_or(u64::MAX);
    io::copy(&mut from.take(limit), &mut &to)?;
    Ok(())
}

#[derive(Deserialize)]
struct TableName {
    schema_name: String,
    table_name: String,
}

#[derive(Deserialize)]
struct Count {
    number: usize,
    row_count: u64,
}

pub(super) async fn validate(file: &Path, program: &Path) -> Result<Vec<TableRows>> {
    const TABLES: &str = "SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary \
                          AND database_name = current_database() ORDER BY schema_name, table_name";
    let answer = ask(program, file, &["-readonly", "-c", TABLES], "the copy cannot be opened").await?;
    let tables: Vec<TableName> = rows(&answer.stdout)?;
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    // A hash of whole rows reads every column of every block, and each block has a checksum.
    let mut script = format!(
        "SET memory_limit='{MEMORY_LIMIT}';\nSET temp_directory='{}';\n",
        with_suffix(file, ".spill").display().to_string().replace('\'', "''")
    );
    for (number, table) in tables.iter().enumerate() {
        let (schema, name) = (quoted(&table.schema_name), quoted(&table.table_name));
        script.push_str(&format!(
            "SELECT {number} AS number, count(*) AS row_count, bit_xor(hash(checked)) AS digest FROM {schema}.{name} AS checked;\n"
        ));
    }
    let script_file = with_suffix(file, ".check.sql");
    std::fs::write(&script_file, script)
        .map_err(|error| Failure::io(format_args!("writing {}", script_file.display()), error))?;
    let script_argument = script_file.display().to_string();
    let answer =
        ask(program, file, &["-readonly", "-f", &script_argument], "a table of the copy cannot be read")
            .await;
    let _ = std::fs::remove_file(&script_file);
    let counts: Vec<Count> = rows(&answer?.stdout)?;
    if counts.len() != tables.len() || counts.iter().enumerate().any(|(index, count)| count.number != index) {
        let message = format!("{} of {} tables of the copy were read", counts.len(), tables.len());
        return Err(Failure::new(FailureKind::NotValid, message));
    }
    let named = |table: TableName| match table.schema_name.as_str() {
        "main" => table.table_name,
        schema => format!("{schema}.{}", table.table_name),
    };
    let counted = tables.into_iter().zip(counts);
    Ok(counted.map(|(table, count)| TableRows { table: named(table), rows: count.row_count }).collect())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The rows of all answers in the output, which has one JSON array for each statement.
fn rows<T: serde::de::DeserializeOwned>(output: &[u8]) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for answer in serde_json::Deserializer::from_slice(output).into_iter::<Vec<serde_json::Value>>() {
        let unreadable = |error: serde_json::Error| {
            Failure::new(FailureKind::NotValid, "DuckDB's answer cannot be read").with_source(error)
        };
        for row in answer.map_err(unreadable)? {
            // A setting answers that it succeeded.
            if row.get("Success").is_none() {
                found.push(serde_json::from_value(row).map_err(unreadable)?);
            }
        }
    }
    Ok(found)
}

/// Runs DuckDB's command line on a file of ours.
async fn ask(program: &Path, file: &Path, arguments: &[&str], doing: &str) -> Result<Output> {
    let mut command = Command::new(program);
    command
        .args(["-no-init", "-batch", "-bail", "-json", "-cmd"])
        .arg("SET autoinstall_known_extensions=false")
        .args(arguments.iter().filter(|argument| **argument == "-readonly"))
        .arg(file)
        .args(arguments.iter().filter(|argument| **argument != "-readonly"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A signal of the terminal is ours to understand.
        .process_group(0)
        .kill_on_drop(true);
    let output = command.output().await.map_err(|error| {
        let message = format!(
            "DuckDB's command line ({}) cannot be run: install duckdb-cli, or set database.duckdb_program",
            program.display()
        );
        Failure::new(FailureKind::FileSystem, message).with_source(error)
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.lines().map(str::trim).collect::<Vec<_>>().join(" ").chars().take(500).collect();
    Err(Failure::new(FailureKind::NotValid, format!("{doing}: {said} ({})", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn answers_of_several_statements_are_read_and_settings_left_out() {
        let output = b"[{\"Success\":true}]\n[]\n[{\"number\":0,\"row_count\":3,\"digest\":\"1\"}]\n[{\"number\":1,\"row_count\":4,\"digest\":null}]\n";
        let counts: Vec<Count> = rows(output).unwrap();
        assert_eq!(counts.iter().map(|count| count.row_count).collect::<Vec<_>>(), [3, 4]);
        assert!(rows::<Count>(b"[{\"number\"").is_err());
    }
}
