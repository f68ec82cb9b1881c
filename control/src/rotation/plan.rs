//! What a rotation would do, or has still to do: `ca rotate-root --plan`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{AWAY_GRACE, Course, ends};
use crate::publish::board::Board;
use crate::publish::epoch::moment;
use crate::publish::trust::{Phase, Roots};
use crate::serve::authority::Step;

/// One row per step that is not over: whom it waits for, and when it can be over at the earliest. Before the first step, everybody who
/// is connected has to follow it. A root that is not made yet is null.
pub fn plan(board: &Board, roots: &Roots, course: &Course) -> Value {
    let steps: &[Step] = match (roots.phase, course) {
        (Phase::Steady, Course::Waiting { step: Step::Drop, .. }) => &[Step::Drop],
        (Phase::Steady | Phase::Trusting, _) => &[Step::Trust, Step::Issue, Step::Drop],
        (Phase::Issuing, _) => &[Step::Issue, Step::Drop],
    };
    let connected: BTreeSet<String> = board.present().into_iter().filter(|presence| presence.counts).map(|presence| presence.key).collect();
    let (old, new) = ends(roots);
    let known = |fingerprint: &String| (!fingerprint.is_empty()).then(|| fingerprint.clone());
    let row = |step: &Step| {
        let (waiting, away) = match course {
            Course::Waiting { step: current, waiting } if current == step => {
                (waiting.clone(), waiting.iter().any(|proxy| !connected.contains(proxy)))
            }
            _ => (connected.iter().cloned().collect(), false),
        };
        // Who is away is waited for; everybody else may follow at once.
        let earliest_ms = board.clock.ms() + if away { u64::try_from(AWAY_GRACE.as_millis()).unwrap_or(0) } else { 0 };
        json!({"step": step.text(), "old": known(&old), "new": known(&new), "waiting": waiting, "earliest": moment(earliest_ms)})
    };
    Value::Array(steps.iter().map(row).collect())
}
