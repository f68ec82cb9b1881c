//! Start and stop of the control plane: read the book, open the doors, watch folder and cluster, serve until told to stop.

#![allow(clippy::disallowed_types, reason = "a door: what the binary binds; simulations bring doors of their own")]

mod dates;
mod mended;
mod reading;
mod rows;
mod tokens;
mod turns;
mod writer;

use std::fs::{self, DirBuilder, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::acme::AcmeOrders;
use crate::api::Api;
use crate::canary::CanaryDriver;
use crate::clock::Clock;
use crate::node::Agents;
use crate::publish::board::{Board, Errand};
use crate::rotation::{Driver, Followers, write_bundle};
use crate::serve::admit::Gate;
use crate::serve::ads::Ads;
use crate::serve::authority::SharedAuthority;
use crate::serve::limits::LimitDesk;
use crate::serve::metrics::{self, Metrics};
use crate::serve::reports::Desk;
use crate::serve::token::{ApiTokens, Guarded};
use crate::serve::{listen, serve, tls};
use crate::settings::ControlArgs;
use crate::source::cluster::{Cluster, Pulses};
use crate::source::{Folder, Watch};
use crate::store::{Page, Row, Store};
use crate::traces::Traces;
use crate::world::{Change, Origin, SessionKey, World};
pub use turns::{BOOK, InTurn, LEASE, OpenAuthority, Replica, SAFE, run_replica};
use writer::Writer;

/// Steps of a cluster's changes on their way to the writer; the watches wait while there are more.
const STEPS_MAX: usize = 2;
/// Open requests get this long after a stop.
const GRACE: Duration = Duration::from_secs(5);

/// The doors, bound.
struct Doors {
    tls: TcpListener,
    plaintext: Option<TcpListener>,
    metrics: TcpListener,
    socket: UnixListener,
    path: PathBuf,
}

/// A control plane that has started.
pub struct Running {
    /// Its tasks; one that ends early is a failure.
    pub tasks: JoinSet<anyhow::Result<()>>,
    /// Where the TLS door is.
    pub listen: SocketAddr,
    /// Where the plaintext door is.
    pub plaintext: Option<SocketAddr>,
}

/// What the control plane is given: it makes none of these itself.
pub struct Means {
    /// Wall time.
    pub clock: Clock,
    /// Signs.
    pub authority: SharedAuthority,
    /// Adds the authority's gRPC service to the TLS door, behind the gate; its streams end with the token.
    pub certificates: Certificates,
    /// The way to the cluster whose objects are watched.
    pub cluster: Option<kube::Client>,
    /// Where spans of its own work are made.
    pub traces: Traces,
}

/// Runs the control plane until SIGTERM or SIGINT. Bad manifests never end it: they are told on stderr, by `get objects` and by
/// `health`.
///
/// # Errors
/// The folder, the data folder or a port cannot be had; each with its name and the remedy.
pub async fn run(args: ControlArgs, means: Means) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let Running { mut tasks, .. } = start(&args, means, &stop).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = tasks.join_next() => ended.unwrap_or(Ok(Ok(()))).map_err(anyhow::Error::from).and_then(|ended| ended),
    };
    tracing::info!("stopping");
    stop.cancel();
    // Streams end by themselves; whoever holds on longer is cut.
    let _ = tokio::time::timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    tasks.shutdown().await;
    // A socket that is gone already is as good.
    let _ = fs::remove_file(args.socket());
    ended
}

/// A control plane without doors: what answers behind each of them, and the tasks behind that.
pub struct Assembled {
    /// End with the token given to [`assemble`].
    pub tasks: JoinSet<anyhow::Result<()>>,
    /// Behind TLS: ADS, Reports, Certificates, and Control by token.
    pub remote: Routes,
    /// Behind the loopback port without TLS: ADS.
    pub plaintext: Routes,
    /// Behind the Unix socket: Control, Node.
    pub local: Routes,
    /// For the TLS door.
    pub tls: tls::ServerTls,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What stands behind everything else.
struct Ground {
    store: Arc<Store>,
    board: Arc<Board>,
    events: mpsc::Receiver<Errand>,
    world: World,
    metrics: Arc<Metrics>,
    /// Another replica may have been the holder before.
    taken_over: bool,
    /// Where ordered certificates are written, if not to the store.
    cluster: Option<kube::Client>,
    traces: Traces,
}

/// Reads the book and starts everything behind the doors. Simulations bring doors of their own ([`listen::virtual_door`]).
///
/// # Errors
/// The folder or the data folder cannot be used, or the authority signs nothing.
pub fn assemble(args: &ControlArgs, means: Means, stop: &CancellationToken) -> anyhow::Result<Assembled> {
    let Means { clock, authority, certificates, cluster, traces } = means;
    let mut settings = args.world()?;
    if args.kubernetes != cluster.is_some() {
        bail!("a client of the cluster is needed exactly with --kubernetes");
    }
    let store = Arc::new(Store::open(&args.data_dir)?);
    settings.session_key = session_key(&store)?;
    let world = World::new(settings, store.load(Row::Allocations)?.unwrap_or_default());
    let (board, events) = Board::new(clock.clone());
    let (metrics, taken_over) = (Arc::new(Metrics::default()), false);
    let ground =
        Ground { store, board: board.clone(), events, world, metrics: metrics.clone(), taken_over, cluster: cluster.clone(), traces };
    let mut plane = stand(args, (clock.clone(), authority, certificates), ground, stop)?;
    // There is no lease, and nobody else.
    metrics.holder.set(1);
    if let Some(folder) = &args.config {
        plane.tasks.spawn(watch(folder.clone(), board.clone(), stop.clone()));
    }
    if let Some(client) = cluster {
        let pulses = Pulses::default();
        metrics.collect(Box::new(pulses.clone()));
        plane.tasks.spawn(watch_cluster(Cluster { client, clock, pulses }, board, stop.clone()));
    }
    Ok(plane)
}

/// Adds the authority's service to the TLS door.
pub type Certificates = Box<dyn FnOnce(Routes, Gate, CancellationToken) -> Routes + Send>;

/// Everything behind the doors but what feeds it.
fn stand(
    args: &ControlArgs,
    (clock, authority, certificates): (Clock, SharedAuthority, Certificates),
    ground: Ground,
    stop: &CancellationToken,
) -> anyhow::Result<Assembled> {
    let Ground { store, board, events, world, metrics, taken_over, cluster, traces } = ground;
    let (tls, seating, lasts) = tls::config(&authority, args.names(), &clock)?;
    // For proxies that start: in the data folder, and where `--ca-file` says.
    let files: Vec<PathBuf> = [Some(args.data_dir.join("ca.pem")), args.ca_file.clone()].into_iter().flatten().collect();
    write_bundle(&files, &authority.roots().pem)?;
    metrics.follow(&authority, &clock);
    metrics.publish(&board);
    metrics.collect(traces.counts());
    let writer = Writer::new(board.clone(), store.clone(), authority.clone(), metrics.clone(), world)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(done(writer.run(events, stop.clone())));
    tasks.spawn(done(traces.follow(board.clone(), stop.clone())));
    tasks.spawn(done(seating.clone().keep(lasts, stop.clone())));
    tasks.spawn(done(seating.clone().follow(board.editions(), stop.clone())));
    let followers = Followers { clients: tls.roots.clone(), seating, files };
    let (driver, rotation) = Driver::new(board.clone(), authority.clone(), followers);
    let driver = if taken_over { driver.taking_over() } else { driver };
    tasks.spawn(done(driver.run(stop.clone())));
    let (orders, counted) = AcmeOrders::new(board.clone(), store.clone(), cluster);
    metrics.collect(Box::new(counted));
    tasks.spawn(done(orders.run(stop.clone())));
    let (canaries, helm, counted) = CanaryDriver::new(board.clone(), store.clone());
    metrics.collect(Box::new(counted));
    tasks.spawn(done(canaries.run(stop.clone())));
    let ads = || Ads::service(board.clone(), metrics.clone(), stop.clone());
    let api = || Api::service(board.clone(), authority.clone(), store.clone(), (rotation.clone(), helm.clone()), stop.clone());
    let guarded = Guarded::new(api(), ApiTokens::open(&args.data_dir)?);
    let limits = LimitDesk::service(board.clone(), stop.clone());
    let remote = Routes::new(ads()).add_service(Desk::service(board.clone(), stop.clone())).add_service(limits).add_service(guarded);
    let remote = certificates(remote, Gate::new(board.clone()), stop.clone());
    let local = Routes::new(api()).add_service(Agents::service(board.clone(), stop.clone()));
    Ok(Assembled { tasks, remote, plaintext: Routes::new(ads()), local, tls, metrics })
}

/// The key of sessions: made once, so that cookies given before a restart still lead to their endpoints.
fn session_key(store: &Store) -> anyhow::Result<SessionKey> {
    if let Some(key) = store.load(Row::SessionKey)? {
        return Ok(SessionKey(key));
    }
    let mut key = [0; 32];
    if rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut key).is_err() {
        bail!("the system gives no random bytes for the key of sessions");
    }
    let mut page = Page::default();
    page.put(Row::SessionKey, &key);
    if !store.write(page) {
        bail!("the key of sessions cannot be kept: {}", store.failure().unwrap_or_default());
    }
    Ok(SessionKey(key))
}

/// [`assemble`], with doors.
///
/// # Errors
/// See [`run`].
pub async fn start(args: &ControlArgs, means: Means, stop: &CancellationToken) -> anyhow::Result<Running> {
    let doors = bind(args, args.plaintext_xds).await?;
    let plane = assemble(args, means, stop)?;
    open(doors, plane, stop)
}

/// Lets callers in.
fn open(doors: Doors, plane: Assembled, stop: &CancellationToken) -> anyhow::Result<Running> {
    let listen = doors.tls.local_addr().context("the TLS door has no address")?;
    let plaintext = doors.plaintext.as_ref().and_then(|listener| listener.local_addr().ok());
    let mut tasks = plane.tasks;
    tasks.spawn(done(metrics::serve(doors.metrics, plane.metrics, stop.clone())));
    tasks.spawn(served(plane.remote, listen::tls(doors.tls, plane.tls, stop.clone()), stop.clone()));
    if let Some(listener) = doors.plaintext {
        tasks.spawn(served(plane.plaintext, listen::plaintext(listener, stop.clone()), stop.clone()));
    }
    tasks.spawn(served(plane.local, listen::unix(doors.socket, stop.clone()), stop.clone()));
    tracing::info!(%listen, socket = %doors.path.display(), "the control plane is ready");
    Ok(Running { tasks, listen, plaintext })
}

async fn done(work: impl Future<Output = ()>) -> anyhow::Result<()> {
    work.await;
    Ok(())
}

async fn served(routes: Routes, incoming: listen::Incoming, stop: CancellationToken) -> anyhow::Result<()> {
    serve(routes, incoming, stop).await.context("a server of the control plane failed")
}

/// Reads the folder, then hands every change to the writer.
async fn watch(folder: PathBuf, board: Arc<Board>, stop: CancellationToken) -> anyhow::Result<()> {
    let place = folder.display().to_string();
    let (mut watch, first) = tokio::task::spawn_blocking(move || Watch::start(&folder))
        .await?
        .with_context(|| format!("cannot read the folder of manifests {place}"))?;
    let mut objects = Folder::default();
    let mut changes = objects.update(first, board.clock.age_ms());
    changes.push(Change::Synced(Origin::Folder));
    board.send(Errand::Objects(changes)).await;
    loop {
        let files = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            files = watch.next(|change| objects.runs(change)) => files,
        };
        let changes = objects.update(files, board.clock.age_ms());
        if !changes.is_empty() && !board.send(Errand::Objects(changes)).await {
            return Ok(());
        }
    }
}

/// Hands what the cluster says to the writer.
async fn watch_cluster(cluster: Cluster, board: Arc<Board>, stop: CancellationToken) -> anyhow::Result<()> {
    let (send, mut steps) = mpsc::channel(STEPS_MAX);
    let forward = async {
        while let Some(changes) = steps.recv().await {
            if !board.send(Errand::Objects(changes)).await {
                break;
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = cluster.run(send) => ended.context("watching the cluster ended"),
        () = forward => Ok(()),
    }
}

async fn bind(args: &ControlArgs, plaintext: Option<SocketAddr>) -> anyhow::Result<Doors> {
    let plaintext = match plaintext {
        Some(address) => Some(tcp(address, "--plaintext-xds").await?),
        None => None,
    };
    let path = args.socket();
    Ok(Doors {
        tls: tcp(args.listen, "--listen").await?,
        plaintext,
        metrics: tcp(args.metrics_listen, "--metrics-listen").await?,
        socket: unix(&path).await?,
        path,
    })
}

async fn tcp(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; stop whoever holds it, or choose another address with {flag}"))
}

/// A socket of mode 0600 from the moment it can be found.
async fn unix(path: &Path) -> anyhow::Result<UnixListener> {
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        bail!("another control plane answers on {}; stop it, or choose another socket with --api-socket", path.display());
    }
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let bound = || -> std::io::Result<UnixListener> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // Left over from a process of the same number.
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        Ok(listener)
    };
    bound().with_context(|| format!("cannot make the socket {}; check its folder, or choose another with --api-socket", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_outlive_a_restart() {
        // Aim: the key is made once, is no constant, and the next process of the same data folder has the same.
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = |folder: &Path| session_key(&Store::open(folder).unwrap()).unwrap();
        let first = key(folder.path());
        assert!(first != SessionKey::default() && first != key(other.path()));
        assert!(first == key(folder.path()));
        assert_eq!(format!("{first:?}"), "SessionKey", "a key is never printed");
    }
}
