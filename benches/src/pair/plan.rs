//! The order of a run and what it will take. Pure.

use crate::pair::measure::{HOLD_SECS, REST_SECS, Timing};
use crate::pair::phase::{Kind, Phase, Unit};
use crate::pair::spec::Spec;

/// Pause between readings, seconds: sockets of the last one close.
pub(super) const SETTLE_SECS: f64 = 0.3;
/// What a start of a topology takes, seconds: an estimate.
pub(super) const START_SECS: f64 = 0.8;

/// One reading to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// From 0.
    pub(super) round: usize,
    /// The phase.
    pub(super) phase: Phase,
    /// Index of the topology.
    pub(super) topology: usize,
}

/// Whether a topology takes part in a phase.
pub(super) fn takes_part(spec: &Spec, is_direct: bool, phase: Phase) -> bool {
    match phase.kind {
        Kind::Mem => !is_direct,
        Kind::Routes | Kind::Services => spec.manifests.is_some(),
        _ => phase.destination(&spec.target).is_some() && (phase.has_direct() || !is_direct),
    }
}

/// Every round runs every phase over all topologies that take part, back to back, in alternating order, so that a figure is compared
/// with its neighbours in time.
pub(super) fn steps(rounds: usize, phases: &[Phase], topologies: usize, takes_part: impl Fn(usize, Phase) -> bool) -> Vec<Step> {
    let mut all = Vec::new();
    for round in 0..rounds {
        for phase in phases {
            let forward = (0..topologies).filter(|topology| takes_part(*topology, *phase));
            let mut steps: Vec<_> = forward.map(|topology| Step { round, phase: *phase, topology }).collect();
            if round % 2 == 1 {
                steps.reverse();
            }
            all.extend(steps);
        }
    }
    all
}

/// What a reading will take, seconds.
pub(super) fn estimate(phase: Phase, round: usize, timing: Timing) -> f64 {
    let start = if round > 0 { START_SECS } else { 0.0 };
    SETTLE_SECS
        + match (phase.unit(), phase.kind) {
            (Unit::Memory, Kind::Idle | Kind::TcpIdle) => start + REST_SECS + 3.0 * HOLD_SECS,
            (Unit::Memory, Kind::Mem) => start + REST_SECS,
            (Unit::Memory, _) => 2.0 * (START_SECS + REST_SECS),
            _ => timing.warm_secs + timing.secs + 0.1,
        }
}

/// Seconds as people read them: `45 s`, `4 min 05 s`.
pub(super) fn minutes(secs: f64) -> String {
    let secs = secs.max(0.0).round() as u64;
    if secs < 60 { format!("{secs} s") } else { format!("{} min {:02} s", secs / 60, secs % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: rounds alternate in order, phases do not mix, and who does not take part is left out.
    #[test]
    fn rounds_alternate() {
        let phases: Vec<Phase> = ["sat", "bulk"].iter().map(|text| text.parse().unwrap()).collect();
        let steps = steps(2, &phases, 3, |topology, phase| !(topology == 1 && phase.kind == Kind::Bulk));
        let order: Vec<_> = steps.iter().map(|step| (step.round, step.phase.to_string(), step.topology)).collect();
        let expected = [
            (0, "sat", 0),
            (0, "sat", 1),
            (0, "sat", 2),
            (0, "bulk", 0),
            (0, "bulk", 2),
            (1, "sat", 2),
            (1, "sat", 1),
            (1, "sat", 0),
            (1, "bulk", 2),
            (1, "bulk", 0),
        ];
        assert_eq!(order, expected.map(|(round, phase, topology)| (round, phase.to_owned(), topology)));
    }

    /// Aim: times read well.
    #[test]
    fn times_read_well() {
        assert_eq!([minutes(0.4), minutes(59.4), minutes(245.0), minutes(-1.0)], ["0 s", "59 s", "4 min 05 s", "0 s"]);
    }
}
