//! `benches pair`: whole systems, side by side in one run. Application -> client proxy -> mTLS -> server proxy -> application, in two
//! network namespaces; what each proxy costs by the kernel's account.
//!
//! args (what is asked) -> catalogue, spec (what topologies are) -> lab, topology (they run) -> plan (order) -> measure, account (readings)
//! -> reading (medians, ratios) -> goals -> table, summary, svg (reports). Pure but for lab, topology, probe, measure, account, progress.

mod account;
mod args;
mod catalogue;
mod certs;
mod collector;
mod goals;
mod growth;
mod lab;
mod measure;
mod phase;
mod plan;
mod probe;
mod progress;
mod reading;
mod spec;
mod summary;
mod svg;
mod table;
mod topology;

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

pub use args::Args;
pub use collector::{CollectorArgs, collect};

use args::{Output, QUICK_TOPOLOGIES, Scope};
use catalogue::{DIRECT, EDGES, OUR_EDGE, OURS, USUAL};
use lab::Lab;
use measure::Timing;
use plan::{SETTLE_SECS, START_SECS, Step};
use progress::Progress;
use reading::{Cell, Reading, Run};
use spec::Spec;
use summary::Facts;
use table::{Ink, Quotient};
use topology::{Topology, Vars};

/// Pairs that ours is put over unless the user says otherwise.
const RIVALS: [&str; 3] = ["floor", "nginx", "envoy"];
/// Topologies of one run at most: each has a network of its own in 10.231.0.0/16.
const TOPOLOGIES_MAX: usize = 200;

/// Measures what `args` ask for, prints the report, and removes whatever the run made, also when it is interrupted.
///
/// # Errors
/// Not root, a program is missing, a topology does not start, a file cannot be written: each with its remedy. Failed load is no error
/// but exit code 1.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scope = args.scope().map_err(anyhow::Error::msg)?;
    let specs = wanted(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the asynchronous runtime")?;
    let lab = Lab::open(!args.no_pin, args.keep)?;
    let place = lab.folder().to_owned();
    let (run, facts) = runtime.block_on(async {
        tokio::select! {
            biased;
            () = interrupted() => bail!("interrupted; nothing is left behind"),
            done = measured(args, &scope, specs, &lab) => done,
        }
    })?;
    lab.close();
    if args.keep {
        note(&format!("logs are in {}", place.display()));
    }
    report(args, &run, &facts)?;
    Ok(if run.is_bad() || !facts.unproven.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Returns when somebody wants us to end.
async fn interrupted() {
    async fn came(kind: SignalKind) {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            // A signal that cannot be watched keeps its own effect.
            Err(_) => std::future::pending().await,
        }
    }
    tokio::select! {
        () = came(SignalKind::interrupt()) => {}
        () = came(SignalKind::terminate()) => {}
        () = came(SignalKind::hangup()) => {}
    }
}

/// A topology to measure, and whether the user named it: what was not named may be left out where it cannot run.
struct Wanted {
    spec: Spec,
    named: bool,
}

fn wanted(args: &Args) -> anyhow::Result<Vec<Wanted>> {
    let usual = match (args.edge, args.quick) {
        (true, _) => EDGES.as_slice(),
        (false, true) => QUICK_TOPOLOGIES.as_slice(),
        (false, false) => USUAL.as_slice(),
    };
    let named = !args.topologies.is_empty();
    let mut names: Vec<&str> = if named { args.topologies.iter().map(String::as_str).collect() } else { usual.to_vec() };
    names.retain(|name| *name != DIRECT);
    names.insert(0, DIRECT);
    let mut all = Vec::new();
    for name in names {
        all.push(Wanted { spec: catalogue::topology(name)?, named });
    }
    for file in &args.spec {
        all.push(Wanted { spec: from_file(file)?, named: true });
    }
    let mut seen: Vec<&str> = Vec::new();
    for Wanted { spec, .. } in &all {
        if seen.contains(&spec.name.as_str()) {
            bail!("two topologies are called `{}`: name one of them otherwise", spec.name);
        }
        seen.push(&spec.name);
    }
    if all.len() > TOPOLOGIES_MAX {
        bail!("{} topologies in one run; at most {TOPOLOGIES_MAX}", all.len());
    }
    Ok(all)
}

/// A spec from a file; what it builds upon lies beside it, or in this program. The backend is always ours: one run has one backend.
fn from_file(file: &Path) -> anyhow::Result<Spec> {
    let folder = file.parent().map_or_else(PathBuf::new, Path::to_owned);
    let read = |name: &str| {
        let path = folder.join(name);
        if (name == spec::BACKEND || !path.is_file())
            && let Ok(text) = catalogue::file(name)
        {
            return Ok(text);
        }
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let name = file.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} is no file name", file.display()))?;
    spec::load(name, &read)
}

/// Variables of every topology.
fn vars(args: &Args, lab: &Lab, certs: &Path, own: &Path) -> anyhow::Result<Vars> {
    let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let big = lab.folder().join("big");
    // Specs of other rigs may serve it; a hole takes no room.
    fs::File::create(&big).and_then(|file| file.set_len(100_000_000)).with_context(|| format!("cannot write {}", big.display()))?;
    let mut given = BTreeMap::from([
        ("BENCH_BIN".to_owned(), own.display().to_string()),
        ("CERTS".to_owned(), certs.display().to_string()),
        ("BIGFILE".to_owned(), big.display().to_string()),
        ("BODY1K".to_owned(), "x".repeat(1024)),
    ]);
    let beside = own.with_file_name(OURS);
    let shipped = own.parent().and_then(Path::parent).map(|target| target.join("dist").join(OURS));
    let built = [shipped, Some(beside)].into_iter().flatten().find(|path| path.is_file());
    for (name, program) in [("MESHWRIGHT_BIN", args.meshwright.clone().or(built)), ("ENVOY_BIN", args.envoy.clone())] {
        if let Some(program) = program {
            // Programs are started from other folders than ours.
            let path = fs::canonicalize(&program)
                .map_err(|_| anyhow::anyhow!("there is no program {}: build or install it, or name another", program.display()))?;
            given.insert(name.to_owned(), path.display().to_string());
        }
    }
    given.extend(args.var.iter().cloned());
    Ok(Vars { environment: environment.collect(), given })
}

/// Brings everything up, takes all readings.
async fn measured(args: &Args, scope: &Scope, wanted: Vec<Wanted>, lab: &Lab) -> anyhow::Result<(Run, Facts)> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let certs = lab.folder().join("certs");
    certs::write(&certs)?;
    let vars = vars(args, lab, &certs, &own)?;
    let mut left_out = BTreeMap::new();
    let mut topologies = Vec::new();
    for (index, Wanted { spec, named }) in wanted.into_iter().enumerate() {
        let name = spec.name.clone();
        match Topology::new(spec, lab, index + 1, &vars) {
            Ok(topology) => topologies.push(topology),
            Err(error) if named => return Err(error),
            Err(error) => {
                note(&format!("{name} is left out: {}", error.root_cause()));
                left_out.insert(name, error.root_cause().to_string());
            }
        }
    }
    for quotient in &args.ratio {
        for name in [&quotient.over, &quotient.under] {
            if !topologies.iter().any(|topology| topology.spec.name == *name) {
                bail!("--ratio {}/{}: no topology `{name}` in this run", quotient.over, quotient.under);
            }
        }
    }
    let takes_part = |index: usize, phase| {
        let spec: &Spec = &topologies[index].spec;
        plan::takes_part(spec, spec.name == DIRECT, phase)
    };
    let steps = plan::steps(scope.rounds, &scope.phases, topologies.len(), takes_part);
    let mut rig = Rig {
        run: Run {
            phases: scope.phases.clone(),
            topologies: topologies.iter().map(|t| t.spec.name.clone()).collect(),
            readings: Vec::new(),
        },
        timing: Timing { warm_secs: args.warm_secs, secs: scope.secs },
        rounds: scope.rounds,
        program: own.display().to_string(),
    };
    rig.readings(&mut topologies, &steps).await?;
    let mut unproven = Vec::new();
    for topology in &topologies {
        unproven.extend(topology.unproven()?);
    }
    let facts = Facts {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        rounds: scope.rounds,
        secs: scope.secs,
        warm_secs: args.warm_secs,
        about: topologies.iter().map(|topology| (topology.spec.name.clone(), topology.spec.about.clone())).collect(),
        left_out,
        unproven,
    };
    Ok((rig.run, facts))
}

/// A run under way.
struct Rig {
    run: Run,
    timing: Timing,
    rounds: usize,
    program: String,
}

impl Rig {
    async fn readings(&mut self, topologies: &mut [Topology<'_>], steps: &[Step]) -> anyhow::Result<()> {
        let estimate = |step: &Step| plan::estimate(step.phase, step.round, self.timing);
        let starts = START_SECS * topologies.len() as f64;
        let mut progress = Progress::new(steps.iter().map(estimate).sum::<f64>() + starts);
        for topology in topologies.iter_mut() {
            progress.say(&format!("starting {}", topology.spec.name));
            topology.start(None).await?;
            progress.advance(START_SECS);
        }
        for step in steps {
            let topology = &mut topologies[step.topology];
            progress.say(&format!("round {} of {}, {} of {}", step.round + 1, self.rounds, step.phase, topology.spec.name));
            let cell = reading(topology, step, self.timing, &self.program).await.unwrap_or_else(|error| Cell::lost(format!("{error:#}")));
            self.run.readings.push(Reading { round: step.round, phase: step.phase, topology: topology.spec.name.clone(), cell });
            tokio::time::sleep(Duration::from_secs_f64(SETTLE_SECS)).await;
            progress.advance(plan::estimate(step.phase, step.round, self.timing));
        }
        Ok(())
    }
}

/// One reading, of a topology started anew where the phase wants that.
async fn reading(topology: &mut Topology<'_>, step: &Step, timing: Timing, program: &str) -> anyhow::Result<Cell> {
    let stale = step.phase.wants_fresh() && topology.fresh_for().is_none();
    if stale || !topology.is_running() || topology.is_grown() {
        topology.start(None).await?;
    }
    measure::take(topology, step.phase, timing, program).await
}

/// Ratios to print: those asked for, or ours over the telling ones and those from files.
fn quotients(args: &Args, run: &Run) -> Vec<Quotient> {
    let edges = EDGES.iter().filter(|name| **name != OUR_EDGE && run.topologies.iter().any(|ran| ran == *name));
    if args.ratio.is_empty() && run.topologies.iter().any(|name| name == OUR_EDGE) {
        return edges.map(|other| Quotient { over: OUR_EDGE.to_owned(), under: (*other).to_owned() }).collect();
    }
    if !args.ratio.is_empty() || !run.topologies.iter().any(|name| name == OURS) {
        return args.ratio.clone();
    }
    let known = catalogue::names();
    let telling = |name: &&String| RIVALS.contains(&name.as_str()) || !known.contains(&name.as_str());
    let others = run.topologies.iter().filter(telling);
    others.map(|other| Quotient { over: OURS.to_owned(), under: other.clone() }).collect()
}

fn report(args: &Args, run: &Run, facts: &Facts) -> anyhow::Result<()> {
    let quotients = quotients(args, run);
    let goals = goals::goals(run);
    let json = || serde_json::to_string_pretty(&summary::summary(run, facts, &quotients, &goals)).context("cannot write the run as JSON");
    if let Some(path) = &args.json {
        fs::write(path, json()? + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        let subtitle = format!(
            "{} of {} s, medians; whiskers: range. {} CPUs, Linux {}.",
            if facts.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", facts.rounds) },
            facts.secs,
            facts.cpus,
            facts.kernel
        );
        fs::write(path, svg::picture(run, &subtitle)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = match args.output {
        Output::Json => json()? + "\n",
        Output::Table => {
            let ink = if std::io::stdout().is_terminal() { Ink::Colour } else { Ink::Plain };
            let unproven: String = facts.unproven.iter().map(|claim| format!("\n{claim}")).collect();
            table::report(run, &quotients, &goals, ink) + &unproven
        }
    };
    // A reader that went away has read enough.
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// A line for people, beside the report.
fn note(text: &str) {
    // Nowhere is left to complain when stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
