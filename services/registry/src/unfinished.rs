//! `work.v1.host-<id>.unfinished`: whether anybody still wants what a host keeps of an operation between two attempts.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, ErrorCode, UnfinishedReply, UnfinishedRequest};
use domain_model::Routing;

use crate::errors::from_database;
use crate::registry::Registry;
use crate::work::{caller, not_too_many};

pub(crate) async fn unfinished(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let host @ Routing::Host(_) = caller(&request)? else {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "only a host keeps something of operations"));
    };
    let asked: UnfinishedRequest = request.decode()?;
    not_too_many(asked.op_ids.len(), "operations")?;
    let unfinished = registry.database.unfinished_operations(host, &asked.op_ids).await;
    Ok(request.reply(&UnfinishedReply { unfinished: unfinished.map_err(from_database)? }))
}
