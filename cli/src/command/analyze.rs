//! `meshwright analyze`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright analyze`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright analyze")]
pub(crate) struct AnalyzeArgs {}

pub(crate) fn run(_args: AnalyzeArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`analyze` is not part of this build")
}
