//! Which endpoint takes the next request.

mod avoid;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Moment;
use crate::model::{Cluster, Endpoint, EndpointSet, Spread, Tier};
use crate::spread::{Draws, PeakEwma, mix, scale};
use avoid::{Fitness, Search};

/// Of half-open endpoints a pick looks at no more than this many for one that no request is trying.
const TRIALS_SEEN_MAX: usize = 16;
/// Steps that a hash goes along its own order past who is avoided; then the place that follows is looked for by the hash of the hash.
const HASH_STEPS_MAX: usize = 64;

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
    /// Whether it may be the one that tries a half-open endpoint, unless it was tried in vain before: not a copy of a request, of which nobody
    /// learns how it fared.
    pub trials: bool,
}

/// The endpoint of `set`, the cluster's, for the next request; `None` only where none is ready.
///
/// An endpoint that was thrown out and whose time is over gets one request at a time until one succeeds: this one, if none is under way and
/// it was not tried elsewhere. The trial ends with the request ([`crate::model::InFlight`]), or when its outcome is told. Else a tier is drawn by its share, and in it an
/// endpoint by the cluster's algorithm. Endpoints in `tried` are avoided while there is another, and so are those whose last connects
/// failed; but now and then a first attempt may still go there, because only a connect can show that they are back. Instead of who is avoided
/// another is drawn, of those that remain as they would be, so that no neighbour gets all; hashes go on in their own order.
pub fn pick<'a>(cluster: &Cluster, set: &'a EndpointSet, choice: &Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    cluster.endpoints.passed(choice.now);
    if !set.trials.is_empty()
        && choice.trials
        && choice.tried.is_empty()
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
    let search = Search { cluster, set, members, choice };
    match &tier.spread {
        Spread::LeastRequest(draws) => of_two(&search, tier, draws, less_loaded),
        Spread::PeakEwma(draws) => of_two(&search, tier, draws, sooner_free),
        Spread::Random(draws) => search.suitable(draws.one(choice.draw), |draw| draws.one(draw)),
        Spread::RoundRobin(turns) => {
            let turn = turn(cluster.live.turns.get(tier.distance)?, choice.draw);
            search.suitable(turns.at(turn), |draw| turns.at(draw))
        }
        Spread::RingHash(ring) => in_order(&search, |hash| ring.from(hash)),
        Spread::Maglev(maglev) => in_order(&search, |hash| maglev.from(hash)),
    }
}

/// A half-open endpoint that no request is trying.
#[cold]
fn trial<'a>(set: &'a EndpointSet, choice: &Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    // From any of them on, so that none has to wait for all before it.
    let start = scale(choice.draw >> 32, set.trials.len() as u64) as usize;
    let (before, after) = set.trials.split_at(start.min(set.trials.len()));
    let mut seen = after.iter().chain(before).take(TRIALS_SEEN_MAX);
    seen.find(|endpoint| !choice.tried.contains(&endpoint.address) && endpoint.live.trials.take(choice.now))
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
    search: &Search<'a, '_>,
    tier: &Tier,
    draws: &Draws,
    other_is_better: impl Fn(Weighed<'_>, Weighed<'_>, Moment) -> bool,
) -> Option<&'a Arc<Endpoint>> {
    let Search { members, choice, .. } = search;
    let (first, second) = if members.len() > 1 { draws.two(choice.draw) } else { (0, 0) };
    let (a, b) = (members.get(first)?, members.get(second)?);
    let fitness = search.fitness(a);
    if fitness == Fitness::Probed {
        return Some(a);
    }
    match (fitness, search.fitness(b)) {
        (Fitness::Good, Fitness::Good) => {
            let weight = |index: usize| tier.weights.get(index).copied().unwrap_or(1);
            Some(if other_is_better((a, weight(first)), (b, weight(second)), choice.now) { b } else { a })
        }
        (_, Fitness::Probed) | (Fitness::Avoided, Fitness::Good) => Some(b),
        (_, Fitness::Avoided) if fitness == Fitness::Good => Some(a),
        _ => search.elsewhere(first, choice.draw, |draw| draws.one(draw)),
    }
}

/// Fewer requests in flight per weight, compared without a division.
fn less_loaded(own: Weighed<'_>, other: Weighed<'_>, _: Moment) -> bool {
    let load = |of: Weighed<'_>, weight: u64| u128::from(of.0.live.in_flight.load(Ordering::Relaxed)) * u128::from(weight);
    load(other, own.1) < load(own, other.1)
}

/// Less time until the next request is answered, as far as one can know.
fn sooner_free(own: Weighed<'_>, other: Weighed<'_>, now: Moment) -> bool {
    let known = |(of, weight): Weighed<'_>| (of.live.latency.at(now), of.live.in_flight.load(Ordering::Relaxed), weight);
    PeakEwma::other_is_better(known(own), known(other))
}

/// The first good one in a hash's own order, of the first few of it.
fn in_order<'a, I: Iterator<Item = usize>>(search: &Search<'a, '_>, order: impl Fn(u64) -> I) -> Option<&'a Arc<Endpoint>> {
    let key = key(search.choice);
    let mut order_of_key = order(key).take(HASH_STEPS_MAX).peekable();
    let first = *order_of_key.peek()?;
    let mut found = order_of_key.filter_map(|index| search.members.get(index));
    // Whatever is drawn further on follows from the hash, so that it stays where it is.
    let again = |hash: u64| order(hash).next().unwrap_or(first);
    found.find(|endpoint| search.fitness(endpoint) != Fitness::Avoided).or_else(|| search.elsewhere(first, key, again))
}

/// The chance of each ready endpoint to be picked when all are idle and none fails: for `explain`. Sums to 1. Without a hash, that of one of
/// which nothing is known.
pub fn chances(set: &EndpointSet, hash: Option<u64>) -> Vec<f64> {
    let choice = hash.map(|hash| Choice { draw: hash, hash: Some(hash), tried: &[], now: Moment::default(), trials: false });
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
