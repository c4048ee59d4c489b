//! `project.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{
    ApiError, BackupPolicy, ChangeCollaborator, CreateProject, ListRequest, Nothing, Project, ProjectList,
    ProjectReply, ProjectStatus, UpdateProject,
};
use catalog_database::{BackupStanding, NewProject};
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

pub(super) async fn update(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let update: UpdateProject = request.decode()?;
    update.title.as_deref().map(|title| named("title", title)).transpose()?;
    update.backup_policy.as_ref().map(BackupPolicy::check).transpose()?;
    let (title, policy) = (update.title.as_deref(), update.backup_policy.as_ref());
    registry.database.update_project(id, title, policy).await.map_err(from_database)?;
    let project = known(&registry, id).await?;
    Ok(request.reply(&ProjectReply { project }))
}

/// For edits that do not come about through the files that a host watches, or are to count at once.
pub(super) async fn touch(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    request.decode::<Nothing>()?;
    registry.database.touch_project(id).await.map_err(from_database)?;
    let project = known(&registry, id).await?;
    Ok(request.reply(&ProjectReply { project }))
}

pub(super) async fn status(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    request.decode::<Nothing>()?;
    let project = known(&registry, id).await?;
    let running_ops = registry.database.active_operations_of_project(id).await.map_err(from_database)?;
    let standing = registry.database.backup_standing(id).await.map_err(from_database)?;
    let standing = standing.ok_or_else(|| ApiError::not_found(format!("there is no project {id}")))?;
    let backup_policy = standing.policy.over(&registry.backups);
    let is_scheduled = backup_policy.schedule().enabled;
    let risk = risk_of(&project, &standing);
    let status = ProjectStatus {
        last_backup_at: project.last_backup_at,
        last_verified_at: project.last_verified_at,
        last_verified_backup_id: standing.verified,
        region: project.region.clone(),
        running_ops,
        changed_since_backup: standing.is_unsaved,
        at_risk: risk.is_some(),
        at_risk_s: risk.as_ref().map_or(0.0, |_| standing.unsaved_s.max(0.0)),
        at_risk_reason: risk,
        backup_policy,
        next_backup_at: standing.due_at.filter(|_| is_scheduled),
        project,
    };
    Ok(request.reply(&status))
}

/// Why something of a project would be lost if its host were lost now.
fn risk_of(project: &Project, standing: &BackupStanding) -> Option<String> {
    let Some(at) = project.last_backup_at else {
        return Some("it has never been backed up".to_owned());
    };
    if let Some(reason) = &standing.newest_is_bad {
        return Some(format!("its newest backup is bad: {reason}"));
    }
    if !standing.is_unsaved {
        return standing.host_silent_since.map(|since| {
            format!("its host has told nothing of it since {since}: what has changed there is not known")
        });
    }
    Some(if !standing.backed_up_here {
        "it has not been backed up from the host that has its files now".to_owned()
    } else if standing.damaged {
        format!(
            "its repository was found to be damaged after its newest backup, which is of {at}; the next one stores again \
             what its files still have"
        )
    } else if standing.touched {
        format!("somebody said that it has changed since its newest backup, which is of {at}")
    } else {
        format!("it has changed since its newest backup, which is of {at}")
    })
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
