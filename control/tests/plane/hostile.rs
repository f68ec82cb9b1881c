//! Strangers and liars at the control plane's doors: what they are answered, and that others are served meanwhile.

use std::fs;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use control::publish::board::STREAMS_PER_NODE_MAX;
use control::publish::session::{NAME_BYTES_MAX, NAMES_MAX};
use control::serve::listen::{STRANGERS_MAX, STRANGERS_OF_ORIGIN_MAX};
use http_body_util::Full;
use prost::Name as _;
use proto::mesh::{Certificate, Draining, Traffic, report};
use proto::xds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::Folders;
use crate::desk::{Plane, Reporter, Sidecar};
use crate::door::stranger;

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const REPORTS: &str = "/meshwright.v1.Reports/Stream";

/// Whether this process runs the test of that name and nothing beside it, so that its memory is the test's. If not, one is started that does.
fn alone(name: &str) -> bool {
    const ALONE: &str = "MESHWRIGHT_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut run = std::process::Command::new(std::env::current_exe().unwrap());
    let output = run.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    false
}

/// Memory of this process that is resident, as the kernel counts it.
fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A gRPC message with this content, or one that only says so.
fn message(compressed: u8, length: u32, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(compressed);
    bytes.put_u32(length);
    bytes.put_slice(content);
    bytes.freeze()
}

/// Sends bytes as a call; the code of the answer. `None`: it is none of gRPC's, or there is none.
async fn called(channel: Channel, path: &str, content_type: &str, bytes: Bytes) -> Option<Code> {
    let request = http::Request::post(format!("http://control{path}")).header("content-type", content_type).header("te", "trailers");
    let answer = channel.oneshot(request.body(Body::new(Full::new(bytes))).unwrap()).await.ok()?;
    let (head, body) = answer.into_parts();
    let body = http_body_util::BodyExt::collect(body);
    let trailers = tokio::time::timeout(Duration::from_secs(10), body).await.expect("an answer within 10 s").ok()?;
    let status = head.headers.get("grpc-status").or_else(|| trailers.trailers()?.get("grpc-status")).cloned()?;
    Some(Code::from_bytes(status.as_bytes()))
}

async fn catalog(plane: &Plane) -> Channel {
    plane.tls(Some(("spiffe://cluster.local/ns/shop/sa/catalog", "catalog"))).await
}

/// Somebody honest is served.
async fn serves(plane: &Plane) {
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    frontend.take_epoch(None).await;
}

#[tokio::test]
async fn garbage_is_refused_and_stops_nobody() {
    // Aim: bytes that are no TLS, no gRPC or no message, each with an end or a code, at no cost that stays.
    let folders = Folders::new();
    let plane = folders.start().await;
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0; 5000], &[0x16, 3, 1, 0xff, 0xff, 1], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(plane.listen).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{garbage:?} is still listened to");
    }
    let grpc = "application/grpc";
    for (path, content_type, bytes, codes) in [
        (ADS, grpc, message(0, 9, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"), &[Code::Internal, Code::Aborted, Code::Unknown, Code::Ok][..]),
        (ADS, grpc, message(0, u32::MAX, b"x"), &[Code::OutOfRange, Code::ResourceExhausted, Code::Ok]),
        (ADS, grpc, message(1, 3, b"abc"), &[Code::Unimplemented, Code::Internal, Code::Ok]),
        (ADS, grpc, message(9, 3, b"abc"), &[Code::Internal, Code::Ok]),
        (ADS, grpc, message(0, 0, b""), &[Code::InvalidArgument]),
        (REPORTS, grpc, message(0, 0, b""), &[Code::InvalidArgument]),
        (REPORTS, grpc, message(0, 4, b"\xff\xff\xff\xff"), &[Code::Internal, Code::InvalidArgument, Code::Ok]),
        ("/meshwright.v1.Reports/None", grpc, message(0, 0, b""), &[Code::Unimplemented]),
        ("/none", grpc, message(0, 0, b""), &[Code::Unimplemented]),
    ] {
        let code = called(catalog(&plane).await, path, content_type, bytes.clone()).await;
        assert!(code.is_some_and(|code| codes.contains(&code)), "{path} {bytes:?}: {code:?}");
    }
    serves(&plane).await;
    assert_eq!(plane.get("proxies").await.unwrap(), serde_json::json!([]), "nobody of them is taken for a proxy");
    plane.stop().await;
}

#[tokio::test]
async fn floods_of_one_sidecar_have_their_bounds() {
    // Aim: names too long or too many, versions too many, unknown types, NACKs and streams without end: refused, or of no consequence.
    if !alone("hostile::floods_of_one_sidecar_have_their_bounds") {
        return;
    }
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut honest = plane.sidecar("catalog", "catalog").await;
    honest.take_epoch(None).await;
    let before = resident_bytes();
    for number in 0..5_000 {
        honest.subscribe(&format!("type.googleapis.com/none.{number}{}", "x".repeat(1000)), "*").await;
        honest.answer(xds::CLUSTER, "7", Some(&"Cluster a: refused\n".repeat(50))).await;
    }
    honest.subscribe(xds::LISTENER, "out/10.96.7.7:80").await;
    honest.take_epoch(None).await;
    let grown = resident_bytes().saturating_sub(before);
    println!("10,000 requests of unknown types and NACKs: {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "{} KiB", grown >> 10);
    // Each on a stream of its own, which ends.
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let mut liar = plane.sidecar("catalog", "catalog").await;
    liar.take_epoch(None).await;
    liar.subscribe(xds::LISTENER, &long).await;
    assert_eq!(liar.next_epoch().await.unwrap_err().code(), Code::ResourceExhausted);
    let mut liar = plane.sidecar("catalog", "catalog").await;
    liar.take_epoch(None).await;
    liar.subscribe_all(xds::CLUSTER, (0..=NAMES_MAX).map(|number| number.to_string()).collect()).await;
    assert_eq!(liar.next_epoch().await.unwrap_err().code(), Code::ResourceExhausted);
    serves(&plane).await;
    plane.stop().await;
}

#[tokio::test]
async fn one_sidecar_cannot_take_all_streams() {
    // Aim: streams of one node have a bound of their own, and the next one is told so; others are served, and there is room again afterwards.
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS_PER_NODE_MAX {
        let mut stream = Sidecar::open(catalog(&plane).await, "shop", "catalog", "catalog").await.unwrap();
        stream.take_epoch(None).await;
        streams.push(stream);
    }
    let mut beyond = Sidecar::open(catalog(&plane).await, "shop", "catalog", "catalog").await.unwrap();
    let refused = beyond.next_epoch().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("shop/catalog"), "{refused}");
    serves(&plane).await;
    drop(streams);
    let again = async {
        loop {
            let mut stream = Sidecar::open(catalog(&plane).await, "shop", "catalog", "catalog").await.unwrap();
            if stream.next_epoch().await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("room again");
    plane.stop().await;
}

#[tokio::test]
async fn nobody_answers_in_the_name_of_another() {
    // Aim: a stock client of the namespace whose id is another's instance, and whoever comes by plaintext as one of ours, acknowledge and
    // refuse nothing in its name, and take none of its streams; the real sidecar is served, and its answer counts.
    let folders = Folders::new();
    let plane = folders.start().await;
    let waiting = async || plane.get("epochs").await.unwrap()[0]["proxies"]["waiting"].to_string();
    let mut liars = Vec::new();
    for number in 0..=STREAMS_PER_NODE_MAX {
        let evil = plane.tls(Some(("spiffe://cluster.local/ns/shop/sa/frontend", "frontend"))).await;
        let stock = Sidecar::open_as(evil, "envoy", "catalog", "shop/frontend").await.unwrap();
        let ours = Sidecar::open(plane.plaintext().await, "shop", "catalog", "catalog").await.unwrap();
        for mut liar in [stock, ours] {
            if number < STREAMS_PER_NODE_MAX / 2 {
                liar.take_epoch((number == 1).then_some("Trust trust: roots[0]: is no certificate")).await;
            }
            liars.push(liar);
        }
    }
    let mut honest = plane.sidecar("catalog", "catalog").await;
    let (nonce, _) = honest.next_epoch().await.unwrap();
    assert!(waiting().await.contains("shop/catalog"), "{}", waiting().await);
    assert_eq!(plane.get("epochs").await.unwrap()[0]["refused"], serde_json::json!([]));
    honest.answer(&proto::mesh::Epoch::type_url(), &nonce, None).await;
    let told = async {
        while waiting().await.contains("shop/catalog") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn strangers_cannot_keep_proxies_out() {
    // Aim: connections without a certificate have a bound of their own; beyond it they are closed, and who has a certificate is served.
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut strangers = Vec::new();
    for number in 0..STRANGERS_MAX {
        let stranger = stranger(&plane, &format!("127.0.1.{}", number / STRANGERS_OF_ORIGIN_MAX)).await;
        strangers.push(stranger.unwrap_or_else(|error| panic!("stranger {number}: {error}")));
    }
    let beyond = match plane.tls_with(None).await {
        Err(_) => None,
        Ok(channel) => called(channel, "/none", "application/grpc", message(0, 0, b"")).await.filter(|code| *code != Code::Unavailable),
    };
    assert_eq!(beyond, None, "one too many is served");
    serves(&plane).await;
    plane.stop().await;
}

#[tokio::test]
async fn reports_without_end_cost_their_last() {
    // Aim: reports replace one another, rows beyond the bound are left out, what comes before a Hello is refused, and a report for somebody
    // else is no report.
    if !alone("hostile::reports_without_end_cost_their_last") {
        return;
    }
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut early = Reporter::silent(catalog(&plane).await).await;
    early.say(report::Kind::Draining(Draining {})).await;
    assert_eq!(early.commands.message().await.unwrap_err().code(), Code::InvalidArgument);
    let honest = Reporter::open(catalog(&plane).await, "sidecar/shop/catalog", "catalog").await;
    let before = resident_bytes();
    for number in 0..300 {
        let certificate = Certificate { serial: "x".repeat(10_000), ..Certificate::default() };
        honest.say(report::Kind::Certificate(certificate)).await;
        let services = (0..2_000).map(|_| proto::mesh::ServiceTraffic::default()).collect();
        honest.say(report::Kind::Traffic(Traffic { services, ..Traffic::default() })).await;
        if number % 100 == 0 {
            honest.say(report::Kind::Draining(Draining {})).await;
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    println!("600 reports: {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "{} KiB", grown >> 10);
    serves(&plane).await;
    plane.stop().await;
}
