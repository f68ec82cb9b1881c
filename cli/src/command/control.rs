//! `meshwright control`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright control`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright control")]
pub(crate) struct ControlArgs {}

pub(crate) fn run(_args: ControlArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`control` is not part of this build")
}
