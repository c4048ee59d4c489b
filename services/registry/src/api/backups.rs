//! `backup.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, BackupList, BackupReply, GetBackup, ListRequest};
use domain_model::{BackupId, Timestamp};

use super::{bad_cursor, page_size, project};
use crate::errors::from_database;
use crate::registry::Registry;
use crate::repositories::no_such_backup;

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

pub(super) async fn get(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let wanted: GetBackup = request.decode()?;
    let backup = registry.database.backup(id, &wanted.backup_id).await.map_err(from_database)?;
    let backup = backup.ok_or_else(|| no_such_backup(id, Some(&wanted.backup_id)))?;
    Ok(request.reply(&BackupReply { backup }))
}
