//! Keeps the keys of token issuers fresh: one task on the control thread for all places that the live snapshot names. When each is due says
//! [`engine::authenticate::Refresh`]; requests never wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use engine::Moment;
use engine::authenticate::{KEY_SET_BYTES_MAX, KeyCell, Refresh, fresh_for};
use http::HeaderMap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Away, Callout};
use crate::io::Draw;
use crate::observe::Telemetry;
use crate::snapshots::Snapshots;

/// Sets that are fetched at once; further ones wait for that.
const FETCHES_MAX: usize = 4;
/// Longest rest: nothing is due for longer.
const REST_MAX: Duration = Duration::from_secs(3600);

/// See the module.
pub struct KeyKeeper {
    /// Fetches.
    pub callout: Callout,
    /// Says which keys are needed.
    pub snapshots: Snapshots,
    /// Metrics and time.
    pub telemetry: Arc<Telemetry>,
}

type Fetched = (String, Result<(HeaderMap, Bytes), Away>);

/// The places that keys come from, and what is known of fetching from each.
type Known = BTreeMap<String, (Arc<KeyCell>, Refresh)>;

impl KeyKeeper {
    /// Fetches what is due until `stop`.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        let (mut known, mut fetches) = (Known::new(), JoinSet::new());
        let places = Arc::new(Semaphore::new(FETCHES_MAX));
        let mut changes = self.snapshots.changes();
        loop {
            changes.mark_unchanged();
            self.meet(&mut known);
            for (uri, (cell, refresh)) in &mut known {
                self.begin((uri.as_str(), &*cell, refresh), (&mut fetches, &places), &draw);
            }
            let now = self.telemetry.moment();
            let over = |cell: &KeyCell, refresh: &Refresh| refresh.over(cell.kept()).filter(|_| cell.current().is_some());
            let due = known.values().flat_map(|(cell, refresh)| [Some(refresh.due()), over(cell, refresh)]).flatten().min();
            let rest = due.map_or(REST_MAX, |due| due.since(now).min(REST_MAX));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(Ok((uri, fetched))) = fetches.join_next() => self.take(&mut known, (uri, fetched), draw.next()),
                changed = changes.changed() => if changed.is_err() { return },
                () = self.snapshots.key_missed() => {}
                () = sleep(rest), if !known.is_empty() => {}
            }
        }
    }

    /// What the live snapshot names, and nothing else. A cell that is another than before has no keys yet.
    fn meet(&self, known: &mut Known) {
        let (live, now) = (self.snapshots.load(), self.telemetry.moment());
        let mut former = std::mem::take(known);
        for cell in live.key_cells.iter().chain(live.authentication.iter().flat_map(|authentication| authentication.cells())) {
            let uri = cell.at().uri().to_string();
            let kept = former.remove(&uri).filter(|(kept, _)| Arc::ptr_eq(kept, cell));
            known.entry(uri).or_insert_with(|| kept.unwrap_or_else(|| (Arc::clone(cell), Refresh::new(now))));
        }
        self.telemetry.readings.keys_away.lock().retain(|uri, _| known.contains_key(uri));
    }

    /// Fetches from one place if that is due, and gives up keys that are too old.
    fn begin(
        &self,
        (uri, cell, refresh): (&str, &Arc<KeyCell>, &mut Refresh),
        (fetches, places): (&mut JoinSet<Fetched>, &Arc<Semaphore>),
        draw: &Draw,
    ) {
        let now = self.telemetry.moment();
        if refresh.is_over(now, cell.kept()) && cell.current().is_some() {
            tracing::error!(jwks_uri = uri, "keys could not be fetched for so long that they are not believed any more");
            cell.expire();
        }
        if cell.is_missed() {
            refresh.missed();
        }
        if refresh.due() > now {
            return;
        }
        refresh.begun(now);
        cell.asked(self.telemetry.times().0.unix().as_secs());
        let draw = draw.next();
        let (uri, cell, callout, places) = (uri.to_owned(), Arc::clone(cell), self.callout.clone(), Arc::clone(places));
        fetches.spawn(async move {
            // It is closed by nobody.
            let _place = places.acquire().await;
            let fetched = callout.get(cell.at(), KEY_SET_BYTES_MAX, draw).await;
            (uri, fetched)
        });
    }

    fn take(&self, known: &mut Known, (uri, fetched): Fetched, draw: u64) {
        let Some((cell, refresh)) = known.get_mut(&uri) else { return };
        let now: Moment = self.telemetry.moment();
        let told = match fetched {
            Ok((headers, text)) => cell.publish(&text).map(|keys| (keys, fresh_for(&headers))),
            Err(away) => Err(away.to_string()),
        };
        match told {
            Ok((keys, fresh)) => {
                refresh.came(fresh, now, draw);
                if keys.is_empty() {
                    let why = keys.why_unusable();
                    tracing::error!(jwks_uri = uri, why, "a token issuer has no keys any more");
                    self.telemetry.readings.keys_away.lock().insert(uri, why);
                    return;
                }
                self.telemetry.readings.keys_away.lock().remove(&uri);
                tracing::info!(jwks_uri = uri, keys = keys.len(), skipped = ?keys.skipped(), fresh_secs = fresh.as_secs(), "keys fetched");
            }
            Err(why) => {
                self.telemetry.readings.keys_away.lock().insert(uri.clone(), why.clone());
                self.telemetry.readings.key_fetches_failed.fetch_add(1, Ordering::Relaxed);
                let (again, at_hand) = (refresh.failed(now, draw), cell.current().map_or(0, |keys| keys.len()));
                tracing::warn!(jwks_uri = uri, why, at_hand, again_ms = again.as_millis(), "keys of a token issuer cannot be fetched");
            }
        }
    }
}
