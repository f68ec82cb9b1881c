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
