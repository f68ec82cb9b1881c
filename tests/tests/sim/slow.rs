//! One replica in ten is slow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tests::application::{Answering, answer};
use tests::play::{Home, Load};
use tests::shop::{namespace, policy, service, workload};
use tests::sim::{Simulation, extent, seed};

use crate::{NETWORK, SECOND};

const REPLICAS: [&str; 10] = ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"];
/// Requests a second of each load.
const RATE: u32 = 60;

/// Loads by the Service they call, and the policy of each. Hedging alone is shown and not judged: least-request balancing sends the slow
/// one about as much as hedging may add, so that luck decides on which side of the 99th percentile it ends.
const LOADS: [(&str, &str, &str); 4] = [
    ("robin.slow", "robin", "loadBalancer: {algorithm: RoundRobin}"),
    ("ewma.slow", "ewma", "loadBalancer: {algorithm: PeakEwma}"),
    ("hedged.slow", "hedged", "retry: {hedge: {atQuantile: 95, maxPercent: 5}}"),
    ("both.slow", "both", "loadBalancer: {algorithm: PeakEwma}, retry: {hedge: {atQuantile: 95, maxPercent: 5}}"),
];

/// Attempts that servers saw, by path.
type Seen = Arc<Mutex<BTreeMap<String, u64>>>;

async fn replica(home: Home, delay: Duration, seen: Seen) -> anyhow::Result<()> {
    let answering: Answering = Arc::new(move |request: Request<Incoming>| {
        *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(request.uri().path().to_owned()).or_default() += 1;
        async move {
            tokio::time::sleep(delay).await;
            answer("replica", StatusCode::OK, &request)
        }
        .boxed()
    });
    home.serve(answering, None).await
}

/// Aim: `PeakEwma`, and hedging on top of it, take a slow replica's second off the 99th percentile for at most a twentieth more load.
#[test]
fn a_slow_replica_does_not_show() -> anyhow::Result<()> {
    let replicas: String =
        REPLICAS.iter().enumerate().map(|(number, name)| workload("slow", name, "replica", &format!("{NETWORK}.{}", 3 + number))).collect();
    let services: String =
        LOADS.iter().map(|(_, name, spec)| [service("slow", name, "replica"), policy("slow", name, spec)].concat()).collect();
    let client = workload("slow", "client", "client", &format!("{NETWORK}.2"));
    let mut sim = Simulation::new(seed(42), &[namespace("slow"), client, replicas, services].concat())?;
    let paths = ["/robin.slow", "/ewma.slow", "/hedged.slow", "/both.slow"];
    sim.join_as(("slow", "client", "client"), move |home| async move {
        let loads = LOADS.iter().zip(paths).map(|((name, ..), path)| home.load(Load { path, ..Load::of(name, RATE) }));
        futures::future::try_join_all(loads).await.map(drop)
    });
    let seen = Seen::default();
    for name in REPLICAS {
        let (delay, seen) = (if name == "r9" { SECOND } else { SECOND / 100 }, Arc::clone(&seen));
        sim.join_as(("slow", name, "replica"), move |home| replica(home, delay, Arc::clone(&seen)));
    }
    sim.run_until("all are ready", 60 * SECOND, |sim| REPLICAS.iter().all(|name| sim.epoch(name) > 0))?;
    sim.run_for(5 * SECOND)?;
    sim.forget_shots();
    seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let time = extent(60, 10) * SECOND;
    sim.run_for(time)?;
    let attempts = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    sim.run_for(3 * SECOND)?;
    let since = sim.elapsed() - 3 * SECOND - time;
    let figures = LOADS.map(|(load, ..)| {
        let shots = sim.shots();
        let within = |sent: Duration| (since..since + time).contains(&sent);
        let mut took: Vec<Duration> = shots.iter().filter(|shot| shot.load == load && within(shot.sent)).map(|shot| shot.took).collect();
        took.sort_unstable();
        let at = |share: f64| took[((took.len() as f64 * share) as usize).min(took.len() - 1)];
        let more = attempts[&format!("/{load}")] as f64 / took.len() as f64;
        eprintln!(
            "{load}: {} requests, p50 {:?}, p95 {:?}, p99 {:?}, attempts per request {more:.3}",
            took.len(),
            at(0.5),
            at(0.95),
            at(0.99)
        );
        (at(0.99), more)
    });
    assert!(sim.failures().is_empty(), "{:?}", sim.failures().first());
    assert!(figures[0].0 >= SECOND, "round robin meets the slow one");
    for ((load, ..), (p99, more)) in LOADS.iter().zip(figures).filter(|((load, ..), _)| matches!(*load, "ewma.slow" | "both.slow")) {
        assert!(p99 <= figures[0].0 / 5, "{load}: {p99:?} of {:?}", figures[0].0);
        assert!(more <= 1.05, "{load}: {more}");
    }
    Ok(())
}
