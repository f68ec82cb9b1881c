//! `meshwright proxy`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `meshwright proxy`.
#[derive(Debug, Args)]
// Its group would have the name of the flattened one.
#[group(skip)]
#[command(
    after_help = "Example: meshwright proxy --control 10.77.0.1:15012 --control-ca ca.pem --token-file token --workload shop/catalog\n  SIGTERM drains and ends; a second one ends at once."
)]
#[group(skip)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    args: proxy::settings::ProxyArgs,
}

pub(crate) fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    proxy::app::run(args.args)
}
