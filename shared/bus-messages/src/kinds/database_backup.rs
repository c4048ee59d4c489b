use domain_model::{Phase, ScopeType, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};

/// Input of `database-backup`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseBackupInput {}

/// Result of `database-backup`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DatabaseBackupResult {
    /// The name of the backup: `hesocial-manual-20241230-153000.duckdb`.
    pub backup_id: String,
    /// The moment whose state it is of, to the second.
    pub timestamp: Timestamp,
    /// Bytes of the database.
    pub bytes: u64,
    /// SHA-256 of the database, as 64 hexadecimal digits.
    pub sha256: String,
    /// Tables that were read before the upload.
    pub tables: u64,
    /// Rows of all of them.
    pub rows: u64,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "database-backup",
    description: "Backs up the database of the host's database-backup service",
    scope: ScopeType::Host,
    routing: RoutingRule::ScopeHost,
    phases: &[
        Phase { name: "looking", weight: 1 },
        Phase { name: "copying", weight: 9 },
        Phase { name: "checking", weight: 25 },
        Phase { name: "hashing", weight: 15 },
        Phase { name: "uploading", weight: 50 },
    ],
    max_attempts: 5,
    time_to_live_s: 24 * 3600,
    // Of the same file; a backup in the middle of a restore would be refused.
    exclusive: true,
    gives_way: false,
    uses_repository: false,
    part_of: None,
    for_tests: false,
    example_input: "{}",
    normalise_input: &|input| normalise::<DatabaseBackupInput>("database-backup", input),
    host_in_input: no_host,
    input_schema: &schema::<DatabaseBackupInput>,
    result_schema: &schema::<DatabaseBackupResult>,
};
