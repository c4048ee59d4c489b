//! What time does to operations: leases end, operations expire, old ones are deleted. Several registries
//! may sweep at once; `SKIP LOCKED` gives each row to one of them.

use bus_messages::FinishError;
use domain_model::{BackOff, OperationEvent};

use super::row::OperationRow;
use super::transition::{self, Change, Ended};
use crate::error::During;
use crate::{Database, DatabaseError};

/// How often a lease may be lost before the operation is given up: what kills its workers each time is
/// not to go on doing so.
const MOST_LEASE_LOSSES: i32 = 10;

/// A lease that ends so many seconds later than one that is given now is of a time when the database's clock was ahead.
/// Registries may be set to leases of different lengths.
const TOO_LONG_S: f64 = 60.0;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Operations whose lease had ended.
    pub leases_lost: Vec<Ended>,
    /// Operations whose time was over.
    pub expired: Vec<Ended>,
    /// How many ended operations were deleted.
    pub deleted: Vec<domain_model::OperationId>,
}

/// Whether there is anything to do: most looks find nothing, and this is one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// For [`Database::make_operations_ready`].
    pub to_make_ready: bool,
    /// For [`Database::sweep_operations`].
    pub to_sweep: bool,
}

impl Database {
    /// Looks whether any operation's time has come; a lease lasts `lease_s` seconds.
    pub async fn due_operations(&self, lease_s: f64) -> Result<Due, DatabaseError> {
        sqlx::query_as!(
            Due,
            r#"SELECT
                EXISTS (SELECT 1 FROM long_running_operations
                    WHERE status = 'queued' AND NOT ready AND NOT waiting_for_children AND not_before <= now())
                    AS "to_make_ready!",
                EXISTS (SELECT 1 FROM long_running_operations WHERE status = 'running'
                    AND (lease_until < now() OR lease_until > now() + make_interval(secs => $1)))
                    OR EXISTS (SELECT 1 FROM long_running_operations WHERE expires_at < now())
                    AS "to_sweep!""#,
            lease_s + TOO_LONG_S
        )
        .fetch_one(&self.pool)
        .await
        .during("look for operations whose time has come")
    }

    /// Does what is due, at most `limit` of each; a lease lasts `lease_s` seconds. `jitter` is a random share in 0.0..=1.0.
    pub async fn sweep_operations(
        &self,
        limit: i64,
        lease_s: f64,
        jitter: f64,
    ) -> Result<Swept, DatabaseError> {
        self.shorten_leases(lease_s).await?;
        Ok(Swept {
            leases_lost: self.take_lost_leases(limit, jitter).await?,
            expired: self.expire(limit).await?,
            deleted: self.delete_retained(limit).await?,
        })
    }

    /// After the clock was set back: what a worker has left would be nobody's until the clock is where it was. Who is
    /// alive renews in time.
    async fn shorten_leases(&self, lease_s: f64) -> Result<(), DatabaseError> {
        sqlx::query!(
            "UPDATE long_running_operations SET lease_until = now() + make_interval(secs => $1)
             WHERE status = 'running' AND lease_until > now() + make_interval(secs => $2)",
            lease_s,
            lease_s + TOO_LONG_S
        )
        .execute(&self.pool)
        .await
        .during("shorten leases of a clock that was ahead")
        .map(drop)
    }

    async fn take_lost_leases(&self, limit: i64, jitter: f64) -> Result<Vec<Ended>, DatabaseError> {
        const DURING: &str = "take back lost leases";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let rows = sqlx::query_as!(
            OperationRow,
            "SELECT * FROM long_running_operations WHERE status = 'running' AND lease_until < now()
             ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED",
            limit
        )
        .fetch_all(&mut *transaction)
        .await
        .during(DURING)?;
        let mut lost = Vec::with_capacity(rows.len());
        for row in rows {
            let losses = row.lease_losses + 1;
            let attempts_left = losses < MOST_LEASE_LOSSES;
            let cancel_requested = row.cancel_requested_at.is_some();
            let worker = row.owner.as_deref().unwrap_or("its worker");
            let error = FinishError {
                code: "lease_lost".to_owned(),
                message: format!("{worker} did not renew its lease"),
                retryable: attempts_left,
            };
            // The first loss is most often a restart: go on at once. Then with back-off.
            let wait_s = match u32::try_from(losses - 1) {
                Ok(earlier) if earlier > 0 => BackOff::OPERATION.wait(earlier, jitter).as_secs_f64(),
                _ => 0.0,
            };
            let change = Change {
                event: OperationEvent::LeaseLost { attempts_left, cancel_requested },
                result: None,
                message: error.message.clone(),
                error: Some(&error),
                checkpoint: None,
                summary: None,
                wait_s,
            };
            lost.push(transition::apply(&mut transaction, &row, change).await?);
        }
        transaction.commit().await.during(DURING)?;
        Ok(lost)
    }

    async fn expire(&self, limit: i64) -> Result<Vec<Ended>, DatabaseError> {
        const DURING: &str = "expire operations";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let rows = sqlx::query_as!(
            OperationRow,
            "SELECT * FROM long_running_operations WHERE status IN ('queued', 'running') AND expires_at < now()
             ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED",
            limit
        )
        .fetch_all(&mut *transaction)
        .await
        .during(DURING)?;
        let mut expired = Vec::with_capacity(rows.len());
        for row in rows {
            let change = Change {
                event: OperationEvent::TimeOver,
                result: None,
                error: None,
                checkpoint: None,
                summary: None,
                wait_s: 0.0,
                message: "expired: its time was over before it ended".to_owned(),
            };
            let ended = transition::apply(&mut transaction, &row, change).await?;
            // Kept for a day more, so that whoever asks learns what became of it.
            sqlx::query!(
                "UPDATE long_running_operations SET expires_at = now() + interval '1 day' WHERE id = $1",
                row.id
            )
            .execute(&mut *transaction)
            .await
            .during(DURING)?;
            expired.push(ended);
        }
        transaction.commit().await.during(DURING)?;
        Ok(expired)
    }

    async fn delete_retained(&self, limit: i64) -> Result<Vec<domain_model::OperationId>, DatabaseError> {
        let ids = sqlx::query_scalar!(
            "WITH deleted AS (
                DELETE FROM long_running_operations WHERE id = ANY (ARRAY(
                    SELECT id FROM long_running_operations AS old
                    WHERE status NOT IN ('queued', 'running') AND expires_at < now()
                        AND NOT EXISTS (SELECT 1 FROM long_running_operations AS child WHERE child.parent_id = old.id)
                    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
                RETURNING *)
             INSERT INTO outbox (op_id, subject, purge)
                SELECT id, operation_subject(scope_type, scope_id, id), true FROM deleted
             RETURNING op_id",
            limit
        )
        .fetch_all(&self.pool)
        .await
        .during("delete operations that have ended")?;
        Ok(ids.into_iter().map(domain_model::OperationId::from).collect())
    }
}
