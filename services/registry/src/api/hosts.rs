//! `host.*` and `region.list`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, CreateHost, HostList, HostReply, Nothing};
use domain_model::HostId;
use serde_json::json;
use uuid::Uuid;

use super::{host, hub, known_region, named};
use crate::errors::from_database;
use crate::registry::Registry;

/// Cloudflare R2's regions, from the west of North America to Oceania.
pub(super) const REGIONS: [&str; 6] = ["wnam", "enam", "weur", "eeur", "apac", "oc"];
/// Where a host is that does not say.
const DEFAULT_REGION: &str = "weur";

pub(super) async fn create(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let create: CreateHost = request.decode()?;
    named("name", &create.name)?;
    let region = create.region.as_deref().unwrap_or(DEFAULT_REGION);
    known_region(region)?;
    let id = create.id.unwrap_or_else(|| HostId::from(Uuid::new_v4()));
    let host = registry.database.create_host(id, &create.name, region).await.map_err(from_database)?;
    let host = host.ok_or_else(|| ApiError::not_found(format!("there is no host {id}")))?;
    Ok(request.reply(&HostReply { host }))
}

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    request.decode::<Nothing>()?;
    let hosts = registry.database.list_hosts().await.map_err(from_database)?;
    Ok(request.reply(&HostList { hosts }))
}

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = host(&request)?;
    request.decode::<Nothing>()?;
    let host = registry.database.host(id).await.map_err(from_database)?;
    let host = host.ok_or_else(|| ApiError::not_found(format!("there is no host {id}")))?;
    Ok(request.reply(&HostReply { host }))
}

pub(super) async fn status(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = host(&request)?;
    request.decode::<Nothing>()?;
    let status = registry.database.host_status(id).await.map_err(from_database)?;
    let status = status.ok_or_else(|| ApiError::not_found(format!("there is no host {id}")))?;
    Ok(request.reply(&status))
}

pub(super) async fn regions(_: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    request.decode::<Nothing>()?;
    Ok(request.reply(&json!({ "regions": REGIONS })))
}
