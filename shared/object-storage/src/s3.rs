//! Buckets of an S3 server, one request a call.
//!
//! What differs between servers is decided here: request checksums are sent only where the protocol
//! requires them (R2 and SeaweedFS refuse some of the newer ones; the signature covers the body anyway),
//! the SDK's own retries are off because the layer above has them, and an answer that leaves open whether a
//! listing is whole is an error.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Config, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, SharedHttpClient,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::types::{
    BucketLocationConstraint, CompletedMultipartUpload, CompletedPart, CreateBucketConfiguration, Delete,
    ObjectIdentifier,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use md5::{Digest, Md5};

use crate::file_upload::hexadecimal;
use crate::provider::S3Settings;
use crate::requests::{
    BucketRequests, CompletedParts, DeletionFailure, ListingPage, ObjectBody, ObjectRequests, PartPlace,
    Result, check_bucket_name,
};
use crate::s3_conditions::changed_if_gone;
use crate::s3_errors::{describe, is_not_implemented, kind_of, translate};
use crate::s3_lifecycle;
use crate::{
    Attributes, BucketLocation, ExpiryRule, ObjectDescription, ObjectKey, ObjectMetadata, ObjectStorageError,
    ObjectStorageErrorKind, PutCondition, PutMode,
};

const CONNECT_TIME_LIMIT: Duration = Duration::from_secs(5);

/// The buckets of one account. Its clones and its buckets share one pool of connections.
#[derive(Debug, Clone)]
pub(crate) struct S3Provider {
    client: Client,
    /// Set once a server has answered that it has no conditional writes.
    pub(crate) without_conditional_writes: Arc<AtomicBool>,
}

impl S3Provider {
    pub(crate) fn new(settings: &S3Settings) -> Result<Self> {
        check(settings)?;
        let credentials = Credentials::new(
            settings.access_key_id.as_str(),
            settings.secret_access_key.expose(),
            settings.session_token.as_ref().map(|token| token.expose().to_owned()),
            None,
            "longhaul",
        );
        let mut config = Config::builder()
            .behavior_version_latest()
            .region(Region::new(settings.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(settings.path_style)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIME_LIMIT).build())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
            if endpoint.starts_with("http://") {
                config = config.http_client(client_without_certificates());
            }
        }
        Ok(Self { client: Client::from_conf(config.build()), without_conditional_writes: Arc::default() })
    }

    /// Whether a bucket is one of this account. A bucket of somebody else may be readable, so only the
    /// list of our own tells.
    async fn owns(&self, operation: &'static str, bucket: &str) -> Result<bool> {
        let mut continuation = None;
        loop {
            let page = self
                .client
                .list_buckets()
                .set_continuation_token(continuation)
                .send()
                .await
                .map_err(|error| translate(operation, bucket, error))?;
            if page.buckets().iter().any(|ours| ours.name() == Some(bucket)) {
                return Ok(true);
            }
            match page.continuation_token() {
                Some(token) if !token.is_empty() => continuation = Some(token.to_owned()),
                _ => return Ok(false),
            }
        }
    }
}

/// The system's root certificates are a hundred files and more, read and parsed by every process that has
/// the default client: a good part of a short job, and of no use where nothing is encrypted.
fn client_without_certificates() -> SharedHttpClient {
    let context = TlsContext::builder().with_trust_store(TrustStore::empty()).build();
    let provider = tls::Provider::Rustls(CryptoMode::AwsLc);
    let builder = aws_smithy_http_client::Builder::new().tls_provider(provider);
    match context {
        Ok(context) => builder.tls_context(context).build_https(),
        Err(_) => builder.build_https(),
    }
}

fn check(settings: &S3Settings) -> Result<()> {
    let refuse = |subject: &str, message: &str| {
        Err(ObjectStorageError::new(ObjectStorageErrorKind::Permanent, "connect", subject, message))
    };
    if settings.region.is_empty() {
        return refuse("region", "it is empty; R2 and most other servers take 'auto' or 'us-east-1'");
    }
    if settings.access_key_id.is_empty() || settings.secret_access_key.expose().is_empty() {
        return refuse("credentials", "the access key id or the secret access key is empty");
    }
    let Some(endpoint) = &settings.endpoint else { return Ok(()) };
    let authority = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    match authority {
        // The endpoint itself may hold a password here, so it is not shown.
        Some(authority) if authority.contains('@') => {
            refuse("endpoint", "credentials do not belong in its URL")
        }
        Some(authority) if !authority.is_empty() && !authority.starts_with('/') => Ok(()),
        _ => refuse("endpoint", "not a URL that begins with http:// or https:// and a host"),
    }
}

#[async_trait]
impl BucketRequests for S3Provider {
    async fn create_bucket(&self, bucket: &str, location_hint: Option<&str>) -> Result<()> {
        const OPERATION: &str = "create bucket";
        let configuration = location_hint.map(|hint| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(hint))
                .build()
        });
        let created = self
            .client
            .create_bucket()
            .bucket(bucket)
            .set_create_bucket_configuration(configuration)
            .send()
            .await;
        let Err(error) = created else { return Ok(()) };
        let code = error.code().unwrap_or_default().to_owned();
        match code.as_str() {
            "BucketAlreadyOwnedByYou" => Ok(()),
            // Several servers say this of our own bucket, too.
            "BucketAlreadyExists" if self.owns(OPERATION, bucket).await? => Ok(()),
            _ => Err(translate(OPERATION, bucket, error)),
        }
    }

    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation> {
        let answer = self.client.get_bucket_location().bucket(bucket).send().await;
        let location = match answer {
            Ok(answer) => answer.location_constraint().map(|location| location.as_str().to_owned()),
            Err(error) => match wrapped_location(&error) {
                Some(location) => Some(location),
                None => return Err(translate("get bucket location", bucket, error)),
            },
        };
        Ok(match location {
            Some(location) if !location.is_empty() => BucketLocation::Reported(location),
            _ => BucketLocation::NotReported,
        })
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        let deleted = self.client.delete_bucket().bucket(bucket).send().await;
        deleted.map(|_| ()).map_err(|error| translate("delete bucket", bucket, error))
    }

    async fn set_expiry(&self, bucket: &str, rule: &ExpiryRule) -> Result<bool> {
        s3_lifecycle::set_expiry(&self.client, bucket, rule).await
    }

    fn open_bucket(&self, bucket: &str) -> Arc<dyn ObjectRequests> {
        Arc::new(S3Bucket { provider: self.clone(), name: bucket.to_owned() })
    }
}

/// The SHA-256 of a body, where it is known and need not be computed for the signature.
#[derive(Debug)]
struct ExpectedHash(Option<String>);

impl ExpectedHash {
    fn of(key: &ObjectKey, mode: PutMode) -> Self {
        let name = key.as_str().rsplit('/').next().unwrap_or_default();
        Self((mode == PutMode::NamedByHash).then(|| name.to_owned()))
    }
}

impl Intercept for ExpectedHash {
    fn name(&self) -> &'static str {
        "ExpectedHash"
    }

    fn modify_before_signing(
        &self,
        _context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        if let Some(hash) = &self.0 {
            config.interceptor_state().store_put(PayloadSigningOverride::Precomputed(hash.clone()));
        }
        Ok(())
    }
}

/// The objects of one bucket.
#[derive(Debug)]
pub(crate) struct S3Bucket {
    pub(crate) provider: S3Provider,
    name: String,
}

#[async_trait]
impl ObjectRequests for S3Bucket {
    /// Create-only is one conditional request (`If-None-Match: *`). A server that answers that it has no
    /// such thing is asked for the object first instead, and then two writers at the same moment can both
    /// succeed: nothing better is possible there. A server that silently ignores the condition cannot be
    /// told from one that keeps it; the conformance suite is what tells.
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        const OPERATION: &str = "put";
        let request = |condition: Option<String>| {
            self.provider
                .client
                .put_object()
                .bucket(&self.name)
                .key(key.as_str())
                .set_if_none_match(condition)
                .body(body.clone().into())
                .customize()
                .interceptor(ExpectedHash::of(key, mode))
                .send()
        };
        if mode == PutMode::CreateOnly {
            if !self.provider.without_conditional_writes.load(Ordering::Relaxed) {
                let Err(error) = request(Some("*".to_owned())).await else { return Ok(()) };
                let status = error.raw_response().map(|answer| answer.status().as_u16());
                if error.code() != Some("NotImplemented") && status != Some(501) {
                    return Err(translate(OPERATION, key.as_str(), error));
                }
                tracing::warn!(
                    "the object store has no conditional writes: create-only writes look first instead"
                );
                self.provider.without_conditional_writes.store(true, Ordering::Relaxed);
            }
            match self.head(key).await {
                Ok(_) => {
                    let kind = ObjectStorageErrorKind::AlreadyExists;
                    return Err(ObjectStorageError::new(kind, OPERATION, key, "there is one already"));
                }
                Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        request(None).await.map(|_| ()).map_err(|error| translate(OPERATION, key.as_str(), error))
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<ObjectBody> {
        const OPERATION: &str = "get";
        let range = range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let answer = self
            .provider
            .client
            .get_object()
            .bucket(&self.name)
            .key(key.as_str())
            .set_range(range)
            .send()
            .await
            .map_err(|error| translate(OPERATION, key.as_str(), error))?;
        body_of(OPERATION, key, answer)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata> {
        const OPERATION: &str = "head";
        let answer = self
            .provider
            .client
            .head_object()
            .bucket(&self.name)
            .key(key.as_str())
            .send()
            .await
            .map_err(|error| translate(OPERATION, key.as_str(), error))?;
        let size_bytes = length_of(OPERATION, key.as_str(), answer.content_length())?;
        Ok(ObjectMetadata { key: key.clone(), size_bytes })
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: &PutCondition,
        attributes: &Attributes,
    ) -> Result<String> {
        const OPERATION: &str = "put";
        let request = |absent: Option<String>, matches: Option<String>| {
            self.provider
                .client
                .put_object()
                .bucket(&self.name)
                .key(key.as_str())
                .set_metadata(metadata_of(attributes))
                .content_md5(md5_of(&body))
                .set_if_none_match(absent)
                .set_if_match(matches)
                .body(body.clone().into())
                .send()
        };
        let tag_of = |answer: PutObjectOutput| tag_of(OPERATION, key, answer.e_tag());
        let (absent, matches) = match condition {
            PutCondition::Absent => (Some("*".to_owned()), None),
            PutCondition::Matches(tag) => (None, Some(tag.clone())),
        };
        if !self.provider.without_conditional_writes.load(Ordering::Relaxed) {
            let error = match request(absent, matches).await {
                Ok(answer) => return tag_of(answer),
                Err(error) => error,
            };
            if !is_not_implemented(&error) {
                return Err(changed_if_gone(condition, translate(OPERATION, key.as_str(), error)));
            }
            self.warn_of_unconditional_writes();
        }
        self.look_first(OPERATION, key, condition).await?;
        let answer = request(None, None).await.map_err(|error| translate(OPERATION, key.as_str(), error))?;
        tag_of(answer)
    }

    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription> {
        const OPERATION: &str = "describe";
        let answer = self
            .provider
            .client
            .head_object()
            .bucket(&self.name)
            .key(key.as_str())
            .send()
            .await
            .map_err(|error| translate(OPERATION, key.as_str(), error))?;
        Ok(ObjectDescription {
            size_bytes: length_of(OPERATION, key.as_str(), answer.content_length())?,
            tag: tag_of(OPERATION, key, answer.e_tag())?,
            attributes: answer
                .metadata()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
        })
    }

    async fn create_upload(&self, key: &ObjectKey, attributes: &Attributes) -> Result<String> {
        const OPERATION: &str = "create upload";
        let answer = self
            .provider
            .client
            .create_multipart_upload()
            .bucket(&self.name)
            .key(key.as_str())
            .set_metadata(metadata_of(attributes))
            .send()
            .await
            .map_err(|error| translate(OPERATION, key.as_str(), error))?;
        answer.upload_id().map(str::to_owned).ok_or_else(|| {
            let kind = ObjectStorageErrorKind::Retryable;
            ObjectStorageError::new(kind, OPERATION, key, "the answer has no id of the upload")
        })
    }

    async fn upload_part(&self, key: &ObjectKey, place: PartPlace<'_>, body: Bytes) -> Result<String> {
        const OPERATION: &str = "upload part";
        let answer = self
            .provider
            .client
            .upload_part()
            .bucket(&self.name)
            .key(key.as_str())
            .upload_id(place.upload_id)
            .part_number(i32::try_from(place.number).unwrap_or(i32::MAX))
            .content_md5(BASE64.encode(place.digests.md5))
            .body(body.into())
            .customize()
            .interceptor(ExpectedHash(Some(hexadecimal(&place.digests.sha256))))
            .send()
            .await
            .map_err(|error| translate(OPERATION, key.as_str(), error))?;
        tag_of(OPERATION, key, answer.e_tag())
    }

    async fn complete_upload(&self, key: &ObjectKey, completed: CompletedParts<'_>) -> Result<()> {
        const OPERATION: &str = "complete upload";
        let parts = completed.parts.iter().map(|(number, tag)| {
            let number = i32::try_from(*number).unwrap_or(i32::MAX);
            CompletedPart::builder().part_number(number).e_tag(tag).build()
        });
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
        let request = |absent: Option<String>| {
            self.provider
                .client
                .complete_multipart_upload()
                .bucket(&self.name)
                .key(key.as_str())
                .upload_id(completed.upload_id)
                .multipart_upload(parts.clone())
                .set_if_none_match(absent)
                .send()
        };
        if !self.provider.without_conditional_writes.load(Ordering::Relaxed) {
            let Err(error) = request(Some("*".to_owned())).await else { return Ok(()) };
            if !is_not_implemented(&error) {
                return Err(translate(OPERATION, key.as_str(), error));
            }
            self.warn_of_unconditional_writes();
        }
        self.look_first(OPERATION, key, &PutCondition::Absent).await?;
        request(None).await.map(|_| ()).map_err(|error| translate(OPERATION, key.as_str(), error))
    }

    async fn abort_upload(&self, key: &ObjectKey, upload_id: &str) -> Result<()> {
        let request = self
            .provider
            .client
            .abort_multipart_upload()
            .bucket(&self.name)
            .key(key.as_str())
            .upload_id(upload_id);
        let aborted = request.send().await;
        aborted.map(|_| ()).map_err(|error| translate("abort upload", key.as_str(), error))
    }

    async fn list_page(&self, prefix: &str, continuation: Option<&str>) -> Result<ListingPage> {
        let answer = self
            .provider
            .client
            .list_objects_v2()
            .bucket(&self.name)
            .set_prefix((!prefix.is_empty()).then(|| prefix.to_owned()))
            .set_continuation_token(continuation.map(str::to_owned))
            .send()
            .await
            .map_err(|error| translate("list", prefix, error))?;
        page_of(prefix, &answer)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<DeletionFailure>> {
        const OPERATION: &str = "delete";
        check_bucket_name(OPERATION, &self.name)?;
        let unsendable = |error| {
            let kind = ObjectStorageErrorKind::Permanent;
            ObjectStorageError::new(kind, OPERATION, &self.name, "the request cannot be built")
                .with_source(error)
        };
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            objects.push(ObjectIdentifier::builder().key(key.as_str()).build().map_err(unsendable)?);
        }
        let request = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(unsendable)?;
        let answer = self
            .provider
            .client
            .delete_objects()
            .bucket(&self.name)
            .delete(request)
            .send()
            .await
            .map_err(|error| translate(OPERATION, &self.name, error))?;
        let mut failures = Vec::new();
        for error in answer.errors() {
            let kind = kind_of(None, error.code());
            let message = describe(None, error.code(), error.message());
            match error.key().and_then(|key| key.parse().ok()) {
                _ if kind == ObjectStorageErrorKind::NotFound => {}
                Some(key) => failures.push(DeletionFailure { key, kind, message }),
                // An error that names no key of ours is one of the request.
                None => return Err(ObjectStorageError::new(kind, OPERATION, &self.name, message)),
            }
        }
        Ok(failures)
    }
}

fn metadata_of(attributes: &Attributes) -> Option<HashMap<String, String>> {
    let pairs = attributes.iter().map(|(name, value)| (name.clone(), value.clone()));
    (!attributes.is_empty()).then(|| pairs.collect())
}

/// The server refuses a body that does not arrive as this says.
fn md5_of(body: &Bytes) -> String {
    BASE64.encode(Md5::digest(body))
}

fn tag_of(operation: &'static str, key: &ObjectKey, tag: Option<&str>) -> Result<String> {
    tag.map(str::to_owned).ok_or_else(|| {
        let kind = ObjectStorageErrorKind::Retryable;
        ObjectStorageError::new(kind, operation, key, "the answer has no tag of the object")
    })
}

/// The location in an answer of SeaweedFS, which puts one element more around it than the SDK reads.
fn wrapped_location<E>(error: &SdkError<E, HttpResponse>) -> Option<String> {
    let answer = error.raw_response().filter(|answer| answer.status().is_success())?;
    let body = std::str::from_utf8(answer.body().bytes()?).ok()?;
    let (_, element) = body.split_once("<CreateBucketConfiguration><LocationConstraint>")?;
    let (location, _) = element.split_once("</LocationConstraint>")?;
    Some(location.trim().to_owned())
}

fn body_of(operation: &'static str, key: &ObjectKey, answer: GetObjectOutput) -> Result<ObjectBody> {
    let length_bytes = length_of(operation, key.as_str(), answer.content_length())?;
    let key = key.clone();
    let stream = stream::try_unfold(answer.body, move |mut body| {
        let key = key.clone();
        async move {
            match body.try_next().await {
                Ok(chunk) => Ok(chunk.map(|chunk| (chunk, body))),
                Err(error) => {
                    let kind = ObjectStorageErrorKind::Retryable;
                    let error = ObjectStorageError::new(kind, operation, &key, "the answer broke off")
                        .with_source(error);
                    Err(error)
                }
            }
        }
    });
    Ok(ObjectBody { length_bytes, stream: stream.boxed() })
}

fn length_of(operation: &'static str, subject: &str, length: Option<i64>) -> Result<u64> {
    length.and_then(|length| u64::try_from(length).ok()).ok_or_else(|| {
        let kind = ObjectStorageErrorKind::Retryable;
        ObjectStorageError::new(kind, operation, subject, "the answer does not tell the object's length")
    })
}

/// A page, if the answer leaves no doubt about what is on it and whether another one follows.
fn page_of(prefix: &str, answer: &ListObjectsV2Output) -> Result<ListingPage> {
    let doubtful =
        |message: String| ObjectStorageError::new(ObjectStorageErrorKind::Retryable, "list", prefix, message);
    let token = answer.next_continuation_token().filter(|token| !token.is_empty());
    let next = match (answer.is_truncated(), token) {
        (Some(true), Some(token)) => Some(token.to_owned()),
        (Some(true), None) => {
            return Err(doubtful("a page is truncated and does not tell how to go on".to_owned()));
        }
        (Some(false), _) => None,
        (None, _) => return Err(doubtful("a page does not tell whether it is the last".to_owned())),
    };
    let contents = answer.contents();
    if let Some(announced) = answer.key_count()
        && usize::try_from(announced).ok() != Some(contents.len())
    {
        let message = format!("a page announces {announced} objects and has {}", contents.len());
        return Err(doubtful(message));
    }
    let mut objects = Vec::with_capacity(contents.len());
    for object in contents {
        let key = object.key().unwrap_or_default();
        let size_bytes = length_of("list", key, object.size())?;
        let key = key.parse::<ObjectKey>().map_err(|error| {
            let message = "the bucket has an object that is none of ours";
            ObjectStorageError::new(ObjectStorageErrorKind::Permanent, "list", format!("{key:?}"), message)
                .with_source(error)
        })?;
        objects.push(ObjectMetadata { key, size_bytes });
    }
    Ok(ListingPage { objects, next })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use aws_sdk_s3::types::Object;

    use super::*;

    fn page() -> aws_sdk_s3::operation::list_objects_v2::builders::ListObjectsV2OutputBuilder {
        ListObjectsV2Output::builder()
            .contents(Object::builder().key("a").size(1).build())
            .key_count(1)
            .is_truncated(false)
    }

    #[test]
    fn a_page_that_leaves_a_doubt_is_an_error() {
        assert!(page_of("", &page().build()).is_ok());
        assert!(page_of("", &page().is_truncated(true).build()).is_err(), "truncated without a token");
        assert!(page_of("", &page().set_is_truncated(None).build()).is_err(), "not told whether the last");
        assert!(page_of("", &page().key_count(2).build()).is_err(), "fewer objects than announced");
        let sizeless = page().contents(Object::builder().key("b").build()).key_count(2).build();
        assert!(page_of("", &sizeless).is_err(), "an object without a size");
        let page = page_of("", &page().is_truncated(true).next_continuation_token("t").build()).unwrap();
        assert_eq!(page.next.as_deref(), Some("t"));
    }
}
