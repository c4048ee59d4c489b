//! `backup.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds;
use bus_messages::{
    ApiError, Backup, BackupList, BackupReply, BrowseQuery, BrowseReply, CreatedOperation, ErrorCode,
    FindPaths, FoundPaths, GetBackup, ListDirectory, ListRequest, UpdateBackup,
};
use catalog_database::DeletionMark;
use domain_model::{BackupId, ProjectId, Scope, Timestamp};
use serde_json::json;

use super::{Caller, bad_cursor, operations, page_size, project};
use crate::browsing;
use crate::errors::from_database;
use crate::registry::Registry;
use crate::repositories::no_such_backup;

/// Entries of a directory on one page, and paths found.
const MOST_ENTRIES: u32 = 1000;
const ENTRIES: u32 = 200;
const MOST_DEPTH: u32 = 16;
const MOST_GLOB_BYTES: usize = 1000;
/// The longest path is some 4,000 bytes, and a cursor holds it in base64.
const MOST_CURSOR_BYTES: usize = 8000;
/// Backups that are searched for one page.
const SEARCHED_BACKUPS: u32 = 50;

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let list: ListRequest = request.decode()?;
    let limit = page_size(list.limit)?;
    let cursor = list.cursor.as_deref().map(read_cursor).transpose()?;
    let known = registry.database.project_place(id).await.map_err(from_database)?;
    known.ok_or_else(|| ApiError::not_found(format!("there is no project {id}")))?;
    let backups = registry.database.list_backups(id, cursor, limit).await.map_err(from_database)?;
    let more = backups.len() == limit as usize;
    let next_cursor =
        backups.last().filter(|_| more).map(|last| format!("{}/{}", last.created_at, last.backup_id));
    Ok(request.reply(&BackupList { backups, next_cursor }))
}

fn read_cursor(cursor: &str) -> Result<(Timestamp, BackupId), ApiError> {
    let (at, id) = cursor.split_once('/').ok_or_else(bad_cursor)?;
    Ok((at.parse().map_err(|_| bad_cursor())?, id.parse().map_err(|_| bad_cursor())?))
}

async fn known(registry: &Registry, project: ProjectId, id: &BackupId) -> Result<Backup, ApiError> {
    let backup = registry.database.backup(project, id).await.map_err(from_database)?;
    backup.ok_or_else(|| no_such_backup(project, Some(id)))
}

fn entries(limit: Option<u32>) -> Result<u32, ApiError> {
    match limit.unwrap_or(ENTRIES) {
        limit @ 1..=MOST_ENTRIES => Ok(limit),
        other => {
            Err(ApiError::invalid_argument(format!("limit is to be from 1 to {MOST_ENTRIES}, not {other}")))
        }
    }
}

fn short(cursor: Option<String>) -> Result<Option<String>, ApiError> {
    match cursor {
        Some(cursor) if cursor.len() > MOST_CURSOR_BYTES => Err(bad_cursor()),
        cursor => Ok(cursor),
    }
}

/// Lists a directory of a backup.
pub(super) async fn ls(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let list: ListDirectory = request.decode()?;
    let limit = entries(list.limit)?;
    let depth = list.depth.unwrap_or(1);
    if !(1..=MOST_DEPTH).contains(&depth) {
        return Err(ApiError::invalid_argument(format!(
            "depth is to be from 1 to {MOST_DEPTH}, not {depth}; search with backup.find"
        )));
    }
    let after = short(list.cursor)?;
    let backup = known(&registry, id, &list.backup_id).await?;
    let query =
        BrowseQuery::List { backup_id: list.backup_id.clone(), path: list.path.clone(), depth, limit, after };
    match browsing::ask(&registry, id, &backup.backup_id, query).await {
        Ok(BrowseReply::Listed(listing)) => Ok(request.reply(&listing)),
        Ok(BrowseReply::Found { .. }) => Err(browsing::strange_answer()),
        Err(error) if error.code == ErrorCode::NotFound => Err(ApiError::not_found(format!(
            "the backup {} has no path {}",
            list.backup_id,
            list.path.map(|path| path.to_string()).unwrap_or_default()
        ))),
        Err(error) => Err(error),
    }
}

/// Finds paths in one backup, or in all of them from the newest on. A cursor is `<created_at>/<backup_id>/<after>`: in
/// that backup it goes on after that path, and where there is none, with the next older backup.
pub(super) async fn find(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let find: FindPaths = request.decode()?;
    let limit = entries(find.limit)?;
    if find.glob.is_empty() || find.glob.len() > MOST_GLOB_BYTES {
        return Err(ApiError::invalid_argument(format!("glob is to have 1 to {MOST_GLOB_BYTES} bytes")));
    }
    backup_repository::check_glob(&find.glob).map_err(ApiError::invalid_argument)?;
    let cursor = short(find.cursor)?;
    let cursor = match &cursor {
        Some(cursor) => {
            let (backup, after) = cursor.rsplit_once('/').ok_or_else(bad_cursor)?;
            let (at, backup) = read_cursor(backup)?;
            Some((at, backup, Some(after.to_owned()).filter(|after| !after.is_empty())))
        }
        None => None,
    };
    let mut backups = Vec::new();
    let mut after = None;
    if let Some((_, begun, Some(path))) = &cursor
        // It may have been deleted since the page before.
        && let Some(backup) = registry.database.backup(id, begun).await.map_err(from_database)?
    {
        backups.push(backup);
        after = Some(path.clone());
    }
    let mut more = false;
    match &find.backup_id {
        Some(wanted) if cursor.is_none() => backups.push(known(&registry, id, wanted).await?),
        Some(_) => {}
        None => {
            let place = registry.database.project_place(id).await.map_err(from_database)?;
            place.ok_or_else(|| ApiError::not_found(format!("there is no project {id}")))?;
            let older_than = cursor.map(|(at, backup, _)| (at, backup));
            let older = registry.database.list_backups(id, older_than, SEARCHED_BACKUPS);
            let older = older.await.map_err(from_database)?;
            more = older.len() == SEARCHED_BACKUPS as usize;
            backups.extend(older);
        }
    }
    let Some(first) = backups.first() else {
        return Ok(request.reply(&FoundPaths { matches: Vec::new(), next_cursor: None }));
    };
    let query = BrowseQuery::Find {
        glob: find.glob,
        backups: backups.iter().map(|backup| backup.backup_id.clone()).collect(),
        limit,
        after,
    };
    let BrowseReply::Found { matches, stopped } =
        browsing::ask(&registry, id, &first.backup_id, query).await?
    else {
        return Err(browsing::strange_answer());
    };
    let next_cursor = match stopped {
        Some((stopped_in, path)) => {
            let backup = backups.iter().find(|backup| backup.backup_id == stopped_in);
            let backup = backup.ok_or_else(browsing::strange_answer)?;
            Some(format!("{}/{}/{path}", backup.created_at, backup.backup_id))
        }
        None => backups
            .last()
            .filter(|_| more)
            .map(|backup| format!("{}/{}/", backup.created_at, backup.backup_id)),
    };
    Ok(request.reply(&FoundPaths { matches, next_cursor }))
}

/// Marks a backup, which from then on is neither listed nor restored, and creates the prune that forgets it. A crash in
/// between leaves a mark, which the next prune of the project takes up, or the same request.
pub(super) async fn delete(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let caller = Caller::of(&request)?;
    operations::admit(&registry, &caller)?;
    let wanted: GetBackup = request.decode()?;
    let backup = &wanted.backup_id;
    match registry.database.mark_backup_for_deletion(id, backup).await.map_err(from_database)? {
        DeletionMark::Marked => {}
        DeletionMark::Unknown => return Err(no_such_backup(id, Some(backup))),
        DeletionMark::Pinned => {
            return Err(ApiError::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "the backup {backup} is pinned, so that it is not deleted; backup.update takes the pin out"
                ),
            ));
        }
        DeletionMark::InUse(op_id) => {
            let message = format!(
                "the backup {backup} is in use by the operation {op_id}; wait for its end, or cancel it"
            );
            return Err(ApiError::new(ErrorCode::Conflict, message).with_detail("op_id", op_id.to_string()));
        }
    }
    // One operation for each backup: one that runs already may have asked what to forget before this mark was made.
    let key = format!("delete-{backup}");
    let kind = kinds::named("repo-prune");
    let created: CreatedOperation =
        operations::create_own(&registry, kind, Scope::Project(id), &json!({}), caller.name(), key).await?;
    Ok(request.reply(&created))
}

pub(super) async fn update(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let wanted: UpdateBackup = request.decode()?;
    if let Some(pinned) = wanted.pinned
        && !registry.database.pin_backup(id, &wanted.backup_id, pinned).await.map_err(from_database)?
    {
        return Err(no_such_backup(id, Some(&wanted.backup_id)));
    }
    let backup = known(&registry, id, &wanted.backup_id).await?;
    Ok(request.reply(&BackupReply { backup }))
}

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let wanted: GetBackup = request.decode()?;
    let backup = known(&registry, id, &wanted.backup_id).await?;
    Ok(request.reply(&BackupReply { backup }))
}
