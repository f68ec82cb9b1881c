//! The root of the mesh is rotated under load, with the control plane killed wherever it hurts.

use std::time::Duration;

use tests::shop::{route, shop as manifests};
use tests::sim::{Simulation, extent, seed, seeds};

use crate::{LEAVES_OF_A_MINUTE, NETWORK, SECOND, recent, shop};

const EVERYBODY: [&str; 3] = ["frontend", "catalog-v1", "catalog-v2"];

/// Whether everybody believes that one root only, and has a leaf that was issued since.
fn over(sim: &Simulation, old: &[u8; 32], leaves: [u64; 3]) -> bool {
    let believes = |workload: &&str| sim.trust(workload).is_some_and(|trust| trust.roots.len() == 1 && trust.issuing_root != *old);
    EVERYBODY.iter().all(believes) && EVERYBODY.iter().zip(leaves).all(|(workload, before)| sim.leaves(workload) > before)
}

fn issuing(sim: &Simulation) -> [u8; 32] {
    sim.trust("frontend").map(|trust| trust.issuing_root).unwrap_or_default()
}

/// Aim: a rotation under load, with leaves of a minute: it returns when the old root is gone, every leaf was issued anew for it, and no
/// request fails, then or while the last old leaves end.
#[test]
fn a_root_is_rotated_unnoticed() -> anyhow::Result<()> {
    let mut sim = shop(21, LEAVES_OF_A_MINUTE, SECOND / 50)?;
    let (old, leaves, early) = (issuing(&sim), EVERYBODY.map(|workload| sim.leaves(workload)), sim.failures().len());
    let plan = sim.command(async |desk| desk.plan().await)?;
    let steps: Vec<_> = plan.as_array().into_iter().flatten().map(|row| row["step"].as_str().unwrap_or_default()).collect();
    assert_eq!(steps, ["Trust", "Issue", "Drop"], "{plan}");
    assert_eq!(plan[0]["waiting"].as_array().map(Vec::len), Some(3), "{plan}");
    let began = sim.elapsed();
    let result = sim.command(async |desk| desk.rotate(true).await)?;
    let took = sim.elapsed() - began;
    assert_eq!((&result["rotated"], &result["joined"]), (&true.into(), &false.into()), "{result}");
    assert!(over(&sim, &old, leaves), "{result}");
    let shown = sim.command(async |desk| desk.roots().await)?;
    assert_eq!((&shown["phase"], &shown["roots"][1]["state"]), (&"Steady".into(), &"Retired".into()), "{shown}");
    sim.run_for(extent(180, 90) * SECOND)?;
    let again = sim.command(async |desk| desk.get("epochs").await)?;
    let of_roots = |row: &&serde_json::Value| row["objects"][0]["kind"] == "Root";
    assert_eq!(again.as_array().into_iter().flatten().filter(of_roots).count(), 3, "each step is an epoch of its own: {again}");
    eprintln!("rotated in {took:?}: {} requests, {} failed", sim.shots().len(), sim.failures().len() - early);
    assert_eq!(sim.failures().len(), early, "{:?}", sim.failures().last());
    Ok(())
}

/// Aim: the control plane dies at any moment of a rotation, in each of its three steps and between them, and comes back a few seconds
/// later: the rotation goes on by itself to its end, and no request fails. More moments: `MESHWRIGHT_SIM_SEEDS=100 cargo sim dies_anywhere`.
#[test]
fn a_control_plane_that_dies_anywhere_goes_on() -> anyhow::Result<()> {
    for number in seeds(0, 6) {
        let mut sim = shop(200 + number, LEAVES_OF_A_MINUTE, SECOND / 20)?;
        let (old, leaves, early) = (issuing(&sim), EVERYBODY.map(|workload| sim.leaves(workload)), sim.failures().len());
        sim.command(async |desk| desk.rotate(false).await)?;
        let seen = |sim: &Simulation, roots: usize, moved: bool| {
            EVERYBODY.iter().any(|name| sim.trust(name).is_some_and(|now| now.roots.len() == roots && (now.issuing_root != old) == moved))
        };
        // The first three in each step, as soon as one proxy has heard of it; then anywhere.
        match number {
            0 => sim.run_until("a proxy trusts", 60 * SECOND, |sim| seen(sim, 2, false))?,
            1 => sim.run_until("the new root issues", 60 * SECOND, |sim| seen(sim, 2, true))?,
            2 => sim.run_until("the old root is dropped", 60 * SECOND, |sim| seen(sim, 1, true))?,
            _ => sim.run_for(SECOND / 100 * u32::try_from(number * 7919 % 700)?)?,
        }
        sim.kill_control();
        sim.run_for(SECOND * u32::try_from(1 + number % 5)?)?;
        sim.restart_control();
        sim.run_until("the rotation is over", 180 * SECOND, |sim| over(sim, &old, leaves))?;
        sim.run_for(70 * SECOND)?;
        assert_eq!(sim.failures().len(), early, "{number}: {:?}", sim.failures().last());
    }
    Ok(())
}

/// Aim: a proxy that is cut off from the control plane holds a rotation up for a while only. Back after its leaf and its root are gone, it
/// renews itself by what it has, and answers again; others never notice more than its absence.
#[test]
fn whoever_was_away_comes_back_after_a_rotation() -> anyhow::Result<()> {
    let mut sim = shop(22, LEAVES_OF_A_MINUTE, SECOND / 5)?;
    sim.command(async |desk| desk.apply(&route(1, 0)).await)?;
    let (old, early) = (issuing(&sim), sim.failures().len());
    sim.cut_off("catalog-v2");
    sim.command(async |desk| desk.rotate(false).await)?;
    let others = |sim: &Simulation| {
        ["frontend", "catalog-v1"].iter().all(|name| sim.trust(name).is_some_and(|now| now.roots.len() == 1 && now.issuing_root != old))
    };
    sim.run_until("the others have gone on", 300 * SECOND, others)?;
    assert_eq!(sim.trust("catalog-v2").map(|trust| trust.issuing_root), Some(old), "it has not heard of it");
    let leaves = sim.leaves("catalog-v2");
    sim.heal("catalog-v2");
    sim.run_until("it is back", 300 * SECOND, |sim| {
        sim.leaves("catalog-v2") > leaves && sim.trust("catalog-v2").is_some_and(|trust| trust.issuing_root != old)
    })?;
    sim.command(async |desk| desk.apply(&route(0, 1)).await)?;
    sim.run_for(10 * SECOND)?;
    let answers = recent(&sim, Duration::from_secs(5));
    assert!(answers.iter().all(|answer| answer.as_deref() == Ok("catalog-v2")), "{answers:?}");
    assert_eq!(sim.failures().len(), early, "{:?}", sim.failures().last());
    Ok(())
}

/// Aim: rotations in a row: after each, everybody believes one root only, and nothing that was kept
/// for those who are away grows.
#[test]
fn one_rotation_after_the_other() -> anyhow::Result<()> {
    let mut sim = shop(seed(23), LEAVES_OF_A_MINUTE, SECOND / 5)?;
    let early = sim.failures().len();
    for _ in 0..extent(10, 5) {
        let (old, leaves) = (issuing(&sim), EVERYBODY.map(|workload| sim.leaves(workload)));
        sim.command(async |desk| desk.rotate(true).await)?;
        assert!(over(&sim, &old, leaves));
        sim.run_for(2 * SECOND)?;
    }
    let shown = sim.command(async |desk| desk.roots().await)?;
    assert!(shown["roots"].as_array().is_some_and(|roots| roots.len() <= 4), "{shown}");
    assert_eq!(sim.failures().len(), early, "{:?}", sim.failures().last());
    Ok(())
}

/// Aim: what was handed out before a rotation opens the door after it: a token that pins the old root, beside the old bundle or beside the
/// new one.
#[test]
fn papers_from_before_hold() -> anyhow::Result<()> {
    let mut sim = Simulation::new(seed(24), &[&manifests(NETWORK), &*route(1, 1)].concat())?;
    sim.join("shop", "frontend", "web");
    sim.run_until("the frontend is ready", 60 * SECOND, |sim| sim.epoch("frontend") > 0)?;
    let old = sim.bundle()?;
    let first = sim.command(async |desk| desk.token("shop/catalog-v1").await)?;
    let second = sim.command(async |desk| desk.token("shop/catalog-v2").await)?;
    let result = sim.command(async |desk| desk.rotate(true).await)?;
    let new = sim.bundle()?;
    assert!(result["rotated"] == true && new != old, "{result}");
    sim.join_by(("shop", "catalog-v1", "catalog"), first, old);
    sim.join_by(("shop", "catalog-v2", "catalog"), second, new);
    sim.run_until("both are in", 60 * SECOND, |sim| ["catalog-v1", "catalog-v2"].iter().all(|workload| sim.epoch(workload) > 0))?;
    let issuing = issuing(&sim);
    assert!(["catalog-v1", "catalog-v2"].iter().all(|workload| sim.trust(workload).is_some_and(|trust| trust.issuing_root == issuing)));
    Ok(())
}

/// Aim: a proxy that was given its bundle before a rotation and its token after it (it started just before, say) is let in: it knows the
/// control plane by the old root, and the root of the token by the control plane.
#[test]
fn a_fresh_token_opens_beside_an_old_bundle() -> anyhow::Result<()> {
    let mut sim = Simulation::new(seed(25), &[&manifests(NETWORK), &*route(1, 1)].concat())?;
    sim.join("shop", "frontend", "web");
    sim.run_until("the frontend is ready", 60 * SECOND, |sim| sim.epoch("frontend") > 0)?;
    let old = sim.bundle()?;
    for workload in ["catalog-v1", "catalog-v2"] {
        sim.command(async |desk| desk.rotate(true).await)?;
        let token = sim.command(async move |desk| desk.token(&format!("shop/{workload}")).await)?;
        sim.join_by(("shop", workload, "catalog"), token, old.clone());
        sim.run_until("it is in", 60 * SECOND, |sim| sim.epoch(workload) > 0)?;
    }
    Ok(())
}

/// Aim: a leaf of a day whose root was dropped while its proxy was away is good for a renewal only, and its dates do not say so: the proxy
/// hears it from the control plane, and is back in seconds, not when its leaf is due.
#[test]
fn a_long_leaf_is_renewed_when_its_root_is_gone() -> anyhow::Result<()> {
    let mut sim = shop(26, "", SECOND / 5)?;
    let old = issuing(&sim);
    sim.cut_off("catalog-v2");
    sim.command(async |desk| desk.rotate(true).await)?;
    let leaves = sim.leaves("catalog-v2");
    sim.heal("catalog-v2");
    sim.run_until("it is back", 60 * SECOND, |sim| {
        sim.leaves("catalog-v2") > leaves
            && sim.trust("catalog-v2").is_some_and(|trust| trust.issuing_root != old && trust.roots.len() == 1)
    })
}
