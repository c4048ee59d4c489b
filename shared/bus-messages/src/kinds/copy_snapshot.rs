use domain_model::{BackupId, Phase, ProjectPath, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, SourceKind, no_host, normalise, schema};

/// Input of `copy-snapshot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopySnapshotInput {
    /// What is copied.
    pub paths: Vec<ProjectPath>,
    /// Whether what symbolic links lead to is copied, not the links.
    pub dereference: bool,
    /// Whether files of a running project that cannot be frozen are copied all the same.
    pub force: bool,
}

/// Result of `copy-snapshot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CopySnapshotResult {
    /// The snapshot, in the copy's own repository.
    pub snapshot_id: BackupId,
    /// How many files are in it.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// Whether they were frozen.
    pub source: SourceKind,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "copy-snapshot",
    description: "Part of project-copy: one snapshot of the paths alone, in a repository made for this copy",
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
    exclusive: false,
    gives_way: false,
    // What it may use is asked for, so that it is decided when the work begins.
    uses_repository: false,
    part_of: Some("project-copy"),
    for_tests: false,
    example_input: r#"{"paths":["handout"],"dereference":false,"force":true}"#,
    normalise_input: &|input| normalise::<CopySnapshotInput>("copy-snapshot", input),
    host_in_input: no_host,
    input_schema: &schema::<CopySnapshotInput>,
    result_schema: &schema::<CopySnapshotResult>,
};
