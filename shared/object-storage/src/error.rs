use std::fmt;

/// What a caller can do about an [`ObjectStorageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectStorageErrorKind {
    /// The object or bucket does not exist.
    NotFound,
    /// A create-only write found an object, a conditional one found another version than it expected, or a bucket of that name exists and belongs to somebody else.
    AlreadyExists,
    /// The credentials are wrong or do not reach that far. Repeating does not help.
    PermissionDenied,
    /// Unreachable, throttled, timed out, or a 5xx: worth another try later.
    Retryable,
    /// Everything else: repeating the same request gives the same answer.
    Permanent,
}

/// A failed request to an object store, with the operation and what it was about.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {subject}: {message}")]
pub struct ObjectStorageError {
    kind: ObjectStorageErrorKind,
    operation: &'static str,
    subject: String,
    message: String,
    code: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ObjectStorageError {
    /// The [`code`](Self::code) of a write for which the disk, or a quota, has no room.
    pub const STORAGE_FULL: &'static str = "StorageFull";

    /// `operation` is a verb (`"get"`), `subject` the key, prefix or bucket. `message` never holds a secret.
    pub fn new(
        kind: ObjectStorageErrorKind,
        operation: &'static str,
        subject: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            operation,
            subject: subject.to_string(),
            message: message.into(),
            code: None,
            source: None,
        }
    }

    /// Attaches the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Attaches the server's own code.
    #[must_use]
    pub(crate) fn with_code(mut self, code: Option<&str>) -> Self {
        self.code = code.map(str::to_owned);
        self
    }

    /// The server's own code (`NoSuchBucket`, `RequestTimeTooSkewed`), where it gave one; of a directory,
    /// [`STORAGE_FULL`](Self::STORAGE_FULL): to tell an operator what is wrong. What to do next is decided by
    /// [`kind`](Self::kind), since servers differ in their codes.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ObjectStorageErrorKind {
        self.kind
    }
}
