use std::cell::RefCell;
use std::io::{self, Read};

use super::{Decoder, Encoder};
use crate::bulk::{Compressor, Decompressor};

/// Up to so many bytes are compressed or decompressed at once, with what the thread has used before.
const MOST_AT_ONCE: usize = 64 * 1024 * 1024;

thread_local! {
    static COMPRESSOR: RefCell<Compressor<'static>> = RefCell::default();
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::default();
}

/// Decompress from the given source as if using a `Decoder`.
///
/// The input data must be in the zstd frame format.
pub fn decode_all<R: io::Read>(mut source: R) -> io::Result<Vec<u8>> {
    let mut frame = Vec::new();
    (&mut source)
        .take(MOST_AT_ONCE as u64 + 1)
        .read_to_end(&mut frame)?;
    if let Ok(Some(length)) = zstd_safe::get_frame_content_size(&frame) {
        if frame.len().max(length as usize) <= MOST_AT_ONCE {
            let decompressed = DECOMPRESSOR.with(|decompressor| {
                decompressor
                    .borrow_mut()
                    .decompress(&frame, length as usize)
            });
            if let Ok(decompressed) = decompressed {
                return Ok(decompressed);
            }
        }
    }
    // Of unknown length, in several frames, large or damaged.
    let mut result = Vec::new();
    copy_decode(frame.as_slice().chain(source), &mut result)?;
    Ok(result)
}

/// Decompress from the given source as if using a `Decoder`.
///
/// Decompressed data will be appended to `destination`.
pub fn copy_decode<R, W>(source: R, mut destination: W) -> io::Result<()>
where
    R: io::Read,
    W: io::Write,
{
    let mut decoder = Decoder::new(source)?;
    io::copy(&mut decoder, &mut destination)?;
    Ok(())
}

/// Compress all data from the given source as if using an `Encoder`.
///
/// Result will be in the zstd frame format.
///
/// A level of `0` uses zstd's default (currently `3`).
pub fn encode_all<R: io::Read>(
    mut source: R,
    level: i32,
) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    (&mut source)
        .take(MOST_AT_ONCE as u64 + 1)
        .read_to_end(&mut data)?;
    if data.len() <= MOST_AT_ONCE {
        return COMPRESSOR.with(|compressor| {
            let mut compressor = compressor.borrow_mut();
            compressor.set_compression_level(level)?;
            compressor.compress(&data)
        });
    }
    let mut result = Vec::<u8>::new();
    copy_encode(data.as_slice().chain(source), &mut result, level)?;
    Ok(result)
}

/// Compress all data from the given source as if using an `Encoder`.
///
/// Compressed data will be appended to `destination`.
///
/// A level of `0` uses zstd's default (currently `3`).
pub fn copy_encode<R, W>(
    mut source: R,
    destination: W,
    level: i32,
) -> io::Result<()>
where
    R: io::Read,
    W: io::Write,
{
    let mut encoder = Encoder::new(destination, level)?;
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {}
