//! What an S3 error means for the caller.
//!
//! Servers agree on status codes more than on error codes, so a few codes are known and the status
//! decides the rest.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::{ObjectStorageError, ObjectStorageErrorKind};

/// More than so many characters of a server's message say nothing new.
const MESSAGE_CHARACTERS: usize = 300;

/// Translates the error of a request.
pub(crate) fn translate<E>(
    operation: &'static str,
    subject: &str,
    error: SdkError<E, HttpResponse>,
) -> ObjectStorageError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (kind, message) = match &error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            return ObjectStorageError::new(
                kind_of(Some(status), answer.err().code()),
                operation,
                subject,
                describe(Some(status), answer.err().code(), answer.err().message()),
            )
            .with_code(answer.err().code());
        }
        SdkError::TimeoutError(_) => (ObjectStorageErrorKind::Retryable, "no answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_user() => {
            (ObjectStorageErrorKind::Permanent, "the request cannot be sent")
        }
        SdkError::DispatchFailure(_) => (ObjectStorageErrorKind::Retryable, "the server cannot be reached"),
        SdkError::ResponseError(_) => (ObjectStorageErrorKind::Retryable, "the answer cannot be read"),
        _ => (ObjectStorageErrorKind::Permanent, "the request cannot be built"),
    };
    let translated = ObjectStorageError::new(kind, operation, subject, message);
    match error.into_source() {
        Ok(source) => translated.with_source(source),
        Err(_) => translated,
    }
}

/// What an error code and an HTTP status mean; a per-key error of a deletion has no status.
pub(crate) fn kind_of(status: Option<u16>, code: Option<&str>) -> ObjectStorageErrorKind {
    use ObjectStorageErrorKind::{AlreadyExists, NotFound, Permanent, PermissionDenied, Retryable};
    match code.unwrap_or_default() {
        "NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" | "NotFound" => return NotFound,
        "BucketAlreadyExists" | "BucketAlreadyOwnedByYou" | "PreconditionFailed" => return AlreadyExists,
        "AccessDenied"
        | "AllAccessDisabled"
        | "ExpiredToken"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "SignatureDoesNotMatch"
        | "Unauthorized" => return PermissionDenied,
        // Conflicts with a request under way, throttling, and bodies spoilt on their way.
        "ConditionalRequestConflict"
        | "OperationAborted"
        | "SlowDown"
        | "Throttling"
        | "RequestTimeout"
        | "InternalError"
        | "ServiceUnavailable"
        | "BadDigest"
        | "IncompleteBody"
        | "XAmzContentSHA256Mismatch" => return Retryable,
        "NotImplemented" => return Permanent,
        _ => {}
    }
    match status {
        Some(404) => NotFound,
        Some(401 | 403) => PermissionDenied,
        Some(412) => AlreadyExists,
        Some(501) => Permanent,
        // A success that cannot be read: something between here and the server spoilt it.
        Some(200..=299) => Retryable,
        Some(408 | 425 | 429 | 500..=599) => Retryable,
        // A per-key error without a known code: the verification and the next deletion decide.
        None => Retryable,
        Some(_) => Permanent,
    }
}

/// The server's own words, shortened.
pub(crate) fn describe(status: Option<u16>, code: Option<&str>, message: Option<&str>) -> String {
    let status = status.map(|status| format!("status {status} ")).unwrap_or_default();
    let code = code.unwrap_or("without a code");
    let message: String = message.unwrap_or_default().chars().take(MESSAGE_CHARACTERS).collect();
    if message.is_empty() { format!("{status}{code}") } else { format!("{status}{code}: {message}") }
}

/// Whether the server says that it cannot do this at all.
pub(crate) fn is_not_implemented<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    error.code() == Some("NotImplemented") || status == Some(501)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_map_to_what_a_caller_can_do() {
        use ObjectStorageErrorKind::{AlreadyExists, NotFound, Permanent, PermissionDenied, Retryable};
        for (status, code, kind) in [
            (Some(404), Some("NoSuchKey"), NotFound),
            (Some(404), None, NotFound),
            (Some(412), Some("PreconditionFailed"), AlreadyExists),
            (Some(412), None, AlreadyExists),
            (Some(409), Some("ConditionalRequestConflict"), Retryable),
            (Some(409), Some("BucketNotEmpty"), Permanent),
            (Some(403), Some("SignatureDoesNotMatch"), PermissionDenied),
            (Some(403), None, PermissionDenied),
            (Some(400), Some("ExpiredToken"), PermissionDenied),
            (Some(400), Some("BadDigest"), Retryable),
            (Some(400), Some("InvalidArgument"), Permanent),
            (Some(416), Some("InvalidRange"), Permanent),
            (Some(200), None, Retryable),
            (Some(429), None, Retryable),
            (Some(503), Some("SlowDown"), Retryable),
            (Some(500), None, Retryable),
            (Some(501), Some("NotImplemented"), Permanent),
            (None, Some("AccessDenied"), PermissionDenied),
            (None, Some("Whatever"), Retryable),
        ] {
            assert_eq!(kind_of(status, code), kind, "{status:?} {code:?}");
        }
    }
}
