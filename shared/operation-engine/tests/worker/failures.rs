//! What fails, and what is refused, is told with its cause; and a checkpoint is stored, or the work does not go on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bus_messages::{ChildOperation, Outcome};
use domain_model::Scope;
use operation_engine::{OperationContext, OperationFailure, WorkerTiming};
use serde_json::{Value, json};

use crate::setting::{Setting, fast};
use crate::stand_in::Registry;

#[tokio::test]
async fn a_panic_is_a_failure_that_may_be_tried_again_and_does_not_tell_its_content() {
    let work = |context: OperationContext| async move {
        assert!(context.attempt() > 1, "secret content");
        Ok(Value::Null)
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add().await;
    let finish = setting.registry.finished(op_id).await;
    let error = finish.error.unwrap();
    assert_eq!((finish.outcome, error.code.as_str(), error.retryable), (Outcome::Failed, "panic", true));
    assert!(!error.message.contains("secret"));
}

#[tokio::test]
async fn a_checkpoint_is_stored_before_the_work_goes_on() {
    let registry: Arc<Mutex<Option<Arc<Registry>>>> = Arc::default();
    let registry_of_work = Arc::clone(&registry);
    let work = move |context: OperationContext| {
        let registry = registry_of_work.lock().unwrap().clone().unwrap();
        async move {
            assert_eq!(context.checkpoint::<Value>()?, Some(json!({ "done": 3 })));
            context.save_checkpoint(&json!({ "done": 4 })).await?;
            assert_eq!(registry.of(context.op_id()).checkpoint, Some(json!({ "done": 4 })));
            let large = context.save_checkpoint(&"x".repeat(1_000_000)).await;
            assert!(
                matches!(large, Err(OperationFailure::Failed { code, .. }) if code == "checkpoint_too_large")
            );
            registry.replies_to_lose.store(1, Ordering::Relaxed);
            context.save_checkpoint(&json!({ "done": 5 })).await?;
            registry.refuse_checkpoints.store(true, Ordering::Relaxed);
            context.save_checkpoint(&json!({ "done": 6 })).await?;
            Ok(Value::Null)
        }
    };
    let Some(setting) = Setting::start(fast(), work).await else { return };
    *registry.lock().unwrap() = Some(Arc::clone(&setting.registry));
    let op_id = setting.add_with(30.0, Some(json!({ "done": 3 }))).await;
    let finish = setting.registry.finished(op_id).await;
    let error = finish.error.unwrap();
    assert_eq!((error.code.as_str(), error.message.as_str()), ("checkpoint_refused", "not this one"));
    assert_eq!(setting.registry.of(op_id).checkpoint, Some(json!({ "done": 5 })));
}

#[tokio::test]
async fn what_the_registry_refuses_is_a_failure_with_its_cause() {
    let work = |context: OperationContext| async move {
        match context.checkpoint::<String>()?.as_deref() {
            Some("repository") => context.repository().await.map(|_| Value::Null),
            Some("children") => Err(OperationFailure::WaitsForChildren {
                children: vec![ChildOperation {
                    key: "child-1".to_owned(),
                    scope: Scope::Hub,
                    kind: context.op().kind.clone(),
                    input: json!({}),
                }],
                checkpoint: Some(json!("next")),
            }),
            _ => Ok(json!("refuse me")),
        }
    };
    let Some(setting) = Setting::start(WorkerTiming::default(), work).await else { return };
    let op_id = setting.add_with(30.0, Some(json!("repository"))).await;
    let error = setting.registry.finished(op_id).await.error.unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str(), error.retryable),
        ("bucket_unreachable", "no bucket", true)
    );

    let op_id = setting.add_with(30.0, Some(json!("children"))).await;
    let finish = setting.registry.finished(op_id).await;
    assert_eq!((finish.outcome, finish.children.len()), (Outcome::WaitsForChildren, 1));
    assert_eq!(finish.checkpoint, Some(json!("next")));

    let op_id = setting.add().await;
    let finish = setting.registry.finished(op_id).await;
    assert_eq!((finish.outcome, finish.error.unwrap().code.as_str()), (Outcome::Failed, "outcome_refused"));
    setting.draining.cancel();
    let recorded = Arc::clone(&setting.recorded);
    setting.ended().await;
    assert_eq!(*recorded.lock().unwrap(), [], "none of them has succeeded");
}
