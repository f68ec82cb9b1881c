//! An open-loop load generator: latency runs from the time a request was due, so that a stall is charged to every request it held up.

mod args;

pub use args::{Args, Mode, Protocol};

/// Runs the load that `args` describe; returns when it is over.
///
/// # Errors
/// The arguments contradict one another, or no connection can be opened.
pub fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("{} {} is not there yet", args.protocol.name(), args.mode.name())
}
