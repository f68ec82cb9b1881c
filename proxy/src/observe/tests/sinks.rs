//! Lines on their way to everywhere at once.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::thread::sleep;
use std::time::Instant;

use engine::model::{LogFile, LogSink};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use proto::xds::accesslog::access_log_service_server::{AccessLogService, AccessLogServiceServer};
use proto::xds::accesslog::stream_access_logs_message::LogEntries;
use proto::xds::accesslog::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status, Streaming};

use super::*;
use crate::observe::batch::RECORDS_MAX;

/// Takes records and entries, as a collector and as a service of the mesh.
#[derive(Clone, Debug, Default)]
struct Taker {
    records: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
    messages: Arc<Mutex<Vec<StreamAccessLogsMessage>>>,
    /// Records that it refuses of each request.
    refuses: i64,
    /// Connections that fail first.
    fails: Arc<AtomicUsize>,
    address: Arc<Mutex<String>>,
}

#[tonic::async_trait]
impl LogsService for Taker {
    async fn export(&self, request: tonic::Request<ExportLogsServiceRequest>) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.records.lock().push(request.into_inner());
        let partial = ExportLogsPartialSuccess { rejected_log_records: self.refuses, error_message: "too many".into() };
        Ok(Response::new(ExportLogsServiceResponse { partial_success: (self.refuses > 0).then_some(partial) }))
    }
}

#[tonic::async_trait]
impl AccessLogService for Taker {
    async fn stream_access_logs(
        &self,
        request: tonic::Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            self.messages.lock().push(message);
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

#[tonic::async_trait]
impl ToServices for Taker {
    fn node(&self) -> &str {
        "sidecar/shop/frontend-0"
    }

    async fn open(&self, url: &str) -> Result<Box<dyn Duplex>, String> {
        assert_eq!(url, "http://als.shop.svc.cluster.local:9000");
        if self.fails.load(Ordering::Relaxed) > 0 {
            self.fails.fetch_sub(1, Ordering::Relaxed);
            return Err("not yet".to_owned());
        }
        let address = self.address.lock().clone();
        Ok(Box::new(tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?))
    }
}

impl Taker {
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        self.address.lock().clone_from(&address);
        let server = tonic::transport::Server::builder().add_service(LogsServiceServer::new(self.clone()));
        let server = server.add_service(AccessLogServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn log_records(&self) -> Vec<LogRecord> {
        let requests = self.records.lock().clone();
        requests.into_iter().flat_map(|request| request.resource_logs).flat_map(|of| of.scope_logs).flat_map(|of| of.log_records).collect()
    }

    fn entries(&self) -> usize {
        let of = |message: &StreamAccessLogsMessage| match &message.log_entries {
            Some(LogEntries::HttpLogs(logs)) => logs.log_entry.len(),
            Some(LogEntries::TcpLogs(logs)) => logs.log_entry.len(),
            None => 0,
        };
        self.messages.lock().iter().map(of).sum()
    }
}

const ALS: &str = "http://als.shop.svc.cluster.local:9000";

fn file(path: &Path) -> LogSink {
    LogSink::File(LogFile { path: path.to_str().unwrap().to_owned(), bytes_max: 1 << 30, keep: 1 })
}

/// A snapshot whose sinks are in force.
fn in_force(world: &World, log_sinks: Vec<LogSink>) -> Arc<Snapshot> {
    let snapshot = snapshot(Settings { log_sinks, ..settings(true, Some("http://127.0.0.1:1"), 100) });
    world.telemetry.configured(snapshot.settings.as_ref().unwrap());
    snapshot
}

/// Waits for something that other threads do.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        sleep(Duration::from_millis(10));
    }
}

fn count(path: &Path) -> usize {
    fs::read(path).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

fn metric(world: &World, name: &str) -> usize {
    let text = world.telemetry.render();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
}

fn lost(world: &World, sink: &str) -> usize {
    metric(world, &format!("meshwright_access_log_dropped_total{{sink=\"{sink}\"}}"))
}

/// One request that was answered so.
fn request(world: &World, snapshot: &Arc<Snapshot>, target: &str, code: u16) {
    let caller = world.caller(Direction::Outbound, snapshot, false);
    let request = Request::get(target).header("host", "catalog.shop:80").header("user-agent", "curl/8").header("x-request-id", "r1");
    let request = request.header("authorization", "Bearer SECRET-1").header("cookie", "id=SECRET-2").header("x-api-key", "SECRET-3");
    let request = request.header("referer", "https://u:p@a.example/?code=SECRET-4");
    let mut account = world.observer.begin_http(Direction::Outbound, snapshot, &mut request.body(()).unwrap().into_parts().0, &caller);
    account.routed(&rule(), &cluster());
    account.attempted(&endpoint());
    account.secured(Some(&TLS));
    account.response(StatusCode::from_u16(code).unwrap(), &HeaderMap::new());
}

fn connection(world: &World, snapshot: &Arc<Snapshot>) {
    let caller = world.caller(Direction::Outbound, snapshot, false);
    let mut account = world.observer.begin_tcp(Direction::Outbound, snapshot, &caller);
    account.to_cluster(&cluster());
    account.attempted(&endpoint());
    account.add_response_bytes(7);
    account.failed(&Failure::new(Reason::UpstreamReset, "reset"));
}

/// Aim: each of four sinks gets each line, in its own words, and no credential of headers, queries or addresses is in any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sink_gets_every_line_and_no_secret() {
    let taker = Taker::default();
    let address = taker.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let (stdout, path) = (folder.path().join("stdout"), folder.path().join("mesh.log"));
    let world = world_with(LogLines::File(Arc::new(File::create(&stdout).unwrap())));
    world.telemetry.reach_services(Arc::new(taker.clone()));
    let sinks = vec![LogSink::Stdout, file(&path), LogSink::Otlp(format!("http://{address}")), LogSink::Als(ALS.into())];
    let snapshot = in_force(&world, sinks);
    request(&world, &snapshot, "http://name:SECRET-5@catalog.shop:80/a?token=SECRET-6&b=2", 200);
    request(&world, &snapshot, "/b?api_key=SECRET-7", 503);
    connection(&world, &snapshot);
    eventually("all have come", || taker.log_records().len() == 3 && taker.entries() == 3 && count(&path) == 3 && count(&stdout) == 3);

    let lines = fs::read_to_string(&path).unwrap();
    assert_eq!(lines, fs::read_to_string(&stdout).unwrap());
    let everything = format!("{lines}{:?}{:?}", taker.records.lock(), taker.messages.lock());
    assert!(!everything.contains("SECRET-"), "{everything}");
    assert!(lines.contains("/a?token=***&b=2"), "{lines}");

    let records = taker.log_records();
    let (fine, failed) = (&records[0], &records[1]);
    let said = |record: &LogRecord, key: &str| {
        record.attributes.iter().find(|one| one.key == key).map(|one| format!("{:?}", one.value.as_ref().unwrap().value.as_ref().unwrap()))
    };
    assert_eq!(
        (fine.severity_text.as_str(), failed.severity_text.as_str(), fine.event_name.as_str()),
        ("INFO", "ERROR", "meshwright.access")
    );
    assert_eq!((fine.trace_id.len(), fine.span_id.len(), fine.flags), (16, 8, 1));
    for (key, wanted) in [
        ("http.request.method", "StringValue(\"GET\")"),
        ("url.path", "StringValue(\"/a\")"),
        ("url.query", "StringValue(\"token=***&b=2\")"),
        ("server.address", "StringValue(\"catalog.shop\")"),
        ("http.response.status_code", "IntValue(200)"),
        ("network.protocol.version", "StringValue(\"1.1\")"),
        ("destination.address", "StringValue(\"10.77.0.3\")"),
        ("meshwright.destination.workload", "StringValue(\"catalog-v1\")"),
        ("meshwright.route", "StringValue(\"shop/catalog\")"),
    ] {
        assert_eq!(said(fine, key).as_deref(), Some(wanted), "{key} in {:?}", fine.attributes);
    }
    assert_eq!(said(&records[2], "error.type").as_deref(), Some("StringValue(\"upstream_reset\")"));
    assert!(format!("{:?}", fine.body).contains("catalog-v1"), "{:?}", fine.body);
    world.telemetry.close_log();
}

/// Aim: an access log service is told who tells once, first, and of each exchange in Envoy's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_told_in_envoys_words() {
    let taker = Taker { fails: Arc::new(AtomicUsize::new(1)), ..Taker::default() };
    taker.serve().await;
    let world = world_with(LogLines::Stdout);
    world.telemetry.reach_services(Arc::new(taker.clone()));
    let snapshot = in_force(&world, vec![LogSink::Als(ALS.into())]);
    request(&world, &snapshot, "/b?b=1", 200);
    // The first connection fails: what waits is told by the next one.
    eventually("the request has come", || taker.entries() == 1);
    connection(&world, &snapshot);
    eventually("the connection has come", || taker.entries() == 2);
    let messages = taker.messages.lock();
    let node = messages[0].identifier.as_ref().unwrap();
    let told = node.node.as_ref().unwrap();
    assert_eq!(
        (told.id.as_str(), told.cluster.as_str(), node.log_name.as_str()),
        ("sidecar/shop/frontend-0", "shop/frontend", "meshwright")
    );
    assert!(messages[1].identifier.is_none());
    let Some(LogEntries::HttpLogs(logs)) = &messages[0].log_entries else { panic!("{messages:?}") };
    let entry = &logs.log_entry[0];
    let (common, request) = (entry.common_properties.as_ref().unwrap(), entry.request.as_ref().unwrap());
    assert_eq!((request.path.as_str(), request.authority.as_str(), request.request_method), ("/b?b=1", "catalog.shop:80", 1));
    assert_eq!(entry.response.as_ref().unwrap().response_code, Some(200));
    assert_eq!((common.upstream_cluster.as_str(), common.route_name.as_str()), ("shop/catalog:80", "HTTPRoute/shop/catalog/0"));
    assert_eq!(common.custom_tags["destination.identity"], "spiffe://cluster.local/ns/shop/sa/catalog");
    assert_eq!(common.sample_rate.to_bits(), 1.0_f64.to_bits());
    assert_eq!((common.upstream_request_attempt_count, common.custom_tags["direction"].as_str()), (1, "outbound"));
    let Some(LogEntries::TcpLogs(logs)) = &messages[1].log_entries else { panic!("{messages:?}") };
    let entry = &logs.log_entry[0];
    assert_eq!(entry.connection_properties.as_ref().unwrap().sent_bytes, 7);
    assert!(entry.common_properties.as_ref().unwrap().response_flags.as_ref().unwrap().upstream_remote_reset);
    assert_eq!(lost(&world, "als"), 0);
}

/// Aim: a sink that nobody reads costs its own lines, and no other sink one.
#[tokio::test]
async fn a_slow_sink_holds_up_no_other() {
    let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
    let world = world_with(LogLines::File(Arc::new(File::from(writer))));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.log");
    let snapshot = in_force(&world, vec![LogSink::Stdout, file(&path)]);
    // So many at once as the file's queue has room for.
    for all in (1024..=RECORDS_MAX).step_by(1024) {
        for _ in 0..1024 {
            request(&world, &snapshot, "/", 200);
        }
        eventually("the file has all lines", || count(&path) == all);
    }
    assert_eq!((lost(&world, "file"), lost(&world, "all")), (0, 0));
    eventually("the pipe has lost some", || lost(&world, "stdout") > 0);
    drop(reader);
    world.telemetry.close_log();
}

/// Aim: sinks follow the configuration in force; what was given to one before a change is in it.
#[tokio::test]
async fn sinks_follow_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("{namespace}-{workload}-{instance}"));
    let stdout = folder.path().join("stdout");
    let world = world_with(LogLines::File(Arc::new(File::create(&stdout).unwrap())));
    let named = folder.path().join("shop-frontend-frontend-0");
    for (sinks, path) in [
        (Vec::new(), &stdout),
        (vec![file(&one)], &one),
        (vec![LogSink::Stdout, file(&one)], &stdout),
        (vec![file(&other)], &named),
        (Vec::new(), &stdout),
    ] {
        let snapshot = in_force(&world, sinks);
        let before = count(path);
        for _ in 0..10 {
            request(&world, &snapshot, "/", 200);
        }
        eventually("they have come", || count(path) == before + 10);
    }
    eventually("all have come", || (count(&stdout), count(&one), count(&named)) == (30, 20, 10));
    world.telemetry.close_log();
}

/// Aim: records that a collector refuses, and those for one that is not there, are counted, each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_refuses_is_counted() {
    let taker = Taker { refuses: 2, ..Taker::default() };
    let address = taker.serve().await;
    let world = world_with(LogLines::Stdout);
    let snapshot = in_force(&world, vec![LogSink::Otlp(format!("http://{address}"))]);
    for _ in 0..10 {
        request(&world, &snapshot, "/", 200);
    }
    eventually("all have come", || taker.log_records().len() == 10);
    let requests = taker.records.lock().len();
    eventually("the refused ones are counted", || lost(&world, "otlp") == 2 * requests);
    // At the end of the process a collector that is away is asked once more.
    let snapshot = in_force(&world, vec![LogSink::Otlp("http://127.0.0.1:1".into())]);
    request(&world, &snapshot, "/", 200);
    sleep(Duration::from_millis(100));
    world.telemetry.close_log();
    eventually("it is counted", || lost(&world, "otlp") == 2 * requests + 1);
}
