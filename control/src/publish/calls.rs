//! Who called whom for what, as the servers' sidecars tell it: what policies are suggested from. In memory only; a proxy tells all it has
//! counted since its start on every new stream, so a new control plane soon knows most of it again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use proto::identity::Identity;
use proto::mesh::{Call, Calls};

use super::peer::Claim;
use crate::translate::{Observed, ObservedCall};
use crate::world::Name;

/// Rows of all proxies; further ones are passed over, and that is told.
const ROWS_MAX: usize = 100_000;
/// How long a call is remembered after it was last seen: what is done once a week is among it.
pub const KEPT: Duration = Duration::from_secs(8 * 24 * 3600);
/// Longest method and path that is taken from a proxy.
const TEXT_BYTES_MAX: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub struct CallBook {
    /// By (namespace, workload) of the server, then by its instance and the call.
    rows: BTreeMap<Name, BTreeMap<RowKey, Row>>,
    count: usize,
    /// Calls of a workload that no row has, by instance, and when that was last told; counted as rows.
    uncounted: BTreeMap<Name, BTreeMap<String, (u64, u64)>>,
    /// Whether rows were passed over because there are too many.
    full: bool,
}

/// The server's proxy, and what it tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    proxy: String,
    call: ObservedCall,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    /// Of earlier lives of the proxy.
    before: u64,
    /// Of this one.
    now: u64,
    last_ms: u64,
}

impl CallBook {
    /// Takes a report. What it says of callers is bounded, and nobody but the server itself speaks for it.
    pub fn take(&mut self, claim: &Claim, told: Calls, now_ms: u64) {
        let server = (claim.namespace.clone(), claim.workload.clone());
        if told.uncounted > 0 {
            let known = self.uncounted.get(&server).is_some_and(|by| by.contains_key(&claim.key()));
            if known || self.has_room(now_ms) {
                self.uncounted.entry(server.clone()).or_default().insert(claim.key(), (told.uncounted, now_ms));
                self.count += usize::from(!known);
            } else {
                self.full = true;
            }
        }
        for call in told.calls {
            let count = call.count;
            if let Some(call) = read(call) {
                self.add(&server, RowKey { proxy: claim.key(), call }, count, now_ms);
            }
        }
    }

    fn add(&mut self, server: &Name, key: RowKey, count: u64, now_ms: u64) {
        let full = !self.has_room(now_ms);
        let rows = self.rows.entry(server.clone()).or_default();
        match rows.entry(key) {
            Entry::Occupied(mut known) => {
                let row = known.get_mut();
                // Counting began anew: the proxy did.
                row.before += if count < row.now { row.now } else { 0 };
                (row.now, row.last_ms) = (count, now_ms);
            }
            Entry::Vacant(_) if full => self.full = true,
            Entry::Vacant(place) => {
                place.insert(Row { before: 0, now: count, last_ms: now_ms });
                self.count += 1;
            }
        }
    }

    fn has_room(&mut self, now_ms: u64) -> bool {
        if self.count >= ROWS_MAX {
            self.forget(now_ms);
        }
        self.count < ROWS_MAX
    }

    /// Lets go of what is older than it is kept.
    fn forget(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX));
        self.rows.values_mut().for_each(|rows| rows.retain(|_, row| row.last_ms >= oldest));
        self.rows.retain(|_, rows| !rows.is_empty());
        self.uncounted.values_mut().for_each(|by| by.retain(|_, (_, last_ms)| *last_ms >= oldest));
        self.uncounted.retain(|_, by| !by.is_empty());
        self.count = self.rows.values().map(BTreeMap::len).sum::<usize>() + self.uncounted.values().map(BTreeMap::len).sum::<usize>();
        self.full &= self.count >= ROWS_MAX;
    }

    /// What was seen of calls to workloads within a time, over all instances.
    pub fn observed(&self, within: Duration, now_ms: u64) -> Observed {
        let oldest = now_ms.saturating_sub(u64::try_from(within.min(KEPT).as_millis()).unwrap_or(u64::MAX));
        let mut observed = Observed { incomplete: self.full, ..Observed::default() };
        for (server, rows) in &self.rows {
            for (key, row) in rows.iter().filter(|(_, row)| row.last_ms >= oldest) {
                let calls = observed.calls.entry(server.clone()).or_default();
                *calls.entry(key.call.clone()).or_default() += row.before + row.now;
            }
        }
        for (server, by) in &self.uncounted {
            let calls: u64 = by.values().filter(|(_, last_ms)| *last_ms >= oldest).map(|(calls, _)| *calls).sum();
            if calls > 0 {
                observed.uncounted.insert(server.clone(), calls);
            }
        }
        observed
    }
}

/// What a proxy tells, as far as it can be true.
fn read(call: Call) -> Option<ObservedCall> {
    let identity: Option<Identity> = if call.identity.is_empty() { None } else { Some(call.identity.parse().ok()?) };
    let port = u16::try_from(call.port).ok().filter(|port| *port > 0)?;
    let bounded = call.method.len() <= TEXT_BYTES_MAX && call.path.len() <= TEXT_BYTES_MAX;
    (bounded && call.count > 0).then_some(ObservedCall { identity, port, method: call.method, path: call.path })
}

#[cfg(test)]
mod tests {
    use proto::names::Mode;

    use super::super::peer::Dialect;
    use super::*;

    fn claim(instance: &str) -> Claim {
        let (namespace, workload) = ("shop".to_owned(), "store".to_owned());
        Claim {
            client: Dialect::Meshwright,
            mode: Mode::Sidecar,
            namespace,
            workload,
            instance: instance.to_owned(),
            replica: String::new(),
        }
    }

    fn calls(path: &str, count: u64) -> Calls {
        let identity = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
        Calls { calls: vec![Call { identity, port: 80, method: "GET".to_owned(), path: path.to_owned(), count }], uncounted: 0 }
    }

    fn count(book: &CallBook, within_secs: u64, now_ms: u64) -> u64 {
        book.observed(Duration::from_secs(within_secs), now_ms).calls.values().flat_map(BTreeMap::values).sum()
    }

    #[test]
    fn counts_are_cumulative_over_instances_and_restarts() {
        // Aim: repeated reports count once, instances add up, and a proxy that begins anew loses nothing.
        let mut book = CallBook::default();
        for (instance, told) in [("store-0", 5), ("store-0", 7), ("store-1", 2), ("store-0", 1), ("store-0", 3)] {
            book.take(&claim(instance), calls("/a", told), 0);
        }
        assert_eq!(count(&book, 60, 0), 7 + 3 + 2);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        // Aim: `--since` leaves out what was not seen since, and nothing is kept for longer than is said.
        let mut book = CallBook::default();
        book.take(&claim("store-0"), calls("/a", 1), 0);
        book.take(&claim("store-0"), calls("/b", 1), 100_000);
        assert_eq!((count(&book, 60, 120_000), count(&book, 3600, 120_000)), (1, 2));
        let after = u64::try_from(KEPT.as_millis()).unwrap() + 50_000;
        assert_eq!(count(&book, u64::MAX, after), 1);
        book.forget(after);
        assert_eq!(book.count, 1);
    }

    #[test]
    fn calls_that_no_row_has_are_forgotten_too() {
        // Aim: each instance that ever told of some costs a row, and is gone with its time.
        let mut book = CallBook::default();
        for number in 0..10 {
            book.take(&claim(&format!("store-{number}")), Calls { calls: Vec::new(), uncounted: 3 }, number * 1_000);
        }
        let store = ("shop".to_owned(), "store".to_owned());
        let uncounted = |book: &CallBook, within: Duration, now_ms| book.observed(within, now_ms).uncounted.get(&store).copied();
        assert_eq!(
            (book.count, uncounted(&book, KEPT, 10_000), uncounted(&book, Duration::from_secs(5), 10_000)),
            (10, Some(30), Some(15))
        );
        let after = u64::try_from(KEPT.as_millis()).unwrap() + 20_000;
        assert_eq!(uncounted(&book, KEPT, after), None);
        book.forget(after);
        assert_eq!((book.count, book.uncounted.len()), (0, 0));
    }

    #[test]
    fn no_proxy_fills_the_memory() {
        // Aim: rows are bounded over all proxies, what is passed over is told, and what is no call is not believed.
        let mut book = CallBook::default();
        for number in 0..=ROWS_MAX {
            book.take(&claim("store-0"), calls(&format!("/{number}"), 1), 0);
        }
        assert_eq!(book.count, ROWS_MAX);
        assert!(book.observed(KEPT, 0).incomplete);
        let mut odd = calls("/a", 1);
        odd.calls[0].identity = "spiffe://cluster.local/admin".to_owned();
        let mut empty = CallBook::default();
        empty.take(&claim("store-0"), odd, 0);
        empty.take(&claim("store-0"), calls(&"/a".repeat(TEXT_BYTES_MAX), 1), 0);
        assert_eq!(empty.count, 0);
    }
}
