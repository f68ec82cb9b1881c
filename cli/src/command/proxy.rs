//! `meshwright proxy`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright proxy`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright proxy")]
pub(crate) struct ProxyArgs {}

pub(crate) fn run(_args: ProxyArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`proxy` is not part of this build")
}
