//! `bucket.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, BucketList, BucketReply, GetBucket, Nothing};

use crate::errors::from_database;
use crate::registry::Registry;

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    request.decode::<Nothing>()?;
    let buckets = registry.database.list_buckets().await.map_err(from_database)?;
    Ok(request.reply(&BucketList { buckets }))
}

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let wanted: GetBucket = request.decode()?;
    let bucket = registry.database.bucket(wanted.bucket_id).await.map_err(from_database)?;
    let bucket =
        bucket.ok_or_else(|| ApiError::not_found(format!("there is no bucket {}", wanted.bucket_id)))?;
    Ok(request.reply(&BucketReply { bucket }))
}
