//! Which endpoint takes the next request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::model::{Endpoint, EndpointSet};

/// Beyond this many consecutive connect failures an endpoint is probed no more seldom.
const PROBE_EXPONENT_MAX: u32 = 10;

/// Weighted least-request over two random endpoints. Two, not all: the scan would touch every cache line of a big cluster.
///
/// `draw` is uniform over all of `u64`. Candidates are drawn in proportion to their weights, the one with fewer requests in
/// flight per weight wins, the first on a tie: so idle endpoints share by weight and busy ones by load. Endpoints in `tried`
/// are avoided while there is another, and so are those whose last connects failed; but one request in 2^(failures + 2) (1,024
/// at most) may still go there, because only a connect can show that they are back.
pub fn pick<'a>(set: &'a EndpointSet, draw: u64, tried: &[SocketAddr]) -> Option<&'a Arc<Endpoint>> {
    let ready = set.ready.as_slice();
    let first = match ready.len() {
        0 => return None,
        1 => return Some(&ready[0]),
        _ => candidates(set, draw),
    };
    let (a, b) = (&ready[first.0], &ready[first.1]);
    match (eligible(a, draw, tried), eligible(b, draw, tried)) {
        (true, true) => Some(if load(b, a) < load(a, b) { b } else { a }),
        (true, false) => Some(a),
        (false, true) => Some(b),
        (false, false) => Some(elsewhere(ready, first.0, draw, tried)),
    }
}

/// Two indices of `ready`, which holds at least two; they differ where weights are equal.
fn candidates(set: &EndpointSet, draw: u64) -> (usize, usize) {
    let (high, low) = (draw >> 32, draw & 0xffff_ffff);
    let Some(total) = set.weight_sums.last() else {
        let count = set.ready.len();
        let a = scale(high, count as u64) as usize;
        let step = 1 + scale(low, count as u64 - 1) as usize;
        return (a, (a + step) % count);
    };
    let at = |part: u64| {
        let point = scale(part, *total);
        set.weight_sums.partition_point(|sum| *sum <= point).min(set.ready.len() - 1)
    };
    (at(high), at(low))
}

/// Maps 32 uniform bits to `0..bound` without a division.
fn scale(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 32) as u64
}

/// Requests in flight of `of`, scaled by the other's weight so that two loads compare without a division.
fn load(of: &Endpoint, other: &Endpoint) -> u64 {
    u64::from(of.live.in_flight.load(Ordering::Relaxed)) * u64::from(other.weight.max(1))
}

fn eligible(endpoint: &Endpoint, draw: u64, tried: &[SocketAddr]) -> bool {
    let failures = endpoint.live.connect_failures.load(Ordering::Relaxed);
    (failures == 0 || probes(failures, draw)) && !tried.contains(&endpoint.address)
}

/// Whether this draw is one of the few that look whether a failing endpoint is back.
fn probes(failures: u32, draw: u64) -> bool {
    let bits = failures.saturating_add(2).min(PROBE_EXPONENT_MAX);
    // The middle of the draw: its ends already chose the candidates.
    (draw >> 16) & ((1 << bits) - 1) == 0
}

/// Both candidates are out: the next good one, else the next that was not tried, else the first candidate.
fn elsewhere<'a>(ready: &'a [Arc<Endpoint>], start: usize, draw: u64, tried: &[SocketAddr]) -> &'a Arc<Endpoint> {
    let round = || ready[start..].iter().chain(&ready[..start]);
    round()
        .find(|endpoint| eligible(endpoint, draw, tried))
        .or_else(|| round().find(|endpoint| !tried.contains(&endpoint.address)))
        .unwrap_or(&ready[start])
}

/// The chance of each ready endpoint to be picked when all are idle and none fails: for `explain`. Sums to 1.
pub fn chances(set: &EndpointSet) -> Vec<f64> {
    let total: f64 = set.ready.iter().map(|endpoint| f64::from(endpoint.weight.max(1))).sum();
    set.ready.iter().map(|endpoint| f64::from(endpoint.weight.max(1)) / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointLive, Health};

    fn set(weights: &[u32]) -> EndpointSet {
        let endpoint = |(index, weight): (usize, &u32)| {
            Arc::new(Endpoint {
                address: SocketAddr::from(([10, 0, 0, index as u8], 80)),
                weight: *weight,
                health: Health::Healthy,
                identity: None,
                namespace: "shop".into(),
                workload: "w".into(),
                instance: "".into(),
                workload_id: 1,
                live: Arc::new(EndpointLive::default()),
            })
        };
        EndpointSet::new(weights.iter().enumerate().map(endpoint).collect(), Vec::new())
    }

    /// A fixed sequence of well-mixed draws (SplitMix64).
    fn draws(count: u64) -> impl Iterator<Item = u64> {
        (1..=count).map(|n| {
            let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    fn shares(set: &EndpointSet, tried: &[SocketAddr]) -> Vec<f64> {
        let mut counts = vec![0_u32; set.ready.len()];
        for draw in draws(20_000) {
            let chosen = pick(set, draw, tried).unwrap();
            counts[set.ready.iter().position(|e| Arc::ptr_eq(e, chosen)).unwrap()] += 1;
        }
        counts.iter().map(|count| f64::from(*count) / 20_000.0).collect()
    }

    #[test]
    fn idle_endpoints_share_by_weight() {
        // Aim: weights hold with equal and unequal weights, and `chances` says the same.
        for weights in [&[1, 1, 1, 1][..], &[1, 3], &[5, 1, 4], &[u32::MAX, u32::MAX]] {
            let set = set(weights);
            for (share, chance) in shares(&set, &[]).iter().zip(chances(&set)) {
                assert!((share - chance).abs() < 0.02, "{weights:?}: {share} against {chance}");
            }
        }
    }

    #[test]
    fn the_busier_of_two_is_passed_over() {
        // Aim: of two endpoints the one with fewer requests in flight gets all.
        let set = set(&[1, 1]);
        let _guard = set.ready[0].live.enter();
        assert_eq!(shares(&set, &[]), [0.0, 1.0]);
    }

    #[test]
    fn tried_and_failing_endpoints_are_avoided_while_there_is_another() {
        // Aim: never an endpoint already tried, seldom one that refuses connects, and always some endpoint.
        let set = set(&[1, 1, 1]);
        let address = |n: usize| set.ready[n].address;
        assert_eq!(shares(&set, &[address(0), address(1)]), [0.0, 0.0, 1.0]);
        for n in 0..3 {
            set.ready[0].live.connect_failed();
            let share = shares(&set, &[])[0];
            assert!(share < 0.1 && share > 0.0, "after {n} failures: {share}");
        }
        assert_eq!(shares(&set, &[address(1), address(2)])[0], 1.0, "the failing one is the only one left");
        assert!(pick(&set, 7, &[address(0), address(1), address(2)]).is_some());
        assert!(pick(&EndpointSet::default(), 7, &[]).is_none());
    }
}
