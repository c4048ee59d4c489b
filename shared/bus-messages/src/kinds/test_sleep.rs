use domain_model::{Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};
use crate::ApiError;

/// Input of `test-sleep`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestSleepInput {
    /// Seconds in all, 0–600.
    pub seconds: f64,
    /// Steps, 1–1,000; each leaves a checkpoint.
    #[serde(default = "one")]
    pub steps: u32,
    /// Fails at this step, counted from 1.
    #[serde(default)]
    pub fail_at_step: Option<u32>,
    /// Children of the same kind that it waits for, 0–100; each takes as long as one step.
    #[serde(default)]
    pub children: u32,
}

fn one() -> u32 {
    1
}

/// Result of `test-sleep`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TestSleepResult {
    /// Steps that were done, over all attempts.
    pub steps: u32,
    /// The attempt that ended it.
    pub attempt: u32,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "test-sleep",
    description: "For tests: sleeps in steps, with checkpoints and children",
    scope: ScopeType::Hub,
    routing: RoutingRule::Hub,
    phases: &[Phase { name: "children", weight: 1 }, Phase { name: "sleep", weight: 9 }],
    max_attempts: 3,
    time_to_live_s: 24 * 3600,
    exclusive: false,
    gives_way: false,
    uses_repository: false,
    part_of: None,
    for_tests: true,
    example_input: r#"{"seconds":2,"steps":10,"fail_at_step":null,"children":0}"#,
    normalise_input: &|input| {
        let normalised = normalise::<TestSleepInput>("test-sleep", input)?;
        let within = |field: &str, low: f64, high: f64| match normalised[field].as_f64() {
            Some(value) if !(low..=high).contains(&value) => {
                Err(ApiError::invalid_argument(format!("{field} is to be from {low} to {high}, not {value}")))
            }
            _ => Ok(()),
        };
        within("seconds", 0.0, 600.0)?;
        within("steps", 1.0, 1000.0)?;
        within("children", 0.0, 100.0)?;
        Ok(normalised)
    },
    host_in_input: no_host,
    input_schema: &schema::<TestSleepInput>,
    result_schema: &schema::<TestSleepResult>,
};
