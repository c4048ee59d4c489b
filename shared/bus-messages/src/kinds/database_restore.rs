use domain_model::{Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};
use crate::ApiError;

/// The longest name of a backup, in bytes.
const LONGEST_NAME: usize = 200;

/// Input of `database-restore`: a backup, or a rollback.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseRestoreInput {
    /// The name of the backup, or `latest`.
    #[serde(default)]
    pub backup_id: Option<String>,
    /// Put back what was there before the last restore.
    #[serde(default)]
    pub rollback: bool,
}

/// Result of `database-restore`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DatabaseRestoreResult {
    /// The backup that is in place now; none after a rollback to what was no backup.
    pub backup_id: Option<String>,
    /// Whether the rollback copy was put back.
    pub rolled_back: bool,
    /// Bytes of the database.
    pub bytes: u64,
    /// SHA-256 of it, compared with what was recorded; none where nothing was.
    pub sha256: Option<String>,
    /// The file that has what was there before; none where there was nothing.
    pub rollback_copy: Option<String>,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "database-restore",
    description: "Restores the database of the host's database-backup service, whose application must not run",
    scope: ScopeType::Host,
    routing: RoutingRule::ScopeHost,
    phases: &[
        Phase { name: "looking", weight: 1 },
        Phase { name: "downloading", weight: 60 },
        Phase { name: "checking", weight: 35 },
        Phase { name: "exchanging", weight: 4 },
    ],
    max_attempts: 3,
    time_to_live_s: 24 * 3600,
    exclusive: true,
    gives_way: false,
    uses_repository: false,
    part_of: None,
    for_tests: false,
    example_input: r#"{"backup_id":"latest","rollback":false}"#,
    normalise_input: &|input| {
        let normalised = normalise::<DatabaseRestoreInput>("database-restore", input)?;
        match (normalised["backup_id"].as_str(), normalised["rollback"] == true) {
            (Some(name), false) if is_name(name) => Ok(normalised),
            (None, true) => Ok(normalised),
            (Some(_), false) => Err(ApiError::invalid_argument(
                "backup_id is to be the name of a backup, as they are listed, or latest",
            )),
            _ => Err(ApiError::invalid_argument("give backup_id, or rollback: true")),
        }
    },
    host_in_input: no_host,
    input_schema: &schema::<DatabaseRestoreInput>,
    result_schema: &schema::<DatabaseRestoreResult>,
};

/// Whether it can be a part of a key. Which names there are is known to the service alone.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_restore_is_of_one_backup_or_a_rollback() {
        for good in [
            json!({ "backup_id": "latest" }),
            json!({ "backup_id": "hesocial-manual-20241230-153000.duckdb", "rollback": false }),
            json!({ "rollback": true }),
        ] {
            assert!((DEFINITION.normalise_input)(&good).is_ok(), "{good}");
        }
        for bad in [
            json!({}),
            json!({ "rollback": false }),
            json!({ "backup_id": "latest", "rollback": true }),
            json!({ "backup_id": "../x" }),
            json!({ "backup_id": "" }),
            json!({ "backup_id": "a".repeat(201) }),
        ] {
            assert_eq!((DEFINITION.normalise_input)(&bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
