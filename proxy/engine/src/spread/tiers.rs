//! Tiers: nearer endpoints first, and further ones as far as the nearer are not well.

/// The share of each tier, nearest first, which sum to 1: each takes of the rest as much as its share of well endpoints comes to, of
/// the per cent from which on it takes all. Where not even all together come to the whole, what they come to is made the whole.
///
/// `(well, all)` endpoints per tier; a tier without one that is well takes nothing.
pub(crate) fn shares(tiers: &[(usize, usize)], failover_below_percent: f64) -> Vec<f64> {
    let mut rest = 1.0_f64;
    let taken = |&(well, all): &(usize, usize)| {
        if well == 0 {
            return 0.0;
        }
        let percent = 100.0 * well as f64 / all.max(well) as f64;
        let able = if percent >= failover_below_percent { 1.0 } else { percent / failover_below_percent };
        let share = able.min(rest);
        rest -= share;
        share
    };
    let shares: Vec<f64> = tiers.iter().map(taken).collect();
    let total: f64 = shares.iter().sum();
    if total > 0.0 { shares.iter().map(|share| share / total).collect() } else { shares }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_tiers_take_what_nearer_ones_cannot() {
        // Aim: all to the nearest while it is well enough; then in proportion, tier by tier; never to the unwell; always the whole.
        for (tiers, below, wanted) in [
            (&[(3, 3), (3, 3)][..], 70.0, &[1.0, 0.0][..]),
            (&[(7, 10), (3, 3)], 70.0, &[1.0, 0.0]),
            (&[(35, 100), (3, 3)], 70.0, &[0.5, 0.5]),
            (&[(35, 100), (14, 100), (1, 1)], 70.0, &[0.5, 0.2, 0.3]),
            (&[(0, 5), (3, 3)], 70.0, &[0.0, 1.0]),
            (&[(7, 100), (7, 100)], 70.0, &[0.5, 0.5]),
            (&[(1, 100), (3, 3)], 0.0, &[1.0, 0.0]),
            (&[(0, 3), (0, 0)], 70.0, &[0.0, 0.0]),
        ] {
            for (share, wanted) in shares(tiers, below).iter().zip(wanted) {
                assert!((share - wanted).abs() < 1e-9, "{tiers:?}: {share} is not {wanted}");
            }
        }
    }
}
