//! The mesh under faults, in virtual time and from a seed: `cargo sim`, and `MESHWRIGHT_SIM_SEED=… cargo sim NAME` for a replay.

#[path = "sim/amplification.rs"]
mod amplification;
#[path = "sim/canaries.rs"]
mod canaries;
#[path = "sim/canary.rs"]
mod canary;
#[path = "sim/month.rs"]
mod month;
#[path = "sim/overload.rs"]
mod overload;
#[path = "sim/replacement.rs"]
mod replacement;
#[path = "sim/roots.rs"]
mod roots;
#[path = "sim/slow.rs"]
mod slow;
#[path = "sim/stream.rs"]
mod stream;

use std::time::Duration;

use tests::shop::{route, shop as manifests};
use tests::sim::{Simulation, seed, seeds};

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

/// Services in front of the catalog that nobody has used before, and names that lead nowhere; in an order of the seed's.
fn unused(count: u64, seed: u64) -> (String, Vec<String>) {
    let service = |number| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\n\
             spec: {{selector: {{app: catalog}}, ports: [{{port: 80, targetPort: 8080, appProtocol: http}}]}}\n---\n"
        )
    };
    let mut names: Vec<String> = (0..count).flat_map(|number| [format!("s{number}.shop"), format!("missing-{number}.shop")]).collect();
    names.sort_by_key(|name| name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)));
    ((0..count).map(service).collect(), names)
}

/// Aim: whatever the timing of the start, a control plane that is killed amidst it, and changes that go live meanwhile: everything used
/// for the first time right after the mesh was said to be live is answered at once. More seeds:
/// `MESHWRIGHT_SIM_SEEDS=1000 cargo sim first_uses`.
#[test]
fn first_uses_right_after_the_start_are_answered() -> anyhow::Result<()> {
    for seed in seeds(100, 24) {
        let (services, names) = unused(6, seed);
        let mut sim = Simulation::new(seed, &[&manifests(NETWORK), &*services, &route(1, 1)].concat())?;
        sim.join_with_first_uses(("shop", "frontend", "web"), &names);
        sim.join_with_first_uses(("shop", "catalog-v1", "catalog"), &names);
        sim.join("shop", "catalog-v2", "catalog");
        if seed % 3 == 0 {
            sim.run_for(SECOND / 100 * u32::try_from(seed % 97)?)?;
            sim.kill_control();
            sim.run_for(SECOND / 10)?;
            sim.restart_control();
        }
        let everybody = ["frontend", "catalog-v1", "catalog-v2"];
        sim.run_until("every proxy is ready", 60 * SECOND, |sim| everybody.iter().all(|workload| sim.epoch(workload) > 0))?;
        let apply = |sim: &mut Simulation, weight| sim.command(async move |desk| desk.apply(&route(weight, 2)).await);
        assert_eq!(apply(&mut sim, 1)?["live"], true);
        sim.release();
        assert_eq!(apply(&mut sim, 3)?["live"], true);
        sim.run_until("everything is used", 60 * SECOND, |sim| sim.shots().len() == 2 * names.len())?;
        assert!(sim.failures().is_empty(), "seed {seed}: {:?}", sim.failures());
    }
    Ok(())
}
