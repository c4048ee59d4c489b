//! The repository of a project: which bucket, which secrets, made ready once, and the way into it for the
//! worker that holds a lease.
//!
//! What a crash leaves, in the order of the steps, and who goes on:
//!
//! | after | there is | the next call |
//! |---|---|---|
//! | the row of the bucket | a name with status `unknown` | makes the bucket of that name |
//! | the bucket is made | the same | makes it again, which changes nothing |
//! | its location is read | an `active` bucket, or a `mismatch`, which is never used | takes it, or a new name |
//! | the project is bound | a project with a bucket for good | finds it bound |
//! | the secrets are kept | a password without a repository | initialises with that password |
//! | the repository is initialised | a repository without a key here | finds it whole, keeps its key |

mod buckets;
mod copies;

use std::sync::Arc;

use backup_repository::{RepositoryIdentity, RepositoryPassword, initialise, repository_root};
use bus_messages::kinds::{BackupChoice, ProjectRestoreInput, ProjectStartInput, RestoreDrillInput};
use bus_messages::{
    ApiError, Bucket, ErrorCode, Grant, ObjectStoreGrant, Operation, RepositoryGrant, SecretText,
};
use catalog_database::{BackupPlace, Database, ProjectSecret};
use domain_model::{BackupId, BucketId, ProjectId, RepositoryId, Scope, Timestamp};
use object_storage::{BucketControl, ProviderSettings};
use serde_json::Value;
use uuid::Uuid;

use crate::errors::{chain, from_database, from_repository};
use crate::secrets::MasterKey;
use crate::settings::ObjectStoreSettings;

/// Who looks into a backup asks for each look.
const TIME_TO_LOOK: time::Duration = time::Duration::minutes(1);

/// Makes repositories ready and hands them over.
pub(crate) struct Repositories {
    database: Database,
    buckets: Arc<dyn BucketControl>,
    settings: ObjectStoreSettings,
    master_key: MasterKey,
}

impl Repositories {
    pub(crate) fn new(
        database: Database,
        buckets: Arc<dyn BucketControl>,
        settings: ObjectStoreSettings,
        master_key: MasterKey,
    ) -> Self {
        Self { database, buckets, settings, master_key }
    }

    /// The grant for a lease, if nothing has to be made ready first. Reaches for the database alone.
    pub(crate) async fn grant_if_ready(
        &self,
        op: &Operation,
        until: Timestamp,
    ) -> Result<Option<Grant>, ApiError> {
        if op.kind.as_str() == "copy-apply" {
            return self.grant_to_apply(op, until).await.map(Some);
        }
        let project = project_of(op)?;
        if self.can_do_without(op, project).await? {
            return Ok(Some(Grant::default()));
        }
        let place = self.database.project_place(project).await.map_err(from_database)?;
        let Some(bucket) = place.and_then(|place| place.backup_bucket_id) else { return Ok(None) };
        let Some(secret) = self.database.project_secret(project).await.map_err(from_database)? else {
            return Ok(None);
        };
        if secret.wrapped_repository_key.is_none() {
            return Ok(None);
        }
        self.grant(op, project, bucket, &secret, until).await.map(Some)
    }

    /// The grant for a lease, after making ready what is not: the bucket of the region, the binding of the
    /// project, its secrets, its repository.
    pub(crate) async fn prepare(&self, op: &Operation, until: Timestamp) -> Result<Grant, ApiError> {
        match op.kind.as_str() {
            "copy-snapshot" => return self.grant_to_snapshot(op, until).await,
            "copy-apply" => return self.grant_to_apply(op, until).await,
            _ => {}
        }
        let project = project_of(op)?;
        if self.can_do_without(op, project).await? {
            return Ok(Grant::default());
        }
        let _lock = self.database.lock_project(project).await.map_err(from_database)?;
        let place = self.database.project_place(project).await.map_err(from_database)?;
        let place = place.ok_or_else(|| ApiError::not_found(format!("there is no project {project}")))?;
        let bucket = match place.backup_bucket_id {
            Some(id) => id,
            None => {
                let bucket = self.bucket_for(&place.region).await?;
                let bound =
                    self.database.bind_backup_bucket(project, bucket.id).await.map_err(from_database)?;
                bound.ok_or_else(|| ApiError::not_found(format!("there is no project {project}")))?
            }
        };
        let secret = self.initialised(project, bucket).await?;
        self.grant(op, project, bucket, &secret, until).await
    }

    /// Whether the operation needs no repository, because the project has no backup: starting it makes none. One that has bad ones
    /// only is not started empty: that is an error, and somebody has to decide.
    async fn can_do_without(&self, op: &Operation, project: ProjectId) -> Result<bool, ApiError> {
        let wanted = wanted_backup(op.kind.as_str(), &op.input).map_err(internal)?;
        if op.kind.as_str() != "project-start" || wanted.is_none_or(|wanted| wanted.id.is_some()) {
            return Ok(false);
        }
        let backups = self.database.list_backups(project, None, 1).await.map_err(from_database)?;
        Ok(backups.is_empty())
    }

    /// The secrets of a project whose repository is initialised. The caller holds the project's lock.
    async fn initialised(&self, project: ProjectId, bucket: BucketId) -> Result<ProjectSecret, ApiError> {
        let owner = project.to_string();
        let secret = match self.database.project_secret(project).await.map_err(from_database)? {
            Some(secret) => secret,
            None => {
                let password = RepositoryPassword::generate();
                let wrapped = self.master_key.wrap(&owner, password.expose().as_bytes()).map_err(internal)?;
                let new = ProjectSecret {
                    repository_id: RepositoryId::from(Uuid::new_v4()),
                    wrapped_password: wrapped,
                    wrapped_repository_key: None,
                    master_key_id: self.master_key.id().to_owned(),
                };
                self.database.keep_project_secret(project, &new).await.map_err(from_database)?
            }
        };
        if secret.wrapped_repository_key.is_some() {
            return Ok(secret);
        }
        let password = self.unwrap(&owner, &secret, &secret.wrapped_password)?;
        let identity = RepositoryIdentity::new(secret.repository_id.as_uuid(), project.as_uuid());
        let bucket = self.known_bucket(bucket).await?;
        let store = self.buckets.open_bucket(&bucket.name);
        let root = repository_root(project.as_uuid());
        let key = initialise(store, &root, &identity, &RepositoryPassword::from(password))
            .await
            .map_err(|error| from_repository(&bucket.name, &error))?;
        let key = serde_json::to_vec(&key).map_err(internal)?;
        let wrapped = self.master_key.wrap(&owner, &key).map_err(internal)?;
        self.database.repository_initialised(project, &wrapped).await.map_err(from_database)?;
        Ok(ProjectSecret { wrapped_repository_key: Some(wrapped), ..secret })
    }

    async fn grant(
        &self,
        op: &Operation,
        project: ProjectId,
        bucket: BucketId,
        secret: &ProjectSecret,
        until: Timestamp,
    ) -> Result<Grant, ApiError> {
        let (backup, bucket) = self.backup_of(op, project, bucket).await?;
        let mut repository = self.repository_grant(project, bucket, secret, until).await?;
        if let Some(backup) = backup {
            repository.backup = Some(backup.backup_id);
            repository.tree = Some(backup.tree);
            repository.bytes = Some(backup.bytes);
        }
        Ok(Grant { repository: Some(repository), ..Grant::default() })
    }

    async fn repository_grant(
        &self,
        project: ProjectId,
        bucket: BucketId,
        secret: &ProjectSecret,
        until: Timestamp,
    ) -> Result<RepositoryGrant, ApiError> {
        let bucket = self.known_bucket(bucket).await?;
        // One that is disabled is still that of the projects that have it.
        if bucket.status == "mismatch" {
            return Err(ApiError::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "the bucket {} is not where it should be; bucket.verify asks the provider again",
                    bucket.name
                ),
            ));
        }
        let wrapped = secret.wrapped_repository_key.as_deref().unwrap_or_default();
        let key = self.unwrap(&project.to_string(), secret, wrapped)?;
        Ok(RepositoryGrant {
            project_id: project,
            repository_id: secret.repository_id,
            object_store: object_store_grant(&self.settings.connection),
            bucket: bucket.name,
            root: repository_root(project.as_uuid()),
            master_key: SecretText::new(key),
            backup: None,
            tree: None,
            bytes: None,
            expires_at: until,
        })
    }

    /// The way into the repository of a project for somebody who looks into this backup, for a minute.
    pub(crate) async fn grant_to_look(
        &self,
        project: ProjectId,
        backup: &BackupId,
    ) -> Result<RepositoryGrant, ApiError> {
        let place = self.database.backup_place(project, Some(backup)).await.map_err(from_database)?;
        let place = place.ok_or_else(|| no_such_backup(project, Some(backup)))?;
        let secret = self.database.project_secret(project).await.map_err(from_database)?;
        let secret = secret.filter(|secret| secret.wrapped_repository_key.is_some()).ok_or_else(|| {
            ApiError::new(ErrorCode::FailedPrecondition, "the project has no repository that is whole")
        })?;
        let until = Timestamp::from_date_time(time::OffsetDateTime::now_utc() + TIME_TO_LOOK);
        self.repository_grant(project, place.bucket_id, &secret, until).await
    }

    /// Which backup an operation is about: the one to compare with, or the one to restore, and where that is.
    async fn backup_of(
        &self,
        op: &Operation,
        project: ProjectId,
        bound: BucketId,
    ) -> Result<(Option<BackupPlace>, BucketId), ApiError> {
        let Some(wanted) = wanted_backup(op.kind.as_str(), &op.input).map_err(internal)? else {
            let newest = self.database.backup_place(project, None).await.map_err(from_database)?;
            // A parent in another bucket is none.
            return Ok((newest.filter(|place| place.bucket_id == bound), bound));
        };
        let (wanted, allow_bad) = (wanted.id.as_ref(), wanted.allow_bad);
        let place = self.database.backup_place(project, wanted).await.map_err(from_database)?;
        let place = place.ok_or_else(|| no_such_backup(project, wanted))?;
        refuse_bad(&place, allow_bad)?;
        let bucket = place.bucket_id;
        Ok((Some(place), bucket))
    }

    async fn known_bucket(&self, id: BucketId) -> Result<Bucket, ApiError> {
        let bucket = self.database.bucket(id).await.map_err(from_database)?;
        bucket.ok_or_else(|| ApiError::not_found(format!("there is no bucket {id}")))
    }

    fn unwrap(&self, owner: &str, secret: &ProjectSecret, wrapped: &[u8]) -> Result<String, ApiError> {
        let opened = self.master_key.unwrap(owner, &secret.master_key_id, wrapped).map_err(internal)?;
        String::from_utf8(opened).map_err(internal)
    }
}

/// Which backup an operation reads.
pub(crate) struct WantedBackup {
    /// The newest where `None`.
    pub id: Option<BackupId>,
    /// Whether one that is known to be bad will do.
    pub allow_bad: bool,
}

/// What the input of an operation says of the backup that it reads; `None` for kinds that read none.
pub(crate) fn wanted_backup(kind: &str, input: &Value) -> Result<Option<WantedBackup>, serde_json::Error> {
    let input = input.clone();
    let (choice, allow_bad) = match kind {
        "project-restore" => {
            let input: ProjectRestoreInput = serde_json::from_value(input)?;
            (input.backup_id, input.allow_bad)
        }
        "project-start" => (serde_json::from_value::<ProjectStartInput>(input)?.backup_id, false),
        "restore-drill" => (serde_json::from_value::<RestoreDrillInput>(input)?.backup_id, true),
        _ => return Ok(None),
    };
    let id = match choice {
        BackupChoice::Latest => None,
        BackupChoice::Id(id) => Some(id),
    };
    Ok(Some(WantedBackup { id, allow_bad }))
}

/// Nothing is restored from a backup that is known to be bad, unless somebody wants what is left of it.
pub(crate) fn refuse_bad(place: &BackupPlace, allow_bad: bool) -> Result<(), ApiError> {
    match &place.bad_reason {
        Some(reason) if !allow_bad => Err(ApiError::new(
            ErrorCode::FailedPrecondition,
            format!(
                "the backup {} is bad: {reason}; choose another one, or ask for it with allow_bad",
                place.backup_id
            ),
        )),
        _ => Ok(()),
    }
}

/// What to say where a project has no such backup.
pub(crate) fn no_such_backup(project: ProjectId, wanted: Option<&BackupId>) -> ApiError {
    match wanted {
        Some(id) => ApiError::not_found(format!(
            "the project {project} has no backup {id}; api.v1.project-{project}.backup.list shows those it has"
        )),
        None => ApiError::new(
            ErrorCode::FailedPrecondition,
            format!(
                "the project {project} has no backup, or none that is not known to be bad; create a project-backup first, or \
                 restore one of api.v1.project-{project}.backup.list with allow_bad"
            ),
        ),
    }
}

fn project_of(op: &Operation) -> Result<ProjectId, ApiError> {
    match op.scope {
        Scope::Project(project) => Ok(project),
        other => Err(ApiError::invalid_argument(format!("{other} has no repository: only projects have"))),
    }
}

fn internal(error: impl std::error::Error) -> ApiError {
    tracing::error!(error = chain(&error), "a project's secrets cannot be used");
    ApiError::new(ErrorCode::Internal, "a project's secrets cannot be used; it is in the registry's log")
}

fn object_store_grant(settings: &ProviderSettings) -> ObjectStoreGrant {
    match settings {
        ProviderSettings::Local(local) => ObjectStoreGrant::Local { root: local.root.display().to_string() },
        ProviderSettings::S3(s3) => ObjectStoreGrant::S3 {
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            access_key_id: s3.access_key_id.clone(),
            secret_access_key: SecretText::new(s3.secret_access_key.expose()),
            session_token: s3.session_token.as_ref().map(|token| SecretText::new(token.expose())),
            path_style: s3.path_style,
        },
    }
}
