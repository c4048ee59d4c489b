//! `longhaul-nemesis`: operations of many shapes on a real system, while its processes are killed and paused, its
//! servers crash and lose their stores, connections are cut, delayed and held, and people edit the files that are backed up,
//! restored and copied. Afterwards every repository is checked, the newest backups are restored, a checker reads what
//! happened, and what must be true is true, or the exit status is 1 and the history of what is not is shown.
//!
//! The faults and the requests of a run come from its seed. What meets what is a matter of milliseconds, and differs: a
//! seed repeats a run as far as processes can be repeated.

mod checker;
mod database;
mod edits;
mod faults;
mod fleet;
mod history;
mod measures;
mod proof;
mod proxy;
mod run;
mod settings;
mod summary;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::settings::Settings;

#[derive(Parser)]
#[command(about = "Kill, pause, cut and wipe everything under load, and check what came of it", long_about = None)]
struct Arguments {
    /// Where faults and requests come from; another one each time where absent
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults happen
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Workers beside the one of the system
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Registries beside the one of the system
    #[arg(long, default_value_t = 2)]
    registries: usize,
    /// New requests a second
    #[arg(long, default_value_t = 150.0)]
    rate: f64,
    /// No new requests while so many operations are open
    #[arg(long, default_value_t = 600)]
    open: u64,
    /// No new requests of projects while so many of their operations are open
    #[arg(long, default_value_t = 8)]
    open_of_projects: u64,
    /// These kinds of faults alone
    #[arg(long, value_enum)]
    only: Vec<faults::Kind>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = Settings {
        seed: arguments.seed.unwrap_or_else(rand::random),
        duration: Duration::from_secs_f64(arguments.minutes.max(0.0) * 60.0),
        workers: arguments.workers,
        registries: arguments.registries,
        rate: arguments.rate.max(0.1),
        open: arguments.open,
        open_of_projects: arguments.open_of_projects,
        only: arguments.only,
    };
    eprintln!("nemesis: seed {}, {} s of faults", settings.seed, settings.duration.as_secs_f64());
    match run::run(settings).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("longhaul-nemesis: {error:#}");
            ExitCode::FAILURE
        }
    }
}
