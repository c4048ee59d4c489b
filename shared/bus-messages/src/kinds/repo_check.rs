use domain_model::{BackupId, Phase, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};
use crate::ApiError;

/// The most shares that reading all data can be divided into: a check a day then reads all within a year.
const MOST_SHARES: u32 = 366;

/// Input of `repo-check`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepoCheckInput {
    /// Also read one of so many shares of the packs, and compare it with its hashes; 0 for none, 1 for all. Which
    /// share goes by the day, so that a check a day reads all within so many days.
    #[serde(default)]
    pub read_data_shares: u32,
    /// Read this share, from 0, instead of the day's.
    #[serde(default)]
    pub share: Option<u32>,
}

/// Result of `repo-check`. A repository that is not sound is a failure, `repository_damaged`, with a [`RepositoryDamage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RepoCheckResult {
    /// Of how many shares one was read; 0 for none.
    pub read_data_shares: u32,
    /// Which share was read.
    pub share: Option<u32>,
    /// What is strange and harmless.
    pub warnings: u64,
    /// Requests to the object store.
    pub requests: u64,
    /// Seconds that the attempt took.
    pub duration_s: f64,
}

/// Result of a `repo-check` that has failed with `repository_damaged`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryDamage {
    /// Backups that need data which the repository has lost: they are bad until a check finds the repository sound again. The
    /// newest three hundred.
    pub lacking: Vec<BackupId>,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "repo-check",
    description: "Checks that a repository has everything that its backups name, and reads a share of its data",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[Phase { name: "repository", weight: 2 }, Phase { name: "check", weight: 98 }],
    max_attempts: 5,
    time_to_live_s: 7 * 24 * 3600,
    // A prune that goes on beside it would look like damage.
    exclusive: true,
    gives_way: true,
    uses_repository: true,
    part_of: None,
    for_tests: false,
    example_input: r#"{"read_data_shares":30}"#,
    normalise_input: &|input| {
        let normalised = normalise::<RepoCheckInput>("repo-check", input)?;
        let shares = normalised["read_data_shares"].as_u64().unwrap_or_default();
        if shares > u64::from(MOST_SHARES) {
            return Err(ApiError::invalid_argument(format!("read_data_shares is at most {MOST_SHARES}")));
        }
        if normalised["share"].as_u64().is_some_and(|share| share >= shares) {
            return Err(ApiError::invalid_argument("share is to be less than read_data_shares"));
        }
        Ok(normalised)
    },
    host_in_input: no_host,
    input_schema: &schema::<RepoCheckInput>,
    result_schema: &schema::<RepoCheckResult>,
};
