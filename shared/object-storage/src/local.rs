//! Buckets as directories under a root, objects as files in them: for one machine, or a NAS.
//!
//! A crash in mid-write must not leave half an object under its key, nor may an acknowledged one vanish
//! with the power: an object is written beside the buckets in `.incoming`, synced, moved into place by one
//! rename, and its directory is synced. Two processes may use the same root.
//!
//! ```text
//! root/.incoming/<random>              objects being written
//! root/.conditional.lock               held by a write under a condition
//! root/.backups-weur.location          the location hint of bucket `backups-weur` (kept for good)
//! root/backups-weur/<key>              objects
//! ```
//!
//! Attributes of an object are an extended attribute of its file, so that they come and go with it.
//!
//! As keys are paths here, a key cannot be an object and the directory of other objects at the same time
//! (`a` and `a/b`), and no part of a key can be longer than a file name (255 bytes).

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::local_files::{self, Placement, Temporary};
use crate::provider::LocalSettings;
use crate::requests::{
    BucketRequests, CompletedParts, DeletionFailure, ListingPage, ObjectBody, ObjectRequests, PartPlace,
    Result, check_bucket_name,
};
use crate::{
    Attributes, BucketLocation, ExpiryRule, ObjectDescription, ObjectKey, ObjectMetadata, ObjectStorageError,
    ObjectStorageErrorKind, PutCondition, PutMode,
};

/// Directory of unfinished writes. No bucket name begins with a dot.
const INCOMING: &str = ".incoming";

/// Held while a write compares what is there with what it expects.
const CONDITIONAL_LOCK: &str = ".conditional.lock";

/// The buckets under one directory.
#[derive(Debug, Clone)]
pub(crate) struct LocalProvider {
    root: Arc<Path>,
}

impl LocalProvider {
    pub(crate) fn new(settings: &LocalSettings) -> Result<Self> {
        if !settings.root.is_absolute() {
            return Err(ObjectStorageError::new(
                ObjectStorageErrorKind::Permanent,
                "connect",
                settings.root.display(),
                "the root directory must be an absolute path",
            ));
        }
        Ok(Self { root: settings.root.as_path().into() })
    }

    fn location_file(&self, bucket: &str) -> PathBuf {
        self.root.join(format!(".{bucket}.location"))
    }

    fn error(&self, operation: &'static str, subject: &str, error: std::io::Error) -> ObjectStorageError {
        error_of(&self.root, operation, subject, error)
    }
}

#[async_trait]
impl BucketRequests for LocalProvider {
    async fn create_bucket(&self, bucket: &str, location_hint: Option<&str>) -> Result<()> {
        const OPERATION: &str = "create bucket";
        check_bucket_name(OPERATION, bucket)?;
        let (provider, name) = (self.clone(), bucket.to_owned());
        let hint = Bytes::from(location_hint.unwrap_or_default().to_owned());
        blocking(move || {
            let create = || {
                // The location first: whoever makes it decides, and no bucket is ever without one.
                match local_files::write(
                    &provider.root.join(INCOMING),
                    &provider.root,
                    Path::new(&format!(".{name}.location")),
                    &hint,
                    Placement::CreateOnly,
                ) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    written => written?,
                }
                match std::fs::create_dir(provider.root.join(&name)) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    created => created?,
                }
                local_files::sync_directory(&provider.root)
            };
            create().map_err(|error| provider.error(OPERATION, &name, error))
        })
        .await
    }

    async fn bucket_location(&self, bucket: &str) -> Result<BucketLocation> {
        const OPERATION: &str = "get bucket location";
        check_bucket_name(OPERATION, bucket)?;
        let (provider, name) = (self.clone(), bucket.to_owned());
        blocking(move || {
            let read = || {
                local_files::require_directory(&provider.root.join(&name))?;
                match std::fs::read_to_string(provider.location_file(&name)) {
                    Ok(hint) if hint.is_empty() => Ok(BucketLocation::NotReported),
                    Ok(hint) => Ok(BucketLocation::Reported(hint)),
                    // A directory that somebody made by hand.
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(BucketLocation::NotReported),
                    Err(error) => Err(error),
                }
            };
            read().map_err(|error| provider.error(OPERATION, &name, error))
        })
        .await
    }

    async fn delete_bucket(&self, bucket: &str) -> Result<()> {
        const OPERATION: &str = "delete bucket";
        check_bucket_name(OPERATION, bucket)?;
        let (provider, name) = (self.clone(), bucket.to_owned());
        blocking(move || {
            local_files::remove_empty_tree(&provider.root.join(&name))
                .and_then(|()| local_files::sync_directory(&provider.root))
                .map_err(|error| provider.error(OPERATION, &name, error))
        })
        .await
    }

    /// A directory deletes nothing by itself.
    async fn set_expiry(&self, _bucket: &str, _rule: &ExpiryRule) -> Result<bool> {
        Ok(false)
    }

    fn open_bucket(&self, bucket: &str) -> Arc<dyn ObjectRequests> {
        Arc::new(LocalBucket { root: Arc::clone(&self.root), name: bucket.into() })
    }
}

/// The objects of one bucket.
#[derive(Debug, Clone)]
struct LocalBucket {
    root: Arc<Path>,
    name: Arc<str>,
}

impl LocalBucket {
    /// The directory of the bucket. Its name was given before it could be refused, so it is checked here.
    fn directory(&self, operation: &'static str) -> Result<PathBuf> {
        check_bucket_name(operation, &self.name)?;
        Ok(self.root.join(&*self.name))
    }

    fn error(&self, operation: &'static str, subject: &str, error: std::io::Error) -> ObjectStorageError {
        error_of(&self.root, operation, subject, error)
    }

    /// An error of reading: what lies below a file, and a directory, are no objects.
    fn read_error(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        error: std::io::Error,
    ) -> ObjectStorageError {
        let error = match error.kind() {
            ErrorKind::NotADirectory | ErrorKind::IsADirectory => ErrorKind::NotFound.into(),
            _ => error,
        };
        self.error(operation, key.as_str(), error)
    }
}

#[async_trait]
impl ObjectRequests for LocalBucket {
    async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        let (bucket, key) = (self.clone(), key.clone());
        blocking(move || {
            let directory = bucket.directory("put")?;
            let placement = match mode {
                PutMode::Overwrite | PutMode::NamedByHash => Placement::Replace,
                PutMode::CreateOnly => Placement::CreateOnly,
            };
            let incoming = bucket.root.join(INCOMING);
            local_files::write(&incoming, &directory, Path::new(key.as_str()), &body, placement)
                .map_err(|error| bucket.error("put", key.as_str(), error))
        })
        .await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<ObjectBody> {
        let (bucket, key) = (self.clone(), key.clone());
        let directory = bucket.directory("get")?;
        let path = directory.join(key.as_str());
        let (file, size_bytes) = {
            let (bucket, key) = (bucket.clone(), key.clone());
            blocking(move || local_files::open(&path).map_err(|error| bucket.read_error("get", &key, error)))
                .await?
        };
        let range = range.unwrap_or(0..size_bytes);
        if range.end > size_bytes {
            let message = format!("bytes {} to {} of an object of {size_bytes}", range.start, range.end);
            return Err(ObjectStorageError::new(ObjectStorageErrorKind::Permanent, "get", key, message));
        }
        let length_bytes = range.end - range.start;
        let read = blocking(move || {
            local_files::read_exact_at(&file, range.start, length_bytes)
                .map_err(|error| bucket.read_error("get", &key, error))
        });
        Ok(ObjectBody { length_bytes, stream: stream::once(read).boxed() })
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMetadata> {
        let (bucket, key) = (self.clone(), key.clone());
        blocking(move || {
            let path = bucket.directory("head")?.join(key.as_str());
            let size_bytes =
                local_files::size_of(&path).map_err(|error| bucket.read_error("head", &key, error))?;
            Ok(ObjectMetadata { key, size_bytes })
        })
        .await
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        body: Bytes,
        condition: &PutCondition,
        attributes: &Attributes,
    ) -> Result<String> {
        let (bucket, key, condition) = (self.clone(), key.clone(), condition.clone());
        let attributes = attributes.clone();
        blocking(move || {
            let directory = bucket.directory("put")?;
            let failed = |error| bucket.error("put", key.as_str(), error);
            // Two processes that compare and then replace must not do so at the same time.
            let _lock = local_files::lock(&bucket.root.join(CONDITIONAL_LOCK)).map_err(failed)?;
            let placement = match &condition {
                PutCondition::Absent => Placement::CreateOnly,
                PutCondition::Matches(tag) => {
                    match local_files::tag_of(&directory.join(key.as_str())) {
                        Ok(found) if found == *tag => {}
                        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                        _ => return Err(failed(ErrorKind::AlreadyExists.into())),
                    }
                    Placement::Replace
                }
            };
            let incoming = bucket.root.join(INCOMING);
            let name = Path::new(key.as_str());
            local_files::require_directory(&directory)
                .and_then(|()| Temporary::write(&incoming, &body))
                .and_then(|temporary| {
                    temporary.set_attributes(&attributes)?;
                    temporary.place(&directory, name, placement)?;
                    local_files::tag_of(&directory.join(name))
                })
                .map_err(failed)
        })
        .await
    }

    async fn describe(&self, key: &ObjectKey) -> Result<ObjectDescription> {
        let (bucket, key) = (self.clone(), key.clone());
        blocking(move || {
            let path = bucket.directory("describe")?.join(key.as_str());
            let describe = || {
                Ok(ObjectDescription {
                    size_bytes: local_files::size_of(&path)?,
                    tag: local_files::tag_of(&path)?,
                    attributes: local_files::attributes_of(&path)?,
                })
            };
            describe().map_err(|error| bucket.read_error("describe", &key, error))
        })
        .await
    }

    /// The parts of an upload are written where they belong in one file beside the buckets.
    async fn create_upload(&self, key: &ObjectKey, _attributes: &Attributes) -> Result<String> {
        let (bucket, key) = (self.clone(), key.clone());
        blocking(move || {
            let directory = bucket.directory("create upload")?;
            local_files::require_directory(&directory)
                .and_then(|()| Temporary::write(&bucket.root.join(INCOMING), &[]))
                .map(Temporary::keep)
                .map_err(|error| bucket.error("create upload", key.as_str(), error))
        })
        .await
    }

    async fn upload_part(&self, key: &ObjectKey, place: PartPlace<'_>, body: Bytes) -> Result<String> {
        let (bucket, key, offset) = (self.clone(), key.clone(), place.offset);
        let upload_id = place.upload_id.to_owned();
        blocking(move || {
            Temporary::kept(&bucket.root.join(INCOMING), &upload_id)
                .and_then(|path| local_files::write_part(&path, offset, &body))
                .map_err(|error| bucket.error("upload part", key.as_str(), error))?;
            Ok(format!("{offset:x}-{:x}", body.len()))
        })
        .await
    }

    async fn complete_upload(&self, key: &ObjectKey, completed: CompletedParts<'_>) -> Result<()> {
        let (bucket, key) = (self.clone(), key.clone());
        let (upload_id, size_bytes) = (completed.upload_id.to_owned(), completed.size_bytes);
        let attributes = completed.attributes.clone();
        blocking(move || {
            let directory = bucket.directory("complete upload")?;
            let complete = || {
                let incoming = bucket.root.join(INCOMING);
                let temporary = Temporary::reopen(&incoming, &upload_id, size_bytes)?;
                temporary.set_attributes(&attributes)?;
                temporary.place(&directory, Path::new(key.as_str()), Placement::CreateOnly)
            };
            complete().map_err(|error| bucket.error("complete upload", key.as_str(), error))
        })
        .await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload_id: &str) -> Result<()> {
        let (bucket, key, upload_id) = (self.clone(), key.clone(), upload_id.to_owned());
        blocking(move || {
            Temporary::kept(&bucket.root.join(INCOMING), &upload_id)
                .and_then(std::fs::remove_file)
                .map_err(|error| bucket.error("abort upload", key.as_str(), error))
        })
        .await
    }

    /// The whole listing is one page.
    async fn list_page(&self, prefix: &str, _continuation: Option<&str>) -> Result<ListingPage> {
        let (bucket, prefix) = (self.clone(), prefix.to_owned());
        blocking(move || {
            let directory = bucket.directory("list")?;
            let failed = |error| bucket.error("list", &prefix, error);
            local_files::require_directory(&directory).map_err(failed)?;
            if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
                // No key has such a part, and none may lead out of the bucket.
                return Ok(ListingPage { objects: Vec::new(), next: None });
            }
            let parent = prefix.rfind('/').map_or("", |end| &prefix[..end]);
            let mut objects = Vec::new();
            for (key, size_bytes) in local_files::walk(&directory, parent).map_err(failed)? {
                if !key.starts_with(&prefix) {
                    continue;
                }
                let key = key.parse::<ObjectKey>().map_err(|error| {
                    let message = "the bucket has a file that is no object of ours";
                    ObjectStorageError::new(ObjectStorageErrorKind::Permanent, "list", &key, message)
                        .with_source(error)
                })?;
                objects.push(ObjectMetadata { key, size_bytes });
            }
            Ok(ListingPage { objects, next: None })
        })
        .await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<DeletionFailure>> {
        let (bucket, keys) = (self.clone(), keys.to_vec());
        blocking(move || {
            let directory = bucket.directory("delete")?;
            local_files::require_directory(&directory)
                .map_err(|error| bucket.error("delete", &bucket.name, error))?;
            let mut failures = Vec::new();
            for key in keys {
                if let Err(error) = local_files::remove(&directory, Path::new(key.as_str())) {
                    let error = bucket.error("delete", key.as_str(), error);
                    failures.push(DeletionFailure { key, kind: error.kind(), message: error.to_string() });
                }
            }
            Ok(failures)
        })
        .await
    }
}

/// Runs file work where it may block. A NAS that hangs holds a thread of that pool, not the caller: the
/// time limits above give up on it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ObjectStorageError::new(
            ObjectStorageErrorKind::Retryable,
            "run",
            "file access",
            "the work was given up",
        )
        .with_source(error)),
    }
}

/// An error of the file system in the words of this crate.
fn error_of(
    root: &Path,
    operation: &'static str,
    subject: &str,
    error: std::io::Error,
) -> ObjectStorageError {
    let mut code = None;
    let (kind, message) = match error.kind() {
        ErrorKind::NotFound if !root.is_dir() => {
            (ObjectStorageErrorKind::Retryable, "the root directory is missing: is it mounted?")
        }
        ErrorKind::NotFound => (ObjectStorageErrorKind::NotFound, "there is no such object or bucket"),
        ErrorKind::AlreadyExists => (ObjectStorageErrorKind::AlreadyExists, "there is one already"),
        ErrorKind::PermissionDenied => {
            (ObjectStorageErrorKind::PermissionDenied, "the file system refuses it")
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            (ObjectStorageErrorKind::Permanent, "a key is both an object and a directory of others")
        }
        ErrorKind::DirectoryNotEmpty => (ObjectStorageErrorKind::Permanent, "the bucket is not empty"),
        ErrorKind::InvalidFilename => (ObjectStorageErrorKind::Permanent, "a part of the key is too long"),
        ErrorKind::InvalidData => {
            (ObjectStorageErrorKind::Permanent, "the bucket has something that is no object")
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::FileTooLarge | ErrorKind::Unsupported => {
            (ObjectStorageErrorKind::Permanent, "the file system cannot do it")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            code = Some(ObjectStorageError::STORAGE_FULL);
            (ObjectStorageErrorKind::Retryable, "the object store is full")
        }
        // An I/O error, a stale NAS handle: it may pass.
        _ => (ObjectStorageErrorKind::Retryable, "the file system failed"),
    };
    ObjectStorageError::new(kind, operation, subject, message).with_code(code).with_source(error)
}
