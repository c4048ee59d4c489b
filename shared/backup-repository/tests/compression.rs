//! The one change of `third-party/zstd`: what is compressed at once is what a stream would have been.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Read as _;

/// Half of it repeats.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| if n % 2 == 0 { b'a' } else { (n.wrapping_mul(2_654_435_761) >> 13) as u8 }).collect()
}

/// Whether a frame begins with the length of its content: never so of a stream.
fn tells_its_length(frame: &[u8]) -> bool {
    // The frame header descriptor: two bits for the width of the field, and "single segment", which implies it.
    frame[4] >> 5 != 0
}

#[test]
fn what_is_compressed_at_once_and_what_is_streamed_read_alike() {
    for length in [0, 1, 100, 2_000, 65_536, 1_000_000, 9_000_000] {
        for level in [0, 3, 10] {
            let data = bytes(length);
            let at_once = zstd::encode_all(&data[..], level).unwrap();
            assert!(tells_its_length(&at_once), "{length}: the published crate is in its place");
            let mut streamed = Vec::new();
            zstd::stream::copy_encode(&data[..], &mut streamed, level).unwrap();
            assert!(length == 0 || !tells_its_length(&streamed));
            for frame in [at_once, streamed] {
                assert_eq!(zstd::decode_all(&frame[..]).unwrap(), data, "{length} at {level}");
                let mut read = Vec::new();
                zstd::Decoder::new(&frame[..]).unwrap().read_to_end(&mut read).unwrap();
                assert_eq!(read, data, "{length} at {level}, as a stream");
            }
        }
    }
}

#[test]
fn several_frames_are_read_and_damaged_ones_are_not() {
    let frame = zstd::encode_all(&bytes(5_000)[..], 3).unwrap();
    let twice = [&frame[..], &frame[..]].concat();
    assert_eq!(zstd::decode_all(&twice[..]).unwrap(), [bytes(5_000), bytes(5_000)].concat());
    assert!(zstd::decode_all(&frame[..frame.len() - 1]).is_err());
    assert!(zstd::decode_all(&[&frame[..], b"and more"].concat()[..]).is_err());
    assert!(zstd::decode_all(&b"no frame"[..]).is_err());
    // After an error the same thread goes on.
    assert_eq!(zstd::decode_all(&frame[..]).unwrap(), bytes(5_000));
}

#[test]
fn what_is_too_large_to_be_compressed_at_once_is_streamed() {
    let data = bytes(70 << 20);
    let frame = zstd::encode_all(&data[..], 1).unwrap();
    assert!(!tells_its_length(&frame));
    assert_eq!(zstd::decode_all(&frame[..]).unwrap(), data);
}
