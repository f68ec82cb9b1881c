//! The mesh under faults, in virtual time and from a seed: `cargo sim`, and `MESHWRIGHT_SIM_SEED=… cargo sim NAME` for a replay.

use std::time::Duration;

use tests::shop::{route, shop as manifests};
use tests::sim::{Simulation, seed};

const SECOND: Duration = Duration::from_secs(1);

/// Of the simulation's hosts.
const NETWORK: &str = "192.168.0";

const LEAVES_OF_A_MINUTE: &str = r"
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec: {certificates: {leafLife: 1m}}
---
";

/// A frontend that calls a catalog of two versions, half and half, every `pause`; runs until the load has begun.
fn shop(usual_seed: u64, more: &str, pause: Duration) -> anyhow::Result<Simulation> {
    start(seed(usual_seed), &[&manifests(NETWORK), more, &route(1, 1)].concat(), pause)
}

/// The same hosts with other manifests.
fn start(seed: u64, manifests: &str, pause: Duration) -> anyhow::Result<Simulation> {
    let mut sim = Simulation::new(seed, manifests)?;
    sim.join_with_load(("shop", "frontend", "web"), "catalog.shop", pause);
    sim.join("shop", "catalog-v1", "catalog");
    sim.join("shop", "catalog-v2", "catalog");
    // The load begins when its own proxy is ready; the servers may still be on their way.
    sim.run_until("every proxy is ready", 60 * SECOND, |sim| {
        ["frontend", "catalog-v1", "catalog-v2"].iter().all(|workload| sim.epoch(workload) > 0)
    })?;
    sim.run_for(2 * SECOND)?;
    Ok(sim)
}

/// Requests sent in the last `time`.
fn recent(sim: &Simulation, time: Duration) -> Vec<Result<String, String>> {
    let since = sim.elapsed() - time;
    sim.shots().into_iter().filter(|shot| shot.sent >= since).map(|shot| shot.answer).collect()
}

/// Aim: a control plane killed under load costs no request, new connections included; back again, it serves the next change under a
/// greater epoch, and from then on only allowed endpoints answer.
#[test]
fn a_killed_control_plane_costs_nothing() -> anyhow::Result<()> {
    let mut sim = shop(11, "", SECOND / 20)?;
    let (epoch, early) = (sim.epoch("frontend"), sim.failures().len());
    sim.kill_control();
    sim.run_for(30 * SECOND)?;
    assert!(recent(&sim, 30 * SECOND).len() > 100, "the load goes on");
    sim.restart_control();
    sim.run_for(10 * SECOND)?;
    let live = sim.command(async |desk| desk.apply(&route(1, 0)).await)?;
    assert_eq!(live["live"], true, "{live}");
    sim.run_for(10 * SECOND)?;
    assert!(sim.epoch("frontend") > epoch, "{live}");
    assert!(recent(&sim, 9 * SECOND).iter().all(|answer| answer.as_deref() == Ok("catalog-v1")), "{:?}", recent(&sim, 9 * SECOND));
    assert_eq!(sim.failures().len(), early, "{:?}", sim.failures().last());
    Ok(())
}

/// Aim: proxies cut off from the control plane go on with what they have; healed, they catch up with what changed meanwhile.
#[test]
fn a_partition_heals() -> anyhow::Result<()> {
    let mut sim = shop(12, "", SECOND / 10)?;
    let (epoch, early) = (sim.epoch("frontend"), sim.failures().len());
    for workload in ["frontend", "catalog-v1", "catalog-v2"] {
        sim.cut_off(workload);
    }
    // Whether it waits for them depends on how soon the control plane takes them for gone; either way they have not heard of it.
    let _ = sim.command(async |desk| Ok(desk.apply(&route(0, 1)).await.is_ok()))?;
    sim.run_for(30 * SECOND)?;
    assert_eq!(sim.epoch("frontend"), epoch, "nobody has heard of it");
    for workload in ["frontend", "catalog-v1", "catalog-v2"] {
        sim.heal(workload);
    }
    sim.run_until("the frontend catches up", 60 * SECOND, |sim| sim.epoch("frontend") > epoch)?;
    sim.run_for(5 * SECOND)?;
    assert!(recent(&sim, 4 * SECOND).iter().all(|answer| answer.as_deref() == Ok("catalog-v2")));
    assert_eq!(sim.failures().len(), early, "{:?}", sim.failures().last());
    Ok(())
}

/// Aim: an endpoint that dies costs at most the request that was under way: what was never written is sent elsewhere; back again, it
/// takes its share.
#[test]
fn a_dead_endpoint_costs_what_was_under_way() -> anyhow::Result<()> {
    let mut sim = start(seed(15), &manifests(NETWORK), SECOND / 20)?;
    let early = sim.failures().len();
    sim.kill("catalog-v2");
    sim.run_for(20 * SECOND)?;
    assert!(sim.failures().len() <= early + 1, "{:?}", sim.failures());
    let answers = recent(&sim, 15 * SECOND);
    assert!(answers.len() > 50 && answers.iter().all(|answer| answer.as_deref() == Ok("catalog-v1")), "{answers:?}");
    sim.restart("catalog-v2");
    sim.run_until("the endpoint takes its share again", 60 * SECOND, |sim| {
        recent(sim, 5 * SECOND).iter().any(|answer| answer.as_deref() == Ok("catalog-v2"))
    })?;
    assert!(sim.failures().len() <= early + 1, "{:?}", sim.failures());
    Ok(())
}

/// Aim: one seed, one run: the same requests meet the same servers at the same times. (TLS randomness is not seeded, so bytes differ;
/// decisions must not.)
#[test]
fn a_seed_replays() -> anyhow::Result<()> {
    let run = || -> anyhow::Result<_> {
        let mut sim = shop(14, "", SECOND / 20)?;
        sim.run_for(40 * SECOND)?;
        Ok(sim.shots().into_iter().map(|shot| shot.answer).take(200).collect::<Vec<_>>())
    };
    let (first, second) = (run()?, run()?);
    assert!(first.len() == 200 && first.iter().any(|answer| answer.as_deref() == Ok("catalog-v2")), "{first:?}");
    assert_eq!(first, second);
    Ok(())
}

/// Aim: a leaf that ended while its proxy could not reach the control plane opens the certificate call, by the clock of the simulation;
/// healed, the proxy renews by it and takes the next epoch.
#[test]
fn a_leaf_that_ended_in_a_partition_comes_back() -> anyhow::Result<()> {
    let mut sim = shop(16, LEAVES_OF_A_MINUTE, SECOND / 5)?;
    sim.cut_off("catalog-v2");
    sim.run_for(120 * SECOND)?;
    let leaves = sim.leaves("catalog-v2");
    sim.heal("catalog-v2");
    sim.run_until("the leaf is renewed", 300 * SECOND, |sim| sim.leaves("catalog-v2") > leaves)?;
    let live = sim.command(async |desk| desk.apply(&route(0, 1)).await)?;
    assert_eq!(live["live"], true, "{live}");
    sim.run_for(10 * SECOND)?;
    assert!(recent(&sim, 8 * SECOND).iter().all(|answer| answer.as_deref() == Ok("catalog-v2")), "{:?}", recent(&sim, 8 * SECOND));
    Ok(())
}

/// Aim: leaves of one minute rotate for ten minutes under load, and no request notices.
#[test]
fn leaves_of_a_minute_rotate_for_ten() -> anyhow::Result<()> {
    let mut sim = shop(13, LEAVES_OF_A_MINUTE, SECOND / 5)?;
    let early = sim.failures().len();
    sim.run_for(600 * SECOND)?;
    for workload in ["frontend", "catalog-v1", "catalog-v2"] {
        assert!(sim.leaves(workload) >= 10, "{workload} has had {} leaves in ten minutes", sim.leaves(workload));
    }
    assert!(sim.shots().len() > 1500, "{}", sim.shots().len());
    assert_eq!(sim.failures().len(), early, "{:?}", sim.failures().last());
    Ok(())
}
