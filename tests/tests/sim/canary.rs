//! Canaries of a whole mesh: what the callers' proxies count decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;
use tests::application::{Answering, answer};
use tests::play::{Home, Load};
use tests::sim::{Simulation, seed};

use crate::{NETWORK, SECOND, manifests};

/// Requests a second.
const RATE: u32 = 200;

const CANARY: &str = r"
---
apiVersion: meshwright.dev/v1alpha1
kind: Canary
metadata: {name: catalog, namespace: shop}
spec:
  serviceRef: {name: catalog, port: 80}
  stable: catalog-v1
  candidate: catalog-v2
  steps: [{weight: 20, hold: 10s}, {weight: 50}]
  analysis: {minRequests: 100}
";

/// A version: of a hundred of its requests so many fail, and each takes so long.
async fn version(home: Home, name: &'static str, (failing, takes): (u64, Duration), asked: Arc<AtomicU64>) -> anyhow::Result<()> {
    let answering: Answering = Arc::new(move |request: Request<Incoming>| {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(takes).await;
            let status = if number * 37 % 100 < failing { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
            answer(name, status, &request)
        }
        .boxed()
    });
    home.serve(answering, None).await
}

/// A mesh whose candidate is like that, under load, and how many requests the candidate was asked.
fn mesh(usual_seed: u64, candidate: (u64, Duration)) -> anyhow::Result<(Simulation, Arc<AtomicU64>)> {
    let mut sim = Simulation::new(seed(usual_seed), &[manifests(NETWORK), CANARY.to_owned()].concat())?;
    let usual = Duration::from_millis(20);
    sim.join_as(("shop", "frontend", "web"), |home| async move { home.load(Load::of("catalog.shop", RATE)).await });
    sim.join_as(("shop", "catalog-v1", "catalog"), move |home| version(home, "catalog-v1", (0, usual), Arc::default()));
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    sim.join_as(("shop", "catalog-v2", "catalog"), move |home| version(home, "catalog-v2", candidate, Arc::clone(&counted)));
    sim.run_until("every proxy is ready", 60 * SECOND, |sim| {
        ["frontend", "catalog-v1", "catalog-v2"].iter().all(|workload| sim.epoch(workload) > 0)
    })?;
    Ok((sim, asked))
}

fn row(sim: &mut Simulation) -> anyhow::Result<Value> {
    sim.command(|desk| async move { desk.canaries().await }).map(|rows| rows[0].clone())
}

/// Runs until the canary is over or the time is; its row.
fn over(sim: &mut Simulation, within: Duration) -> anyhow::Result<Value> {
    let end = sim.elapsed() + within;
    loop {
        let row = row(sim)?;
        if matches!(row["phase"].as_str(), Some("Promoted" | "RolledBack")) || sim.elapsed() > end {
            return Ok(row);
        }
        sim.run_for(SECOND)?;
    }
}

/// Aim: a planted twentieth of failures, and a planted 50 ms, are rolled back by themselves within a thousand requests of the candidate; one like the
/// stable version is promoted. Afterwards requests go where the decision says, and no other request has failed.
#[test]
fn a_planted_fault_goes_back_and_a_clean_one_forward() -> anyhow::Result<()> {
    let (usual, slow) = (Duration::from_millis(20), Duration::from_millis(70));
    for (number, (candidate, wanted)) in
        [((5, usual), "RolledBack"), ((0, slow), "RolledBack"), ((0, usual), "Promoted")].into_iter().enumerate()
    {
        let (mut sim, asked) = mesh(70 + number as u64, candidate)?;
        let row = over(&mut sim, 180 * SECOND)?;
        assert_eq!(row["phase"], wanted, "{row:#}");
        if wanted == "RolledBack" {
            assert!(asked.load(Ordering::Relaxed) < 1_000, "{row:#}");
            assert!(row["reason"].as_str().is_some_and(|why| why.contains("worse")), "{row:#}");
        }
        // What was on its way has ended.
        sim.run_for(3 * SECOND)?;
        let before = asked.load(Ordering::Relaxed);
        sim.forget_shots();
        sim.run_for(5 * SECOND)?;
        let (shots, more) = (sim.shots().len() as u64, asked.load(Ordering::Relaxed) - before);
        assert!(shots > 500 && if wanted == "Promoted" { more + 50 > shots } else { more == 0 }, "{more} of {shots}");
        assert!(sim.failures().is_empty(), "{:?}", sim.failures().first());
    }
    Ok(())
}

/// Aim: the control plane is killed in the middle: requests keep their shares meanwhile, and the one that comes next goes on with the same run at the same
/// step, and ends it.
#[test]
fn a_control_plane_that_comes_back_goes_on() -> anyhow::Result<()> {
    let (mut sim, asked) = mesh(80, (0, Duration::from_millis(20)))?;
    sim.run_for(5 * SECOND)?;
    let before = row(&mut sim)?;
    assert_eq!((before["phase"].as_str(), before["weight"].as_u64()), (Some("Progressing"), Some(20)), "{before:#}");
    sim.kill_control();
    let (count, time) = (asked.load(Ordering::Relaxed), 10 * SECOND);
    sim.run_for(time)?;
    let share = (asked.load(Ordering::Relaxed) - count) as f64 / (f64::from(RATE) * time.as_secs_f64());
    assert!((0.15..0.25).contains(&share), "{share}");
    sim.restart_control();
    sim.run_for(5 * SECOND)?;
    let after = row(&mut sim)?;
    assert_eq!((&after["run"], &after["began"]), (&before["run"], &before["began"]), "{after:#}");
    let end = over(&mut sim, 180 * SECOND)?;
    assert_eq!((&end["phase"], &end["run"]), (&Value::from("Promoted"), &before["run"]), "{end:#}");
    assert!(sim.failures().is_empty(), "{:?}", sim.failures().first());
    Ok(())
}
