use domain_model::{BackupId, Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::project_restore::BackupChoice;
use super::{KindDefinition, RoutingRule, no_host, normalise, schema};

/// Input of `project-start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectStartInput {
    /// What to restore where the host has no files of the project; `latest` for its newest backup, if it has any.
    #[serde(default = "latest")]
    pub backup_id: BackupChoice,
}

fn latest() -> BackupChoice {
    BackupChoice::Latest
}

/// Result of `project-start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectStartResult {
    /// The backup that was restored, because the host had no files of the project; null where it had, or there was no
    /// backup either.
    pub restored: Option<BackupId>,
    /// How many files were restored.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// Whether the host has a command that starts projects, and it was run.
    pub command_run: bool,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "project-start",
    description: "Starts a project on its host, after restoring its files from a backup where the host has none",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[
        Phase { name: "volume", weight: 2 },
        Phase { name: "repository", weight: 2 },
        Phase { name: "download", weight: 80 },
        Phase { name: "verify", weight: 3 },
        Phase { name: "exchange", weight: 4 },
        Phase { name: "clean-up", weight: 1 },
        Phase { name: "command", weight: 8 },
    ],
    max_attempts: 3,
    time_to_live_s: 24 * 3600,
    exclusive: true,
    gives_way: false,
    uses_repository: true,
    part_of: None,
    for_tests: false,
    example_input: r#"{"backup_id":"latest"}"#,
    normalise_input: &|input| normalise::<ProjectStartInput>("project-start", input),
    host_in_input: no_host,
    input_schema: &schema::<ProjectStartInput>,
    result_schema: &schema::<ProjectStartResult>,
};
