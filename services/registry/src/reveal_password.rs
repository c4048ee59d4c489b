//! The way to the backups when all that is left is the database, the master key and the bucket.
//!
//! A repository is in restic's format, so `restic` alone can read it, given its password; the password is in the
//! database, wrapped with the master key, and this unwraps it. It needs no NATS, changes nothing, and works while
//! registries run or none does.

use anyhow::Context;
use catalog_database::Database;
use domain_model::ProjectId;
use secrecy::SecretString;

use crate::secrets::MasterKey;
use crate::settings::RegistrySettings;

/// The password of a project's repository, for `restic --password-command`.
///
/// # Errors
/// Where the database does not answer, the project has never been backed up, or its password is wrapped with another
/// master key than that of the settings.
pub async fn reveal_password(settings: RegistrySettings, project: ProjectId) -> anyhow::Result<SecretString> {
    let master_key = MasterKey::new(&settings.master_key.id, &settings.master_key.key)?;
    let database = Database::connect(&settings.database.url, 1).await?;
    let secret = database.project_secret(project).await;
    database.close().await;
    let secret = secret?.with_context(|| {
        format!(
            "the project {project} has no repository: there is no such project, or it was never backed up"
        )
    })?;
    let password =
        master_key.unwrap(&project.to_string(), &secret.master_key_id, &secret.wrapped_password)?;
    Ok(SecretString::from(String::from_utf8(password).context("read the password")?))
}
