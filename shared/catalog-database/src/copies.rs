//! `project_copies`: what is copied where, and what has become of it.
//!
//! A row is made with its `project-copy`, and comes to its end in the transaction that ends its `copy-apply`, or the
//! `project-copy` itself: whatever ends an operation (its worker, a cancel, the sweep) goes through [`note`].

mod with_operations;

pub(crate) use with_operations::{link, note, record};

use std::collections::BTreeMap;

use bus_messages::kinds::{CopyEntry, CopyPaths};
use bus_messages::{Operation, ProjectCopy};
use domain_model::{
    AccountId, BackupId, CopyId, CopyStatus, HostId, OperationId, OperationStatus, ProjectId,
};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::copies::with_operations::cancel_active;
use crate::error::{During, despite_deadlocks};
use crate::operations::{Ended, OperationRow, lock, lock_all};
use crate::{Database, DatabaseError};

/// The kind of the operation that applies a copy.
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

/// Reads what `write_paths` has written.
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
