//! Three times as much as there is capacity for.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tests::application::{Answering, answer};
use tests::play::{Home, Load};
use tests::shop::{namespace, policy, service, workload};
use tests::sim::{Simulation, extent, seed};
use tokio::sync::Semaphore;

use crate::{NETWORK, SECOND};

/// What the server does at once, and how long each takes: 50 requests a second.
const PLACES: usize = 5;
const WORK: Duration = Duration::from_millis(100);
const CAPACITY: f64 = 50.0;
/// Callers give up after that.
const PATIENCE: Duration = Duration::from_secs(1);

const HIGH: Load = Load { name: "high", header: Some(("x-priority", "high")), patience: PATIENCE, ..Load::of("server.busy", 25) };
const LOW: Load = Load { name: "low", header: Some(("x-priority", "low")), patience: PATIENCE, ..Load::of("server.busy", 125) };

/// Works in order of arrival, also for callers that are gone, as servers do that notice nothing while they wait.
async fn server(home: Home) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(PLACES));
    let answering: Answering = Arc::new(move |request: Request<Incoming>| {
        let places = Arc::clone(&places);
        let work = tokio::spawn(async move {
            let _place = places.acquire().await;
            tokio::time::sleep(WORK).await;
        });
        async move {
            let _ = work.await;
            answer("server", StatusCode::OK, &request)
        }
        .boxed()
    });
    home.serve(answering, None).await
}

/// Answers within patience, a second, of each class.
fn goodput(spec: &str) -> anyhow::Result<(f64, f64)> {
    let workloads =
        [workload("busy", "client", "client", &format!("{NETWORK}.2")), workload("busy", "server", "server", &format!("{NETWORK}.3"))];
    let manifests = [namespace("busy"), workloads.concat(), service("busy", "server", "server"), policy("busy", "server", spec)].concat();
    let mut sim = Simulation::new(seed(45), &manifests)?;
    sim.join_as(
        ("busy", "client", "client"),
        |home| async move { futures::future::try_join(home.load(HIGH), home.load(LOW)).await.map(drop) },
    );
    sim.join_as(("busy", "server", "server"), server);
    sim.run_until("all are ready", 60 * SECOND, |sim| sim.epoch("server") > 0)?;
    sim.run_for(5 * SECOND)?;
    sim.forget_shots();
    let time = extent(60, 8);
    sim.run_for(time * SECOND)?;
    let good = |name: &str| {
        let answered = sim.shots().iter().filter(|shot| shot.load == name && shot.answer.is_ok()).count();
        answered as f64 / f64::from(time)
    };
    let mut why = std::collections::BTreeMap::<String, usize>::new();
    for shot in sim.failures() {
        *why.entry(format!("{} {}", shot.load, shot.answer.err().unwrap_or_default())).or_default() += 1;
    }
    eprintln!("{spec}: high {:.1}/s of 25, low {:.1}/s of 125, capacity {CAPACITY}/s; not served: {why:?}", good("high"), good("low"));
    Ok((good("high"), good("low")))
}

/// Aim: with a limit and priorities a server that is asked for three times what it can do does nine tenths of it, and all that matters;
/// without, it works for callers who have given up.
#[test]
fn overload_is_shed_from_below() -> anyhow::Result<()> {
    let shedding = "limits: {requests: 10, pending: 10, pendingTimeout: 200ms}, priority: {header: x-priority, classes: [high, low]}";
    let (high, low) = goodput(shedding)?;
    let (high_without, low_without) = goodput("limits: {}")?;
    assert!(high + low >= 0.9 * CAPACITY, "{high} + {low}");
    assert!(high >= 24.5, "{high}");
    assert!(high_without + low_without < 0.5 * CAPACITY, "{high_without} + {low_without}");
    Ok(())
}
