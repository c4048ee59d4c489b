use domain_model::{ProjectId, RepositoryId};
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError};

/// The secrets of a project's repository, wrapped with the master key named here.
#[derive(Debug, Clone)]
pub struct ProjectSecret {
    /// The identity of the repository.
    pub repository_id: RepositoryId,
    /// Its password.
    pub wrapped_password: Vec<u8>,
    /// The key that encrypts it; absent until it has been initialised.
    pub wrapped_repository_key: Option<Vec<u8>>,
    /// Which master key wraps them.
    pub master_key_id: String,
}

struct Row {
    repository_id: Uuid,
    wrapped_password: Vec<u8>,
    wrapped_repository_key: Option<Vec<u8>>,
    master_key_id: String,
}

impl From<Row> for ProjectSecret {
    fn from(row: Row) -> Self {
        Self {
            repository_id: row.repository_id.into(),
            wrapped_password: row.wrapped_password,
            wrapped_repository_key: row.wrapped_repository_key,
            master_key_id: row.master_key_id,
        }
    }
}

impl Database {
    /// The secrets of a project.
    pub async fn project_secret(&self, project: ProjectId) -> Result<Option<ProjectSecret>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "SELECT repository_id, wrapped_password, wrapped_repository_key, master_key_id
             FROM project_secrets WHERE project_id = $1",
            project.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read the secrets of a project")?;
        Ok(row.map(ProjectSecret::from))
    }

    /// Keeps these secrets for a project, unless it has some; returns the ones that count.
    pub async fn keep_project_secret(
        &self,
        project: ProjectId,
        secret: &ProjectSecret,
    ) -> Result<ProjectSecret, DatabaseError> {
        sqlx::query!(
            "INSERT INTO project_secrets (project_id, repository_id, wrapped_password, master_key_id)
             VALUES ($1, $2, $3, $4) ON CONFLICT (project_id) DO NOTHING",
            project.as_uuid(),
            secret.repository_id.as_uuid(),
            secret.wrapped_password,
            secret.master_key_id
        )
        .execute(&self.pool)
        .await
        .during("keep the secrets of a project")?;
        let kept = self.project_secret(project).await?;
        kept.ok_or_else(|| DatabaseError::row("project_secrets", "what was just written is not there"))
    }

    /// Records that the repository is initialised, with the key that encrypts it.
    pub async fn repository_initialised(
        &self,
        project: ProjectId,
        wrapped_repository_key: &[u8],
    ) -> Result<(), DatabaseError> {
        sqlx::query!(
            "UPDATE project_secrets SET wrapped_repository_key = $2, initialised_at = now()
             WHERE project_id = $1 AND wrapped_repository_key IS NULL",
            project.as_uuid(),
            wrapped_repository_key
        )
        .execute(&self.pool)
        .await
        .during("record that a repository is initialised")
        .map(drop)
    }
}
