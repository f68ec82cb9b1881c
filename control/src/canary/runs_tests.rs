//! Whole runs by chance: how often a clean candidate is rolled back, how soon a broken one is, and which are promoted.
//!
//! A run is 100 requests a second in periods of 2 s, a minute each at 5, 25 and 50 %. Rates and latencies of both versions drift together;
//! where a run is `rough`, each version has besides bursts of its own: in one period of twenty it stalls for a tenth of a second and all requests
//! of that time are slow, in one of twenty all of a tenth of a second fail, and each period's rate of errors is drawn anew around its mean.

use std::sync::LazyLock;

use super::evidence::{Analysis, Measure, Sequential, Verdict};
use super::tally::{BUCKETS, Tally, bucket};

/// A slow wave below both versions: how much longer all takes, and how much more fails.
const WAVE: [f64; 8] = [1.0, 1.07, 1.1, 1.07, 1.0, 0.93, 0.9, 0.93];
/// Latencies that one is drawn from.
const DRAWS: usize = 8192;

/// Buckets that a request's latency is drawn from, by the place in the wave: about a log-normal distribution around 12 ms.
struct Latencies(Vec<Vec<u8>>);

impl Latencies {
    fn of(more_ms: f64) -> &'static Self {
        static SOUND: LazyLock<Latencies> = LazyLock::new(|| Latencies::new(0.0));
        static SLOW: LazyLock<Latencies> = LazyLock::new(|| Latencies::new(50.0));
        if more_ms > 0.0 { &SLOW } else { &SOUND }
    }

    fn new(more_ms: f64) -> Self {
        // The logistic distribution's quantiles are near enough to the normal one's, with heavier tails.
        let at = |place: usize, wave: f64| {
            let share = (place as f64 + 0.5) / DRAWS as f64;
            bucket(12.0 * wave * (0.4 * (share / (1.0 - share)).ln() / 1.7).exp() + more_ms) as u8
        };
        Self(WAVE.iter().map(|wave| (0..DRAWS).map(|place| at(place, *wave)).collect()).collect())
    }
}

#[derive(Clone, Copy)]
struct Version {
    failing: f64,
    more_ms: f64,
}

#[derive(Clone, Copy)]
struct World {
    per_period: u64,
    weights: &'static [(f64, u32)],
    rough: bool,
}

const STEPS: &[(f64, u32)] = &[(0.05, 30), (0.25, 30), (0.5, 30)];
const WORLD: World = World { per_period: 200, weights: STEPS, rough: false };

fn asked() -> Analysis {
    Analysis {
        max_error_increase: Some(0.01),
        quantile: 0.99,
        max_latency_ratio: Some(1.2),
        confidence: 0.99,
        comparisons: 1,
        min_requests: 200,
    }
}

/// What came of one version in one period.
fn period(rng: &mut fastrand::Rng, times: &[u8], of: u64, version: Version, drift: f64, rough: bool) -> Tally {
    let mut tally = Tally::default();
    let scatter = if rough { 0.4 + 1.2 * rng.f64() } else { 1.0 };
    let failing = (f64::from(u32::MAX) * version.failing * drift * scatter) as u32;
    // A tenth of a second is a twentieth of a period; of few requests it meets one or none.
    let burst = |rng: &mut fastrand::Rng| if rough && rng.u32(..20) == 0 { (of as f64 / 20.0 + rng.f64()) as i32 } else { 0 };
    let mut slow = burst(rng);
    let mut hiccup = if version.failing > 0.0 { burst(rng) } else { 0 };
    for _ in 0..of {
        let (draw, chance) = (rng.u32(..), rng.u32(..));
        let stalled = if slow > 0 { 16 } else { 0 };
        tally.buckets[(usize::from(times[draw as usize % times.len()]) + stalled).min(BUCKETS - 1)] += 1;
        tally.failures += u64::from(chance < failing || hiccup > 0);
        tally.requests += 1;
        (slow, hiccup) = (i32::max(slow - 1, 0), i32::max(hiccup - 1, 0));
    }
    tally
}

struct End {
    verdict: Verdict,
    candidate_requests: u64,
    /// Of the candidate, when it first was good enough.
    good_at: Option<u64>,
}

/// One run, to its roll-back or its end.
fn run(seed: u64, world: World, stable: Version, candidate: Version) -> End {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (first_times, second_times) = (Latencies::of(stable.more_ms), Latencies::of(candidate.more_ms));
    let mut evidence = Sequential::new(asked());
    let (mut at, mut good_at) = (0, None);
    for (weight, periods) in world.weights {
        for _ in 0..*periods {
            let wave = (at / 6) % 8;
            at += 1;
            let mine = (0..world.per_period).filter(|_| rng.f64() < *weight).count() as u64;
            let first = period(&mut rng, &first_times.0[wave], world.per_period - mine, stable, WAVE[wave], world.rough);
            let second = period(&mut rng, &second_times.0[wave], mine, candidate, WAVE[wave], world.rough);
            evidence.gather(&first, &second);
            evidence.compare();
            let verdict = evidence.verdict();
            if verdict.good_enough {
                good_at = good_at.or(Some(evidence.tallies().1.requests));
            }
            if verdict.worse.is_some() {
                return End { candidate_requests: evidence.tallies().1.requests, verdict, good_at };
            }
        }
    }
    End { verdict: evidence.verdict(), candidate_requests: evidence.tallies().1.requests, good_at }
}

fn like(failing: f64) -> Version {
    Version { failing, more_ms: 0.0 }
}

/// Runs of a kind; all of them in the whole tier.
fn runs(whole: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("MESHWRIGHT_SIM_WHOLE").is_some() { whole } else { whole / 10 }
}

/// Rates of errors of a sound version.
const RATES: [f64; 5] = [0.0, 0.001, 0.005, 0.02, 0.05];

/// Aim: at confidence 0.99 at most one clean run in a hundred is rolled back, over 20,000 (a tenth of them here), half of them rough; nearly all of
/// the smooth ones with few errors are good enough at their end.
#[test]
fn clean_runs_are_let_be() {
    let (mut wrong, mut good, mut all, mut rough_wrong) = (0, 0, 0, 0);
    for seed in runs(20_000) {
        let rate = RATES[seed as usize / 2 % RATES.len()];
        let rough = seed % 2 == 1;
        let end = run(seed, World { rough, ..WORLD }, like(rate), like(rate));
        wrong += u32::from(end.verdict.worse.is_some());
        rough_wrong += u32::from(rough && end.verdict.worse.is_some());
        if !rough && rate <= 0.005 {
            all += 1;
            good += u32::from(end.verdict.good_enough);
        }
    }
    let runs = runs(20_000).end;
    println!("rolled back {wrong} of {runs} clean runs ({rough_wrong} rough); good enough {good} of {all} smooth ones");
    assert!(u64::from(wrong) * 100 <= runs, "{wrong} of {runs}");
    assert!(good * 100 >= all * 98, "{good} of {all}");
}

/// Aim: a candidate that is worse by just what is allowed is rolled back once in a hundred at most, too; one that is worse by all of the margin
/// is good enough once in a hundred at most.
#[test]
fn the_claims_edges_hold() {
    let (mut worse, mut good) = (0, 0);
    let runs = runs(10_000);
    for seed in runs.clone() {
        let end = run(seed, WORLD, like(0.005), like(0.015));
        worse += u64::from(end.verdict.worse == Some(Measure::Errors));
        let end = run(seed, WORLD, like(0.005), like(0.025));
        good += u64::from(end.good_at.is_some());
    }
    println!("{worse} rolled back at what is allowed, {good} good enough at all of the margin, of {}", runs.end);
    assert!(worse * 100 <= runs.end && good * 100 <= runs.end, "{worse}, {good}");
}

/// Aim: with 5 % of errors planted, and with 50 ms, nearly every run is rolled back within 1,000 requests of the candidate, and none is ever good
/// enough; where failures of both versions come in bursts anyway, nine in ten are.
#[test]
fn planted_faults_are_found_within_a_thousand_requests() {
    let runs = runs(2_000);
    let slow = Version { failing: 0.0, more_ms: 50.0 };
    for (name, stable, candidate, rough, late_in) in [
        ("5 % beside none", like(0.0), like(0.05), false, 100),
        ("5 % beside 0.5 %", like(0.005), like(0.055), false, 100),
        ("5 % beside 0.5 %, rough", like(0.005), like(0.055), true, 10),
        ("50 ms", like(0.0), slow, false, 100),
        ("50 ms, rough", like(0.005), slow, true, 100),
    ] {
        let (mut late, mut good, mut sum) = (0, 0, 0);
        for seed in runs.clone() {
            let end = run(seed, World { rough, ..WORLD }, stable, candidate);
            late += u64::from(end.verdict.worse.is_none() || end.candidate_requests > 1_000);
            good += u64::from(end.good_at.is_some());
            sum += end.candidate_requests;
        }
        println!("{name}: {late} late, {good} good enough of {}; {} requests on average", runs.end, sum / runs.end);
        assert!(late * late_in <= runs.end && good * 100 <= runs.end, "{name}: {late} late, {good} good enough");
    }
}
