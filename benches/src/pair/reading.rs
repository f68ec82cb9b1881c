//! What a run yields: one reading per round, phase and topology, each a set of figures. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::pair::phase::Phase;

/// A quantity measured. CPU is in microseconds per unit (seconds per GB in `bulk`), latency in microseconds, memory in MiB, memory
/// each in KiB per connection, route or service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Figure {
    /// CPU of the client's proxy.
    CpuClient,
    /// CPU of the server's proxy.
    CpuServer,
    /// CPU of both proxies.
    CpuPair,
    /// CPU of the backend.
    CpuBackend,
    /// CPU of the load generator.
    CpuLoad,
    /// CPU of generator, proxies and backend together.
    CpuAll,
    /// Units per second.
    PerSec,
    /// Payload, Gbit/s.
    GbitPerSec,
    /// Mean latency from the due time.
    Mean,
    /// Median latency.
    P50,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
    /// 99.9th percentile.
    P999,
    /// Resident memory of the client's proxy.
    RssClient,
    /// Resident memory of the server's proxy.
    RssServer,
    /// Proportional set size of the client's proxy.
    PssClient,
    /// Proportional set size of the server's proxy.
    PssServer,
    /// Private dirty memory of the client's proxy.
    DirtyClient,
    /// Private dirty memory of the server's proxy.
    DirtyServer,
    /// Resident memory more per connection, route or service: client's proxy.
    RssEachClient,
    /// The same, server's proxy.
    RssEachServer,
    /// Private dirty memory more per connection, route or service: client's proxy.
    DirtyEachClient,
    /// The same, server's proxy.
    DirtyEachServer,
    /// Share of the machine's CPU that went to processes not ours: above a few percent the reading is worth little.
    Foreign,
    /// Share of the machine's CPU that the hypervisor kept for others.
    Steal,
}

/// One reading.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Cell {
    /// Requests, connections or gigabytes done well.
    pub(super) units: f64,
    /// Requests or connections that failed.
    pub(super) failed: u64,
    /// Why they failed, as the load generator says.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) errors: Value,
    /// Why there is no reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lost: Option<String>,
    /// The figures.
    #[serde(flatten)]
    pub(super) figures: BTreeMap<Figure, f64>,
    /// Latencies, HdrHistogram as the load generator gave it.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) histogram: Value,
}

impl Cell {
    /// A reading that could not be taken.
    pub(super) fn lost(why: String) -> Self {
        Self { lost: Some(why), ..Self::default() }
    }

    /// Whether figures of it may be used: at most one unit in a hundred failed.
    pub(super) fn is_sound(&self) -> bool {
        self.lost.is_none() && (self.failed as f64) <= self.units * 0.01
    }

    /// Whether anything went wrong.
    pub(super) fn is_bad(&self) -> bool {
        self.lost.is_some() || self.failed > 0
    }
}

/// One reading and where it belongs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Reading {
    /// From 0.
    pub(super) round: usize,
    /// The phase.
    pub(super) phase: Phase,
    /// The topology's name.
    pub(super) topology: String,
    /// What was read.
    #[serde(flatten)]
    pub(super) cell: Cell,
}

/// All readings of a run, with its phases and topologies in their order.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Run {
    /// In order of the report.
    pub(super) phases: Vec<Phase>,
    /// In order of the report; `direct` first.
    pub(super) topologies: Vec<String>,
    /// In order of time.
    pub(super) readings: Vec<Reading>,
}

/// Median and range over rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    /// Middle value; of an even number, the mean of the middle two.
    pub(super) median: f64,
    /// Least.
    pub(super) min: f64,
    /// Greatest.
    pub(super) max: f64,
    /// Rounds that had one.
    pub(super) rounds: usize,
}

/// Median and range; none of nothing.
pub(super) fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    Some(Spread { median, min, max, rounds: values.len() })
}

impl Run {
    /// How many rounds have readings.
    pub(super) fn rounds(&self) -> usize {
        self.readings.iter().map(|reading| reading.round + 1).max().unwrap_or(0)
    }

    /// The reading of a round, if it is sound.
    fn sound(&self, round: usize, phase: Phase, topology: &str) -> Option<&Cell> {
        let is = |reading: &&Reading| reading.round == round && reading.phase == phase && reading.topology == topology;
        self.readings.iter().find(is).map(|reading| &reading.cell).filter(|cell| cell.is_sound())
    }

    /// A figure of a round.
    pub(super) fn figure(&self, round: usize, phase: Phase, topology: &str, figure: Figure) -> Option<f64> {
        self.sound(round, phase, topology)?.figures.get(&figure).copied()
    }

    fn over_rounds(&self, of: impl Fn(usize) -> Option<f64>) -> Option<Spread> {
        spread((0..self.rounds()).filter_map(of).collect())
    }

    /// A figure over rounds.
    pub(super) fn spread(&self, phase: Phase, topology: &str, figure: Figure) -> Option<Spread> {
        self.over_rounds(|round| self.figure(round, phase, topology, figure))
    }

    /// `a` over `b`, within each round.
    pub(super) fn ratio(&self, phase: Phase, figure: Figure, a: &str, b: &str) -> Option<Spread> {
        self.over_rounds(|round| quotient(self.figure(round, phase, a, figure)?, self.figure(round, phase, b, figure)?))
    }

    /// What `a` has more than `base`, within each round.
    pub(super) fn above(&self, phase: Phase, figure: Figure, a: &str, base: &str) -> Option<Spread> {
        self.over_rounds(|round| Some(self.figure(round, phase, a, figure)? - self.figure(round, phase, base, figure)?))
    }

    /// What `a` has above `base`, over what `b` has above it, within each round.
    pub(super) fn ratio_above(&self, phase: Phase, figure: Figure, a: &str, b: &str, base: &str) -> Option<Spread> {
        self.over_rounds(|round| {
            let base = self.figure(round, phase, base, figure)?;
            quotient(self.figure(round, phase, a, figure)? - base, self.figure(round, phase, b, figure)? - base)
        })
    }

    /// Failures of a topology in a phase, all rounds together, and the first reading that was lost.
    pub(super) fn failures(&self, phase: Phase, topology: &str) -> (u64, Option<&str>) {
        let of = self.readings.iter().filter(|reading| reading.phase == phase && reading.topology == topology);
        of.fold((0, None), |(failed, lost), reading| (failed + reading.cell.failed, lost.or(reading.cell.lost.as_deref())))
    }

    /// Whether anything went wrong anywhere.
    pub(super) fn is_bad(&self) -> bool {
        self.readings.iter().any(|reading| reading.cell.is_bad())
    }
}

/// A ratio that means something: of a positive divisor.
fn quotient(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then(|| a / b)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run of one phase: per topology the CPU of the pair in each round.
    pub(in crate::pair) fn run(phase: &str, rows: &[(&str, Figure, &[f64])]) -> Run {
        let phase: Phase = phase.parse().unwrap();
        let mut run = Run { phases: vec![phase], ..Run::default() };
        for (topology, figure, values) in rows {
            if !run.topologies.iter().any(|known| known == topology) {
                run.topologies.push((*topology).to_owned());
            }
            for (round, value) in values.iter().enumerate() {
                let same = |reading: &&mut Reading| reading.round == round && reading.topology == *topology;
                if let Some(reading) = run.readings.iter_mut().find(same) {
                    reading.cell.figures.insert(*figure, *value);
                } else {
                    let cell = Cell { units: 1000.0, figures: BTreeMap::from([(*figure, *value)]), ..Cell::default() };
                    run.readings.push(Reading { round, phase, topology: (*topology).to_owned(), cell });
                }
            }
        }
        run
    }

    /// Aim: medians of odd and even numbers of rounds, and nothing of nothing.
    #[test]
    fn medians() {
        let of = |values: &[f64]| spread(values.to_vec()).map(|s| (s.median, s.min, s.max, s.rounds));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some((3.0, 3.0, 3.0, 1)));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0, 3)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0, 4)));
        assert_eq!(of(&[f64::NAN, 1.0]), Some((1.0, 1.0, 1.0, 1)));
    }

    /// Aim: ratios are taken within a round: a machine that slows down for everybody does not move them.
    #[test]
    fn ratios_stay_within_a_round() {
        let cpu = Figure::CpuPair;
        let run = run("sat", &[("a", cpu, &[10.0, 20.0, 42.0]), ("b", cpu, &[5.0, 10.0, 20.0]), ("base", cpu, &[1.0, 2.0, 4.0])]);
        let phase = run.phases[0];
        assert_eq!(run.ratio(phase, cpu, "a", "b").map(|s| (s.median, s.min, s.max)), Some((2.0, 2.0, 2.1)));
        assert_eq!(run.above(phase, cpu, "a", "base").map(|s| s.median), Some(18.0));
        assert_eq!(run.ratio_above(phase, cpu, "a", "b", "base").map(|s| (s.min, s.max)), Some((2.25, 2.375)));
        assert_eq!(run.ratio(phase, cpu, "a", "none"), None);
        assert_eq!(run.ratio_above(phase, cpu, "a", "base", "b"), None, "nothing is over less than nothing");
    }

    /// Aim: a reading with more than one failure in a hundred gives no figure, and is not forgotten.
    #[test]
    fn failed_readings_give_no_figures() {
        let mut run = run("sat", &[("a", Figure::CpuPair, &[10.0, 20.0])]);
        run.readings[0].cell.failed = 11;
        let phase = run.phases[0];
        assert_eq!(run.spread(phase, "a", Figure::CpuPair).map(|s| (s.median, s.rounds)), Some((20.0, 1)));
        run.readings[1].cell = Cell::lost("timeout".to_owned());
        assert_eq!(run.spread(phase, "a", Figure::CpuPair), None);
        assert_eq!(run.failures(phase, "a"), (11, Some("timeout")));
        assert!(run.is_bad());
    }
}
