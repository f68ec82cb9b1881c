//! Who is thrown out, who comes back, and what pushes have to do with it.

use std::time::Duration;

use super::*;
use crate::health::{ActiveCheck, CheckQuestion, Ejection, Outcome, Wellness};
use crate::model::Ejected;

const BAD: Outcome = Outcome::Answered { status: 503, took: Duration::from_millis(1) };

fn good(millis: u64) -> Outcome {
    Outcome::Answered { status: 200, took: Duration::from_millis(millis) }
}

fn endpoint(cluster: &Cluster, n: u8) -> Arc<Endpoint> {
    let set = cluster.endpoints.load_full();
    let wanted = SocketAddr::from(([10, 0, 0, n], 80));
    set.ready.iter().chain(&set.other).find(|endpoint| endpoint.address == wanted).unwrap().clone()
}

fn told(cluster: &Cluster, n: u8, outcomes: &[Outcome], now: Moment) -> Option<Ejected> {
    outcomes.iter().filter_map(|outcome| cluster.told(&endpoint(cluster, n), *outcome, now)).fold(None, |_, ejected| Some(ejected))
}

fn ready(cluster: &Cluster) -> usize {
    cluster.endpoints.load().ready.len()
}

fn picked(cluster: &Cluster, draw: u64, now: Moment) -> SocketAddr {
    let set = cluster.endpoints.load_full();
    pick(cluster, &set, &Choice { draw, hash: Some(draw), tried: &[], now, trials: true }).unwrap().address
}

#[test]
fn who_fails_in_a_row_is_thrown_out_within_bounds() {
    // Aim: three errors or two failed connects; half of them at most; never the last one.
    let four = cluster(judged(50.0), &weighted(&[1; 4]));
    assert_eq!(told(&four, 0, &[BAD, BAD, good(1), BAD, BAD], at(1.0)), None);
    let first = Ejected { cause: Ejection::ConsecutiveErrors, endpoints: 1, lasts: Duration::from_secs(30) };
    assert_eq!(told(&four, 0, &[BAD], at(1.0)), Some(first));
    let second = told(&four, 1, &[Outcome::ConnectFailed; 2], at(1.0)).unwrap();
    assert_eq!((second.cause, ready(&four)), (Ejection::ConnectFailures, 2));
    assert_eq!(told(&four, 2, &[BAD; 9], at(1.0)), None, "half of them are out");
    assert_eq!(shares(&four, &[], at(2.0), 1_000)[..2], [0.0, 0.0]);
    let one = cluster(judged(100.0), &weighted(&[1, 1]));
    assert!(told(&one, 0, &[BAD; 3], at(1.0)).is_some() && told(&one, 1, &[BAD; 9], at(1.0)).is_none(), "never the last");
    let none = cluster(judged(10.0), &weighted(&[1; 4]));
    assert_eq!(told(&none, 0, &[BAD; 9], at(1.0)), None, "a tenth of four is none");
    let plain = cluster(ClusterPolicy::default(), &weighted(&[1; 4]));
    assert_eq!((told(&plain, 0, &[BAD; 99], at(1.0)), ready(&plain)), (None, 4));
}

#[test]
fn who_was_thrown_out_comes_back_by_one_request() {
    // Aim: after its time one request at a time goes there, of all algorithms; a failure doubles the time, a success ends it.
    for algorithm in ALL {
        let policy = ClusterPolicy { balance: Balance { algorithm, ..Balance::default() }, ..judged(50.0) };
        let cluster = cluster(policy, &weighted(&[1; 3]));
        let out = endpoint(&cluster, 0).address;
        told(&cluster, 0, &[BAD; 3], at(1.0)).unwrap();
        assert!(draws(50).all(|draw| picked(&cluster, draw, at(30.9)) != out), "{algorithm:?}");
        // The pick that notices has the set from before.
        picked(&cluster, 1, at(31.0));
        assert_eq!(picked(&cluster, 2, at(31.0)), out, "{algorithm:?}");
        assert!(draws(50).all(|draw| picked(&cluster, draw, at(32.0)) != out), "one at a time");
        assert_eq!(told(&cluster, 0, &[BAD], at(33.0)).unwrap().lasts, Duration::from_secs(60));
        picked(&cluster, 1, at(93.0));
        assert_eq!(picked(&cluster, 2, at(93.0)), out);
        assert_eq!((told(&cluster, 0, &[good(1)], at(94.0)), ready(&cluster)), (None, 3));
        // Peak EWMA has reasons of its own not to go there yet.
        assert!(algorithm == Algorithm::PeakEwma || shares(&cluster, &[], at(95.0), 1_000)[0] > 0.0);
        assert_eq!(endpoint(&cluster, 0).live.wellness(), Wellness::Well);
    }
}

#[test]
fn a_push_never_forgets_an_ejection() {
    // Aim: new lists, new facts of the endpoint, a new policy, a flap: it stays out; a policy without detection lets it in.
    let cluster = cluster(judged(50.0), &weighted(&[1; 3]));
    told(&cluster, 0, &[BAD; 3], at(1.0)).unwrap();
    feed(&cluster, &weighted(&[7, 1, 1, 1]));
    assert_eq!(ready(&cluster), 3);
    feed(&cluster, &weighted(&[1; 4])[1..]);
    feed(&cluster, &weighted(&[1; 4]));
    assert_eq!(ready(&cluster), 3, "it left and came back");
    let next = |policy: ClusterPolicy| Cluster {
        policy: Arc::new(policy),
        endpoints: Arc::clone(&cluster.endpoints),
        live: Arc::clone(&cluster.live),
        ..super::cluster(ClusterPolicy::default(), &[])
    };
    feed(&next(judged(40.0)), &weighted(&[1; 4]));
    assert_eq!(ready(&cluster), 3);
    feed(&next(ClusterPolicy::default()), &weighted(&[1; 4]));
    assert_eq!(ready(&cluster), 4);
    feed(&cluster, &weighted(&[1; 4])[1..]);
    cluster.endpoints.passed(at(2.0));
    cluster.endpoints.passed(at(500.0));
    feed(&cluster, &weighted(&[1; 3])[1..]);
    feed(&cluster, &weighted(&[1; 4]));
    assert_eq!(ready(&cluster), 4, "whose time is over comes back as new");
}

/// The set does not change between these times.
fn rests(cluster: &Cluster, secs: std::ops::Range<u32>) -> bool {
    let set = cluster.endpoints.load_full();
    secs.into_iter().all(|now| {
        cluster.endpoints.passed(at(f64::from(now)));
        Arc::ptr_eq(&set, &cluster.endpoints.load())
    })
}

#[test]
fn who_left_with_a_request_under_way_costs_picks_nothing() {
    // Aim: the time of an ejection passes while a stream holds an endpoint that is listed no more: the set is made anew when something
    // is due, and not at each pick.
    let cluster = cluster(judged(50.0), &weighted(&[1; 4]));
    let guard = endpoint(&cluster, 0).live.enter();
    told(&cluster, 0, &[BAD; 3], at(1.0)).unwrap();
    feed(&cluster, &weighted(&[1; 4])[1..]);
    cluster.endpoints.passed(at(1.0));
    cluster.endpoints.passed(at(31.0));
    assert!(rests(&cluster, 31..61));
    cluster.endpoints.passed(at(61.0));
    assert!(rests(&cluster, 61..999));
    feed(&cluster, &weighted(&[1; 4]));
    assert_eq!(endpoint(&cluster, 0).live.in_flight.load(Ordering::Relaxed), 1, "it is under way all the same");
    drop(guard);
}

#[test]
fn a_flap_is_no_pardon() {
    // Aim: half-open and failing its checks an endpoint comes back as it was within a minute, and as a new one later.
    let check = ActiveCheck {
        question: CheckQuestion::Tcp,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        healthy_after: 1,
        unhealthy_after: 1,
    };
    for (back, half_open, failing) in [(40.0, true, true), (95.0, false, false)] {
        let cluster = cluster(ClusterPolicy { check: Some(check.clone()), ..judged(50.0) }, &weighted(&[1; 4]));
        told(&cluster, 0, &[BAD; 3], at(1.0)).unwrap();
        cluster.endpoints.passed(at(31.0));
        assert!(cluster.checked(&endpoint(&cluster, 1), false, at(32.0)));
        feed(&cluster, &weighted(&[1; 4])[2..]);
        cluster.endpoints.passed(at(32.0));
        cluster.endpoints.passed(at(back));
        feed(&cluster, &weighted(&[1; 4]));
        let wellness = |n| endpoint(&cluster, n).live.wellness();
        assert_eq!(matches!(wellness(0), Wellness::HalfOpen(_)), half_open, "back at {back}");
        assert_eq!(wellness(1) == Wellness::FailsChecks, failing, "back at {back}");
        assert_eq!(picked(&cluster, 1 << 63, at(back)) == endpoint(&cluster, 0).address, half_open, "and is tried");
    }
}

#[test]
fn a_flap_is_no_pardon_in_a_quiet_cluster() {
    // Aim: who left ten minutes after anybody last asked has its minute from when it is missed, and no longer.
    for (back, half_open) in [(601.0, true), (660.0, true), (662.0, false)] {
        let cluster = cluster(judged(50.0), &weighted(&[1; 4]));
        told(&cluster, 0, &[BAD; 3], at(1.0)).unwrap();
        feed(&cluster, &weighted(&[1; 4])[1..]);
        picked(&cluster, 1, at(601.0));
        picked(&cluster, 1, at(back));
        feed(&cluster, &weighted(&[1; 4]));
        assert_eq!(matches!(endpoint(&cluster, 0).live.wellness(), Wellness::HalfOpen(_)), half_open, "back at {back}");
    }
}

#[test]
fn of_too_many_that_left_the_oldest_are_forgotten() {
    // Aim: beyond the bound those that left last are still known when they come back.
    // Slow start tells the time.
    let slow = Balance { slow_start: Some(Duration::from_secs(18)), ..Balance::default() };
    let listed = weighted(&[1; 1_030]);
    let cluster = cluster(ClusterPolicy { balance: slow, ..ClusterPolicy::default() }, &listed);
    let set = cluster.endpoints.load_full();
    let guards: Vec<_> = set.ready.iter().map(|endpoint| endpoint.live.enter()).collect();
    cluster.endpoints.passed(at(1.0));
    feed(&cluster, &listed[10..]);
    cluster.endpoints.passed(at(5.0));
    feed(&cluster, &[]);
    feed(&cluster, &listed);
    let set = cluster.endpoints.load_full();
    let known = |endpoint: &&Arc<Endpoint>| endpoint.live.in_flight.load(Ordering::Relaxed) == 1;
    assert_eq!((set.ready.iter().filter(known).count(), set.ready[..10].iter().filter(known).count()), (1_024, 4));
    drop(guards);
}

#[test]
fn a_trial_ends_with_its_request() {
    // Aim: told or not, and cancelled at once, it makes room for the next; a pick that takes no trial never gets it, nor does a retry.
    let cluster = cluster(judged(50.0), &weighted(&[1; 3]));
    let out = endpoint(&cluster, 0);
    told(&cluster, 0, &[BAD; 3], at(1.0)).unwrap();
    cluster.endpoints.passed(at(31.0));
    let tries = |draw, trials| {
        let set = cluster.endpoints.load_full();
        pick(&cluster, &set, &Choice { draw, hash: None, tried: &[], now: at(32.0), trials }).unwrap().address == out.address
    };
    assert!(draws(50).all(|draw| !tries(draw, false)), "copies of requests try nothing");
    assert_eq!(shares(&cluster, &[endpoint(&cluster, 1).address], at(32.0), 50)[0], 0.0, "who has failed once has few attempts left");
    assert!(tries(1, true) && !tries(2, true));
    let guard = out.live.enter();
    assert!(draws(50).all(|draw| !tries(draw, true)));
    drop(guard);
    assert!(tries(3, true), "nobody told how it ended");
    let guard = out.live.enter();
    assert!(told(&cluster, 0, &[Outcome::Cancelled], at(32.0)).is_none() && tries(4, true), "it was given up, and its body is still read");
    drop(guard);
    assert!(!tries(5, true), "that was another trial");
    assert!(told(&cluster, 0, &[good(1)], at(33.0)).is_none() && ready(&cluster) == 3);
}

#[test]
fn intervals_throw_out_who_fails_often_or_is_slow() {
    // Aim: an absolute success rate with a least volume; then latency against the others; nothing from before the first interval.
    let cluster = cluster(judged(50.0), &weighted(&[1; 4]));
    let serve = |n: u8, outcomes: &[Outcome], now| {
        (0..30)
            .filter_map(|round: usize| cluster.told(&endpoint(&cluster, n), outcomes[round % outcomes.len()], now))
            .fold(None, |_, ejected| Some(ejected))
    };
    assert_eq!(serve(0, &[BAD, good(1)], at(1.0)), None, "the first interval begins");
    let (mixed, fine) = ([BAD, good(1)], [good(1); 2]);
    assert!((0..4).all(|n| serve(n, if n == 0 { &mixed } else { &fine }, at(5.0)).is_none()));
    assert_eq!(
        serve(1, &[Outcome::Cancelled], at(11.0)),
        None,
        "what says nothing judges nobody: it is told late, and by nobody who counts"
    );
    let ejected = serve(1, &[good(1)], at(11.0)).unwrap();
    assert_eq!((ejected.cause, ejected.endpoints, ready(&cluster)), (Ejection::SuccessRate, 1, 3));
    assert!((1..4).all(|n| serve(n, &[good(if n == 3 { 50 } else { 10 })], at(15.0)).is_none()));
    let ejected = serve(1, &[good(10)], at(21.0)).unwrap();
    assert_eq!((ejected.cause, ready(&cluster)), (Ejection::Latency, 2));
    assert!(matches!(endpoint(&cluster, 3).live.wellness(), Wellness::Ejected(Ejection::Latency, until) if until == at(51.0)));
}

#[test]
fn checks_take_out_and_bring_back_and_never_empty_a_cluster() {
    // Aim: due checks come for the healthy only; results move endpoints; where all fail, all are used; without checks none counts.
    let check = ActiveCheck {
        question: CheckQuestion::Tcp,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        healthy_after: 2,
        unhealthy_after: 2,
    };
    let mut listed = weighted(&[1; 3]);
    listed[2].health = Health::Draining;
    let cluster = cluster(ClusterPolicy { check: Some(check), ..ClusterPolicy::default() }, &listed);
    assert_eq!(cluster.next_check(), Some(Moment::default()), "at once, to begin the rhythm");
    assert!(cluster.checks_due(at(100.0)).is_empty());
    assert!(cluster.next_check().is_some_and(|next| next > at(100.0) && next <= at(105.0)));
    assert_eq!(cluster.checks_due(at(105.0)).len(), 2);
    let result = |n, good| cluster.checked(&endpoint(&cluster, n), good, at(106.0));
    assert!(!result(0, false) && result(0, false));
    assert_eq!((ready(&cluster), endpoint(&cluster, 0).live.wellness()), (1, Wellness::FailsChecks));
    assert!(!result(1, false) && result(1, false));
    assert_eq!(ready(&cluster), 2, "worse than well is better than nothing");
    assert!(!result(1, true) && result(1, true));
    assert_eq!(ready(&cluster), 1);
    let unchecked = Cluster { policy: Arc::default(), endpoints: Arc::clone(&cluster.endpoints), ..super::cluster(by(ALL[0]), &[]) };
    feed(&unchecked, &listed);
    assert_eq!((ready(&unchecked), unchecked.next_check(), unchecked.checks_due(at(200.0)).len()), (2, None, 0));
}
