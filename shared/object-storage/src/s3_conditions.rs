//! Writes under a condition, where the S3 server has none.

use std::sync::atomic::Ordering;

use crate::requests::{ObjectRequests as _, Result};
use crate::s3::S3Bucket;
use crate::{ObjectKey, ObjectStorageError, ObjectStorageErrorKind, PutCondition};

impl S3Bucket {
    /// What a server without conditional writes is asked instead; two writers at the same moment can both succeed.
    pub(crate) async fn look_first(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        condition: &PutCondition,
    ) -> Result<()> {
        let found = match self.describe(key).await {
            Ok(found) => Some(found.tag),
            Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let holds = match condition {
            PutCondition::Absent => found.is_none(),
            PutCondition::Matches(tag) => found.as_ref() == Some(tag),
        };
        if holds {
            return Ok(());
        }
        let kind = ObjectStorageErrorKind::AlreadyExists;
        Err(ObjectStorageError::new(kind, operation, key, "there is another version"))
    }

    pub(crate) fn warn_of_unconditional_writes(&self) {
        tracing::warn!("the object store has no conditional writes: they look first instead");
        self.provider.without_conditional_writes.store(true, Ordering::Relaxed);
    }
}

/// A server says of a version that is gone that there is no such key.
pub(crate) fn changed_if_gone(condition: &PutCondition, error: ObjectStorageError) -> ObjectStorageError {
    if matches!(condition, PutCondition::Matches(_)) && error.code() == Some("NoSuchKey") {
        let kind = ObjectStorageErrorKind::AlreadyExists;
        return ObjectStorageError::new(kind, "put", "under a condition", "the version is gone")
            .with_source(error);
    }
    error
}
