//! One Gateway's edge proxy: in a namespace of its own, on sockets opened on the host. Ports come and go while it runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
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

/// How often, and how long apart, a port is opened again that the proxy is about to let go of.
const REOPENS: (u32, Duration) = (50, Duration::from_millis(10));

/// A port of a listener, and whether it is one for datagrams.
type Door = (u16, bool);

/// The host's socket(s) for one listener port: one per address in `at`; where that is empty, one per family.
#[derive(Debug)]
struct Bound {
    host_port: u16,
    at: Vec<IpAddr>,
    sockets: Vec<Socket>,
}

/// What a proxy may take to drain when it alone ends: as long as its ClientPolicies say, and a little more for the rest of its end.
fn grace(ending: Option<&prost_types::Duration>) -> Duration {
    let said = ending.and_then(|ending| Duration::try_from(*ending).ok());
    GRACE.0.max(said.map_or(Duration::ZERO, |said| said + GRACE.1))
}

struct GatewayLife {
    mesh: Rc<Mesh>,
    orders: watch::Receiver<GatewayOrder>,
    key: Key,
    addresses: Vec<IpAddr>,
    namespace: Namespace,
    bound: RefCell<BTreeMap<Door, Bound>>,
    /// Takes sockets to the proxy that runs.
    channel: RefCell<Option<UnixStream>>,
    phase: watch::Receiver<Phase>,
    gone: watch::Sender<bool>,
}

/// Runs the edge proxy until the phase is left, and removes it. Orders that differ in their ports and in the machine's addresses to serve at
/// are followed meanwhile; all have the same name and the same addresses on the fabric.
pub(crate) async fn live(mesh: Rc<Mesh>, mut orders: watch::Receiver<GatewayOrder>, mut phase: watch::Receiver<Phase>) {
    let mut order = orders.borrow_and_update().clone();
    let key = (order.namespace.clone(), order.name.clone());
    let mut backoff = Backoff::new(SETUP_RETRY.0, SETUP_RETRY.1, Instant::now());
    let (port, bound) = loop {
        match set_up(&mesh, &order) {
            Ok(done) => break done,
            Err(error) => {
                let message = format!("{error:#}");
                tell(&mesh, &key, "failed", None, &message);
                state(&mesh, &key, |state| state.message = message);
                tokio::select! {
                    _ = left_running(&mut phase) => return forget(&mesh, &key),
                    Ok(()) = orders.changed() => {}
                    () = sleep(backoff.wait(Instant::now())) => {}
                }
            }
        }
        order = orders.borrow_and_update().clone();
    };
    let life = GatewayLife {
        addresses: parsed(&order.addresses),
        namespace: port.namespace.clone(),
        gone: watch::Sender::new(false),
        mesh: Rc::clone(&mesh),
        key: key.clone(),
        orders,
        bound: RefCell::new(bound),
        channel: RefCell::new(None),
        phase,
    };
    tokio::join!(life.proxy(), life.readiness(), life.follow());
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
            // What ends with the whole mesh has no clients left to be kind to.
            if phase == Phase::Stop { GRACE.1 } else { grace(self.orders.borrow().ending.as_ref()) }
        };
        self.mesh.keep(&format!("edge {}/{}", self.key.0, self.key.1), &self.log(), start, on, stop).await;
        self.gone.send_replace(true);
    }

    fn start(&self) -> anyhow::Result<Process> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let (namespace, name) = &self.key;
        let mut command = self.mesh.proxy_command(namespace, name, name);
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
        for (door, bound) in self.bound.borrow().iter() {
            for socket in &bound.sockets {
                pass(&ours, *door, "", socket).context("cannot pass a listener to the edge proxy")?;
            }
        }
        // Later ones come while the mesh runs: a proxy that does not read holds nobody up.
        ours.set_nonblocking(true).context("cannot prepare a socket pair")?;
        self.channel.replace(Some(ours));
        Ok(process)
    }

    /// Opens and closes ports in the running proxy as the order changes. What cannot be had is told, and tried again; the rest is served.
    async fn follow(&self) {
        let following = async {
            let mut orders = self.orders.clone();
            let mut backoff = Backoff::new(SETUP_RETRY.0, SETUP_RETRY.1, Instant::now());
            let mut lacking = false;
            loop {
                if orders.changed().await.is_err() {
                    return std::future::pending::<()>().await;
                }
                loop {
                    let order = orders.borrow_and_update().clone();
                    let Err(error) = self.adapt(&order, lacking).await else { break };
                    lacking = true;
                    let message = format!("{error:#}");
                    self.mesh.screen.notice(format!("{}/{}: {message}", self.key.0, self.key.1));
                    state(&self.mesh, &self.key, |state| state.message = message);
                    tokio::select! {
                        Ok(()) = orders.changed() => {}
                        () = sleep(backoff.wait(Instant::now())) => {}
                    }
                }
                lacking = false;
            }
        };
        let mut gone = self.gone.subscribe();
        tokio::select! {
            _ = gone.wait_for(|gone| *gone) => {}
            () = following => {}
        }
    }

    /// Makes what is open be what is ordered. `lacking`: the attempt before has left a message.
    async fn adapt(&self, order: &GatewayOrder, lacking: bool) -> anyhow::Result<()> {
        let (wanted, at) = (doors(order)?, parsed(&order.bind));
        let leaving: Vec<Door> = self.bound.borrow().keys().copied().filter(|door| !wanted.contains(door)).collect();
        for door in leaving {
            self.let_go(door);
        }
        let mut outcome = Ok(());
        for door in wanted {
            let stays = self.bound.borrow().get(&door).is_some_and(|bound| bound.at == at);
            if !stays && let Err(error) = self.reopen(door, &at).await {
                outcome = Err(error);
            }
        }
        state(&self.mesh, &self.key, |state| {
            state.bound = shown(&self.bound.borrow());
            if lacking && outcome.is_ok() {
                state.message.clear();
            }
        });
        outcome
    }

    /// Opens one port anew at these addresses and gives it to the proxy. One that cannot be had at some of them stays as it was.
    async fn reopen(&self, door: Door, at: &[IpAddr]) -> anyhow::Result<()> {
        let before = self.bound.borrow().get(&door).map(|bound| (bound.host_port, bound.at.clone()));
        let fresh = match before {
            None => bind(door, at)?,
            // All addresses and some of them cannot be had at once.
            Some((host_port, before)) if before.is_empty() || at.is_empty() => {
                usable(at)?;
                self.let_go(door);
                reopened((host_port, door.1), at).await.map_or_else(|| bind(door, at), Ok)?
            }
            Some((host_port, before)) => {
                let sockets = at.iter().map(|address| match before.iter().position(|known| known == address) {
                    Some(place) => self.bound.borrow()[&door].sockets[place].try_clone(),
                    None => open((*address, host_port).into(), door.1),
                });
                let sockets = sockets.collect::<io::Result<_>>().map_err(|error| refused(&error, host_port, at))?;
                self.let_go(door);
                Bound { host_port, at: at.to_vec(), sockets }
            }
        };
        for socket in &fresh.sockets {
            self.send(door, "", socket);
        }
        self.bound.borrow_mut().insert(door, fresh);
        let ready = self.mesh.roster.borrow().gateways.get(&self.key).is_some_and(|state| state.ready);
        if ready {
            self.announce(|announced| announced == door);
        }
        Ok(())
    }

    /// Closes a port here and in the proxy; its connections go on.
    fn let_go(&self, door: Door) {
        let gone = self.bound.borrow_mut().remove(&door);
        if let Some(socket) = gone.as_ref().and_then(|bound| bound.sockets.first()) {
            self.send(door, "/gone", socket);
        }
    }

    /// To the proxy that runs. One that has ended meanwhile gets all that is open when it starts again.
    fn send(&self, door: Door, what: &str, socket: &Socket) {
        let sent = self.channel.borrow().as_ref().map_or(Ok(()), |channel| pass(channel, door, what, socket));
        if let Err(error) = sent.or_else(|error| if matches!(error, Errno::EPIPE | Errno::ECONNRESET) { Ok(()) } else { Err(error) }) {
            let (namespace, name) = &self.key;
            self.mesh.screen.notice(format!("{namespace}/{name}: port {} of the running edge proxy cannot be changed: {error}", door.0));
        }
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
                    true => tell(&self.mesh, &self.key, "ready", pid, ""),
                    false if running => tell(&self.mesh, &self.key, "not_ready", pid, "the edge proxy does not answer its readiness probe"),
                    false => {}
                }
                if ready {
                    self.announce(|_| true);
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

    fn announce(&self, chosen: impl Fn(Door) -> bool) {
        let order = self.orders.borrow();
        for ((port, udp), bound) in self.bound.borrow().iter().filter(|(door, _)| chosen(**door)) {
            let place = order.ports.iter().position(|known| *known == u32::from(*port)).filter(|_| !udp);
            let scheme = place.and_then(|place| order.schemes.get(place)).map_or("udp", String::as_str);
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
        let (namespace, name) = &self.key;
        self.mesh.refill_token(namespace, name, name).await
    }
}

/// Where people reach a host port.
pub(crate) fn url(scheme: &str, host_port: u16) -> String {
    format!("{scheme}://127.0.0.1:{host_port}")
}

fn set_up(mesh: &Mesh, order: &GatewayOrder) -> anyhow::Result<(Plug, BTreeMap<Door, Bound>)> {
    let addresses = parsed(&order.addresses);
    anyhow::ensure!(!addresses.is_empty(), "the control plane gave it no address");
    let at = parsed(&order.bind);
    let bound: BTreeMap<Door, Bound> = doors(order)?.into_iter().map(|door| Ok((door, bind(door, &at)?))).collect::<anyhow::Result<_>>()?;
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
        state.bound = shown(&bound);
    });
    Ok((port, bound))
}

fn parsed(addresses: &[String]) -> Vec<IpAddr> {
    addresses.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The doors that an order asks for.
fn doors(order: &GatewayOrder) -> anyhow::Result<BTreeSet<Door>> {
    let all = order.ports.iter().map(|port| (port, false)).chain(order.udp_ports.iter().map(|port| (port, true)));
    all.map(|(port, udp)| Ok((u16::try_from(*port).with_context(|| format!("{port} is not a port"))?, udp))).collect()
}

/// As the control plane is told.
fn shown(bound: &BTreeMap<Door, Bound>) -> Vec<BoundPort> {
    let one = |(port, udp): &Door, bound: &Bound| BoundPort { listener_port: (*port).into(), host_port: bound.host_port.into(), udp: *udp };
    bound.iter().map(|(door, bound)| one(door, bound)).collect()
}

/// Opens a listener port on the host, or the next one from port + 8000 where it is taken or privileged. `at`: the addresses to serve at;
/// none: all.
fn bind((port, udp): Door, at: &[IpAddr]) -> anyhow::Result<Bound> {
    let others = (0..TRIES_MAX).filter_map(|step| port.checked_add(MOVED_BY)?.checked_add(step));
    let mut last = None;
    for candidate in std::iter::once(port).chain(others) {
        match listen((candidate, udp), at) {
            Ok(sockets) => return Ok(Bound { host_port: candidate, at: at.to_vec(), sockets }),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => last = Some(error),
            Err(error) => return Err(refused(&error, candidate, at)),
        }
    }
    let reason = last.map_or_else(String::new, |error| format!(": {error}"));
    bail!("neither port {port} nor any of the {TRIES_MAX} from {} is free on this machine{reason}", u32::from(port) + u32::from(MOVED_BY))
}

/// Why a host port cannot be opened at these addresses.
fn refused(error: &io::Error, host_port: u16, at: &[IpAddr]) -> anyhow::Error {
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        let at = at.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return anyhow!("{UNUSABLE}: this machine does not have {at}");
    }
    anyhow!("cannot listen on port {host_port} of this machine: {error}")
}

/// Whether this machine has all these addresses.
fn usable(at: &[IpAddr]) -> anyhow::Result<()> {
    // Port 0 is any that is free.
    let all: io::Result<Vec<Socket>> = at.iter().map(|address| open((*address, 0).into(), false)).collect();
    all.map(drop).map_err(|error| refused(&error, 0, at))
}

/// Opens a host port that the proxy has just been told to let go of; `None`: somebody has it.
async fn reopened(door: Door, at: &[IpAddr]) -> Option<Bound> {
    for _ in 0..REOPENS.0 {
        if let Ok(sockets) = listen(door, at) {
            return Some(Bound { host_port: door.0, at: at.to_vec(), sockets });
        }
        sleep(REOPENS.1).await;
    }
    None
}

/// At all these addresses; without any at all of both families, where a host without IPv6 has one.
fn listen((port, udp): Door, at: &[IpAddr]) -> io::Result<Vec<Socket>> {
    if !at.is_empty() {
        return at.iter().map(|address| open((*address, port).into(), udp)).collect();
    }
    let mut sockets = vec![open((Ipv4Addr::UNSPECIFIED, port).into(), udp)?];
    match open((Ipv6Addr::UNSPECIFIED, port).into(), udp) {
        Ok(socket) => sockets.push(socket),
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => return Err(error),
        // No IPv6 here.
        Err(_) => {}
    }
    Ok(sockets)
}

fn open(address: SocketAddr, udp: bool) -> io::Result<Socket> {
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
    Ok(socket)
}

/// Hands a socket to the proxy: the listener's port as text, `/udp` behind it where it is one for datagrams, then `what` (`/gone`: those
/// handed over before are let go), the socket as a right.
fn pass(channel: &UnixStream, (port, udp): Door, what: &str, socket: &Socket) -> Result<(), Errno> {
    let text = format!("{port}{}{what}\n", if udp { "/udp" } else { "" });
    let rights = [socket.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(text.as_bytes())], &message, MsgFlags::MSG_NOSIGNAL, None).map(drop)
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

fn tell(mesh: &Mesh, (namespace, name): &Key, state: &'static str, pid: Option<u32>, message: &str) {
    mesh.tell((namespace, name, name), state, pid, message);
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

    /// Aim: a port that goes from all addresses to one is there again as soon as its last holder lets go, at the same number.
    #[tokio::test]
    async fn a_port_is_opened_again_when_its_holder_lets_go() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let held = listen((port, false), &[]).unwrap();
        let at: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
        assert!(listen((port, false), &at).is_err());
        let let_go = async {
            sleep(REOPENS.1 * 2).await;
            drop(held);
        };
        let (again, ()) = tokio::join!(reopened((port, false), &at), let_go);
        let again = again.unwrap();
        assert_eq!((again.host_port, again.at, again.sockets.len()), (port, at, 1));
        assert_eq!(
            usable(&["192.0.2.1".parse().unwrap()]).unwrap_err().to_string(),
            "address not usable: this machine does not have 192.0.2.1"
        );
    }

    /// Aim: what goes to the proxy says which port, of what, and whether it comes or goes; a proxy that has ended is told by an error.
    #[test]
    fn a_message_says_what_comes_and_what_goes() {
        use std::io::Read;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = open("127.0.0.1:0".parse().unwrap(), false).unwrap();
        for (door, what, text) in [((80, false), "", "80\n"), ((53, true), "", "53/udp\n"), ((65_535, true), "/gone", "65535/udp/gone\n")] {
            pass(&ours, door, what, &socket).unwrap();
            let mut read = vec![0; text.len()];
            theirs.read_exact(&mut read).unwrap();
            assert_eq!(String::from_utf8(read).unwrap(), text);
        }
        drop(theirs);
        assert_eq!(pass(&ours, (80, false), "", &socket), Err(Errno::EPIPE));
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
