//! The kinds of operation that this service does; one file a kind.

mod project_backup;
mod project_restore;

pub(crate) use project_backup::ProjectBackup;
pub(crate) use project_restore::ProjectRestore;
