//! `meshwright token`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright token`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright token")]
pub(crate) struct TokenArgs {}

pub(crate) fn run(_args: TokenArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`token` is not part of this build")
}
