//! What `benches pair` is told.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::pair::phase::Phase;
use crate::pair::table::Quotient;

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// All raw readings, summaries and goals, one JSON value.
    Json,
}

/// Arguments of `benches pair`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    benches pair --quick\n  \
    benches pair --topologies meshwright,floor,nginx --phases rate:4000,sat --rounds 5\n  \
    benches pair --edge --rounds 3\n  \
    benches pair --spec mine.json --ratio mine/meshwright --json run.json --svg run.svg\n\n\
    Phases: mem, idle:N, tcpidle:N, routes:N, services:N (memory); rate:N, h2rate:N, grpc:N, tcp:N (open loop); sat, h2sat (closed loop);\n\
    bulk (downloads); conn:N, connsat, tcpconn:N (new connections).\n\
    Exit status: 0 done, 1 failed or some load failed, 2 usage.")]
pub struct Args {
    /// Topologies, by name; `direct` is always among them [default: direct, meshwright, floor, splice, tcp-tls, and
    /// nginx, haproxy, envoy where they are installed; others: floor-h2, meshwright-log, meshwright-traced,
    /// meshwright-both]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(super) topologies: Vec<String>,
    /// One more topology, from a file (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(super) spec: Vec<PathBuf>,
    /// Phases, in order [default: mem,rate:4000,sat,h2sat,bulk,conn:500]
    #[arg(long, value_delimiter = ',', value_name = "PHASES")]
    pub(super) phases: Vec<Phase>,
    /// Rounds; each runs every phase over all topologies [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: Option<u32>,
    /// Seconds that each reading of load counts [default: 1.5]
    #[arg(long, value_parser = seconds)]
    pub(super) secs: Option<f64>,
    /// Seconds of load before each reading
    #[arg(long, value_parser = seconds, default_value = "0.5")]
    pub(super) warm_secs: f64,
    /// About a minute: one round of one second each, over meshwright, floor, splice and nginx
    #[arg(long)]
    pub(super) quick: bool,
    /// Edges in place of pairs: TLS ends at our proxy, nginx, haproxy, Envoy and the floor [phases: mem,idle:1000,sat,h2sat,connsat]
    #[arg(long, conflicts_with_all = ["quick", "topologies"])]
    pub(super) edge: bool,
    /// Ratios to print, as A/B (repeatable) [default: meshwright over floor, nginx, envoy and those of --spec]
    #[arg(long, value_name = "A/B", value_parser = quotient)]
    pub(super) ratio: Vec<Quotient>,
    /// Write all readings, summaries and goals here
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Draw the run here
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    /// Our program [default: target/dist/meshwright]
    #[arg(long, value_name = "FILE", env = "MESHWRIGHT_BIN")]
    pub(super) meshwright: Option<PathBuf>,
    /// Envoy's program
    #[arg(long, value_name = "FILE", env = "ENVOY_BIN")]
    pub(super) envoy: Option<PathBuf>,
    /// Value of a ${NAME} in specs (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) var: Vec<(String, String)>,
    /// Let the scheduler place processes, instead of the client side on one CPU and the server side on another
    #[arg(long)]
    pub(super) no_pin: bool,
    /// Keep the run's folder with all logs
    #[arg(long)]
    pub(super) keep: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(secs) if (0.1..=3600.0).contains(&secs) => Ok(secs),
        _ => Err("a number of seconds from 0.1 to 3600".to_owned()),
    }
}

fn quotient(text: &str) -> Result<Quotient, String> {
    match text.split_once('/') {
        Some((over, under)) if !over.is_empty() && !under.is_empty() => Ok(Quotient { over: over.to_owned(), under: under.to_owned() }),
        _ => Err("two topologies as A/B".to_owned()),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "NAME=VALUE".to_owned())
}

/// Phases of a run that was not told any.
pub(super) const USUAL_PHASES: &str = "mem,rate:4000,sat,h2sat,bulk,conn:500";
/// The same of a run over edges.
const EDGE_PHASES: &str = "mem,idle:1000,sat,h2sat,connsat";
/// Topologies of a quick run.
pub(super) const QUICK_TOPOLOGIES: [&str; 5] = ["direct", "meshwright", "floor", "splice", "nginx"];

/// What a run does, with all that was left out filled in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scope {
    /// Rounds.
    pub(super) rounds: usize,
    /// Counted seconds of a reading.
    pub(super) secs: f64,
    /// Phases, memory first: later load would hide what connections take.
    pub(super) phases: Vec<Phase>,
}

impl Args {
    /// What the run does.
    ///
    /// # Errors
    /// None with arguments that clap accepted.
    pub(super) fn scope(&self) -> Result<Scope, String> {
        let mut phases = self.phases.clone();
        if phases.is_empty() {
            let usual = if self.edge { EDGE_PHASES } else { USUAL_PHASES };
            phases = usual.split(',').map(str::parse).collect::<Result<_, _>>()?;
        }
        let mut seen = Vec::new();
        phases.retain(|phase| {
            !seen.contains(phase) && {
                seen.push(*phase);
                true
            }
        });
        phases.sort_by_key(|phase| !phase.wants_fresh());
        let (rounds, secs) = if self.quick { (1, 1.0) } else { (3, 1.5) };
        Ok(Scope { rounds: self.rounds.map_or(rounds, |rounds| rounds as usize), secs: self.secs.unwrap_or(secs), phases })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(text: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("pair").chain(text.split_ascii_whitespace())).map(|line| line.args)
    }

    /// Aim: what is left out is filled in, memory comes first, and nothing is measured twice.
    #[test]
    fn scopes() {
        let of = |text: &str| {
            let scope = parse(text).unwrap().scope().unwrap();
            (scope.rounds, scope.secs, scope.phases.iter().map(Phase::to_string).collect::<Vec<_>>().join(","))
        };
        assert_eq!(of(""), (3, 1.5, "mem,rate:4000,sat,h2sat,bulk,conn:500".to_owned()));
        assert_eq!(of("--edge"), (3, 1.5, "mem,idle:1000,sat,h2sat,connsat".to_owned()));
        assert_eq!(of("--quick --phases sat,idle:10,sat"), (1, 1.0, "idle:10,sat".to_owned()));
        assert_eq!(of("--quick --rounds 4 --secs 3"), (4, 3.0, USUAL_PHASES.to_owned()));
    }

    /// Aim: nonsense is a usage error.
    #[test]
    fn nonsense_is_refused() {
        for text in ["--rounds 0", "--secs x", "--phases nope", "--ratio a", "--var x", "--secs 0"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("--var A=b=c").unwrap().var, [("A".to_owned(), "b=c".to_owned())]);
    }
}
