//! Work stops when it is to stop, and never outlives its lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus_messages::Outcome;
use operation_engine::{OperationContext, OperationFailure, WorkerTiming};
use serde_json::{Value, json};

use crate::setting::{Setting, fast};
use crate::support::wait_for;

#[tokio::test]
async fn a_lost_lease_stops_the_work_and_nothing_is_finished() {
    let seen = Arc::new(Mutex::new(None));
    let (seen_by_work, started) = (Arc::clone(&seen), Arc::new(AtomicBool::new(false)));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let (seen, started) = (Arc::clone(&seen_by_work), Arc::clone(&started_work));
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            let checkpoint = context.save_checkpoint(&json!({ "late": true })).await;
            *seen.lock().unwrap() = Some((context.is_lost(), context.is_canceled(), checkpoint));
            Ok(json!("too late"))
        }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    let op_id = setting.add().await;
    setting.started(&started).await;
    setting.registry.change(op_id, |known| known.lost = true);
    let seen =
        wait_for("the handler sees it", async || seen.lock().unwrap().clone().ok_or("not yet".to_owned()))
            .await;
    assert_eq!(seen, (true, false, Err(OperationFailure::Lost)));
    setting.draining.cancel();
    let registry = Arc::clone(&setting.registry);
    setting.ended().await;
    let known = registry.of(op_id);
    assert_eq!((known.finish, known.checkpoint), (None, None));
}

#[tokio::test]
async fn a_handler_that_does_not_see_the_loss_is_aborted_and_its_slot_is_free_again() {
    let work = |_| std::future::pending();
    let Some(setting) = Setting::start(fast(), work).await else { return };
    let (one, two) = (setting.add().await, setting.add().await);
    wait_for("both run", async || {
        let beats = setting.registry.of(one).heartbeats.min(setting.registry.of(two).heartbeats);
        if beats > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let third = setting.add().await;
    setting.registry.change(one, |known| known.lost = true);
    wait_for("the third runs in the freed slot", async || {
        if setting.registry.of(third).heartbeats > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(setting.registry.of(one).finish, None);
}

#[tokio::test]
async fn a_cancel_reaches_the_work_by_a_wake_up_and_not_by_the_next_heartbeat() {
    let started = Arc::new(AtomicBool::new(false));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            context.unless_stopped(std::future::pending::<()>()).await?;
            Ok(Value::Null)
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add().await;
    setting.started(&started).await;
    let canceled = Instant::now();
    setting.registry.change(op_id, |known| known.cancel_requested = true);
    setting.wake().await;
    assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Canceled);
    assert!(canceled.elapsed() < Duration::from_secs(2), "{:?}", canceled.elapsed());
    // The same while the worker is being drained.
    started.store(false, Ordering::Relaxed);
    let op_id = setting.add().await;
    setting.started(&started).await;
    setting.draining.cancel();
    setting.registry.change(op_id, |known| known.cancel_requested = true);
    setting.wake().await;
    assert_eq!(setting.registry.finished(op_id).await.outcome, Outcome::Canceled);
    setting.ended().await;
}

#[tokio::test]
async fn what_is_to_give_way_is_handed_back_unless_it_is_done_or_canceled() {
    let started = Arc::new(AtomicBool::new(false));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            assert!(!context.is_stopping(), "the worker goes on");
            match context.checkpoint::<String>()?.as_deref() {
                Some("done") => Ok(Value::Null),
                Some("failed") => Err(OperationFailure::retryable("child_killed", "because it is to stop")),
                _ => context.check().map(|()| Value::Null),
            }
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    for (at_last, is_canceled, outcome) in [
        ("unfinished", false, Outcome::HandedBack),
        ("failed", false, Outcome::HandedBack),
        ("done", false, Outcome::Succeeded),
        ("unfinished", true, Outcome::Canceled),
    ] {
        started.store(false, Ordering::Relaxed);
        let op_id = setting.add_with(30.0, Some(json!(at_last))).await;
        setting.started(&started).await;
        setting.registry.change(op_id, |known| {
            (known.give_way, known.cancel_requested) = (true, is_canceled);
        });
        setting.wake().await;
        let finish = setting.registry.finished(op_id).await;
        assert_eq!(
            (finish.outcome, finish.gives_way),
            (outcome, outcome == Outcome::HandedBack),
            "{at_last}"
        );
    }
}

#[tokio::test]
async fn the_work_stops_before_its_lease_ends_when_the_registry_is_silent() {
    let stopped = Arc::new(Mutex::new(None));
    let (stopped_work, started) = (Arc::clone(&stopped), Arc::new(AtomicBool::new(false)));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let (stopped, started) = (Arc::clone(&stopped_work), Arc::clone(&started_work));
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            let left = context.lease_deadline().saturating_duration_since(tokio::time::Instant::now());
            *stopped.lock().unwrap() = Some((context.is_lost(), left));
            Err(OperationFailure::Lost)
        }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    let op_id = setting.add_with(1.2, None).await;
    setting.started(&started).await;
    setting.registry.silent.store(true, Ordering::Relaxed);
    let (lost, left) =
        wait_for("the work stops", async || stopped.lock().unwrap().ok_or_else(|| "not yet".to_owned()))
            .await;
    assert!(lost);
    assert!(left > Duration::from_millis(100), "{left:?} were left");
    assert_eq!(setting.registry.of(op_id).finish, None);
}

/// More than a lease.
const GRACE: Duration = Duration::from_secs(30);

/// How long work that does not stop goes on without a lease, once the registry is silent; `None` without a server.
async fn outlives_its_lease(is_stopping: bool) -> Option<Duration> {
    /// Says, when it is aborted, for how long it has had no lease.
    struct Running(OperationContext, Arc<Mutex<Option<Duration>>>);
    impl Drop for Running {
        fn drop(&mut self) {
            let without = tokio::time::Instant::now().saturating_duration_since(self.0.lease_deadline());
            *self.1.lock().unwrap() = Some(without);
        }
    }
    let (aborted, started) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
    let (aborted_work, started_work) = (Arc::clone(&aborted), Arc::clone(&started));
    let work = move |context: OperationContext| {
        let running = Running(context, Arc::clone(&aborted_work));
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            let _running = running;
            std::future::pending().await
        }
    };
    let timing = WorkerTiming { grace: GRACE, margin: Duration::from_millis(200), ..fast() };
    let setting = Setting::start(timing, work).await?;
    let op_id = setting.add_with(1.2, None).await;
    setting.started(&started).await;
    if is_stopping {
        setting.stopping.cancel();
        let before = setting.registry.of(op_id).heartbeats;
        // Who is being stopped keeps its lease as long as it may.
        wait_for("heartbeats go on for longer than a lease", async || {
            let heartbeats = setting.registry.of(op_id).heartbeats - before;
            if heartbeats > 13 { Ok(()) } else { Err(heartbeats.to_string()) }
        })
        .await;
        assert_eq!(*aborted.lock().unwrap(), None, "it has its grace while it has its lease");
    }
    setting.registry.silent.store(true, Ordering::Relaxed);
    let without =
        wait_for("the work is aborted", async || aborted.lock().unwrap().ok_or_else(|| "not yet".to_owned()))
            .await;
    assert_eq!(setting.registry.of(op_id).finish, None);
    Some(without)
}

#[tokio::test]
async fn work_that_does_not_stop_is_aborted_when_its_lease_ends() {
    let Some(without) = outlives_its_lease(false).await else { return };
    assert!(without < GRACE / 3, "{without:?} without a lease");
}

#[tokio::test]
async fn work_that_is_being_stopped_and_then_loses_its_lease_does_not_outlive_it() {
    let Some(without) = outlives_its_lease(true).await else { return };
    assert!(without < GRACE / 3, "{without:?} without a lease");
}

#[tokio::test]
async fn draining_lets_the_work_go_on_and_stopping_hands_it_back() {
    let started = Arc::new(AtomicBool::new(false));
    let started_work = Arc::clone(&started);
    let work = move |context: OperationContext| {
        let started = Arc::clone(&started_work);
        async move {
            started.store(true, Ordering::Relaxed);
            context.cancellation().cancelled().await;
            assert!(context.is_stopping());
            Err(OperationFailure::retryable("child_killed", "because the worker stops"))
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add().await;
    setting.started(&started).await;
    setting.draining.cancel();
    let unclaimed = setting.add().await;
    let in_between = setting.registry.of(op_id).heartbeats;
    wait_for("heartbeats go on", async || {
        setting.wake().await;
        let heartbeats = setting.registry.of(op_id).heartbeats;
        if heartbeats > in_between + 2 { Ok(()) } else { Err(heartbeats.to_string()) }
    })
    .await;
    assert_eq!(setting.registry.of(op_id).finish, None);
    setting.stopping.cancel();
    let registry = Arc::clone(&setting.registry);
    setting.ended().await;
    assert_eq!(registry.of(op_id).finish.unwrap().outcome, Outcome::HandedBack);
    assert_eq!(registry.of(unclaimed).finish, None);
    assert_eq!(registry.queue.lock().unwrap().len(), 1, "nothing is claimed while draining");
}
