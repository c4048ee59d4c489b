use bus_messages::Operation;
use domain_model::{LeaseId, OperationKind, Routing, Timestamp};
use serde_json::Value;
use uuid::Uuid;

use super::row::OperationRow;
use crate::error::During;
use crate::{Database, DatabaseError, outbox};

/// How often a claim may collide with others before it is left to the worker's next one.
const MOST_TURNS: u32 = 5;

/// What a worker wants to work on.
#[derive(Debug, Clone)]
pub struct ClaimWanted {
    /// Who calls, by its credentials.
    pub caller: Routing,
    /// Names the process.
    pub worker_id: String,
    /// How many operations of each kind it could start.
    pub kinds: Vec<(OperationKind, u32)>,
    /// How many in all.
    pub max: u32,
    /// Seconds that a lease lasts.
    pub lease_s: f64,
}

/// A lease that was given.
#[derive(Debug, Clone, PartialEq)]
pub struct LeasedOperation {
    /// The operation.
    pub op: Operation,
    /// The lease.
    pub lease_id: LeaseId,
    /// When it ends.
    pub lease_until: Timestamp,
    /// What an earlier attempt left.
    pub checkpoint: Option<Value>,
}

impl Database {
    /// Leases operations to a worker: those of its kinds and routing whose time has come, urgent ones
    /// first, none whose exclusive key is in use.
    pub async fn claim_operations(
        &self,
        wanted: &ClaimWanted,
    ) -> Result<Vec<LeasedOperation>, DatabaseError> {
        let mut leased = Vec::new();
        for (kind, slots) in &wanted.kinds {
            let taken = u32::try_from(leased.len()).unwrap_or(u32::MAX);
            let free = (*slots).min(wanted.max.saturating_sub(taken));
            if free == 0 {
                continue;
            }
            for _ in 0..MOST_TURNS {
                match self.claim_kind(wanted, kind, free).await {
                    Ok(more) => {
                        leased.extend(more);
                        break;
                    }
                    // An operation of the same exclusive key, of another kind or on another host, was claimed at
                    // the same moment. The next look sees that it runs.
                    Err(error) if error.constraint() == Some("operations_one_running_per_exclusive_key") => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(leased)
    }

    async fn claim_kind(
        &self,
        wanted: &ClaimWanted,
        kind: &OperationKind,
        limit: u32,
    ) -> Result<Vec<LeasedOperation>, DatabaseError> {
        const DURING: &str = "claim operations";
        let routings = [wanted.caller.to_string(), Routing::Any.to_string()];
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let rows = sqlx::query_as!(
            OperationRow,
            "UPDATE long_running_operations SET
                status = 'running',
                attempt = attempt + 1,
                owner = $4,
                lease_id = gen_random_uuid(),
                lease_until = now() + make_interval(secs => $5),
                heartbeat_at = now(),
                started_at = coalesce(started_at, now()),
                progress_summary = NULL,
                updated_at = now(),
                rev = rev + 1
             WHERE id = ANY (ARRAY(
                SELECT id FROM long_running_operations AS candidate
                WHERE status = 'queued' AND NOT waiting_for_children
                    AND kind = $1 AND routing = ANY ($2) AND not_before <= now() AND expires_at > now()
                    AND (exclusive_key IS NULL OR parent_id IS NOT NULL OR (
                        NOT EXISTS (
                            SELECT 1 FROM long_running_operations AS other
                            WHERE other.exclusive_key = candidate.exclusive_key AND other.status = 'running'
                                AND other.parent_id IS NULL)
                        -- Of several in one queue the first: so no claim takes two, nor two claims one each.
                        AND NOT EXISTS (
                            SELECT 1 FROM long_running_operations AS first
                            WHERE first.exclusive_key = candidate.exclusive_key AND first.status = 'queued'
                                AND first.kind = candidate.kind AND first.routing = candidate.routing
                                AND first.parent_id IS NULL AND NOT first.waiting_for_children
                                AND first.not_before <= now() AND first.expires_at > now()
                                AND (first.priority > candidate.priority
                                    OR (first.priority = candidate.priority
                                        AND (first.not_before, first.id) < (candidate.not_before, candidate.id))))))
                ORDER BY priority DESC, not_before, id
                LIMIT $3
                FOR UPDATE SKIP LOCKED))
             RETURNING *",
            kind.as_str(),
            &routings[..],
            i64::from(limit),
            wanted.worker_id,
            wanted.lease_s,
        )
        .fetch_all(&mut *transaction)
        .await
        .during(DURING)?;
        let mut leased = Vec::with_capacity(rows.len());
        for row in rows {
            outbox::add(&mut transaction, row.id, &row.subject()?, None, false).await?;
            leased.push(lease_of(row)?);
        }
        transaction.commit().await.during(DURING)?;
        Ok(leased)
    }
}

fn lease_of(row: OperationRow) -> Result<LeasedOperation, DatabaseError> {
    let missing = || DatabaseError::row("long_running_operations.lease_id", "a running operation has none");
    let lease_id: Uuid = row.lease_id.ok_or_else(missing)?;
    let lease_until = row.lease_until.ok_or_else(missing)?;
    let checkpoint = row.checkpoint.clone();
    Ok(LeasedOperation {
        op: row.try_into()?,
        lease_id: lease_id.into(),
        lease_until: lease_until.into(),
        checkpoint,
    })
}
