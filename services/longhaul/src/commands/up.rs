//! `longhaul up`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use bus_messages::ProjectList;
use domain_model::Scope;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::connection::data_directory_or_default;
use crate::output::Output;
use crate::up::{ObjectStoreKind, Options, Replicas, System};

/// Arguments of `longhaul up`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Where everything is kept; starting again with the same one goes on with all data.
    #[arg(long, value_name = "DIRECTORY", env = "LONGHAUL_DATA")]
    data_dir: Option<PathBuf>,
    /// How many hosts to run, at least: those of earlier starts stay.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    hosts: u16,
    /// Write here how to reach the system, too, once all of it answers.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Where backups go: at the first start `local` unless given, later what it was.
    #[arg(long, value_name = "KIND")]
    object_store: Option<ObjectStoreKind>,
    /// Copies of the stream of progress: 1, or 3 on a cluster of three nats-servers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    nats_replicas: u8,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let replicas = match arguments.nats_replicas {
        1 => Replicas::One,
        3 => Replicas::Three,
        other => return Err(crate::UsageError(format!("--nats-replicas is 1 or 3, not {other}")).into()),
    };
    let mut signals = Signals::listen()?;
    let talkative = arguments.ready_file.is_none() || std::io::stdout().is_terminal();
    let options = Options {
        data_directory: data_directory_or_default(arguments.data_dir.as_deref())?,
        hosts: arguments.hosts.into(),
        ready_file: arguments.ready_file,
        object_store: arguments.object_store,
        replicas,
    };
    eprintln!("up: starting on {}", options.data_directory.display());
    let interrupt = CancellationToken::new();
    let system = {
        let starting = System::start(options, &interrupt);
        tokio::pin!(starting);
        tokio::select! {
            started = &mut starting => started?,
            () = signals.next() => {
                eprintln!("up: stopping before the start is complete");
                interrupt.cancel();
                // It may have been ready at the same moment.
                if let Ok(system) = starting.await {
                    system.stop().await;
                }
                return Ok(());
            }
        }
    };
    if talkative {
        print_what_to_try(&system, output).await?;
    }
    let failure = tokio::select! {
        () = signals.next() => None,
        reason = system.failed() => Some(reason),
    };
    eprintln!("up: stopping (a second signal hurries)");
    let hurry = system.hurry();
    let hurrying = tokio::spawn(async move {
        signals.next().await;
        eprintln!("up: hurrying");
        hurry.cancel();
    });
    system.stop().await;
    hurrying.abort();
    eprintln!("up: stopped");
    failure.map_or(Ok(()), Err)
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on, these signals do not end the process.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn print_what_to_try(system: &System, output: Output) -> anyhow::Result<()> {
    let ready = system.ready()?;
    if output.json {
        return output.object(&ready);
    }
    let list = |page: ProjectList| (page.projects, None);
    let newest = system.api()?.list(Scope::Hub, "project", Some(1), list).await?;
    let project = newest.first().map_or_else(|| "PROJECT".to_owned(), |project| project.id.to_string());
    let (program, data) = (this_program(), quoted(&ready.data_directory));
    let command = |rest: &str| format!("  {program} {rest} --data-dir {data}");
    let nats = format!("nats --context {}", quoted(&ready.nats_context_dir.join("ops.json")));
    let mut lines = vec![
        format!("Ready. Data: {}   NATS: {}", ready.data_directory.display(), ready.nats_url),
        String::new(),
    ];
    for (index, host) in ready.hosts.iter().enumerate() {
        lines.push(format!("  host-{index}  {}  {}", host.id, host.root.display()));
    }
    let host = ready.hosts.first().map_or_else(|| "HOST".to_owned(), |host| host.id.to_string());
    let root = ready.hosts.first().map(|host| quoted(&host.root)).unwrap_or_default();
    lines.extend([
        String::new(),
        "Try, with this command line:".to_owned(),
        command(&format!("project create --title 'Linear algebra' --host {host}")),
    ]);
    if newest.is_empty() {
        lines.push("then, with the id that it prints in place of PROJECT:".to_owned());
    }
    lines.extend([
        format!("  mkdir -p {root}/projects/{project} && cp -r /etc/skel/. {root}/projects/{project}/"),
        command(&format!("backup {project} --tag first")),
        command(&format!("backups {project}")),
        command(&format!("restore {project} --backup latest")),
        command(&format!("ops {project}")),
        String::new(),
        "or with the nats command line:".to_owned(),
        format!("  {nats} micro ls"),
        format!("  {nats} req api.v1.hub.host.list '{{}}'"),
        format!("  {nats} sub 'persist.project-{project}.lro.>'"),
        format!("  {nats} req api.v1.project-{project}.lro.create '{{\"kind\":\"project-backup\",\"input\":{{}}}}'"),
        format!("  {nats} req api.v1.project-{project}.backup.list '{{}}'"),
        String::new(),
        "Ctrl-C stops everything.".to_owned(),
    ]);
    lines.iter().try_for_each(|line| output.line(line))
}

/// What to type to run this program: its path, unless its name was enough.
fn this_program() -> String {
    let by_name = std::env::args_os().next().is_some_and(|name| !name.to_string_lossy().contains('/'));
    match std::env::current_exe() {
        Ok(path) if !by_name => quoted(&path),
        _ => "longhaul".to_owned(),
    }
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_a_shell_would_split_it() {
        assert_eq!(quoted(Path::new("/srv/longhaul-1")), "/srv/longhaul-1");
        assert_eq!(quoted(Path::new("/srv/it's here")), r"'/srv/it'\''s here'");
    }
}
