//! The board: what is published now, who is connected, and who runs which epoch. One writer (`app`) pins new editions; every stream
//! looks at the newest one at its own pace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::mesh::{Answer, Calls, Certificate, Command, PlaintextPeer, Traffic, command};
use tokio::sync::{mpsc, oneshot, watch};

use super::cache::Cache;
use super::calls::CallBook;
use super::concern::Concerns;
use super::edition::Edition;
use super::epoch::{Book, Entry, Touched, moment};
use super::peer::{Claim, Entrance, edge_key, sidecar_key};
use super::plaintext::{PlaintextBook, Sighting};
use super::trust::Roots;
use crate::clock::Clock;
use crate::world::{Address, Change, Instance, World};

/// Events that wait for the writer; a sender waits when it is full.
pub const EVENTS_MAX: usize = 256;
/// Commands under way to one proxy.
pub const COMMANDS_MAX: usize = 64;
/// Streams (all kinds) that may be open at once.
pub const STREAMS_MAX: usize = 20_000;
/// Most ADS streams of one node: a restart opens the next before the last one's end is noticed, and nobody else is kept out by one that lies.
pub const STREAMS_PER_NODE_MAX: usize = 16;

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
    commands: mpsc::Sender<Command>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    stream: u64,
}

/// See the module.
pub struct Board {
    edition: watch::Sender<Option<Arc<Edition>>>,
    /// Turns whenever the book changes.
    turned: watch::Sender<u64>,
    book: Mutex<Book>,
    present: Mutex<BTreeMap<u64, Presence>>,
    correspondents: Mutex<BTreeMap<String, Correspondent>>,
    plaintext: Mutex<PlaintextBook>,
    calls: Mutex<CallBook>,
    next: std::sync::atomic::AtomicU64,
    events: mpsc::Sender<Errand>,
    /// What all of the control plane goes by.
    pub clock: Clock,
    /// Views, shared between streams.
    pub cache: Cache,
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

    /// Pins an edition, and wakes whom it concerns; the others are advanced in the book. Only the writer does.
    pub fn publish(&self, edition: Edition) {
        let before = self.edition();
        let expected = self.expected(&edition.world);
        self.book.lock().expect(&expected, self.clock.us());
        let touched = self.cache.turn(&edition, edition.touched(before.as_deref()));
        let (serial, epoch) = (edition.serial, edition.epoch);
        let fresh = before.is_none_or(|before| epoch > before.epoch);
        // Visible before anybody is woken, and before anybody rests on what came before.
        self.edition.send_replace(Some(Arc::new(edition)));
        let mut quiet = Vec::new();
        let mut tell = |key: &str| quiet.push(key.to_owned());
        self.concerns.turn(serial, &touched, if fresh { Some(&mut tell) } else { None });
        let now_us = self.clock.us();
        let mut book = self.book.lock();
        quiet.iter().for_each(|key| book.unaffected(key, epoch, now_us));
        drop(book);
        self.turn();
    }

    /// Begins an epoch in the book. Before [`Board::publish`], so that no answer comes before the question.
    pub fn open_epoch(&self, number: u64, objects: Vec<Touched>, world: &World) {
        let expected = self.expected(world);
        self.book.lock().open(number, objects, expected, self.clock.us());
        self.turn();
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

    /// Looks into the book.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.lock())
    }

    /// Writes into the book.
    pub fn write(&self, edit: impl FnOnce(&mut Book, u64)) {
        edit(&mut self.book.lock(), self.clock.us());
        self.turn();
    }

    /// The newest epoch's entry, or that of a number.
    pub fn entry(&self, number: u64) -> Option<Entry> {
        self.read(|book| if number == 0 { book.newest() } else { book.entry(number) }.cloned())
    }

    /// Somebody is gone: an epoch that waits must not wait for those that nobody declares.
    fn sweep(&self) {
        let waits = self.read(|book| book.newest().is_some_and(|newest| !newest.settled()));
        if let Some(edition) = self.edition().filter(|_| waits) {
            let expected = self.expected(&edition.world);
            self.book.lock().expect(&expected, self.clock.us());
        }
    }

    fn turn(&self) {
        self.turned.send_modify(|count| *count += 1);
    }

    /// Proxies that should run what is published: the declared ones, without those that are revoked and get nothing any more, and whoever of
    /// ours is connected.
    pub fn expected(&self, world: &World) -> BTreeSet<String> {
        let mut expected = declared(world);
        let (index, now_secs) = (world.index(), self.clock.unix().as_secs());
        for (identity, _) in index.revoked.identities.iter().filter(|(_, sentence)| sentence.holds(now_secs)) {
            let runs = |instance: &&Instance| {
                let account = instance.workload().map(|workload| workload.service_account.as_str());
                (identity.namespace(), Some(identity.service_account())) == (instance.namespace.as_str(), account)
            };
            let names = index.instances.values().filter(runs).map(|instance| sidecar_key(&instance.namespace, &instance.name));
            names.for_each(|name| _ = expected.remove(&name));
            expected.remove(&edge_key(identity.namespace(), identity.service_account()));
        }
        expected.extend(self.present.lock().values().filter(|presence| presence.counts).map(|presence| presence.key.clone()));
        expected
    }

    /// Somebody opened an ADS stream through that door.
    ///
    /// # Errors
    /// Too many are open, of this node or of all.
    pub fn arrive(self: &Arc<Self>, claim: Claim, door: Entrance, identity: String) -> Result<Seated, Crowded> {
        let id = self.ticket();
        let mut present = self.present.lock();
        if present.len() >= STREAMS_MAX {
            return Err(Crowded::All);
        }
        let (key, counts) = (claim.key_by(door), claim.counts_by(door));
        if present.values().filter(|presence| presence.key == key).count() >= STREAMS_PER_NODE_MAX {
            return Err(Crowded::Node(key));
        }
        present.insert(id, Presence { claim, key, counts, identity, connected_ms: self.clock.ms(), below: None });
        drop(present);
        self.turn();
        Ok(Seated { board: self.clone(), id })
    }

    /// Everybody with an open ADS stream, ordered by key.
    pub fn present(&self) -> Vec<Presence> {
        let mut present: Vec<_> = self.present.lock().values().cloned().collect();
        present.sort_by(|a, b| a.key.cmp(&b.key));
        present
    }

    /// Whether that proxy has an open ADS stream.
    pub fn is_present(&self, key: &str) -> bool {
        self.present.lock().values().any(|presence| presence.key == key)
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

    /// Takes in who spoke plaintext to a proxy.
    pub fn plaintext_seen(&self, claim: &Claim, rows: &[PlaintextPeer]) {
        let edition = self.edition();
        let named = |source: &str| {
            let index = edition.as_ref()?.world.index();
            let Some(Address::Instance(name)) = index.addresses.get(&source.parse().ok()?) else { return None };
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

    /// One row of `get proxies` per open stream.
    pub fn proxies(&self) -> Vec<serde_json::Value> {
        let row = |presence: Presence| {
            let key = presence.key;
            let told = self.correspondent(&key, |correspondent| (correspondent.version.clone(), correspondent.pid));
            let (version, pid) = told.unwrap_or_default();
            serde_json::json!({
                "namespace": presence.claim.namespace,
                "workload": presence.claim.workload,
                "instance": presence.claim.instance,
                "identity": presence.identity,
                "kind": presence.claim.client.text(),
                "mode": presence.claim.mode_text(),
                "version": version,
                "epoch": self.read(|book| book.running(&key)),
                "connected_since": moment(presence.connected_ms),
                "pid": (pid != 0).then_some(pid),
            })
        };
        self.present().into_iter().map(row).collect()
    }

    fn ticket(&self) -> u64 {
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
}

/// A place among [`Board::present`], given back when dropped.
pub struct Seated {
    board: Arc<Board>,
    id: u64,
}

impl Seated {
    /// Notes what root the certificate was below that was shown.
    pub fn came_below(&self, root: Option<[u8; 32]>) {
        if let Some(presence) = self.board.present.lock().get_mut(&self.id) {
            presence.below = root;
        }
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.board.present.lock().remove(&self.id);
        self.board.sweep();
        self.board.turn();
    }
}

/// Every sidecar and edge proxy that a node agent is to run, connected or not.
pub fn declared(world: &World) -> BTreeSet<String> {
    let index = world.index();
    let started = |workload: &crate::world::workload::Workload| !workload.command.is_empty();
    let sidecars = index.instances.values().filter(|instance| instance.meshed && instance.workload().is_some_and(started));
    let sidecars = sidecars.map(|instance| sidecar_key(&instance.namespace, &instance.name));
    sidecars.chain(index.gateways.keys().map(|(namespace, name)| edge_key(namespace, name))).collect()
}

/// Keys of the declared proxies that a leaf for that namespace, instance and workload may be one of: an instance's, a Gateway's, or both
/// where they share name and workload.
pub fn holders(world: &World, (namespace, instance, workload): (&str, &str, &str)) -> impl Iterator<Item = String> {
    let index = world.index();
    let name = (namespace.to_owned(), instance.to_owned());
    let sidecar = index.instances.get(&name).is_some_and(|declared| declared.workload == workload);
    let edge = workload == instance && index.gateways.contains_key(&name);
    let sidecar = sidecar.then(|| sidecar_key(&name.0, &name.1));
    sidecar.into_iter().chain(edge.then(|| edge_key(&name.0, &name.1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::peer::Dialect;

    fn claim(instance: &str) -> Claim {
        Claim {
            client: Dialect::Meshwright,
            mode: proto::names::Mode::Sidecar,
            namespace: "shop".into(),
            workload: "catalog".into(),
            instance: instance.into(),
        }
    }

    #[tokio::test]
    async fn a_question_finds_its_answer_or_a_clear_end() {
        // Aim: answered, refused by the proxy, hung up, not connected: each its own text, none waits forever.
        let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
        let dump = || command::Kind::Dump(proto::mesh::DumpCommand { kind: "routes".into() });
        let patience = Duration::from_secs(2);
        assert!(board.ask("shop/a", dump(), patience).await.unwrap_err().contains("not connected"));
        let (stream, mut commands) = board.correspond("shop/a", "0.1.0", 7);
        let proxy = board.clone();
        let talk = tokio::spawn(async move {
            let first = commands.recv().await.unwrap();
            proxy.answered("shop/a", Answer { id: first.id, json: "[]".into(), error: String::new() });
            let second = commands.recv().await.unwrap();
            proxy.answered("shop/a", Answer { id: second.id, json: String::new(), error: "no such kind".into() });
            commands.recv().await.unwrap();
            proxy.hang_up("shop/a", stream);
        });
        assert_eq!(board.ask("shop/a", dump(), patience).await.unwrap(), "[]");
        assert_eq!(board.ask("shop/a", dump(), patience).await.unwrap_err(), "no such kind");
        assert!(board.ask("shop/a", dump(), patience).await.unwrap_err().contains("disconnected"));
        talk.await.unwrap();
    }

    #[tokio::test]
    async fn an_epoch_wakes_whom_it_concerns_and_advances_the_others() {
        // Aim: of three proxies that rest on what they have, the one whose instance changed is woken, and the book waits for it alone; a
        // change that nobody can attribute is everybody's.
        use futures::FutureExt;

        use crate::source::{FileChange, Folder};
        use crate::translate::Subject;
        use crate::world::{Allocations, WorldSettings};

        let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
        let (mut world, mut folder) = (World::new(WorldSettings::default(), Allocations::default()), Folder::default());
        let mut publish = |serial: u64, file: &str, text: &str| {
            let change = FileChange { file: file.to_owned(), text: Some(Ok(text.to_owned())) };
            world.apply(folder.update(vec![change], 0));
            board.open_epoch(serial, Vec::new(), &world);
            board.publish(Edition { world: world.clone(), epoch: serial, serial, roots: crate::publish::trust::tests::one() });
        };
        let workload = |name: &str, port: u16| {
            format!(
                "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, labels: {{meshwright.dev/inject: enabled}}}}\nspec: {{command: [run], ports: [{{port: {port}}}]}}\n"
            )
        };
        for (serial, name) in [(1, "a"), (2, "b"), (3, "c")] {
            publish(serial, name, &workload(name, 1));
        }
        let following = ["a", "b", "c"].map(|name| {
            let following = board.concerns.follow(Some(format!("shop/{name}")));
            assert!(following.rest(3, &[Subject::instance(&("shop".to_owned(), name.to_owned()))]));
            following
        });
        let woken = || following.each_ref().map(|one| one.woken().now_or_never().is_some());
        publish(4, "a", &workload("a", 2));
        assert_eq!(woken(), [true, false, false]);
        assert_eq!(board.entry(4).unwrap().waiting, BTreeSet::from(["shop/a".to_owned()]));
        assert_eq!(board.read(|book| ["shop/a", "shop/b"].map(|key| book.running(key))), [0, 4]);
        publish(
            5,
            "mesh",
            "apiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\nspec: {outsideMesh: Deny}\n",
        );
        assert_eq!(woken(), [true; 3]);
        assert_eq!(board.entry(5).unwrap().waiting.len(), 3);
    }

    #[test]
    fn presence_ends_with_its_stream() {
        // Aim: two streams of one node count as present until both are gone.
        let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
        let first = board.arrive(claim("a"), Entrance::Tls, String::new());
        let second = board.arrive(claim("a"), Entrance::Tls, String::new());
        drop(first);
        assert!(board.is_present("shop/a"));
        drop(second);
        assert!(!board.is_present("shop/a"));
    }
}
