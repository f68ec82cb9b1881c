use super::*;
use crate::canary::evidence::Measure;
use crate::source::parse;
use crate::world::Kind;
use crate::world::canary::{CanaryRoute, content};

/// Now, of all of these.
const NOW_MS: i64 = 1_000_000;

fn spec(more: &str) -> Canary {
    let text = format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: Canary\nmetadata: {{name: c, namespace: shop}}\n\
         spec: {{serviceRef: {{name: catalog, port: 80}}, stable: v1, candidate: v2, analysis: {{minRequests: 100}}, {more}}}"
    );
    let object = parse("c.yaml", &text).candidates.remove(0).object.unwrap();
    content(&object).cloned().unwrap()
}

fn run(spec: &Canary) -> CanaryRun {
    CanaryRun::begin(&ObjectKey::new(Kind::Canary, "shop", "c"), spec, NOW_MS)
}

fn verdict(worse: Option<Measure>, good_enough: bool) -> Verdict {
    let words = if worse.is_some() { "worse" } else { "so far" }.to_owned();
    Verdict { p_value_errors: 0.5, p_value_latency: 0.25, worse, good_enough, more_needed: None, words }
}

/// What follows after so many seconds in a step, with so many answers of the candidate.
fn after(run: &CanaryRun, spec: &Canary, (worse, good): (bool, bool), answered: u64, secs: i64) -> CanaryNext {
    after_gates(run, spec, (worse, good), (answered, secs), &GatesSay::Passed)
}

fn after_gates(run: &CanaryRun, spec: &Canary, (worse, good): (bool, bool), (answered, secs): (u64, i64), gates: &GatesSay) -> CanaryNext {
    let verdict = verdict(worse.then_some(Measure::Errors), good);
    run.next(spec, &CanarySight { verdict: &verdict, answered, gates, trouble: None, now_ms: run.step_ms + secs * 1000 })
}

fn word(next: &CanaryNext) -> &'static str {
    match next {
        CanaryNext::Stay(_) => "stay",
        CanaryNext::AskGates(_) => "ask",
        CanaryNext::Turn(turn) => turn.kind.text(),
    }
}

fn take(run: &mut CanaryRun, spec: &Canary, next: CanaryNext) {
    let CanaryNext::Turn(turn) = next else { panic!("{next:?}") };
    run.take(&turn, spec, (&Tally::default(), &Tally::default()), 0.25, NOW_MS + 5);
}

#[test]
fn a_step_is_over_by_requests_time_and_evidence() {
    // Aim: never below the requests that are asked for nor before its time; without a time not without a verdict or ten times as many requests, and
    // everything goes over by a verdict alone; and at once when it is worse.
    let held = spec("steps: [{weight: 5, hold: 2m}, {weight: 50}]");
    let free = spec("steps: [{weight: 5}, {weight: 50}]");
    let last = spec("steps: [{weight: 50, hold: 2m}, {weight: 100}]");
    for (what, spec, (worse, good), answered, secs, wanted) in [
        ("few requests", &held, (false, true), 99, 500, "stay"),
        ("not its time", &held, (false, true), 5_000, 119, "stay"),
        ("time and requests", &held, (false, false), 100, 120, "Advance"),
        ("worse", &held, (true, false), 20, 1, "Rollback"),
        ("no verdict", &free, (false, false), 999, 9_999, "stay"),
        ("a verdict", &free, (false, true), 100, 1, "Advance"),
        ("a verdict, few requests", &free, (false, true), 99, 9_999, "stay"),
        ("ten times as many", &free, (false, false), 1_000, 1, "Advance"),
        ("worse at last", &free, (true, false), 5_000, 1, "Rollback"),
        ("time alone promotes nothing", &last, (false, false), 500, 9_999, "stay"),
        ("a verdict promotes", &last, (false, true), 100, 120, "Promote"),
        ("many alone promote nothing", &last, (false, false), 1_000_000, 9_999, "stay"),
        ("a verdict before its time", &last, (false, true), 1_000, 119, "stay"),
    ] {
        let next = after(&run(spec), spec, (worse, good), answered, secs);
        assert_eq!(word(&next), wanted, "{what}: {next:?}");
    }
}

#[test]
fn after_the_last_step_the_candidate_has_everything() {
    // Aim: whether or not a step of 100 is written; nothing is decided afterwards, not even by what would be worse.
    for steps in ["steps: [{weight: 5}, {weight: 50}]", "steps: [{weight: 5}, {weight: 50}, {weight: 100}]"] {
        let spec = spec(steps);
        let mut run = run(&spec);
        let next = after(&run, &spec, (false, true), 100, 1);
        take(&mut run, &spec, next);
        assert_eq!((run.standing.step, run.standing.route(&spec)), (1, CanaryRoute::Weight(50)));
        let next = after(&run, &spec, (false, true), 100, 1);
        take(&mut run, &spec, next);
        assert_eq!((run.standing.phase, run.standing.route(&spec)), (CanaryPhase::Promoted, CanaryRoute::Weight(100)));
        assert_eq!(word(&after(&run, &spec, (true, false), 500, 1)), "stay");
        let decided: Vec<_> = run.decisions.iter().map(|decision| (decision.turn, decision.step, decision.weight)).collect();
        assert_eq!(decided, [(TurnKind::Advance, 1, 50), (TurnKind::Promote, 2, 100)]);
        assert!((run.decisions[0].p_value - 0.25).abs() < 1e-9);
    }
}

#[test]
fn gates_are_asked_last_and_their_no_counts() {
    // Aim: who says nothing yet holds a step back that would be over; before that it is not waited for; a no that lasts ends it as evidence would.
    let spec = spec("steps: [{weight: 5}, {weight: 50}]");
    let run = run(&spec);
    let (waiting, failed) = (GatesSay::Waiting("busy".into()), GatesSay::Failed("broken".into()));
    assert_eq!(word(&after_gates(&run, &spec, (false, true), (99, 1), &waiting)), "stay");
    assert_eq!(word(&after_gates(&run, &spec, (false, true), (100, 1), &waiting)), "ask");
    assert_eq!(word(&after_gates(&run, &spec, (false, false), (1, 1), &failed)), "Rollback");
    let CanaryNext::Turn(turn) = after_gates(&run, &spec, (false, false), (1, 1), &failed) else { panic!() };
    assert!(turn.why.contains("broken"));
}

#[test]
fn what_has_to_be_approved_waits_for_it() {
    // Aim: the step ends in a pause, in which the candidate may still be rolled back; an approval lets it go on, also one that comes early, and counts
    // for this step alone.
    let spec = spec("steps: [{weight: 5, approve: true}, {weight: 50, approve: true}]");
    let mut late = run(&spec);
    let next = after(&late, &spec, (false, true), 100, 1);
    assert_eq!(word(&next), "AwaitApproval");
    take(&mut late, &spec, next);
    assert_eq!((late.standing.phase, late.standing.route(&spec)), (CanaryPhase::Paused, CanaryRoute::Weight(5)));
    assert_eq!(word(&after(&late, &spec, (false, true), 500, 1)), "stay");
    assert_eq!(word(&after(&late, &spec, (true, false), 500, 1)), "Rollback");
    let mut early = run(&spec);
    for run in [&mut late, &mut early] {
        let turn = run.asked(&spec, CanaryVerb::Approve).unwrap().unwrap();
        take(run, &spec, CanaryNext::Turn(turn));
        assert_eq!(run.standing.phase, CanaryPhase::Progressing);
        assert!(run.asked(&spec, CanaryVerb::Approve).unwrap_err().contains("approved already"));
        let next = after(run, &spec, (false, true), 100, 1);
        assert_eq!(word(&next), "Advance");
        take(run, &spec, next);
        assert!(!run.approved);
        assert_eq!(word(&after(run, &spec, (false, true), 100, 1)), "AwaitApproval");
    }
}

#[test]
fn who_wants_to_decide_is_asked() {
    // Aim: with onFailure Pause everything stays where it is, and is not decided again; going on forgets the evidence.
    let spec = spec("steps: [{weight: 5}, {weight: 50}], onFailure: Pause");
    let mut run = run(&spec);
    let next = after(&run, &spec, (true, false), 20, 1);
    take(&mut run, &spec, next);
    assert_eq!(
        (run.standing.phase, run.paused, run.standing.route(&spec)),
        (CanaryPhase::Paused, Some(PauseCause::Worse), CanaryRoute::Weight(5))
    );
    assert_eq!(word(&after(&run, &spec, (true, false), 500, 1)), "stay");
    let turn = run.asked(&spec, CanaryVerb::Resume).unwrap().unwrap();
    assert!(turn.forgets && turn.phase == CanaryPhase::Progressing);
}

#[test]
fn people_may_say_what_makes_sense() {
    // Aim: a table of who is where, what is said, and what comes of it, or why not.
    let spec = spec("steps: [{weight: 5}, {weight: 50}]");
    let at = |phase, paused| {
        let mut run = run(&spec);
        (run.standing.phase, run.paused) = (phase, paused);
        run
    };
    let progressing = at(CanaryPhase::Progressing, None);
    let paused = at(CanaryPhase::Paused, Some(PauseCause::Asked));
    let waiting = at(CanaryPhase::Paused, Some(PauseCause::Approval));
    let (promoted, back) = (at(CanaryPhase::Promoted, None), at(CanaryPhase::RolledBack, None));
    for (run, verb, wanted) in [
        (&progressing, CanaryVerb::Promote, "Promoted"),
        (&progressing, CanaryVerb::Abort, "RolledBack"),
        (&progressing, CanaryVerb::Pause, "Paused"),
        (&progressing, CanaryVerb::Resume, "it is not paused"),
        (&progressing, CanaryVerb::Approve, "needs no approval"),
        (&paused, CanaryVerb::Pause, "paused already"),
        (&paused, CanaryVerb::Resume, "Progressing"),
        (&paused, CanaryVerb::Promote, "Promoted"),
        (&waiting, CanaryVerb::Resume, "use `canary approve`"),
        (&waiting, CanaryVerb::Pause, "Paused"),
        (&waiting, CanaryVerb::Abort, "RolledBack"),
        (&promoted, CanaryVerb::Promote, "already"),
        (&promoted, CanaryVerb::Abort, "RolledBack"),
        (&promoted, CanaryVerb::Pause, "it is over (Promoted)"),
        (&promoted, CanaryVerb::Resume, "anew"),
        (&back, CanaryVerb::Abort, "already"),
        (&back, CanaryVerb::Promote, "Promoted"),
        (&back, CanaryVerb::Approve, "it is over (RolledBack)"),
        (&back, CanaryVerb::Resume, "anew"),
    ] {
        let told = match run.asked(&spec, verb) {
            Ok(Some(turn)) => turn.phase.text().to_owned(),
            Ok(None) => "anew".to_owned(),
            Err(why) => why,
        };
        assert!(told.contains(wanted), "{verb:?}: {told}");
    }
}

#[test]
fn paused_means_that_nothing_but_a_harm_is_decided() {
    // Aim: a pause that was asked for holds a step that would be over, and does not keep a worse candidate; what cannot be decided is not.
    let spec = spec("steps: [{weight: 5}, {weight: 50}]");
    let mut run = run(&spec);
    let turn = run.asked(&spec, CanaryVerb::Pause).unwrap().unwrap();
    take(&mut run, &spec, CanaryNext::Turn(turn));
    assert_eq!(word(&after(&run, &spec, (false, true), 500, 9)), "stay");
    assert_eq!(word(&after(&run, &spec, (true, false), 500, 9)), "Rollback");
    let verdict = verdict(Some(Measure::Latency), false);
    let sight = CanarySight {
        verdict: &verdict,
        answered: 500,
        gates: &GatesSay::Passed,
        trouble: Some("there is no Service shop/v2"),
        now_ms: NOW_MS,
    };
    assert_eq!(run.next(&spec, &sight), CanaryNext::Stay("nothing is decided: there is no Service shop/v2".to_owned()));
}

#[test]
fn another_spec_is_another_run() {
    // Aim: any edit under way begins anew, after a roll-back too; a winner is questioned by another pair alone. Runs have names of their own, and the
    // history is bounded.
    let first = spec("steps: [{weight: 5}]");
    let (edited, pair) = (spec("steps: [{weight: 6}]"), Canary { candidate: "v3".into(), ..first.clone() });
    for (phase, by_edit) in
        [(CanaryPhase::Progressing, true), (CanaryPhase::Paused, true), (CanaryPhase::RolledBack, true), (CanaryPhase::Promoted, false)]
    {
        let mut run = run(&first);
        run.standing.phase = phase;
        assert_eq!((run.is_outdated(&first), run.is_outdated(&edited), run.is_outdated(&pair)), (false, by_edit, true), "{phase:?}");
    }
    let key = ObjectKey::new(Kind::Canary, "shop", "c");
    assert_ne!(CanaryRun::begin(&key, &first, 1).standing.run, CanaryRun::begin(&key, &first, 2).standing.run);
    let mut run = run(&first);
    for _ in 0..DECISIONS_MAX + 5 {
        let turn =
            CanaryTurn { kind: TurnKind::Pause, phase: CanaryPhase::Paused, step: 0, paused: None, why: "x".repeat(1_000), forgets: false };
        take(&mut run, &first, CanaryNext::Turn(turn));
    }
    assert_eq!((run.decisions.len(), run.decisions[0].why.len()), (DECISIONS_MAX, WHY_CHARS_MAX));
}
