//! The kinds of operation: what goes in, what comes out, and the rules of each. One file a kind.

mod copy_apply;
mod copy_snapshot;
mod database_backup;
mod database_restore;
mod declared;
mod project_backup;
mod project_copy;
mod project_restore;
mod project_start;
mod project_stop;
mod repo_check;
mod repo_prune;
mod restore_drill;
mod test_sleep;

use std::fmt;

use domain_model::{HostId, OperationKind, Phase, ScopeType};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use copy_apply::{CopiedFrom, CopyApplyInput, CopyApplyResult};
pub use copy_snapshot::{CopySnapshotInput, CopySnapshotResult};
pub use database_backup::{DatabaseBackupInput, DatabaseBackupResult};
pub use database_restore::{DatabaseRestoreInput, DatabaseRestoreResult};
pub use declared::{CheckInput, DeclareKinds, DeclaredPhase, KindDeclaration, all_declared, make_known};
pub use project_backup::{ProjectBackupInput, ProjectBackupResult, SourceKind};
pub use project_copy::{
    COPY_GRACE_S, CopyDestination, CopyEntry, CopyOptions, CopyOutcome, CopyPaths, CopySource,
    ProjectCopyInput, ProjectCopyResult,
};
pub use project_restore::{
    BackupChoice, Conflict, EstimateBasis, FileAmount, ProjectRestoreInput, ProjectRestoreResult,
    RestoreChanges, RestoreEstimate,
};
pub use project_start::{ProjectStartInput, ProjectStartResult};
pub use project_stop::{ProjectStopInput, ProjectStopResult};
pub use repo_check::{RepoCheckInput, RepoCheckResult, RepositoryDamage};
pub use repo_prune::{RepoPruneInput, RepoPruneResult};
pub use restore_drill::{DrillSample, Proof, RestoreDrillInput, RestoreDrillResult};
pub use test_sleep::{TestSleepInput, TestSleepResult};

use crate::ApiError;
use crate::encoding::place_and_cause;

/// Which workers an operation of a kind goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingRule {
    /// Those of the control plane.
    Hub,
    /// Those on the host that has the project's files, unless the input names another.
    ProjectHost,
    /// Those of the host that the subject names.
    ScopeHost,
}

/// A kind of operation. Static: a service knows its kinds when it is built.
pub struct KindDefinition {
    /// Its name.
    pub name: &'static str,
    /// What it does, for people.
    pub description: &'static str,
    /// What it may be about.
    pub scope: ScopeType,
    /// Which workers do it.
    pub routing: RoutingRule,
    /// Its phases, in order, with their weights.
    pub phases: &'static [Phase],
    /// How many attempts may fail.
    pub max_attempts: u32,
    /// Seconds until an operation expires, and after which it is deleted.
    pub time_to_live_s: u32,
    /// Whether only one such operation may run on its scope at a time.
    pub exclusive: bool,
    /// Whether it is stopped, and begins again later, where an operation that does not give way waits for it to end.
    pub gives_way: bool,
    /// Whether it works on a repository: the grant for it comes with the lease.
    pub uses_repository: bool,
    /// The kind whose operations alone may ask for it, as their children; anybody may where `None`.
    pub part_of: Option<&'static str>,
    /// Whether the kind exists for tests only.
    pub for_tests: bool,
    /// An example of its input.
    pub example_input: &'static str,
    /// Checks an input and writes it out in full, every default filled in.
    pub normalise_input: &'static (dyn Fn(&Value) -> Result<Value, ApiError> + Send + Sync),
    /// The host that the input names, if any.
    pub host_in_input: fn(&Value) -> Option<HostId>,
    /// JSON Schema of the input.
    pub input_schema: &'static (dyn Fn() -> Schema + Send + Sync),
    /// JSON Schema of the result.
    pub result_schema: &'static (dyn Fn() -> Schema + Send + Sync),
}

impl fmt::Debug for KindDefinition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KindDefinition").field("name", &self.name).finish_non_exhaustive()
    }
}

impl KindDefinition {
    /// A kind that a service in the hub brings along, and declares when it starts: of the hub, three attempts, a day to
    /// live. Other values are set over these.
    pub const fn declared<I, R>(
        name: &'static str,
        description: &'static str,
        phases: &'static [Phase],
        example_input: &'static str,
    ) -> Self
    where
        I: DeserializeOwned + Serialize + JsonSchema + 'static,
        R: JsonSchema + 'static,
    {
        Self {
            name,
            description,
            scope: ScopeType::Hub,
            routing: RoutingRule::Hub,
            phases,
            max_attempts: 3,
            time_to_live_s: 24 * 3600,
            exclusive: false,
            gives_way: false,
            uses_repository: false,
            part_of: None,
            for_tests: false,
            example_input,
            normalise_input: &normalise_own::<I>,
            host_in_input: no_host,
            input_schema: &schema::<I>,
            result_schema: &schema::<R>,
        }
    }

    /// Its name.
    pub fn kind(&self) -> OperationKind {
        self.name.parse().expect("names of kinds are checked by a test")
    }
}

/// Every kind that the registry is built with.
pub const ALL: &[&KindDefinition] = &[
    &copy_apply::DEFINITION,
    &copy_snapshot::DEFINITION,
    &database_backup::DEFINITION,
    &database_restore::DEFINITION,
    &project_backup::DEFINITION,
    &project_copy::DEFINITION,
    &project_restore::DEFINITION,
    &project_start::DEFINITION,
    &project_stop::DEFINITION,
    &repo_check::DEFINITION,
    &repo_prune::DEFINITION,
    &restore_drill::DEFINITION,
    &test_sleep::DEFINITION,
];

/// The kind with this name: one of [`ALL`], or one that was declared to this process.
pub fn find(kind: &OperationKind) -> Option<&'static KindDefinition> {
    let built_in = ALL.iter().copied().find(|definition| definition.name == kind.as_str());
    built_in.or_else(|| declared::find(kind.as_str()))
}

/// The kind with this name, for the service that does it.
///
/// # Panics
/// Where there is no such kind: a mistake of whoever wrote the name.
pub fn named(name: &str) -> &'static KindDefinition {
    let found = ALL.iter().copied().find(|definition| definition.name == name);
    found.expect("a service names kinds that there are")
}

/// Reads an input as `T` and writes it out again, so that what is stored has every default filled in.
fn normalise<T: DeserializeOwned + Serialize>(kind: &str, input: &Value) -> Result<Value, ApiError> {
    let parsed = T::deserialize(input).map_err(|cause| {
        let cause = place_and_cause::<T, _>(input, cause);
        ApiError::invalid_argument(format!(
            "the input does not fit the kind {kind}: {cause}; its schema is shown by `nats micro info registry`"
        ))
    })?;
    Ok(serde_json::to_value(parsed).expect("inputs have text keys only"))
}

fn normalise_own<T: DeserializeOwned + Serialize>(input: &Value) -> Result<Value, ApiError> {
    normalise::<T>("of this service", input)
}

fn no_host(_: &Value) -> Option<HostId> {
    None
}

fn schema<T: JsonSchema>() -> Schema {
    schemars::schema_for!(T)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_proper_name_distinct_phases_and_a_valid_example() {
        for definition in ALL {
            assert_eq!(definition.kind().as_str(), definition.name);
            assert_eq!(find(&definition.kind()).unwrap().name, definition.name);
            let mut names: Vec<_> = definition.phases.iter().map(|phase| phase.name).collect();
            names.dedup();
            assert_eq!(names.len(), definition.phases.len(), "{}", definition.name);
            assert!(!names.contains(&crate::ProgressEvent::DONE));
            let example = serde_json::from_str(definition.example_input).unwrap();
            let normalised = (definition.normalise_input)(&example).unwrap();
            assert_eq!((definition.normalise_input)(&normalised).unwrap(), normalised);
            let unknown = serde_json::json!({ "no_such_field": 1 });
            assert_eq!((definition.normalise_input)(&unknown).unwrap_err().status, 400);
        }
    }
}
