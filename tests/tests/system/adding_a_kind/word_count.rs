//! `word-count`: counts the words of texts, one after the other.

use std::time::Duration;

use async_trait::async_trait;
use bus_messages::kinds::KindDefinition;
use domain_model::{Phase, Progress};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What goes in. An unknown field is refused; a missing one gets its default.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    texts: Vec<String>,
    #[serde(default)]
    milliseconds_a_text: u64,
}

/// What comes out; what has been counted so far is the checkpoint.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Output {
    texts: usize,
    words: usize,
}

static DEFINITION: KindDefinition = KindDefinition::declared::<Input, Output>(
    "word-count",
    "Counts the words of texts",
    &[Phase { name: "count", weight: 9 }, Phase { name: "check", weight: 1 }],
    r#"{"texts":["to be or not to be"]}"#,
);

/// Works on `word-count`.
pub(crate) struct WordCount;

#[async_trait]
impl OperationHandler for WordCount {
    fn definition(&self) -> &'static KindDefinition {
        &DEFINITION
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let input: Input = operation.input()?;
        let mut done: Output = operation.checkpoint()?.unwrap_or_default();
        while let Some(text) = input.texts.get(done.texts) {
            let progress = Progress::count(done.texts as u64, Some(input.texts.len() as u64), "texts");
            operation.progress("count", format!("{} words so far", done.words), Some(progress));
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
