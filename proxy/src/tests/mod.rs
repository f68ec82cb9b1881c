//! Whole roads over memory pipes: a client's proxy and a server's, with nothing of the kernel between them.

mod again;
mod asked;
mod attempts;
mod authorized;
mod bounds;
mod called;
mod callers;
mod canaries;
mod checks;
mod cost;
mod counting;
mod doors;
mod early;
mod edge;
mod ends;
mod explained;
mod framing;
mod governed;
mod hostile;
mod http1;
mod http2;
mod interim;
mod kernel;
mod limited;
mod limits;
mod lives;
mod login;
mod opaque;
mod origins;
mod outside;
mod places;
mod policy;
mod refused;
mod resources;
mod rests;
mod revoked;
mod rough;
mod served;
mod slow;
mod stacks;
mod stored;
mod strangers;
mod tokens;
mod unread;
mod versions;

pub(crate) use counting::allocations;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::model::{
    Action, Cluster, ClusterKind, ClusterPolicy, Edge, Endpoint, EndpointCell, EndpointLive, EndpointSet, Forward, Health, Inbound,
    InboundPort, Locality, Match, MtlsMode, Outbound, Policy, Port, Protocol, RouteTable, Rule, RuleSource, Settings, Snapshot, Target,
};
use parking_lot::Mutex;
use proto::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::{mpsc, watch};

use crate::io::{Abrupt, Clock, Network, Socket, VirtualListening, VirtualNetwork, VirtualSocket, pipe};
use crate::observe::{Direction, TelemetryOptions};
use crate::road::arrival::Arrival;
use crate::road::shared::Shared;
use crate::shell::worker::{self, Means};
use crate::snapshots::Snapshots;
use crate::tls::testing::{Authority, FixedTime, Party, party};
use crate::tls::{Carries, CredentialCell, TrustCell};
use crate::{road::inbound, road::outbound};

pub(crate) const SERVICE: &str = "10.96.0.1:80";
pub(crate) const CLIENT: &str = "10.77.0.1:40000";
pub(crate) const SERVER: &str = "10.77.0.2:8080";
pub(crate) const TWIN: &str = "10.77.0.3:8080";
pub(crate) const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
pub(crate) const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

/// See [`Wires::slow`].
pub(crate) const SLOW: Duration = Duration::from_millis(500);

/// What somebody dialled.
pub(crate) type Dialled = (SocketAddr, Socket);

/// A network that hands every connection to whoever listens to the channel.
pub(crate) struct Wires {
    dialled: mpsc::UnboundedSender<Dialled>,
    pub(crate) refused: Mutex<HashSet<SocketAddr>>,
    pub(crate) silent: Mutex<HashSet<SocketAddr>>,
    /// Connections to these addresses can be frozen later: their bytes stay where they are.
    pub(crate) frozen: Mutex<HashSet<SocketAddr>>,
    freeze: watch::Sender<bool>,
    /// The first bytes to these addresses take [`SLOW`].
    pub(crate) slow: Mutex<HashSet<SocketAddr>>,
    /// Connections are rough from now on, each by its own seed.
    pub(crate) rough: Mutex<Option<u64>>,
    /// Connections are the kernel's from now on.
    pub(crate) real: Mutex<bool>,
}

/// Two connected ends of the kernel's own.
pub(crate) fn kernel_pair() -> (Socket, Socket) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    let real = |stream: std::net::TcpStream| {
        stream.set_nonblocking(true).unwrap();
        Socket::Tcp(tokio::net::TcpStream::from_std(stream).unwrap())
    };
    (real(near), real(far))
}

#[async_trait]
impl VirtualNetwork for Wires {
    async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        if self.silent.lock().contains(&address) {
            std::future::pending::<()>().await;
        }
        if self.refused.lock().contains(&address) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (mut near, mut far) = if *self.real.lock() { kernel_pair() } else { pipe() };
        if let Some(seed) = &mut *self.rough.lock() {
            *seed += 1000;
            near = rough::Rough::wrap(near, *seed, 3000);
        }
        let slow = self.slow.lock().contains(&address);
        if slow || self.frozen.lock().contains(&address) {
            let (mut relayed, beyond) = pipe();
            let mut frozen = self.freeze.subscribe();
            tokio::spawn(async move {
                if slow {
                    tokio::time::sleep(SLOW).await;
                }
                tokio::select! {
                    _ = copy_bidirectional(&mut far, &mut relayed) => {}
                    _ = frozen.changed() => std::future::pending::<()>().await,
                }
            });
            far = beyond;
        }
        self.dialled.send((address, far)).map_err(|_| io::ErrorKind::NotConnected)?;
        Ok(near)
    }

    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn wires() -> (Arc<Wires>, mpsc::UnboundedReceiver<Dialled>) {
    let (dialled, taken) = mpsc::unbounded_channel();
    (
        Arc::new(Wires {
            dialled,
            refused: Mutex::default(),
            silent: Mutex::default(),
            frozen: Mutex::default(),
            freeze: watch::Sender::new(false),
            slow: Mutex::default(),
            rough: Mutex::default(),
            real: Mutex::default(),
        }),
        taken,
    )
}

/// How the pair is configured.
pub(crate) struct Setup {
    pub(crate) mode: MtlsMode,
    /// Both what the service is declared as and what the port is.
    pub(crate) protocol: Protocol,
    pub(crate) application: Protocol,
    pub(crate) endpoints: Vec<&'static str>,
    pub(crate) meshed: bool,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) stream_timeout: Option<Duration>,
    pub(crate) outside_denied: bool,
    /// How the caller's proxy treats the destination.
    pub(crate) cluster: ClusterPolicy,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mode: MtlsMode::Strict,
            protocol: Protocol::Http,
            application: Protocol::Http,
            endpoints: vec![SERVER],
            meshed: true,
            request_timeout: None,
            idle_timeout: None,
            stream_timeout: None,
            outside_denied: false,
            cluster: ClusterPolicy::default(),
        }
    }
}

/// A client's proxy, a server's proxy, and the applications that the latter reaches.
pub(crate) struct World {
    pub(crate) client: Rc<Shared>,
    pub(crate) server: Rc<Shared>,
    pub(crate) client_means: Means,
    pub(crate) server_means: Means,
    pub(crate) client_wires: Arc<Wires>,
    pub(crate) server_wires: Arc<Wires>,
    pub(crate) applications: mpsc::UnboundedReceiver<Dialled>,
    pub(crate) setup: Setup,
    pub(crate) authority: Authority,
    pub(crate) credentials: Arc<CredentialCell>,
    /// What the client's proxy believes, and the server's.
    pub(crate) trust: [Arc<TrustCell>; 2],
    /// Wall time by which they judge certificates.
    pub(crate) times: [Arc<FixedTime>; 2],
}

/// Runs a test in virtual time on one thread.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(7200), test()).await.expect("the test hangs");
    });
}

/// Serves a connection as a door would.
fn serve(shared: &Rc<Shared>, direction: Direction, connection: impl Future<Output = ()> + 'static) {
    let guest = shared.guests.of(direction).enter();
    tokio::task::spawn_local(async move {
        connection.await;
        drop(guest);
    });
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let authority = Authority::new("root");
        let (client_wires, mut to_server) = wires();
        let (server_wires, mut to_application) = wires();
        let (mut credentials, mut trust, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let mut means = |identity: &str, workload: &str, wires: &Arc<Wires>, snapshot: Snapshot| {
            let snapshots = Snapshots::default();
            snapshots.wanted().connected(true);
            snapshots.publish(Arc::new(snapshot));
            let telemetry = crate::observe::start(TelemetryOptions::default(), Clock::System).0;
            let Party { tls, credentials: cell, trust: believed, time, .. } = party(&authority, identity, workload);
            credentials.push(cell);
            trust.push(believed);
            times.push(time);
            Means {
                snapshots,
                tls,
                telemetry,
                network: Network::Virtual(Arc::clone(wires) as _),
                hashing: crate::road::hashing::Hashing::of(2),
                connections_max: usize::MAX,
            }
        };
        let client_means = means(FRONTEND, "frontend", &client_wires, client_snapshot(&setup, 1));
        let server_means = means(CATALOG, "catalog-v1", &server_wires, server_snapshot(&setup, 1));
        let (client, server) = (worker::shared(&client_means, 1), worker::shared(&server_means, 2));
        let (reached, applications) = mpsc::unbounded_channel();
        let (at_server, direct) = (Rc::clone(&server), reached.clone());
        tokio::task::spawn_local(async move {
            while let Some((destination, socket)) = to_server.recv().await {
                if destination.port() == 8080 {
                    let arrival = Arrival { socket, peer: CLIENT.parse().unwrap(), destination };
                    serve(&at_server, Direction::Inbound, inbound::serve_connection(arrival, Rc::clone(&at_server)));
                } else {
                    let _ = direct.send((destination, socket));
                }
            }
        });
        tokio::task::spawn_local(async move {
            while let Some(dialled) = to_application.recv().await {
                let _ = reached.send(dialled);
            }
        });
        Self {
            client,
            server,
            client_means,
            server_means,
            client_wires,
            server_wires,
            applications,
            setup,
            authority,
            credentials: credentials.remove(0),
            trust: trust.try_into().expect("two proxies"),
            times: times.try_into().expect("two proxies"),
        }
    }

    /// A connection of the client's application to a destination.
    pub(crate) fn dial(&self, destination: &str) -> Socket {
        let (near, far) = if *self.client_wires.real.lock() { kernel_pair() } else { pipe() };
        let arrival = Arrival { socket: far, peer: CLIENT.parse().unwrap(), destination: destination.parse().unwrap() };
        serve(&self.client, Direction::Outbound, outbound::serve_connection(arrival, Rc::clone(&self.client)));
        near
    }

    /// A connection from outside to the edge's port 80.
    pub(crate) fn knock(&self) -> Socket {
        let (near, far) = if *self.client_wires.real.lock() { kernel_pair() } else { pipe() };
        let arrival = Arrival { socket: far, peer: "192.0.2.9:5000".parse().unwrap(), destination: "10.0.0.1:8080".parse().unwrap() };
        serve(&self.client, Direction::Outbound, crate::road::gateway::serve_connection(arrival, 80, Rc::clone(&self.client)));
        near
    }

    /// A connection that reaches the server's proxy from outside the mesh.
    pub(crate) fn dial_server(&self) -> Socket {
        let (near, far) = pipe();
        let arrival = Arrival { socket: far, peer: "192.0.2.9:5000".parse().unwrap(), destination: SERVER.parse().unwrap() };
        serve(&self.server, Direction::Inbound, inbound::serve_connection(arrival, Rc::clone(&self.server)));
        near
    }

    /// A peer of the mesh that writes what it likes to the server's proxy: who has a key need not be a proxy.
    pub(crate) async fn peer(&self, carries: Carries) -> Socket {
        let (identity, address) = (Arc::new(CATALOG.parse().unwrap()), SERVER.parse().unwrap());
        let mut connected = self.client.tls.connect(&identity, address, carries, self.dial_server()).await.unwrap();
        let (near, mut far) = pipe();
        tokio::task::spawn_local(async move {
            let _ = copy_bidirectional(&mut far, &mut connected.stream).await;
        });
        near
    }

    /// Lets the frozen connections say nothing any more.
    pub(crate) fn freeze(&self) {
        self.client_wires.freeze.send_replace(true);
    }

    /// The next connection that reaches an application.
    pub(crate) async fn application(&mut self) -> Socket {
        self.applications.recv().await.expect("a connection").1
    }
}

pub(crate) fn settings(setup: &Setup, workload: &str, own: &[&str]) -> Arc<Settings> {
    Arc::new(Settings {
        trust_domain: "cluster.local".into(),
        outside_mesh_denied: setup.outside_denied,
        mesh_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        dns_zones: Vec::new(),
        access_log: false,
        log_format: engine::model::LogFormat::Json,
        otlp_endpoint: None,
        sample_threshold: 0,
        span_attributes: BTreeMap::default(),
        leaf_life: Duration::from_secs(3600),
        rotate_at_percent: 66,
        metric_series_max: 1000,
        namespace: "shop".into(),
        workload: workload.into(),
        service_account: "default".into(),
        own_addresses: own.iter().map(|ip| ip.parse().unwrap()).collect(),
        locality: Locality::default(),
        session_key: Vec::new(),
        probes: Vec::new(),
        gateways: Vec::new(),
        loopback_barred: false,
    })
}

pub(crate) fn endpoint(address: &str, meshed: bool) -> Arc<Endpoint> {
    let identity = meshed.then(|| Arc::new(CATALOG.parse::<Identity>().unwrap()));
    Arc::new(Endpoint {
        address: address.parse().unwrap(),
        weight: 1,
        health: Health::Healthy,
        identity,
        namespace: "shop".into(),
        workload: "catalog-v1".into(),
        instance: "catalog-v1".into(),
        workload_id: 7,
        locality: Locality::default(),
        live: Arc::new(EndpointLive::default()),
    })
}

pub(crate) fn cluster(name: &str, kind: ClusterKind, setup: &Setup) -> Arc<Cluster> {
    let endpoints = setup.endpoints.iter().map(|address| endpoint(address, setup.meshed)).collect();
    let policy = if kind == ClusterKind::Endpoints { Arc::new(setup.cluster.clone()) } else { Arc::default() };
    Arc::new(Cluster {
        name: name.into(),
        namespace: "shop".into(),
        service: "catalog".into(),
        protocol: setup.application,
        connect_timeout: Duration::from_secs(1),
        kind,
        tls: None,
        endpoints: Arc::new(EndpointCell::holding(EndpointSet::new(endpoints, Vec::new())).under(&policy)),
        policy,
        live: Arc::default(),
    })
}

fn forward_to(cluster: Arc<Cluster>, setup: &Setup) -> Arc<Forward> {
    let Setup { request_timeout, idle_timeout, stream_timeout, .. } = *setup;
    let policy = Policy { request_timeout, idle_timeout, stream_timeout, ..Policy::default() };
    Arc::new(Forward::to(Arc::new(policy), Target::Cluster(cluster)))
}

/// One rule for the host `*`, matching below `/` unless the path begins with `/nowhere`.
pub(crate) fn table(forward: Arc<Forward>) -> Arc<RouteTable> {
    let path = engine::model::PathMatch::Regex("^/($|[^n]|n[^o]).*$".parse().unwrap());
    matching(Match { path, ..Match::default() }, forward)
}

/// One rule for the host `*`.
pub(crate) fn matching(matches: Match, forward: Arc<Forward>) -> Arc<RouteTable> {
    let text = |text: &str| Arc::<str>::from(text);
    let source = RuleSource {
        kind: text("HTTPRoute"),
        namespace: text("shop"),
        name: text("catalog"),
        rule: text("0"),
        label: text("shop/catalog"),
    };
    let rule = Arc::new(Rule { id: 3, source, matches: Arc::new(matches), action: Action::Forward(forward) });
    Arc::new(RouteTable::everywhere("shop/catalog:80", vec![rule], 1))
}

pub(crate) fn client_snapshot(setup: &Setup, epoch: u64) -> Snapshot {
    let forward = forward_to(cluster("shop/catalog:80", ClusterKind::Endpoints, setup), setup);
    let http = (setup.protocol != Protocol::Tcp).then(|| table(Arc::clone(&forward)));
    let tcp = matches!(setup.protocol, Protocol::Tcp | Protocol::Auto).then_some(forward);
    let outbound = Arc::new(Outbound { name: "out".into(), protocol: setup.protocol, http, tcp, tls: None, content: epoch });
    let port = match (&outbound.http, &outbound.tcp) {
        (Some(table), _) => Port::Http(Arc::clone(table)),
        (None, tcp) => Port::Bytes(Arc::clone(tcp.as_ref().expect("HTTP or bytes"))),
    };
    let edges = BTreeMap::from([(80, Arc::new(Edge { name: "edge/80".into(), port, clients: Arc::default(), content: epoch }))]);
    Snapshot {
        epoch,
        settings: Some(settings(setup, "frontend", &["10.77.0.1"])),
        outbound: HashMap::from([(SERVICE.parse().unwrap(), outbound)]),
        edges,
        ..Snapshot::default()
    }
}

pub(crate) fn server_snapshot(setup: &Setup, epoch: u64) -> Snapshot {
    let port = || {
        Arc::new(InboundPort {
            mode: setup.mode,
            protocol: setup.protocol,
            http: table(forward_to(cluster("inbound", ClusterKind::Local, setup), setup)),
            service_namespace: "shop".into(),
            service: "catalog".into(),
            idle_timeout: setup.idle_timeout,
        })
    };
    let inbound = Arc::new(Inbound { ports: HashMap::from([(8080, port())]), other: port(), content: epoch });
    Snapshot {
        epoch,
        settings: Some(settings(setup, "catalog-v1", &["10.77.0.2", "fd00:6d77:77::2"])),
        inbound: Some(inbound),
        ..Snapshot::default()
    }
}

/// Reads up to and with the empty line that ends a head.
pub(crate) async fn head(socket: &mut Socket) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let count = socket.read(&mut byte).await.expect("a head");
        assert_eq!(count, 1, "the connection ended within a head: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

pub(crate) async fn exactly(socket: &mut Socket, count: usize) -> String {
    let mut bytes = vec![0; count];
    socket.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

pub(crate) async fn write(socket: &mut Socket, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
}

/// Everything until the end; a reset counts as one.
pub(crate) async fn rest(socket: &mut Socket) -> String {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}
