//! HTTP/3, over the machine's own loopback and in real time: a simulation has no datagrams.

mod strict;

use std::future::poll_fn;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::Ordering;

use ::bytes::{Buf as _, Bytes};
use engine::client::{Admission, AdmissionBounds};
use engine::failure::{LocalReply, Reason};
use engine::model::{AltSvc, ClientCertificates, ClientLimits, ClientPolicy, ClientRules, Http2Rules, Http3Door, Secret, TlsTerms};
use http::{HeaderMap, Request};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::ClientConfig;
use tokio::time::timeout;

use super::tls::{cell, certificate, client, connect, https, put, replying, serve_chains, serve_chains_under, showing, table_of, terms};
use super::*;
use crate::ground::limits::QUIC_UNPROVED_MAX;
use crate::road::quic::{self, QuicPort};

const PORT: u16 = 443;

/// Runs in real time: the kernel's sockets know no other.
fn really<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(60), test()).await.expect("the test hangs");
    });
}

/// What holds for clients of a port with HTTP/3.
fn with_http3(rules: ClientRules) -> ClientPolicy {
    let door = Arc::<Http3Door>::default();
    let alt_svc = Some(AltSvc { value: "h3=\":443\"; ma=60".parse().unwrap(), door: Arc::clone(&door) });
    ClientPolicy { http3: Some(door), ..ClientPolicy::of_all(ClientRules { alt_svc, ..rules }) }
}

/// A port of HTTP/3 at the client's proxy, and whether it is wanted.
struct Port3 {
    address: SocketAddr,
    wanted: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

fn open(world: &World, unproved_max: usize) -> Port3 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let (address, wanted) = (socket.local_addr().unwrap(), watch::Sender::new(true));
    let opened = QuicPort::open(socket, (PORT, unproved_max), &world.client).unwrap();
    let serving = quic::serve(opened, Rc::clone(&world.client), wanted.subscribe());
    Port3 { address, serving: tokio::task::spawn_local(serving), wanted }
}

/// A world whose edge has one host, and its port.
fn edge(setup: Setup, rules: ClientRules) -> (World, Port3) {
    let world = World::new(setup);
    let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
    serve_chains_under(&world, vec![("a.example", https("a", terms(&own), &table_of(&world)))], with_http3(rules));
    let port = open(&world, QUIC_UNPROVED_MAX);
    (world, port)
}

type Sender = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;
type Stream = h3::client::RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// Whether a server has ended a connection, of itself or by its word.
fn is_closed(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::ConnectionClosed(_) | quinn::ConnectionError::ApplicationClosed(_))
}

/// A client's connection.
struct Caller3 {
    quic: quinn::Connection,
    sender: Sender,
    /// Ends with the connection.
    over: tokio::task::JoinHandle<h3::error::ConnectionError>,
    endpoint: quinn::Endpoint,
}

fn config() -> ClientConfig {
    client(&["h3"])
}

async fn call(to: SocketAddr, config: ClientConfig, name: &str) -> Result<Caller3, quinn::ConnectionError> {
    call_by(to, (config, quinn::TransportConfig::default()), name).await
}

async fn call_by(
    to: SocketAddr,
    (config, transport): (ClientConfig, quinn::TransportConfig),
    name: &str,
) -> Result<Caller3, quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    config.transport_config(Arc::new(transport));
    let quic = endpoint.connect_with(config, to, name).unwrap().await?;
    let Ok((mut driver, sender)) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await else {
        return Err(quic.closed().await);
    };
    let over = tokio::task::spawn_local(async move { poll_fn(|cx| driver.poll_close(cx)).await });
    Ok(Caller3 { quic, sender, over, endpoint })
}

impl Caller3 {
    async fn ask(&mut self, request: Request<()>) -> Stream {
        self.sender.send_request(request).await.unwrap()
    }

    /// A request without a body, and the whole answer.
    async fn get(&mut self, host: &str) -> (http::Response<()>, String) {
        let mut stream = self.ask(get(host)).await;
        stream.finish().await.unwrap();
        whole(&mut stream).await
    }
}

fn get(host: &str) -> Request<()> {
    Request::get(format!("https://{host}/")).body(()).unwrap()
}

async fn whole(stream: &mut Stream) -> (http::Response<()>, String) {
    let head = stream.recv_response().await.unwrap();
    let mut text = String::new();
    while let Some(mut piece) = stream.recv_data().await.unwrap() {
        text.push_str(std::str::from_utf8(&piece.copy_to_bytes(piece.remaining())).unwrap());
    }
    (head, text)
}

fn http1() -> Setup {
    Setup { application: Protocol::Http1, ..Setup::default() }
}

#[test]
fn requests_walk_the_same_road() {
    // Aim: a GET to an application of HTTP/1.1 tells of https and of its client and nothing forged; its answer comes whole, with HTTP/3 in the
    // record; over TCP the answer names HTTP/3 while somebody serves it, over HTTP/3 it does not.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut request = get("a.example");
        request.headers_mut().insert("x-forwarded-for", "198.51.100.1".parse().unwrap());
        let mut stream = caller.ask(request).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        let asked = head(&mut application).await;
        for wanted in ["GET / HTTP/1.1\r\n", "host: a.example\r\n", "x-forwarded-proto: https\r\n", "x-forwarded-for: 127.0.0.1\r\n"] {
            assert!(asked.to_lowercase().contains(&wanted.to_lowercase()), "{wanted}: {asked}");
        }
        assert!(!asked.contains("chunked"), "{asked}");
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi").await;
        let (answer, body) = whole(&mut stream).await;
        assert_eq!((answer.status().as_u16(), body.as_str()), (200, "hi"));
        assert!(!answer.headers().contains_key("alt-svc") && !answer.headers().contains_key("connection"), "{answer:?}");
        let mut over_tcp = connect(&world.client, &Arc::new(client(&["http/1.1"])), "a.example").await.unwrap();
        let door = world.client_means.snapshots.load().edges[&PORT].clients.http3.clone().unwrap();
        for open in [false, true] {
            door.set_open(open);
            over_tcp.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
            assert!(head(&mut application).await.contains("GET / HTTP/1.1"));
            write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
            let mut told = Vec::new();
            while !told.ends_with(b"\r\n\r\n") {
                told.push(over_tcp.read_u8().await.unwrap());
            }
            let told = String::from_utf8(told).unwrap();
            assert_eq!(told.contains("alt-svc: h3=\":443\"; ma=60\r\n"), open, "{told}");
        }
        let metrics = world.client_means.telemetry.render();
        for wanted in ["meshwright_http3_open 1\n", "meshwright_http3_connections_total 1\n", "version=\"TLSv1.3\""] {
            assert!(metrics.contains(wanted), "{wanted}: {metrics}");
        }
    });
}

#[test]
fn bodies_and_trailers_stream_both_ways() {
    // Aim: an upload goes on piece by piece with its trailers while the answer has begun, and the answer's trailers come behind its body.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let request = Request::post("https://a.example/up").header("te", "trailers").body(()).unwrap();
        let mut stream = caller.ask(request).await;
        stream.send_data(Bytes::from_static(b"one")).await.unwrap();
        let mut application = world.application().await;
        let asked = head(&mut application).await;
        assert!(asked.contains("POST /up HTTP/1.1\r\n") && asked.contains("transfer-encoding: chunked\r\n"), "{asked}");
        assert_eq!(exactly(&mut application, 8).await, "3\r\none\r\n");
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nABC\r\n";
        write(&mut application, answer).await;
        assert_eq!(stream.recv_response().await.unwrap().status(), 200);
        let piece = stream.recv_data().await.unwrap().unwrap();
        assert_eq!(piece.chunk(), b"ABC");
        stream.send_data(Bytes::from_static(b"two")).await.unwrap();
        assert_eq!(exactly(&mut application, 8).await, "3\r\ntwo\r\n");
        let trailers = HeaderMap::from_iter([("x-end".parse().unwrap(), "yes".parse().unwrap())]);
        stream.send_trailers(trailers).await.unwrap();
        stream.finish().await.unwrap();
        assert_eq!(exactly(&mut application, 17).await, "0\r\nx-end: yes\r\n\r\n");
        write(&mut application, "0\r\nx-sum: 7\r\n\r\n").await;
        assert!(stream.recv_data().await.unwrap().is_none());
        assert_eq!(stream.recv_trailers().await.unwrap().unwrap()["x-sum"], "7");
    });
}

#[test]
fn a_name_leads_to_its_chain_and_shows_its_certificate() {
    // Aim: certificates by name, as over TCP; a name that nobody has, or whose TLS passes untouched, is told by its alert, and counted; a certificate
    // that rotates is shown to the next client.
    really(|| async {
        let world = World::new(Setup::default());
        let authority = Authority::new("public");
        let cells = ["a.example", "*.example"].map(|name| cell(name, Some(certificate(&authority, &[name]))));
        let [exact, wild] = [0, 1].map(|place| https(["a", "wild"][place], terms(&cells[place]), &table_of(&world)));
        serve_chains_under(&world, vec![("a.example", exact), ("*.example", wild)], with_http3(ClientRules::default()));
        let port = open(&world, QUIC_UNPROVED_MAX);
        let shown = |caller: &Caller3| {
            let chain = caller.quic.peer_identity().unwrap().downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap();
            chain[0].clone()
        };
        let own = |place: usize| match &cells[place].load().secret {
            Some(Secret::Certificate(own)) => own.chain[0].clone(),
            _ => panic!("no certificate"),
        };
        for (name, place) in [("a.example", 0), ("b.example", 1)] {
            assert_eq!(shown(&call(port.address, config(), name).await.unwrap()), own(place), "{name}");
        }
        put(&cells[0], Some(certificate(&authority, &["a.example"])));
        assert_eq!(shown(&call(port.address, config(), "a.example").await.unwrap()), own(0));
        let error = call(port.address, config(), "other.org").await.err().unwrap();
        assert!(matches!(&error, quinn::ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0x170), "{error:?}");
        let mut old = config();
        old.alpn_protocols = vec![b"hq".to_vec()];
        assert!(call(port.address, old, "a.example").await.is_err());
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_edge_unrecognized_names_total 1\n"), "{metrics}");
        assert!(metrics.contains("meshwright_http3_handshakes_failed_total 2\n"), "{metrics}");
    });
}

#[test]
fn clients_prove_themselves_by_certificates_over_quic() {
    // Aim: where a certificate is required, whom its authority vouches for comes in and is told on; others and nobody do not.
    really(|| async {
        let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.9:9000"], protocol: Protocol::Http1, ..http1() });
        let (partners, strangers) = (Authority::new("partners"), Authority::new("strangers"));
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        let authorities = cell("ca", Some(Secret::Authorities(partners.roots())));
        let terms = TlsTerms { clients: Some(ClientCertificates { authorities, required: true, untrusted: false }), ..terms(&own) };
        serve_chains_under(&world, vec![("a.example", https("a", terms, &table_of(&world)))], with_http3(ClientRules::default()));
        let port = open(&world, QUIC_UNPROVED_MAX);
        let with = |mut config: ClientConfig| {
            config.alpn_protocols = vec![b"h3".to_vec()];
            config
        };
        let mut caller = call(port.address, with(showing(&partners, "spiffe://partner/acme")), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let asked = head(&mut world.application().await).await;
        assert!(asked.contains("x-forwarded-client-cert: Hash=") && asked.contains("URI=spiffe://partner/acme"), "{asked}");
        for other in [with(showing(&strangers, "spiffe://partner/acme")), config()] {
            // In TLS 1.3 a client hears only afterwards that it is not believed.
            if let Ok(refused) = call(port.address, other, "a.example").await {
                let error = refused.quic.closed().await;
                assert!(is_closed(&error), "{error:?}");
            }
        }
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn what_a_request_may_be_is_bounded_as_over_tcp() {
    // Aim: 414, 431 with a reason, 501 for CONNECT, a length that is contradicted, 421 for a host of another listener; and the connection goes on.
    really(|| async {
        let rules = || ClientRules { limits: ClientLimits { uri_bytes: 100, ..ClientLimits::default() }, ..ClientRules::default() };
        let (mut world, port) = edge(http1(), rules());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let large = Request::get("https://a.example/").header("x-large", "x".repeat(70_000)).body(()).unwrap();
        let long = Request::get(format!("https://a.example/{}", "x".repeat(100))).body(()).unwrap();
        let tunnel = Request::connect("a.example:443").body(()).unwrap();
        for (request, status, reason) in [(long, 414, "too_large"), (large, 431, "too_large"), (tunnel, 501, "bad_request")] {
            let mut stream = caller.ask(request).await;
            stream.finish().await.unwrap();
            let (answer, _) = whole(&mut stream).await;
            assert_eq!((answer.status().as_u16(), answer.headers()["x-meshwright-reason"].to_str().unwrap()), (status, reason));
        }
        let mut stream = caller.ask(Request::post("https://a.example/").header("content-length", "5").body(()).unwrap()).await;
        stream.finish().await.unwrap();
        assert!(stream.recv_response().await.is_err(), "five bytes are said and none comes");
        assert!(world.applications.try_recv().is_err());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        let chain = https("a", terms(&own), &replying(LocalReply::of(Reason::Misdirected)));
        serve_chains_under(&world, vec![("a.example", chain)], with_http3(rules()));
        for _ in 0..2 {
            let (answer, _) = caller.get("b.example").await;
            assert_eq!((answer.status().as_u16(), answer.headers()["x-meshwright-reason"].to_str().unwrap()), (421, "misdirected"));
        }
    });
}

#[test]
fn who_goes_away_is_not_waited_for() {
    // Aim: a client that takes its request back ends it at the application; an answer that breaks off resets its stream and no other.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
        drop(stream);
        assert_eq!(rest(&mut application).await, "", "the application hears of it");
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        assert_eq!(stream.recv_response().await.unwrap().status(), 200);
        assert!(stream.recv_data().await.unwrap().is_some());
        drop(application);
        assert!(stream.recv_data().await.is_err(), "half an answer does not look whole");
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(whole(&mut stream).await.0.status(), 204);
    });
}

#[test]
fn a_drain_ends_connections_in_order() {
    // Aim: a client hears that no more is served, what is under way is answered, and then the connection is closed without an error; who comes is refused
    // at once.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        let shared = Rc::clone(&world.client);
        let drained = tokio::task::spawn_local(async move { worker::drain(&shared, Duration::from_secs(20)).await });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!drained.is_finished());
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        let (answer, body) = whole(&mut stream).await;
        assert_eq!((answer.status().as_u16(), body.as_str()), (200, "hi"));
        drop(stream);
        let over = caller.over.await.unwrap();
        assert!(over.is_h3_no_error(), "{over:?}");
        drained.await.unwrap();
        assert!(is_closed(&call(port.address, config(), "a.example").await.err().unwrap()));
    });
}

#[test]
fn a_port_closes_and_opens_with_the_configuration() {
    // Aim: one that is not wanted any more tells its clients and is gone when they are; one that is wanted again meanwhile takes clients again; where
    // the live configuration has none, a client is refused.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        // The harness ends a test that waits for ever.
        port.wanted.send_replace(false);
        let refused = loop {
            match call(port.address, config(), "a.example").await {
                Ok(early) => drop(early),
                Err(error) => break error,
            }
        };
        assert!(is_closed(&refused), "{refused:?}");
        port.wanted.send_replace(true);
        let second = loop {
            match call(port.address, config(), "a.example").await {
                Ok(second) => break second,
                Err(error) => assert!(is_closed(&error), "{error:?}"),
            }
        };
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert_eq!(whole(&mut stream).await.1, "hi");
        drop(stream);
        assert!(caller.over.await.unwrap().is_h3_no_error());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        serve_chains(&world, vec![("a.example", https("a", terms(&own), &table_of(&world)))]);
        assert!(is_closed(&call(port.address, config(), "a.example").await.err().unwrap()));
        port.wanted.send_replace(false);
        assert!(second.over.await.unwrap().is_h3_no_error());
        port.serving.await.unwrap();
    });
}

#[test]
fn who_comes_is_counted_once_its_address_is_proved() {
    // Aim: beyond the bound of handshakes a client has to answer first, which it does by itself; at the bound of an address the next one is closed.
    really(|| async {
        let world = World::new(http1());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        let bounds = AdmissionBounds { per_address: 1, ..AdmissionBounds::default() };
        let admission = Some(Arc::new(Admission::new(bounds)));
        let clients = ClientPolicy { admission, ..with_http3(ClientRules::default()) };
        serve_chains_under(&world, vec![("a.example", https("a", terms(&own), &table_of(&world)))], clients);
        for (unproved_max, retries) in [(0, 2), (QUIC_UNPROVED_MAX, 2)] {
            let port = open(&world, unproved_max);
            let first = call(port.address, config(), "a.example").await.unwrap();
            match call(port.address, config(), "a.example").await {
                Ok(second) => drop(second.quic.closed().await),
                Err(error) => assert!(is_closed(&error), "{error:?}"),
            }
            assert_eq!(world.client.observer.edge().http3_retries.load(Ordering::Relaxed), retries, "{unproved_max}");
            first.quic.close(0_u32.into(), b"");
            while world.client.observer.edge().http3_open.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_edge_clients_refused_total{bound=\"per_address\"} 2\n"), "{metrics}");
    });
}

#[test]
fn requests_that_are_taken_back_have_a_bound_over_quic() {
    // Aim: who takes back more than it may in a minute is sent away, and counted.
    really(|| async {
        let http2 = Http2Rules { resets_per_minute: 3, ..Http2Rules::default() };
        let (world, port) = edge(http1(), ClientRules { http2, ..ClientRules::default() });
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        for _ in 0..4 {
            let mut stream = caller.ask(get("a.example")).await;
            stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
            stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let error = caller.quic.closed().await;
        let excessive = |error: &quinn::ConnectionError| matches!(error, quinn::ConnectionError::ApplicationClosed(close) if u64::from(close.error_code) == 0x107);
        assert!(excessive(&error), "{error:?}");
        while world.client.observer.edge().http3_floods.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.client.observer.edge().http3_floods.load(Ordering::Relaxed), 1);
    });
}
