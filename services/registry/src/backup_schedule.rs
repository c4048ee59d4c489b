//! What hosts say of their projects, which backups are due, and the upkeep of their repositories: `work.v1.host-<id>.freshness`, `work.v1.hub.schedule`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds::{self, KindDefinition, ProjectBackupInput};
use bus_messages::{ApiError, ErrorCode, FreshnessRequest, Nothing, ScheduleReply, ScheduleRequest};
use catalog_database::{DueProject, NewOperation, SCHEDULED, URGENT, Upkeep};
use domain_model::{OperationId, Routing, Scope};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::operations::{exclusive_key, input_hash};
use crate::errors::from_database;
use crate::registry::Registry;
use crate::work::caller;

const MOST_PROJECTS: usize = 1000;
const DAY_S: f64 = 24.0 * 3600.0;
/// What is done with every repository that holds a backup, when its project is looked at.
pub(crate) const UPKEEP: &[Upkeep] = &[
    Upkeep { kind: "repo-prune", every_s: 7.0 * DAY_S },
    Upkeep { kind: "repo-check", every_s: 7.0 * DAY_S },
    Upkeep { kind: "restore-drill", every_s: 30.0 * DAY_S },
];
/// Behind whatever else there is of its kind.
const UPKEEP_PRIORITY: i32 = -20;
/// Of a check after a backup was found to be bad.
const URGENT_PRIORITY: i32 = 0;
/// A check reads one of so many shares of a repository's data.
const DATA_SHARES: u32 = 8;
const CREATED_BY: &str = "scheduler";

pub(crate) async fn freshness(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let Routing::Host(host) = caller(&request)? else {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "only a host tells of projects"));
    };
    let said: FreshnessRequest = request.decode()?;
    if said.projects.len() > MOST_PROJECTS {
        return Err(ApiError::invalid_argument(format!("at most {MOST_PROJECTS} projects in one message")));
    }
    registry
        .database
        .note_load(host, said.memory_pressure, said.io_pressure, said.cache)
        .await
        .map_err(from_database)?;
    if !said.projects.is_empty() {
        registry.database.note_generations(host, &said.projects).await.map_err(from_database)?;
    }
    Ok(request.reply(&Nothing {}))
}

pub(crate) async fn schedule(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    if caller(&request)? != Routing::Hub {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "only the hub schedules"));
    }
    let wanted: ScheduleRequest = request.decode()?;
    if !(1..=MOST_PROJECTS as u32).contains(&wanted.limit) {
        return Err(ApiError::invalid_argument(format!("limit is to be from 1 to {MOST_PROJECTS}")));
    }
    let decide = |project: &DueProject| {
        let policy = project.policy.over(&registry.backups);
        let decision = policy.schedule().decide(&project.state, project.now);
        let backup = decision.back_up.map(|priority| {
            let input = serde_json::to_value(ProjectBackupInput::default()).unwrap_or_default();
            operation_of(project, kinds::named("project-backup"), input, priority)
        });
        let upkeep = project.upkeep.iter().filter_map(|kind| {
            let is_urgent = project.check_all && kind == "repo-check";
            let data = if is_urgent { CheckedData::All } else { CheckedData::Share(project.checks) };
            let (kind, input) = upkeep_of(kind, data)?;
            let mut upkeep = operation_of(project, kind, input, UPKEEP_PRIORITY);
            if is_urgent {
                // A check of a share that waits is no reason not to ask.
                upkeep.dedupe_key = Some(URGENT.to_owned());
                upkeep.priority = URGENT_PRIORITY;
            }
            Some(upkeep)
        });
        (decision, backup.into_iter().chain(upkeep).collect())
    };
    let scheduled = registry.database.schedule_backups(wanted.limit, UPKEEP, decide);
    let scheduled = scheduled.await.map_err(from_database)?;
    for project in &scheduled.missed {
        registry.metrics.backups_missed.inc();
        tracing::warn!(project.id = %project, "its scheduled backup did not come about in its turn");
    }
    registry.created(&scheduled.created);
    for op_id in &scheduled.urged {
        registry.streams.tell(*op_id);
    }
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    Ok(request.reply(&ScheduleReply {
        looked_at: count(scheduled.looked_at),
        scheduled: count(scheduled.created.iter().filter(|op| op.kind.as_str() == "project-backup").count()),
        missed: count(scheduled.missed.len()),
    }))
}

/// The data that a check reads.
#[derive(Debug, Clone, Copy)]
enum CheckedData {
    All,
    /// One share after the other: so many checks in a row read all data, whenever they are. This is the one after so many.
    Share(u32),
}

/// What a kind of upkeep is asked to do.
fn upkeep_of(kind: &str, data: CheckedData) -> Option<(&'static KindDefinition, Value)> {
    let input = match (kind, data) {
        ("repo-check", CheckedData::All) => json!({ "read_data_shares": 1 }),
        ("repo-check", CheckedData::Share(checks)) => {
            json!({ "read_data_shares": DATA_SHARES, "share": checks % DATA_SHARES })
        }
        _ => json!({}),
    };
    let kind = kinds::named(kind);
    let input = (kind.normalise_input)(&input).ok()?;
    Some((kind, input))
}

fn operation_of(
    project: &DueProject,
    kind: &'static KindDefinition,
    input: Value,
    priority: i32,
) -> NewOperation {
    let scope = Scope::Project(project.state.project);
    NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: kind.kind(),
        scope,
        created_by: CREATED_BY.to_owned(),
        routing: Routing::Host(project.host_id),
        input_hash: input_hash(&input),
        input,
        max_attempts: kind.max_attempts,
        priority,
        not_before: None,
        time_to_live_s: kind.time_to_live_s,
        dedupe_key: Some(SCHEDULED.to_owned()),
        exclusive_key: kind.exclusive.then(|| exclusive_key(scope)),
        parent: None,
        retry_of: None,
        checkpoint: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_of_upkeep_is_one_that_takes_its_input() {
        for upkeep in UPKEEP {
            for data in [CheckedData::All, CheckedData::Share(3)] {
                assert!(upkeep_of(upkeep.kind, data).is_some(), "{}", upkeep.kind);
            }
        }
    }

    #[test]
    fn checks_in_a_row_read_all_data() {
        let shares = |first: u32| {
            (first..first + DATA_SHARES)
                .map(|checks| upkeep_of("repo-check", CheckedData::Share(checks)).unwrap().1)
        };
        for first in [0, 5] {
            let read: HashSet<u64> = shares(first).map(|input| input["share"].as_u64().unwrap()).collect();
            assert_eq!(read.len(), DATA_SHARES as usize);
            assert!(shares(first).all(|input| input["read_data_shares"] == DATA_SHARES));
        }
    }
}
