//! Canaries as `canary status -o json` prints them.

use serde_json::{Value, json};

use super::decide::{CanaryDecision, CanaryRun, VersionNumbers};
use super::evidence::Verdict;
use super::tally::Tally;
use crate::publish::epoch::moment;
use crate::world::ObjectKey;
use crate::world::canary::{Canary, CanaryShare, CanaryStep, OnFailure};

/// What is known of one.
pub(super) struct Seen<'a> {
    /// Its run.
    pub(super) run: &'a CanaryRun,
    /// What the test says.
    pub(super) verdict: &'a Verdict,
    /// What was counted in this run.
    pub(super) stable: &'a Tally,
    /// The same.
    pub(super) candidate: &'a Tally,
    /// What gates say.
    pub(super) gates: Vec<Value>,
    /// Why nothing changes; empty: nobody has looked yet, or it is over.
    pub(super) waiting: &'a str,
    /// Why nothing can be decided.
    pub(super) trouble: Option<&'a str>,
}

/// The row of one.
pub(super) fn row(key: &ObjectKey, spec: &Canary, seen: &Seen<'_>) -> Value {
    let Seen { run, verdict, stable, candidate, gates, waiting, trouble } = seen;
    let standing = &run.standing;
    let over = standing.phase.is_over();
    let mut row = common(key, spec);
    let more = json!({
        "phase": standing.phase.text(),
        "step": (standing.step + 1).min(spec.steps.len()),
        "weight": standing.route(spec).weight(),
        "run": standing.run,
        "began": time(run.began_ms),
        "step_began": time(run.step_ms),
        "approved": run.approved,
        "reason": standing.why,
        "waiting_for": (!over && !waiting.is_empty()).then_some(waiting),
        "problem": trouble,
        "verdict": (!over).then(|| json!({
            "worse": verdict.worse.map(|cause| format!("{cause:?}")),
            "good_enough": verdict.good_enough,
            "p_value_errors": verdict.p_value_errors,
            "p_value_latency": verdict.p_value_latency,
            "more_needed": verdict.more_needed,
            "words": verdict.words,
        })),
        "stable": version(&spec.stable, stable),
        "candidate": version(&spec.candidate, candidate),
        "gates": gates,
        "decisions": run.decisions.iter().map(decision).collect::<Vec<_>>(),
    });
    merge(&mut row, more);
    row
}

/// The row of one that has not begun.
pub(super) fn refused(key: &ObjectKey, spec: &Canary, trouble: Option<&str>) -> Value {
    let mut row = common(key, spec);
    let nothing = Tally::default();
    let (stable, candidate) = (version(&spec.stable, &nothing), version(&spec.candidate, &nothing));
    merge(
        &mut row,
        json!({
            "phase": null,
            "step": 1,
            "weight": 0,
            "problem": trouble,
            "stable": stable,
            "candidate": candidate,
            "gates": [],
            "decisions": [],
        }),
    );
    row
}

/// What the object itself says.
fn common(key: &ObjectKey, spec: &Canary) -> Value {
    json!({
        "namespace": key.namespace,
        "name": key.name,
        "service": spec.service,
        "port": spec.port,
        "steps": spec.steps.iter().map(step).collect::<Vec<_>>(),
        "analysis": {
            "max_error_increase_percent": spec.analysis.errors_max_increase_percent,
            "latency_quantile": spec.analysis.latency_quantile,
            "max_latency_ratio": spec.analysis.latency_max_ratio,
            "confidence": spec.analysis.confidence,
            "min_requests": spec.analysis.min_requests,
        },
        "on_failure": match spec.on_failure { OnFailure::Rollback => "Rollback", OnFailure::Pause => "Pause" },
    })
}

fn merge(row: &mut Value, more: Value) {
    if let (Value::Object(row), Value::Object(more)) = (row, more) {
        row.extend(more);
    }
}

fn step(step: &CanaryStep) -> Value {
    let hold_ms = step.hold.map(|hold| u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));
    let mut row = json!({"hold_ms": hold_ms, "approve": step.approve});
    let share = match &step.share {
        CanaryShare::Match(headers) => json!({"match": headers.iter().map(|header| header.name.clone()).collect::<Vec<_>>()}),
        CanaryShare::Mirror(per_million) => json!({"mirror_percent": f64::from(*per_million) / 10_000.0}),
        CanaryShare::Weight(weight) => json!({"weight": weight}),
    };
    merge(&mut row, share);
    row
}

fn version(service: &str, tally: &Tally) -> Value {
    json!({
        "service": service,
        "requests": tally.requests,
        "errors": tally.failures,
        "p50_ms": tally.quantile_ms(0.5),
        "p99_ms": tally.quantile_ms(0.99),
    })
}

fn decision(decision: &CanaryDecision) -> Value {
    let CanaryDecision { at_ms, turn, why, step, weight, stable, candidate, p_value } = decision;
    let numbers = |numbers: &VersionNumbers| json!({"requests": numbers.requests, "errors": numbers.errors, "p99_ms": numbers.p99_ms});
    json!({
        "time": time(*at_ms),
        "verdict": turn.text(),
        "why": why,
        "step": step,
        "weight": weight,
        "stable": numbers(stable),
        "candidate": numbers(candidate),
        "p_value": p_value,
    })
}

fn time(ms: i64) -> String {
    moment(u64::try_from(ms).unwrap_or(0))
}
