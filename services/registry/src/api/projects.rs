//! `project.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{
    ApiError, ChangeCollaborator, CreateProject, ListRequest, Nothing, Project, ProjectList, ProjectReply,
    ProjectStatus,
};
use catalog_database::NewProject;
use domain_model::{ProjectId, Timestamp};
use uuid::Uuid;

use super::{bad_cursor, hub, known_region, named, page_size, project};
use crate::errors::from_database;
use crate::registry::Registry;

pub(super) async fn create(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let create: CreateProject = request.decode()?;
    named("title", &create.title)?;
    create.region.as_deref().map(known_region).transpose()?;
    let host = create.host_id;
    let new = NewProject {
        id: ProjectId::from(Uuid::new_v4()),
        title: create.title,
        host_id: host,
        account_id: create.account_id,
        region: create.region,
    };
    let project = registry.database.create_project(&new).await.map_err(from_database)?;
    let project = project.ok_or_else(|| {
        ApiError::not_found(format!("there is no host {host}; api.v1.hub.host.list shows those there are"))
    })?;
    Ok(request.reply(&ProjectReply { project }))
}

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let list: ListRequest = request.decode()?;
    let limit = page_size(list.limit)?;
    let cursor = list.cursor.as_deref().map(read_cursor).transpose()?;
    let projects = registry.database.list_projects(cursor, limit).await.map_err(from_database)?;
    let more = projects.len() == limit as usize;
    let next_cursor = projects.last().filter(|_| more).map(|last| format!("{}/{}", last.created_at, last.id));
    Ok(request.reply(&ProjectList { projects, next_cursor }))
}

fn read_cursor(cursor: &str) -> Result<(Timestamp, ProjectId), ApiError> {
    let (at, id) = cursor.split_once('/').ok_or_else(bad_cursor)?;
    Ok((at.parse().map_err(|_| bad_cursor())?, id.parse().map_err(|_| bad_cursor())?))
}

async fn known(registry: &Registry, id: ProjectId) -> Result<Project, ApiError> {
    let project = registry.database.project(id).await.map_err(from_database)?;
    project.ok_or_else(|| ApiError::not_found(format!("there is no project {id}")))
}

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    request.decode::<Nothing>()?;
    let project = known(&registry, id).await?;
    Ok(request.reply(&ProjectReply { project }))
}

pub(super) async fn status(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    request.decode::<Nothing>()?;
    let project = known(&registry, id).await?;
    let running_ops = registry.database.active_operations_of_project(id).await.map_err(from_database)?;
    let status = ProjectStatus {
        last_backup_at: project.last_backup_at,
        last_verified_at: project.last_verified_at,
        region: project.region.clone(),
        project,
        running_ops,
    };
    Ok(request.reply(&status))
}

pub(super) async fn add_collaborator(
    registry: Arc<Registry>,
    request: IncomingRequest,
) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let change: ChangeCollaborator = request.decode()?;
    if !registry.database.add_collaborator(id, change.account_id).await.map_err(from_database)? {
        return Err(ApiError::not_found(format!("there is no project {id}")));
    }
    let project = known(&registry, id).await?;
    Ok(request.reply(&ProjectReply { project }))
}

pub(super) async fn remove_collaborator(
    registry: Arc<Registry>,
    request: IncomingRequest,
) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let change: ChangeCollaborator = request.decode()?;
    registry.database.remove_collaborator(id, change.account_id).await.map_err(from_database)?;
    let project = known(&registry, id).await?;
    Ok(request.reply(&ProjectReply { project }))
}
