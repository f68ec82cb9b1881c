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
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{GRACE, Ground, Means, bind, done, open, session_key, stand, tcp, watch as watch_folder, watch_cluster};
use crate::clock::Clock;
use crate::publish::board::{Board, Errand};
use crate::serve::metrics::{self, Metrics};
use crate::settings::ControlArgs;
use crate::source::cluster::{Cluster, Pulses};
use crate::status::Recorder;
use crate::store::{Shared, Store};
use crate::world::{Allocations, World};

/// The lease by which replicas agree who serves.
pub const LEASE: &str = "meshwright-control";
/// The ConfigMap with the epoch's number and the times of first acceptance.
pub const BOOK: &str = "meshwright-book";
/// The Secret with the authority's keys and the key of sessions.
pub const SAFE: &str = "meshwright-ca";
/// What is open when the lease is lost gets this long: the next holder begins a second after the loss at the earliest.
const LOSS_GRACE: Duration = Duration::from_millis(600);

/// Opens the authority whose keys lie in that Secret. Blocking.
pub type OpenAuthority = Arc<dyn Fn(Arc<Keep<Secret>>) -> anyhow::Result<Means> + Send + Sync>;

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
        let served = serve(args, replica, &term, standby, stop).await;
        term.release().await;
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
    /// Ends with the standing by.
    health: (CancellationToken, JoinHandle<()>),
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
        let gathering = tokio::spawn(gather(world, events, said, shown, turn.clone()));
        let mut watches = JoinSet::new();
        let never = CancellationToken::new();
        if let Some(folder) = &args.config {
            watches.spawn(watch_folder(folder.clone(), board.clone(), never.clone()));
        }
        let cluster = Cluster { client: replica.client.clone(), clock: replica.clock.clone(), pulses: pulses.clone() };
        watches.spawn(watch_cluster(cluster, board.clone(), never));
        Ok(Self { board, pulses, synced, gathering, turn, watches, health: (until, health) })
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.health.0.cancel();
        self.gathering.abort();
    }
}

/// Applies what comes to a world that nobody sees, until it is wanted.
async fn gather(
    mut world: World,
    mut events: mpsc::Receiver<Errand>,
    synced: watch::Sender<bool>,
    shown: Arc<Metrics>,
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
                synced.send_if_modified(|said| std::mem::replace(said, world.synced()) != world.synced());
            }
            // Nobody asks anything of a replica whose doors are shut.
            Some(_) => {}
            None => return (world, events),
        }
    }
}

/// One turn: from the claims to the end of everything. An error is a reason not to stand again; the loss of the lease is none.
async fn serve(args: &ControlArgs, replica: &Replica, term: &Term, mut standby: Standby, stop: &CancellationToken) -> anyhow::Result<()> {
    let (tenure, over) = (term.tenure(), stop.child_token());
    let mut tasks = match begin(args, replica, tenure, &mut standby, &over).await {
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
    let (opening, keys) = (replica.authority.clone(), safe.clone());
    let means = spawn_blocking(move || opening(keys)).await??;
    let store = Arc::new(Store::shared(Shared::new(book, safe).await));
    let kept = store.clone();
    let key = spawn_blocking(move || session_key(&kept)).await??;
    standby.health.0.cancel();
    // The port is free again when its task has ended.
    let _ = (&mut standby.health.1).await;
    let doors = bind(args, args.plaintext_xds).await?;
    standby.turn.cancel();
    let (mut world, events) = (&mut standby.gathering).await?;
    world.set_session_key(key);
    let metrics = Arc::new(Metrics::default());
    metrics.collect(Box::new(standby.pulses.clone()));
    metrics.holder.set(1);
    let board = standby.board.clone();
    let ground = Ground { store, board: board.clone(), events, world, metrics, taken_over: true };
    let plane = stand(args, (means.clock, means.authority, means.certificates), ground, over)?;
    let mut tasks = open(doors, plane, over)?.tasks;
    let recorder = Recorder::new(replica.client.clone(), board, tenure.clone());
    tasks.spawn(done(recorder.run(over.clone())));
    Ok(tasks)
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
