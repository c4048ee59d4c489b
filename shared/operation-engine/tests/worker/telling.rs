//! What the worker tells: events and ends come to the registry once, in order and soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bus_messages::{EventLevel, Outcome};
use operation_engine::{OperationContext, WorkerTiming};
use serde_json::{Value, json};

use crate::setting::{Setting, fast, steps};
use crate::support::wait_for;

#[tokio::test]
async fn ends_are_told_together_and_what_was_not_told_yet_goes_with_them() {
    let work = |context: OperationContext| async move {
        context.event(EventLevel::Info, "sleep", "the only one", None);
        Ok(json!({ "done": true }))
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let operations: Vec<_> = (0..20).map(|_| setting.registry.add(30.0, None)).collect();
    setting.wake().await;
    let mut told_with_the_end = 0;
    for op_id in &operations {
        let finish = setting.registry.finished(*op_id).await;
        told_with_the_end += finish.progress.map_or(0, |progress| progress.events.len());
        let known = setting.registry.of(*op_id);
        let events: Vec<_> = known.events.iter().map(|event| (event.n, event.message.as_str())).collect();
        assert_eq!(events, [(1, "the only one")]);
    }
    // A nudge has the worker ask about all that runs, and tell what there is by then.
    assert!(told_with_the_end > 10, "{told_with_the_end} of 20");
    assert_eq!(setting.registry.ends_alone.load(Ordering::Relaxed), 0);
    let messages = setting.registry.messages_of_ends.lock().unwrap().clone();
    assert_eq!(messages.iter().sum::<usize>(), 20, "{messages:?}");
    assert!(messages.iter().any(|ends| *ends > 1), "{messages:?}");
    setting.draining.cancel();
    setting.ended().await;
}

#[tokio::test]
async fn the_next_are_begun_while_ends_are_recorded_but_not_without_limit() {
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let work = move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok(json!(null)) }
    };
    // Long enough for many more to be begun than may be.
    let timing = WorkerTiming { request_timeout: Duration::from_secs(4), ..WorkerTiming::default() };
    let Some(setting) = Setting::start(timing, work).await else { return };
    setting.registry.ends_to_lose.store(u32::MAX, Ordering::Relaxed);
    let operations: Vec<_> = (0..500).map(|_| setting.registry.add(30.0, None)).collect();
    setting.wake().await;
    wait_for("ends are given up with others, and told alone", async || {
        let alone = setting.registry.ends_alone.load(Ordering::Relaxed);
        if alone > 0 { Ok(()) } else { Err(format!("{started:?} started")) }
    })
    .await;
    // Two slots: four messages of two ends each, then two operations whose slots stay taken; and some, since places
    // and slots are free again just before the first end comes alone.
    let begun = started.load(Ordering::Relaxed);
    assert!((6..60).contains(&begun), "{begun}");
    setting.registry.ends_to_lose.store(0, Ordering::Relaxed);
    for op_id in operations {
        setting.registry.finished(op_id).await;
    }
    setting.draining.cancel();
    setting.ended().await;
}

#[tokio::test]
async fn an_end_that_is_not_heard_with_others_or_too_large_for_that_is_told_by_itself() {
    let large = "x".repeat(20_000);
    let text = large.clone();
    let work = move |context: OperationContext| {
        let result = if context.op().input["seconds"] == 2.0 { json!(large) } else { json!("small") };
        async move { Ok(result) }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    setting.registry.ends_to_lose.store(1, Ordering::Relaxed);
    let small = setting.add().await;
    assert_eq!(setting.registry.finished(small).await.result, Some(json!("small")));
    assert_eq!(setting.registry.ends_alone.load(Ordering::Relaxed), 1);
    let large = setting.registry.add_of(json!({ "seconds": 2.0 }), 30.0, None);
    setting.wake().await;
    assert_eq!(setting.registry.finished(large).await.result, Some(json!(text)));
    assert_eq!(setting.registry.ends_alone.load(Ordering::Relaxed), 2);
    setting.draining.cancel();
    setting.ended().await;
}

#[tokio::test]
async fn operations_are_claimed_run_and_finished_with_their_events() {
    let work = |context: OperationContext| async move {
        context.event(EventLevel::Info, "sleep", "started", Some(json!({ "a": 1 })));
        for step in 1..=1000 {
            context.progress("sleep", format!("step {step}"), steps(step, 1000));
        }
        context.event(EventLevel::Warn, "sleep", "nearly done", None);
        Ok(json!({ "steps": 1000 }))
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let started = Instant::now();
    // More than there are slots, so that freed ones are used.
    let mut operations = Vec::new();
    for _ in 0..5 {
        operations.push(setting.add().await);
    }
    for op_id in operations.iter().copied() {
        let finish = setting.registry.finished(op_id).await;
        assert_eq!((finish.outcome, finish.result), (Outcome::Succeeded, Some(json!({ "steps": 1000 }))));
        let known = setting.registry.of(op_id);
        let events: Vec<_> = known.events.iter().map(|event| (event.n, event.message.as_str())).collect();
        assert_eq!(events.first(), Some(&(1, "started")));
        assert_eq!(events.last().unwrap().1, "nearly done");
        assert!(events.len() <= 5, "coalesced: {events:?}");
        assert!(events.iter().any(|(_, message)| *message == "step 1000"));
        assert_eq!(known.summary.unwrap().progress, 100.0);
    }
    assert!(started.elapsed() < Duration::from_secs(4), "by wake-ups and freed slots, not by polling");
    setting.draining.cancel();
    let recorded = Arc::clone(&setting.recorded);
    setting.ended().await;
    recorded.lock().unwrap().sort_unstable();
    assert_eq!(*recorded.lock().unwrap(), operations);
}

#[tokio::test]
async fn events_whose_answer_was_lost_are_sent_again_without_hole_or_double() {
    let work = |context: OperationContext| async move {
        for step in 1..=8 {
            context.event(EventLevel::Info, "sleep", format!("step {step}"), None);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Value::Null)
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    setting.registry.replies_to_lose.store(2, Ordering::Relaxed);
    let op_id = setting.add().await;
    assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Succeeded);
    let numbers: Vec<u64> = setting.registry.of(op_id).events.iter().map(|event| event.n).collect();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_nudge_has_a_worker_look_unless_it_names_only_kinds_that_it_could_not_begin() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let work = move |_: OperationContext| {
        let (mut gone, begin) = (gone.clone(), begin.clone());
        async move {
            begin.send(()).unwrap();
            let _ = gone.wait_for(|gone| *gone).await;
            Ok(json!({}))
        }
    };
    let timing = WorkerTiming { poll: Duration::from_secs(3600), ..WorkerTiming::default() };
    let Some(setting) = Setting::start(timing, work).await else { return };
    let claims = || setting.registry.claims.load(Ordering::Relaxed);
    let more_claims = async |before: u32, patience: Duration| {
        let looking = async {
            while claims() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(patience, looking).await.is_ok()
    };
    let nudge = async |nudge: &'static str| {
        let before = claims();
        setting.bus.publish("wake.hub".to_owned(), nudge.into()).await.unwrap();
        before
    };
    let (soon, never) = (Duration::from_secs(15), Duration::from_millis(500));
    // The first look is its own.
    assert!(more_claims(0, soon).await);
    for text in
        ["", "{}", r#"{"kinds":[]}"#, r#"{"kinds":["test-sleep"]}"#, "what is this?", r#"{"later":1}"#]
    {
        let before = nudge(text).await;
        assert!(more_claims(before, soon).await, "{text:?}");
    }
    let before = nudge(r#"{"kinds":["project-backup"]}"#).await;
    assert!(!more_claims(before, never).await, "it has no such handler");

    // Both slots are taken, and the third operation waits for one.
    let operations: Vec<_> = (0..3).map(|_| setting.registry.add(30.0, None)).collect();
    nudge(r#"{"kinds":["project-backup","test-sleep"]}"#).await;
    for _ in 0..2 {
        tokio::time::timeout(soon, begun.recv()).await.unwrap().unwrap();
    }
    while more_claims(claims(), never).await {}
    let before = nudge(r#"{"kinds":["test-sleep"]}"#).await;
    assert!(!more_claims(before, never).await, "no slot is free");
    go.send(true).unwrap();
    for op_id in operations {
        assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Succeeded);
    }
    setting.draining.cancel();
    setting.ended().await;
}
