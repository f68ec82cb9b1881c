//! Endpoints at one moment, arranged so that a pick need not look at health, place or weight.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use super::{Algorithm, Balance, ClusterPolicy, Endpoint, EndpointLive, Health, Locality, Prefer, SessionToken};
use crate::Moment;
use crate::spread::{self, Draws, Maglev, Ring, Turns};

/// Tiers by distance: the same zone, the same region, everywhere else.
pub(crate) const TIERS_MAX: usize = 3;

/// Endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Those that may be picked, tier by tier.
    pub ready: Vec<Arc<Endpoint>>,
    /// Known but not to be picked (draining where others are healthy, unhealthy, thrown out).
    pub other: Vec<Arc<Endpoint>>,
    /// Those of `other` that one request at a time may try.
    pub(crate) trials: Vec<Arc<Endpoint>>,
    /// Of `ready`; none is empty.
    pub(crate) tiers: Vec<Tier>,
    /// Health is disregarded: too few are well.
    pub(crate) panics: bool,
    /// Where each of `ready` stands by its session token; empty where nobody asks for sessions.
    sessions: HashMap<SessionToken, usize>,
    /// Tokens by address.
    tokens: Arc<Tokens>,
}

/// Session tokens of endpoints by address.
pub(super) type Tokens = HashMap<SocketAddr, SessionToken>;

/// Endpoints that are equally far.
#[derive(Debug)]
pub(crate) struct Tier {
    /// How far: 0 is nearest.
    pub(crate) distance: usize,
    /// Which of [`EndpointSet::ready`].
    pub(crate) place: Range<usize>,
    /// Its share, 0 to 1.
    pub(crate) share: f64,
    /// The sum of the shares up to it, of 2^32.
    pub(crate) upto: u64,
    /// Weights now, in any unit; empty where all are equal.
    pub(crate) weights: Vec<u64>,
    pub(crate) spread: Spread,
}

/// How requests spread over a tier.
#[derive(Debug)]
pub(crate) enum Spread {
    LeastRequest(Draws),
    PeakEwma(Draws),
    Random(Draws),
    RoundRobin(Turns),
    RingHash(Ring),
    Maglev(Maglev),
}

/// What else an arrangement says.
pub(super) struct Arranged {
    pub(super) set: EndpointSet,
    /// When time alone changes it.
    pub(super) due: Option<Moment>,
}

impl EndpointSet {
    /// A set of endpoints to pick from by least request, wherever they are, and of those that are only known.
    pub fn new(ready: Vec<Arc<Endpoint>>, other: Vec<Arc<Endpoint>>) -> Self {
        let mut set = Self { ready, other, ..Self::default() };
        let counts = [(set.ready.len(), set.ready.len()), (0, 0), (0, 0)];
        set.tiers = tiers(&set.ready, &Balance::default(), counts, |_| 0, Moment::default());
        set
    }

    /// Arranges all endpoints of a cluster.
    ///
    /// Who may be picked: those that the control plane calls healthy and that are neither thrown out nor failing their checks. Where too
    /// few of those that are not draining are, all of these. Where none is, but only because of what we found out ourselves, those that
    /// the control plane calls healthy: worse than well is better than nothing. Where it calls none so, those that drain: they serve until they
    /// have gone, as endpoints of Kubernetes that terminate do (KEP 1669).
    pub(super) fn arranged(all: &[Arc<Endpoint>], tokens: &Arc<Tokens>, policy: &ClusterPolicy, home: &Locality, now: Moment) -> Arranged {
        let balance = &policy.balance;
        let verdicts: Vec<Verdict> = all.iter().map(|endpoint| Verdict::of(endpoint, policy)).collect();
        let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| wanted(verdict)).count();
        let (well, alive, healthy) = (count(|verdict| verdict.well), count(|verdict| verdict.alive), count(|verdict| verdict.healthy));
        let panics = (well as f64) * 100.0 < balance.panic_below_percent * alive as f64;
        let picked = |verdict: &Verdict| match (panics, well) {
            (true, _) => verdict.alive,
            (false, 0) if healthy == 0 => !verdict.alive,
            (false, 0) => verdict.healthy,
            (false, _) => verdict.well,
        };
        let distance = |endpoint: &Endpoint| distance(balance.prefer, home, &endpoint.locality);
        let mut counts = [(0, 0); TIERS_MAX];
        let mut set = Self { panics, tokens: Arc::clone(tokens), ..Self::default() };
        for (endpoint, verdict) in all.iter().zip(&verdicts) {
            let picked = picked(verdict);
            if verdict.alive || picked {
                let (ready, all) = &mut counts[distance(endpoint)];
                (*ready, *all) = (*ready + usize::from(picked), *all + 1);
            }
            let to = if picked { &mut set.ready } else { &mut set.other };
            to.push(Arc::clone(endpoint));
            if verdict.half_open && !picked {
                set.trials.push(Arc::clone(endpoint));
            }
        }
        set.ready.sort_by_key(|endpoint| distance(endpoint));
        set.tiers = tiers(&set.ready, balance, counts, distance, now);
        let places = set.ready.iter().enumerate();
        set.sessions = places.filter_map(|(place, endpoint)| Some((*tokens.get(&endpoint.address)?, place))).collect();
        let warm = balance.slow_start.into_iter().flat_map(|window| {
            // Who was never seen by a clock is to be seen at once.
            let step = move |live: &EndpointLive| match live.ready_since() {
                Some(since) => spread::next_step(since, window, now),
                None => Some(Moment::default()),
            };
            set.ready.iter().filter_map(move |endpoint| step(&endpoint.live))
        });
        let due = verdicts.iter().filter_map(|verdict| verdict.until).chain(warm).min();
        Arranged { set, due }
    }

    /// The endpoint of a session, if it may be picked still.
    pub fn of_session(&self, token: &SessionToken) -> Option<&Arc<Endpoint>> {
        self.ready.get(*self.sessions.get(token)?)
    }

    /// The session token of an endpoint; `None` where the cluster keeps no sessions or the mesh has no key for them.
    pub fn session_of(&self, endpoint: &Endpoint) -> Option<SessionToken> {
        self.tokens.get(&endpoint.address).copied()
    }

    /// How far each of `ready` is: 0 is the nearest tier, in their order.
    pub fn distances(&self) -> impl Iterator<Item = usize> {
        self.tiers.iter().flat_map(|tier| std::iter::repeat_n(tier.distance, tier.place.len()))
    }

    /// Whether health is disregarded because too few endpoints are well.
    pub fn panics(&self) -> bool {
        self.panics
    }
}

/// What is held of one endpoint.
struct Verdict {
    /// Neither draining nor anything that says it is going.
    alive: bool,
    /// The control plane says so.
    healthy: bool,
    /// And so do we.
    well: bool,
    half_open: bool,
    /// When an ejection ends.
    until: Option<Moment>,
}

impl Verdict {
    fn of(endpoint: &Endpoint, policy: &ClusterPolicy) -> Self {
        let standing = endpoint.live.standing();
        let judged = policy.outlier.is_some();
        let healthy = endpoint.health == Health::Healthy;
        let failing = policy.check.is_some() && standing.check.failing();
        Self {
            alive: endpoint.health != Health::Draining,
            healthy,
            well: healthy && !failing && !(judged && standing.out()),
            half_open: healthy && !failing && judged && standing.half_open(),
            until: standing.until().filter(|_| judged && healthy),
        }
    }
}

fn distance(prefer: Prefer, home: &Locality, there: &Locality) -> usize {
    // Where the proxy itself is nobody knows, nothing is near.
    let same = |a: &str, b: &str| !a.is_empty() && a == b;
    let region = same(&home.region, &there.region);
    match prefer {
        Prefer::Anywhere => 0,
        // Zones are named within their region, which not everybody has.
        Prefer::Zone if home.region == there.region && same(&home.zone, &there.zone) => 0,
        Prefer::Zone | Prefer::Region if region => usize::from(prefer == Prefer::Zone),
        Prefer::Zone | Prefer::Region => TIERS_MAX - 1,
    }
}

/// Tiers of endpoints that are sorted by distance; `counts` are (ready, alive) by distance.
fn tiers(
    ready: &[Arc<Endpoint>],
    balance: &Balance,
    counts: [(usize, usize); TIERS_MAX],
    distance: impl Fn(&Endpoint) -> usize,
    now: Moment,
) -> Vec<Tier> {
    let shares = spread::shares(&counts, balance.failover_below_percent);
    let (mut tiers, mut begin, mut upto) = (Vec::new(), 0, 0.0);
    while let Some(first) = ready.get(begin) {
        let distance_of_tier = distance(first);
        let length = ready.iter().skip(begin).take_while(|endpoint| distance(endpoint) == distance_of_tier).count();
        let place = begin..begin + length;
        begin = place.end;
        let share = shares.get(distance_of_tier).copied().unwrap_or_default();
        upto += share;
        let members = ready.get(place.clone()).unwrap_or_default();
        let (weights, spread) = spread_over(members, balance, now);
        tiers.push(Tier { distance: distance_of_tier, place, share, upto: (upto * (1_u64 << 32) as f64) as u64, weights, spread });
    }
    // Whatever was rounded, the last takes the rest.
    if let Some(last) = tiers.iter_mut().rev().find(|tier| tier.share > 0.0) {
        last.upto = 1 << 32;
    }
    tiers
}

fn spread_over(members: &[Arc<Endpoint>], balance: &Balance, now: Moment) -> (Vec<u64>, Spread) {
    let warmth = |endpoint: &Endpoint| match balance.slow_start {
        Some(window) => spread::warmth(endpoint.live.ready_since(), window, now),
        None => 1,
    };
    let mut weights: Vec<u64> = members.iter().map(|endpoint| u64::from(endpoint.weight.max(1)) * warmth(endpoint)).collect();
    let keys = || members.iter().map(|endpoint| spread::key(endpoint.address)).collect::<Vec<_>>();
    if !balance.algorithm.hashes() && weights.windows(2).all(|pair| pair[0] == pair[1]) {
        weights.fill(1);
    }
    let spread = match balance.algorithm {
        Algorithm::LeastRequest => Spread::LeastRequest(Draws::new(&weights)),
        Algorithm::PeakEwma => Spread::PeakEwma(Draws::new(&weights)),
        Algorithm::Random => Spread::Random(Draws::new(&weights)),
        Algorithm::RoundRobin => Spread::RoundRobin(Turns::new(&weights)),
        Algorithm::RingHash => Spread::RingHash(Ring::new(&keys(), &weights)),
        Algorithm::Maglev => Spread::Maglev(Maglev::new(&keys(), &weights)),
    };
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        weights = Vec::new();
    }
    (weights, spread)
}
