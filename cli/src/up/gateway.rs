//! One Gateway's edge proxy: in a namespace of its own, on sockets opened on the host.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proto::mesh::{BoundPort, GatewayOrder, GatewayState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::book::InstanceRecord;
use super::mesh::{Key, Mesh, OTLP_ENV, Phase, left_running};
use super::probe::{self, Check};
use super::process::{Backoff, Process, Start};
use super::screen::News;
use crate::netns::Namespace;
use crate::netns::fabric::Plug;

/// Added to a port that is taken or privileged.
const MOVED_BY: u16 = 8_000;
/// What the message of a Gateway begins with that asks for an address which this machine does not have.
const UNUSABLE: &str = proto::words::ADDRESS_NOT_USABLE;
/// How many ports from there are tried.
const TRIES_MAX: u16 = 100;
/// Backlog of an edge listener.
const BACKLOG: i32 = 1_024;
/// The proxy's readiness.
const READY: (u16, &str) = (proto::ports::HEALTH, "/healthz/ready");
/// How often it is asked: until ready, then.
const PERIOD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// So many answers in a row may be missing before the proxy counts as not ready.
const SILENCES_MAX: u32 = 3;
/// A token that was not used within this time is replaced.
const REFILL: Duration = Duration::from_secs(3);
/// What the proxy may take to drain when it alone ends, and when the whole mesh ends.
const GRACE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(2500));
/// How soon a set-up that failed is tried again.
const SETUP_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A port of a listener, and whether it is one for datagrams.
type Door = (u16, bool);

/// The host's socket(s) for one listener port: one per family.
#[derive(Debug)]
struct Bound {
    host_port: u16,
    sockets: Vec<Socket>,
}

struct GatewayLife {
    mesh: Rc<Mesh>,
    order: GatewayOrder,
    key: Key,
    addresses: Vec<IpAddr>,
    namespace: Namespace,
    bound: BTreeMap<Door, Bound>,
    phase: watch::Receiver<Phase>,
    gone: watch::Sender<bool>,
}

/// Runs the edge proxy until the phase is left, and removes it.
pub(crate) async fn live(mesh: Rc<Mesh>, order: GatewayOrder, mut phase: watch::Receiver<Phase>) {
    let key = (order.namespace.clone(), order.name.clone());
    let mut backoff = Backoff::new(SETUP_RETRY.0, SETUP_RETRY.1, Instant::now());
    let (port, bound) = loop {
        match set_up(&mesh, &order) {
            Ok(done) => break done,
            Err(error) => {
                let message = format!("{error:#}");
                tell(&mesh, &order, "failed", None, &message);
                state(&mesh, &key, |state| state.message = message);
                tokio::select! {
                    _ = left_running(&mut phase) => return forget(&mesh, &key),
                    () = sleep(backoff.wait(Instant::now())) => {}
                }
            }
        }
    };
    let life = GatewayLife {
        addresses: order.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        namespace: port.namespace.clone(),
        gone: watch::Sender::new(false),
        mesh: Rc::clone(&mesh),
        key: key.clone(),
        order,
        bound,
        phase,
    };
    tokio::join!(life.proxy(), life.readiness());
    drop(life);
    if let Err(error) = mesh.fabric.borrow_mut().unplug(&port) {
        mesh.screen.notice(format!("{}/{}: {error:#}", key.0, key.1));
    }
    forget(&mesh, &key);
}

impl GatewayLife {
    async fn proxy(&self) {
        let start = async || {
            self.refill().await?;
            self.start()
        };
        let on = |change: Result<u32, String>| {
            state(&self.mesh, &self.key, |state| match change {
                Ok(pid) => state.proxy_pid = pid,
                Err(reason) => (state.proxy_pid, state.ready, state.message) = (0, false, format!("edge proxy {reason}")),
            });
        };
        let stop = async {
            let phase = left_running(&mut self.phase.clone()).await;
            if phase == Phase::Stop { GRACE.1 } else { GRACE.0 }
        };
        self.mesh.keep(&format!("edge {}/{}", self.key.0, self.key.1), &self.log(), start, on, stop).await;
        self.gone.send_replace(true);
    }

    fn start(&self) -> anyhow::Result<Process> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let mut command = self.mesh.proxy_command(&self.order.namespace, &self.order.name, &self.order.name);
        command.extend(["--mode".into(), "edge".into(), "--sockets-fd".into(), "0".into()]);
        let process = Start {
            state: &self.mesh.state,
            namespace: &self.namespace,
            mounts: &[],
            command,
            env: Vec::new(),
            env_removed: &[OTLP_ENV],
            directory: None,
            log: &self.log(),
            input: Some(OwnedFd::from(theirs)),
            drop_rights: false,
        }
        .spawn()?;
        for (door, bound) in &self.bound {
            for socket in &bound.sockets {
                pass(&ours, *door, socket)?;
            }
        }
        Ok(process)
    }

    async fn readiness(&self) {
        let mut refilled = Instant::now();
        let mut silences = 0;
        let mut gone = self.gone.subscribe();
        while !*gone.borrow_and_update() {
            let check = Check::Http { port: READY.0, path: READY.1.to_owned() };
            let addresses = self.addresses.clone();
            let answered = self.namespace.spawn(move || probe::ask(&check, &addresses, ANSWER_MAX)).await.is_ok();
            silences = if answered { 0 } else { silences + 1 };
            // A proxy that died was taken out when it died; one late answer is no reason.
            let before = self.mesh.roster.borrow().gateways.get(&self.key).is_some_and(|state| state.ready);
            let ready = answered || (before && silences < SILENCES_MAX);
            if ready != before {
                let mut pid = None;
                state(&self.mesh, &self.key, |state| {
                    state.ready = ready;
                    pid = Some(state.proxy_pid);
                });
                let running = *self.phase.borrow() == Phase::Run;
                match ready {
                    true => tell(&self.mesh, &self.order, "ready", pid, ""),
                    false if running => {
                        tell(&self.mesh, &self.order, "not_ready", pid, "the edge proxy does not answer its readiness probe")
                    }
                    false => {}
                }
                if ready {
                    self.announce();
                }
            }
            if !ready && refilled.elapsed() > REFILL {
                refilled = Instant::now();
                // The control plane may be away, and comes back.
                let _ = self.refill().await;
            }
            tokio::select! {
                _ = gone.changed() => {}
                () = sleep(if ready { PERIOD.1 } else { PERIOD.0 }) => {}
            }
        }
    }

    fn announce(&self) {
        for ((port, udp), bound) in &self.bound {
            let place = self.order.ports.iter().position(|known| *known == u32::from(*port)).filter(|_| !udp);
            let scheme = place.and_then(|place| self.order.schemes.get(place)).map_or("udp", String::as_str);
            self.mesh.screen.tell(&News::Edge {
                namespace: self.key.0.clone(),
                gateway: self.key.1.clone(),
                port: *port,
                host_port: bound.host_port,
                url: url(scheme, bound.host_port),
            });
        }
    }

    fn log(&self) -> PathBuf {
        self.mesh.log(&format!("{}.{}.proxy", self.key.0, self.key.1))
    }

    async fn refill(&self) -> anyhow::Result<()> {
        self.mesh.refill_token(&self.order.namespace, &self.order.name, &self.order.name).await
    }
}

/// Where people reach a host port.
pub(crate) fn url(scheme: &str, host_port: u16) -> String {
    format!("{scheme}://127.0.0.1:{host_port}")
}

fn set_up(mesh: &Mesh, order: &GatewayOrder) -> anyhow::Result<(Plug, BTreeMap<Door, Bound>)> {
    let addresses: Vec<IpAddr> = order.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    anyhow::ensure!(!addresses.is_empty(), "the control plane gave it no address");
    let mut bound = BTreeMap::new();
    let at: Vec<IpAddr> = order.bind.iter().filter_map(|text| text.parse().ok()).collect();
    for (ports, udp) in [(&order.ports, false), (&order.udp_ports, true)] {
        for port in ports {
            let port = u16::try_from(*port).with_context(|| format!("{port} is not a port"))?;
            bound.insert((port, udp), bind((port, udp), &at)?);
        }
    }
    let port = mesh.fabric.borrow_mut().plug(&addresses)?;
    let key = (order.namespace.clone(), order.name.clone());
    let name = format!("{}.{}", order.namespace, order.name);
    let entry = InstanceRecord {
        namespace: order.namespace.clone(),
        workload: order.name.clone(),
        instance: order.name.clone(),
        meshed: true,
        edge: true,
        addresses: order.addresses.clone(),
        netns: port.namespace.path(),
        mounts: Vec::new(),
        spiffe_socket: None,
        pid: None,
        proxy_pid: None,
        log: mesh.log(&name),
        proxy_log: mesh.log(&format!("{name}.proxy")),
    };
    mesh.roster.borrow_mut().entries.insert(key.clone(), entry);
    state(mesh, &key, |state| {
        state.message.clear();
        state.bound = bound
            .iter()
            .map(|((port, udp), bound)| BoundPort { listener_port: (*port).into(), host_port: bound.host_port.into(), udp: *udp })
            .collect();
    });
    Ok((port, bound))
}

/// Opens a listener port on the host, or the next one from port + 8000 where it is taken or privileged. `at`: the addresses to serve at;
/// none: all.
fn bind((port, udp): Door, at: &[IpAddr]) -> anyhow::Result<Bound> {
    let others = (0..TRIES_MAX).filter_map(|step| port.checked_add(MOVED_BY)?.checked_add(step));
    let mut last = None;
    for candidate in std::iter::once(port).chain(others) {
        match listen((candidate, udp), at) {
            Ok(sockets) => return Ok(Bound { host_port: candidate, sockets }),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => last = Some(error),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                let at = at.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                bail!("{UNUSABLE}: this machine does not have {at}");
            }
            Err(error) => return Err(error).with_context(|| format!("cannot listen on port {candidate} of this machine")),
        }
    }
    let reason = last.map_or_else(String::new, |error| format!(": {error}"));
    bail!("neither port {port} nor any of the {TRIES_MAX} from {} is free on this machine{reason}", u32::from(port) + u32::from(MOVED_BY))
}

/// At all these addresses; without any at all of both families, where a host without IPv6 has one.
fn listen((port, udp): Door, at: &[IpAddr]) -> io::Result<Vec<Socket>> {
    let open = |address: SocketAddr| {
        let (kind, protocol) = if udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if !udp {
            // Of datagrams two programs would each get some.
            socket.set_reuse_address(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        if !udp {
            socket.listen(BACKLOG)?;
        }
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    };
    if !at.is_empty() {
        return at.iter().map(|address| open((*address, port).into())).collect();
    }
    let mut sockets = vec![open((Ipv4Addr::UNSPECIFIED, port).into())?];
    match open((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(socket) => sockets.push(socket),
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => return Err(error),
        // No IPv6 here.
        Err(_) => {}
    }
    Ok(sockets)
}

/// Hands a socket to the proxy: the listener's port as text, `/udp` behind it where it is one for datagrams, the socket as a right.
fn pass(channel: &UnixStream, (port, udp): Door, socket: &Socket) -> anyhow::Result<()> {
    let text = format!("{port}{}\n", if udp { "/udp" } else { "" });
    let rights = [socket.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(text.as_bytes())], &message, MsgFlags::MSG_NOSIGNAL, None)
        .context("cannot pass a listener to the edge proxy")?;
    Ok(())
}

fn state(mesh: &Mesh, key: &Key, change: impl FnOnce(&mut GatewayState)) {
    let mut roster = mesh.roster.borrow_mut();
    let fresh = || GatewayState { namespace: key.0.clone(), name: key.1.clone(), ..GatewayState::default() };
    let state = roster.gateways.entry(key.clone()).or_insert_with(fresh);
    change(state);
    let proxy_pid = Some(state.proxy_pid).filter(|pid| *pid > 0);
    if let Some(entry) = roster.entries.get_mut(key) {
        entry.proxy_pid = proxy_pid;
    }
    drop(roster);
    mesh.changed();
}

fn forget(mesh: &Mesh, key: &Key) {
    mesh.forget(key, |roster| drop(roster.gateways.remove(key)));
}

fn tell(mesh: &Mesh, order: &GatewayOrder, state: &'static str, pid: Option<u32>, message: &str) {
    mesh.tell((&order.namespace, &order.name, &order.name), state, pid, message);
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    /// Aim: a taken port moves by 8000, a second taken one to the next free, and the proxy gets exactly that socket; for datagrams alike.
    #[test]
    fn a_taken_port_moves() {
        let (tcp, udp) = (TcpListener::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("0.0.0.0:0").unwrap());
        for (taken, datagrams) in [(tcp.local_addr().unwrap().port(), false), (udp.local_addr().unwrap().port(), true)] {
            let door = (taken, datagrams);
            let Ok(first) = bind(door, &[]) else {
                // The ephemeral range ends at 65535, where port + 8000 does not exist.
                assert!(taken > u16::MAX - MOVED_BY);
                continue;
            };
            assert!(first.host_port >= taken + MOVED_BY);
            let second = bind(door, &[]).unwrap();
            assert!(second.host_port > first.host_port);
            assert!(first.sockets.iter().all(|socket| socket.is_listener().unwrap() != datagrams));
        }
    }

    /// Aim: a Gateway that asks for an address is served there alone, and one that asks for a foreign one hears so.
    #[test]
    fn an_address_of_a_gateways_choice_is_bound_or_told() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let bound = bind((free, false), &["127.0.0.1".parse().unwrap()]).unwrap();
        assert_eq!(bound.sockets.len(), 1);
        assert!(bound.sockets[0].local_addr().unwrap().as_socket().unwrap().ip().is_loopback());
        let refused = bind((free, false), &["192.0.2.1".parse().unwrap()]).unwrap_err().to_string();
        assert_eq!(refused, "address not usable: this machine does not have 192.0.2.1");
    }
}
