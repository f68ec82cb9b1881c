//! `meshwright delete`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright delete`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright delete")]
pub(crate) struct DeleteArgs {}

pub(crate) fn run(_args: DeleteArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`delete` is not part of this build")
}
