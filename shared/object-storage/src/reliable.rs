//! The public interface over the bare requests of a provider.
//!
//! What goes wrong without it: a page of a listing fails and the objects on it are taken for absent, so a
//! prune deletes what is alive; a deletion answers 200 and leaves objects; a retried create-only write
//! finds its own first attempt, whose answer was lost, and reports a conflict; a stalled connection holds
//! a backup for days. Written once, for every provider.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::file_upload::Uploading;
use crate::requests::{BucketRequests, KEYS_PER_DELETION, ObjectRequests, Result, check_bucket_name};
use crate::retry::{RetryPolicy, TimeLimits};
use crate::{
    Attributes, BucketControl, BucketLocation, ExpiryRule, FileUpload, ObjectDescription, ObjectKey,
    ObjectMetadata, ObjectStorageError, ObjectStorageErrorKind, ObjectStore, PutCondition, PutMode,
    UploadState,
};

/// Up to so many deleted keys are verified one by one, more by a listing: a page of a listing costs as
/// much as a dozen of these, and may have to pass many other objects.
const KEYS_VERIFIED_ONE_BY_ONE: usize = 100;

/// Verifications under way at once.
const VERIFICATIONS_AT_ONCE: usize = 16;

/// The greatest object that one request may store, on every S3 server.
const LARGEST_OBJECT_BYTES: u64 = 5 * 1024 * 1024 * 1024;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempts {
    retry: RetryPolicy,
    limits: TimeLimits,
}

impl Attempts {
    /// Sends `request` until it succeeds, fails for good, or attempts or time are used up.
    pub(crate) async fn run<T, Request, Answer>(
        &self,
        operation: &'static str,
        body_bytes: u64,
        request: Request,
    ) -> Result<T>
    where
        Request: Fn(u32) -> Answer,
        Answer: Future<Output = Result<T>>,
    {
        let deadline = Instant::now() + self.limits.operation(body_bytes);
        let mut attempt = 1;
        loop {
            let error = match request(attempt).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let delay = self.retry.delay_after(attempt);
            if error.kind() != ObjectStorageErrorKind::Retryable
                || attempt >= self.retry.attempts
                || Instant::now() + delay >= deadline
            {
                return Err(error);
            }
            tracing::warn!(
                object_storage.operation = operation,
                object_storage.attempt = attempt,
                error = %error,
                "a request to the object store failed and is sent again"
            );
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }

    /// Ends an attempt that carries `body_bytes` when its time is over.
    pub(crate) async fn timed<T>(
        &self,
        operation: &'static str,
        subject: &str,
        body_bytes: u64,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limit = self.limits.attempt(body_bytes);
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(too_late(operation, subject, limit)),
        }
    }
}

fn too_late(operation: &'static str, subject: &str, limit: Duration) -> ObjectStorageError {
    let message = format!("no answer within {} s", limit.as_secs_f32());
    ObjectStorageError::new(ObjectStorageErrorKind::Retryable, operation, subject, message)
}

/// [`BucketControl`] over the requests of a provider.
#[derive(Debug)]
pub(crate) struct ReliableBuckets {
    requests: Arc<dyn BucketRequests>,
    attempts: Attempts,
}

impl ReliableBuckets {
    pub(crate) fn new(requests: Arc<dyn BucketRequests>, retry: RetryPolicy, limits: TimeLimits) -> Self {
        Self { requests, attempts: Attempts { retry, limits } }
    }
}

#[async_trait]
impl BucketControl for ReliableBuckets {
    async fn create_bucket(&self, bucket: &str, location_hint: Option<&str>) -> Result<()> {
        const OPERATION: &str = "create bucket";
        check_bucket_name(OPERATION, bucket)?;
        self.attempts
            .run(OPERATION, 0, |_| {
                self.attempts.timed(OPERATION, bucket, 0, self.requests.create_bucket(bucket, location_hint))
            })
            .await
    }

    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation> {
        const OPERATION: &str = "get bucket location";
        check_bucket_name(OPERATION, bucket)?;
        self.attempts
            .run(OPERATION, 0, |_| {
                self.attempts.timed(OPERATION, bucket, 0, self.requests.bucket_location(bucket))
            })
            .await
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        const OPERATION: &str = "delete bucket";
        check_bucket_name(OPERATION, bucket)?;
        // Some servers delete a bucket with everything in it, without a word.
        let objects = self.requests.open_bucket(bucket);
        let page = self
            .attempts
            .run(OPERATION, 0, |_| self.attempts.timed(OPERATION, bucket, 0, objects.list_page("", None)))
            .await?;
        if !page.objects.is_empty() || page.next.is_some() {
            let kind = ObjectStorageErrorKind::Permanent;
            return Err(ObjectStorageError::new(kind, OPERATION, bucket, "the bucket is not empty"));
        }
        self.attempts
            .run(OPERATION, 0, |attempt| async move {
                match self.attempts.timed(OPERATION, bucket, 0, self.requests.delete_bucket(bucket)).await {
                    // An earlier attempt did it, and its answer was lost.
                    Err(error) if error.kind() == ObjectStorageErrorKind::NotFound && attempt > 1 => Ok(()),
                    answer => answer,
                }
            })
            .await
    }

    async fn set_expiry(&self, bucket: &str, rule: &ExpiryRule) -> Result<bool> {
        const OPERATION: &str = "set bucket expiry";
        check_bucket_name(OPERATION, bucket)?;
        self.attempts
            .run(OPERATION, 0, |_| {
                self.attempts.timed(OPERATION, bucket, 0, self.requests.set_expiry(bucket, rule))
            })
            .await
    }

    fn open_bucket(&self, bucket: &str) -> Arc<dyn ObjectStore> {
        Arc::new(ReliableObjects {
            bucket: bucket.to_owned(),
            requests: self.requests.open_bucket(bucket),
            attempts: self.attempts,
        })
    }
}

/// [`ObjectStore`] over the requests of a provider.
#[derive(Debug)]
pub(crate) struct ReliableObjects {
    bucket: String,
    pub(crate) requests: Arc<dyn ObjectRequests>,
    pub(crate) attempts: Attempts,
}

impl ReliableObjects {
    async fn get_once(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        range: Option<(u64, u64)>,
    ) -> Result<Bytes> {
        let requested = range.map(|(offset, length)| offset..offset.saturating_add(length));
        let body = self.attempts.timed(operation, key.as_str(), 0, self.requests.get(key, requested)).await?;
        if let Some((offset, length)) = range
            && body.length_bytes != length
        {
            let message = format!(
                "asked for {length} bytes from offset {offset}, and {} were answered: the range is not \
                 inside the object",
                body.length_bytes
            );
            return Err(ObjectStorageError::new(ObjectStorageErrorKind::Permanent, operation, key, message));
        }
        let length = body.length_bytes;
        self.attempts.timed(operation, key.as_str(), length, body.collect(operation, key)).await
    }

    /// After a lost answer: whether the object that a create-only write found is the one it wrote.
    async fn holds(&self, key: &ObjectKey, body: &Bytes) -> Result<bool> {
        match self.get_once("put", key, None).await {
            Ok(stored) => Ok(stored == *body),
            Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Those of `keys` (sorted) that the bucket still has.
    async fn still_present(&self, keys: &[ObjectKey]) -> Result<Vec<ObjectKey>> {
        if keys.len() > KEYS_VERIFIED_ONE_BY_ONE {
            let listed = self.list(common_prefix(keys)).await?;
            let listed: HashSet<ObjectKey> = listed.into_iter().map(|object| object.key).collect();
            return Ok(keys.iter().filter(|key| listed.contains(key)).cloned().collect());
        }
        let check = |key: ObjectKey| async move {
            match self.head(&key).await {
                Ok(_) => Ok(Some(key)),
                Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        stream::iter(keys.to_vec())
            .map(check)
            .buffered(VERIFICATIONS_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await
    }
}

#[async_trait]
impl ObjectStore for ReliableObjects {
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        const OPERATION: &str = "put";
        check_bucket_name(OPERATION, &self.bucket)?;
        let length = body.len() as u64;
        if length > LARGEST_OBJECT_BYTES {
            let message = format!("{length} bytes are more than one object may have (5 GiB)");
            return Err(ObjectStorageError::new(ObjectStorageErrorKind::Permanent, OPERATION, key, message));
        }
        let body = &body;
        self.attempts
            .run(OPERATION, length, |attempt| async move {
                let request = self.requests.put(key, body.clone(), mode);
                match self.attempts.timed(OPERATION, key.as_str(), length, request).await {
                    Err(error)
                        if error.kind() == ObjectStorageErrorKind::AlreadyExists
                            && attempt > 1
                            && self.holds(key, body).await? =>
                    {
                        Ok(())
                    }
                    answer => answer,
                }
            })
            .await
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: PutCondition,
        attributes: &Attributes,
    ) -> Result<String> {
        const OPERATION: &str = "put";
        check_bucket_name(OPERATION, &self.bucket)?;
        check_attributes(OPERATION, key, attributes)?;
        let length = body.len() as u64;
        let (body, condition) = (&body, &condition);
        self.attempts
            .run(OPERATION, length, |attempt| async move {
                let request = self.requests.put_if(key, body.clone(), condition, attributes);
                match self.attempts.timed(OPERATION, key.as_str(), length, request).await {
                    // An earlier attempt did it, and its answer was lost.
                    Err(error)
                        if error.kind() == ObjectStorageErrorKind::AlreadyExists
                            && attempt > 1
                            && self.holds(key, body).await? =>
                    {
                        let described = self.requests.describe(key);
                        Ok(self.attempts.timed(OPERATION, key.as_str(), 0, described).await?.tag)
                    }
                    answer => answer,
                }
            })
            .await
    }

    async fn upload_file(
        &self,
        key: &ObjectKey,
        file: &Path,
        upload: &FileUpload,
    ) -> Result<ObjectDescription> {
        check_bucket_name("upload", &self.bucket)?;
        check_attributes("upload", key, &upload.attributes)?;
        Uploading { objects: self, key, upload }.run(file).await
    }

    async fn give_up_upload(&self, key: &ObjectKey, state: &UploadState) -> Result<()> {
        const OPERATION: &str = "give up upload";
        check_bucket_name(OPERATION, &self.bucket)?;
        let given_up = self
            .attempts
            .run(OPERATION, 0, |_| {
                let request = self.requests.abort_upload(key, &state.upload_id);
                self.attempts.timed(OPERATION, key.as_str(), 0, request)
            })
            .await;
        match given_up {
            Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => Ok(()),
            answer => answer,
        }
    }

    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription> {
        const OPERATION: &str = "describe";
        check_bucket_name(OPERATION, &self.bucket)?;
        self.attempts
            .run(OPERATION, 0, |_| {
                self.attempts.timed(OPERATION, key.as_str(), 0, self.requests.describe(key))
            })
            .await
    }

    async fn get(&self, key: &ObjectKey) -> Result<Bytes> {
        const OPERATION: &str = "get";
        check_bucket_name(OPERATION, &self.bucket)?;
        self.attempts.run(OPERATION, 0, |_| self.get_once(OPERATION, key, None)).await
    }

    async fn get_range(&self, key: &ObjectKey, offset: u64, length: u64) -> Result<Bytes> {
        const OPERATION: &str = "get range";
        check_bucket_name(OPERATION, &self.bucket)?;
        let past_the_end = |size: u64| {
            let message = format!("{length} bytes from offset {offset} of an object of {size} bytes");
            ObjectStorageError::new(ObjectStorageErrorKind::Permanent, OPERATION, key, message)
        };
        if offset.checked_add(length).is_none() {
            return Err(past_the_end(0));
        }
        if length == 0 {
            // There is no way to ask a server for nothing.
            let size = self.head(key).await?.size_bytes;
            return if offset <= size { Ok(Bytes::new()) } else { Err(past_the_end(size)) };
        }
        self.attempts.run(OPERATION, length, |_| self.get_once(OPERATION, key, Some((offset, length)))).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata> {
        const OPERATION: &str = "head";
        check_bucket_name(OPERATION, &self.bucket)?;
        self.attempts
            .run(OPERATION, 0, |_| self.attempts.timed(OPERATION, key.as_str(), 0, self.requests.head(key)))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMetadata>> {
        const OPERATION: &str = "list";
        check_bucket_name(OPERATION, &self.bucket)?;
        let broken = |message: String| {
            ObjectStorageError::new(ObjectStorageErrorKind::Permanent, OPERATION, prefix, message)
        };
        // By key: the servers' order differs, and an object replaced meanwhile may be on two pages.
        let mut objects: BTreeMap<ObjectKey, u64> = BTreeMap::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut continuation: Option<String> = None;
        loop {
            let asked = continuation.as_deref();
            let page = self
                .attempts
                .run(OPERATION, 0, |_| {
                    self.attempts.timed(OPERATION, prefix, 0, self.requests.list_page(prefix, asked))
                })
                .await?;
            for object in page.objects {
                if !object.key.as_str().starts_with(prefix) {
                    return Err(broken(format!("the answer has {:?}", object.key.as_str())));
                }
                objects.insert(object.key, object.size_bytes);
            }
            match page.next {
                None => break,
                Some(next) if seen.insert(next.clone()) => continuation = Some(next),
                Some(_) => return Err(broken("a page leads back to an earlier one".to_owned())),
            }
        }
        Ok(objects.into_iter().map(|(key, size_bytes)| ObjectMetadata { key, size_bytes }).collect())
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        const OPERATION: &str = "delete";
        check_bucket_name(OPERATION, &self.bucket)?;
        let mut remaining = keys.to_vec();
        remaining.sort_unstable();
        remaining.dedup();
        let mut attempt = 1;
        while !remaining.is_empty() {
            let mut answered = None;
            for batch in remaining.chunks(KEYS_PER_DELETION) {
                let subject = batch[0].as_str();
                let failures = self
                    .attempts
                    .run(OPERATION, 0, |_| {
                        self.attempts.timed(OPERATION, subject, 0, self.requests.delete(batch))
                    })
                    .await?;
                for failure in failures {
                    if failure.kind != ObjectStorageErrorKind::Retryable {
                        return Err(ObjectStorageError::new(
                            failure.kind,
                            OPERATION,
                            failure.key,
                            failure.message,
                        ));
                    }
                    answered = Some(failure.message);
                }
            }
            remaining = self.still_present(&remaining).await?;
            let Some(first) = remaining.first() else { break };
            if attempt >= self.attempts.retry.attempts {
                let answered = answered.map(|text| format!(": {text}")).unwrap_or_default();
                let message = format!(
                    "{} object(s) are still there after {attempt} deletion(s){answered}",
                    remaining.len()
                );
                let kind = ObjectStorageErrorKind::Retryable;
                return Err(ObjectStorageError::new(kind, OPERATION, first, message));
            }
            tracing::warn!(
                object_storage.remaining = remaining.len(),
                object_storage.attempt = attempt,
                "deleted objects are still there and are deleted again"
            );
            tokio::time::sleep(self.attempts.retry.delay_after(attempt)).await;
            attempt += 1;
        }
        Ok(())
    }
}

/// Attributes that every provider keeps as they are.
fn check_attributes(operation: &'static str, key: &ObjectKey, attributes: &Attributes) -> Result<()> {
    const LARGEST_BYTES: usize = 2000;
    let name_is_good = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !name.is_empty() && name.bytes().all(allowed)
    };
    let value_is_good = |value: &str| {
        value.bytes().all(|byte| matches!(byte, b' '..=b'~')) && value.trim() == value && !value.is_empty()
    };
    let size: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bad = attributes.iter().find(|(name, value)| !name_is_good(name) || !value_is_good(value));
    let message = match bad {
        Some((name, _)) => format!("the attribute {name:?} has a name or a value that cannot be sent"),
        None if size > LARGEST_BYTES => format!("attributes of {size} bytes are more than {LARGEST_BYTES}"),
        None => return Ok(()),
    };
    Err(ObjectStorageError::new(ObjectStorageErrorKind::Permanent, operation, key, message))
}

/// The longest prefix of all of `keys`, which are sorted.
fn common_prefix(keys: &[ObjectKey]) -> &str {
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return "" };
    let (first, last) = (first.as_str(), last.as_str());
    let differs = first.char_indices().zip(last.chars()).find(|((_, left), right)| left != right);
    match differs {
        Some(((index, _), _)) => &first[..index],
        None if first.len() <= last.len() => first,
        None => last,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::*;

    #[test]
    fn the_common_prefix_ends_at_a_whole_character() {
        let prefix = |keys: &[&str]| {
            let mut keys: Vec<ObjectKey> = keys.iter().map(|key| key.parse().unwrap()).collect();
            keys.sort_unstable();
            common_prefix(&keys).to_owned()
        };
        assert_eq!(prefix(&["data/aa", "data/ab", "data/b"]), "data/");
        assert_eq!(prefix(&["a", "ab", "abc"]), "a");
        assert_eq!(prefix(&["x/é", "x/è"]), "x/");
        assert_eq!(prefix(&["one"]), "one");
        assert_eq!(prefix(&[]), "");
    }
}
