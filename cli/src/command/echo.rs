//! `meshwright echo`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright echo`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright echo")]
pub(crate) struct EchoArgs {}

pub(crate) fn run(_args: EchoArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`echo` is not part of this build")
}
