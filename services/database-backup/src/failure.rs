//! What can go wrong, told apart by what an operator does about it.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;

use object_storage::{ObjectStorageError, ObjectStorageErrorKind};

/// What to do about a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// `BACKUP_ENABLED=false`.
    Disabled,
    /// There is no backup of that id.
    NotFound,
    /// The id, or the request, is none.
    InvalidArgument,
    /// Another operation is at work.
    Busy,
    /// There is no database file.
    DatabaseMissing,
    /// A process has the database open.
    DatabaseOpen,
    /// The file changed all the time and could not be copied.
    DatabaseChanging,
    /// A copy did not open or could not be read: it was not uploaded, or not put in place.
    NotValid,
    /// Too little room.
    NoSpace,
    /// The bucket does not exist.
    BucketMissing,
    /// The credentials are wrong or may not do this.
    CredentialsRefused,
    /// This machine's clock is wrong.
    ClockSkewed,
    /// The object store cannot be reached, or is overloaded.
    StorageUnreachable,
    /// The object store refuses for another reason.
    StorageFailed,
    /// The backup is encrypted, and no key here opens it.
    KeyMissing,
    /// What was downloaded is not what was uploaded.
    ChecksumMismatch,
    /// The time was over.
    DeadlineExceeded,
    /// It was told to stop.
    Abandoned,
    /// A file operation failed.
    FileSystem,
    /// A mistake of this program.
    Internal,
}

impl FailureKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::InvalidArgument => 400,
            Self::Busy | Self::DatabaseOpen | Self::Disabled | Self::KeyMissing => 409,
            Self::BucketMissing
            | Self::CredentialsRefused
            | Self::ClockSkewed
            | Self::StorageUnreachable
            | Self::StorageFailed => 502,
            Self::NoSpace => 507,
            Self::DeadlineExceeded => 504,
            _ => 500,
        }
    }

    /// Whether the same may succeed a little later, without anybody having done anything about it.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Busy | Self::DatabaseChanging | Self::StorageUnreachable | Self::DeadlineExceeded
        )
    }
}

/// An operation that failed.
#[derive(Debug)]
pub struct Failure {
    kind: FailureKind,
    message: String,
    kept: Option<PathBuf>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of everything that can fail here.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with what to tell the operator.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), kept: None, source: None }
    }

    /// Attaches the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says where the copy that could not be uploaded is.
    #[must_use]
    pub fn with_kept(mut self, kept: PathBuf) -> Self {
        self.kept = Some(kept);
        self
    }

    /// A file operation that failed.
    pub fn io(doing: impl fmt::Display, error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull => FailureKind::NoSpace,
            _ => FailureKind::FileSystem,
        };
        Self::new(kind, doing.to_string()).with_source(error)
    }

    /// A request to the object store that failed.
    pub fn storage(error: ObjectStorageError) -> Self {
        use ObjectStorageErrorKind::{NotFound, PermissionDenied, Retryable};
        let (kind, message) = match (error.code(), error.kind()) {
            (Some("RequestTimeTooSkewed" | "RequestExpired"), _) => (
                FailureKind::ClockSkewed,
                "the clock of this machine differs too much from the object store's: set it right",
            ),
            (Some("NoSuchBucket"), _) | (_, NotFound) => (
                FailureKind::BucketMissing,
                "the bucket does not exist: create it, or correct storage.bucket (R2_BUCKET_NAME)",
            ),
            (_, PermissionDenied) => (
                FailureKind::CredentialsRefused,
                "the object store refuses the credentials: check R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY and what they may do",
            ),
            (_, Retryable) => {
                (FailureKind::StorageUnreachable, "the object store cannot be reached or does not work")
            }
            _ => (FailureKind::StorageFailed, "the object store refuses the request"),
        };
        Self::new(kind, message).with_source(error)
    }

    /// What to do about it.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Where the copy that could not be uploaded is.
    pub fn kept(&self) -> Option<&PathBuf> {
        self.kept.as_ref()
    }

    /// Everything that is known, on one line. Holds no secret: neither do the errors underneath.
    pub fn describe(&self) -> String {
        let mut text = self.message.clone();
        let mut cause: Option<&(dyn StdError + 'static)> = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        if let Some(kept) = &self.kept {
            let hint = format!(
                "; the checked copy is kept at {}; it is uploaded by `database-backup upload-pending`, and when the service starts again",
                kept.display()
            );
            text.push_str(&hint);
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_object_store_says_is_told_apart() {
        let storage = |kind| Failure::storage(ObjectStorageError::new(kind, "list", "x", "y")).kind();
        assert_eq!(storage(ObjectStorageErrorKind::NotFound), FailureKind::BucketMissing);
        assert_eq!(storage(ObjectStorageErrorKind::PermissionDenied), FailureKind::CredentialsRefused);
        assert_eq!(storage(ObjectStorageErrorKind::Retryable), FailureKind::StorageUnreachable);
        assert_eq!(storage(ObjectStorageErrorKind::Permanent), FailureKind::StorageFailed);
    }

    #[test]
    fn a_description_has_the_causes_and_the_hint() {
        let error = ObjectStorageError::new(ObjectStorageErrorKind::Retryable, "put", "key", "no answer");
        let text = Failure::storage(error).with_kept("/work/pending/x".into()).describe();
        assert!(text.contains("put key: no answer") && text.contains("/work/pending/x"), "{text}");
    }
}
