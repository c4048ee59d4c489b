//! What a provider implements: one request a call, no retries, nothing verified.
//!
//! Faults are injected and requests are counted at this seam. What makes the requests trustworthy stands
//! above it, once, for all providers.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};

use crate::{
    Attributes, BucketLocation, ExpiryRule, ObjectDescription, ObjectKey, ObjectMetadata, ObjectStorageError,
    ObjectStorageErrorKind, PutCondition, PutMode,
};

pub(crate) type Result<T> = std::result::Result<T, ObjectStorageError>;

/// Keys in one deletion request, the limit of S3.
pub(crate) const KEYS_PER_DELETION: usize = 1000;

/// The kinds of request that a provider bills apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// Store an object.
    Put,
    /// Read an object or a part of it.
    Get,
    /// Ask for the size of an object.
    Head,
    /// One page of a listing.
    List,
    /// Delete up to 1,000 objects.
    Delete,
    /// Create a bucket.
    CreateBucket,
    /// Ask where a bucket is.
    BucketLocation,
    /// Delete a bucket.
    DeleteBucket,
    /// Begin an upload in parts.
    CreateUpload,
    /// Store a part of an upload.
    UploadPart,
    /// Make the parts of an upload an object.
    CompleteUpload,
    /// Give an upload up.
    AbortUpload,
    /// Read or set when a bucket's objects expire.
    BucketExpiry,
}

impl RequestKind {
    /// How many there are.
    pub(crate) const COUNT: usize = 13;
}

/// An object on its way: its length as the provider announced it, and its bytes.
pub(crate) struct ObjectBody {
    pub(crate) length_bytes: u64,
    pub(crate) stream: BoxStream<'static, Result<Bytes>>,
}

impl ObjectBody {
    /// All bytes, or an error where there are fewer or more than announced.
    pub(crate) async fn collect(mut self, operation: &'static str, key: &ObjectKey) -> Result<Bytes> {
        /// The announcement is somebody else's: no more memory than this is reserved on its word.
        const RESERVED_BYTES: u64 = 128 * 1024 * 1024;
        let mut whole = None;
        let mut body = BytesMut::new();
        // Read to its end even where the first chunk is all: only then is the connection free again.
        while let Some(chunk) = self.stream.next().await {
            let chunk = chunk?;
            if whole.is_none() && body.is_empty() && chunk.len() as u64 == self.length_bytes {
                whole = Some(chunk);
                continue;
            }
            if body.is_empty() {
                body.reserve(self.length_bytes.min(RESERVED_BYTES) as usize);
                body.extend(whole.take());
            }
            body.extend_from_slice(&chunk);
        }
        if let Some(whole) = whole {
            return Ok(whole);
        }
        if body.len() as u64 != self.length_bytes {
            let message = format!("{} of {} bytes arrived", body.len(), self.length_bytes);
            return Err(ObjectStorageError::new(ObjectStorageErrorKind::Retryable, operation, key, message));
        }
        Ok(body.freeze())
    }
}

/// One page of a listing.
pub(crate) struct ListingPage {
    pub(crate) objects: Vec<ObjectMetadata>,
    /// What to ask the next page with; none after the last one.
    pub(crate) next: Option<String>,
}

/// An object that a deletion request names as not deleted.
pub(crate) struct DeletionFailure {
    pub(crate) key: ObjectKey,
    pub(crate) kind: ObjectStorageErrorKind,
    pub(crate) message: String,
}

/// One part of an upload on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartPlace<'a> {
    pub(crate) upload_id: &'a str,
    /// From 1.
    pub(crate) number: u32,
    /// Where in the object it begins.
    pub(crate) offset: u64,
    pub(crate) digests: &'a PartDigests,
}

/// Digests of the content of a part.
#[derive(Debug)]
pub(crate) struct PartDigests {
    /// The provider compares it, and makes its tags of it.
    pub(crate) md5: [u8; 16],
    /// The request is signed with it.
    pub(crate) sha256: [u8; 32],
}

/// An upload whose parts are all stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompletedParts<'a> {
    pub(crate) upload_id: &'a str,
    /// Number and tag of each part, in order.
    pub(crate) parts: &'a [(u32, String)],
    pub(crate) size_bytes: u64,
    pub(crate) attributes: &'a Attributes,
}

/// Requests to the objects of one bucket.
#[async_trait]
pub(crate) trait ObjectRequests: fmt::Debug + Send + Sync {
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()>;
    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<ObjectBody>;
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata>;
    async fn list_page(&self, prefix: &str, continuation: Option<&str>) -> Result<ListingPage>;
    /// Stores an object with attributes under a condition; answers with the tag of what is there now.
    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: &PutCondition,
        attributes: &Attributes,
    ) -> Result<String>;
    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription>;
    /// Begins an upload in parts and answers with its id.
    async fn create_upload(&self, key: &ObjectKey, attributes: &Attributes) -> Result<String>;
    /// Stores a part and answers with its tag.
    async fn upload_part(&self, key: &ObjectKey, place: PartPlace<'_>, body: Bytes) -> Result<String>;
    /// Makes the parts an object, where there is none of that key.
    async fn complete_upload(&self, key: &ObjectKey, completed: CompletedParts<'_>) -> Result<()>;
    async fn abort_upload(&self, key: &ObjectKey, upload_id: &str) -> Result<()>;
    /// At most [`KEYS_PER_DELETION`] keys; answers with those that the provider says are not deleted.
    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<DeletionFailure>>;
}

/// Requests to the buckets of one account.
#[async_trait]
pub(crate) trait BucketRequests: fmt::Debug + Send + Sync {
    async fn create_bucket(&self, bucket: &str, location_hint: Option<&str>) -> Result<()>;
    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation>;
    async fn delete_bucket(&self, bucket: &str) -> Result<()>;
    /// Sets a rule; false where the provider has none.
    async fn set_expiry(&self, bucket: &str, rule: &ExpiryRule) -> Result<bool>;
    fn open_bucket(&self, bucket: &str) -> Arc<dyn ObjectRequests>;
}

/// A bucket name that every provider takes and that cannot leave a directory: the rules of S3.
pub(crate) fn check_bucket_name(operation: &'static str, bucket: &str) -> Result<()> {
    let allowed =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let outer =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = bucket.as_bytes();
    if (3..=63).contains(&bytes.len())
        && bytes.iter().all(allowed)
        && outer(bytes.first())
        && outer(bytes.last())
        && !bucket.contains("..")
    {
        return Ok(());
    }
    Err(ObjectStorageError::new(
        ObjectStorageErrorKind::Permanent,
        operation,
        format!("{bucket:?}"),
        "not a bucket name: 3 to 63 lower-case letters, digits, '-' and single '.', beginning and ending \
         with a letter or digit",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_the_rules_of_s3() {
        for good in ["abc", "lh-backups.weur-1", &"a".repeat(63)] {
            assert!(check_bucket_name("create bucket", good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "../x", "a..b", "a/b", "-ab", "ab.", "ABC", "a_b", ".incoming", &"a".repeat(64)]
        {
            assert!(check_bucket_name("create bucket", bad).is_err(), "{bad}");
        }
    }
}
