//! `meshwright check`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright check`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright check")]
pub(crate) struct CheckArgs {}

pub(crate) fn run(_args: CheckArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`check` is not part of this build")
}
