//! The worker protocol, `work.v1.<caller>.<verb>`. Who calls is the token in the subject, which the
//! caller's credentials pin.

mod claim;
mod finish;
mod grants;
mod progress;

use std::time::Duration;

use bus_client::IncomingRequest;
use bus_messages::{ApiError, ErrorCode, Operation};
use bus_subjects::WorkSubject;
use catalog_database::LeaseFence;
use domain_model::Routing;

pub(crate) use claim::claim;
pub(crate) use finish::finish;
pub(crate) use grants::{repository, retention};
pub(crate) use progress::progress;

use crate::errors::from_database;
use crate::registry::Registry;

/// A worker may hold so many operations, and ask for so many at once.
const MOST_OPERATIONS: usize = 1000;
/// The catalog is told that a host was heard of this often at most.
pub(crate) const HEARD_AGAIN: Duration = Duration::from_secs(10);
const MOST_CHECKPOINT_BYTES: usize = 64 * 1024;

pub(crate) fn caller(request: &IncomingRequest) -> Result<Routing, ApiError> {
    let subject: WorkSubject = request.subject().parse().map_err(ApiError::invalid_argument)?;
    Ok(subject.caller)
}

/// Whether a message has no more of something than one may.
pub(crate) fn not_too_many(count: usize, what: &str) -> Result<(), ApiError> {
    if count <= MOST_OPERATIONS {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("at most {MOST_OPERATIONS} {what} in one message")))
}

pub(crate) fn json_length(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |text| text.len())
}

/// The operation that the caller holds.
pub(crate) async fn leased(registry: &Registry, fence: &LeaseFence) -> Result<Operation, ApiError> {
    let op = registry.database.leased_operation(fence).await.map_err(from_database)?;
    op.ok_or_else(|| {
        registry.metrics.refused_writes.inc();
        ApiError::new(ErrorCode::Conflict, "this lease is over: stop the work on the operation")
    })
}
