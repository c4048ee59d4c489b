use domain_model::{BackupId, Phase, ScopeType, Tag};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};
use crate::ApiError;

/// Input of `project-backup`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectBackupInput {
    /// Words to find it by, at most 16.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// Whether retention is to leave it alone.
    #[serde(default)]
    pub pinned: bool,
}

/// What the files were read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A read-only snapshot: one moment.
    BtrfsSnapshot,
    /// The live tree: files that changed meanwhile may be of different moments.
    Live,
}

/// Result of `project-backup`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectBackupResult {
    /// The backup.
    pub backup_id: BackupId,
    /// How many files are in it.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// How many bytes it added to the repository.
    pub bytes_added: u64,
    /// The backup that it was compared with.
    pub parent: Option<BackupId>,
    /// What the files were read from.
    pub source: SourceKind,
    /// The digest of its tree, which a restore must arrive at.
    pub tree: String,
    /// When the files were frozen, or reading of the live tree began.
    pub snapshot_at: domain_model::Timestamp,
    /// Changes whenever the files change: what they had when they were frozen; null where that cannot be told.
    #[serde(default)]
    pub generation: Option<i64>,
    /// Files that were gone when they were to be read; 0 on a snapshot.
    #[serde(default)]
    pub vanished: u64,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "project-backup",
    description: "Backs up the files and the persist store of a project, from a snapshot where there are snapshots",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[
        Phase { name: "repository", weight: 2 },
        Phase { name: "snapshot", weight: 3 },
        Phase { name: "upload", weight: 94 },
        Phase { name: "clean-up", weight: 1 },
    ],
    max_attempts: 5,
    time_to_live_s: 7 * 24 * 3600,
    exclusive: true,
    gives_way: false,
    uses_repository: true,
    part_of: None,
    for_tests: false,
    example_input: r#"{"tags":["before-exam"],"pinned":false}"#,
    normalise_input: &|input| {
        let normalised = normalise::<ProjectBackupInput>("project-backup", input)?;
        let tags = normalised["tags"].as_array().map_or(0, Vec::len);
        if tags > 16 {
            return Err(ApiError::invalid_argument(format!("a backup has at most 16 tags, not {tags}")));
        }
        Ok(normalised)
    },
    host_in_input: no_host,
    input_schema: &schema::<ProjectBackupInput>,
    result_schema: &schema::<ProjectBackupResult>,
};
