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
struct Issuer(EcdsaKeyPair, &'static str);

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), id)
    }

    fn jwks(&self) -> String {
        let point = self.0.public_key().as_ref();
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": self.1, "x": b64(&point[1..33]), "y": b64(&point[33..])}]}).to_string()
    }

    fn token(&self, subject: &str) -> String {
        let claims = json!({"iss": "https://id.example", "sub": subject, "exp": now_secs() + 600});
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

/// A pair whose server has a rule for tokens.
fn world(rule: TokenRule) -> World {
    let world = World::new(Setup { mode: MtlsMode::Permissive, ..Setup::default() });
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
        serve_keys(&mut world, &keys_answer(&new.jwks())).await;
        let before = cell.current().unwrap();
        until("new keys came", || !Arc::ptr_eq(&before, &cell.current().unwrap())).await;
        passed(&mut world, &mut client, &with(&new)).await;
        assert!(refused(&mut client, &with(&old)).await.starts_with("HTTP/1.1 401 "));
    });
}
