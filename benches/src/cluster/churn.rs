//! Pods that come and go, as when Deployments are rolled: a new pod starts and becomes ready, the old one leaves its Service and ends; and
//! so do their proxies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Fleet;
use super::objects::Pod;
use super::server::Calls;

/// Pods that are replaced at the same time; each is of another Service.
const AT_ONCE_MAX: u32 = 16;

/// Replaces pods for a while, `rate` a second or, if that is 0, as fast as the API server takes it. Returns how many.
///
/// # Errors
/// The API server refuses something.
pub(super) async fn replace(calls: &Calls, fleet: &mut Fleet, rate: u32, span: Duration) -> anyhow::Result<u32> {
    let (begun, places) = (Instant::now(), Arc::new(Semaphore::new(AT_ONCE_MAX.min(fleet.services()) as usize)));
    let mut under_way = JoinSet::new();
    let (mut count, mut replaced) = (0, 0);
    while begun.elapsed() < span {
        if rate > 0 {
            tokio::time::sleep((Duration::from_secs(1) * count / rate).saturating_sub(begun.elapsed())).await;
        }
        let slot = Arc::clone(&places).acquire_owned().await?;
        while let Some(done) = under_way.try_join_next() {
            fleet.connect(done??);
        }
        let service = count % fleet.services();
        let before = fleet.behind(service);
        let place = (count / fleet.services()) as usize;
        count += 1;
        let Some(old) = before.get(place % before.len().max(1)).copied() else { continue };
        fleet.replace(old);
        let calls = calls.clone();
        under_way.spawn(async move {
            let done = one(&calls, &before, old).await.with_context(|| format!("replacing {}", old.name()));
            drop(slot);
            done
        });
        replaced += 1;
    }
    while let Some(done) = under_way.join_next().await {
        fleet.connect(done??);
    }
    Ok(replaced)
}

/// Replaces one pod among those behind its Service; returns the new one.
async fn one(calls: &Calls, before: &[Pod], old: Pod) -> anyhow::Result<Pod> {
    let new = old.next();
    let others = || before.iter().filter(move |pod| **pod != old).map(|pod| (*pod, true));
    calls.make(new).await?;
    calls.tell(new, false).await?;
    calls.serve(old.service, &others().chain([(old, true), (new, false)]).collect::<Vec<_>>()).await?;
    calls.tell(new, true).await?;
    calls.serve(old.service, &others().chain([(old, true), (new, true)]).collect::<Vec<_>>()).await?;
    calls.serve(old.service, &others().chain([(new, true)]).collect::<Vec<_>>()).await?;
    calls.delete(old).await?;
    Ok(new)
}
