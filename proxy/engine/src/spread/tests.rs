//! What each way of spreading promises, over many draws.

use std::net::SocketAddr;

use super::*;

const DRAWS: u64 = 100_000;

pub(crate) fn draws() -> impl Iterator<Item = u64> {
    (1..=DRAWS).map(|n| mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn keys(count: u8) -> Vec<u64> {
    (0..count).map(|n| key(SocketAddr::from(([10, 0, 0, n], 8080)))).collect()
}

fn measured(count: usize, choose: impl Fn(u64) -> usize) -> Vec<f64> {
    let mut counts = vec![0; count];
    draws().for_each(|draw| counts[choose(draw)] += 1);
    shares_of(&counts)
}

/// Pearson's statistic of so many draws against the promised shares, per degree of freedom: about 1 where the promise is kept.
fn misfit(measured: &[f64], promised: &[f64]) -> f64 {
    let terms = measured.iter().zip(promised).map(|(seen, wanted)| (seen - wanted).powi(2) / wanted * DRAWS as f64);
    terms.sum::<f64>() / (measured.len() as f64 - 1.0)
}

const UNEVEN: [&[u64]; 4] = [&[1, 1, 1, 1], &[1, 3], &[5, 1, 4, 90], &[4_294_967_295, 4_294_967_295, 1_000_000_000]];

#[test]
fn random_draws_follow_weights() {
    // Aim: shares as promised, within what chance explains.
    for weights in UNEVEN {
        let table = Draws::new(weights);
        let misfit = misfit(&measured(weights.len(), |draw| table.one(draw)), &shares_of(weights));
        assert!(misfit < 4.0, "{weights:?}: {misfit}");
    }
}

#[test]
fn turns_are_exact_and_even() {
    // Aim: in each round every endpoint has exactly its turns, and no heavy one has them in a burst.
    for weights in UNEVEN {
        let table = Turns::new(weights);
        let total: u64 = turns_of(weights);
        let mut counts = vec![0_u64; weights.len()];
        (0..total).for_each(|turn| counts[table.at(turn)] += 1);
        let promised = shares_of(weights);
        for (count, share) in counts.iter().zip(&promised) {
            assert!((*count as f64 / total as f64 - share).abs() < 1e-4, "{weights:?}: {counts:?}");
        }
        assert_eq!(shares_of(&counts), table.shares());
    }
    let order: Vec<usize> = (0..8).map(|turn| Turns::new(&[6, 2]).at(turn)).collect();
    assert_eq!(order.iter().filter(|index| **index == 1).count(), 2);
    assert!(order.windows(2).all(|pair| pair != [1, 1]), "{order:?}");
    assert_eq!((0..4).map(|turn| Turns::new(&[7, 7]).at(turn)).collect::<Vec<_>>(), [0, 1, 0, 1]);
}

fn turns_of(weights: &[u64]) -> u64 {
    let table = Turns::new(weights);
    if table.schedule_len() == 0 { weights.len() as u64 } else { table.schedule_len() as u64 }
}

#[test]
fn tables_of_hashes_share_by_weight() {
    // Aim: shares of ring and Maglev as they tell them, and near the weights: a ring within an eighth, Maglev within a hundredth.
    let weights = [1, 1, 1, 1, 1, 1, 1, 2, 2, 4];
    let keys = keys(10);
    let (ring, maglev) = (Ring::new(&keys, &weights), Maglev::new(&keys, &weights));
    let by_weight = shares_of(&weights);
    for (told, seen, slack, name) in [
        (ring.shares(), measured(10, |draw| ring.from(draw).next().unwrap()), 0.125, "ring"),
        (maglev.shares(), measured(10, |draw| maglev.from(draw).next().unwrap()), 0.02, "maglev"),
    ] {
        assert!((told.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let misfit = misfit(&seen, &told);
        assert!(misfit < 4.0, "{name}: {misfit}");
        for (told, wanted) in told.iter().zip(&by_weight) {
            assert!((told / wanted - 1.0).abs() < slack, "{name}: {told} for {wanted}");
        }
    }
    assert_eq!(Ring::new(&keys[..1], &[1]).shares(), [1.0]);
}

/// The part of all hashes that belong to another endpoint once the n-th is gone, those of the n-th included.
fn moved(before: impl Fn(u64) -> usize, after: impl Fn(u64) -> usize, gone: usize) -> f64 {
    let index = |after: usize| if after >= gone { after + 1 } else { after };
    draws().filter(|draw| before(*draw) != index(after(*draw))).count() as f64 / DRAWS as f64
}

#[test]
fn little_moves_when_one_of_ten_goes() {
    // Aim: a ring moves what the gone one had; Maglev a little more; and the order of the list does not matter.
    let (all, equal) = (keys(10), [1_u64; 10]);
    for gone in [0, 4, 9] {
        let mut rest = all.clone();
        rest.remove(gone);
        let (ring, without) = (Ring::new(&all, &equal), Ring::new(&rest, &equal[1..]));
        let own = ring.shares()[gone];
        let ring_moved = moved(|draw| ring.from(draw).next().unwrap(), |draw| without.from(draw).next().unwrap(), gone);
        assert!((ring_moved - own).abs() < 0.005, "ring: {ring_moved} moved, {own} was its own");
        let (maglev, without) = (Maglev::new(&all, &equal), Maglev::new(&rest, &equal[1..]));
        let maglev_moved = moved(|draw| maglev.from(draw).next().unwrap(), |draw| without.from(draw).next().unwrap(), gone);
        assert!(maglev_moved > 0.09 && maglev_moved < 0.16, "maglev: {maglev_moved} moved");
        println!("{gone} of ten gone: ring moves {ring_moved:.3}, maglev {maglev_moved:.3}");
    }
    let backwards: Vec<u64> = all.iter().rev().copied().collect();
    let (maglev, mirror) = (Maglev::new(&all, &equal), Maglev::new(&backwards, &equal));
    assert!(draws().take(1_000).all(|draw| maglev.from(draw).next().unwrap() == 9 - mirror.from(draw).next().unwrap()));
    let mut both = Ring::new(&all, &equal).from(7).take(600).collect::<Vec<_>>();
    both.sort_unstable();
    both.dedup();
    assert_eq!(both.len(), 10, "a walk from any hash meets everybody");
}
