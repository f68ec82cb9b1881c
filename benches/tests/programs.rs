//! The programs with one another over loopback: load → backend, and load → floor → floor → backend.
#![allow(clippy::unwrap_used, reason = "a test may panic, in what it calls too")]
#![allow(clippy::disallowed_types, reason = "measuring needs the machine's own sockets")]

use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use benches::backend;
use benches::floor::{self, Floor, Http, Side};
use benches::load::{self, Plan, Report};
use benches::sockets::listen;
use clap::Parser;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;

/// Runs `body` on a thread with a runtime of its own, for as long as the test runs.
fn aside<F>(body: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move { body().await });
    });
}

/// A port of the kernel's choice, listened on in the runtime of `aside`.
fn reserve() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

fn adopt(listener: std::net::TcpListener) -> TcpListener {
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// Addresses of a backend: HTTP/1.1, HTTP/2, bytes.
fn backend() -> [SocketAddr; 3] {
    let listeners: [_; 3] = std::array::from_fn(|_| reserve());
    let addresses = std::array::from_fn(|at: usize| listeners[at].local_addr().unwrap());
    aside(move || async move {
        let [h1, h2, tcp] = listeners.map(adopt);
        backend::serve(h1, h2, tcp).await;
    });
    addresses
}

#[derive(Parser)]
struct LoadLine {
    #[command(flatten)]
    args: load::Args,
}

fn measure(line: &str) -> Report {
    let line = format!("load --warm-secs 0.05 --secs 0.2 --timeout-secs 2 {line}");
    let plan = Plan::of(&LoadLine::try_parse_from(line.split(' ')).unwrap().args).unwrap();
    let mut marks = Vec::new();
    let report = load::measure(plan, |mark| {
        marks.push(mark.to_owned());
        Ok(())
    });
    assert_eq!(marks, ["begin", "end"]);
    report.unwrap()
}

/// Every request was answered rightly, and there was one.
fn all_right(line: &str) -> Report {
    let report = measure(line);
    assert!(report.ok > 0 && report.failed == 0 && report.errors.is_empty(), "{line}: {report:?}");
    report
}

#[test]
fn every_protocol_and_mode_reaches_the_backend() {
    // Aim: each way of sending load gets right answers, in the number its rate asks for, and counts what it received.
    let [h1, h2, tcp] = backend();
    let open = |line: String| {
        let report = all_right(&line);
        assert_eq!((report.sent, report.ok + report.late), (report.ok, 40), "{line}: {report:?}");
        report
    };
    assert_eq!(open(format!("--protocol h1 --to http://{h1}/1k --rate 200")).bytes, 40 * 1024);
    open(format!("--protocol h1 --to http://{h1}/ --rate 200 --body-bytes 1024 --threads 2"));
    open(format!("--protocol h2 --to http://{h2}/1k --rate 200"));
    open(format!("--protocol h2 --to http://{h2}/ --rate 200 --body-bytes 100000"));
    open(format!("--protocol grpc --to http://{h2} --rate 200 --body-bytes 1024"));
    open(format!("--protocol tcp --to {tcp} --rate 200"));
    open(format!("--protocol h1 --to http://{h1}/1k --mode hold --connections 200"));
    open(format!("--protocol h1 --to http://{h1}/1k --mode connections --rate 200"));
    open(format!("--protocol grpc --to http://{h2} --mode connections --rate 200"));
    all_right(&format!("--protocol h1 --to http://{h1}/1k --mode closed --connections 4"));
    all_right(&format!("--protocol h2 --to http://{h2}/1k --mode closed --streams 4"));
    all_right(&format!("--protocol tcp --to {tcp} --mode connections --concurrent 2"));
    let bulk = measure(&format!("--protocol h1 --to http://{h1}/bulk --mode bulk"));
    assert!(bulk.bytes > 1 << 20 && bulk.failed == 0, "{bulk:?}");
}

#[test]
fn failures_have_names() {
    // Aim: a wrong status is no success, and a target that is not there is told before any load is sent.
    let [h1, ..] = backend();
    let missing = measure(&format!("--protocol h1 --to http://{h1}/none --rate 200"));
    assert_eq!((missing.ok, missing.errors.get("status_404")), (0, Some(&40)), "{missing:?}");
    let nobody = reserve().local_addr().unwrap();
    let line = format!("load --protocol h1 --to http://{nobody}/ --rate 200");
    let plan = Plan::of(&LoadLine::try_parse_from(line.split(' ')).unwrap().args).unwrap();
    let error = load::measure(plan, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("connect_refused") && error.contains(&nobody.to_string()), "{error}");
    let fresh = measure(&format!("--protocol tcp --to {nobody} --mode connections --rate 200"));
    assert_eq!(fresh.errors.get("connect_refused"), Some(&40), "{fresh:?}");
}

/// A root, and a leaf for both sides, as files.
fn certificates(folder: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["server.bench".to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    std::fs::write(folder.join("ca.pem"), root.pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), leaf.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

/// A pair of floors in front of `to`; the address to call.
fn pair(folder: &Path, mode: floor::Mode, http: Http, to: SocketAddr) -> SocketAddr {
    let half = |side, to| {
        let listener = reserve();
        let address = listener.local_addr().unwrap();
        let file = |name: &str| Some(folder.join(name));
        let args = floor::Args {
            side,
            mode,
            listen: address,
            to,
            cert: file("cert.pem"),
            key: file("key.pem"),
            ca: file("ca.pem"),
            name: "server.bench".to_owned(),
            downstream: None,
            upstream: http,
            post_quantum: false,
            alpn: None,
            full_handshakes: false,
            anonymous: false,
        };
        let floor = Floor::new(&args).unwrap();
        aside(move || async move { floor.serve(adopt(listener)).await });
        address
    };
    half(Side::Client, half(Side::Server, to))
}

#[test]
fn floors_forward_every_protocol() {
    // Aim: requests and bytes cross a pair in each mode, kept connections and new ones, with nothing lost.
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let [h1, h2, tcp] = backend();
    thread::scope(|scope| {
        for mode in [floor::Mode::H1, floor::Mode::H2, floor::Mode::Splice, floor::Mode::Tls] {
            let folder = folder.path();
            scope.spawn(move || forwards_requests(folder, mode, h1, h2));
        }
        for mode in [floor::Mode::Splice, floor::Mode::Tls] {
            let to = pair(folder.path(), mode, Http::H1, tcp);
            all_right(&format!("--protocol tcp --to {to} --rate 200 --connections 5"));
            all_right(&format!("--protocol tcp --to {to} --mode connections --rate 100"));
        }
    });
}

fn forwards_requests(folder: &Path, mode: floor::Mode, h1: SocketAddr, h2: SocketAddr) {
    let to = pair(folder, mode, Http::H1, h1);
    all_right(&format!("--protocol h1 --to http://{to}/1k --rate 200 --connections 5"));
    all_right(&format!("--protocol h1 --to http://{to}/ --mode connections --concurrent 2 --body-bytes 3000"));
    let to = pair(folder, mode, Http::H2, h2);
    all_right(&format!("--protocol h2 --to http://{to}/1k --mode closed --streams 4"));
    if mode != floor::Mode::H1 {
        // Trailers do not cross HTTP/1.1 unless they are announced.
        all_right(&format!("--protocol grpc --to http://{to} --rate 200"));
    }
}

#[test]
fn a_floor_lets_only_its_own_in() {
    // Aim: the server half verifies client certificates, so that what is measured is the work of mutual TLS.
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(ours.path());
    certificates(others.path());
    std::fs::copy(ours.path().join("ca.pem"), others.path().join("ca.pem")).unwrap();
    let [.., tcp] = backend();
    let to = pair(others.path(), floor::Mode::Tls, Http::H1, tcp);
    let refused = measure(&format!("--protocol tcp --to {to} --mode connections --rate 50"));
    assert_eq!((refused.ok, refused.failed), (0, 10), "{refused:?}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    // Aim: whoever starts two backends is told which address is taken.
    let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    let error = format!("{:#}", listen(address).unwrap_err());
    assert!(error.contains(&address.to_string()), "{error}");
}
