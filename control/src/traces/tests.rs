//! Spans of epochs, and their way to collectors that listen on this machine.

use std::collections::BTreeSet;

use opentelemetry::Value;
use opentelemetry::trace::Status;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use parking_lot::Mutex;
use proto::mesh::tracing::OtlpProtocol;
use proto::refusal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::publish::board::Board;
use crate::publish::epoch::{Cause, Touched};

const SOON: Duration = Duration::from_secs(20);

/// A clock that is told what time it is, in microseconds.
fn clock() -> (Clock, Arc<AtomicU64>) {
    let now = Arc::new(AtomicU64::new(1_800_000_000_000_000));
    let told = now.clone();
    (Clock::new(move || std::time::UNIX_EPOCH + Duration::from_micros(told.load(Ordering::Relaxed))), now)
}

/// An epoch that two proxies have to answer begins, 2.5 ms after it was taken up.
fn open(board: &Board, number: u64) {
    let expected: BTreeSet<String> = ["shop/a", "shop/b"].map(str::to_owned).into();
    let object = Touched { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "catalog".into(), result: "changed" };
    board.write(|book, now_us| {
        book.open(number, vec![object], (expected, 3), now_us);
        book.caused(Cause { from: "Applied", began_us: now_us - 2500 });
    });
}

fn said(span: &SpanData, name: &str) -> Option<Value> {
    span.attributes.iter().find(|fact| fact.key.as_str() == name).map(|fact| fact.value.clone())
}

fn lasted(span: &SpanData) -> Duration {
    span.end_time.duration_since(span.start_time).unwrap()
}

/// What is left of spans when time has come to stand.
async fn made(export: &mut SpanExport, count: usize) -> Vec<SpanData> {
    let mut spans = Vec::new();
    while spans.len() < count {
        spans.push(timeout(SOON, export.next()).await.expect("one more span"));
    }
    spans
}

/// Aim: each epoch is a change and, in the same trace and linked to it, a push: to the last answer, or ten seconds; who refuses and who is late
/// is named.
#[tokio::test(start_paused = true)]
async fn epochs_are_told() {
    let (traces, mut export) = start("control".to_owned());
    let (clock, now) = clock();
    let (board, _events) = Board::new(clock);
    let stop = CancellationToken::new();
    let turn = |us: u64| {
        now.fetch_add(us, Ordering::Relaxed);
    };
    let following = tokio::spawn(traces.follow(board.clone(), stop.clone()));

    open(&board, 7);
    turn(12_500);
    board.write(|book, now_us| {
        book.acknowledged("shop/a", 7, now_us);
        book.acknowledged("shop/b", 7, now_us);
    });
    let [change, push] = made(&mut export, 2).await.try_into().unwrap();
    assert_eq!((change.name.as_ref(), lasted(&change)), ("change", Duration::from_micros(2500)));
    assert_eq!(said(&change, "meshwright.epoch"), Some(7.into()));
    assert_eq!(said(&change, "meshwright.change.from"), Some("Applied".into()));
    assert!(format!("{:?}", said(&change, "meshwright.change.objects")).contains("HTTPRoute shop/catalog changed"));
    assert_eq!((push.name.as_ref(), lasted(&push), push.start_time), ("push", Duration::from_micros(12_500), change.end_time));
    assert_eq!((push.parent_span_id, push.span_context.trace_id()), (change.span_context.span_id(), change.span_context.trace_id()));
    assert_eq!(push.links.iter().map(|link| &link.span_context).collect::<Vec<_>>(), [&change.span_context]);
    assert_eq!((said(&push, "meshwright.proxies.acknowledged"), said(&push, "meshwright.live")), (Some(2.into()), Some(true.into())));
    assert_eq!((said(&push, "meshwright.proxies.unaffected"), &push.status), (Some(3.into()), &Status::Unset));

    open(&board, 8);
    board.write(|book, now_us| book.refused("shop/a", 8, &refusal::write(["Cluster x: bad"]), now_us));
    let change = made(&mut export, 1).await.remove(0);
    turn(10_000_000);
    let push = made(&mut export, 1).await.remove(0);
    assert_eq!((lasted(&push), push.parent_span_id), (Duration::from_secs(10), change.span_context.span_id()));
    assert_eq!(said(&push, "meshwright.live"), Some(false.into()));
    assert!(format!("{:?}", said(&push, "meshwright.proxies.late")).contains("shop/b"));
    let refused = &push.events[0];
    assert_eq!((refused.name.as_ref(), refused.attributes[1].value.as_str().as_ref()), ("refused", "Cluster x"));
    assert_eq!(push.status, Status::error("shop/a refuses Cluster x"));
    stop.cancel();
    following.await.unwrap();
}

/// Aim: what waits is bounded and counted, and a burst of epochs is followed within bounds, however late somebody looks.
#[tokio::test(start_paused = true)]
async fn a_burst_is_bounded() {
    let (traces, mut export) = start("control".to_owned());
    let (board, _events) = Board::new(clock().0);
    for number in 1..2000 {
        open(&board, number);
    }
    let following = tokio::spawn(traces.clone().follow(board.clone(), CancellationToken::new()));
    // The book remembers 256 changes; 128 pushes of them are followed, the others are ended.
    let spans = made(&mut export, 256 + 128).await;
    assert_eq!(spans.iter().filter(|span| span.name == "push").count(), 128);
    following.abort();
    let making = traces.0.unwrap();
    for _ in 0..SPANS_MAX + 10 {
        use opentelemetry::trace::Tracer as _;
        drop(making.tracer.start("change"));
    }
    assert_eq!(making.counts.dropped.load(Ordering::Relaxed), 10);
}

/// A collector of OTLP over HTTP that takes everything: its address, and what is posted to it.
async fn http_collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, posted) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            sender.send((head, body)).await.unwrap();
        }
    });
    (url, posted)
}

/// The same over gRPC.
#[derive(Clone, Default)]
struct GrpcCollector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for GrpcCollector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl GrpcCollector {
    async fn serve(&self) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        (url, tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() }))
    }

    /// Waits for a request and takes it.
    async fn next(&self) -> ExportTraceServiceRequest {
        let taken = async {
            loop {
                if let Some(request) = self.0.lock().pop() {
                    return request;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, taken).await.expect("spans by gRPC")
    }
}

fn to(endpoint: &str, protocol: OtlpProtocol) -> Option<Tracing> {
    let attributes = [("env".to_owned(), "test".to_owned())].into();
    Some(Tracing { otlp_endpoint: endpoint.to_owned(), protocol: protocol.into(), attributes, ..Tracing::default() })
}

/// Aim: spans wait until the endpoint is known, leave by either protocol, follow it where it goes while they are tried, and go nowhere where it is
/// nowhere; the last ones leave at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_follow_the_endpoint() {
    use opentelemetry::trace::Tracer as _;

    let (traces, export) = start("control-0".to_owned());
    let (making, stop) = (traces.0.unwrap(), CancellationToken::new());
    let exporting = tokio::spawn(export.run(stop.clone()));
    let collector = GrpcCollector::default();
    let (grpc, _server) = collector.serve().await;
    let (http, mut posted) = http_collector().await;

    drop(making.tracer.start("early"));
    making.to.send_replace(to(&grpc, OtlpProtocol::Grpc));
    // What is under way when the endpoint changes goes to the new one, too; so the answer is awaited.
    let answered = async |count: u64| {
        while making.counts.exported.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let request = format!("{:?}", collector.next().await);
    for wanted in ["early", "meshwright-control", "control-0", "meshwright-system", "env"] {
        assert!(request.contains(wanted), "{wanted} in {request}");
    }
    timeout(SOON, answered(1)).await.unwrap();

    // Nobody listens there.
    making.to.send_replace(to("http://127.0.0.1:1", OtlpProtocol::Grpc));
    drop(making.tracer.start("moved"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    making.to.send_replace(to(&http, OtlpProtocol::Http));
    let (head, body) = timeout(SOON, posted.recv()).await.unwrap().unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("application/x-protobuf"), "{head}");
    assert!(body.windows(5).any(|window| window == b"moved"), "{}", String::from_utf8_lossy(&body));
    timeout(SOON, answered(2)).await.unwrap();

    making.to.send_replace(Some(Tracing::default()));
    drop(making.tracer.start("unwanted"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    making.to.send_replace(to(&http, OtlpProtocol::Http));
    drop(making.tracer.start("last"));
    stop.cancel();
    let (_, body) = timeout(SOON, posted.recv()).await.unwrap().unwrap();
    assert!(body.windows(4).any(|window| window == b"last") && !body.windows(8).any(|window| window == b"unwanted"));
    exporting.await.unwrap();
    assert_eq!((making.counts.exported.load(Ordering::Relaxed), making.counts.dropped.load(Ordering::Relaxed)), (3, 0));
}

/// Aim: spans of other crates join by the layer, with their status; those of another target do not.
#[tokio::test]
async fn spans_of_others_join() {
    use tracing_subscriber::layer::SubscriberExt as _;

    let (traces, mut export) = start("control".to_owned());
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || {
        drop(tracing::info_span!("of a stranger").entered());
        let span = tracing::info_span!(target: "meshwright::traces", "certificate", otel.status_code = tracing::field::Empty);
        span.record("otel.status_code", "ERROR");
        drop(span.entered());
    });
    let span = export.next().await;
    assert_eq!((span.name.as_ref(), &span.status), ("certificate", &Status::error("")));
}
