//! Holds the current endpoints of a cluster, and rebuilds their set when something about them changes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::set::{Arranged, Tokens};
use super::{Algorithm, ClusterPolicy, Endpoint, EndpointFacts, EndpointLive, EndpointSet, Health, Locality, session_token};
use crate::Moment;
use crate::health::{ActiveCheck, Ejection, Outcome, Outlier, Period, Trial, Turned, latecomers, underachievers};
use crate::spread;

/// Of endpoints that left at most so many are known again when they come back; beyond it those that left first are forgotten.
const LEFT_MAX: usize = 1024;
/// What was found out about an endpoint that left is known for so long, and an ejection to its end: addresses are used again.
const LEFT_FOR: Duration = Duration::from_secs(60);

/// The current [`EndpointSet`] of a cluster. Reading is one load; changes happen one at a time behind a lock that no reader meets.
#[derive(Debug)]
pub struct EndpointCell {
    set: ArcSwap<EndpointSet>,
    /// When time alone changes the set, in nanoseconds of [`Moment`]; `u64::MAX`: never.
    due: AtomicU64,
    /// When an interval of outlier detection is over; 0: none has begun.
    interval_ends: AtomicU64,
    members: Mutex<Members>,
}

/// All that the set follows from.
#[derive(Debug, Default)]
struct Members {
    /// As the control plane listed them.
    all: Vec<Arc<Endpoint>>,
    left: HashMap<SocketAddr, Departed>,
    policy: Arc<ClusterPolicy>,
    home: Home,
    /// Session tokens, where the policy asks for sessions.
    tokens: Arc<Tokens>,
    /// Stamp of the list; 0 for none.
    content: u64,
    /// The latest that was told.
    now: Moment,
}

/// What is known of an endpoint that left.
#[derive(Debug)]
struct Departed {
    live: Arc<EndpointLive>,
    /// When it left, by the latest that was told then: in a quiet cluster that is long ago.
    left: Moment,
    /// When a clock first found it gone: what is held against it counts from then.
    since: Option<Moment>,
}

/// What a set follows from beside the cluster: the proxy's own facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Home {
    /// Where the proxy runs.
    pub(crate) locality: Locality,
    /// What session tokens are made with; empty: there are none.
    pub(crate) session_key: Vec<u8>,
}

/// Endpoints were thrown out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// Why.
    pub cause: Ejection,
    /// How many at once: an interval may be the end of several.
    pub endpoints: u32,
    /// For how long, the longest of them.
    pub lasts: Duration,
}

impl Default for EndpointCell {
    fn default() -> Self {
        Self::holding(EndpointSet::default())
    }
}

impl EndpointCell {
    /// A cell that holds a ready-made set.
    pub fn holding(set: EndpointSet) -> Self {
        let members = Members { all: set.ready.iter().chain(&set.other).cloned().collect(), ..Members::default() };
        let (due, interval_ends) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        Self { set: ArcSwap::from_pointee(set), due, interval_ends, members: Mutex::new(members) }
    }

    /// The same, under a policy: what is found out of its endpoints is judged by that.
    #[must_use]
    pub fn under(self, policy: &Arc<ClusterPolicy>) -> Self {
        self.members().policy = Arc::clone(policy);
        self
    }

    /// Puts a ready-made set in place of what it holds.
    pub fn replace(&self, set: EndpointSet) {
        let mut members = self.members();
        members.all = set.ready.iter().chain(&set.other).cloned().collect();
        self.set.store(Arc::new(set));
    }

    /// The set now, for a moment.
    pub fn load(&self) -> Guard<Arc<EndpointSet>> {
        self.set.load()
    }

    /// The set now, to keep.
    pub fn load_full(&self) -> Arc<EndpointSet> {
        self.set.load_full()
    }

    /// Takes what the control plane says of the cluster of that name. `content` stamps the list of endpoints: the same stamp is the same
    /// list.
    pub(crate) fn feed(&self, name: &str, (content, listed): (u64, &[EndpointFacts]), policy: &Arc<ClusterPolicy>, home: &Home) {
        let mut members = self.members();
        let same_list = members.content == content;
        if same_list && *members.policy == **policy && members.home == *home {
            return;
        }
        if !same_list {
            members.take(content, listed);
        }
        members.policy = Arc::clone(policy);
        members.home = home.clone();
        members.name_sessions(name);
        self.arrange(&members);
    }

    /// Takes a policy alone: the endpoints are those that were resolved.
    pub(crate) fn govern(&self, name: &str, policy: &Arc<ClusterPolicy>, home: &Home) {
        let mut members = self.members();
        if *members.policy == **policy && members.home == *home {
            return;
        }
        members.policy = Arc::clone(policy);
        members.home = home.clone();
        members.name_sessions(name);
        self.arrange(&members);
    }

    /// Takes the endpoints alone: they are live at once.
    pub(crate) fn list(&self, name: &str, (content, listed): (u64, &[EndpointFacts])) {
        let mut members = self.members();
        members.take(content, listed);
        members.name_sessions(name);
        self.arrange(&members);
    }

    /// Lets time do its part: ejections end, new endpoints grow warm. Costs one load while it has nothing to do.
    pub(crate) fn passed(&self, now: Moment) {
        if now.nanos() >= self.due.load(Ordering::Relaxed) {
            self.wake(now);
        }
    }

    #[cold]
    fn wake(&self, now: Moment) {
        let mut members = self.members();
        if now.nanos() < self.due.load(Ordering::Relaxed) {
            return;
        }
        members.now = members.now.max(now);
        for endpoint in &members.all {
            endpoint.live.wake(now);
        }
        members.left.values_mut().for_each(|departed| {
            departed.live.wake(now);
            departed.since.get_or_insert(now);
        });
        members.left.retain(|_, departed| departed.matters(now));
        let ready = self.set.load();
        for endpoint in &ready.ready {
            let since = now.nanos().max(1);
            let _ = endpoint.live.ready_since.compare_exchange(0, since, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.arrange(&members);
    }

    /// See [`super::Cluster::told`].
    pub(super) fn told(&self, policy: &ClusterPolicy, endpoint: &Endpoint, outcome: Outcome, now: Moment) -> Option<Ejected> {
        let live = &endpoint.live;
        if policy.balance.algorithm == Algorithm::PeakEwma {
            match (outcome, outcome.good()) {
                (Outcome::Answered { took, .. }, Some(true)) => live.latency.took(took, now),
                (_, Some(false)) => live.latency.failed(now),
                _ => {}
            }
        }
        match outcome {
            Outcome::Answered { .. } => live.connected(),
            Outcome::ConnectFailed => live.probed_at.store(now.nanos(), Ordering::Relaxed),
            _ => {}
        }
        let outlier = policy.outlier.as_ref()?;
        let cause = live.tally.book(outlier, outcome);
        if live.out.load(Ordering::Relaxed) {
            return self.tried(outlier, live, outcome.good(), now);
        }
        if let Some(cause) = cause {
            return self.throw_out(outlier, live, cause, now);
        }
        if outlier.by_interval() && outcome != Outcome::Cancelled && now.nanos() >= self.interval_ends.load(Ordering::Relaxed) {
            return self.judge(outlier, now);
        }
        None
    }

    /// A request to an endpoint that is thrown out or half-open has ended.
    #[cold]
    fn tried(&self, outlier: &Outlier, live: &EndpointLive, good: Option<bool>, now: Moment) -> Option<Ejected> {
        let Some(good) = good else {
            live.trials.free();
            return None;
        };
        let mut members = self.members();
        members.now = members.now.max(now);
        let trial = live.standing().tried(good, outlier, now);
        match trial {
            Trial::Nothing => None,
            Trial::Back => {
                live.trials.shut();
                live.tally.clear();
                live.out.store(false, Ordering::Relaxed);
                self.arrange(&members);
                None
            }
            Trial::Ejected(cause, lasts) => {
                live.trials.shut();
                self.arrange(&members);
                Some(Ejected { cause, endpoints: 1, lasts })
            }
        }
    }

    #[cold]
    fn throw_out(&self, outlier: &Outlier, live: &Arc<EndpointLive>, cause: Ejection, now: Moment) -> Option<Ejected> {
        let mut members = self.members();
        members.now = members.now.max(now);
        let lasts = members.eject(outlier, live, cause, now)?;
        self.arrange(&members);
        Some(Ejected { cause, endpoints: 1, lasts })
    }

    /// An interval is over. Success rates go first; who is slow is looked at where nobody fails.
    #[cold]
    fn judge(&self, outlier: &Outlier, now: Moment) -> Option<Ejected> {
        let mut members = self.members();
        let ends = self.interval_ends.load(Ordering::Relaxed);
        if now.nanos() < ends {
            return None;
        }
        self.interval_ends.store(now.plus(outlier.interval).nanos(), Ordering::Relaxed);
        members.now = members.now.max(now);
        let judged: Vec<Arc<EndpointLive>> = members.candidates().map(|endpoint| Arc::clone(&endpoint.live)).collect();
        let periods: Vec<Period> = judged.iter().map(|live| live.tally.period()).collect();
        // What was counted before the first interval began is of no interval.
        if ends == 0 {
            return None;
        }
        let low = outlier.success_rate_min_percent.map(|percent| underachievers(&periods, percent)).unwrap_or_default();
        let slow = || outlier.latency_factor.map(|factor| latecomers(&periods, factor)).unwrap_or_default();
        let (cause, found) = if low.is_empty() { (Ejection::Latency, slow()) } else { (Ejection::SuccessRate, low) };
        let lasts: Vec<Duration> =
            found.into_iter().filter_map(|index| judged.get(index)).filter_map(|live| members.eject(outlier, live, cause, now)).collect();
        let longest = lasts.iter().max().copied()?;
        self.arrange(&members);
        Some(Ejected { cause, endpoints: u32::try_from(lasts.len()).unwrap_or(u32::MAX), lasts: longest })
    }

    pub(super) fn checks_due(&self, check: &ActiveCheck, now: Moment) -> Vec<Arc<Endpoint>> {
        let members = self.members();
        let due = |endpoint: &&Arc<Endpoint>| {
            let key = spread::key(endpoint.address);
            endpoint.health == Health::Healthy && endpoint.live.standing().check.take_due(check, key, now)
        };
        members.all.iter().filter(due).cloned().collect()
    }

    pub(super) fn next_check(&self) -> Option<Moment> {
        let members = self.members();
        let asked = members.all.iter().filter(|endpoint| endpoint.health == Health::Healthy);
        // Who was never thought of is due at once.
        asked.map(|endpoint| endpoint.live.standing().check.due().unwrap_or_default()).min()
    }

    pub(super) fn checked(&self, check: &ActiveCheck, endpoint: &Endpoint, good: bool, now: Moment) -> bool {
        let mut members = self.members();
        members.now = members.now.max(now);
        let turned = endpoint.live.standing().check.on(check, good) != Turned::Not;
        if turned {
            self.arrange(&members);
        }
        turned
    }

    /// Publishes the set that follows from the members.
    fn arrange(&self, members: &Members) {
        let Arranged { set, due } =
            EndpointSet::arranged(&members.all, &members.tokens, &members.policy, &members.home.locality, members.now);
        let left = members.left.values().filter_map(|departed| departed.due(members.now));
        self.due.store(left.chain(due).min().map_or(u64::MAX, Moment::nanos), Ordering::Relaxed);
        self.set.store(Arc::new(set));
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// The next list of endpoints; those that did not change stay the same `Arc`, and what is known follows the address.
    ///
    /// An endpoint that leaves and comes back goes on where it was while something is held against it, or a request is under way to it: a
    /// flap is no pardon. Any other is a new one.
    fn take(&mut self, content: u64, listed: &[EndpointFacts]) {
        self.content = content;
        let former: HashMap<SocketAddr, Arc<Endpoint>> = self.all.drain(..).map(|endpoint| (endpoint.address, endpoint)).collect();
        let now = self.now;
        let live = |facts: &EndpointFacts| {
            let former = former.get(&facts.address).map(|former| &former.live);
            let left = || self.left.get(&facts.address).filter(|departed| departed.matters(now)).map(|departed| &departed.live);
            former.or_else(left).cloned().unwrap_or_default()
        };
        let next = |facts: &EndpointFacts| match former.get(&facts.address) {
            Some(known) if facts.are_of(known) => Arc::clone(known),
            _ => Arc::new(facts.endpoint(live(facts))),
        };
        self.all = listed.iter().map(next).collect();
        let departs = |(address, endpoint): (SocketAddr, Arc<Endpoint>)| {
            (address, Departed { live: Arc::clone(&endpoint.live), left: now, since: None })
        };
        self.left.extend(former.into_iter().map(departs));
        for endpoint in &self.all {
            self.left.remove(&endpoint.address);
        }
        self.left.retain(|_, departed| departed.matters(now));
        if let Some(beyond) = self.left.len().checked_sub(LEFT_MAX).filter(|beyond| *beyond > 0) {
            let mut oldest: Vec<(Moment, SocketAddr)> = self.left.iter().map(|(address, departed)| (departed.left, *address)).collect();
            oldest.sort_unstable();
            for (_, address) in oldest.iter().take(beyond) {
                self.left.remove(address);
            }
        }
    }

    /// Makes the session tokens of all endpoints, where sessions are asked for.
    fn name_sessions(&mut self, cluster: &str) {
        let key = &self.home.session_key;
        let wanted = self.policy.sessions && !key.is_empty();
        let named = self.all.iter().filter(|_| wanted).map(|endpoint| endpoint.address);
        self.tokens = Arc::new(named.map(|address| (address, session_token(key, cluster, address))).collect());
    }

    /// Who is judged: healthy by the control plane's word and not out already.
    fn candidates(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.all.iter().filter(|endpoint| endpoint.health == Health::Healthy && !endpoint.live.out.load(Ordering::Relaxed))
    }

    /// Throws one out, if it is here and the bounds allow it: never the last one that may be picked, never more than the policy's share.
    fn eject(&self, outlier: &Outlier, live: &Arc<EndpointLive>, cause: Ejection, now: Moment) -> Option<Duration> {
        if !self.candidates().any(|endpoint| Arc::ptr_eq(&endpoint.live, live)) {
            return None;
        }
        let failing = |endpoint: &Endpoint| self.policy.check.is_some() && endpoint.live.standing().check.failing();
        let left = self.candidates().filter(|endpoint| !Arc::ptr_eq(&endpoint.live, live) && !failing(endpoint)).count();
        let healthy = self.all.iter().filter(|endpoint| endpoint.health == Health::Healthy).count();
        let out = healthy - self.candidates().count();
        if left == 0 || (out + 1) as f64 * 100.0 > outlier.max_ejected_percent * healthy as f64 {
            return None;
        }
        live.out.store(true, Ordering::Relaxed);
        live.tally.clear();
        Some(live.standing().eject(cause, outlier, now))
    }
}

impl Departed {
    /// Something is held against it that is to be known again if it comes back.
    fn is_held(&self) -> bool {
        let standing = self.live.standing();
        standing.out() || standing.check.failing()
    }

    /// Until when; `None`: no clock has found it gone yet.
    fn held_until(&self) -> Option<Moment> {
        self.since.map(|since| since.plus(LEFT_FOR).max(self.live.standing().until().unwrap_or_default()))
    }

    fn matters(&self, now: Moment) -> bool {
        let is_known = || self.is_held() && self.held_until().is_none_or(|until| until > now);
        self.live.in_flight.load(Ordering::Relaxed) > 0 || is_known()
    }

    /// When time next changes what is known of it: at once, where it is to be found gone.
    fn due(&self, now: Moment) -> Option<Moment> {
        if !self.is_held() {
            return None;
        }
        let Some(until) = self.held_until() else { return Some(Moment::default()) };
        self.live.standing().until().into_iter().chain([until]).filter(|due| *due > now).min()
    }
}
