//! `meshwright up`: a whole mesh on one machine. It plays kubelet, kube-proxy and cluster DNS, nothing more; the control plane and the
//! proxies are the programs that run in production.
//!
//! rights -> lock -> ranges -> fabric -> control plane -> resolver, relays -> agent (instances, gateways) -> live -> the end, backwards.
//! Everything runs on the main thread: the kernel ties children to the thread that made them.

pub(crate) mod agent;
pub(crate) mod book;
pub(crate) mod dns;
pub(crate) mod gateway;
pub(crate) mod golden;
pub(crate) mod inside;
pub(crate) mod instance;
pub(crate) mod live;
pub(crate) mod lock;
pub(crate) mod mesh;
pub(crate) mod plane;
pub(crate) mod probe;
pub(crate) mod problems;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod rights;
pub(crate) mod screen;
pub(crate) mod strays;
pub(crate) mod tidy;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use proxy::io::Listening;
use tokio::net::UdpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::agent::Fleet;
use self::dns::Dns;
use self::lock::Lock;
use self::mesh::Mesh;
use self::rights::Rights;
use self::screen::{News, Screen};
use crate::netns::fabric::Fabric;
use crate::netns::link::Netlink;
use crate::netns::ranges::Ranges;
use crate::{shop, state};

/// The resolver's port.
const DNS_PORT: u16 = 53;
/// Stock plaintext xDS port of the control plane, on the fabric's loopback.
const PLAINTEXT_PORT: u16 = 15010;
/// What all instances together may take to end; with the control plane's share it stays below the 10 s that are promised.
const STOP_MAX: Duration = Duration::from_secs(6);
/// Roster changes within this time are one write of the book.
const WRITE_GATHER: Duration = Duration::from_millis(50);

/// What the command line asked for.
#[derive(Clone, Debug)]
pub(crate) struct UpSettings {
    /// The folder of manifests; `None`: the shop.
    pub(crate) folder: Option<PathBuf>,
    /// Forget CA, epochs and applied objects first.
    pub(crate) fresh: bool,
    /// Without root, even as root.
    pub(crate) rootless: bool,
    /// End by itself after this time.
    pub(crate) exit_after: Option<Duration>,
    /// Dead parts stay dead.
    pub(crate) no_restart: bool,
    /// Plaintext xDS on this address of the host.
    pub(crate) plaintext_xds: Option<SocketAddr>,
    /// Workloads may reach outside the mesh.
    pub(crate) nat: bool,
    /// Events as JSON lines.
    pub(crate) json: bool,
    /// Address ranges.
    pub(crate) ranges: Ranges,
}

/// Runs the mesh until it is told to end. Must be called while the process has one thread.
///
/// # Errors
/// What keeps the mesh from starting; once it runs, parts that fail are told on the screen instead.
pub(crate) fn run(settings: UpSettings) -> anyhow::Result<ExitCode> {
    let began = std::time::Instant::now();
    if let Some(folder) = &settings.folder
        && !folder.is_dir()
    {
        bail!("{} is not a folder; give `up` a folder of manifests, or none for the shop that this program carries", folder.display());
    }
    // Before the user namespace: inside it every other owner is a stranger.
    let place = state::create()?;
    let rights = rights::take(settings.rootless)?;
    let lock = Lock::take(&place)?;
    let ended = strays::end(&place);
    tidy::but_the_lock(&place);
    if settings.fresh {
        tidy::forget(&place)?;
    }
    tidy::prepare(&place)?;
    settings.ranges.check(&Netlink::new().taken()?)?;
    let folder = manifests(&settings, &place)?;
    let screen = Screen::new(settings.json);
    screen.tell(&News::Starting {
        pid: std::process::id(),
        state_dir: place.display().to_string(),
        manifests: folder.display().to_string(),
        rootless: rights.rootless,
    });
    if ended > 0 {
        screen.notice(format!("ended {ended} processes that an earlier `up` had left behind"));
    }
    let fabric = Fabric::new(settings.ranges, settings.nat)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let result = LocalSet::new().block_on(&runtime, serve(settings, place.clone(), folder, rights, fabric, screen, began));
    strays::kill_rest(&place);
    tidy::but_the_lock(&place);
    lock.release();
    // Probes that still wait for an answer end with the process.
    runtime.shutdown_background();
    result
}

fn manifests(settings: &UpSettings, place: &Path) -> anyhow::Result<PathBuf> {
    match &settings.folder {
        Some(folder) => std::fs::canonicalize(folder).with_context(|| format!("cannot resolve {}", folder.display())),
        None => {
            let folder = place.join("shop");
            shop::write_to(&folder)?;
            Ok(folder)
        }
    }
}

async fn serve(
    settings: UpSettings,
    place: PathBuf,
    folder: PathBuf,
    rights: Rights,
    fabric: Fabric,
    screen: Screen,
    began: std::time::Instant,
) -> anyhow::Result<ExitCode> {
    let exit_after = settings.exit_after;
    let otlp = otlp_here();
    let mesh = Rc::new(Mesh::new(settings, place, rights, fabric, screen, otlp));
    spawn_local(keep_book(Rc::clone(&mesh)));
    spawn_local(process::bound_logs(mesh.state.join(tidy::LOGS)));
    let dns = dns::dns(mesh.settings.nat);
    serve_dns(&mesh, &dns)?;
    if mesh.settings.nat {
        serve_nat(&mesh)?;
    }
    serve_plaintext_xds(&mesh)?;

    let mut fleet = Fleet::default();
    let mut plane = plane::start(&mesh, &folder);
    let reason = tokio::select! {
        biased;
        reason = ending(exit_after, began) => Ok(reason),
        error = plane.failed() => Err(error),
        () = fleet.attend(&mesh, dns.names()) => Ok("the agent ended".to_owned()),
        () = problems::watch(&mesh) => Ok("the look-out for problems ended".to_owned()),
        () = live::watch(&mesh, &folder, began) => Ok("the watch ended".to_owned()),
    };
    mesh.screen.still();
    let stopping = Instant::now();
    if let Ok(reason) = &reason {
        mesh.screen.tell(&News::Stopping { reason: reason.clone() });
    }
    let orderly = async {
        fleet.stop(STOP_MAX).await;
        plane.stop().await;
    };
    // Whoever asks twice does not want to wait.
    tokio::select! {
        () = orderly => {}
        _ = ending(None, began) => {}
    }
    let elapsed_ms = u64::try_from(stopping.elapsed().as_millis()).unwrap_or(u64::MAX);
    reason?;
    mesh.screen.tell(&News::Stopped { elapsed_ms });
    Ok(ExitCode::SUCCESS)
}

/// Resolves with why the mesh has to end.
async fn ending(exit_after: Option<Duration>, began: std::time::Instant) -> String {
    let catch = |kind: SignalKind, name: &'static str| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
        name.to_owned()
    };
    let timer = async {
        match exit_after {
            Some(after) => sleep(after.saturating_sub(began.elapsed())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        name = catch(SignalKind::interrupt(), "Ctrl-C") => name,
        name = catch(SignalKind::terminate(), "SIGTERM") => name,
        name = catch(SignalKind::hangup(), "the terminal has gone") => name,
        () = timer => "--exit-after".to_owned(),
    }
}

async fn keep_book(mesh: Rc<Mesh>) {
    loop {
        if let Err(error) = mesh.book().write(&mesh.state) {
            mesh.screen.notice(format!("`exec` and `logs` will not find everything: {error:#}"));
        }
        mesh.rewrite.notified().await;
        sleep(WRITE_GATHER).await;
    }
}

fn serve_dns(mesh: &Rc<Mesh>, dns: &Arc<Dns>) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    for address in mesh.settings.ranges.bridge_here() {
        let address = SocketAddr::new(address.addr(), DNS_PORT);
        let (udp, tcp) = (mesh.fabric.borrow().bind_udp(address)?, mesh.fabric.borrow().listen(address)?);
        spawn_local(Arc::clone(dns).serve_udp(UdpSocket::from_std(udp).context("cannot serve DNS")?, stop.clone()));
        spawn_local(Arc::clone(dns).serve_tcp(Listening::adopt(tcp).context("cannot serve DNS")?, stop.clone()));
    }
    Ok(())
}

/// `--nat`: what wants to leave the mesh arrives at a listener here, and is dialled from the host.
fn serve_nat(mesh: &Rc<Mesh>) -> anyhow::Result<()> {
    // One port in both families: the rule names only one.
    let v4 = mesh.fabric.borrow().listen(([0, 0, 0, 0], 0).into())?;
    let port = v4.local_addr()?.port();
    let mut listeners = vec![v4];
    for address in mesh.settings.ranges.bridge_here().into_iter().filter(|address| address.addr().is_ipv6()) {
        listeners.push(mesh.fabric.borrow().listen(SocketAddr::new(address.addr(), port))?);
    }
    mesh.fabric.borrow().divert_leaving(port)?;
    for listener in listeners {
        spawn_local(relay::run(listener, |near| {
            let wanted = relay::original_destination(near);
            async move { relay::from_host(wanted?.to_string()).await }
        }));
    }
    Ok(())
}

fn serve_plaintext_xds(mesh: &Rc<Mesh>) -> anyhow::Result<()> {
    let Some(address) = mesh.settings.plaintext_xds else { return Ok(()) };
    let listener = std::net::TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} for plaintext xDS; choose another one with --plaintext-xds=ADDR"))?;
    listener.set_nonblocking(true)?;
    let inside = mesh.fabric.borrow().namespace.clone();
    let target = SocketAddr::from(([127, 0, 0, 1], PLAINTEXT_PORT));
    spawn_local(relay::run(listener, move |_| relay::from_inside(inside.clone(), target)));
    mesh.screen.notice(format!("plaintext xDS on {address}"));
    Ok(())
}

/// `OTEL_EXPORTER_OTLP_ENDPOINT` where it is the host's loopback: the control plane, which has the same variable, orders a
/// relay for it.
fn otlp_here() -> Option<String> {
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|endpoint| endpoint.starts_with("http://"))?;
    let (host, _) = relay::authority(&endpoint).rsplit_once(':')?;
    let loopback = host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    (host == "localhost" || loopback).then_some(endpoint)
}

/// Waits for a future, but not for ever; for the end of parts.
pub(crate) async fn at_most<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    timeout(limit, future).await.ok()
}
