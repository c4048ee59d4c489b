//! How bad backups are named.

use backup_repository::SnapshotId;
use domain_model::BackupId;
use operation_engine::OperationFailure;

/// How many a message names.
const MOST_NAMED: usize = 5;

/// The first of them, for people.
pub(crate) fn some_of(bad: &[BackupId]) -> String {
    let named: Vec<&str> = bad.iter().take(MOST_NAMED).map(BackupId::as_str).collect();
    named.join(", ")
}

/// The backups of these snapshots.
pub(crate) fn backups(snapshots: &[SnapshotId]) -> Result<Vec<BackupId>, OperationFailure> {
    let read = |id: &SnapshotId| {
        let read = id.to_string().parse();
        read.map_err(|error| OperationFailure::permanent("job", format!("{id}: {error}")))
    };
    snapshots.iter().map(read).collect()
}
