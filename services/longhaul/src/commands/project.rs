//! `longhaul project`.

use bus_messages::kinds::{BackupChoice, ProjectStartInput, ProjectStopInput};
use bus_messages::{
    BackupPolicy, CreateProject, Nothing, Project, ProjectList, ProjectReply, ProjectStatus, UpdateProject,
};
use clap::Subcommand;
use domain_model::{AccountId, HostId, ProjectId, Scope};

use super::watch::create_and_watch;
use crate::UsageError;
use crate::api::Api;
use crate::connection::Connection;
use crate::output::{Output, or_dash};

/// Arguments of `longhaul project`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Create a project.
    Create {
        /// Its title.
        #[arg(long)]
        title: String,
        /// The id of the host that has its files; it may be left out where there is one host.
        #[arg(long, value_name = "ID")]
        host: Option<HostId>,
        /// The id of the account whose it is.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
        /// Where its backups are to be (wnam, enam, weur, eeur, apac, oc); the host's region by default.
        #[arg(long)]
        region: Option<String>,
    },
    /// List the projects, newest first.
    List {
        /// At most so many.
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show a project, what goes on with it, and whether anything of it would be lost with its host.
    #[command(alias = "show")]
    Status {
        /// Its id.
        project: ProjectId,
    },
    /// Change its title, or how it is backed up by itself.
    Update {
        /// Its id.
        project: ProjectId,
        /// Its new title.
        #[arg(long)]
        title: Option<String>,
        /// Its own backup policy, as JSON: `{"every_s":21600,"window":"23:00-05:00","enabled":true,"keep":{"last":10}}`; `{}`
        /// for none.
        #[arg(long, value_name = "JSON", value_parser = read_policy)]
        backup_policy: Option<BackupPolicy>,
    },
    /// Start it on its host, after restoring its files where the host has none; and watch that.
    Start {
        /// Its id.
        project: ProjectId,
        /// What to restore where the host has no files of it.
        #[arg(long, value_name = "ID|latest", default_value = "latest")]
        backup: BackupChoice,
        /// Print the operation and do not wait for its end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop it, and watch that.
    Stop {
        /// Its id.
        project: ProjectId,
        /// Print the operation and do not wait for its end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Say that it was edited, so that it is backed up though its host saw no change.
    Touch {
        /// Its id.
        project: ProjectId,
    },
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    match arguments.action {
        Action::Create { title, host, account, region } => {
            let host_id = match host {
                Some(host) => host,
                None => only_host(&api).await?,
            };
            let create = CreateProject { title, host_id, account_id: account, region };
            let reply: ProjectReply = api.call(Scope::Hub, "project", "create", &create).await?;
            output.one(&reply.project, &fields(&reply.project))
        }
        Action::List { limit } => {
            let page = |page: ProjectList| (page.projects, page.next_cursor);
            let projects = api.list(Scope::Hub, "project", limit, page).await?;
            output.list(&projects, ["id", "title", "host", "region", "last backup"], |project| {
                [
                    project.id.to_string(),
                    project.title.clone(),
                    project.host_id.to_string(),
                    project.region.clone(),
                    or_dash(project.last_backup_at),
                ]
            })
        }
        Action::Update { project, title, backup_policy } => {
            let update = UpdateProject { title, backup_policy };
            let reply: ProjectReply = api.call(Scope::Project(project), "project", "update", &update).await?;
            output.one(&reply.project, &fields(&reply.project))
        }
        Action::Start { project, backup, no_wait } => {
            let input = serde_json::to_value(ProjectStartInput { backup_id: backup })?;
            create_and_watch(&api, Scope::Project(project), "project-start", input, None, no_wait, output)
                .await
        }
        Action::Stop { project, no_wait } => {
            let input = serde_json::to_value(ProjectStopInput {})?;
            create_and_watch(&api, Scope::Project(project), "project-stop", input, None, no_wait, output)
                .await
        }
        Action::Touch { project } => {
            let reply: ProjectReply =
                api.call(Scope::Project(project), "project", "touch", &Nothing {}).await?;
            output.one(&reply.project, &fields(&reply.project))
        }
        Action::Status { project } => {
            let scope = Scope::Project(project);
            let status: ProjectStatus = api.call(scope, "project", "status", &Nothing {}).await?;
            let mut fields = fields(&status.project);
            let running: Vec<String> = status.running_ops.iter().map(ToString::to_string).collect();
            fields.push(("running", if running.is_empty() { "-".to_owned() } else { running.join(" ") }));
            let at_risk = match &status.at_risk_reason {
                Some(reason) => format!("yes, {:.0} s of work: {reason}", status.at_risk_s),
                None => "no".to_owned(),
            };
            fields.push(("at risk", at_risk));
            fields.push(("backed up by itself", policy(&status.backup_policy)));
            fields.push(("next looked at", or_dash(status.next_backup_at)));
            output.one(&status, &fields)
        }
    }
}

fn read_policy(text: &str) -> Result<BackupPolicy, serde_json::Error> {
    serde_json::from_str(text)
}

/// In words.
fn policy(policy: &BackupPolicy) -> String {
    let schedule = policy.schedule();
    match (schedule.enabled, schedule.window) {
        (false, _) => "no".to_owned(),
        (true, None) => format!("when changed, every {} s", schedule.every_s),
        (true, Some(window)) => format!("when changed, every {} s, at {window} UTC", schedule.every_s),
    }
}

async fn only_host(api: &Api) -> anyhow::Result<HostId> {
    let hosts: bus_messages::HostList = api.call(Scope::Hub, "host", "list", &Nothing {}).await?;
    match hosts.hosts.as_slice() {
        [host] => Ok(host.id),
        hosts => {
            let message =
                format!("there are {} hosts: give --host with the id of one (`host list`)", hosts.len());
            Err(UsageError(message).into())
        }
    }
}

fn fields(project: &Project) -> Vec<(&'static str, String)> {
    vec![
        ("id", project.id.to_string()),
        ("title", project.title.clone()),
        ("account", or_dash(project.account_id)),
        ("host", project.host_id.to_string()),
        ("region", project.region.clone()),
        ("state", project.state.clone()),
        ("bucket", or_dash(project.backup_bucket_id)),
        ("last backup", or_dash(project.last_backup_at)),
        ("last backup id", or_dash(project.last_backup_id.as_ref())),
        ("last verified", or_dash(project.last_verified_at)),
        ("created", project.created_at.to_string()),
    ]
}
