//! The bytes of a backup on their way: hashed, compressed where that is asked for, and back.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use object_storage::{ObjectKey, ObjectStore};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::failure::{Failure, FailureKind, Result};

/// Bytes asked for by one request.
const RANGE_BYTES: u64 = 8 * 1024 * 1024;

/// Requests under way at once.
const RANGES_AT_ONCE: usize = 3;

/// Bytes read from a file at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// SHA-256 and size of a file; where `compressed` names a file, that becomes the same with zstd.
pub(crate) async fn hash_and_compress(file: &Path, compressed: Option<&Path>) -> Result<(String, u64)> {
    let (file, compressed) = (file.to_owned(), compressed.map(Path::to_owned));
    let work = move || {
        let mut from = File::open(&file)?;
        let mut to = match &compressed {
            Some(path) => Some(zstd::Encoder::new(File::create_new(path)?, 3)?),
            None => None,
        };
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            size += read as u64;
            if let Some(to) = &mut to {
                to.write_all(&buffer[..read])?;
            }
        }
        if let Some(to) = to {
            to.finish()?.sync_all()?;
        }
        Ok((hexadecimal(&hash.finalize()), size))
    };
    let done: std::result::Result<std::io::Result<(String, u64)>, _> =
        tokio::task::spawn_blocking(work).await;
    match done {
        Ok(done) => done.map_err(|error| Failure::io("reading the copy", error)),
        Err(error) => Err(Failure::new(FailureKind::Internal, "the reading was given up").with_source(error)),
    }
}

/// Downloads an object to a new file, uncompressed, and answers with the file's SHA-256 and size.
pub(crate) async fn download(
    objects: &Arc<dyn ObjectStore>,
    key: &ObjectKey,
    stored_bytes: u64,
    zstd: bool,
    target: &Path,
    progress: impl Fn(u64),
) -> Result<(String, u64)> {
    let target = target.to_owned();
    let (sender, receiver) = mpsc::channel::<bytes::Bytes>(1);
    let writer = tokio::task::spawn_blocking(move || {
        let file = Hashing { file: File::create_new(&target)?, hash: Sha256::new(), size: 0 };
        let written = if zstd {
            let mut decoder = zstd::stream::write::Decoder::new(file)?;
            let mut source = Chunks { receiver, chunk: bytes::Bytes::new() };
            std::io::copy(&mut source, &mut decoder)?;
            decoder.flush()?;
            decoder.into_inner()
        } else {
            let (mut file, mut receiver) = (file, receiver);
            while let Some(chunk) = receiver.blocking_recv() {
                file.write_all(&chunk)?;
            }
            file
        };
        written.file.sync_all()?;
        Ok::<_, std::io::Error>((hexadecimal(&written.hash.finalize()), written.size))
    });
    let ranges = (0..stored_bytes.div_ceil(RANGE_BYTES)).map(|number| {
        let offset = number * RANGE_BYTES;
        (offset, RANGE_BYTES.min(stored_bytes - offset))
    });
    let mut chunks = stream::iter(ranges)
        .map(|(offset, length)| objects.get_range(key, offset, length))
        .buffered(RANGES_AT_ONCE);
    let mut received = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(Failure::storage)?;
        received += chunk.len() as u64;
        if sender.send(chunk).await.is_err() {
            // The writer has failed, and says why below.
            break;
        }
        progress(received);
    }
    drop((chunks, sender));
    match writer.await {
        Ok(done) => done.map_err(|error| Failure::io("writing the download", error)),
        Err(error) => Err(Failure::new(FailureKind::Internal, "the writing was given up").with_source(error)),
    }
}

/// A file that is hashed as it is written.
struct Hashing {
    file: File,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Chunks as they arrive, for who reads.
struct Chunks {
    receiver: mpsc::Receiver<bytes::Bytes>,
    chunk: bytes::Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
