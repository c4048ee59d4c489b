//! What the holder of an operation asks for besides.

use std::sync::Arc;

use bus_client::{IncomingRequest, Reply};
use bus_messages::{
    ApiError, ErrorCode, RepositoryReply, RepositoryRequest, RetentionReply, RetentionRequest,
};
use catalog_database::LeaseFence;
use domain_model::Scope;

use super::leased;
use crate::errors::from_database;
use crate::registry::Registry;

/// The registry names no more than a thousand at a time.
const MOST_GONE: usize = 1000;

pub(crate) async fn repository(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let wanted: RepositoryRequest = request.decode()?;
    let fence = LeaseFence { op_id: wanted.op_id, attempt: wanted.attempt, lease_id: wanted.lease_id };
    let op = leased(&registry, &fence).await?;
    let until = op.lease_until.unwrap_or(op.updated_at);
    let grant = registry.repositories.prepare(&op, until).await?;
    Ok(request.reply(&RepositoryReply { grant }))
}

/// What a prune is to forget. The worker asks before it deletes, and again with what is gone, until there is no more:
/// what the policy drops is marked here, in the same transaction that says so.
pub(crate) async fn retention(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let wanted: RetentionRequest = request.decode()?;
    if wanted.gone.len().max(wanted.bad.len()) > MOST_GONE {
        return Err(ApiError::invalid_argument(format!(
            "at most {MOST_GONE} backups can be gone or bad at once"
        )));
    }
    let fence = LeaseFence { op_id: wanted.op_id, attempt: wanted.attempt, lease_id: wanted.lease_id };
    let op = leased(&registry, &fence).await?;
    let (Scope::Project(project), "repo-prune") = (op.scope, op.kind.as_str()) else {
        return Err(ApiError::new(
            ErrorCode::FailedPrecondition,
            "only a repo-prune of a project forgets backups",
        ));
    };
    let standing = registry.database.backup_standing(project).await.map_err(from_database)?;
    let policy = standing.map(|standing| standing.policy).unwrap_or_default().over(&registry.backups).keep;
    let round = registry.database.retention_round(project, op.op_id, &wanted.gone, &wanted.bad, policy);
    let round = round.await.map_err(from_database)?;
    for backup in &wanted.bad {
        registry.metrics.bad_backups.inc();
        tracing::error!(op.id = %op.op_id, project.id = %project, backup.id = %backup, "the snapshot of a backup is lost");
    }
    tracing::info!(
        op.id = %op.op_id, gone = wanted.gone.len(), forget = round.forget.len(), keep = round.keep.len(),
        grace_s = round.grace_s, "decided what a prune forgets"
    );
    Ok(request.reply(&RetentionReply {
        keep: round.keep,
        forget: round.forget,
        spare: round.spare,
        unfinished: round.unfinished,
        grace_s: round.grace_s,
    }))
}
