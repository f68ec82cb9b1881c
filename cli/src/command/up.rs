//! `meshwright up`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright up`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright up")]
pub(crate) struct UpArgs {}

pub(crate) fn run(_args: UpArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`up` is not part of this build")
}
