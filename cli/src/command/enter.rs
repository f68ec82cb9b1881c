//! `meshwright enter`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright enter`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright enter")]
pub(crate) struct EnterArgs {}

pub(crate) fn run(_args: EnterArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`enter` is not part of this build")
}
