use domain_model::{Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};

/// Input of `repo-prune`: nothing. What is to go is decided when it runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepoPruneInput {}

/// Result of `repo-prune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RepoPruneResult {
    /// Backups that are gone for good.
    pub forgotten: u64,
    /// Snapshots that no backup stood for, left by attempts that failed, and are gone.
    pub orphans: u64,
    /// Bytes of the packs before, as the object store listed them.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// How many bytes fewer these are.
    pub bytes_freed: u64,
    /// Bytes that are no longer needed, and are left to a later prune, because somebody may still be writing.
    pub bytes_waiting: u64,
    /// Requests to the object store.
    pub requests: u64,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "repo-prune",
    description: "Forgets the backups that are deleted or that the policy drops, and frees their space",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[
        Phase { name: "repository", weight: 2 },
        Phase { name: "retention", weight: 1 },
        Phase { name: "prune", weight: 97 },
    ],
    max_attempts: 5,
    time_to_live_s: 7 * 24 * 3600,
    // Never beside a backup, a restore or another prune of the project.
    exclusive: true,
    gives_way: true,
    uses_repository: true,
    part_of: None,
    for_tests: false,
    example_input: "{}",
    normalise_input: &|input| normalise::<RepoPruneInput>("repo-prune", input),
    host_in_input: no_host,
    input_schema: &schema::<RepoPruneInput>,
    result_schema: &schema::<RepoPruneResult>,
};
