//! Who called the application for what: what least-privilege policies are suggested from. Each worker has a bounded table of its own; a
//! request costs it a comparison with what came last at its place, and one that is new there a walk along its path.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::Method;
use parking_lot::Mutex;
use proto::identity::Identity;
use proto::mesh::Call;

use super::paths::generalise;
use super::series::Count;

/// Rows of one worker; what finds no place is counted in one number.
const CALLS_MAX: usize = 1024;
/// So many rows tell paths apart; of further ones only the first element counts, so that no caller with many paths takes all the room.
const PATHS_APART_MAX: usize = CALLS_MAX * 3 / 4;
/// Rows that are told at once.
const ROWS_TOLD_MAX: usize = 256;
/// Places for requests that came last; a power of two.
const RECENT: usize = 64;
/// Longest path that such a place remembers.
const RECENT_PATH_BYTES_MAX: usize = 256;
/// The number of what is not counted.
pub(super) const CALL_NONE: u32 = u32::MAX;
/// The number of what is counted together with all that has no row.
pub(super) const CALL_UNCOUNTED: u32 = u32::MAX - 1;

/// One row.
#[derive(Debug)]
pub(super) struct CallRow {
    /// `None`: plaintext.
    identity: Option<Arc<Identity>>,
    port: u16,
    method: Box<str>,
    path: Box<str>,
    pub(super) count: Count,
}

/// The rows of one worker, as others may read them.
#[derive(Debug, Default)]
pub(super) struct CallShard {
    /// Locked by the worker when a row is new, and by the report.
    rows: Mutex<Vec<Arc<CallRow>>>,
    uncounted: Count,
}

/// Who calls, as one worker tells callers apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calling<'c> {
    /// The worker's number for it.
    pub(super) number: u32,
    /// What it proved; `None`: it spoke plaintext.
    pub(super) identity: Option<&'c Arc<Identity>>,
}

/// The table of one worker.
#[derive(Debug)]
pub(super) struct CallTable {
    rows: Vec<Arc<CallRow>>,
    /// By caller, port, method and path.
    numbers: HashMap<Box<[u8]>, u32>,
    /// Empty until somebody calls.
    recent: Vec<RecentCall>,
    key: Vec<u8>,
    shard: Arc<CallShard>,
}

/// What came last at a place.
#[derive(Debug)]
struct RecentCall {
    number: u32,
    caller: u32,
    port: u16,
    method: Method,
    path: String,
}

impl CallTable {
    pub(super) fn new(shard: Arc<CallShard>) -> Self {
        Self { rows: Vec::new(), numbers: HashMap::new(), recent: Vec::new(), key: Vec::new(), shard }
    }

    /// The number of a request's row.
    pub(super) fn request(&mut self, caller: Calling<'_>, port: u16, method: &Method, path: &str) -> u32 {
        if self.recent.is_empty() {
            let nothing = || RecentCall { number: CALL_NONE, caller: 0, port: 0, method: Method::GET, path: String::new() };
            self.recent.resize_with(RECENT, nothing);
        }
        let place = place(caller.number, port, path.as_bytes());
        let last = &self.recent[place];
        if last.number != CALL_NONE && last.path == path && last.port == port && last.caller == caller.number && last.method == *method {
            return last.number;
        }
        let number = self.number(caller, port, method.as_str(), path);
        if path.len() <= RECENT_PATH_BYTES_MAX {
            let last = &mut self.recent[place];
            last.path.clear();
            last.path.push_str(path);
            (last.number, last.caller, last.port) = (number, caller.number, port);
            last.method.clone_from(method);
        }
        number
    }

    /// The number of an opaque connection's row.
    pub(super) fn connection(&mut self, caller: Calling<'_>, port: u16) -> u32 {
        self.number(caller, port, "", "")
    }

    /// Counts one. It was passed on to the application.
    pub(super) fn count(&self, number: u32) {
        match self.rows.get(number as usize) {
            Some(row) => row.count.add(1),
            None => self.shard.uncounted.add(1),
        }
    }

    fn number(&mut self, caller: Calling<'_>, port: u16, method: &str, path: &str) -> u32 {
        let full = self.rows.len() >= PATHS_APART_MAX;
        let start = self.write_key(caller, port, method);
        generalise(path.as_bytes(), usize::MAX, &mut self.key);
        if let Some(number) = self.numbers.get(self.key.as_slice()) {
            return *number;
        }
        if full {
            self.key.truncate(start);
            generalise(path.as_bytes(), 1, &mut self.key);
            if let Some(number) = self.numbers.get(self.key.as_slice()) {
                return *number;
            }
        }
        self.add(caller, port, method, start)
    }

    /// Begins the key; where its path begins.
    fn write_key(&mut self, caller: Calling<'_>, port: u16, method: &str) -> usize {
        self.key.clear();
        self.key.push(u8::from(caller.identity.is_some()));
        self.key.extend_from_slice(&caller.number.to_le_bytes());
        self.key.extend_from_slice(&port.to_le_bytes());
        self.key.extend_from_slice(method.as_bytes());
        self.key.push(b' ');
        self.key.len()
    }

    #[cold]
    fn add(&mut self, caller: Calling<'_>, port: u16, method: &str, path_starts: usize) -> u32 {
        if self.rows.len() >= CALLS_MAX {
            return CALL_UNCOUNTED;
        }
        let path = String::from_utf8_lossy(&self.key[path_starts..]).into_owned().into_boxed_str();
        let row = CallRow { identity: caller.identity.cloned(), port, method: method.into(), path, count: Count::default() };
        let row = Arc::new(row);
        let number = u32::try_from(self.rows.len()).unwrap_or(CALL_UNCOUNTED);
        self.rows.push(Arc::clone(&row));
        self.numbers.insert(self.key.as_slice().into(), number);
        self.shard.rows.lock().push(row);
        number
    }
}

/// By what differs most: the path's end and length, the caller, the port.
fn place(caller: u32, port: u16, path: &[u8]) -> usize {
    let end =
        path.last_chunk::<8>().map_or_else(|| path.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), |end| u64::from_le_bytes(*end));
    let mixed = end ^ (path.len() as u64) << 48 ^ u64::from(caller) << 24 ^ u64::from(port);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (RECENT - 1)
}

/// What was told on one stream of reports.
#[derive(Debug, Default)]
pub struct CallsTold {
    rows: BTreeMap<CallKey, u64>,
    /// The last row told; the next ones come first.
    last: Option<CallKey>,
    uncounted: u64,
}

/// Identity, port, method, path.
type CallKey = (String, u16, Box<str>, Box<str>);

impl CallsTold {
    /// Rows that are new or have changed since they were told, and marks them as told. `None`: there is nothing to tell. At most 256 rows at
    /// once, new ones first; the others come the next time.
    pub(super) fn news(&mut self, shards: &[Arc<CallShard>]) -> Option<proto::mesh::Calls> {
        let told = self;
        let (sums, uncounted) = sums(shards);
        let changed = |key: &&CallKey| told.rows.get(*key) != sums.get(*key);
        let (known, new): (Vec<&CallKey>, Vec<&CallKey>) = sums.keys().filter(changed).partition(|key| told.rows.contains_key(*key));
        if known.is_empty() && new.is_empty() && uncounted == told.uncounted {
            return None;
        }
        // Those after the last one told, and then from the start.
        let after = known.partition_point(|key| told.last.as_ref().is_some_and(|last| *key <= last));
        let turn = known[after..].iter().chain(&known[..after]);
        let chosen: Vec<CallKey> = new.iter().chain(turn).take(ROWS_TOLD_MAX).map(|key| (*key).clone()).collect();
        told.uncounted = uncounted;
        let mut calls = Vec::with_capacity(chosen.len());
        for key in chosen {
            let count = sums.get(&key).copied().unwrap_or(0);
            let (identity, port, method, path) = key.clone();
            calls.push(Call { identity, port: port.into(), method: method.into(), path: path.into(), count });
            if told.rows.insert(key.clone(), count).is_some() {
                told.last = Some(key);
            }
        }
        Some(proto::mesh::Calls { calls, uncounted })
    }
}

/// Over all workers, and over all workloads of one identity.
fn sums(shards: &[Arc<CallShard>]) -> (BTreeMap<CallKey, u64>, u64) {
    let mut sums: BTreeMap<CallKey, u64> = BTreeMap::new();
    for row in shards.iter().flat_map(|shard| shard.rows.lock().clone()) {
        let count = row.count.get();
        // Asked for, and refused by the mesh: not a call.
        if count > 0 {
            let identity = row.identity.as_ref().map(ToString::to_string).unwrap_or_default();
            *sums.entry((identity, row.port, row.method.clone(), row.path.clone())).or_default() += count;
        }
    }
    (sums, shards.iter().map(|shard| shard.uncounted.get()).sum())
}

#[cfg(test)]
mod tests {
    use super::super::{Telemetry, TelemetryOptions};
    use super::*;
    use crate::io::Clock;

    fn telemetry() -> (Arc<Telemetry>, CallTable) {
        let (telemetry, _) = Telemetry::new(TelemetryOptions::default(), Clock::System);
        let shard: Arc<CallShard> = Arc::default();
        telemetry.calls.lock().push(Arc::clone(&shard));
        (telemetry, CallTable::new(shard))
    }

    fn identity(account: &str) -> Arc<Identity> {
        Arc::new(Identity::new("cluster.local", "shop", account).unwrap())
    }

    fn call(table: &mut CallTable, caller: Option<(u32, &Arc<Identity>)>, method: &Method, path: &str) {
        let caller = Calling { number: caller.map_or(0, |caller| caller.0), identity: caller.map(|caller| caller.1) };
        let number = table.request(caller, 8080, method, path);
        table.count(number);
    }

    fn lines(calls: Option<proto::mesh::Calls>) -> Vec<String> {
        let line = |call: Call| format!("{} {} {} {} {}", call.identity, call.port, call.method, call.path, call.count);
        calls.into_iter().flat_map(|calls| calls.calls).map(line).collect()
    }

    /// Aim: calls are told by who, where and what, with ids taken together, counted over all that looks the same; and told once.
    #[test]
    fn calls_are_told_by_what_they_are() {
        let (telemetry, mut table) = telemetry();
        let (web, job) = (identity("web"), identity("job"));
        for id in 0..100 {
            call(&mut table, Some((1, &web)), &Method::GET, &format!("/users/{id}/orders"));
        }
        call(&mut table, Some((1, &web)), &Method::GET, "/healthz");
        call(&mut table, Some((1, &web)), &Method::GET, "/healthz");
        call(&mut table, Some((2, &web)), &Method::GET, "/healthz");
        call(&mut table, Some((3, &job)), &Method::POST, "/healthz");
        call(&mut table, None, &Method::GET, "/healthz");
        let opaque = table.connection(Calling { number: 3, identity: Some(&job) }, 9000);
        table.count(opaque);
        let mut told = CallsTold::default();
        let first = lines(telemetry.calls(&mut told));
        assert_eq!(
            first,
            [
                " 8080 GET /healthz 1",
                "spiffe://cluster.local/ns/shop/sa/job 8080 POST /healthz 1",
                "spiffe://cluster.local/ns/shop/sa/job 9000   1",
                "spiffe://cluster.local/ns/shop/sa/web 8080 GET /healthz 3",
                "spiffe://cluster.local/ns/shop/sa/web 8080 GET /users/{id}/orders 100",
            ]
        );
        assert_eq!(telemetry.calls(&mut told), None);
        call(&mut table, Some((3, &job)), &Method::POST, "/healthz");
        assert_eq!(lines(telemetry.calls(&mut told)), ["spiffe://cluster.local/ns/shop/sa/job 8080 POST /healthz 2"]);
        assert_eq!(lines(telemetry.calls(&mut CallsTold::default())).len(), 5, "another stream hears all");
    }

    /// Aim: a request that the mesh refuses never counts as a call.
    #[test]
    fn what_is_not_passed_on_is_no_call() {
        let (telemetry, mut table) = telemetry();
        table.request(Calling { number: 0, identity: None }, 8080, &Method::GET, "/admin");
        assert_eq!(telemetry.calls(&mut CallsTold::default()), None);
    }

    /// Aim: no caller makes the table grow: first its paths are taken together, then its calls are counted without a row, and that is told.
    #[test]
    fn calls_are_bounded() {
        let (telemetry, mut table) = telemetry();
        let web = identity("web");
        let name = |number: usize| {
            let letters = [number / 676, number / 26 % 26, number % 26].map(|letter| b'a' + letter as u8);
            String::from_utf8(letters.to_vec()).unwrap()
        };
        for number in 0..2 * CALLS_MAX {
            call(&mut table, Some((1, &web)), &Method::GET, &format!("/files/{}", name(number)));
        }
        assert_eq!(table.rows.len(), PATHS_APART_MAX + 1);
        for number in 0..2 * CALLS_MAX {
            call(&mut table, Some((1, &web)), &Method::GET, &format!("/{}/x", name(number)));
        }
        assert_eq!((table.rows.len(), table.numbers.len(), table.recent.len()), (CALLS_MAX, CALLS_MAX, RECENT));
        let (mut told, mut all, mut uncounted) = (CallsTold::default(), Vec::new(), 0);
        while let Some(calls) = telemetry.calls(&mut told) {
            assert!(calls.calls.len() <= ROWS_TOLD_MAX);
            uncounted = calls.uncounted;
            all.extend(lines(Some(calls)));
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), CALLS_MAX);
        assert!(all.iter().any(|line| line.contains("/files/{rest=**} ")), "{all:?}");
        assert_eq!(uncounted, (2 * CALLS_MAX - (CALLS_MAX - PATHS_APART_MAX - 1)) as u64);
    }

    /// Aim: however many rows change all the time, each is told in its turn.
    #[test]
    fn every_row_has_its_turn() {
        let (telemetry, mut table) = telemetry();
        let name = |number: u8| format!("/{}{}", char::from(b'a' + number / 26), char::from(b'a' + number % 26));
        let mut told = CallsTold::default();
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..8 {
            for (method, number) in [Method::GET, Method::PUT].iter().flat_map(|method| (0..200).map(move |number| (method, number))) {
                call(&mut table, None, method, &name(number));
            }
            let calls = telemetry.calls(&mut told).unwrap();
            if round >= 2 {
                seen.extend(calls.calls.into_iter().map(|call| (call.method, call.path)));
            }
        }
        assert_eq!(seen.len(), 400);
    }
}
