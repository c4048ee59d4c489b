use std::collections::HashSet;

use bus_messages::{Operation, ProgressSummary, kinds};
use domain_model::OperationId;
use serde_json::Value;

use super::LeaseFence;
use super::row::OperationRow;
use crate::error::During;
use crate::{Database, DatabaseError};

/// The heartbeat of one operation.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// Whose.
    pub fence: LeaseFence,
    /// Counts the heartbeats of an attempt: an earlier one changes nothing but the lease. Always news where `None`.
    pub number: Option<u64>,
    /// The latest progress, if there is news.
    pub summary: Option<ProgressSummary>,
    /// What a later attempt goes on from, at most 64 KiB.
    pub checkpoint: Option<Value>,
    /// Whether it is sent for the sake of events: with nothing else in it, a lease that was given a moment ago is left as it
    /// is, and nothing is written.
    pub for_events: bool,
}

/// What became of a heartbeat; none is returned for a lost operation.
#[derive(Debug, Clone, PartialEq)]
pub struct HeartbeatOutcome {
    /// The operation as it is now.
    pub op: Operation,
    /// Whether anything but the lease changed, so that the summary is to be published.
    pub changed: bool,
    /// Seconds that the lease lasts from now at least.
    pub lease_s: f64,
}

/// What gives way does so as often at most: it is to come to its end some day.
const MOST_TIMES_IN_THE_WAY: i32 = 3;

/// A lease of which this share is left was given a moment ago.
const FRESH: f64 = 0.9;

impl Database {
    /// Of some running operations that give way, those for whose end another one waits at the same worker, which does not give
    /// way and is as urgent at least.
    pub async fn operations_in_the_way(
        &self,
        running: &[OperationId],
    ) -> Result<HashSet<OperationId>, DatabaseError> {
        let running: Vec<_> = running.iter().map(|id| id.as_uuid()).collect();
        let others_that_give_way: Vec<String> =
            kinds::ALL.iter().filter(|kind| kind.gives_way).map(|kind| kind.name.to_owned()).collect();
        let ids = sqlx::query_scalar!(
            "SELECT running.id FROM long_running_operations AS running
             WHERE running.id = ANY ($1) AND running.status = 'running'
                -- Attempts that neither failed nor lost their lease were handed back.
                AND running.attempt - 1 - running.failures - running.lease_losses < $3
                AND EXISTS (SELECT 1 FROM long_running_operations AS waiting
                    WHERE waiting.exclusive_key = running.exclusive_key AND waiting.status = 'queued' AND waiting.ready
                        AND waiting.routing = running.routing AND waiting.priority >= running.priority
                        AND waiting.kind <> ALL ($2))",
            &running,
            &others_that_give_way,
            MOST_TIMES_IN_THE_WAY,
        )
        .fetch_all(&self.pool)
        .await
        .during("find operations that are in the way")?;
        Ok(ids.into_iter().map(OperationId::from).collect())
    }

    /// Renews the leases of a worker's operations, for `lease_s` seconds from now by the database's clock. What is missing
    /// from the answer is lost. Who tells of ten events a second has its lease written every few seconds, not ten times in each.
    pub async fn heartbeat_operations(
        &self,
        heartbeats: &[Heartbeat],
        lease_s: f64,
    ) -> Result<Vec<HeartbeatOutcome>, DatabaseError> {
        let only_events = |beat: &&Heartbeat| {
            let Heartbeat { summary, checkpoint, for_events, .. } = beat;
            *for_events && summary.is_none() && checkpoint.is_none()
        };
        let fences: Vec<LeaseFence> = heartbeats.iter().filter(only_events).map(|beat| beat.fence).collect();
        let lease_left_s = FRESH * lease_s;
        let fresh = match fences.as_slice() {
            [] => Vec::new(),
            fences => self.leased_operations(fences, Some(lease_left_s)).await?,
        };
        let left_alone: HashSet<_> = fresh.iter().map(|op| op.op_id).collect();
        let mut outcomes: Vec<_> = fresh
            .into_iter()
            .map(|op| HeartbeatOutcome { op, changed: false, lease_s: lease_left_s })
            .collect();
        let due: Vec<&Heartbeat> = heartbeats
            .iter()
            .filter(|beat| !(only_events(beat) && left_alone.contains(&beat.fence.op_id)))
            .collect();
        if !due.is_empty() {
            outcomes.extend(self.renew(&due, lease_s).await?);
        }
        Ok(outcomes)
    }

    /// One statement.
    async fn renew(
        &self,
        heartbeats: &[&Heartbeat],
        lease_s: f64,
    ) -> Result<Vec<HeartbeatOutcome>, DatabaseError> {
        let ids: Vec<_> = heartbeats.iter().map(|beat| beat.fence.op_id.as_uuid()).collect();
        let attempts: Vec<_> =
            heartbeats.iter().map(|beat| i32::try_from(beat.fence.attempt).unwrap_or(-1)).collect();
        let leases: Vec<_> = heartbeats.iter().map(|beat| beat.fence.lease_id.as_uuid()).collect();
        let numbers: Vec<Option<i64>> = heartbeats
            .iter()
            .map(|beat| beat.number.map(|number| i64::try_from(number).unwrap_or(i64::MAX)))
            .collect();
        let to_json = |summary: &ProgressSummary| serde_json::to_value(summary).unwrap_or(Value::Null);
        let summaries: Vec<Option<Value>> =
            heartbeats.iter().map(|beat| beat.summary.as_ref().map(to_json)).collect();
        let checkpoints: Vec<Option<Value>> = heartbeats.iter().map(|beat| beat.checkpoint.clone()).collect();
        let changed: HashSet<_> =
            heartbeats.iter().filter(|beat| beat.summary.is_some()).map(|beat| beat.fence.op_id).collect();
        let rows = sqlx::query_as!(
            OperationRow,
            "UPDATE long_running_operations AS operation SET
                heartbeat_at = now(),
                lease_until = now() + make_interval(secs => $6),
                heartbeats = greatest(operation.heartbeats, beat.number),
                progress_summary =
                    CASE WHEN beat.is_news THEN coalesce(beat.summary, operation.progress_summary)
                    ELSE operation.progress_summary END,
                checkpoint =
                    CASE WHEN beat.is_news THEN coalesce(beat.checkpoint, operation.checkpoint)
                    ELSE operation.checkpoint END,
                updated_at = CASE WHEN beat.summary IS NULL THEN operation.updated_at ELSE now() END,
                rev = operation.rev + CASE WHEN beat.summary IS NULL THEN 0 ELSE 1 END
             FROM (
                SELECT sent.*, coalesce(sent.number > row.heartbeats, true) AS is_news
                FROM unnest($1::uuid[], $2::integer[], $3::uuid[], $4::jsonb[], $5::jsonb[], $7::bigint[])
                    AS sent (id, attempt, lease_id, summary, checkpoint, number)
                JOIN long_running_operations AS row ON row.id = sent.id
                ORDER BY row.id FOR UPDATE OF row) AS beat
             WHERE operation.id = beat.id AND operation.attempt = beat.attempt
                AND operation.lease_id = beat.lease_id AND operation.status = 'running'
             RETURNING operation.*",
            &ids,
            &attempts,
            &leases,
            &summaries as &[Option<Value>],
            &checkpoints as &[Option<Value>],
            lease_s,
            &numbers as &[Option<i64>],
        )
        .fetch_all(&self.pool)
        .await
        .during("renew leases")?;
        rows.into_iter()
            .map(|row| {
                let op = Operation::try_from(row)?;
                let changed = changed.contains(&op.op_id);
                Ok(HeartbeatOutcome { op, changed, lease_s })
            })
            .collect()
    }
}
