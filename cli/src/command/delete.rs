//! `meshwright delete`.

use std::process::ExitCode;

use clap::Args;

use super::apply::{self, ChangeArgs};

/// Arguments of `meshwright delete`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright delete -f canary.yaml --wait\n  Takes back what `apply -f canary.yaml` brought; objects of the mesh's folder come into force again."
)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

pub(crate) fn run(args: DeleteArgs) -> anyhow::Result<ExitCode> {
    apply::change(args.change, true)
}
