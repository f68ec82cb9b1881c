//! `meshwright inject`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright inject`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright inject")]
pub(crate) struct InjectArgs {}

pub(crate) fn run(_args: InjectArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`inject` is not part of this build")
}
