//! `meshwright proxy`.

use std::process::ExitCode;

/// Arguments of `meshwright proxy`.
pub(crate) type ProxyArgs = proxy::shell::settings::ProxyArgs;

pub(crate) fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    proxy::shell::app::run(args)
}
