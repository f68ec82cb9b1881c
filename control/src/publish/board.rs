//! The board: what is published now, who is connected, and who runs which epoch. One writer (`app`) pins new editions; every stream
//! looks at the newest one at its own pace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::mesh::{Answer, Calls, Certificate, Command, PlaintextPeer, Traffic, command};
use proto::names::Mode;
use tokio::sync::{mpsc, oneshot, watch};

use super::cache::Cache;
use super::calls::CallBook;
use super::concern::Concerns;
use super::edition::Edition;
use super::epoch::{Book, Entry, Lived, Touched};
use super::peer::{Claim, Entrance, edge_key, gateway_of, of_gateway, of_key, replica_key, sidecar_key};
use super::plaintext::{PlaintextBook, Sighting};
use super::stats::StatBook;
use super::taps::TapBook;
use super::trust::Roots;
use super::versions::VersionBook;
use crate::clock::Clock;
use crate::world::canary::CanaryBook;
use crate::world::{Address, Change, Index, Name, ObjectKey, World};

/// Events that wait for the writer; a sender waits when it is full.
pub const EVENTS_MAX: usize = 256;
/// Commands under way to one proxy.
pub const COMMANDS_MAX: usize = 64;
/// Streams (all kinds) that may be open at once.
pub const STREAMS_MAX: usize = 20_000;
/// Most ADS streams of one node: a restart opens the next before the last one's end is noticed, and nobody else is kept out by one that lies.
pub const STREAMS_PER_NODE_MAX: usize = 16;

/// Most proxies of one Gateway with an ADS stream: none keeps others out by names that it makes up.
pub const REPLICAS_MAX: usize = 256;

/// What the writer is asked to do.
pub enum Errand {
    /// The folder or the cluster changed.
    Objects(Vec<Change>),
    /// `apply` or `delete`.
    Apply {
        /// (path, text) of each file.
        documents: Vec<(String, String)>,
        /// Take back instead.
        delete: bool,
        /// Gets the outcome, or why nothing was done.
        reply: oneshot::Sender<Result<Receipt, String>>,
    },
    /// The node agent, or a proxy, says what runs.
    Runtime(Change),
    /// How canaries stand from now on.
    Canaries {
        /// What is in force of it.
        book: Arc<CanaryBook>,
        /// What is kept with that.
        kept: serde_json::Value,
        /// About which something was decided.
        changed: BTreeSet<ObjectKey>,
        /// Gets the epoch that holds it.
        reply: oneshot::Sender<u64>,
    },
    /// Whom the mesh believes from now on.
    Roots {
        /// All of it.
        roots: Arc<Roots>,
        /// Gets the epoch that holds it.
        reply: oneshot::Sender<u64>,
    },
}

/// What `apply` came to.
#[derive(Clone, Debug, Default)]
pub struct Receipt {
    /// The epoch that holds it.
    pub epoch: u64,
    /// One row per object.
    pub objects: Vec<Touched>,
    /// Lines for people.
    pub warnings: Vec<String>,
}

/// A proxy (or stock client) with an open ADS stream.
#[derive(Clone, Debug)]
pub struct Presence {
    /// Who it is.
    pub claim: Claim,
    /// [`Claim::key_by`] its door.
    pub key: String,
    /// [`Claim::counts_by`] its door.
    pub counts: bool,
    /// SPIFFE URI; empty on plaintext.
    pub identity: String,
    /// Milliseconds since 1970.
    pub connected_ms: u64,
    /// [`super::peer::Proven::below`] of the leaf that it came with.
    pub below: Option<[u8; 32]>,
}

/// Everybody with an open ADS stream.
#[derive(Default)]
struct Present {
    all: BTreeMap<u64, Presence>,
    keys: BTreeMap<String, Seats>,
}

/// Streams of one key.
#[derive(Default)]
struct Seats {
    all: usize,
    /// By the answers of how many the book goes.
    count: usize,
}

impl Present {
    fn add(&mut self, id: u64, presence: Presence) {
        let seats = self.keys.entry(presence.key.clone()).or_default();
        seats.all += 1;
        seats.count += usize::from(presence.counts);
        self.all.insert(id, presence);
    }

    /// Returns the key of a proxy of ours that has no stream any more.
    fn remove(&mut self, id: u64) -> Option<String> {
        let Presence { key, counts, .. } = self.all.remove(&id)?;
        let seats = self.keys.get_mut(&key)?;
        seats.all -= 1;
        seats.count -= usize::from(counts);
        let gone = counts && seats.count == 0;
        if seats.all == 0 {
            self.keys.remove(&key);
        }
        gone.then_some(key)
    }

    fn counts(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|seats| seats.count > 0)
    }
}

/// A proxy's Reports stream.
pub struct Correspondent {
    /// Its version.
    pub version: String,
    /// Its process, where known.
    pub pid: u32,
    /// The leaf in use.
    pub certificate: Option<Certificate>,
    /// Cumulative traffic.
    pub traffic: Traffic,
    pub(super) commands: mpsc::Sender<Command>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    stream: u64,
}

/// See the module.
pub struct Board {
    edition: watch::Sender<Option<Arc<Edition>>>,
    /// Turns whenever the book changes.
    turned: watch::Sender<u64>,
    book: Mutex<Book>,
    present: Mutex<Present>,
    correspondents: Mutex<BTreeMap<String, Correspondent>>,
    plaintext: Mutex<PlaintextBook>,
    calls: Mutex<CallBook>,
    pub(super) stats: Mutex<StatBook>,
    /// Who watches requests.
    pub taps: Arc<TapBook>,
    next: std::sync::atomic::AtomicU64,
    events: mpsc::Sender<Errand>,
    /// What all of the control plane goes by.
    pub clock: Clock,
    /// Views, shared between streams.
    pub cache: Cache,
    /// What proxies count of versions of canaries.
    pub versions: Mutex<VersionBook>,
    /// Who is to look at a new edition.
    pub concerns: Arc<Concerns>,
}

impl Board {
    /// An empty board, and the writer's end of its events.
    pub fn new(clock: Clock) -> (Arc<Self>, mpsc::Receiver<Errand>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let board = Self {
            edition: watch::Sender::new(None),
            turned: watch::Sender::new(0),
            book: Mutex::default(),
            present: Mutex::default(),
            correspondents: Mutex::default(),
            plaintext: Mutex::default(),
            calls: Mutex::default(),
            versions: Mutex::default(),
            stats: Mutex::default(),
            taps: Arc::default(),
            next: 1.into(),
            events,
            clock,
            cache: Cache::default(),
            concerns: Arc::default(),
        };
        (Arc::new(board), receiver)
    }

    /// Hands an event to the writer; waits while it is busy. False: it has ended.
    pub async fn send(&self, event: Errand) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// Pins an edition of the epoch that is open, and wakes whom it concerns. Only the writer does.
    pub fn publish(&self, edition: Edition) {
        self.pin(edition, None);
    }

    /// Pins the first edition of an epoch, which begins in the book before anybody can answer it. Only the writer does.
    pub fn open_epoch(&self, edition: Edition, objects: Vec<Touched>) {
        self.pin(edition, Some(objects));
    }

    fn pin(&self, edition: Edition, opened: Option<Vec<Touched>>) {
        let before = self.edition();
        self.miss(before.as_deref(), &edition);
        let touched = self.cache.turn(&edition, edition.touched(before.as_deref()));
        let edition = Arc::new(edition);
        let declared = opened.is_some().then(|| self.declared(&edition.world));
        let former = self.concerns.turn((edition.serial, edition.epoch), &touched, |woken| {
            if let Some(objects) = opened {
                let absent = declared.into_iter().flatten().filter(|key| !woken.follows(key));
                let expected = woken.keys.iter().map(|key| (*key).to_owned()).chain(absent).collect();
                self.book.lock().open(edition.epoch, objects, (expected, woken.quiet), self.clock.us());
            }
            // Visible before anybody is woken, and before anybody rests on what came before.
            self.edition.send_replace(Some(edition.clone()))
        });
        drop(former);
        self.turn();
    }

    /// Waits no longer for proxies that are neither declared nor connected in a new edition.
    fn miss(&self, before: Option<&Edition>, now: &Edition) {
        let (is, now_us) = (now.world.index(), self.clock.us());
        let was =
            before.map(|before| before.world.index()).filter(|was| was.revoked.identities.is_empty() && is.revoked.identities.is_empty());
        let Some(was) = was else {
            // Sentences begin and end by themselves.
            let expected = self.expected(&now.world);
            self.book.lock().expect(&expected, now_us);
            return;
        };
        let sidecars = was.started.changes(&is.started).into_iter().filter(|(.., is)| is.is_none());
        let edges = was.gateways.changes(&is.gateways).into_iter().filter(|(.., is)| is.is_none());
        let sidecars = sidecars.map(|((namespace, name), ..)| sidecar_key(namespace, name));
        let gone = sidecars.chain(edges.map(|((namespace, name), ..)| edge_key(namespace, name)));
        for key in gone.filter(|key| !self.present.lock().counts(key)) {
            // What stands for a Gateway of which no proxy is there; those that are there end their streams, see `sweep`.
            self.book.lock().forget(&key, now_us);
        }
    }

    /// The newest edition; `None` until the folder has been read once.
    pub fn edition(&self) -> Option<Arc<Edition>> {
        self.edition.borrow().clone()
    }

    /// Follows editions.
    pub fn editions(&self) -> watch::Receiver<Option<Arc<Edition>>> {
        self.edition.subscribe()
    }

    /// Follows the book.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turned.subscribe()
    }

    /// What a proxy runs: what it said last, or any newer epoch that changed nothing for it; 0: nothing yet.
    pub fn running(&self, key: &str) -> u64 {
        let ran = self.concerns.ran(key);
        self.read(|book| book.running(key)).max(ran)
    }

    /// The oldest epoch that a proxy of a Gateway runs; `None`: none is there that runs anything. One that has just come counts from its first
    /// answer on: until then it is sent nothing, and whoever was there before serves as before.
    pub fn gateway_runs(&self, namespace: &str, name: &str) -> Option<u64> {
        self.gateway_proxies(namespace, name).iter().map(|key| self.running(key)).filter(|epoch| *epoch > 0).min()
    }

    /// Keys of the proxies of a Gateway that are there.
    pub fn gateway_proxies(&self, namespace: &str, name: &str) -> Vec<String> {
        let (gateway, present) = (edge_key(namespace, name), self.present.lock());
        of_gateway(&present.keys, &gateway).filter(|(_, seats)| seats.count > 0).map(|(key, _)| key.clone()).collect()
    }

    /// Looks into the book.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.lock())
    }

    /// Writes into the book.
    pub fn write(&self, edit: impl FnOnce(&mut Book, u64)) {
        let mut book = self.book.lock();
        edit(&mut book, self.clock.us());
        book.lived();
        drop(book);
        self.turn();
    }

    /// How long epochs took until all had answered.
    pub fn lived(&self) -> Lived {
        self.book.lock().lived()
    }

    /// Events that wait for the writer.
    pub fn queued(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }

    /// The newest epoch's entry, or that of a number.
    pub fn entry(&self, number: u64) -> Option<Entry> {
        self.read(|book| if number == 0 { book.newest() } else { book.entry(number) }.cloned())
    }

    /// A proxy is gone: no epoch must wait for it unless it is declared.
    fn sweep(&self, key: &str) {
        let Some(edition) = self.edition() else { return };
        if let Some(gateway) = gateway_of(key) {
            let last = !of_gateway(&self.present.lock().keys, gateway).any(|(_, seats)| seats.count > 0);
            let is_left_to_others = last && self.is_declared(&edition.world, gateway);
            let mut book = self.book.lock();
            if is_left_to_others {
                book.leave_to_gateway(key);
            } else {
                book.forget(key, self.clock.us());
            }
            return;
        }
        if !self.is_declared(&edition.world, key) {
            self.book.lock().forget(key, self.clock.us());
        }
    }

    fn turn(&self) {
        self.turned.send_modify(|count| *count += 1);
    }

    /// Proxies that should run what is published: the declared ones, and whoever of ours is connected.
    fn expected(&self, world: &World) -> BTreeSet<String> {
        let mut expected: BTreeSet<String> = self.declared(world).collect();
        let present = self.present.lock();
        expected.extend(present.keys.iter().filter(|(_, seats)| seats.count > 0).map(|(key, _)| key.clone()));
        expected
    }

    /// Every sidecar and edge proxy that a node agent is to run, connected or not, without those that are revoked and get nothing any more.
    fn declared(&self, world: &World) -> impl Iterator<Item = String> {
        let (index, revoked) = (world.index(), self.revoked(world));
        let sidecars = index.started.keys().filter({
            let revoked = revoked.clone();
            move |name| !sidecar_account(index, name).is_some_and(|account| revoked.contains(&account))
        });
        let edges = index.gateways.keys().filter(move |(namespace, name)| !revoked.contains(&(namespace.as_str(), name.as_str())));
        let sidecars = sidecars.map(|(namespace, name)| sidecar_key(namespace, name));
        sidecars.chain(edges.map(|(namespace, name)| edge_key(namespace, name)))
    }

    fn is_declared(&self, world: &World, key: &str) -> bool {
        let Some((namespace, name, mode)) = of_key(key) else { return false };
        let (index, name) = (world.index(), (namespace.to_owned(), name.to_owned()));
        let account = match mode {
            Mode::Sidecar if index.started.contains_key(&name) => sidecar_account(index, &name),
            Mode::Edge if index.gateways.contains_key(&name) => Some((namespace, name.1.as_str())),
            _ => None,
        };
        account.is_some_and(|account| !self.revoked(world).contains(&account))
    }

    /// Accounts (namespace, name) that are revoked now.
    fn revoked<'a>(&self, world: &'a World) -> BTreeSet<(&'a str, &'a str)> {
        let now_secs = self.clock.unix().as_secs();
        let held = world.index().revoked.identities.iter().filter(|(_, sentence)| sentence.holds(now_secs));
        held.map(|(identity, _)| (identity.namespace(), identity.service_account())).collect()
    }

    /// Somebody opened an ADS stream through that door.
    ///
    /// # Errors
    /// Too many are open, of this node or of all.
    pub fn arrive(self: &Arc<Self>, claim: Claim, door: Entrance, identity: String) -> Result<Seated, Crowded> {
        let id = self.ticket();
        let mut present = self.present.lock();
        if present.all.len() >= STREAMS_MAX {
            return Err(Crowded::All);
        }
        let (key, counts) = (claim.key_by(door), claim.counts_by(door));
        if present.keys.get(&key).is_some_and(|seats| seats.all >= STREAMS_PER_NODE_MAX) {
            return Err(Crowded::Node(key));
        }
        if let Some(gateway) = gateway_of(&key).filter(|_| !present.keys.contains_key(&key))
            && of_gateway(&present.keys, gateway).count() >= REPLICAS_MAX
        {
            return Err(Crowded::Gateway(gateway.to_owned()));
        }
        present.add(id, Presence { claim, key, counts, identity, connected_ms: self.clock.ms(), below: None });
        drop(present);
        self.turn();
        Ok(Seated { board: self.clone(), id })
    }

    /// Everybody with an open ADS stream, ordered by key.
    pub fn present(&self) -> Vec<Presence> {
        let mut present: Vec<_> = self.present.lock().all.values().cloned().collect();
        present.sort_by(|a, b| a.key.cmp(&b.key));
        present
    }

    /// Whether that proxy has an open ADS stream.
    pub fn is_present(&self, key: &str) -> bool {
        self.present.lock().keys.contains_key(key)
    }

    /// A proxy opened its Reports stream; a former one of the same name is replaced. Returns the stream's number and its commands.
    pub fn correspond(&self, key: &str, version: &str, pid: u32) -> (u64, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let stream = self.ticket();
        let correspondent = Correspondent {
            version: version.chars().take(64).collect(),
            pid,
            certificate: None,
            traffic: Traffic::default(),
            commands,
            waiting: BTreeMap::new(),
            stream,
        };
        self.correspondents.lock().insert(key.to_owned(), correspondent);
        self.turn();
        (stream, receiver)
    }

    /// A Reports stream ended; questions that wait for it end too.
    pub fn hang_up(&self, key: &str, stream: u64) {
        let mut correspondents = self.correspondents.lock();
        if correspondents.get(key).is_some_and(|correspondent| correspondent.stream == stream) {
            correspondents.remove(key);
        }
        drop(correspondents);
        self.turn();
    }

    /// Looks at a proxy's reports, or changes them.
    pub fn correspondent<T>(&self, key: &str, work: impl FnOnce(&mut Correspondent) -> T) -> Option<T> {
        self.correspondents.lock().get_mut(key).map(work)
    }

    /// Takes in a proxy's summary. What is away from it is said in statuses, so whoever writes those looks again when that changes.
    pub fn summed_up(&self, key: &str, traffic: Traffic) {
        let changed = self.correspondent(key, |correspondent| {
            let before = std::mem::replace(&mut correspondent.traffic, traffic);
            let now = &correspondent.traffic;
            before.stores_away != now.stores_away || before.services_away != now.services_away
        });
        if changed == Some(true) {
            self.turn();
        }
    }

    /// Takes in who spoke plaintext to a proxy.
    pub fn plaintext_seen(&self, claim: &Claim, rows: &[PlaintextPeer]) {
        let edition = self.edition();
        let named = |source: &str| {
            let index = edition.as_ref()?.world.index();
            let Some(Address::Instance(name)) = index.addresses.get(&source.parse::<IpAddr>().ok()?) else { return None };
            Some(format!("{}/{}", name.0, index.instances.get(name)?.workload))
        };
        self.plaintext.lock().note((&claim.key(), &claim.workload), rows, self.clock.ms(), named);
    }

    /// Who spoke plaintext to whom of late.
    pub fn plaintext(&self) -> Vec<Sighting> {
        self.plaintext.lock().sightings(self.clock.ms())
    }

    /// A proxy tells who called its application.
    pub fn called(&self, claim: &Claim, calls: Calls) {
        self.calls.lock().take(claim, calls, self.clock.ms());
    }

    /// Looks at who called whom.
    pub fn calls<T>(&self, look: impl FnOnce(&CallBook) -> T) -> T {
        look(&self.calls.lock())
    }

    /// Every proxy with a Reports stream.
    pub fn correspondents(&self) -> Vec<String> {
        self.correspondents.lock().keys().cloned().collect()
    }

    /// An answer came.
    pub fn answered(&self, key: &str, answer: Answer) {
        let waiting = self.correspondent(key, |correspondent| correspondent.waiting.remove(&answer.id)).flatten();
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// Asks a proxy and waits at most `patience`.
    ///
    /// # Errors
    /// Not connected, busy, silent, or the proxy's own error; as text.
    pub async fn ask(&self, key: &str, kind: command::Kind, patience: Duration) -> Result<String, String> {
        let id = self.ticket();
        let (sender, receiver) = oneshot::channel();
        self.correspondent(key, |correspondent| {
            correspondent.waiting.retain(|_, waiting| !waiting.is_closed());
            if correspondent.waiting.len() >= COMMANDS_MAX {
                return Err(format!("{key} has {COMMANDS_MAX} questions open; try again later"));
            }
            let command = Command { id, kind: Some(kind) };
            correspondent.commands.try_send(command).map_err(|_| format!("{key} does not take questions at the moment; try again"))?;
            correspondent.waiting.insert(id, sender);
            Ok(())
        })
        .unwrap_or_else(|| Err(format!("the proxy of {key} is not connected; see `meshwright get proxies`")))?;
        match tokio::time::timeout(patience, receiver).await {
            Ok(Ok(answer)) if answer.error.is_empty() => Ok(answer.json),
            Ok(Ok(answer)) => Err(answer.error),
            Ok(Err(_)) => Err(format!("the proxy of {key} disconnected before it answered")),
            Err(_) => Err(format!("the proxy of {key} did not answer within {} s", patience.as_secs())),
        }
    }

    pub(super) fn ticket(&self) -> u64 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

/// Why an ADS stream finds no place.
#[derive(Debug, thiserror::Error)]
pub enum Crowded {
    /// See [`STREAMS_MAX`].
    #[error("{STREAMS_MAX} streams are open here; try again later")]
    All,
    /// See [`STREAMS_PER_NODE_MAX`].
    #[error("{0} has {STREAMS_PER_NODE_MAX} streams open already; end one first")]
    Node(String),
    /// See [`REPLICAS_MAX`].
    #[error("{0} has {REPLICAS_MAX} proxies already; end one first")]
    Gateway(String),
}

/// A place among [`Board::present`], given back when dropped.
pub struct Seated {
    board: Arc<Board>,
    id: u64,
}

impl Seated {
    /// Notes what root the certificate was below that was shown.
    pub fn came_below(&self, root: Option<[u8; 32]>) {
        if let Some(presence) = self.board.present.lock().all.get_mut(&self.id) {
            presence.below = root;
        }
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let gone = self.board.present.lock().remove(self.id);
        if let Some(key) = gone {
            self.board.sweep(&key);
        }
        self.board.turn();
    }
}

/// The account (namespace, name) of a declared sidecar.
fn sidecar_account<'a>(index: &'a Index, name: &Name) -> Option<(&'a str, &'a str)> {
    let instance = index.instances.get(name)?;
    Some((&instance.namespace, &instance.workload()?.service_account))
}

/// Keys of the declared proxies that a leaf for that namespace, instance and workload may be one of: an instance's, a Gateway's (of one
/// of several, which may be gone), or both where they share name and workload.
pub fn holders(world: &World, (namespace, instance, workload): (&str, &str, &str)) -> impl Iterator<Item = String> {
    let index = world.index();
    let name = (namespace.to_owned(), instance.to_owned());
    let sidecar = index.instances.get(&name).is_some_and(|declared| declared.workload == workload);
    let edge = (workload == instance || !sidecar) && index.gateways.contains_key(&(namespace.to_owned(), workload.to_owned()));
    // One of several is named by its pod, the only one as its Gateway.
    let replica = if workload == instance { "" } else { instance };
    let sidecar = sidecar.then(|| sidecar_key(&name.0, &name.1));
    sidecar.into_iter().chain(edge.then(|| replica_key(namespace, workload, replica)))
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
