//! Deleting backups: what is marked, what a prune is to forget, and what has to stay.
//!
//! A mark is made under the lock of the project's row, and only where nothing active may read the backup. Whoever
//! wants to read one asks for it without a mark, in a later statement. So between the mark and a prune there may be
//! an operation that asked before the mark was made and began after; therefore what is marked is looked at again
//! when it is to be forgotten, by when such an operation is either visible or has been refused.

use domain_model::{
    BackupId, OperationId, ProjectId, RetainedBackup, RetentionPolicy, Timestamp, dropped_backups,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::backups::note_lost_snapshots;
use crate::error::During;
use crate::{Database, DatabaseError};

/// What is forgotten in one round at most.
const MOST_FORGOTTEN: usize = 1000;

/// What is added to the age of an operation that may still be writing, seconds: it may live on for as long again
/// as a host takes to notice, and then some.
const GRACE_MARGIN_S: f64 = 3600.0;

/// What became of the wish to delete a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeletionMark {
    /// It is marked, now or since earlier.
    Marked,
    /// It is pinned: nothing was changed.
    Pinned,
    /// An operation may be reading it: nothing was changed.
    InUse(OperationId),
    /// There is none.
    Unknown,
}

/// What a prune is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct RetentionRound {
    /// Backups that have to be there.
    pub keep: Vec<BackupId>,
    /// Backups to be forgotten.
    pub forget: Vec<BackupId>,
    /// Backups that are not to be touched now: marked ones, and bad ones, which may be missing.
    pub spare: Vec<BackupId>,
    /// Operations of the project that have not ended.
    pub unfinished: Vec<OperationId>,
    /// Seconds for which what nothing names any more has to stay; none where nobody can be writing.
    pub grace_s: Option<f64>,
}

struct BackupRow {
    backup_id: String,
    created_at: time::OffsetDateTime,
    pinned: bool,
    deleting: bool,
    bad: bool,
    used_by: Option<Uuid>,
}

fn backup_id(text: String) -> Result<BackupId, DatabaseError> {
    text.parse().map_err(|error| DatabaseError::row("backups.backup_id", error))
}

async fn lock_project(connection: &mut PgConnection, project: ProjectId) -> Result<(), DatabaseError> {
    sqlx::query!("SELECT id FROM projects WHERE id = $1 FOR UPDATE", project.as_uuid())
        .fetch_optional(connection)
        .await
        .during("lock a project's row")
        .map(drop)
}

/// The backups of a project, oldest first, and which active operation may be reading each: one whose input names it,
/// or one that was begun with `latest` when it was the newest that was not known to be bad, or has become that since.
async fn backups_in_use(
    connection: &mut PgConnection,
    project: ProjectId,
    asked_by: Option<OperationId>,
) -> Result<Vec<BackupRow>, DatabaseError> {
    sqlx::query_as!(
        BackupRow,
        r#"WITH active AS MATERIALIZED (
            SELECT id, input, input::text AS words, started_at FROM long_running_operations
            WHERE scope_type = 'project' AND coalesce(scope_id, '00000000-0000-0000-0000-000000000000') = $1 AND status IN ('queued', 'running')
                AND ($2::uuid IS NULL OR id <> $2))
           SELECT backup.backup_id, backup.created_at, backup.pinned,
                backup.deleting_at IS NOT NULL AS "deleting!", backup.bad_since IS NOT NULL AS "bad!",
                (SELECT active.id FROM active
                 WHERE position(backup.backup_id IN active.words) > 0
                    OR (active.input ->> 'backup_id' = 'latest' AND active.started_at IS NOT NULL
                        AND (backup.deleting_at IS NULL OR backup.deleting_at >= active.started_at)
                        AND NOT EXISTS (
                            SELECT 1 FROM backups AS newer
                            WHERE newer.project_id = $1 AND newer.recorded_at < active.started_at
                                AND (newer.deleting_at IS NULL OR newer.deleting_at >= active.started_at)
                                AND newer.bad_since IS NULL
                                AND (newer.created_at, newer.backup_id) > (backup.created_at, backup.backup_id)))
                 LIMIT 1) AS used_by
           FROM backups AS backup WHERE backup.project_id = $1 AND backup.purpose = 'backup'
           ORDER BY backup.deleting_at, backup.created_at, backup.backup_id"#,
        project.as_uuid(),
        asked_by.map(|id| id.as_uuid()),
    )
    .fetch_all(connection)
    .await
    .during("find which backups are in use")
}

/// Marks backups, and has the project name its newest one that is left.
async fn mark(
    connection: &mut PgConnection,
    project: ProjectId,
    backups: &[String],
) -> Result<(), DatabaseError> {
    sqlx::query!(
        "UPDATE backups SET deleting_at = coalesce(deleting_at, now()) WHERE project_id = $1 AND backup_id = ANY ($2)",
        project.as_uuid(),
        backups,
    )
    .execute(&mut *connection)
    .await
    .during("mark backups for deletion")?;
    sqlx::query!(
        "UPDATE projects SET (last_backup_at, last_backup_id) = (
            SELECT max(created_at), (array_agg(backup_id ORDER BY created_at DESC, backup_id DESC))[1]
            FROM backups WHERE project_id = $1 AND deleting_at IS NULL AND purpose = 'backup'),
            -- What has changed since that one is not known any more.
            backup_generation = NULL, unsaved_since = coalesce(unsaved_since, now()), updated_at = now()
         WHERE id = $1 AND last_backup_id = ANY ($2)",
        project.as_uuid(),
        backups,
    )
    .execute(connection)
    .await
    .during("name the newest backup that is left")
    .map(drop)
}

impl Database {
    /// Marks a backup for deletion. From the answer on nobody is given it to read.
    pub async fn mark_backup_for_deletion(
        &self,
        project: ProjectId,
        id: &BackupId,
    ) -> Result<DeletionMark, DatabaseError> {
        const DURING: &str = "mark a backup for deletion";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        lock_project(&mut transaction, project).await?;
        let backups = backups_in_use(&mut transaction, project, None).await?;
        let Some(backup) = backups.into_iter().find(|backup| backup.backup_id == id.as_str()) else {
            return Ok(DeletionMark::Unknown);
        };
        if backup.deleting {
            return Ok(DeletionMark::Marked);
        }
        if backup.pinned {
            return Ok(DeletionMark::Pinned);
        }
        if let Some(operation) = backup.used_by {
            return Ok(DeletionMark::InUse(operation.into()));
        }
        mark(&mut transaction, project, &[backup.backup_id]).await?;
        transaction.commit().await.during(DURING)?;
        Ok(DeletionMark::Marked)
    }

    /// Pins a backup, or takes the pin out. `false` where there is no such backup, or it is being deleted.
    pub async fn pin_backup(
        &self,
        project: ProjectId,
        id: &BackupId,
        pinned: bool,
    ) -> Result<bool, DatabaseError> {
        const DURING: &str = "pin a backup";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        lock_project(&mut transaction, project).await?;
        let updated = sqlx::query!(
            "UPDATE backups SET pinned = $3 WHERE project_id = $1 AND backup_id = $2 AND deleting_at IS NULL",
            project.as_uuid(),
            id.as_str(),
            pinned,
        )
        .execute(&mut *transaction)
        .await
        .during(DURING)?;
        transaction.commit().await.during(DURING)?;
        Ok(updated.rows_affected() > 0)
    }

    /// One round of a prune of a project: takes the rows of what is gone, notes whose snapshots are lost (`bad`), marks what the
    /// policy drops (the built-in one where it is `None`), and says what is to be forgotten now.
    pub async fn retention_round(
        &self,
        project: ProjectId,
        prune: OperationId,
        gone: &[BackupId],
        bad: &[BackupId],
        policy: Option<RetentionPolicy>,
    ) -> Result<RetentionRound, DatabaseError> {
        const DURING: &str = "decide what a prune forgets";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        lock_project(&mut transaction, project).await?;
        let gone: Vec<String> = gone.iter().map(BackupId::to_string).collect();
        sqlx::query!(
            "DELETE FROM backups WHERE project_id = $1 AND backup_id = ANY ($2) AND deleting_at IS NOT NULL",
            project.as_uuid(),
            &gone,
        )
        .execute(&mut *transaction)
        .await
        .during("take the rows of backups that are gone")?;
        if !bad.is_empty() {
            note_lost_snapshots(&mut transaction, project, bad).await?;
        }
        let rows = backups_in_use(&mut transaction, project, Some(prune)).await?;
        // A bad backup takes nobody's place, and goes when somebody deletes it.
        let retained: Vec<RetainedBackup> = rows
            .iter()
            .filter(|row| !row.deleting && !row.bad)
            .map(|row| {
                Ok(RetainedBackup {
                    backup_id: backup_id(row.backup_id.clone())?,
                    created_at: Timestamp::from(row.created_at),
                    pinned: row.pinned,
                    in_use: row.used_by.is_some(),
                })
            })
            .collect::<Result<_, DatabaseError>>()?;
        let dropped = dropped_backups(&policy.unwrap_or_default(), &retained);
        let dropped: Vec<String> = dropped.iter().map(BackupId::to_string).collect();
        if !dropped.is_empty() {
            mark(&mut transaction, project, &dropped).await?;
        }
        let mut round = RetentionRound {
            keep: Vec::new(),
            forget: Vec::new(),
            spare: Vec::new(),
            unfinished: Vec::new(),
            grace_s: None,
        };
        for row in rows {
            let marked = row.deleting || dropped.contains(&row.backup_id);
            let list = match (marked, row.used_by.is_none() && round.forget.len() < MOST_FORGOTTEN) {
                // A snapshot that is lost must not keep the space of all others from coming back.
                (false, _) if row.bad => &mut round.spare,
                (false, _) => &mut round.keep,
                (true, true) => &mut round.forget,
                (true, false) => &mut round.spare,
            };
            list.push(backup_id(row.backup_id)?);
        }
        // Only one operation of a project works on its repository at a time. An attempt that lost its lease may not
        // have noticed, one of this very prune included; one that ended in order has.
        let others = sqlx::query!(
            r#"SELECT id, status IN ('queued', 'running') AS "unfinished!",
                (extract(epoch FROM now() - started_at))::float8 AS begun_before_s,
                (status = 'running' OR (status = 'queued' AND attempt > 0)
                    OR (lease_losses > 0 AND updated_at > now() - interval '1 day')) AS "may_be_writing!"
               FROM long_running_operations
               WHERE scope_type = 'project' AND coalesce(scope_id, '00000000-0000-0000-0000-000000000000') = $1 AND (id <> $2 OR lease_losses > 0)
                AND (status IN ('queued', 'running') OR lease_losses > 0)"#,
            project.as_uuid(),
            prune.as_uuid(),
        )
        .fetch_all(&mut *transaction)
        .await
        .during("find who may still be writing")?;
        for other in others {
            if other.unfinished && other.id != prune.as_uuid() {
                round.unfinished.push(other.id.into());
            }
            if let Some(begun_before_s) = other.begun_before_s.filter(|_| other.may_be_writing) {
                let grace_s = begun_before_s + GRACE_MARGIN_S;
                round.grace_s = Some(round.grace_s.map_or(grace_s, |longest: f64| longest.max(grace_s)));
            }
        }
        transaction.commit().await.during(DURING)?;
        Ok(round)
    }
}
