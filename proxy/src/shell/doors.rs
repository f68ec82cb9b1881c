//! Doors that come and go: the edge's listeners follow the configuration, explicit listeners follow their Service's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use engine::model::Snapshot;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::io::{HandedOver, receive_socket};
use crate::observe::Telemetry;
use crate::shell::listener::Purpose;
use crate::shell::ports::{self, Reach, open};
use crate::shell::settings::Map;
use crate::shell::worker::Worker;
use crate::snapshots::{NameLookup, Snapshots};

/// Sockets that arrived and were not taken yet.
const ARRIVED_MAX: usize = 64;
/// Stack of the thread that waits for sockets.
const STACK_BYTES: usize = 64 << 10;
/// How soon a port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often an explicit listener asks for its Service's address; more often than names expire.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// Gives one listening socket to every worker: one queue, many acceptors.
pub async fn open_everywhere(workers: &[Worker], door: Purpose, listener: &TcpListener) {
    for worker in workers {
        match listener.try_clone() {
            Ok(own) => worker.open(door, own).await,
            Err(error) => warn!(?door, "a worker cannot share a listening socket: {error}"),
        }
    }
}

/// Waits on a thread of its own for sockets that whoever started us hands over.
///
/// # Errors
/// The kernel gives no thread.
pub fn arrivals(channel: UnixStream) -> std::io::Result<mpsc::Receiver<(u16, HandedOver)>> {
    let (arrived, arrivals) = mpsc::channel(ARRIVED_MAX);
    std::thread::Builder::new().name("sockets".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        loop {
            match receive_socket(&channel) {
                Ok(Some(passed)) => {
                    if arrived.blocking_send(passed).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => warn!("{error}"),
                Err(error) => {
                    warn!("no more sockets arrive on --sockets-fd: {error}");
                    return;
                }
            }
        }
    })?;
    Ok(arrivals)
}

/// The edge's doors.
pub struct Edges {
    /// The live configuration.
    pub snapshots: Snapshots,
    /// Who accepts.
    pub workers: Arc<Vec<Worker>>,
    /// Sockets handed over, by listener port.
    pub arrivals: Option<mpsc::Receiver<(u16, HandedOver)>>,
    /// Taken in before anything else: no port is opened here while its socket is on its way.
    pub passed: BTreeMap<u16, Vec<TcpListener>>,
    /// The same of ports of datagrams.
    pub passed_datagrams: BTreeMap<u16, Vec<UdpSocket>>,
    /// Where ports of HTTP/3 that are not served are told.
    pub telemetry: Arc<Telemetry>,
}

impl Edges {
    /// Opens and closes doors as the configuration says, until `stop`; connections of a closed door go on. New ones are opened before
    /// old ones are closed. While somebody hands over sockets, a port waits for its own; else it is opened here, and one that cannot be is
    /// tried again.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.snapshots.changes();
        let (mut open_doors, mut open_datagrams) = (BTreeSet::new(), BTreeMap::new());
        loop {
            let failed = self.follow(&mut open_doors).await | self.follow_datagrams(&mut open_datagrams).await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.tell_of_http3(&BTreeMap::new(), BTreeMap::new()),
                _ = changes.changed() => {}
                arrival = next(&mut self.arrivals) => match arrival {
                    Some((port, HandedOver::Listener(listener))) => self.arrived(port, listener, &open_doors).await,
                    Some((port, HandedOver::Datagrams(socket))) => self.datagrams_arrived(port, socket, &open_datagrams).await,
                    Some((port, HandedOver::Gone { datagrams: false })) => self.gone(port, &open_doors).await,
                    Some((port, HandedOver::Gone { datagrams: true })) => self.datagrams_gone(port, &open_datagrams).await,
                    // Nobody will bring what these wait for.
                    None => {
                        open_doors.retain(|port| self.passed.contains_key(port));
                        open_datagrams.retain(|port, _| self.passed_datagrams.contains_key(port));
                    }
                },
                () = sleep(RETRY), if failed => {}
            }
        }
    }

    async fn arrived(&mut self, port: u16, listener: TcpListener, open_doors: &BTreeSet<u16>) {
        if open_doors.contains(&port) {
            open_everywhere(&self.workers, Purpose::Edge { port }, &listener).await;
        }
        self.passed.entry(port).or_default().push(listener);
    }

    async fn datagrams_arrived(&mut self, port: u16, socket: UdpSocket, opened: &BTreeMap<u16, Takes>) {
        let of_port = self.passed_datagrams.entry(port).or_default();
        of_port.push(socket);
        if let Some(takes) = opened.get(&port) {
            match of_port.last().map(UdpSocket::try_clone) {
                Some(Ok(own)) => {
                    if let Err(error) = self.hand(0, (port, *takes), own).await {
                        warn!(port, "edge listener of datagrams: {error}");
                    }
                }
                Some(Err(error)) => warn!(port, "edge listener of datagrams: {error}"),
                None => {}
            }
        }
    }

    /// Lets go of a port's sockets, so that nobody waits in their queues; its connections go on. One that is still wanted waits for others.
    async fn gone(&mut self, port: u16, open_doors: &BTreeSet<u16>) {
        self.passed.remove(&port);
        if open_doors.contains(&port) {
            for worker in self.workers.iter() {
                worker.close(Purpose::Edge { port }).await;
            }
        }
    }

    async fn datagrams_gone(&mut self, port: u16, opened: &BTreeMap<u16, Takes>) {
        self.passed_datagrams.remove(&port);
        if let Some(takes) = opened.get(&port) {
            self.close_datagrams(port, *takes).await;
        }
    }

    async fn follow(&self, open_doors: &mut BTreeSet<u16>) -> bool {
        let wanted: BTreeSet<u16> = self.snapshots.load().edges.keys().copied().collect();
        let mut failed = false;
        for port in wanted.difference(&open_doors.clone()).copied() {
            let own = match self.passed.get(&port) {
                Some(passed) => {
                    for listener in passed {
                        open_everywhere(&self.workers, Purpose::Edge { port }, listener).await;
                    }
                    Ok(Vec::new())
                }
                None if self.arrivals.is_some() => Ok(Vec::new()),
                None => open(port, Reach::All, "the Gateway's listener"),
            };
            match own {
                Ok(listeners) => {
                    for listener in &listeners {
                        open_everywhere(&self.workers, Purpose::Edge { port }, listener).await;
                    }
                    info!(port, "edge listener open");
                    open_doors.insert(port);
                }
                Err(error) => {
                    warn!(port, "edge listener: {error}");
                    failed = true;
                }
            }
        }
        for port in open_doors.difference(&wanted).copied().collect::<Vec<_>>() {
            for worker in self.workers.iter() {
                worker.close(Purpose::Edge { port }).await;
            }
            info!(port, "edge listener closed; its connections go on");
            open_doors.remove(&port);
        }
        failed
    }

    /// The same for ports of datagrams, and of HTTP/3, which comes in datagrams.
    async fn follow_datagrams(&self, opened: &mut BTreeMap<u16, Takes>) -> bool {
        let wanted = datagram_ports(&self.snapshots.load());
        let (mut failed, mut away) = (false, BTreeMap::new());
        // One that is to take something else is closed first: both would get some of what comes.
        for (port, takes) in opened.clone().into_iter().filter(|(port, takes)| wanted.get(port).is_some_and(|other| other != takes)) {
            self.close_datagrams(port, takes).await;
            opened.remove(&port);
        }
        for (port, takes) in wanted.iter().filter(|(port, _)| !opened.contains_key(*port)).collect::<Vec<_>>() {
            match self.open_datagrams(*port, *takes).await {
                Ok(()) => {
                    info!(port, what = takes.text(), "edge listener of datagrams open");
                    opened.insert(*port, *takes);
                }
                Err(error) => {
                    warn!(port, what = takes.text(), "edge listener of datagrams: {error}");
                    if *takes == Takes::Http3 {
                        away.insert(*port, format!("port {port} cannot be opened by UDP: {error}"));
                    }
                    failed = true;
                }
            }
        }
        for (port, takes) in opened.clone().into_iter().filter(|(port, _)| !wanted.contains_key(port)) {
            self.close_datagrams(port, takes).await;
            info!(port, what = takes.text(), "edge listener of datagrams closed");
            opened.remove(&port);
        }
        self.tell_of_http3(opened, away);
        failed
    }

    /// Says where HTTP/3 is served: clients are sent to no other port. `away` is why it is not where it should be.
    fn tell_of_http3(&self, opened: &BTreeMap<u16, Takes>, mut away: BTreeMap<u16, String>) {
        for (port, edge) in &self.snapshots.load().edges {
            let Some(door) = &edge.clients.http3 else { continue };
            let at_hand = self.arrivals.is_none() || self.passed_datagrams.get(port).is_some_and(|passed| !passed.is_empty());
            door.set_open(opened.get(port) == Some(&Takes::Http3) && at_hand);
            if !cfg!(feature = "http3") {
                away.insert(*port, "this proxy is built without HTTP/3".to_owned());
            }
        }
        self.telemetry.http3_away(away);
    }

    /// Each worker has sockets of its own, among which the kernel divides clients; a socket that was handed over has one reader, so that a client's
    /// datagrams stay with one worker. A port of HTTP/3 has one reader in any case, for all workers.
    async fn open_datagrams(&self, port: u16, takes: Takes) -> anyhow::Result<()> {
        let open = || ports::open_datagrams(port, "the Gateway's listener");
        let all: Vec<Vec<UdpSocket>> = match self.passed_datagrams.get(&port) {
            Some(passed) => vec![passed.iter().map(UdpSocket::try_clone).collect::<std::io::Result<_>>()?],
            None if self.arrivals.is_some() => Vec::new(),
            None if takes == Takes::Http3 => vec![open()?],
            None => self.workers.iter().map(|_| open()).collect::<anyhow::Result<_>>()?,
        };
        for (number, sockets) in all.into_iter().enumerate() {
            for socket in sockets {
                self.hand(number, (port, takes), socket).await?;
            }
        }
        Ok(())
    }

    async fn hand(&self, number: usize, (port, takes): (u16, Takes), socket: UdpSocket) -> std::io::Result<()> {
        match takes {
            Takes::Datagrams => {
                if let Some(worker) = self.workers.get(number) {
                    worker.open_datagrams(port, socket).await;
                }
                Ok(())
            }
            Takes::Http3 => self.open_http3(port, socket).await,
        }
    }

    async fn close_datagrams(&self, port: u16, takes: Takes) {
        match takes {
            Takes::Datagrams => {
                for worker in self.workers.iter() {
                    worker.close_datagrams(port).await;
                }
            }
            Takes::Http3 => self.close_http3(port).await,
        }
    }
}

#[cfg(feature = "http3")]
impl Edges {
    /// One worker reads, not the same for all ports, and all serve.
    async fn open_http3(&self, port: u16, socket: UdpSocket) -> std::io::Result<()> {
        let reads = usize::from(port) % self.workers.len().max(1);
        let Some(reader) = self.workers.get(reads) else { return Ok(()) };
        let opened = reader.open_http3(port, socket).await?;
        for (_, worker) in self.workers.iter().enumerate().filter(|(number, _)| *number != reads) {
            for port_opened in &opened {
                worker.join_http3(port, Arc::clone(port_opened)).await;
            }
        }
        Ok(())
    }

    async fn close_http3(&self, port: u16) {
        for worker in self.workers.iter() {
            worker.close_http3(port).await;
        }
    }
}

/// Of a build that has none: nothing leads here.
#[cfg(not(feature = "http3"))]
#[allow(clippy::unused_async, reason = "as where it is served")]
impl Edges {
    async fn open_http3(&self, _: u16, _: UdpSocket) -> std::io::Result<()> {
        Ok(())
    }

    async fn close_http3(&self, _: u16) {}
}

/// What comes in at a port for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// Datagrams that go on as they are.
    Datagrams,
    /// Clients of HTTP/3.
    Http3,
}

impl Takes {
    const fn text(self) -> &'static str {
        match self {
            Self::Datagrams => "datagrams",
            Self::Http3 => "HTTP/3",
        }
    }
}

/// What an epoch wants at each port for datagrams. Where one is for both, whoever has said the port has it.
fn datagram_ports(live: &Snapshot) -> BTreeMap<u16, Takes> {
    let http3 = live.edges.iter().filter(|(_, edge)| cfg!(feature = "http3") && edge.clients.http3.is_some());
    let http3 = http3.map(|(port, _)| (*port, Takes::Http3));
    http3.chain(live.datagrams.keys().map(|port| (*port, Takes::Datagrams))).collect()
}

/// The next one; `None`, once: no more will come.
async fn next(arrivals: &mut Option<mpsc::Receiver<(u16, HandedOver)>>) -> Option<(u16, HandedOver)> {
    let Some(receiver) = arrivals else { return std::future::pending().await };
    let arrival = receiver.recv().await;
    if arrival.is_none() {
        *arrivals = None;
    }
    arrival
}

/// Serves one explicit listener: it stands for its Service's virtual address, opens when that is known and follows it.
pub async fn serve_map(map: Map, listener: TcpListener, snapshots: Snapshots, workers: Arc<Vec<Worker>>, stop: CancellationToken) {
    let mut standing: Option<SocketAddr> = None;
    let mut changes = snapshots.changes();
    loop {
        if let NameLookup::Found(answer) = snapshots.name(&map.host, false).await {
            let ip = answer.addresses.iter().find(|ip| ip.is_ipv4()).or(answer.addresses.first());
            let destination = ip.map(|ip| SocketAddr::new(*ip, map.port));
            if let Some(destination) = destination.filter(|destination| Some(*destination) != standing) {
                open_everywhere(&workers, Purpose::Fixed { destination }, &listener).await;
                if let Some(old) = standing.replace(destination) {
                    for worker in workers.iter() {
                        worker.close(Purpose::Fixed { destination: old }).await;
                    }
                }
                info!(address = %map.address, %destination, "explicit listener open for {}", map.host);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = changes.changed() => {}
            () = sleep(ASK_EVERY) => {}
        }
    }
}
