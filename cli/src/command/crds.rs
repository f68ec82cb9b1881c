//! `meshwright crds`.

use std::process::ExitCode;

use clap::Args;

use crate::output::{self, Manifests};

/// Arguments of `meshwright crds`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright crds | kubectl apply --server-side -f -")]
pub(crate) struct CrdsArgs {
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Manifests,
}

pub(crate) fn run(args: CrdsArgs) -> anyhow::Result<ExitCode> {
    output::print(&args.output.text(&control::crds::all())?)?;
    Ok(ExitCode::SUCCESS)
}
