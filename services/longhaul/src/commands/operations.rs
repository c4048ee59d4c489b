//! `longhaul ops`.

use bus_messages::{
    CreatedOperation, GetOperation, ListOperations, Operation, OperationReply, RetryOperation,
};
use clap::Subcommand;
use domain_model::{OperationId, OperationKind, OperationStatus, Scope};
use serde_json::Value;

use super::ScopeArgument;
use crate::UsageError;
use crate::connection::Connection;
use crate::output::{Output, or_dash, seconds, size};

/// The fields of results that are shown to people; `--json` has them all.
const SHOWN_RESULTS: [&str; 13] = [
    "backup_id",
    "files",
    "bytes",
    "bytes_added",
    "parent",
    "source",
    "tree",
    "receipt",
    "target",
    "changes",
    "estimate",
    "steps",
    "vanished",
];

/// Arguments of `longhaul ops`.
#[derive(clap::Args)]
#[command(subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The scope whose operations to list: a project's id, project-<uuid>, host-<uuid>, account-<uuid> or hub.
    #[arg(value_name = "PROJECT|SCOPE", required_unless_present = "hub")]
    scope: Option<ScopeArgument>,
    /// List those of the control plane.
    #[arg(long, conflicts_with = "scope")]
    hub: bool,
    /// Only this kind.
    #[arg(long)]
    kind: Option<OperationKind>,
    /// Only this status.
    #[arg(long)]
    status: Option<OperationStatus>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Show an operation.
    Show(Target),
    /// Ask for an operation to be canceled.
    Cancel(Target),
    /// Try a failed, canceled or expired operation again, as a new one.
    Retry {
        #[command(flatten)]
        target: Target,
        /// Leave its checkpoint aside.
        #[arg(long)]
        from_start: bool,
    },
}

#[derive(clap::Args)]
struct Target {
    /// The scope of the operation.
    scope: ScopeArgument,
    /// The id of the operation.
    #[arg(value_name = "OP")]
    operation: OperationId,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    match arguments.action {
        None => {
            let scope = match (arguments.scope, arguments.hub) {
                (Some(ScopeArgument(scope)), _) => scope,
                (None, true) => Scope::Hub,
                (None, false) => return Err(UsageError("give a project or --hub".to_owned()).into()),
            };
            let filter = ListOperations {
                kind: arguments.kind,
                status: arguments.status,
                ..ListOperations::default()
            };
            let operations = api.operations(scope, &filter, Some(arguments.limit)).await?;
            list(&operations, output)
        }
        Some(Action::Show(target)) => {
            let get = GetOperation { op_id: target.operation };
            let reply: OperationReply = api.call(target.scope.0, "lro", "get", &get).await?;
            output.one(&reply.op, &fields(&reply.op))
        }
        Some(Action::Cancel(target)) => {
            let get = GetOperation { op_id: target.operation };
            let reply: OperationReply = api.call(target.scope.0, "lro", "cancel", &get).await?;
            output.one(&reply.op, &fields(&reply.op))
        }
        Some(Action::Retry { target, from_start }) => {
            let retry = RetryOperation { op_id: target.operation, from_start };
            let reply: CreatedOperation = api.call(target.scope.0, "lro", "retry", &retry).await?;
            let mut fields = fields(&reply.op);
            fields.push(("subject", reply.subject.clone()));
            output.one(&reply, &fields)
        }
    }
}

fn list(operations: &[Operation], output: Output) -> anyhow::Result<()> {
    output.list(
        operations,
        ["operation", "kind", "status", "progress", "attempt", "created", "message"],
        |op| {
            let error = op.error.as_ref().map(|error| error.message.clone());
            let message = error.or_else(|| op.message.clone().filter(|_| !op.status.is_terminal()));
            [
                op.op_id.to_string(),
                op.kind.to_string(),
                op.status.to_string(),
                format!("{:.0}%", op.progress),
                op.attempt.to_string(),
                op.created_at.to_string(),
                message.unwrap_or_default(),
            ]
        },
    )
}

/// What people want to know of an operation.
pub(super) fn fields(op: &Operation) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("operation", op.op_id.to_string()),
        ("kind", op.kind.to_string()),
        ("scope", op.scope.to_string()),
        ("status", op.status.to_string()),
        ("attempt", format!("{} (at most {} may fail)", op.attempt, op.max_attempts)),
        ("created", format!("{} by {}", op.created_at, op.created_by)),
    ];
    if !op.status.is_terminal() {
        fields.push(("progress", format!("{:.1}% {}", op.progress, or_dash(op.phase.as_ref()))));
        fields.push(("message", or_dash(op.message.as_ref())));
        fields.push(("cancel requested", or_dash(op.cancel_requested_at)));
    }
    if let Some(finished) = op.finished_at {
        let took =
            op.started_at.map(|started| format!(" after {}", seconds(finished.seconds_since(started))));
        fields.push(("finished", format!("{finished}{}", took.unwrap_or_default())));
    }
    if let Some(error) = &op.error {
        fields.push(("error", format!("{}: {}", error.code, error.message)));
    }
    for (name, value) in op.result.iter().filter_map(Value::as_object).flatten() {
        if let Some(known) = SHOWN_RESULTS.into_iter().find(|known| known == name) {
            fields.push((known, field_text(known, value)));
        }
    }
    fields
}

fn field_text(name: &str, value: &Value) -> String {
    match value {
        Value::Number(bytes) if name.starts_with("bytes") => {
            bytes.as_u64().map_or_else(|| bytes.to_string(), size)
        }
        Value::Object(changes) if name == "changes" => {
            let told = changes.iter().map(|(what, amount)| {
                let bytes = amount["bytes"].as_u64().unwrap_or_default();
                format!("{} {what} ({})", amount["files"], size(bytes))
            });
            told.collect::<Vec<_>>().join(", ")
        }
        Value::Object(estimate) if name == "estimate" => {
            let basis = match estimate["basis"].as_str() {
                Some("restores_of_host") => "as fast as the latest restores on this host",
                _ => "assumed: this host has restored nothing yet",
            };
            format!("{}, {basis}", seconds(estimate["seconds"].as_f64().unwrap_or_default()))
        }
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
