//! `lro.wait` while the registry is being stopped: answered at once, as if its time were over. Whoever waits asks again,
//! and another registry answers; otherwise each would hold up the end of the process for as long as it waits.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, WaitOperation, WaitReply};
use tokio_util::sync::CancellationToken;

use super::{operations, subject};
use crate::errors::from_database;
use crate::registry::Registry;

/// Waits as [`operations::wait`] does, until `draining`.
pub(super) async fn wait(
    registry: Arc<Registry>,
    request: IncomingRequest,
    draining: CancellationToken,
) -> Result<Reply, ApiError> {
    let asked = request.clone();
    let waiting = operations::wait(Arc::clone(&registry), request);
    match draining.run_until_cancelled(waiting).await {
        Some(reply) => reply,
        None => {
            let scope = subject(&asked)?.scope;
            let wanted: WaitOperation = asked.decode()?;
            match registry.database.operation(scope, wanted.op_id).await.map_err(from_database)? {
                Some(op) => Ok(asked.reply(&WaitReply { done: op.status.is_terminal(), op })),
                None => Err(ApiError::not_found(format!("there is no operation {} any more", wanted.op_id))),
            }
        }
    }
}
