//! Every request to an object store is billed, and a careless loop shows only on the invoice: so tests and
//! benchmarks count requests per operation.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::requests::{
    BucketRequests, CompletedParts, DeletionFailure, ListingPage, ObjectBody, ObjectRequests, PartPlace,
    Result,
};
use crate::{
    Attributes, BucketLocation, ExpiryRule, ObjectDescription, ObjectKey, ObjectMetadata, PutCondition,
    PutMode, RequestKind,
};

/// Counts the requests of every connection that it is given to; see
/// [`ConnectOptions::request_counter`](crate::ConnectOptions).
#[derive(Debug, Default)]
pub struct RequestCounter {
    requests: [AtomicU64; RequestKind::COUNT],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

/// Requests so far, each attempt counted, and the bytes of objects that they carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Objects stored.
    pub put: u64,
    /// Objects, or parts of them, read.
    pub get: u64,
    /// Sizes asked for.
    pub head: u64,
    /// Pages listed.
    pub list: u64,
    /// Deletions, of up to 1,000 objects each.
    pub delete: u64,
    /// Buckets created.
    pub create_bucket: u64,
    /// Locations asked for.
    pub bucket_location: u64,
    /// Buckets deleted.
    pub delete_bucket: u64,
    /// Uploads in parts begun, completed and given up.
    pub upload: u64,
    /// Parts of uploads stored.
    pub upload_part: u64,
    /// Expiry rules of buckets read and set.
    pub bucket_expiry: u64,
    /// Bytes of the objects sent.
    pub sent_bytes: u64,
    /// Bytes of the objects announced in answers.
    pub received_bytes: u64,
}

impl RequestCounter {
    /// A counter at zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// What was counted so far.
    pub fn counts(&self) -> RequestCounts {
        let count = |kind: RequestKind| self.requests[kind as usize].load(Ordering::Relaxed);
        RequestCounts {
            put: count(RequestKind::Put),
            get: count(RequestKind::Get),
            head: count(RequestKind::Head),
            list: count(RequestKind::List),
            delete: count(RequestKind::Delete),
            create_bucket: count(RequestKind::CreateBucket),
            bucket_location: count(RequestKind::BucketLocation),
            delete_bucket: count(RequestKind::DeleteBucket),
            upload: count(RequestKind::CreateUpload)
                + count(RequestKind::CompleteUpload)
                + count(RequestKind::AbortUpload),
            upload_part: count(RequestKind::UploadPart),
            bucket_expiry: count(RequestKind::BucketExpiry),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
        }
    }

    fn count(&self, kind: RequestKind) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Requests of an account, counted.
#[derive(Debug)]
pub(crate) struct CountedBuckets {
    pub(crate) inner: Arc<dyn BucketRequests>,
    pub(crate) counter: Arc<RequestCounter>,
}

#[derive(Debug)]
struct CountedObjects {
    inner: Arc<dyn ObjectRequests>,
    counter: Arc<RequestCounter>,
}

#[async_trait]
impl BucketRequests for CountedBuckets {
    async fn create_bucket(&self, bucket: &str, location_hint: Option<&str>) -> Result<()> {
        self.counter.count(RequestKind::CreateBucket);
        self.inner.create_bucket(bucket, location_hint).await
    }

    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation> {
        self.counter.count(RequestKind::BucketLocation);
        self.inner.bucket_location(bucket).await
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        self.counter.count(RequestKind::DeleteBucket);
        self.inner.delete_bucket(bucket).await
    }

    async fn set_expiry(&self, bucket: &str, rule: &ExpiryRule) -> Result<bool> {
        self.counter.count(RequestKind::BucketExpiry);
        self.inner.set_expiry(bucket, rule).await
    }

    fn open_bucket(&self, bucket: &str) -> Arc<dyn ObjectRequests> {
        Arc::new(CountedObjects { inner: self.inner.open_bucket(bucket), counter: Arc::clone(&self.counter) })
    }
}

#[async_trait]
impl ObjectRequests for CountedObjects {
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        self.counter.count(RequestKind::Put);
        self.counter.sent_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        self.inner.put(key, body, mode).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<ObjectBody> {
        self.counter.count(RequestKind::Get);
        let body = self.inner.get(key, range).await?;
        self.counter.received_bytes.fetch_add(body.length_bytes, Ordering::Relaxed);
        Ok(body)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata> {
        self.counter.count(RequestKind::Head);
        self.inner.head(key).await
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: &PutCondition,
        attributes: &Attributes,
    ) -> Result<String> {
        self.counter.count(RequestKind::Put);
        self.counter.sent_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        self.inner.put_if(key, body, condition, attributes).await
    }

    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription> {
        self.counter.count(RequestKind::Head);
        self.inner.describe(key).await
    }

    async fn create_upload(&self, key: &ObjectKey, attributes: &Attributes) -> Result<String> {
        self.counter.count(RequestKind::CreateUpload);
        self.inner.create_upload(key, attributes).await
    }

    async fn upload_part(&self, key: &ObjectKey, place: PartPlace<'_>, body: Bytes) -> Result<String> {
        self.counter.count(RequestKind::UploadPart);
        self.counter.sent_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        self.inner.upload_part(key, place, body).await
    }

    async fn complete_upload(&self, key: &ObjectKey, completed: CompletedParts<'_>) -> Result<()> {
        self.counter.count(RequestKind::CompleteUpload);
        self.inner.complete_upload(key, completed).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload_id: &str) -> Result<()> {
        self.counter.count(RequestKind::AbortUpload);
        self.inner.abort_upload(key, upload_id).await
    }

    async fn list_page(&self, prefix: &str, continuation: Option<&str>) -> Result<ListingPage> {
        self.counter.count(RequestKind::List);
        self.inner.list_page(prefix, continuation).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<DeletionFailure>> {
        self.counter.count(RequestKind::Delete);
        self.inner.delete(keys).await
    }
}
