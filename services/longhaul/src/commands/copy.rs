//! `longhaul copy`, with what there is beneath it.

use std::str::FromStr;

use anyhow::bail;
use bus_messages::kinds::{CopyDestination, CopyOptions, CopyPaths, CopySource, ProjectCopyInput};
use bus_messages::{CancelCopies, CopyList, CreateOperation, ListCopies, ProjectCopy};
use domain_model::{CopyId, CopyStatus, OperationId, ProjectId, ProjectPath, Scope};

use super::watch::watch_created;
use crate::UsageError;
use crate::api::Api;
use crate::connection::Connection;
use crate::output::{Output, or_dash};

/// The largest page of copies.
const PAGE: u32 = 200;

/// Arguments of `longhaul copy`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<CopyCommand>,
    #[command(flatten)]
    create: CreateArguments,
}

#[derive(clap::Subcommand)]
enum CopyCommand {
    /// List the copies from and to a project, newest first.
    List(ListArguments),
    /// Cancel copies that are pending: one, those of an operation, or all from and to the project.
    Cancel(CancelArguments),
}

/// Arguments of `longhaul copy <project> <path>…`.
#[derive(clap::Args)]
struct CreateArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project that has the files.
    #[arg(required = true)]
    project: Option<ProjectId>,
    /// What to copy. One path is called at the destination what that says; several go into the directory that it names,
    /// each under its own name.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<ProjectPath>,
    /// Where to, as PROJECT:PATH, or PROJECT for the same place; may be given several times.
    #[arg(long = "to", value_name = "PROJECT[:PATH]", required = true)]
    to: Vec<Destination>,
    /// Leave files that exist as they are.
    #[arg(long)]
    no_force: bool,
    /// Fail where a file exists, and change nothing there; goes with --no-force.
    #[arg(long)]
    error_on_exist: bool,
    /// Refuse directories.
    #[arg(long)]
    no_recursive: bool,
    /// Copy what symbolic links lead to, not the links.
    #[arg(long)]
    dereference: bool,
    /// Keep the times of the files.
    #[arg(long)]
    preserve_timestamps: bool,
    /// Seconds until what is not applied is given up; a week by default.
    #[arg(long, value_name = "SECONDS")]
    ttl_s: Option<u32>,
    /// Print the operation and do not wait for its end.
    #[arg(long)]
    no_wait: bool,
}

#[derive(clap::Args)]
struct ListArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project.
    project: ProjectId,
    /// Only these: pending, done, failed, canceled, expired or superseded.
    #[arg(long, value_name = "STATUS")]
    status: Option<CopyStatus>,
    /// Only those of this operation.
    #[arg(long, value_name = "OP")]
    op: Option<OperationId>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

#[derive(clap::Args)]
struct CancelArguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the project, of either end.
    project: ProjectId,
    #[command(flatten)]
    which: Which,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// This one.
    #[arg(long, value_name = "ID")]
    copy: Option<CopyId>,
    /// Those of this operation.
    #[arg(long, value_name = "OP")]
    op: Option<OperationId>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

/// `PROJECT:PATH`, or `PROJECT`.
#[derive(Debug, Clone)]
struct Destination {
    project: ProjectId,
    path: Option<String>,
}

impl FromStr for Destination {
    type Err = domain_model::IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            Some((project, path)) => Self { project: project.parse()?, path: Some(path.to_owned()) },
            None => Self { project: text.parse()?, path: None },
        })
    }
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    match arguments.command {
        None => create(arguments.create, output).await,
        Some(CopyCommand::List(arguments)) => list(arguments, output).await,
        Some(CopyCommand::Cancel(arguments)) => cancel(arguments, output).await,
    }
}

async fn create(arguments: CreateArguments, output: Output) -> anyhow::Result<()> {
    let Some(project) = arguments.project else { bail!("which project?") };
    let input = ProjectCopyInput {
        dests: arguments.to.iter().map(|to| destination(to, &arguments.paths)).collect::<Result<_, _>>()?,
        src: CopySource {
            path: match &arguments.paths[..] {
                [path] => CopyPaths::One(path.clone()),
                _ => CopyPaths::Many(arguments.paths),
            },
        },
        dest: None,
        options: CopyOptions {
            force: !arguments.no_force,
            error_on_exist: arguments.error_on_exist,
            recursive: !arguments.no_recursive,
            dereference: arguments.dereference,
            preserve_timestamps: arguments.preserve_timestamps,
            ..CopyOptions::default()
        },
    };
    let scope = Scope::Project(project);
    let create = CreateOperation {
        kind: "project-copy".parse()?,
        input: serde_json::to_value(input)?,
        dedupe_key: None,
        force: false,
        priority: None,
        ttl_s: arguments.ttl_s,
        not_before: None,
        routing: None,
    };
    let api = arguments.connection.connect().await?;
    let created = api.create_operation(scope, &create).await?;
    let op_id = created.op.op_id;
    let ended = watch_created(&api, created, arguments.no_wait, output).await;
    if arguments.no_wait {
        return ended;
    }
    let copies =
        copies(&api, project, ListCopies { op_id: Some(op_id), ..ListCopies::default() }, None).await?;
    print(&copies, output)?;
    ended?;
    match copies.iter().filter(|copy| copy.status != CopyStatus::Done).count() {
        0 => Ok(()),
        missed => bail!("{missed} of {} destinations have not got the copy", copies.len()),
    }
}

/// What is left out is the place that the files have in their own project.
fn destination(to: &Destination, paths: &[ProjectPath]) -> Result<CopyDestination, UsageError> {
    let path = match (&to.path, paths) {
        (Some(path), _) => path.clone(),
        (None, [path]) => path.to_string(),
        (None, _) => ".".to_owned(),
    };
    let path = path.parse().map_err(|error| UsageError(format!("--to: {error}")))?;
    Ok(CopyDestination { project_id: to.project, path })
}

async fn list(arguments: ListArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let list = ListCopies { status: arguments.status, op_id: arguments.op, ..ListCopies::default() };
    print(&copies(&api, arguments.project, list, arguments.limit).await?, output)
}

async fn copies(
    api: &Api,
    project: ProjectId,
    mut list: ListCopies,
    limit: Option<u32>,
) -> anyhow::Result<Vec<ProjectCopy>> {
    let mut copies: Vec<ProjectCopy> = Vec::new();
    loop {
        let left = limit.map_or(PAGE, |limit| limit.saturating_sub(copies.len() as u32));
        if left == 0 {
            return Ok(copies);
        }
        list.limit = Some(left.min(PAGE));
        let page: CopyList = api.call(Scope::Project(project), "copy", "list", &list).await?;
        copies.extend(page.copies);
        list.cursor = page.next_cursor;
        if list.cursor.is_none() {
            return Ok(copies);
        }
    }
}

async fn cancel(arguments: CancelArguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    let Which { copy, op, all } = arguments.which;
    let cancel = CancelCopies { copy_id: copy, op_id: op, all };
    let canceled: CopyList = api.call(Scope::Project(arguments.project), "copy", "cancel", &cancel).await?;
    print(&canceled.copies, output)
}

fn print(copies: &[ProjectCopy], output: Output) -> anyhow::Result<()> {
    output.list(copies, ["copy", "from", "to", "status", "expires", "error"], |copy| {
        let from = match &copy.src_path {
            CopyPaths::One(path) => path.to_string(),
            CopyPaths::Many(paths) => format!("{} paths", paths.len()),
        };
        [
            copy.copy_id.to_string(),
            format!("{}:{from}", copy.src_project_id),
            format!("{}:{}", copy.dest_project_id, copy.dest_path),
            copy.status.to_string(),
            copy.expires_at.to_string(),
            or_dash(copy.last_error.as_ref()),
        ]
    })
}
