use std::fmt;

use domain_model::{BackupId, ProjectId, RepositoryId, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// A secret on its way to the one that needs it. It shows itself in the message and nowhere else.
#[derive(Clone)]
pub struct SecretText(SecretString);

impl SecretText {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(SecretString::from(secret.into()))
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretText(…)")
    }
}

impl PartialEq for SecretText {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// What an operation needs and no more. Lives as long as the lease; never stored, logged or put on a stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// The repository of the project; absent while it is not ready (then ask `repository`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryGrant>,
    /// For a `copy-apply`: the project has backups, so that one without files here is to be restored before
    /// anything is copied into it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_backups: bool,
    /// For a `copy-snapshot`: the project is running.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_running: bool,
}

/// The way into the repository of one project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepositoryGrant {
    /// Whose repository.
    pub project_id: ProjectId,
    /// The identity that its marker shows.
    pub repository_id: RepositoryId,
    /// Where the objects are.
    pub object_store: ObjectStoreGrant,
    /// The bucket.
    pub bucket: String,
    /// The prefix of every key, `rustic/project-<project_id>`.
    pub root: String,
    /// The key that encrypts it, as JSON: no key derivation is needed for a job.
    pub master_key: SecretText,
    /// The backup to compare with, for a backup; the one to restore, for a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// The tree id that a restore of it must arrive at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// How many bytes its files have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Not to be used after; the lease's end.
    pub expires_at: Timestamp,
}

/// An object store and the credentials for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ObjectStoreGrant {
    /// A directory that the host has mounted.
    Local {
        /// Its path on the host.
        root: String,
    },
    /// An S3 server.
    S3 {
        /// Its URL; absent for AWS's own of the region.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// The region to sign for.
        region: String,
        /// The name of the key.
        access_key_id: String,
        /// The key.
        secret_access_key: SecretText,
        /// For temporary credentials.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_token: Option<SecretText>,
        /// Bucket names in the path, not in the host name.
        path_style: bool,
    },
}
