//! `longhaul bucket`.

use bus_messages::{Bucket, BucketList, BucketReply, CreateBucket, GetBucket, Nothing};
use clap::Subcommand;
use domain_model::{BucketId, Scope};

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
    /// Make the bucket for the backups of a region, unless there is one in use.
    Create {
        /// Cloudflare's name of the region: wnam, enam, weur, eeur, apac or oc.
        #[arg(long)]
        region: String,
    },
    /// List the buckets, oldest first.
    List,
    /// Ask the provider again where a bucket is.
    Verify {
        /// Which bucket.
        bucket: BucketId,
    },
    /// Give a bucket to no other project; those that have it keep it.
    Disable {
        /// Which bucket.
        bucket: BucketId,
    },
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let one = |reply: BucketReply| vec![reply.bucket];
    let buckets = match arguments.action {
        Action::Create { region } => {
            one(api.call(Scope::Hub, "bucket", "create", &CreateBucket { region }).await?)
        }
        Action::List => {
            let list: BucketList = api.call(Scope::Hub, "bucket", "list", &Nothing {}).await?;
            list.buckets
        }
        Action::Verify { bucket } => {
            one(api.call(Scope::Hub, "bucket", "verify", &GetBucket { bucket_id: bucket }).await?)
        }
        Action::Disable { bucket } => {
            one(api.call(Scope::Hub, "bucket", "disable", &GetBucket { bucket_id: bucket }).await?)
        }
    };
    output.list(
        &buckets,
        ["id", "name", "purpose", "provider", "region", "location", "status"],
        |bucket: &Bucket| {
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
