//! `meshwright uninstall`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::duration;
use crate::install::apply::{self, ClusterArgs};
use crate::install::removal;
use crate::output;

/// Arguments of `meshwright uninstall`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshwright uninstall\n  meshwright uninstall --apply\n  The first says what the second would delete.")]
pub(crate) struct UninstallArgs {
    /// Delete it, instead of saying what would be deleted
    #[arg(long)]
    apply: bool,
    /// The CustomResourceDefinitions too, and with them every object of our kinds
    #[arg(long)]
    crds: bool,
    /// Although pods with sidecars are left, which nobody will give certificates any more
    #[arg(long, requires = "apply")]
    despite_sidecars: bool,
    /// How long to wait until everything is gone
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration::positive, requires = "apply")]
    timeout: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) fn run(args: UninstallArgs) -> anyhow::Result<ExitCode> {
    let removal = removal(args.crds);
    if args.apply {
        output::block_on(apply::uninstall(&removal, &args.cluster, args.despite_sidecars, args.timeout))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for object in &removal {
        let _ = writeln!(text, "would delete {}", object.shown());
    }
    text += "would delete ConfigMap meshwright-ca of every namespace\n";
    if !args.crds {
        text += "would keep the CustomResourceDefinitions and the objects of our kinds (--crds deletes them too)\n";
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
