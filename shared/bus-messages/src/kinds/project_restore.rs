use std::fmt;
use std::str::FromStr;

use domain_model::{BackupId, BackupIdError, HostId, LayoutPath, LayoutRoot, Phase, ProjectPath, ScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KindDefinition, RoutingRule, normalise, schema};
use crate::ApiError;

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupChoice {
    /// The newest.
    Latest,
    /// This one.
    Id(BackupId),
}

impl fmt::Display for BackupChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("latest"),
            Self::Id(id) => id.fmt(formatter),
        }
    }
}

impl FromStr for BackupChoice {
    type Err = BackupIdError;

    fn from_str(text: &str) -> Result<Self, BackupIdError> {
        if text == "latest" { Ok(Self::Latest) } else { text.parse().map(Self::Id) }
    }
}

impl Serialize for BackupChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for BackupChoice {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "backup choice".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^(latest|[0-9a-f]{64})$" })
    }
}

/// What to do where there is something already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// Put the backup's in its place, atomically.
    #[default]
    Replace,
    /// Leave it, and restore nothing.
    Keep,
    /// Fail.
    Fail,
}

/// Input of `project-restore`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectRestoreInput {
    /// Which backup; `latest` for the newest.
    pub backup_id: BackupChoice,
    /// Only this path of it; the whole backup where null.
    #[serde(default)]
    pub path: Option<LayoutPath>,
    /// On this host; where null on the project's.
    #[serde(default)]
    pub host_id: Option<HostId>,
    /// Where that is to go, relative to the project's files; its own place where null. A whole backup becomes a directory
    /// there, with `project` and `persist` in it.
    #[serde(default)]
    pub target: Option<ProjectPath>,
    /// What to do where there is something at the target already; for a whole backup, where the project has files.
    #[serde(default)]
    pub conflict: Conflict,
    /// Restore nothing, and say what would change and how long it would take.
    #[serde(default)]
    pub dry_run: bool,
    /// Restore although a drill has found the backup to be bad.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_bad: bool,
}

/// Result of `project-restore`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectRestoreResult {
    /// Which backup.
    pub backup_id: BackupId,
    /// How many files were restored; of a dry run, how many would be.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// The digest of the restored tree.
    pub tree: String,
    /// `match`: what was restored is what was backed up. `none`: nothing was restored, by a dry run or because something
    /// was there that was to be kept.
    pub receipt: String,
    /// Where it went.
    pub target: String,
    /// Seconds that the attempt took.
    pub duration_s: f64,
    /// Of a dry run: what a restore would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<RestoreChanges>,
    /// Of a dry run: how long a restore would take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<RestoreEstimate>,
}

/// What a restore would change. Files count as the same if type, length, modification time, mode, owner and extended
/// attributes are; their contents are not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreChanges {
    /// What is not there now.
    pub created: FileAmount,
    /// What is there otherwise.
    pub replaced: FileAmount,
    /// What is there now and would not be any more.
    pub deleted: FileAmount,
    /// What is there already.
    pub unchanged: FileAmount,
}

/// So many files, links and other entries that are no directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileAmount {
    /// How many.
    pub files: u64,
    /// The bytes of the regular files among them.
    pub bytes: u64,
}

/// How long a restore would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreEstimate {
    /// Seconds.
    pub seconds: f64,
    /// What that is taken from.
    pub basis: EstimateBasis,
}

/// What an estimate is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EstimateBasis {
    /// The latest restores and drills on this host.
    RestoresOfHost,
    /// Nothing but what such a restore takes elsewhere: this host has done none.
    Assumption,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "project-restore",
    description: "Restores a backup of a project, whole or a path of it: staged, verified, exchanged atomically",
    scope: ScopeType::Project,
    routing: RoutingRule::ProjectHost,
    phases: &[
        Phase { name: "repository", weight: 2 },
        Phase { name: "download", weight: 90 },
        Phase { name: "verify", weight: 3 },
        Phase { name: "exchange", weight: 4 },
        Phase { name: "clean-up", weight: 1 },
    ],
    max_attempts: 5,
    time_to_live_s: 7 * 24 * 3600,
    exclusive: true,
    gives_way: false,
    uses_repository: true,
    part_of: None,
    for_tests: false,
    example_input: r#"{"backup_id":"latest","path":"project/src","target":"restored/src","conflict":"fail"}"#,
    normalise_input: &|input| {
        let normalised = normalise::<ProjectRestoreInput>("project-restore", input)?;
        check(&normalised)?;
        Ok(normalised)
    },
    host_in_input: |input| input.get("host_id")?.as_str()?.parse().ok(),
    input_schema: &schema::<ProjectRestoreInput>,
    result_schema: &schema::<ProjectRestoreResult>,
};

fn check(input: &Value) -> Result<(), ApiError> {
    let Ok(input) = serde_json::from_value::<ProjectRestoreInput>(input.clone()) else { return Ok(()) };
    match (&input.path, &input.target) {
        (Some(path), None) if path.root() == LayoutRoot::Persist || path.rest().is_none() => {
            Err(ApiError::invalid_argument(
                "give a target in the project's files for this path, such as \"restored\"; only paths beneath project/ have a place of their own",
            ))
        }
        _ => Ok(()),
    }
}
