//! What becomes of a canary: from where its run is, what was counted, what gates say and what people ask for, to the next step. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::evidence::Verdict;
use super::tally::Tally;
use crate::world::ObjectKey;
use crate::world::canary::{Canary, CanaryPhase, CanaryShare, CanaryStanding, CanaryStep, OnFailure};

/// Decisions that are remembered, the newest.
pub const DECISIONS_MAX: usize = 32;
/// Longest reason that is remembered, in characters.
const WHY_CHARS_MAX: usize = 300;
/// Where the test comes to no verdict, so many times `minRequests` without a harm that it could see are evidence enough for the next step; never for
/// the last.
pub const ENOUGH_TIMES: u64 = 10;

/// One run of a canary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CanaryRun {
    /// What of it is in force.
    pub standing: CanaryStanding,
    /// When it began, milliseconds since 1970.
    pub began_ms: i64,
    /// When its step began.
    pub step_ms: i64,
    /// Somebody has approved what follows this step.
    pub approved: bool,
    /// Why it is paused, if it is.
    pub paused: Option<PauseCause>,
    /// What was decided, the oldest first.
    pub decisions: VecDeque<CanaryDecision>,
    /// What was counted of the stable version in all of the run; it stays to be read after the end.
    #[serde(default)]
    pub stable: Tally,
    /// The same of the candidate.
    #[serde(default)]
    pub candidate: Tally,
}

/// Why a canary is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PauseCause {
    /// Somebody asked for it.
    Asked,
    /// The step is over, and what follows has to be approved.
    Approval,
    /// The candidate is worse, and its author wants to decide.
    Worse,
}

/// One decision with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryDecision {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What.
    pub turn: TurnKind,
    /// Why.
    pub why: String,
    /// At which step, from 1.
    pub step: usize,
    /// The candidate's share of all requests from then on, per cent.
    pub weight: u8,
    /// The stable version, of this step.
    pub stable: VersionNumbers,
    /// The candidate, of this step.
    pub candidate: VersionNumbers,
    /// The smaller of the test's two: errors, latency.
    pub p_value: f64,
}

/// What a version has done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VersionNumbers {
    /// Requests that have ended.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Its latency at the 99th percentile; `None`: nothing was timed.
    pub p99_ms: Option<f64>,
}

impl VersionNumbers {
    /// Of a tally.
    pub fn of(tally: &Tally) -> Self {
        let p99_ms = tally.quantile_ms(0.99).map(|ms| (ms * 100.0).round() / 100.0);
        Self { requests: tally.requests, errors: tally.failures, p99_ms }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TurnKind {
    /// A run began.
    Begin,
    /// The next step.
    Advance,
    /// The step is over, and what follows has to be approved.
    AwaitApproval,
    /// It was approved.
    Approve,
    /// Nothing changes until somebody says what.
    Pause,
    /// It goes on.
    Resume,
    /// The candidate has everything.
    Promote,
    /// The stable version has everything.
    Rollback,
}

impl TurnKind {
    /// As JSON says it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Begin => "Begin",
            Self::Advance => "Advance",
            Self::AwaitApproval => "AwaitApproval",
            Self::Approve => "Approve",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Promote => "Promote",
            Self::Rollback => "Rollback",
        }
    }
}

/// What people ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryVerb {
    /// The candidate gets everything at once.
    Promote,
    /// The stable version gets everything at once.
    Abort,
    /// Stay where it is.
    Pause,
    /// Go on; what is over begins anew.
    Resume,
    /// Go on behind a step that has to be approved.
    Approve,
}

impl CanaryVerb {
    /// The verb of that name.
    pub fn find(text: &str) -> Option<Self> {
        let all = [
            ("promote", Self::Promote),
            ("abort", Self::Abort),
            ("pause", Self::Pause),
            ("resume", Self::Resume),
            ("approve", Self::Approve),
        ];
        all.into_iter().find(|(name, _)| *name == text).map(|(_, verb)| verb)
    }
}

/// All that a decision goes by.
#[derive(Clone, Copy, Debug)]
pub struct CanarySight<'a> {
    /// What the test says.
    pub verdict: &'a Verdict,
    /// What the candidate has answered in this step.
    pub answered: u64,
    /// What gates say.
    pub gates: &'a GatesSay,
    /// Why nothing can be decided.
    pub trouble: Option<&'a str>,
    /// Now, milliseconds since 1970.
    pub now_ms: i64,
}

/// What all gates come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatesSay {
    /// Yes, each of them.
    Passed,
    /// Not yet, with the reason.
    Waiting(String),
    /// One has said no again and again.
    Failed(String),
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub enum CanaryNext {
    /// Nothing, for this reason.
    Stay(String),
    /// The step would be over if the gates said yes.
    AskGates(String),
    /// This.
    Turn(CanaryTurn),
}

/// What changes.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryTurn {
    /// Its name.
    pub kind: TurnKind,
    /// The phase from now on.
    pub phase: CanaryPhase,
    /// The step from now on, from 0.
    pub step: usize,
    /// Why it is paused from now on.
    pub paused: Option<PauseCause>,
    /// In words, with numbers.
    pub why: String,
    /// What was counted before does not count any more.
    pub forgets: bool,
}

impl CanaryRun {
    /// A run that begins. Its name tells it from every other one.
    pub fn begin(key: &ObjectKey, spec: &Canary, now_ms: i64) -> Self {
        let digest = spec.digest();
        let standing = CanaryStanding {
            pair: spec.pair(),
            run: proto::epoch::version(format!("{key} {digest} {now_ms}").as_bytes()),
            digest,
            ..CanaryStanding::default()
        };
        Self { standing, began_ms: now_ms, step_ms: now_ms, ..Self::default() }
    }

    /// Whether what the object says now is another run's: another pair in any case, anything else unless the candidate has won by it.
    pub fn is_outdated(&self, spec: &Canary) -> bool {
        self.standing.pair != spec.pair() || (self.standing.phase != CanaryPhase::Promoted && self.standing.digest != spec.digest())
    }

    fn step<'s>(&self, spec: &'s Canary) -> Option<&'s CanaryStep> {
        spec.steps.get(self.standing.step)
    }

    /// What follows from what is seen.
    pub fn next(&self, spec: &Canary, sight: &CanarySight<'_>) -> CanaryNext {
        let stay = |why: &str| CanaryNext::Stay(why.to_owned());
        let CanarySight { verdict, answered, gates, trouble, now_ms } = *sight;
        if self.standing.phase.is_over() {
            return stay("it is over");
        }
        if let Some(trouble) = trouble {
            return CanaryNext::Stay(format!("nothing is decided: {trouble}"));
        }
        if self.paused == Some(PauseCause::Worse) {
            return stay("the candidate is worse: `canary resume` goes on, `abort` rolls back, `promote` takes it all the same");
        }
        if verdict.worse.is_some() {
            return CanaryNext::Turn(self.fail(spec, verdict.words.clone()));
        }
        if let GatesSay::Failed(why) = gates {
            return CanaryNext::Turn(self.fail(spec, format!("a gate says no: {why}")));
        }
        match self.paused {
            Some(PauseCause::Asked) => return stay("paused: `canary resume` goes on"),
            Some(PauseCause::Approval) => return stay("the step is over: `canary approve` goes on"),
            Some(PauseCause::Worse) | None => {}
        }
        let Some(step) = self.step(spec) else { return stay("it has no such step") };
        if let Some(why) = self.lacks(spec, step, (verdict, answered), now_ms) {
            return CanaryNext::Stay(why);
        }
        if let GatesSay::Waiting(why) = gates {
            return CanaryNext::AskGates(format!("waits for a gate: {why}"));
        }
        if step.approve && !self.approved {
            return CanaryNext::Turn(CanaryTurn {
                kind: TurnKind::AwaitApproval,
                phase: CanaryPhase::Paused,
                step: self.standing.step,
                paused: Some(PauseCause::Approval),
                why: format!("step {} is over and waits for approval: {}", self.standing.step + 1, verdict.words),
                forgets: false,
            });
        }
        CanaryNext::Turn(self.advance(spec, &verdict.words))
    }

    /// What is missing before this step is over; `None`: nothing.
    fn lacks(&self, spec: &Canary, step: &CanaryStep, (verdict, answered): (&Verdict, u64), now_ms: i64) -> Option<String> {
        let least = spec.analysis.min_requests;
        if answered < least {
            return Some(format!("the candidate has answered {answered} of the {least} requests that this step needs"));
        }
        let held = Duration::from_millis(u64::try_from(now_ms - self.step_ms).unwrap_or(0));
        if let Some(left) = step.hold.and_then(|hold| hold.checked_sub(held)).filter(|left| !left.is_zero()) {
            return Some(format!("held for another {} s: {}", left.as_secs() + 1, verdict.words));
        }
        // Neither time nor many requests alone promote anything.
        let enough = match self.is_last(spec) {
            true => verdict.good_enough,
            false => verdict.good_enough || step.hold.is_some() || answered >= least.saturating_mul(ENOUGH_TIMES),
        };
        (!enough).then(|| verdict.words.clone())
    }

    /// Whether the candidate has everything after this step.
    fn is_last(&self, spec: &Canary) -> bool {
        spec.steps.get(self.standing.step + 1).is_none_or(|next| next.share == CanaryShare::Weight(100))
    }

    fn advance(&self, spec: &Canary, words: &str) -> CanaryTurn {
        let step = self.standing.step + 1;
        if self.is_last(spec) {
            return CanaryTurn { why: format!("every step is over: {words}"), ..self.over(TurnKind::Promote, spec) };
        }
        CanaryTurn {
            kind: TurnKind::Advance,
            phase: CanaryPhase::Progressing,
            step,
            paused: None,
            why: format!("step {step} is over: {words}"),
            forgets: false,
        }
    }

    fn fail(&self, spec: &Canary, why: String) -> CanaryTurn {
        match spec.on_failure {
            OnFailure::Rollback => CanaryTurn { why, ..self.over(TurnKind::Rollback, spec) },
            OnFailure::Pause => CanaryTurn {
                kind: TurnKind::Pause,
                phase: CanaryPhase::Paused,
                step: self.standing.step,
                paused: Some(PauseCause::Worse),
                why,
                forgets: false,
            },
        }
    }

    /// An end.
    fn over(&self, kind: TurnKind, spec: &Canary) -> CanaryTurn {
        let promoted = kind == TurnKind::Promote;
        CanaryTurn {
            kind,
            phase: if promoted { CanaryPhase::Promoted } else { CanaryPhase::RolledBack },
            step: if promoted { spec.steps.len() } else { self.standing.step },
            paused: None,
            why: String::new(),
            forgets: false,
        }
    }

    /// What somebody's word comes to. `Ok(None)`: a run begins anew.
    ///
    /// # Errors
    /// It makes no sense here; with what does.
    pub fn asked(&self, spec: &Canary, verb: CanaryVerb) -> Result<Option<CanaryTurn>, String> {
        let phase = self.standing.phase;
        let stays = |kind, phase, paused, why: &str| CanaryTurn {
            kind,
            phase,
            step: self.standing.step,
            paused,
            why: why.to_owned(),
            forgets: false,
        };
        let turn = match verb {
            CanaryVerb::Promote if phase == CanaryPhase::Promoted => return Err("the candidate has everything already".to_owned()),
            CanaryVerb::Promote => CanaryTurn { why: "somebody asked for it".to_owned(), ..self.over(TurnKind::Promote, spec) },
            CanaryVerb::Abort if phase == CanaryPhase::RolledBack => return Err("the stable version has everything already".to_owned()),
            CanaryVerb::Abort => CanaryTurn { why: "somebody asked for it".to_owned(), ..self.over(TurnKind::Rollback, spec) },
            CanaryVerb::Resume if phase.is_over() => return Ok(None),
            CanaryVerb::Resume => match self.paused {
                Some(PauseCause::Approval) => return Err("it waits for approval: use `canary approve`".to_owned()),
                None => return Err("it is not paused".to_owned()),
                Some(cause) => CanaryTurn {
                    // Else the same evidence would end it again at once.
                    forgets: cause == PauseCause::Worse,
                    ..stays(TurnKind::Resume, CanaryPhase::Progressing, None, "somebody asked for it")
                },
            },
            _ if phase.is_over() => return Err(format!("it is over ({}): use `canary resume` to begin anew", phase.text())),
            CanaryVerb::Pause if self.paused.is_some_and(|cause| cause != PauseCause::Approval) => {
                return Err("it is paused already".to_owned());
            }
            CanaryVerb::Pause => stays(TurnKind::Pause, CanaryPhase::Paused, Some(PauseCause::Asked), "somebody asked for it"),
            CanaryVerb::Approve if !self.step(spec).is_some_and(|step| step.approve) => {
                return Err("this step needs no approval; `canary promote` does not wait for the others".to_owned());
            }
            CanaryVerb::Approve if self.approved => return Err("this step is approved already".to_owned()),
            CanaryVerb::Approve => {
                let paused = self.paused.filter(|cause| *cause != PauseCause::Approval);
                let phase = if paused.is_some() { CanaryPhase::Paused } else { CanaryPhase::Progressing };
                stays(TurnKind::Approve, phase, paused, "somebody approved what follows")
            }
        };
        Ok(Some(turn))
    }

    /// Takes a turn, and writes it down with the numbers of the step that it ends or stays at.
    pub fn take(&mut self, turn: &CanaryTurn, spec: &Canary, (stable, candidate): (&Tally, &Tally), p_value: f64, now_ms: i64) {
        let before = self.standing.step;
        self.approved = turn.kind == TurnKind::Approve || (self.approved && turn.step == before);
        if turn.step != before {
            self.step_ms = now_ms;
        }
        self.paused = turn.paused;
        self.standing.phase = turn.phase;
        self.standing.step = turn.step;
        self.standing.why = turn.why.chars().take(WHY_CHARS_MAX).collect();
        self.decisions.push_back(CanaryDecision {
            at_ms: now_ms,
            turn: turn.kind,
            why: self.standing.why.clone(),
            step: (before + 1).min(spec.steps.len()),
            weight: self.standing.route(spec).weight(),
            stable: VersionNumbers::of(stable),
            candidate: VersionNumbers::of(candidate),
            p_value,
        });
        while self.decisions.len() > DECISIONS_MAX {
            self.decisions.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
