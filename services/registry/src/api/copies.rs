//! `copy.*`.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{ApiError, CancelCopies, CopyList, ListCopies, ProjectCopy};
use catalog_database::CopiesToCancel;

use super::{bad_cursor, page_size, project};
use crate::errors::from_database;
use crate::registry::Registry;
use crate::work::json_length;

/// Of one answer: a message has at most 1 MiB.
const MOST_BYTES: usize = 600 * 1024;

pub(super) async fn list(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let list: ListCopies = request.decode()?;
    let limit = page_size(list.limit)?;
    let cursor = list.cursor.as_deref().map(str::parse).transpose().map_err(|_| bad_cursor())?;
    let copies = registry.database.list_copies(id, list.status, list.op_id, cursor, limit).await;
    let mut copies = copies.map_err(from_database)?;
    let more = as_many_as_fit(&mut copies) || copies.len() == limit as usize;
    let next_cursor = copies.last().filter(|_| more).map(|last| last.copy_id.to_string());
    Ok(request.reply(&CopyList { copies, next_cursor }))
}

/// Leaves those out that one answer cannot carry: whether there were such.
fn as_many_as_fit(copies: &mut Vec<ProjectCopy>) -> bool {
    let mut room = MOST_BYTES;
    let fitting = copies.iter().take_while(|copy| {
        let bytes = json_length(copy);
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    let fitting = fitting.count();
    let left_out = copies.len() > fitting;
    copies.truncate(fitting);
    left_out
}

/// Those that nobody works on end at once; who applies one is told, and may be past it.
pub(super) async fn cancel(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = project(&request)?;
    let which = match request.decode()? {
        CancelCopies { copy_id: Some(copy), op_id: None, all: false } => CopiesToCancel::One(copy),
        CancelCopies { copy_id: None, op_id: Some(op_id), all: false } => CopiesToCancel::OfOperation(op_id),
        CancelCopies { copy_id: None, op_id: None, all: true } => CopiesToCancel::All,
        _ => {
            return Err(ApiError::invalid_argument(
                "say which copies: one copy_id, one op_id, or \"all\": true",
            ));
        }
    };
    let (mut copies, canceled) = registry.database.cancel_copies(id, which).await.map_err(from_database)?;
    if let (CopiesToCancel::One(copy), true) = (which, copies.is_empty()) {
        return Err(ApiError::not_found(format!(
            "no copy {copy} is pending here; api.v1.project-{id}.copy.list shows what became of it"
        )));
    }
    for canceled in &canceled {
        registry.changed(canceled);
    }
    as_many_as_fit(&mut copies);
    Ok(request.reply(&CopyList { copies, next_cursor: None }))
}
