//! Copying the data of one file: shared where the filesystem can, else copied with its holes.

use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// How much is copied between two questions whether to go on.
const CHUNK_BYTES: u64 = 8 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// How the data of a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataCopy {
    /// Both files share it until one of them changes.
    Shared,
    /// It was read and written.
    Written,
}

/// Copies the data of `source` (of `size` bytes) into `target`, which is empty. `go_on` is told how many bytes more
/// are done; `Break` is passed on, and leaves the target incomplete.
pub(crate) fn copy_data(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    size: u64,
    go_on: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<ControlFlow<(), DataCopy>, Errno> {
    if size == 0 {
        return Ok(ControlFlow::Continue(DataCopy::Shared));
    }
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => return Ok(go_on(size).map_continue(|()| DataCopy::Shared)),
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(errno),
        // Another filesystem, one that cannot share, a file without copy on write: there are many reasons.
        Err(_) => {}
    }
    Ok(write_data(source, target, size, &copy_range, go_on)?.map_continue(|()| DataCopy::Written))
}

/// Copies some bytes at an offset and tells how many; 0 at the end of the source.
type CopyRange = dyn Fn(BorrowedFd<'_>, BorrowedFd<'_>, u64, u64) -> Result<u64, Errno>;

fn write_data(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    size: u64,
    copy_range: &CopyRange,
    go_on: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Errno> {
    let mut told = 0;
    let mut offset = 0;
    while offset < size {
        let begin = match rustix::fs::seek(source, SeekFrom::Data(offset)) {
            Ok(begin) => begin,
            // A hole up to the end, or a file that was cut short in the meantime.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => offset,
            Err(errno) => return Err(errno),
        };
        let end = match rustix::fs::seek(source, SeekFrom::Hole(begin)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => size,
            Err(errno) => return Err(errno),
        };
        offset = begin;
        while offset < end {
            let copied = copy_range(source, target, offset, (end - offset).min(CHUNK_BYTES))?;
            if copied == 0 {
                break;
            }
            offset += copied;
            if go_on(offset - told).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            told = offset;
        }
        // Cut short between the look and the reading.
        if offset < end {
            break;
        }
    }
    // The hole at the end, if there is one.
    let size_now = u64::try_from(rustix::fs::fstat(source)?.st_size).unwrap_or(0);
    rustix::fs::ftruncate(target, size.min(size_now))?;
    Ok(go_on(size.saturating_sub(told)))
}

fn copy_range(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> Result<u64, Errno> {
    let (mut from, mut to) = (offset, offset);
    let length_here = usize::try_from(length).unwrap_or(usize::MAX);
    match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length_here) {
        Ok(copied) => Ok(copied as u64),
        Err(Errno::XDEV | Errno::NOSYS | Errno::NOTSUP | Errno::INVAL | Errno::PERM) => {
            read_and_write(source, target, offset, length)
        }
        Err(errno) => Err(errno),
    }
}

fn read_and_write(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> Result<u64, Errno> {
    let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(length).unwrap_or(BUFFER_BYTES))];
    let read = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..], offset))?;
    let mut written = 0;
    while written < read {
        let at = offset + written as u64;
        written += rustix::io::retry_on_intr(|| rustix::io::pwrite(target, &buffer[written..read], at))?;
    }
    Ok(read as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn go_on(_: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn data_that_is_written_keeps_its_holes_whichever_call_moves_it() {
        let directory = crate::test_support::temporary_directory();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for (size, data) in [
            (0, vec![]),
            (1, vec![0]),
            (5 << 20, vec![]),
            (5 << 20, vec![0, 3 << 20]),
            (5 << 20, vec![(5 << 20) - 3]),
            (3, vec![0, 1, 2]),
        ] {
            let source = File::create_new(&from).unwrap();
            source.set_len(size).unwrap();
            for offset in &data {
                source.write_all_at(b"x", *offset).unwrap();
            }
            let source = File::open(&from).unwrap();
            for way in [&copy_range as &CopyRange, &read_and_write] {
                let target = File::create_new(&to).unwrap();
                let done = write_data(source.as_fd(), target.as_fd(), size, way, &mut go_on).unwrap();
                assert!(done.is_continue());
                assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
                assert!(target.metadata().unwrap().blocks() <= source.metadata().unwrap().blocks());
                std::fs::remove_file(&to).unwrap();
            }
            std::fs::remove_file(&from).unwrap();
        }
    }

    #[test]
    fn a_copy_tells_every_byte_and_stops_when_it_is_told_to() {
        let directory = crate::test_support::temporary_directory();
        let size = 3 * CHUNK_BYTES + 1;
        std::fs::write(directory.path().join("from"), vec![7; size as usize]).unwrap();
        let source = File::open(directory.path().join("from")).unwrap();
        let target = File::create(directory.path().join("to")).unwrap();
        let mut told = 0;
        let mut add = |bytes| {
            told += bytes;
            ControlFlow::Continue(())
        };
        let way = &copy_range as &CopyRange;
        assert!(write_data(source.as_fd(), target.as_fd(), size, way, &mut add).unwrap().is_continue());
        assert_eq!(told, size);
        let mut chunks = 0;
        let mut stop = |_| {
            chunks += 1;
            ControlFlow::Break(())
        };
        assert!(write_data(source.as_fd(), target.as_fd(), size, way, &mut stop).unwrap().is_break());
        assert_eq!(chunks, 1);
    }
}
