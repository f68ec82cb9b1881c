use std::net::IpAddr;
use std::sync::mpsc as blocking;
use std::time::Duration;

use apiserver::keep::Keep;
use apiserver::lease::{Election, Term};
use apiserver::testing::{Fake, Mood};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::clock::Clock;
use crate::publish::trust::{Phase, Root, Roots};
use crate::serve::authority::{AuditQuery, Authority, Done, Issuance, Issued, Refused, Seat, Step, TokenOrder};
use crate::source::{FileChange, Folder};
use crate::store::Shared;
use crate::world::own::Mesh;
use crate::world::{Allocations, Origin, WorldSettings};

/// Longer than anything takes that waits for no disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Signs nothing.
struct Idle;

impl Authority for Idle {
    fn roots(&self) -> Arc<Roots> {
        let root = Root { der: CertificateDer::from(Vec::new()), sha256: [0; 32] };
        Arc::new(Roots { issuing: root, others: Vec::new(), retired: Vec::new(), phase: Phase::Steady, pem: "".into() })
    }

    fn rotate(&self, _: Step) -> Result<(), String> {
        Err("idle".to_owned())
    }

    fn refresh(&self) -> Result<bool, String> {
        Ok(false)
    }

    fn seat(&self, _: &[String], _: &[IpAddr]) -> Result<Seat, String> {
        Err("idle".to_owned())
    }

    fn create_token(&self, _: &TokenOrder) -> Result<String, String> {
        Err("idle".to_owned())
    }

    fn issued(&self) -> Vec<Issued> {
        Vec::new()
    }

    fn audit(&self, _query: &AuditQuery, _rows_max: usize) -> Result<Vec<Issuance>, String> {
        Ok(Vec::new())
    }

    fn refusals(&self, _query: &AuditQuery) -> Vec<Refused> {
        Vec::new()
    }

    fn counts(&self) -> Done {
        Done::default()
    }

    fn failure(&self) -> Option<String> {
        None
    }

    fn follow(&self, _: &Mesh) {}
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
";

/// A writer over `folder`, running, with its manifests read.
async fn running(folder: &std::path::Path) -> (Arc<Board>, Arc<Store>) {
    let store = Arc::new(Store::open(folder).unwrap());
    let (board, events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let world = World::new(WorldSettings::default(), Allocations::default());
    let writer = Writer::new(board.clone(), store.clone(), Arc::new(Idle), Arc::default(), world).unwrap();
    tokio::spawn(writer.run(events, CancellationToken::new()));
    let first = FileChange { file: "web.yaml".to_owned(), text: Some(Ok(SERVICE.to_owned())) };
    let mut changes = Folder::default().update(vec![first], 0);
    changes.push(Change::Synced(Origin::Folder));
    board.send(Errand::Objects(changes)).await;
    edition(&board, |_| true).await;
    (board, store)
}

/// What an API server says of an object.
fn told(text: &str) -> Change {
    let candidate = crate::source::parse("", text).candidates.remove(0);
    Change::Put { origin: Origin::Cluster, candidate, now_ms: 0 }
}

#[tokio::test]
async fn what_runs_in_a_cluster_is_an_edition_and_no_epoch() {
    // Aim: nothing is published before the cluster has been read; then what it says of endpoints is an edition of the same epoch, what it
    // says twice is none, and what somebody wants of the mesh is an epoch; `apply` is told where the objects are.
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let (board, events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let settings = WorldSettings { origins: [Origin::Cluster].into(), in_cluster: true, ..WorldSettings::default() };
    let world = World::new(settings, Allocations::default());
    let writer = Writer::new(board.clone(), store.clone(), Arc::new(Idle), Arc::default(), world).unwrap();
    tokio::spawn(writer.run(events, CancellationToken::new()));
    let slice = |ip: &str| {
        told(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nendpoints: [{{addresses: [{ip}]}}]\nports: [{{port: 80}}]\n"
        ))
    };
    board.send(Errand::Objects(vec![told(SERVICE)])).await;
    board.send(Errand::Objects(vec![slice("192.0.2.1"), Change::Synced(Origin::Cluster)])).await;
    edition(&board, |edition| (edition.epoch, edition.serial) == (1, 1) && edition.world.slots().len() == 2).await;
    board.send(Errand::Objects(vec![slice("192.0.2.2")])).await;
    edition(&board, |edition| (edition.epoch, edition.serial) == (1, 2)).await;
    board.send(Errand::Objects(vec![slice("192.0.2.2")])).await;
    let (reply, refused) = oneshot::channel();
    board.send(Errand::Apply { documents: vec![("b.yaml".to_owned(), SERVICE.to_owned())], delete: false, reply }).await;
    assert!(timeout(PATIENCE, refused).await.unwrap().unwrap().unwrap_err().contains("kubectl apply"));
    board.send(Errand::Objects(vec![told(&SERVICE.replace("port: 80", "port: 81"))])).await;
    edition(&board, |edition| (edition.epoch, edition.serial) == (2, 3)).await;
}

#[tokio::test]
async fn keys_of_tickets_are_kept_and_turned() {
    // Aim: there are keys from the first edition on; after a restart they are the same; twelve hours later a new one is told at once, without an
    // epoch, and is in the book before anybody has it.
    let folder = tempfile::tempdir().unwrap();
    let gateway = ("shop".to_owned(), "edge".to_owned());
    let hours = Arc::new(std::sync::atomic::AtomicU64::new(480_000));
    let begin = |store: Arc<Store>| {
        let told = hours.clone();
        let wall = move || std::time::UNIX_EPOCH + Duration::from_secs(told.load(Ordering::Relaxed) * 3600);
        let (board, events) = Board::new(Clock::new(wall));
        let world = World::new(WorldSettings { origins: [].into(), ..WorldSettings::default() }, Allocations::default());
        let writer = Writer::new(board.clone(), store, Arc::new(Idle), Arc::default(), world).unwrap();
        (board, tokio::spawn(writer.run(events, CancellationToken::new())))
    };
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let (board, running) = begin(store.clone());
    edition(&board, |edition| edition.world.tickets().keys(&gateway, 12).len() == 1).await;
    let first = board.edition().unwrap();
    running.abort();
    let (board, _running) = begin(store.clone());
    edition(&board, |edition| edition.serial > 0).await;
    let again = board.edition().unwrap();
    assert_eq!(again.world.tickets(), first.world.tickets());
    hours.fetch_add(12, Ordering::Relaxed);
    tokio::time::pause();
    tokio::time::advance(dates::PERIOD * 2).await;
    tokio::time::resume();
    edition(&board, |edition| edition.world.tickets().keys(&gateway, 12).len() == 2).await;
    let turned = board.edition().unwrap();
    assert_eq!(
        (turned.epoch, turned.world.tickets().keys(&gateway, 12)[1].clone()),
        (again.epoch, first.world.tickets().keys(&gateway, 12)[0].clone())
    );
    let kept: crate::world::tickets::Seeds = store.load(Row::Tickets).unwrap().unwrap();
    assert_eq!(kept, **turned.world.tickets());
}

/// A book in a cluster, for a term of its own.
async fn shared(fake: &Fake, me: &str) -> (Term, Arc<Store>) {
    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control";
    // Given back, whoever holds it.
    fake.state().put(LEASE, json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}}));
    let wall = Arc::new(|| std::time::UNIX_EPOCH);
    let term = Election::new(fake.client(), "mesh", "control", me, wall).win().await;
    let book = Arc::new(Keep::claim(fake.client(), "mesh", "book", term.tenure()).await.unwrap());
    let safe = Arc::new(Keep::claim(fake.client(), "mesh", "safe", term.tenure()).await.unwrap());
    (term, Arc::new(Store::shared(Shared::new(book, safe).await)))
}

/// A writer of a cluster's objects, which has read this Service.
async fn serving(store: &Arc<Store>, service: &str) -> (Arc<Board>, CancellationToken, tokio::task::JoinHandle<()>) {
    let (board, events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let settings = WorldSettings { origins: [Origin::Cluster].into(), in_cluster: true, ..WorldSettings::default() };
    let world = World::new(settings, Allocations::default());
    let writer = Writer::new(board.clone(), store.clone(), Arc::new(Idle), Arc::default(), world).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(writer.run(events, stop.clone()));
    board.send(Errand::Objects(vec![told(service), Change::Synced(Origin::Cluster)])).await;
    edition(&board, |_| true).await;
    (board, stop, running)
}

fn epoch(board: &Board) -> u64 {
    board.edition().unwrap().epoch
}

/// Until the book says so.
async fn kept(fake: &Fake, number: u64) {
    const BOOK: &str = "/api/v1/namespaces/mesh/configmaps/book";
    let says = || fake.state().objects[BOOK]["data"]["epoch"].as_str().is_some_and(|row| row.contains(&format!("\"number\":{number},")));
    let wait = async {
        while !says() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test]
async fn a_book_that_takes_no_write_holds_up_nobody() {
    // Aim: the cluster refuses the book, and nothing else: a change of objects and endpoints are told within a second; when it takes it
    // again what was told is kept; and a takeover without it begins above all that was told.
    let fake = Fake::default();
    let (_first, store) = shared(&fake, "a").await;
    let (board, ..) = serving(&store, SERVICE).await;
    let refusing = ("PUT /api/v1/namespaces/mesh/configmaps/book".to_owned(), Mood::Says(500));
    let service = |port: u16| told(&SERVICE.replace("port: 80", &format!("port: {port}")));
    let slice = told(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints: [{addresses: [192.0.2.1]}]\nports: [{port: 80}]\n",
    );
    fake.state().moods.extend([refusing.clone()]);
    let begun = Instant::now();
    board.send(Errand::Objects(vec![service(81)])).await;
    edition(&board, |edition| edition.epoch == 2).await;
    board.send(Errand::Objects(vec![slice])).await;
    edition(&board, |edition| edition.world.slots().len() == 2).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!fake.state().objects["/api/v1/namespaces/mesh/configmaps/book"]["data"]["epoch"].as_str().unwrap().contains("\"number\":2,"));
    fake.state().moods.clear();
    kept(&fake, 2).await;
    fake.state().moods.extend([refusing]);
    board.send(Errand::Objects(vec![service(82)])).await;
    edition(&board, |edition| edition.epoch == 3).await;
    // This one dies without a word.
    fake.state().moods.clear();
    let (_second, store) = shared(&fake, "b").await;
    let (board, ..) = serving(&store, &SERVICE.replace("port: 80", "port: 81")).await;
    assert!(epoch(&board) > 3, "{}", epoch(&board));
}

#[tokio::test]
async fn a_clean_stop_gives_numbers_back_and_a_lost_book_costs_none() {
    // Aim: the next holder goes on with the same epoch where the objects are the same; where somebody has deleted the book, numbers go on.
    let fake = Fake::default();
    let (first, store) = shared(&fake, "a").await;
    let (board, stop, running) = serving(&store, SERVICE).await;
    board.send(Errand::Objects(vec![told(&SERVICE.replace("port: 80", "port: 81"))])).await;
    edition(&board, |edition| edition.epoch == 2).await;
    stop.cancel();
    running.await.unwrap();
    first.release().await;
    let (second, store) = shared(&fake, "b").await;
    let (board, stop, running) = serving(&store, &SERVICE.replace("port: 80", "port: 81")).await;
    assert_eq!((epoch(&board), store.floor()), (2, 2));
    stop.cancel();
    running.await.unwrap();
    second.release().await;
    fake.state().objects.remove("/api/v1/namespaces/mesh/configmaps/book");
    let (_third, store) = shared(&fake, "c").await;
    let (board, ..) = serving(&store, SERVICE).await;
    assert_eq!(epoch(&board), 3);
}

#[tokio::test]
async fn numbers_are_had_ahead_before_they_are_used_up() {
    // Aim: two hundred epochs in a row, none of which waits for its own write, are all within what the book has noted.
    let fake = Fake::default();
    let (_term, store) = shared(&fake, "a").await;
    let (board, ..) = serving(&store, SERVICE).await;
    for number in 2..=200_u64 {
        board.send(Errand::Objects(vec![told(&SERVICE.replace("port: 80", &format!("port: {}", 1000 + number)))])).await;
        edition(&board, |edition| edition.epoch == number).await;
        let row = fake.state().objects["/api/v1/namespaces/mesh/configmaps/book"]["data"]["floor"].clone();
        let floor: u64 = row.as_str().unwrap().parse().unwrap();
        assert!((number..=number + 130).contains(&floor), "{number}: {floor}");
    }
}

/// Waits for an edition that fits.
async fn edition(board: &Board, fits: impl Fn(&Edition) -> bool) {
    let mut editions = board.editions();
    let wanted = editions.wait_for(|edition| edition.as_deref().is_some_and(&fits));
    timeout(PATIENCE, wanted).await.unwrap().unwrap();
}

/// A disk that takes nothing until the sender is dropped, or 5 s have passed.
fn stuck(store: &Arc<Store>) -> (blocking::Sender<()>, std::thread::JoinHandle<()>) {
    let (release, released) = blocking::channel::<()>();
    let (held, holds) = blocking::channel();
    let store = store.clone();
    let disk = std::thread::spawn(move || {
        let _hold = store.hold();
        held.send(()).unwrap();
        // Released, or too late: what waits for it ends in any case.
        let _ = released.recv_timeout(Duration::from_secs(5));
    });
    holds.recv().unwrap();
    (release, disk)
}

fn ready(message: &str) -> Errand {
    let state = crate::world::InstanceState { started: true, ready: true, message: message.to_owned(), ..Default::default() };
    let instances = BTreeMap::from([(("shop".to_owned(), "web".to_owned()), state)]);
    Errand::Runtime(Change::Node { instances, gateways: BTreeMap::new() })
}

fn says(edition: &Edition, message: &str) -> bool {
    edition.world.instance_states().values().any(|state| state.message == message)
}

#[tokio::test]
async fn a_stuck_disk_holds_up_nobody_but_who_needs_it() {
    // Aim: on one thread, while the disk takes nothing, states of what runs become editions and health is told; a change of objects
    // waits, because its number must be on disk first; and all of it is there after a restart.
    let folder = tempfile::tempdir().unwrap();
    let (board, store) = running(folder.path()).await;
    let (release, disk) = stuck(&store);
    for message in ["one", "two", "three"] {
        board.send(ready(message)).await;
        edition(&board, |edition| says(edition, message)).await;
    }
    assert_eq!(store.failure(), None);
    let (reply, mut applied) = oneshot::channel();
    let documents = vec![("b.yaml".to_owned(), SERVICE.replace("name: web", "name: other"))];
    board.send(Errand::Apply { documents, delete: false, reply }).await;
    tokio::task::yield_now().await;
    assert!(timeout(Duration::from_millis(20), &mut applied).await.is_err(), "an epoch was told before it was on disk");
    assert!(!disk.is_finished(), "the disk was waited for");
    drop(release);
    let outcome = timeout(PATIENCE, applied).await.unwrap().unwrap().unwrap();
    assert_eq!(outcome.epoch, 2);
    disk.join().unwrap();
    let last = || store.load::<String>(Row::Runtime).unwrap().and_then(|text| decode(&text)).map(|report| report.instances);
    let saved = async {
        while last().is_none_or(|instances| instances[0].message != "three") {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, saved).await.unwrap();
    assert_eq!((store.load::<Mark>(Row::Epoch).unwrap().unwrap().number, store.floor()), (2, 2));
}

#[tokio::test]
async fn ages_and_addresses_are_written_when_they_are_others() {
    // Aim: a change of an object that has its age and its address writes neither again; a new object does, and so does the next change after
    // a write that failed.
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
    let world = World::new(WorldSettings::default(), Allocations::default());
    let mut writer = Writer::new(board, store, Arc::new(Idle), Arc::default(), world).unwrap();
    let mut objects = Folder::default();
    let mut saves = |writer: &mut Writer, text: &str, file: &str| {
        writer.world.apply(objects.update(vec![FileChange { file: file.to_owned(), text: Some(Ok(text.to_owned())) }], 0));
        writer.save();
        !std::mem::take(&mut writer.page).is_empty()
    };
    assert!(saves(&mut writer, SERVICE, "a.yaml"));
    let other = SERVICE.replace("port: 80", "port: 81");
    assert!(!saves(&mut writer, &other, "a.yaml"));
    assert!(saves(&mut writer, &other.replace("name: web", "name: other"), "b.yaml"));
    writer.saved = None;
    assert!(saves(&mut writer, SERVICE, "a.yaml"));
}
