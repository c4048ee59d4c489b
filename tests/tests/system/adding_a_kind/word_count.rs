//! `word-count`: counts the words of texts, one after the other.

use std::time::Duration;

use async_trait::async_trait;
use bus_messages::ApiError;
use bus_messages::kinds::{KindDefinition, RoutingRule};
use domain_model::{Phase, Progress, ScopeType};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

// --- the declaration ------------------------------------------------------------------------

/// What goes in. An unknown field is refused; a missing one gets its default.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WordCountInput {
    texts: Vec<String>,
    #[serde(default)]
    milliseconds_a_text: u64,
}

/// What comes out; what has been counted so far is the checkpoint.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct WordCountResult {
    texts: usize,
    words: usize,
}

static DEFINITION: KindDefinition = KindDefinition {
    name: "word-count",
    description: "Counts the words of texts",
    scope: ScopeType::Hub,
    routing: RoutingRule::Hub,
    phases: &[Phase { name: "count", weight: 9 }, Phase { name: "check", weight: 1 }],
    max_attempts: 3,
    time_to_live_s: 24 * 3600,
    exclusive: false,
    uses_repository: false,
    part_of: None,
    for_tests: false,
    example_input: r#"{"texts":["to be or not to be"]}"#,
    normalise_input: |input| match WordCountInput::deserialize(input) {
        Ok(input) => Ok(json!(input)),
        Err(error) => Err(ApiError::invalid_argument(error)),
    },
    host_in_input: |_| None,
    input_schema: || schema_for!(WordCountInput),
    result_schema: || schema_for!(WordCountResult),
};

// --- the handler ----------------------------------------------------------------------------

/// Works on `word-count`.
pub(crate) struct WordCount;

#[async_trait]
impl OperationHandler for WordCount {
    fn definition(&self) -> &'static KindDefinition {
        &DEFINITION
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let input: WordCountInput = operation.input()?;
        let mut done: WordCountResult = operation.checkpoint()?.unwrap_or_default();
        let of_all =
            |texts: usize| Some(Progress::count(texts as u64, Some(input.texts.len() as u64), "texts"));
        while let Some(text) = input.texts.get(done.texts) {
            operation.progress("count", format!("{} words so far", done.words), of_all(done.texts));
            // Dropped where it is when somebody cancels, the lease is lost, or the worker is stopped.
            let pause = tokio::time::sleep(Duration::from_millis(input.milliseconds_a_text));
            operation.unless_stopped(pause).await?;
            done.words += text.split_whitespace().count();
            done.texts += 1;
            // Stored when this returns: a later attempt goes on behind it.
            operation.save_checkpoint(&done).await?;
        }
        operation.progress("check", format!("{} words in {} texts", done.words, done.texts), None);
        if done.words == 0 {
            return Err(OperationFailure::permanent("no_words", "none of the texts has a word"));
        }
        Ok(json!(done))
    }
}
