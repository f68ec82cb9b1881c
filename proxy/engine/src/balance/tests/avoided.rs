//! Who takes what endpoints get that are passed over, and when those are tried again.

use super::*;

const LISTED: usize = 1_000;
/// The first so many refuse connects.
const DEAD: usize = 300;

#[test]
fn what_a_dead_zone_had_is_spread_over_all_others() {
    // Aim: a third of a large cluster refuses connects, one beside the other: nobody alive gets more than three times its share, and
    // nobody dead gets anything.
    for algorithm in ALL {
        let cluster = cluster(by(algorithm), &weighted(&[1; LISTED]));
        cluster.endpoints.load().ready[..DEAD].iter().for_each(|endpoint| refuse(&cluster, endpoint, at(1.0)));
        let shares = shares(&cluster, &[], at(1.0), DRAWS);
        assert!(shares[..DEAD].iter().all(|share| *share == 0.0), "{algorithm:?}");
        let most = shares.iter().copied().fold(0.0, f64::max) * (LISTED - DEAD) as f64;
        assert!(most < 3.0, "{algorithm:?}: {most} times the fair share");
    }
}

#[test]
fn weights_hold_among_those_that_are_left() {
    // Aim: what one that is passed over had goes to others by their weights.
    for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::LeastRequest] {
        let cluster = cluster(by(algorithm), &weighted(&[6, 1, 3]));
        refuse(&cluster, &cluster.endpoints.load().ready[0], at(1.0));
        let shares = shares(&cluster, &[], at(1.0), 20_000);
        assert!(shares[0] == 0.0 && (shares[1] - 0.25).abs() < 0.03, "{algorithm:?}: {shares:?}");
    }
}

#[test]
fn the_last_one_alive_of_a_few_is_always_found() {
    // Aim: of sixty all but one refuse connects or were tried: every pick leads to that one, also to the last of another tier.
    for algorithm in ALL {
        let mut listed = weighted(&[1; 60]);
        let cluster = cluster(near(Balance { algorithm, ..Balance::default() }), &listed);
        let refuse_but = |alive: usize| {
            let set = cluster.endpoints.load_full();
            set.ready.iter().filter(|endpoint| index(endpoint) != alive).for_each(|endpoint| refuse(&cluster, endpoint, at(1.0)));
        };
        refuse_but(17);
        assert_eq!(shares(&cluster, &[], at(1.0), 1_000)[17], 1.0, "{algorithm:?}");
        for (n, facts) in listed.iter_mut().enumerate() {
            let zone = if n == 17 { "r/b" } else { "r/a" };
            facts.locality = Locality { region: "r".into(), zone: zone.into() };
        }
        feed(&cluster, &listed);
        refuse_but(17);
        assert_eq!(shares(&cluster, &[], at(1.0), 1_000)[17], 1.0, "{algorithm:?} in another zone");
    }
}

#[test]
fn where_all_fail_requests_go_where_they_would() {
    // Aim: a total outage of a large cluster leaves picks that are spread as ever, and past those that a request has tried.
    for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::LeastRequest] {
        let cluster = cluster(by(algorithm), &weighted(&[1; LISTED]));
        let set = cluster.endpoints.load_full();
        set.ready.iter().for_each(|endpoint| refuse(&cluster, endpoint, at(1.0)));
        let tried = [set.ready[3].address, set.ready[4].address, set.ready[5].address];
        let shares = shares(&cluster, &tried, at(1.0), 20_000);
        assert_eq!(shares[3..6], [0.0; 3]);
        let most = shares.iter().copied().fold(0.0, f64::max) * LISTED as f64;
        assert!(most < 2.5, "{algorithm:?}: {most} times the fair share");
    }
}

#[test]
fn who_refused_connects_is_tried_again_in_time() {
    // Aim: by time and not by the number of requests: one request after a tenth of a second, then after ever longer, five seconds at most;
    // an answer or a connection ends that.
    for algorithm in ALL {
        let cluster = cluster(by(algorithm), &weighted(&[1; 3]));
        let set = cluster.endpoints.load_full();
        let dead = &set.ready[0];
        let probes = |now| (shares(&cluster, &[], at(now), 1_000)[0] * 1_000.0).round() as u32;
        let mut now = 10.0;
        for wait in [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0] {
            refuse(&cluster, dead, at(now));
            assert_eq!([probes(now + wait - 0.01), probes(now + wait), probes(now + wait + 0.05)], [0, 1, 0], "{algorithm:?} after {wait}");
            now += wait + 0.1;
        }
        cluster.told(dead, Outcome::Answered { status: 500, took: Duration::from_millis(1) }, at(now));
        assert!(algorithm == Algorithm::PeakEwma || probes(now) > 200, "a kept connection gave an answer");
        assert_eq!(dead.live.connect_failures.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn only_a_first_attempt_sees_whether_who_refused_is_back() {
    // Aim: a request that has failed once goes to who is known to be alive.
    for algorithm in ALL {
        let cluster = cluster(by(algorithm), &weighted(&[1; 4]));
        let set = cluster.endpoints.load_full();
        set.ready[..2].iter().for_each(|endpoint| refuse(&cluster, endpoint, at(1.0)));
        assert_eq!(shares(&cluster, &[set.ready[2].address], at(60.0), 1_000)[3], 1.0, "{algorithm:?}");
        assert_eq!(shares(&cluster, &[], at(60.0), 1_000)[..2].iter().sum::<f64>(), 0.001, "{algorithm:?}");
    }
}

/// What came of requests of three attempts each.
#[derive(Debug, Default)]
struct Served {
    requests: u32,
    /// Whose first attempt was in vain.
    again: u32,
    failed: u32,
    /// Who answered, and when first.
    first: std::collections::HashMap<usize, f64>,
}

/// Requests at a steady rate from some second to another, while those refuse connects.
fn serve(cluster: &Cluster, per_second: f64, secs: std::ops::Range<f64>, dead: impl Fn(usize) -> bool) -> Served {
    let set = cluster.endpoints.load_full();
    let mut served = Served::default();
    let mut bits = draws(u64::MAX).skip(secs.start as usize);
    let mut now = secs.start;
    while now < secs.end {
        cluster.live.budget.deposit();
        served.requests += 1;
        let hash = bits.next();
        let mut tried = Vec::new();
        while tried.len() < 3 {
            let choice = Choice { draw: bits.next().unwrap(), hash, tried: &tried, now: at(now), trials: true };
            let endpoint = pick(cluster, &set, &choice).unwrap();
            if !dead(index(endpoint)) {
                cluster.told(endpoint, Outcome::Answered { status: 200, took: Duration::from_millis(1) }, at(now));
                served.first.entry(index(endpoint)).or_insert(now);
                break;
            }
            refuse(cluster, endpoint, at(now));
            tried.push(endpoint.address);
        }
        served.again += u32::from(!tried.is_empty());
        served.failed += u32::from(tried.len() == 3);
        now += 1.0 / per_second;
    }
    served
}

/// A cluster of so many, of which those have refused connects for long.
fn troubled(algorithm: Algorithm, listed: usize, dead: impl Fn(usize) -> bool) -> Cluster {
    let cluster = cluster(by(algorithm), &weighted(&vec![1; listed]));
    let set = cluster.endpoints.load_full();
    let refusing = || set.ready.iter().filter(|endpoint| dead(index(endpoint)));
    (0..7).for_each(|_| refusing().for_each(|endpoint| refuse(&cluster, endpoint, at(1.0))));
    cluster
}

#[test]
fn many_that_are_dead_cost_few_attempts_and_no_request() {
    // Aim: most of a cluster refuses connects and nobody is ejected: every request is answered, and at most one of ten needs a second
    // attempt, at low rates as at high ones.
    for algorithm in ALL {
        for (listed, alive_each, per_second) in [(10, 5, 2.0), (10, 5, 500.0), (200, 10, 30.0)] {
            let dead = |index: usize| !index.is_multiple_of(alive_each);
            let served = serve(&troubled(algorithm, listed, dead), per_second, 1.0..300.0, dead);
            let Served { requests, again, failed, .. } = served;
            assert!(
                failed == 0 && again > 0 && again * 10 <= requests,
                "{algorithm:?} {listed} at {per_second}: {again}, {failed} of {requests}"
            );
        }
    }
}

#[test]
fn who_is_back_is_found_within_seconds() {
    // Aim: of three, and of ten of which two more stay dead, at twenty requests a second.
    for algorithm in ALL {
        for (listed, dead) in [(3, 1), (10, 3)] {
            let cluster = troubled(algorithm, listed, |index| index < dead);
            serve(&cluster, 20.0, 1.0..100.0, |index| index < dead);
            let found = serve(&cluster, 20.0, 100.0..120.0, |index| index > 0 && index < dead).first[&0] - 100.0;
            assert!(found < 7.0, "{algorithm:?}, one of {dead} of {listed}: after {found} s");
        }
    }
}
