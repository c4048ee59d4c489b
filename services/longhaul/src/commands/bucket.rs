//! `longhaul bucket`.

use bus_messages::{BucketList, Nothing};
use clap::Subcommand;
use domain_model::Scope;

use crate::connection::Connection;
use crate::output::{Output, or_dash};

/// Arguments of `longhaul bucket`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the buckets, oldest first.
    List,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let Action::List = arguments.action;
    let buckets: BucketList = api.call(Scope::Hub, "bucket", "list", &Nothing {}).await?;
    output.list(
        &buckets.buckets,
        ["id", "name", "purpose", "provider", "region", "location", "status"],
        |bucket| {
            [
                bucket.id.to_string(),
                bucket.name.clone(),
                bucket.purpose.clone(),
                bucket.provider.clone(),
                bucket.region.clone(),
                or_dash(bucket.location.as_ref()),
                bucket.status.clone(),
            ]
        },
    )
}
