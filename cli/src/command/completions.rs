//! `meshwright completions`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright completions")]
pub(crate) struct CompletionsArgs {}

pub(crate) fn run(_args: CompletionsArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`completions` is not part of this build")
}
