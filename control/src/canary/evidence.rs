//! Is the candidate worse than the stable version? A sequential test that may be looked at whenever one likes.
//!
//! For each thing that is watched (errors; slow requests) there are two wagers (`wager`), each period of a few seconds being one round:
//! - against "it is within what is allowed": once that has made 1 / alpha of one unit, the candidate is worse. Of candidates that are not worse this
//!   befalls alpha at most, however often and however long one looks; alpha is 1 - confidence, shared among what is watched.
//! - against "it is worse than what is allowed and its margin": once that has made 1 / (1 - confidence), it is good enough. Of candidates that are
//!   worse by so much no more than 1 - confidence are ever called good enough.
//!
//! Both versions are compared within each period, so neither a busy hour, nor an outage behind both, nor a change of weights passes for
//! a difference. What is assumed: which version a request meets is chance; in a period bad requests come alone or in bursts whose size shows in
//! how they scatter from period to period.
//!
//! *Slow.* The threshold is the end x of the first bucket that the stable version's quantile lies in or before, as its last periods show it, and
//! for the candidate the bucket's end nearest above `max_latency_ratio` times x, a millisecond more at least. Allowed is that the candidate has as large a share
//! beyond its threshold as the stable version has beyond x, and a slack: half of what the quantile leaves, two points at most. A threshold that
//! is chosen by what came before a period binds nothing in it, so that it is estimated costs no validity.

use serde::{Deserialize, Serialize};

use super::tally::{self, BUCKETS, PER_DOUBLING, Tally};
use super::wager::{Count, Hypothesis, Spread, Wager, growth};

/// What is asked of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// By how much its share of failures may lie above the stable version's: 0.01 is one percentage point. `None`: errors are not watched.
    pub max_error_increase: Option<f64>,
    /// The quantile of latency that is compared, 0 to 1 without the ends.
    pub quantile: f64,
    /// How many times the stable version's latency the candidate's may be. `None`: latency is not watched.
    pub max_latency_ratio: Option<f64>,
    /// 0.99: one canary in a hundred at most is found worse, or good enough, wrongly.
    pub confidence: f64,
    /// So many comparisons of one canary, each with evidence of its own, share that.
    pub comparisons: u32,
    /// Requests of the candidate below which it is never good enough.
    pub min_requests: u64,
}

/// By what a candidate is found worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Measure {
    /// It fails more often.
    Errors,
    /// It is slower.
    Latency,
}

/// What the evidence says now.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The chance, at most, of such evidence if no more fail than is allowed; valid at any moment. 1 where errors are not watched.
    pub p_value_errors: f64,
    /// The same for slow requests.
    pub p_value_latency: f64,
    /// Set once the candidate is worse than allowed, and for good.
    pub worse: Option<Measure>,
    /// Whether it has been shown not to be worse than what is allowed and its margin. May be taken back by what comes later.
    pub good_enough: bool,
    /// About how many more requests of the candidate it takes until it is good enough if it goes on like this; `None` if it is, or if it
    /// would never be.
    pub more_needed: Option<u64>,
    /// All of that in one sentence, with its numbers.
    pub words: String,
}

/// All evidence of one run of a canary. May be kept on disk and gone on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sequential {
    analysis: Analysis,
    stable: Tally,
    candidate: Tally,
    /// What came since the last round.
    pending: (Tally, Tally),
    /// The stable version's latencies, what is old counting less.
    recent: Vec<f64>,
    errors: Option<Watch>,
    slow: Option<Watch>,
}

/// The two wagers on one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Watch {
    worse: Wager,
    /// The most that `worse` ever made, as a logarithm.
    worse_most: f64,
    good: Wager,
    stable: Recent,
    candidate: Recent,
}

/// One version's count of late, and how it scatters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Recent {
    count: Count,
    spread: Spread,
}

/// What is allowed of one thing: shares above the stable version's.
#[derive(Clone, Copy, Debug)]
struct Limits {
    allowed: f64,
    margin: f64,
    /// What the share of bad requests is taken to be before any are seen.
    prior: f64,
}

/// How far above what is allowed the truth may be: the whole range, coarsely, since the stake is divided among them.
const WORSE_BY: [f64; 5] = [0.01, 0.025, 0.06, 0.16, 0.5];
/// Where between nothing and the whole of the margin a good candidate may be, above the stable version; and one that is far better.
const GOOD_AT: [f64; 2] = [0.0, 0.35];
const BETTER: f64 = 0.3;
/// Requests of each version that make a round; until then periods are put together.
const ROUND_MIN: u64 = 10;
/// What a round leaves of the weight of those before: what is recent is the last few minutes.
const FADE: f64 = 0.98;
/// A threshold is founded on so many stable requests beyond it, or on what would give so many.
const BEYOND_MIN: f64 = 2.0;
/// A ratio that is this much above a bucket's step still counts as that step: 1.2 as 2^(1/4).
const STEP_TOLERANCE: f64 = 0.1;

/// Less than this more is no difference, whatever the ratio: below a millisecond the machine is measured, not the version.
const MORE_MS_MIN: f64 = 1.0;

impl Sequential {
    /// No evidence yet. An analysis that is changed needs new evidence.
    pub fn new(analysis: Analysis) -> Self {
        Self {
            errors: analysis.max_error_increase.map(|_| Watch::new()),
            slow: analysis.max_latency_ratio.map(|_| Watch::new()),
            analysis,
            stable: Tally::default(),
            candidate: Tally::default(),
            pending: <(Tally, Tally)>::default(),
            recent: vec![0.0; BUCKETS],
        }
    }

    /// What is asked.
    pub fn analysis(&self) -> &Analysis {
        &self.analysis
    }

    /// All that was observed of the stable version and of the candidate.
    pub fn tallies(&self) -> (&Tally, &Tally) {
        (&self.stable, &self.candidate)
    }

    /// What came of both since the last call. Both must have been met by chance in this time: what a match chose for the candidate is no
    /// evidence beside what chance did.
    pub fn gather(&mut self, stable: &Tally, candidate: &Tally) {
        self.stable.add(stable);
        self.candidate.add(candidate);
        self.pending.0.add(stable);
        self.pending.1.add(candidate);
    }

    /// A period is over, a few seconds long: what was gathered in it is compared, if it is enough; else it is put to what the next one brings.
    pub fn compare(&mut self) {
        if self.pending.0.requests.min(self.pending.1.requests) >= ROUND_MIN {
            let (stable, candidate) = std::mem::take(&mut self.pending);
            self.round(&stable, &candidate);
        }
        if self.pending.1.requests == 0 {
            // What the stable version did while the candidate had nothing to do is no match for what comes later.
            self.pending.0 = Tally::default();
        }
    }

    fn round(&mut self, stable: &Tally, candidate: &Tally) {
        if let (Some(watch), Some(limits)) = (&mut self.errors, self.analysis.error_limits()) {
            let count = |tally: &Tally| Count { of: tally.requests as f64, bad: tally.failures.min(tally.requests) as f64 };
            watch.round(limits, count(stable), count(candidate), self.analysis.good_log());
        }
        let threshold = self.threshold();
        if let (Some(watch), Some(limits), Some((own, other))) = (&mut self.slow, self.analysis.latency_limits(), threshold) {
            let count = |tally: &Tally, beyond: usize| {
                let of = tally.buckets.iter().sum::<u64>() as f64;
                Count { of, bad: tally.slower_than(beyond) as f64 }
            };
            watch.round(limits, count(stable, own), count(candidate, other), self.analysis.good_log());
        }
        for (recent, more) in self.recent.iter_mut().zip(&stable.buckets) {
            *recent = *recent * FADE + *more as f64;
        }
    }

    /// The buckets whose ends are the stable version's threshold and the candidate's, by what came until now.
    fn threshold(&self) -> Option<(usize, usize)> {
        let of: f64 = self.recent.iter().sum();
        let beyond_allowed = (1.0 - self.analysis.quantile) * of;
        if beyond_allowed < BEYOND_MIN {
            return None;
        }
        let mut beyond = of;
        let own = self.recent.iter().position(|count| {
            beyond -= count;
            beyond <= beyond_allowed + 1e-9
        })?;
        let at_least = tally::bucket(tally::end_ms(own) + MORE_MS_MIN);
        let other = (own + self.analysis.ratio_steps()?).max(at_least);
        (other < BUCKETS - 1).then_some((own, other))
    }

    /// What follows from all that was observed.
    pub fn verdict(&self) -> Verdict {
        let watched =
            [(Measure::Errors, &self.errors, self.analysis.error_limits()), (Measure::Latency, &self.slow, self.analysis.latency_limits())];
        let watched: Vec<(Measure, &Watch, Limits)> =
            watched.into_iter().filter_map(|(measure, watch, limits)| Some((measure, watch.as_ref()?, limits?))).collect();
        let tests = watched.len().max(1) as f64 * f64::from(self.analysis.comparisons.max(1));
        let alpha = (1.0 - self.analysis.confidence) / tests;
        let p_value = |measure: Measure| watched.iter().find(|(of, ..)| *of == measure).map_or(1.0, |(_, watch, _)| watch.p_value());
        let worse = watched.iter().filter(|(_, watch, _)| watch.p_value() <= alpha);
        let worse = worse.min_by(|one, other| one.1.p_value().total_cmp(&other.1.p_value())).map(|(measure, ..)| *measure);
        let good_log = self.analysis.good_log();
        // Tunnels and copies have no time: where nothing was ever timed, errors alone say what is good.
        let is_timed = |tally: &Tally| tally.buckets.iter().any(|count| *count > 0);
        let timed: Vec<_> = watched
            .iter()
            .filter(|(measure, ..)| *measure == Measure::Errors || is_timed(&self.stable) || is_timed(&self.candidate))
            .collect();
        let few = self.analysis.min_requests.saturating_sub(self.candidate.requests);
        let good_enough = worse.is_none() && few == 0 && timed.iter().all(|(_, watch, _)| watch.good.log() >= good_log);
        let needed: Option<Vec<u64>> = timed.iter().map(|(_, watch, limits)| watch.needed(*limits, good_log)).collect();
        let more_needed = needed.map(|all| all.into_iter().fold(few, u64::max)).filter(|_| worse.is_none() && !good_enough);
        let mut verdict = Verdict {
            p_value_errors: p_value(Measure::Errors),
            p_value_latency: p_value(Measure::Latency),
            worse,
            good_enough,
            more_needed,
            words: String::new(),
        };
        verdict.words = self.words(&verdict);
        verdict
    }

    fn words(&self, verdict: &Verdict) -> String {
        let percent = |tally: &Tally| tally.failed_share() * 100.0;
        let (of, requests) = (self.candidate.requests, self.stable.requests);
        let errors = || {
            let (stable, candidate) = (percent(&self.stable), percent(&self.candidate));
            format!("{candidate:.2} % of {of} requests failed, {stable:.2} % of the stable version's {requests}")
        };
        let latency = || {
            let at = |tally: &Tally| tally.quantile_ms(self.analysis.quantile).unwrap_or(0.0);
            let quantile = self.analysis.quantile * 100.0;
            format!("p{quantile:.4} is {:.1} ms, {:.1} ms with the stable version", at(&self.candidate), at(&self.stable))
                .replace(".0000 is", " is")
        };
        match (verdict.worse, verdict.more_needed) {
            (Some(Measure::Errors), _) => {
                let most = self.analysis.max_error_increase.unwrap_or_default() * 100.0;
                let allowed = if most == 1.0 { "is 1 point".to_owned() } else { format!("are {most} points") };
                format!("worse: {}; allowed {allowed} more (p = {})", errors(), p_words(verdict.p_value_errors))
            }
            (Some(Measure::Latency), _) => {
                let most = self.analysis.max_latency_ratio.unwrap_or_default();
                format!("worse: {}; allowed is {most} times as much (p = {})", latency(), p_words(verdict.p_value_latency))
            }
            (None, _) if verdict.good_enough => match self.analysis.max_latency_ratio {
                Some(_) => format!("good enough: {}; {}", errors(), latency()),
                None => format!("good enough: {}", errors()),
            },
            (None, Some(more)) => format!("not enough evidence yet: needs about {more} more requests of the candidate ({})", errors()),
            (None, None) => format!("too near to what is allowed for a verdict: {}; {}", errors(), latency()),
        }
    }
}

/// A p-value as people write it.
fn p_words(p_value: f64) -> String {
    if p_value < 1e-4 { format!("{p_value:.0e}") } else { format!("{p_value:.4}") }
}

impl Analysis {
    /// The logarithm at which a candidate is good enough.
    fn good_log(&self) -> f64 {
        -(1.0 - self.confidence).max(f64::MIN_POSITIVE).ln()
    }

    /// The margin is what is allowed once more, a quarter of a point at least.
    fn error_limits(&self) -> Option<Limits> {
        let allowed = self.max_error_increase?;
        Some(Limits { allowed, margin: allowed.max(0.0025), prior: 0.005 })
    }

    fn latency_limits(&self) -> Option<Limits> {
        self.max_latency_ratio?;
        let left = 1.0 - self.quantile;
        let allowed = (left / 2.0).min(0.02);
        Some(Limits { allowed, margin: (allowed * 2.0).max(0.02) - allowed, prior: left / 2.0 })
    }

    /// How many buckets a latency may rise by: the ratio, rounded up to whole buckets.
    fn ratio_steps(&self) -> Option<usize> {
        let steps = self.max_latency_ratio?.max(1.0).log2() * f64::from(PER_DOUBLING);
        Some((steps - STEP_TOLERANCE).ceil().clamp(0.0, BUCKETS as f64) as usize)
    }
}

impl Watch {
    fn new() -> Self {
        Self {
            worse: Wager::new(WORSE_BY.len()),
            worse_most: 0.0,
            good: Wager::new(GOOD_AT.len() + 1),
            stable: Recent::default(),
            candidate: Recent::default(),
        }
    }

    fn round(&mut self, limits: Limits, stable: Count, candidate: Count, good_log: f64) {
        let guess = self.stable.guess(limits.prior);
        let (stable_spread, candidate_spread) = self.spreads(candidate.of / stable.of.max(1.0));
        let came = (stable, candidate);
        let (stable, candidate) = (stable.thinned(stable_spread), candidate.thinned(candidate_spread));
        let worse = WORSE_BY.map(|by| (guess + limits.allowed + by).min(GUESS_MAX));
        self.worse.take(Hypothesis::AtMost(limits.allowed), (guess, &worse), stable, candidate);
        self.worse_most = self.worse_most.max(self.worse.log());
        let most = limits.allowed + limits.margin;
        let good = [guess * BETTER, guess + GOOD_AT[0] * most, (guess + GOOD_AT[1] * most).min(GUESS_MAX)];
        self.good.take(Hypothesis::AtLeast(most), (guess, &good), stable, candidate);
        self.good.cut(good_log + GOOD_KEPT);
        self.stable.take(came.0);
        self.candidate.take(came.1);
    }

    /// How each version's requests scatter, the candidate having so many per request of the stable one. A stall meets as large a share of few requests as
    /// of many, so of the few it makes a smaller burst.
    fn spreads(&self, per_stable: f64) -> (f64, f64) {
        let stable = self.stable.spread.factor();
        let like_stable = 1.0 + (stable - 1.0) * per_stable.min(1.0);
        (stable, self.candidate.spread.factor().max(like_stable))
    }

    fn p_value(&self) -> f64 {
        (-self.worse_most).exp().min(1.0)
    }

    /// Requests of the candidate until it is good enough, if both go on as of late; `None` if that would be never.
    fn needed(&self, limits: Limits, good_log: f64) -> Option<u64> {
        let left = good_log - self.good.log();
        if left <= 0.0 {
            return Some(0);
        }
        let (stable, candidate) = (self.stable.guess(limits.prior), self.candidate.guess(limits.prior));
        let per_request = if self.candidate.count.of > 0.0 { self.stable.count.of / self.candidate.count.of } else { 1.0 };
        let (stable_spread, candidate_spread) = self.spreads(1.0 / per_request.max(1.0));
        let requests = (per_request / stable_spread, 1.0 / candidate_spread);
        let each = growth(Hypothesis::AtLeast(limits.allowed + limits.margin), (stable, candidate), requests);
        let needed = left / each;
        (each > 0.0 && needed < NEEDED_MAX).then_some(needed.ceil() as u64)
    }
}

/// What a good candidate may be ahead of being good enough, as a logarithm: what goes wrong now is not made up by what was well long ago.
const GOOD_KEPT: f64 = 3.0;
/// A guess is never surer than this.
const GUESS_MAX: f64 = 0.99;
/// More requests than this are as good as never.
const NEEDED_MAX: f64 = 1e7;

impl Recent {
    fn take(&mut self, now: Count) {
        self.count = Count { of: self.count.of * FADE + now.of, bad: self.count.bad * FADE + now.bad };
        self.spread.take(now);
    }

    /// The share of bad requests, with half a request's worth of what is thought before any are seen.
    fn guess(&self, prior: f64) -> f64 {
        ((self.count.bad + 0.5) / (self.count.of + 0.5 / prior)).min(GUESS_MAX)
    }
}
