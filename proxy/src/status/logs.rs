//! The proxy's own log: lines on standard error, filtered by a filter that can be changed while it runs. Nobody waits for its reader.

use std::sync::Arc;

use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::io::Lossy;
use crate::observe::{Telemetry, own_tasks_layer};

/// Longest filter text.
const FILTER_BYTES_MAX: usize = 1024;

/// The library's own words about what is exported: `observe` says them once a minute, with what to do.
const QUIET: &str = "opentelemetry_sdk=off,";

/// A filter that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{filter}` is no log filter (try `info` or `warn,proxy::xds=debug`): {why}")]
pub struct BadFilter {
    filter: String,
    why: String,
}

/// Changes the log's filter.
#[derive(Clone, Debug, Default)]
pub struct LogFilter(Option<Handle<EnvFilter, Registry>>);

/// Reads a filter: a level, or `target=level` directives.
///
/// # Errors
/// What cannot be read.
pub fn parse(filter: &str) -> Result<EnvFilter, BadFilter> {
    let bad = |why: String| BadFilter { filter: filter.chars().take(200).collect(), why };
    if filter.len() > FILTER_BYTES_MAX {
        return Err(bad("it is too long".to_owned()));
    }
    EnvFilter::try_new(format!("{QUIET}{filter}")).map_err(|error| bad(error.to_string()))
}

/// Starts the log. A second start in one process (a test) keeps the first.
///
/// # Errors
/// The filter cannot be read.
pub fn start(filter: &str, telemetry: &Arc<Telemetry>) -> Result<LogFilter, BadFilter> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = fmt::layer().with_writer(Arc::new(Lossy::new(std::io::stderr()))).with_ansi(false).with_target(true);
    let started = tracing_subscriber::registry().with(filter).with(lines.boxed()).with(own_tasks_layer(telemetry)).try_init();
    Ok(LogFilter(started.is_ok().then_some(handle)))
}

impl LogFilter {
    /// Puts another filter in force.
    ///
    /// # Errors
    /// It cannot be read; the former one stays.
    pub fn set(&self, filter: &str) -> Result<(), BadFilter> {
        let parsed = parse(filter)?;
        match &self.0 {
            Some(handle) => handle.reload(parsed).map_err(|error| BadFilter { filter: filter.to_owned(), why: error.to_string() }),
            None => Ok(()),
        }
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.0.as_ref().and_then(|handle| handle.with_current(ToString::to_string).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: levels and directives are read; nonsense is refused with an example.
    #[test]
    fn filters_are_read() {
        assert!(parse("info").is_ok());
        assert!(parse("warn,proxy::xds=debug").is_ok());
        assert!(parse("proxy=loudly").unwrap_err().to_string().contains("try `info`"));
        assert!(parse(&"a".repeat(2000)).is_err());
    }
}
