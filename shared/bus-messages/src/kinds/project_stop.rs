use domain_model::{Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};

/// Input of `project-stop`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectStopInput {}

/// Result of `project-stop`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectStopResult {
    /// Whether the host has a command that stops projects, and it was run.
    pub command_run: bool,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "project-stop",
    description: "Stops a project on its host",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[Phase { name: "command", weight: 100 }],
    max_attempts: 3,
    time_to_live_s: 24 * 3600,
    exclusive: true,
    gives_way: false,
    uses_repository: false,
    part_of: None,
    for_tests: false,
    example_input: "{}",
    normalise_input: &|input| normalise::<ProjectStopInput>("project-stop", input),
    host_in_input: no_host,
    input_schema: &schema::<ProjectStopInput>,
    result_schema: &schema::<ProjectStopResult>,
};
