//! `meshwright proxy`.

use std::process::ExitCode;

/// Arguments of `meshwright proxy`.
pub(crate) type ProxyArgs = proxy::settings::ProxyArgs;

pub(crate) fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    proxy::app::run(args)
}
