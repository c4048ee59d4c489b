use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{FileUpload, ObjectStorageError, UploadState};

/// The key of an object inside its bucket: 1–1,024 bytes of UTF-8, relative, `/`-separated, with no empty,
/// `.` or `..` part and no control character, so that every provider, a directory included, can hold it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(String);

/// A text that is no [`ObjectKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an object key: {key:?}: {reason}")]
pub struct ObjectKeyError {
    key: String,
    reason: &'static str,
}

impl FromStr for ObjectKey {
    type Err = ObjectKeyError;

    fn from_str(key: &str) -> Result<Self, Self::Err> {
        let reason = if key.is_empty() {
            Some("it is empty")
        } else if key.len() > 1024 {
            Some("it is longer than 1,024 bytes")
        } else if key.chars().any(char::is_control) {
            Some("it has a control character")
        } else if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            Some("it has an empty, '.' or '..' part")
        } else {
            None
        };
        match reason {
            Some(reason) => Err(ObjectKeyError { key: key.to_owned(), reason }),
            None => Ok(Self(key.to_owned())),
        }
    }
}

impl ObjectKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMetadata {
    /// Its key.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// Whether a write may replace an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Create or replace.
    Overwrite,
    /// Create or replace an object whose key ends with the SHA-256 of its body, in hexadecimal digits: the
    /// provider is told to expect that hash, and one that can (S3) refuses a body that does not have it.
    NamedByHash,
    /// Fail with [`AlreadyExists`](crate::ObjectStorageErrorKind::AlreadyExists) where there is an object.
    CreateOnly,
}

/// What an object says about itself: short ASCII names (lower-case letters, digits, `-`) and ASCII values, at most
/// 2,000 bytes together (the limit of S3). Fixed once the object is stored.
pub type Attributes = BTreeMap<String, String>;

/// What a write under a condition expects to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutCondition {
    /// Nothing.
    Absent,
    /// The version of this tag, and no other.
    Matches(String),
}

/// One object as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectDescription {
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Tells one version of the object from another.
    pub tag: String,
    /// What was stored with it.
    pub attributes: Attributes,
}

/// Objects under a prefix are deleted by the provider when they are so old; unfinished uploads after a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiryRule {
    /// Names the rule, so that setting it again replaces it and leaves others alone.
    pub id: String,
    /// What the keys begin with.
    pub prefix: String,
    /// Age in days.
    pub days: u16,
}

/// The objects of one bucket.
///
/// Every call has its own time limit and its own retries (full-jitter back-off on retryable errors), so
/// an error that comes out was worth reporting.
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync {
    /// Stores `body` whole or not at all.
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<(), ObjectStorageError>;

    /// Stores `body` with attributes, whole or not at all, if the condition holds; else fails with
    /// [`AlreadyExists`](crate::ObjectStorageErrorKind::AlreadyExists). Answers with the new version's tag.
    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: PutCondition,
        attributes: &Attributes,
    ) -> Result<String, ObjectStorageError>;

    /// Stores a file as an object that does not exist yet, in parts, holding a few of them in memory; then compares
    /// what the provider has with the file. What differs is deleted and an error.
    async fn upload_file(
        &self,
        key: &ObjectKey,
        file: &Path,
        upload: &FileUpload,
    ) -> Result<ObjectDescription, ObjectStorageError>;

    /// Removes the parts of an upload that nobody will go on with. One that is gone counts as removed.
    async fn give_up_upload(&self, key: &ObjectKey, state: &UploadState) -> Result<(), ObjectStorageError>;

    /// Size, version and attributes of an object.
    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription, ObjectStorageError>;

    /// The whole object.
    async fn get(&self, key: &ObjectKey) -> Result<Bytes, ObjectStorageError>;

    /// Exactly `length` bytes from `offset`; a shorter answer is an error.
    async fn get_range(&self, key: &ObjectKey, offset: u64, length: u64)
    -> Result<Bytes, ObjectStorageError>;

    /// Size of an object, without its bytes.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata, ObjectStorageError>;

    /// Every object whose key starts with `prefix`, in the order of their keys. Strict: all pages, or an error.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMetadata>, ObjectStorageError>;

    /// Deletes these objects and proves afterwards that they are gone. Absent ones count as deleted.
    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), ObjectStorageError>;
}

/// Where a provider says that a bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketLocation {
    /// The provider's own word for it, for example `weur`.
    Reported(String),
    /// This provider does not tell.
    NotReported,
}

/// Buckets of one provider account. Rate-limited at the provider: keep it off hot paths.
#[async_trait]
pub trait BucketControl: fmt::Debug + Send + Sync {
    /// Creates a bucket with a location hint; one that exists already and is ours counts as created.
    async fn create_bucket(
        &self,
        bucket: &str,
        location_hint: Option<&str>,
    ) -> Result<(), ObjectStorageError>;

    /// Reads back where the bucket is. `NotFound` where there is none.
    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation, ObjectStorageError>;

    /// Deletes a bucket, which must be empty.
    async fn delete_bucket(&self, bucket: &str) -> Result<(), ObjectStorageError>;

    /// Lets the provider delete old objects, replacing the rule of the same id; false where it cannot.
    async fn set_expiry(&self, bucket: &str, rule: &ExpiryRule) -> Result<bool, ObjectStorageError>;

    /// The objects of a bucket. Does not reach for the network.
    fn open_bucket(&self, bucket: &str) -> std::sync::Arc<dyn ObjectStore>;
}
