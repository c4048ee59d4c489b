use std::{fmt, io};

use object_storage::{ObjectStorageError, ObjectStorageErrorKind};
use rustic_core::RusticError;
use serde::{Deserialize, Serialize};

/// What a caller can do about a [`BackupRepositoryError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupRepositoryErrorKind {
    /// There is no such repository, snapshot or path in it.
    NotFound,
    /// The root carries another repository's marker, or none. Nothing was read or written beyond it.
    IdentityMismatch,
    /// The root holds objects that are not ours: nothing is initialised there.
    Occupied,
    /// The snapshot is not of layout 2, or belongs to another project.
    UnsupportedLayout,
    /// The key, the password or the object store's credentials are wrong.
    WrongCredentials,
    /// The request itself makes no sense: a bad tag, path or directory.
    InvalidArgument,
    /// Something in the source could not be read, so that a backup of it would not be whole.
    SourceUnreadable,
    /// The staging directory is not fresh, or refuses what has to be restored into it.
    DestinationUnusable,
    /// The disk or a quota is full where something is to be restored.
    NoSpace,
    /// The object store is full.
    StoreFull,
    /// The repository misses data or holds data that does not match its hash.
    Damaged,
    /// What was restored is not what was backed up.
    VerificationFailed,
    /// The caller asked to stop.
    Canceled,
    /// Nothing moved for so long that the job was ended.
    Stalled,
    /// The process of the job was killed, or wanted more memory than it may have.
    ProcessEnded,
    /// Worth another attempt later.
    Retryable,
    /// Everything else: repeating the same request gives the same answer.
    Permanent,
}

impl BackupRepositoryErrorKind {
    /// Whether another attempt at the very same request can end better.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Retryable
                | Self::NoSpace
                | Self::StoreFull
                | Self::Stalled
                | Self::ProcessEnded
                | Self::VerificationFailed
        )
    }
}

/// Whether what is behind an error are bytes whose tag does not fit the key.
pub(crate) fn does_not_decrypt(error: &RusticError) -> bool {
    const CODE: &str = "C001";
    has_cause(error, |error| {
        let boxed = error.downcast_ref::<Box<RusticError>>().map(AsRef::as_ref);
        boxed.or_else(|| error.downcast_ref()).is_some_and(|error: &RusticError| error.is_code(CODE))
    })
}

/// Whether something has asked for memory, and there was none. What does not ask ends the process.
pub(crate) fn lacks_memory(error: &(dyn std::error::Error + 'static)) -> bool {
    has_cause(error, |error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::OutOfMemory)
    })
}

/// Whether this is true of the error or of one behind it.
fn has_cause(
    error: &(dyn std::error::Error + 'static),
    is_it: impl Fn(&(dyn std::error::Error + 'static)) -> bool,
) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if is_it(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A failed operation on a repository, with what was attempted and on what.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {subject}: {message}")]
pub struct BackupRepositoryError {
    kind: BackupRepositoryErrorKind,
    operation: &'static str,
    subject: String,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything in this crate.
pub type Result<T, E = BackupRepositoryError> = std::result::Result<T, E>;

impl BackupRepositoryError {
    /// `operation` is a verb (`"restore"`), `subject` what it was about. `message` never holds a secret.
    pub(crate) fn new(
        kind: BackupRepositoryErrorKind,
        operation: &'static str,
        subject: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, operation, subject: subject.to_string(), message: message.into(), source: None }
    }

    /// Attaches the error underneath.
    #[must_use]
    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> BackupRepositoryErrorKind {
        self.kind
    }

    pub(crate) fn from_storage(operation: &'static str, error: ObjectStorageError) -> Self {
        let kind = kind_of_storage_error(&error);
        Self::new(kind, operation, "in the object store", "the request failed").with_source(error)
    }

    /// For errors of rustic_core that did not begin in our backend: its own text is the message.
    pub(crate) fn from_rustic(
        operation: &'static str,
        subject: impl fmt::Display,
        error: &RusticError,
    ) -> Self {
        // The key has opened the repository: what it does not decrypt is not what was stored.
        let kind = if does_not_decrypt(error) {
            BackupRepositoryErrorKind::Damaged
        } else if lacks_memory(error) {
            BackupRepositoryErrorKind::ProcessEnded
        } else {
            BackupRepositoryErrorKind::Permanent
        };
        Self::new(kind, operation, subject, error.display_log())
    }

    /// The same while it is not yet known whether the key is the right one.
    pub(crate) fn of_opening(subject: impl fmt::Display, error: &RusticError) -> Self {
        if error.is_incorrect_password() {
            return Self::new(
                BackupRepositoryErrorKind::WrongCredentials,
                "open",
                subject,
                error.display_log(),
            );
        }
        if does_not_decrypt(error) {
            let message =
                "its config does not decrypt: the key is another repository's, or the config is damaged";
            return Self::new(BackupRepositoryErrorKind::WrongCredentials, "open", subject, message);
        }
        Self::from_rustic("open", subject, error)
    }

    pub(crate) fn canceled(operation: &'static str) -> Self {
        Self::new(BackupRepositoryErrorKind::Canceled, operation, "on request", "canceled")
    }

    /// The error and all its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// What a caller can do about a failed request. Credentials that have expired are worth another attempt: it gets new ones.
pub(crate) fn kind_of_storage_error(error: &ObjectStorageError) -> BackupRepositoryErrorKind {
    match error.kind() {
        ObjectStorageErrorKind::NotFound => BackupRepositoryErrorKind::NotFound,
        ObjectStorageErrorKind::PermissionDenied if error.code() == Some("ExpiredToken") => {
            BackupRepositoryErrorKind::Retryable
        }
        ObjectStorageErrorKind::PermissionDenied => BackupRepositoryErrorKind::WrongCredentials,
        ObjectStorageErrorKind::Retryable if error.code() == Some(ObjectStorageError::STORAGE_FULL) => {
            BackupRepositoryErrorKind::StoreFull
        }
        ObjectStorageErrorKind::Retryable => BackupRepositoryErrorKind::Retryable,
        ObjectStorageErrorKind::AlreadyExists | ObjectStorageErrorKind::Permanent => {
            BackupRepositoryErrorKind::Permanent
        }
    }
}

#[cfg(test)]
mod tests {
    use rustic_core::ErrorKind;

    use super::*;

    #[test]
    fn a_lack_of_memory_is_worth_another_attempt_and_no_damage() {
        let of = |kind: io::ErrorKind| {
            let error =
                RusticError::with_source(ErrorKind::Internal, "Failed to decode", io::Error::from(kind));
            BackupRepositoryError::from_rustic("prune", "a repository", &error).kind()
        };
        assert_eq!(of(io::ErrorKind::OutOfMemory), BackupRepositoryErrorKind::ProcessEnded);
        assert_eq!(of(io::ErrorKind::InvalidData), BackupRepositoryErrorKind::Permanent);
    }
}
