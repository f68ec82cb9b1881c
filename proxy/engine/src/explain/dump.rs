//! What this proxy runs, row by row: `get listeners|routes|clusters|endpoints|policies -o json`. Read from the snapshot, so it is what runs
//! and not what was sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::view::{ReplyView, StandingView, workload};
use super::words;
use crate::Moment;
use crate::balance::chances;
use crate::model::{
    Action, Chain, Cluster, ClusterKind, Datagrams, Edge, EgressMode, Endpoint, Forward, InboundPort, Outbound, Port, RouteTable, Rule,
    Serves, Snapshot, Steps, Target,
};

/// One listener, or one port of the inbound one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListenerRow {
    /// Resource name.
    pub name: String,
    /// `Outbound`, `Inbound` or `Edge`.
    pub direction: &'static str,
    /// `IP:PORT` outbound; the port inbound and at the edge; `*` for every other inbound port.
    pub address: String,
    /// `http`, `http1`, `http2`, `tcp` or `auto`; at the edge also `tls` or `udp`.
    pub protocol: &'static str,
    /// PeerAuthentication mode; inbound only.
    pub mtls: Option<&'static str>,
    /// Route table of HTTP requests.
    pub routes: Option<String>,
    /// Where opaque bytes go.
    pub tcp: Vec<BackendRow>,
    /// Where TLS goes by the name that it asks for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<ServerNameRow>,
    /// What TLS meets at the edge, by the name that it asks for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<ChainRow>,
    /// Idle timeout of opaque connections; `null`: none.
    pub idle_timeout_ms: Option<u64>,
    /// `NS/NAME` of the Service behind an inbound port.
    pub service: Option<String>,
}

/// Where TLS goes that asks for one of these names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerNameRow {
    /// `NAME`, `*.SUFFIX` or, for any name and none, `*`.
    pub names: Vec<String>,
    /// Weighted backends.
    pub backends: Vec<BackendRow>,
}

/// What TLS at the edge meets that asks for one of these names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainRow {
    /// Name of the listener that made it.
    pub name: String,
    /// `NAME`, `*.SUFFIX` or, for any name and none, `*`.
    pub names: Vec<String>,
    /// `Terminate` or `Passthrough`.
    pub mode: &'static str,
    /// The oldest and the newest version that is spoken; where TLS is ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<&'static str>,
    /// What is agreed to by ALPN; `h3` by UDP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<&'static str>,
    /// Names of the certificates that may be shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// Those of them that have not come yet, and what else is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// `Required`, `Requested` or `Unverified`, where clients are asked for a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificates: Option<&'static str>,
    /// Route table of the requests inside.
    pub routes: Option<String>,
    /// Weighted backends of the bytes inside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendRow>,
}

/// One rule of a route table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteRow {
    /// Name of the table.
    pub table: String,
    /// Hosts of its virtual host.
    pub hosts: Vec<String>,
    /// Place within the virtual host; the first match wins.
    pub position: usize,
    /// Kind of the object that wrote it.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Rule name, else its index.
    pub rule: String,
    /// Conditions in words.
    pub matches: String,
    /// The mesh's own answer, where it is one.
    pub reply: Option<ReplyView>,
    /// Weighted backends.
    pub backends: Vec<BackendRow>,
    /// What happens on the way, in words.
    pub stages: Vec<String>,
    /// Timeouts, retries, sessions and what else happens to its requests, in words.
    pub policy: Vec<String>,
    /// Whole-request timeout; `null`: none.
    pub request_timeout_ms: Option<u64>,
    /// Idle timeout; `null`: none.
    pub idle_timeout_ms: Option<u64>,
}

/// One weighted backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendRow {
    /// Its cluster.
    pub cluster: Option<String>,
    /// The answer in place of a cluster.
    pub reply: Option<ReplyView>,
    /// Its weight.
    pub weight: u64,
    /// What happens on the way to this backend alone, in words.
    pub stages: Vec<String>,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterRow {
    /// Resource name.
    pub name: String,
    /// `Endpoints`, `Local` or `OriginalDestination`.
    pub kind: &'static str,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service (or instance).
    pub service: String,
    /// The application's protocol.
    pub protocol: &'static str,
    /// Time for TCP connect and TLS handshake together.
    pub connect_timeout_ms: u64,
    /// Endpoints to pick from.
    pub ready: usize,
    /// Endpoints that are known, ready or not.
    pub known: usize,
    /// Who takes the next request, as TrafficPolicy spells it; of a cluster of endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<&'static str>,
    /// Too few endpoints are well, so health is disregarded.
    #[serde(skip_serializing_if = "is_false")]
    pub panics: bool,
    /// Requests within its limit, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_active: Option<u32>,
    /// Requests that wait for a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_pending: Option<u32>,
    /// Connections within its limit, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_open: Option<u32>,
    /// Requests that wait for one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_pending: Option<u32>,
}

/// One endpoint of one cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointRow {
    /// Name of the cluster.
    pub cluster: String,
    /// `IP:PORT`.
    pub address: String,
    /// `NAMESPACE/NAME` of the workload.
    pub workload: String,
    /// Instance name.
    pub instance: String,
    /// The identity it must prove; `null`: plaintext.
    pub identity: Option<String>,
    /// Its weight.
    pub weight: u32,
    /// `Healthy`, `Unhealthy` or `Draining`.
    pub health: &'static str,
    /// Requests in flight from this proxy.
    pub in_flight: u32,
    /// Requests ever sent by this proxy.
    pub sent: u64,
    /// Consecutive connect failures.
    pub connect_failures: u32,
    /// What this proxy thinks of it.
    #[serde(flatten)]
    pub standing: StandingView,
    /// Chance to get the next request while all are idle, 0 to 1.
    pub chance: f64,
    /// How far it is: 0 is nearest; absent where it takes no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<usize>,
    /// Recent latency, where the cluster is balanced by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewma_ms: Option<f64>,
    /// Region it runs in, where the control plane names one.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub region: String,
    /// Zone in that region.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub zone: String,
}

/// One policy as it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRow {
    /// `AuthorizationPolicy`, `RequestAuthentication` or `EgressPolicy`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name; empty where none of its kind could be read.
    pub name: String,
    /// What it does, as its kind spells it. `Refused`: what was sent could not be read and there was nothing before, so nothing passes.
    pub action: &'static str,
    /// It is on trial.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
    /// How many of its rules are loaded.
    pub rules: usize,
    /// Of tokens: issuers, and where their keys come from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<String>,
}

impl PolicyRow {
    fn new(kind: &'static str, policy: &str, action: &'static str, rules: usize) -> Self {
        let (namespace, name) = policy.split_once('/').unwrap_or(("", policy));
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), action, dry_run: false, rules, issuers: Vec::new() }
    }
}

/// Rows of `get policies`: who may call, whose tokens are believed, and where the workload may call past the mesh.
pub fn policies(snapshot: &Snapshot) -> Vec<PolicyRow> {
    let mut rows = Vec::new();
    if let Some(authorization) = &snapshot.authorization {
        rows.extend(authorization.is_refused().then(|| PolicyRow::new("AuthorizationPolicy", "", REFUSED, 0)));
        rows.extend(authorization.loaded().map(|policy| PolicyRow {
            dry_run: policy.dry_run,
            ..PolicyRow::new("AuthorizationPolicy", policy.name, policy.action, policy.rules)
        }));
    }
    if let Some(authentication) = &snapshot.authentication {
        rows.extend(authentication.is_broken().then(|| PolicyRow::new("RequestAuthentication", "", REFUSED, 0)));
        let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        authentication.rules().iter().for_each(|rule| by_name.entry(&rule.policy).or_default().push(rule.story()));
        rows.extend(by_name.into_iter().map(|(name, issuers)| PolicyRow {
            rules: issuers.len(),
            issuers,
            ..PolicyRow::new("RequestAuthentication", name, "Verify", 0)
        }));
    }
    let egress = &snapshot.egress;
    let action = match egress.mode {
        EgressMode::Unsaid => return rows,
        EgressMode::Enforce if egress.policies.is_empty() => REFUSED,
        EgressMode::Enforce => "Enforce",
        EgressMode::Audit => "Audit",
    };
    rows.extend((action == REFUSED).then(|| PolicyRow::new("EgressPolicy", "", REFUSED, 0)));
    let of = |name: &str| egress.rules.iter().filter(|rule| *rule.policy == *name).count();
    rows.extend(egress.policies.iter().map(|name| PolicyRow::new("EgressPolicy", name, action, of(name))));
    rows
}

/// In place of policies that could not be read.
const REFUSED: &str = "Refused";

/// Rows of `get listeners`.
pub fn listeners(snapshot: &Snapshot) -> Vec<ListenerRow> {
    let outbound: BTreeMap<_, _> = snapshot.outbound.iter().collect();
    let outbound = outbound.into_iter().map(|(address, listener)| road(listener, "Outbound", address.to_string()));
    let edges = snapshot.edges.iter().map(|(port, edge)| edge_port(edge, port.to_string()));
    let datagrams = snapshot.datagrams.iter().map(|(port, served)| datagram_port(served, port.to_string()));
    let inbound = snapshot.inbound.iter().flat_map(|inbound| {
        let ports: BTreeMap<_, _> = inbound.ports.iter().collect();
        let ports = ports.into_iter().map(|(port, rule)| inbound_port(rule, port.to_string()));
        ports.chain([inbound_port(&inbound.other, "*".to_owned())])
    });
    inbound.chain(outbound).chain(edges).chain(datagrams).collect()
}

fn road(listener: &Outbound, direction: &'static str, address: String) -> ListenerRow {
    let by_name = listener.tls.iter().flat_map(|tls| tls.rows());
    ListenerRow {
        name: listener.name.to_string(),
        direction,
        address,
        protocol: listener.protocol.text(),
        mtls: None,
        routes: listener.http.as_ref().map(|table| table.name.to_string()),
        tcp: listener.tcp.as_ref().map(|forward| backends(forward)).unwrap_or_default(),
        chains: Vec::new(),
        tls: by_name.map(|(names, forward)| ServerNameRow { names, backends: backends(forward) }).collect(),
        idle_timeout_ms: listener.tcp.as_ref().and_then(|forward| forward.policy.idle_timeout).map(millis),
        service: None,
    }
}

/// A row of an edge, of which nothing is known but where.
fn edge_row(name: &str, protocol: &'static str, address: String) -> ListenerRow {
    ListenerRow {
        name: name.to_owned(),
        direction: "Edge",
        address,
        protocol,
        mtls: None,
        routes: None,
        tcp: Vec::new(),
        tls: Vec::new(),
        chains: Vec::new(),
        idle_timeout_ms: None,
        service: None,
    }
}

fn edge_port(edge: &Edge, address: String) -> ListenerRow {
    let row = |protocol| edge_row(&edge.name, protocol, address);
    match &edge.port {
        Port::Http(table) => ListenerRow { routes: Some(table.name.to_string()), ..row("http") },
        Port::Bytes(forward) => {
            ListenerRow { tcp: backends(forward), idle_timeout_ms: forward.policy.idle_timeout.map(millis), ..row("tcp") }
        }
        Port::Tls(chains) => {
            let row_of = |(names, chain): (Vec<String>, &Arc<Chain>)| {
                let mut row = chain_row(names, chain);
                if edge.clients.http3.is_some() && row.mode == "Terminate" && row.routes.is_some() {
                    row.alpn.push("h3");
                }
                row
            };
            ListenerRow { chains: chains.rows().map(row_of).collect(), ..row("tls") }
        }
    }
}

fn datagram_port(served: &Datagrams, address: String) -> ListenerRow {
    let forward = &served.forward;
    let idle_timeout_ms = forward.policy.idle_timeout.map(millis);
    ListenerRow { tcp: backends(forward), idle_timeout_ms, ..edge_row(&served.name, "udp", address) }
}

fn chain_row(names: Vec<String>, chain: &Chain) -> ChainRow {
    let terms = chain.terms.as_deref();
    let cells = || terms.iter().flat_map(|terms| &terms.certificates);
    let clients = terms.and_then(|terms| terms.clients.as_ref());
    let all = cells().chain(clients.map(|clients| &clients.authorities)).chain(terms.and_then(|terms| terms.tickets.as_ref()));
    let missing = all.filter(|cell| cell.load().secret.is_none()).map(|cell| cell.name().to_owned()).collect();
    let (routes, backends) = match &chain.serves {
        Serves::Http(table) => (table.as_ref().map(|table| table.name.to_string()), Vec::new()),
        Serves::Bytes(forward) => (None, backends(forward)),
    };
    ChainRow {
        name: chain.name.to_string(),
        names,
        mode: if terms.is_some() { "Terminate" } else { "Passthrough" },
        versions: terms.map(|terms| vec![terms.versions.0.text(), terms.versions.1.text()]).unwrap_or_default(),
        alpn: terms.iter().flat_map(|terms| &terms.alpn).map(|protocol| protocol.text()).collect(),
        certificates: cells().map(|cell| cell.name().to_owned()).collect(),
        missing,
        client_certificates: clients.map(|clients| match (clients.required, clients.untrusted) {
            (_, true) => "Unverified",
            (true, false) => "Required",
            (false, false) => "Requested",
        }),
        routes,
        backends,
    }
}

fn inbound_port(rule: &InboundPort, address: String) -> ListenerRow {
    ListenerRow {
        name: proto::names::INBOUND.to_owned(),
        direction: "Inbound",
        address,
        protocol: rule.protocol.text(),
        mtls: Some(rule.mode.text()),
        routes: Some(rule.http.name.to_string()),
        tcp: Vec::new(),
        tls: Vec::new(),
        chains: Vec::new(),
        idle_timeout_ms: rule.idle_timeout.map(millis),
        service: (!rule.service.is_empty()).then(|| format!("{}/{}", rule.service_namespace, rule.service)),
    }
}

/// Rows of `get routes`: every rule of every table, in the order they are tried.
pub fn routes(snapshot: &Snapshot) -> Vec<RouteRow> {
    snapshot.routes.values().flat_map(|table| table_rows(table)).collect()
}

/// Rows of one table, also of one that has no name of its own in the snapshot (inline inbound routes).
pub fn table_rows(table: &RouteTable) -> Vec<RouteRow> {
    let domains = table.domains.by_place(table.hosts.len());
    let rows = table.hosts.iter().zip(&domains).flat_map(|(host, domains)| {
        host.rules.iter().enumerate().map(move |(position, rule)| route_row(&table.name, domains, position, rule))
    });
    rows.collect()
}

fn route_row(table: &str, hosts: &[String], position: usize, rule: &Rule) -> RouteRow {
    let (reply, forward) = match &rule.action {
        Action::Reply(reply) => (Some(ReplyView::of(reply)), None),
        Action::Forward(forward) => (None, Some(forward)),
    };
    RouteRow {
        table: table.to_owned(),
        hosts: hosts.to_vec(),
        position,
        kind: rule.source.kind.to_string(),
        namespace: rule.source.namespace.to_string(),
        name: rule.source.name.to_string(),
        rule: rule.source.rule.to_string(),
        matches: words::conditions(&rule.matches),
        reply,
        backends: forward.map(|forward| backends(forward)).unwrap_or_default(),
        stages: forward.map(|forward| stories(&forward.policy.steps)).unwrap_or_default(),
        policy: forward.map(|forward| lines(words::policy(forward))).unwrap_or_default(),
        request_timeout_ms: forward.and_then(|forward| forward.policy.request_timeout).map(millis),
        idle_timeout_ms: forward.and_then(|forward| forward.policy.idle_timeout).map(millis),
    }
}

fn backends(forward: &Forward) -> Vec<BackendRow> {
    let row = |backend: &crate::model::Backend| {
        let (cluster, reply) = match &backend.target {
            Target::Cluster(cluster) => (Some(cluster.name.to_string()), None),
            Target::Reply(reply) => (None, Some(ReplyView::of(reply))),
        };
        let mirrors = backend.mirrors.iter().map(|mirror| format!("mirror: {}", words::copies(mirror)));
        BackendRow { cluster, reply, weight: backend.weight, stages: stories(&backend.steps).into_iter().chain(mirrors).collect() }
    };
    forward.backends.iter().map(row).collect()
}

fn stories(steps: &Steps) -> Vec<String> {
    let gates = steps.gates.iter().map(|stage| (stage.name(), stage.story()));
    let changes = steps.changes.iter().map(|filter| (filter.name(), filter.story()));
    lines(gates.chain(changes))
}

fn lines(told: impl IntoIterator<Item = (&'static str, String)>) -> Vec<String> {
    told.into_iter().map(|(name, story)| format!("{name}: {story}")).collect()
}

/// Rows of `get clusters`.
pub fn clusters(snapshot: &Snapshot) -> Vec<ClusterRow> {
    snapshot.clusters.values().map(|cluster| cluster_row(cluster)).collect()
}

fn cluster_row(cluster: &Cluster) -> ClusterRow {
    let set = cluster.endpoints.load();
    let limited = cluster.policy.limits.requests.is_some();
    let gate = &cluster.live.gate;
    let connections = cluster.policy.limits.connections.map(|_| &cluster.live.connections);
    ClusterRow {
        name: cluster.name.to_string(),
        kind: match cluster.kind {
            ClusterKind::Endpoints => "Endpoints",
            ClusterKind::Local => "Local",
            ClusterKind::OriginalDestination => "OriginalDestination",
        },
        namespace: cluster.namespace.to_string(),
        service: cluster.service.to_string(),
        protocol: cluster.protocol.text(),
        connect_timeout_ms: millis(cluster.connect_timeout),
        ready: set.ready.len(),
        known: set.ready.len() + set.other.len(),
        algorithm: (cluster.kind == ClusterKind::Endpoints).then(|| cluster.policy.balance.algorithm.text()),
        panics: set.panics(),
        requests_active: limited.then(|| gate.inside()),
        requests_pending: limited.then(|| gate.waiting()),
        connections_open: connections.map(|gate| gate.inside()),
        connections_pending: connections.map(|gate| gate.waiting()),
    }
}

/// Rows of `get endpoints`. `now` is for how long ejections go on still; without it that is not told.
pub fn endpoints(snapshot: &Snapshot, now: Option<Moment>) -> Vec<EndpointRow> {
    let rows = snapshot.clusters.values().flat_map(|cluster| {
        let set = cluster.endpoints.load();
        let places = chances(&set, None).into_iter().zip(set.distances().map(Some)).chain(std::iter::repeat((0.0, None)));
        let known = set.ready.iter().chain(&set.other).zip(places);
        known.map(|(endpoint, place)| endpoint_row(&cluster.name, endpoint, place, now)).collect::<Vec<_>>()
    });
    rows.collect()
}

fn endpoint_row(cluster: &str, endpoint: &Endpoint, (chance, tier): (f64, Option<usize>), now: Option<Moment>) -> EndpointRow {
    EndpointRow {
        cluster: cluster.to_owned(),
        address: endpoint.address.to_string(),
        workload: workload(endpoint),
        instance: endpoint.instance.to_string(),
        identity: endpoint.identity.as_ref().map(|identity| identity.to_string()),
        weight: endpoint.weight,
        health: endpoint.health.text(),
        in_flight: endpoint.live.in_flight.load(Ordering::Relaxed),
        sent: endpoint.live.sent.load(Ordering::Relaxed),
        connect_failures: endpoint.live.connect_failures.load(Ordering::Relaxed),
        standing: StandingView::of(endpoint, now),
        chance,
        tier,
        ewma_ms: endpoint.live.ewma().map(|ewma| ewma.as_secs_f64() * 1e3),
        region: endpoint.locality.region.to_string(),
        zone: endpoint.locality.zone.to_string(),
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
