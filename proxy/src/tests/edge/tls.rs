//! TLS of clients from outside, ended at an edge.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::failure::{LocalReply, Reason};
use engine::model::{
    ApplicationProtocol, Chain, Chains, ClientCertificates, ClientPolicy, Edge, Made, OwnCertificate, Port, Secret, SecretCell, Serves,
    TICKET_KEY_BYTES, TlsTerms, TlsVersion,
};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::road::gateway;
use crate::tls::{Anybody, provider};

const PORT: u16 = 443;

/// Stamps of secrets, as the engine gives them.
static STAMP: AtomicU64 = AtomicU64::new(1);

pub(super) fn put(cell: &SecretCell, secret: Option<Secret>) {
    cell.put(STAMP.fetch_add(1, Ordering::Relaxed), secret);
}

pub(super) fn cell(name: &str, secret: Option<Secret>) -> Arc<SecretCell> {
    let cell = Arc::new(SecretCell::new(name));
    put(&cell, secret);
    cell
}

/// A certificate for these names by that authority.
pub(super) fn certificate(authority: &Authority, names: &[&str]) -> Secret {
    let (chain, key) = issued(authority, names);
    Secret::Certificate(OwnCertificate { chain, key, ocsp: Vec::new() })
}

pub(super) fn issued(authority: &Authority, names: &[&str]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    authority.shaped("spiffe://outside/server", |params| {
        params.subject_alt_names = names.iter().map(|name| rcgen::SanType::DnsName((*name).try_into().unwrap())).collect();
    })
}

pub(super) fn terms(certificate: &Arc<SecretCell>) -> TlsTerms {
    TlsTerms {
        versions: (TlsVersion::V12, TlsVersion::V13),
        alpn: vec![ApplicationProtocol::Http2, ApplicationProtocol::Http1],
        certificates: vec![Arc::clone(certificate)],
        clients: None,
        tickets: None,
        plain_master_secret: false,
        made: Made::default(),
    }
}

pub(super) fn https(name: &str, terms: TlsTerms, table: &Arc<RouteTable>) -> Arc<Chain> {
    let serves = Serves::Http(Some(Arc::clone(table)));
    Arc::new(Chain { name: name.into(), terms: Some(Arc::new(terms)), serves, tells_client: true, policies: None })
}

/// Makes these chains live at the client's proxy, in an epoch of its own.
pub(super) fn serve_chains(world: &World, chains: Vec<(&str, Arc<Chain>)>) {
    serve_chains_under(world, chains, ClientPolicy::default());
}

/// The same, where something is said of clients.
pub(super) fn serve_chains_under(world: &World, chains: Vec<(&str, Arc<Chain>)>, clients: ClientPolicy) {
    let epoch = world.client_means.snapshots.load().epoch + 1;
    let mut snapshot = client_snapshot(&world.setup, epoch);
    let port = Port::Tls(Arc::new(Chains::leading(chains)));
    snapshot.edges.insert(PORT, Arc::new(Edge { name: "edge/443".into(), port, clients: Arc::new(clients), content: epoch }));
    world.client_means.snapshots.publish(Arc::new(snapshot));
}

pub(super) fn table_of(world: &World) -> Arc<RouteTable> {
    match &world.client_means.snapshots.load().edges[&80].port {
        Port::Http(table) => Arc::clone(table),
        _ => panic!("no HTTP"),
    }
}

/// A table of one answer for every host.
pub(super) fn replying(reply: LocalReply) -> Arc<RouteTable> {
    let text = |text: &str| Arc::<str>::from(text);
    let source = RuleSource { kind: text("HTTPRoute"), namespace: text("a"), name: text("b"), rule: text("0"), label: text("a/b") };
    let rule = Rule { id: 77, source, matches: Arc::new(Match::default()), action: Action::Reply(reply) };
    Arc::new(RouteTable::everywhere("edge/443/b", vec![Arc::new(rule)], 7))
}

/// A client from outside at the TLS port.
pub(super) fn knock(shared: &Rc<Shared>) -> Socket {
    let (near, far) = pipe();
    let arrival = Arrival { socket: far, peer: "192.0.2.9:5000".parse().unwrap(), destination: "10.0.0.1:8443".parse().unwrap() };
    serve(shared, Direction::Outbound, gateway::serve_connection(arrival, PORT, Rc::clone(shared)));
    near
}

/// How a client speaks TLS; it believes everybody.
pub(super) fn client(alpn: &[&str]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    config
}

pub(super) async fn connect(shared: &Rc<Shared>, config: &Arc<ClientConfig>, name: &str) -> io::Result<TlsStream<Socket>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, knock(shared)).await
}

pub(super) async fn get(stream: &mut TlsStream<Socket>, host: &str) -> String {
    let ask = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "{}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// The leaf that a server has shown.
fn leaf(stream: &TlsStream<Socket>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn first_of(cell: &SecretCell) -> CertificateDer<'static> {
    match &cell.load().secret {
        Some(Secret::Certificate(own)) => own.chain[0].clone(),
        _ => panic!("no certificate"),
    }
}

#[test]
fn https_is_ended_and_its_requests_go_into_the_mesh() {
    // Aim: over HTTP/1.1 the application hears of https, of its client, and nothing that the client forged; the end is said with a goodbye.
    run(|| async {
        let mut world = World::new(Setup::default());
        let authority = Authority::new("public");
        let own = cell("tls/shop/a", Some(certificate(&authority, &["a.example"])));
        serve_chains(&world, vec![("a.example", https("a", terms(&own), &table_of(&world)))]);
        let mut stream = connect(&world.client, &Arc::new(client(&["http/1.1"])), "a.example").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let ask =
            "GET / HTTP/1.1\r\nHost: a.example\r\nx-forwarded-proto: http\r\nx-forwarded-client-cert: URI=me\r\nconnection: close\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut application = world.application().await;
        let request = head(&mut application).await;
        for wanted in ["x-forwarded-proto: https\r\n", "x-forwarded-for: 192.0.2.9\r\n", FRONTEND] {
            assert!(request.contains(wanted), "{wanted}: {request}");
        }
        assert!(!request.contains("URI=me"), "{request}");
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        let mut answer = String::new();
        // An end without a goodbye would be an error here.
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhi"), "{answer}");
    });
}

#[test]
fn a_name_leads_to_its_chain_and_no_name_to_none() {
    // Aim: exact before wildcard; a name that nobody has is told so by its alert, as is plaintext by a reset, and other chains go on.
    run(|| async {
        let world = World::new(Setup::default());
        let authority = Authority::new("public");
        let cells = ["a.example", "*.example"].map(|name| cell(name, Some(certificate(&authority, &[name]))));
        let [exact, wild] = [0, 1].map(|place| https(["a", "wild"][place], terms(&cells[place]), &table_of(&world)));
        serve_chains(&world, vec![("a.example", exact), ("*.example", wild)]);
        let config = Arc::new(client(&[]));
        for (name, place) in [("a.example", 0), ("b.example", 1), ("a.b.example", 1)] {
            let stream = connect(&world.client, &config, name).await.unwrap();
            assert_eq!(leaf(&stream), first_of(&cells[place]), "{name}");
        }
        let error = connect(&world.client, &config, "other.org").await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        let mut nameless = client(&[]);
        nameless.enable_sni = false;
        let error = connect(&world.client, &Arc::new(nameless), "a.example").await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        let mut plain = knock(&world.client);
        write(&mut plain, "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
        assert_eq!(rest(&mut plain).await, "");
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_edge_unrecognized_names_total 2"), "{metrics}");
        assert!(metrics.contains("reason=\"no_route\""), "{metrics}");
    });
}

#[test]
fn versions_and_protocols_are_agreed_as_the_terms_say() {
    // Aim: ALPN h2, http/1.1, http/1.0 where there is nothing newer, none (HTTP/1.1) and only foreign ones (an alert); TLS versions within the terms.
    run(|| async {
        let world = World::new(Setup::default());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        serve_chains(&world, vec![("*", https("any", terms(&own), &table_of(&world)))]);
        for (offered, agreed) in [
            (&["h2", "http/1.1"][..], Some(Some("h2"))),
            (&["http/1.1", "h2"], Some(Some("h2"))),
            (&["http/1.1"], Some(Some("http/1.1"))),
            (&["http/1.0", "http/1.1"], Some(Some("http/1.1"))),
            (&["http/1.0"], Some(Some("http/1.0"))),
            (&[], Some(None)),
            (&["imap"], None),
        ] {
            let connected = connect(&world.client, &Arc::new(client(offered)), "a.example").await;
            let spoken = connected.as_ref().ok().map(|stream| stream.get_ref().1.alpn_protocol());
            let found = spoken.map(|name| name.map(|name| std::str::from_utf8(name).unwrap().to_owned()));
            assert_eq!(found.as_ref().map(|name| name.as_deref()), agreed, "{offered:?}: {:?}", connected.err());
        }
        let with = |versions: &[&'static rustls::SupportedProtocolVersion]| {
            let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody))
                .with_no_client_auth();
            config.resumption = Resumption::disabled();
            Arc::new(config)
        };
        for (min, max, old, new) in [
            (TlsVersion::V12, TlsVersion::V13, true, true),
            (TlsVersion::V13, TlsVersion::V13, false, true),
            (TlsVersion::V12, TlsVersion::V12, true, false),
        ] {
            let terms = TlsTerms { versions: (min, max), ..terms(&own) };
            serve_chains(&world, vec![("*", https("any", terms, &table_of(&world)))]);
            let old_works = connect(&world.client, &with(&[&TLS12]), "a.example").await.is_ok();
            let new_works = connect(&world.client, &with(&[&TLS13]), "a.example").await.is_ok();
            assert_eq!((old_works, new_works), (old, new), "{min:?} {max:?}");
        }
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("version=\"TLSv1.2\",cipher=\"TLS_ECDHE_ECDSA_WITH_"), "{metrics}");
    });
}

#[test]
fn the_right_certificate_of_several_is_shown() {
    // Aim: the one that is for the name; of two that are, the modern one, where the client can verify it.
    run(|| async {
        let world = World::new(Setup::default());
        let authority = Authority::new("public");
        let cells = [&["a.example"][..], &["b.example", "*.b.example"]].map(|names| cell(names[0], Some(certificate(&authority, names))));
        let terms = TlsTerms { certificates: cells.to_vec(), ..terms(&cells[0]) };
        serve_chains(&world, vec![("*", https("any", terms, &table_of(&world)))]);
        let config = Arc::new(client(&[]));
        for (name, place) in [("a.example", 0), ("b.example", 1), ("x.b.example", 1), ("x.y.b.example", 0), ("other.org", 0)] {
            assert_eq!(leaf(&connect(&world.client, &config, name).await.unwrap()), first_of(&cells[place]), "{name}");
        }
    });
}

#[test]
fn certificates_rotate_under_traffic() {
    // Aim: no epoch, no gap: who is connected stays, who comes gets the new one; a secret that goes is missed by its chain alone.
    run(|| async {
        let mut world = World::new(Setup::default());
        let authority = Authority::new("public");
        let [own, other] = ["a.example", "b.example"].map(|name| cell(name, Some(certificate(&authority, &[name]))));
        let [a, b] = [(&own, "a"), (&other, "b")].map(|(cell, name)| https(name, terms(cell), &table_of(&world)));
        serve_chains(&world, vec![("a.example", a), ("b.example", b)]);
        let config = Arc::new(client(&["http/1.1"]));
        let mut live = connect(&world.client, &config, "a.example").await.unwrap();
        let before = leaf(&live);
        put(&own, Some(certificate(&authority, &["a.example"])));
        let after = leaf(&connect(&world.client, &config, "a.example").await.unwrap());
        assert!(before != after && after == first_of(&own));
        live.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
        let mut byte = [0; 12];
        live.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"HTTP/1.1 204");
        // What cannot be used is not used.
        let (chain, _) = issued(&authority, &["a.example"]);
        let (_, strange) = issued(&authority, &["a.example"]);
        put(&own, Some(Secret::Certificate(OwnCertificate { chain, key: strange, ocsp: Vec::new() })));
        assert_eq!(leaf(&connect(&world.client, &config, "a.example").await.unwrap()), after);
        put(&own, None);
        let error = connect(&world.client, &config, "a.example").await.unwrap_err();
        assert!(error.to_string().contains("InternalError"), "{error}");
        assert!(connect(&world.client, &config, "b.example").await.is_ok());
        put(&own, Some(certificate(&authority, &["a.example"])));
        assert!(connect(&world.client, &config, "a.example").await.is_ok());
    });
}

#[test]
fn what_is_misdirected_is_told_so() {
    // Aim: an answer of 421 per request on one connection, over HTTP/1.1; and a connection whose client certificate rules changed.
    run(|| async {
        let world = World::new(Setup::default());
        let authority = Authority::new("public");
        let own = cell("tls", Some(certificate(&authority, &["a.example"])));
        let chain = || https("a", terms(&own), &replying(LocalReply::of(Reason::Misdirected)));
        serve_chains(&world, vec![("a.example", chain())]);
        let mut live = connect(&world.client, &Arc::new(client(&["http/1.1"])), "a.example").await.unwrap();
        for _ in 0..2 {
            let answer = get(&mut live, "b.example").await;
            assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("x-meshwright-reason: misdirected"), "{answer}");
            drain_body(&mut live, &answer).await;
        }
        let clients = ClientCertificates { authorities: cell("ca", None), required: true, untrusted: false };
        let stricter = TlsTerms { clients: Some(clients), ..terms(&own) };
        let nowhere = replying(LocalReply::of(Reason::NoRoute));
        serve_chains(&world, vec![("a.example", https("a", stricter, &nowhere))]);
        let answer = get(&mut live, "a.example").await;
        assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("connection: close"), "{answer}");
        // Another certificate is no other rule: a connection goes on by the table of now.
        let mut second = {
            serve_chains(&world, vec![("a.example", chain())]);
            connect(&world.client, &Arc::new(client(&["http/1.1"])), "a.example").await.unwrap()
        };
        let renewed = cell("tls/new", Some(certificate(&authority, &["a.example"])));
        serve_chains(&world, vec![("*.example", https("wild", terms(&renewed), &nowhere))]);
        assert!(get(&mut second, "a.example").await.starts_with("HTTP/1.1 404 "));
    });
}

/// Reads what a head's length says.
pub(super) async fn drain_body(stream: &mut TlsStream<Socket>, head: &str) {
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
}

#[test]
fn requests_over_http2_are_answered_inside_tls() {
    // Aim: ALPN h2 to an application of HTTP/1.1, and 421 on a stream that does not end the connection.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        serve_chains(&world, vec![("a.example", https("a", terms(&own), &table_of(&world)))]);
        let stream = connect(&world.client, &Arc::new(client(&["h2"])), "a.example").await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        let mut sender = sender.ready().await.unwrap();
        let request = http::Request::get("https://a.example/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let mut application = world.application().await;
        let asked = head(&mut application).await;
        assert!(asked.contains("x-forwarded-proto: https\r\n"), "{asked}");
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(answer.await.unwrap().status(), 200);
        let misdirected = https("a", terms(&own), &replying(LocalReply::of(Reason::Misdirected)));
        serve_chains(&world, vec![("a.example", misdirected)]);
        for _ in 0..2 {
            sender = sender.ready().await.unwrap();
            let request = http::Request::get("https://b.example/").body(()).unwrap();
            let answer = sender.send_request(request, true).unwrap().0.await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.headers()["x-meshwright-reason"].to_str().unwrap()), (421, "misdirected"));
        }
    });
}

/// A client with a certificate of its own.
pub(super) fn showing(authority: &Authority, uri: &str) -> ClientConfig {
    let (chain, key) = authority.shaped(uri, |_| {});
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// What the application hears of a client's certificate; `None`: the client is not let in.
pub(super) async fn forwarded(world: &mut World, config: ClientConfig) -> Option<String> {
    let request = heard(world, config, "").await?;
    Some(request.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).unwrap_or_default().to_owned())
}

/// What the application hears; `None`: the client is not let in. `more`: headers that the client sends.
pub(super) async fn heard(world: &mut World, config: ClientConfig, more: &str) -> Option<String> {
    let mut stream = connect(&world.client, &Arc::new(config), "a.example").await.ok()?;
    // In TLS 1.3 a client hears only afterwards that it is not believed.
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: a.example\r\n{more}\r\n").as_bytes()).await.ok()?;
    let mut byte = [0];
    let mut application = tokio::select! {
        application = world.application() => application,
        _ = stream.read(&mut byte) => return None,
    };
    let request = head(&mut application).await;
    write(&mut application, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    Some(request)
}

#[test]
fn clients_prove_themselves_by_certificates() {
    // Aim: AllowValidOnly lets in whom its authority vouches for; AllowInsecureFallback lets all in and believes nothing unproved.
    run(|| async {
        let (partners, strangers) = (Authority::new("partners"), Authority::new("strangers"));
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        for (required, untrusted, table) in
            [(true, false, [true, false, false]), (false, true, [true, true, true]), (false, false, [true, false, true])]
        {
            let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.9:9000"], ..Setup::default() });
            let authorities = cell("ca", Some(Secret::Authorities(partners.roots())));
            let terms = TlsTerms { clients: Some(ClientCertificates { authorities, required, untrusted }), ..terms(&own) };
            serve_chains(&world, vec![("a.example", https("a", terms, &table_of(&world)))]);
            let partner = forwarded(&mut world, showing(&partners, "spiffe://partner/acme")).await;
            let stranger = forwarded(&mut world, showing(&strangers, "spiffe://partner/acme")).await;
            let nobody = forwarded(&mut world, client(&["http/1.1"])).await;
            assert_eq!([partner.is_some(), stranger.is_some(), nobody.is_some()], table, "{required} {untrusted}");
            let told = partner.unwrap();
            assert!(told.starts_with("Hash=") && told.ends_with("Subject=\"CN=x\";URI=spiffe://partner/acme"), "{told}");
            assert_eq!(stranger.unwrap_or_default(), "");
            assert_eq!(nobody.unwrap_or_default(), "");
        }
    });
}

fn keys(byte: u8) -> Secret {
    Secret::TicketKeys(vec![[byte; TICKET_KEY_BYTES]])
}

/// A client that keeps its sessions.
fn remembering(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.resumption = Resumption::in_memory_sessions(8);
    Arc::new(config)
}

/// Whether a session is resumed; takes its ticket.
async fn resumed(shared: &Rc<Shared>, config: &Arc<ClientConfig>) -> bool {
    let mut stream = connect(shared, config, "a.example").await.unwrap();
    let kind = stream.get_ref().1.handshake_kind();
    // Tickets come with what is read first.
    get(&mut stream, "a.example").await;
    kind == Some(HandshakeKind::Resumed)
}

#[test]
fn sessions_are_resumed_by_every_proxy_that_has_the_keys() {
    // Aim: a ticket of one proxy opens at another with the same keys, until they have rotated away, and not under other rules for clients.
    run(|| async {
        for versions in [(TlsVersion::V12, TlsVersion::V13), (TlsVersion::V12, TlsVersion::V12)] {
            let worlds = [World::new(Setup::default()), World::new(Setup::default())];
            let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
            let tickets = [cell("tickets", Some(keys(1))), cell("tickets", Some(keys(1)))];
            let nowhere = replying(LocalReply::of(Reason::NoRoute));
            for (world, tickets) in worlds.iter().zip(&tickets) {
                let terms = TlsTerms { versions, tickets: Some(Arc::clone(tickets)), ..terms(&own) };
                serve_chains(world, vec![("*", https("a", terms, &nowhere))]);
            }
            let client = remembering(client(&["http/1.1"]));
            assert!(!resumed(&worlds[0].client, &client).await);
            assert!(resumed(&worlds[0].client, &client).await, "{versions:?}");
            assert!(resumed(&worlds[1].client, &client).await, "{versions:?}");
            // The newest seals, older ones open.
            put(&tickets[1], Some(Secret::TicketKeys(vec![[2; TICKET_KEY_BYTES], [1; TICKET_KEY_BYTES]])));
            assert!(resumed(&worlds[1].client, &client).await);
            put(&tickets[1], Some(keys(3)));
            assert!(!resumed(&worlds[1].client, &client).await);
            assert!(resumed(&worlds[1].client, &client).await);
            // Other rules for clients: a session of before is none.
            let authorities = cell("ca", Some(Secret::Authorities(Authority::new("partners").roots())));
            let clients = Some(ClientCertificates { authorities, required: false, untrusted: false });
            let asking = TlsTerms { versions, tickets: Some(Arc::clone(&tickets[1])), clients, ..terms(&own) };
            serve_chains(&worlds[1], vec![("*", https("a", asking, &nowhere))]);
            assert!(!resumed(&worlds[1].client, &client).await);
        }
    });
}

#[test]
fn a_resumed_session_is_judged_anew() {
    // Aim: authorities that changed end the sessions that rested on them; who is still believed is known again with its certificate.
    run(|| async {
        let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.9:9000"], ..Setup::default() });
        let partners = Authority::new("partners");
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        let authorities = cell("ca", Some(Secret::Authorities(partners.roots())));
        let clients = Some(ClientCertificates { authorities: Arc::clone(&authorities), required: true, untrusted: false });
        let terms = TlsTerms { tickets: Some(cell("tickets", Some(keys(1)))), clients, ..terms(&own) };
        serve_chains(&world, vec![("*", https("a", terms, &table_of(&world)))]);
        let mut config = showing(&partners, "spiffe://partner/acme");
        config.resumption = Resumption::in_memory_sessions(8);
        for _ in 0..2 {
            let told = forwarded(&mut world, config.clone()).await.unwrap();
            assert!(told.ends_with("URI=spiffe://partner/acme"), "{told}");
        }
        put(&authorities, Some(Secret::Authorities(Authority::new("others").roots())));
        assert_eq!(forwarded(&mut world, config.clone()).await, None);
    });
}

#[test]
fn hellos_come_in_any_shape() {
    // Aim: byte by byte, in eight small records, and of nearly 16 KiB a ClientHello finds its chain; garbage behind its first bytes is TLS
    // that fails.
    run(|| async {
        let world = World::new(Setup::default());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        serve_chains(&world, vec![("a.example", https("a", terms(&own), &replying(LocalReply::of(Reason::NoRoute))))]);
        // With a post-quantum key share of more than 1 KiB: longer ones than 16 KiB are not looked into.
        let long: Vec<String> = (0..62).map(|n| format!("{n:0>220}")).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).chain(["http/1.1"]).collect();
        for (alpn, cut) in [(&["http/1.1"][..], Cut::Bytes), (&["http/1.1"], Cut::Records), (&long, Cut::Whole), (&long, Cut::Records)] {
            let name = ServerName::try_from("a.example").unwrap();
            let mut session = rustls::ClientConnection::new(Arc::new(client(alpn)), name).unwrap();
            let mut hello = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut hello).unwrap();
            }
            let mut socket = knock(&world.client);
            for piece in cut.pieces(&hello) {
                socket.write_all(&piece).await.unwrap();
                socket.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut record = [0; 6];
            socket.read_exact(&mut record).await.unwrap();
            assert_eq!((record[0], record[5]), (22, 2), "a ServerHello: {record:?}");
        }
        let mut broken = knock(&world.client);
        broken.write_all(&[22, 3, 1, 0, 9, 1, 0, 0, 5, 3, 3, 7, 7, 7]).await.unwrap();
        let mut said = Vec::new();
        let _ = broken.read_to_end(&mut said).await;
        assert_eq!(said.first(), Some(&21), "an alert: {said:?}");
    });
}

/// How a client's first words come.
#[derive(Clone, Copy)]
enum Cut {
    Whole,
    Bytes,
    Records,
}

impl Cut {
    fn pieces(self, hello: &[u8]) -> Vec<Vec<u8>> {
        match self {
            Self::Whole => vec![hello.to_vec()],
            Self::Bytes => hello.iter().map(|byte| vec![*byte]).collect(),
            Self::Records => {
                let mut message = Vec::new();
                let mut rest = hello;
                while let [_, _, _, high, low, content @ ..] = rest {
                    let length = usize::from(*high) << 8 | usize::from(*low);
                    message.extend_from_slice(&content[..length]);
                    rest = &content[length..];
                }
                let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
                message.chunks(message.len().div_ceil(8)).map(record).collect()
            }
        }
    }
}

#[test]
fn a_handshake_has_its_time_and_its_place() {
    // Aim: a client that says nothing, or half a handshake, is let go; beyond the bound handshakes wait, and are counted.
    run(|| async {
        let world = World::new(Setup::default());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        serve_chains(&world, vec![("*", https("a", terms(&own), &replying(LocalReply::of(Reason::NoRoute))))]);
        let began = tokio::time::Instant::now();
        let mut silent = knock(&world.client);
        assert_eq!(rest(&mut silent).await, "");
        let waited = began.elapsed();
        assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11), "{waited:?}");
        let mut session = rustls::ClientConnection::new(Arc::new(client(&[])), ServerName::try_from("a.example").unwrap()).unwrap();
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        let mut half = knock(&world.client);
        half.write_all(&hello).await.unwrap();
        let began = tokio::time::Instant::now();
        rest(&mut half).await;
        assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
        let taken = world.client.handshakes.places().acquire_many(crate::ground::limits::HANDSHAKES_MAX as u32).await.unwrap();
        let config = Arc::new(client(&[]));
        let waiting = connect(&world.client, &config, "a.example");
        assert!(tokio::time::timeout(Duration::from_secs(5), waiting).await.is_err());
        drop(taken);
        assert!(connect(&world.client, &config, "a.example").await.is_ok());
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_edge_handshakes_full_total 1"), "{metrics}");
    });
}
