use bus_messages::Backup;
use bus_messages::kinds::{Proof, RestoreDrillResult};
use domain_model::{BackupId, BucketId, OperationId, ProjectId, Tag, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError};

/// A backup to be recorded, together with the success of the operation that made it.
#[derive(Debug, Clone)]
pub(crate) struct NewBackup {
    /// Its id.
    pub backup_id: BackupId,
    /// Whose.
    pub project_id: ProjectId,
    /// The operation that made it.
    pub op_id: OperationId,
    /// When the files were frozen.
    pub created_at: Timestamp,
    /// How many files.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// How many bytes it added to the repository.
    pub bytes_added: u64,
    /// Words to find it by.
    pub tags: Vec<Tag>,
    /// Whether retention leaves it alone.
    pub pinned: bool,
    /// `btrfs-snapshot` or `live`.
    pub source: &'static str,
    /// The digest of its tree.
    pub tree: String,
    /// The backup that it was compared with.
    pub parent: Option<BackupId>,
    /// What the host said of the files when they were frozen.
    pub generation: Option<i64>,
}

/// Where a backup is, and what a restore of it must arrive at.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupPlace {
    /// Its id.
    pub backup_id: BackupId,
    /// The bucket that it is in.
    pub bucket_id: BucketId,
    /// The digest of its tree.
    pub tree: String,
    /// How many bytes its files have.
    pub bytes: u64,
    /// Why it is known to be bad.
    pub bad_reason: Option<String>,
}

struct Row {
    project_id: Uuid,
    backup_id: String,
    op_id: Uuid,
    created_at: OffsetDateTime,
    files: i64,
    bytes: i64,
    bytes_added: i64,
    tags: Vec<String>,
    purpose: String,
    pinned: bool,
    source: String,
    tree: String,
    parent: Option<String>,
    verified_at: Option<OffsetDateTime>,
    bad_since: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Backup {
    type Error = DatabaseError;

    fn try_from(row: Row) -> Result<Self, DatabaseError> {
        let id = |text: String| {
            text.parse::<BackupId>().map_err(|error| DatabaseError::row("backups.backup_id", error))
        };
        let tag =
            |text: &String| text.parse::<Tag>().map_err(|error| DatabaseError::row("backups.tags", error));
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(Self {
            backup_id: id(row.backup_id)?,
            project_id: row.project_id.into(),
            created_at: row.created_at.into(),
            files: count(row.files),
            bytes: count(row.bytes),
            bytes_added: count(row.bytes_added),
            tags: row.tags.iter().map(tag).collect::<Result<_, _>>()?,
            purpose: row.purpose,
            pinned: row.pinned,
            source: row.source,
            tree: row.tree,
            parent: row.parent.map(id).transpose()?,
            op_id: row.op_id.into(),
            verified_at: row.verified_at.map(Timestamp::from),
            bad_since: row.bad_since.map(Timestamp::from),
        })
    }
}

/// Records a backup in the bucket of its project, and what it says about the project, in the transaction that ends its
/// operation. Recording it again changes nothing.
pub(crate) async fn record(connection: &mut PgConnection, backup: &NewBackup) -> Result<(), DatabaseError> {
    let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let tags: Vec<String> = backup.tags.iter().map(Tag::to_string).collect();
    sqlx::query!(
        "INSERT INTO backups (project_id, backup_id, bucket_id, op_id, created_at, files, bytes, bytes_added, tags,
            pinned, source, tree, parent)
         SELECT id, $2, backup_bucket_id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 FROM projects WHERE id = $1
         ON CONFLICT DO NOTHING",
        backup.project_id.as_uuid(),
        backup.backup_id.as_str(),
        backup.op_id.as_uuid(),
        backup.created_at.as_date_time(),
        count(backup.files),
        count(backup.bytes),
        count(backup.bytes_added),
        &tags,
        backup.pinned,
        backup.source,
        backup.tree,
        backup.parent.as_ref().map(BackupId::as_str),
    )
    .execute(&mut *connection)
    .await
    .during("record a backup")?;
    sqlx::query!(
        "UPDATE projects SET
            last_backup_at = $2,
            last_backup_id = $3,
            backup_generation = $4,
            backup_host_id = host_id,
            backup_scheduled_at = NULL,
            -- Of one filesystem they only grow: the host may have told already of what changed since the files were frozen.
            last_changed_generation = greatest(last_changed_generation, $4),
            -- What has changed before they were frozen is saved; where nobody can tell, something has changed since.
            unsaved_since = CASE WHEN greatest(touched_at, damaged_at) > $2 THEN greatest(touched_at, damaged_at)
                WHEN $4::bigint IS NULL OR last_changed_generation > $4 THEN greatest(unsaved_since, $2) END,
            updated_at = now()
         WHERE id = $1 AND (last_backup_at IS NULL OR last_backup_at <= $2)",
        backup.project_id.as_uuid(),
        backup.created_at.as_date_time(),
        backup.backup_id.as_str(),
        backup.generation,
    )
    .execute(connection)
    .await
    .during("record the newest backup of a project")
    .map(drop)
}

/// Notes what a drill has found out about a backup, in the transaction that ends its operation. One that was not known to be bad
/// has all data checked: newer backups may count on what is damaged.
pub(crate) async fn note_proof(
    connection: &mut PgConnection,
    project: ProjectId,
    result: &RestoreDrillResult,
) -> Result<(), DatabaseError> {
    let reason = match result.proof {
        Proof::Match => None,
        Proof::Mismatch => Some(result.reason.clone().unwrap_or_else(|| "it does not restore".to_owned())),
    };
    let was_bad = sqlx::query_scalar!(
        r#"SELECT bad_since IS NOT NULL AS "was_bad!" FROM backups WHERE project_id = $1 AND backup_id = $2"#,
        project.as_uuid(),
        result.backup_id.as_str(),
    )
    .fetch_optional(&mut *connection)
    .await
    .during("look at a backup that was proven")?;
    sqlx::query!(
        "UPDATE backups SET
            verified_at = CASE WHEN $3::text IS NULL THEN now() ELSE verified_at END,
            -- What is bad may be in another part than a sample.
            bad_since = CASE WHEN $3::text IS NOT NULL THEN coalesce(bad_since, now()) WHEN $4 THEN bad_since END,
            bad_reason = CASE WHEN $3::text IS NULL AND $4 THEN bad_reason ELSE $3 END
         WHERE project_id = $1 AND backup_id = $2",
        project.as_uuid(),
        result.backup_id.as_str(),
        reason,
        result.sample.is_some(),
    )
    .execute(&mut *connection)
    .await
    .during("note the proof of a backup")?;
    if reason.is_some() {
        return if was_bad == Some(true) { Ok(()) } else { ask_for_check(connection, project).await };
    }
    sqlx::query!(
        "UPDATE projects SET last_verified_at = now(), updated_at = now() WHERE id = $1",
        project.as_uuid(),
    )
    .execute(connection)
    .await
    .during("note the proof of a project's backup")
    .map(drop)
}

/// Has the scheduler ask, at its next look, for a check of all data of a project's repository.
pub(crate) async fn ask_for_check(
    connection: &mut PgConnection,
    project: ProjectId,
) -> Result<(), DatabaseError> {
    sqlx::query!(
        "WITH to_be_checked AS (
            INSERT INTO project_upkeep (project_id, kind, asked_at, times, reads_all)
            VALUES ($1, 'repo-check', '-infinity', 0, true)
            ON CONFLICT (project_id, kind) DO UPDATE SET asked_at = '-infinity', reads_all = true)
         -- Where a backup was asked for in vain, or the project was never looked at, it is looked at soon anyway.
         UPDATE projects SET backup_due_at = now()
         WHERE id = $1 AND backup_due_at > now() AND backup_scheduled_at IS NULL",
        project.as_uuid(),
    )
    .execute(connection)
    .await
    .during("have a repository checked")
    .map(drop)
}

/// Upkeep of a project's repository that was done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DoneUpkeep {
    /// Whose.
    pub project_id: ProjectId,
    /// The kind of the operation.
    pub kind: String,
    /// Whether its time had come, or somebody asked for it in between.
    pub was_due: bool,
    /// Whether it was a check that has read all data.
    pub has_read_all: bool,
}

/// Notes that upkeep was done, in the transaction that ends its operation.
pub(crate) async fn note_upkeep(
    connection: &mut PgConnection,
    done: &DoneUpkeep,
) -> Result<(), DatabaseError> {
    sqlx::query!(
        "UPDATE project_upkeep SET
            done_at = CASE WHEN $3 THEN now() ELSE done_at END,
            times = times + CASE WHEN $3 THEN 1 ELSE 0 END,
            reads_all = reads_all AND NOT $4
         WHERE project_id = $1 AND kind = $2",
        done.project_id.as_uuid(),
        &done.kind,
        done.was_due,
        done.has_read_all,
    )
    .execute(connection)
    .await
    .during("note that upkeep was done")
    .map(drop)
}

/// Notes which backups of a project have lost their snapshots. Nothing is restored from them unasked, and the project counts
/// as one with changes that are not saved.
pub(crate) async fn note_lost_snapshots(
    connection: &mut PgConnection,
    project: ProjectId,
    backups: &[BackupId],
) -> Result<(), DatabaseError> {
    let backups: Vec<String> = backups.iter().map(BackupId::to_string).collect();
    let noted = sqlx::query!(
        "UPDATE backups SET bad_since = now(), bad_reason = 'its snapshot is lost or does not read'
         WHERE project_id = $1 AND backup_id = ANY ($2) AND bad_since IS NULL",
        project.as_uuid(),
        &backups,
    )
    .execute(&mut *connection)
    .await
    .during("note which backups have lost their snapshots")?;
    if noted.rows_affected() > 0 { note_damage(connection, project).await } else { Ok(()) }
}

/// Why a backup is bad that needs what its repository has lost.
const LACKS_DATA: &str = "it needs data that its repository has lost";

/// Notes which backups of a project need data that its repository has lost, and says whether any has become bad since the
/// repository was last found to be damaged.
pub(crate) async fn note_lacking_backups(
    connection: &mut PgConnection,
    project: ProjectId,
    backups: &[BackupId],
) -> Result<bool, DatabaseError> {
    let backups: Vec<String> = backups.iter().map(BackupId::to_string).collect();
    sqlx::query!(
        "UPDATE backups SET bad_since = now(), bad_reason = $3
         WHERE project_id = $1 AND backup_id = ANY ($2) AND bad_since IS NULL",
        project.as_uuid(),
        &backups,
        LACKS_DATA,
    )
    .execute(&mut *connection)
    .await
    .during("note which backups lack data")?;
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM backups JOIN projects ON projects.id = backups.project_id
            WHERE project_id = $1 AND backup_id = ANY ($2) AND bad_since > coalesce(damaged_at, '-infinity')) AS "some!""#,
        project.as_uuid(),
        &backups,
    )
    .fetch_one(connection)
    .await
    .during("look whether damage is news")
}

/// Whether any backup of a project is known to be bad.
pub(crate) async fn has_bad_backups(
    connection: &mut PgConnection,
    project: ProjectId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM backups
            WHERE project_id = $1 AND bad_since IS NOT NULL AND deleting_at IS NULL) AS "some!""#,
        project.as_uuid(),
    )
    .fetch_one(connection)
    .await
    .during("look for bad backups")
}

/// Notes that a check has found a project's repository sound: no backup lacks data any more. What a drill has found to be bad
/// stays so.
pub(crate) async fn note_sound_repository(
    connection: &mut PgConnection,
    project: ProjectId,
) -> Result<(), DatabaseError> {
    sqlx::query!(
        "UPDATE backups SET bad_since = NULL, bad_reason = NULL WHERE project_id = $1 AND bad_reason = $2",
        project.as_uuid(),
        LACKS_DATA,
    )
    .execute(connection)
    .await
    .during("note that a repository is sound")
    .map(drop)
}

/// Notes that a project's repository was found to be damaged, in the transaction that ends the operation: until the next
/// backup, which stores again what was lost, the project counts as one with changes that are not saved.
pub(crate) async fn note_damage(
    connection: &mut PgConnection,
    project: ProjectId,
) -> Result<(), DatabaseError> {
    sqlx::query!(
        "UPDATE projects SET damaged_at = now(), unsaved_since = coalesce(unsaved_since, now()), updated_at = now()
         WHERE id = $1",
        project.as_uuid(),
    )
    .execute(connection)
    .await
    .during("note that a repository is damaged")
    .map(drop)
}

impl Database {
    /// Backups of a project that are not being deleted, newest first, from after `cursor` (time and id of the last one seen).
    pub async fn list_backups(
        &self,
        project: ProjectId,
        cursor: Option<(Timestamp, BackupId)>,
        limit: u32,
    ) -> Result<Vec<Backup>, DatabaseError> {
        let rows = sqlx::query_as!(
            Row,
            "SELECT project_id, backup_id, op_id, created_at, files, bytes, bytes_added, tags, purpose, pinned, source,
                tree, parent, verified_at, bad_since
             FROM backups
             WHERE project_id = $1 AND deleting_at IS NULL
                AND ($2::timestamptz IS NULL OR (created_at, backup_id) < ($2, $3::text))
             ORDER BY created_at DESC, backup_id DESC LIMIT $4",
            project.as_uuid(),
            cursor.as_ref().map(|(at, _)| at.as_date_time()),
            cursor.as_ref().map(|(_, id)| id.as_str()),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await
        .during("list backups")?;
        rows.into_iter().map(Backup::try_from).collect()
    }

    /// A backup of a project that is not being deleted.
    pub async fn backup(&self, project: ProjectId, id: &BackupId) -> Result<Option<Backup>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "SELECT project_id, backup_id, op_id, created_at, files, bytes, bytes_added, tags, purpose, pinned, source,
                tree, parent, verified_at, bad_since
             FROM backups WHERE project_id = $1 AND backup_id = $2 AND deleting_at IS NULL",
            project.as_uuid(),
            id.as_str()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read a backup")?;
        row.map(Backup::try_from).transpose()
    }

    /// Where a backup is that is not being deleted; the newest one that is not known to be bad where `id` is `None`.
    pub async fn backup_place(
        &self,
        project: ProjectId,
        id: Option<&BackupId>,
    ) -> Result<Option<BackupPlace>, DatabaseError> {
        let row = sqlx::query!(
            "SELECT backup_id, bucket_id, tree, bytes, bad_reason FROM backups
             WHERE project_id = $1 AND deleting_at IS NULL AND (($2::text IS NULL AND bad_since IS NULL) OR backup_id = $2)
             ORDER BY created_at DESC, backup_id DESC LIMIT 1",
            project.as_uuid(),
            id.map(BackupId::as_str)
        )
        .fetch_optional(&self.pool)
        .await
        .during("find a backup")?;
        row.map(|row| {
            let id = row.backup_id.parse().map_err(|error| DatabaseError::row("backups.backup_id", error))?;
            Ok(BackupPlace {
                backup_id: id,
                bucket_id: row.bucket_id.into(),
                tree: row.tree,
                bytes: u64::try_from(row.bytes).unwrap_or(0),
                bad_reason: row.bad_reason,
            })
        })
        .transpose()
    }
}
