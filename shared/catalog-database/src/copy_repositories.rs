//! `copy_repositories`: the repository that is made for one copy alone, and deleted whole.

use domain_model::{BucketId, OperationId, ProjectId};
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError, ProjectSecret};

/// The repository of a copy.
#[derive(Debug, Clone)]
pub struct CopyRepository {
    /// The bucket that it is in.
    pub bucket_id: BucketId,
    /// Its secrets, wrapped as those of a project.
    pub secret: ProjectSecret,
}

struct Row {
    bucket_id: Uuid,
    repository_id: Uuid,
    wrapped_password: Vec<u8>,
    wrapped_repository_key: Option<Vec<u8>>,
    master_key_id: String,
}

impl From<Row> for CopyRepository {
    fn from(row: Row) -> Self {
        Self {
            bucket_id: row.bucket_id.into(),
            secret: ProjectSecret {
                repository_id: row.repository_id.into(),
                wrapped_password: row.wrapped_password,
                wrapped_repository_key: row.wrapped_repository_key,
                master_key_id: row.master_key_id,
            },
        }
    }
}

impl Database {
    /// The repository of a `project-copy`, unless there is none or it is deleted.
    pub async fn copy_repository(&self, copy: OperationId) -> Result<Option<CopyRepository>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "SELECT bucket_id, repository_id, wrapped_password, wrapped_repository_key, master_key_id
             FROM copy_repositories WHERE op_id = $1 AND deleted_at IS NULL",
            copy.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read the repository of a copy")?;
        Ok(row.map(CopyRepository::from))
    }

    /// Keeps this as the repository of a `project-copy`, unless it has one; returns the one that counts. `None` where the
    /// copy has come to its end, and nothing may be written for it any more.
    pub async fn keep_copy_repository(
        &self,
        copy: OperationId,
        source: ProjectId,
        new: &CopyRepository,
    ) -> Result<Option<CopyRepository>, DatabaseError> {
        sqlx::query!(
            "INSERT INTO copy_repositories (op_id, src_project_id, bucket_id, repository_id, wrapped_password,
                master_key_id, expires_at)
             SELECT $1, $2, $3, $4, $5, $6, max(expires_at) FROM project_copies WHERE op_id = $1 AND status = 'pending'
             HAVING count(*) > 0
             ON CONFLICT (op_id) DO NOTHING",
            copy.as_uuid(),
            source.as_uuid(),
            new.bucket_id.as_uuid(),
            new.secret.repository_id.as_uuid(),
            new.secret.wrapped_password,
            new.secret.master_key_id,
        )
        .execute(&self.pool)
        .await
        .during("keep the repository of a copy")?;
        self.copy_repository(copy).await
    }

    /// Records that the repository of a copy is initialised, with the key that encrypts it.
    pub async fn copy_repository_initialised(
        &self,
        copy: OperationId,
        wrapped_repository_key: &[u8],
    ) -> Result<(), DatabaseError> {
        sqlx::query!(
            "UPDATE copy_repositories SET wrapped_repository_key = $2
             WHERE op_id = $1 AND wrapped_repository_key IS NULL",
            copy.as_uuid(),
            wrapped_repository_key
        )
        .execute(&self.pool)
        .await
        .during("record that the repository of a copy is initialised")
        .map(drop)
    }

    /// Repositories that nobody needs any more, at most `limit`: those of copies that have come to their ends (where one has
    /// failed, once the copy has expired), and once more those whose time is over. Only the
    /// one of `copy`, if given. With each its bucket.
    pub async fn copy_repositories_to_delete(
        &self,
        copy: Option<OperationId>,
        limit: i64,
    ) -> Result<Vec<(OperationId, BucketId)>, DatabaseError> {
        let rows = sqlx::query!(
            "SELECT op_id, bucket_id FROM copy_repositories AS repository
             WHERE ($1::uuid IS NULL OR op_id = $1)
                AND (expires_at < now() OR (deleted_at IS NULL AND NOT EXISTS (
                    SELECT 1 FROM project_copies AS copy
                    WHERE copy.op_id = repository.op_id AND copy.status IN ('pending', 'failed'))))
                AND NOT EXISTS (
                    SELECT 1 FROM long_running_operations AS child
                    WHERE child.parent_id = repository.op_id AND child.status IN ('queued', 'running'))
             ORDER BY op_id LIMIT $2",
            copy.map(|id| id.as_uuid()),
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .during("look for repositories of copies to delete")?;
        Ok(rows.into_iter().map(|row| (row.op_id.into(), row.bucket_id.into())).collect())
    }

    /// Notes that a repository was deleted. One whose time is over is forgotten: nobody can write there any more.
    pub async fn copy_repository_deleted(&self, copy: OperationId) -> Result<(), DatabaseError> {
        const DURING: &str = "note that the repository of a copy is deleted";
        sqlx::query!("DELETE FROM copy_repositories WHERE op_id = $1 AND expires_at < now()", copy.as_uuid())
            .execute(&self.pool)
            .await
            .during(DURING)?;
        sqlx::query!(
            "UPDATE copy_repositories SET deleted_at = now() WHERE op_id = $1 AND deleted_at IS NULL",
            copy.as_uuid()
        )
        .execute(&self.pool)
        .await
        .during(DURING)
        .map(drop)
    }
}
