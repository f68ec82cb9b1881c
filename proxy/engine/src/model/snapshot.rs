//! The snapshot itself, and the proxy's own facts in it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::identity::Identity;

use super::{
    CanaryCounts, Challenges, Cluster, Datagrams, Edge, Egress, Ending, Inbound, Keep, LogFilter, LogFormat, LogSink, MetricLabels,
    Outbound, RouteTable, Trust,
};
use crate::authenticate::{Authentication, KeyCell};
use crate::authorize::Authorization;
use crate::callout::Callouts;
use crate::consumers::BookCell;
use crate::limit::LimitMemories;
use crate::login::ProviderCell;

/// One epoch's whole configuration of one proxy. A spine of `Arc`s: cloning it copies no content.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Number of the epoch; 0 before the first.
    pub epoch: u64,
    /// The proxy's own facts and switches; `None` before the first configuration.
    pub settings: Option<Arc<Settings>>,
    /// The sidecar's inbound side.
    pub inbound: Option<Arc<Inbound>>,
    /// Outbound listeners by original destination; only those asked for.
    pub outbound: HashMap<SocketAddr, Arc<Outbound>>,
    /// An edge's ports.
    pub edges: BTreeMap<u16, Arc<Edge>>,
    /// Those of an edge that take datagrams.
    pub datagrams: BTreeMap<u16, Arc<Datagrams>>,
    /// DNS answers by lower-case name; only those asked for.
    pub names: HashMap<String, Arc<DnsAnswer>>,
    /// All route tables by name, for dumps.
    pub routes: BTreeMap<String, Arc<RouteTable>>,
    /// All clusters by name, for dumps.
    pub clusters: BTreeMap<String, Arc<Cluster>>,
    /// Who may call this workload; `None`: no policy selects it, and everybody may.
    pub authorization: Option<Arc<Authorization>>,
    /// Whom the mesh believes; `None` until a control plane says it.
    pub trust: Option<Arc<Trust>>,
    /// The roots of an older control plane, which says no more than those; DER. Where there is [`Snapshot::trust`] they do not count.
    pub trust_bundle: Arc<Vec<Vec<u8>>>,
    /// Where the application may call outside the mesh.
    pub egress: Arc<Egress>,
    /// Who may call from outside: in force at once, whatever the epoch.
    pub consumers: Arc<BookCell>,
    /// What certificate authorities ask for just now, whatever the epoch.
    pub challenges: Arc<Challenges>,
    /// What is known of services that policies ask, whatever the epoch.
    pub callouts: Arc<Callouts>,
    /// What limits of edges have counted, whatever the epoch.
    pub limits: Arc<LimitMemories>,
    /// What versions of canaries have answered, whatever the epoch.
    pub canaries: Arc<CanaryCounts>,
    /// Where keys of tokens come from, whoever asks for tokens.
    pub key_cells: Vec<Arc<KeyCell>>,
    /// Providers at which people log in.
    pub providers: Vec<Arc<ProviderCell>>,
    /// Who may call a Gateway's ports, whatever they ask for.
    pub doors: BTreeMap<u16, Arc<Authorization>>,
    /// What the application's callers must show; `None`: nothing is looked at.
    pub authentication: Option<Arc<Authentication>>,
}

impl Snapshot {
    /// How the end of an edge comes about for its clients.
    pub fn ending(&self) -> Ending {
        self.edges.values().map(|edge| edge.clients.ending).fold(Ending::default(), Ending::longest)
    }
}

/// From [`proto::mesh::ProxyConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Refuse what the mesh does not know.
    pub outside_mesh_denied: bool,
    /// Ranges that hold mesh addresses only.
    pub mesh_cidrs: Vec<ipnet::IpNet>,
    /// DNS zones that the mesh answers for alone, lower case, without trailing dot.
    pub dns_zones: Vec<String>,
    /// Whether each exchange is written to the access log.
    pub access_log: bool,
    /// In which form.
    pub log_format: LogFormat,
    /// Which exchanges are told of; `None`: all.
    pub log_filter: Option<Arc<LogFilter>>,
    /// Share of the exchanges that went well that is written, of 2^32.
    pub log_success_threshold: u64,
    /// Where lines go; none: to standard output.
    pub log_sinks: Vec<LogSink>,
    /// OTLP endpoint for spans, if any.
    pub otlp_endpoint: Option<String>,
    /// How they travel there.
    pub otlp_protocol: OtlpProtocol,
    /// Where spans go as Zipkin's JSON, if anywhere.
    pub zipkin_endpoint: Option<String>,
    /// Chance of a new trace to be sampled, of 2^32.
    pub sample_threshold: u64,
    /// Attributes added to every span.
    pub span_attributes: BTreeMap<String, String>,
    /// Which spans are kept, sampled or not.
    pub keep: Keep,
    /// Whether a request without a trace is taken for a part of the only one that the application is answering.
    pub infer_links: bool,
    /// Asked-for life of a leaf.
    pub leaf_life: Duration,
    /// When to renew, per cent of the life.
    pub rotate_at_percent: u32,
    /// Bound on metric label sets.
    pub metric_series_max: usize,
    /// Labels that metrics of traffic do without, or have in addition.
    pub metric_labels: MetricLabels,
    /// Where metrics are sent, and how often.
    pub metrics_otlp: Option<(String, Duration)>,
    /// This proxy's namespace.
    pub namespace: String,
    /// This proxy's workload.
    pub workload: String,
    /// This proxy's service account.
    pub service_account: String,
    /// Addresses of this instance.
    pub own_addresses: Vec<IpAddr>,
    /// Where this instance runs.
    pub locality: Locality,
    /// What session tokens are made with; empty where there are none.
    pub session_key: Vec<u8>,
    /// What may be asked of the application on a kubelet's behalf.
    pub probes: Vec<AppProbe>,
    /// Identities of the mesh's Gateways, in order.
    pub gateways: Vec<String>,
    /// Whether calls of the proxy's own lead nobody to its own machine.
    pub loopback_barred: bool,
}

/// How spans travel by OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OtlpProtocol {
    /// As calls of gRPC.
    #[default]
    Grpc,
    /// As protobuf in requests of HTTP/1.1.
    Http,
}

/// A probe of the application, as its workload declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppProbe {
    /// The application's port.
    pub port: u16,
    /// Path and query of a GET; `None`: a connection is a good answer.
    pub path: Option<String>,
}

/// Where an instance runs; empty parts are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone within the region.
    pub zone: Arc<str>,
}

impl Settings {
    /// Whether that is one of the mesh's Gateways.
    pub fn is_gateway(&self, peer: &Identity) -> bool {
        self.gateways.binary_search_by(|known| known.as_str().cmp(peer.as_str())).is_ok()
    }

    /// Whether only the mesh can live at this address: unknown there means "not yet known", never "outside".
    pub fn mesh_holds(&self, address: IpAddr) -> bool {
        self.mesh_cidrs.iter().any(|range| range.contains(&address))
    }
}

/// The mesh's answer for one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsAnswer {
    /// Both families.
    pub addresses: Vec<IpAddr>,
    /// Ports by name: number, and the full name that has the address, without trailing dot.
    pub services: Vec<(u16, String)>,
    /// Full names of an address, without trailing dot.
    pub pointers: Vec<String>,
    /// Time to live.
    pub ttl_secs: u32,
}
