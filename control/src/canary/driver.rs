//! The task that drives all canaries: looks at what was counted and at what gates say, decides, and tells the writer. One runs in the control plane
//! that serves; what it has decided is in the book before it is in force, so whoever comes next goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::counts::CanaryMetrics;
use super::decide::{CanaryNext, CanaryRun, CanarySight, CanaryTurn, CanaryVerb, TurnKind};
use super::evidence::{Analysis, Sequential};
use super::gates::{GateQuestion, GateRoots};
use super::kept::KeptCanary;
use super::panel::{GatePanel, GateReply};
use super::show;
use super::tally::Tally;
use crate::publish::board::{Board, Errand};
use crate::store::Store;
use crate::translate::{canary_trouble, canary_unready};
use crate::world::canary::{Canary, CanaryAnalysis, CanaryBook, CanaryShare, content};
use crate::world::{Object, ObjectKey, World};

/// Between two looks while something may be decided.
const TICK: Duration = Duration::from_millis(500);
/// One comparison of both versions; see [`Sequential::compare`].
const PERIOD: Duration = Duration::from_secs(2);
/// Between two looks where nothing is under way.
const REST: Duration = Duration::from_secs(30);
/// Editions come in crowds: one look for those of this long.
const CROWD: Duration = Duration::from_millis(250);
/// So long after the start proxies are on their way back, and their totals may be from before.
const RETURNING: Duration = Duration::from_secs(15);
/// How often evidence is kept while nothing is decided.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// What people ask for, on its way.
const ORDERS_MAX: usize = 16;

/// Somebody's word about a canary.
struct CanaryOrder {
    key: ObjectKey,
    verb: CanaryVerb,
    reply: oneshot::Sender<Result<Value, String>>,
}

/// What the API sees of the driver.
#[derive(Clone)]
pub struct CanaryHelm {
    orders: mpsc::Sender<CanaryOrder>,
    shown: Arc<Mutex<BTreeMap<ObjectKey, Value>>>,
}

impl CanaryHelm {
    /// Canaries as `canary status -o json` prints them, in order; empty texts: of every namespace, of every name.
    pub fn rows(&self, namespace: &str, name: &str) -> Vec<Value> {
        let fits = |key: &ObjectKey| (namespace.is_empty() || key.namespace == namespace) && (name.is_empty() || key.name == name);
        self.shown.lock().iter().filter(|(key, _)| fits(key)).map(|(_, row)| row.clone()).collect()
    }

    /// Does what somebody says about one, and returns its row once that is in the book.
    ///
    /// # Errors
    /// There is none of that name, or it makes no sense to it; with what does.
    pub async fn steer(&self, key: ObjectKey, verb: CanaryVerb) -> Result<Value, String> {
        let (reply, answer) = oneshot::channel();
        let stopping = || "the control plane is stopping".to_owned();
        self.orders.send(CanaryOrder { key, verb, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

/// One canary while it is driven.
struct Driven {
    run: CanaryRun,
    /// Of the steps that go by weight: all of them are one comparison.
    evidence: Sequential,
    /// Of a step that goes by something else, which is one of its own.
    apart: Option<Sequential>,
    /// What was counted in this step.
    stable: Tally,
    candidate: Tally,
    gates: GatePanel,
    /// Why nothing changes.
    waiting: String,
    /// Since when what comes is of the next comparison.
    compared: Instant,
    /// Evidence has come since it was kept.
    unkept: bool,
}

/// See the module.
pub struct CanaryDriver {
    board: Arc<Board>,
    store: Arc<Store>,
    driven: BTreeMap<ObjectKey, Driven>,
    /// Runs that began before this process.
    resumed: BTreeSet<String>,
    replies: JoinSet<GateReply>,
    roots: GateRoots,
    orders: mpsc::Receiver<CanaryOrder>,
    shown: Arc<Mutex<BTreeMap<ObjectKey, Value>>>,
    metrics: CanaryMetrics,
    began: Instant,
    kept: Instant,
}

impl CanaryDriver {
    /// A task that has not begun, what the API sees of it, and what it counts.
    pub fn new(board: Arc<Board>, store: Arc<Store>) -> (Self, CanaryHelm, CanaryMetrics) {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let shown: Arc<Mutex<BTreeMap<ObjectKey, Value>>> = Arc::default();
        let (helm, metrics) = (CanaryHelm { orders: sender, shown: shown.clone() }, CanaryMetrics::new(board.clone()));
        let driver = Self {
            board,
            store,
            driven: BTreeMap::new(),
            resumed: BTreeSet::new(),
            replies: JoinSet::new(),
            roots: GateRoots::default(),
            orders,
            shown,
            metrics: metrics.clone(),
            began: Instant::now(),
            kept: Instant::now(),
        };
        (driver, helm, metrics)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        self.restore().await;
        let mut editions = self.board.editions();
        let (mut stale, mut looked, mut due) = (true, Instant::now(), Instant::now());
        loop {
            let at = if stale { due.min(looked + CROWD) } else { due };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.replies.shutdown().await,
                Some(order) = self.orders.recv() => {
                    let told = self.obey(&order).await;
                    // Whoever asked may have gone.
                    let _ = order.reply.send(told);
                    due = Instant::now();
                }
                Some(reply) = self.replies.join_next() => {
                    self.replied(reply.ok());
                    due = Instant::now();
                }
                changed = editions.changed(), if !stale => {
                    if changed.is_err() {
                        return;
                    }
                    stale = true;
                }
                () = sleep_until(at) => {
                    editions.mark_unchanged();
                    self.look().await;
                    (stale, looked) = (false, Instant::now());
                    let busy = self.driven.values().any(|driven| !driven.run.standing.phase.is_over());
                    due = looked + if busy { TICK } else { REST };
                }
            }
        }
    }

    /// Goes on where the process or replica before has stopped.
    async fn restore(&mut self) {
        let store = self.store.clone();
        let kept = tokio::task::spawn_blocking(move || KeptCanary::load(&store)).await.unwrap_or_default();
        for KeptCanary { key, run, evidence } in kept {
            self.resumed.insert(run.standing.run.clone());
            let driven = Driven { run, evidence, ..Driven::begin_with(CanaryRun::default(), &CanaryAnalysis::default(), 1) };
            self.driven.insert(key, driven);
        }
    }

    fn now_ms(&self) -> i64 {
        self.board.clock.age_ms()
    }

    /// One look at every canary.
    async fn look(&mut self) {
        let Some(edition) = self.board.edition() else { return };
        let world = &edition.world;
        let objects: BTreeMap<&ObjectKey, &Object> = world.index().canaries.iter().map(|object| (&object.key, &**object)).collect();
        let before = self.driven.len();
        self.driven.retain(|key, _| objects.contains_key(key));
        let mut changed: BTreeSet<ObjectKey> = BTreeSet::new();
        let gone = self.driven.len() != before;
        for (key, object) in &objects {
            let Some(spec) = content(object) else { continue };
            if self.renew(world, key, spec, object) {
                changed.insert((*key).clone());
            }
        }
        self.follow();
        for (key, object) in &objects {
            let Some(spec) = content(object) else { continue };
            let trouble = canary_trouble(world, object);
            let unready = canary_unready(world, object);
            if let Some(driven) = self.driven.get_mut(key).filter(|driven| driven.run.is_outdated(spec)) {
                // The stable version has everything meanwhile.
                driven.waiting = unready.unwrap_or_default();
            } else if self.drive(world, key, spec, trouble.as_deref()) {
                changed.insert((*key).clone());
            }
        }
        if gone || !changed.is_empty() || (self.kept.elapsed() > KEEP_EVERY && self.driven.values().any(|driven| driven.unkept)) {
            self.tell(changed).await;
        }
        self.show(world);
    }

    /// Begins a run where there is none, or another one is meant by now, once its candidate is ready. True: one has begun.
    fn renew(&mut self, world: &World, key: &ObjectKey, spec: &Canary, object: &Object) -> bool {
        let why = match self.driven.get_mut(key) {
            Some(driven) if driven.run.is_outdated(spec) => "it says something else by now",
            Some(driven) => {
                // It has won by what it said before.
                driven.run.standing.digest = spec.digest();
                return false;
            }
            None => "it is new",
        };
        let begins = canary_unready(world, object).is_none() && (self.driven.contains_key(key) || canary_trouble(world, object).is_none());
        if begins {
            self.begin(key, spec, why);
        }
        begins
    }

    fn begin(&mut self, key: &ObjectKey, spec: &Canary, why: &str) {
        let now_ms = self.now_ms();
        let mut driven = Driven::begin_with(CanaryRun::begin(key, spec, now_ms), &spec.analysis, comparisons(spec));
        // What was decided before stays to be read.
        driven.run.decisions = self.driven.get(key).map(|former| former.run.decisions.clone()).unwrap_or_default();
        let turn = CanaryTurn {
            kind: TurnKind::Begin,
            phase: driven.run.standing.phase,
            step: 0,
            paused: None,
            why: format!("a run begins: {why}"),
            forgets: false,
        };
        driven.take(&turn, spec, now_ms);
        tracing::info!(canary = %key, run = driven.run.standing.run, why, "a canary begins");
        self.metrics.decided(TurnKind::Begin);
        self.driven.insert(key.clone(), driven);
    }

    /// Says whose counts are wanted.
    fn follow(&self) {
        let runs: BTreeSet<String> = self
            .driven
            .values()
            .filter(|driven| !driven.run.standing.phase.is_over())
            .map(|driven| driven.run.standing.run.clone())
            .collect();
        let returning = self.began.elapsed() < RETURNING;
        let resumed = if returning { self.resumed.intersection(&runs).cloned().collect() } else { BTreeSet::new() };
        self.board.versions.lock().follow(runs, resumed);
    }

    /// Takes in what was counted of one canary, asks its gates, and decides. True: something changes.
    fn drive(&mut self, world: &World, key: &ObjectKey, spec: &Canary, trouble: Option<&str>) -> bool {
        let (now_ms, at) = (self.now_ms(), Instant::now());
        let Some(driven) = self.driven.get_mut(key) else { return false };
        if driven.run.standing.phase.is_over() {
            driven.waiting.clear();
            return false;
        }
        let (stable, candidate) = self.board.versions.lock().fresh(&driven.run.standing.run);
        driven.observe(spec, &Tally::from(stable), &Tally::from(candidate));
        let verdict = driven.verdict();
        let gates = driven.gates.say();
        let sight = CanarySight { verdict: &verdict, answered: driven.candidate.requests, gates: &gates, trouble, now_ms };
        let next = driven.run.next(spec, &sight);
        let asks = matches!(next, CanaryNext::AskGates(_));
        if trouble.is_none() {
            let question = GateQuestion {
                canary: key.clone(),
                step: driven.run.standing.step + 1,
                steps: spec.steps.len(),
                weight: driven.run.standing.route(spec).weight(),
                stable: driven.stable.clone(),
                candidate: driven.candidate.clone(),
            };
            driven.gates.ask(world.index(), (&question, &driven.run.standing.run), (asks, at), &self.roots, &mut self.replies);
        }
        match next {
            CanaryNext::Stay(why) | CanaryNext::AskGates(why) => {
                driven.waiting = why;
                false
            }
            CanaryNext::Turn(turn) => {
                driven.take(&turn, spec, now_ms);
                self.metrics.decided(turn.kind);
                tracing::info!(canary = %key, turn = turn.kind.text(), why = turn.why, "a canary was decided about");
                true
            }
        }
    }

    fn replied(&mut self, reply: Option<GateReply>) {
        let Some(reply) = reply else { return };
        if let Some(driven) = self.driven.get_mut(&reply.canary)
            && driven.run.standing.run == reply.run
        {
            driven.gates.replied(reply);
        }
    }

    /// Does what somebody says.
    async fn obey(&mut self, order: &CanaryOrder) -> Result<Value, String> {
        let CanaryOrder { key, verb, .. } = order;
        let edition = self.board.edition().ok_or("the manifests have not been read yet; try again in a moment")?;
        let object = edition.world.get(key).ok_or_else(|| format!("there is no {key}"))?;
        let spec = content(object).ok_or_else(|| format!("{key} is none"))?;
        self.renew(&edition.world, key, spec, object);
        let now_ms = self.now_ms();
        let unready = canary_unready(&edition.world, object);
        let Some(driven) = self.driven.get_mut(key).filter(|driven| !driven.run.is_outdated(spec)) else {
            let why = canary_trouble(&edition.world, object).or(unready).unwrap_or_default();
            return Err(format!("{key} has not begun: {why}"));
        };
        match driven.run.asked(spec, *verb)? {
            Some(turn) => {
                driven.take(&turn, spec, now_ms);
                self.metrics.decided(turn.kind);
                tracing::info!(canary = %key, turn = turn.kind.text(), "somebody said what becomes of a canary");
            }
            None => match unready {
                Some(why) => return Err(format!("{key} cannot begin anew: {why}")),
                None => self.begin(key, spec, "somebody asked for it"),
            },
        }
        self.follow();
        self.tell(BTreeSet::from([key.clone()])).await;
        self.show(&edition.world);
        self.shown.lock().get(key).cloned().ok_or_else(|| format!("there is no {key}"))
    }

    /// Has the writer keep how all canaries stand, and put it in force.
    async fn tell(&mut self, changed: BTreeSet<ObjectKey>) {
        let standings = self.driven.iter().map(|(key, driven)| (key.clone(), driven.run.standing.clone())).collect();
        let kept: Vec<KeptCanary> = self.driven.iter().map(|(key, driven)| KeptCanary::of(key, &driven.run, &driven.evidence)).collect();
        let kept = match serde_json::to_value(&kept) {
            Ok(kept) => kept,
            Err(error) => return tracing::error!(%error, "canaries cannot be written down; nothing changes"),
        };
        let (reply, told) = oneshot::channel();
        if self.board.send(Errand::Canaries { book: Arc::new(CanaryBook { standings }), kept, changed, reply }).await {
            // The writer ends with everything else.
            let _ = told.await;
        }
        self.kept = Instant::now();
        self.driven.values_mut().for_each(|driven| driven.unkept = false);
    }

    /// What the API shows from now on.
    fn show(&self, world: &World) {
        let mut rows = BTreeMap::new();
        let mut phases = BTreeMap::new();
        for object in world.index().canaries.iter() {
            let Some(spec) = content(object) else { continue };
            let trouble = canary_trouble(world, object);
            let row = match self.driven.get(&object.key) {
                Some(driven) => {
                    *phases.entry(driven.run.standing.phase.text()).or_insert(0) += 1;
                    driven.show(&object.key, spec, trouble.as_deref())
                }
                None => show::refused(&object.key, spec, trouble.or_else(|| canary_unready(world, object)).as_deref()),
            };
            rows.insert(object.key.clone(), row);
        }
        self.metrics.there(phases);
        *self.shown.lock() = rows;
    }
}

impl Driven {
    fn begin_with(run: CanaryRun, analysis: &CanaryAnalysis, comparisons: u32) -> Self {
        Self {
            run,
            evidence: Sequential::new(asked(analysis, true, comparisons)),
            apart: None,
            stable: Tally::default(),
            candidate: Tally::default(),
            gates: GatePanel::default(),
            waiting: String::new(),
            compared: Instant::now(),
            unkept: false,
        }
    }

    /// What came of both versions since the last look. Whom a match sends to the candidate is no chance, and a copy has no time of its own: such a
    /// step is compared by itself, and by errors alone.
    fn observe(&mut self, spec: &Canary, stable: &Tally, candidate: &Tally) {
        self.gates.expect(&spec.gates);
        let by_weight = spec.steps.get(self.run.standing.step).is_none_or(|step| matches!(step.share, CanaryShare::Weight(_)));
        if stable.requests == 0 && candidate.requests == 0 {
            return;
        }
        for (all, more) in [
            (&mut self.stable, stable),
            (&mut self.run.stable, stable),
            (&mut self.candidate, candidate),
            (&mut self.run.candidate, candidate),
        ] {
            all.add(more);
        }
        self.unkept = true;
        let evidence = match by_weight {
            true => &mut self.evidence,
            false => self.apart.get_or_insert_with(|| Sequential::new(asked(&spec.analysis, false, comparisons(spec)))),
        };
        evidence.gather(stable, candidate);
        if self.compared.elapsed() >= PERIOD {
            evidence.compare();
            self.compared = Instant::now();
        }
    }

    fn verdict(&self) -> super::evidence::Verdict {
        self.apart.as_ref().unwrap_or(&self.evidence).verdict()
    }

    fn take(&mut self, turn: &CanaryTurn, spec: &Canary, now_ms: i64) {
        let verdict = self.verdict();
        let p_value = verdict.p_value_errors.min(verdict.p_value_latency);
        let before = self.run.standing.step;
        self.run.take(turn, spec, (&self.stable, &self.candidate), p_value, now_ms);
        if turn.step != before || turn.forgets {
            (self.stable, self.candidate, self.apart) = (Tally::default(), Tally::default(), None);
            self.gates.forget();
        }
        if turn.forgets {
            self.evidence = Sequential::new(self.evidence.analysis().clone());
        }
        self.waiting.clear();
        self.unkept = true;
    }

    fn show(&self, key: &ObjectKey, spec: &Canary, trouble: Option<&str>) -> Value {
        let seen = show::Seen {
            run: &self.run,
            verdict: &self.verdict(),
            stable: &self.run.stable,
            candidate: &self.run.candidate,
            gates: self.gates.rows(),
            waiting: &self.waiting,
            trouble,
        };
        show::row(key, spec, &seen)
    }
}

/// What is asked of a candidate. `timed`: its latency, too.
fn asked(analysis: &CanaryAnalysis, timed: bool, comparisons: u32) -> Analysis {
    Analysis {
        max_error_increase: Some(analysis.errors_max_increase_percent / 100.0),
        quantile: analysis.latency_quantile / 100.0,
        max_latency_ratio: timed.then_some(analysis.latency_max_ratio),
        confidence: analysis.confidence,
        comparisons,
        min_requests: analysis.min_requests,
    }
}

/// Comparisons of one run: all steps that go by weight are one, each other step is one.
fn comparisons(spec: &Canary) -> u32 {
    let apart = spec.steps.iter().filter(|step| !matches!(step.share, CanaryShare::Weight(_))).count();
    1 + u32::try_from(apart).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
