//! `project_copies`: what is copied where, and what has become of it.
//!
//! A row is made with its `project-copy`, and comes to its end in the transaction that ends its `copy-apply`, or the
//! `project-copy` itself: whatever ends an operation (its worker, a cancel, the sweep) goes through [`note`].

use std::collections::BTreeMap;

use bus_messages::kinds::{COPY_GRACE_S, CopyEntry, CopyPaths, CopySnapshotResult, ProjectCopyInput, named};
use bus_messages::{EventLevel, Operation, ProgressSummary, ProjectCopy};
use domain_model::{
    AccountId, BackupId, CopyId, CopyStatus, HostId, OperationId, OperationStatus, Progress, ProjectId,
    overall_percent,
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::{During, despite_deadlocks};
use crate::operations::{Ended, NewOperation, OperationRow, cancel, lock, lock_all};
use crate::outbox::OutboxEvent;
use crate::{Database, DatabaseError};

/// The kind that copies are made by, and the kinds of its children.
const COPY: &str = "project-copy";
const SNAPSHOT: &str = "copy-snapshot";
const APPLY: &str = "copy-apply";

/// Rows that have ended are kept for so many days.
const KEPT_DAYS: i32 = 30;

/// A copy, and what applying it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingCopy {
    /// The copy.
    pub copy: ProjectCopy,
    /// What goes where.
    pub entries: Vec<CopyEntry>,
    /// The host of the destination.
    pub dest_host_id: HostId,
    /// The code of the error that the last attempt to apply it ended with.
    pub error_code: Option<String>,
}

/// Where a `project-copy` stands.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyStanding {
    /// The host of the source.
    pub src_host_id: HostId,
    /// Its copies, in the order of its input.
    pub copies: Vec<PendingCopy>,
    /// The snapshot that was made for them.
    pub snapshot_id: Option<BackupId>,
    /// How its `copy-snapshot` ended, if it did.
    pub snapshot_ended: Option<SnapshotEnd>,
}

/// How a `copy-snapshot` ended.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotEnd {
    /// The status that it ended with.
    pub status: OperationStatus,
    /// The code of its error.
    pub code: Option<String>,
    /// Why it failed.
    pub message: Option<String>,
}

/// What the holder of a `copy-apply` has to know of its copy.
#[derive(Debug, Clone, PartialEq)]
pub struct ApplyStanding {
    /// What has become of the copy.
    pub status: CopyStatus,
    /// The `project-copy`.
    pub copy_op_id: OperationId,
    /// The snapshot.
    pub snapshot_id: Option<BackupId>,
    /// Whether the destination has backups.
    pub has_backups: bool,
}

/// Which copies are to be canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiesToCancel {
    /// This one.
    One(CopyId),
    /// Those of this operation.
    OfOperation(OperationId),
    /// All that are pending.
    All,
}

struct Row {
    id: Uuid,
    op_id: Uuid,
    src_project_id: Uuid,
    src_path: String,
    dest_project_id: Uuid,
    dest_path: String,
    options: Value,
    snapshot_id: Option<String>,
    status: String,
    apply_op_id: Option<Uuid>,
    last_error: Option<String>,
    last_attempt_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    finished_at: Option<OffsetDateTime>,
}

fn read<T, E: std::fmt::Display>(column: &'static str, result: Result<T, E>) -> Result<T, DatabaseError> {
    result.map_err(|error| DatabaseError::row(column, error))
}

impl TryFrom<Row> for ProjectCopy {
    type Error = DatabaseError;

    fn try_from(row: Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            copy_id: row.id.into(),
            op_id: row.op_id.into(),
            src_project_id: row.src_project_id.into(),
            src_path: read_paths(&row.src_path)?,
            dest_project_id: row.dest_project_id.into(),
            dest_path: read("project_copies.dest_path", row.dest_path.parse())?,
            options: read("project_copies.options", serde_json::from_value(row.options))?,
            status: read("project_copies.status", row.status.parse())?,
            snapshot_id: read(
                "project_copies.snapshot_id",
                row.snapshot_id.map(|id| id.parse()).transpose(),
            )?,
            apply_op_id: row.apply_op_id.map(OperationId::from),
            last_error: row.last_error,
            last_attempt_at: row.last_attempt_at.map(Into::into),
            created_at: row.created_at.into(),
            expires_at: row.expires_at.into(),
            finished_at: row.finished_at.map(Into::into),
        })
    }
}

/// A path, or a list of them, each with `//` before it, which no path has in it.
fn write_paths(paths: &CopyPaths) -> String {
    match paths {
        CopyPaths::One(path) => path.to_string(),
        CopyPaths::Many(paths) => paths.iter().map(|path| format!("//{path}")).collect(),
    }
}

fn read_paths(text: &str) -> Result<CopyPaths, DatabaseError> {
    const COLUMN: &str = "project_copies.src_path";
    match text.strip_prefix("//") {
        None => read(COLUMN, text.parse()).map(CopyPaths::One),
        Some(list) => {
            let paths: Result<_, _> = list.split("//").map(str::parse).collect();
            read(COLUMN, paths).map(CopyPaths::Many)
        }
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
async fn cancel_active(
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
) -> Result<Vec<Operation>, DatabaseError> {
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
) -> Result<Vec<Operation>, DatabaseError> {
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
    let mut parents = Vec::new();
    for (parent, ended) in by_parent {
        parents.extend(show(connection, parent, ended).await?);
    }
    Ok(parents)
}

/// Tells the watchers of a `project-copy` that waits how far it is.
async fn show(
    connection: &mut PgConnection,
    parent: Uuid,
    ended: Vec<(CopyStatus, String, Value)>,
) -> Result<Option<Operation>, DatabaseError> {
    const DURING: &str = "show how far copies are";
    const PHASE: &str = "apply";
    let Some(row) = lock(connection, parent).await?.filter(|row| row.waiting_for_children) else {
        return Ok(None);
    };
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
    let subject = row.subject()?;
    let attempt = u32::try_from(row.attempt).unwrap_or(0);
    let events: Vec<Value> = ended
        .into_iter()
        .map(|(status, message, detail)| {
            let level = if status == CopyStatus::Done { EventLevel::Info } else { EventLevel::Warn };
            let phase = PHASE.to_owned();
            OutboxEvent { attempt, phase, message, level, status: None, detail: Some(detail) }.to_json()
        })
        .collect();
    let row = sqlx::query_as!(
        OperationRow,
        "WITH told AS (INSERT INTO outbox (op_id, subject, event) SELECT $1, $2, unnest($3::jsonb[]))
         UPDATE long_running_operations SET progress_summary = $4, updated_at = now(), rev = rev + 1
         WHERE id = $1 RETURNING *",
        parent,
        subject,
        &events,
        summary,
    )
    .fetch_one(&mut *connection)
    .await
    .during(DURING)?;
    Operation::try_from(row).map(Some)
}

impl Database {
    /// Where a `project-copy` stands. `None` where there is nothing of it.
    pub async fn copy_standing(&self, op_id: OperationId) -> Result<Option<CopyStanding>, DatabaseError> {
        const DURING: &str = "look where a copy stands";
        let rows = sqlx::query!(
            "SELECT copy.*, src.host_id AS src_host_id, dest.host_id AS dest_host_id, apply.error ->> 'code' AS error_code
             FROM project_copies AS copy JOIN projects AS src ON src.id = src_project_id
                JOIN projects AS dest ON dest.id = dest_project_id
                LEFT JOIN long_running_operations AS apply ON apply.id = apply_op_id
             WHERE op_id = $1 ORDER BY copy.id",
            op_id.as_uuid()
        )
        .fetch_all(&self.pool)
        .await
        .during(DURING)?;
        let Some(src_host_id) = rows.first().map(|row| row.src_host_id.into()) else { return Ok(None) };
        let mut copies = Vec::with_capacity(rows.len());
        for row in rows {
            copies.push(PendingCopy {
                entries: read("project_copies.entries", serde_json::from_value(row.entries))?,
                dest_host_id: row.dest_host_id.into(),
                error_code: row.error_code,
                copy: Row {
                    id: row.id,
                    op_id: row.op_id,
                    src_project_id: row.src_project_id,
                    src_path: row.src_path,
                    dest_project_id: row.dest_project_id,
                    dest_path: row.dest_path,
                    options: row.options,
                    snapshot_id: row.snapshot_id,
                    status: row.status,
                    apply_op_id: row.apply_op_id,
                    last_error: row.last_error,
                    last_attempt_at: row.last_attempt_at,
                    created_at: row.created_at,
                    expires_at: row.expires_at,
                    finished_at: row.finished_at,
                }
                .try_into()?,
            });
        }
        let snapshot = sqlx::query!(
            "SELECT status, error ->> 'code' AS code, error ->> 'message' AS message FROM long_running_operations
             WHERE parent_id = $1 AND kind = 'copy-snapshot' AND status NOT IN ('queued', 'running')
             ORDER BY id DESC LIMIT 1",
            op_id.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during(DURING)?;
        let snapshot_ended = snapshot
            .map(|row| {
                let status = read("long_running_operations.status", row.status.parse())?;
                Ok(SnapshotEnd { status, code: row.code, message: row.message })
            })
            .transpose()?;
        let snapshot_id = copies.iter().find_map(|pending| pending.copy.snapshot_id.clone());
        Ok(Some(CopyStanding { src_host_id, copies, snapshot_id, snapshot_ended }))
    }

    /// Ends copies that are pending and have no operation that would.
    pub async fn end_copies(
        &self,
        copies: &[CopyId],
        status: CopyStatus,
        error: Option<&str>,
    ) -> Result<(), DatabaseError> {
        let copies: Vec<Uuid> = copies.iter().map(CopyId::as_uuid).collect();
        sqlx::query!(
            "UPDATE project_copies SET status = $2, last_error = coalesce($3, last_error), finished_at = now()
             WHERE id = ANY ($1) AND status = 'pending'",
            &copies,
            status.as_str(),
            error,
        )
        .execute(&self.pool)
        .await
        .during("end copies")
        .map(drop)
    }

    /// What the holder of a `copy-apply` has to know of its copy.
    pub async fn apply_standing(&self, apply: OperationId) -> Result<Option<ApplyStanding>, DatabaseError> {
        let row = sqlx::query!(
            r#"SELECT status, op_id, snapshot_id, EXISTS (
                SELECT 1 FROM backups WHERE project_id = dest_project_id AND deleting_at IS NULL)
                -- A backup may be of a project without files.
                AND NOT EXISTS (SELECT 1 FROM long_running_operations AS restore WHERE restore.parent_id = $1
                    AND restore.kind = 'project-restore' AND restore.status = 'succeeded') AS "has_backups!"
             FROM project_copies WHERE apply_op_id = $1"#,
            apply.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("look where a copy stands")?;
        row.map(|row| {
            Ok(ApplyStanding {
                status: read("project_copies.status", row.status.parse())?,
                copy_op_id: row.op_id.into(),
                snapshot_id: read(
                    "project_copies.snapshot_id",
                    row.snapshot_id.map(|id| id.parse()).transpose(),
                )?,
                has_backups: row.has_backups,
            })
        })
        .transpose()
    }

    /// Why a claimed operation has to wait for copies; `None` where it need not. A `copy-apply` waits for older copies into
    /// the same place, so that they are applied in the order in which they were asked for; a `project-start` for
    /// those that its host could apply now.
    pub async fn waits_for_copies(&self, op: &Operation) -> Result<Option<String>, DatabaseError> {
        const DURING: &str = "look for copies that come first";
        let waits_for = match (op.kind.as_str(), op.scope.uuid()) {
            (APPLY, _) => {
                let older = sqlx::query_scalar!(
                    "SELECT older.id FROM project_copies AS own
                        JOIN project_copies AS older ON older.dest_project_id = own.dest_project_id
                        LEFT JOIN long_running_operations AS apply ON apply.id = older.apply_op_id
                     WHERE own.apply_op_id = $1 AND (older.created_at, older.id) < (own.created_at, own.id)
                        AND older.status = 'pending'
                        -- One that is still being made comes first, too, unless its source's host is away.
                        AND (apply.status IN ('queued', 'running') OR (older.apply_op_id IS NULL
                            AND EXISTS (SELECT 1 FROM long_running_operations AS whole
                                WHERE whole.id = older.op_id AND whole.status IN ('queued', 'running'))
                            AND NOT EXISTS (SELECT 1 FROM long_running_operations AS snapshot
                                WHERE snapshot.parent_id = older.op_id AND snapshot.kind = 'copy-snapshot'
                                    AND snapshot.status = 'queued' AND snapshot.attempt = 0)))
                        AND (own.dest_path = '.' OR older.dest_path = '.' OR own.dest_path = older.dest_path
                            OR starts_with(own.dest_path, older.dest_path || '/')
                            OR starts_with(older.dest_path, own.dest_path || '/'))
                     ORDER BY older.id LIMIT 1",
                    op.op_id.as_uuid()
                )
                .fetch_optional(&self.pool)
                .await
                .during(DURING)?;
                older.map(|older| format!("waits for the copy {older}, which goes to the same place"))
            }
            ("project-start", Some(project)) => {
                let first = sqlx::query_scalar!(
                    "SELECT copy.id FROM project_copies AS copy
                        JOIN long_running_operations AS apply ON apply.id = copy.apply_op_id
                     WHERE copy.dest_project_id = $1 AND copy.status = 'pending'
                        AND (apply.ready OR apply.waiting_for_children) ORDER BY copy.id LIMIT 1",
                    project
                )
                .fetch_optional(&self.pool)
                .await
                .during(DURING)?;
                first.map(|copy| format!("waits for the copy {copy} to be applied"))
            }
            _ => None,
        };
        Ok(waits_for)
    }

    /// The copies from and to a project, newest first, from before `cursor`.
    pub async fn list_copies(
        &self,
        project: ProjectId,
        status: Option<CopyStatus>,
        op_id: Option<OperationId>,
        cursor: Option<CopyId>,
        limit: u32,
    ) -> Result<Vec<ProjectCopy>, DatabaseError> {
        let rows = sqlx::query_as!(
            Row,
            "SELECT id, op_id, src_project_id, src_path, dest_project_id, dest_path, options, snapshot_id, status,
                apply_op_id, last_error, last_attempt_at, created_at, expires_at, finished_at
             FROM project_copies
             WHERE (src_project_id = $1 OR dest_project_id = $1) AND ($2::text IS NULL OR status = $2)
                AND ($3::uuid IS NULL OR op_id = $3) AND ($4::uuid IS NULL OR id < $4)
             ORDER BY id DESC LIMIT $5",
            project.as_uuid(),
            status.map(CopyStatus::as_str),
            op_id.map(|id| id.as_uuid()),
            cursor.map(|id| id.as_uuid()),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await
        .during("list copies")?;
        rows.into_iter().map(ProjectCopy::try_from).collect()
    }

    /// Cancels copies from or to a project that are pending: at once, or by asking the worker that applies one, which may
    /// be past it. Returns them, and the operations that changed.
    pub async fn cancel_copies(
        &self,
        project: ProjectId,
        which: CopiesToCancel,
    ) -> Result<(Vec<ProjectCopy>, Vec<Ended>), DatabaseError> {
        despite_deadlocks(|| self.try_to_cancel_copies(project, which)).await
    }

    async fn try_to_cancel_copies(
        &self,
        project: ProjectId,
        which: CopiesToCancel,
    ) -> Result<(Vec<ProjectCopy>, Vec<Ended>), DatabaseError> {
        const DURING: &str = "cancel copies";
        let (copy, op_id) = match which {
            CopiesToCancel::One(copy) => (Some(copy.as_uuid()), None),
            CopiesToCancel::OfOperation(op_id) => (None, Some(op_id.as_uuid())),
            CopiesToCancel::All => (None, None),
        };
        let mut transaction = self.pool.begin().await.during(DURING)?;
        // First the operations, whose ends end their copies; in the same order as everywhere. While they are waited for others
        // may be linked.
        let mut locked: BTreeMap<Uuid, OperationRow> = BTreeMap::new();
        let wanted = loop {
            let wanted = sqlx::query!(
                "SELECT id, apply_op_id FROM project_copies
                 WHERE (src_project_id = $1 OR dest_project_id = $1) AND status = 'pending'
                    AND ($2::uuid IS NULL OR id = $2) AND ($3::uuid IS NULL OR op_id = $3)
                 ORDER BY id",
                project.as_uuid(),
                copy,
                op_id
            )
            .fetch_all(&mut *transaction)
            .await
            .during(DURING)?;
            let applies = wanted.iter().filter_map(|copy| copy.apply_op_id);
            let more: Vec<Uuid> = applies.filter(|apply| !locked.contains_key(apply)).collect();
            if more.is_empty() {
                break wanted;
            }
            locked.extend(lock_all(&mut transaction, &more).await?);
        };
        let mut canceled = Vec::new();
        for apply in locked.into_values() {
            canceled.extend(cancel_active(&mut transaction, apply).await?);
        }
        let ids: Vec<Uuid> = wanted.iter().map(|copy| copy.id).collect();
        sqlx::query!(
            "UPDATE project_copies SET status = 'canceled', finished_at = now()
             WHERE id = ANY ($1) AND status = 'pending' AND apply_op_id IS NULL",
            &ids
        )
        .execute(&mut *transaction)
        .await
        .during(DURING)?;
        let rows = sqlx::query_as!(
            Row,
            "SELECT id, op_id, src_project_id, src_path, dest_project_id, dest_path, options, snapshot_id, status,
                apply_op_id, last_error, last_attempt_at, created_at, expires_at, finished_at
             FROM project_copies WHERE id = ANY ($1) ORDER BY id DESC",
            &ids
        )
        .fetch_all(&mut *transaction)
        .await
        .during(DURING)?;
        transaction.commit().await.during(DURING)?;
        let copies = rows.into_iter().map(ProjectCopy::try_from).collect::<Result<_, _>>()?;
        Ok((copies, canceled))
    }

    /// Which of these projects an account may not write to, those that there are not among them. An operator (`None`) may
    /// write to all that there are.
    pub async fn projects_out_of_reach(
        &self,
        account: Option<AccountId>,
        projects: &[ProjectId],
    ) -> Result<Vec<ProjectId>, DatabaseError> {
        let projects: Vec<Uuid> = projects.iter().map(ProjectId::as_uuid).collect();
        let ids = sqlx::query_scalar!(
            r#"SELECT wanted.id AS "id!" FROM unnest($2::uuid[]) AS wanted (id)
             WHERE NOT EXISTS (
                SELECT 1 FROM projects WHERE projects.id = wanted.id AND ($1::uuid IS NULL OR account_id = $1 OR EXISTS (
                    SELECT 1 FROM project_collaborators AS c WHERE c.project_id = wanted.id AND c.account_id = $1)))"#,
            account.map(|id| id.as_uuid()),
            &projects,
        )
        .fetch_all(&self.pool)
        .await
        .during("look whose projects these are")?;
        Ok(ids.into_iter().map(ProjectId::from).collect())
    }

    /// Cancels snapshots that are being made, or wait to be, for copies that nobody wants any more.
    pub async fn cancel_needless_snapshots(&self) -> Result<Vec<Ended>, DatabaseError> {
        const DURING: &str = "cancel needless snapshots";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let needless = sqlx::query_scalar!(
            "SELECT snapshot.id FROM (
                SELECT DISTINCT op_id FROM project_copies
                WHERE status IN ('canceled', 'superseded') AND finished_at > now() - interval '10 minutes') AS ended
                JOIN long_running_operations AS snapshot ON snapshot.parent_id = ended.op_id
             WHERE snapshot.kind = 'copy-snapshot' AND snapshot.status IN ('queued', 'running')
                AND snapshot.cancel_requested_at IS NULL AND NOT EXISTS (
                    SELECT 1 FROM project_copies AS copy WHERE copy.op_id = ended.op_id AND copy.status = 'pending')
             ORDER BY snapshot.id"
        )
        .fetch_all(&mut *transaction)
        .await
        .during(DURING)?;
        let mut canceled = Vec::new();
        for id in needless {
            if let Some(row) = lock(&mut transaction, id).await? {
                canceled.extend(cancel_active(&mut transaction, row).await?);
            }
        }
        transaction.commit().await.during(DURING)?;
        Ok(canceled)
    }

    /// Forgets copies that ended long ago.
    pub async fn forget_old_copies(&self) -> Result<(), DatabaseError> {
        sqlx::query!(
            "DELETE FROM project_copies WHERE status <> 'pending' AND finished_at < now() - make_interval(days => $1)",
            KEPT_DAYS
        )
        .execute(&self.pool)
        .await
        .during("forget old copies")
        .map(drop)
    }
}
