//! One suite for all providers: what a caller may rely on holds on a directory, on the embedded S3 server
//! and on a real one.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_storage::{
    Attributes, BucketLocation, ConnectOptions, ExpiryRule, FaultInjector, FaultPlan, FileUpload, ObjectKey,
    ObjectStorageErrorKind, ProviderSettings, PutCondition, PutMode, RequestCounter, RetryPolicy, S3Settings,
    TimeLimits, UploadState,
};
use support::{Fixture, bucket_name, key, kind_of, pattern, s3_settings};

/// Makes each function of the suite a test on each provider.
macro_rules! conformance {
    ($($test:ident)*) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                if let Some(fixture) = crate::Fixture::local().await { crate::$test(fixture).await }
            })*
        }
        mod embedded_s3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                if let Some(fixture) = crate::Fixture::embedded_s3().await { crate::$test(fixture).await }
            })*
        }
        mod seaweedfs {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                if let Some(fixture) = crate::Fixture::seaweedfs().await { crate::$test(fixture).await }
            })*
        }
    };
}

conformance! {
    what_was_put_is_what_is_got
    a_put_replaces_an_object
    an_object_named_by_its_hash_is_stored_and_a_spoiled_one_refused
    a_create_only_put_finds_what_is_there
    one_of_many_create_only_puts_wins
    a_range_is_exact_or_an_error
    what_is_not_there_is_not_found
    a_listing_has_all_of_its_pages
    awkward_keys_are_listed_as_they_were_put
    a_prefix_is_a_prefix_of_the_text
    a_deletion_is_verified_and_can_be_repeated
    many_deletions_take_few_requests
    puts_of_one_key_do_not_mix
    a_bucket_can_be_created_twice_and_by_many_at_once
    the_first_location_hint_stays
    only_an_empty_bucket_is_deleted
    bad_bucket_names_reach_no_server
    attributes_stay_with_their_object
    a_conditional_put_replaces_only_the_version_that_it_expects
    one_of_many_conditional_puts_wins
    a_file_is_uploaded_in_parts_with_its_attributes
    an_upload_never_replaces_an_object
    an_upload_that_stopped_goes_on_from_its_state
    an_unfinished_upload_is_not_listed
    an_expiry_rule_is_set_again_without_harm
}

async fn what_was_put_is_what_is_got(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    for (name, length) in [("empty", 0), ("one", 1), ("large", 20_000_000)] {
        let (key, body) = (key(&format!("sizes/{name}")), pattern(length));
        bucket.put(&key, body.clone(), PutMode::Overwrite).await.unwrap();
        assert!(bucket.get(&key).await.unwrap() == body, "{name}");
        let metadata = bucket.head(&key).await.unwrap();
        assert_eq!((metadata.key, metadata.size_bytes), (key, length as u64));
    }
}

async fn a_put_replaces_an_object(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    bucket.put(&key("a/b"), pattern(1000), PutMode::Overwrite).await.unwrap();
    bucket.put(&key("a/b"), "shorter".into(), PutMode::Overwrite).await.unwrap();
    assert_eq!(bucket.get(&key("a/b")).await.unwrap(), "shorter");
    assert_eq!(bucket.list("").await.unwrap().len(), 1);
}

async fn an_object_named_by_its_hash_is_stored_and_a_spoiled_one_refused(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let body = Bytes::from_static(b"longhaul");
    // printf longhaul | sha256sum
    let name = "data/0f/0fc573d1b14c00b6ce10d3ccdc125224ea8938b18f5dd0464600e9ad6e53bad9";
    bucket.put(&key(name), body.clone(), PutMode::NamedByHash).await.unwrap();
    assert_eq!(bucket.get(&key(name)).await.unwrap(), body);
    if fixture.compares_hashes {
        bucket.put(&key(name), "longhauI".into(), PutMode::NamedByHash).await.unwrap_err();
        assert_eq!(bucket.get(&key(name)).await.unwrap(), body);
    }
}

async fn a_create_only_put_finds_what_is_there(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    bucket.put(&key("marker"), "first".into(), PutMode::CreateOnly).await.unwrap();
    let second = bucket.put(&key("marker"), "second".into(), PutMode::CreateOnly).await;
    assert_eq!(kind_of(second), ObjectStorageErrorKind::AlreadyExists);
    assert_eq!(bucket.get(&key("marker")).await.unwrap(), "first");
    bucket.delete(&[key("marker")]).await.unwrap();
    bucket.put(&key("marker"), "third".into(), PutMode::CreateOnly).await.unwrap();
    assert_eq!(bucket.get(&key("marker")).await.unwrap(), "third");
}

async fn one_of_many_create_only_puts_wins(fixture: Fixture) {
    if !fixture.create_only_is_atomic {
        return;
    }
    let bucket = fixture.bucket().await;
    for round in 0..5 {
        let name = key(&format!("race/{round}"));
        let writers = (0..8).map(|writer| {
            let (bucket, name) = (bucket.clone(), name.clone());
            tokio::spawn(async move {
                let body = Bytes::from(format!("writer {writer}"));
                (body.clone(), bucket.put(&name, body, PutMode::CreateOnly).await)
            })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                (body, Ok(())) => winners.push(body),
                (_, Err(error)) => assert_eq!(error.kind(), ObjectStorageErrorKind::AlreadyExists, "{error}"),
            }
        }
        assert_eq!(winners, [bucket.get(&name).await.unwrap()]);
    }
}

async fn a_range_is_exact_or_an_error(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let (name, body) = (key("ranges"), pattern(1000));
    bucket.put(&name, body.clone(), PutMode::Overwrite).await.unwrap();
    for (offset, length) in [(0, 1), (0, 1000), (17, 500), (999, 1), (1000, 0), (0, 0)] {
        let part = bucket.get_range(&name, offset, length).await.unwrap();
        assert_eq!(part, body.slice(offset as usize..(offset + length) as usize), "{offset} {length}");
    }
    for (offset, length) in [(0, 1001), (999, 2), (1000, 1), (5000, 10), (1001, 0), (u64::MAX, 2)] {
        let part = bucket.get_range(&name, offset, length).await;
        assert_eq!(kind_of(part), ObjectStorageErrorKind::Permanent, "{offset} {length}");
    }
}

async fn what_is_not_there_is_not_found(fixture: Fixture) {
    use ObjectStorageErrorKind::NotFound;
    let provider = fixture.connect();
    let bucket = fixture.bucket().await;
    bucket.put(&key("object"), "x".into(), PutMode::Overwrite).await.unwrap();
    for absent in ["absent", "object/below", "a/b/c"] {
        assert_eq!(kind_of(bucket.get(&key(absent)).await), NotFound, "{absent}");
        assert_eq!(kind_of(bucket.get_range(&key(absent), 0, 1).await), NotFound, "{absent}");
        assert_eq!(kind_of(bucket.get_range(&key(absent), 0, 0).await), NotFound, "{absent}");
        assert_eq!(kind_of(bucket.head(&key(absent)).await), NotFound, "{absent}");
    }
    assert!(bucket.list("absent/").await.unwrap().is_empty());
    assert!(bucket.list("object/").await.unwrap().is_empty());

    let name = bucket_name();
    assert_eq!(kind_of(provider.bucket_location(&name).await), NotFound);
    assert_eq!(kind_of(provider.delete_bucket(&name).await), NotFound);
    let unknown = provider.open_bucket(&name);
    assert_eq!(kind_of(unknown.list("").await), NotFound);
    assert_eq!(kind_of(unknown.get(&key("a")).await), NotFound);
    assert_eq!(kind_of(unknown.head(&key("a")).await), NotFound);
    if fixture.refuses_unknown_buckets {
        assert_eq!(kind_of(unknown.put(&key("a"), "x".into(), PutMode::Overwrite).await), NotFound);
        assert_eq!(kind_of(unknown.delete(&[key("a")]).await), NotFound);
    }
}

/// Puts `count` small objects.
async fn put_many(
    fixture: &Fixture,
    count: usize,
) -> (std::sync::Arc<dyn object_storage::ObjectStore>, Vec<ObjectKey>) {
    let bucket = fixture.bucket().await;
    let keys: Vec<ObjectKey> =
        (0..count).map(|index| key(&format!("many/{:02x}/{index:06}", index % 16))).collect();
    let puts = keys.clone().into_iter().map(|key| {
        let bucket = bucket.clone();
        async move { bucket.put(&key, "x".into(), PutMode::Overwrite).await }
    });
    stream::iter(puts).buffer_unordered(16).try_collect::<Vec<()>>().await.unwrap();
    (bucket, keys)
}

async fn a_listing_has_all_of_its_pages(fixture: Fixture) {
    let (bucket, mut keys) = put_many(&fixture, 2300).await;
    keys.sort();
    let listed: Vec<ObjectKey> =
        bucket.list("many/").await.unwrap().into_iter().map(|object| object.key).collect();
    assert_eq!(listed, keys);
    let part = bucket.list("many/0a/").await.unwrap();
    assert_eq!(part.len(), keys.iter().filter(|key| key.as_str().starts_with("many/0a/")).count());
    assert!(part.iter().all(|object| object.size_bytes == 1));
}

async fn awkward_keys_are_listed_as_they_were_put(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let mut names = vec![
        "awkward/a b",
        "awkward/a+b",
        "awkward/a%b",
        "awkward/a%2Fb",
        "awkward/a%20b",
        "awkward/ü",
        "awkward/日本/語",
        "awkward/🦀",
        "awkward/<&>'\"",
        "awkward/a=b?c#d",
        "awkward/.hidden",
        "awkward/~tilde",
        "awkward/ leading",
        "awkward/trailing ",
        "awkward/[x]{y}^`|",
    ];
    if fixture.keeps_backslashes {
        names.push("awkward/a\\b");
    }
    for name in &names {
        bucket.put(&key(name), Bytes::from(name.to_string()), PutMode::CreateOnly).await.unwrap();
    }
    names.sort_unstable();
    let listed = bucket.list("awkward/").await.unwrap();
    assert_eq!(listed.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), names);
    for name in &names {
        assert_eq!(bucket.get(&key(name)).await.unwrap(), name.as_bytes(), "{name}");
        let listed = bucket.list(name).await.unwrap();
        assert!(listed.iter().any(|object| object.key.as_str() == *name), "{name}");
    }
    let keys: Vec<ObjectKey> = names.iter().map(|name| key(name)).collect();
    bucket.delete(&keys).await.unwrap();
    assert!(bucket.list("").await.unwrap().is_empty());
}

async fn a_prefix_is_a_prefix_of_the_text(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    for name in ["p/a", "p/ab", "p/abc/d", "p/b", "pa", "q/a"] {
        bucket.put(&key(name), "x".into(), PutMode::Overwrite).await.unwrap();
    }
    for (prefix, expected) in [
        ("", vec!["p/a", "p/ab", "p/abc/d", "p/b", "pa", "q/a"]),
        ("p", vec!["p/a", "p/ab", "p/abc/d", "p/b", "pa"]),
        ("p/", vec!["p/a", "p/ab", "p/abc/d", "p/b"]),
        ("p/ab", vec!["p/ab", "p/abc/d"]),
        ("p/abc/", vec!["p/abc/d"]),
        ("p/a/", vec![]),
        ("../", vec![]),
    ] {
        let listed = bucket.list(prefix).await.unwrap();
        let listed: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(listed, expected, "{prefix:?}");
    }
}

async fn a_deletion_is_verified_and_can_be_repeated(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    for name in ["d/a", "d/b", "d/c"] {
        bucket.put(&key(name), "x".into(), PutMode::Overwrite).await.unwrap();
    }
    for _ in 0..2 {
        bucket.delete(&[key("d/a"), key("d/b"), key("d/a"), key("d/never-there")]).await.unwrap();
        assert_eq!(kind_of(bucket.head(&key("d/a")).await), ObjectStorageErrorKind::NotFound);
        assert_eq!(bucket.list("d/").await.unwrap().len(), 1);
    }
    bucket.delete(&[]).await.unwrap();
}

async fn many_deletions_take_few_requests(fixture: Fixture) {
    let (_, keys) = put_many(&fixture, 1100).await;
    let counter = RequestCounter::new();
    let options = ConnectOptions { request_counter: Some(counter.clone()), ..Default::default() };
    let provider = fixture.connect_with(options);
    let name = bucket_name();
    provider.create_bucket(&name, None).await.unwrap();
    let bucket = provider.open_bucket(&name);
    bucket.delete(&keys).await.unwrap();
    let counts = counter.counts();
    assert_eq!((counts.create_bucket, counts.delete, counts.list, counts.head), (1, 2, 1, 0));
}

async fn puts_of_one_key_do_not_mix(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let writers: Vec<_> = (1..=8u8)
        .map(|writer| {
            let bucket = bucket.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![writer; 300_000 + usize::from(writer)]);
                bucket.put(&key("shared"), body, PutMode::Overwrite).await
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let body = bucket.get(&key("shared")).await.unwrap();
    assert!(body.iter().all(|byte| *byte == body[0]), "two bodies are mixed");
    assert_eq!(body.len(), 300_000 + usize::from(body[0]));
}

async fn a_bucket_can_be_created_twice_and_by_many_at_once(fixture: Fixture) {
    let provider = fixture.connect();
    let name = bucket_name();
    provider.create_bucket(&name, None).await.unwrap();
    provider.open_bucket(&name).put(&key("kept"), "x".into(), PutMode::Overwrite).await.unwrap();
    provider.create_bucket(&name, None).await.unwrap();
    assert_eq!(provider.open_bucket(&name).list("").await.unwrap().len(), 1);

    let name = bucket_name();
    let creators: Vec<_> = (0..4)
        .map(|number| {
            let (provider, name) = (fixture.connect(), name.clone());
            tokio::spawn(async move { provider.create_bucket(&name, Some(&format!("hint-{number}"))).await })
        })
        .collect();
    for creator in creators {
        creator.await.unwrap().unwrap();
    }
    match provider.bucket_location(&name).await.unwrap() {
        BucketLocation::Reported(location) => {
            assert!(fixture.reports_location && location.starts_with("hint-"))
        }
        BucketLocation::NotReported => assert!(!fixture.reports_location),
    }
}

async fn the_first_location_hint_stays(fixture: Fixture) {
    let provider = fixture.connect();
    let (hinted, unhinted) = (bucket_name(), bucket_name());
    provider.create_bucket(&hinted, Some("weur")).await.unwrap();
    provider.create_bucket(&hinted, Some("enam")).await.unwrap();
    provider.create_bucket(&unhinted, None).await.unwrap();
    let expected = if fixture.reports_location {
        BucketLocation::Reported("weur".to_owned())
    } else {
        BucketLocation::NotReported
    };
    assert_eq!(fixture.connect().bucket_location(&hinted).await.unwrap(), expected);
    assert_eq!(provider.bucket_location(&unhinted).await.unwrap(), BucketLocation::NotReported);
}

async fn only_an_empty_bucket_is_deleted(fixture: Fixture) {
    let provider = fixture.connect();
    let name = bucket_name();
    provider.create_bucket(&name, None).await.unwrap();
    let bucket = provider.open_bucket(&name);
    bucket.put(&key("a/b/c"), "x".into(), PutMode::Overwrite).await.unwrap();
    assert_eq!(kind_of(provider.delete_bucket(&name).await), ObjectStorageErrorKind::Permanent);
    assert_eq!(bucket.get(&key("a/b/c")).await.unwrap(), "x");
    bucket.delete(&[key("a/b/c")]).await.unwrap();
    provider.delete_bucket(&name).await.unwrap();
    assert_eq!(kind_of(provider.bucket_location(&name).await), ObjectStorageErrorKind::NotFound);
}

async fn bad_bucket_names_reach_no_server(fixture: Fixture) {
    let counter = RequestCounter::new();
    let options = ConnectOptions { request_counter: Some(counter.clone()), ..Default::default() };
    let provider = fixture.connect_with(options);
    for name in ["", "../outside", "a/b", "Capital", ".incoming"] {
        let permanent = ObjectStorageErrorKind::Permanent;
        assert_eq!(kind_of(provider.create_bucket(name, None).await), permanent, "{name}");
        assert_eq!(kind_of(provider.bucket_location(name).await), permanent, "{name}");
        assert_eq!(kind_of(provider.delete_bucket(name).await), permanent, "{name}");
        let bucket = provider.open_bucket(name);
        assert_eq!(kind_of(bucket.list("").await), permanent, "{name}");
        assert_eq!(kind_of(bucket.get(&key("a")).await), permanent, "{name}");
        assert_eq!(kind_of(bucket.put(&key("a"), "x".into(), PutMode::Overwrite).await), permanent, "{name}");
    }
    assert_eq!(counter.counts(), Default::default());
}

/// Wrong key, then wrong secret: both are refused, at once.
fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn attributes_stay_with_their_object(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let described = attributes(&[("type", "shutdown"), ("tables", "[[\"a b\",3]]")]);
    let tag = bucket.put_if(&key("a/b"), "body".into(), PutCondition::Absent, &described).await.unwrap();
    let found = bucket.describe(&key("a/b")).await.unwrap();
    assert_eq!((found.size_bytes, &found.tag, &found.attributes), (4, &tag, &described));
    bucket.put(&key("plain"), "body".into(), PutMode::Overwrite).await.unwrap();
    assert!(bucket.describe(&key("plain")).await.unwrap().attributes.is_empty());
    assert_eq!(kind_of(bucket.describe(&key("absent")).await), ObjectStorageErrorKind::NotFound);
    for bad in
        [("Type", "x"), ("a b", "x"), ("type", "line\nend"), ("type", "\u{e9}"), ("type", &"x".repeat(2001))]
    {
        let name = key("bad");
        let put = bucket.put_if(&name, "x".into(), PutCondition::Absent, &attributes(&[bad])).await;
        assert_eq!(kind_of(put), ObjectStorageErrorKind::Permanent);
    }
    assert_eq!(bucket.list("").await.unwrap().len(), 2);
}

async fn a_conditional_put_replaces_only_the_version_that_it_expects(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let (name, none) = (key("status"), Attributes::new());
    let put =
        |body: &'static str, condition: PutCondition| bucket.put_if(&name, body.into(), condition, &none);
    let matches = |tag: &str| PutCondition::Matches(tag.to_owned());
    let first = put("first", PutCondition::Absent).await.unwrap();
    assert_eq!(kind_of(put("x", PutCondition::Absent).await), ObjectStorageErrorKind::AlreadyExists);
    let second = put("second", matches(&first)).await.unwrap();
    assert_eq!(kind_of(put("x", matches(&first)).await), ObjectStorageErrorKind::AlreadyExists);
    assert_eq!(bucket.get(&name).await.unwrap(), "second");
    assert_eq!(bucket.describe(&name).await.unwrap().tag, second);
    bucket.delete(std::slice::from_ref(&name)).await.unwrap();
    assert_eq!(kind_of(put("x", matches(&second)).await), ObjectStorageErrorKind::AlreadyExists);
    assert_eq!(kind_of(bucket.get(&name).await), ObjectStorageErrorKind::NotFound);
}

async fn one_of_many_conditional_puts_wins(fixture: Fixture) {
    if !fixture.create_only_is_atomic {
        return;
    }
    let bucket = fixture.bucket().await;
    let (name, none) = (key("race"), Attributes::new());
    let mut tag = bucket.put_if(&name, "begin".into(), PutCondition::Absent, &none).await.unwrap();
    for _ in 0..5 {
        let writers = (0..8).map(|writer| {
            let (bucket, name, condition) =
                (bucket.clone(), name.clone(), PutCondition::Matches(tag.clone()));
            tokio::spawn(async move {
                let body = Bytes::from(format!("writer {writer} {:?}", condition));
                (body.clone(), bucket.put_if(&name, body, condition, &Attributes::new()).await)
            })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                (body, Ok(new)) => winners.push((body, new)),
                (_, Err(error)) => assert_eq!(error.kind(), ObjectStorageErrorKind::AlreadyExists, "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(winners[0].0, bucket.get(&name).await.unwrap());
        tag = winners.remove(0).1;
    }
}

const PART_BYTES: u64 = 5 * 1024 * 1024;

/// A file of two whole parts and a piece of a third.
fn file_of_three_parts() -> (tempfile::NamedTempFile, Bytes) {
    let body = pattern(2 * PART_BYTES as usize + 12_345);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    (file, body)
}

async fn a_file_is_uploaded_in_parts_with_its_attributes(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let (file, body) = file_of_three_parts();
    let described = attributes(&[("sha256", "abc")]);
    for (name, part_bytes, body) in [
        ("three", PART_BYTES, body.clone()),
        ("one", 64 * 1024 * 1024, body),
        ("empty", PART_BYTES, Bytes::new()),
    ] {
        std::fs::write(file.path(), &body).unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let listener = told.clone();
        let progress: object_storage::UploadProgress = Arc::new(move |_, bytes| {
            listener.fetch_max(bytes, Ordering::SeqCst);
        });
        let upload = FileUpload {
            attributes: described.clone(),
            part_bytes,
            progress: Some(progress),
            ..FileUpload::default()
        };
        let found = bucket.upload_file(&key(name), file.path(), &upload).await.unwrap();
        assert_eq!((found.size_bytes, &found.attributes), (body.len() as u64, &described), "{name}");
        assert!(bucket.get(&key(name)).await.unwrap() == body, "{name}");
        assert_eq!(bucket.describe(&key(name)).await.unwrap(), found);
        assert_eq!(told.load(Ordering::SeqCst), body.len() as u64);
    }
}

async fn an_upload_never_replaces_an_object(fixture: Fixture) {
    let bucket = fixture.bucket().await;
    let (file, _) = file_of_three_parts();
    bucket.put(&key("taken"), "mine".into(), PutMode::Overwrite).await.unwrap();
    for part_bytes in [PART_BYTES, 64 * 1024 * 1024] {
        let upload = FileUpload { part_bytes, ..FileUpload::default() };
        // A server may refuse before it has read the body, and close the connection: then its answer is lost now and then,
        // and whoever uploads has to ask again.
        let mut refused = ObjectStorageErrorKind::Retryable;
        for _ in 0..100 {
            refused = kind_of(bucket.upload_file(&key("taken"), file.path(), &upload).await);
            if refused != ObjectStorageErrorKind::Retryable {
                break;
            }
        }
        assert_eq!(refused, ObjectStorageErrorKind::AlreadyExists);
        assert_eq!(bucket.get(&key("taken")).await.unwrap(), "mine");
    }
}

/// A state of an upload whose third part failed.
async fn stopped_upload(fixture: &Fixture, bucket_name: &str, file: &std::path::Path) -> UploadState {
    let faults = FaultInjector::new(FaultPlan::default());
    let options = ConnectOptions {
        retry: RetryPolicy::once(),
        faults: Some(faults.clone()),
        ..ConnectOptions::default()
    };
    let plan = r#"{"faults": [{"operation": "upload_part", "moment": {"nth": 3}, "action": {"fail": "permanent"}}]}"#;
    faults.set_plan(FaultPlan::from_json(plan).unwrap());
    let bucket = fixture.connect_with(options).open_bucket(bucket_name);
    let last = Arc::new(Mutex::new(None));
    let listener = last.clone();
    let progress: object_storage::UploadProgress =
        Arc::new(move |state: &UploadState, _| *listener.lock().unwrap() = Some(state.clone()));
    let upload =
        FileUpload { part_bytes: PART_BYTES, progress: Some(progress), parallel: 1, ..FileUpload::default() };
    let failed = bucket.upload_file(&key("large"), file, &upload).await;
    assert_eq!(kind_of(failed), ObjectStorageErrorKind::Permanent);
    let state = last.lock().unwrap().clone().unwrap();
    assert_eq!(state.parts.len(), 2);
    state
}

async fn an_upload_that_stopped_goes_on_from_its_state(fixture: Fixture) {
    let (file, body) = file_of_three_parts();
    let name = bucket_name();
    fixture.connect().create_bucket(&name, None).await.unwrap();
    let state = stopped_upload(&fixture, &name, file.path()).await;
    let json = serde_json::to_string(&state).unwrap();
    let counter = RequestCounter::new();
    let options = ConnectOptions { request_counter: Some(counter.clone()), ..ConnectOptions::default() };
    let bucket = fixture.connect_with(options).open_bucket(&name);
    let resume = Some(serde_json::from_str(&json).unwrap());
    let upload = FileUpload { part_bytes: PART_BYTES, resume: resume.clone(), ..FileUpload::default() };
    bucket.upload_file(&key("large"), file.path(), &upload).await.unwrap();
    assert!(bucket.get(&key("large")).await.unwrap() == body);
    assert_eq!(counter.counts().upload_part, 1, "two of three were stored before");

    // The upload is used up: the next one begins anew.
    bucket.delete(&[key("large")]).await.unwrap();
    bucket.upload_file(&key("large"), file.path(), &upload).await.unwrap();
    assert!(bucket.get(&key("large")).await.unwrap() == body);
}

async fn an_unfinished_upload_is_not_listed(fixture: Fixture) {
    let (file, _) = file_of_three_parts();
    let name = bucket_name();
    fixture.connect().create_bucket(&name, None).await.unwrap();
    let state = stopped_upload(&fixture, &name, file.path()).await;
    let bucket = fixture.connect().open_bucket(&name);
    assert!(bucket.list("").await.unwrap().is_empty());
    assert_eq!(kind_of(bucket.describe(&key("large")).await), ObjectStorageErrorKind::NotFound);
    // What is given up cannot be gone on with, and giving it up twice is no error.
    bucket.give_up_upload(&key("large"), &state).await.unwrap();
    if fixture.knows_uploads_that_are_gone {
        bucket.give_up_upload(&key("large"), &state).await.unwrap();
    }
    assert!(bucket.list("").await.unwrap().is_empty());
}

async fn an_expiry_rule_is_set_again_without_harm(fixture: Fixture) {
    let provider = fixture.connect();
    let name = bucket_name();
    provider.create_bucket(&name, None).await.unwrap();
    let rule = |days| ExpiryRule { id: "longhaul".to_owned(), prefix: "backups/".to_owned(), days };
    for days in [90, 90, 60] {
        assert_eq!(provider.set_expiry(&name, &rule(days)).await.unwrap(), fixture.expires_objects, "{days}");
    }
}

async fn wrong_credentials_are_refused(fixture: Fixture) {
    let name = bucket_name();
    fixture.connect().create_bucket(&name, None).await.unwrap();
    let ProviderSettings::S3(right) = fixture.settings.clone() else { panic!("not an S3 server") };
    for wrong in [
        S3Settings { access_key_id: "nobody".to_owned(), ..right.clone() },
        S3Settings { secret_access_key: "not-the-secret".into(), ..right },
    ] {
        let provider = ProviderSettings::S3(wrong).connect().unwrap();
        let bucket = provider.open_bucket(&name);
        let denied = ObjectStorageErrorKind::PermissionDenied;
        assert_eq!(kind_of(bucket.put(&key("a"), "x".into(), PutMode::Overwrite).await), denied);
        assert_eq!(kind_of(bucket.get(&key("a")).await), denied);
        assert_eq!(kind_of(bucket.head(&key("a")).await), denied);
        assert_eq!(kind_of(bucket.list("").await), denied);
        assert_eq!(kind_of(bucket.delete(&[key("a")]).await), denied);
        assert_eq!(kind_of(provider.create_bucket(&bucket_name(), None).await), denied);
    }
}

#[tokio::test]
async fn the_embedded_s3_server_refuses_wrong_credentials() {
    wrong_credentials_are_refused(Fixture::embedded_s3().await.unwrap()).await;
}

#[tokio::test]
async fn seaweedfs_refuses_wrong_credentials() {
    if let Some(fixture) = Fixture::seaweedfs().await {
        wrong_credentials_are_refused(fixture).await;
    }
}

#[tokio::test]
async fn an_unreachable_server_is_a_retryable_error_within_seconds() {
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let begin = Instant::now();
    let bucket = s3_settings(&endpoint).connect().unwrap().open_bucket("some-bucket");
    assert_eq!(kind_of(bucket.get(&key("a")).await), ObjectStorageErrorKind::Retryable);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_given_up() {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let options = ConnectOptions {
        retry: RetryPolicy { attempts: 3, ..Default::default() },
        time_limits: TimeLimits { attempt: Duration::from_millis(200), ..Default::default() },
        ..Default::default()
    };
    let begin = Instant::now();
    let bucket = s3_settings(&endpoint).connect_with(options).unwrap().open_bucket("some-bucket");
    assert_eq!(kind_of(bucket.list("").await), ObjectStorageErrorKind::Retryable);
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(600) && elapsed < Duration::from_secs(5), "{elapsed:?}");
}

#[tokio::test]
async fn a_directory_that_is_not_mounted_is_a_retryable_error() {
    let fixture = Fixture::local().await.unwrap();
    let ProviderSettings::Local(mut settings) = fixture.settings.clone() else { panic!("not a directory") };
    settings.root = settings.root.join("not-mounted");
    let provider = ProviderSettings::Local(settings).connect_with(RetryPolicy::once()).unwrap();
    let retryable = ObjectStorageErrorKind::Retryable;
    assert_eq!(kind_of(provider.create_bucket("some-bucket", None).await), retryable);
    assert_eq!(kind_of(provider.bucket_location("some-bucket").await), retryable);
    assert_eq!(kind_of(provider.open_bucket("some-bucket").list("").await), retryable);
}

#[tokio::test]
async fn a_directory_keeps_its_objects_as_plain_files_and_nothing_else() {
    let fixture = Fixture::local().await.unwrap();
    let ProviderSettings::Local(settings) = fixture.settings.clone() else { panic!("not a directory") };
    let provider = fixture.connect();
    provider.create_bucket("plain-files", Some("weur")).await.unwrap();
    let bucket = provider.open_bucket("plain-files");
    bucket.put(&key("a/b"), "body".into(), PutMode::Overwrite).await.unwrap();
    let _ = bucket.put(&key("a/b"), "other".into(), PutMode::CreateOnly).await.unwrap_err();
    let as_a_directory = bucket.put(&key("a/b/c"), "x".into(), PutMode::Overwrite).await;
    assert_eq!(kind_of(as_a_directory), ObjectStorageErrorKind::Permanent);
    let over_a_directory = bucket.put(&key("a"), "x".into(), PutMode::Overwrite).await;
    assert_eq!(kind_of(over_a_directory), ObjectStorageErrorKind::Permanent);
    assert_eq!(std::fs::read_to_string(settings.root.join("plain-files/a/b")).unwrap(), "body");
    let unfinished = std::fs::read_dir(settings.root.join(".incoming")).unwrap().count();
    assert_eq!(unfinished, 0, "no unfinished write is left behind");
    bucket.delete(&[key("a/b")]).await.unwrap();
    assert!(!settings.root.join("plain-files/a").exists(), "an empty directory is left behind");
}

#[tokio::test]
async fn a_listing_of_a_directory_with_something_foreign_is_an_error() {
    let fixture = Fixture::local().await.unwrap();
    let ProviderSettings::Local(settings) = fixture.settings.clone() else { panic!("not a directory") };
    let provider = fixture.connect();
    provider.create_bucket("foreign-things", None).await.unwrap();
    let bucket = provider.open_bucket("foreign-things");
    bucket.put(&key("ours/a"), "x".into(), PutMode::Overwrite).await.unwrap();
    std::os::unix::fs::symlink("/etc", settings.root.join("foreign-things/theirs")).unwrap();
    assert_eq!(kind_of(bucket.list("").await), ObjectStorageErrorKind::Permanent);
    assert_eq!(bucket.list("ours/").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_deletions_in_one_directory_do_not_disturb_each_other() {
    let fixture = Fixture::local().await.unwrap();
    let bucket = fixture.bucket().await;
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let bucket = bucket.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let name = key(&format!("x/y/z/{task}"));
                    bucket.put(&name, "x".into(), PutMode::Overwrite).await.unwrap();
                    bucket.delete(&[name]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(bucket.list("").await.unwrap().is_empty());
}
