//! `meshwright get`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright get`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright get")]
pub(crate) struct GetArgs {}

pub(crate) fn run(_args: GetArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`get` is not part of this build")
}
