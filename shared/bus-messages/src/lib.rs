//! Every message that crosses the bus: requests, replies, events, errors and kinds, and their two encodings.
//!
//! The bytes are a contract: golden fixtures of each message are kept in `tests/`, and `docs/protocol.md`
//! is the authority. Unknown fields of requests are refused, unknown fields of replies are ignored.

mod api_error;
mod backup_policy;
mod browse;
mod catalog;
mod encoding;
mod event;
mod grant;
pub mod kinds;
mod operation;
mod worker;

pub use api_error::{ApiError, ErrorBody, ErrorCode};
pub use backup_policy::BackupPolicy;
pub use browse::*;
pub use catalog::*;
pub use encoding::{DecodeError, Encoding};
pub use event::{EventLevel, ProgressEvent, Summary};
pub use grant::{Grant, ObjectStoreGrant, RepositoryGrant, SecretText};
pub use operation::*;
pub use worker::*;
