//! Every field of every message that a proxy takes, set in turn to something else: it is refused by name, or it changes what runs, or it
//! stands in [`WITHOUT_EFFECT`] with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};

use prost::{Message, Name};
use prost_types::Any;
use proto::mesh::active_check::Kind as CheckKind;
use proto::mesh::{
    self, AccessLog, ActiveCheck, Balance, DnsRecord, DnsService, HttpCheck, Limits, Metrics, Outlier, ProxyConfig, RetryBudget,
    RoutePolicy, Tracing,
};
use proto::xds::cluster::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, LeastRequestLbConfig, TransportSocketMatch,
};
use proto::xds::cluster::{CircuitBreakers, Cluster, LoadBalancingPolicy, circuit_breakers::Thresholds, load_balancing_policy};
use proto::xds::core::{DataSource, HealthStatus, Locality, RoutingPriority, TypedExtensionConfig, data_source::Specifier};
use proto::xds::core::{HeaderValue, HeaderValueOption};
use proto::xds::endpoint::ClusterLoadAssignment;
use proto::xds::hcm::http_connection_manager::{RouteSpecifier, UpgradeConfig};
use proto::xds::listener::Listener;
use proto::xds::matcher::string_matcher::MatchPattern;
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::{
    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, route,
};
use proto::xds::tls::{CertificateValidationContext, Secret, secret};
use proto::xds::types::Percent;
use proto::xds::{least_request, round_robin};
use protox::prost_reflect::{DynamicMessage, Kind, MessageDescriptor};

use super::effects::{SO_ANYWAY, WITHOUT_EFFECT};
use super::guarding::{authorization, edge, login, seconds};
use super::limits::served;
use super::resolved::resolved;
use super::walk::{Changed, Walk};
use crate::fixture::{self, assignment, chain, endpoint, host, prefix, rule, table};
use crate::model::Snapshot;
use crate::model::build::Parts;

#[path = "../../../../../../proto/tests/sources/mod.rs"]
mod sources;

/// Deepest message that is made up where none is.
const MADE_UP_MAX: usize = 3;
/// Threads that share the changes of a resource.
const WALKERS: usize = 4;

/// A resource by type and name.
type Resource = (String, String, Any);

fn resource<M: Message + Name>(name: &str, message: &M) -> Resource {
    (M::type_url(), name.to_owned(), proto::xds::pack(message))
}

fn ops(name: &str) -> Vec<HeaderValueOption> {
    let header = HeaderValue { key: name.to_owned(), value: "v".to_owned() };
    vec![HeaderValueOption { header: Some(header), append: None, append_action: 2, keep_empty_value: true }]
}

fn extension<M: Message + Name>(policy: &M) -> BTreeMap<String, Any> {
    BTreeMap::from([(proto::names::POLICY.to_owned(), proto::xds::pack(policy))])
}

fn path_change(replacement: &str) -> Option<mesh::PathChange> {
    let change = mesh::PrefixChange { matched: "/v1".into(), replacement: replacement.into() };
    Some(mesh::PathChange { kind: Some(mesh::path_change::Kind::Prefix(change)) })
}

fn version(candidate: bool) -> Option<mesh::CanaryVersion> {
    Some(mesh::CanaryVersion { canary: "shop/catalog".into(), run: "1".into(), candidate })
}

fn filters() -> mesh::Filters {
    mesh::Filters {
        cors: Some(mesh::Cors {
            allow_origins: vec!["https://a.example".into()],
            allow_methods: vec!["PUT".into()],
            allow_headers: vec!["x-a".into()],
            expose_headers: vec!["x-b".into()],
            allow_credentials: true,
            max_age_secs: 5,
        }),
        redirect: None,
        rewrite: Some(mesh::Rewrite { hostname: "a.example".into(), path: path_change("/v2") }),
        mirrors: vec![mesh::Mirror { cluster: "shop/b:80".into(), per_million: 1000, canary: version(true) }],
    }
}

/// Everything that a rule may say.
fn route_policy() -> RoutePolicy {
    let key = |kind| mesh::HashKey { kind: Some(kind) };
    let cookie = mesh::HashCookie { name: "sid".into(), ttl: seconds(60), path: "/a".into() };
    let fault = mesh::Fault {
        headers: vec![fixture::header("x-chaos", "on")],
        paths: vec![prefix("/v1")],
        methods: vec!["GET".into()],
        per_million: 1000,
        delay: Some(mesh::Delay { min: seconds(1), max: seconds(20) }),
        abort: Some(mesh::Abort { kind: Some(mesh::abort::Kind::HttpStatus(503)) }),
        policy: "shop/chaos".into(),
    };
    RoutePolicy {
        edge: None,
        telemetry: Some(mesh::RouteTelemetry {
            sample_percent: Some(5.0),
            keep_errors: Some(true),
            keep_slower: seconds(2),
            log_enabled: Some(true),
            // Compiled for each picture: what is no filter is refused all the same.
            log_filter: None,
            log_sample_success_percent: Some(5.0),
        }),
        filters: Some(filters()),
        attempt_timeout: seconds(1),
        retry: Some(mesh::Retry {
            attempts: 2,
            connect_failure: true,
            statuses: vec![503],
            grpc_statuses: vec![14],
            backoff_base: seconds(1),
            backoff_max: seconds(10),
            body_buffer_bytes: 1024,
            ..mesh::Retry::default()
        }),
        hedge: Some(mesh::Hedge { at_quantile: 95.0, max_percent: 5.0, methods: vec!["GET".into()] }),
        faults: vec![fault],
        rate_limits: vec![mesh::RateLimit {
            name: "shop/limit/0".into(),
            requests: 100,
            per: seconds(1),
            burst: 20,
            key: vec![mesh::LimitKey { kind: Some(mesh::limit_key::Kind::Header("x-tenant".into())) }],
            policy: "shop/limits".into(),
        }],
        session: Some(mesh::Session {
            name: "mw-session".into(),
            absolute_timeout: seconds(3600),
            idle_timeout: seconds(60),
            permanent: true,
            path: "/a".into(),
            ..mesh::Session::default()
        }),
        priority: Some(mesh::Priority { header: "x-priority".into(), classes: vec!["high".into(), "low".into()], default_class: 1 }),
        hash: vec![
            key(mesh::hash_key::Kind::Cookie(cookie)),
            key(mesh::hash_key::Kind::Header("x-user".into())),
            key(mesh::hash_key::Kind::Query("user".into())),
            key(mesh::hash_key::Kind::SourceAddress(true)),
        ],
    }
}

fn routes() -> RouteConfiguration {
    let wanted = RouteMatch {
        headers: vec![
            fixture::header(":method", "GET"),
            HeaderMatcher {
                name: "x-present".into(),
                header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
                ..HeaderMatcher::default()
            },
            HeaderMatcher {
                header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(fixture::string(MatchPattern::Prefix("p".into())))),
                ..fixture::header("x-prefix", "")
            },
        ],
        query_parameters: vec![fixture::query("q", "1"), QueryParameterMatcher { name: "r".into(), query_parameter_match_specifier: None }],
        case_sensitive: Some(true),
        ..fixture::path_regex("/a+")
    };
    let mut split = rule("HTTPRoute/shop/catalog/0", wanted, &[("shop/a:80", 3), ("shop/b:80", 1)]);
    (split.request_headers_to_add, split.response_headers_to_add) = (ops("x-a"), ops("x-b"));
    split.typed_per_filter_config = extension(&route_policy());
    if let Some(route::Action::Route(RouteAction { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(all)), .. })) =
        &mut split.action
    {
        let backend = mesh::BackendPolicy { filters: Some(filters()), canary: version(false) };
        all.clusters[0].typed_per_filter_config = extension(&backend);
    }
    let away = mesh::Redirect {
        scheme: "https".into(),
        hostname: "b.example".into(),
        path: Some(mesh::PathChange { kind: Some(mesh::path_change::Kind::Full("/v3".into())) }),
        port: 8443,
        status: 301,
    };
    let redirect = mesh::Filters { redirect: Some(away), ..mesh::Filters::default() };
    let redirect = RoutePolicy { filters: Some(redirect), ..RoutePolicy::default() };
    let moved = Route { typed_per_filter_config: extension(&redirect), ..rule("HTTPRoute/shop/catalog/2", prefix("/v0"), &[]) };
    let fixed = Route {
        action: Some(route::Action::DirectResponse(DirectResponseAction {
            status: 503,
            body: Some(DataSource { specifier: Some(Specifier::InlineString("later".into())) }),
        })),
        metadata: Some(fixture::facts(&[("reason", "config_pending")])),
        ..rule("HTTPRoute/shop/catalog/1", fixture::exact("/fixed"), &[])
    };
    let mut all =
        host(&["catalog", "*.shop"], vec![split, fixed, moved, rule("Service/shop/a/default", prefix("/v1"), &[("shop/a:80", 1)])]);
    all.request_headers_to_remove = vec!["x-c".into()];
    RouteConfiguration { response_headers_to_remove: vec!["x-d".into()], ..table("shop/a:80", vec![all]) }
}

fn cluster() -> Cluster {
    let policy = |config: Any| load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig { name: "n".into(), typed_config: Some(config) }),
    };
    let two = least_request::LeastRequest { choice_count: Some(2) };
    let no_limit = Thresholds {
        priority: RoutingPriority::Default.into(),
        max_connections: Some(u32::MAX),
        max_pending_requests: Some(u32::MAX),
        max_requests: Some(u32::MAX),
        max_retries: Some(u32::MAX),
    };
    Cluster {
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(fixture::ads()), service_name: String::new() }),
        lb_config: Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { choice_count: Some(2) })),
        common_lb_config: Some(CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 0.0 }) }),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![no_limit] }),
        load_balancing_policy: Some(LoadBalancingPolicy {
            policies: vec![policy(proto::xds::pack(&two)), policy(proto::xds::pack(&round_robin::RoundRobin {}))],
        }),
        typed_extension_protocol_options: [(proto::names::POLICY.to_owned(), proto::xds::pack(&cluster_policy()))].into(),
        transport_socket: Some(fixture::plaintext()),
        transport_socket_matches: vec![
            TransportSocketMatch {
                name: "mesh".into(),
                r#match: Some(fixture::mesh_mode()),
                transport_socket: Some(fixture::upstream_tls()),
            },
            TransportSocketMatch { name: "plaintext".into(), r#match: None, transport_socket: Some(fixture::plaintext()) },
        ],
        ..fixture::cluster("shop/a:80")
    }
}

fn cluster_policy() -> mesh::ClusterPolicy {
    let http = HttpCheck { path: "/healthz".into(), expect: vec![200, 204], host: "catalog".into() };
    mesh::ClusterPolicy {
        balance: Some(Balance {
            algorithm: 0,
            slow_start: seconds(30),
            prefer: 1,
            failover_below_healthy_percent: 70.0,
            panic_below_healthy_percent: 10.0,
        }),
        limits: Some(Limits { connections: 10, requests: 10, pending: 10, pending_timeout: seconds(1), requests_per_connection: 10 }),
        outlier: Some(Outlier {
            consecutive_errors: 5,
            consecutive_connect_failures: 3,
            success_rate_min_percent: 90.0,
            latency_factor: 3.0,
            interval: seconds(10),
            eject_for: seconds(30),
            max_ejected_percent: 60.0,
        }),
        check: Some(ActiveCheck {
            interval: seconds(5),
            timeout: seconds(1),
            healthy_after: 2,
            unhealthy_after: 3,
            kind: Some(CheckKind::Http(http)),
        }),
        budget: Some(RetryBudget { percent: 10.0, min_per_second: 3 }),
        sessions: true,
    }
}

fn endpoints() -> ClusterLoadAssignment {
    let mut mesh = endpoint("10.1.0.1:8080", "w", HealthStatus::Healthy);
    mesh.load_balancing_weight = Some(2);
    if let Some(metadata) = &mut mesh.metadata {
        metadata.filter_metadata.insert(proto::names::SOCKET_MATCH.to_owned(), fixture::mesh_mode());
    }
    let mut whole = assignment("shop/a:80", vec![mesh, endpoint("10.1.0.2:8080", "v", HealthStatus::Draining)]);
    whole.endpoints[0].locality = Some(Locality { region: "r".into(), zone: "z".into(), sub_zone: String::new() });
    whole
}

fn hops(trusted_hops: u32) -> mesh::ClientAddress {
    mesh::ClientAddress { trusted_hops, header: 1, ..mesh::ClientAddress::default() }
}

/// What is said of the clients of the edge's chains.
fn clients(chain: &str, trusted: mesh::ClientAddress) -> mesh::ClientPolicy {
    let chain = if chain.is_empty() { edge_chains()[0].name.clone() } else { chain.to_owned() };
    let mut clients = fixture::clients(&chain, trusted);
    if let Some(proxy) = clients.proxy_protocol.as_mut().filter(|_| chain != "web") {
        // Over UDP nobody can be asked for it.
        proxy.required = false;
        clients.http3 = Some(mesh::ClientHttp3 { alt_svc_max_age: seconds(60) });
    }
    clients
}

/// One of each kind of chain that an edge may have for TLS.
fn edge_chains() -> Vec<proto::xds::listener::FilterChain> {
    let manager = |name: &str| fixture::hcm(RouteSpecifier::RouteConfig(table(name, vec![host(&["*"], vec![])])));
    let ended = fixture::edge_tls(&["tls/shop/a", "tls/shop/b"], Some("ca/frontend/shop/edge/0"), &["h2", "http/1.1"]);
    let bytes = fixture::edge_tls(&["tls/shop/a"], None, &[]);
    vec![
        fixture::by_name("https", &["a.example"], Some(&ended), chain(&fixture::telling_client(manager("https")))),
        fixture::by_name("tls", &["b.example"], Some(&bytes), chain(&fixture::tcp_to("shop/a:80"))),
        fixture::by_name("pass", &[], None, chain(&fixture::tcp_to("shop/b:80"))),
    ]
}

/// A cluster that is met by TLS of its own.
fn backend() -> Cluster {
    let rest = TransportSocketMatch { name: "tls".into(), r#match: None, transport_socket: Some(fixture::backend_tls()) };
    Cluster { transport_socket_matches: vec![rest], ..fixture::cluster("shop/c:443") }
}

fn access_log() -> AccessLog {
    let sink = |kind| mesh::LogSink { kind: Some(kind) };
    AccessLog {
        enabled: true,
        format: mesh::access_log::Format::Text.into(),
        template: "{path}".into(),
        sample_success_percent: Some(1.0),
        sinks: vec![
            sink(mesh::log_sink::Kind::Stdout(mesh::log_sink::Stdout {})),
            sink(mesh::log_sink::Kind::File(mesh::log_sink::File { path: "/var/log/mesh.log".into(), bytes_max: 1 << 20, keep: 2 })),
            sink(mesh::log_sink::Kind::Otlp(mesh::log_sink::Otlp { endpoint: "http://127.0.0.1:4317".into() })),
            sink(mesh::log_sink::Kind::Als(mesh::log_sink::Als { address: "http://als.shop.svc.cluster.local:9000".into() })),
        ],
        ..AccessLog::default()
    }
}

fn proxy_config() -> ProxyConfig {
    ProxyConfig {
        trust_domain: "cluster.local".into(),
        mesh_cidrs: vec!["10.0.0.0/8".into()],
        dns_zones: vec!["cluster.local".into()],
        access_log: Some(access_log()),
        tracing: Some(Tracing {
            otlp_endpoint: "http://127.0.0.1:4317".into(),
            zipkin_endpoint: "http://127.0.0.1:9411/api/v2/spans".into(),
            sample_percent: 1.0,
            ..Tracing::default()
        }),
        leaf_life: seconds(3600),
        metrics: Some(Metrics {
            dropped_labels: vec!["route".into()],
            added_labels: vec!["method".into()],
            otlp_endpoint: "http://127.0.0.1:4317".into(),
            otlp_interval: seconds(10),
        }),
        namespace: "shop".into(),
        workload: "frontend".into(),
        service_account: "frontend".into(),
        own_addresses: vec!["10.1.0.9".into()],
        ..ProxyConfig::default()
    }
}

fn good() -> Vec<Resource> {
    let out = |at: &str| Listener {
        listener_filters_timeout: Some(prost_types::Duration { seconds: 0, nanos: 10_000_000 }),
        continue_on_listener_filters_timeout: true,
        ..fixture::out_auto(at, "shop/a:80", "shop/a:80")
    };
    let websocket = UpgradeConfig { upgrade_type: "websocket".into(), enabled: None };
    let mut manager = fixture::hcm(RouteSpecifier::RouteConfig(table("inline", vec![host(&["*"], vec![])])));
    (manager.upgrade_configs, manager.stat_prefix) = (vec![websocket], "outbound".into());
    let edge = Listener {
        name: "edge/80".into(),
        address: Some(fixture::address("0.0.0.0:80")),
        bind_to_port: None,
        filter_chains: vec![chain(&manager)],
        ..fixture::out_nowhere("0.0.0.0:80")
    };
    let chains = [fixture::permissive(None), fixture::strict(Some(9090)), fixture::strict_auto(Some(9091))].concat();
    let block = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let context = CertificateValidationContext {
        trusted_ca: Some(DataSource { specifier: Some(Specifier::InlineBytes(block.into())) }),
        ..CertificateValidationContext::default()
    };
    let outside = Cluster {
        name: "outside".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..fixture::cluster("outside")
    };
    let name = DnsRecord {
        addresses: vec!["10.0.0.1".into()],
        ttl_secs: 5,
        services: vec![DnsService { port: 80, target: "catalog.shop".into() }],
        pointers: vec!["catalog.shop".into()],
    };
    vec![
        resource("proxy", &proxy_config()),
        resource("inbound", &fixture::inbound(chains)),
        resource("out/10.0.0.1:80", &out("10.0.0.1:80")),
        resource("out/10.0.0.1:443", &fixture::out_tls("10.0.0.1:443", &[("a.example", "shop/a:80"), ("", "shop/b:80")])),
        resource("edge/80", &edge),
        resource("shop/a:80", &routes()),
        resource("shop/a:80", &cluster()),
        resource("shop/b:80", &fixture::cluster("shop/b:80")),
        resource("outside", &outside),
        resource("shop/a:80", &endpoints()),
        resource("shop/b:80", &assignment("shop/b:80", vec![endpoint("10.1.0.3:8080", "u", HealthStatus::Healthy)])),
        resource("ROOTCA", &Secret { name: "ROOTCA".into(), r#type: Some(secret::Type::ValidationContext(context)) }),
        resource("trust", &fixture::trust()),
        resource("dns/catalog", &name),
        resource("inbound", &fixture::authentication()),
    ]
}

/// What an edge has beside HTTP in plaintext. In a group of its own: each picture reads all that is beside it.
fn edges() -> Vec<Resource> {
    vec![
        resource("edge/443", &fixture::with_clients(fixture::edge(443, edge_chains()), &clients("", hops(2)))),
        resource("edge/5432", &fixture::edge(5432, vec![chain(&fixture::tcp_to("shop/b:80"))])),
        resource("edge/53/udp", &fixture::edge_datagrams(53, &[("shop/a:80", 2), ("shop/b:80", 1)])),
        resource("tls/shop/a", &fixture::certificate("tls/shop/a", 1)),
        resource("ca/frontend/shop/edge/0", &fixture::authorities("ca/frontend/shop/edge/0")),
        resource("tickets/shop/edge", &fixture::ticket_keys("tickets/shop/edge", 1)),
        resource("shop/c:443", &backend()),
        resource("shop/external/d:443", &resolved("shop/external/d:443", "api.example")),
        resource("shop/a:80", &fixture::cluster("shop/a:80")),
        resource("shop/b:80", &fixture::cluster("shop/b:80")),
    ]
}

/// A rule at an edge with all that may guard it, in a group of its own as well: its expressions are compiled for each picture.
fn guarded() -> Vec<Resource> {
    let policy = RoutePolicy { edge: Some(edge()), ..RoutePolicy::default() };
    let rule = Route { typed_per_filter_config: extension(&policy), ..rule("HTTPRoute/shop/catalog/0", prefix("/"), &[("shop/a:80", 1)]) };
    // In a rule of its own: beside others of its stage nobody would see it change that.
    let asks =
        RoutePolicy { edge: Some(mesh::EdgePolicy { limits: vec![served()], ..mesh::EdgePolicy::default() }), ..RoutePolicy::default() };
    let asked =
        Route { typed_per_filter_config: extension(&asks), ..self::rule("HTTPRoute/shop/catalog/1", prefix("/"), &[("shop/a:80", 1)]) };
    let paths = mesh::EdgePolicy { login_paths: vec![login()], ..mesh::EdgePolicy::default() };
    let paths = RoutePolicy { edge: Some(paths), ..RoutePolicy::default() };
    let paths =
        Route { typed_per_filter_config: extension(&paths), ..self::rule("OidcLogin/shop/people/p", prefix("/"), &[("bad_backend", 1)]) };
    vec![
        resource("edge/80", &table("edge/80", vec![host(&["*"], vec![paths, rule, asked])])),
        resource("shop/a:80", &fixture::cluster("shop/a:80")),
    ]
}

/// Whatever runs, as the sum of its pieces in any order; numbers that only say "not the same as before" left out.
fn picture(resources: &[Resource]) -> Result<u64, String> {
    let mut parts = Parts::default();
    for (kind, name, any) in resources {
        parts.put(kind, name, "1", any).map_err(|rejected| rejected.to_string())?;
    }
    // On one line: each further level of a tree on many lines is passed through all levels above it.
    let snapshot = format!("{:?}", parts.assemble(1, &Snapshot::default()));
    let pieces = snapshot.as_bytes().split(|byte| b"{}[](),".contains(byte));
    let numbers: [&[u8]; 4] = [b"id: ", b"content: ", b"stamp: ", b"workload_id: "];
    let said = pieces.map(|piece| piece.strip_prefix(b" ").unwrap_or(piece)).filter(|piece| !numbers.iter().any(|n| piece.starts_with(n)));
    Ok(said.fold(0, |sum, piece| {
        let mut hasher = DefaultHasher::new();
        hasher.write(piece);
        sum.wrapping_add(hasher.finish())
    }))
}

/// What came of fields that were set to something else.
#[derive(Default)]
struct Met {
    honoured: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// Neither, and where.
    silent: BTreeMap<String, Vec<String>>,
}

impl Met {
    /// Sets one resource among others to each of these in turn.
    fn meet(resources: &[Resource], index: usize, changes: &[Changed]) -> Self {
        let before = picture(resources).unwrap();
        let (mut met, mut resources) = (Self::default(), resources.to_vec());
        for changed in changes {
            resources[index].2.value = changed.message.encode_to_vec();
            match picture(&resources) {
                Err(text) => {
                    assert!(text.contains(resources[index].1.as_str()), "{}: {text}", changed.at);
                    met.refused.insert(changed.field.clone());
                }
                Ok(after) if after != before => drop(met.honoured.insert(changed.field.clone())),
                Ok(_) => met.silent.entry(changed.field.clone()).or_default().push(changed.at.clone()),
            }
        }
        met
    }

    fn join(&mut self, other: Self) {
        self.honoured.extend(other.honoured);
        self.refused.extend(other.refused);
        for (field, places) in other.silent {
            self.silent.entry(field).or_default().extend(places);
        }
    }
}

/// Every change of every resource. What links to nothing is looked at by itself: each picture reads all that is beside it.
fn met(walk: &Walk) -> Met {
    let mut met = Met::default();
    let groups = [good(), edges(), guarded(), vec![resource("inbound", &authorization())]];
    for (resources, index) in groups.iter().flat_map(|group| (0..group.len()).map(move |index| (group, index))) {
        let (kind, name, any) = &resources[index];
        let descriptor = walk.pool.get_message_by_name(kind.rsplit('/').next().unwrap()).unwrap();
        let message = DynamicMessage::decode(descriptor, any.value.as_slice()).unwrap();
        let changes = walk.changes(&message, name, MADE_UP_MAX);
        std::thread::scope(|scope| {
            let shares: Vec<_> = changes
                .chunks(changes.len().div_ceil(WALKERS).max(1))
                .map(|share| scope.spawn(move || Met::meet(resources, index, share)))
                .collect();
            shares.into_iter().for_each(|share| met.join(share.join().unwrap()));
        });
    }
    met
}

#[test]
fn every_field_is_honoured_or_refused() {
    // Aim: whatever is set to something else is refused, naming it, or changes what runs; what does neither is on a short list.
    let walk = Walk { pool: sources::compiled("../../proto/proto").descriptor_pool() };
    let Met { honoured, refused, silent } = met(&walk);
    let told: BTreeSet<&str> = honoured.union(&refused).map(String::as_str).collect();
    let labels: BTreeSet<&str> = WITHOUT_EFFECT.iter().map(|(field, _)| *field).collect();
    let anyway: BTreeSet<&str> = SO_ANYWAY.iter().map(|(field, _)| *field).collect();
    let known = |field: &str| labels.contains(field) || (anyway.contains(field) && told.contains(field));
    let dropped: Vec<_> = silent.iter().filter(|(field, _)| !known(field)).collect();
    assert!(dropped.is_empty(), "accepted and dropped: {dropped:#?}");
    let stale: Vec<_> = labels.union(&anyway).filter(|field| !silent.contains_key(**field)).collect();
    assert!(stale.is_empty(), "no longer without effect: {stale:?}");
    let all: BTreeSet<&str> = told.union(&labels).copied().collect();
    assert!(all.len() > 120, "only {} fields were met", all.len());
    let message = |name| walk.pool.get_message_by_name(&format!("meshwright.v1.{name}")).unwrap();
    let policy = ["RoutePolicy", "BackendPolicy", "Authorization", "ClientPolicy"].map(message);
    let own = fields_within(policy.to_vec());
    let missed: Vec<_> = own.iter().filter(|field| !all.contains(field.as_str())).collect();
    assert!(own.len() > 50 && missed.is_empty(), "of {} fields of ours these were not met: {missed:?}", own.len());
}

/// All fields of our own messages that hold no message, from these on down.
fn fields_within(mut open: Vec<MessageDescriptor>) -> BTreeSet<String> {
    let (mut fields, mut seen) = (BTreeSet::new(), BTreeSet::new());
    while let Some(message) = open.pop() {
        for field in message.fields() {
            // A map's keys, and values that are no messages, are told as the field that holds it.
            let kind = match field.kind() {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                kind => kind,
            };
            match kind {
                Kind::Message(inner) if inner.package_name() == "meshwright.v1" => {
                    open.extend(seen.insert(inner.full_name().to_owned()).then_some(inner));
                }
                Kind::Message(inner) if inner.package_name() != "google.protobuf" => {}
                // As a map's keys.
                _ if message.is_map_entry() => {}
                _ => drop(fields.insert(format!("{}.{}", message.name(), field.name()))),
            }
        }
    }
    fields
}
