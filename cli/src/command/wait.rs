//! `meshwright wait`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright wait`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright wait")]
pub(crate) struct WaitArgs {}

pub(crate) fn run(_args: WaitArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`wait` is not part of this build")
}
