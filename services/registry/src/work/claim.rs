//! Leases: what a worker may work on next, with what it has finished.

use std::sync::Arc;
use std::time::Instant;

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds;
use bus_messages::{ApiError, ClaimReply, ClaimRequest, FinishReply, Lease, Outcome};
use catalog_database::{ClaimWanted, FinishOutcome, Finished, KindWanted, LeaseFence, LeasedOperation};
use domain_model::Routing;
use futures::future::{join_all, try_join_all};

use super::finish::finish_all;
use super::{MOST_OPERATIONS, caller, json_length, not_too_many};
use crate::errors::from_database;
use crate::registry::Registry;

const MOST_KINDS: usize = 64;
/// The leases of one answer, in bytes as JSON: a message has at most 1 MiB, and what an answer cannot carry would be
/// nobody's until its lease is over.
const MOST_LEASE_BYTES: usize = 600 * 1024;
/// So often a `project-start` is put off for copies that come first, with growing pauses: a minute in all.
const MOST_STARTS_PUT_OFF: u32 = 10;
/// An operation that waits for another one's turn is looked at again after this many seconds at most.
const MOST_PUT_OFF_S: f64 = 15.0;

pub(crate) async fn claim(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let caller = caller(&request)?;
    let claim: ClaimRequest = request.decode()?;
    if claim.worker_id.is_empty() || claim.worker_id.len() > 200 || claim.worker_id.contains('\0') {
        return Err(ApiError::invalid_argument("worker_id is to have 1 to 200 characters, none of them NUL"));
    }
    if claim.kinds.len() > MOST_KINDS {
        return Err(ApiError::invalid_argument(format!("at most {MOST_KINDS} kinds in one claim")));
    }
    not_too_many(claim.finished.len(), "ends")?;
    if let Routing::Host(host) = caller
        && !registry.heard_hosts.contains(host)
    {
        registry.database.host_seen(host).await.map_err(from_database)?;
        registry.heard_hosts.note(host);
    }
    let wanted = ClaimWanted {
        caller,
        worker_id: claim.worker_id,
        kinds: claim
            .kinds
            .into_iter()
            .map(|(kind, slots)| KindWanted { caps: registry.caps(&kind), kind, slots })
            .collect(),
        max: claim.max.min(MOST_OPERATIONS as u32),
        lease_s: registry.settings.lease_s,
    };
    // First, because what ends makes place for what waits for a cap or an exclusive key. Where the claim then fails, the
    // worker brings its ends once more: to repeat them does no harm.
    let finished = finish_all(&registry, caller, claim.finished).await;
    let finished = finished.into_iter().map(|reply| reply.unwrap_or_else(FinishReply::refused)).collect();
    let began = Instant::now();
    let leased = registry.database.claim_operations(&wanted).await.map_err(from_database)?;
    let leased = without_those_that_wait(&registry, leased).await?;
    let leased = as_much_as_fits(&registry, leased).await?;
    let leases = leased.into_iter().map(|leased| {
        let registry = &registry;
        async move {
            registry.streams.tell(leased.op.op_id);
            let label = vec![("kind", leased.op.kind.to_string())];
            registry.metrics.claimed.get_or_create(&label).inc();
            let grant = match kinds::find(&leased.op.kind) {
                // What is not ready, or cannot be granted now, the worker asks `repository` for: that answers with the
                // reason.
                Some(kind) if kind.uses_repository => {
                    let grant = registry.repositories.grant_if_ready(&leased.op, leased.lease_until).await;
                    grant.ok().flatten()
                }
                _ => None,
            };
            Lease {
                attempt: leased.op.attempt,
                op: leased.op,
                lease_id: leased.lease_id,
                lease_until: leased.lease_until,
                lease_s: registry.settings.lease_s,
                checkpoint: leased.checkpoint,
                grant,
            }
        }
    });
    let leases = join_all(leases).await;
    if !leases.is_empty() {
        registry.metrics.claim_seconds.observe(began.elapsed().as_secs_f64());
    }
    Ok(request.reply(&ClaimReply { leases, finished }))
}

/// Hands back what one answer cannot carry; the worker is nudged, and claims again.
async fn as_much_as_fits(
    registry: &Registry,
    leased: Vec<LeasedOperation>,
) -> Result<Vec<LeasedOperation>, ApiError> {
    let mut left = MOST_LEASE_BYTES;
    let mut fitting = Vec::with_capacity(leased.len());
    let mut handed_back = Vec::new();
    for leased in leased {
        let bytes = json_length(&leased.op) + json_length(&leased.checkpoint);
        if bytes <= left || fitting.is_empty() {
            left = left.saturating_sub(bytes);
            fitting.push(leased);
            continue;
        }
        handed_back.push(handing_back(&leased, 0.0, None));
    }
    hand_back(registry, handed_back).await?;
    Ok(fitting)
}

/// Hands back those whose turn is after that of copies which wait themselves, until later.
async fn without_those_that_wait(
    registry: &Registry,
    leased: Vec<LeasedOperation>,
) -> Result<Vec<LeasedOperation>, ApiError> {
    let reasons = leased.iter().map(|LeasedOperation { op, .. }| async move {
        // A project is not kept from starting for ever because of a copy that nobody applies.
        let patience = op.kind.as_str() != "project-start" || op.attempt <= MOST_STARTS_PUT_OFF;
        if patience { registry.database.waits_for_copies(op).await } else { Ok(None) }
    });
    let reasons = try_join_all(reasons).await.map_err(from_database)?;
    let (mut begin, mut handed_back) = (Vec::with_capacity(leased.len()), Vec::new());
    for (leased, reason) in leased.into_iter().zip(reasons) {
        if reason.is_some() {
            let wait_s = f64::from(leased.op.attempt).clamp(1.0, MOST_PUT_OFF_S);
            handed_back.push(handing_back(&leased, wait_s, reason));
        } else {
            begin.push(leased);
        }
    }
    hand_back(registry, handed_back).await?;
    Ok(begin)
}

fn handing_back(leased: &LeasedOperation, wait_s: f64, reason: Option<String>) -> Finished {
    Finished {
        fence: LeaseFence { op_id: leased.op.op_id, attempt: leased.op.attempt, lease_id: leased.lease_id },
        outcome: Outcome::HandedBack,
        result: None,
        error: None,
        checkpoint: None,
        summary: None,
        children: Vec::new(),
        jitter: 0.0,
        wait_s,
        reason,
    }
}

async fn hand_back(registry: &Registry, handed_back: Vec<Finished>) -> Result<(), ApiError> {
    if handed_back.is_empty() {
        return Ok(());
    }
    let outcomes = registry.database.finish_operations(&handed_back).await.map_err(from_database)?;
    for outcome in outcomes {
        if let FinishOutcome::Recorded(ended) = outcome {
            registry.changed(&ended);
        }
    }
    Ok(())
}
