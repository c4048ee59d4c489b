//! `bucket.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, Bucket, BucketList, BucketReply, CreateBucket, GetBucket, Nothing};
use domain_model::BucketId;

use super::{hub, known_region};
use crate::errors::from_database;
use crate::registry::Registry;

/// One for the backups of a region, unless it has one.
pub(super) async fn create(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let create: CreateBucket = request.decode()?;
    known_region(&create.region)?;
    let bucket = registry.repositories.bucket_for(&create.region).await?;
    Ok(request.reply(&BucketReply { bucket }))
}

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    request.decode::<Nothing>()?;
    let buckets = registry.database.list_buckets().await.map_err(from_database)?;
    Ok(request.reply(&BucketList { buckets }))
}

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let wanted: GetBucket = request.decode()?;
    let bucket = known(&registry, wanted.bucket_id).await?;
    Ok(request.reply(&BucketReply { bucket }))
}

/// Asks the provider where it is, and records that.
pub(super) async fn verify(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let wanted: GetBucket = request.decode()?;
    let bucket = known(&registry, wanted.bucket_id).await?;
    let bucket = registry.repositories.verify_bucket(&bucket).await?;
    Ok(request.reply(&BucketReply { bucket }))
}

/// Projects that have it keep it; no other gets it.
pub(super) async fn disable(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let wanted: GetBucket = request.decode()?;
    let bucket = registry.database.disable_bucket(wanted.bucket_id).await.map_err(from_database)?;
    let bucket = bucket.ok_or_else(|| unknown(wanted.bucket_id))?;
    Ok(request.reply(&BucketReply { bucket }))
}

async fn known(registry: &Registry, id: BucketId) -> Result<Bucket, ApiError> {
    let bucket = registry.database.bucket(id).await.map_err(from_database)?;
    bucket.ok_or_else(|| unknown(id))
}

fn unknown(id: BucketId) -> ApiError {
    ApiError::not_found(format!("there is no bucket {id}"))
}
