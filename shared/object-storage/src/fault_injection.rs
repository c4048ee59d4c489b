//! A provider that goes wrong on demand, beneath the retries and the verification.
//!
//! What a caller does when an acknowledgement is lost or a deletion lies shows only when it happens, and no
//! real server does it on cue. The plan can be changed while requests run, from inside by
//! [`FaultInjector::set_plan`] or from outside by the file that [`FAULT_PLAN_VARIABLE`] names.

use std::collections::HashMap;
use std::fmt;
use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future;
use futures::stream::StreamExt;

use crate::fault_plan::{Fault, FaultAction, FaultMoment, InjectedFailure, LocationAnswer, matches};
use crate::requests::{
    BucketRequests, CompletedParts, DeletionFailure, ListingPage, ObjectBody, ObjectRequests, PartPlace,
    Result,
};
use crate::{
    Attributes, BucketLocation, ExpiryRule, FaultPlan, ObjectDescription, ObjectKey, ObjectMetadata,
    ObjectStorageError, ObjectStorageErrorKind, PutCondition, PutMode, RequestKind,
};

/// Environment variable with the path of a [`FaultPlan`] in JSON. The file is read again whenever it
/// changes (replace it by a rename, so that no half of it is read), counting begins anew with each change,
/// and while it does not exist there are no faults. For tests.
pub const FAULT_PLAN_VARIABLE: &str = "LONGHAUL_OBJECT_STORE_FAULTS";

/// Holds the plan and its counters. Clones share them.
#[derive(Clone)]
pub struct FaultInjector(Arc<Inner>);

struct Inner {
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plan: FaultPlan,
    counters: Vec<Counter>,
    first_hints: HashMap<String, Option<String>>,
    /// Tells one version of the file from another; none while there is no file.
    file_version: Option<(i64, i64, u64, u64)>,
    file_error: Option<String>,
}

#[derive(Default, Clone, Copy)]
struct Counter {
    requests: u64,
    sent_bytes: u64,
}

/// A request, as the faults see it.
struct Request<'a> {
    kind: RequestKind,
    operation: &'static str,
    bucket: &'a str,
    keys: &'a [&'a str],
    sent_bytes: u64,
}

impl fmt::Debug for FaultInjector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FaultInjector").field("file", &self.0.file).finish_non_exhaustive()
    }
}

impl FaultInjector {
    /// Injects the faults of `plan`.
    pub fn new(plan: FaultPlan) -> Self {
        let injector = Self(Arc::new(Inner { file: None, state: Mutex::default() }));
        injector.set_plan(plan);
        injector
    }

    /// Injects the faults of the plan in `file`, which may change, come and go.
    pub fn from_file(file: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Inner { file: Some(file.into()), state: Mutex::default() }))
    }

    /// Injects the faults of the file that [`FAULT_PLAN_VARIABLE`] names; none if it is not set. One injector,
    /// so one count, for the whole process.
    pub fn from_environment() -> Option<Self> {
        static OF_PROCESS: OnceLock<Option<FaultInjector>> = OnceLock::new();
        let injector = OF_PROCESS.get_or_init(|| {
            let file = std::env::var_os(FAULT_PLAN_VARIABLE).filter(|file| !file.is_empty())?;
            tracing::warn!(
                file = %file.display(),
                "{FAULT_PLAN_VARIABLE} is set: faults are injected into the object store"
            );
            Some(Self::from_file(file))
        });
        injector.clone()
    }

    /// Goes on with another plan, counting anew.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state().set_plan(plan);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change to the state is complete before anything can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with the plan as the file has it now. A file that cannot be read fails the request.
    fn current(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let Some(file) = &self.0.file else { return Ok(state) };
        let version = match std::fs::metadata(file) {
            Ok(metadata) => Some(version_of(&metadata)),
            Err(_) => None,
        };
        if version != state.file_version {
            state.file_version = version;
            state.file_error = None;
            let plan = match version {
                None => Ok(FaultPlan::default()),
                Some(_) => std::fs::read_to_string(file)
                    .map_err(|error| error.to_string())
                    .and_then(|json| serde_json::from_str(&json).map_err(|error| error.to_string())),
            };
            match plan {
                Ok(plan) => state.set_plan(plan),
                Err(error) => state.file_error = Some(error),
            }
        }
        if let Some(error) = &state.file_error {
            let message = format!("the plan of faults cannot be read: {error}");
            let kind = ObjectStorageErrorKind::Permanent;
            return Err(ObjectStorageError::new(kind, operation, file.display(), message));
        }
        Ok(state)
    }

    /// The faults that this request meets.
    fn due(&self, request: &Request<'_>) -> Result<Vec<Fault>> {
        let mut state = self.current(request.operation)?;
        let State { plan, counters, .. } = &mut *state;
        let mut due = Vec::new();
        for (fault, counter) in plan.faults.iter().zip(counters) {
            if fault.concerns(request) && counter.reaches(fault.moment, request.sent_bytes) {
                due.push(fault.clone());
            }
        }
        Ok(due)
    }

    /// Delays a request and fails it, as its faults have it; gives back those that are left.
    async fn before(&self, request: &Request<'_>) -> Result<Vec<Fault>> {
        let due = self.due(request)?;
        for fault in &due {
            match &fault.action {
                FaultAction::Delay { milliseconds } => {
                    tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
                }
                FaultAction::Fail(failure) => {
                    return Err(request.fail(failure.kind(), "injected failure".to_owned()));
                }
                FaultAction::TruncateBody { bytes }
                    if matches!(request.kind, RequestKind::Put | RequestKind::UploadPart) =>
                {
                    let message = format!("injected failure: the connection ended after {bytes} bytes");
                    return Err(request.fail(ObjectStorageErrorKind::Retryable, message));
                }
                _ => {}
            }
        }
        Ok(due)
    }

    fn remember_hint(&self, operation: &'static str, bucket: &str, hint: Option<&str>) -> Result<()> {
        let mut state = self.current(operation)?;
        state.first_hints.entry(bucket.to_owned()).or_insert_with(|| hint.map(str::to_owned));
        Ok(())
    }

    fn reported_location(&self, operation: &'static str, bucket: &str) -> Result<Option<BucketLocation>> {
        let state = self.current(operation)?;
        let rule = state.plan.report_location.iter().find(|rule| matches(&rule.bucket, bucket));
        Ok(rule.map(|rule| match &rule.answer {
            LocationAnswer::Fixed(location) => BucketLocation::Reported(location.clone()),
            LocationAnswer::NotReported => BucketLocation::NotReported,
            LocationAnswer::FirstHint => match state.first_hints.get(bucket) {
                Some(Some(hint)) => BucketLocation::Reported(hint.clone()),
                _ => BucketLocation::NotReported,
            },
        }))
    }
}

fn version_of(metadata: &Metadata) -> (i64, i64, u64, u64) {
    (metadata.mtime(), metadata.mtime_nsec(), metadata.ino(), metadata.len())
}

impl State {
    fn set_plan(&mut self, plan: FaultPlan) {
        self.counters = vec![Counter::default(); plan.faults.len()];
        self.plan = plan;
    }
}

impl Counter {
    /// Counts a request, and tells whether the moment has come with it.
    fn reaches(&mut self, moment: FaultMoment, sent_bytes: u64) -> bool {
        self.requests += 1;
        self.sent_bytes = self.sent_bytes.saturating_add(sent_bytes);
        match moment {
            FaultMoment::Every => true,
            FaultMoment::Nth(number) => self.requests == number,
            FaultMoment::First(count) => self.requests <= count,
            FaultMoment::From(number) => self.requests >= number,
            FaultMoment::AfterBytes(bytes) => self.sent_bytes > bytes,
        }
    }
}

impl Fault {
    fn concerns(&self, request: &Request<'_>) -> bool {
        // Which objects are left out is decided object by object, not by the prefix.
        let by_object = self.action == FaultAction::OmitFromListing;
        self.operation.is_none_or(|kind| kind == request.kind)
            && matches(&self.bucket, request.bucket)
            && (by_object || request.keys.iter().any(|key| matches(&self.key, key)))
    }
}

impl Request<'_> {
    fn fail(&self, kind: ObjectStorageErrorKind, message: String) -> ObjectStorageError {
        let subject = self.keys.first().filter(|key| !key.is_empty()).unwrap_or(&self.bucket);
        ObjectStorageError::new(kind, self.operation, subject, message)
    }

    /// The answer, or its loss.
    fn after<T>(&self, due: &[Fault], answer: T) -> Result<T> {
        if due.iter().any(|fault| fault.action == FaultAction::LoseAcknowledgement) {
            let message = "injected failure: the answer was lost".to_owned();
            return Err(self.fail(ObjectStorageErrorKind::Retryable, message));
        }
        Ok(answer)
    }
}

impl InjectedFailure {
    fn kind(self) -> ObjectStorageErrorKind {
        match self {
            Self::Retryable => ObjectStorageErrorKind::Retryable,
            Self::Permanent => ObjectStorageErrorKind::Permanent,
            Self::PermissionDenied => ObjectStorageErrorKind::PermissionDenied,
            Self::NotFound => ObjectStorageErrorKind::NotFound,
        }
    }
}

/// The buckets of a provider, with faults.
#[derive(Debug)]
pub(crate) struct FaultyBuckets {
    pub(crate) inner: Arc<dyn BucketRequests>,
    pub(crate) faults: FaultInjector,
}

#[derive(Debug)]
struct FaultyObjects {
    bucket: String,
    inner: Arc<dyn ObjectRequests>,
    faults: FaultInjector,
}

fn bucket_request<'a>(kind: RequestKind, operation: &'static str, bucket: &'a str) -> Request<'a> {
    Request { kind, operation, bucket, keys: &[""], sent_bytes: 0 }
}

#[async_trait]
impl BucketRequests for FaultyBuckets {
    async fn create_bucket(&self, bucket: &str, location_hint: Option<&str>) -> Result<()> {
        let request = bucket_request(RequestKind::CreateBucket, "create bucket", bucket);
        let due = self.faults.before(&request).await?;
        self.inner.create_bucket(bucket, location_hint).await?;
        self.faults.remember_hint(request.operation, bucket, location_hint)?;
        request.after(&due, ())
    }

    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation> {
        let request = bucket_request(RequestKind::BucketLocation, "get bucket location", bucket);
        let due = self.faults.before(&request).await?;
        let location = self.inner.bucket_location(bucket).await?;
        let reported = self.faults.reported_location(request.operation, bucket)?;
        request.after(&due, reported.unwrap_or(location))
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        let request = bucket_request(RequestKind::DeleteBucket, "delete bucket", bucket);
        let due = self.faults.before(&request).await?;
        self.inner.delete_bucket(bucket).await?;
        request.after(&due, ())
    }

    async fn set_expiry(&self, bucket: &str, rule: &ExpiryRule) -> Result<bool> {
        let request = bucket_request(RequestKind::BucketExpiry, "set bucket expiry", bucket);
        let due = self.faults.before(&request).await?;
        let supported = self.inner.set_expiry(bucket, rule).await?;
        request.after(&due, supported)
    }

    fn open_bucket(&self, bucket: &str) -> Arc<dyn ObjectRequests> {
        Arc::new(FaultyObjects {
            bucket: bucket.to_owned(),
            inner: self.inner.open_bucket(bucket),
            faults: self.faults.clone(),
        })
    }
}

impl FaultyObjects {
    fn request<'a>(&'a self, kind: RequestKind, operation: &'static str, keys: &'a [&'a str]) -> Request<'a> {
        Request { kind, operation, bucket: &self.bucket, keys, sent_bytes: 0 }
    }
}

#[async_trait]
impl ObjectRequests for FaultyObjects {
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        let keys = [key.as_str()];
        let mut request = self.request(RequestKind::Put, "put", &keys);
        request.sent_bytes = body.len() as u64;
        let due = self.faults.before(&request).await?;
        self.inner.put(key, body, mode).await?;
        request.after(&due, ())
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<ObjectBody> {
        let keys = [key.as_str()];
        let request = self.request(RequestKind::Get, "get", &keys);
        let due = self.faults.before(&request).await?;
        let mut body = self.inner.get(key, range).await?;
        for fault in &due {
            if let FaultAction::TruncateBody { bytes } = fault.action {
                let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
                let truncated = body.stream.map(move |chunk| {
                    chunk.map(|mut chunk| {
                        chunk.truncate(left);
                        left -= chunk.len();
                        chunk
                    })
                });
                body.stream = truncated
                    .take_while(|chunk| future::ready(!chunk.as_ref().is_ok_and(Bytes::is_empty)))
                    .boxed();
            }
        }
        request.after(&due, body)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata> {
        let keys = [key.as_str()];
        let request = self.request(RequestKind::Head, "head", &keys);
        let due = self.faults.before(&request).await?;
        let metadata = self.inner.head(key).await?;
        request.after(&due, metadata)
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: &PutCondition,
        attributes: &Attributes,
    ) -> Result<String> {
        let keys = [key.as_str()];
        let mut request = self.request(RequestKind::Put, "put", &keys);
        request.sent_bytes = body.len() as u64;
        let due = self.faults.before(&request).await?;
        let tag = self.inner.put_if(key, body, condition, attributes).await?;
        request.after(&due, tag)
    }

    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription> {
        let keys = [key.as_str()];
        let request = self.request(RequestKind::Head, "describe", &keys);
        let due = self.faults.before(&request).await?;
        let description = self.inner.describe(key).await?;
        request.after(&due, description)
    }

    async fn create_upload(&self, key: &ObjectKey, attributes: &Attributes) -> Result<String> {
        let keys = [key.as_str()];
        let request = self.request(RequestKind::CreateUpload, "create upload", &keys);
        let due = self.faults.before(&request).await?;
        let upload_id = self.inner.create_upload(key, attributes).await?;
        request.after(&due, upload_id)
    }

    async fn upload_part(&self, key: &ObjectKey, place: PartPlace<'_>, body: Bytes) -> Result<String> {
        let keys = [key.as_str()];
        let mut request = self.request(RequestKind::UploadPart, "upload part", &keys);
        request.sent_bytes = body.len() as u64;
        let due = self.faults.before(&request).await?;
        let tag = self.inner.upload_part(key, place, body).await?;
        request.after(&due, tag)
    }

    async fn complete_upload(&self, key: &ObjectKey, completed: CompletedParts<'_>) -> Result<()> {
        let keys = [key.as_str()];
        let request = self.request(RequestKind::CompleteUpload, "complete upload", &keys);
        let due = self.faults.before(&request).await?;
        self.inner.complete_upload(key, completed).await?;
        request.after(&due, ())
    }

    async fn abort_upload(&self, key: &ObjectKey, upload_id: &str) -> Result<()> {
        let keys = [key.as_str()];
        let request = self.request(RequestKind::AbortUpload, "abort upload", &keys);
        let due = self.faults.before(&request).await?;
        self.inner.abort_upload(key, upload_id).await?;
        request.after(&due, ())
    }

    async fn list_page(&self, prefix: &str, continuation: Option<&str>) -> Result<ListingPage> {
        let keys = [prefix];
        let request = self.request(RequestKind::List, "list", &keys);
        let due = self.faults.before(&request).await?;
        let mut page = self.inner.list_page(prefix, continuation).await?;
        for fault in due.iter().filter(|fault| fault.action == FaultAction::OmitFromListing) {
            page.objects.retain(|object| !matches(&fault.key, object.key.as_str()));
        }
        request.after(&due, page)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<DeletionFailure>> {
        let names: Vec<&str> = keys.iter().map(ObjectKey::as_str).collect();
        let request = self.request(RequestKind::Delete, "delete", &names);
        let due = self.faults.before(&request).await?;
        let spared = |key: &ObjectKey| {
            due.iter().any(|fault| {
                fault.action == FaultAction::PretendDeletion && matches(&fault.key, key.as_str())
            })
        };
        let deleted: Vec<ObjectKey> = keys.iter().filter(|key| !spared(key)).cloned().collect();
        let failures = if deleted.is_empty() { Vec::new() } else { self.inner.delete(&deleted).await? };
        request.after(&due, failures)
    }
}
