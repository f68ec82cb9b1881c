//! What a proxy runs: one immutable [`Snapshot`], built from resources, swapped whole.
//!
//! Everything here is parsed, compiled and linked: nothing is looked up by string while a request waits. Live state (requests in
//! flight, health) hangs off a snapshot by `Arc` and is carried to the next one by key.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderName, Method};
use proto::identity::Identity;

use crate::failure::LocalReply;
use crate::filter::Stage;

/// One epoch's whole configuration of one proxy.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Number of the epoch; 0 before the first.
    pub epoch: u64,
    /// The proxy's own facts and switches; `None` before the first configuration.
    pub settings: Option<Arc<Settings>>,
    /// The sidecar's inbound side.
    pub inbound: Option<Arc<Inbound>>,
    /// Outbound listeners by original destination; only those asked for.
    pub outbound: HashMap<SocketAddr, Arc<Outbound>>,
    /// Edge listeners by port.
    pub edges: BTreeMap<u16, Arc<Outbound>>,
    /// DNS answers by lower-case name; only those asked for.
    pub names: HashMap<String, Arc<DnsAnswer>>,
    /// All route tables by name, for dumps.
    pub routes: BTreeMap<String, Arc<RouteTable>>,
    /// All clusters by name, for dumps.
    pub clusters: BTreeMap<String, Arc<Cluster>>,
    /// The trust bundle, DER roots.
    pub trust_bundle: Arc<Vec<Vec<u8>>>,
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
    /// DNS zones that the mesh answers for alone.
    pub dns_zones: Vec<String>,
    /// Whether each exchange is written to the access log.
    pub access_log: bool,
    /// OTLP/gRPC endpoint for spans, if any.
    pub otlp_endpoint: Option<String>,
    /// Chance of a new trace to be sampled, of 2^32.
    pub sample_threshold: u64,
    /// Attributes added to every span.
    pub span_attributes: BTreeMap<String, String>,
    /// Asked-for life of a leaf.
    pub leaf_life: Duration,
    /// When to renew, per cent of the life.
    pub rotate_at_percent: u32,
    /// Bound on metric label sets.
    pub metric_series_max: usize,
    /// This proxy's namespace.
    pub namespace: String,
    /// This proxy's workload.
    pub workload: String,
    /// This proxy's service account.
    pub service_account: String,
    /// Addresses of this instance.
    pub own_addresses: Vec<IpAddr>,
}

/// What carries a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP, version by the first bytes (preface or not).
    Http,
    /// HTTP/1.x only.
    Http1,
    /// HTTP/2 with prior knowledge only.
    Http2,
    /// Opaque bytes; the server may speak first.
    Tcp,
    /// Unknown: both sides are watched.
    Auto,
}

/// The outbound side for one original destination, or one edge port.
#[derive(Debug)]
pub struct Outbound {
    /// Resource name.
    pub name: Arc<str>,
    /// How to treat the connection.
    pub protocol: Protocol,
    /// Where HTTP requests go; present unless the protocol is `Tcp`.
    pub http: Option<Arc<RouteTable>>,
    /// Where opaque bytes go; present for `Tcp` and `Auto`.
    pub tcp: Option<Arc<Forward>>,
}

/// The inbound side of a sidecar.
#[derive(Debug)]
pub struct Inbound {
    /// Declared ports.
    pub ports: HashMap<u16, Arc<InboundPort>>,
    /// Every other port.
    pub other: Arc<InboundPort>,
}

/// How one port of the application is reached.
#[derive(Debug)]
pub struct InboundPort {
    /// Its mTLS mode.
    pub mode: MtlsMode,
    /// What plaintext and foreign-ALPN connections carry. Mesh ALPN says it for itself.
    pub protocol: Protocol,
    /// Route table of HTTP requests: one rule today, per-port policy later.
    pub http: Arc<RouteTable>,
    /// `NS/SERVICE` labels for metrics; empty when no Service selects the port.
    pub service_namespace: Arc<str>,
    /// See `service_namespace`.
    pub service: Arc<str>,
}

/// PeerAuthentication's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// mTLS only; plaintext is closed without an answer.
    Strict,
    /// Both; the application's own TLS is passed through.
    Permissive,
    /// Plaintext only.
    Disabled,
}

/// Virtual hosts and their rules, in Gateway API's order of precedence: the first rule that matches wins.
#[derive(Debug)]
pub struct RouteTable {
    /// Resource name.
    pub name: Arc<str>,
    /// Exact hosts (lower case, no port) to an index of `hosts`.
    pub exact: HashMap<String, usize>,
    /// `*.suffix` hosts, longest suffix first: (".suffix", index).
    pub suffix: Vec<(String, usize)>,
    /// The `*` host.
    pub any: Option<usize>,
    /// Rules per virtual host.
    pub hosts: Vec<Vec<Arc<Rule>>>,
}

/// One match of one rule, and what it leads to.
#[derive(Debug)]
pub struct Rule {
    /// Unique in this process; a key for interned metric handles. Kept while the rule's content is unchanged.
    pub id: u32,
    /// Which object wrote it.
    pub source: RuleSource,
    /// When it applies.
    pub matches: Match,
    /// What then happens.
    pub action: Action,
}

/// The object behind a rule, for logs, metrics and `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSource {
    /// `HTTPRoute`, or `Service` for a Service's own default.
    pub kind: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Rule name, else its index.
    pub rule: Arc<str>,
    /// `NAMESPACE/NAME` for the `route` label; empty for a Service's default.
    pub label: Arc<str>,
}

/// A conjunction; empty parts always hold.
#[derive(Debug, Default)]
pub struct Match {
    /// On the path, without query.
    pub path: PathMatch,
    /// On the method.
    pub method: Option<Method>,
    /// Each must hold.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Each must hold; the first value of a repeated parameter counts.
    pub query: Vec<(String, ValueMatch)>,
}

/// How a path is compared.
#[derive(Debug, Default)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// Whole string.
    Exact(String),
    /// Element-wise prefix, stored without trailing slash (Gateway API `PathPrefix`).
    Prefix(String),
    /// Plain string prefix (Envoy `prefix`).
    StringPrefix(String),
    /// Whole string, anchored.
    Regex(regex::Regex),
}

/// How a header or query value is compared.
#[derive(Debug)]
pub enum ValueMatch {
    /// Equal, case-sensitive.
    Exact(String),
    /// Anchored regular expression.
    Regex(regex::Regex),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// Present with any value (`true`) or absent (`false`).
    Present(bool),
    /// The opposite of another match.
    Not(Box<ValueMatch>),
}

/// What a rule leads to.
#[derive(Debug)]
pub enum Action {
    /// To a backend.
    Forward(Arc<Forward>),
    /// An answer of the mesh's own (bad reference: 500, redirect, fixed answer).
    Reply(LocalReply),
}

/// Weighted backends and what happens on the way.
#[derive(Debug)]
pub struct Forward {
    /// Backends with their weights; a backend with weight 0 is left out.
    pub backends: Vec<Backend>,
    /// Sum of weights; 0 means 500 `bad_backend`.
    pub weight_total: u64,
    /// Stages of the rule, in order.
    pub stages: Vec<Stage>,
    /// Whole-request timeout; `None`: none.
    pub request_timeout: Option<Duration>,
    /// Idle timeout of streams and opaque connections.
    pub idle_timeout: Option<Duration>,
}

/// One weighted target.
#[derive(Debug)]
pub struct Backend {
    /// Its weight, at least 1.
    pub weight: u64,
    /// Where it leads: a cluster, or the answer for a bad reference (so that its share of requests fails, no more).
    pub target: Target,
    /// Stages of this backend alone.
    pub stages: Vec<Stage>,
}

/// See [`Backend::target`].
#[derive(Debug)]
pub enum Target {
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// A fixed answer.
    Reply(LocalReply),
}

/// A named set of endpoints and how they are spoken to.
#[derive(Debug)]
pub struct Cluster {
    /// Resource name.
    pub name: Arc<str>,
    /// Namespace label of the destination Service.
    pub namespace: Arc<str>,
    /// Name label of the destination Service (or instance).
    pub service: Arc<str>,
    /// The protocol the application speaks: `Http` means "as downstream".
    pub protocol: Protocol,
    /// Time for TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// Where connections go.
    pub kind: ClusterKind,
    /// The endpoints now. The one thing that changes inside a snapshot: endpoints travel at once and are not epochs.
    pub endpoints: Arc<EndpointCell>,
}

/// See [`Cluster::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// Balanced over [`Cluster::endpoints`].
    Endpoints,
    /// The application beside this proxy, at the original destination's port.
    Local,
    /// The original destination itself, in plaintext.
    OriginalDestination,
}

/// Holds the current [`EndpointSet`] of a cluster.
#[derive(Debug, Default)]
pub struct EndpointCell(pub ArcSwap<EndpointSet>);

/// Endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Healthy endpoints, the ones to pick from.
    pub ready: Vec<Arc<Endpoint>>,
    /// Known but not to be picked (draining, unhealthy); for dumps.
    pub other: Vec<Arc<Endpoint>>,
}

/// One instance's port.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Relative weight, at least 1.
    pub weight: u32,
    /// The identity it must prove; `None`: not meshed, plaintext.
    pub identity: Option<Arc<Identity>>,
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// Workload label.
    pub workload: Arc<str>,
    /// Unique per workload in this process; a key for interned metric handles.
    pub workload_id: u32,
    /// Counters that outlive snapshots.
    pub live: Arc<EndpointLive>,
}

/// Live counters of an endpoint, carried from set to set by address.
#[derive(Debug, Default)]
pub struct EndpointLive {
    /// Requests (or opaque connections) in flight.
    pub in_flight: AtomicU32,
    /// All requests ever sent.
    pub sent: AtomicU64,
    /// Consecutive connect failures, for the tie-break away from dead endpoints.
    pub connect_failures: AtomicU32,
}

/// The mesh's answer for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsAnswer {
    /// Both families.
    pub addresses: Vec<IpAddr>,
    /// Time to live.
    pub ttl_secs: u32,
}
