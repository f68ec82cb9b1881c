//! Endpoints and routes that change under load.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use http::StatusCode;
use tests::application::{Answering, answer};
use tests::play::{Home, Load};
use tests::shop::{namespace, service, shop, workload};
use tests::sim::{Simulation, extent, seed};

use crate::{NETWORK, SECOND};

const OLD: [&str; 3] = ["old-1", "old-2", "old-3"];
const NEW: [&str; 3] = ["new-1", "new-2", "new-3"];

async fn says(home: Home, name: &'static str, idle: Option<Duration>) -> anyhow::Result<()> {
    let answering: Answering = Arc::new(move |request| std::future::ready(answer(name, StatusCode::OK, &request)).boxed());
    home.serve(answering, idle).await
}

fn of(number: usize, name: &str) -> String {
    workload("roll", name, "server", &format!("{NETWORK}.{}", 3 + number))
}

/// A minute of load (of the usual extent: a third of it) in which each endpoint is replaced: the new one comes, the old one is taken out, and its host dies a second later.
fn replace_all(idle: Option<Duration>) -> anyhow::Result<Simulation> {
    let old: String = OLD.iter().enumerate().map(|(number, name)| of(number, name)).collect();
    let client = workload("roll", "client", "client", &format!("{NETWORK}.2"));
    let mut sim = Simulation::new(seed(43), &[namespace("roll"), client, old, service("roll", "server", "server")].concat())?;
    sim.join_as(("roll", "client", "client"), |home| async move { home.load(Load::of("server.roll", extent(500, 100))).await });
    for name in OLD {
        sim.join_as(("roll", name, "server"), move |home| says(home, name, idle));
    }
    sim.reserve(&NEW);
    sim.run_until("all are ready", 60 * SECOND, |sim| OLD.iter().all(|name| sim.epoch(name) > 0))?;
    sim.run_for(2 * SECOND)?;
    sim.forget_shots();
    let start = sim.elapsed();
    for (number, (old, new)) in OLD.into_iter().zip(NEW).enumerate() {
        sim.run_for(extent(10, 2) * SECOND)?;
        sim.join_as(("roll", new, "server"), move |home| says(home, new, idle));
        let (come, go) = (of(OLD.len() + number, new), of(number, old));
        sim.command(async move |desk| desk.submit(&come).await)?;
        sim.run_until("the new one is ready", 60 * SECOND, |sim| sim.epoch(new) > 0)?;
        sim.run_for(SECOND)?;
        sim.command(async move |desk| desk.delete(&go).await)?;
        sim.run_for(SECOND)?;
        sim.kill(old);
    }
    while sim.elapsed() < start + extent(60, 20) * SECOND {
        sim.run_for(SECOND)?;
    }
    Ok(sim)
}

fn nobody_notices(sim: &Simulation, what: &str) {
    let shots = sim.shots();
    let by = |name: &str| shots.iter().filter(|shot| shot.answer.as_deref() == Ok(name)).count();
    let slowest = shots.iter().map(|shot| shot.took).max().unwrap_or_default();
    let shares: Vec<usize> = OLD.iter().chain(&NEW).map(|name| by(name)).collect();
    eprintln!("{what}: {} requests, {} failed, slowest {slowest:?}, by endpoint {shares:?}", shots.len(), sim.failures().len());
    assert!(shots.len() > extent(29_000, 1900), "{}", shots.len());
    assert!(shares.iter().all(|count| *count > 100), "{shares:?}");
    assert!(sim.failures().is_empty(), "{:?}", sim.failures().first());
}

/// Aim: all endpoints are replaced under load, one after the other, and no request fails.
#[test]
fn all_endpoints_are_replaced_unnoticed() -> anyhow::Result<()> {
    nobody_notices(&replace_all(None)?, "rolling replacement");
    Ok(())
}

/// Aim: the same with servers that close connections after a second without a request: what was sent into a closing one is sent again.
#[test]
fn short_keep_alives_are_unnoticed() -> anyhow::Result<()> {
    nobody_notices(&replace_all(Some(SECOND))?, "rolling replacement, keep-alive of 1 s");
    Ok(())
}

/// The route of that number: its backend, the header it sets on requests and the one on answers belong together.
fn edition(number: usize) -> String {
    let version = number % 2 + 1;
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: catalog, namespace: shop}}
spec:
  parentRefs: [{{group: "", kind: Service, name: catalog}}]
  rules:
    - filters:
        - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-edition, value: "{number}"}}]}}}}
        - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-edition, value: "{number}"}}]}}}}
      backendRefs: [{{name: catalog-v{version}, port: 80}}]
"#
    )
}

/// Aim: a route that is edited every 100 ms under load: no request fails, each goes by one whole edition, and never by an older one than a
/// request that had ended before.
#[test]
fn routes_are_edited_unnoticed() -> anyhow::Result<()> {
    let mut sim = Simulation::new(seed(44), &[shop(NETWORK), edition(0)].concat())?;
    let load = Load { note: Some("x-edition"), ..Load::of("catalog.shop", extent(200, 100)) };
    sim.join_as(("shop", "frontend", "web"), move |home| async move { home.load(load).await });
    for name in ["catalog-v1", "catalog-v2"] {
        sim.join("shop", name, "catalog");
    }
    sim.run_until("all are ready", 60 * SECOND, |sim| ["frontend", "catalog-v1", "catalog-v2"].iter().all(|name| sim.epoch(name) > 0))?;
    sim.run_for(2 * SECOND)?;
    sim.forget_shots();
    let (start, mut edits) = (sim.elapsed(), Vec::new());
    let last = extent(300, 80_usize);
    for number in 1..=last {
        edits.push(sim.elapsed());
        sim.command(async move |desk| desk.submit(&edition(number)).await)?;
        let next = start + SECOND / 10 * u32::try_from(number)?;
        sim.run_until("it is time for the next edit", SECOND, |sim| sim.elapsed() >= next)?;
    }
    sim.run_for(2 * SECOND)?;
    assert!(sim.failures().is_empty(), "{:?}", sim.failures().first());
    let mut met = std::collections::BTreeSet::new();
    let mut ended: Vec<(Duration, usize)> = Vec::new();
    for shot in sim.shots() {
        let words = shot.answer.clone().unwrap_or_default();
        let [server, request, response]: [&str; 3] = words.split(' ').collect::<Vec<_>>().try_into().unwrap_or_default();
        let number: usize = request.parse()?;
        assert_eq!((server, response), (&*format!("catalog-v{}", number % 2 + 1), request), "two editions in one request: {words}");
        assert!(number == 0 || edits[number - 1] <= shot.sent + shot.took, "edition {number} before it was written");
        met.insert(number);
        ended.push((shot.sent, number));
        let newest = ended.iter().rev().take(2 * 200).filter(|(sent, _)| *sent + SECOND / 2 < shot.sent).map(|(_, number)| *number).max();
        assert!(newest.is_none_or(|newest| newest <= number), "edition {number} after {newest:?}");
    }
    eprintln!("{last} edits in {:?}: {} requests, none failed, {} editions met", sim.elapsed() - start, sim.shots().len(), met.len());
    assert!(met.len() > last / 3 && met.last() == Some(&last), "{met:?}");
    Ok(())
}
