//! `meshwright down`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright down`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright down")]
pub(crate) struct DownArgs {}

pub(crate) fn run(_args: DownArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`down` is not part of this build")
}
