//! `meshwright logs`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::output::usage;
use crate::state;
use crate::up::book::InstancesFile;
use crate::up::tidy::LOGS;

/// Name of the control plane's log on the command line.
const CONTROL: &str = "control";
/// How often `-f` looks for more.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `meshwright logs`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright logs -n shop frontend --proxy -f\n         meshwright logs control")]
pub(crate) struct LogsArgs {
    /// Namespace of the workload [default: `default`, or the only one that has it].
    #[arg(short, long)]
    namespace: Option<String>,
    /// A workload, one of its instances, a Gateway, or `control`.
    workload: String,
    /// The proxy's output (its access log) instead of the workload's.
    #[arg(long)]
    proxy: bool,
    /// Goes on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
}

pub(crate) fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let place = state::find();
    let path = choose(&place, &args)?;
    let mut file = File::open(&path)
        .with_context(|| format!("there is no log at {}; has `meshwright up` run with this state directory?", path.display()))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    write(args.tail.map_or(text.as_slice(), |lines| last_lines(&text, lines)))?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        thread::sleep(LOOK);
        // A log that grew too long starts again from nothing.
        if file.metadata()?.size() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
        text.clear();
        file.read_to_end(&mut text)?;
        write(&text)?;
    }
}

fn choose(place: &Path, args: &LogsArgs) -> anyhow::Result<PathBuf> {
    if args.workload == CONTROL && args.namespace.is_none() {
        if args.proxy {
            return Err(usage("`logs control` is the control plane's log, and it has no proxy; leave --proxy out".to_owned()));
        }
        return Ok(place.join(LOGS).join("control.log"));
    }
    let book = InstancesFile::read(place);
    if let Ok(book) = &book {
        let entry = book.find(args.namespace.as_deref(), &args.workload)?;
        return Ok(if args.proxy || entry.edge { entry.proxy_log.clone() } else { entry.log.clone() });
    }
    // The mesh has ended; its logs stay until the next one.
    let namespace = args.namespace.as_deref().unwrap_or("default");
    let suffix = if args.proxy { "proxy.log" } else { "log" };
    Ok(place.join(LOGS).join(format!("{namespace}.{}.{suffix}", args.workload)))
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let start = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    if lines == 0 { &[] } else { &text[start..] }
}

fn write(text: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("cannot write to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a tail is whole lines, however many there are.
    #[test]
    fn tails() {
        for (text, lines, expected) in [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\n", 5, "a\n"), ("", 1, ""), ("a\nb\n", 0, "")]
        {
            assert_eq!(last_lines(text.as_bytes(), lines), expected.as_bytes());
        }
    }
}
