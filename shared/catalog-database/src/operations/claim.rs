use std::collections::HashSet;

use bus_messages::Operation;
use domain_model::{LeaseId, OperationKind, Routing, Timestamp};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::row::OperationRow;
use crate::error::During;
use crate::{Database, DatabaseError, project_states};

const DURING: &str = "claim operations";

/// How often a claim may collide with others before it is left to the worker's next one.
const MOST_TURNS: u32 = 5;

/// What a worker wants to work on.
#[derive(Debug, Clone)]
pub struct ClaimWanted {
    /// Who calls, by its credentials.
    pub caller: Routing,
    /// Names the process.
    pub worker_id: String,
    /// The kinds that it could start operations of.
    pub kinds: Vec<KindWanted>,
    /// How many in all.
    pub max: u32,
    /// Seconds that a lease lasts.
    pub lease_s: f64,
}

/// How much of one kind a worker wants, and how much there may be.
#[derive(Debug, Clone)]
pub struct KindWanted {
    /// The kind.
    pub kind: OperationKind,
    /// How many operations the worker could start.
    pub slots: u32,
    /// What may run at the same time.
    pub caps: Caps,
}

/// How many operations of a kind may run at the same time; no limit where `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// Everywhere together.
    pub in_all: Option<u32>,
    /// On one host, or in the hub, however many workers it has.
    pub per_caller: Option<u32>,
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
    /// Leases operations to a worker: those of its kinds and routing that are ready, urgent ones first, none
    /// whose exclusive key is in use, no more than the caps allow, and among those of one priority the accounts
    /// in turn: first that which runs fewest at this caller.
    pub async fn claim_operations(
        &self,
        wanted: &ClaimWanted,
    ) -> Result<Vec<LeasedOperation>, DatabaseError> {
        let mut leased = Vec::new();
        if wanted.max == 0 {
            return Ok(leased);
        }
        let ready = match wanted.kinds.as_slice() {
            [] | [_] => None,
            // Most often there is nothing, or something of one kind, and asking for each costs more than looking.
            kinds => Some(self.kinds_with_something_ready(wanted.caller, kinds).await?),
        };
        for kind in &wanted.kinds {
            if ready.as_ref().is_some_and(|ready| !ready.contains(kind.kind.as_str())) {
                continue;
            }
            let taken = u32::try_from(leased.len()).unwrap_or(u32::MAX);
            let free = kind.slots.min(wanted.max.saturating_sub(taken));
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
                    // What is leased already would be nobody's until its lease is over.
                    Err(error) if !leased.is_empty() => {
                        tracing::warn!(
                            op.kind = %kind.kind, error = &error as &dyn std::error::Error,
                            "could not look for operations of this kind; those of others are leased"
                        );
                        return Ok(leased);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(leased)
    }

    /// Those kinds of which a worker could claim something, or of which something waits for a cap or for its key.
    async fn kinds_with_something_ready(
        &self,
        caller: Routing,
        kinds: &[KindWanted],
    ) -> Result<HashSet<String>, DatabaseError> {
        let routings = [caller.to_string(), Routing::Any.to_string()];
        let kinds: Vec<String> = kinds.iter().map(|kind| kind.kind.to_string()).collect();
        let ready = sqlx::query_scalar!(
            "SELECT DISTINCT wanted.kind AS \"kind!\"
             FROM unnest($1::text[]) AS queue (routing) CROSS JOIN unnest($2::text[]) AS wanted (kind)
             -- As in `lease`, by the index whatever the planner believes.
             WHERE (SELECT account_id FROM long_running_operations
                WHERE ready AND routing = queue.routing AND kind = wanted.kind ORDER BY account_id LIMIT 1) IS NOT NULL",
            &routings as &[String],
            &kinds
        )
        .fetch_all(&self.pool)
        .await
        .during(DURING)?;
        Ok(ready.into_iter().collect())
    }

    async fn claim_kind(
        &self,
        wanted: &ClaimWanted,
        KindWanted { kind, caps, .. }: &KindWanted,
        limit: u32,
    ) -> Result<Vec<LeasedOperation>, DatabaseError> {
        let caller = wanted.caller.to_string();
        // One statement is a transaction by itself.
        let rows = if *caps == Caps::default() && !project_states::depend_on(kind.as_str()) {
            let mut connection = self.pool.acquire().await.during(DURING)?;
            lease(&mut connection, wanted, kind, &caller, limit).await?
        } else {
            let mut transaction = self.pool.begin().await.during(DURING)?;
            let rows = match within_caps(&mut transaction, kind, &caller, *caps, limit).await? {
                0 => Vec::new(),
                limit => lease(&mut transaction, wanted, kind, &caller, limit).await?,
            };
            project_states::note(&mut transaction, &rows).await?;
            transaction.commit().await.during(DURING)?;
            rows
        };
        rows.into_iter().map(lease_of).collect()
    }

    /// Makes ready what has come due, at most `limit`, and returns whose workers should look.
    pub async fn make_operations_ready(&self, limit: i64) -> Result<Vec<Routing>, DatabaseError> {
        const DURING: &str = "make operations ready";
        let routings = sqlx::query_scalar!(
            "WITH due AS (
                UPDATE long_running_operations SET ready = true WHERE id = ANY (ARRAY(
                    SELECT id FROM long_running_operations
                    WHERE status = 'queued' AND NOT ready AND NOT waiting_for_children AND not_before <= now()
                    ORDER BY not_before LIMIT $1 FOR UPDATE SKIP LOCKED))
                RETURNING routing)
             SELECT DISTINCT routing AS \"routing!\" FROM due",
            limit
        )
        .fetch_all(&self.pool)
        .await
        .during(DURING)?;
        let read = |routing: String| {
            routing.parse().map_err(|error| DatabaseError::row("long_running_operations.routing", error))
        };
        routings.into_iter().map(read).collect()
    }
}

/// One statement, which also tells the outbox. It is written for a planner that knows nothing of how many rows are
/// ready: that changes faster than statistics do, and a plan that looks through them for each candidate takes a minute
/// where a queue is long. So what is found is materialised, and taken by primary key only.
async fn lease(
    connection: &mut PgConnection,
    wanted: &ClaimWanted,
    kind: &OperationKind,
    caller: &str,
    limit: u32,
) -> Result<Vec<OperationRow>, DatabaseError> {
    let routings = [caller.to_owned(), Routing::Any.to_string()];
    sqlx::query_as!(
        OperationRow,
        "WITH RECURSIVE
         -- The accounts that have something ready, hopping from one to the next in the index: from a random place
         -- and round to it again, since no more than a hundred are looked at. OFFSET 0 has each place looked for once, and
         -- not once for each that names it: what was claimed before lies in the index until it is vacuumed, and to find the
         -- first that is ready is to walk over all of it.
         hop AS (
            SELECT queue.routing, here.account_id, here.account_id AS began, here.account_id <= $7 AS round, 1 AS hops
            FROM unnest($2::text[]) AS queue (routing) CROSS JOIN LATERAL (SELECT coalesce(
                (SELECT account_id FROM long_running_operations
                    WHERE ready AND routing = queue.routing AND kind = $1 AND account_id > $7
                    ORDER BY account_id LIMIT 1),
                (SELECT account_id FROM long_running_operations
                    WHERE ready AND routing = queue.routing AND kind = $1
                    ORDER BY account_id LIMIT 1)) AS account_id OFFSET 0) AS here
            WHERE here.account_id IS NOT NULL
            UNION ALL
            SELECT hop.routing, next.account_id, hop.began, hop.round OR next.account_id < hop.account_id, hop.hops + 1
            FROM hop CROSS JOIN LATERAL (SELECT coalesce(
                (SELECT account_id FROM long_running_operations
                    WHERE ready AND routing = hop.routing AND kind = $1 AND account_id > hop.account_id
                    ORDER BY account_id LIMIT 1),
                CASE WHEN NOT hop.round THEN (
                    SELECT account_id FROM long_running_operations
                    WHERE ready AND routing = hop.routing AND kind = $1
                    ORDER BY account_id LIMIT 1) END) AS account_id OFFSET 0) AS next
            WHERE next.account_id IS NOT NULL AND next.account_id <> hop.began AND hop.hops < 100),
         account AS MATERIALIZED (
            SELECT hop.routing, hop.account_id, (
                SELECT count(*) FROM long_running_operations
                WHERE status = 'running' AND kind = $1 AND claimed_by = $6 AND account_id = hop.account_id) AS running
            FROM hop),
         -- What each of them would have next.
         candidate AS MATERIALIZED (
            SELECT head.id, head.priority, head.not_before,
                account.running + row_number() OVER (
                    PARTITION BY account.account_id ORDER BY head.priority DESC, head.not_before, head.id) AS turn
            FROM account CROSS JOIN LATERAL (
                SELECT id, priority, not_before FROM long_running_operations AS operation
                WHERE ready AND routing = account.routing AND kind = $1 AND account_id = account.account_id
                    AND expires_at > now()
                    AND (exclusive_key IS NULL OR (
                        -- Not with EXISTS, for which a planner that expects many candidates reads all that run.
                        (SELECT other.id FROM long_running_operations AS other
                            WHERE other.exclusive_key = operation.exclusive_key AND other.status = 'running'
                            LIMIT 1) IS NULL
                        -- Its worker goes on until it hears that the time was over. What ends later than a lease given now is
                        -- of a clock that was ahead.
                        AND (SELECT other.id FROM long_running_operations AS other
                            WHERE other.exclusive_key = operation.exclusive_key AND other.status = 'expired'
                                AND other.lease_until BETWEEN now() AND now() + make_interval(secs => $5)
                            LIMIT 1) IS NULL
                        -- Of several in one queue the first: so no claim takes two, nor two claims one each.
                        AND NOT EXISTS (
                            SELECT 1 FROM long_running_operations AS first
                            WHERE first.exclusive_key = operation.exclusive_key AND first.status = 'queued'
                                AND first.kind = operation.kind AND first.routing = operation.routing
                                AND first.ready::integer = 1 AND first.expires_at > now()
                                AND (first.priority > operation.priority
                                    OR (first.priority = operation.priority
                                        AND (first.not_before, first.id) < (operation.not_before, operation.id))))))
                ORDER BY priority DESC, not_before, id
                -- Some more than wanted, for those that another claim has its hand on.
                LIMIT $3::bigint + 8) AS head),
         claimed AS (
            UPDATE long_running_operations SET
                status = 'running',
                ready = false,
                attempt = attempt + 1,
                owner = $4,
                claimed_by = $6,
                lease_id = gen_random_uuid(),
                lease_until = now() + make_interval(secs => $5),
                heartbeat_at = now(),
                started_at = coalesce(started_at, now()),
                progress_summary = NULL,
                heartbeats = 0,
                updated_at = now(),
                rev = rev + 1
            WHERE id = ANY (ARRAY(
                SELECT operation.id
                FROM unnest(ARRAY(
                        SELECT id FROM candidate ORDER BY priority DESC, turn, not_before, id LIMIT $3::bigint + 8))
                    WITH ORDINALITY AS next (id, place)
                    JOIN long_running_operations AS operation ON operation.id = next.id
                -- Not plainly `ready`, which would be taken for a reason to read all that are.
                WHERE operation.ready::integer = 1
                ORDER BY next.place
                LIMIT $3
                FOR UPDATE OF operation SKIP LOCKED))
            RETURNING *),
         told AS (
            INSERT INTO outbox (op_id, subject) SELECT id, operation_subject(scope_type, scope_id, id) FROM claimed)
         SELECT * FROM claimed",
        kind.as_str(),
        &routings[..],
        i64::from(limit),
        wanted.worker_id,
        wanted.lease_s,
        caller,
        Uuid::new_v4(),
    )
    .fetch_all(connection)
    .await
    .during(DURING)
}

/// How many more of `wanted` the caps allow. Counting and claiming are one step for all who claim under the same
/// cap: the locks are held until the transaction ends.
async fn within_caps(
    connection: &mut PgConnection,
    kind: &OperationKind,
    caller: &str,
    caps: Caps,
    wanted: u32,
) -> Result<u32, DatabaseError> {
    const DURING: &str = "count what runs";
    let mut allowed = wanted;
    // Always in this order, so that nobody waits for somebody who waits for them.
    for (cap, claimed_by) in [(caps.in_all, None), (caps.per_caller, Some(caller))] {
        let Some(cap) = cap else { continue };
        let name = format!("claim {kind} {}", claimed_by.unwrap_or("everywhere"));
        sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", name)
            .execute(&mut *connection)
            .await
            .during(DURING)?;
        let running = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM long_running_operations
               WHERE status = 'running' AND kind = $1 AND ($2::text IS NULL OR claimed_by = $2)"#,
            kind.as_str(),
            claimed_by,
        )
        .fetch_one(&mut *connection)
        .await
        .during(DURING)?;
        allowed = allowed.min(cap.saturating_sub(u32::try_from(running).unwrap_or(u32::MAX)));
    }
    Ok(allowed)
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
