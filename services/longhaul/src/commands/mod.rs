//! The command line: one file a command.

mod account;
mod backup;
mod bucket;
mod copy;
mod db;
mod demo;
mod host;
mod operations;
mod project;
mod restore;
mod up;
mod watch;

pub(crate) use up::Signals;

use std::str::FromStr;

use clap::{Parser, Subcommand};
use domain_model::{ProjectId, Scope};

use crate::output::Output;

/// Durable backups of projects over NATS.
#[derive(Parser)]
#[command(name = "longhaul", version)]
pub(crate) struct Arguments {
    /// Print one JSON object a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole system on this machine.
    Up(up::Arguments),
    /// Run the main job on real input, prove its result, and leave nothing behind.
    Demo(demo::Arguments),
    /// Projects.
    Project(project::Arguments),
    /// Back a project up, and watch it; look into its backups, delete one.
    Backup(backup::Arguments),
    /// List the backups of a project.
    Backups(backup::ListArguments),
    /// Restore a backup, or a path of one, and watch it.
    Restore(restore::Arguments),
    /// Copy files of a project to other projects, and watch it; list copies, cancel them.
    Copy(copy::Arguments),
    /// Long-running operations.
    Ops(operations::Arguments),
    /// Watch an operation from its first event to its end, whenever you join.
    Watch(watch::Arguments),
    /// Project-hosts.
    Host(host::Arguments),
    /// Buckets.
    Bucket(bucket::Arguments),
    /// Accounts and their tokens.
    Account(account::Arguments),
    /// Backups of an application's database file, by its database-backup.
    Db(db::Arguments),
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let output = Output { json: arguments.json };
    match arguments.command {
        Command::Up(arguments) => up::run(arguments, output).await,
        Command::Demo(arguments) => demo::run(arguments, output).await,
        Command::Project(arguments) => project::run(arguments, output).await,
        Command::Backup(arguments) => backup::run(arguments, output).await,
        Command::Backups(arguments) => backup::list(arguments, output).await,
        Command::Restore(arguments) => restore::run(arguments, output).await,
        Command::Copy(arguments) => copy::run(arguments, output).await,
        Command::Ops(arguments) => operations::run(arguments, output).await,
        Command::Watch(arguments) => watch::run(arguments, output).await,
        Command::Host(arguments) => host::run(arguments, output).await,
        Command::Bucket(arguments) => bucket::run(arguments, output).await,
        Command::Account(arguments) => account::run(arguments, output).await,
        Command::Db(arguments) => db::run(arguments, output).await,
    }
}

/// A scope as people write it: `hub`, `project-<uuid>`, `host-<uuid>`, `account-<uuid>`, or a project's bare id.
#[derive(Debug, Clone, Copy)]
struct ScopeArgument(Scope);

impl FromStr for ScopeArgument {
    type Err = domain_model::ScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<ProjectId>() {
            Ok(project) => Ok(Self(Scope::Project(project))),
            Err(_) => text.parse().map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use clap::CommandFactory as _;

    use super::*;

    const ID: &str = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";

    const BACKUP: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn reads(line: &str) -> bool {
        Arguments::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_reads() {
        for line in [
            "longhaul up --data-dir /d --hosts 2 --ready-file /f --object-store s3 --nats-replicas 1",
            "longhaul demo --keep",
            "longhaul project list --data-dir /d --json",
            &format!("longhaul project show {ID}"),
            &format!("longhaul project status {ID}"),
            &format!("longhaul project touch {ID}"),
            &format!("longhaul project start {ID} --backup latest --no-wait"),
            &format!("longhaul project stop {ID}"),
            &format!("longhaul project create --title T --host {ID} --region weur"),
            &format!("longhaul backup {ID} --tag a --tag b --pinned --no-wait"),
            &format!("longhaul backup ls {ID} {BACKUP} project/src --depth 2"),
            &format!("longhaul backup find {ID} **/*.rs --backup {BACKUP}"),
            &format!("longhaul backup get {ID} {BACKUP}"),
            &format!("longhaul backup delete {ID} {BACKUP} --no-wait"),
            &format!("longhaul backups {ID}"),
            &format!(
                "longhaul restore {ID} --backup latest --path project/src --target back --conflict keep"
            ),
            &format!("longhaul copy {ID} handout --to {ID}:handout --to {ID} --error-on-exist"),
            &format!(
                "longhaul copy {ID} a b --to {ID}:. --no-force --dereference --preserve-timestamps --no-wait"
            ),
            &format!("longhaul copy list {ID} --status pending"),
            &format!("longhaul copy cancel {ID} --copy {ID}"),
            &format!("longhaul copy cancel {ID} --all"),
            &format!("longhaul ops {ID} --status running"),
            "longhaul ops --hub",
            &format!("longhaul ops cancel {ID} {ID}"),
            &format!("longhaul ops show hub {ID} --json"),
            &format!("longhaul watch project-{ID} {ID}"),
            &format!("longhaul watch persist.project-{ID}.lro.{ID}"),
            "longhaul host list",
            "longhaul bucket list",
            "longhaul bucket create --region weur",
            &format!("longhaul bucket verify {ID}"),
            &format!("longhaul bucket disable {ID}"),
            "longhaul db backup --url http://127.0.0.1:8786 --token T",
            "longhaul db list --json",
            "longhaul db restore hesocial-backup-20241230-120000.duckdb",
            "longhaul db restore --latest",
            "longhaul db restore --rollback",
            "longhaul db status",
            "longhaul account create --name eve",
            &format!("longhaul account token {ID} --ttl-s 60"),
        ] {
            assert!(reads(line), "{line}");
        }
        for line in [
            "longhaul",
            "longhaul backup not-an-id",
            "longhaul ops show hub",
            "longhaul frobnicate",
            "longhaul db restore",
            "longhaul db restore x --latest",
        ] {
            assert!(!reads(line), "{line}");
        }
    }
}
