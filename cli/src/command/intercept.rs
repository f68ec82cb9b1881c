//! `meshwright intercept`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright intercept`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright intercept")]
pub(crate) struct InterceptArgs {}

pub(crate) fn run(_args: InterceptArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`intercept` is not part of this build")
}
