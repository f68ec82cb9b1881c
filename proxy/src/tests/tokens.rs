//! Tokens on the road to the application, and the keys they are judged by.

use std::time::SystemTime;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::authenticate::TokenFault;
use engine::model::build::Parts;
use engine::model::{DnsAnswer, Roots};
use prost::Name as _;
use proto::mesh::{Authentication, ClaimHeader, TokenHeader, TokenRule};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::callout::Callout;
use crate::callout::keys::KeyKeeper;
use crate::io::Draw;

/// Somebody who issues tokens, with a key of that identifier.
pub(super) struct Issuer(EcdsaKeyPair, &'static str);

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

impl Issuer {
    pub(super) fn new(id: &'static str) -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), id)
    }

    pub(super) fn jwks(&self) -> String {
        let point = self.0.public_key().as_ref();
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": self.1, "x": b64(&point[1..33]), "y": b64(&point[33..])}]}).to_string()
    }

    fn token(&self, subject: &str) -> String {
        self.says(&json!({"iss": "https://id.example", "sub": subject, "exp": now_secs() + 600}))
    }

    /// A token with these claims.
    pub(super) fn says(&self, claims: &serde_json::Value) -> String {
        let message = format!("{}.{}", b64(json!({"alg": "ES256", "kid": self.1}).to_string()), b64(claims.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", b64(signature))
    }
}

fn rule(jwks: &str, jwks_uri: &str) -> TokenRule {
    TokenRule {
        policy: "shop/tokens".into(),
        issuer: "https://id.example".into(),
        jwks: jwks.into(),
        jwks_uri: jwks_uri.into(),
        from_headers: vec![TokenHeader { name: "authorization".into(), prefix: "Bearer ".into() }],
        claims_to_headers: vec![ClaimHeader { claim: "sub".into(), header: "x-user".into() }],
        ..TokenRule::default()
    }
}

fn rules(rule: TokenRule) -> Option<Arc<engine::authenticate::Authentication>> {
    let mut parts = Parts::default();
    let any = proto::xds::pack(&Authentication { rules: vec![rule], withheld: None });
    parts.put(&Authentication::type_url(), "inbound", "1", &any).unwrap();
    parts.assemble(1, &Snapshot::default()).authentication
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A pair whose server has a rule for tokens.
fn world(rule: TokenRule) -> World {
    world_of(Protocol::Http, rule)
}

/// The same where its port is declared so.
fn world_of(protocol: Protocol, rule: TokenRule) -> World {
    let world = World::new(Setup { mode: MtlsMode::Permissive, protocol, ..Setup::default() });
    let snapshot = Snapshot { authentication: rules(rule), ..server_snapshot(&world.setup, 2) };
    world.server_means.snapshots.publish(Arc::new(snapshot));
    world
}

async fn ask(client: &mut Socket, headers: &str) {
    write(client, &format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
}

/// What the application sees of a request that passes.
async fn passed(world: &mut World, client: &mut Socket, headers: &str) -> String {
    ask(client, headers).await;
    let mut application = world.application().await;
    let seen = head(&mut application).await;
    write(&mut application, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert!(head(client).await.starts_with("HTTP/1.1 200 "));
    seen
}

/// What the caller is answered whose request does not pass.
async fn refused(client: &mut Socket, headers: &str) -> String {
    ask(client, headers).await;
    let answer = head(client).await;
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
    exactly(client, length).await;
    answer
}

#[test]
fn tokens_are_judged_request_by_request() {
    // Aim: without a token a request passes, with a good one its claims go along and the token does not, a bad one is answered 401 with a
    // challenge (gRPC: UNAUTHENTICATED); all on one connection, from a peer of the mesh and from outside.
    run(|| async {
        let issuer = Issuer::new("a");
        let mut world = world(rule(&issuer.jwks(), ""));
        for mut client in [world.dial(SERVICE), world.dial_server()] {
            let seen = passed(&mut world, &mut client, "x-user: root\r\n").await;
            assert!(!seen.contains("x-user"), "{seen}");
            for subject in ["ada", "ada", "bob"] {
                let good = format!("authorization: Bearer {}\r\nx-user: root\r\n", issuer.token(subject));
                let seen = passed(&mut world, &mut client, &good).await;
                assert!(
                    seen.contains(&format!("x-user: {subject}\r\n")) && !seen.contains("uthorization") && !seen.contains("root"),
                    "{seen}"
                );
            }
            let nominated = format!("authorization: Bearer {}\r\nconnection: x-user\r\n", issuer.token("ada"));
            assert!(passed(&mut world, &mut client, &nominated).await.contains("x-user: ada\r\n"));
            let bad = format!("authorization: Bearer {}\r\n", Issuer::new("a").token("eve"));
            let answer = refused(&mut client, &bad).await;
            assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("x-meshwright-reason: unauthenticated\r\n"), "{answer}");
            assert!(answer.contains("www-authenticate: Bearer error=\"invalid_token\", error_description=\""), "{answer}");
        }
    });
    for fault in [TokenFault::Expired, TokenFault::Several] {
        assert_eq!(crate::http::local_reply(fault.reply(), true).headers()["grpc-status"], "16");
    }
    assert_eq!(crate::http::local_reply(TokenFault::KeysPending.reply(), true).headers()["grpc-status"], "14");
}

#[test]
fn claims_do_not_come_in_trailers() {
    // Aim: some applications take trailers for more of the head: what claims fill is not said there either, in no spelling.
    run(|| async {
        let mut world = world(rule(&Issuer::new("a").jwks(), ""));
        for mut client in [world.dial(SERVICE), world.dial_server(), world.peer(Carries::H1).await] {
            let trailers = "x-user: root\r\nX_User: root\r\nx-own: 1\r\n";
            write(&mut client, &format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{trailers}\r\n"))
                .await;
            let mut application = world.application().await;
            head(&mut application).await;
            let body = head(&mut application).await;
            assert_eq!(body.to_lowercase(), "1\r\na\r\n0\r\nx-own: 1\r\n\r\n");
            write(&mut application, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
            head(&mut client).await;
        }
    });
}

#[test]
fn who_says_that_it_is_bytes_is_looked_at() {
    // Aim: at a port declared HTTP a peer's `mw-tcp` spares it nothing: its requests are judged and cleaned like others, and what is no HTTP is
    // answered 400.
    run(|| async {
        let mut world = world(rule(&Issuer::new("a").jwks(), ""));
        let mut peer = world.peer(Carries::Tcp).await;
        let seen = passed(&mut world, &mut peer, "x-user: root\r\nx-forwarded-client-cert: URI=forged\r\n").await;
        assert!(!seen.contains("root") && !seen.contains("forged") && seen.contains(FRONTEND), "{seen}");
        let mut peer = world.peer(Carries::Tcp).await;
        write(&mut peer, "EHLO a\r\n\r\n").await;
        assert!(rest(&mut peer).await.starts_with("HTTP/1.1 400 "));
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn undeclared_ports_carry_nothing_that_may_be_a_request_past_tokens() {
    // Aim: where tokens are judged, a request line that stalls or hides behind a blank line reaches no application of an undeclared port, by
    // whichever way it comes; requests are served as such, and other bytes pass, the server's first too.
    run(|| async {
        let mut world = world_of(Protocol::Auto, rule(&Issuer::new("a").jwks(), ""));
        for way in 0..3 {
            for begun in
                ["GE", "GET / HT", "\r\nGET / HTTP/1.1\r\nhost: a\r\nx-user: root\r\n\r\n", "GET\t/ HTTP/1.1\r\nx-user: root\r\n\r\n"]
            {
                let mut client = come(&world, way).await;
                write(&mut client, begun).await;
                assert_eq!(rest(&mut client).await, "", "{way} {begun:?}");
                assert!(world.applications.try_recv().is_err(), "{way} {begun:?}");
            }
            let mut client = come(&world, way).await;
            assert!(!passed(&mut world, &mut client, "x-user: root\r\n").await.contains("root"));
            let mut client = come(&world, way).await;
            write(&mut client, "EHLO a\r\n").await;
            let mut application = world.application().await;
            assert_eq!(exactly(&mut application, 8).await, "EHLO a\r\n");
            let mut client = come(&world, way).await;
            let mut application = world.application().await;
            write(&mut application, "220 ready\r\n").await;
            assert_eq!(exactly(&mut client, 11).await, "220 ready\r\n");
        }
    });
}

/// A connection from the mesh, from outside, or by a peer that says that it is bytes.
async fn come(world: &World, way: usize) -> Socket {
    match way {
        0 => world.dial(SERVICE),
        1 => world.dial_server(),
        _ => world.peer(Carries::Tcp).await,
    }
}

#[test]
fn rules_that_cannot_be_carried_out_let_nothing_in() {
    // Aim: where what was sent is broken and nothing good came before, every request is 503; also one without a token.
    run(|| async {
        let mut parts = Parts::default();
        let any = prost_types::Any { type_url: Authentication::type_url(), value: vec![0xff] };
        parts.put(&Authentication::type_url(), "inbound", "1", &any).unwrap_err();
        let broken = parts.assemble(1, &Snapshot::default()).authentication;
        let world = World::new(Setup::default());
        world.server_means.snapshots.publish(Arc::new(Snapshot { authentication: broken, ..server_snapshot(&world.setup, 2) }));
        let mut client = world.dial(SERVICE);
        let answer = refused(&mut client, "").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("policy_unavailable"), "{answer}");
    });
}

/// Serves a key set over mesh TLS: the server's application, asked by the client's proxy.
async fn serve_keys(world: &mut World, answer: &str) -> String {
    let mut application = world.application().await;
    let asked = head(&mut application).await;
    write(&mut application, answer).await;
    asked
}

fn keys_answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: max-age=600\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The client's proxy has the rule, and its keys are at a Service of the mesh.
fn keeping(world: &World) -> (JoinSet<()>, Arc<engine::authenticate::KeyCell>) {
    let means = &world.client_means;
    let authentication = rules(rule("", "http://catalog.shop/keys?v=1"));
    let cell = Arc::clone(authentication.iter().flat_map(|rules| rules.cells()).next().unwrap());
    let mut snapshot = Snapshot { authentication, ..client_snapshot(&world.setup, 2) };
    let answer = DnsAnswer { addresses: vec!["10.96.0.1".parse().unwrap()], ..DnsAnswer::default() };
    snapshot.names.insert("catalog.shop".into(), Arc::new(answer));
    means.snapshots.publish(Arc::new(snapshot));
    let callout = Callout::new(means.network.clone(), Arc::clone(&means.tls), means.snapshots.clone(), Roots::System);
    let keeper = KeyKeeper { callout, snapshots: means.snapshots.clone(), telemetry: Arc::clone(&means.telemetry) };
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run(Draw::seeded(1), CancellationToken::new()));
    (tasks, cell)
}

/// The client's proxy has the rule, its keys are at an address, and the world is changed before that. Whether a fetch was tried that called
/// nobody.
async fn calls_nobody(setup: Setup, uri: &str, change: impl FnOnce(&mut Snapshot, &Snapshots)) -> bool {
    let mut world = World::new(setup);
    let means = world.client_means.clone();
    let mut snapshot = Snapshot { authentication: rules(rule("", uri)), ..client_snapshot(&world.setup, 2) };
    let answer = DnsAnswer { addresses: vec!["10.96.0.1".parse().unwrap()], ..DnsAnswer::default() };
    snapshot.names.insert("catalog.shop".into(), Arc::new(answer));
    change(&mut snapshot, &means.snapshots);
    means.snapshots.publish(Arc::new(snapshot));
    let callout = Callout::new(means.network.clone(), Arc::clone(&means.tls), means.snapshots.clone(), Roots::System);
    let keeper = KeyKeeper { callout, snapshots: means.snapshots.clone(), telemetry: Arc::clone(&means.telemetry) };
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run(Draw::seeded(1), CancellationToken::new()));
    let failed = async {
        while means.telemetry.readings.key_fetches_failed.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        biased;
        _ = world.applications.recv() => false,
        () = failed => true,
    }
}

#[test]
fn keys_of_the_mesh_are_never_fetched_past_it_in_plaintext() {
    // Aim: a Service without an endpoint, one that nothing is known of while the control plane is away, and a name that may be the mesh's and
    // that it does not tell: nobody is called, and the host's resolver is not asked. (`0x7f000001` is an address to that alone.)
    run(|| async {
        const AT: &str = "http://catalog.shop/keys";
        let setup = Setup::default;
        assert!(calls_nobody(Setup { endpoints: Vec::new(), ..setup() }, AT, |_, _| {}).await, "no endpoint");
        let away = |snapshot: &mut Snapshot, snapshots: &Snapshots| {
            snapshot.outbound.clear();
            snapshots.wanted().connected(false);
        };
        assert!(calls_nobody(setup(), AT, away).await, "no listener");
        assert!(calls_nobody(setup(), "http://10.96.0.1/keys", away).await, "an address");
        let zoned = |snapshot: &mut Snapshot| {
            let settings = Settings::clone(snapshot.settings.as_ref().unwrap());
            snapshot.settings = Some(Arc::new(Settings { dns_zones: vec!["0x7f000001".into()], ..settings }));
        };
        let only = |snapshot: &mut Snapshot, snapshots: &Snapshots| {
            zoned(snapshot);
            snapshots.wanted().connected(false);
        };
        for uri in ["http://0x7f000001:81/keys", "https://0x7f000001:81/keys"] {
            assert!(calls_nobody(setup(), uri, only).await, "{uri}: a name that only the mesh has");
        }
        let perhaps = |_: &mut Snapshot, snapshots: &Snapshots| snapshots.wanted().connected(false);
        assert!(calls_nobody(setup(), "http://0x7f000001:81/keys", perhaps).await, "a name that the mesh may have");
        // Who proves itself may be anywhere but here.
        assert!(calls_nobody(setup(), "https://0x7f000001:81/keys", perhaps).await, "a name that leads to this machine");
    });
}

#[test]
fn a_call_to_oneself_leaves_others_their_way() {
    // Aim: where a port is in plaintext, a self-call's way into one's own inbound side is not taken for the way to the application: another
    // caller's request is judged once, and its claims arrive.
    run(|| async {
        let issuer = Issuer::new("a");
        let setup = Setup { mode: MtlsMode::Disabled, meshed: false, ..Setup::default() };
        let mut world = World::new(setup);
        let outbound = client_snapshot(&world.setup, 2).outbound;
        let snapshot = Snapshot { authentication: rules(rule(&issuer.jwks(), "")), outbound, ..server_snapshot(&world.setup, 2) };
        world.server_means.snapshots.publish(Arc::new(snapshot));
        let (mut own, far) = pipe();
        let arrival = Arrival { socket: far, peer: SERVER.parse().unwrap(), destination: SERVICE.parse().unwrap() };
        tokio::task::spawn_local(outbound::serve_connection(arrival, Rc::clone(&world.server)));
        ask(&mut own, "").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(head(&mut own).await.starts_with("HTTP/1.1 200 "));
        let mut client = world.dial_server();
        for _ in 0..2 {
            ask(&mut client, &format!("authorization: Bearer {}\r\n", issuer.token("ada"))).await;
            let seen = head(&mut application).await;
            assert!(seen.contains("x-user: ada\r\n"), "{seen}");
            write(&mut application, OK).await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        }
    });
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("not so: {what}");
}

#[test]
fn keys_are_fetched_from_a_service_of_the_mesh() {
    // Aim: the call goes to the Service's endpoint by mesh TLS (the port is Strict); keys that are missed are fetched anew, but not at once again;
    // failures leave the keys at hand and are counted.
    run(|| async {
        let mut world = World::new(Setup::default());
        let (_tasks, cell) = keeping(&world);
        let failed = {
            let telemetry = Arc::clone(&world.client_means.telemetry);
            move || telemetry.readings.key_fetches_failed.load(std::sync::atomic::Ordering::Relaxed)
        };
        let first = Issuer::new("a").jwks();
        let asked = serve_keys(&mut world, &keys_answer(&first)).await;
        assert!(asked.starts_with("GET /keys?v=1 HTTP/1.1\r\n") && asked.contains("host: catalog.shop\r\n"), "{asked}");
        assert!(asked.to_lowercase().contains("uri=spiffe://cluster.local/ns/shop/sa/frontend"), "{asked}");
        until("keys came", || cell.current().is_some()).await;
        let keys = cell.current().unwrap();
        for bad in ["HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(), keys_answer("<html>")] {
            let before = failed();
            serve_keys(&mut world, &bad).await;
            until("the failure was counted", || failed() > before).await;
            assert!(Arc::ptr_eq(&keys, &cell.current().unwrap()));
        }
        serve_keys(&mut world, &keys_answer(&Issuer::new("b").jwks())).await;
        until("other keys came", || !Arc::ptr_eq(&keys, &cell.current().unwrap())).await;
    });
}

#[test]
fn a_missed_key_is_fetched_anew() {
    // Aim: a rotation that the cache does not know of is followed by the first token of the new key: 503 once, then it holds.
    run(|| async {
        let mut world = world(rule("", "http://10.77.9.9:81/keys"));
        let (old, new) = (Issuer::new("old"), Issuer::new("new"));
        let means = world.server_means.clone();
        let callout = Callout::new(means.network.clone(), Arc::clone(&means.tls), means.snapshots.clone(), Roots::System);
        let keeper = KeyKeeper { callout, snapshots: means.snapshots.clone(), telemetry: Arc::clone(&means.telemetry) };
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run(Draw::seeded(1), CancellationToken::new()));
        let mut client = world.dial(SERVICE);
        let with = |issuer: &Issuer| format!("authorization: Bearer {}\r\n", issuer.token("ada"));
        serve_keys(&mut world, &keys_answer(&old.jwks())).await;
        let snapshot = means.snapshots.load();
        let cell = snapshot.authentication.iter().flat_map(|rules| rules.cells()).next().unwrap();
        until("keys came", || cell.current().is_some()).await;
        passed(&mut world, &mut client, &with(&old)).await;
        let answer = refused(&mut client, &with(&new)).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        // The wall clock is the machine's: the last fetch is made ten seconds older.
        cell.asked(now_secs() - 10);
        tokio::time::advance(Duration::from_secs(10)).await;
        let answer = refused(&mut client, &with(&new)).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
        let answer = refused(&mut client, &with(&new)).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "until they have come: {answer}");
        serve_keys(&mut world, &keys_answer(&new.jwks())).await;
        let before = cell.current().unwrap();
        until("new keys came", || !Arc::ptr_eq(&before, &cell.current().unwrap())).await;
        passed(&mut world, &mut client, &with(&new)).await;
        assert!(refused(&mut client, &with(&old)).await.starts_with("HTTP/1.1 401 "));
    });
}
