//! Collectors that answer in every way there is, and what becomes of spans: over memory pipes, in virtual time.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use async_trait::async_trait;
use bytes::Bytes;
use engine::model::OtlpProtocol;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::io::{Network, Socket, VirtualListening, VirtualNetwork, pipe};
use crate::observe::lane::{KEPT_MAX, WAITING_BYTES_MAX};
use crate::tls::testing::{Authority, party};

/// An answer: status, header, body.
type Said = (u16, Option<(&'static str, &'static str)>, Vec<u8>);

/// What one request was.
#[derive(Debug, Clone)]
struct Asked {
    at: Instant,
    port: u16,
    path: String,
    content_type: String,
    body: Bytes,
}

/// Collectors at every address: they answer as they are told to, in order, and then with success.
#[derive(Clone, Default)]
struct Collectors {
    script: Arc<Mutex<VecDeque<Said>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
    /// Port of one that takes connections and says nothing.
    silent: Option<u16>,
    /// The first byte of what somebody said to the silent one.
    first: Arc<Mutex<Option<u8>>>,
}

#[async_trait]
impl VirtualNetwork for Collectors {
    async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        if self.down.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (near, mut far) = pipe();
        let (this, port) = (self.clone(), address.port());
        tokio::spawn(async move {
            if this.silent == Some(port) {
                *this.first.lock() = far.read_u8().await.ok();
                return std::future::pending().await;
            }
            let answer = service_fn(move |request| this.clone().answer(port, request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), answer).await;
        });
        Ok(near)
    }

    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Collectors {
    fn told(script: impl IntoIterator<Item = Said>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), ..Self::default() }
    }

    async fn answer(self, port: u16, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        if self.down.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let path = request.uri().to_string();
        let content_type = request.headers()["content-type"].to_str().unwrap().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.asked.lock().push(Asked { at: Instant::now(), port, path, content_type, body });
        let (status, header, body) = self.script.lock().pop_front().unwrap_or((200, None, Vec::new()));
        let mut answer = Response::new(Full::new(body.into()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some((name, value)) = header {
            answer.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        Ok(answer)
    }

    /// How many spans of OTLP came.
    fn spans(&self) -> usize {
        let of = |asked: &Asked| ExportTraceServiceRequest::decode(asked.body.clone()).map(|request| count(&request));
        self.asked.lock().iter().map(|asked| of(asked).unwrap()).sum()
    }
}

fn count(request: &ExportTraceServiceRequest) -> usize {
    request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum()
}

/// Where spans go.
fn to(otlp: Option<&str>, zipkin: Option<&str>) -> Arc<Snapshot> {
    let zipkin_endpoint = zipkin.map(str::to_owned);
    snapshot(Settings { otlp_protocol: OtlpProtocol::Http, zipkin_endpoint, ..settings(false, otlp, 100) })
}

/// A proxy whose exporter runs.
struct Running {
    world: World,
    run: JoinHandle<()>,
}

fn running(collectors: &Collectors) -> Running {
    let mesh = Authority::new("mesh");
    let options = TelemetryOptions {
        instance: "frontend-0".into(),
        log: LogLines::Memory(Arc::default()),
        network: Network::Virtual(Arc::new(collectors.clone())),
        tls: Some(party(&mesh, "spiffe://cluster.local/ns/shop/sa/web", "frontend").tls),
        ..TelemetryOptions::default()
    };
    let (telemetry, exporter) = start(options, Clock::simulated(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
    let observer = Observer::new(Arc::clone(&telemetry), Draw::seeded(1));
    let run = tokio::spawn(exporter.run(std::future::pending()));
    Running { world: World { telemetry, exporter: None, observer, lines: Arc::default() }, run }
}

impl Running {
    fn request(&self, snapshot: &Arc<Snapshot>) {
        let app = self.world.caller(Direction::Outbound, snapshot, false);
        let mut account = self.world.observer.begin_http(Direction::Outbound, snapshot, &mut parts(&[]), &app);
        account.routed(&rule(), &cluster());
        account.response(StatusCode::OK, &HeaderMap::new());
    }

    /// A counter of spans.
    fn counter(&self, name: &str) -> u64 {
        let text = self.world.telemetry.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("meshwright_spans_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.counter(&format!("dropped_total{{reason=\"{reason}\"}}"))
    }

    fn all_dropped(&self) -> u64 {
        ["queue_full", "expired", "refused", "rejected", "bad_endpoint"].into_iter().map(|reason| self.dropped(reason)).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.run.abort();
    }
}

/// Aim: OTLP over HTTP goes to its path as protobuf, over one connection; what a success refuses of it is counted.
#[tokio::test(start_paused = true)]
async fn spans_leave_by_http() {
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "too old".into() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let collectors = Collectors::told([(200, None, partial)]);
    let running = running(&collectors);
    let snapshot = to(Some("http://10.9.9.9:4318/base/"), None);
    for _ in 0..2 {
        (0..3).for_each(|_| running.request(&snapshot));
        sleep(Duration::from_secs(5)).await;
    }
    let asked = collectors.asked.lock().clone();
    let first = &asked[0];
    assert_eq!((first.port, first.path.as_str(), first.content_type.as_str()), (4318, "/base/v1/traces", "application/x-protobuf"));
    assert_eq!((asked.len(), collectors.spans(), collectors.connections.load(Ordering::Relaxed)), (2, 6, 1));
    let request = ExportTraceServiceRequest::decode(first.body.clone()).unwrap();
    assert!(format!("{request:?}").contains("frontend-0"), "{request:?}");
    assert_eq!((running.counter("exported_total"), running.dropped("rejected"), running.all_dropped()), (5, 1, 1));
}

/// Aim: what may come again does, after the pause that was asked for or one of ours, and counts once; all else is dropped at once, a redirect
/// and a failed success among it.
#[tokio::test(start_paused = true)]
async fn answers_are_understood() {
    let again = [(503, Some(("retry-after", "3")), vec![]), (429, None, vec![]), (502, None, vec![]), (504, None, vec![])];
    let collectors = Collectors::told(again);
    let running = running(&collectors);
    let snapshot = to(Some("http://10.9.9.9:4318"), None);
    running.request(&snapshot);
    sleep(Duration::from_secs(20)).await;
    let at: Vec<Instant> = collectors.asked.lock().iter().map(|asked| asked.at).collect();
    assert_eq!((at.len(), running.counter("exported_total"), running.all_dropped()), (5, 1, 0));
    let pauses: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(pauses[0], 3000, "as asked for");
    // The pause after the first failure was the collector's; ours grow all the same, by half of them at least.
    for (pause, longest) in pauses[1..].iter().zip([400, 800, 1600]) {
        assert!((longest / 2..=longest + 1).contains(pause), "{pauses:?}");
    }
    for status in [400, 404, 413, 500, 301] {
        collectors.script.lock().push_back((status, None, vec![]));
        running.request(&snapshot);
        sleep(Duration::from_secs(5)).await;
    }
    assert_eq!((collectors.asked.lock().len(), running.dropped("refused"), running.all_dropped()), (10, 5, 5));
    running.request(&snapshot);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(running.counter("exported_total"), 2);
}

/// Aim: a collector that is away for an hour costs bounded memory and counted spans; one that was away for less than what spans are kept costs
/// none; and spans flow again afterwards.
#[tokio::test(start_paused = true)]
async fn a_collector_may_be_away_for_an_hour() {
    let collectors = Collectors::default();
    let running = running(&collectors);
    let snapshot = to(Some("http://10.9.9.9:4318"), None);
    let mut made = 0;
    let mut busy = async |time: Duration| {
        let until = Instant::now() + time;
        while Instant::now() < until {
            // Six requests' worth of spans at a time: more than is kept, over an hour.
            (0..20).for_each(|_| running.request(&snapshot));
            made += 20;
            sleep(Duration::from_secs(1)).await;
        }
        made
    };
    collectors.down.store(true, Ordering::Relaxed);
    busy(KEPT_MAX / 2).await;
    collectors.down.store(false, Ordering::Relaxed);
    let made_before = busy(Duration::from_secs(20)).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!((running.counter("exported_total"), running.all_dropped()), (made_before, 0), "a restart costs nothing");

    collectors.down.store(true, Ordering::Relaxed);
    let made_in_all = busy(Duration::from_secs(3600)).await;
    let kept = made_in_all - made_before - running.all_dropped();
    assert!(kept * 2048 < WAITING_BYTES_MAX as u64, "{kept} spans wait");
    assert!(running.dropped("expired") > 60_000);

    collectors.down.store(false, Ordering::Relaxed);
    let back = Instant::now();
    let made_in_all = busy(Duration::from_secs(10)).await;
    sleep(Duration::from_secs(10)).await;
    let asked = collectors.asked.lock().iter().filter(|asked| asked.at > back).count();
    assert!(asked >= 5, "{asked} requests since it is back");
    assert_eq!(running.counter("exported_total") + running.all_dropped(), made_in_all);
}

/// Aim: what comes faster than a collector takes it is bounded by its size and counted, however many requests that is.
#[tokio::test(start_paused = true)]
async fn a_silent_collector_holds_up_nobody() {
    let collectors = Collectors { silent: Some(4318), ..Collectors::default() };
    let running = running(&collectors);
    let snapshot = to(Some("http://10.9.9.9:4318"), None);
    for _ in 0..100 {
        (0..200).for_each(|_| running.request(&snapshot));
        sleep(Duration::from_millis(10)).await;
    }
    assert!(running.dropped("queue_full") > 10_000, "{}", running.dropped("queue_full"));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(running.all_dropped(), 20_000);
}

/// Aim: Zipkin gets the same spans as JSON, beside OTLP or alone, and neither waits for the other.
#[tokio::test(start_paused = true)]
async fn zipkin_gets_the_same_spans() {
    let collectors = Collectors { silent: Some(4318), ..Collectors::default() };
    let running = running(&collectors);
    let zipkin = "http://10.9.9.9:9411/api/v2/spans";
    running.request(&to(Some("http://10.9.9.9:4318"), Some(zipkin)));
    sleep(Duration::from_secs(5)).await;
    running.request(&to(None, Some(zipkin)));
    sleep(Duration::from_secs(5)).await;
    let asked = collectors.asked.lock().clone();
    assert_eq!(asked.len(), 2);
    for asked in &asked {
        assert_eq!((asked.port, asked.path.as_str(), asked.content_type.as_str()), (9411, "/api/v2/spans", "application/json"));
        let spans: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        assert_eq!((&spans[0]["kind"], &spans[0]["localEndpoint"]["serviceName"]), (&"CLIENT".into(), &"frontend".into()), "{spans}");
    }
    assert_eq!(running.counter("exported_total"), 2);
}

/// Aim: newer spans, which go elsewhere, do not wait for a collector that fails.
#[tokio::test(start_paused = true)]
async fn a_failing_collector_is_left_behind() {
    let collectors = Collectors::told(std::iter::repeat_n((503, Some(("retry-after", "25")), vec![]), 1));
    let running = running(&collectors);
    running.request(&to(Some("http://10.9.9.9:4318"), None));
    sleep(Duration::from_secs(5)).await;
    running.request(&to(Some("http://10.9.9.8:4319"), None));
    sleep(Duration::from_secs(3)).await;
    assert_eq!((running.counter("exported_total"), running.dropped("expired"), running.all_dropped()), (1, 1, 1));
    assert_eq!(collectors.asked.lock()[1].port, 4319);
}

/// Aim: `https` is spoken as TLS and never without; an endpoint that cannot be is counted as such.
#[tokio::test(start_paused = true)]
async fn secure_collectors_are_met_by_tls() {
    let collectors = Collectors { silent: Some(443), ..Collectors::default() };
    let running = running(&collectors);
    running.request(&to(Some("https://10.9.9.9:443"), None));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(*collectors.first.lock(), Some(22), "a TLS record of the handshake");
    assert_eq!(collectors.asked.lock().len(), 0);
    running.request(&to(Some("ftp://10.9.9.9:21"), None));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(running.dropped("bad_endpoint"), 1);
}
