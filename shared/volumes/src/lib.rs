//! The files of projects on a project-host: volumes, snapshots, and replacing a tree without ever being between.
//!
//! A project is two trees, its files (`<host root>/projects/<project>/`) and its persist store
//! (`<host root>/persist/<project>/`), and people work in them while this crate is at work. Two things go wrong
//! in a plain implementation:
//!
//! - *A backup of a tree that changes while it is read* holds a state that never was. Where the host root is
//!   on btrfs, [`HostRoot::snapshot`] freezes both trees first; elsewhere the live trees are read, and
//!   [`BackupSource::kind`] says so.
//! - *A restore into the live tree* leaves, after a crash, a mixture of old and new, or no home at all. Here a
//!   restore is staged beside the live tree, and then exchanged with it by one rename. Two trees need two
//!   renames, so a journal on disk says what is intended before it is done, and [`HostRoot::recover`] ends what a
//!   crash has interrupted: fully old or fully new, never between.
//!
//! A copy from another project meets both: it comes into a live tree, and its source may be live too. It is staged
//! inside the tree, merged into it by renames, and never applied twice ([`HostRoot::copy_into`]).
//!
//! What a tenant can write is never trusted with a path: inside a project the crate walks with directory handles
//! that follow no symbolic link, and its journals lie outside, in directories of the host's own.
//!
//! The layout of a host root:
//!
//! ```text
//! projects/<project>/                  live files (a btrfs subvolume where possible)
//! persist/<project>/                   live persist store (likewise)
//! snapshots/<op>/{project,persist}     read-only snapshots of a running backup
//! staging/<op>/journal.json            what a restore or a copy intends, and how far it is
//! staging/<op>/{project,persist}       the trees of a whole restore (after the exchange: the old ones)
//! projects/<project>/.longhaul-staging-<op>/   the content of a path restore or a copy (a rename cannot leave a
//!                                      subvolume); after the exchange, what a path restore has replaced
//! copies/<id>/                         what a copy brings to this host, or takes from it
//! ```
//!
//! The API is synchronous; a caller in async code runs it on a thread for blocking work.

mod btrfs;
mod compare;
mod copy_directory;
mod copy_into;
mod deletion;
mod error;
mod exchange;
mod file_data;
mod generation;
mod grouped_sync;
mod host_root;
mod journal;
mod merge;
mod operation_directory;
mod pair_walk;
mod path_restore;
mod recovery;
mod rename;
mod snapshot;
mod steps;
mod tree_copy;
mod whole_restore;

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod test_support;

pub use compare::{Difference, DifferenceKind, MAX_DIFFERENCES, compare_trees};
pub use copy_directory::CopyDirectory;
pub use copy_into::{CopyEntry, CopyOptions, CopyProgress, CopyReceipt, CopyRequest, Overwrite};
pub use error::{VolumeError, VolumeErrorKind};
pub use generation::Generations;
pub use host_root::{Filesystem, HostRoot, Presence, Space, Volume, VolumeOptions};
pub use path_restore::{Conflict, PathOutcome, StagedPath};
pub use recovery::RecoveryReport;
pub use snapshot::{BackupSource, FrozenFiles, SourceKind};
pub use whole_restore::Staged;
