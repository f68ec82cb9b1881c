//! What the roads of one worker share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use engine::Moment;
use engine::authenticate::Remembered;
use engine::consumers::Verified;
use engine::model::{ClusterKind, Endpoint, EndpointLive, Health, Locality, Named, Snapshot};
use proto::identity::Identity;

use crate::ground::drain::Drain;
use crate::ground::patience::Patience;
use crate::ground::room::ReplayRoom;
use crate::http::{Serving, WrittenDate};
use crate::io::{Clock, Draw};
use crate::observe::{Direction, Observer};
use crate::pool::{Local, Pool, To};
use crate::road::guests::{Both, Guests};
use crate::road::handshakes::Handshakes;
use crate::road::hashing::Hashing;
use crate::road::standing::Standing;
use crate::snapshots::{Reader, Snapshots};
use crate::tcp::Buffers;
use crate::tls::{Bonds, Tls};

/// One worker's means. Lives and dies on its thread.
pub struct Shared {
    /// The live configuration, and fetching into it.
    pub snapshots: Snapshots,
    /// The same, read without shared counting.
    pub reader: Reader,
    /// Both ends of mesh TLS.
    pub tls: Arc<Tls>,
    /// To peers that proved themselves.
    pub bonds: Rc<Bonds>,
    /// Upstream connections.
    pub pool: Pool,
    /// Metrics, log, spans.
    pub observer: Observer,
    /// Idle timeouts.
    pub patience: Rc<Patience>,
    /// Buffers of opaque connections.
    pub buffers: Rc<Buffers>,
    /// Downstream connections.
    pub guests: Both<Rc<Guests>>,
    /// What is asked again where policies change.
    pub standing: Rc<Standing>,
    /// The end in order.
    pub drain: Both<Rc<Drain>>,
    /// Bodies that are kept to be sent again.
    pub replays: Rc<ReplayRoom>,
    /// Copies of requests that are under way.
    pub mirrors: Cell<usize>,
    /// HTTP servers.
    pub serving: Serving,
    /// When answers of its own are made.
    pub date: WrittenDate,
    /// Tokens that were verified.
    pub tokens: RefCell<Remembered>,
    /// Handshakes with clients from outside.
    pub handshakes: Handshakes,
    /// Sessions of datagrams that may still be begun.
    pub datagram_sessions: Cell<usize>,
    /// Passwords that were.
    pub verified: RefCell<Verified>,
    /// Verifies them.
    pub hashing: Arc<Hashing>,
    /// What servers prove that policies ask by their address, by host.
    pub callout_hosts: RefCell<HashMap<Arc<str>, Arc<Named>>>,
    /// Chance.
    pub draw: Draw,
    /// Time.
    pub clock: Clock,
    /// What [`Moment`]s count from.
    pub begun: Instant,
}

/// Time to reach a place that no cluster speaks of: the application beside us, or the original destination.
const CONNECT_TIMEOUT_DIRECT: std::time::Duration = std::time::Duration::from_secs(5);

impl Shared {
    /// A time as the engine wants to know it.
    #[inline]
    pub fn moment(&self, at: Instant) -> Moment {
        Moment::after_start(at.saturating_duration_since(self.begun))
    }

    /// Wall time, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        u64::try_from(self.clock.unix().as_millis()).unwrap_or(u64::MAX)
    }

    /// The same in seconds.
    pub fn wall_secs(&self) -> u32 {
        u32::try_from(self.clock.unix().as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether this worker is about to end what comes in that way: answers say so.
    pub fn draining(&self, direction: Direction) -> bool {
        self.drain.of(direction).draining()
    }

    /// The application beside this proxy, at the address it was called by; never loopback. A program may listen on one family only, so
    /// the instance's address of the other one is the fallback.
    pub fn application(snapshot: &Snapshot, address: SocketAddr) -> To {
        let settings = snapshot.settings.as_deref();
        let own = settings.map_or(&[][..], |settings| &settings.own_addresses);
        let usable = |ip: &&IpAddr| ip.is_ipv4() != address.is_ipv4() && !ip.is_loopback();
        let fallback = own.iter().find(usable).map(|ip| SocketAddr::new(*ip, address.port()));
        let (namespace, workload) = settings.map_or(("", ""), |settings| (&settings.namespace, &settings.workload));
        To {
            endpoint: endpoint(address, namespace, workload),
            named: None,
            local: Some(Local { fallback }),
            timeout: CONNECT_TIMEOUT_DIRECT,
            bounded: None,
        }
    }

    /// The original destination itself, outside the mesh, in plaintext.
    pub fn outside(address: SocketAddr) -> To {
        To { endpoint: endpoint(address, "", ""), named: None, local: None, timeout: CONNECT_TIMEOUT_DIRECT, bounded: None }
    }

    /// A server of a policy's own choice: by mesh TLS where it has an identity, else by TLS where it has a name.
    pub fn service(address: SocketAddr, identity: Option<Arc<Identity>>, named: Option<Arc<Named>>) -> To {
        let endpoint = Arc::new(Endpoint { identity, ..plain(address, "", "") });
        To { endpoint, named, local: None, timeout: CONNECT_TIMEOUT_DIRECT, bounded: None }
    }

    /// Where a cluster that is no set of endpoints leads.
    pub fn fixed(kind: ClusterKind, snapshot: &Snapshot, original: SocketAddr) -> Option<To> {
        match kind {
            ClusterKind::Endpoints => None,
            ClusterKind::Local => Some(Self::application(snapshot, original)),
            ClusterKind::OriginalDestination => Some(Self::outside(original)),
        }
    }
}

/// A place that the control plane does not speak of. The workload number is the same for all: they tell no series apart.
fn endpoint(address: SocketAddr, namespace: &str, workload: &str) -> Arc<Endpoint> {
    Arc::new(plain(address, namespace, workload))
}

fn plain(address: SocketAddr, namespace: &str, workload: &str) -> Endpoint {
    Endpoint {
        address,
        weight: 1,
        health: Health::Healthy,
        identity: None,
        namespace: namespace.into(),
        workload: workload.into(),
        instance: "".into(),
        workload_id: u32::MAX,
        locality: Locality::default(),
        live: Arc::new(EndpointLive::default()),
    }
}
