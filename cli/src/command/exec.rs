//! `meshwright exec`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright exec`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright exec")]
pub(crate) struct ExecArgs {}

pub(crate) fn run(_args: ExecArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`exec` is not part of this build")
}
