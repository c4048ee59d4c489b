use async_trait::async_trait;
use bus_messages::kinds::KindDefinition;
use bus_messages::{ApiError, ChildOperation, ErrorCode};
use serde_json::Value;

use crate::OperationContext;

/// What does the work of one kind of operation.
#[async_trait]
pub trait OperationHandler: Send + Sync + 'static {
    /// The kind.
    fn definition(&self) -> &'static KindDefinition;

    /// Does the work and returns the result. Steps are idempotent: an earlier attempt may have got anywhere.
    /// It watches [`OperationContext::cancellation`] and then returns soon, with [`OperationFailure::Canceled`]
    /// (or [`OperationFailure::HandedBack`]); ten seconds after its lease is lost it is aborted.
    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure>;

    /// The registry has recorded the success of this attempt: what another attempt would have needed to know what this one
    /// has done can go. After a crash it is never called, so something else has to delete that in time.
    async fn recorded(&self, _operation: &OperationContext) {}
}

/// Why an attempt ended without a result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OperationFailure {
    /// It failed.
    #[error("{code}: {message}")]
    Failed {
        /// For programs: `bucket_unreachable`, `not_found` …
        code: String,
        /// For people; no secrets.
        message: String,
        /// Whether another attempt may succeed.
        retryable: bool,
    },
    /// It failed for good, with something to show for it all the same.
    #[error("{code}: {message}")]
    FailedWith {
        /// As of a failure.
        code: String,
        /// As of a failure.
        message: String,
        /// The result.
        result: Value,
    },
    /// Stopped on request, and cleaned up. Where the worker is being stopped and nobody asked for the operation
    /// to be canceled, it counts as handed back.
    #[error("canceled")]
    Canceled,
    /// Unfinished, for another worker to go on with; does not count as a failure.
    #[error("handed back unfinished")]
    HandedBack,
    /// To be queued again when these children have ended.
    #[error("waits for {} children", children.len())]
    WaitsForChildren {
        /// What to create; asking for the same key twice makes one.
        children: Vec<ChildOperation>,
        /// What the next attempt goes on from.
        checkpoint: Option<Value>,
    },
    /// Somebody else may hold the operation by now: nothing more is written.
    #[error("the lease is lost")]
    Lost,
}

impl OperationFailure {
    /// A failure after which another attempt may succeed.
    pub fn retryable(code: &str, message: impl std::fmt::Display) -> Self {
        Self::Failed { code: code.to_owned(), message: message.to_string(), retryable: true }
    }

    /// A failure that another attempt would meet again.
    pub fn permanent(code: &str, message: impl std::fmt::Display) -> Self {
        Self::Failed { code: code.to_owned(), message: message.to_string(), retryable: false }
    }
}

impl From<ApiError> for OperationFailure {
    /// Keeps message and retryability. A text `code` among the details is more exact than the code itself.
    fn from(error: ApiError) -> Self {
        let exact = error.details.get("code").and_then(Value::as_str).map(str::to_owned);
        Self::Failed {
            code: exact.unwrap_or_else(|| code_name(error.code)),
            message: error.message,
            retryable: error.retryable,
        }
    }
}

/// The code as it is on the wire.
fn code_name(code: ErrorCode) -> String {
    let name = serde_json::to_value(code).ok();
    name.as_ref().and_then(Value::as_str).unwrap_or("internal").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_api_keeps_its_code_and_whether_to_retry() {
        let failure = OperationFailure::from(ApiError::new(ErrorCode::Unavailable, "not now"));
        assert_eq!(failure, OperationFailure::retryable("unavailable", "not now"));
        let exact = ApiError::not_found("gone").with_detail("code", "bucket_gone");
        assert_eq!(OperationFailure::from(exact), OperationFailure::permanent("bucket_gone", "gone"));
    }
}
