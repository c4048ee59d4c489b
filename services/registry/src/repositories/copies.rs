//! The repository of a copy: made for it alone, so that no host ever holds the key to another project's repository, and
//! deleted whole, so that nothing else is ever deleted with it.
//!
//! What a crash leaves: secrets without a repository (initialised with them by the next call), or objects of a repository
//! that is being deleted (the next look deletes the rest). Somebody who was paused may write after that: once the copy has
//! expired, what is there is deleted once more, and the row with it.

use backup_repository::{RepositoryIdentity, RepositoryPassword, initialise};
use bus_messages::kinds::{CopiedFrom, CopyApplyInput};
use bus_messages::{ApiError, ErrorCode, Grant, Operation, RepositoryGrant};
use catalog_database::{CopyRepository, ProjectSecret};
use domain_model::{BackupId, BucketId, CopyStatus, OperationId, ProjectId, RepositoryId, Timestamp};
use object_storage::ObjectKey;
use uuid::Uuid;

use super::{Repositories, internal, object_store_grant, project_of};
use crate::errors::{from_database, from_object_storage, from_repository};

/// Where the repository of a copy is in its bucket.
fn copy_repository_root(copy: OperationId) -> String {
    format!("rustic/copy-{copy}")
}

fn over(what: &str) -> ApiError {
    ApiError::new(ErrorCode::FailedPrecondition, format!("{what} has come to its end: nothing is to be done"))
}

impl Repositories {
    /// For a `copy-snapshot`: the copy's repository, made where there is none.
    pub(super) async fn grant_to_snapshot(
        &self,
        op: &Operation,
        until: Timestamp,
    ) -> Result<Grant, ApiError> {
        let project = project_of(op)?;
        let copy = op.parent_id.ok_or_else(|| over("the copy"))?;
        let place = self.database.project(project).await.map_err(from_database)?;
        let place = place.ok_or_else(|| ApiError::not_found(format!("there is no project {project}")))?;
        let repository = self.copy_repository(copy, project, &place.region).await?;
        let repository = self.copy_grant(copy, project, &repository, until, None).await?;
        let is_running = place.state == "running";
        Ok(Grant { repository: Some(repository), is_running, ..Grant::default() })
    }

    /// For a `copy-apply`: the copy's repository, where it is applied from the bucket.
    pub(super) async fn grant_to_apply(&self, op: &Operation, until: Timestamp) -> Result<Grant, ApiError> {
        let input: CopyApplyInput = serde_json::from_value(op.input.clone()).map_err(internal)?;
        let standing = self.database.apply_standing(op.op_id).await.map_err(from_database)?;
        let standing = standing
            .filter(|standing| standing.status == CopyStatus::Pending)
            .ok_or_else(|| over("the copy"))?;
        let mut grant = Grant { has_backups: standing.has_backups, ..Grant::default() };
        if input.from == CopiedFrom::Bucket {
            let copy = standing.copy_op_id;
            let repository = self.database.copy_repository(copy).await.map_err(from_database)?;
            let repository = repository.ok_or_else(|| over("the snapshot of the copy"))?;
            let source = input.source_project_id;
            grant.repository =
                Some(self.copy_grant(copy, source, &repository, until, standing.snapshot_id).await?);
        }
        Ok(grant)
    }

    async fn copy_repository(
        &self,
        copy: OperationId,
        source: ProjectId,
        region: &str,
    ) -> Result<CopyRepository, ApiError> {
        let owner = copy.to_string();
        let known = self.database.copy_repository(copy).await.map_err(from_database)?;
        let repository = match known {
            Some(repository) => repository,
            None => {
                let bucket = self.bucket_for(region).await?;
                let password = RepositoryPassword::generate();
                let new = CopyRepository {
                    bucket_id: bucket.id,
                    secret: ProjectSecret {
                        repository_id: RepositoryId::from(Uuid::new_v4()),
                        wrapped_password: self
                            .master_key
                            .wrap(&owner, password.expose().as_bytes())
                            .map_err(internal)?,
                        wrapped_repository_key: None,
                        master_key_id: self.master_key.id().to_owned(),
                    },
                };
                let kept = self.database.keep_copy_repository(copy, source, &new).await;
                kept.map_err(from_database)?.ok_or_else(|| over("the copy"))?
            }
        };
        if repository.secret.wrapped_repository_key.is_some() {
            return Ok(repository);
        }
        let secret = &repository.secret;
        let password = self.unwrap(&owner, secret, &secret.wrapped_password)?;
        let identity = RepositoryIdentity::new(secret.repository_id.as_uuid(), source.as_uuid());
        let bucket = self.known_bucket(repository.bucket_id).await?;
        let store = self.buckets.open_bucket(&bucket.name);
        let root = copy_repository_root(copy);
        let key = initialise(store, &root, &identity, &RepositoryPassword::from(password))
            .await
            .map_err(|error| from_repository(&bucket.name, &error))?;
        let wrapped =
            self.master_key.wrap(&owner, &serde_json::to_vec(&key).map_err(internal)?).map_err(internal)?;
        self.database.copy_repository_initialised(copy, &wrapped).await.map_err(from_database)?;
        let secret = ProjectSecret { wrapped_repository_key: Some(wrapped), ..repository.secret };
        Ok(CopyRepository { secret, ..repository })
    }

    async fn copy_grant(
        &self,
        copy: OperationId,
        source: ProjectId,
        repository: &CopyRepository,
        until: Timestamp,
        snapshot: Option<BackupId>,
    ) -> Result<RepositoryGrant, ApiError> {
        let bucket = self.known_bucket(repository.bucket_id).await?;
        let secret = &repository.secret;
        let wrapped = secret.wrapped_repository_key.as_deref().unwrap_or_default();
        Ok(RepositoryGrant {
            project_id: source,
            repository_id: secret.repository_id,
            object_store: object_store_grant(&self.settings.connection),
            bucket: bucket.name,
            root: copy_repository_root(copy),
            master_key: bus_messages::SecretText::new(self.unwrap(&copy.to_string(), secret, wrapped)?),
            backup: snapshot,
            tree: None,
            bytes: None,
            expires_at: until,
        })
    }

    async fn delete_copy_repository(&self, copy: OperationId, bucket: BucketId) -> Result<(), ApiError> {
        let bucket = self.known_bucket(bucket).await?;
        let failed = |error| from_object_storage(&bucket.name, &error);
        let store = self.buckets.open_bucket(&bucket.name);
        // The prefix is this copy's alone: its name has the id of its operation in it.
        let objects = store.list(&format!("{}/", copy_repository_root(copy))).await.map_err(failed)?;
        let keys: Vec<ObjectKey> = objects.into_iter().map(|object| object.key).collect();
        store.delete(&keys).await.map_err(failed)?;
        self.database.copy_repository_deleted(copy).await.map_err(from_database)?;
        tracing::info!(op.id = %copy, objects = keys.len(), "deleted the snapshot of a copy");
        Ok(())
    }

    /// Deletes the repositories of copies that nobody needs any more, or that of one copy: whether there is none left of it.
    pub(crate) async fn delete_copy_repositories(&self, copy: Option<OperationId>) -> Result<bool, ApiError> {
        const MOST: i64 = 100;
        let needless = self.database.copy_repositories_to_delete(copy, MOST).await.map_err(from_database)?;
        let mut outcome = Ok(());
        for (copy, bucket) in needless {
            // One that cannot be deleted does not keep the others.
            outcome = self.delete_copy_repository(copy, bucket).await.and(outcome);
        }
        outcome?;
        match copy {
            Some(copy) => Ok(self.database.copy_repository(copy).await.map_err(from_database)?.is_none()),
            None => Ok(true),
        }
    }
}
