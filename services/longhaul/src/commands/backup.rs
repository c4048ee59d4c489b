//! `longhaul backup` and `longhaul backups`.

use bus_messages::BackupList;
use bus_messages::kinds::ProjectBackupInput;
use domain_model::{ProjectId, Scope, Tag};

use super::watch::create_and_watch;
use crate::connection::Connection;
use crate::output::{Output, size};

/// Arguments of `longhaul backup`.
#[derive(clap::Args)]
pub(super) struct CreateArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// A word to find the backup by; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,
    /// Retention is to leave it alone.
    #[arg(long)]
    pinned: bool,
    /// At most one active backup of the project has this key: asking again watches that one.
    #[arg(long, value_name = "KEY")]
    dedupe_key: Option<String>,
    /// Print the operation and do not wait for its end.
    #[arg(long)]
    no_wait: bool,
}

/// Arguments of `longhaul backups`.
#[derive(clap::Args)]
pub(super) struct ListArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

pub(super) async fn create(arguments: CreateArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let input = ProjectBackupInput { tags: arguments.tags, pinned: arguments.pinned };
    let input = serde_json::to_value(input)?;
    let scope = Scope::Project(arguments.project);
    create_and_watch(&api, scope, "project-backup", input, arguments.dedupe_key, arguments.no_wait, output)
        .await
}

pub(super) async fn list(arguments: ListArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let page = |page: BackupList| (page.backups, page.next_cursor);
    let backups = api.list(Scope::Project(arguments.project), "backup", arguments.limit, page).await?;
    output.list(&backups, ["backup", "created", "files", "size", "added", "source", "tags"], |backup| {
        let mut tags: Vec<String> = backup.tags.iter().map(ToString::to_string).collect();
        if backup.pinned {
            tags.push("(pinned)".to_owned());
        }
        [
            backup.backup_id.to_string(),
            backup.created_at.to_string(),
            backup.files.to_string(),
            size(backup.bytes),
            size(backup.bytes_added),
            backup.source.clone(),
            tags.join(" "),
        ]
    })
}
