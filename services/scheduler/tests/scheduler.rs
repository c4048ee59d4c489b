//! The scheduler against a stand-in for the registry, over a real nats-server.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../../shared/bus-client/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bus_client::{Bus, EndpointDefinition, IncomingRequest, Reply, RunningService};
use bus_messages::{
    ApiError, ClaimReply, ClaimRequest, FinishReply, FinishRequest, Lease, OperationProgressReply, Outcome,
    ProgressReply, ProgressRequest,
};
use bytes::Bytes;
use domain_model::LeaseId;
use scheduler::{BackupSettings, SchedulerSettings, WorkSettings};
use serde_json::{Value, json};
use service_runtime::{HttpSettings, NatsSettings, Runtime, Shutdown, TelemetrySettings};
use support::{NatsServer, wait_for};

const TIME: &str = "2026-11-21T07:38:27.123Z";

type Answer = fn(&Registry, &IncomingRequest) -> Result<Reply, ApiError>;

/// Hands out one lease after the other, and keeps what it is told.
#[derive(Default)]
struct Registry {
    queue: Mutex<Vec<Lease>>,
    checkpoints: Mutex<Vec<Value>>,
    finishes: Mutex<Vec<FinishRequest>>,
}

impl Registry {
    async fn serve(self: &Arc<Self>, bus: &Bus) -> RunningService {
        let mut service = bus.service("registry", "0.1.0", "stand-in", BTreeMap::new());
        let answers: [(&'static str, Answer); 3] =
            [("claim", Self::claim), ("progress", Self::progress), ("finish", Self::finish)];
        for (name, answer) in answers {
            let definition = EndpointDefinition {
                name,
                subject: format!("work.v1.hub.{name}"),
                queue_group: "registry".to_owned(),
                metadata: BTreeMap::new(),
                concurrency: 8,
            };
            let registry = Arc::clone(self);
            service =
                service.endpoint(definition, move |request| std::future::ready(answer(&registry, &request)));
        }
        service.start().await.unwrap()
    }

    fn claim(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let claim: ClaimRequest = request.decode()?;
        let finished = vec![FinishReply::OK; claim.finished.len()];
        self.finishes.lock().unwrap().extend(claim.finished);
        Ok(request.reply(&ClaimReply { leases: self.queue.lock().unwrap().drain(..).collect(), finished }))
    }

    fn progress(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        let progress: ProgressRequest = request.decode()?;
        let ops = progress.ops.into_iter().map(|entry| {
            self.checkpoints.lock().unwrap().extend(entry.checkpoint);
            OperationProgressReply {
                op_id: entry.op_id,
                ok: true,
                lost: false,
                lease_until: None,
                lease_s: 30.0,
                cancel_requested: false,
                give_way: false,
                stored_n: entry.events.last().map_or(0, |event| event.n),
                refused: None,
            }
        });
        Ok(request.reply(&ProgressReply { ops: ops.collect() }))
    }

    fn finish(&self, request: &IncomingRequest) -> Result<Reply, ApiError> {
        self.finishes.lock().unwrap().push(request.decode()?);
        Ok(request.reply(&FinishReply::OK))
    }
}

fn lease(attempt: u32, input: Value, checkpoint: Option<Value>) -> Lease {
    let op = serde_json::from_value(json!({
        "op_id": uuid::Uuid::now_v7().to_string(), "kind": "test-sleep", "scope": "hub", "scope_type": "hub",
        "status": "running", "created_by": "test", "routing": "hub", "input": input, "progress": 0.0,
        "attempt": attempt, "max_attempts": 3, "lease_losses": 0, "priority": 0, "not_before": TIME,
        "created_at": TIME, "updated_at": TIME, "expires_at": TIME, "waiting_for_children": false, "rev": 1,
    }))
    .unwrap();
    Lease {
        op,
        attempt,
        lease_id: LeaseId::from_uuid(uuid::Uuid::new_v4()),
        lease_until: TIME.parse().unwrap(),
        lease_s: 30.0,
        checkpoint,
        grant: None,
    }
}

fn settings(server: &NatsServer) -> SchedulerSettings {
    SchedulerSettings {
        backups: BackupSettings { look_every_s: 3600.0 },
        nats: NatsSettings {
            url: server.url(),
            user: "hub".to_owned(),
            password: "hub".into(),
            inbox_prefix: None,
        },
        browse: scheduler::BrowseSettings {
            cache: std::env::temp_dir().join("longhaul-scheduler-test-cache"),
            cache_bytes: 1 << 20,
            repositories: 1,
            memory_bytes: 1 << 28,
        },
        work: WorkSettings { copies: 1, test_kinds: true, test_sleeps: 4 },
        http: HttpSettings::default(),
        telemetry: TelemetrySettings::default(),
    }
}

#[tokio::test]
async fn a_sleep_goes_on_from_its_checkpoint_fails_where_asked_and_waits_for_its_children() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let registry = Arc::new(Registry::default());
    let _service = registry.serve(&bus).await;
    let shutdown = Shutdown::manual();
    let running = tokio::spawn(scheduler::run(settings(&server), shutdown.clone(), Runtime::default()));
    let work_on = async |lease: Lease| {
        registry.checkpoints.lock().unwrap().clear();
        registry.queue.lock().unwrap().push(lease);
        wait_for("the attempt ends", async || {
            bus.publish("wake.hub".to_owned(), Bytes::new()).await.unwrap();
            registry.finishes.lock().unwrap().pop().ok_or_else(|| "still running".to_owned())
        })
        .await
    };
    let input = |fail: Option<u32>, children: u32| json!({ "seconds": 0.05, "steps": 5, "fail_at_step": fail, "children": children });

    let finish = work_on(lease(2, input(None, 0), Some(json!({ "done": 3 })))).await;
    assert_eq!(finish.result, Some(json!({ "steps": 5, "attempt": 2 })));
    assert_eq!(*registry.checkpoints.lock().unwrap(), [json!({ "done": 4 }), json!({ "done": 5 })]);

    let finish = work_on(lease(1, input(Some(2), 0), None)).await;
    let error = finish.error.unwrap();
    assert_eq!((error.code.as_str(), error.retryable), ("test_failure", true));
    assert_eq!(*registry.checkpoints.lock().unwrap(), [json!({ "done": 1 })]);

    let finish = work_on(lease(1, input(None, 3), None)).await;
    assert_eq!((finish.outcome, finish.children.len()), (Outcome::WaitsForChildren, 3));
    let finish = work_on(lease(2, input(None, 3), finish.checkpoint)).await;
    assert_eq!(finish.outcome, Outcome::Succeeded);

    shutdown.drain();
    running.await.unwrap().unwrap();
}

#[test]
fn the_committed_defaults_are_settings() {
    let arguments = service_runtime::ServiceArguments::default();
    let settings: SchedulerSettings =
        service_runtime::load_settings("scheduler", scheduler::DEFAULT_SETTINGS, &arguments).unwrap();
    assert!(!settings.work.test_kinds);
}
