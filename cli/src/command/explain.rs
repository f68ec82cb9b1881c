//! `meshwright explain`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright explain`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright explain")]
pub(crate) struct ExplainArgs {}

pub(crate) fn run(_args: ExplainArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`explain` is not part of this build")
}
