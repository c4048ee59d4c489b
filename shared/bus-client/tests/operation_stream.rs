//! The stream of operations on a real JetStream.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use bus_client::{
    BusErrorKind, FencedPublish, OperationStream, PublishError, PublishErrorKind, ReconcileOutcome,
};
use bytes::Bytes;
use support::{DECLARATION, NatsServer};

const OPERATION: &str = "persist.hub.lro.0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";

async fn put(
    stream: &OperationStream,
    subject: &str,
    text: &str,
    expected: Option<u64>,
    rollup: bool,
) -> Result<u64, PublishError> {
    let message = FencedPublish {
        subject: subject.to_owned(),
        headers: vec![("Lro-Phase", "upload\r\nNats-Rollup: all".to_owned())],
        payload: Bytes::copy_from_slice(text.as_bytes()),
        expected_last_subject_sequence: expected,
        rollup,
    };
    stream.publish(message).await
}

#[tokio::test]
async fn a_declaration_is_created_left_alone_and_updated() {
    let Some(server) = NatsServer::start() else { return };
    let stream = server.connect("hub").await.operation_stream();
    assert_eq!(stream.last_sequence().await.unwrap(), None);
    assert_eq!(stream.ring(&format!("{OPERATION}.evt")).await.unwrap_err().kind(), BusErrorKind::NoStream);
    assert_eq!(stream.last(&format!("{OPERATION}.evt")).await.unwrap_err().kind(), BusErrorKind::NoStream);
    let missing = put(&stream, &format!("{OPERATION}.evt"), "x", None, false).await.unwrap_err();
    assert_eq!(missing.kind(), PublishErrorKind::NoStream);

    assert_eq!(stream.reconcile(DECLARATION).await.unwrap(), ReconcileOutcome::Created);
    assert_eq!(stream.reconcile(DECLARATION).await.unwrap(), ReconcileOutcome::Unchanged);
    put(&stream, &format!("{OPERATION}.evt"), "kept", None, false).await.unwrap();
    let changed = DECLARATION.replace("67108864", "134217728");
    let fields = vec!["max_bytes".to_owned()];
    assert_eq!(stream.reconcile(&changed).await.unwrap(), ReconcileOutcome::Updated { fields });
    assert_eq!(stream.reconcile(&changed).await.unwrap(), ReconcileOutcome::Unchanged);
    assert_eq!(stream.last_sequence().await.unwrap(), Some(1));
    assert_eq!(stream.ring(&format!("{OPERATION}.evt")).await.unwrap().len(), 1);
    let other = stream.reconcile(r#"{"name":"OTHER"}"#).await.unwrap_err();
    assert_eq!(other.kind(), BusErrorKind::Invalid);
}

#[tokio::test]
async fn a_writer_that_has_not_seen_the_last_message_is_refused() {
    let Some(server) = NatsServer::start() else { return };
    let stream = server.connect("hub").await.operation_stream();
    stream.reconcile(DECLARATION).await.unwrap();
    let subject = format!("{OPERATION}.evt");
    assert!(stream.last(&subject).await.unwrap().is_none());
    let first = put(&stream, &subject, "1", Some(0), false).await.unwrap();
    let stale = put(&stream, &subject, "stale", Some(0), false).await.unwrap_err();
    assert_eq!(stale.kind(), PublishErrorKind::SequenceMismatch);
    let second = put(&stream, &subject, "2", Some(first), false).await.unwrap();
    let last = stream.last(&subject).await.unwrap().unwrap();
    assert_eq!((last.sequence, last.payload.as_ref()), (second, b"2".as_slice()));
    assert_eq!(last.subject, subject);
    assert_eq!(last.headers.get("Lro-Phase"), Some("upload  Nats-Rollup: all"));
    let large = put(&stream, &subject, &"x".repeat(70_000), None, false).await.unwrap_err();
    assert_eq!(large.kind(), PublishErrorKind::Other);
}

#[tokio::test]
async fn a_rollup_leaves_one_message() {
    let Some(server) = NatsServer::start() else { return };
    let stream = server.connect("hub").await.operation_stream();
    stream.reconcile(DECLARATION).await.unwrap();
    let (state, events) = (format!("{OPERATION}.state"), format!("{OPERATION}.evt"));
    put(&stream, &events, "stays", None, false).await.unwrap();
    let mut last = 0;
    for text in ["1", "2", "3"] {
        last = put(&stream, &state, text, Some(last), true).await.unwrap();
    }
    let ring = stream.ring(&state).await.unwrap();
    assert_eq!(ring.len(), 1);
    assert_eq!(ring[0].payload.as_ref(), b"3");
    assert_eq!(stream.ring(&events).await.unwrap().len(), 1);
    assert_eq!(stream.purge(&format!("{OPERATION}.>")).await.unwrap(), 2);
    assert!(stream.ring(&events).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_ring_keeps_the_last_256_of_300_events() {
    let Some(server) = NatsServer::start() else { return };
    let stream = server.connect("hub").await.operation_stream();
    stream.reconcile(DECLARATION).await.unwrap();
    let subject = format!("{OPERATION}.evt");
    for n in 1..=300 {
        // Large enough that one batch of the server does not hold all of them.
        put(&stream, &subject, &format!("{n}:{}", "x".repeat(20_000)), None, false).await.unwrap();
    }
    let ring = stream.ring(&subject).await.unwrap();
    let numbers: Vec<u32> = ring
        .iter()
        .map(|message| String::from_utf8_lossy(&message.payload).split(':').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers, (45..=300).collect::<Vec<_>>());
}
