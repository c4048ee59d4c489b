//! The proof of a restore: everything read back from the file system and compared with the snapshot.
//!
//! The content of every file is hashed along the chunks of the snapshot, then the directories are walked as
//! a backup would walk them, and the digest of what is found has to be the digest of the snapshot. A restore
//! that lost, changed or added anything ends as an error that names the first differences.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustic_core::repofile::Node;

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::metadata_cache::hash;
use crate::planned_entry::PlannedEntry;
use crate::restore::RestoreJob;
use crate::restore_content::chunk_length;
use crate::side_by_side::{busy_threads, side_by_side};
use crate::tree_digest::{TreeCounts, TreeDigest};
use crate::walk::{ExtendedAttributes, Walk};

/// How many differences an error names.
const NAMED_DIFFERENCES: usize = 5;

/// Compares what is in the staging directories with the plan.
pub(crate) fn verify(job: &RestoreJob, expected: &str) -> Result<TreeCounts> {
    let spoiled = files_with_other_content(job)?;
    let mut digest = TreeDigest::new();
    let mut differences = Vec::new();
    let mut planned = job.entries.iter().enumerate();
    for (number, staging) in job.staging.iter().enumerate() {
        let prefix = &job.prefixes[number];
        let descriptor = staging.descriptor().map_err(|error| unreadable(prefix, error))?;
        let device_offset = 1 + 1000 * number as u64;
        let all = Arc::from([]);
        let walk = Walk::new(prefix.as_os_str(), descriptor, device_offset, ExtendedAttributes::Read, all);
        // Without a prefix, the staging directory itself is no part of what is restored.
        for found in walk.skip(usize::from(prefix.as_os_str() == OsStr::new(""))) {
            job.check_canceled()?;
            let found = found.map_err(|fault| unreadable(&fault.path, fault.error))?;
            let mut node = found.node;
            match planned.next() {
                Some((number, entry)) if *entry.path == *found.path => {
                    let owner = entry.link_to.unwrap_or(number);
                    if spoiled.contains(&owner) {
                        differences.push(format!("{}: its content", found.path.display()));
                    } else {
                        node.content = Some(entry.content().to_vec());
                    }
                    differences.extend(difference(entry, &node));
                }
                Some((_, entry)) => {
                    let (found, expected) = (found.path.display(), entry.path.display());
                    differences.push(format!("{found} where {expected} belongs"));
                }
                None => differences.push(format!("{} is too much", found.path.display())),
            }
            if differences.len() > NAMED_DIFFERENCES {
                return Err(differs(&differences));
            }
            digest.add(&found.path, &node);
        }
    }
    if let Some((_, entry)) = planned.next() {
        differences.push(format!("{} is missing", entry.path.display()));
    }
    let counts = digest.counts();
    let found = digest.finish();
    if found != expected && differences.is_empty() {
        differences.push(format!("the digest is {found}, not {expected}"));
    }
    if differences.is_empty() { Ok(counts) } else { Err(differs(&differences)) }
}

fn differs(differences: &[String]) -> BackupRepositoryError {
    let message = differences.join("; ");
    BackupRepositoryError::new(Kind::VerificationFailed, "verify restore", "against the backup", message)
}

fn unreadable(path: &Path, error: io::Error) -> BackupRepositoryError {
    BackupRepositoryError::new(Kind::VerificationFailed, "verify", path.display(), "it cannot be read back")
        .with_source(error)
}

/// What differs in an entry's metadata, in words.
fn difference(entry: &PlannedEntry, found: &Node) -> Option<String> {
    let (expected, meta) = (&entry.metadata, &found.meta);
    let what = if !entry.is_a(&found.node_type) {
        "its kind"
    } else if !found.is_symlink() && expected.mode != meta.mode {
        "its mode"
    } else if (expected.uid, expected.gid) != (meta.uid, meta.gid) {
        "its owner"
    } else if expected.mtime != meta.mtime {
        "its modification time"
    } else if !expected.has_attributes_of(meta) {
        "its extended attributes"
    } else {
        return None;
    };
    Some(format!("{}: {what}", entry.path.display()))
}

/// Numbers of the files whose bytes are not those of the snapshot.
fn files_with_other_content(job: &RestoreJob) -> Result<HashSet<usize>> {
    let files: Vec<usize> = job.files().collect();
    let spoiled = side_by_side(&files, busy_threads(), |buffer, number| {
        Ok((!has_same_content(job, *number, buffer)?).then_some(*number))
    });
    Ok(spoiled?.into_iter().flatten().collect())
}

fn has_same_content(job: &RestoreJob, number: usize, buffer: &mut Vec<u8>) -> Result<bool> {
    let entry = &job.entries[number];
    let mut file = job.staging[entry.staging]
        .open_for_reading(job.below(entry))
        .map_err(|error| unreadable(&entry.path, error))?;
    for id in entry.content() {
        job.check_canceled()?;
        let length = chunk_length(job, id)? as usize;
        buffer.resize(buffer.len().max(length), 0);
        let chunk = &mut buffer[..length];
        match file.read_exact(chunk) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(unreadable(&entry.path, error)),
            Ok(()) => {}
        }
        if hash(chunk) != id.into_inner() {
            return Ok(false);
        }
    }
    ends_here(&mut file).map_err(|error| unreadable(&entry.path, error))
}

fn ends_here(file: &mut File) -> io::Result<bool> {
    let mut byte = [0];
    Ok(file.read(&mut byte)? == 0)
}
