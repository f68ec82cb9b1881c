//! Who may call: policies on the server's side, over both proxies.

use std::time::Duration;

use engine::authorize::Authorization;
use engine::explain;
use engine::model::build::Parts;
use engine::model::{MtlsMode, Protocol};
use http::Request;
use proptest::prelude::*;
use prost::Name;
use proto::mesh::authorization_policy::Action as Does;
use proto::mesh::path_pattern::Kind;
use proto::mesh::{AuthorizationPolicy, AuthorizationRule, CallSource, CallTarget, PathPattern};
use proto::xds::matcher::StringMatcher;
use proto::xds::matcher::string_matcher::MatchPattern;
use proto::xds::route::HeaderMatcher;
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use tokio::time::Instant;

use super::*;
use crate::observe::CallsTold;
use crate::status::inspect::{self, Time};

const ASK: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const UPGRADE: &str = "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

pub(super) fn policy(name: &str, action: Does, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { name: format!("shop/{name}"), action: action.into(), dry_run: false, rules }
}

fn from(principal: &str) -> AuthorizationRule {
    let source = CallSource { principals: vec![principal.into()], ..CallSource::default() };
    AuthorizationRule { name: "peers".into(), from: vec![source], ..AuthorizationRule::default() }
}

pub(super) fn below(path: &str) -> AuthorizationRule {
    let target = CallTarget { paths: vec![PathPattern { kind: Some(Kind::Prefix(path.into())) }], ..CallTarget::default() };
    AuthorizationRule { name: "paths".into(), to: vec![target], ..AuthorizationRule::default() }
}

/// What a proxy makes of a policy that allows this principal alone.
pub(super) fn allowing(principal: &str) -> Option<Arc<Authorization>> {
    staged(vec![policy("a", Does::Allow, vec![from(principal)])])
}

/// What a proxy makes of them.
pub(super) fn staged(policies: Vec<AuthorizationPolicy>) -> Option<Arc<Authorization>> {
    let mut parts = Parts::default();
    let any = proto::xds::pack(&proto::mesh::Authorization { policies, dry_run: false });
    let _ = parts.put(&proto::mesh::Authorization::type_url(), proto::names::INBOUND, "1", &any);
    parts.assemble(1, &Snapshot::default()).authorization
}

impl World {
    /// Other policies go live at the server.
    fn govern(&self, epoch: u64, policies: Vec<AuthorizationPolicy>) {
        let snapshot = Snapshot { authorization: staged(policies), ..server_snapshot(&self.setup, epoch) };
        self.server_means.snapshots.publish(Arc::new(snapshot));
    }

    /// The server's ports become Strict.
    fn turn_strict(&self, epoch: u64) {
        let setup = Setup { mode: MtlsMode::Strict, protocol: self.setup.protocol, ..Setup::default() };
        self.server_means.snapshots.publish(Arc::new(server_snapshot(&setup, epoch)));
    }

    pub(super) fn governed(setup: Setup, policies: Vec<AuthorizationPolicy>) -> Self {
        let world = Self::new(setup);
        world.govern(2, policies);
        world
    }

    /// Lines of the server's metrics that begin so, without those of zero.
    fn counted(&self, name: &str) -> Vec<String> {
        let text = self.server_means.telemetry.render();
        text.lines().filter(|line| line.starts_with(name) && !line.ends_with(" 0")).map(str::to_owned).collect()
    }
}

/// Policies of every kind for the client that tests have, its address and the paths they ask for; often none.
pub(super) fn some_policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let blocks = CallSource { ip_blocks: vec!["10.77.0.0/16".into()], ..CallSource::default() };
    let rule = prop_oneof![
        Just(from(FRONTEND)),
        Just(from(CATALOG)),
        Just(from("*")),
        Just(below("/")),
        Just(below("/nowhere")),
        Just(AuthorizationRule { not_from: from("*").from, ..AuthorizationRule::default() }),
        Just(AuthorizationRule { from: vec![blocks], ..AuthorizationRule::default() }),
        Just(AuthorizationRule { when: "request.path == '/'".into(), ..AuthorizationRule::default() }),
    ];
    let action = prop_oneof![2 => Just(Does::Allow), 1 => Just(Does::Deny), 1 => Just(Does::Audit)];
    let one = (action, proptest::collection::vec(rule, 0..3), any::<bool>())
        .prop_map(|(action, rules, dry_run)| AuthorizationPolicy { dry_run, ..policy("p", action, rules) });
    prop_oneof![1 => Just(Vec::new()), 2 => proptest::collection::vec(one, 1..3)]
}

#[test]
fn http_is_denied_request_by_request() {
    // Aim: on one connection a request that may not come is answered 403 and its application never hears of it; the next one goes on.
    run(|| async {
        let mut world = World::governed(Setup::default(), vec![policy("a", Does::Allow, vec![below("/a")])]);
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = answered(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("x-meshwright-reason: denied\r\n"), "{answer}");
        assert!(world.applications.try_recv().is_err());
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(answered(&mut client).await.starts_with("HTTP/1.1 200 "));
        let rulings = world.counted("meshwright_policy_rulings_total");
        assert!(
            matches!(&rulings[..], [one] if one.contains("policy=\"shop/a\",verdict=\"denied\"") && one.ends_with(" 1")),
            "{rulings:?}"
        );
        let denied = world.counted("meshwright_policy_denied_total");
        assert!(
            matches!(&denied[..], [one] if one.contains("reason=\"denied\"") && one.contains("source_workload=\"frontend\"")),
            "{denied:?}"
        );
    });
}

#[test]
fn peers_are_told_apart_and_plaintext_is_nobody() {
    // Aim: a rule for principals lets its peer in and nobody who proves nothing; HTTP is told so by an answer, whoever it is.
    run(|| async {
        let permissive = || Setup { mode: MtlsMode::Permissive, ..Setup::default() };
        for (principal, wanted) in [(FRONTEND, "200"), (CATALOG, "403"), ("*", "200")] {
            let mut world = World::governed(permissive(), vec![policy("a", Does::Allow, vec![from(principal)])]);
            let mut plain = world.dial_server();
            write(&mut plain, ASK).await;
            assert!(head(&mut plain).await.starts_with("HTTP/1.1 403 "));
            let mut client = world.dial(SERVICE);
            write(&mut client, ASK).await;
            if wanted == "200" {
                let mut application = world.application().await;
                head(&mut application).await;
                write(&mut application, OK).await;
            }
            assert!(head(&mut client).await.starts_with(&format!("HTTP/1.1 {wanted} ")));
        }
    });
}

#[test]
fn grpc_is_answered_in_its_own_words() {
    // Aim: over HTTP/2 a denial is PERMISSION_DENIED in one header block, and the connection goes on.
    run(|| async {
        let mut world = World::governed(Setup::default(), vec![policy("d", Does::Deny, vec![below("/secret")])]);
        let mut sender = http2::client(world.dial(SERVICE)).await;
        let denied = sender.send_request(http2::call("/secret/all", "hello")).await.unwrap();
        assert_eq!((denied.status().as_u16(), denied.headers()["grpc-status"].as_bytes()), (200, &b"7"[..]));
        assert_eq!(denied.headers()["x-meshwright-reason"], "denied");
        let served = tokio::task::spawn_local(async move { sender.send_request(http2::call("/a", "hello")).await.unwrap() });
        let socket = world.application().await;
        tokio::task::spawn_local(http2::application(socket));
        http2::finished(served.await.unwrap()).await;
    });
}

#[test]
fn audits_and_trials_let_all_pass() {
    // Aim: what audits and what is on trial is counted by name and rule, and the request reaches its application.
    run(|| async {
        let trial = AuthorizationPolicy { dry_run: true, ..policy("t", Does::Deny, vec![below("/a")]) };
        let mut world = World::governed(Setup::default(), vec![policy("u", Does::Audit, vec![from(FRONTEND)]), trial]);
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        let rulings = world.counted("meshwright_policy_rulings_total").join("\n");
        assert!(rulings.contains("policy=\"shop/u/peers\",verdict=\"audited\""), "{rulings}");
        assert!(rulings.contains("policy=\"shop/t/paths\",verdict=\"would_deny\""), "{rulings}");
        assert!(world.counted("meshwright_policy_denied_total").is_empty());
    });
}

#[test]
fn opaque_bytes_are_denied_before_anything_is_opened() {
    // Aim: a connection of bytes that may not come is closed, and its application sees none: not even where both sides are watched first.
    run(|| async {
        for (mode, protocol) in
            [(MtlsMode::Strict, Protocol::Tcp), (MtlsMode::Permissive, Protocol::Auto), (MtlsMode::Strict, Protocol::Auto)]
        {
            let setup = Setup { mode, protocol, ..Setup::default() };
            let mut world = World::governed(setup, vec![policy("a", Does::Allow, vec![from(CATALOG)])]);
            let mut client = world.dial(SERVICE);
            write(&mut client, "hello").await;
            assert_eq!(rest(&mut client).await, "", "{mode:?} {protocol:?}");
            if mode == MtlsMode::Permissive {
                let mut plain = world.dial_server();
                tokio::time::sleep(Duration::from_secs(1)).await;
                write(&mut plain, "hello").await;
                assert_eq!(rest(&mut plain).await, "");
            }
            assert!(world.applications.try_recv().is_err());
            let rulings = world.counted("meshwright_policy_rulings_total").join("\n");
            assert!(rulings.contains("policy=\"shop/a\",verdict=\"denied\""), "{rulings}");
            let closed = world.counted("meshwright_tcp_connections_closed_total").join("\n");
            assert!(closed.contains("reason=\"denied\""), "{closed}");
        }
    });
}

/// The next answer's head; its body is read to the end.
async fn answered(client: &mut Socket) -> String {
    let answer = head(client).await;
    let length = answer.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|length| length.parse().ok());
    exactly(client, length.unwrap_or(0)).await;
    answer
}

/// Two ends between which bytes go both ways.
async fn talk(client: &mut Socket, application: &mut Socket) {
    write(client, "ping").await;
    assert_eq!(exactly(application, 4).await, "ping");
    write(application, "pong").await;
    assert_eq!(exactly(client, 4).await, "pong");
}

#[test]
fn a_change_of_policies_closes_what_it_denies() {
    // Aim: an open opaque connection that may not be any more is cut within a second, another goes on, and nothing happens without a change.
    run(|| async {
        let setup = Setup { mode: MtlsMode::Permissive, protocol: Protocol::Tcp, ..Setup::default() };
        let mut world = World::governed(setup, vec![policy("a", Does::Allow, vec![from("*"), AuthorizationRule::default()])]);
        let mut meshed = world.dial(SERVICE);
        let mut behind_meshed = world.application().await;
        let mut plain = world.dial_server();
        let mut behind_plain = world.application().await;
        talk(&mut meshed, &mut behind_meshed).await;
        talk(&mut plain, &mut behind_plain).await;
        assert_eq!(world.server.standing.len(), 2);
        world.server_means.snapshots.wake();
        talk(&mut plain, &mut behind_plain).await;
        world.govern(3, vec![policy("a", Does::Allow, vec![from(FRONTEND)])]);
        let began = Instant::now();
        assert!(plain.read(&mut [0]).await.is_err());
        assert!(behind_plain.read(&mut [0]).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(1));
        talk(&mut meshed, &mut behind_meshed).await;
        // Nobody is selected any more, then everybody is denied.
        world.govern(4, vec![]);
        talk(&mut meshed, &mut behind_meshed).await;
        world.govern(5, vec![policy("d", Does::Deny, vec![AuthorizationRule::default()])]);
        assert!(meshed.read(&mut [0]).await.is_err());
        assert!(world.server.standing.is_empty());
        let rulings = world.counted("meshwright_policy_rulings_total").join("\n");
        assert!(rulings.contains("policy=\"shop/d/0\",verdict=\"denied\""), "{rulings}");
    });
}

#[test]
fn a_tunnel_is_asked_again_by_its_request() {
    // Aim: a WebSocket that its path allows outlives a change that still allows it, and is cut by one that does not.
    run(|| async {
        let mut world = World::governed(Setup::default(), vec![policy("a", Does::Allow, vec![below("/a")])]);
        let mut client = world.dial(SERVICE);
        write(&mut client, UPGRADE).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, SWITCHED).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
        talk(&mut client, &mut application).await;
        world.govern(3, vec![policy("b", Does::Allow, vec![below("/")])]);
        talk(&mut client, &mut application).await;
        world.govern(4, vec![policy("c", Does::Allow, vec![below("/other")])]);
        assert!(client.read(&mut [0]).await.is_err() && application.read(&mut [0]).await.is_err());
        assert!(world.server.standing.is_empty());
    });
}

#[test]
fn a_change_of_policies_counts_from_the_next_request_on() {
    // Aim: what is under way is finished, what comes next on the same connection is denied, and after another change let in again.
    run(|| async {
        let mut world = World::governed(Setup::default(), vec![]);
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        world.govern(3, vec![policy("d", Does::Deny, vec![from(FRONTEND)])]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        write(&mut application, OK).await;
        assert!(answered(&mut client).await.starts_with("HTTP/1.1 200 "));
        write(&mut client, ASK).await;
        assert!(answered(&mut client).await.starts_with("HTTP/1.1 403 "));
        world.govern(4, vec![]);
        write(&mut client, ASK).await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(answered(&mut client).await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn policies_that_cannot_be_read_let_nobody_in() {
    // Aim: a resource that was refused and had no good content before closes the workload: 503 with its reason, bytes closed.
    run(|| async {
        let broken = || vec![AuthorizationPolicy { name: "no namespace".into(), ..AuthorizationPolicy::default() }];
        let world = World::governed(Setup::default(), broken());
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-meshwright-reason: policy_unavailable\r\n"), "{answer}");
        let world = World::governed(Setup { protocol: Protocol::Tcp, ..Setup::default() }, broken());
        assert_eq!(rest(&mut world.dial(SERVICE)).await, "");
    });
}

#[test]
fn what_is_judged_is_what_is_sent_on() {
    // Aim: no spelling of a path gets past a rule for what the application is then asked for.
    run(|| async {
        for path in ["/secret", "/a/../secret", "/./secret", "/%2e/secret", "/a/%2E%2e/secret/x"] {
            let world = World::governed(Setup::default(), vec![policy("d", Does::Deny, vec![below("/secret")])]);
            for mut client in [world.dial(SERVICE), world.peer(Carries::H1).await] {
                write(&mut client, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
                assert!(head(&mut client).await.starts_with("HTTP/1.1 403 "), "{path}");
            }
        }
        for path in ["/../a", "/a/%2e%2e/../a"] {
            let mut peer = World::new(Setup::default()).peer(Carries::H1).await;
            write(&mut peer, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert!(head(&mut peer).await.starts_with("HTTP/1.1 400 "), "{path}");
        }
        // Sent as it came, judged as it came: an application that takes it for something else has to be allowed by what is allowed.
        for path in ["//secret", "/%73ecret", "/secret%2f", "/SECRET", "/secret;x"] {
            let mut world = World::governed(Setup::default(), vec![policy("a", Does::Allow, vec![below("/a")])]);
            let mut client = world.dial(SERVICE);
            write(&mut client, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 403 "), "{path}");
            assert!(world.applications.try_recv().is_err());
        }
    });
}

#[test]
fn what_is_sent_on_is_what_is_judged() {
    // Aim: a header that its sender calls one of the hop is not there for a policy, as it is not for the application; and `explain` agrees.
    run(|| async {
        let target = CallTarget { headers: vec![tenant("a")], ..CallTarget::default() };
        let rule = AuthorizationRule { to: vec![target], ..AuthorizationRule::default() };
        let when = AuthorizationRule { when: "request.headers['x-tenant'] == 'a'".into(), ..AuthorizationRule::default() };
        for rule in [rule, when] {
            let setup = Setup { mode: MtlsMode::Permissive, ..Setup::default() };
            let mut world = World::governed(setup, vec![policy("a", Does::Allow, vec![rule])]);
            for (connection, wanted) in [("keep-alive", "200"), ("keep-alive, X-Tenant", "403")] {
                for mut client in [world.dial_server(), world.peer(Carries::H1).await] {
                    write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\nx-tenant: a\r\nconnection: {connection}\r\n\r\n")).await;
                    if wanted == "200" {
                        let mut application = world.application().await;
                        assert!(head(&mut application).await.contains("x-tenant: a\r\n"));
                        write(&mut application, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
                    }
                    assert!(head(&mut client).await.starts_with(&format!("HTTP/1.1 {wanted} ")), "{connection}");
                }
            }
        }
    });
}

/// A match for that value of `x-tenant`.
fn tenant(value: &str) -> HeaderMatcher {
    let pattern = Some(MatchPattern::Exact(value.into()));
    let matched = StringMatcher { match_pattern: pattern, ..StringMatcher::default() };
    let specifier = Some(HeaderMatchSpecifier::StringMatch(matched));
    HeaderMatcher { name: "x-tenant".into(), header_match_specifier: specifier, ..HeaderMatcher::default() }
}

#[test]
fn what_is_suggested_is_what_was_sent_on() {
    // Aim: dot segments of a peer that is no proxy of ours widen no suggestion: the path that the application got is told.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.peer(Carries::H1).await;
        write(&mut client, "GET /x/../orders/%2e%2E/items/7 HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        assert!(head(&mut application).await.starts_with("GET /items/7 HTTP/1.1\r\n"));
        write(&mut application, OK).await;
        head(&mut client).await;
        write(&mut client, "GET /../a HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 400 "));
        let told = world.server_means.telemetry.calls(&mut CallsTold::default()).unwrap();
        let paths: Vec<_> = told.calls.iter().map(|call| call.path.as_str()).collect();
        assert_eq!(paths, ["/items/{id}"]);
    });
}

#[test]
fn who_was_silent_is_judged_when_it_speaks() {
    // Aim: a connection that came before a change and says its first word after it is under what is in force then, policies and mode alike:
    // no byte of it arrives.
    run(|| async {
        for strict in [false, true] {
            let setup = Setup { mode: MtlsMode::Permissive, protocol: Protocol::Tcp, ..Setup::default() };
            let mut world = World::governed(setup, vec![]);
            let mut plain = world.dial_server();
            // Opened on suspicion, in case it speaks first.
            let mut application = world.application().await;
            match strict {
                true => world.turn_strict(3),
                false => world.govern(3, vec![policy("d", Does::Deny, vec![AuthorizationRule::default()])]),
            }
            write(&mut plain, "FLUSHALL\r\n").await;
            assert_eq!((rest(&mut application).await, rest(&mut plain).await), (String::new(), String::new()), "strict: {strict}");
            assert!(world.server.standing.is_empty());
        }
    });
}

#[test]
fn what_came_in_plaintext_ends_when_its_port_turns_strict() {
    // Aim: open opaque connections and WebSockets that prove nothing are reset within a second, those of peers go on.
    run(|| async {
        for protocol in [Protocol::Tcp, Protocol::Http] {
            let setup = Setup { mode: MtlsMode::Permissive, protocol, ..Setup::default() };
            let mut world = World::new(setup);
            let mut open = Vec::new();
            for mut client in [world.dial(SERVICE), world.dial_server()] {
                if protocol == Protocol::Http {
                    write(&mut client, UPGRADE).await;
                }
                let mut application = world.application().await;
                if protocol == Protocol::Http {
                    head(&mut application).await;
                    write(&mut application, SWITCHED).await;
                    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
                }
                talk(&mut client, &mut application).await;
                open.push((client, application));
            }
            world.turn_strict(2);
            let began = Instant::now();
            let (mut plain, mut behind_plain) = open.remove(1);
            assert!(plain.read(&mut [0]).await.is_err() && behind_plain.read(&mut [0]).await.is_err(), "{protocol:?}");
            assert!(began.elapsed() < Duration::from_secs(1));
            let (mut meshed, mut behind_meshed) = open.remove(0);
            talk(&mut meshed, &mut behind_meshed).await;
            assert_eq!(world.server.standing.len(), 1);
            let closed = world.counted("meshwright_").join("\n");
            assert!(closed.contains("reason=\"denied\""), "{closed}");
        }
    });
}

#[test]
fn no_tunnel_carries_requests() {
    // Aim: whoever asks for HTTP/2 among other protocols gets no tunnel, and a server that turns to it all the same is not believed.
    run(|| async {
        let mut world = World::governed(Setup::default(), vec![policy("a", Does::Allow, vec![below("/a")])]);
        let asked =
            "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
        for (asked, switches) in [(asked, false), (UPGRADE, true)] {
            let mut peer = world.peer(Carries::H1).await;
            write(&mut peer, asked).await;
            let mut application = world.application().await;
            let seen = head(&mut application).await;
            assert!(seen.contains("upgrade") == switches && !seen.contains("http2-settings"), "{seen}");
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n").await;
            let answer = head(&mut peer).await;
            assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upstream_protocol"), "{answer}");
        }
    });
}

#[test]
fn explain_says_which_policy_and_why() {
    // Aim: the server's side of `explain` lists each policy with its verdict, in the JSON of kinds.md, and the decision is the road's.
    run(|| async {
        let trial = AuthorizationPolicy { dry_run: true, ..policy("t", Does::Deny, vec![below("/a")]) };
        let policies = vec![policy("a", Does::Allow, vec![from(FRONTEND)]), policy("d", Does::Deny, vec![below("/b")]), trial];
        let world = World::governed(Setup::default(), policies);
        let snapshot = world.server_means.snapshots.load();
        let explained = |path: &str, identity| {
            let mut parts = Request::get(path).header("host", "a").body(()).unwrap().into_parts().0;
            let asked = inspect::asked(engine::decide::Version::Http1, &mut parts, (crate::http::Hop::Inner, 1), Time::default());
            let origin = explain::Origin { identity: Some(identity), workload: "frontend", address: None };
            let explanation = explain::inbound(&snapshot, 8080, origin, &asked);
            serde_json::to_value(&explanation).unwrap()
        };
        let answer = explained("/a", FRONTEND);
        let wanted = serde_json::json!([
            {"kind": "AuthorizationPolicy", "namespace": "shop", "name": "a", "rule": "peers", "verdict": "Allow"},
            {"kind": "AuthorizationPolicy", "namespace": "shop", "name": "d", "rule": "", "verdict": "NoMatch"},
            {"kind": "AuthorizationPolicy", "namespace": "shop", "name": "t", "rule": "paths", "verdict": "WouldDeny"},
        ]);
        assert_eq!((&answer["policies"], &answer["decision"]), (&wanted, &"Forward".into()));
        let denied = explained("/b", CATALOG);
        assert_eq!((&denied["policies"][0]["verdict"], &denied["policies"][1]["verdict"]), (&"Deny".into(), &"Deny".into()));
        assert_eq!((&denied["reply"]["status"], &denied["reply"]["reason"]), (&403.into(), &"denied".into()));
    });
}
