//! Picks from whole clusters: shares, loads, places and health together.

use std::time::Duration;

use super::*;
use crate::health::{Outcome, Outlier};
use crate::model::{
    Algorithm, Balance, ClusterKind, ClusterPolicy, EndpointFacts, Health, Home, Locality, Prefer, Protocol, session_token,
};

const ALL: [Algorithm; 6] =
    [Algorithm::LeastRequest, Algorithm::PeakEwma, Algorithm::RoundRobin, Algorithm::Random, Algorithm::RingHash, Algorithm::Maglev];
const DRAWS: u64 = 100_000;

fn facts(index: usize, weight: u32, zone: &str) -> EndpointFacts {
    EndpointFacts {
        address: SocketAddr::from(([10, 0, (index >> 8) as u8, index as u8], 80)),
        weight,
        health: Health::Healthy,
        identity: None,
        namespace: "shop".into(),
        workload: "w".into(),
        instance: "".into(),
        workload_id: 1,
        locality: Locality { region: zone.split('/').next().unwrap_or_default().into(), zone: zone.into() },
    }
}

fn cluster(policy: ClusterPolicy, listed: &[EndpointFacts]) -> Cluster {
    let cluster = Cluster {
        name: "c".into(),
        namespace: "".into(),
        service: "".into(),
        protocol: Protocol::Http,
        connect_timeout: Duration::from_secs(1),
        kind: ClusterKind::Endpoints,
        tls: None,
        policy: Arc::new(policy),
        endpoints: Arc::default(),
        live: Arc::default(),
    };
    feed(&cluster, listed);
    cluster
}

fn feed(cluster: &Cluster, listed: &[EndpointFacts]) {
    static CONTENT: AtomicU64 = AtomicU64::new(1);
    let home = Home { locality: Locality { region: "r".into(), zone: "r/a".into() }, session_key: vec![7; 32] };
    cluster.endpoints.feed(&cluster.name, (CONTENT.fetch_add(1, Ordering::Relaxed), listed), &cluster.policy, &home);
}

fn by(algorithm: Algorithm) -> ClusterPolicy {
    ClusterPolicy { balance: Balance { algorithm, ..Balance::default() }, ..ClusterPolicy::default() }
}

fn weighted(weights: &[u32]) -> Vec<EndpointFacts> {
    weights.iter().enumerate().map(|(index, weight)| facts(index, *weight, "")).collect()
}

fn at(secs: f64) -> Moment {
    Moment::after_start(Duration::from_secs_f64(secs))
}

/// A fixed sequence of well-mixed draws.
fn draws(count: u64) -> impl Iterator<Item = u64> {
    (1..=count).map(|n| mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn index(endpoint: &Endpoint) -> usize {
    let SocketAddr::V4(address) = endpoint.address else { unreachable!() };
    let [.., high, low] = address.ip().octets();
    usize::from(u16::from_be_bytes([high, low]))
}

fn shares(cluster: &Cluster, tried: &[SocketAddr], now: Moment, count: u64) -> Vec<f64> {
    let set = cluster.endpoints.load_full();
    let mut counts = vec![0_u32; 1024];
    for draw in draws(count) {
        let choice = Choice { draw, hash: Some(mix(draw)), tried, now, trials: true };
        cluster.live.budget.deposit();
        counts[index(pick(cluster, &set, &choice).unwrap())] += 1;
    }
    let known = set.ready.len() + set.other.len();
    counts[..known].iter().map(|count_of| f64::from(*count_of) / count as f64).collect()
}

#[test]
fn every_algorithm_shares_as_it_says() {
    // Aim: over 100,000 picks of idle endpoints the measured shares are the told chances, as near as chance allows, whatever the weights.
    for algorithm in ALL {
        for weights in [&[1, 1, 1, 1][..], &[1, 3], &[5, 1, 4], &[u32::MAX, u32::MAX], &[1]] {
            let cluster = cluster(by(algorithm), &weighted(weights));
            let told = chances(&cluster.endpoints.load(), None);
            assert!((told.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let seen = shares(&cluster, &[], at(1.0), DRAWS);
            let misfit: f64 = seen.iter().zip(&told).map(|(seen, told)| (seen - told).powi(2) / told * DRAWS as f64).sum();
            assert!(misfit / seen.len() as f64 <= 5.0, "{algorithm:?} {weights:?}: {seen:?} against {told:?}");
            let by_weight = weights.iter().map(|weight| f64::from(*weight) / weights.iter().map(|w| f64::from(*w)).sum::<f64>());
            for (told, wanted) in told.iter().zip(by_weight) {
                assert!((told / wanted - 1.0).abs() < 0.13, "{algorithm:?} {weights:?}: {told} for {wanted}");
            }
        }
    }
}

/// A connect to that one fails.
fn refuse(cluster: &Cluster, endpoint: &Arc<Endpoint>, now: Moment) {
    endpoint.live.connect_failed();
    cluster.told(endpoint, Outcome::ConnectFailed, now);
}

#[test]
fn tried_and_failing_endpoints_are_avoided_while_there_is_another() {
    // Aim: with every algorithm never an endpoint already tried, none that has just refused a connect, and always some endpoint.
    for algorithm in ALL {
        let cluster = cluster(by(algorithm), &weighted(&[1, 1, 1]));
        let set = cluster.endpoints.load_full();
        let address = |n: usize| set.ready[n].address;
        assert_eq!(shares(&cluster, &[address(0), address(1)], at(1.0), 1_000), [0.0, 0.0, 1.0], "{algorithm:?}");
        for n in 0..3 {
            refuse(&cluster, &set.ready[0], at(1.0));
            assert_eq!(shares(&cluster, &[], at(1.0), 1_000)[0], 0.0, "{algorithm:?} after {n} failures");
        }
        assert_eq!(shares(&cluster, &[address(1), address(2)], at(1.0), 1_000)[0], 1.0, "the failing one is the only one left");
        let all = [address(0), address(1), address(2)];
        let choice = Choice { draw: 7, hash: None, tried: &all, now: at(1.0), trials: true };
        assert!(pick(&cluster, &set, &choice).is_some());
        assert!(pick(&cluster, &EndpointSet::default(), &choice).is_none());
    }
}

#[test]
fn the_busier_of_two_is_passed_over() {
    // Aim: least request counts requests in flight per weight.
    let cluster = cluster(by(Algorithm::LeastRequest), &weighted(&[1, 1]));
    let set = cluster.endpoints.load_full();
    let _guard = set.ready[0].live.enter();
    assert_eq!(shares(&cluster, &[], at(1.0), 1_000), [0.0, 1.0]);
    let uneven = self::cluster(by(Algorithm::LeastRequest), &weighted(&[4, 1]));
    let set = uneven.endpoints.load_full();
    let _guards: Vec<_> = [0, 0, 0, 1].map(|n: usize| set.ready[n].live.enter()).into();
    let light = shares(&uneven, &[], at(1.0), DRAWS)[1];
    assert!((light - 0.04).abs() < 0.01, "three of four is less than one of one, unless both draws are the light one: {light}");
}

#[test]
fn the_slower_is_passed_over_until_it_has_faded() {
    // Aim: peak EWMA goes by latency and load; a new endpoint is tried at once; a slow one comes back by and by.
    let cluster = cluster(by(Algorithm::PeakEwma), &weighted(&[1, 1]));
    let set = cluster.endpoints.load_full();
    let answered = |millis| Outcome::Answered { status: 200, took: Duration::from_millis(millis) };
    cluster.told(&set.ready[0], answered(10), at(1.0));
    assert_eq!(shares(&cluster, &[], at(1.0), 1_000), [0.0, 1.0], "the unknown one is tried");
    cluster.told(&set.ready[1], answered(100), at(1.0));
    assert_eq!(shares(&cluster, &[], at(1.0), 1_000), [1.0, 0.0]);
    let guards: Vec<_> = (0..12).map(|_| set.ready[0].live.enter()).collect();
    assert_eq!(shares(&cluster, &[], at(1.0), 1_000), [0.0, 1.0], "thirteen times ten is more than a hundred");
    drop(guards);
    assert!((2..30).all(|second| cluster.told(&set.ready[0], answered(10), at(f64::from(second))).is_none()));
    assert_eq!(shares(&cluster, &[], at(29.0), 1_000), [0.0, 1.0], "forgotten, so it is tried again");
}

#[test]
fn turns_go_round() {
    // Aim: n picks of n equal endpoints meet each once, from whichever the first draw chose; and two proxies begin apart.
    let mut begins = Vec::new();
    for first in draws(20) {
        let cluster = cluster(by(Algorithm::RoundRobin), &weighted(&[1; 10]));
        let set = cluster.endpoints.load_full();
        let picked = |draw| pick(&cluster, &set, &Choice { draw, hash: None, tried: &[], now: at(1.0), trials: true }).unwrap().address;
        let mut round: Vec<_> = std::iter::once(first).chain(draws(9)).map(picked).collect();
        begins.push(round[0]);
        round.sort_unstable();
        round.dedup();
        assert_eq!(round.len(), 10);
    }
    begins.sort_unstable();
    begins.dedup();
    assert!(begins.len() > 4, "{begins:?}");
}

#[test]
fn a_hash_stays_where_it_is() {
    // Aim: a hash has one endpoint; when that was tried the same next one, whatever the draw.
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let cluster = cluster(by(algorithm), &weighted(&[1; 10]));
        let set = cluster.endpoints.load_full();
        for hash in draws(100) {
            let picked = |draw, tried: &[SocketAddr]| {
                pick(&cluster, &set, &Choice { draw, hash: Some(hash), tried, now: at(1.0), trials: true }).unwrap().address
            };
            let first = picked(1, &[]);
            let second = picked(1, &[first]);
            assert!(first != second && draws(20).all(|draw| picked(draw, &[]) == first && picked(draw, &[first]) == second));
        }
    }
}

#[test]
fn latency_is_compared_between_those_that_weight_drew() {
    // Aim: with peak EWMA equal endpoints share by weight, idle or loaded, and one that is slower gets less, whatever its weight.
    let cluster = cluster(by(Algorithm::PeakEwma), &weighted(&[1, 3]));
    let set = cluster.endpoints.load_full();
    let share_of_light = |millis: [u64; 2], under_way: usize| {
        let mut guards = std::collections::VecDeque::new();
        let mut light = 0_u64;
        for (n, draw) in draws(20_000).enumerate() {
            let now = at(1.0 + n as f64 / 1_000.0);
            let endpoint = pick(&cluster, &set, &Choice { draw, hash: None, tried: &[], now, trials: true }).unwrap();
            light += u64::from(index(endpoint) == 0);
            guards.push_back(endpoint.live.enter());
            guards.drain(..guards.len().saturating_sub(under_way));
            cluster.told(endpoint, Outcome::Answered { status: 200, took: Duration::from_millis(millis[index(endpoint)]) }, now);
        }
        light as f64 / 20_000.0
    };
    let told = chances(&set, None)[0];
    for under_way in [0, 40] {
        let light = share_of_light([10, 10], under_way);
        assert!((light - told).abs() < 0.02 && told == 0.25, "{light} with {under_way} under way");
    }
    assert!(share_of_light([10, 30], 0) > 0.4, "the heavy one is slow");
    assert!(share_of_light([30, 10], 0) < 0.1, "the light one is slow");
}

fn near(policy: Balance) -> ClusterPolicy {
    ClusterPolicy { balance: Balance { prefer: Prefer::Zone, ..policy }, ..ClusterPolicy::default() }
}

#[test]
fn nearer_endpoints_go_first() {
    // Aim: the zone, then the region, then the rest, in proportion to who is well; without preference or place all are equal.
    let spots = ["r/a", "r/a", "r/b", "r/b", "s/a"];
    let mut listed: Vec<_> = spots.iter().enumerate().map(|(index, zone)| facts(index, 1, zone)).collect();
    for algorithm in ALL {
        let zonal = cluster(near(Balance { algorithm, ..Balance::default() }), &listed);
        let seen = shares(&zonal, &[], at(1.0), 20_000);
        assert_eq!(seen[2..], [0.0; 3], "{algorithm:?}");
        listed[0].health = Health::Unhealthy;
        feed(&zonal, &listed);
        let seen = shares(&zonal, &[], at(1.0), DRAWS);
        assert!((seen[1] - 0.5 / 0.7).abs() < 0.01 && seen[4] == 0.0, "{algorithm:?}: {seen:?}");
        let set = zonal.endpoints.load_full();
        for (endpoint, told) in set.ready.iter().zip(chances(&set, None)) {
            let seen = seen[index(endpoint)];
            assert!((seen - told).abs() < 0.01, "{algorithm:?}: {seen} for {told}");
        }
        let untried: Vec<_> = set.ready.iter().map(|endpoint| endpoint.address).filter(|address| *address != listed[4].address).collect();
        assert_eq!(shares(&zonal, &untried, at(1.0), 1_000)[4], 1.0, "further, but not tried");
        listed[0].health = Health::Healthy;
    }
    let regional = ClusterPolicy { balance: Balance { prefer: Prefer::Region, ..Balance::default() }, ..ClusterPolicy::default() };
    let seen = shares(&cluster(regional, &listed), &[], at(1.0), 20_000);
    assert!(seen[4] == 0.0 && seen[..4].iter().all(|share| (share - 0.25).abs() < 0.02), "{seen:?}");
    let nowhere = cluster(near(Balance::default()), &weighted(&[1; 4]));
    assert!(shares(&nowhere, &[], at(1.0), 20_000).iter().all(|share| (share - 0.25).abs() < 0.02));
}

#[test]
fn new_endpoints_grow_warm() {
    // Aim: a tenth of the share at first, half-way half-way, the whole after the window; old ones never cool.
    for algorithm in [Algorithm::LeastRequest, Algorithm::PeakEwma, Algorithm::Random, Algorithm::RoundRobin] {
        let slow = Balance { algorithm, slow_start: Some(Duration::from_secs(180)), ..Balance::default() };
        let cluster = cluster(ClusterPolicy { balance: slow, ..ClusterPolicy::default() }, &weighted(&[1]));
        let look = |secs| cluster.endpoints.passed(at(secs));
        look(100.0);
        look(400.0);
        feed(&cluster, &weighted(&[1, 1]));
        for (secs, percent) in [(1_000.0, 10.0), (1_095.0, 55.0), (1_185.0, 100.0), (9_000.0, 100.0)] {
            look(secs);
            let told = chances(&cluster.endpoints.load(), None)[1];
            assert!((told - percent / (100.0 + percent)).abs() < 1e-9, "{algorithm:?} at {secs}: {told}");
        }
        let seen = shares(&cluster, &[], at(9_000.0), 20_000)[1];
        assert!((seen - 0.5).abs() < 0.02);
    }
}

#[test]
fn in_panic_health_is_disregarded() {
    // Aim: below the threshold the unhealthy are picked, too, but never who is draining; with 0 never.
    let mut listed = weighted(&[1; 5]);
    for (index, health) in [(1, Health::Unhealthy), (2, Health::Unhealthy), (3, Health::Unhealthy), (4, Health::Draining)] {
        listed[index].health = health;
    }
    for (threshold, ready) in [(0.0, 1), (25.0, 1), (26.0, 4), (100.0, 4)] {
        let policy =
            ClusterPolicy { balance: Balance { panic_below_percent: threshold, ..Balance::default() }, ..ClusterPolicy::default() };
        let cluster = cluster(policy, &listed);
        let set = cluster.endpoints.load();
        assert_eq!((set.ready.len(), set.panics()), (ready, ready == 4), "{threshold}");
        assert!(set.ready.iter().all(|endpoint| endpoint.health != Health::Draining));
    }
    listed[0].health = Health::Unhealthy;
    assert!(cluster(ClusterPolicy::default(), &listed[..4]).endpoints.load().ready.is_empty());
}

#[test]
fn who_drains_is_asked_where_nobody_else_is() {
    // Aim: the last replica that is deleted serves until it has gone, or until another is healthy; the unhealthy are no reason not to ask it.
    for algorithm in ALL {
        let mut listed = weighted(&[1, 1]);
        listed[0].health = Health::Draining;
        listed[1].health = Health::Unhealthy;
        let cluster = cluster(by(algorithm), &listed);
        let picked = |cluster: &Cluster| {
            let set = cluster.endpoints.load();
            set.ready.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>()
        };
        assert_eq!(picked(&cluster), [listed[0].address]);
        let shares = shares(&cluster, &[], at(1.0), 100);
        assert!((shares[0] - 1.0).abs() < f64::EPSILON, "{algorithm:?}: {shares:?}");
        listed[1].health = Health::Healthy;
        feed(&cluster, &listed);
        assert_eq!(picked(&cluster), [listed[1].address]);
    }
}

#[test]
fn a_session_leads_to_its_endpoint_while_that_may_be_picked() {
    // Aim: a token is the endpoint's in this cluster, whoever else comes; gone, unwell or without sessions it leads nowhere.
    let policy = ClusterPolicy { sessions: true, ..by(Algorithm::RoundRobin) };
    let cluster = cluster(policy, &weighted(&[1; 3]));
    let set = cluster.endpoints.load_full();
    let tokens: Vec<_> = set.ready.iter().map(|endpoint| set.session_of(endpoint).unwrap()).collect();
    assert_eq!(tokens[1], session_token(&[7; 32], "c", set.ready[1].address));
    let mut listed = weighted(&[1; 5]);
    listed[2].health = Health::Draining;
    feed(&cluster, &listed[1..]);
    let set = cluster.endpoints.load_full();
    let led: Vec<_> = tokens.iter().map(|token| set.of_session(token).map(|endpoint| endpoint.address)).collect();
    assert_eq!(led, [None, Some(listed[1].address), None]);
    let plain = self::cluster(by(Algorithm::RoundRobin), &weighted(&[1; 3]));
    let set = plain.endpoints.load_full();
    assert!(set.of_session(&tokens[1]).is_none() && set.session_of(&set.ready[1]).is_none());
}

fn judged(max_ejected_percent: f64) -> ClusterPolicy {
    let outlier = Outlier {
        consecutive_errors: Some(3),
        consecutive_connect_failures: Some(2),
        success_rate_min_percent: Some(80.0),
        latency_factor: Some(3.0),
        interval: Duration::from_secs(10),
        eject_for: Duration::from_secs(30),
        max_ejected_percent,
    };
    ClusterPolicy { outlier: Some(outlier), ..ClusterPolicy::default() }
}

mod avoided;
mod dumps;
mod health;
