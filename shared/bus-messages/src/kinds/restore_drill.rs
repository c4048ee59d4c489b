use domain_model::{BackupId, Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ApiError;

use super::{BackupChoice, KindDefinition, RoutingRule, no_host, normalise, schema};

/// Input of `restore-drill`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreDrillInput {
    /// Which backup; `latest` for the newest.
    #[serde(default = "latest")]
    pub backup_id: BackupChoice,
    /// Only this share of its files, more than 0 and at most 1; all of them where null. The names and everything else that
    /// was recorded of all files are compared in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Chooses the files of a share; by chance where null. The same seed chooses the same files of a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

fn latest() -> BackupChoice {
    BackupChoice::Latest
}

/// What a drill has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The backup restores to what was recorded when it was made.
    Match,
    /// It does not: it is bad from now on.
    Mismatch,
}

/// Result of `restore-drill`. That a backup is bad is a result, too: the drill has done its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreDrillResult {
    /// Which backup was restored.
    pub backup_id: BackupId,
    /// Whether it is what it was.
    pub proof: Proof,
    /// Why it is not.
    pub reason: Option<String>,
    /// How many files were restored and compared.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// Seconds that the attempt took.
    pub duration_s: f64,
    /// Which files they were, where they were not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<DrillSample>,
}

/// The files of a drill that did not restore all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrillSample {
    /// The share that was asked for.
    pub share: f64,
    /// What chose them.
    pub seed: u64,
    /// How many files the backup has.
    pub of_files: u64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "restore-drill",
    description: "Restores a backup, or a sample of its files, beside the project's files, compares it with what was recorded, and deletes it",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[
        Phase { name: "repository", weight: 2 },
        Phase { name: "download", weight: 95 },
        Phase { name: "clean-up", weight: 3 },
    ],
    max_attempts: 5,
    time_to_live_s: 7 * 24 * 3600,
    exclusive: true,
    gives_way: true,
    uses_repository: true,
    part_of: None,
    for_tests: false,
    example_input: r#"{"backup_id":"latest"}"#,
    normalise_input: &|input| {
        let normalised = normalise::<RestoreDrillInput>("restore-drill", input)?;
        match normalised.get("share").and_then(serde_json::Value::as_f64) {
            Some(share) if !(share > 0.0 && share <= 1.0) => {
                Err(ApiError::invalid_argument("share is more than 0 and at most 1"))
            }
            None if normalised.get("seed").is_some() => {
                Err(ApiError::invalid_argument("seed goes with share"))
            }
            _ => Ok(normalised),
        }
    },
    host_in_input: no_host,
    input_schema: &schema::<RestoreDrillInput>,
    result_schema: &schema::<RestoreDrillResult>,
};
