//! A file as an object: in parts, a few at a time, so that neither its size nor a bad line costs memory or begins it anew.
//!
//! What a crash leaves is an upload without an object: no listing shows it, and the provider gives it up after a day where
//! [`set_expiry`](crate::BucketControl::set_expiry) has a rule. Who keeps the last [`UploadState`] can go on from it.
//!
//! An acknowledged upload is compared with the file once more, since this may be the only copy: by the tag that S3 servers
//! compute from the parts (the MD5 of their MD5s), and where a provider has another tag, by reading all of it back.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::reliable::ReliableObjects;
use crate::requests::{CompletedParts, PartDigests, PartPlace, Result};
use crate::{
    Attributes, ObjectDescription, ObjectKey, ObjectStorageError, ObjectStorageErrorKind, ObjectStore,
    PutCondition,
};

const OPERATION: &str = "upload";

/// Parts of an object on every S3 server.
const MOST_PARTS: u64 = 10_000;

/// How a file is uploaded.
#[derive(Clone)]
pub struct FileUpload {
    /// What the object says about itself.
    pub attributes: Attributes,
    /// Size of a part. S3 takes no smaller parts than 5 MiB but the last; a file of one part is one request.
    pub part_bytes: u64,
    /// Parts under way at once.
    pub parallel: usize,
    /// Where an earlier attempt at the same file stopped.
    pub resume: Option<UploadState>,
    /// Told after each part: what to go on from, and how many bytes are stored.
    pub progress: Option<UploadProgress>,
}

/// Who is told how far an upload is.
pub type UploadProgress = Arc<dyn Fn(&UploadState, u64) + Send + Sync>;

impl Default for FileUpload {
    fn default() -> Self {
        Self {
            attributes: Attributes::new(),
            part_bytes: 8 * 1024 * 1024,
            parallel: 3,
            resume: None,
            progress: None,
        }
    }
}

impl fmt::Debug for FileUpload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FileUpload")
            .field("attributes", &self.attributes)
            .field("part_bytes", &self.part_bytes)
            .field("parallel", &self.parallel)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

/// An upload that is not complete: what a later attempt goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadState {
    /// The provider's id of the upload.
    pub upload_id: String,
    /// Size of the parts.
    pub part_bytes: u64,
    /// The parts that are stored: by number, the tag that the provider gave and the MD5 of what was sent.
    pub parts: BTreeMap<u32, (String, String)>,
}

/// One call of [`ObjectStore::upload_file`].
pub(crate) struct Uploading<'a> {
    pub(crate) objects: &'a ReliableObjects,
    pub(crate) key: &'a ObjectKey,
    pub(crate) upload: &'a FileUpload,
}

impl Uploading<'_> {
    pub(crate) async fn run(&self, file: &Path) -> Result<ObjectDescription> {
        let file = Arc::new(File::open(file).map_err(|error| self.unreadable(error))?);
        let size = file.metadata().map_err(|error| self.unreadable(error))?.len();
        let part_bytes = self.upload.part_bytes.max(1).max(size.div_ceil(MOST_PARTS));
        let expected = if size <= part_bytes {
            self.in_one(&file, size).await?
        } else {
            self.in_parts(&file, size, part_bytes).await?
        };
        self.compare(&file, size, &expected).await
    }

    /// One request; answers with the tag that S3 servers give.
    async fn in_one(&self, file: &Arc<File>, size: u64) -> Result<String> {
        let body = self.read(file, 0, size).await?;
        let tag = hexadecimal(&Md5::digest(&body));
        self.objects.put_if(self.key, body, PutCondition::Absent, &self.upload.attributes).await?;
        if let Some(progress) = &self.upload.progress {
            let state = UploadState { upload_id: String::new(), part_bytes: size, parts: BTreeMap::new() };
            progress(&state, size);
        }
        Ok(tag)
    }

    async fn in_parts(&self, file: &Arc<File>, size: u64, part_bytes: u64) -> Result<String> {
        let resumed = self.upload.resume.as_ref().filter(|state| state.part_bytes == part_bytes);
        if let Some(state) = resumed {
            match self.remaining_parts(file, size, state.clone()).await {
                // The provider has given the upload up, and not every one says so; what else is wrong shows again.
                Err(error)
                    if !matches!(
                        error.kind(),
                        ObjectStorageErrorKind::Retryable | ObjectStorageErrorKind::AlreadyExists
                    ) => {}
                done => return done,
            }
        }
        let upload_id = self
            .objects
            .attempts
            .run(OPERATION, 0, |_| {
                let request = self.objects.requests.create_upload(self.key, &self.upload.attributes);
                self.objects.attempts.timed(OPERATION, self.key.as_str(), 0, request)
            })
            .await?;
        let state = UploadState { upload_id, part_bytes, parts: BTreeMap::new() };
        self.remaining_parts(file, size, state).await
    }

    /// Stores the parts that `state` lacks and makes all of them an object; answers with the tag that S3 servers give.
    async fn remaining_parts(&self, file: &Arc<File>, size: u64, state: UploadState) -> Result<String> {
        let count = u32::try_from(size.div_ceil(state.part_bytes)).unwrap_or(u32::MAX);
        let missing: Vec<u32> = (1..=count).filter(|number| !state.parts.contains_key(number)).collect();
        let (upload_id, part_bytes) = (state.upload_id.clone(), state.part_bytes);
        let shared = Mutex::new(state);
        // Used again: memory that is given back and asked for anew by many threads is held several times over.
        let buffers = Mutex::new(Vec::new());
        let store = |number: u32| {
            let (upload_id, shared, buffers) = (upload_id.as_str(), &shared, &buffers);
            async move {
                let offset = u64::from(number - 1) * part_bytes;
                let length = part_bytes.min(size - offset);
                let buffer = lock(buffers).pop().unwrap_or_default();
                let (body, digests) = self.read_part(file, offset, length, buffer).await?;
                let tag = self
                    .objects
                    .attempts
                    .run(OPERATION, length, |_| {
                        let place = PartPlace { upload_id, number, offset, digests: &digests };
                        let request = self.objects.requests.upload_part(self.key, place, body.clone());
                        self.objects.attempts.timed(OPERATION, self.key.as_str(), length, request)
                    })
                    .await?;
                lock(buffers).extend(body.try_into_mut());
                let mut state = lock(shared);
                state.parts.insert(number, (tag, hexadecimal(&digests.md5)));
                if let Some(progress) = &self.upload.progress {
                    let stored = state.parts.len() as u64 * part_bytes;
                    progress(&state, stored.min(size));
                }
                Ok(())
            }
        };
        stream::iter(missing)
            .map(store)
            .buffer_unordered(self.upload.parallel.max(1))
            .try_collect::<Vec<()>>()
            .await?;
        let state = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.complete(size, &state).await?;
        let mut digests = Md5::new();
        for (_, digest) in state.parts.values() {
            digests.update(bytes_of(digest));
        }
        Ok(format!("{}-{}", hexadecimal(&digests.finalize()), state.parts.len()))
    }

    async fn complete(&self, size: u64, state: &UploadState) -> Result<()> {
        let parts: Vec<(u32, String)> =
            state.parts.iter().map(|(number, (tag, _))| (*number, tag.clone())).collect();
        let completed = CompletedParts {
            upload_id: &state.upload_id,
            parts: &parts,
            size_bytes: size,
            attributes: &self.upload.attributes,
        };
        self.objects
            .attempts
            .run(OPERATION, 0, |attempt| async move {
                let request = self.objects.requests.complete_upload(self.key, completed);
                let answer = self.objects.attempts.timed(OPERATION, self.key.as_str(), 0, request).await;
                let Err(error) = answer else { return Ok(()) };
                // An earlier attempt, or an earlier process, did it, and its answer was lost.
                let maybe_done = matches!(
                    error.kind(),
                    ObjectStorageErrorKind::NotFound | ObjectStorageErrorKind::AlreadyExists
                );
                if maybe_done && (attempt > 1 || self.upload.resume.is_some()) {
                    let request = self.objects.requests.describe(self.key);
                    let found = self.objects.attempts.timed(OPERATION, self.key.as_str(), 0, request).await;
                    if found.is_ok_and(|found| {
                        found.size_bytes == size && found.attributes == self.upload.attributes
                    }) {
                        return Ok(());
                    }
                }
                Err(error)
            })
            .await
    }

    /// Compares the object with the file, and deletes it where they differ.
    async fn compare(&self, file: &Arc<File>, size: u64, expected: &str) -> Result<ObjectDescription> {
        let found = self.objects.describe(self.key).await?;
        let same = found.size_bytes == size
            && (found.tag.trim_matches('"').eq_ignore_ascii_case(expected)
                || self.reads_back(file, size).await?);
        if same && found.attributes == self.upload.attributes {
            return Ok(found);
        }
        self.objects.delete(std::slice::from_ref(self.key)).await?;
        Err(self.error("what was stored is not what was sent; it was deleted again"))
    }

    async fn reads_back(&self, file: &Arc<File>, size: u64) -> Result<bool> {
        let mut offset = 0;
        while offset < size {
            let length = self.upload.part_bytes.max(1).min(size - offset);
            let (sent, stored) = tokio::try_join!(
                self.read(file, offset, length),
                self.objects.get_range(self.key, offset, length)
            )?;
            if sent != stored {
                return Ok(false);
            }
            offset += length;
        }
        Ok(true)
    }

    async fn read(&self, file: &Arc<File>, offset: u64, length: u64) -> Result<Bytes> {
        self.read_with(file, offset, length, BytesMut::new(), |body| body).await
    }

    /// With its digests, which are computed where it is read: the parts that are under way share one thread for all else.
    async fn read_part(
        &self,
        file: &Arc<File>,
        offset: u64,
        length: u64,
        buffer: BytesMut,
    ) -> Result<(Bytes, PartDigests)> {
        let with_digests = |body: Bytes| {
            let digests =
                PartDigests { md5: Md5::digest(&body).into(), sha256: Sha256::digest(&body).into() };
            (body, digests)
        };
        self.read_with(file, offset, length, buffer, with_digests).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        file: &Arc<File>,
        offset: u64,
        length: u64,
        mut buffer: BytesMut,
        then: impl FnOnce(Bytes) -> T + Send + 'static,
    ) -> Result<T> {
        let file = Arc::clone(file);
        let read = tokio::task::spawn_blocking(move || {
            buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            file.read_exact_at(&mut buffer, offset).map(|()| then(buffer.freeze()))
        });
        match read.await {
            Ok(body) => body.map_err(|error| self.unreadable(error)),
            Err(error) => Err(self.error("the reading was given up").with_source(error)),
        }
    }

    fn unreadable(&self, error: std::io::Error) -> ObjectStorageError {
        self.error("the file cannot be read").with_source(error)
    }

    fn error(&self, message: &str) -> ObjectStorageError {
        ObjectStorageError::new(ObjectStorageErrorKind::Permanent, OPERATION, self.key, message)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks_exact(2);
    digits
        .map(|pair| {
            std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0)
        })
        .collect()
}
