//! A wager against a claim on two shares, period by period: what it has made of one unit of capital is the evidence against the claim.
//!
//! In each period the candidate has `n_c` requests of which `k_c` are bad, the stable version `n_s` and `k_s`. A claim says where the true
//! shares of the period may lie: `AtMost(d)` that the candidate's is no more than `d` above the stable's, `AtLeast(d)` that it is `d` above or more. An
//! alternative is a guess (a, b) of the two shares, made before the period is looked at, outside the claim. The stake is multiplied by the
//! likelihood of what came by the guess over that by (s, c), the claim's point that is nearest to the guess (by the divergence weighted with the
//! period's requests). As claims are convex, this factor has a mean of at most 1 wherever in the claim the truth lies, and it may
//! lie elsewhere in each period: the capital is a supermartingale under the claim, so it ever reaches `x` with a chance of at most `1/x`
//! (Ville), whenever one looks and whenever one stops (for two shares: Turner, Ly, Grünwald, "Generic E-variables for exact sequential k-sample
//! tests"). Nothing is assumed of how shares drift, only that within a period requests are about as independent as [`Spread`] has found them
//! to be: each version's requests count for as much less as they scatter more, which keeps the mean at most 1 and forgives bursts.

use serde::{Deserialize, Serialize};

/// What one period may win at most, as a logarithm: no single burst decides. Giving away what was won keeps a wager fair.
const GAIN_MAX: f64 = 2.5;
/// The part of the capital that is not staked at the beginning is staked bit by bit, so that a candidate that was well for long and then breaks
/// is found soon: in period t a share of about 1 / (t ln² t). This is where that begins.
const RESERVE_BEGIN: f64 = 8.0;
const RESERVE: f64 = 0.3;

/// Requests of one version in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Count {
    pub(super) of: f64,
    pub(super) bad: f64,
}

impl Count {
    /// As many as count where they scatter so much more than independent ones (one at least).
    pub(super) fn thinned(self, spread: f64) -> Self {
        let spread = spread.max(1.0);
        Self { of: self.of / spread, bad: self.bad / spread }
    }
}

/// What a wager is against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Hypothesis {
    /// The candidate's share of bad requests is no more than this above the stable version's.
    AtMost(f64),
    /// It is so much above it, or more.
    AtLeast(f64),
}

/// Capital, by alternative, as logarithms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Wager {
    stakes: Vec<f64>,
    reserve: f64,
    periods: u64,
}

impl Wager {
    /// One unit of capital, for so many alternatives.
    pub(super) fn new(alternatives: usize) -> Self {
        let each = ((1.0 - RESERVE) / alternatives as f64).ln();
        Self { stakes: vec![each; alternatives], reserve: RESERVE, periods: 0 }
    }

    /// One period: `stable_guess` and `candidate_guesses` (one per alternative) are shares guessed from what came before.
    pub(super) fn take(&mut self, claim: Hypothesis, guess: (f64, &[f64]), stable: Count, candidate: Count) {
        let (stable_guess, candidate_guesses) = guess;
        let place = self.periods as f64 + RESERVE_BEGIN;
        // The sum over all periods is below one: it is less than the integral of 1 / (x ln² x), which is 1 / ln x at its begin.
        let staked = if self.periods == 0 { 0.0 } else { RESERVE * RESERVE_BEGIN.ln() / (place * place.ln().powi(2)) }.min(self.reserve);
        self.reserve -= staked;
        self.periods += 1;
        let more = (staked / self.stakes.len() as f64).ln();
        for (stake, candidate_guess) in self.stakes.iter_mut().zip(candidate_guesses) {
            let won = gain(claim, (stable_guess, *candidate_guess), stable, candidate);
            *stake = log_sum(&[*stake, more]) + won.min(GAIN_MAX);
        }
    }

    /// The logarithm of the capital.
    pub(super) fn log(&self) -> f64 {
        let all: Vec<f64> = self.stakes.iter().copied().chain([self.reserve.ln()]).collect();
        log_sum(&all)
    }

    /// Gives away what is more than this, as a logarithm: what was won long ago shall not outweigh what is lost now.
    pub(super) fn cut(&mut self, most: f64) {
        let over = self.log() - most;
        if over > 0.0 {
            self.stakes.iter_mut().for_each(|stake| *stake -= over);
            self.reserve *= (-over).exp();
        }
    }
}

/// What so many requests of the stable version and of the candidate add to the logarithm on average, if the guess is the truth.
pub(super) fn growth(claim: Hypothesis, guess: (f64, f64), (stable, candidate): (f64, f64)) -> f64 {
    let whole = |of: f64, share: f64| Count { of, bad: of * share };
    gain(claim, guess, whole(stable, guess.0), whole(candidate, guess.1))
}

/// The logarithm of the likelihood by the guess over that by the claim's nearest point; 0 where the guess is within the claim.
fn gain(claim: Hypothesis, (a, b): (f64, f64), stable: Count, candidate: Count) -> f64 {
    let (d, outside) = match claim {
        Hypothesis::AtMost(d) => (d, b > a + d),
        Hypothesis::AtLeast(d) => (d, b < a + d),
    };
    let proper = a > 0.0 && b > 0.0 && a < 1.0 && b < 1.0 && d < 1.0;
    if !outside || !proper || stable.of < 1e-9 || candidate.of < 1e-9 {
        return 0.0;
    }
    let s = nearest((a, b), d, stable.of, candidate.of);
    let of = |count: Count, guess: f64, null: f64| {
        count.bad * (guess / null).ln() + (count.of - count.bad) * ((1.0 - guess) / (1.0 - null)).ln()
    };
    of(stable, a, s) + of(candidate, b, s + d)
}

/// The s for which (s, s + d) is nearest to (a, b): where the slope of n_s KL(a, s) + n_c KL(b, s + d) is 0. The sum is convex, so its
/// slope rises, and Newton's steps are kept within what still encloses the root.
fn nearest((a, b): (f64, f64), d: f64, stable_of: f64, candidate_of: f64) -> f64 {
    let (mut low, mut high) = ((b - d).min(a).max(0.0), (b - d).max(a).min(1.0 - d));
    let mut s = (low + high) / 2.0;
    for _ in 0..ROOT_STEPS_MAX {
        let c = s + d;
        let (stable_spread, candidate_spread) = (s * (1.0 - s), c * (1.0 - c));
        let slope = stable_of * (s - a) / stable_spread + candidate_of * (c - b) / candidate_spread;
        if slope > 0.0 {
            high = s
        } else {
            low = s
        }
        let curve = stable_of * (a / (s * s) + (1.0 - a) / ((1.0 - s) * (1.0 - s)))
            + candidate_of * (b / (c * c) + (1.0 - b) / ((1.0 - c) * (1.0 - c)));
        let newton = s - slope / curve;
        let next = if newton > low && newton < high { newton } else { (low + high) / 2.0 };
        if (next - s).abs() <= 1e-12 * next {
            return next;
        }
        s = next;
    }
    s
}

/// Steps to a root; Newton's take about five, halving alone would know it to 2^-60.
const ROOT_STEPS_MAX: usize = 60;

fn log_sum(logs: &[f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY { most } else { most + logs.iter().map(|log| (log - most).exp()).sum::<f64>().ln() }
}

/// How much more bad requests scatter from period to period than independent ones would: 1 where they do not, about the size of a burst
/// where they come in bursts. Each period is held against the one before, so neither drift nor a single jump counts for much.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    last: Count,
    seen: f64,
    expected: f64,
}

impl Spread {
    pub(super) fn take(&mut self, now: Count) {
        if now.of <= 0.0 {
            return;
        }
        let (bad, of) = (now.bad + self.last.bad, now.of + self.last.of);
        if self.last.of > 0.0 && bad > 0.0 && bad < of {
            // Given how many are bad in both together, how many of them the later has is hypergeometric.
            let part = now.of / of;
            let off = now.bad - bad * part;
            self.seen += off * off / (part * (1.0 - part) * (1.0 - bad / of));
            self.expected += bad;
        }
        self.last = now;
    }

    /// One or more.
    pub(super) fn factor(&self) -> f64 {
        let factor = (self.seen + SPREAD_PRIOR) / (self.expected + SPREAD_PRIOR);
        (factor - SPREAD_FORGIVEN).max(1.0)
    }
}

/// So many bad requests' worth of having seen no bursts, before any are seen.
const SPREAD_PRIOR: f64 = 16.0;
/// What an estimate is off by chance where there are no bursts.
const SPREAD_FORGIVEN: f64 = 0.5;
