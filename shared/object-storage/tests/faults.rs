//! Each fault of the fault layer, and what the callers of the public interface see of it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_storage::{
    BucketControl, BucketLocation, ConnectOptions, FAULT_PLAN_VARIABLE, Fault, FaultAction, FaultInjector,
    FaultMoment, FaultPlan, InjectedFailure, LocationAnswer, LocationRule, ObjectKey, ObjectStorageErrorKind,
    ObjectStore, PutMode, RequestCounter, RequestCounts, RequestKind, RetryPolicy, TimeLimits,
};
use support::{Fixture, key, kind_of, pattern};

const QUICK: RetryPolicy = RetryPolicy {
    attempts: 3,
    base_delay: Duration::from_millis(1),
    maximum_delay: Duration::from_millis(2),
};

/// A bucket of a directory, with faults to come, and with its requests counted.
struct Faulty {
    faults: FaultInjector,
    counter: Arc<RequestCounter>,
    provider: Arc<dyn BucketControl>,
    bucket: Arc<dyn ObjectStore>,
    _fixture: Fixture,
}

impl Faulty {
    async fn local() -> Self {
        Self::over(Fixture::local().await.unwrap(), FaultInjector::new(FaultPlan::default())).await
    }

    async fn over(fixture: Fixture, faults: FaultInjector) -> Self {
        let counter = RequestCounter::new();
        let provider = fixture.connect_with(ConnectOptions {
            retry: QUICK,
            time_limits: TimeLimits { attempt: Duration::from_secs(2), ..Default::default() },
            faults: Some(faults.clone()),
            request_counter: Some(counter.clone()),
        });
        provider.create_bucket("faulty", Some("weur")).await.unwrap();
        let bucket = provider.open_bucket("faulty");
        Self { faults, counter, provider, bucket, _fixture: fixture }
    }

    fn inject(&self, operation: RequestKind, moment: FaultMoment, action: FaultAction) {
        self.faults
            .set_plan(FaultPlan { faults: vec![fault(operation, moment, action)], ..Default::default() });
    }

    fn heal(&self) {
        self.faults.set_plan(FaultPlan::default());
    }

    async fn put(&self, name: &str, body: impl Into<Bytes>) {
        self.bucket.put(&key(name), body.into(), PutMode::Overwrite).await.unwrap();
    }

    /// The requests that `work` took.
    async fn requests_of<T>(&self, work: impl Future<Output = T>) -> (T, RequestCounts) {
        let before = self.counter.counts();
        let done = work.await;
        let after = self.counter.counts();
        let taken = RequestCounts {
            put: after.put - before.put,
            get: after.get - before.get,
            head: after.head - before.head,
            list: after.list - before.list,
            delete: after.delete - before.delete,
            ..Default::default()
        };
        (done, taken)
    }
}

fn fault(operation: RequestKind, moment: FaultMoment, action: FaultAction) -> Fault {
    Fault { operation: Some(operation), bucket: "*".into(), key: "*".into(), moment, action }
}

#[tokio::test]
async fn a_retryable_failure_is_tried_again_until_it_passes() {
    let faulty = Faulty::local().await;
    faulty.inject(RequestKind::Put, FaultMoment::First(2), FaultAction::Fail(InjectedFailure::Retryable));
    let ((), taken) = faulty.requests_of(faulty.put("a", "body")).await;
    assert_eq!(taken, RequestCounts { put: 3, ..Default::default() });
    assert_eq!(faulty.bucket.get(&key("a")).await.unwrap(), "body");
}

#[tokio::test]
async fn a_retryable_failure_without_end_ends_after_all_attempts() {
    let faulty = Faulty::local().await;
    faulty.inject(RequestKind::Get, FaultMoment::Every, FaultAction::Fail(InjectedFailure::Retryable));
    let (got, taken) = faulty.requests_of(faulty.bucket.get(&key("a"))).await;
    assert_eq!(kind_of(got), ObjectStorageErrorKind::Retryable);
    assert_eq!(taken, RequestCounts { get: 3, ..Default::default() });
}

#[tokio::test]
async fn a_permanent_failure_is_not_tried_again() {
    let faulty = Faulty::local().await;
    for (failure, kind) in [
        (InjectedFailure::Permanent, ObjectStorageErrorKind::Permanent),
        (InjectedFailure::PermissionDenied, ObjectStorageErrorKind::PermissionDenied),
        (InjectedFailure::NotFound, ObjectStorageErrorKind::NotFound),
    ] {
        faulty.inject(RequestKind::Put, FaultMoment::Every, FaultAction::Fail(failure));
        let name = key("a");
        let put = faulty.bucket.put(&name, "body".into(), PutMode::Overwrite);
        let (put, taken) = faulty.requests_of(put).await;
        assert_eq!(kind_of(put), kind);
        assert_eq!(taken, RequestCounts { put: 1, ..Default::default() });
    }
    assert!(faulty.bucket.list("").await.unwrap().is_empty(), "a failed put leaves nothing");
}

#[tokio::test]
async fn a_fault_meets_only_the_keys_and_the_moments_that_it_names() {
    let faulty = Faulty::local().await;
    let mut third_of_data =
        fault(RequestKind::Put, FaultMoment::Nth(3), FaultAction::Fail(InjectedFailure::Permanent));
    third_of_data.key = "*/data/*".to_owned();
    faulty.faults.set_plan(FaultPlan { faults: vec![third_of_data], ..Default::default() });
    for name in ["r/data/1", "r/index/1", "r/index/2", "r/data/2"] {
        faulty.put(name, "x").await;
    }
    let third = faulty.bucket.put(&key("r/data/3"), "x".into(), PutMode::Overwrite).await;
    assert_eq!(kind_of(third), ObjectStorageErrorKind::Permanent);
    faulty.put("r/data/4", "x").await;
}

#[tokio::test]
async fn a_fault_can_begin_with_a_number_of_requests_or_of_bytes() {
    let faulty = Faulty::local().await;
    for moment in [FaultMoment::From(3), FaultMoment::AfterBytes(2000)] {
        faulty.inject(RequestKind::Put, moment, FaultAction::Fail(InjectedFailure::Permanent));
        faulty.put("a", pattern(1000)).await;
        faulty.put("b", pattern(1000)).await;
        for _ in 0..2 {
            let put = faulty.bucket.put(&key("c"), pattern(1), PutMode::Overwrite).await;
            assert_eq!(kind_of(put), ObjectStorageErrorKind::Permanent, "{moment:?}");
        }
    }
}

#[tokio::test]
async fn a_delay_passes_unless_it_exceeds_the_time_limit() {
    let faulty = Faulty::local().await;
    faulty.put("a", "body").await;
    let delay = |milliseconds| FaultAction::Delay { milliseconds };
    faulty.inject(RequestKind::Get, FaultMoment::Every, delay(100));
    let begin = Instant::now();
    assert_eq!(faulty.bucket.get(&key("a")).await.unwrap(), "body");
    assert!(begin.elapsed() >= Duration::from_millis(100));

    faulty.inject(RequestKind::Get, FaultMoment::Nth(1), delay(3_600_000));
    let (got, taken) = faulty.requests_of(faulty.bucket.get(&key("a"))).await;
    assert_eq!(got.unwrap(), "body");
    assert_eq!(taken, RequestCounts { get: 2, ..Default::default() });
}

#[tokio::test]
async fn a_body_that_breaks_off_is_read_again_and_never_passed_on_short() {
    let faulty = Faulty::local().await;
    faulty.put("a", pattern(1000)).await;
    faulty.inject(RequestKind::Get, FaultMoment::First(2), FaultAction::TruncateBody { bytes: 10 });
    assert_eq!(faulty.bucket.get(&key("a")).await.unwrap(), pattern(1000));
    faulty.inject(RequestKind::Get, FaultMoment::Every, FaultAction::TruncateBody { bytes: 10 });
    let retryable = ObjectStorageErrorKind::Retryable;
    assert_eq!(kind_of(faulty.bucket.get(&key("a")).await), retryable);
    assert_eq!(kind_of(faulty.bucket.get_range(&key("a"), 5, 100).await), retryable);
    assert_eq!(faulty.bucket.get_range(&key("a"), 0, 10).await.unwrap(), pattern(10), "short enough to pass");
}

#[tokio::test]
async fn a_write_that_breaks_off_stores_nothing() {
    let faulty = Faulty::local().await;
    faulty.inject(RequestKind::Put, FaultMoment::Every, FaultAction::TruncateBody { bytes: 10 });
    let put = faulty.bucket.put(&key("a"), pattern(1000), PutMode::Overwrite).await;
    assert_eq!(kind_of(put), ObjectStorageErrorKind::Retryable);
    faulty.heal();
    assert!(faulty.bucket.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_create_only_put_whose_answer_is_lost_knows_its_own_object() {
    let faulty = Faulty::local().await;
    faulty.inject(RequestKind::Put, FaultMoment::Nth(1), FaultAction::LoseAcknowledgement);
    faulty.bucket.put(&key("mine"), "mine".into(), PutMode::CreateOnly).await.unwrap();
    assert_eq!(faulty.bucket.get(&key("mine")).await.unwrap(), "mine");

    faulty.heal();
    faulty.put("theirs", "theirs").await;
    faulty.inject(RequestKind::Put, FaultMoment::Nth(1), FaultAction::Fail(InjectedFailure::Retryable));
    let put = faulty.bucket.put(&key("theirs"), "mine".into(), PutMode::CreateOnly).await;
    assert_eq!(kind_of(put), ObjectStorageErrorKind::AlreadyExists);
    assert_eq!(faulty.bucket.get(&key("theirs")).await.unwrap(), "theirs");
}

#[tokio::test]
async fn lost_answers_to_deletions_and_bucket_requests_do_no_harm() {
    let faulty = Faulty::local().await;
    faulty.put("a", "body").await;
    faulty.inject(RequestKind::Delete, FaultMoment::Nth(1), FaultAction::LoseAcknowledgement);
    faulty.bucket.delete(&[key("a")]).await.unwrap();
    faulty.inject(RequestKind::CreateBucket, FaultMoment::Nth(1), FaultAction::LoseAcknowledgement);
    faulty.provider.create_bucket("another", None).await.unwrap();
    faulty.inject(RequestKind::DeleteBucket, FaultMoment::Nth(1), FaultAction::LoseAcknowledgement);
    faulty.provider.delete_bucket("another").await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_lies_once_is_repeated() {
    let faulty = Faulty::local().await;
    faulty.put("a", "x").await;
    faulty.put("b", "x").await;
    faulty.inject(RequestKind::Delete, FaultMoment::Nth(1), FaultAction::PretendDeletion);
    let keys = [key("a"), key("b")];
    let (deleted, taken) = faulty.requests_of(faulty.bucket.delete(&keys)).await;
    deleted.unwrap();
    assert_eq!(taken, RequestCounts { delete: 2, head: 4, ..Default::default() });
    assert!(faulty.bucket.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_deletion_that_always_lies_is_an_error_whether_verified_by_key_or_by_listing() {
    let faulty = Faulty::local().await;
    for count in [3, 150] {
        faulty.heal();
        let keys: Vec<ObjectKey> = (0..count).map(|index| key(&format!("d/{index}"))).collect();
        for key in &keys {
            faulty.put(key.as_str(), "x").await;
        }
        let mut lie = fault(RequestKind::Delete, FaultMoment::Every, FaultAction::PretendDeletion);
        lie.key = "d/2".to_owned();
        faulty.faults.set_plan(FaultPlan { faults: vec![lie], ..Default::default() });
        let error = faulty.bucket.delete(&keys).await.unwrap_err();
        assert_eq!(error.kind(), ObjectStorageErrorKind::Retryable);
        assert!(error.to_string().contains("d/2: 1 object(s) are still there"), "{error}");
        assert_eq!(faulty.bucket.list("d/").await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_listing_can_leave_out_objects() {
    let faulty = Faulty::local().await;
    for name in ["r/index/1", "r/index/2", "r/data/1"] {
        faulty.put(name, "x").await;
    }
    let mut omission = fault(RequestKind::List, FaultMoment::Every, FaultAction::OmitFromListing);
    omission.key = "*/index/*".to_owned();
    faulty.faults.set_plan(FaultPlan { faults: vec![omission], ..Default::default() });
    let listed = faulty.bucket.list("r/").await.unwrap();
    assert_eq!(listed.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["r/data/1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_with_a_failing_page_is_an_error_and_never_a_part() {
    let fixture = Fixture::embedded_s3().await.unwrap();
    let faulty = Faulty::over(fixture, FaultInjector::new(FaultPlan::default())).await;
    for index in 0..1001 {
        faulty.put(&format!("pages/{index:04}"), "").await;
    }
    let second_page = |moment, failure| faulty.inject(RequestKind::List, moment, FaultAction::Fail(failure));
    second_page(FaultMoment::From(2), InjectedFailure::Permanent);
    assert_eq!(kind_of(faulty.bucket.list("pages/").await), ObjectStorageErrorKind::Permanent);
    second_page(FaultMoment::From(2), InjectedFailure::Retryable);
    assert_eq!(kind_of(faulty.bucket.list("pages/").await), ObjectStorageErrorKind::Retryable);
    second_page(FaultMoment::Nth(2), InjectedFailure::Retryable);
    assert_eq!(faulty.bucket.list("pages/").await.unwrap().len(), 1001, "the page alone is asked for again");
}

#[tokio::test]
async fn a_bucket_can_be_reported_elsewhere_than_asked_for() {
    let faulty = Faulty::local().await;
    let rule = |bucket: &str, answer| LocationRule { bucket: bucket.to_owned(), answer };
    faulty.faults.set_plan(FaultPlan {
        report_location: vec![
            rule("elsewhere-*", LocationAnswer::Fixed("enam".to_owned())),
            rule("silent-*", LocationAnswer::NotReported),
            rule("r2-*", LocationAnswer::FirstHint),
        ],
        ..Default::default()
    });
    let provider = &faulty.provider;
    let reported = |location: &str| BucketLocation::Reported(location.to_owned());
    for (bucket, expected) in [
        ("elsewhere-1", reported("enam")),
        ("silent-1", BucketLocation::NotReported),
        ("r2-1", reported("weur")),
        ("plain-1", reported("weur")),
    ] {
        provider.create_bucket(bucket, Some("weur")).await.unwrap();
        assert_eq!(provider.bucket_location(bucket).await.unwrap(), expected, "{bucket}");
    }
    provider.delete_bucket("r2-1").await.unwrap();
    assert_eq!(kind_of(provider.bucket_location("r2-1").await), ObjectStorageErrorKind::NotFound);
    provider.create_bucket("r2-1", Some("apac")).await.unwrap();
    assert_eq!(provider.bucket_location("r2-1").await.unwrap(), reported("weur"), "sticky by its name");
}

#[tokio::test]
async fn a_plan_in_a_file_is_followed_as_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("faults.json");
    let replace = |json: &str| {
        let new = directory.path().join("new.json");
        std::fs::write(&new, json).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    let faulty = Faulty::over(Fixture::local().await.unwrap(), FaultInjector::from_file(&file)).await;
    faulty.put("a", "before there is a plan").await;

    replace(r#"{"faults": [{"operation": "put", "action": {"fail": "permanent"}}]}"#);
    let name = key("a");
    let put = || faulty.bucket.put(&name, "x".into(), PutMode::Overwrite);
    assert_eq!(kind_of(put().await), ObjectStorageErrorKind::Permanent);
    replace(r#"{"faults": [{"operation": "put", "action": {"fail": "permission_denied"}}]}"#);
    assert_eq!(kind_of(put().await), ObjectStorageErrorKind::PermissionDenied);
    replace("no plan at all");
    let error = put().await.unwrap_err();
    assert!(error.to_string().contains("the plan of faults cannot be read"), "{error}");
    std::fs::remove_file(&file).unwrap();
    put().await.unwrap();
}

/// The environment of a process cannot change under its other threads: so this test is a process of its own.
#[tokio::test]
async fn the_environment_names_a_plan_for_the_whole_process() {
    if std::env::var_os(FAULT_PLAN_VARIABLE).is_some() {
        let fixture = Fixture::local().await.unwrap();
        let provider = fixture.settings.connect().unwrap();
        provider.create_bucket("faulty", None).await.unwrap();
        let put = |provider: Arc<dyn BucketControl>| async move {
            provider.open_bucket("faulty").put(&key("a"), "x".into(), PutMode::Overwrite).await
        };
        put(provider).await.unwrap();
        let second = put(fixture.settings.connect().unwrap()).await;
        assert_eq!(
            kind_of(second),
            ObjectStorageErrorKind::Permanent,
            "both connections are counted together"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("faults.json");
    let plan = r#"{"faults": [{"operation": "put", "moment": {"nth": 2}, "action": {"fail": "permanent"}}]}"#;
    std::fs::write(&file, plan).unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_environment_names_a_plan_for_the_whole_process"])
        .env(FAULT_PLAN_VARIABLE, &file)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}
