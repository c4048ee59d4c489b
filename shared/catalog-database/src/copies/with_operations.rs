//! What happens to copies together with operations, each in the caller's transaction.

use std::collections::BTreeMap;

use bus_messages::kinds::{COPY_GRACE_S, CopyPaths, CopySnapshotResult, ProjectCopyInput, named};
use bus_messages::{EventLevel, Operation, ProgressSummary};
use domain_model::{CopyStatus, OperationId, OperationStatus, Progress, overall_percent};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{APPLY, read};
use crate::DatabaseError;
use crate::error::During;
use crate::operations::{Ended, NewOperation, OperationRow, cancel, lock, lock_all};
use crate::outbox::OutboxEvent;

/// The kind that copies are made by, and that of its snapshot.
const COPY: &str = "project-copy";
const SNAPSHOT: &str = "copy-snapshot";

/// A path, or a list of them, each with `//` before it, which no path has in it.
fn write_paths(paths: &CopyPaths) -> String {
    match paths {
        CopyPaths::One(path) => path.to_string(),
        CopyPaths::Many(paths) => paths.iter().map(|path| format!("//{path}")).collect(),
    }
}

/// Takes down the copies that a `project-copy` was created for, in the transaction that creates it. Those of the same to the
/// same places that are pending are superseded; what was canceled for it is returned.
pub(crate) async fn record(
    connection: &mut PgConnection,
    op: &Operation,
) -> Result<Vec<Ended>, DatabaseError> {
    const DURING: &str = "take down copies";
    let (COPY, Some(project)) = (op.kind.as_str(), op.scope.uuid()) else { return Ok(Vec::new()) };
    let input: ProjectCopyInput =
        read("long_running_operations.input", serde_json::from_value(op.input.clone()))?;
    let src_path = write_paths(&input.src.path);
    // In the order of the input: ids of one moment grow.
    let ids: Vec<Uuid> = input.dests.iter().map(|_| Uuid::now_v7()).collect();
    let dest_projects: Vec<Uuid> = input.dests.iter().map(|dest| dest.project_id.as_uuid()).collect();
    let dest_paths: Vec<String> = input.dests.iter().map(|dest| dest.path.to_string()).collect();
    let entries = input.dests.iter().map(|dest| input.entries(dest).map(|entries| json!(entries)));
    let entries: Vec<Value> = read("long_running_operations.input", entries.collect::<Result<_, _>>())?;
    // Two that come at once take their turns here.
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(hashtextextended('copies from ' || $1::text, 0))",
        project.to_string()
    )
    .execute(&mut *connection)
    .await
    .during(DURING)?;
    let pending = sqlx::query!(
        "SELECT copy.id, copy.apply_op_id
         FROM project_copies AS copy JOIN unnest($3::uuid[], $4::text[]) AS new (project_id, path)
            ON copy.dest_project_id = new.project_id AND copy.dest_path = new.path
         WHERE copy.status = 'pending' AND copy.src_project_id = $1 AND copy.src_path = $2",
        project,
        src_path,
        &dest_projects,
        &dest_paths,
    )
    .fetch_all(&mut *connection)
    .await
    .during(DURING)?;
    // Operations are locked before copies, in the order of their ids, by everybody.
    let applies: Vec<Uuid> = pending.iter().filter_map(|copy| copy.apply_op_id).collect();
    let mut applies: Vec<OperationRow> = lock_all(connection, &applies).await?.into_values().collect();
    applies.sort_unstable_by_key(|row| row.id);
    let superseded: Vec<Uuid> = pending.iter().map(|copy| copy.id).collect();
    sqlx::query!(
        "UPDATE project_copies SET status = 'superseded', finished_at = now() WHERE id = ANY ($1) AND status = 'pending'",
        &superseded
    )
    .execute(&mut *connection)
    .await
    .during(DURING)?;
    // They expire before the operation, which is to see it.
    sqlx::query!(
        "INSERT INTO project_copies (id, op_id, src_project_id, src_path, dest_project_id, dest_path, entries, options,
            expires_at)
         SELECT new.id, $1, $2, $3, new.project_id, new.path, new.entries, $4, operation.expires_at - make_interval(secs => $9)
         FROM unnest($5::uuid[], $6::uuid[], $7::text[], $8::jsonb[]) AS new (id, project_id, path, entries),
            long_running_operations AS operation
         WHERE operation.id = $1",
        op.op_id.as_uuid(),
        project,
        src_path,
        json!(input.options),
        &ids,
        &dest_projects,
        &dest_paths,
        &entries,
        f64::from(COPY_GRACE_S),
    )
    .execute(&mut *connection)
    .await
    .during(DURING)?;
    let mut canceled = Vec::new();
    for apply in applies {
        canceled.extend(cancel_active(connection, apply).await?);
    }
    Ok(canceled)
}

/// Cancels a locked operation, unless it has ended or was asked to.
pub(super) async fn cancel_active(
    connection: &mut PgConnection,
    row: OperationRow,
) -> Result<Option<Ended>, DatabaseError> {
    if row.status()?.is_terminal() || row.cancel_requested_at.is_some() {
        return Ok(None);
    }
    cancel(connection, row).await.map(Some)
}

/// Links the operations that apply copies to them, in the transaction that creates them. One whose copy has come to its end
/// meanwhile is canceled.
pub(crate) async fn link(
    connection: &mut PgConnection,
    children: &[&NewOperation],
) -> Result<Vec<Ended>, DatabaseError> {
    const DURING: &str = "link copies to their operations";
    let (mut ids, mut copies): (Vec<Uuid>, Vec<String>) = (Vec::new(), Vec::new());
    for child in children.iter().filter(|child| child.kind.as_str() == APPLY) {
        ids.push(child.id.as_uuid());
        copies.extend(child.parent.as_ref().map(|(_, key)| key.clone()));
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // One that an earlier attempt has made is linked already.
    sqlx::query!(
        "UPDATE project_copies SET apply_op_id = new.op_id FROM unnest($1::uuid[], $2::text[]) AS new (op_id, copy_id)
         WHERE project_copies.id = new.copy_id::uuid AND apply_op_id IS NULL AND status = 'pending'
            AND EXISTS (SELECT 1 FROM long_running_operations WHERE id = new.op_id)",
        &ids,
        &copies,
    )
    .execute(&mut *connection)
    .await
    .during(DURING)?;
    let needless = sqlx::query_scalar!(
        "SELECT id FROM long_running_operations WHERE id = ANY ($1)
            AND NOT EXISTS (SELECT 1 FROM project_copies WHERE apply_op_id = long_running_operations.id)
         ORDER BY id",
        &ids
    )
    .fetch_all(&mut *connection)
    .await
    .during(DURING)?;
    let mut canceled = Vec::new();
    for id in needless {
        if let Some(row) = lock(connection, id).await? {
            canceled.extend(cancel_active(connection, row).await?);
        }
    }
    Ok(canceled)
}

/// Notes what changed operations say of copies, in the transaction of the change. Returns the `project-copy` operations
/// that have something new to show.
pub(crate) async fn note(
    connection: &mut PgConnection,
    changed: &[OperationRow],
) -> Result<Vec<OperationId>, DatabaseError> {
    let mut applies = Vec::new();
    for row in changed {
        match row.kind.as_str() {
            APPLY => applies.push(row),
            SNAPSHOT if row.status()? == OperationStatus::Succeeded => note_snapshot(connection, row).await?,
            COPY if row.status()?.is_terminal() => end_all(connection, row).await?,
            _ => {}
        }
    }
    if applies.is_empty() { Ok(Vec::new()) } else { note_applies(connection, &applies).await }
}

async fn note_snapshot(connection: &mut PgConnection, row: &OperationRow) -> Result<(), DatabaseError> {
    const DURING: &str = "note the snapshot of copies";
    let result: CopySnapshotResult = read(
        "long_running_operations.result",
        serde_json::from_value(row.result.clone().unwrap_or_default()),
    )?;
    let id = result.snapshot_id.as_str();
    sqlx::query!(
        "WITH made AS (UPDATE copy_repositories SET snapshot_id = $2 WHERE op_id = $1 AND deleted_at IS NULL)
         UPDATE project_copies SET snapshot_id = $2 WHERE op_id = $1 AND status = 'pending'",
        row.parent_id,
        id
    )
    .execute(connection)
    .await
    .during(DURING)
    .map(drop)
}

/// The copies of a `project-copy` that has ended end with it.
async fn end_all(connection: &mut PgConnection, row: &OperationRow) -> Result<(), DatabaseError> {
    let (status, error) = match row.status()? {
        OperationStatus::Canceled => (CopyStatus::Canceled, None),
        OperationStatus::Expired => (CopyStatus::Expired, None),
        _ => (CopyStatus::Failed, row.error()?.map(|error| error.message)),
    };
    sqlx::query!(
        "UPDATE project_copies SET status = $2, last_error = coalesce($3, last_error), finished_at = now()
         WHERE op_id = $1 AND status = 'pending'",
        row.id,
        status.as_str(),
        error,
    )
    .execute(connection)
    .await
    .during("end the copies of an operation")
    .map(drop)
}

async fn note_applies(
    connection: &mut PgConnection,
    applies: &[&OperationRow],
) -> Result<Vec<OperationId>, DatabaseError> {
    let (mut ids, mut statuses, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for row in applies {
        let status = match row.status()? {
            OperationStatus::Queued | OperationStatus::Running => CopyStatus::Pending,
            OperationStatus::Succeeded => CopyStatus::Done,
            OperationStatus::Failed => CopyStatus::Failed,
            OperationStatus::Canceled => CopyStatus::Canceled,
            OperationStatus::Expired => CopyStatus::Expired,
        };
        ids.push(row.id);
        statuses.push(status.as_str().to_owned());
        errors.push(row.error()?.map(|error| error.message));
    }
    let ended = sqlx::query!(
        "UPDATE project_copies SET
            status = said.status,
            last_error = CASE WHEN said.status = 'done' THEN NULL ELSE coalesce(said.error, last_error) END,
            last_attempt_at = now(),
            finished_at = CASE WHEN said.status <> 'pending' THEN now() END
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS said (op_id, status, error)
         WHERE apply_op_id = said.op_id AND project_copies.status = 'pending'
         RETURNING project_copies.op_id, apply_op_id, dest_project_id, dest_path, project_copies.status, last_error",
        &ids,
        &statuses,
        &errors as &[Option<String>],
    )
    .fetch_all(&mut *connection)
    .await
    .during("note what became of copies")?;
    // In the order of the parents' ids, as everywhere.
    let mut by_parent: BTreeMap<Uuid, Vec<(CopyStatus, String, Value)>> = BTreeMap::new();
    for copy in ended {
        let status: CopyStatus = read("project_copies.status", copy.status.parse())?;
        if status == CopyStatus::Pending {
            continue;
        }
        let place = format!("{} in the project {}", copy.dest_path, copy.dest_project_id);
        let message = match &copy.last_error {
            Some(error) => format!("{place}: {status}: {error}"),
            None => format!("{place}: {status}"),
        };
        let detail = json!({
            "project_id": copy.dest_project_id, "path": copy.dest_path, "status": status, "apply_op_id": copy.apply_op_id,
        });
        by_parent.entry(copy.op_id).or_default().push((status, message, detail));
    }
    let mut shown = Vec::new();
    for (parent, ended) in by_parent {
        if show(connection, parent, ended).await? {
            shown.push(parent.into());
        }
    }
    Ok(shown)
}

/// Tells the watchers of a `project-copy` how far it is; whether it waits, and so has something to show. All of its
/// destinations are in its row: it is neither read nor returned.
async fn show(
    connection: &mut PgConnection,
    parent: Uuid,
    ended: Vec<(CopyStatus, String, Value)>,
) -> Result<bool, DatabaseError> {
    const DURING: &str = "show how far copies are";
    const PHASE: &str = "apply";
    let locked = sqlx::query!(
        r#"SELECT attempt, operation_subject(scope_type, scope_id, id) AS "subject!"
           FROM long_running_operations WHERE id = $1 AND waiting_for_children FOR UPDATE"#,
        parent
    );
    let Some(row) = locked.fetch_optional(&mut *connection).await.during(DURING)? else { return Ok(false) };
    let counts = sqlx::query!(
        r#"SELECT count(*) AS "all!", count(*) FILTER (WHERE status = 'done') AS "done!",
            count(*) FILTER (WHERE status = 'pending') AS "pending!"
         FROM project_copies WHERE op_id = $1"#,
        parent
    )
    .fetch_one(&mut *connection)
    .await
    .during(DURING)?;
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let (all, done, waiting) = (count(counts.all), count(counts.done), count(counts.pending));
    let other = all - done - waiting;
    let share = Progress::count(all - waiting, Some(all), "destinations");
    let summary = ProgressSummary {
        phase: PHASE.to_owned(),
        message: match other {
            0 => format!("{done} of {all} done, {waiting} waiting"),
            other => format!("{done} of {all} done, {other} failed or given up, {waiting} waiting"),
        },
        progress: overall_percent(named(COPY).phases, PHASE, Some(&share)),
    };
    let summary = read("long_running_operations.progress_summary", serde_json::to_value(summary))?;
    let attempt = u32::try_from(row.attempt).unwrap_or(0);
    let events: Vec<Value> = ended
        .into_iter()
        .map(|(status, message, detail)| {
            let level = if status == CopyStatus::Done { EventLevel::Info } else { EventLevel::Warn };
            let phase = PHASE.to_owned();
            OutboxEvent { attempt, phase, message, level, status: None, detail: Some(detail) }.to_json()
        })
        .collect();
    sqlx::query!(
        "WITH told AS (INSERT INTO outbox (op_id, subject, event) SELECT $1, $2, unnest($3::jsonb[]))
         UPDATE long_running_operations SET progress_summary = $4, updated_at = now(), rev = rev + 1
         WHERE id = $1",
        parent,
        row.subject,
        &events,
        summary,
    )
    .execute(&mut *connection)
    .await
    .during(DURING)?;
    Ok(true)
}
