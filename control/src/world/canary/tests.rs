use std::time::Duration;

use super::*;
use crate::source::parse;
use crate::world::{Object, Severity};

fn read(spec: &str) -> (Option<Canary>, Vec<String>) {
    let text = format!("apiVersion: meshwright.dev/v1alpha1\nkind: Canary\nmetadata: {{name: c, namespace: shop}}\nspec: {{{spec}}}");
    let candidate = parse("c.yaml", &text).candidates.remove(0);
    let errors = candidate.problems.iter().filter(|problem| problem.severity == Severity::Error);
    let errors = errors.map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
    (candidate.object.and_then(|object: std::sync::Arc<Object>| content(&object).cloned()), errors)
}

fn good(more: &str) -> Canary {
    let (canary, errors) = read(&format!("serviceRef: {{name: catalog, port: 80}}, stable: v1, candidate: v2, {more}"));
    canary.unwrap_or_else(|| panic!("{errors:?}"))
}

fn shares(canary: &Canary) -> Vec<(CanaryShare, Option<u64>, bool)> {
    canary.steps.iter().map(|step| (step.share.clone(), step.hold.map(|hold| hold.as_secs()), step.approve)).collect()
}

#[test]
fn steps_are_read_as_written_or_counted_up() {
    // Aim: each shape of a step, and a weight that grows by itself up to its end, which is no step of its own twice; defaults where nothing is said.
    let canary = good("steps: [{mirrorPercent: 10, hold: 1m}, {weight: 5, hold: 2m}, {weight: 50, approve: true}, {weight: 100}]");
    assert_eq!(
        shares(&canary),
        [
            (CanaryShare::Mirror(100_000), Some(60), false),
            (CanaryShare::Weight(5), Some(120), false),
            (CanaryShare::Weight(50), None, true),
            (CanaryShare::Weight(100), None, false),
        ]
    );
    assert_eq!((canary.analysis, canary.on_failure, canary.gates.len()), (CanaryAnalysis::default(), OnFailure::Rollback, 0));
    let canary = good("steps: [{match: {headers: [{name: X-Beta, value: \"1\"}]}}]");
    let CanaryShare::Match(headers) = &canary.steps[0].share else { panic!("{canary:?}") };
    assert_eq!((headers.len(), headers[0].name.as_str()), (1, "x-beta"));
    let weights = |more: &str| -> Vec<u8> {
        let of = |step: &CanaryStep| if let CanaryShare::Weight(weight) = step.share { weight } else { 0 };
        good(more).steps.iter().map(of).collect()
    };
    assert_eq!(weights("continuous: {from: 10, increment: 30}"), [10, 40, 70, 100]);
    assert_eq!(weights("continuous: {from: 1, to: 50, increment: 25}"), [1, 26, 50]);
    let canary = good("continuous: {}");
    assert_eq!((canary.steps.len(), canary.steps[0].hold), (21, Some(Duration::from_secs(60))));
    assert_eq!(canary.steps.last().map(|step| (step.share.clone(), step.hold)), Some((CanaryShare::Weight(100), None)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    // Aim: a table of mistakes, each with its place and words.
    let steps = |steps: &str| format!("serviceRef: {{name: catalog, port: 80}}, stable: v1, candidate: v2, steps: [{steps}]");
    let gates = |gates: &str| format!("{}, gates: [{gates}]", steps("{weight: 5}"));
    for (spec, wanted) in [
        ("stable: v1, candidate: v2, continuous: {}".to_owned(), "`serviceRef` is missing"),
        ("serviceRef: {name: a, port: 80}, stable: v1, candidate: v1, continuous: {}".to_owned(), "one Service"),
        ("serviceRef: {name: a, port: 80}, stable: v1, candidate: v2".to_owned(), "exactly one of steps and continuous"),
        (
            "serviceRef: {name: a, port: 80}, stable: v1, candidate: v2, steps: [{weight: 1}], continuous: {}".to_owned(),
            "exactly one of steps",
        ),
        (steps(""), "there are no steps"),
        (steps("{weight: 5, mirrorPercent: 5}"), "exactly one of match, mirrorPercent and weight"),
        (steps("{hold: 5m}"), "exactly one of match, mirrorPercent and weight"),
        (steps("{weight: 0}"), "0 is out of range"),
        (steps("{weight: 100}"), "nothing before it"),
        (steps("{weight: 50}, {weight: 50}"), "no more than the step before"),
        (steps("{weight: 50}, {weight: 100}, {mirrorPercent: 5}"), "nothing comes after"),
        (steps("{weight: 50}, {weight: 100, hold: 5m}"), "nothing is left to compare"),
        (steps("{weight: 5, hold: 10ms}"), "no such time to wait"),
        (steps("{match: {headers: []}}"), "names no header"),
        (gates("{shadowDiff: {}}"), "spec.gates[0].shadowDiff: not supported by this version"),
        (gates("{}"), "exactly one of webhook and prometheus"),
        (gates("{webhook: {url: tests}}"), "is no address to ask"),
        (gates("{webhook: {url: \"ftp://tests/\"}}"), "is no address to ask"),
        (gates("{webhook: {url: \"http://tests/\", timeout: 2m}}"), "no such time to wait"),
        (gates("{prometheus: {url: \"http://p:9090\", query: up}}"), "every number is good"),
        (gates("{prometheus: {url: \"http://p:9090\", query: \" \", max: 1}}"), "it is no query"),
        (gates("{prometheus: {url: \"http://p:9090\", query: up, min: 2, max: 1}}"), "min is more than max"),
        (format!("{}, analysis: {{confidence: 1}}", steps("{weight: 5}")), "1 is out of range"),
        (format!("{}, analysis: {{latency: {{maxRatio: 1}}}}", steps("{weight: 5}")), "1 is out of range"),
        (format!("{}, analysis: {{minRequests: 0}}", steps("{weight: 5}")), "0 is out of range"),
        (format!("{}, onFailure: Explode", steps("{weight: 5}")), "unknown value `Explode`"),
        (format!("{}, step: []", steps("{weight: 5}")), "unknown field `step`"),
    ] {
        let (canary, errors) = read(&spec);
        assert!(canary.is_none() && errors.iter().any(|error| error.contains(wanted)), "{spec}: {errors:?}");
    }
}

#[test]
fn a_standing_says_who_answers() {
    // Aim: by phase and step; of another pair, or of steps that are written otherwise by now, the stable version alone, until somebody decides. Who
    // has won keeps everything, however the steps are written.
    let spec = good("steps: [{mirrorPercent: 10, hold: 1m}, {weight: 5}]");
    let at = |phase, step| CanaryStanding { pair: spec.pair(), digest: spec.digest(), phase, step, ..CanaryStanding::default() };
    let other = good("steps: [{weight: 7}]");
    for (phase, step, route, by_other) in [
        (CanaryPhase::Progressing, 0, CanaryRoute::Mirror(100_000), CanaryRoute::Stable),
        (CanaryPhase::Paused, 1, CanaryRoute::Weight(5), CanaryRoute::Stable),
        (CanaryPhase::Progressing, 2, CanaryRoute::Stable, CanaryRoute::Stable),
        (CanaryPhase::Promoted, 2, CanaryRoute::Weight(100), CanaryRoute::Weight(100)),
        (CanaryPhase::RolledBack, 1, CanaryRoute::Stable, CanaryRoute::Stable),
    ] {
        assert_eq!((at(phase, step).route(&spec), at(phase, step).route(&other)), (route, by_other), "{phase:?} {step}");
    }
    let third = Canary { candidate: "v3".to_owned(), ..spec.clone() };
    assert_eq!(at(CanaryPhase::Promoted, 2).route(&third), CanaryRoute::Stable);
}
