//! Replicas of a control plane that take turns: the holder of the lease serves and writes, the others stand by with everything read. What
//! outlives a turn lies in the cluster, claimed anew by each holder (`apiserver::keep`).
//!
//! While a replica stands by its doors are shut: a call is refused at once, and a proxy tries the next address of the control plane's
//! name. A turn ends by a stop (then the lease is given back when everything has ended) or by the loss of the lease (then everything is
//! ended before another replica may begin), after which the replica stands by again, with watches of its own beginning.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::keep::Keep;
use apiserver::lease::{Election, Tenure, Term, WallClock};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::mended::mended;
use super::{GRACE, Ground, Means, bind, done, open, session_key, stand, tcp, tokens, watch as watch_folder, watch_cluster};
use crate::clock::Clock;
use crate::publish::board::{Board, Errand};
use crate::publish::edition::Edition;
use crate::serve::metrics::{self, Metrics};
use crate::settings::ControlArgs;
use crate::source::cluster::{Cluster, Pulses};
use crate::status::Recorder;
use crate::store::{Shared, Store};
use crate::traces::Traces;
use crate::world::{Allocations, World};

/// The lease by which replicas agree who serves.
pub const LEASE: &str = "meshwright-control";
/// The ConfigMap with the epoch's number and the times of first acceptance.
pub const BOOK: &str = "meshwright-book";
/// The Secret with the authority's keys and the key of sessions.
pub const SAFE: &str = "meshwright-ca";
/// What is open when the lease is lost gets this long: the next holder begins a second after the loss at the earliest.
const LOSS_GRACE: Duration = Duration::from_millis(600);
/// How long an authority is opened that another turn's calls may still hold, and how often: the longest of them, a review of a token, takes
/// less.
const OPEN_MAX: Duration = Duration::from_secs(10);
const OPEN_AGAIN: Duration = Duration::from_millis(500);

/// Opens the authority whose keys lie in that Secret. Blocking.
pub type OpenAuthority = Arc<dyn Fn(Arc<Keep<Secret>>) -> anyhow::Result<Means> + Send + Sync>;

/// What else the holder does: for as long as the token is not cancelled, and no longer.
pub type InTurn = Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// One of several control planes of a cluster.
#[derive(Clone)]
pub struct Replica {
    /// The way to the API server.
    pub client: kube::Client,
    /// Where lease, book and keys are.
    pub namespace: String,
    /// Its name as the lease shows it; no other process ever has the same.
    pub me: String,
    /// Wall time.
    pub clock: Clock,
    /// The same, as a lease wants it.
    pub wall: WallClock,
    /// For each turn.
    pub authority: OpenAuthority,
    /// The world as this replica knows it, whether it serves or stands by; `None`: not everything has been read yet.
    pub worlds: watch::Sender<Option<World>>,
    /// For each turn.
    pub in_turn: InTurn,
    /// Where spans of the holder's work are made.
    pub traces: Traces,
}

/// Runs one replica until SIGTERM or SIGINT.
///
/// # Errors
/// A port or the data folder cannot be had, a watch ended by itself, or the API server forbids what is needed; each with the remedy.
pub async fn run_replica(args: ControlArgs, replica: Replica) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let turns = take_turns(&args, &replica, &stop);
    tokio::pin!(turns);
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut turns => return ended,
    }
    tracing::info!("stopping");
    stop.cancel();
    turns.await
}

/// Stands by and serves in turn, until `stop`.
///
/// # Errors
/// See [`run_replica`].
async fn take_turns(args: &ControlArgs, replica: &Replica, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut election = Election::new(replica.client.clone(), &replica.namespace, LEASE, &replica.me, replica.wall.clone());
    loop {
        let mut standby = Standby::begin(args, replica).await?;
        let mut synced = standby.synced.clone();
        let won = async {
            // Who has not read everything cannot serve. An error: the watches have ended, which is told beside.
            let _ = synced.wait_for(|synced| *synced).await;
            election.win().await
        };
        let term = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = standby.watches.join_next() => return ended.unwrap_or(Ok(Ok(())))?.context("standing by ended"),
            term = won => Some(term),
        };
        let Some(term) = term else { return Ok(()) };
        tracing::info!(me = replica.me, turn = term.tenure().number(), "this replica holds the lease, and serves");
        let served = serve(args, replica, &term, &mut standby, stop).await;
        term.release().await;
        standby.end().await;
        served?;
        if stop.is_cancelled() {
            return Ok(());
        }
        tracing::warn!(me = replica.me, "this replica stands by");
    }
}

/// A replica that does not serve: it reads everything, and answers whether it is alive.
struct Standby {
    board: Arc<Board>,
    pulses: Pulses,
    synced: watch::Receiver<bool>,
    gathering: JoinHandle<(World, mpsc::Receiver<Errand>)>,
    /// The world is wanted.
    turn: CancellationToken,
    /// What feeds the board; goes on through the turn.
    watches: JoinSet<anyhow::Result<()>>,
    /// Ends with the standing by. `None`: it has ended.
    health: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Standby {
    async fn begin(args: &ControlArgs, replica: &Replica) -> anyhow::Result<Self> {
        let world = World::new(args.world()?, Allocations::default());
        let (board, events) = Board::new(replica.clock.clone());
        let (pulses, shown) = (Pulses::default(), Arc::new(Metrics::default()));
        shown.collect(Box::new(pulses.clone()));
        let (until, turn) = (CancellationToken::new(), CancellationToken::new());
        let listener = tcp(args.metrics_listen, "--metrics-listen").await?;
        let health = tokio::spawn(metrics::serve(listener, shown.clone(), until.clone()));
        let (said, synced) = watch::channel(false);
        let gathering = tokio::spawn(gather(world, events, said, (shown, replica.worlds.clone()), turn.clone()));
        let mut watches = JoinSet::new();
        let never = CancellationToken::new();
        if let Some(folder) = &args.config {
            watches.spawn(watch_folder(folder.clone(), board.clone(), never.clone()));
        }
        let cluster = Cluster { client: replica.client.clone(), clock: replica.clock.clone(), pulses: pulses.clone() };
        watches.spawn(watch_cluster(cluster, board.clone(), never));
        Ok(Self { board, pulses, synced, gathering, turn, watches, health: Some((until, health)) })
    }

    /// Answers nobody any more: the port is free when this returns.
    async fn fall_silent(&mut self) {
        let Some((until, health)) = self.health.take() else { return };
        until.cancel();
        // Its panic is told by the runtime.
        let _ = health.await;
    }

    /// Returns when nothing of it is left.
    async fn end(mut self) {
        self.fall_silent().await;
        self.watches.shutdown().await;
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some((until, _)) = &self.health {
            until.cancel();
        }
        self.gathering.abort();
    }
}

/// Applies what comes to a world that nobody sees, until it is wanted.
async fn gather(
    mut world: World,
    mut events: mpsc::Receiver<Errand>,
    synced: watch::Sender<bool>,
    (shown, worlds): (Arc<Metrics>, watch::Sender<Option<World>>),
    turn: CancellationToken,
) -> (World, mpsc::Receiver<Errand>) {
    loop {
        let event = tokio::select! {
            biased;
            () = turn.cancelled() => return (world, events),
            event = events.recv() => event,
        };
        match event {
            Some(Errand::Objects(changes)) => {
                world.apply(changes);
                shown.ready.store(world.synced(), std::sync::atomic::Ordering::Relaxed);
                worlds.send_replace(world.synced().then(|| world.clone()));
                synced.send_if_modified(|said| std::mem::replace(said, world.synced()) != world.synced());
            }
            // Nobody asks anything of a replica whose doors are shut.
            Some(_) => {}
            None => return (world, events),
        }
    }
}

/// One turn: from the claims to the end of everything. An error is a reason not to stand again; the loss of the lease is none.
async fn serve(args: &ControlArgs, replica: &Replica, term: &Term, standby: &mut Standby, stop: &CancellationToken) -> anyhow::Result<()> {
    let (tenure, over) = (term.tenure(), stop.child_token());
    let _over = over.clone().drop_guard();
    let begun = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        () = tenure.lost().cancelled() => Err(anyhow::anyhow!("the lease was lost")),
        begun = begin(args, replica, tenure, standby, &over) => begun,
    };
    let mut tasks = match begun {
        // Another replica is the holder by now, or the API server went away in the middle.
        Err(error) if tenure.lost().is_cancelled() || !tenure.holds() => {
            tracing::warn!("the turn ended before it began: {error:#}");
            return Ok(());
        }
        begun => begun?,
    };
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        () = tenure.lost().cancelled() => Ok(()),
        ended = tasks.join_next() => ended.unwrap_or(Ok(Ok(()))).map_err(anyhow::Error::from).and_then(|ended| ended),
        ended = standby.watches.join_next() => ended.unwrap_or(Ok(Ok(()))).map_err(anyhow::Error::from).and_then(|ended| ended),
    };
    over.cancel();
    let grace = if tenure.holds() { GRACE } else { LOSS_GRACE };
    let drained = async { while tasks.join_next().await.is_some() {} };
    // Streams end by themselves; whoever holds on longer is cut, and at once when the lease goes meanwhile.
    tokio::select! {
        biased;
        () = drained => {}
        () = tokio::time::sleep(grace) => {}
        () = async { tenure.lost().cancelled().await; tokio::time::sleep(LOSS_GRACE).await } => {}
    }
    tasks.shutdown().await;
    // A socket that is gone already is as good.
    let _ = std::fs::remove_file(args.socket());
    ended
}

async fn begin(
    args: &ControlArgs,
    replica: &Replica,
    tenure: &Tenure,
    standby: &mut Standby,
    over: &CancellationToken,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let claim = |name| Keep::<ConfigMap>::claim(replica.client.clone(), &replica.namespace, name, tenure);
    let book = Arc::new(claim(BOOK).await?);
    let safe = Arc::new(Keep::<Secret>::claim(replica.client.clone(), &replica.namespace, SAFE, tenure).await?);
    known(&book, &safe, args).await?;
    let means = opened(&replica.authority, &safe).await?;
    tokens::shared(&args.data_dir, &safe).await?;
    let mending = mended(safe.clone(), book.clone(), over.clone());
    let store = Arc::new(Store::shared(Shared::new(book, safe).await));
    let kept = store.clone();
    let key = spawn_blocking(move || session_key(&kept)).await??;
    standby.fall_silent().await;
    let doors = bind(args, args.plaintext_xds).await?;
    standby.turn.cancel();
    let (mut world, events) = (&mut standby.gathering).await?;
    world.set_session_key(key);
    let metrics = Arc::new(Metrics::default());
    metrics.collect(Box::new(standby.pulses.clone()));
    metrics.holder.set(1);
    metrics.collect(Box::new(Renewals(tenure.clone())));
    let board = standby.board.clone();
    let cluster = Some(replica.client.clone());
    let traces = replica.traces.clone();
    let ground = Ground { store, board: board.clone(), events, world, metrics, taken_over: true, cluster, traces };
    let plane = stand(args, (means.clock, means.authority, means.certificates), ground, over)?;
    let mut tasks = open(doors, plane, over)?.tasks;
    tasks.spawn(done(show(board.editions(), replica.worlds.clone(), over.clone())));
    let recorder = Recorder::new(replica.client.clone(), board, tenure.clone());
    tasks.spawn(done(recorder.run(over.clone())));
    tasks.spawn(done((replica.in_turn)(over.clone())));
    tasks.spawn(done(mending));
    Ok(tasks)
}

/// How well the lease is renewed in this turn.
struct Renewals(Tenure);

impl std::fmt::Debug for Renewals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renewals")
    }
}

impl Collector for Renewals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gap = ConstGauge::new(self.0.longest_gap().as_secs_f64());
        let help = "Largest gap between two renewals of the lease since this replica holds it; at 3 s it is lost";
        gap.encode(encoder.encode_descriptor("lease_renewal_gap_max", help, Some(&Unit::Seconds), gap.metric_type())?)
    }
}

/// Opens the authority. What was begun in an earlier turn of this process may still hold its store for some seconds.
async fn opened(opening: &OpenAuthority, keys: &Arc<Keep<Secret>>) -> anyhow::Result<Means> {
    let begun = Instant::now();
    loop {
        let (opening, keys) = (opening.clone(), keys.clone());
        match spawn_blocking(move || opening(keys)).await? {
            Err(error) if begun.elapsed() < OPEN_MAX => {
                tracing::warn!("the authority is opened again in a moment: {error:#}");
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

/// Shows each edition's world, until `stop`.
async fn show(mut editions: watch::Receiver<Option<Arc<Edition>>>, worlds: watch::Sender<Option<World>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = editions.changed() => if changed.is_err() { return },
        }
        let edition = editions.borrow_and_update().clone();
        worlds.send_replace(edition.map(|edition| edition.world.clone()));
    }
}

/// A mesh that has had epochs has had an authority, too: a Secret without its keys was deleted, and another root in its place would cut
/// every proxy off.
async fn known(book: &Keep<ConfigMap>, safe: &Keep<Secret>, args: &ControlArgs) -> anyhow::Result<()> {
    let own = args.external.files().is_none();
    let (told, keys) = (!book.rows().await.is_empty(), safe.rows().await.contains_key("root.key"));
    if own && told && !keys {
        anyhow::bail!(
            "{} holds no keys, but {} says that this mesh has had an authority; restore the Secret from a backup, or delete the ConfigMap to begin anew with another root, which every proxy has to join again",
            safe.place(),
            book.place()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use apiserver::keep::Changes;
    use apiserver::testing::Fake;
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Change, Origin, WorldSettings};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        control: ControlArgs,
    }

    fn args(line: &[&str]) -> ControlArgs {
        Line::parse_from(["control", "--kubernetes"].iter().chain(line)).control
    }

    #[tokio::test(start_paused = true)]
    async fn a_mesh_that_has_lost_its_keys_gets_no_others() {
        // Aim: a Secret that was deleted under a mesh stops the start, with both objects named; a first start, keys, and an authority of the
        // user's own do not.
        let fake = Fake::default();
        let lease = json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}});
        fake.state().put("/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control", lease);
        let term = Election::new(fake.client(), "mesh", "control", "a", Arc::new(|| SystemTime::UNIX_EPOCH)).win().await;
        let (own, external) = (args(&[]), args(&["--ca-cert", "c", "--ca-key", "k", "--ca-root", "r"]));
        let row = |name: &str| Changes::from([(name.to_owned(), Some(b"1".to_vec()))]);
        for (told, kept, stops) in [(false, false, false), (true, false, true), (true, true, false)] {
            let (book, safe) = (format!("book-{told}-{kept}"), format!("safe-{told}-{kept}"));
            let book = Keep::<ConfigMap>::claim(fake.client(), "mesh", &book, term.tenure()).await.unwrap();
            let safe = Keep::<Secret>::claim(fake.client(), "mesh", &safe, term.tenure()).await.unwrap();
            if told {
                book.write(&row("floor")).await.unwrap();
            }
            if kept {
                safe.write(&row("root.key")).await.unwrap();
            }
            known(&book, &safe, &external).await.unwrap();
            let error = known(&book, &safe, &own).await.err().map(|error| error.to_string());
            assert_eq!(error.is_some(), stops, "{told} {kept}");
            assert!(error.is_none_or(|error| error.contains("Secret mesh/safe") && error.contains("ConfigMap mesh/book")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn how_well_the_lease_is_renewed_is_a_metric() {
        // Aim: a scrape says the largest gap between two renewals of this turn, in seconds.
        let fake = Fake::default();
        let lease = json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}});
        fake.state().put("/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control", lease);
        let term = Election::new(fake.client(), "mesh", "control", "a", Arc::new(|| SystemTime::UNIX_EPOCH)).win().await;
        let metrics = Metrics::default();
        metrics.collect(Box::new(Renewals(term.tenure().clone())));
        let gap = |metrics: &Metrics| {
            let text = metrics.text();
            let line = text.lines().find_map(|line| line.strip_prefix("meshwright_control_lease_renewal_gap_max_seconds "));
            line.map(|value| value.parse::<f64>().unwrap())
        };
        assert_eq!(gap(&metrics), Some(0.0));
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert!(gap(&metrics).is_some_and(|gap| (1.0..1.1).contains(&gap)), "{:?}", gap(&metrics));
    }

    fn replica(fake: &Fake, authority: OpenAuthority) -> Replica {
        Replica {
            client: fake.client(),
            namespace: "mesh".to_owned(),
            me: "a".to_owned(),
            clock: Clock::new(|| SystemTime::UNIX_EPOCH),
            wall: Arc::new(|| SystemTime::UNIX_EPOCH),
            authority,
            worlds: watch::Sender::default(),
            in_turn: Arc::new(|_| Box::pin(std::future::ready(()))),
            traces: Traces::default(),
        }
    }

    #[tokio::test]
    async fn who_stands_by_again_has_its_port() {
        // Aim: a turn that ends before it began leaves the port of metrics behind, free, whatever is connected to it.
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let args = args(&["--metrics-listen", &address.to_string()]);
        let replica = replica(&Fake::default(), Arc::new(|_| anyhow::bail!("none")));
        let mut scrapers = Vec::new();
        for _ in 0..5 {
            let standby = Standby::begin(&args, &replica).await.unwrap();
            scrapers.push(tokio::net::TcpStream::connect(address).await.unwrap());
            standby.end().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_that_is_still_held_is_waited_for() {
        // Aim: its store is open by a call of the turn before: the next turn begins when that has ended; one that never opens is told.
        let fake = Fake::default();
        let lease = json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}});
        fake.state().put("/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control", lease);
        let term = Election::new(fake.client(), "mesh", "control", "a", Arc::new(|| SystemTime::UNIX_EPOCH)).win().await;
        let safe = Arc::new(Keep::<Secret>::claim(fake.client(), "mesh", "safe", term.tenure()).await.unwrap());
        for (refusals, opens) in [(5, true), (usize::MAX, false)] {
            let tries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let opening: OpenAuthority = Arc::new(move |_| {
                if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < refusals {
                    anyhow::bail!("another has it open");
                }
                anyhow::bail!("opened")
            });
            let begun = Instant::now();
            let told = opened(&opening, &safe).await.err().unwrap().to_string();
            assert!(begun.elapsed() < OPEN_MAX + OPEN_AGAIN * 2, "{:?}", begun.elapsed());
            assert_eq!(told, if opens { "opened" } else { "another has it open" });
        }
    }

    #[tokio::test]
    async fn who_stands_by_has_read_everything_when_its_turn_comes() {
        // Aim: it is ready once all is read, the world is handed over whole, and what comes after goes to who holds it then.
        let folder = Change::Synced(Origin::Folder);
        let (board, events) = Board::new(Clock::new(|| SystemTime::UNIX_EPOCH));
        let (said, mut synced) = watch::channel(false);
        let (shown, turn) = (Arc::new(Metrics::default()), CancellationToken::new());
        let world = World::new(WorldSettings::default(), Allocations::default());
        let gathering = tokio::spawn(gather(world, events, said, (shown.clone(), watch::Sender::default()), turn.clone()));
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
        let mut objects = Folder::default();
        let mut step = objects.update(vec![FileChange { file: "web.yaml".into(), text: Some(Ok(text.into())) }], 0);
        board.send(Errand::Objects(std::mem::take(&mut step))).await;
        assert!(!*synced.borrow() && !shown.ready.load(std::sync::atomic::Ordering::Relaxed));
        board.send(Errand::Objects(vec![folder])).await;
        synced.wait_for(|synced| *synced).await.unwrap();
        assert!(shown.ready.load(std::sync::atomic::Ordering::Relaxed));
        turn.cancel();
        let (world, mut events) = gathering.await.unwrap();
        assert_eq!(world.live().count(), 1);
        board.send(Errand::Objects(objects.update(vec![FileChange { file: "web.yaml".into(), text: None }], 0))).await;
        assert!(matches!(events.recv().await, Some(Errand::Objects(changes)) if !changes.is_empty()));
    }
}
