use std::error::Error;
use std::fmt;

use bus_messages::{ApiError, DecodeError};

/// What a caller does about a [`BusError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BusErrorKind {
    /// The server does not know who connects, or the password is wrong.
    Unauthorized,
    /// There is no connection now; one is being made. What was sent last may or may not have arrived.
    Disconnected,
    /// No answer in time.
    TimedOut,
    /// The message is larger than the server lets through.
    TooLarge,
    /// The stream does not exist, or JetStream does not answer.
    NoStream,
    /// These credentials may not use the subject.
    PermissionDenied,
    /// What was asked for is wrong in itself: a subject, a URL, a declaration.
    Invalid,
    /// JetStream refused or something else failed; see the source.
    Other,
}

/// The bus did not do what was asked.
#[derive(Debug)]
pub struct BusError {
    operation: &'static str,
    subject: String,
    kind: BusErrorKind,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BusError {
    pub(crate) fn new(operation: &'static str, subject: impl Into<String>, kind: BusErrorKind) -> Self {
        Self { operation, subject: subject.into(), kind, source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to do about it.
    pub fn kind(&self) -> BusErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, BusErrorKind::Disconnected | BusErrorKind::TimedOut | BusErrorKind::NoStream)
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            BusErrorKind::Unauthorized => "the server refuses the credentials",
            BusErrorKind::Disconnected => "there is no connection to the server",
            BusErrorKind::TimedOut => "no answer in time",
            BusErrorKind::TooLarge => "the message is larger than the server lets through",
            BusErrorKind::NoStream => "the stream does not exist or JetStream does not answer",
            BusErrorKind::PermissionDenied => "these credentials may not use the subject",
            BusErrorKind::Invalid => "the request is not valid",
            BusErrorKind::Other => "it failed",
        };
        write!(formatter, "{} {}: {what}", self.operation, self.subject)
    }
}

impl Error for BusError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn Error + 'static))
    }
}

/// What a caller does about a [`RequestError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestErrorKind {
    /// The service refused; see the [`ApiError`].
    Api,
    /// No service listens.
    NoResponders,
    /// No answer in time: the request may or may not have been carried out.
    Timeout,
    /// The server refuses the subject to these credentials.
    PermissionDenied,
    /// The bus failed.
    Bus,
    /// The reply does not read.
    Decode,
}

/// A request without the reply that it hoped for.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The service answered with an error.
    #[error(transparent)]
    Api(ApiError),
    /// No service listens to the subject.
    #[error("request {subject}: no service listens")]
    NoResponders {
        /// Where the request went.
        subject: String,
    },
    /// No answer in time: the request may or may not have been carried out.
    #[error("request {subject}: no answer within {seconds:.1} s")]
    Timeout {
        /// Where the request went.
        subject: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// The server refuses the subject to these credentials.
    #[error("request {subject}: these credentials may not use the subject")]
    PermissionDenied {
        /// Where the request was to go.
        subject: String,
    },
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The reply is not what was expected: another version of the service, or not the service at all.
    #[error("request {subject}: the reply does not read")]
    Decode {
        /// Where the request went.
        subject: String,
        /// What is wrong with the reply.
        #[source]
        source: DecodeError,
    },
}

impl RequestError {
    /// What to do about it.
    pub fn kind(&self) -> RequestErrorKind {
        match self {
            Self::Api(_) => RequestErrorKind::Api,
            Self::NoResponders { .. } => RequestErrorKind::NoResponders,
            Self::Timeout { .. } => RequestErrorKind::Timeout,
            Self::PermissionDenied { .. } => RequestErrorKind::PermissionDenied,
            Self::Bus(_) => RequestErrorKind::Bus,
            Self::Decode { .. } => RequestErrorKind::Decode,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Api(error) => error.retryable,
            Self::NoResponders { .. } | Self::Timeout { .. } => true,
            Self::PermissionDenied { .. } | Self::Decode { .. } => false,
            Self::Bus(error) => error.is_retryable(),
        }
    }
}
