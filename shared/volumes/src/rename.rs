//! Renames that never replace by accident, and the exchange of two names in one step.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// What became of an attempt to exchange two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    Done,
    /// This filesystem or kernel cannot do it.
    Unsupported,
}

/// Exchanges what two names stand for, in one step.
pub(crate) fn exchange(
    first_directory: impl AsFd,
    first: impl Arg,
    second_directory: impl AsFd,
    second: impl Arg,
) -> Result<Exchange, Errno> {
    match rustix::fs::renameat_with(first_directory, first, second_directory, second, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(Exchange::Done),
        Err(errno) if is_unsupported(errno) => Ok(Exchange::Unsupported),
        Err(errno) => Err(errno),
    }
}

/// Renames to a name that is free; `EXIST` if it is not.
pub(crate) fn place(
    old_directory: impl AsFd,
    old: impl Arg + Copy,
    new_directory: impl AsFd,
    new: impl Arg + Copy,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(&old_directory, old, &new_directory, new, RenameFlags::NOREPLACE) {
        // The nearest thing there is: a look, then a rename.
        Err(errno) if is_unsupported(errno) => {
            match rustix::fs::statat(&new_directory, new, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => rustix::fs::renameat(old_directory, old, new_directory, new),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    }
}

fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP)
}
