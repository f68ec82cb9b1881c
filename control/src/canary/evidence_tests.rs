use super::evidence::{Analysis, Measure, Sequential};
use super::tally::{BUCKETS, Tally, bucket, end_ms};
use super::wager::{Count, Hypothesis, Spread, Wager, growth};

fn asked() -> Analysis {
    Analysis {
        max_error_increase: Some(0.01),
        quantile: 0.99,
        max_latency_ratio: Some(1.2),
        confidence: 0.99,
        comparisons: 1,
        min_requests: 60,
    }
}

/// So many requests of so many milliseconds each, of which so many failed.
fn tally(requests: u64, failures: u64, ms: f64) -> Tally {
    let mut tally = Tally::default();
    (0..requests).for_each(|at| tally.record(at < failures, ms));
    tally
}

/// One period.
fn period(evidence: &mut Sequential, stable: &Tally, candidate: &Tally) {
    evidence.gather(stable, candidate);
    evidence.compare();
}

/// Periods that are all alike, until there is a verdict or they are over.
fn after(periods: usize, stable: &Tally, candidate: &Tally) -> Sequential {
    let mut evidence = Sequential::new(asked());
    for _ in 0..periods {
        period(&mut evidence, stable, candidate);
        if evidence.verdict().worse.is_some() {
            break;
        }
    }
    evidence
}

/// Aim: each kind of candidate gets its verdict, by what is wrong with it, in so many of its requests.
#[test]
fn candidates_get_their_verdict() {
    let sound = tally(180, 0, 10.0);
    for (name, stable, candidate, worse, good, most) in [
        ("sound", &sound, tally(20, 0, 10.0), None, true, 800),
        ("quicker and better", &tally(180, 2, 10.0), tally(20, 0, 3.0), None, true, 800),
        ("fails 5 %", &sound, tally(20, 1, 10.0), Some(Measure::Errors), false, 500),
        ("fails always", &sound, tally(20, 20, 10.0), Some(Measure::Errors), false, 60),
        ("as bad as the stable one", &tally(180, 18, 10.0), tally(20, 2, 10.0), None, false, 400),
        ("50 ms more", &sound, tally(20, 0, 60.0), Some(Measure::Latency), false, 100),
        ("a fifth more, which is one bucket", &sound, tally(20, 0, 11.5), None, true, 800),
        ("half as much again", &sound, tally(20, 0, 15.0), Some(Measure::Latency), false, 100),
    ] {
        let evidence = after(most / 20, stable, &candidate);
        let verdict = evidence.verdict();
        assert_eq!((verdict.worse, verdict.good_enough), (worse, good), "{name}: {verdict:?}");
        assert!(evidence.tallies().1.requests <= most as u64, "{name}: {}", evidence.tallies().1.requests);
    }
}

/// Aim: sixty clean requests are enough for nobody, whatever `minRequests` says: the words tell about how many more it takes, and after
/// about so many more it is good enough.
#[test]
fn too_little_is_said() {
    let (stable, candidate) = (tally(180, 0, 10.0), tally(20, 0, 10.0));
    let mut evidence = after(3, &stable, &candidate);
    let verdict = evidence.verdict();
    let more = verdict.more_needed.unwrap();
    assert!(!verdict.good_enough && (150..700).contains(&more), "{verdict:?}");
    assert!(verdict.words.contains(&format!("needs about {more} more requests")), "{}", verdict.words);
    for _ in 0..more.div_ceil(20) + 2 {
        period(&mut evidence, &stable, &candidate);
    }
    let verdict = evidence.verdict();
    assert!(verdict.good_enough && verdict.more_needed.is_none() && verdict.words.starts_with("good enough"), "{verdict:?}");
}

/// Aim: at a rate between what is allowed and the margin more of the same proves nothing, and that is said.
#[test]
fn what_is_too_near_is_said() {
    let evidence = after(3, &tally(900, 0, 10.0), &tally(100, 3, 10.0));
    let verdict = evidence.verdict();
    assert!(verdict.worse.is_none() && !verdict.good_enough && verdict.more_needed.is_none(), "{verdict:?}");
    assert!(verdict.words.starts_with("too near"), "{}", verdict.words);
}

/// Aim: a candidate that was well for half an hour and then fails is found soon, and stops being good enough before that.
#[test]
fn a_late_fault_is_found() {
    let (stable, sound, broken) = (tally(100, 0, 10.0), tally(100, 0, 10.0), tally(100, 5, 10.0));
    let mut evidence = after(900, &stable, &sound);
    assert!(evidence.verdict().good_enough);
    let mut periods = 0;
    while evidence.verdict().worse.is_none() {
        period(&mut evidence, &stable, &broken);
        periods += 1;
        assert!(periods < 5 || !evidence.verdict().good_enough, "still good enough after {periods}");
    }
    assert!(periods <= 15, "{periods}");
}

/// Aim: an outage behind both versions is no fault of the candidate, nor is what the stable one did while the candidate had nothing to do.
#[test]
fn what_befalls_both_is_no_evidence() {
    let mut evidence = after(20, &tally(100, 0, 10.0), &tally(100, 0, 10.0));
    for _ in 0..20 {
        period(&mut evidence, &tally(100, 60, 900.0), &tally(100, 60, 900.0));
    }
    let before = evidence.verdict();
    assert_eq!(before.worse, None, "{before:?}");
    for _ in 0..100 {
        period(&mut evidence, &tally(100, 0, 1.0), &Tally::default());
    }
    let idle = evidence.verdict();
    assert_eq!((idle.p_value_errors, idle.p_value_latency), (before.p_value_errors, before.p_value_latency));
}

/// Aim: one bad moment, however bad, decides nothing.
#[test]
fn no_single_burst_decides() {
    let mut evidence = after(20, &tally(180, 0, 10.0), &tally(20, 0, 10.0));
    period(&mut evidence, &tally(180, 0, 10.0), &tally(500, 500, 500.0));
    assert_eq!(evidence.verdict().worse, None);
}

/// Aim: with little traffic periods are put together, and what comes one by one counts in the end.
#[test]
fn little_traffic_counts_too() {
    let mut evidence = Sequential::new(asked());
    for _ in 0..900 {
        period(&mut evidence, &tally(1, 0, 10.0), &Tally::default());
        period(&mut evidence, &Tally::default(), &tally(1, 0, 10.0));
    }
    assert!(evidence.verdict().good_enough, "{}", evidence.verdict().words);
}

/// Aim: evidence is kept as text and gone on with as if nothing had been; what does not read is refused.
#[test]
fn evidence_survives_a_restart() {
    let (stable, candidate) = (tally(95, 1, 10.0), tally(12, 1, 12.0));
    let mut one = after(11, &stable, &candidate);
    let mut other: Sequential = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
    period(&mut one, &stable, &candidate);
    period(&mut other, &stable, &candidate);
    assert_eq!(one.tallies(), other.tallies());
    let (one, other) = (one.verdict(), other.verdict());
    // The last digit of a number may be lost in the text.
    let near = |one: f64, other: f64| (one - other).abs() < 1e-9;
    assert!(near(one.p_value_errors, other.p_value_errors) && near(one.p_value_latency, other.p_value_latency), "{one:?} {other:?}");
    assert_eq!((one.worse, one.good_enough, one.more_needed), (other.worse, other.good_enough, other.more_needed));
    let long = serde_json::json!({"requests": 1, "failures": 0, "buckets": vec![0; BUCKETS + 1]});
    assert!(serde_json::from_value::<Tally>(long).is_err());
}

/// Aim: a wager is fair: its mean over all that may come in a period is at most one wherever in the claim the truth lies, whatever spread is taken off.
#[test]
fn wagers_are_fair() {
    let binomial = |of: u32, share: f64, bad: u32| {
        let ways: f64 = (0..bad).map(|at| f64::from(of - at) / f64::from(bad - at)).product();
        ways * share.powi(bad as i32) * (1.0 - share).powi((of - bad) as i32)
    };
    let (stable_of, candidate_of) = (14, 5);
    for (claim, spread) in [
        (Hypothesis::AtMost(0.05), 0.5),
        (Hypothesis::AtLeast(0.05), 0.5),
        (Hypothesis::AtMost(0.05), 1.7),
        (Hypothesis::AtLeast(0.05), 1.7),
    ] {
        let guesses = if claim == Hypothesis::AtMost(0.05) { [0.3, 0.7] } else { [0.02, 0.1] };
        for truth in [0.01, 0.1, 0.4, 0.9] {
            for shift in [0.0, 0.05, 0.3] {
                let candidate = match claim {
                    Hypothesis::AtMost(d) => truth + d - shift,
                    Hypothesis::AtLeast(d) => truth + d + shift,
                };
                if !(0.0..=1.0).contains(&candidate) {
                    continue;
                }
                let mut mean = 0.0;
                for stable_bad in 0..=stable_of {
                    for candidate_bad in 0..=candidate_of {
                        let count = |of: u32, bad: u32| Count { of: f64::from(of), bad: f64::from(bad) };
                        let mut wager = Wager::new(2);
                        let (one, other) =
                            (count(stable_of, stable_bad).thinned(spread), count(candidate_of, candidate_bad).thinned(2.0 * spread));
                        wager.take(claim, (0.1, &guesses), one, other);
                        mean +=
                            wager.log().exp() * binomial(stable_of, truth, stable_bad) * binomial(candidate_of, candidate, candidate_bad);
                    }
                }
                assert!(mean <= 1.0 + 1e-9, "{claim:?} at {truth} and {candidate}: {mean}");
            }
        }
    }
}

/// Aim: where the guess is the truth a wager grows, and it grows the more the more stable requests there are to compare with.
#[test]
fn wagers_grow_by_the_truth() {
    let (few, many) =
        (growth(Hypothesis::AtMost(0.01), (0.005, 0.055), (1.0, 1.0)), growth(Hypothesis::AtMost(0.01), (0.005, 0.055), (19.0, 1.0)));
    assert!(few > 0.01 && many > few && many < 0.05, "{few} {many}");
    assert!(growth(Hypothesis::AtLeast(0.02), (0.0001, 0.0001), (19.0, 1.0)) > 0.015);
    assert_eq!(growth(Hypothesis::AtMost(0.01), (0.005, 0.01), (1.0, 1.0)), 0.0);
}

/// Aim: bursts show as a spread of about their size, a jump and a drift do not.
#[test]
fn bursts_show_as_spread() {
    let spread = |bad: &dyn Fn(usize) -> f64| {
        let mut spread = Spread::default();
        (0..200).for_each(|at| spread.take(Count { of: 100.0, bad: bad(at) }));
        spread.factor()
    };
    let burst = spread(&|at| if at % 10 == 0 { 10.0 } else { 0.0 });
    assert!((6.0..11.0).contains(&burst), "{burst}");
    assert_eq!(spread(&|at| (at / 20) as f64), 1.0);
    assert_eq!(spread(&|at| if at < 100 { 0.0 } else { 30.0 }), 1.0);
}

/// Aim: latencies are in the bucket that ends at or above them, and quantiles come back to a bucket's width.
#[test]
fn latencies_have_their_bucket() {
    for (ms, at) in [(0.0, 0), (0.25, 0), (0.26, 1), (1.0, 8), (1e9, BUCKETS - 1), (f64::NAN, 0)] {
        assert_eq!(bucket(ms), at, "{ms}");
    }
    assert!((end_ms(8) - 1.0).abs() < 1e-9 && end_ms(BUCKETS - 1) == end_ms(BUCKETS - 2));
    let mut tally = tally(99, 0, 10.0);
    tally.record(false, 70.0);
    assert!((8.4..=11.4).contains(&tally.quantile_ms(0.5).unwrap()) && (8.4..=11.4).contains(&tally.quantile_ms(0.99).unwrap()));
    assert!((60.0..=80.0).contains(&tally.quantile_ms(1.0).unwrap()));
    assert_eq!((Tally::default().quantile_ms(0.5), tally.slower_than(bucket(10.0))), (None, 1));
}
