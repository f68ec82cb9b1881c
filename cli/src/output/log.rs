//! The log of a command that runs for long.

use std::io::IsTerminal;

use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use super::usage;

/// Writes the log to standard error from now on, by `--log-level`. `instead`: a filter that would do, for who gave one that does not.
///
/// # Errors
/// It is no filter.
pub(crate) fn log(filter: &str, instead: &str) -> anyhow::Result<()> {
    log_beside(filter, instead, None::<fmt::Layer<Registry>>)
}

/// The same beside another layer, which has a filter of its own.
///
/// # Errors
/// It is no filter.
pub(crate) fn log_beside(filter: &str, instead: &str, other: Option<impl Layer<Registry> + Send + Sync>) -> anyhow::Result<()> {
    // The client of a cluster writes a line for each failed call, and a library each span that is not taken; whoever calls says what matters of
    // it, once. Spans for collectors are no part of a line.
    let quiet = if filter.contains("kube") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{filter}{quiet},opentelemetry=off,meshwright::traces=off"))
        .map_err(|error| usage(format!("--log-level {filter}: {error}; use `info`, or `{instead}`")))?;
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal).with_target(false).with_filter(filter);
    tracing_subscriber::registry().with(other.map(Layer::boxed).into_iter().chain([lines.boxed()]).collect::<Vec<_>>()).init();
    Ok(())
}
