//! Start and end of the proxy process: open what needs rights, give the rights up, start the threads, end in order.

mod core;
mod rest;

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::names::Mode;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::dns::{OutsideKeeper, Resolver, Upstream};
use crate::ground::limits::affordable_connections;
use crate::io::{Clock, Draw, Listening, LocalDoor, Network, adopt_channel};
use crate::observe::TelemetryOptions;
use crate::shell::admin::{Admin, Pages};
use crate::shell::companions;
use crate::shell::doors::{Edges, arrivals, open_everywhere, serve_map};
use crate::shell::listener::Purpose;
use crate::shell::ports::{Reach, open, open_at, open_udp};
use crate::shell::rights;
use crate::shell::settings::{Bootstrap, Exempt, Map, Ports, ProxyArgs, SpiffeSocket};
use crate::shell::worker::Worker;
use crate::status::lifecycle::Lifecycle;
use crate::status::logs;
use crate::tls;

pub use core::{Core, Membership};

/// Longest wait for tasks once everything is drained: spans still leave.
const TASKS_END: Duration = Duration::from_millis(2500);

/// Runs a proxy until it is told to end. Must be called while the process has a single thread.
///
/// # Errors
/// It cannot start: what is missing, and the flag or right that helps.
pub fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    rights::stay_small();
    rights::die_with_parent()?;
    let root = rights::is_root();
    let bootstrap = args.bootstrap(root)?;
    let _ = tls::provider().install_default();
    rights::raise_descriptors();
    let sockets = Sockets::open(&bootstrap)?;
    let edge = bootstrap.node.id.mode == Mode::Edge;
    rights::drop_rights(bootstrap.exempt, edge)?;
    // A change of uid has reset both.
    rights::die_with_parent()?;
    rights::keep_memory_private(root || rights::is_alone());
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).thread_stack_size(256 << 10).build()?;
    runtime.block_on(proxy(bootstrap, sockets))?;
    Ok(ExitCode::SUCCESS)
}

/// All sockets opened before the rights are dropped.
struct Sockets {
    outbound: Vec<TcpListener>,
    inbound: Vec<TcpListener>,
    dns_udp: Vec<UdpSocket>,
    dns_tcp: Vec<TcpListener>,
    pages: Vec<(Pages, TcpListener)>,
    maps: Vec<(Map, TcpListener)>,
    spiffe: Option<LocalDoor>,
    handed_over: Option<UnixStream>,
}

impl Sockets {
    fn open(bootstrap: &Bootstrap) -> anyhow::Result<Self> {
        let Ports { outbound, inbound, dns, admin, metrics, health } = bootstrap.ports;
        let mut pages = Vec::new();
        for (page, port, reach, flag) in [
            (Pages::Admin, admin, Reach::Loopback, "--admin-port"),
            (Pages::Metrics, metrics, Reach::All, "--metrics-port"),
            (Pages::Health, health, Reach::All, "--health-port"),
        ] {
            pages.extend(open(port, reach, flag)?.into_iter().map(|listener| (page, listener)));
        }
        let map = |map: &Map| Ok((map.clone(), open_at(map.address, "--map")?));
        Ok(Self {
            outbound: open(outbound, Reach::All, "--outbound-port")?,
            inbound: open(inbound, Reach::All, "--inbound-port")?,
            dns_udp: open_udp(dns, Reach::Loopback, "--dns-port")?,
            dns_tcp: open(dns, Reach::Loopback, "--dns-port")?,
            pages,
            maps: bootstrap.maps.iter().map(map).collect::<anyhow::Result<_>>()?,
            spiffe: bootstrap.spiffe.as_ref().map(open_spiffe).transpose()?.flatten(),
            handed_over: bootstrap.sockets_fd.map(adopt_channel).transpose().context("--sockets-fd is no open Unix socket")?,
        })
    }
}

/// The socket of the SPIFFE Workload API. One that nobody asked for by name and that cannot be had is done without.
fn open_spiffe(socket: &SpiffeSocket) -> anyhow::Result<Option<LocalDoor>> {
    let shown = socket.path.display();
    match LocalDoor::open(&socket.path, socket.mode) {
        Ok(door) => Ok(Some(door)),
        Err(error) if socket.wanted => Err(error).with_context(|| {
            format!("--spiffe-socket: {shown} cannot be opened; its folder must be there and writable, and nobody else serve on it")
        }),
        // Logging has not begun.
        Err(error) => {
            eprintln!("no SPIFFE Workload API: {shown} cannot be opened: {error}; say where with --spiffe-socket");
            Ok(None)
        }
    }
}

/// Waits for their threads, where nobody else holds them any more.
fn workers_end(workers: Arc<Vec<Worker>>) {
    if let Ok(workers) = Arc::try_unwrap(workers).map_err(|_| ()) {
        workers.into_iter().for_each(Worker::join);
    }
}

async fn proxy(bootstrap: Bootstrap, sockets: Sockets) -> anyhow::Result<()> {
    let mark = if let Exempt::Mark(mark) = bootstrap.exempt { Some(mark) } else { None };
    let network = Network::Proxy { mark, admin: bootstrap.ports.admin };
    let options = TelemetryOptions {
        instance: bootstrap.subject.instance.clone(),
        otlp_endpoint: bootstrap.otlp_endpoint,
        otlp_fallback: bootstrap.otlp_fallback,
        otlp_protocol: bootstrap.otlp_protocol,
        ..TelemetryOptions::default()
    };
    let member = Membership {
        node: bootstrap.node,
        subject: bootstrap.subject,
        control: bootstrap.control,
        control_roots: bootstrap.control_roots,
        token: bootstrap.token,
    };
    let node = member.node.clone();
    let mut core = Core::new(member, network.clone(), Clock::System, options)?;
    // An edge has no direction but the one.
    let directions = if node.id.mode == Mode::Edge { 1 } else { 2 };
    core.means.connections_max = affordable_connections(rights::descriptors(), bootstrap.workers * directions);
    let logs = logs::start(&bootstrap.log_level, &core.means.telemetry)?;
    info!(node = %node.id, version = env!("CARGO_PKG_VERSION"), workers = bootstrap.workers, "proxy starts");

    let draw = Draw::from_entropy();
    let workers = workers(&core, node.mode(), bootstrap.workers, &draw)?;
    if let Some(first) = workers.first() {
        first.check().await;
    }
    let (lifecycle, telemetry, snapshots) = (core.lifecycle.clone(), Arc::clone(&core.means.telemetry), core.means.snapshots.clone());
    signals(lifecycle.clone())?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let upstream = Upstream::new(network, bootstrap.dns_upstream);
    if node.id.mode == Mode::Edge {
        let keeper = OutsideKeeper { snapshots: snapshots.clone(), upstream: upstream.clone(), telemetry: Arc::clone(&telemetry) };
        tasks.spawn(keeper.run(Draw::seeded(draw.next()), stop.clone()));
    }
    let resolver = Resolver::new(snapshots.clone(), upstream);
    let admin = Admin { probes: bootstrap.app_probes.into(), ..core.admin(&logs) };
    serve_own_ports(&mut tasks, admin, &resolver, sockets.pages, (sockets.dns_udp, sockets.dns_tcp), &stop)?;
    if let Some(door) = sockets.spiffe {
        core.workload_api().start(&mut tasks, door, &draw, &stop)?;
    }
    core.start(&mut tasks, logs, draw.next(), &stop)?;
    tasks.spawn(rest::give_back_at_rest(lifecycle.clone(), stop.clone()));
    if let Some(quiet) = bootstrap.end_with_application {
        tasks.spawn(leave_with_application(quiet, lifecycle.clone(), stop.clone()));
    }

    open_doors(&workers, sockets.outbound, sockets.inbound).await;
    // These let go of their sockets with the drain: a door is closed only when nobody holds it open.
    for (map, listener) in sockets.maps {
        tasks.spawn(serve_map(map, listener, snapshots.clone(), Arc::clone(&workers), lifecycle.closing.clone()));
    }
    if node.id.mode == Mode::Edge {
        let arrivals = sockets.handed_over.map(arrivals).transpose().context("no thread can be started")?;
        let (passed, passed_datagrams) = Default::default();
        let (workers, telemetry) = (Arc::clone(&workers), Arc::clone(&telemetry));
        let edges = Edges { snapshots, workers, arrivals, passed, passed_datagrams, telemetry };
        tasks.spawn(edges.run(lifecycle.closing.clone()));
    }
    lifecycle.bound();

    end_in_order(&lifecycle, &workers, bootstrap.drain).await;
    stop.cancel();
    end_all(tasks).await;
    telemetry.close_log();
    workers_end(workers);
    info!("proxy ends");
    Ok(())
}

/// Opens both directions at all workers, and lets go of the sockets here.
async fn open_doors(workers: &[Worker], outbound: Vec<TcpListener>, inbound: Vec<TcpListener>) {
    for (door, listeners) in [(Purpose::Outbound, outbound), (Purpose::Inbound, inbound)] {
        for listener in &listeners {
            open_everywhere(workers, door, listener).await;
        }
    }
}

/// Waits a little for tasks that were told to end; then they end.
async fn end_all(mut tasks: JoinSet<()>) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    if timeout(TASKS_END, ended).await.is_err() {
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
    }
}

fn workers(core: &Core, mode: &str, count: usize, draw: &Draw) -> anyhow::Result<Arc<Vec<Worker>>> {
    let spawn = |number: usize| Worker::spawn(format!("{mode}-{number}"), core.means.clone(), draw.next());
    let workers: std::io::Result<Vec<Worker>> = (0..count).map(spawn).collect();
    Ok(Arc::new(workers.context("no worker thread can be started (--workers)")?))
}

fn serve_own_ports(
    tasks: &mut JoinSet<()>,
    admin: Admin,
    resolver: &Arc<Resolver>,
    pages: Vec<(Pages, TcpListener)>,
    (udp, tcp): (Vec<UdpSocket>, Vec<TcpListener>),
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    for (page, listener) in pages {
        tasks.spawn(admin.clone().serve(Listening::adopt(listener)?, page, stop.clone()));
    }
    #[allow(clippy::disallowed_types, reason = "a door: the resolver's own socket")]
    for socket in udp {
        tasks.spawn(Arc::clone(resolver).serve_udp(tokio::net::UdpSocket::from_std(socket)?, stop.clone()));
    }
    for listener in tcp {
        tasks.spawn(Arc::clone(resolver).serve_tcp(Listening::adopt(listener)?, stop.clone()));
    }
    Ok(())
}

/// SIGTERM and SIGINT begin the end; the second one ends at once.
fn signals(lifecycle: Lifecycle) -> anyhow::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("signals cannot be heard")?;
        let lifecycle = lifecycle.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                info!("told to end");
                lifecycle.leave();
            }
        });
    }
    Ok(())
}

/// What a signal would do otherwise.
async fn leave_with_application(quiet: Duration, lifecycle: Lifecycle, stop: CancellationToken) {
    if companions::ended(quiet, stop).await {
        info!("the application has ended");
        lifecycle.leave();
    }
}

/// Waits for the drain, drains, and returns when the process may end: drained and told to leave, or told to quit.
async fn end_in_order(lifecycle: &Lifecycle, workers: &[Worker], bound: Duration) {
    let in_order = async {
        lifecycle.end_in_order(bound, async |bound| for_each_at_once(workers, bound).await).await;
        lifecycle.leaving.cancelled().await;
    };
    let parting = async {
        lifecycle.parting.cancelled().await;
        info!("the instance ends soon; callers are told");
        futures::future::join_all(workers.iter().map(Worker::part)).await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = lifecycle.quit.cancelled() => warn!("ending at once"),
        () = in_order => {}
        () = parting => {}
    }
}

async fn for_each_at_once(workers: &[Worker], bound: Duration) {
    futures::future::join_all(workers.iter().map(|worker| worker.drain(bound))).await;
}
