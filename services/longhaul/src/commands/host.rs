//! `longhaul host`.

use bus_messages::{HostList, HostStatus, Nothing};
use clap::Subcommand;
use domain_model::{HostId, Scope};

use crate::connection::Connection;
use crate::output::{Output, or_dash, size};

/// Arguments of `longhaul host`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the hosts, oldest first.
    List,
    /// Show how hosts are and what they are doing.
    Status {
        /// Only this one, with its operations.
        host: Option<HostId>,
    },
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    match arguments.action {
        Action::List => {
            let hosts: HostList = api.call(Scope::Hub, "host", "list", &Nothing {}).await?;
            output.list(&hosts.hosts, ["id", "name", "region", "status", "last seen"], |host| {
                [
                    host.id.to_string(),
                    host.name.clone(),
                    host.region.clone(),
                    host.status.clone(),
                    or_dash(host.last_seen),
                ]
            })
        }
        Action::Status { host: Some(host) } => {
            let status: HostStatus = api.call(Scope::Host(host), "host", "status", &Nothing {}).await?;
            output.one(&status, &fields(&status))
        }
        Action::Status { host: None } => {
            let hosts: HostList = api.call(Scope::Hub, "host", "list", &Nothing {}).await?;
            let mut all: Vec<HostStatus> = Vec::new();
            for host in hosts.hosts {
                all.push(api.call(Scope::Host(host.id), "host", "status", &Nothing {}).await?);
            }
            output.list(
                &all,
                [
                    "host",
                    "status",
                    "last seen",
                    "memory",
                    "io",
                    "projects",
                    "unsaved",
                    "running",
                    "queued",
                    "cache",
                ],
                |status| {
                    [
                        format!("{} ({})", status.host.id, status.host.name),
                        status.host.status.clone(),
                        or_dash(status.host.last_seen),
                        percent(status.memory_pressure),
                        percent(status.io_pressure),
                        status.projects.to_string(),
                        status.unsaved_projects.to_string(),
                        status.running_ops.len().to_string(),
                        status.queued_ops.to_string(),
                        cache(status),
                    ]
                },
            )
        }
    }
}

fn fields(status: &HostStatus) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("host", status.host.id.to_string()),
        ("name", status.host.name.clone()),
        ("region", status.host.region.clone()),
        ("status", status.host.status.clone()),
        ("last seen", or_dash(status.host.last_seen)),
        ("waits for memory", percent(status.memory_pressure)),
        ("waits for disks", percent(status.io_pressure)),
        (
            "projects",
            format!("{}, {} of them with changes in no backup", status.projects, status.unsaved_projects),
        ),
        ("cache", cache(status)),
        ("queued", status.queued_ops.to_string()),
    ];
    if status.running_ops.is_empty() {
        fields.push(("running", "-".to_owned()));
    }
    for op in &status.running_ops {
        let phase = op.phase.as_deref().unwrap_or("-");
        fields.push((
            "running",
            format!("{} {} of {}, {phase}, {:.0}%", op.kind, op.op_id, op.scope, op.progress),
        ));
    }
    fields
}

fn percent(share: Option<f32>) -> String {
    or_dash(share.map(|share| format!("{share:.1}%")))
}

fn cache(status: &HostStatus) -> String {
    match (status.cache_bytes, status.cache_limit_bytes) {
        (Some(bytes), Some(limit)) => format!("{} of {}", size(bytes), size(limit)),
        _ => "-".to_owned(),
    }
}
