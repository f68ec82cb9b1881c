//! The live [`Snapshot`], and what is fetched into it on first use.
//!
//! A sidecar holds only what its application has used: [`Snapshots::outbound`] and [`Snapshots::name`] answer from the snapshot
//! without waiting, and otherwise ask the control plane (by way of [`Wanted`]) and wait a second at most.

mod learned;
mod posed;
#[doc(hidden)]
pub mod testing;
mod wanted;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use engine::model::{DnsAnswer, Outbound, Settings, Snapshot};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

pub use learned::Learned;
pub use posed::{LimitQuestions, POSED_MAX, Posed, PosedCommand, PosedElsewhere, unanswered};
pub use wanted::{IDLE, IDLE_ABSENT, NAMES_MAX, Want, WantState, Wanted, WantedChange};

/// Longest wait for the control plane's answer to a first use.
pub const FETCH_WAIT: Duration = Duration::from_secs(1);

/// What is known about an original destination.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The mesh's own: this is how it is served, or that it is not ([`Outbound::leads_nowhere`]).
    Found(Arc<Outbound>),
    /// Not of the mesh: pass it through untouched.
    Outside,
    /// Not of the mesh, and the mesh forbids to leave it.
    Denied,
    /// Not known yet and not to be passed through (`config_pending`).
    Pending,
}

/// What is known about a name.
#[derive(Clone, Debug)]
pub enum NameLookup {
    /// The mesh's answer.
    Found(Arc<DnsAnswer>),
    /// The mesh knows that it does not have that name.
    Absent,
    /// The control plane has not said.
    Unknown,
}

/// Holds the live snapshot, and says when it changes. Cheap to clone; one per process.
#[derive(Clone, Debug)]
pub struct Snapshots {
    live: Arc<ArcSwap<Snapshot>>,
    changed: Arc<watch::Sender<u64>>,
    missed: Arc<Notify>,
    wanted: Arc<Wanted>,
    learned: Arc<Learned>,
    limit_questions: Arc<LimitQuestions>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            live: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            changed: Arc::new(watch::Sender::new(0)),
            missed: Arc::default(),
            wanted: Arc::new(Wanted::default()),
            learned: Arc::new(Learned::default()),
            limit_questions: Arc::default(),
        }
    }
}

/// One worker's view of the live snapshot: a pointer comparison instead of shared counting. Not `Sync`: one per worker.
#[derive(Debug)]
pub struct Reader(RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>);

impl Reader {
    /// The live snapshot.
    #[inline]
    pub fn load(&self) -> Arc<Snapshot> {
        Arc::clone(self.0.borrow_mut().load())
    }

    /// Looks at the live snapshot in place, without touching its shared count. `look` must not call this reader again.
    #[inline]
    pub fn with<T>(&self, look: impl FnOnce(&Arc<Snapshot>) -> T) -> T {
        look(self.0.borrow_mut().load())
    }
}

impl Snapshots {
    /// The live snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.live.load_full()
    }

    /// A view for one worker.
    pub fn reader(&self) -> Reader {
        Reader(RefCell::new(Cache::new(Arc::clone(&self.live))))
    }

    /// Makes a snapshot live: one pointer store, seen whole.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.live.store(snapshot);
        self.wake();
    }

    /// Lets everybody who waits for a name look again: the control plane answered, or went away.
    pub fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Wakes at each publication (and at each answer about a wanted name).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Somebody shows a token of a key that is not at hand.
    pub fn miss_key(&self) {
        self.missed.notify_one();
    }

    /// Wakes after that. For one listener; cancel-safe.
    pub async fn key_missed(&self) {
        self.missed.notified().await;
    }

    /// The names fetched on first use; the xDS client drives it.
    pub fn wanted(&self) -> &Arc<Wanted> {
        &self.wanted
    }

    /// What stores are asked of limits that proxies share.
    pub const fn limit_questions(&self) -> &Arc<LimitQuestions> {
        &self.limit_questions
    }

    /// What DNS answered to the application of names that are not the mesh's.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// How to treat a connection to this original destination. A hit waits for nothing; a first use waits up to [`FETCH_WAIT`] for the
    /// control plane. While that is away, what lies outside the mesh's own ranges is passed through and the rest is `Pending`. Each
    /// call counts as a use: what is not asked for during [`IDLE`] is forgotten, and fetched again by the next call.
    /// Dropping the future forgets nothing: the answer still arrives.
    pub async fn outbound(&self, address: SocketAddr) -> Lookup {
        let want = Want::Outbound(address);
        let pick = |snapshot: &Snapshot| snapshot.outbound.get(&address).map(Arc::clone);
        match self.fetch(&want, pick, |settings| outside_mesh(settings, address.ip())).await {
            Fetched::Found(outbound) => {
                if outbound.leads_nowhere() {
                    // As soon forgotten as what does not exist: a scan of ports makes many of them.
                    self.wanted.answered(&want, false);
                }
                Lookup::Found(outbound)
            }
            Fetched::Absent | Fetched::Unknown => {
                self.load().settings.as_deref().map_or(Lookup::Pending, |settings| outside(settings, address.ip()))
            }
        }
    }

    /// What the mesh answers for a name (lower case, no trailing dot). The same waits as [`Snapshots::outbound`]: while the control plane
    /// is away, a name that others may know (`elsewhere`) is `Unknown` at once.
    pub async fn name(&self, host: &str, elsewhere: bool) -> NameLookup {
        let pick = |snapshot: &Snapshot| snapshot.names.get(host).map(Arc::clone);
        match self.fetch(&Want::Name(host.into()), pick, |_| elsewhere).await {
            Fetched::Found(answer) => NameLookup::Found(answer),
            Fetched::Absent => NameLookup::Absent,
            Fetched::Unknown => NameLookup::Unknown,
        }
    }

    async fn fetch<T>(
        &self,
        want: &Want,
        pick: impl Fn(&Snapshot) -> Option<T>,
        answerable_alone: impl Fn(&Settings) -> bool,
    ) -> Fetched<T> {
        let deadline = Instant::now() + FETCH_WAIT;
        let mut changes = None;
        loop {
            let snapshot = self.live.load();
            if let Some(found) = pick(&snapshot) {
                self.wanted.used(want, Instant::now());
                return Fetched::Found(found);
            }
            let alone = snapshot.settings.as_deref().is_some_and(&answerable_alone);
            drop(snapshot);
            // Listen first and look again afterwards, so that an answer in between is not missed.
            let Some(changes) = &mut changes else {
                changes = Some(self.changed.subscribe());
                match self.wanted.ask(want, Instant::now()) {
                    WantState::Absent => return Fetched::Absent,
                    WantState::Refused => return Fetched::Unknown,
                    WantState::Away if alone => return Fetched::Unknown,
                    WantState::Away | WantState::Awaited => continue,
                }
            };
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return Fetched::Unknown;
            }
            match self.wanted.ask(want, Instant::now()) {
                WantState::Absent if pick(&self.live.load()).is_none() => return Fetched::Absent,
                WantState::Away if alone => return Fetched::Unknown,
                _ => {}
            }
        }
    }
}

enum Fetched<T> {
    Found(T),
    Absent,
    Unknown,
}

fn outside_mesh(settings: &Settings, ip: IpAddr) -> bool {
    !settings.mesh_cidrs.iter().any(|range| range.contains(&ip))
}

/// The verdict on an address that no listener is known for. Inside the mesh's ranges that means "not yet", never "outside".
fn outside(settings: &Settings, ip: IpAddr) -> Lookup {
    match (outside_mesh(settings, ip), settings.outside_mesh_denied) {
        (false, _) => Lookup::Pending,
        (true, false) => Lookup::Outside,
        (true, true) => Lookup::Denied,
    }
}

#[cfg(test)]
mod tests;
