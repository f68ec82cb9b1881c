//! `meshwright apply`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright apply`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright apply")]
pub(crate) struct ApplyArgs {}

pub(crate) fn run(_args: ApplyArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`apply` is not part of this build")
}
