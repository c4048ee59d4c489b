//! `longhaul demo`.

use std::path::PathBuf;

use crate::demo::{self, Options};
use crate::output::Output;

/// Arguments of `longhaul demo`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A new or empty directory to run in; a temporary one by default. Some 3 GB free are enough.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Keep the directory with the data of the system.
    #[arg(long)]
    keep: bool,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    demo::run(Options { directory: arguments.data_dir, keep: arguments.keep }, output).await
}
