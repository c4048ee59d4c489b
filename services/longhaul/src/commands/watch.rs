//! `longhaul watch`, and watching what another command has created.

use anyhow::{Context, bail};
use bus_client::WatchItem;
use bus_messages::{CreateOperation, CreatedOperation, GetOperation, Operation, OperationReply};
use bus_subjects::OperationSubject;
use domain_model::{OperationId, OperationStatus, Scope};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::ScopeArgument;
use super::operations::fields;
use crate::UsageError;
use crate::api::Api;
use crate::connection::Connection;
use crate::drawing::Drawing;
use crate::output::Output;

/// Arguments of `longhaul watch`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The scope of the operation (hub, project-<uuid>, a project's id …), or all of its subject:
    /// persist.<scope>.lro.<op_id>.
    #[arg(value_name = "SCOPE|SUBJECT")]
    scope: String,
    /// The id of the operation.
    #[arg(value_name = "OP")]
    operation: Option<OperationId>,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let subject = subject(&arguments.scope, arguments.operation)?;
    let api = arguments.connection.connect().await?;
    let get = GetOperation { op_id: subject.op_id };
    let reply: OperationReply = api.call(subject.scope, "lro", "get", &get).await?;
    watch(&api, &reply.op, output).await
}

fn subject(scope: &str, operation: Option<OperationId>) -> anyhow::Result<OperationSubject> {
    let usage = |message: String| UsageError(message);
    match operation {
        Some(op_id) => {
            let ScopeArgument(scope) =
                scope.parse().map_err(|error: domain_model::ScopeError| usage(error.to_string()))?;
            Ok(OperationSubject { scope, op_id })
        }
        None => match OperationSubject::parse(&format!("{}.evt", scope.trim_end_matches(".*"))) {
            Ok((subject, _)) => Ok(subject),
            Err(_) => {
                Err(usage("give a scope and an operation, or the operation's subject".to_owned()).into())
            }
        },
    }
}

/// Creates an operation and watches it to its end; success is that it succeeds.
pub(super) async fn create_and_watch(
    api: &Api,
    scope: Scope,
    kind: &str,
    input: Value,
    dedupe_key: Option<String>,
    no_wait: bool,
    output: Output,
) -> anyhow::Result<()> {
    let create = CreateOperation {
        kind: kind.parse()?,
        input,
        dedupe_key,
        force: false,
        priority: None,
        ttl_s: None,
        not_before: None,
        routing: None,
    };
    let created = api.create_operation(scope, &create).await?;
    watch_created(api, created, no_wait, output).await
}

/// Watches an operation that was created just now to its end; success is that it succeeds.
pub(super) async fn watch_created(
    api: &Api,
    created: CreatedOperation,
    no_wait: bool,
    output: Output,
) -> anyhow::Result<()> {
    if no_wait {
        let fields = [("operation", created.op.op_id.to_string()), ("subject", created.subject.clone())];
        return output.one(&created, &fields);
    }
    if !created.created {
        eprintln!("one with this key was active already");
    }
    eprintln!("{} {}", created.op.kind, created.op.op_id);
    watch(api, &created.op, output).await
}

/// Watches an operation to its end and prints how it ended; an end without success is an error.
async fn watch(api: &Api, operation: &Operation, output: Output) -> anyhow::Result<()> {
    let subject = OperationSubject { scope: operation.scope, op_id: operation.op_id };
    let mut drawing = (!output.json).then(|| Drawing::new(&operation.kind));
    let mut items = bus_client::watch(api.bus(), subject);
    let mut last = None;
    while let Some(item) = items.next().await {
        match item? {
            WatchItem::Event(event) => {
                if output.json {
                    output.object(&json!({ "event": event }))?;
                }
                drawing.iter_mut().for_each(|drawing| drawing.event(&event));
            }
            WatchItem::State(state) => {
                if output.json {
                    output.object(&json!({ "state": state }))?;
                }
                drawing.iter_mut().for_each(|drawing| drawing.state(&state));
                last = Some(state);
            }
        }
    }
    drawing.into_iter().for_each(Drawing::finish);
    let last = last.filter(|last| last.status.is_terminal());
    let last = last.context("the connection ended before the operation did")?;
    if !output.json {
        output.one(&last, &fields(&last))?;
    }
    match (last.status, &last.error) {
        (OperationStatus::Succeeded, _) => Ok(()),
        (status, Some(error)) => {
            bail!("{} {} has ended as {status}: {}", last.kind, last.op_id, error.message)
        }
        (status, None) => bail!("{} {} has ended as {status}", last.kind, last.op_id),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    const ID: &str = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";

    #[test]
    fn an_operation_is_named_by_scope_and_id_or_by_its_subject() {
        let expected = format!("persist.project-{ID}.lro.{ID}");
        let op = ID.parse().ok();
        assert_eq!(subject(ID, op).unwrap().to_string(), expected);
        assert_eq!(subject(&format!("project-{ID}"), op).unwrap().to_string(), expected);
        assert_eq!(subject(&expected, None).unwrap().to_string(), expected);
        assert_eq!(subject(&format!("{expected}.*"), None).unwrap().to_string(), expected);
        assert!(subject("hub", None).unwrap_err().is::<UsageError>());
        assert!(subject("nonsense", op).unwrap_err().is::<UsageError>());
    }
}
