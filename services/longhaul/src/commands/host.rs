//! `longhaul host`.

use bus_messages::{HostList, Nothing};
use clap::Subcommand;
use domain_model::Scope;

use crate::connection::Connection;
use crate::output::{Output, or_dash};

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
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let Action::List = arguments.action;
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
