//! The run as JSON: raw readings, medians, ratios, goals. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::pair::catalogue::DIRECT;
use crate::pair::goals::Goal;
use crate::pair::reading::{Figure, Run, Spread};
use crate::pair::table::Quotient;

/// Facts of the run that are no readings.
#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Facts {
    /// CPUs of the machine.
    pub(super) cpus: usize,
    /// The kernel's release.
    pub(super) kernel: String,
    /// Rounds.
    pub(super) rounds: usize,
    /// Counted seconds of a reading.
    pub(super) secs: f64,
    /// Seconds of load before it.
    pub(super) warm_secs: f64,
    /// What each topology is.
    pub(super) about: BTreeMap<String, String>,
    /// Topologies left out, and why.
    pub(super) left_out: BTreeMap<String, String>,
    /// Claims of topologies that did not hold.
    pub(super) unproven: Vec<String>,
}

/// Figures that have a meaning as what stands above direct.
const ADDED: [Figure; 5] = [Figure::P50, Figure::P90, Figure::P99, Figure::P999, Figure::CpuAll];

/// Everything.
pub(super) fn summary(run: &Run, facts: &Facts, quotients: &[Quotient], goals: &[Goal]) -> Value {
    json!({
        "facts": facts,
        "phases": run.phases,
        "topologies": run.topologies,
        "median": by_phase(run, |phase, name| figures(|figure| run.spread(phase, name, figure))),
        "added": by_phase(run, |phase, name| {
            if name == DIRECT { BTreeMap::new() } else { figures(|figure| if ADDED.contains(&figure) { run.above(phase, figure, name, DIRECT) } else { None }) }
        }),
        "ratios": quotients.iter().map(|q| json!({"over": q.over, "under": q.under, "phases": ratios(run, q)})).collect::<Vec<_>>(),
        "goals": goals,
        "readings": run.readings,
    })
}

/// Figure names of the readings, so that a summary has what a reading has.
const FIGURES: [Figure; 25] = [
    Figure::CpuClient,
    Figure::CpuServer,
    Figure::CpuPair,
    Figure::CpuBackend,
    Figure::CpuLoad,
    Figure::CpuAll,
    Figure::PerSec,
    Figure::GbitPerSec,
    Figure::Mean,
    Figure::P50,
    Figure::P90,
    Figure::P99,
    Figure::P999,
    Figure::RssClient,
    Figure::RssServer,
    Figure::PssClient,
    Figure::PssServer,
    Figure::DirtyClient,
    Figure::DirtyServer,
    Figure::RssEachClient,
    Figure::RssEachServer,
    Figure::DirtyEachClient,
    Figure::DirtyEachServer,
    Figure::Foreign,
    Figure::Steal,
];

fn figures(of: impl Fn(Figure) -> Option<Spread>) -> BTreeMap<Figure, Spread> {
    FIGURES.into_iter().filter_map(|figure| Some((figure, of(figure)?))).collect()
}

fn by_phase(run: &Run, of: impl Fn(crate::pair::phase::Phase, &str) -> BTreeMap<Figure, Spread>) -> Value {
    let topologies = |phase| {
        let rows = run.topologies.iter().map(|name| (name.clone(), of(phase, name))).filter(|(_, figures)| !figures.is_empty());
        rows.collect::<BTreeMap<_, _>>()
    };
    json!(run.phases.iter().map(|phase| (phase.to_string(), topologies(*phase))).collect::<BTreeMap<_, _>>())
}

fn ratios(run: &Run, quotient: &Quotient) -> Value {
    let (a, b) = (quotient.over.as_str(), quotient.under.as_str());
    let of = |phase| {
        let plain = figures(|figure| run.ratio(phase, figure, a, b));
        let added = figures(|figure| if ADDED.contains(&figure) { run.ratio_above(phase, figure, a, b, DIRECT) } else { None });
        json!({"plain": plain, "added": added})
    };
    json!(run.phases.iter().map(|phase| (phase.to_string(), of(*phase))).collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::reading::tests::run;

    /// Aim: readings, medians, ratios and what is added stand where readers of the JSON look for them.
    #[test]
    fn the_summary_has_all() {
        let p50 = Figure::P50;
        let run = run("sat", &[("direct", p50, &[1.0, 2.0]), ("a", p50, &[3.0, 4.0]), ("b", p50, &[2.0, 3.0])]);
        let facts = Facts {
            cpus: 2,
            kernel: "6".into(),
            rounds: 2,
            secs: 1.0,
            warm_secs: 0.5,
            about: BTreeMap::new(),
            left_out: BTreeMap::new(),
            unproven: Vec::new(),
        };
        let value = summary(&run, &facts, &[Quotient { over: "a".into(), under: "b".into() }], &[]);
        assert_eq!(value["median"]["sat"]["a"]["p50"]["median"], 3.5);
        assert_eq!(value["added"]["sat"]["a"]["p50"]["median"], 2.0);
        assert_eq!(value["ratios"][0]["phases"]["sat"]["added"]["p50"]["median"], 2.0);
        assert_eq!((value["readings"][0]["phase"].as_str(), value["readings"][0]["p50"].as_f64()), (Some("sat"), Some(1.0)));
        assert_eq!(value["facts"]["cpus"], 2);
    }
}
