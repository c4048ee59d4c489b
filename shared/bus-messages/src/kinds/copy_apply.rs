use domain_model::{CopyId, OperationId, Phase, ProjectId, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CopyEntry, CopyOptions, KindDefinition, RoutingRule, no_host, normalise, schema};

/// Where a destination's host has the files from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopiedFrom {
    /// The source project is on the same host.
    Host,
    /// From the copy's snapshot in the bucket.
    Bucket,
}

/// Input of `copy-apply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyApplyInput {
    /// Which copy.
    pub copy_id: CopyId,
    /// The `project-copy` that it is a part of.
    pub copy_op_id: OperationId,
    /// Whose files.
    pub source_project_id: ProjectId,
    /// Where they come from.
    pub from: CopiedFrom,
    /// What goes where.
    pub entries: Vec<CopyEntry>,
    /// How.
    pub options: CopyOptions,
}

/// Result of `copy-apply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CopyApplyResult {
    /// How many files were copied; those that were kept are among them.
    pub files: u64,
    /// How many directories.
    pub directories: u64,
    /// How many bytes the files have.
    pub bytes: u64,
    /// How many files took the place of others.
    pub replaced: u64,
    /// How many that were there already were kept.
    pub kept: u64,
    /// Devices and sockets, which are not copied.
    pub skipped_special: u64,
    /// Whether the filesystem shares all data with what it was copied from.
    pub cloned: bool,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "copy-apply",
    description: "Part of project-copy: puts the copied files in place in one project, staged first",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[Phase { name: "download", weight: 60 }, Phase { name: "copy", weight: 40 }],
    max_attempts: 5,
    time_to_live_s: 7 * 24 * 3600,
    exclusive: true,
    gives_way: false,
    uses_repository: true,
    part_of: Some("project-copy"),
    for_tests: false,
    example_input: r#"{"copy_id":"0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11","copy_op_id":"0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a12","source_project_id":"0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a13","from":"bucket","entries":[{"from":"handout","to":"handout"}],"options":{}}"#,
    normalise_input: &|input| normalise::<CopyApplyInput>("copy-apply", input),
    host_in_input: no_host,
    input_schema: &schema::<CopyApplyInput>,
    result_schema: &schema::<CopyApplyResult>,
};
