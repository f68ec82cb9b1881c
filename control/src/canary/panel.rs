//! The gates of one canary: who is asked when, and what came of it. A Prometheus is asked all along, a webhook when the step would be over
//! otherwise: what it does may be dear.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::decide::GatesSay;
use super::gates::{GateAnswer, GateQuestion, GateRoots, ask};
use crate::world::canary::CanaryGate;
use crate::world::{Index, ObjectKey};

/// Between two questions to one gate.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// A gate that says no so many times in a row has failed.
const REFUSALS_MAX: u32 = 3;

/// An answer on its way back.
#[derive(Debug)]
pub(super) struct GateReply {
    /// Of which canary.
    pub(super) canary: ObjectKey,
    /// Of which run of it.
    pub(super) run: String,
    /// Asked since this panel last forgot.
    round: u64,
    gate: usize,
    answer: GateAnswer,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct GatePanel {
    gates: Vec<Gate>,
    /// Counts how often everything was forgotten: an answer from before is none.
    round: u64,
}

#[derive(Debug)]
struct Gate {
    said: CanaryGate,
    answer: Option<GateAnswer>,
    refusals: u32,
    asked: Option<Instant>,
    asking: bool,
}

impl GatePanel {
    /// These are the gates.
    pub(super) fn expect(&mut self, gates: &[CanaryGate]) {
        if self.gates.len() == gates.len() && self.gates.iter().zip(gates).all(|(known, gate)| known.said == *gate) {
            return;
        }
        let new = |gate: &CanaryGate| Gate { said: gate.clone(), answer: None, refusals: 0, asked: None, asking: false };
        self.gates = gates.iter().map(new).collect();
        self.round += 1;
    }

    /// Another step begins: what was said is of the one before.
    pub(super) fn forget(&mut self) {
        self.round += 1;
        for gate in &mut self.gates {
            (gate.answer, gate.refusals, gate.asked, gate.asking) = (None, 0, None, false);
        }
    }

    /// What they come to.
    pub(super) fn say(&self) -> GatesSay {
        if let Some(gate) = self.gates.iter().find(|gate| gate.refusals >= REFUSALS_MAX) {
            return GatesSay::Failed(gate.answer.as_ref().map(|answer| answer.words.clone()).unwrap_or_default());
        }
        match self.gates.iter().find(|gate| !gate.answer.as_ref().is_some_and(|answer| answer.passed)) {
            None => GatesSay::Passed,
            Some(Gate { answer: Some(answer), .. }) => GatesSay::Waiting(answer.words.clone()),
            Some(gate) => GatesSay::Waiting(format!("{} has not answered yet", name(&gate.said))),
        }
    }

    /// Asks who is due. `ready`: the step would be over if they said yes.
    pub(super) fn ask(
        &mut self,
        index: &Index,
        (question, run): (&GateQuestion, &str),
        (ready, now): (bool, Instant),
        roots: &GateRoots,
        replies: &mut JoinSet<GateReply>,
    ) {
        let round = self.round;
        for (place, gate) in self.gates.iter_mut().enumerate() {
            let meant = ready || matches!(gate.said, CanaryGate::Prometheus { .. });
            let due = gate.asked.is_none_or(|asked| now.duration_since(asked) >= ASK_EVERY);
            if !meant || !due || gate.asking {
                continue;
            }
            (gate.asked, gate.asking) = (Some(now), true);
            let (asking, canary, run) = (ask(index, &gate.said, question, roots), question.canary.clone(), run.to_owned());
            replies.spawn(async move { GateReply { canary, run, round, gate: place, answer: asking.await } });
        }
    }

    /// One has answered.
    pub(super) fn replied(&mut self, reply: GateReply) {
        let GateReply { round, gate, answer, .. } = reply;
        let Some(gate) = self.gates.get_mut(gate).filter(|_| round == self.round) else { return };
        gate.asking = false;
        gate.refusals = match (answer.passed, answer.away) {
            (true, _) => 0,
            // Neither a yes nor a no.
            (false, true) => gate.refusals,
            (false, false) => gate.refusals + 1,
        };
        gate.answer = Some(answer);
    }

    /// As `canary status -o json` prints them.
    pub(super) fn rows(&self) -> Vec<Value> {
        let row = |gate: &Gate| {
            let verdict = match &gate.answer {
                None => "NotAsked",
                Some(GateAnswer { passed: true, .. }) => "Passed",
                Some(GateAnswer { away: true, .. }) => "Away",
                Some(_) => "Refused",
            };
            json!({"gate": name(&gate.said), "verdict": verdict, "why": gate.answer.as_ref().map(|answer| &answer.words)})
        };
        self.gates.iter().map(row).collect()
    }
}

fn name(gate: &CanaryGate) -> String {
    match gate {
        CanaryGate::Webhook { url, .. } => format!("webhook {url}"),
        CanaryGate::Prometheus { url, .. } => format!("prometheus {url}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel() -> GatePanel {
        let mut panel = GatePanel::default();
        let webhook = CanaryGate::Webhook { url: "http://tests/".to_owned(), timeout: Duration::from_secs(1) };
        let prometheus = CanaryGate::Prometheus { url: "http://p:9090".to_owned(), query: "up".to_owned(), min: None, max: Some(1.0) };
        panel.expect(&[webhook, prometheus]);
        panel
    }

    fn reply(panel: &GatePanel, gate: usize, passed: bool, away: bool) -> GateReply {
        let answer = GateAnswer { passed, away, words: format!("gate {gate}") };
        let canary = ObjectKey::new(crate::world::Kind::Canary, "shop", "catalog");
        GateReply { canary, run: "r".to_owned(), round: panel.round, gate, answer }
    }

    #[test]
    fn all_have_to_say_yes_and_three_times_no_is_a_failure() {
        // Aim: until all have passed it waits, with the reason; who cannot be reached says neither; no three times in a row fails, and a yes in
        // between begins anew; what was asked before a step is no answer in it.
        let mut panel = panel();
        assert_eq!(panel.say(), GatesSay::Waiting("webhook http://tests/ has not answered yet".to_owned()));
        let late = reply(&panel, 0, true, false);
        panel.replied(reply(&panel, 0, true, false));
        panel.replied(reply(&panel, 1, false, true));
        assert_eq!(panel.say(), GatesSay::Waiting("gate 1".to_owned()));
        panel.replied(reply(&panel, 1, true, false));
        assert_eq!(panel.say(), GatesSay::Passed);
        for (passed, away, failed) in
            [(false, false, false), (false, false, false), (true, false, false), (false, false, false), (false, false, false), (false, true, false), (false, false, true)]
        {
            panel.replied(reply(&panel, 1, passed, away));
            assert_eq!(matches!(panel.say(), GatesSay::Failed(_)), failed, "{passed} {away}");
        }
        panel.forget();
        panel.replied(late);
        assert!(matches!(panel.say(), GatesSay::Waiting(_)), "an answer from before");
        assert_eq!(panel.rows()[0]["verdict"], "NotAsked");
    }

    #[tokio::test(start_paused = true)]
    async fn webhooks_are_asked_when_the_step_would_be_over() {
        // Aim: a Prometheus at once and every ten seconds, a webhook only then; nobody twice at once.
        let (mut panel, index, roots, mut replies) = (panel(), Index::default(), GateRoots::default(), JoinSet::new());
        let question = GateQuestion {
            canary: ObjectKey::new(crate::world::Kind::Canary, "shop", "catalog"),
            step: 1,
            steps: 1,
            weight: 5,
            stable: Default::default(),
            candidate: Default::default(),
        };
        let now = Instant::now();
        let mut asked = |panel: &mut GatePanel, ready, now| {
            let before = replies.len();
            panel.ask(&index, (&question, "r"), (ready, now), &roots, &mut replies);
            replies.len() - before
        };
        assert_eq!(asked(&mut panel, false, now), 1);
        assert_eq!(asked(&mut panel, true, now), 1);
        assert_eq!(asked(&mut panel, true, now + ASK_EVERY), 0, "both are being asked");
        panel.replied(reply(&panel, 1, true, false));
        assert_eq!(asked(&mut panel, false, now + ASK_EVERY), 1);
    }
}
