//! What a change costs the control plane, and when the last proxy has it: `benches plane`.
//!
//! A folder of manifests (`folder`) is given to each control plane in turn, as a process of its own (`process`). As many proxies as asked
//! for connect over plaintext xDS (`stream`, `call`): they ask as our proxies do, and acknowledge everything. Then the folder changes, one change after another
//! (`Change`), and every time the control plane's CPU and the moments at which the proxies were told are taken down (`reading`).

mod call;
mod folder;
pub(crate) mod process;
mod reading;
pub(crate) mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::ClockId;
use tokio::task::JoinSet;

use crate::sockets::raise_open_files;
use folder::Folder;
use process::{Process, Source};
use reading::{Reading, Row};
use stream::Told;

/// The control plane counts as at rest when it has used less CPU than this in [`REST`].
const REST_CPU_SECS: f64 = 0.01;
/// See [`REST_CPU_SECS`].
const REST: Duration = Duration::from_millis(400);
/// Longest wait for the proxies' first configuration, for a change to reach all whom it concerns, and for rest after it.
const PATIENCE: Duration = Duration::from_secs(600);
/// Streams that connect at a time.
const CONNECTING_MAX: usize = 64;

/// Arguments of `benches plane`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    benches plane --control target/dist/meshwright\n  \
    benches plane --control target/dist/meshwright --control /tmp/before/meshwright --services 10000 --streams 500\n\n\
    `one` is a change that concerns one proxy, `endpoint` one that concerns all.")]
pub struct Args {
    /// A `meshwright` whose control plane is measured (repeatable: they take turns)
    #[arg(long, value_name = "FILE", required = true)]
    control: Vec<PathBuf>,
    /// Services
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: u32,
    /// Proxies
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,
    /// Services that each proxy calls; the first is everybody's
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    destinations: u32,
    /// Changes of each kind, one after another
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    changes: u32,
    /// Turns of each control plane
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// One line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// A policy of one workload.
    One,
    /// An endpoint of the Service that every proxy calls.
    Endpoint,
}

impl Change {
    const ALL: [Self; 2] = [Self::One, Self::Endpoint];

    fn text(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Endpoint => "endpoint",
        }
    }

    /// How many proxies are to be told.
    fn concerns(self, streams: u32) -> u64 {
        match self {
            Self::One => 1,
            Self::Endpoint => u64::from(streams),
        }
    }
}

/// Measures; prints a table, or JSON.
///
/// # Errors
/// A control plane does not start, refuses a proxy, or does not tell a change.
pub fn run(args: &Args) -> anyhow::Result<()> {
    raise_open_files();
    ensure!(args.destinations <= args.services, "there are fewer Services than destinations");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut rows: Vec<Row> = args.control.iter().map(|control| Row::new(control)).collect();
    for _ in 0..args.rounds {
        for row in &mut rows {
            runtime.block_on(turn(args, row))?;
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&rows)?);
    } else {
        println!("{}", reading::table(&rows));
    }
    Ok(())
}

/// One control plane from its start to its end.
async fn turn(args: &Args, row: &mut Row) -> anyhow::Result<()> {
    let folder = Folder::write(args.services, args.streams)?;
    let process = Process::start(&row.control, Source::Folder(folder.path())).await?;
    let told = Arc::new(Told::new(args.streams as usize));
    let mut streams = JoinSet::new();
    let door = Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    let connect = |streams: &mut JoinSet<_>, number| {
        let proxy = folder.proxy(number, args.destinations);
        let (told, door, address) = (Arc::clone(&told), Arc::clone(&door), process.xds);
        streams.spawn(async move { stream::run(address, proxy, &door, &told).await });
    };
    // Reading the folder is another matter: it has been read when somebody has a configuration.
    connect(&mut streams, 0);
    reach(&mut streams, || told.begun() == 1).await.context("reading the folder")?;
    rest(&process).await?;
    let (cpu, begun) = (process.cpu_secs(), Instant::now());
    (1..args.streams).for_each(|number| connect(&mut streams, number));
    let all = u64::from(args.streams);
    reach(&mut streams, || told.begun() == all).await.context("the first configuration of all proxies")?;
    let last_secs = begun.elapsed().as_secs_f64();
    rest(&process).await?;
    row.start.push(Reading { cpu_secs: process.cpu_secs() - cpu, last_secs, ..Reading::default() });
    for number in 0..args.changes {
        for change in Change::ALL {
            let (cpu, own, at) = (process.cpu_secs(), own_cpu_secs(), Instant::now());
            told.mark();
            folder.change(change, number)?;
            let concerns = change.concerns(args.streams);
            reach(&mut streams, || told.count() >= concerns).await.with_context(|| format!("change `{}`", change.text()))?;
            let (times, own) = (told.times(at), own_cpu_secs() - own);
            rest(&process).await?;
            let wrong = told.count().saturating_sub(concerns);
            ensure!(wrong == 0, "change `{}` concerns {concerns} proxies, and {wrong} more were told something", change.text());
            row.add(change, Reading::of((process.cpu_secs() - cpu, own), &times));
        }
    }
    row.resident_mib.push(process.resident_mib());
    Ok(())
}

/// Waits for `reached`; a stream that ends is an error.
pub(crate) async fn reach(streams: &mut JoinSet<anyhow::Result<()>>, reached: impl Fn() -> bool) -> anyhow::Result<()> {
    let waited = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, waited) => done.with_context(|| format!("not within {} s", PATIENCE.as_secs())),
        ended = streams.join_next() => match ended {
            Some(ended) => ended?.and_then(|()| anyhow::bail!("the control plane ended a stream")),
            None => Ok(()),
        },
    }
}

/// Waits until the control plane does nothing more.
pub(crate) async fn rest(process: &Process) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let before = process.cpu_secs();
        tokio::time::sleep(REST).await;
        if process.cpu_secs() - before < REST_CPU_SECS {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the control plane does not come to rest within {} s", PATIENCE.as_secs());
    }
}

/// Seconds of CPU of this process.
fn own_cpu_secs() -> f64 {
    ClockId::CLOCK_PROCESS_CPUTIME_ID.now().map_or(0.0, |spent| Duration::from(spent).as_secs_f64())
}

/// Nanoseconds since a moment in this process's past, for atomics.
fn nanos_since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Stores the first value only.
fn store_first(cell: &AtomicU64, value: u64) -> bool {
    cell.compare_exchange(0, value.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
}
