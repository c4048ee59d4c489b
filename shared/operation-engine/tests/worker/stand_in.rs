//! The stand-in for the registry: it hands out leases and keeps what it is told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bus_client::{Bus, EndpointDefinition, IncomingRequest, Reply, RunningService};
use bus_messages::{
    ApiError, ClaimReply, ClaimRequest, ErrorCode, FinishReply, FinishRequest, Lease, OperationProgressReply,
    ProgressEvent, ProgressReply, ProgressRequest, ProgressSummary, RepositoryRequest,
};
use domain_model::{LeaseId, OperationId};
use serde_json::{Value, json};

use crate::support::wait_for;

const TIME: &str = "2026-11-21T07:38:27.123Z";

/// What the registry knows of one operation.
#[derive(Debug, Default, Clone)]
pub(crate) struct Known {
    lease_s: f64,
    pub(crate) lost: bool,
    pub(crate) cancel_requested: bool,
    pub(crate) give_way: bool,
    pub(crate) events: Vec<ProgressEvent>,
    pub(crate) summary: Option<ProgressSummary>,
    pub(crate) checkpoint: Option<Value>,
    pub(crate) heartbeats: u32,
    pub(crate) finish: Option<FinishRequest>,
}

impl Known {
    /// As the stream does: nothing twice, and nothing behind a hole.
    fn store(&mut self, event: ProgressEvent) {
        let stored = self.events.last().map_or(0, |event| event.n);
        assert!(event.n <= stored + 1, "a hole before {}", event.n);
        if event.n > stored {
            self.events.push(event);
        }
    }
}

#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) queue: Mutex<VecDeque<Lease>>,
    known: Mutex<HashMap<OperationId, Known>>,
    pub(crate) silent: AtomicBool,
    pub(crate) replies_to_lose: AtomicU32,
    /// How often it was asked for work.
    pub(crate) claims: AtomicU32,
    /// Messages of ends that get no answer.
    pub(crate) ends_to_lose: AtomicU32,
    /// How many ends each message brought that had some.
    pub(crate) messages_of_ends: Mutex<Vec<usize>>,
    /// How many ends came by themselves.
    pub(crate) ends_alone: AtomicU32,
    pub(crate) refuse_checkpoints: AtomicBool,
}

impl Registry {
    pub(crate) async fn serve(self: &Arc<Self>, bus: &Bus) -> RunningService {
        let definition = |name: &'static str| EndpointDefinition {
            name,
            subject: format!("work.v1.*.{name}"),
            queue_group: "registry".to_owned(),
            metadata: BTreeMap::new(),
            concurrency: 64,
        };
        let handler = |answer: fn(&Self, &IncomingRequest) -> Result<Reply, ApiError>| {
            let registry = Arc::clone(self);
            move |request: IncomingRequest| {
                let registry = Arc::clone(&registry);
                async move {
                    if registry.silent.load(Ordering::Relaxed) {
                        return std::future::pending().await;
                    }
                    let lose = |left: u32| left.checked_sub(1);
                    if brings_ends(&request)
                        && registry
                            .ends_to_lose
                            .try_update(Ordering::Relaxed, Ordering::Relaxed, lose)
                            .is_ok()
                    {
                        return std::future::pending().await;
                    }
                    let reply = answer(&registry, &request);
                    if request.subject().ends_with(".progress")
                        && registry
                            .replies_to_lose
                            .try_update(Ordering::Relaxed, Ordering::Relaxed, lose)
                            .is_ok()
                    {
                        return std::future::pending().await;
                    }
                    reply
                }
            }
        };
        bus.service("registry", "0.1.0", "stand-in", BTreeMap::new())
            .endpoint(definition("claim"), handler(Self::claim))
            .endpoint(definition("progress"), handler(Self::progress))
            .endpoint(definition("finish"), handler(Self::finish))
            .endpoint(definition("repository"), handler(Self::repository))
            .start()
            .await
            .unwrap()
    }

    pub(crate) fn add(&self, lease_s: f64, checkpoint: Option<Value>) -> OperationId {
        self.add_of(json!({ "seconds": 1.0 }), lease_s, checkpoint)
    }

    pub(crate) fn add_of(&self, input: Value, lease_s: f64, checkpoint: Option<Value>) -> OperationId {
        let id = uuid::Uuid::now_v7().to_string();
        let op = serde_json::from_value(json!({
            "op_id": id, "kind": "test-sleep", "scope": "hub", "scope_type": "hub", "status": "running",
            "created_by": "test", "routing": "hub", "input": input, "progress": 0.0, "attempt": 1,
            "max_attempts": 3, "lease_losses": 0, "priority": 0, "not_before": TIME, "created_at": TIME,
            "updated_at": TIME, "expires_at": TIME, "waiting_for_children": false, "rev": 1,
        }))
        .unwrap();
        let lease = Lease {
            op,
            attempt: 1,
            lease_id: LeaseId::from_uuid(uuid::Uuid::new_v4()),
            lease_until: TIME.parse().unwrap(),
            lease_s,
            checkpoint,
            grant: None,
        };
        let op_id = lease.op.op_id;
        self.known.lock().unwrap().insert(op_id, Known { lease_s, ..Known::default() });
        self.queue.lock().unwrap().push_back(lease);
        op_id
    }

    pub(crate) fn of(&self, op_id: OperationId) -> Known {
        self.known.lock().unwrap()[&op_id].clone()
    }

    pub(crate) fn change(&self, op_id: OperationId, change: impl FnOnce(&mut Known)) {
        change(self.known.lock().unwrap().get_mut(&op_id).unwrap());
    }

    fn claim(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let claim: ClaimRequest = request.decode()?;
        assert_eq!(claim.kinds.values().sum::<u32>(), claim.max);
        match claim.finished.len() {
            0 => drop(self.claims.fetch_add(1, Ordering::Relaxed)),
            ends => self.messages_of_ends.lock().unwrap().push(ends),
        }
        let ends = claim.finished.into_iter().map(|finish| self.record(finish));
        let finished = ends.map(|reply| reply.unwrap_or_else(FinishReply::refused)).collect();
        let mut queue = self.queue.lock().unwrap();
        let count = queue.len().min(claim.max as usize);
        Ok(request.reply(&ClaimReply { leases: queue.drain(..count).collect(), finished }))
    }

    fn progress(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let progress: ProgressRequest = request.decode()?;
        let mut known = self.known.lock().unwrap();
        let ops = progress.ops.into_iter().map(|entry| {
            let known = known.get_mut(&entry.op_id).unwrap();
            known.heartbeats += 1;
            for event in entry.events {
                known.store(event);
            }
            known.summary = entry.summary.or(known.summary.take());
            let refuse = self.refuse_checkpoints.load(Ordering::Relaxed) && entry.checkpoint.is_some();
            if !refuse && !known.lost {
                known.checkpoint = entry.checkpoint.or(known.checkpoint.take());
            }
            OperationProgressReply {
                op_id: entry.op_id,
                ok: !known.lost,
                lost: known.lost,
                lease_until: None,
                lease_s: known.lease_s,
                cancel_requested: known.cancel_requested,
                give_way: known.give_way,
                stored_n: known.events.last().map_or(0, |event| event.n),
                refused: refuse.then(|| "not this one".to_owned()),
            }
        });
        Ok(request.reply(&ProgressReply { ops: ops.collect() }))
    }

    fn finish(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        self.ends_alone.fetch_add(1, Ordering::Relaxed);
        Ok(request.reply(&self.record(request.decode()?)?))
    }

    fn record(&self, finish: FinishRequest) -> Result<FinishReply, ApiError> {
        if finish.result == Some(json!("refuse me")) {
            return Err(ApiError::invalid_argument("not a result"));
        }
        let mut known = self.known.lock().unwrap();
        let known = known.get_mut(&finish.op_id).unwrap();
        assert!(known.finish.is_none(), "finished twice: {finish:?}");
        if let Some(progress) = finish.progress.clone() {
            for event in progress.events {
                known.store(event);
            }
            known.summary = progress.summary.or(known.summary.take());
        }
        known.finish = Some(finish);
        Ok(FinishReply::OK)
    }

    fn repository(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let _: RepositoryRequest = request.decode()?;
        Err(ApiError::new(ErrorCode::Unavailable, "no bucket").with_detail("code", "bucket_unreachable"))
    }

    pub(crate) async fn finished(&self, op_id: OperationId) -> FinishRequest {
        wait_for("the operation is finished", async || {
            let known = self.of(op_id);
            known.finish.clone().ok_or_else(|| format!("{known:?}"))
        })
        .await
    }
}

fn brings_ends(request: &IncomingRequest) -> bool {
    let claim = request.decode::<ClaimRequest>();
    request.subject().ends_with(".claim") && claim.is_ok_and(|claim| !claim.finished.is_empty())
}
