//! The registry's process, and what an operator does with its settings while it may not even run.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use domain_model::ProjectId;
use secrecy::ExposeSecret as _;
use service_runtime::{ServiceArguments, load_settings, service_main_with};

const NAME: &str = "registry";

/// A third of what an operation costs here went into the allocator of the C library (docs/decisions/0003).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = NAME, about = None, long_about = None, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    service: ServiceArguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the password of a project's repository, with which restic reads it.
    RevealPassword {
        #[command(flatten)]
        service: ServiceArguments,
        /// The project.
        #[arg(value_name = "PROJECT")]
        project: ProjectId,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None => service_main_with(NAME, registry::DEFAULT_SETTINGS, &arguments.service, registry::run),
        Some(Command::RevealPassword { service, project }) => match reveal_password(&service, project) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Where nobody reads it, the exit status has to do.
                let _ = writeln!(std::io::stderr(), "{NAME}: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn reveal_password(service: &ServiceArguments, project: ProjectId) -> anyhow::Result<()> {
    let settings = load_settings(NAME, registry::DEFAULT_SETTINGS, service)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let password = runtime.block_on(registry::reveal_password(settings, project))?;
    writeln!(std::io::stdout(), "{}", password.expose_secret()).context("print the password")
}
