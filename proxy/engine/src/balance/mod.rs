//! Which endpoint takes the next request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Moment;
use crate::model::{Cluster, Endpoint, EndpointSet, Spread, Tier};
use crate::spread::{Draws, PeakEwma, mix};

/// Beyond this many consecutive connect failures an endpoint is probed no more seldom.
const PROBE_EXPONENT_MAX: u32 = 10;

/// What a pick goes by.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'t> {
    /// Uniform over all of `u64`.
    pub draw: u64,
    /// Of the request, for clusters balanced by hash; without it they draw.
    pub hash: Option<u64>,
    /// Endpoints tried in vain: avoided while there is another.
    pub tried: &'t [SocketAddr],
    /// The time.
    pub now: Moment,
}

/// The endpoint of `set`, the cluster's, for the next request; `None` only where none is ready.
///
/// An endpoint that was thrown out and whose time is over gets one request at a time until one succeeds: this one, if none is under way.
/// Else a tier is drawn by its share, and in it an endpoint by the cluster's algorithm. Endpoints in `tried` are avoided while there is
/// another, and so are those whose last connects failed; but one request in 2^(failures + 2) (1,024 at most) may still go there, because
/// only a connect can show that they are back. Who is avoided is passed over in the order of the list, for hashes in that of the ring.
pub fn pick<'a>(cluster: &Cluster, set: &'a EndpointSet, choice: &Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    cluster.endpoints.passed(choice.now);
    if !set.trials.is_empty()
        && let Some(endpoint) = trial(set, choice)
    {
        return Some(endpoint);
    }
    let tier = match set.tiers.as_slice() {
        [] => return None,
        [only] => only,
        [first, ..] => drawn(&set.tiers, choice).unwrap_or(first),
    };
    let members = set.ready.get(tier.place.clone())?;
    if let [only] = members
        && set.tiers.len() == 1
    {
        return Some(only);
    }
    match &tier.spread {
        Spread::LeastRequest(draws) => of_two(set, tier, members, draws, choice, less_loaded),
        Spread::PeakEwma(draws) => of_two(set, tier, members, draws, choice, sooner_free),
        Spread::Random(draws) => suitable(set, members, draws.one(choice.draw), choice),
        Spread::RoundRobin(turns) => {
            let turn = turn(cluster.live.turns.get(tier.distance)?, choice.draw);
            suitable(set, members, turns.at(turn), choice)
        }
        Spread::RingHash(ring) => in_order(set, members, ring.from(key(choice)), choice),
        Spread::Maglev(maglev) => in_order(set, members, maglev.from(key(choice)), choice),
    }
}

/// A half-open endpoint that no request is trying.
#[cold]
fn trial<'a>(set: &'a EndpointSet, choice: &Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    let mut free = set.trials.iter().filter(|endpoint| !choice.tried.contains(&endpoint.address));
    free.find(|endpoint| endpoint.live.standing().begin_trial(choice.now))
}

/// A tier by its share; by the hash where there is one, so that a client's tier does not change while shares do not.
fn drawn<'a>(tiers: &'a [Tier], choice: &Choice<'_>) -> Option<&'a Tier> {
    // Salted: the draw itself chooses within the tier.
    let point = mix(choice.hash.unwrap_or(choice.draw) ^ 0x7469_6572) >> 32;
    tiers.iter().find(|tier| point < tier.upto)
}

/// What a hash table is asked for: without a hash any place is as good.
fn key(choice: &Choice<'_>) -> u64 {
    choice.hash.unwrap_or(choice.draw)
}

/// The number of this turn. The first is drawn, so that proxies that start together do not begin with the same endpoint.
fn turn(next: &AtomicU64, draw: u64) -> u64 {
    if next.load(Ordering::Relaxed) == 0 {
        let _ = next.compare_exchange(0, (draw >> 33) | 1, Ordering::Relaxed, Ordering::Relaxed);
    }
    next.fetch_add(1, Ordering::Relaxed)
}

/// An endpoint and its weight now.
type Weighed<'e> = (&'e Endpoint, u64);

/// The better of two that are drawn by weight, the first on a tie.
fn of_two<'a>(
    set: &'a EndpointSet,
    tier: &Tier,
    members: &'a [Arc<Endpoint>],
    draws: &Draws,
    choice: &Choice<'_>,
    other_is_better: impl Fn(Weighed<'_>, Weighed<'_>, Moment) -> bool,
) -> Option<&'a Arc<Endpoint>> {
    let (first, second) = if members.len() > 1 { draws.two(choice.draw) } else { (0, 0) };
    let (a, b) = (members.get(first)?, members.get(second)?);
    match (eligible(a, choice), eligible(b, choice)) {
        (true, true) => {
            let weight = |index: usize| tier.weights.get(index).copied().unwrap_or(1);
            Some(if other_is_better((a, weight(first)), (b, weight(second)), choice.now) { b } else { a })
        }
        (true, false) => Some(a),
        (false, true) => Some(b),
        (false, false) => elsewhere(set, members, first, choice),
    }
}

/// Fewer requests in flight per weight, compared without a division.
fn less_loaded(own: Weighed<'_>, other: Weighed<'_>, _: Moment) -> bool {
    let load = |of: Weighed<'_>, weight: u64| u128::from(of.0.live.in_flight.load(Ordering::Relaxed)) * u128::from(weight);
    load(other, own.1) < load(own, other.1)
}

fn sooner_free(own: Weighed<'_>, other: Weighed<'_>, now: Moment) -> bool {
    let known = |(of, _): Weighed<'_>, weight: u64| (of.live.latency.at(now), of.live.in_flight.load(Ordering::Relaxed), weight);
    PeakEwma::other_is_better(known(own, other.1), known(other, own.1))
}

/// That one, or if it is out the next good one.
fn suitable<'a>(set: &'a EndpointSet, members: &'a [Arc<Endpoint>], index: usize, choice: &Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    let endpoint = members.get(index)?;
    if eligible(endpoint, choice) { Some(endpoint) } else { elsewhere(set, members, index, choice) }
}

/// The first good one in a hash's own order.
fn in_order<'a>(
    set: &'a EndpointSet,
    members: &'a [Arc<Endpoint>],
    order: impl Iterator<Item = usize>,
    choice: &Choice<'_>,
) -> Option<&'a Arc<Endpoint>> {
    let mut order = order.peekable();
    let first = *order.peek()?;
    let mut found = order.filter_map(|index| members.get(index));
    found.find(|endpoint| eligible(endpoint, choice)).or_else(|| elsewhere(set, members, first, choice))
}

fn eligible(endpoint: &Endpoint, choice: &Choice<'_>) -> bool {
    let failures = endpoint.live.connect_failures.load(Ordering::Relaxed);
    (failures == 0 || probes(failures, choice.draw)) && !choice.tried.contains(&endpoint.address)
}

/// Whether this draw is one of the few that look whether a failing endpoint is back.
fn probes(failures: u32, draw: u64) -> bool {
    let bits = failures.saturating_add(2).min(PROBE_EXPONENT_MAX);
    // The middle of the draw: its ends already chose the candidates.
    (draw >> 16) & ((1 << bits) - 1) == 0
}

/// Who was chosen is out: the next good one of its tier, of any tier, the next that was not tried, or after all the one chosen.
fn elsewhere<'a>(set: &'a EndpointSet, members: &'a [Arc<Endpoint>], start: usize, choice: &Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    let round = || {
        let (before, after) = members.split_at(start.min(members.len()));
        after.iter().chain(before).chain(&set.ready)
    };
    let untried = |endpoint: &&Arc<Endpoint>| !choice.tried.contains(&endpoint.address);
    round().find(|endpoint| eligible(endpoint, choice)).or_else(|| round().find(untried)).or_else(|| members.get(start))
}

/// The chance of each ready endpoint to be picked when all are idle and none fails: for `explain`. Sums to 1. Without a hash, that of one of
/// which nothing is known.
pub fn chances(set: &EndpointSet, hash: Option<u64>) -> Vec<f64> {
    let choice = hash.map(|hash| Choice { draw: hash, hash: Some(hash), tried: &[], now: Moment::default() });
    let drawn = choice.and_then(|choice| drawn(&set.tiers, &choice).or(set.tiers.first()));
    let share = |tier: &Tier| match drawn {
        Some(drawn) => f64::from(u8::from(std::ptr::eq(drawn, tier))),
        None => tier.share,
    };
    let of = |tier: &Tier| within(tier, hash).into_iter().map(move |chance| chance * share(tier)).collect::<Vec<_>>();
    set.tiers.iter().flat_map(of).collect()
}

fn within(tier: &Tier, hash: Option<u64>) -> Vec<f64> {
    let certain = |mut order: Box<dyn Iterator<Item = usize> + '_>| {
        let first = order.next();
        (0..tier.place.len()).map(|index| f64::from(u8::from(Some(index) == first))).collect()
    };
    match (&tier.spread, hash) {
        (Spread::RingHash(ring), Some(hash)) => return certain(Box::new(ring.from(hash))),
        (Spread::Maglev(maglev), Some(hash)) => return certain(Box::new(maglev.from(hash))),
        _ => {}
    }
    match &tier.spread {
        Spread::LeastRequest(_) | Spread::PeakEwma(_) | Spread::Random(_) => {
            let weight = |index: usize| tier.weights.get(index).map_or(1.0, |weight| *weight as f64);
            let total: f64 = (0..tier.place.len()).map(weight).sum();
            (0..tier.place.len()).map(|index| weight(index) / total).collect()
        }
        Spread::RoundRobin(turns) => turns.shares(),
        Spread::RingHash(ring) => ring.shares(),
        Spread::Maglev(maglev) => maglev.shares(),
    }
}

#[cfg(test)]
mod tests;
