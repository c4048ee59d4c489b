//! `lro.*`: long-running operations.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds::{self, KindDefinition, ProjectCopyInput, RoutingRule};
use bus_messages::{
    ApiError, CreateOperation, CreatedOperation, ErrorCode, EventList, GetOperation, ListEvents,
    ListOperations, Operation, OperationList, OperationReply, ProgressEvent, RetryOperation, WaitOperation,
    WaitReply,
};
use bus_subjects::OperationSubject;
use catalog_database::{CancelOutcome, CreateOutcome, ListFilter, NewOperation};
use domain_model::{CopyStatus, OperationId, OperationStatus, ProjectId, Routing, Scope};
use futures::StreamExt;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{Caller, page_size, subject};
use crate::errors::from_database;
use crate::nul::has_nul;
use crate::registry::Registry;
use crate::repositories::{no_such_backup, refuse_bad, wanted_backup};
use crate::streams::subject_of;
use crate::work::json_length;

const MOST_TIME_TO_LIVE_S: u32 = 90 * 24 * 3600;
const MOST_WAIT_S: f64 = 30.0;
const MOST_INPUT_BYTES: usize = 32 * 1024;
/// An operation expires after `not_before`, in a year of four digits still.
const LAST_YEAR: i32 = 8999;
/// How long after the last word of the stream a waiting request looks into the database by itself.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn create(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let caller = Caller::of(&request)?;
    admit(&registry, &caller)?;
    let create: CreateOperation = request.decode()?;
    let kind = kinds::find(&create.kind).filter(|kind| !kind.for_tests || registry.settings.test_kinds);
    let kind = kind.ok_or_else(|| {
        ApiError::invalid_argument(format!(
            "there is no kind {}; `nats micro info registry` shows the kinds with their schemas",
            create.kind
        ))
    })?;
    if let Some(whole) = kind.part_of {
        return Err(ApiError::invalid_argument(format!(
            "{} is a part of {whole}: create one of those",
            kind.name
        )));
    }
    check(&create)?;
    if let (Caller::Account(_), Some(1..)) = (&caller, create.priority) {
        return Err(ApiError::new(
            ErrorCode::PermissionDenied,
            "only an operator may raise a priority above 0; leave it out, or lower it",
        ));
    }
    let input = (kind.normalise_input)(&create.input)?;
    check_host(&caller, kind, &input)?;
    let routing = routing_of(&registry, kind, scope, &input).await?;
    if let Some(wanted) = create.routing.filter(|wanted| *wanted != routing) {
        return Err(ApiError::invalid_argument(format!(
            "operations of the kind {} go to {routing} here, not to {wanted}; leave routing out",
            kind.name
        )));
    }
    check_backup(&registry, kind, scope, &input).await?;
    check_copy(&registry, &caller, kind, scope, &input).await?;
    let new = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: create.kind,
        scope,
        created_by: caller.name(),
        routing,
        input_hash: input_hash(&input),
        input,
        max_attempts: kind.max_attempts,
        priority: create.priority.unwrap_or(0),
        not_before: create.not_before,
        time_to_live_s: match (create.ttl_s, kind.name) {
            (None, _) => kind.time_to_live_s,
            // What is asked for is the life of its copies.
            (Some(ttl_s), "project-copy") => ttl_s + kinds::COPY_GRACE_S,
            (Some(ttl_s), _) => ttl_s,
        },
        dedupe_key: create.dedupe_key,
        exclusive_key: kind.exclusive.then(|| exclusive_key(scope)),
        parent: None,
        retry_of: None,
        checkpoint: None,
    };
    let created = created(&registry, &new, create.force).await?;
    Ok(request.reply(&created))
}

/// Creates an operation for something else that was asked for; the active one with this key, if there is one.
pub(super) async fn create_own(
    registry: &Registry,
    kind: &KindDefinition,
    scope: Scope,
    input: &Value,
    created_by: String,
    dedupe_key: String,
) -> Result<CreatedOperation, ApiError> {
    let input = (kind.normalise_input)(input)?;
    let routing = routing_of(registry, kind, scope, &input).await?;
    let new = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: kind.kind(),
        scope,
        created_by,
        routing,
        input_hash: input_hash(&input),
        input,
        max_attempts: kind.max_attempts,
        priority: 0,
        not_before: None,
        time_to_live_s: kind.time_to_live_s,
        dedupe_key: Some(dedupe_key),
        exclusive_key: kind.exclusive.then(|| exclusive_key(scope)),
        parent: None,
        retry_of: None,
        checkpoint: None,
    };
    created(registry, &new, false).await
}

/// Whether the caller may create now.
pub(super) fn admit(registry: &Registry, caller: &Caller) -> Result<(), ApiError> {
    match caller {
        Caller::Operator => Ok(()),
        Caller::Account(id) => registry.creation_limit.admit(*id),
    }
}

pub(crate) fn exclusive_key(scope: Scope) -> String {
    match scope {
        Scope::Project(id) => format!("project:{id}"),
        other => other.to_string(),
    }
}

async fn created(registry: &Registry, new: &NewOperation, force: bool) -> Result<CreatedOperation, ApiError> {
    // What is taken down together with an operation is not gathered with others.
    let gathered = match new.kind.as_str() {
        "project-copy" => None,
        _ => registry.creations.ask(new.clone()).await?,
    };
    let outcome = match gathered {
        Some(op) => CreateOutcome::Created { op: Box::new(op), canceled: Vec::new() },
        None => registry.database.create_operation(new, force).await.map_err(from_database)?,
    };
    let (op, created) = match outcome {
        CreateOutcome::Created { op, canceled } => {
            for canceled in &canceled {
                registry.changed(canceled);
            }
            registry.created(std::slice::from_ref(&*op));
            (*op, true)
        }
        CreateOutcome::Active(op) => (*op, false),
        CreateOutcome::Contended => {
            return Err(ApiError::new(
                ErrorCode::Unavailable,
                "many are creating operations with this dedupe key at the moment; try again",
            ));
        }
        CreateOutcome::DedupeMismatch(op) => {
            let message = format!(
                "the dedupe key {:?} is in use by the active operation {} with another input; wait for it, cancel it, or use force",
                new.dedupe_key.as_deref().unwrap_or_default(),
                op.op_id
            );
            let error = ApiError::new(ErrorCode::DedupeMismatch, message);
            return Err(error.with_detail("op_id", op.op_id.to_string()));
        }
    };
    let subject = subject_of(&op).to_string();
    Ok(CreatedOperation { op, subject, created })
}

/// Accounts do not choose the host.
fn check_host(caller: &Caller, kind: &KindDefinition, input: &Value) -> Result<(), ApiError> {
    match (caller, (kind.host_in_input)(input)) {
        (Caller::Account(_), Some(_)) => Err(ApiError::new(
            ErrorCode::PermissionDenied,
            "only an operator may name a host; leave host_id out",
        )),
        _ => Ok(()),
    }
}

fn check(create: &CreateOperation) -> Result<(), ApiError> {
    let wrong = |message: String| Err(ApiError::invalid_argument(message));
    if let Some(key) = &create.dedupe_key
        && (!(1..=200).contains(&key.chars().count()) || key.contains('\0'))
    {
        return wrong("dedupe_key is to have 1 to 200 characters, none of them NUL".to_owned());
    }
    if create.force && create.dedupe_key.is_none() {
        return wrong("force takes the dedupe_key of an active operation; give one".to_owned());
    }
    if let Some(priority) = create.priority.filter(|priority| !(-100..=100).contains(priority)) {
        return wrong(format!("priority is to be from -100 to 100, not {priority}"));
    }
    if let Some(ttl_s) = create.ttl_s.filter(|ttl_s| !(1..=MOST_TIME_TO_LIVE_S).contains(ttl_s)) {
        return wrong(format!("ttl_s is to be from 1 to {MOST_TIME_TO_LIVE_S}, not {ttl_s}"));
    }
    if let Some(not_before) = create.not_before.filter(|moment| moment.as_date_time().year() > LAST_YEAR) {
        return wrong(format!("not_before is to be in the year {LAST_YEAR} or before, not {not_before}"));
    }
    if has_nul(&create.input) {
        return wrong("the input has a NUL in a text, which the database does not keep".to_owned());
    }
    let bytes = create.input.to_string().len();
    if bytes > MOST_INPUT_BYTES {
        return wrong(format!(
            "the input has {bytes} bytes; at most {MOST_INPUT_BYTES}: put data into the project instead"
        ));
    }
    Ok(())
}

/// SHA-256 of an input with every default filled in.
pub(crate) fn input_hash(input: &Value) -> Vec<u8> {
    digest::digest(&digest::SHA256, input.to_string().as_bytes()).as_ref().to_vec()
}

/// Which workers do an operation of this kind on this scope. 404 where the scope does not exist.
pub(crate) async fn routing_of(
    registry: &Registry,
    kind: &KindDefinition,
    scope: Scope,
    input: &Value,
) -> Result<Routing, ApiError> {
    if scope.scope_type() != kind.scope {
        return Err(ApiError::invalid_argument(format!(
            "operations of the kind {} are about a {}, and the subject names {scope}",
            kind.name, kind.scope
        )));
    }
    let place = match scope {
        Scope::Project(id) => {
            let place = registry.database.project_place(id).await.map_err(from_database)?;
            Some(place.ok_or_else(|| {
                ApiError::not_found(format!(
                    "there is no project {id}; api.v1.hub.project.list shows those there are"
                ))
            })?)
        }
        Scope::Host(id) => {
            let host = registry.database.host(id).await.map_err(from_database)?;
            host.ok_or_else(|| ApiError::not_found(format!("there is no host {id}")))?;
            None
        }
        Scope::Account(_) | Scope::Hub => None,
    };
    match (kind.routing, place) {
        (RoutingRule::ScopeHost, _) => match scope {
            Scope::Host(id) => Ok(Routing::Host(id)),
            _ => Ok(Routing::Hub),
        },
        (RoutingRule::Hub, _) | (RoutingRule::ProjectHost, None) => Ok(Routing::Hub),
        (RoutingRule::ProjectHost, Some(place)) => {
            let Some(host) = (kind.host_in_input)(input) else { return Ok(Routing::Host(place.host_id)) };
            let known = registry.database.host(host).await.map_err(from_database)?;
            known.ok_or_else(|| {
                ApiError::not_found(format!(
                    "there is no host {host}; api.v1.hub.host.list shows those there are"
                ))
            })?;
            Ok(Routing::Host(host))
        }
    }
}

/// The input of a copy without the destinations that have got it: what people have made of it since is theirs.
async fn what_is_left_to_copy(registry: &Registry, op: &Operation) -> Result<Value, ApiError> {
    let mut input: ProjectCopyInput =
        serde_json::from_value(op.input.clone()).map_err(ApiError::invalid_argument)?;
    let standing = registry.database.copy_standing(op.op_id).await.map_err(from_database)?;
    let done: Vec<_> = standing
        .into_iter()
        .flat_map(|standing| standing.copies)
        .filter(|pending| matches!(pending.copy.status, CopyStatus::Done | CopyStatus::Superseded))
        .map(|pending| (pending.copy.dest_project_id, pending.copy.dest_path))
        .collect();
    input.dests.retain(|dest| !done.contains(&(dest.project_id, dest.path.clone())));
    if input.dests.is_empty() {
        return Err(ApiError::new(
            ErrorCode::FailedPrecondition,
            "every destination has got its copy, or a later one; with from_start all get it again",
        ));
    }
    serde_json::to_value(input).map_err(ApiError::invalid_argument)
}

/// A copy goes to projects that there are, and that the caller may write to; never into itself.
async fn check_copy(
    registry: &Registry,
    caller: &Caller,
    kind: &KindDefinition,
    scope: Scope,
    input: &Value,
) -> Result<(), ApiError> {
    let ("project-copy", Scope::Project(source)) = (kind.name, scope) else { return Ok(()) };
    let input: ProjectCopyInput =
        serde_json::from_value(input.clone()).map_err(ApiError::invalid_argument)?;
    for dest in input.dests.iter().filter(|dest| dest.project_id == source) {
        let into_itself = input.entries(dest)?.into_iter().find(|entry| entry.to.is_within(&entry.from));
        if let Some(entry) = into_itself {
            return Err(ApiError::invalid_argument(format!(
                "{} cannot be copied to {}, which is within it",
                entry.from, entry.to
            )));
        }
    }
    let projects: Vec<ProjectId> = input.dests.iter().map(|dest| dest.project_id).collect();
    let account = match caller {
        Caller::Operator => None,
        Caller::Account(id) => Some(*id),
    };
    let refused = registry.database.projects_out_of_reach(account, &projects).await.map_err(from_database)?;
    if refused.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = refused.iter().map(ToString::to_string).collect();
    let error = match caller {
        Caller::Operator => ApiError::not_found(format!("there is no project {}", names.join(", "))),
        // Whether there is such a project is not for everybody to know.
        Caller::Account(_) => ApiError::new(
            ErrorCode::PermissionDenied,
            format!("you may not write to the project {}; nothing was copied", names.join(", ")),
        ),
    };
    Err(error.with_detail("project_ids", names))
}

/// A restore names a backup that there is, and so does a start that names one; a prune is of a repository that there is.
async fn check_backup(
    registry: &Registry,
    kind: &KindDefinition,
    scope: Scope,
    input: &Value,
) -> Result<(), ApiError> {
    let Scope::Project(project) = scope else { return Ok(()) };
    if matches!(kind.name, "repo-prune" | "repo-check") {
        let place = registry.database.project_place(project).await.map_err(from_database)?;
        if place.is_none_or(|place| place.backup_bucket_id.is_none()) {
            return Err(no_such_backup(project, None));
        }
    }
    let Some(wanted) = wanted_backup(kind.name, input).map_err(ApiError::invalid_argument)? else {
        return Ok(());
    };
    // Whether there is anything to restore is seen when it is started.
    if kind.name == "project-start" && wanted.id.is_none() {
        return Ok(());
    }
    let (wanted, allow_bad) = (wanted.id.as_ref(), wanted.allow_bad);
    let place = registry.database.backup_place(project, wanted).await.map_err(from_database)?;
    match (place, wanted) {
        (Some(place), _) => refuse_bad(&place, allow_bad),
        // One may be on its way: whether there is a latest backup is seen when the restore starts.
        (None, None)
            if !registry
                .database
                .active_operations_of_project(project)
                .await
                .map_err(from_database)?
                .is_empty() =>
        {
            Ok(())
        }
        (None, wanted) => Err(no_such_backup(project, wanted)),
    }
}

async fn known(registry: &Registry, scope: Scope, op_id: OperationId) -> Result<Operation, ApiError> {
    let op = registry.database.operation(scope, op_id).await.map_err(from_database)?;
    op.ok_or_else(|| not_found(scope, op_id))
}

fn not_found(scope: Scope, op_id: OperationId) -> ApiError {
    ApiError::not_found(format!(
        "there is no operation {op_id} of {scope}; api.v1.{scope}.lro.list shows those there are"
    ))
}

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let wanted: GetOperation = request.decode()?;
    let op = known(&registry, scope, wanted.op_id).await?;
    Ok(request.reply(&OperationReply { op }))
}

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let list: ListOperations = request.decode()?;
    let limit = page_size(list.limit)?;
    let before = list.cursor.as_deref().map(str::parse).transpose().map_err(|_| super::bad_cursor())?;
    let filter =
        ListFilter { kind: list.kind, status: list.status, parent_id: list.parent_id, before, limit };
    let mut ops = registry.database.list_operations(scope, &filter).await.map_err(from_database)?;
    let full = ops.len() == limit as usize;
    let more = keep_a_page(&mut ops, registry.front.max_payload() / 2) || full;
    let next_cursor = ops.last().filter(|_| more).map(|op| op.op_id.to_string());
    Ok(request.reply(&OperationList { ops, next_cursor }))
}

/// Waits for the end of an operation. The summaries on the stream say when to look; the database says what is.
pub(super) async fn wait(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let wanted: WaitOperation = request.decode()?;
    if !(0.0..=MOST_WAIT_S).contains(&wanted.timeout_s) {
        return Err(ApiError::invalid_argument(format!(
            "timeout_s is to be from 0 to {MOST_WAIT_S}, not {}; ask again to wait for longer",
            wanted.timeout_s
        )));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs_f64(wanted.timeout_s);
    let state = OperationSubject { scope, op_id: wanted.op_id }.state();
    let mut op = known(&registry, scope, wanted.op_id).await?;
    if !op.status.is_terminal() && wanted.timeout_s > 0.0 {
        // Without the subscription it takes the database's word every two seconds.
        let mut summaries = registry.front.subscribe(state).await.ok();
        op = known(&registry, scope, wanted.op_id).await?;
        while !op.status.is_terminal() && tokio::time::Instant::now() < deadline {
            let look = (tokio::time::Instant::now() + LOOK_EVERY).min(deadline);
            let news = async {
                match &mut summaries {
                    Some(summaries) => summaries.next().await.is_some(),
                    None => false,
                }
            };
            if let Ok(false) = tokio::time::timeout_at(look, news).await {
                summaries = None;
                tokio::time::sleep_until(look).await;
            }
            op = known(&registry, scope, wanted.op_id).await?;
        }
    }
    let done = op.status.is_terminal();
    Ok(request.reply(&WaitReply { op, done }))
}

pub(super) async fn cancel(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let wanted: GetOperation = request.decode()?;
    let outcome = registry.database.cancel_operation(scope, wanted.op_id).await.map_err(from_database)?;
    let op = match outcome {
        CancelOutcome::Asked(ended) => {
            registry.changed(&ended);
            ended.op
        }
        CancelOutcome::Unchanged(op) => *op,
        CancelOutcome::NotFound => return Err(not_found(scope, wanted.op_id)),
    };
    Ok(request.reply(&OperationReply { op }))
}

pub(super) async fn retry(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let caller = Caller::of(&request)?;
    admit(&registry, &caller)?;
    let wanted: RetryOperation = request.decode()?;
    let op = known(&registry, scope, wanted.op_id).await?;
    let kind = kinds::find(&op.kind)
        .ok_or_else(|| ApiError::not_found(format!("there is no kind {} any more", op.kind)))?;
    let ended_badly =
        matches!(op.status, OperationStatus::Failed | OperationStatus::Canceled | OperationStatus::Expired);
    // A copy may have come to its end for some of its destinations only.
    let in_part = kind.name == "project-copy" && op.status == OperationStatus::Succeeded;
    if !ended_badly && !in_part {
        return Err(ApiError::new(
            ErrorCode::FailedPrecondition,
            format!("only a failed, canceled or expired operation is retried; this one is {}", op.status),
        ));
    }
    if let Some(whole) = kind.part_of {
        return Err(ApiError::invalid_argument(format!("{} is a part of {whole}: retry that", kind.name)));
    }
    let input = match kind.name {
        "project-copy" if !wanted.from_start => what_is_left_to_copy(&registry, &op).await?,
        _ => op.input.clone(),
    };
    let input = (kind.normalise_input)(&input)?;
    check_host(&caller, kind, &input)?;
    check_backup(&registry, kind, scope, &input).await?;
    check_copy(&registry, &caller, kind, scope, &input).await?;
    let checkpoint = match wanted.from_start {
        true => None,
        false => registry.database.checkpoint(op.op_id).await.map_err(from_database)?,
    };
    let new = NewOperation {
        id: OperationId::from(Uuid::now_v7()),
        kind: op.kind.clone(),
        scope,
        created_by: caller.name(),
        routing: routing_of(&registry, kind, scope, &input).await?,
        input_hash: input_hash(&input),
        input,
        max_attempts: kind.max_attempts,
        // Above 0 only operators raise it.
        priority: match caller {
            Caller::Operator => op.priority,
            Caller::Account(_) => op.priority.min(0),
        },
        not_before: None,
        time_to_live_s: kind.time_to_live_s,
        // Retrying twice makes one.
        dedupe_key: Some(op.dedupe_key.unwrap_or_else(|| format!("retry-of-{}", op.op_id))),
        exclusive_key: kind.exclusive.then(|| exclusive_key(scope)),
        parent: None,
        retry_of: Some(op.op_id),
        checkpoint,
    };
    let created = created(&registry, &new, false).await?;
    Ok(request.reply(&created))
}

pub(super) async fn events(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let scope = subject(&request)?.scope;
    let wanted: ListEvents = request.decode()?;
    if wanted.after_attempt.is_some() && wanted.after_n.is_none() {
        return Err(ApiError::invalid_argument(
            "after_attempt goes with after_n, a number within that attempt",
        ));
    }
    // In this order: what the outbox does not have any more when it is asked is in the ring when that is read.
    let state = known(&registry, scope, wanted.op_id).await?;
    let end_pending = state.status.is_terminal()
        && registry.database.outbox_has_event(wanted.op_id).await.map_err(from_database)?;
    let subject = OperationSubject { scope, op_id: wanted.op_id };
    let ring = registry.streams.stream().ring(&subject.events()).await.map_err(|error| {
        tracing::warn!(op.id = %wanted.op_id, error = crate::errors::chain(&error), "the ring cannot be read");
        ApiError::new(ErrorCode::Unavailable, "the stream of events does not answer now; lro.get has the state")
    })?;
    let mut events: Vec<ProgressEvent> =
        ring.iter().filter_map(|message| serde_json::from_slice(&message.payload).ok()).collect();
    match (wanted.after_attempt, wanted.after_n) {
        (Some(attempt), Some(n)) => events.retain(|event| (event.attempt, event.n) > (attempt, n)),
        (None, Some(n)) => {
            let latest = events.last().map_or(0, |event| event.attempt);
            events.retain(|event| event.attempt == latest && event.n > n);
        }
        (_, None) => {}
    }
    let more = keep_a_page(&mut events, registry.front.max_payload() / 2);
    Ok(request.reply(&EventList { events, state, more, end_pending }))
}

/// Leaves the first, as many as fit into so many bytes as JSON, and one in any case, so that whoever asks on gets on.
/// Whether there were more.
fn keep_a_page<T: Serialize>(entries: &mut Vec<T>, mut room: usize) -> bool {
    let fitting = entries.iter().take_while(|entry| {
        let bytes = json_length(entry);
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    let fitting = fitting.count().max(1);
    let more = entries.len() > fitting;
    entries.truncate(fitting);
    more
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn events(message_bytes: &[usize]) -> Vec<ProgressEvent> {
        let event = |(n, bytes): (u64, &usize)| {
            let event = json!({ "op_id": "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11", "attempt": 1, "n": n, "phase": "sleep",
                "ts": "2026-11-21T07:38:27.123Z", "message": "x".repeat(*bytes) });
            serde_json::from_value(event).unwrap()
        };
        (1..).zip(message_bytes).map(event).collect()
    }

    #[test]
    fn a_page_has_the_first_and_never_none() {
        let page = |message_bytes: &[usize], room: usize| {
            let mut events = events(message_bytes);
            let more = keep_a_page(&mut events, room);
            (events.iter().map(|event| event.n).collect::<Vec<_>>(), more)
        };
        assert_eq!(page(&[], 1000), (vec![], false));
        assert_eq!(page(&[10, 10], 1000), (vec![1, 2], false));
        assert_eq!(page(&[300, 300, 10], 900), (vec![1, 2], true), "a small one does not overtake");
        assert_eq!(page(&[2000, 10], 1000), (vec![1], true));
    }
}
