//! What outlives a policy: what is counted of an object's keys, and how its store does.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::OBJECT_KEYS_MAX;
use super::held::HeldShare;
use super::live::StoreLive;
use super::numbers::Meter;
use super::remote::{RemotePlace, RemoteStore, RemoteStores, StoreReading};
use super::table::Table;
use super::under_way::{UnderWay, UnderWayPlace, Wanted};
use crate::Moment;

/// What is known of one key of one limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    /// Which limit of the object, by a digest of its name, which no edit of the others changes; a key is one limit's. 0: none.
    pub limit: u32,
    /// What is known.
    pub state: RowState,
}

/// See [`Row`].
#[derive(Clone, Copy, Debug, Default)]
pub enum RowState {
    /// Nothing.
    #[default]
    Fresh,
    /// This proxy counts it.
    Own(Meter),
    /// All proxies do, and this one holds a part.
    Shared(HeldShare),
    /// Bytes of answers: when what was sent has been worth its time, nanoseconds.
    Pace(u64),
}

impl Row {
    /// Counted by this proxy.
    pub fn own(&mut self) -> &mut Meter {
        if !matches!(self.state, RowState::Own(_)) {
            self.state = RowState::Own(Meter::default());
        }
        let RowState::Own(meter) = &mut self.state else { unreachable!() };
        meter
    }

    /// Counted by all.
    pub fn shared(&mut self) -> &mut HeldShare {
        if !matches!(self.state, RowState::Shared(_)) {
            self.state = RowState::Shared(HeldShare::default());
        }
        let RowState::Shared(held) = &mut self.state else { unreachable!() };
        held
    }

    /// The same, of this limit of the object.
    #[must_use]
    pub const fn of(&mut self, limit: u32) -> &mut Self {
        self.limit = limit;
        self
    }
}

/// What became of a request at a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "`text` says what each is")]
pub enum LimitVerdict {
    Allowed,
    Refused,
    WouldRefuse,
    Queued,
    NoKey,
    StoreAwayAllowed,
    StoreAwayRefused,
}

impl LimitVerdict {
    /// Every one, in order; `verdict as usize` is its place.
    pub const ALL: [Self; 7] =
        [Self::Allowed, Self::Refused, Self::WouldRefuse, Self::Queued, Self::NoKey, Self::StoreAwayAllowed, Self::StoreAwayRefused];

    /// As metrics spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::WouldRefuse => "would_refuse",
            Self::Queued => "queued",
            Self::NoKey => "no_key",
            Self::StoreAwayAllowed => "store_away_allowed",
            Self::StoreAwayRefused => "store_away_refused",
        }
    }
}

/// What a key may be sent ahead of its pace, so that small answers are not cut up.
const PACE_AHEAD: Duration = Duration::from_millis(100);

/// How often requests met each verdict at one limit.
#[derive(Debug, Default)]
pub struct LimitCounts {
    verdicts: [AtomicU64; LimitVerdict::ALL.len()],
    /// Requests that wait for a place now.
    waiting: AtomicU64,
}

impl LimitCounts {
    pub(crate) fn add(&self, verdict: LimitVerdict) {
        if let Some(count) = self.verdicts.get(verdict as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request waits for a place; `false`: not any more.
    pub(crate) fn waits(&self, begins: bool) {
        if begins {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How often.
    pub fn get(&self, verdict: LimitVerdict) -> u64 {
        self.verdicts.get(verdict as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// How often requests met a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitReading {
    /// `NAMESPACE/NAME/LIMIT`.
    pub limit: Arc<str>,
    /// What became of them.
    pub verdict: LimitVerdict,
    /// How many there were.
    pub count: u64,
}

/// The memory of one object, or of one of its routes.
#[derive(Debug)]
pub struct Memory {
    /// Its name.
    pub name: Arc<str>,
    /// What is known of keys; the limit is a part of each.
    pub rows: Table<Row>,
    /// By `NAMESPACE/NAME/LIMIT`.
    counts: Mutex<BTreeMap<Arc<str>, Arc<LimitCounts>>>,
    under_way: Arc<UnderWay>,
    /// Whose it is, and where its newest version counts, if that is elsewhere.
    counts_at: Mutex<Option<(Arc<str>, Weak<RemoteStore>)>>,
}

impl Memory {
    fn new(name: &str) -> Self {
        let rows = Table::new(OBJECT_KEYS_MAX);
        Self { name: name.into(), rows, counts: Mutex::default(), under_way: Arc::default(), counts_at: Mutex::default() }
    }

    /// Notes where the object counts: `NAMESPACE/NAME`, and its store if that is not the control plane.
    pub(crate) fn count_at(&self, policy: &Arc<str>, store: Option<&Arc<RemoteStore>>) {
        let at = store.map(|store| (Arc::clone(policy), Arc::downgrade(store)));
        *self.counts_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// What a limit counts, which goes on as long as some version of the object has it.
    pub(crate) fn counts(&self, limit: &Arc<str>) -> Arc<LimitCounts> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if !counts.contains_key(limit) {
            counts.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        Arc::clone(counts.entry(Arc::clone(limit)).or_default())
    }

    /// Notes that bytes of an answer go to a key that may have so many in a second, and says how long they wait first.
    pub(crate) fn sent(&self, key: u128, (bytes, per_second): (u64, u64), now: Moment) -> Duration {
        let nanos = u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(per_second.max(1))).unwrap_or(u64::MAX);
        let ready = self.rows.with(key, |row| {
            let before = if let RowState::Pace(ready) = row.state { ready } else { 0 };
            let ready = before.max(now.nanos()).saturating_add(nanos);
            *row = Row { limit: 0, state: RowState::Pace(ready) };
            ready
        });
        Moment::of_nanos(ready).since(now).saturating_sub(PACE_AHEAD)
    }

    /// Wants one of `most` places of a key for a request; `queue` may wait for one.
    pub(crate) fn enter(&self, key: u128, most: u32, queue: u32) -> Wanted {
        self.under_way.enter(key, most, queue)
    }

    /// Whether a place is one of that key.
    pub(crate) fn has_given(&self, place: &UnderWayPlace, key: u128) -> bool {
        place.is_of(&self.under_way, key)
    }
}

/// LimitMemories by name, for as long as an object holds them, the one store of leases, and those elsewhere.
#[derive(Debug, Default)]
pub struct LimitMemories {
    held: Mutex<HashMap<String, Weak<Memory>>>,
    leases: Arc<StoreLive>,
    remote: RemoteStores,
    /// Logins, and where the sessions of each are kept.
    logins: Mutex<BTreeMap<Arc<str>, Weak<RemoteStore>>>,
}

impl LimitMemories {
    /// The memory of that name.
    pub fn adopt(&self, name: &str) -> Arc<Memory> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = held.get(name).and_then(Weak::upgrade) {
            return memory;
        }
        held.retain(|_, memory| memory.strong_count() > 0);
        let fresh = Arc::new(Memory::new(name));
        held.insert(name.to_owned(), Arc::downgrade(&fresh));
        fresh
    }

    /// Whether an object has a memory here.
    pub fn is_used(&self) -> bool {
        self.all().next().is_some()
    }

    /// The memories of all objects in force, and of those that somebody still holds.
    pub fn all(&self) -> impl Iterator<Item = Arc<Memory>> + use<> {
        let mut all: Vec<Arc<Memory>> =
            self.held.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect();
        all.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        all.into_iter()
    }

    /// What limits counted, verdicts that none met left out. LimitMemories of one object's routes count together.
    pub fn readings(&self) -> Vec<LimitReading> {
        let mut sums: BTreeMap<(Arc<str>, LimitVerdict), u64> = BTreeMap::new();
        for memory in self.all() {
            for (limit, counts) in memory.counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                for verdict in LimitVerdict::ALL {
                    *sums.entry((Arc::clone(limit), verdict)).or_default() += counts.get(verdict);
                }
            }
        }
        let told = sums.into_iter().filter(|(_, count)| *count > 0);
        told.map(|((limit, verdict), count)| LimitReading { limit, verdict, count }).collect()
    }

    /// Requests that wait for a place now, by `NAMESPACE/NAME/concurrency`, of those for which some ever did.
    pub fn waiting(&self) -> Vec<(Arc<str>, u64)> {
        let mut sums: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for memory in self.all() {
            for (limit, counts) in memory.counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                if counts.get(LimitVerdict::Queued) > 0 {
                    *sums.entry(Arc::clone(limit)).or_default() += counts.waiting.load(Ordering::Relaxed);
                }
            }
        }
        sums.into_iter().collect()
    }

    /// Keys that were forgotten for others.
    pub fn evicted(&self) -> u64 {
        self.all().map(|memory| memory.rows.evicted()).sum()
    }

    /// The store at a place, which an object of `namespace` names. Nobody shares one with another namespace, nor its trouble.
    pub fn store(&self, place: RemotePlace, namespace: &str) -> Arc<RemoteStore> {
        self.remote.adopt(place, namespace)
    }

    /// The stores that are spoken with, and those beyond the bounds, which are away ([`super::STORES_MAX`], [`super::NAMESPACE_STORES_MAX`]).
    pub fn placed_stores(&self) -> (Vec<Arc<RemoteStore>>, Vec<Arc<RemoteStore>>) {
        self.remote.placed()
    }

    /// The stores elsewhere that objects name, and those that somebody still holds.
    pub fn stores(&self) -> Vec<Arc<RemoteStore>> {
        self.remote.all()
    }

    /// Says where a login, by `NAMESPACE/NAME`, has its sessions now; `None`: with the browsers.
    pub(crate) fn login_keeps_at(&self, login: &str, store: Option<&Arc<RemoteStore>>) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|name, store| **name != *login && store.strong_count() > 0);
        if let Some(store) = store {
            logins.insert(login.into(), Arc::downgrade(store));
        }
    }

    /// Which object counts, or keeps sessions, at which of them, by `NAMESPACE/NAME`.
    pub fn stores_of(&self) -> Vec<(Arc<str>, Arc<RemoteStore>)> {
        let at = |memory: Arc<Memory>| {
            let at = memory.counts_at.lock().unwrap_or_else(PoisonError::into_inner);
            at.as_ref().and_then(|(policy, store)| Some((Arc::clone(policy), store.upgrade()?)))
        };
        let counting: BTreeMap<_, _> = self.all().filter_map(at).collect();
        let logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let keeping = logins.iter().filter_map(|(login, store)| Some((Arc::clone(login), store.upgrade()?)));
        counting.into_iter().chain(keeping).collect()
    }

    /// How they do. Several ways to one place count together.
    pub fn store_readings(&self) -> Vec<StoreReading> {
        let mut sums: BTreeMap<String, (bool, u64)> = BTreeMap::new();
        for store in self.stores() {
            let (away, failures) = sums.entry(store.place.name()).or_default();
            *away |= store.live.away_since().is_some() || store.trouble.away().is_some();
            *failures += store.trouble.failures();
        }
        sums.into_iter().map(|(store, (away, failures))| StoreReading { store, away, failures }).collect()
    }

    /// The control plane's store.
    pub const fn leases(&self) -> &Arc<StoreLive> {
        &self.leases
    }
}
