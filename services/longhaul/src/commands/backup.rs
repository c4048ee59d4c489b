//! `longhaul backup`, with what there is beneath it, and `longhaul backups`.

use bus_messages::kinds::ProjectBackupInput;
use bus_messages::{
    BackupEntryKind, BackupList, BackupReply, CreatedOperation, DirectoryListing, FindPaths, FoundPaths,
    GetBackup, ListDirectory, UpdateBackup,
};
use domain_model::{BackupId, LayoutPath, ProjectId, Scope, Tag};

use super::watch::{create_and_watch, watch_created};
use crate::connection::Connection;
use crate::output::{Output, size};

/// The largest page of entries.
const PAGE: u32 = 1000;

/// Arguments of `longhaul backup`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    #[command(flatten)]
    create: CreateArguments,
}

#[derive(clap::Subcommand)]
enum BackupCommand {
    /// List a directory of a backup.
    Ls(LsArguments),
    /// Find paths in backups, the newest first.
    Find(FindArguments),
    /// Show a backup.
    Get(OneArguments),
    /// Have retention leave a backup alone.
    Pin(OneArguments),
    /// Leave a backup to retention again.
    Unpin(OneArguments),
    /// Delete a backup and free its space, and watch that.
    Delete(DeleteArguments),
}

/// Arguments of `longhaul backup <project>`.
#[derive(clap::Args)]
struct CreateArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    #[arg(required = true)]
    project: Option<ProjectId>,
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

#[derive(clap::Args)]
struct LsArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// The backup.
    backup: BackupId,
    /// A directory in it, such as project/src; its two roots where it is left out.
    path: Option<LayoutPath>,
    /// How many levels down.
    #[arg(long, value_name = "N")]
    depth: Option<u32>,
    /// At most so many entries.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(clap::Args)]
struct FindArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// What the path in a backup has to look like, such as 'project/**/*.rs'.
    glob: String,
    /// In this backup alone.
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(clap::Args)]
struct OneArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// The backup.
    backup: BackupId,
}

#[derive(clap::Args)]
struct DeleteArguments {
    #[command(flatten)]
    one: OneArguments,
    /// Print the operation that frees its space and do not wait for its end.
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

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    match arguments.command {
        None => create(arguments.create, output).await,
        Some(BackupCommand::Ls(arguments)) => ls(arguments, output).await,
        Some(BackupCommand::Find(arguments)) => find(arguments, output).await,
        Some(BackupCommand::Get(arguments)) => get(arguments, output).await,
        Some(BackupCommand::Pin(arguments)) => pin(arguments, true, output).await,
        Some(BackupCommand::Unpin(arguments)) => pin(arguments, false, output).await,
        Some(BackupCommand::Delete(arguments)) => delete(arguments, output).await,
    }
}

async fn create(arguments: CreateArguments, output: Output) -> anyhow::Result<()> {
    let Some(project) = arguments.project else { anyhow::bail!("which project?") };
    let api = arguments.connection.connect().await?;
    let input = ProjectBackupInput { tags: arguments.tags, pinned: arguments.pinned };
    let input = serde_json::to_value(input)?;
    let scope = Scope::Project(project);
    create_and_watch(&api, scope, "project-backup", input, arguments.dedupe_key, arguments.no_wait, output)
        .await
}

/// How many to ask for next, of at most `limit`; `None` when there are enough.
fn wanted(limit: Option<usize>, have: usize) -> Option<u32> {
    let left = limit.map_or(usize::MAX, |limit| limit.saturating_sub(have));
    (left > 0).then(|| u32::try_from(left).unwrap_or(PAGE).min(PAGE))
}

async fn ls(arguments: LsArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let mut entries = Vec::new();
    let mut cursor = None;
    while let Some(limit) = wanted(arguments.limit, entries.len()) {
        let request = ListDirectory {
            backup_id: arguments.backup.clone(),
            path: arguments.path.clone(),
            depth: arguments.depth,
            limit: Some(limit),
            cursor,
        };
        let page: DirectoryListing =
            api.call(Scope::Project(arguments.project), "backup", "ls", &request).await?;
        entries.extend(page.entries);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    output.list(&entries, ["mode", "size", "modified", "name"], |entry| {
        let (sign, end) = match entry.kind {
            BackupEntryKind::Dir => ("d", "/"),
            BackupEntryKind::File => ("-", ""),
            BackupEntryKind::Symlink => ("l", ""),
            BackupEntryKind::Other => ("?", ""),
        };
        // A name may hold anything, a terminal's commands included.
        let name: String =
            entry.name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        [
            format!("{sign}{:04o}", entry.mode),
            size(entry.size_bytes),
            entry.mtime.to_string(),
            format!("{name}{end}"),
        ]
    })
}

async fn find(arguments: FindArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let mut matches = Vec::new();
    let mut cursor = None;
    while let Some(limit) = wanted(arguments.limit, matches.len()) {
        let request = FindPaths {
            glob: arguments.glob.clone(),
            backup_id: arguments.backup.clone(),
            limit: Some(limit),
            cursor,
        };
        let page: FoundPaths =
            api.call(Scope::Project(arguments.project), "backup", "find", &request).await?;
        matches.extend(page.matches);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    output.list(&matches, ["backup", "size", "modified", "path"], |found| {
        let path: String =
            found.path.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        [found.backup_id.to_string(), size(found.size_bytes), found.mtime.to_string(), path]
    })
}

async fn get(arguments: OneArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let request = GetBackup { backup_id: arguments.backup };
    let reply: BackupReply = api.call(Scope::Project(arguments.project), "backup", "get", &request).await?;
    output.list(&[reply.backup], BACKUP_COLUMNS, backup_row)
}

async fn pin(arguments: OneArguments, pinned: bool, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let request = UpdateBackup { backup_id: arguments.backup, pinned: Some(pinned) };
    let reply: BackupReply =
        api.call(Scope::Project(arguments.project), "backup", "update", &request).await?;
    output.list(&[reply.backup], BACKUP_COLUMNS, backup_row)
}

async fn delete(arguments: DeleteArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.one.connection.connect().await?;
    let scope = Scope::Project(arguments.one.project);
    let request = GetBackup { backup_id: arguments.one.backup };
    let created: CreatedOperation = api.call(scope, "backup", "delete", &request).await?;
    watch_created(&api, created, arguments.no_wait, output).await
}

const BACKUP_COLUMNS: [&str; 8] = ["backup", "created", "files", "size", "added", "source", "proof", "tags"];

fn backup_row(backup: &bus_messages::Backup) -> [String; 8] {
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
        match (backup.bad_since, backup.verified_at) {
            (Some(since), _) => format!("BAD since {since}"),
            (None, Some(at)) => format!("restored {at}"),
            (None, None) => "-".to_owned(),
        },
        tags.join(" "),
    ]
}

pub(super) async fn list(arguments: ListArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let page = |page: BackupList| (page.backups, page.next_cursor);
    let backups = api.list(Scope::Project(arguments.project), "backup", arguments.limit, page).await?;
    output.list(&backups, BACKUP_COLUMNS, backup_row)
}
