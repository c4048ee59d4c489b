//! `longhaul restore`.

use bus_messages::kinds::{BackupChoice, Conflict, ProjectRestoreInput};
use clap::ValueEnum;
use domain_model::{HostId, LayoutPath, ProjectId, ProjectPath, Scope};

use super::watch::create_and_watch;
use crate::connection::Connection;
use crate::output::Output;

/// Arguments of `longhaul restore`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// Which backup.
    #[arg(long, value_name = "ID|latest", default_value = "latest")]
    backup: BackupChoice,
    /// Only this path of the backup, such as project/src; all of it by default.
    #[arg(long, value_name = "PATH")]
    path: Option<LayoutPath>,
    /// Where it is to go in the project's files; its own place by default. All of a backup becomes a directory with project
    /// and persist in it.
    #[arg(long, value_name = "PATH")]
    target: Option<ProjectPath>,
    /// What to do where there is something already.
    #[arg(long, value_name = "WORD", default_value = "replace")]
    conflict: ConflictArgument,
    /// The id of the host to restore on; the project's own by default.
    #[arg(long, value_name = "ID")]
    host: Option<HostId>,
    /// Restore nothing, and say what would change and how long it would take.
    #[arg(long)]
    dry_run: bool,
    /// Restore although a drill has found the backup to be bad.
    #[arg(long)]
    allow_bad: bool,
    /// Print the operation and do not wait for its end.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ConflictArgument {
    /// Put the backup's in its place, atomically.
    Replace,
    /// Leave it, and restore nothing.
    Keep,
    /// Fail.
    Fail,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let input = ProjectRestoreInput {
        backup_id: arguments.backup,
        path: arguments.path,
        host_id: arguments.host,
        target: arguments.target,
        conflict: match arguments.conflict {
            ConflictArgument::Replace => Conflict::Replace,
            ConflictArgument::Keep => Conflict::Keep,
            ConflictArgument::Fail => Conflict::Fail,
        },
        dry_run: arguments.dry_run,
        allow_bad: arguments.allow_bad,
    };
    let input = serde_json::to_value(input)?;
    let scope = Scope::Project(arguments.project);
    create_and_watch(&api, scope, "project-restore", input, None, arguments.no_wait, output).await
}
