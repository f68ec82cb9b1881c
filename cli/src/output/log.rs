//! The log of a command that runs for long.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::usage;

/// Writes the log to standard error from now on, by `--log-level`. `instead`: a filter that would do, for who gave one that does not.
///
/// # Errors
/// It is no filter.
pub(crate) fn log(filter: &str, instead: &str) -> anyhow::Result<()> {
    // The client of a cluster writes a line for each failed call; whoever calls says what matters of it, once.
    let quiet = if filter.contains("kube") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{filter}{quiet}"))
        .map_err(|error| usage(format!("--log-level {filter}: {error}; use `info`, or `{instead}`")))?;
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).with_target(false).init();
    Ok(())
}
