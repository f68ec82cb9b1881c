//! Whole exchanges, from begin to what metrics, log and span say of them.

mod collectors;
mod forms;
mod kept;
mod otlp;
mod queue;
mod scrape;
mod selected;
mod sinks;
mod taps;
mod traces;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use engine::failure::{Failure, Reason};
use engine::model::{
    Action, Cluster, ClusterKind, Endpoint, EndpointCell, EndpointSet, Forward, Health, InboundPort, Locality, Match, MtlsMode, Protocol,
    RouteTable, Rule, RuleSource, Settings, Snapshot,
};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, Version};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use parking_lot::Mutex;
use proto::identity::Identity;

use super::*;
use crate::io::{Clock, Draw};
use crate::tests::allocations;
use crate::tls::{Peer, TlsFacts};

fn settings(access_log: bool, otlp: Option<&str>, sample_percent: u64) -> Settings {
    Settings {
        trust_domain: "cluster.local".into(),
        outside_mesh_denied: false,
        mesh_cidrs: vec![],
        dns_zones: vec![],
        access_log,
        log_format: engine::model::LogFormat::Json,
        log_filter: None,
        log_success_threshold: 1 << 32,
        log_sinks: Vec::new(),
        otlp_endpoint: otlp.map(str::to_owned),
        otlp_protocol: engine::model::OtlpProtocol::Grpc,
        zipkin_endpoint: None,
        sample_threshold: (sample_percent << 32) / 100,
        span_attributes: [("env".to_owned(), "test".to_owned())].into(),
        keep: engine::model::Keep::default(),
        infer_links: true,
        leaf_life: Duration::from_secs(60),
        rotate_at_percent: 66,
        metric_series_max: 1000,
        metric_labels: Default::default(),
        metrics_otlp: None,
        namespace: "shop".into(),
        workload: "frontend".into(),
        service_account: "web".into(),
        own_addresses: vec![],
        locality: Locality::default(),
        session_key: Vec::new(),
        probes: Vec::new(),
        gateways: Vec::new(),
        loopback_barred: false,
    }
}

fn snapshot(settings: Settings) -> Arc<Snapshot> {
    Arc::new(Snapshot { epoch: 7, settings: Some(Arc::new(settings)), ..Snapshot::default() })
}

fn rule() -> Arc<Rule> {
    let forward = Forward::new(Arc::default(), vec![], vec![]);
    Arc::new(Rule {
        id: 3,
        source: RuleSource {
            kind: "HTTPRoute".into(),
            namespace: "shop".into(),
            name: "catalog".into(),
            rule: "0".into(),
            label: "shop/catalog".into(),
        },
        matches: Arc::new(Match::default()),
        action: Action::Forward(Arc::new(forward)),
    })
}

fn cluster() -> Arc<Cluster> {
    Arc::new(Cluster {
        name: "shop/catalog:80".into(),
        namespace: "shop".into(),
        service: "catalog".into(),
        protocol: Protocol::Http,
        connect_timeout: Duration::from_secs(1),
        kind: ClusterKind::Endpoints,
        tls: None,
        policy: Arc::default(),
        endpoints: Arc::new(EndpointCell::default()),
        live: Arc::default(),
    })
}

fn endpoint() -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: "10.77.0.3:8080".parse().unwrap(),
        weight: 1,
        health: Health::Healthy,
        instance: "catalog-v1-0".into(),
        identity: Some(Arc::new(Identity::new("cluster.local", "shop", "catalog").unwrap())),
        namespace: "shop".into(),
        workload: "catalog-v1".into(),
        workload_id: 5,
        locality: Locality::default(),
        live: Arc::default(),
    })
}

fn port() -> Arc<InboundPort> {
    let table = RouteTable::everywhere("inbound", vec![], 0);
    Arc::new(InboundPort {
        mode: MtlsMode::Permissive,
        protocol: Protocol::Http,
        http: Arc::new(table),
        service_namespace: "shop".into(),
        service: "frontend".into(),
        idle_timeout: None,
    })
}

const TLS: TlsFacts =
    TlsFacts { version: "TLSv1.3", cipher: "TLS13_AES_128_GCM_SHA256", group: "X25519MLKEM768", resumed: false, holds_tls: false };

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn parts(headers: &[(&'static str, &str)]) -> Parts {
    let mut request = Request::get("/v1/item?id=1").header("host", "catalog.shop").header("user-agent", "curl/8").body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request.into_parts().0
}

struct World {
    telemetry: Arc<Telemetry>,
    exporter: Option<Exporter>,
    observer: Observer,
    lines: Arc<Mutex<Vec<String>>>,
}

fn world() -> World {
    let lines = Arc::new(Mutex::new(vec![]));
    World { lines: Arc::clone(&lines), ..world_with(LogLines::Memory(lines)) }
}

fn world_with(log: LogLines) -> World {
    let options = TelemetryOptions { instance: "frontend-0".into(), log, ..Default::default() };
    let clock = Clock::simulated(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let (telemetry, exporter) = start(options, clock);
    let observer = Observer::new(Arc::clone(&telemetry), Draw::seeded(1));
    World { telemetry, exporter: Some(exporter), observer, lines: Arc::default() }
}

impl World {
    fn caller(&self, direction: Direction, snapshot: &Snapshot, meshed: bool) -> Downstream {
        let peer = Peer {
            identity: Arc::new(Identity::new("cluster.local", "edge", "gate").unwrap()),
            workload: "gate".into(),
            certificate_hash_hex: "00".into(),
            serial: "7d".into(),
        };
        let addresses = (address("10.77.0.2:40000"), address("10.96.0.9:80"));
        self.observer.downstream(direction, snapshot, addresses, meshed.then(|| Arc::new(peer)), meshed.then_some(TLS))
    }
}

/// One of each kind of exchange.
async fn some_traffic(world: &World, snapshot: &Arc<Snapshot>) {
    let (rule, cluster, endpoint, port) = (rule(), cluster(), endpoint(), port());
    let app = world.caller(Direction::Outbound, snapshot, false);
    let mut sampled = parts(&[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("x-request-id", "r1")]);
    let mut account = world.observer.begin_http(Direction::Outbound, snapshot, &mut sampled, &app);
    account.routed(&rule, &cluster);
    account.attempted(&endpoint);
    account.secured(Some(&TLS));
    tokio::time::advance(Duration::from_millis(1)).await;
    account.retried(endpoint.address, Reason::ConnectFailed);
    account.attempted(&endpoint);
    account.secured(Some(&TLS));
    tokio::time::advance(Duration::from_millis(3)).await;
    account.response(StatusCode::OK, &HeaderMap::new());
    account.add_request_bytes(10);
    account.add_response_bytes(2000);
    tokio::time::advance(Duration::from_micros(500)).await;
    drop(account);

    let caller = world.caller(Direction::Inbound, snapshot, true);
    let mut call =
        Request::post("/shop.Checkout/Pay").version(Version::HTTP_2).header("content-type", "application/grpc").body(()).unwrap();
    call.headers_mut().insert("x-request-id", "r2".parse().unwrap());
    let mut account = world.observer.begin_http(Direction::Inbound, snapshot, &mut call.into_parts().0, &caller);
    account.at_port(&port);
    account.attempted_locally();
    account.secured(None);
    account.replied(&Reason::Denied.into());
    account.grpc_status(7);
    drop(account);

    let mut account = world.observer.begin_tcp(Direction::Outbound, snapshot, &app);
    account.to_cluster(&cluster);
    account.attempted(&endpoint);
    account.secured(Some(&TLS));
    account.add_request_bytes(5);
    account.add_response_bytes(7);
    account.failed(&Failure::new(Reason::UpstreamReset, "10.77.0.3:8080: connection reset"));
}

/// Telemetry that has seen one of each.
async fn busy_world() -> Arc<Telemetry> {
    let world = world();
    some_traffic(&world, &snapshot(settings(false, Some("http://127.0.0.1:4317"), 0))).await;
    world.telemetry
}

/// Whether a line is about this process, as the kernel sees it.
fn measured(line: &str) -> bool {
    ["process_", "meshwright_worker_", "meshwright_cgroup_"].iter().any(|name| line.contains(name))
}

/// Aim: names, labels and units are those of contract section 5, with exemplars of sampled requests, in a stable order.
#[tokio::test(start_paused = true)]
async fn metrics_read_as_the_contract_says() {
    let world = world();
    let snapshot = snapshot(settings(false, Some("http://127.0.0.1:4317"), 0));
    some_traffic(&world, &snapshot).await;
    world.telemetry.readings.config_epoch.store(7, Ordering::Relaxed);
    world.telemetry.readings.cert_expiry_unix_secs.store(1_800_003_600, Ordering::Relaxed);
    let text = world.telemetry.render();
    let steady: String = text.lines().filter(|line| !measured(line)).map(|line| format!("{line}\n")).collect();
    if std::env::var_os("MESHWRIGHT_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/observe/golden/metrics.txt"), &steady).unwrap();
    }
    assert_eq!(steady, include_str!("golden/metrics.txt"));
    assert!(text.contains("process_cpu_seconds_total ") && text.contains("process_resident_memory_bytes "), "{text}");
}

/// Aim: opened and closed agree in every label, whatever became of the connection; what a mesh peer was called by never counts as plaintext,
/// and no series stands beside that counts nothing (an open connection's `closed` excepted).
#[tokio::test(start_paused = true)]
async fn opened_and_closed_have_the_same_labels() {
    let meshed = Arc::new(EndpointCell::holding(EndpointSet::new(vec![endpoint()], vec![])));
    let peers = Arc::new(Cluster { endpoints: meshed, ..Arc::into_inner(cluster()).unwrap() });
    let stranger = Arc::new(Endpoint { identity: None, ..Arc::into_inner(endpoint()).unwrap() });
    // (cluster, endpoint reached, encrypted) -> mtls
    for (cluster, reached, tls, mtls) in [
        (&peers, Some(endpoint()), Some(&TLS), true),
        (&peers, None, None, true),
        (&cluster(), None, None, false),
        (&cluster(), Some(stranger), None, false),
    ] {
        let world = world();
        let snapshot = snapshot(settings(false, None, 0));
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let mut account = world.observer.begin_tcp(Direction::Outbound, &snapshot, &app);
        account.to_cluster(cluster);
        if let Some(endpoint) = &reached {
            account.attempted(endpoint);
            account.secured(tls);
        }
        drop(account);
        let text = world.telemetry.render();
        for name in ["opened", "closed"] {
            let name = format!("meshwright_tcp_connections_{name}_total{{");
            let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&name)).collect();
            assert!(matches!(lines[..], [line] if line.ends_with(&format!("mtls=\"{mtls}\"}} 1"))), "{lines:#?}");
        }
    }
}

/// Aim: an attempt on a mesh peer that fails before there is a connection is no plaintext either.
#[tokio::test(start_paused = true)]
async fn a_failed_attempt_on_a_peer_is_not_plaintext() {
    let world = world();
    let snapshot = snapshot(settings(false, None, 0));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
    account.routed(&rule(), &cluster());
    account.attempted(&endpoint());
    account.retried(endpoint().address, Reason::ConnectFailed);
    account.attempted(&endpoint());
    account.failed(&Failure::new(Reason::ConnectFailed, "refused"));
    drop(account);
    let text = world.telemetry.render();
    assert!(!text.contains("mtls=\"false\""), "{text}");
}

/// Aim: with the log off, a request that is not sampled allocates nothing between begin and drop.
#[tokio::test(start_paused = true)]
async fn a_plain_request_allocates_nothing() {
    let world = world();
    for otlp in [None, Some("http://127.0.0.1:4317")] {
        let snapshot = snapshot(settings(false, otlp, 0));
        let (rule, cluster, endpoint) = (rule(), cluster(), endpoint());
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let mut parts = parts(&[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")]);
        let headers = HeaderMap::new();
        let mut counted = 0;
        for _ in 0..3 {
            let before = allocations();
            let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
            account.routed(&rule, &cluster);
            account.attempted(&endpoint);
            account.secured(Some(&TLS));
            account.response(StatusCode::OK, &headers);
            account.add_response_bytes(1024);
            drop(account);
            counted = allocations() - before;
        }
        assert_eq!(counted, 0, "with tracing {otlp:?}");
    }
    assert!(size_of::<Account>() <= 192, "an exchange takes {} bytes", size_of::<Account>());
}

/// Aim: the caller's decision holds; without one the draw decides and travels; without tracing nothing is touched.
#[tokio::test(start_paused = true)]
async fn sampling_is_respected() {
    let on = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let off = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let otlp = Some("http://127.0.0.1:4317");
    // (tracing, percent, incoming) -> (rewritten, sampled)
    for (otlp, percent, incoming, rewritten, sampled) in [
        (None, 100, None, false, false),
        (None, 100, Some(on), false, false),
        (otlp, 100, Some(off), false, false),
        (otlp, 0, Some(on), true, true),
        (otlp, 0, None, true, false),
        (otlp, 100, None, true, true),
    ] {
        let mut world = world();
        let snapshot = snapshot(settings(false, otlp, percent));
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let headers: Vec<_> = incoming.iter().map(|value| ("traceparent", *value)).collect();
        let mut parts = parts(&headers);
        drop(world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app));
        let outgoing = parts.headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(outgoing.as_deref() != incoming, rewritten, "{otlp:?} {percent} {incoming:?} -> {outgoing:?}");
        if let Some(outgoing) = outgoing.filter(|_| rewritten) {
            assert_eq!(outgoing.ends_with("-01"), sampled, "{outgoing}");
        }
        assert_eq!(world.exporter.take().unwrap().left().len(), usize::from(sampled));
    }
}

/// Aim: the stock B3 propagator drops a decision without ids and starts a sampled trace: what leaves has ids and the decision, in every form
/// that came; ids with a decision against it leave as they came.
#[tokio::test(start_paused = true)]
async fn a_bare_b3_decision_gets_ids() {
    let world = world();
    let snapshot = snapshot(settings(false, Some("http://127.0.0.1:4317"), 100));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    for (name, value, state) in
        [("b3", "0", "-0"), ("b3", "1", "-1"), ("b3", "d", "-d"), ("x-b3-sampled", "0", "0"), ("x-b3-sampled", "1", "1")]
    {
        let mut parts = parts(&[(name, value)]);
        drop(world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app));
        let text = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        assert!(text(name).ends_with(state), "{name}: {value} left as {}", text(name));
        let ids = if name == "b3" { text("b3") } else { format!("{}-{}", text("x-b3-traceid"), text("x-b3-spanid")) };
        assert!(ids.len() >= 32 + 1 + 16 && text("traceparent").contains(&ids[..32]), "{name}: {value} left as {:?}", parts.headers);
    }
    let given = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0";
    let mut parts = parts(&[("b3", given)]);
    drop(world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app));
    assert_eq!((parts.headers["b3"].to_str().unwrap(), parts.headers.get("traceparent")), (given, None));
}

/// Aim: app -> CLIENT -> SERVER -> app is one chain of parents within one trace.
#[tokio::test(start_paused = true)]
async fn spans_are_each_others_parents() {
    let mut world = world();
    let snapshot = snapshot(settings(false, Some("http://127.0.0.1:4317"), 100));
    let mut parts = parts(&[]);
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let client = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
    let between = parts.headers["traceparent"].clone();
    let peer = world.caller(Direction::Inbound, &snapshot, true);
    let server = world.observer.begin_http(Direction::Inbound, &snapshot, &mut parts, &peer);
    let after = parts.headers["traceparent"].clone();
    drop(server);
    drop(client);
    let spans = world.exporter.as_mut().unwrap().left();
    let [server, client] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((server.kind(), client.kind()), (SpanKind::Server, SpanKind::Client));
    assert!(client.parent_span_id.is_empty());
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!(server.trace_id, client.trace_id);
    assert_eq!(&between.to_str().unwrap()[36..52], hex(&client.span_id));
    assert_eq!(&after.to_str().unwrap()[36..52], hex(&server.span_id));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Aim: spans say what OpenTelemetry's conventions and the contract name, for a retried request, a denial over gRPC and an answer of 404.
#[tokio::test(start_paused = true)]
async fn spans_read_as_the_contract_says() {
    let mut world = world();
    let snapshot = snapshot(settings(false, Some("http://127.0.0.1:4317"), 100));
    some_traffic(&world, &snapshot).await;
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
    account.routed(&rule(), &cluster());
    account.response(StatusCode::NOT_FOUND, &HeaderMap::new());
    account.failed(&Failure::new(Reason::UpstreamReset, "10.77.0.3:8080: cut \u{2702}"));
    drop(account);
    let mut text = String::new();
    for span in world.exporter.as_mut().unwrap().left() {
        let (trace, id, parent) = (hex(&span.trace_id), hex(&span.span_id), hex(&span.parent_span_id));
        text += &format!("{} {:?} {trace} {id} parent {parent:?} flags {:#x}\n", span.name, span.kind(), span.flags);
        text += &format!("  {} to {}, {:?}\n", span.start_time_unix_nano, span.end_time_unix_nano, span.status);
        for attribute in span.attributes {
            text += &format!("  {} = {:?}\n", attribute.key, attribute.value.unwrap().value.unwrap());
        }
        for event in span.events {
            text += &format!("  at {} {}\n", event.time_unix_nano, event.name);
            for attribute in event.attributes {
                text += &format!("    {} = {:?}\n", attribute.key, attribute.value.unwrap().value.unwrap());
            }
        }
    }
    if std::env::var_os("MESHWRIGHT_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/observe/golden/spans.txt"), &text).unwrap();
    }
    assert_eq!(text, include_str!("golden/spans.txt"));
}

/// Takes spans; refuses so many of each request.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    refuses: i64,
}

impl Collector {
    /// Its URL, and its server.
    async fn serve(&self) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        (url, tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() }))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.taken.lock().push(request.into_inner());
        let partial_success = ExportTracePartialSuccess { rejected_spans: self.refuses, error_message: "too many".into() };
        Ok(tonic::Response::new(ExportTraceServiceResponse { partial_success: (self.refuses > 0).then_some(partial_success) }))
    }
}

/// Aim: spans reach a collector over OTLP/gRPC with the resource and attributes promised; a dead collector costs only the spans.
#[tokio::test]
async fn spans_leave_by_otlp() {
    let collector = Collector::default();
    let (collector_url, server) = collector.serve().await;

    let mut world = world();
    for otlp in ["http://127.0.0.1:1", &collector_url] {
        let snapshot = snapshot(settings(false, Some(otlp), 100));
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
        account.routed(&rule(), &cluster());
        account.attempted(&endpoint());
        account.secured(Some(&TLS));
        account.response(StatusCode::OK, &HeaderMap::new());
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = world.exporter.take().unwrap().run(async { drop(stopped.await) });
    let watch = async {
        for _ in 0..500 {
            if !collector.taken.lock().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(stop);
    };
    tokio::join!(running, watch);
    server.abort();

    let requests = collector.taken.lock();
    let spans = &requests[0].resource_spans[0];
    let resource: Vec<_> = spans.resource.as_ref().unwrap().attributes.iter().map(|a| format!("{}={:?}", a.key, a.value)).collect();
    let resource = resource.join("\n");
    for wanted in ["service.name", "frontend", "service.namespace", "shop", "service.instance.id", "frontend-0"] {
        assert!(resource.contains(wanted), "{wanted} in {resource}");
    }
    let conventions = "https://opentelemetry.io/schemas/1.42.0";
    assert_eq!((&*spans.schema_url, &*spans.scope_spans[0].schema_url), (conventions, conventions));
    let span = &spans.scope_spans[0].spans[0];
    assert_eq!(span.name, "GET catalog.shop");
    let attributes: Vec<_> = span.attributes.iter().map(|a| a.key.as_str()).collect();
    for wanted in [
        "http.request.method",
        "url.path",
        "http.response.status_code",
        "server.address",
        "network.protocol.version",
        "network.peer.address",
        "meshwright.route",
        "meshwright.destination.identity",
        "env",
    ] {
        assert!(attributes.contains(&wanted), "{wanted} in {attributes:?}");
    }
    let text = world.telemetry.render();
    assert!(
        text.contains("meshwright_spans_exported_total 1\n") && text.contains("meshwright_spans_dropped_total{reason=\"expired\"} 1\n"),
        "{text}"
    );
}

/// Aim: a partial success is success for all but the spans that the collector says it refused, and those count as lost; what is left at
/// the end still leaves, many to a request.
#[tokio::test]
async fn a_partial_success_is_counted() {
    let collector = Collector { refuses: 2, ..Collector::default() };
    let (url, server) = collector.serve().await;
    let mut world = world();
    let snapshot = snapshot(settings(false, Some(&url), 100));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    for _ in 0..1000 {
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
        account.routed(&rule(), &cluster());
        account.response(StatusCode::OK, &HeaderMap::new());
    }
    world.exporter.take().unwrap().run(async {}).await;
    server.abort();
    let taken = collector.taken.lock();
    let spans = |request: &ExportTraceServiceRequest| request.resource_spans[0].scope_spans[0].spans.len();
    assert_eq!(taken.iter().map(spans).sum::<usize>(), 1000);
    assert!((2..10).contains(&taken.len()), "{} requests", taken.len());
    let lost = 2 * taken.len();
    let text = world.telemetry.render();
    assert!(text.contains(&format!("meshwright_spans_exported_total {}\n", 1000 - lost)), "{text}");
    assert!(text.contains(&format!("meshwright_spans_dropped_total{{reason=\"rejected\"}} {lost}\n")), "{text}");
}

/// Aim: the summary for the control plane counts per direction and service, and names plaintext peers of the inbound side only.
#[tokio::test(start_paused = true)]
async fn the_summary_counts_services_and_plaintext() {
    let world = world();
    let snapshot = snapshot(settings(false, None, 0));
    some_traffic(&world, &snapshot).await;
    world.caller(Direction::Inbound, &snapshot, false);
    let traffic = world.telemetry.traffic();
    let rows: Vec<_> = traffic.services.iter().map(|s| (&*s.direction, &*s.service, s.requests, s.failures)).collect();
    assert_eq!(rows, [("inbound", "frontend", 1, 0), ("outbound", "catalog", 1, 0)]);
    assert_eq!(traffic.services[1].duration_buckets.iter().sum::<u64>(), 1);
    let peers: Vec<_> = traffic.plaintext.iter().map(|p| (&*p.source, &*p.destination, p.port, p.connections)).collect();
    assert_eq!(peers, [("10.77.0.2", "shop/frontend", 80, 1)]);
}

/// Aim: an exchange dropped before any answer is the client's going away, whatever was known of it.
#[tokio::test(start_paused = true)]
async fn an_abandoned_exchange_is_client_gone() {
    let world = world();
    let snapshot = snapshot(settings(true, None, 0));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    drop(world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app));
    let line = world.lines.lock().join("");
    assert!(line.contains(r#""status":null,"grpc_status":null,"reason":"client_gone","blame":"client""#), "{line}");
    let made = line.split(r#""request_id":""#).nth(1).unwrap();
    assert_eq!(made.as_bytes()[14], b'4', "{made}");
}
