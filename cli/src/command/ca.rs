//! `meshwright ca`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright ca`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright ca")]
pub(crate) struct CaArgs {}

pub(crate) fn run(_args: CaArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`ca` is not part of this build")
}
