//! `project-copy`: one snapshot, any number of destinations.
//!
//! It keeps nothing itself. What is to be done next says the registry, from the catalog; its children do it, on the hosts;
//! and while they do, it waits without a lease. A crash at any point leaves a question that is asked again.

use async_trait::async_trait;
use bus_messages::kinds::{self, KindDefinition};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::{Value, json};

/// Works on `project-copy`.
pub(crate) struct ProjectCopy;

#[async_trait]
impl OperationHandler for ProjectCopy {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("project-copy")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let step = operation.copy_step().await?;
        operation.progress(&step.phase, step.message, None);
        match (step.result, step.error) {
            (None, _) => {
                Err(OperationFailure::WaitsForChildren { children: step.children, checkpoint: None })
            }
            (Some(result), None) => Ok(json!(result)),
            (Some(result), Some(error)) => Err(OperationFailure::FailedWith {
                code: error.code,
                message: error.message,
                result: json!(result),
            }),
        }
    }
}
