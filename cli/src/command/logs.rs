//! `meshwright logs`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright logs`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright logs")]
pub(crate) struct LogsArgs {}

pub(crate) fn run(_args: LogsArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`logs` is not part of this build")
}
