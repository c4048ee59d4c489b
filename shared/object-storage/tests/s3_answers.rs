//! Answers that real servers give seldom, or only some of them: what the S3 provider makes of each.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use object_storage::{
    BucketControl, BucketLocation, ObjectStorageErrorKind, ObjectStore, PutMode, RetryPolicy,
};
use support::{key, kind_of, s3_settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that answers every request with what `answer` makes of its method, path and headers, in lower
/// case: a status, and a body whose length may be announced greater than it is.
async fn server(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Arc<dyn BucketControl> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            if let Some(request) = read_request(&mut socket).await {
                let (status, body) = answer(&request);
                let length = body.len() + if body == BROKEN_OFF { 100 } else { 0 };
                let head =
                    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                let body = if request.starts_with("head ") { "" } else { body.as_str() };
                // A client that has gone away is none of this server's business.
                let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            }
        }
    });
    let retry = RetryPolicy {
        attempts: 3,
        base_delay: Duration::from_millis(1),
        maximum_delay: Duration::from_millis(2),
    };
    s3_settings(&endpoint).connect_with(retry).unwrap()
}

/// A body that announces more than it has.
const BROKEN_OFF: &str = "broken off";

async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let mut received = Vec::new();
    let head_bytes = loop {
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&received[..head_bytes]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    while received.len() < head_bytes + length.unwrap_or(0) {
        if socket.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn error(status: u16, code: &str) -> (u16, String) {
    (status, format!("<Error><Code>{code}</Code><Message>for the test</Message></Error>"))
}

async fn bucket(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Arc<dyn ObjectStore> {
    server(answer).await.open_bucket("some-bucket")
}

#[tokio::test]
async fn a_server_without_conditional_writes_is_asked_first() {
    let bucket = bucket(|request| {
        if request.starts_with("put ") && request.contains("if-none-match") {
            error(501, "NotImplemented")
        } else if request.starts_with("head ") && request.contains("/absent") {
            (404, String::new())
        } else {
            (200, String::new())
        }
    })
    .await;
    for _ in 0..2 {
        bucket.put(&key("absent"), "x".into(), PutMode::CreateOnly).await.unwrap();
        let there = bucket.put(&key("there"), "x".into(), PutMode::CreateOnly).await;
        assert_eq!(kind_of(there), ObjectStorageErrorKind::AlreadyExists);
    }
}

#[tokio::test]
async fn conflicting_and_throttled_writes_are_tried_again() {
    for (status, code) in [(409, "ConditionalRequestConflict"), (503, "SlowDown"), (500, "InternalError")] {
        let requests = AtomicU32::new(0);
        let bucket = bucket(move |_| match requests.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => error(status, code),
            _ => (200, String::new()),
        })
        .await;
        bucket.put(&key("a"), "x".into(), PutMode::CreateOnly).await.unwrap();
    }
}

#[tokio::test]
async fn a_deletion_that_succeeds_as_a_whole_and_fails_for_a_key_is_an_error() {
    for (code, denied) in [("AccessDenied", true), ("NoSuchKey", false)] {
        let bucket = bucket(move |request| match request.starts_with("post ") {
            true => (
                200,
                format!(
                    "<DeleteResult><Error><Key>a</Key><Code>{code}</Code><Message>no</Message></Error></DeleteResult>"
                ),
            ),
            false => (404, String::new()),
        })
        .await;
        let deleted = bucket.delete(&[key("a")]).await;
        if denied {
            assert_eq!(kind_of(deleted), ObjectStorageErrorKind::PermissionDenied);
        } else {
            deleted.unwrap();
        }
    }
}

#[tokio::test]
async fn a_listing_that_may_not_be_whole_is_an_error() {
    let object = "<Contents><Key>a</Key><Size>1</Size></Contents>";
    for (page, kind) in [
        (format!("<IsTruncated>true</IsTruncated>{object}"), ObjectStorageErrorKind::Retryable),
        (object.to_owned(), ObjectStorageErrorKind::Retryable),
        (
            format!("<IsTruncated>false</IsTruncated><KeyCount>2</KeyCount>{object}"),
            ObjectStorageErrorKind::Retryable,
        ),
        (
            format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{object}"
            ),
            ObjectStorageErrorKind::Permanent,
        ),
        (
            "<IsTruncated>false</IsTruncated><Contents><Key>/not/ours</Key><Size>1</Size></Contents>"
                .to_owned(),
            ObjectStorageErrorKind::Permanent,
        ),
    ] {
        let shown = page.clone();
        let bucket = bucket(move |_| (200, format!("<ListBucketResult>{page}</ListBucketResult>"))).await;
        assert_eq!(kind_of(bucket.list("").await), kind, "{shown}");
    }
    let bucket = bucket(|_| (200, "<ListBucketResult><Contents><Key>a".to_owned())).await;
    assert_eq!(kind_of(bucket.list("").await), ObjectStorageErrorKind::Retryable);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_retryable_error() {
    let bucket = bucket(|_| (200, BROKEN_OFF.to_owned())).await;
    assert_eq!(kind_of(bucket.get(&key("a")).await), ObjectStorageErrorKind::Retryable);
}

#[tokio::test]
async fn somebody_elses_bucket_is_told_from_our_own() {
    let provider = server(|request| match request.starts_with("put ") {
        true if request.starts_with("put /owned") => error(409, "BucketAlreadyOwnedByYou"),
        true => error(409, "BucketAlreadyExists"),
        false => (
            200,
            "<ListAllMyBucketsResult><Buckets><Bucket><Name>listed</Name></Bucket></Buckets></ListAllMyBucketsResult>"
                .to_owned(),
        ),
    })
    .await;
    provider.create_bucket("owned", None).await.unwrap();
    provider.create_bucket("listed", None).await.unwrap();
    let theirs = provider.create_bucket("theirs", None).await;
    assert_eq!(kind_of(theirs), ObjectStorageErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_location_reads_back_in_every_form_that_servers_give_it() {
    let reported = BucketLocation::Reported("weur".to_owned());
    for (answer, expected) in [
        ("<LocationConstraint>weur</LocationConstraint>", reported.clone()),
        (
            "<CreateBucketConfiguration><LocationConstraint>weur</LocationConstraint></CreateBucketConfiguration>",
            reported,
        ),
        ("<LocationConstraint/>", BucketLocation::NotReported),
        ("<LocationConstraint></LocationConstraint>", BucketLocation::NotReported),
    ] {
        let provider = server(move |_| (200, answer.to_owned())).await;
        assert_eq!(provider.bucket_location("some-bucket").await.unwrap(), expected, "{answer}");
    }
}
