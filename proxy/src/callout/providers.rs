//! Keeps the providers of logins found: where each is asked, and what it signs with. One task on the control thread for all that the live
//! snapshot names; requests see what is at hand, and never wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::Moment;
use engine::authenticate::{KEY_SET_BYTES_MAX, Refresh, fresh_for};
use engine::login::{DISCOVERY_BYTES_MAX, Endpoints, ProviderCell};
use http::HeaderMap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Callout;
use crate::io::Draw;
use crate::observe::Telemetry;
use crate::snapshots::Snapshots;

/// Providers that are looked for at once; further ones wait for that.
const LOOKED_FOR_MAX: usize = 4;
/// How often a cell is asked whether somebody misses it.
const REST_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub struct ProviderKeeper {
    /// Asks.
    pub callout: Callout,
    /// Says which providers are needed.
    pub snapshots: Snapshots,
    /// Metrics and time.
    pub telemetry: Arc<Telemetry>,
}

/// Endpoints and keys, as they came.
type FoundProvider = (Endpoints, HeaderMap, Bytes);
/// Looks under way, by whom they are for.
type Looks = JoinSet<(usize, Result<FoundProvider, String>)>;

/// By address of the cell: two logins may name one issuer, each with places of its own.
type KnownProviders = BTreeMap<usize, (Arc<ProviderCell>, Refresh)>;

impl ProviderKeeper {
    /// Looks for what is due until `stop`.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        let (mut known, mut looks) = (KnownProviders::new(), JoinSet::new());
        let places = Arc::new(Semaphore::new(LOOKED_FOR_MAX));
        let mut changes = self.snapshots.changes();
        loop {
            changes.mark_unchanged();
            self.meet(&mut known);
            for (id, (cell, refresh)) in &mut known {
                self.begin((*id, cell, refresh), (&mut looks, &places), &draw);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(Ok((id, found))) = looks.join_next() => self.take(&mut known, (id, found), draw.next()),
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(REST_MAX), if !known.is_empty() => {}
            }
        }
    }

    /// What the live snapshot names, and nothing else.
    fn meet(&self, known: &mut KnownProviders) {
        let (live, now) = (self.snapshots.load(), self.telemetry.moment());
        let mut former = std::mem::take(known);
        for cell in &live.providers {
            let id = Arc::as_ptr(cell) as usize;
            let kept = former.remove(&id);
            known.insert(id, kept.unwrap_or_else(|| (Arc::clone(cell), Refresh::new(now))));
        }
        self.telemetry.readings.providers_away.lock().retain(|issuer, _| known.values().any(|(cell, _)| cell.issuer() == issuer));
    }

    /// Looks for one if that is due.
    fn begin(
        &self,
        (id, cell, refresh): (usize, &Arc<ProviderCell>, &mut Refresh),
        (looks, places): (&mut Looks, &Arc<Semaphore>),
        draw: &Draw,
    ) {
        let now = self.telemetry.moment();
        if cell.is_missed() {
            refresh.missed();
        }
        if refresh.due() > now {
            return;
        }
        refresh.begun(now);
        cell.asked(self.telemetry.times().0.unix().as_secs());
        let (cell, callout, places, draws) = (Arc::clone(cell), self.callout.clone(), Arc::clone(places), [draw.next(), draw.next()]);
        looks.spawn(async move {
            // It is closed by nobody.
            let _place = places.acquire().await;
            (id, look(&callout, &cell, draws).await)
        });
    }

    fn take(&self, known: &mut KnownProviders, (id, found): (usize, Result<FoundProvider, String>), draw: u64) {
        let Some((cell, refresh)) = known.get_mut(&id) else { return };
        let (now, issuer): (Moment, _) = (self.telemetry.moment(), cell.issuer().to_owned());
        let told = found.and_then(|(endpoints, headers, keys)| {
            let keys = cell.publish(endpoints, &keys).map_err(|why| format!("its keys cannot be used: {why}"))?.keys.len();
            Ok((keys, fresh_for(&headers)))
        });
        match told {
            Ok((keys, fresh)) => {
                refresh.came(fresh, now, draw);
                self.telemetry.readings.providers_away.lock().remove(&issuer);
                tracing::info!(issuer, keys, fresh_secs = fresh.as_secs(), "the provider of a login is found");
            }
            Err(why) => {
                cell.failed();
                let again = refresh.failed(now, draw);
                tracing::warn!(issuer, why, again_ms = again.as_millis(), "the provider of a login is not found");
                self.telemetry.readings.providers_away.lock().insert(issuer, why);
            }
        }
    }
}

/// Asks a provider where it is asked, unless that is given, and for its keys.
async fn look(callout: &Callout, cell: &ProviderCell, draws: [u64; 2]) -> Result<FoundProvider, String> {
    let endpoints = match cell.given() {
        Some(given) => given.clone(),
        None => {
            let document = cell.document()?;
            let (_, text) = callout
                .get(&document, DISCOVERY_BYTES_MAX, draws[0])
                .await
                .map_err(|away| format!("{} is not to be had: {away}", document.uri()))?;
            Endpoints::discovered(&text, cell.issuer(), cell.at())?
        }
    };
    let keys = callout.get(&endpoints.jwks, KEY_SET_BYTES_MAX, draws[1]).await;
    let (headers, keys) = keys.map_err(|away| format!("{} is not to be had: {away}", endpoints.jwks.uri()))?;
    Ok((endpoints, headers, keys))
}
