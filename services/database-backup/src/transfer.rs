//! The bytes of a backup on their way: hashed, compressed and encrypted where that is asked for, and back.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::x25519::{Identity, Recipient};
use futures::stream::{self, StreamExt};
use object_storage::{ObjectKey, ObjectStore};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::encryption::{decrypting, encrypting};
use crate::failure::{Failure, FailureKind, Result};

/// Bytes asked for by one request.
const RANGE_BYTES: u64 = 4 * 1024 * 1024;

/// Requests under way at once.
const RANGES_AT_ONCE: usize = 3;

/// Bytes read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// How hard zstd tries.
const ZSTD_LEVEL: i32 = 3;

/// A file that is made of the copy, and is uploaded in its place.
pub(crate) struct Packing {
    /// Where.
    pub(crate) file: PathBuf,
    /// Whether with zstd.
    pub(crate) compress: bool,
    /// For whom it is encrypted; for nobody, it is not.
    pub(crate) recipients: Vec<Recipient>,
}

/// SHA-256 and size of a file, which is packed on the way where that is asked for.
pub(crate) async fn hash_and_pack(file: &Path, packing: Option<Packing>) -> Result<(String, u64)> {
    let file = file.to_owned();
    let work = move || {
        let mut from = File::open(&file)?;
        let Some(packing) = packing else { return copy_hashed(&mut from, &mut io::sink()) };
        let mut packed = File::create_new(&packing.file)?;
        let done = if packing.recipients.is_empty() {
            compressed(&mut from, &mut packed, packing.compress)?
        } else {
            let mut encrypted = encrypting(&packing.recipients, &mut packed)?;
            let done = compressed(&mut from, &mut encrypted, packing.compress)?;
            encrypted.finish()?;
            done
        };
        packed.sync_all()?;
        Ok(done)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error: io::Error| Failure::io("reading the copy", error)),
        Err(error) => Err(Failure::new(FailureKind::Internal, "the reading was given up").with_source(error)),
    }
}

fn compressed(from: &mut File, to: &mut dyn Write, compress: bool) -> io::Result<(String, u64)> {
    if !compress {
        return copy_hashed(from, to);
    }
    let mut encoder = zstd::Encoder::new(to, ZSTD_LEVEL)?;
    let done = copy_hashed(from, &mut encoder)?;
    encoder.finish()?;
    Ok(done)
}

/// Copies everything, and tells its SHA-256 and size.
fn copy_hashed(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        size += read as u64;
    }
    Ok((hexadecimal(&hash.finalize()), size))
}

/// How an object is packed.
pub(crate) struct Packed {
    /// Whether with zstd.
    pub(crate) zstd: bool,
    /// What opens it, where it is encrypted.
    pub(crate) identities: Option<Vec<Identity>>,
}

/// Downloads an object to a new file, unpacked, and answers with the file's SHA-256 and size.
pub(crate) async fn download(
    objects: &Arc<dyn ObjectStore>,
    key: &ObjectKey,
    stored_bytes: u64,
    packed: Packed,
    target: &Path,
    progress: impl Fn(u64),
) -> Result<(String, u64)> {
    let target = target.to_owned();
    let (sender, receiver) = mpsc::channel::<bytes::Bytes>(1);
    let writer = tokio::task::spawn_blocking(move || {
        let mut source: Box<dyn Read> = Box::new(Chunks { receiver, chunk: bytes::Bytes::new() });
        if let Some(identities) = &packed.identities {
            source = Box::new(decrypting(identities, source)?);
        }
        let write = || {
            if packed.zstd {
                source = Box::new(zstd::Decoder::new(source)?);
            }
            let mut file = File::create_new(&target)?;
            let done = copy_hashed(&mut source, &mut file)?;
            file.sync_all()?;
            Ok(done)
        };
        write().map_err(unpacking)
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
        Ok(done) => done,
        Err(error) => Err(Failure::new(FailureKind::Internal, "the writing was given up").with_source(error)),
    }
}

/// Decoders say so, and a file never does, when what they read is damaged.
fn unpacking(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::Other => {
            let message = "what was downloaded cannot be unpacked: the backup is damaged";
            Failure::new(FailureKind::ChecksumMismatch, message).with_source(error)
        }
        _ => Failure::io("writing the download", error),
    }
}

/// Chunks as they arrive, for who reads.
struct Chunks {
    receiver: mpsc::Receiver<bytes::Bytes>,
    chunk: bytes::Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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
