//! One reading: sends a phase's load to a topology, and reads the kernel's account between its `begin` and its `end`.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use crate::pair::account::{Cpu, Machine, Memory};
use crate::pair::growth;
use crate::pair::phase::{Kind, Phase, Unit};
use crate::pair::reading::{Cell, Figure};
use crate::pair::spec::{Role, Side};
use crate::pair::topology::Topology;

/// How long a load may take longer than it was told.
const LATE: Duration = Duration::from_secs(30);
/// How long a proxy rests before its memory is called fresh, seconds.
pub(super) const REST_SECS: f64 = 2.0;
/// Connections are held this long before memory is read, and as long after, seconds.
pub(super) const HOLD_SECS: f64 = 1.5;
/// Longest text of a failed load generator that goes into an error.
const SAID_BYTES_MAX: u64 = 4096;

/// How long a phase's load runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Before counting, seconds.
    pub(super) warm_secs: f64,
    /// Counted, seconds.
    pub(super) secs: f64,
}

/// What the load generator says at its end.
#[derive(Debug, Deserialize)]
struct Said {
    ok: u64,
    failed: u64,
    #[serde(default)]
    errors: Value,
    #[serde(default)]
    per_sec: f64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    secs: f64,
    latency_us: Option<BTreeMap<String, Option<f64>>>,
    #[serde(default)]
    histogram: Value,
}

/// Accounts of everybody at one moment.
struct Moment {
    at: Instant,
    machine: Machine,
    /// Client's proxy, server's proxy, backend, load generator.
    cpus: [Cpu; 4],
}

impl Moment {
    fn read(pids: &[Vec<u32>; 4]) -> Self {
        let cpus = [0, 1, 2, 3].map(|n| Cpu::read(&pids[n]));
        Self { at: Instant::now(), machine: Machine::read().unwrap_or_default(), cpus }
    }
}

/// Takes one reading; the topology must run, and be fresh where the phase wants it.
///
/// # Errors
/// The load generator cannot be started or breaks, or memory phases cannot start the topology anew.
pub(super) async fn take(topology: &mut Topology<'_>, phase: Phase, timing: Timing, program: &str) -> anyhow::Result<Cell> {
    match phase.kind {
        Kind::Mem => {
            rest(topology).await;
            Ok(Cell { units: 1.0, figures: resident(topology), ..Cell::default() })
        }
        Kind::Idle | Kind::TcpIdle => idle(topology, phase, program).await,
        Kind::Routes | Kind::Services => grown(topology, phase).await,
        _ => loaded(topology, phase, timing, program).await,
    }
}

/// Command line of the load for a phase.
fn load(topology: &Topology<'_>, phase: Phase, timing: Timing, program: &str) -> anyhow::Result<Command> {
    let target = phase.destination(&topology.spec.target).context("the topology has no target for this protocol")?;
    let mut words = vec![program.to_owned(), "load".to_owned()];
    words.extend(phase.load(&topology.fill(target)?, timing.warm_secs, timing.secs));
    let mut command = Command::from(topology.command(Some(Side::Client), &words));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

async fn loaded(topology: &mut Topology<'_>, phase: Phase, timing: Timing, program: &str) -> anyhow::Result<Cell> {
    topology.touch();
    let [client, server, backend] = [Role::Client, Role::Server, Role::Backend].map(|role| topology.pids(role, false));
    let mut child = load(topology, phase, timing, program)?.spawn().context("cannot start the load generator")?;
    let pids = [client, server, backend, child.id().into_iter().collect()];
    let mut stderr = child.stderr.take().context("the load generator has no stderr")?.take(SAID_BYTES_MAX);
    let mut lines = BufReader::new(child.stdout.take().context("the load generator has no stdout")?).lines();
    let limit = Duration::from_secs_f64(timing.warm_secs + timing.secs) + LATE;
    let talk = async {
        until(&mut lines, "begin").await?;
        let begin = Moment::read(&pids);
        until(&mut lines, "end").await?;
        let end = Moment::read(&pids);
        anyhow::Ok((begin, end, said(&mut lines).await?))
    };
    let talked = tokio::time::timeout(limit, talk).await.context("the load did not end in time")?;
    let (begin, end, said) = match talked {
        Ok(all) => all,
        Err(error) => {
            let mut why = String::new();
            // What it can still say; its end comes with the pipe's.
            let _ = tokio::time::timeout(Duration::from_secs(1), stderr.read_to_string(&mut why)).await;
            bail!("the load generator broke off: {error:#} {}", why.trim());
        }
    };
    tokio::time::timeout(LATE, child.wait()).await.context("the load generator does not end")??;
    Ok(cell(phase, &begin, &end, said))
}

/// Waits for a line of just that word.
async fn until(lines: &mut Lines<BufReader<ChildStdout>>, word: &str) -> anyhow::Result<()> {
    while let Some(line) = lines.next_line().await? {
        if line.trim() == word {
            return Ok(());
        }
    }
    bail!("no `{word}`")
}

async fn said(lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Said> {
    let line = lines.next_line().await?.context("it did not say what it did")?;
    serde_json::from_str(&line).with_context(|| format!("its report is not what we know: {line:.200}"))
}

/// Accounts and the generator's own report, as figures.
fn cell(phase: Phase, begin: &Moment, end: &Moment, said: Said) -> Cell {
    let bulk = phase.unit() == Unit::Gigabyte;
    let units = if bulk { said.bytes as f64 / 1e9 } else { said.ok as f64 };
    let mut figures = BTreeMap::new();
    let secs = [0, 1, 2, 3].map(|n| end.cpus[n].secs_since(&begin.cpus[n]));
    if units > 0.0 {
        let each = |secs: f64| if bulk { secs / units } else { secs * 1e6 / units };
        let [client, server, backend, load] = secs.map(each);
        figures.extend([
            (Figure::CpuClient, client),
            (Figure::CpuServer, server),
            (Figure::CpuPair, client + server),
            (Figure::CpuBackend, backend),
            (Figure::CpuLoad, load),
            (Figure::CpuAll, client + server + backend + load),
        ]);
    }
    figures.insert(Figure::PerSec, said.per_sec);
    if bulk && said.secs > 0.0 {
        figures.insert(Figure::GbitPerSec, said.bytes as f64 * 8.0 / 1e9 / said.secs);
    }
    let names = [("mean", Figure::Mean), ("p50", Figure::P50), ("p90", Figure::P90), ("p99", Figure::P99), ("p999", Figure::P999)];
    let latency = said.latency_us.unwrap_or_default();
    figures.extend(names.iter().filter_map(|(name, figure)| Some((*figure, (*latency.get(*name)?)?))));
    let wall = (end.at - begin.at).as_secs_f64() * std::thread::available_parallelism().map_or(1, usize::from) as f64;
    if wall > 0.0 {
        let busy = end.machine.busy - begin.machine.busy;
        figures.insert(Figure::Foreign, ((busy - secs.iter().sum::<f64>()) / wall).max(0.0));
        figures.insert(Figure::Steal, (end.machine.steal - begin.machine.steal) / wall);
    }
    let empty =
        matches!(&said.errors, Value::Object(map) if map.is_empty()) || matches!(&said.errors, Value::Array(list) if list.is_empty());
    let errors = if empty || said.failed == 0 { Value::Null } else { said.errors };
    Cell { units, failed: said.failed, errors, lost: None, figures, histogram: said.histogram }
}

/// Waits until a topology that nobody used has settled.
async fn rest(topology: &Topology<'_>) {
    let since = topology.fresh_for().unwrap_or_default();
    tokio::time::sleep(Duration::from_secs_f64(REST_SECS).saturating_sub(since)).await;
}

/// Memory of client's and server's side; all processes, or those that stand for a sidecar (`procs[].memory`).
fn memory(topology: &Topology<'_>, sidecars_only: bool) -> [Memory; 2] {
    [Role::Client, Role::Server].map(|role| Memory::read(&topology.pids(role, sidecars_only)))
}

fn resident(topology: &Topology<'_>) -> BTreeMap<Figure, f64> {
    let [client, server] = memory(topology, true);
    BTreeMap::from([
        (Figure::RssClient, client.rss),
        (Figure::RssServer, server.rss),
        (Figure::PssClient, client.pss),
        (Figure::PssServer, server.pss),
        (Figure::DirtyClient, client.dirty),
        (Figure::DirtyServer, server.dirty),
    ])
}

/// What each of `count` things took, KiB.
fn each(before: [Memory; 2], after: [Memory; 2], count: f64) -> BTreeMap<Figure, f64> {
    let kib = |before: f64, after: f64| (after - before) * 1024.0 / count;
    BTreeMap::from([
        (Figure::RssEachClient, kib(before[0].rss, after[0].rss)),
        (Figure::RssEachServer, kib(before[1].rss, after[1].rss)),
        (Figure::DirtyEachClient, kib(before[0].dirty, after[0].dirty)),
        (Figure::DirtyEachServer, kib(before[1].dirty, after[1].dirty)),
    ])
}

/// Memory per connection held.
async fn idle(topology: &mut Topology<'_>, phase: Phase, program: &str) -> anyhow::Result<Cell> {
    rest(topology).await;
    let before = memory(topology, false);
    topology.touch();
    let timing = Timing { warm_secs: HOLD_SECS, secs: 2.0 * HOLD_SECS };
    let mut child = load(topology, phase, timing, program)?.spawn().context("cannot start the load generator")?;
    let mut lines = BufReader::new(child.stdout.take().context("the load generator has no stdout")?).lines();
    let talk = async {
        until(&mut lines, "begin").await?;
        tokio::time::sleep(Duration::from_secs_f64(HOLD_SECS)).await;
        let held = memory(topology, false);
        until(&mut lines, "end").await?;
        anyhow::Ok((held, said(&mut lines).await?))
    };
    let (held, said) = tokio::time::timeout(LATE, talk).await.context("the load did not end in time")??;
    let count = f64::from(phase.number.unwrap_or(1));
    let errors = if said.failed == 0 { Value::Null } else { said.errors };
    Ok(Cell { units: count, failed: said.failed, errors, figures: each(before, held, count), ..Cell::default() })
}

/// Memory per route or service more: two fresh starts, without them and with them. Leaves the topology to be started anew.
async fn grown(topology: &mut Topology<'_>, phase: Phase) -> anyhow::Result<Cell> {
    let count = phase.number.unwrap_or(1);
    let more = if phase.kind == Kind::Routes { growth::routes(count, topology.spec.parent) } else { growth::services(count) };
    rest(topology).await;
    let before = memory(topology, false);
    topology.start(Some(("more.yaml", &more))).await?;
    rest(topology).await;
    let after = memory(topology, false);
    topology.touch();
    Ok(Cell { units: f64::from(count), figures: each(before, after, f64::from(count)), ..Cell::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Said {
        serde_json::from_str(text).unwrap()
    }

    fn figures(phase: &str, said: &str) -> Cell {
        let moment = || Moment { at: Instant::now(), machine: Machine::default(), cpus: Default::default() };
        let (begin, end) = (moment(), moment());
        cell(phase.parse().unwrap(), &begin, &end, report(said))
    }

    /// Aim: the generator's report becomes figures; unknown fields do no harm, failures are kept.
    #[test]
    fn reports_become_figures() {
        let said = r#"{"sent": 11, "ok": 10, "failed": 1, "errors": {"reset": 1}, "secs": 2.0, "per_sec": 5.0, "bytes": 10240, "new": 1,
                       "latency_us": {"mean": 5.5, "p50": 5, "p90": 6, "p99": 7, "p999": null, "max": 9}, "histogram": "HISTFAAA"}"#;
        let cell = figures("rate:5", said);
        assert_eq!((cell.units, cell.failed, cell.errors["reset"].as_u64()), (10.0, 1, Some(1)));
        assert_eq!((cell.figures[&Figure::P50], cell.figures[&Figure::Mean], cell.figures.get(&Figure::P999)), (5.0, 5.5, None));
        assert_eq!(cell.histogram, "HISTFAAA");
    }

    /// Aim: bulk counts in gigabytes.
    #[test]
    fn bulk_counts_in_gigabytes() {
        let cell = figures("bulk", r#"{"ok": 20, "failed": 0, "errors": {}, "secs": 2.0, "per_sec": 10.0, "bytes": 2000000000}"#);
        assert_eq!((cell.units, cell.figures[&Figure::GbitPerSec], cell.errors), (2.0, 8.0, Value::Null));
    }

    /// Aim: memory per thing is the difference spread over the things.
    #[test]
    fn memory_each() {
        let memory = |rss| Memory { rss, pss: 0.0, dirty: rss / 2.0 };
        let each = each([memory(10.0), memory(8.0)], [memory(20.0), memory(8.0)], 1024.0);
        assert_eq!((each[&Figure::RssEachClient], each[&Figure::DirtyEachClient], each[&Figure::RssEachServer]), (10.0, 5.0, 0.0));
    }
}
