use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The codes of errors on the wire. Contract, section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request does not read, or a field is wrong.
    InvalidArgument,
    /// 401: who asks is not known.
    Unauthenticated,
    /// 403: who asks may not.
    PermissionDenied,
    /// 404: there is no such thing.
    NotFound,
    /// 409: it collides with something that is going on.
    Conflict,
    /// 409: there is one already.
    AlreadyExists,
    /// 409: the dedupe key is in use with another input.
    DedupeMismatch,
    /// 410: its time is over.
    Expired,
    /// 412: not in this state.
    FailedPrecondition,
    /// 429: more than the service takes on at once.
    TooManyRequests,
    /// 500: a defect, logged at the service.
    Internal,
    /// 503: something behind the service does not answer now.
    Unavailable,
}

impl ErrorCode {
    /// The number in the `Nats-Service-Error-Code` header.
    pub fn status(&self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::AlreadyExists | Self::DedupeMismatch => 409,
            Self::Expired => 410,
            Self::FailedPrecondition => 412,
            Self::TooManyRequests => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::TooManyRequests | Self::Unavailable)
    }
}

/// An error as a client sees it. The message says what to do and never shows a secret or a stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// The HTTP-like number of the code.
    pub status: u16,
    /// What went wrong and what to do, for people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// More, by code: for `dedupe_mismatch` the `op_id` of the active operation.
    #[serde(default)]
    pub details: Map<String, Value>,
}

/// The body of a reply that is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

impl ApiError {
    /// An error with the number and the retryability of its code.
    pub fn new(code: ErrorCode, message: impl fmt::Display) -> Self {
        Self {
            code,
            status: code.status(),
            message: message.to_string(),
            retryable: code.is_retryable(),
            details: Map::new(),
        }
    }

    /// 400 with what is wrong.
    pub fn invalid_argument(message: impl fmt::Display) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// 404 with what is missing.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// Adds a detail.
    #[must_use]
    pub fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}
