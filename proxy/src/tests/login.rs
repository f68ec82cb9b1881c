//! Logins over whole connections, with a provider that does what a test wants.

use engine::login::Endpoints;
use engine::model::Roots;
use proto::mesh;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::callers::Gate;
use super::tokens::Issuer;
use super::*;
use crate::callout::Callout;
use crate::callout::providers::ProviderKeeper;
use crate::io::Draw;

/// Where the provider is.
const PROVIDER: &str = "127.0.0.1:9000";
pub(super) const ISSUER: &str = "http://127.0.0.1:9000";
/// Each connection is seen once.
pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

pub(super) fn login() -> mesh::EdgeLogin {
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    mesh::EdgeLogin {
        policy: "shop/people".into(),
        issuer: ISSUER.into(),
        client_id: "edge".into(),
        scopes: vec!["openid".into()],
        redirect_path: "/oauth2/callback".into(),
        logout_path: "/oauth2/logout".into(),
        idle: secs(3_600),
        max: secs(36_000),
        refresh_at_percent: 80,
        keys: "login-keys".into(),
        access_token_header: "authorization".into(),
        ..mesh::EdgeLogin::default()
    }
}

/// A world whose people log in at a provider with these keys; `None`: at one that is not found yet.
fn site(issuer: Option<&Issuer>) -> (World, Gate) {
    site_of(issuer, &login())
}

pub(super) fn site_of(issuer: Option<&Issuer>, login: &mesh::EdgeLogin) -> (World, Gate) {
    let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.2:8088"], ..Setup::default() });
    // Tokens age in virtual time.
    world.client_means.telemetry = crate::observe::start(TelemetryOptions::default(), Clock::simulated(std::time::SystemTime::now())).0;
    world.client = worker::shared(&world.client_means, 1);
    let mut gate = Gate::new(mesh::EdgePolicy { login: Some(login.clone()), strip_logins: true, ..mesh::EdgePolicy::default() });
    let paths = mesh::EdgePolicy { login_paths: vec![login.clone()], ..mesh::EdgePolicy::default() };
    gate.before = vec![("/oauth2/callback", paths.clone()), ("/oauth2/logout", paths.clone()), ("/oauth2/ended", paths)];
    let keys = mesh::ShownSecret { name: "login-keys".into(), value: vec![b'k'; 64].into() };
    gate.put("consumers/00", &mesh::Consumers { secrets: vec![keys], ..mesh::Consumers::default() });
    gate.set(&world);
    if let Some(issuer) = issuer {
        gate.providers[0].publish(discovered(), issuer.jwks().as_bytes()).unwrap();
    }
    (world, gate)
}

fn document() -> String {
    let at = |path: &str| format!("{ISSUER}{path}");
    json!({"issuer": ISSUER, "authorization_endpoint": at("/auth"), "token_endpoint": at("/token"), "jwks_uri": at("/keys")}).to_string()
}

fn discovered() -> Endpoints {
    Endpoints::discovered(document().as_bytes(), ISSUER, &engine::login::issuer_address(ISSUER).unwrap()).unwrap()
}

/// A browser's request on a connection of its own.
pub(super) async fn browse(world: &World, target: &str, cookies: &str) -> Socket {
    let mut client = world.knock();
    let request = format!(
        "GET {target} HTTP/1.1\r\nhost: shop.example\r\nsec-fetch-mode: navigate\r\ncookie: a=b; {cookies}\r\nconnection: close\r\n\r\n"
    );
    write(&mut client, &request).await;
    client
}

/// The connection that the edge makes next, and whether it is to the provider.
pub(super) async fn reached(world: &mut World) -> (Socket, bool) {
    let called = tokio::time::timeout(Duration::from_secs(60), world.applications.recv()).await.expect("somebody is called");
    let (destination, socket) = called.expect("a connection");
    (socket, destination.to_string() == PROVIDER)
}

pub(super) fn header<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    answer.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

/// What a browser sends back of the cookies that an answer gives it.
pub(super) fn kept(answer: &str) -> String {
    let pairs = header(answer, "set-cookie").into_iter().filter(|cookie| !cookie.contains("Max-Age=0"));
    pairs.map(|cookie| cookie.split(';').next().unwrap()).collect::<Vec<_>>().join("; ")
}

pub(super) fn parameter(url: &str, name: &str) -> String {
    let pairs = url.split(['?', '&']).filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next().unwrap()
}

pub(super) async fn tells(socket: &mut Socket, status: &str, body: &str) -> String {
    let asked = head(socket).await;
    let length = header(&asked, "content-length").first().and_then(|length| length.parse().ok()).unwrap_or(0);
    let form = exactly(socket, length).await;
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    write(socket, &answer).await;
    asked + &form
}

/// Where a browser is sent, and what it keeps.
pub(super) async fn sent(world: &World) -> (String, String) {
    let mut client = browse(world, "/cart?x=1", "").await;
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 302"), "{answer}");
    (header(&answer, "location")[0].to_owned(), kept(&answer))
}

pub(super) fn callback(location: &str) -> String {
    format!("/oauth2/callback?code=abc&state={}", parameter(location, "state"))
}

pub(super) fn tokens(issuer: &Issuer, world: &World, nonce: &str, access: &str) -> String {
    let now = world.client.wall_secs();
    let claims = json!({"iss": ISSUER, "aud": "edge", "sub": "ada", "nonce": nonce, "exp": u64::from(now) + 600});
    let refresh = format!("{access}-refresh");
    json!({"access_token": access, "id_token": issuer.says(&claims), "refresh_token": refresh, "expires_in": 100}).to_string()
}

#[test]
fn a_browser_logs_in_and_its_session_is_refreshed_beside_the_road() {
    // Aim: over whole connections: the code is exchanged once, the session's requests ask nobody and show no cookie of it, a refresh begins beside
    // one of them while the provider takes its time, and the next one has what came of it.
    run(|| async {
        let issuer = Issuer::new("k");
        let (mut world, _gate) = site(Some(&issuer));
        let (location, binding) = sent(&world).await;
        assert!(
            location.starts_with("http://127.0.0.1:9000/auth?response_type=code&client_id=edge&redirect_uri=http%3A%2F%2Fshop.example%2F")
        );
        let mut client = browse(&world, &callback(&location), &binding).await;
        let (mut provider, asks) = reached(&mut world).await;
        assert!(asks);
        let asked = tells(&mut provider, "200 OK", &tokens(&issuer, &world, &parameter(&location, "nonce"), "one")).await;
        assert!(asked.starts_with("POST /token HTTP/1.1\r\n") && asked.contains("code_verifier="), "{asked}");
        // Else the next question comes on the same connection.
        drop(provider);
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 303") && header(&answer, "location") == ["/cart?x=1"], "{answer}");
        let mut cookies = kept(&answer);

        for bearer in ["one", "one"] {
            let mut client = browse(&world, "/cart", &cookies).await;
            let (mut backend, asks) = reached(&mut world).await;
            assert!(!asks);
            let seen = head(&mut backend).await;
            assert!(seen.contains(&format!("authorization: Bearer {bearer}\r\n")) && seen.contains("cookie: a=b\r\n"), "{seen}");
            assert!(!seen.contains("mw-login"), "{seen}");
            write(&mut backend, OK).await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
        }
        tokio::time::sleep(Duration::from_secs(90)).await;
        let mut client = browse(&world, "/cart", &cookies).await;
        let (first, second) = (reached(&mut world).await, reached(&mut world).await);
        let ((mut backend, _), (mut provider, _)) = if first.1 { (second, first) } else { (first, second) };
        assert!(head(&mut backend).await.contains("authorization: Bearer one\r\n"));
        write(&mut backend, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"), "it waits for nobody");
        let said = json!({"access_token": "two", "expires_in": 100}).to_string();
        let asked = tells(&mut provider, "200 OK", &said).await;
        assert!(asked.contains("grant_type=refresh_token&refresh_token=one-refresh"), "{asked}");
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut client = browse(&world, "/cart", &cookies).await;
        let (mut backend, asks) = reached(&mut world).await;
        assert!(!asks && head(&mut backend).await.contains("authorization: Bearer two\r\n"));
        write(&mut backend, OK).await;
        let answer = head(&mut client).await;
        cookies = kept(&answer);
        assert!(cookies.contains("mw-login"), "{answer}");
        let mut client = browse(&world, "/cart", &cookies).await;
        let (mut backend, _) = reached(&mut world).await;
        assert!(head(&mut backend).await.contains("authorization: Bearer two\r\n"));
        write(&mut backend, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_provider_that_does_not_answer_is_waited_for_so_long() {
    // Aim: refused, gone, hanging and garbled: 503 within its time, with the reason, and no session.
    run(|| async {
        for what in ["refuses", "gone", "hangs", "nonsense", "garbage"] {
            let issuer = Issuer::new("k");
            let (mut world, _gate) = site(Some(&issuer));
            let (location, binding) = sent(&world).await;
            if what == "refuses" {
                world.client_wires.refused.lock().insert(PROVIDER.parse().unwrap());
            }
            let began = tokio::time::Instant::now();
            let mut client = browse(&world, &callback(&location), &binding).await;
            let mut held = Vec::new();
            if what != "refuses" {
                let (mut provider, asks) = reached(&mut world).await;
                assert!(asks);
                match what {
                    "nonsense" => write(&mut provider, "SSH-2.0-nonsense\r\n\r\n").await,
                    "garbage" => _ = tells(&mut provider, "200 OK", "<html>").await,
                    _ => {}
                }
                if what != "gone" {
                    held.push(provider);
                }
            }
            let answer = head(&mut client).await;
            assert!(
                answer.starts_with("HTTP/1.1 503") && answer.contains("x-meshwright-reason: policy_unavailable\r\n"),
                "{what}: {answer}"
            );
            assert!(header(&answer, "set-cookie").is_empty(), "{what}: {answer}");
            assert!(began.elapsed() <= Duration::from_secs(11), "{what}: {:?}", began.elapsed());
        }
    });
}

#[test]
fn a_provider_is_looked_for_beside_the_road() {
    // Aim: until it is found nobody is sent to it (503), and the cause is kept for status; it is found by its own word, and then people are sent there;
    // when it is away again they are told so, and what was found stays.
    run(|| async {
        let issuer = Issuer::new("k");
        let (mut world, gate) = site(None);
        let mut client = browse(&world, "/", "").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503") && header(&answer, "retry-after") == ["1"], "{answer}");
        let means = world.client_means.clone();
        let callout = Callout::new(means.network.clone(), Arc::clone(&means.tls), means.snapshots.clone(), Roots::System);
        let keeper = ProviderKeeper { callout, snapshots: means.snapshots.clone(), telemetry: Arc::clone(&means.telemetry) };
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run(Draw::seeded(1), CancellationToken::new()));
        let (mut provider, _) = reached(&mut world).await;
        let asked = tells(&mut provider, "200 OK", "{\"issuer\": \"http://evil\"}").await;
        assert!(asked.starts_with("GET /.well-known/openid-configuration HTTP/1.1\r\n"), "{asked}");
        let (mut provider, _) = reached(&mut world).await;
        let why = means.telemetry.readings.providers_away.lock().get(ISSUER).cloned().unwrap();
        assert!(why.contains("its issuer is"), "{why}");
        tells(&mut provider, "200 OK", &document()).await;
        let (mut keys, _) = reached(&mut world).await;
        let asked = tells(&mut keys, "200 OK", &issuer.jwks()).await;
        assert!(asked.starts_with("GET /keys HTTP/1.1\r\n"), "{asked}");
        while gate.providers[0].is_away() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(means.telemetry.readings.providers_away.lock().is_empty());
        sent(&world).await;
        world.client_wires.refused.lock().insert(PROVIDER.parse().unwrap());
        while !gate.providers[0].is_away() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut client = browse(&world, "/", "").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 503"));
        assert!(gate.providers[0].current().is_some());
        tasks.abort_all();
    });
}
