//! The authority as the control plane calls it, with a watch on every step of a rotation, and a death that strikes between two writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certs_ca::authority::FORMER_MAX;
use control::publish::trust::{Phase, Roots};
use control::serve::authority::{AuditQuery, Authority, Done, Issuance, Issued, Refused, Seat, SharedAuthority, Step, TokenOrder};
use control::world::own::Mesh;
use proxy::io::Clock;
use proxy::tls::{CredentialCell, TrustCell};
use tokio::time::Instant;

use super::{middle, verified};

/// Lines of the story that are kept.
const STORY_MAX: usize = 60;
/// Who is connected and in order for so long has heard of everything: pauses between two attempts end within a minute.
pub(super) const HEARD: Duration = Duration::from_secs(90);
/// Who is away is waited for so long, less a second of grace for the model's own grain.
const WAITED: Duration = Duration::from_secs(29);

/// One proxy as the watch sees it.
pub(super) struct Sight {
    pub(super) name: &'static str,
    pub(super) credentials: Arc<CredentialCell>,
    pub(super) trust: Arc<TrustCell>,
    pub(super) clock: Clock,
    /// Since when its way to the control plane is open.
    pub(super) open_since: Option<Instant>,
    /// Since when the way is shut, and how long it had been open then.
    pub(super) shut: Option<(Instant, Duration)>,
    /// A root was dropped while it was away, and it has not been back since.
    pub(super) left_behind: bool,
    /// How many were, since it was last seen to follow.
    pub(super) missed: usize,
    /// Somebody has said so, and not taken it back for long enough.
    pub(super) revoked: bool,
}

/// What the model and the watch share.
pub(super) struct Scene {
    pub(super) begun: Instant,
    pub(super) sights: Vec<Sight>,
    pub(super) control: Clock,
    /// Since when a control plane runs and all clocks that it hears of are right.
    pub(super) up_since: Option<Instant>,
    /// Calls that change something until death comes, and whether it comes before the write.
    pub(super) doom: Option<(u32, bool)>,
    /// It has come: nothing works until the process is gone.
    pub(super) dead: bool,
    /// The root that issues, as the last step said.
    pub(super) issuing: Option<[u8; 32]>,
    /// Every root that the authority ever had.
    pub(super) ever: BTreeSet<Vec<u8>>,
    /// Whether the last rotation still waits for its end.
    pub(super) under_way: bool,
    /// When the last step was taken.
    pub(super) stepped: Option<Instant>,
    pub(super) steps: u64,
    /// What must not be.
    pub(super) faults: Vec<String>,
    /// What happened last, for whoever has to find out why.
    pub(super) story: VecDeque<String>,
}

pub(super) type SharedScene = Arc<Mutex<Scene>>;

pub(super) fn lock(scene: &SharedScene) -> MutexGuard<'_, Scene> {
    scene.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scene {
    pub(super) fn new(control: Clock) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            sights: Vec::new(),
            control,
            up_since: None,
            doom: None,
            dead: false,
            issuing: None,
            ever: BTreeSet::new(),
            under_way: false,
            stepped: None,
            steps: 0,
            faults: Vec::new(),
            story: VecDeque::new(),
        }
    }

    pub(super) fn tell(&mut self, line: &str) {
        if self.story.len() == STORY_MAX {
            self.story.pop_front();
        }
        let since = self.begun.elapsed().as_secs();
        self.story.push_back(format!("day {} {:02}:{:02}:{:02}  {line}", since / 86400, since / 3600 % 24, since / 60 % 60, since % 60));
    }

    pub(super) fn fault(&mut self, what: String) {
        self.tell(&format!("FAULT: {what}"));
        self.faults.push(what);
    }

    /// Whether that proxy has to be waited for: its way is open and all is in order long enough, or it has gone just now from such a state.
    fn counts(&self, sight: &Sight, issued: &[Issued]) -> bool {
        let now = Instant::now();
        let long = |since: Option<Instant>| since.is_some_and(|since| now - since > HEARD);
        let agree = sight.clock.unix().abs_diff(self.control.unix()) < Duration::from_secs(5);
        let here = long(sight.open_since) || sight.shut.is_some_and(|(at, open)| now - at < WAITED && open > HEARD);
        let holds = issued.iter().any(|leaf| leaf.instance == sight.name);
        here && long(self.up_since) && agree && holds && !sight.revoked && sight.missed < FORMER_MAX
    }

    /// A step is about to be taken: everybody who counts has followed the one before.
    fn judge_step(&mut self, step: Step, roots: &Roots, issued: &[Issued]) {
        let mut faults = Vec::new();
        for sight in self.sights.iter().filter(|sight| self.counts(sight, issued)) {
            let believed = sight.trust.roots();
            match (step, roots.phase) {
                (Step::Issue, Phase::Trusting) => {
                    if let Some(next) = roots.others.iter().find(|next| !believed.contains(&next.der)) {
                        faults.push(format!("{} issues next, and {} does not believe it yet", &next.fingerprint()[..8], sight.name));
                    }
                }
                (Step::Drop, Phase::Issuing) => {
                    let below =
                        |leaf: Arc<proxy::tls::Credential>| verified(leaf.chain(), std::slice::from_ref(&roots.issuing.der), middle(&leaf));
                    if sight.credentials.current().is_none_or(|leaf| !below(leaf)) {
                        faults.push(format!("the former root is dropped, and {} has no leaf below the issuing one", sight.name));
                    }
                }
                _ => {}
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// It was taken.
    fn took(&mut self, step: Step, roots: &Roots) {
        self.tell(&format!("{} is taken; {} issues", step.text(), &roots.issuing.fingerprint()[..8]));
        self.under_way = true;
        self.stepped = Some(Instant::now());
        self.steps += 1;
        self.ever.extend(roots.trusted().map(|root| root.der.to_vec()));
        if step == Step::Issue {
            self.issuing = Some(roots.issuing.sha256);
        }
        if step == Step::Drop {
            for sight in &mut self.sights {
                // Whoever is there has followed, as judged above; others may not have.
                let open = sight.open_since.is_some();
                let follows = sight
                    .credentials
                    .current()
                    .is_some_and(|leaf| verified(leaf.chain(), std::slice::from_ref(&roots.issuing.der), middle(&leaf)));
                // A leaf below the issuing root is had before that root is believed, by its cross certificate.
                let follows = follows && sight.trust.roots().contains(&roots.issuing.der);
                sight.left_behind |= !open || !follows;
                sight.missed = if open && follows { 0 } else { sight.missed + 1 };
            }
        }
    }

    /// Counts a call that changes something; true: death comes, before it or after.
    fn strikes(&mut self) -> Option<bool> {
        let (left, before) = self.doom?;
        if left > 0 {
            self.doom = Some((left - 1, before));
            return None;
        }
        self.doom = None;
        self.dead = true;
        self.tell(if before { "the control plane dies before a write" } else { "the control plane dies after a write" });
        Some(before)
    }
}

/// See the module.
pub(super) struct Watched {
    pub(super) inner: SharedAuthority,
    pub(super) scene: SharedScene,
}

impl Watched {
    fn mortal<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let died = || Err("it is dead".to_owned());
        let strikes = {
            let mut scene = lock(&self.scene);
            if scene.dead {
                return died();
            }
            scene.strikes()
        };
        match strikes {
            None => work(),
            Some(true) => died(),
            Some(false) => work().and_then(|_| died()),
        }
    }
}

impl Authority for Watched {
    fn roots(&self) -> Arc<Roots> {
        self.inner.roots()
    }

    fn rotate(&self, step: Step) -> Result<(), String> {
        self.mortal(|| {
            lock(&self.scene).judge_step(step, &self.inner.roots(), &self.inner.issued());
            self.inner.rotate(step)?;
            lock(&self.scene).took(step, &self.inner.roots());
            Ok(())
        })
    }

    fn refresh(&self) -> Result<bool, String> {
        self.inner.refresh()
    }

    fn seat(&self, dns: &[String], addresses: &[IpAddr]) -> Result<Seat, String> {
        self.mortal(|| self.inner.seat(dns, addresses))
    }

    fn create_token(&self, order: &TokenOrder) -> Result<String, String> {
        self.inner.create_token(order)
    }

    fn issued(&self) -> Vec<Issued> {
        self.inner.issued()
    }

    fn roots_of_leaves(&self) -> BTreeMap<String, String> {
        self.inner.roots_of_leaves()
    }

    fn listeners(&self) -> usize {
        self.inner.listeners()
    }

    fn audit(&self, query: &AuditQuery, rows_max: usize) -> Result<Vec<Issuance>, String> {
        self.inner.audit(query, rows_max)
    }

    fn refusals(&self, query: &AuditQuery) -> Vec<Refused> {
        self.inner.refusals(query)
    }

    fn counts(&self) -> Done {
        self.inner.counts()
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }

    fn follow(&self, mesh: &Mesh) {
        self.inner.follow(mesh);
    }
}
