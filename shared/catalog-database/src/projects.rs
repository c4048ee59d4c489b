use bus_messages::{BackupPolicy, Project};
use domain_model::{AccountId, BackupId, BucketId, HostId, OperationId, ProjectId, Timestamp};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError};

/// A project to be created.
#[derive(Debug, Clone)]
pub struct NewProject {
    /// Its id.
    pub id: ProjectId,
    /// Its title.
    pub title: String,
    /// The host that has its files.
    pub host_id: HostId,
    /// Whose it is.
    pub account_id: Option<AccountId>,
    /// Where its backups are to be; the host's region where `None`.
    pub region: Option<String>,
}

/// What routing an operation of a project takes.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectPlace {
    /// The host that has its files.
    pub host_id: HostId,
    /// Where its backups are to be.
    pub region: String,
    /// The bucket of its backups, once it has one.
    pub backup_bucket_id: Option<BucketId>,
    /// Its newest backup.
    pub last_backup_id: Option<BackupId>,
}

/// The lock of a project, see [`Database::lock_project`].
#[derive(Debug)]
pub struct ProjectLock {
    _transaction: sqlx::Transaction<'static, sqlx::Postgres>,
}

struct Row {
    id: Uuid,
    title: String,
    account_id: Option<Uuid>,
    host_id: Uuid,
    region: String,
    state: String,
    backup_bucket_id: Option<Uuid>,
    collaborators: Vec<Uuid>,
    last_edited: Option<OffsetDateTime>,
    last_backup_at: Option<OffsetDateTime>,
    last_backup_id: Option<String>,
    last_verified_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
}

fn backup_id(text: Option<String>) -> Result<Option<BackupId>, DatabaseError> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|error| DatabaseError::row("projects.last_backup_id", error))
}

impl TryFrom<Row> for Project {
    type Error = DatabaseError;

    fn try_from(row: Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            id: row.id.into(),
            title: row.title,
            account_id: row.account_id.map(AccountId::from),
            host_id: row.host_id.into(),
            region: row.region,
            state: row.state,
            backup_bucket_id: row.backup_bucket_id.map(BucketId::from),
            collaborators: row.collaborators.into_iter().map(AccountId::from).collect(),
            last_edited: row.last_edited.map(Timestamp::from),
            last_backup_at: row.last_backup_at.map(Timestamp::from),
            last_backup_id: backup_id(row.last_backup_id)?,
            last_verified_at: row.last_verified_at.map(Timestamp::from),
            created_at: row.created_at.into(),
        })
    }
}

impl Database {
    /// Creates a project. `None` where there is no such host; a missing account is a constraint error.
    pub async fn create_project(&self, new: &NewProject) -> Result<Option<Project>, DatabaseError> {
        let created = sqlx::query_scalar!(
            "INSERT INTO projects (id, account_id, title, host_id, region)
             SELECT $1, $2, $3, hosts.id, coalesce($5, hosts.region) FROM hosts WHERE hosts.id = $4
             RETURNING id",
            new.id.as_uuid(),
            new.account_id.map(|id| id.as_uuid()),
            new.title,
            new.host_id.as_uuid(),
            new.region,
        )
        .fetch_optional(&self.pool)
        .await
        .during("create a project")?;
        match created {
            Some(_) => self.project(new.id).await,
            None => Ok(None),
        }
    }

    /// A project.
    pub async fn project(&self, id: ProjectId) -> Result<Option<Project>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            r#"SELECT id, title, account_id, host_id, region, state, backup_bucket_id,
                ARRAY(SELECT c.account_id FROM project_collaborators AS c
                      WHERE c.project_id = projects.id ORDER BY c.created_at, c.account_id) AS "collaborators!",
                last_edited, last_backup_at, last_backup_id, last_verified_at, created_at
             FROM projects WHERE id = $1"#,
            id.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read a project")?;
        row.map(Project::try_from).transpose()
    }

    /// Projects, newest first, from after `cursor` (creation time and id of the last one seen).
    pub async fn list_projects(
        &self,
        cursor: Option<(Timestamp, ProjectId)>,
        limit: u32,
    ) -> Result<Vec<Project>, DatabaseError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT id, title, account_id, host_id, region, state, backup_bucket_id,
                ARRAY(SELECT c.account_id FROM project_collaborators AS c
                      WHERE c.project_id = projects.id ORDER BY c.created_at, c.account_id) AS "collaborators!",
                last_edited, last_backup_at, last_backup_id, last_verified_at, created_at
             FROM projects
             WHERE $1::timestamptz IS NULL
                OR (date_trunc('milliseconds', created_at), id) < ($1, $2::uuid)
             ORDER BY date_trunc('milliseconds', created_at) DESC, id DESC LIMIT $3"#,
            cursor.map(|(at, _)| at.as_date_time()),
            cursor.map(|(_, id)| id.as_uuid()),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await
        .during("list projects")?;
        rows.into_iter().map(Project::try_from).collect()
    }

    /// Changes what is not `None`, and has the scheduler look at a project whose policy has changed. `false` where there
    /// is no such project.
    pub async fn update_project(
        &self,
        id: ProjectId,
        title: Option<&str>,
        policy: Option<&BackupPolicy>,
    ) -> Result<bool, DatabaseError> {
        let policy = policy.map(|policy| serde_json::to_value(policy).unwrap_or_default());
        let updated = sqlx::query!(
            "UPDATE projects SET title = coalesce($2, title), backup_policy = coalesce($3, backup_policy),
                backup_due_at = CASE WHEN $3::jsonb IS NULL THEN backup_due_at END, updated_at = now()
             WHERE id = $1",
            id.as_uuid(),
            title,
            policy,
        )
        .execute(&self.pool)
        .await
        .during("update a project")?;
        Ok(updated.rows_affected() > 0)
    }

    /// Where a project's files and backups are.
    pub async fn project_place(&self, id: ProjectId) -> Result<Option<ProjectPlace>, DatabaseError> {
        let row = sqlx::query!(
            "SELECT host_id, region, backup_bucket_id, last_backup_id FROM projects WHERE id = $1",
            id.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("find where a project is")?;
        row.map(|row| {
            Ok(ProjectPlace {
                host_id: row.host_id.into(),
                region: row.region,
                backup_bucket_id: row.backup_bucket_id.map(BucketId::from),
                last_backup_id: backup_id(row.last_backup_id)?,
            })
        })
        .transpose()
    }

    /// Binds a project to a bucket, unless it is bound already; returns the bucket that it is bound to.
    pub async fn bind_backup_bucket(
        &self,
        project: ProjectId,
        bucket: BucketId,
    ) -> Result<Option<BucketId>, DatabaseError> {
        let bound = sqlx::query_scalar!(
            "UPDATE projects SET backup_bucket_id = coalesce(backup_bucket_id, $2), updated_at = now()
             WHERE id = $1 RETURNING backup_bucket_id",
            project.as_uuid(),
            bucket.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("bind a project to a bucket")?;
        Ok(bound.flatten().map(BucketId::from))
    }

    /// Holds a project's lock until the answer is dropped: one registry at a time makes its repository ready.
    pub async fn lock_project(&self, project: ProjectId) -> Result<ProjectLock, DatabaseError> {
        const DURING: &str = "lock a project";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        // Making a repository may take long, and is not to be begun by two.
        sqlx::query!("SET LOCAL idle_in_transaction_session_timeout = 0")
            .execute(&mut *transaction)
            .await
            .during(DURING)?;
        sqlx::query!(
            "SELECT pg_advisory_xact_lock(hashtextextended('repository of ' || $1::text, 0))",
            project.to_string()
        )
        .execute(&mut *transaction)
        .await
        .during(DURING)?;
        Ok(ProjectLock { _transaction: transaction })
    }

    /// Operations of a project that have not ended.
    pub async fn active_operations_of_project(
        &self,
        project: ProjectId,
    ) -> Result<Vec<OperationId>, DatabaseError> {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM long_running_operations
             WHERE scope_type = 'project' AND coalesce(scope_id, '00000000-0000-0000-0000-000000000000') = $1
                AND status IN ('queued', 'running') ORDER BY id",
            project.as_uuid()
        )
        .fetch_all(&self.pool)
        .await
        .during("list the active operations of a project")?;
        Ok(ids.into_iter().map(OperationId::from).collect())
    }

    /// Lets an account use a project. `false` where the project does not exist.
    pub async fn add_collaborator(
        &self,
        project: ProjectId,
        account: AccountId,
    ) -> Result<bool, DatabaseError> {
        let exists = sqlx::query_scalar!("SELECT id FROM projects WHERE id = $1", project.as_uuid())
            .fetch_optional(&self.pool)
            .await
            .during("find a project")?;
        if exists.is_none() {
            return Ok(false);
        }
        sqlx::query!(
            "INSERT INTO project_collaborators (project_id, account_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            project.as_uuid(),
            account.as_uuid()
        )
        .execute(&self.pool)
        .await
        .during("add a collaborator")?;
        Ok(true)
    }

    /// Takes the right to use a project from an account.
    pub async fn remove_collaborator(
        &self,
        project: ProjectId,
        account: AccountId,
    ) -> Result<(), DatabaseError> {
        sqlx::query!(
            "DELETE FROM project_collaborators WHERE project_id = $1 AND account_id = $2",
            project.as_uuid(),
            account.as_uuid()
        )
        .execute(&self.pool)
        .await
        .during("remove a collaborator")
        .map(drop)
    }
}
