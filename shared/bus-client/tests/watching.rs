//! Watching an operation over a real nats-server, with a stand-in for the registry's `lro.events`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus_client::{
    Bus, EndpointDefinition, FencedPublish, IncomingRequest, OperationStream, PublishErrorKind, RequestError,
    RunningService, WatchItem, watch,
};
use bus_messages::{ApiError, Encoding, ErrorCode, EventList, Operation, ProgressEvent};
use bus_subjects::OperationSubject;
use bytes::Bytes;
use domain_model::{OperationStatus, Scope};
use futures::StreamExt;
use serde_json::json;
use support::{DECLARATION, NatsServer};

/// A whole ring takes several of these.
const EVENTS_A_PAGE: usize = 100;
const TIME: &str = "2026-11-21T07:38:27.123Z";

fn new_operation() -> Operation {
    let id = uuid::Uuid::now_v7().to_string();
    serde_json::from_value(json!({
        "op_id": id, "kind": "test-sleep", "scope": "hub", "scope_type": "hub", "status": "running",
        "created_by": "test", "routing": "hub", "input": {}, "progress": 0.0, "attempt": 1, "max_attempts": 3,
        "lease_losses": 0, "priority": 0, "not_before": TIME, "created_at": TIME, "updated_at": TIME,
        "expires_at": TIME, "waiting_for_children": false, "rev": 1,
    }))
    .unwrap()
}

/// Writes as the registry does: the truth first, then the stream.
#[derive(Clone)]
struct Writer {
    stream: OperationStream,
    subject: OperationSubject,
    state: Arc<Mutex<Operation>>,
    unavailable: Arc<AtomicBool>,
    end_pending: Arc<AtomicBool>,
}

impl Writer {
    async fn new(bus: &Bus) -> Self {
        let stream = bus.operation_stream();
        stream.reconcile(DECLARATION).await.unwrap();
        let state = new_operation();
        let subject = OperationSubject { scope: Scope::Hub, op_id: state.op_id };
        Self {
            stream,
            subject,
            state: Arc::new(Mutex::new(state)),
            unavailable: Arc::default(),
            end_pending: Arc::default(),
        }
    }

    async fn serve_events(&self, bus: &Bus) -> RunningService {
        let definition = EndpointDefinition {
            name: "lro-events",
            subject: "api.v1.*.lro.events".to_owned(),
            queue_group: "registry".to_owned(),
            metadata: BTreeMap::new(),
            concurrency: 8,
        };
        let writer = self.clone();
        let handler = move |request: IncomingRequest| {
            let writer = writer.clone();
            async move { writer.events(&request).await.map(|events| request.reply(&events)) }
        };
        bus.service("registry", "0.1.0", "stand-in", BTreeMap::new())
            .endpoint(definition, handler)
            .start()
            .await
            .unwrap()
    }

    async fn events(&self, request: &IncomingRequest) -> Result<EventList, ApiError> {
        let asked: bus_messages::ListEvents = request.decode()?;
        let state = self.state.lock().unwrap().clone();
        if asked.op_id != state.op_id {
            return Err(ApiError::not_found("no such operation"));
        }
        let unavailable = || ApiError::new(ErrorCode::Unavailable, "not now");
        if self.unavailable.load(Ordering::Relaxed) {
            return Err(unavailable());
        }
        let end_pending = self.end_pending.load(Ordering::Relaxed);
        let ring = self.stream.ring(&self.subject.events()).await.map_err(|_| unavailable())?;
        let events = ring.iter().map(|message| Encoding::Json.decode(&message.payload).unwrap());
        let after = asked.after_attempt.zip(asked.after_n);
        let mut events: Vec<ProgressEvent> =
            events.filter(|event: &ProgressEvent| Some((event.attempt, event.n)) > after).collect();
        let more = events.len() > EVENTS_A_PAGE;
        events.truncate(EVENTS_A_PAGE);
        Ok(EventList { events, state, more, end_pending })
    }

    async fn store(&self, subject: String, payload: Vec<u8>, rollup: bool) {
        let message = FencedPublish {
            subject,
            headers: vec![("Content-Type", "application/json".to_owned())],
            payload: Bytes::from(payload),
            expected_last_subject_sequence: None,
            rollup,
        };
        loop {
            match self.stream.publish(message.clone()).await {
                Ok(_) => return,
                Err(error) if error.kind() == PublishErrorKind::Other => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn event(&self, n: u64) -> ProgressEvent {
        ProgressEvent {
            op_id: self.subject.op_id,
            attempt: 1,
            n,
            ts: TIME.parse().unwrap(),
            phase: "sleep".to_owned(),
            message: format!("step {n}"),
            level: None,
            progress: None,
            detail: None,
            status: None,
        }
    }

    async fn write(&self, numbers: std::ops::RangeInclusive<u64>) {
        for n in numbers {
            self.store(self.subject.events(), Encoding::Json.encode(&self.event(n)), false).await;
        }
    }

    async fn finish(&self, n: u64) {
        let state = self.end();
        self.tell_end(n).await;
        self.store(self.subject.state(), Encoding::Json.encode(&state), true).await;
    }

    /// Ends the operation, and tells nobody.
    fn end(&self) -> Operation {
        let mut state = self.state.lock().unwrap();
        state.status = OperationStatus::Succeeded;
        state.rev += 1;
        state.clone()
    }

    async fn tell_end(&self, n: u64) {
        let done = ProgressEvent {
            phase: ProgressEvent::DONE.to_owned(),
            status: Some(OperationStatus::Succeeded),
            ..self.event(n)
        };
        self.store(self.subject.events(), Encoding::Json.encode(&done), false).await;
    }

    /// Watches to the end; the numbers of the events.
    fn watch(&self, bus: &Bus) -> tokio::task::JoinHandle<Vec<u64>> {
        let items = watch(bus, self.subject);
        tokio::spawn(async move {
            let items: Vec<_> = items.map(Result::unwrap).collect().await;
            let revs: Vec<u64> = items
                .iter()
                .filter_map(|item| match item {
                    WatchItem::State(state) => Some(state.rev),
                    WatchItem::Event(_) => None,
                })
                .collect();
            assert!(revs.is_sorted_by(|a, b| a < b), "{revs:?}");
            assert!(items.iter().any(
                |item| matches!(item, WatchItem::State(state) if state.status == OperationStatus::Succeeded)
            ));
            items
                .iter()
                .filter_map(|item| match item {
                    WatchItem::Event(event) => Some(event.n),
                    WatchItem::State(_) => None,
                })
                .collect()
        })
    }
}

async fn within<T>(task: tokio::task::JoinHandle<T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), task).await.expect("the watch ends").unwrap()
}

#[tokio::test]
async fn live_and_late_watchers_see_every_event_once() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let writer = Writer::new(&bus).await;
    let _service = writer.serve_events(&bus).await;
    let alice = server.connect("alice").await;
    let early = writer.watch(&alice);
    writer.write(1..=100).await;
    let in_the_middle = writer.watch(&bus);
    // Not about this operation, though on its subject.
    let foreign = ProgressEvent { op_id: new_operation().op_id, n: 101, ..writer.event(101) };
    writer.store(writer.subject.events(), Encoding::Json.encode(&foreign), false).await;
    writer.store(writer.subject.events(), b"not even JSON".to_vec(), false).await;
    // The ring starts anew, which nobody is to notice: what was seen comes again and is dropped.
    writer.stream.purge(&writer.subject.events()).await.unwrap();
    writer.write(1..=200).await;
    writer.finish(201).await;
    let after_the_end = writer.watch(&bus);
    let all: Vec<u64> = (1..=201).collect();
    assert_eq!(within(early).await, all);
    assert_eq!(within(in_the_middle).await, all);
    assert_eq!(within(after_the_end).await, all);
}

#[tokio::test]
async fn a_late_watcher_of_a_ring_that_wrapped_gets_what_is_left() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let writer = Writer::new(&bus).await;
    let _service = writer.serve_events(&bus).await;
    writer.write(1..=299).await;
    writer.finish(300).await;
    assert_eq!(within(writer.watch(&bus)).await, (45..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_restart_of_the_server_leaves_no_gap_and_no_duplicate() {
    let Some(mut server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let writer = Writer::new(&bus).await;
    let _service = writer.serve_events(&bus).await;
    let watcher_bus = server.connect("hub").await;
    let watching = writer.watch(&watcher_bus);
    writer.write(1..=50).await;
    let going_on = tokio::spawn({
        let writer = writer.clone();
        async move {
            writer.write(51..=150).await;
            writer.finish(151).await;
        }
    });
    server.kill();
    server.start_again();
    within(going_on).await;
    let seen = within(watching).await;
    let mut once = seen.clone();
    once.dedup();
    assert_eq!(seen, once, "no duplicate");
    assert_eq!((seen.first(), seen.last()), (Some(&1), Some(&151)));
    assert!(seen.is_sorted());
    // A kill may cost the stream what it had not yet written to disk; what the ring has, the watcher got.
    let ring = writer.stream.ring(&writer.subject.events()).await.unwrap();
    for message in ring {
        let event: ProgressEvent = Encoding::Json.decode(&message.payload).unwrap();
        assert!(seen.contains(&event.n), "{} is in the ring", event.n);
    }
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_waited_for_and_a_refusal_is_not() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let writer = Writer::new(&bus).await;
    writer.unavailable.store(true, Ordering::Relaxed);
    let watching = writer.watch(&bus);
    writer.write(1..=3).await;
    let _service = writer.serve_events(&bus).await;
    writer.finish(4).await;
    writer.unavailable.store(false, Ordering::Relaxed);
    assert_eq!(within(watching).await, [1, 2, 3, 4]);

    let unknown = OperationSubject { scope: Scope::Hub, op_id: new_operation().op_id };
    let items: Vec<_> = watch(&bus, unknown).collect().await;
    assert_eq!(items.len(), 1);
    let error = items.into_iter().next().unwrap().unwrap_err();
    assert!(matches!(error.cause(), RequestError::Api(error) if error.status == 404), "{error}");
}

#[tokio::test]
async fn a_last_event_that_is_still_to_come_is_waited_for_and_one_that_is_lost_is_not() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let writer = Writer::new(&bus).await;
    let _service = writer.serve_events(&bus).await;
    writer.write(1..=3).await;
    writer.end_pending.store(true, Ordering::Relaxed);
    let state = writer.end();
    let waiting = writer.watch(&bus);
    writer.store(writer.subject.state(), Encoding::Json.encode(&state), true).await;
    // Longer than a lost one is waited for.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(!waiting.is_finished(), "it has given up");
    writer.tell_end(4).await;
    assert_eq!(within(waiting).await, [1, 2, 3, 4]);

    writer.stream.purge(&writer.subject.events()).await.unwrap();
    writer.end_pending.store(false, Ordering::Relaxed);
    assert_eq!(within(writer.watch(&bus)).await, [] as [u64; 0], "the summary has to do");
}
