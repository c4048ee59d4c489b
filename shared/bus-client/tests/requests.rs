//! Requests and services over a real nats-server.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus_client::{
    Bus, BusErrorKind, EndpointDefinition, IncomingRequest, Reply, RequestError, RequestErrorKind,
    RunningService,
};
use bus_messages::{ApiError, Encoding, ErrorCode};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::{NatsServer, wait_for};
use tokio::sync::Semaphore;

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    text: String,
}

fn definition(name: &'static str, concurrency: usize) -> EndpointDefinition {
    EndpointDefinition {
        name,
        subject: format!("api.v1.*.test.{name}"),
        queue_group: "test".to_owned(),
        metadata: BTreeMap::from([("example".to_owned(), "{}".to_owned())]),
        concurrency,
    }
}

async fn echo(request: IncomingRequest) -> Result<Reply, ApiError> {
    let question: Question = request.decode()?;
    if question.text == "panic" {
        panic!("as asked");
    }
    if question.text == "conflict" {
        return Err(ApiError::new(ErrorCode::Conflict, "two\nlines").with_detail("op_id", "x"));
    }
    if question.text == "large" {
        return Ok(request.reply(&"x".repeat(2 << 20)));
    }
    let info = request.request_info();
    Ok(request.reply(&json!({
        "text": question.text,
        "subject": request.subject(),
        "account": info.map(|info| &info.account),
        "user": info.map(|info| &info.user),
    })))
}

async fn start_echo(bus: &Bus) -> RunningService {
    let service = bus.service("echo", "0.1.0", "for tests", BTreeMap::new());
    service.endpoint(definition("echo", 4), echo).start().await.unwrap()
}

async fn ask(bus: &Bus, text: &str, encoding: Encoding) -> Result<Value, RequestError> {
    let question = Question { text: text.to_owned() };
    bus.request("api.v1.hub.test.echo".to_owned(), &question, encoding, TIMEOUT).await
}

#[tokio::test]
async fn a_request_is_answered_in_its_own_encoding() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let service = start_echo(&bus).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let reply = ask(&bus, "hello", encoding).await.unwrap();
        assert_eq!(reply["text"], "hello");
        assert_eq!(reply["subject"], "api.v1.hub.test.echo");
        let body = Bytes::from(encoding.encode(&Question { text: "raw".to_owned() }));
        let raw = bus
            .request_raw("api.v1.hub.test.echo".to_owned(), Some(encoding.content_type()), body, TIMEOUT)
            .await
            .unwrap();
        assert_eq!(raw.headers.get("Content-Type"), Some(encoding.content_type()));
    }
    service.stop().await;
    assert_eq!(ask(&bus, "hello", Encoding::Json).await.unwrap_err().kind(), RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn errors_have_a_code_a_message_and_a_body_in_both_encodings() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let _service = start_echo(&bus).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let unknown = bus
            .request::<_, Value>(
                "api.v1.hub.test.echo".to_owned(),
                &json!({ "text": "x", "more": 1 }),
                encoding,
                TIMEOUT,
            )
            .await;
        let Err(RequestError::Api(error)) = unknown else { panic!("{unknown:?}") };
        assert_eq!((error.code, error.status), (ErrorCode::InvalidArgument, 400));
        assert!(error.message.contains("more"), "{}", error.message);

        let Err(RequestError::Api(error)) = ask(&bus, "conflict", encoding).await else { panic!() };
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Conflict, "two\nlines"));
        assert_eq!(error.details["op_id"], "x");

        let Err(RequestError::Api(error)) = ask(&bus, "panic", encoding).await else { panic!() };
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(!error.message.contains("as asked"), "{}", error.message);

        let Err(RequestError::Api(error)) = ask(&bus, "large", encoding).await else { panic!() };
        assert!(error.message.contains("larger than the 1048576 bytes"), "{}", error.message);
    }
    let body = Bytes::from_static(b"<x/>");
    let raw =
        bus.request_raw("api.v1.hub.test.echo".to_owned(), Some("text/xml"), body, TIMEOUT).await.unwrap();
    assert_eq!(raw.headers.get("Nats-Service-Error-Code"), Some("400"));
    assert!(raw.headers.get("Nats-Service-Error").unwrap().contains("text/xml"));

    let large = "x".repeat(2 << 20);
    let Err(RequestError::Bus(error)) = ask(&bus, &large, Encoding::Json).await else { panic!() };
    assert_eq!(error.kind(), BusErrorKind::TooLarge);
}

#[tokio::test]
async fn more_requests_than_the_bound_are_answered_429_and_counted() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let gate = Arc::new(Semaphore::new(0));
    let handler_gate = Arc::clone(&gate);
    let service = bus
        .service("slow", "0.1.0", "for tests", BTreeMap::new())
        .endpoint(definition("slow", 2), move |request: IncomingRequest| {
            let gate = Arc::clone(&handler_gate);
            async move {
                let _permit = gate.acquire().await;
                Ok(request.reply(&json!({})))
            }
        })
        .start()
        .await
        .unwrap();
    let asks = (0..7).map(|_| {
        let bus = bus.clone();
        tokio::spawn(async move {
            bus.request::<_, Value>("api.v1.hub.test.slow".to_owned(), &json!({}), Encoding::Json, TIMEOUT)
                .await
        })
    });
    let asks: Vec<_> = asks.collect();
    let stats = wait_for("three are refused while two run and two wait", async || {
        let stats: Value = bus
            .request("$SRV.STATS.slow".to_owned(), &json!({}), Encoding::Json, TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        let refused = &stats["endpoints"][0]["data"]["too_many_requests"];
        if refused == 3 { Ok(stats) } else { Err(stats.to_string()) }
    })
    .await;
    assert_eq!(stats["endpoints"][0]["num_errors"], 3);
    assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");

    // Stopping takes no more, and answers those under way.
    let stopping = tokio::spawn(service.stop());
    wait_for("nobody listens any more", async || {
        let body = json!({});
        let reply =
            bus.request::<_, Value>("api.v1.hub.test.slow".to_owned(), &body, Encoding::Json, TIMEOUT).await;
        match reply.map_err(|error| error.kind()) {
            Err(RequestErrorKind::NoResponders) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(!stopping.is_finished());
    gate.add_permits(10);
    stopping.await.unwrap();
    let mut refused = 0;
    for ask in asks {
        match ask.await.unwrap() {
            Ok(_) => {}
            Err(RequestError::Api(error)) if error.code == ErrorCode::TooManyRequests => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(refused, 3);
}

#[tokio::test]
async fn a_service_never_answers_on_a_subject_that_is_no_inbox() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let _service = start_echo(&bus).await;
    let raw = async_nats::ConnectOptions::with_user_and_password("hub".to_owned(), "hub".to_owned())
        .connect(server.url())
        .await
        .unwrap();
    let mut everything = raw.subscribe("persist.>").await.unwrap();
    let question = Bytes::from_static(br#"{"text":"x"}"#);
    for subject in ["api.v1.hub.test.echo", "$SRV.PING", "$SRV.INFO.echo"] {
        raw.publish_with_reply(subject, "persist.hub.lro.x.evt", question.clone()).await.unwrap();
    }
    raw.publish("api.v1.hub.test.echo", question).await.unwrap();
    raw.flush().await.unwrap();
    // Answered after those: had one of them been answered, it would have been by now.
    for _ in 0..3 {
        ask(&bus, "after", Encoding::Json).await.unwrap();
    }
    assert!(everything.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_client_of_another_account_is_named_by_the_server() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let _service = start_echo(&bus).await;
    let alice = server.connect("alice").await;
    let reply = ask(&alice, "hello", Encoding::Json).await.unwrap();
    assert_eq!((&reply["account"], &reply["user"]), (&json!("APP"), &json!("alice")));
    let reply = ask(&bus, "hello", Encoding::Json).await.unwrap();
    assert_eq!(reply["account"], Value::Null);

    // What the client puts into the header is overwritten.
    let raw = async_nats::ConnectOptions::with_user_and_password("alice".to_owned(), "alice".to_owned())
        .connect(server.url())
        .await
        .unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.append("Nats-Request-Info", r#"{"acc":"BUS","user":"hub"}"#);
    headers.append("Nats-Request-Info", r#"{"acc":"BUS","user":"hub"}"#);
    let reply = raw
        .request_with_headers("api.v1.hub.test.echo", headers, Bytes::from_static(br#"{"text":"x"}"#))
        .await
        .unwrap();
    let reply: Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_ne!(reply["account"], "BUS", "{reply}");
}

#[tokio::test]
async fn what_the_credentials_do_not_allow_is_an_error_at_once() {
    let Some(server) = NatsServer::start() else { return };
    let wrong = Bus::connect(server.settings("hub", "wrong")).await.unwrap_err();
    assert_eq!(wrong.kind(), BusErrorKind::Unauthorized);
    let limited = server.connect("limited").await;
    let started = std::time::Instant::now();
    let refused = limited
        .request::<_, Value>(
            "work.v1.hub.claim".to_owned(),
            &json!({}),
            Encoding::Json,
            Duration::from_secs(30),
        )
        .await;
    assert_eq!(refused.unwrap_err().kind(), RequestErrorKind::PermissionDenied);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_lost_connection_ends_a_request_and_comes_back() {
    let Some(mut server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let service = bus
        .service("never", "0.1.0", "for tests", BTreeMap::new())
        .endpoint(definition("never", 1), |_| std::future::pending())
        .endpoint(definition("echo", 1), echo)
        .start()
        .await
        .unwrap();
    let asking = {
        let bus = bus.clone();
        tokio::spawn(async move {
            let minute = Duration::from_secs(60);
            bus.request::<_, Value>("api.v1.hub.test.never".to_owned(), &json!({}), Encoding::Json, minute)
                .await
        })
    };
    // The server takes what one client sends in order, so that the request is under way now.
    ask(&bus, "ordered", Encoding::Json).await.unwrap();
    server.kill();
    let Err(RequestError::Bus(error)) = asking.await.unwrap() else { panic!() };
    assert_eq!(error.kind(), BusErrorKind::Disconnected);
    assert!(error.is_retryable());
    server.start_again();
    wait_for("the service answers again", async || {
        ask(&bus, "again", Encoding::Json).await.map_err(|error| error.to_string())
    })
    .await;
    assert!(bus.is_connected());
    drop(service);
    bus.drain().await;
    assert!(bus.subscribe("wake.hub".to_owned()).await.is_err());
}

#[tokio::test]
async fn a_service_shows_its_endpoints() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.connect("hub").await;
    let _service = start_echo(&bus).await;
    let info: Value =
        bus.request("$SRV.INFO.echo".to_owned(), &json!({}), Encoding::Json, TIMEOUT).await.unwrap();
    assert_eq!(info["type"], "io.nats.micro.v1.info_response");
    assert_eq!(info["endpoints"][0]["name"], "echo");
    assert_eq!(info["endpoints"][0]["queue_group"], "test");
    assert_eq!(info["endpoints"][0]["metadata"]["example"], "{}");
    let ping: Value = bus.request("$SRV.PING".to_owned(), &json!({}), Encoding::Json, TIMEOUT).await.unwrap();
    assert_eq!((&ping["name"], &ping["id"]), (&json!("echo"), &info["id"]));
}
