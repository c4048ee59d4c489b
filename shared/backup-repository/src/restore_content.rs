//! The bytes of a restore: which parts of which packs hold them, fetched side by side, each written to every
//! place that it belongs to.
//!
//! Many small files share a pack, so a request per file would be a request too many: blobs that lie close
//! together are fetched as one part. Memory is bounded: at most `READERS` parts of `LARGEST_PART_BYTES`, and
//! one blob of at most 8 MiB, opened up, for each.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustic_core::repofile::BlobType;
use rustic_core::{DataId, Id};

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::restore::RestoreJob;
use crate::side_by_side::side_by_side;

/// Parts of packs that are fetched at the same time.
const READERS: usize = 6;

/// The most that is fetched by one request, unless a single blob is larger.
const LARGEST_PART_BYTES: u32 = 8 * 1024 * 1024;

/// Blobs with a gap of no more than this between them are fetched together.
const LARGEST_GAP_BYTES: u32 = 256 * 1024;

/// Zeros of this length become a hole in the file.
const HOLE_BYTES: usize = 64 * 1024;

/// A chunk of a file, and the blob that it is. There are as many as there are chunks to be written.
#[derive(Debug)]
struct Wanted {
    pack: Id,
    offset: u32,
    length: u32,
    data_length: u32,
    /// Of which file, by number.
    file: usize,
    /// Which of its chunks.
    chunk: usize,
    /// Where in the file.
    position: u64,
}

#[derive(Debug)]
struct Part {
    pack: Id,
    offset: u32,
    length: u32,
    /// What of the wanted is in it.
    wanted: Range<usize>,
}

/// Everything to be written.
#[derive(Debug)]
struct ContentPlan {
    files: Vec<TargetFile>,
    /// In the order of their places in the repository.
    wanted: Vec<Wanted>,
    parts: Vec<Part>,
}

/// A file being written.
#[derive(Debug)]
struct TargetFile {
    entry: usize,
    length: u64,
    missing_chunks: AtomicU32,
}

/// Length of a chunk of content, from the index.
pub(crate) fn chunk_length(job: &RestoreJob, id: &DataId) -> Result<u32> {
    Ok(job.rustic.get_index_entry(id).map_err(|_| missing(id))?.data_length())
}

fn missing(id: &DataId) -> BackupRepositoryError {
    let hex = id.to_hex();
    BackupRepositoryError::new(Kind::Damaged, "find blob", hex.as_str(), "the repository does not have it")
}

/// Writes the content of all files, but for what is there already: says how many bytes that is.
pub(crate) fn restore_content(job: &RestoreJob) -> Result<u64> {
    let done = Done::default();
    let plan = plan(job, &done)?;
    let resumed_bytes = done.bytes.load(Ordering::Relaxed);
    if resumed_bytes > 0 {
        job.progress.stored(done.files.load(Ordering::Relaxed), resumed_bytes);
    }
    for file in plan.files.iter().filter(|file| file.length == 0) {
        let entry = &job.entries[file.entry];
        job.staging[entry.staging]
            .open_for_writing(job.below(entry))
            .map_err(|error| job.failed(entry, error))?;
        done.files.fetch_add(1, Ordering::Relaxed);
    }
    side_by_side(&plan.parts, READERS, |(): &mut (), part| restore_part(job, &plan, part, &done))?;
    Ok(resumed_bytes)
}

#[derive(Debug, Default)]
struct Done {
    files: AtomicU64,
    bytes: AtomicU64,
}

fn plan(job: &RestoreJob, done: &Done) -> Result<ContentPlan> {
    // As much as is used: what growing by doubling would add to it is memory, too.
    let mut files = Vec::with_capacity(job.files().count());
    let mut wanted = Vec::with_capacity(job.files().map(|entry| job.entries[entry].content().len()).sum());
    for entry in job.files() {
        let mut position = 0;
        let content = job.entries[entry].content();
        let there = job.already_there.chunks.get(&entry);
        let mut missing_chunks = 0;
        for (chunk, id) in content.iter().enumerate() {
            let found = job.rustic.get_index_entry(id).map_err(|_| missing(id))?;
            let data_length = found.data_length();
            if there.is_some_and(|there| there[chunk]) {
                position += u64::from(data_length);
                done.bytes.fetch_add(u64::from(data_length), Ordering::Relaxed);
                continue;
            }
            missing_chunks += 1;
            wanted.push(Wanted {
                pack: found.pack.into_inner(),
                offset: found.location.offset,
                length: found.location.length,
                data_length,
                file: files.len(),
                chunk,
                position,
            });
            position += u64::from(data_length);
        }
        if missing_chunks == 0 && !content.is_empty() {
            done.files.fetch_add(1, Ordering::Relaxed);
        }
        files.push(TargetFile { entry, length: position, missing_chunks: AtomicU32::new(missing_chunks) });
    }
    wanted.sort_unstable_by_key(|wanted| (wanted.pack, wanted.offset, wanted.file, wanted.chunk));
    let mut parts: Vec<Part> = Vec::new();
    for (number, blob) in wanted.iter().enumerate() {
        let end = blob.offset.saturating_add(blob.length);
        if let Some(part) = parts.last_mut()
            && part.pack == blob.pack
            && (is_same_blob(blob, &wanted[number - 1])
                || (blob.offset <= (part.offset + part.length).saturating_add(LARGEST_GAP_BYTES)
                    && end - part.offset <= LARGEST_PART_BYTES))
        {
            part.length = end - part.offset;
            part.wanted.end = number + 1;
        } else {
            let (pack, offset, length) = (blob.pack, blob.offset, blob.length);
            parts.push(Part { pack, offset, length, wanted: number..number + 1 });
        }
    }
    Ok(ContentPlan { files, wanted, parts })
}

/// Whether two that are wanted of one pack are the same data.
fn is_same_blob(one: &Wanted, other: &Wanted) -> bool {
    one.offset == other.offset
}

fn restore_part(job: &RestoreJob, plan: &ContentPlan, part: &Part, done: &Done) -> Result<()> {
    let mut blobs = plan.wanted[part.wanted.clone()].chunk_by(is_same_blob);
    let mut blob = blobs.next();
    let mut read_twice = false;
    fetch(job, plan, part)?;
    let restored = loop {
        let Some(chunks) = blob else { break Ok(()) };
        match restore_blob(job, plan, chunks, done) {
            Ok(()) => blob = blobs.next(),
            // Bytes are spoilt on their way more often than where they lie.
            Err(error) if error.kind() == Kind::Damaged && !read_twice => {
                tracing::warn!(%error, "a part of a pack is read again");
                read_twice = true;
                job.backend.drop_window(&part.pack, part.offset);
                fetch(job, plan, part)?;
            }
            Err(error) => break Err(in_pack(job, plan, &chunks[0], error)),
        }
    };
    job.backend.drop_window(&part.pack, part.offset);
    restored
}

fn fetch(job: &RestoreJob, plan: &ContentPlan, part: &Part) -> Result<()> {
    job.check_canceled()?;
    let fetched = job.backend.fetch_window(&part.pack, part.offset, part.length);
    fetched.map_err(|error| match error.kind() {
        Kind::NotFound => {
            let error = BackupRepositoryError::new(Kind::Damaged, "read", "its data", "it is missing")
                .with_source(error);
            in_pack(job, plan, &plan.wanted[part.wanted.start], error)
        }
        _ => error,
    })
}

/// Says of damage which file it costs.
fn in_pack(
    job: &RestoreJob,
    plan: &ContentPlan,
    wanted: &Wanted,
    error: BackupRepositoryError,
) -> BackupRepositoryError {
    if error.kind() != Kind::Damaged {
        return error;
    }
    let path = &job.entries[plan.files[wanted.file].entry].path;
    let message = format!("pack {} is damaged", wanted.pack.to_hex().as_str());
    BackupRepositoryError::new(Kind::Damaged, "restore", path.display(), message).with_source(error)
}

/// Reads a blob, and writes it to all chunks that it is.
fn restore_blob(job: &RestoreJob, plan: &ContentPlan, chunks: &[Wanted], done: &Done) -> Result<()> {
    job.check_canceled()?;
    let Some(first) = chunks.first() else { return Ok(()) };
    let hex = job.entries[plan.files[first.file].entry].content()[first.chunk].to_hex();
    let data = job.rustic.cat_blob(BlobType::Data, hex.as_str()).map_err(|error| {
        job.backend.take_failure("read blob").unwrap_or_else(|| {
            BackupRepositoryError::new(Kind::Damaged, "read blob", hex.as_str(), error.display_log())
        })
    })?;
    if data.len() != first.data_length as usize {
        let message = "it has not the length that the index gives";
        return Err(BackupRepositoryError::new(Kind::Damaged, "read blob", hex.as_str(), message));
    }
    for chunk in chunks {
        let file = &plan.files[chunk.file];
        let entry = &job.entries[file.entry];
        job.staging[entry.staging]
            .open_for_writing(job.below(entry))
            .and_then(|opened| write_chunk(&opened, file.length, chunk.position, &data))
            .map_err(|error| job.failed(entry, error))?;
        if file.missing_chunks.fetch_sub(1, Ordering::Relaxed) == 1 {
            done.files.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = done.bytes.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        job.progress.stored(done.files.load(Ordering::Relaxed), bytes);
    }
    Ok(())
}

/// Writes a chunk at its place, leaving long runs of zeros as holes.
fn write_chunk(file: &File, file_length: u64, position: u64, data: &[u8]) -> io::Result<()> {
    if file_length < HOLE_BYTES as u64 {
        return file.write_all_at(data, position);
    }
    // Needed for a hole at the end; a chunk that another thread wrote stays as it is.
    file.set_len(file_length)?;
    let mut from = 0;
    let mut at = 0;
    while at < data.len() {
        let end = data.len().min(at + HOLE_BYTES);
        if data[at..end].iter().all(|byte| *byte == 0) {
            file.write_all_at(&data[from..at], position + from as u64)?;
            from = end;
        }
        at = end;
    }
    file.write_all_at(&data[from..], position + from as u64)
}
