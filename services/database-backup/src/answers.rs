//! What the API answers, field by field.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::copy::TableRows;
use crate::operations::{FailureAnswer, Operation};
use crate::store::{Backup, LATEST_RESTORED, rfc3339};

/// What a backup is tagged with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tags {
    /// Why it was taken: `shutdown`, `manual` or `scheduled`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A backup that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupTaken {
    /// Always true.
    pub success: bool,
    /// Its id.
    pub backup_id: String,
    /// When, as RFC 3339.
    pub timestamp: String,
    /// Size of the database, for people: `142MB`.
    pub size: String,
    /// Its tags.
    pub tags: Tags,
    /// Size of the database in bytes.
    pub bytes: u64,
    /// SHA-256 of the database.
    pub sha256: String,
    /// Rows of each table, as they were read when the copy was checked.
    pub tables: Vec<TableRows>,
}

/// A backup in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupListed {
    /// Its id.
    pub id: String,
    /// Why it was taken: `shutdown`, `manual` or `scheduled`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `latest_restored`, if it is the one that was restored last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// When, as RFC 3339.
    pub timestamp: String,
    /// Size for people: `142MB`.
    pub size: String,
    /// Size of the database in bytes; of the object, where that says nothing about itself.
    pub bytes: u64,
    /// SHA-256 of the database; none for an object that something else has stored.
    pub sha256: Option<String>,
}

impl From<&Backup> for BackupListed {
    fn from(backup: &Backup) -> Self {
        let bytes = backup.facts.as_ref().map_or(backup.stored_bytes, |facts| facts.bytes);
        Self {
            id: backup.id.to_string(),
            kind: backup.kind.clone(),
            status: backup.latest_restored.then(|| LATEST_RESTORED.to_owned()),
            timestamp: rfc3339(backup.timestamp),
            size: size_for_people(bytes),
            bytes,
            sha256: backup.facts.as_ref().map(|facts| facts.sha256.clone()),
        }
    }
}

/// All backups, newest first.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct BackupList {
    /// The backups.
    pub(crate) backups: Vec<BackupListed>,
}

/// A restored database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Always true.
    pub success: bool,
    /// The backup; none after a rollback to what was no backup.
    pub backup_id: Option<String>,
    /// Whether the rollback copy was put back.
    pub rolled_back: bool,
    /// Size of the database in bytes.
    pub bytes: u64,
    /// SHA-256 of it, compared with what was recorded; none where nothing was.
    pub sha256: Option<String>,
    /// Rows of each table, as they were read before it was put in place.
    pub tables: Vec<TableRows>,
    /// What was there before.
    pub rollback_copy: Option<String>,
}

/// An operation that takes longer than the request waits.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Accepted {
    /// Always true: it goes on.
    pub(crate) success: bool,
    /// Its id; `GET /api/health` tells what became of it.
    pub(crate) op: String,
    /// `running`.
    pub(crate) status: String,
}

/// Something that was not done.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Refused {
    /// Always false.
    pub(crate) success: bool,
    /// Why.
    pub(crate) error: FailureAnswer,
}

/// A status that was set.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusSet {
    /// Always true.
    pub(crate) success: bool,
    /// The backup.
    pub(crate) backup_id: String,
    /// Its status.
    pub(crate) status: String,
}

/// The body of `PUT /api/admin/backup/:id/status`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetStatus {
    /// `latest_restored`; there is no other.
    pub(crate) status: String,
}

/// The body of `POST /api/admin/restore`: one of the two.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RestoreRequest {
    /// The backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// Put back what was there before the last restore.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
}

/// How the service is.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthAnswer {
    /// `ok`, `at_risk` (too long without a backup), `failed` (the last backup failed) or `disabled`.
    pub status: String,
    /// When the newest backup was taken, as far as this process knows.
    pub last_backup: Option<String>,
    /// Seconds since then.
    pub age_seconds: Option<u64>,
    /// Copies that wait for their upload.
    pub pending_uploads: usize,
    /// What runs and what ended last, newest first.
    pub operations: Vec<Operation>,
}

/// `142MB`, as the list shows it.
pub fn size_for_people(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{}KB", (bytes + 500) / 1_000),
        1_000_000..1_000_000_000 => format!("{}MB", (bytes + 500_000) / 1_000_000),
        _ => format!("{:.1}GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_in_the_document() {
        let sizes = [999, 4_600, 142_000_000, 1_234_000_000].map(size_for_people);
        assert_eq!(sizes, ["999B", "5KB", "142MB", "1.2GB"]);
    }
}
