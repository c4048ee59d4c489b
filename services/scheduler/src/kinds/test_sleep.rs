//! `test-sleep`: sleeps in steps. For tests of everything that an operation can go through.

use std::time::Duration;

use async_trait::async_trait;
use bus_messages::ChildOperation;
use bus_messages::kinds::{self, KindDefinition, TestSleepInput, TestSleepResult};
use domain_model::{OperationKind, Progress, Scope};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

// --- steps ----------------------------------------------------------------------------------
// 1. children: waits for those that the input asks for; the checkpoint says that they were started.
// 2. sleep: one step after the other; the checkpoint says how many are done.

/// What a later attempt goes on from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    /// Steps that are done.
    done: u32,
    /// The children were asked for: the next attempt comes when they have ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    children_started: bool,
}

// --- definition -----------------------------------------------------------------------------

/// Works on `test-sleep`.
pub(crate) struct TestSleep;

#[async_trait]
impl OperationHandler for TestSleep {
    fn definition(&self) -> &'static KindDefinition {
        let kind = "test-sleep".parse().expect("the name of a kind");
        kinds::find(&kind).expect("bus-messages defines the kind")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let input: TestSleepInput = operation.input()?;
        let mut checkpoint: Checkpoint = operation.checkpoint()?.unwrap_or_default();
        if input.children > 0 && !checkpoint.children_started {
            operation.progress("children", format!("waits for {} children", input.children), None);
            checkpoint.children_started = true;
            return Err(OperationFailure::WaitsForChildren {
                children: children(&input, &operation.op().kind, operation.op().scope),
                checkpoint: Some(json!(checkpoint)),
            });
        }
        sleep(operation, &input, checkpoint).await?;
        Ok(json!(TestSleepResult { steps: input.steps, attempt: operation.attempt() }))
    }
}

// --- implementation -------------------------------------------------------------------------

fn seconds_a_step(input: &TestSleepInput) -> f64 {
    input.seconds / f64::from(input.steps.max(1))
}

fn children(input: &TestSleepInput, kind: &OperationKind, scope: Scope) -> Vec<ChildOperation> {
    let child_input =
        TestSleepInput { seconds: seconds_a_step(input), steps: 1, fail_at_step: None, children: 0 };
    let child = |number| ChildOperation {
        key: format!("child-{number}"),
        scope,
        kind: kind.clone(),
        input: json!(child_input),
    };
    (1..=input.children).map(child).collect()
}

async fn sleep(
    operation: &OperationContext,
    input: &TestSleepInput,
    mut checkpoint: Checkpoint,
) -> Result<(), OperationFailure> {
    let step = Duration::try_from_secs_f64(seconds_a_step(input))
        .map_err(|error| OperationFailure::permanent("invalid_argument", error))?;
    let done = |steps: u32| Some(Progress::count(steps.into(), Some(input.steps.into()), "steps"));
    operation.progress("sleep", "sleeps", done(checkpoint.done));
    while checkpoint.done < input.steps {
        let next = checkpoint.done + 1;
        if input.fail_at_step == Some(next) {
            return Err(OperationFailure::retryable(
                "test_failure",
                format!("fails at step {next}, as asked"),
            ));
        }
        operation.unless_stopped(tokio::time::sleep(step)).await?;
        checkpoint.done = next;
        operation.save_checkpoint(&checkpoint).await?;
        operation.progress("sleep", format!("step {next} of {}", input.steps), done(next));
    }
    Ok(())
}

// --- tests ----------------------------------------------------------------------------------

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_child_has_a_key_of_its_own_and_takes_as_long_as_one_step() {
        let input = TestSleepInput { seconds: 6.0, steps: 3, fail_at_step: Some(1), children: 2 };
        let children = children(&input, &TestSleep.definition().kind(), Scope::Hub);
        let keys: Vec<_> = children.iter().map(|child| child.key.as_str()).collect();
        assert_eq!(keys, ["child-1", "child-2"]);
        let expected = json!({ "seconds": 2.0, "steps": 1, "fail_at_step": null, "children": 0 });
        assert_eq!(children[0].input, expected);
        assert_eq!((TestSleep.definition().normalise_input)(&expected).unwrap(), expected);
    }

    #[test]
    fn a_checkpoint_says_how_many_steps_are_done() {
        assert_eq!(json!(Checkpoint { done: 4, children_started: false }), json!({ "done": 4 }));
        let read: Checkpoint = serde_json::from_value(json!({ "done": 4 })).unwrap();
        assert!(!read.children_started);
    }
}
