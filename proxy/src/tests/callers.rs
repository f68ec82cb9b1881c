//! Who calls at an edge, over whole connections: order of the steps, what is told to whom, and how long an upgrade lasts.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::client::{ClientAddress, ForwardedHeader};
use engine::consumers::digest;
use engine::failure::{LocalReply, Reason};
use engine::model::build::Parts;
use engine::model::{Action, ClientPolicy, ClientRules, Forward, RouteTable, Rule, Target};
use prost::Name;
use proto::mesh;
use proto::xds::pack;
use proto::xds::route::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action as RawAction, route_action::ClusterSpecifier,
    route_match::PathSpecifier,
};

use super::*;

const KEY: &str = "a-key-of-more-than-twenty-bytes";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Sets a policy before the edge's only rule; who may call is kept apart and may be changed.
pub(super) struct Gate {
    parts: Parts,
    policy: mesh::RoutePolicy,
    /// Where services are that it asks.
    pub(super) asked: Vec<Arc<Cluster>>,
    /// What they refer to cannot be used.
    pub(super) broken: bool,
    /// Paths that go before its only rule, each with a policy of its own.
    pub(super) before: Vec<(&'static str, mesh::EdgePolicy)>,
    /// Where people log in, once it was set.
    pub(super) providers: Vec<Arc<engine::login::ProviderCell>>,
    clients: Arc<ClientPolicy>,
}

impl Gate {
    pub(super) fn new(edge: mesh::EdgePolicy) -> Self {
        let cors = mesh::Cors {
            allow_origins: vec!["https://page.example".into()],
            allow_headers: vec!["x-api-key".into()],
            ..mesh::Cors::default()
        };
        let filters = Some(mesh::Filters { cors: Some(cors), ..mesh::Filters::default() });
        let policy = mesh::RoutePolicy { filters, edge: Some(edge), ..mesh::RoutePolicy::default() };
        let (asked, before, providers) = (Vec::new(), Vec::new(), Vec::new());
        Self { parts: Parts::default(), policy, asked, broken: false, before, providers, clients: Arc::default() }
    }

    pub(super) fn put<M: prost::Message + Name>(&mut self, name: &str, message: &M) {
        let any = pack(message);
        self.parts.put(&M::type_url(), name, &proto::epoch::version(&any.value), &any).unwrap();
        self.parts.settle();
    }

    fn consumers(&mut self, credentials: Vec<mesh::Credential>) {
        let acme = mesh::Consumer {
            namespace: "shop".into(),
            name: "acme".into(),
            groups: vec!["gold".into()],
            credentials,
            ..mesh::Consumer::default()
        };
        self.put("consumers/00", &mesh::Consumers { consumers: vec![acme], ..mesh::Consumers::default() });
    }

    /// Puts it before the edge of a world.
    pub(super) fn set(&mut self, world: &World) {
        let route = |name: &str, path: PathSpecifier, policy: &mesh::RoutePolicy| {
            let action = RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster("bad_backend".into())), ..RouteAction::default() };
            let mut route = Route {
                name: name.into(),
                r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
                action: Some(RawAction::Route(action)),
                ..Route::default()
            };
            route.typed_per_filter_config.insert(proto::names::POLICY.to_owned(), pack(policy));
            route
        };
        let own = |edge: &mesh::EdgePolicy| mesh::RoutePolicy { edge: Some(edge.clone()), ..mesh::RoutePolicy::default() };
        let before =
            self.before.iter().map(|(path, edge)| route("OidcLogin/shop/people/p", PathSpecifier::Path((*path).into()), &own(edge)));
        let only = route("HTTPRoute/shop/catalog/0", PathSpecifier::Prefix("/".into()), &self.policy);
        let routes = before.chain([only]).collect();
        let host = VirtualHost { name: "*".into(), domains: vec!["shop.example".into()], routes, ..VirtualHost::default() };
        let virtual_hosts = vec![host];
        let raw =
            RouteConfiguration { name: "t".into(), virtual_hosts, ignore_port_in_host_matching: true, ..RouteConfiguration::default() };
        self.put("t", &raw);
        let compiled = self.parts.assemble(2, &Snapshot::default());
        let table = compiled.routes.get("t").unwrap();
        let cluster = cluster("shop/catalog:80", ClusterKind::Endpoints, &world.setup);
        let led = |rule: &Arc<Rule>| {
            let Action::Forward(staged) = &rule.action else { panic!("it leads somewhere") };
            let asked = match self.broken {
                true => vec![Target::Reply(LocalReply::of(Reason::BadBackend))],
                false => self.asked.iter().cloned().map(Target::Cluster).collect(),
            };
            let forward = Arc::new(Forward::to(Arc::clone(&staged.policy), Target::Cluster(Arc::clone(&cluster))).asking(asked));
            let (source, matches) = (rule.source.clone(), Arc::clone(&rule.matches));
            Arc::new(Rule { id: rule.id, source, matches, action: Action::Forward(forward) })
        };
        let hosts = vec![engine::model::VirtualHost::new(table.hosts[0].rules.iter().map(led).collect())];
        let table = RouteTable { name: "t".into(), domains: Arc::clone(&table.domains), hosts, content: 2 };
        let edge = Edge { name: "edge/80".into(), port: Port::Http(Arc::new(table)), clients: Arc::clone(&self.clients), content: 2 };
        let mut snapshot = client_snapshot(&world.setup, 2);
        snapshot.edges.insert(80, Arc::new(edge));
        self.providers.clone_from(&compiled.providers);
        snapshot.providers.clone_from(&compiled.providers);
        (snapshot.consumers, snapshot.doors) = (compiled.consumers.clone(), compiled.doors.clone());
        snapshot.limits = compiled.limits.clone();
        *world.client_means.telemetry.readings.limits.lock() = Arc::clone(&snapshot.limits);
        world.client_means.snapshots.publish(Arc::new(snapshot));
    }
}

fn key(name: &str, secret: &str) -> mesh::Credential {
    let kind = mesh::KeyCredential { sha256: digest(secret.as_bytes()).to_vec().into(), prefix: "mw_abc".into() };
    mesh::Credential { name: name.into(), kind: Some(mesh::credential::Kind::ApiKey(kind)), ..mesh::Credential::default() }
}

fn of_shop() -> Option<mesh::ConsumerChoice> {
    Some(mesh::ConsumerChoice { namespaces: vec!["shop".into()], ..mesh::ConsumerChoice::default() })
}

fn keys() -> mesh::EdgePolicy {
    let header = mesh::CredentialHeader { name: "x-api-key".into(), prefix: String::new() };
    let from = vec![mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Header(header)) }];
    let api_keys = mesh::ApiKeys { policy: "shop/keys".into(), from, consumers: of_shop(), ..mesh::ApiKeys::default() };
    mesh::EdgePolicy { api_keys: Some(api_keys), ..mesh::EdgePolicy::default() }
}

/// The answer to a request at the edge, its body included; the request closes its connection.
async fn answered(world: &World, request: &str) -> String {
    let mut client = world.knock();
    write(&mut client, &format!("{request}connection: close\r\n\r\n")).await;
    let answer = head(&mut client).await;
    answer + &rest(&mut client).await
}

#[test]
fn a_page_learns_that_it_is_refused_and_preflights_are_answered_before() {
    // Aim: CORS comes before the question who calls, and its headers are on the refusal; the refusal is a problem for who takes JSON and text for
    // who asks for a page.
    run(|| async {
        let world = World::new(Setup::default());
        let mut gate = Gate::new(keys());
        gate.consumers(vec![key("k1", KEY)]);
        gate.set(&world);
        let preflight = "OPTIONS / HTTP/1.1\r\nhost: shop.example\r\norigin: https://page.example\r\naccess-control-request-method: GET\r\naccess-control-request-headers: x-api-key\r\n";
        let answer = answered(&world, preflight).await;
        assert!(answer.starts_with("HTTP/1.1 20") && answer.contains("access-control-allow-origin: https://page.example"), "{answer}");
        let asked = "GET /a HTTP/1.1\r\nhost: shop.example\r\norigin: https://page.example\r\n";
        let answer = answered(&world, asked).await;
        for wanted in [
            "HTTP/1.1 401 ",
            "www-authenticate: ApiKey\r\n",
            "x-meshwright-reason: unauthenticated\r\n",
            "access-control-allow-origin: https://page.example\r\n",
            "content-type: application/problem+json\r\n",
            "\"status\":401",
            "\"reason\":\"unauthenticated\"",
        ] {
            assert!(answer.contains(wanted), "{wanted}: {answer}");
        }
        let answer = answered(&world, &format!("{asked}accept: text/html\r\n")).await;
        assert!(answer.contains("content-type: text/plain"), "{answer}");
    });
}

#[test]
fn who_called_is_told_to_the_backend_by_gateways_alone() {
    // Aim: the server's sidecar believes the header from a Gateway's identity and from nobody else; a client's own is removed before.
    run(|| async {
        for gateway in [false, true] {
            let mut world = World::new(Setup::default());
            let mut server = server_snapshot(&world.setup, 2);
            if gateway {
                let known = server.settings.as_deref().cloned().unwrap();
                server.settings = Some(Arc::new(Settings { gateways: vec![FRONTEND.into()], ..known }));
            }
            world.server_means.snapshots.publish(Arc::new(server));
            let mut gate = Gate::new(keys());
            gate.consumers(vec![key("k1", KEY)]);
            gate.set(&world);
            let mut client = world.knock();
            let smuggled = "x-meshwright-consumer: shop/boss;groups=admin;method=ApiKey\r\nx_meshwright_consumer: shop/boss\r\n";
            write(&mut client, &format!("GET / HTTP/1.1\r\nhost: shop.example\r\nx-api-key: {KEY}\r\n{smuggled}\r\n")).await;
            let mut application = world.application().await;
            let request = head(&mut application).await;
            assert!(!request.contains("boss") && !request.contains(KEY), "{request}");
            assert_eq!(request.contains("x-meshwright-consumer: shop/acme;groups=gold;method=ApiKey\r\n"), gateway, "{request}");
            write(&mut application, OK).await;
            head(&mut client).await;
        }
    });
}

#[test]
fn the_log_says_who_called_and_which_limit_refused_it() {
    // Aim: one line names the consumer, how it proved itself, and the limit; neither takes the other's place.
    run(|| async {
        let mut world = World::new(Setup::default());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let options = TelemetryOptions { log: crate::observe::LogLines::Memory(Arc::clone(&lines)), ..TelemetryOptions::default() };
        world.client_means.telemetry = crate::observe::start(options, Clock::System).0;
        world.client = worker::shared(&world.client_means, 1);
        let rate = mesh::LimitRate { requests: 1, per: Some(prost_types::Duration { seconds: 60, nanos: 0 }), burst: 1 };
        let numbers = Some(mesh::edge_limit::Numbers::Rate(rate));
        // A request takes more than there ever is.
        let limit = mesh::EdgeLimit { name: "small".into(), numbers, cost: 2, ..mesh::EdgeLimit::default() };
        let store = Some(mesh::LimitStore { kind: Some(mesh::limit_store::Kind::Leases(mesh::LeaseStore { ahead_percent: 0 })) });
        let (policy, memory) = ("shop/plans".into(), "shop/plans".into());
        let limits = vec![mesh::EdgeLimits { policy, memory, limits: vec![limit], store, ..mesh::EdgeLimits::default() }];
        let mut gate = Gate::new(mesh::EdgePolicy { limits, ..keys() });
        gate.consumers(vec![key("k1", KEY)]);
        gate.set(&world);
        let mut logging = world.client_means.snapshots.load().as_ref().clone();
        let known = logging.settings.as_deref().cloned().unwrap();
        logging.settings = Some(Arc::new(Settings { access_log: true, ..known }));
        world.client_means.snapshots.publish(Arc::new(logging));
        let answer = answered(&world, &format!("GET / HTTP/1.1\r\nhost: shop.example\r\nx-api-key: {KEY}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        let line = lines.lock().join("\n");
        assert!(
            line.contains(r#""consumer":"shop/acme","auth_method":"ApiKey","credential":"mw_abc","limit":"shop/plans/small","#),
            "{line}"
        );
    });
}

#[test]
fn a_password_is_verified_beside_the_worker() {
    // Aim: the request waits for its verdict and goes on; a wrong one is refused with the realm.
    run(|| async {
        let mut world = World::new(Setup::default());
        let basic =
            mesh::BasicAuth { policy: "shop/basic".into(), consumers: of_shop(), realm: "partners".into(), ..mesh::BasicAuth::default() };
        let mut gate = Gate::new(mesh::EdgePolicy { basic: Some(basic), ..mesh::EdgePolicy::default() });
        // `secret`, bcrypt of cost 4.
        let hash = bcrypt::hash_with_salt("secret", 4, [9; 16]).unwrap().to_string();
        let user = mesh::PasswordCredential { username: "ada".into(), hash };
        gate.consumers(vec![mesh::Credential {
            name: "web".into(),
            kind: Some(mesh::credential::Kind::Basic(user)),
            ..mesh::Credential::default()
        }]);
        gate.set(&world);
        let answer = answered(&world, "GET / HTTP/1.1\r\nhost: shop.example\r\nauthorization: Basic YWRhOndyb25n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("www-authenticate: Basic realm=\"partners\""), "{answer}");
        let mut client = world.knock();
        write(&mut client, "GET / HTTP/1.1\r\nhost: shop.example\r\nauthorization: Basic YWRhOnNlY3JldA==\r\n\r\n").await;
        let mut application = world.application().await;
        assert!(!head(&mut application).await.contains("authorization"));
        write(&mut application, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn a_token_of_an_unknown_key_has_its_keys_asked_for() {
    // Aim: an edge that is shown a token whose key is not at hand says so to who fetches keys, at once; the client is told that it is ours to mend.
    run(|| async {
        let world = World::new(Setup::default());
        let rule = mesh::TokenRule {
            policy: "shop/tokens".into(),
            issuer: "https://id.example".into(),
            jwks_uri: "http://catalog.shop/keys".into(),
            from_headers: vec![mesh::TokenHeader { name: "authorization".into(), prefix: "Bearer ".into() }],
            ..mesh::TokenRule::default()
        };
        let tokens =
            mesh::EdgeTokens { policy: "shop/tokens".into(), rules: vec![rule], consumers: of_shop(), ..mesh::EdgeTokens::default() };
        let mut gate = Gate::new(mesh::EdgePolicy { tokens: Some(tokens), ..mesh::EdgePolicy::default() });
        gate.set(&world);
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let claims = format!(r#"{{"iss":"https://id.example","sub":"ada","exp":{}}}"#, u64::from(world.client.wall_secs()) + 600);
        let token = format!("{}.{}.{}", b64(br#"{"alg":"ES256","kid":"new"}"#), b64(claims.as_bytes()), b64(&[1; 64]));
        let answer = answered(&world, &format!("GET / HTTP/1.1\r\nhost: shop.example\r\nauthorization: Bearer {token}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let asked = tokio::time::timeout(Duration::from_secs(1), world.client_means.snapshots.key_missed()).await;
        asked.expect("nobody hears that a key is missed");
    });
}

#[test]
fn addresses_are_judged_before_there_is_a_route() {
    // Aim: a client whose address is denied gets 403, whatever host it asks for; others get the host's answer.
    run(|| async {
        let world = World::new(Setup::default());
        let mut gate = Gate::new(keys());
        for (block, known, unknown) in [("192.0.2.0/24", "403", "403"), ("198.51.100.0/24", "401", "404")] {
            let source = mesh::CallSource { ip_blocks: vec![block.into()], ..mesh::CallSource::default() };
            let rule = mesh::AuthorizationRule { from: vec![source], ..mesh::AuthorizationRule::default() };
            let policy = mesh::AuthorizationPolicy {
                name: "shop/addresses".into(),
                action: mesh::authorization_policy::Action::Deny.into(),
                rules: vec![rule],
                ..mesh::AuthorizationPolicy::default()
            };
            gate.put("edge/80", &mesh::Authorization { policies: vec![policy], dry_run: false });
            gate.set(&world);
            for (host, status) in [("shop.example", known), ("unknown.example", unknown)] {
                let answer = answered(&world, &format!("GET / HTTP/1.1\r\nhost: {host}\r\n")).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{block} {host}: {answer}");
            }
        }
    });
}

#[test]
fn an_upgrade_ends_with_its_credential() {
    // Aim: what became of a request with a key is cut when the key is revoked, and when its time is over; not when another key goes.
    run(|| async {
        for expires in [false, true] {
            let mut world = World::new(Setup::default());
            let mut gate = Gate::new(keys());
            let now = u64::from(world.client.wall_secs());
            let own = || mesh::Credential { expires_secs: if expires { now + 60 } else { 0 }, ..key("k1", KEY) };
            gate.consumers(vec![own(), key("k2", "another-key-another-key")]);
            gate.set(&world);
            tokio::task::spawn_local(crate::road::standing::watch(
                Rc::downgrade(&world.client.standing),
                world.client_means.snapshots.clone(),
            ));
            let mut client = world.knock();
            let asked =
                format!("GET / HTTP/1.1\r\nhost: shop.example\r\nx-api-key: {KEY}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
            write(&mut client, &asked).await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
            write(&mut client, "hello").await;
            assert_eq!(exactly(&mut application, 5).await, "hello");
            if expires {
                tokio::time::sleep(Duration::from_secs(61)).await;
            } else {
                gate.consumers(vec![own()]);
                world.client_means.snapshots.wake();
                tokio::task::yield_now().await;
                write(&mut client, "again").await;
                assert_eq!(exactly(&mut application, 5).await, "again");
                gate.consumers(Vec::new());
                world.client_means.snapshots.wake();
            }
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_secs(5), client.read(&mut byte)).await.expect("it is cut");
            assert!(!matches!(read, Ok(1..)), "{read:?}");
        }
    });
}

/// What denies everybody of whom a source speaks.
fn denying(source: mesh::CallSource) -> mesh::Authorization {
    let policy = mesh::AuthorizationPolicy {
        name: "shop/no".into(),
        action: mesh::authorization_policy::Action::Deny.into(),
        rules: vec![mesh::AuthorizationRule { from: vec![source], ..mesh::AuthorizationRule::default() }],
        ..mesh::AuthorizationPolicy::default()
    };
    mesh::Authorization { policies: vec![policy], dry_run: false }
}

#[test]
fn an_upgrade_ends_when_policies_forbid_it() {
    // Aim: what became of a request is judged again where a policy of addresses, or one of its rule, comes, by who called; also where nobody asked
    // who that is; a policy for others leaves it open. Behind a proxy that is believed who called is the client, not the proxy, which is its peer.
    let from = |block: &str| mesh::CallSource { ip_blocks: vec![block.into()], ..mesh::CallSource::default() };
    let of = |consumer: &str| mesh::CallSource { consumers: vec![consumer.into()], ..mesh::CallSource::default() };
    let by = |block: &str| mesh::CallSource { peer_ip_blocks: vec![block.into()], ..mesh::CallSource::default() };
    for (proxied, keyed, at_door, other, own) in [
        (false, true, true, from("198.51.100.0/24"), from("192.0.2.0/24")),
        (false, false, true, from("198.51.100.0/24"), from("192.0.2.0/24")),
        (false, true, false, of("shop/other"), of("shop/acme")),
        (false, false, false, from("198.51.100.0/24"), from("192.0.2.0/24")),
        (true, true, true, from("192.0.2.0/24"), from("203.0.113.0/24")),
        (true, false, false, from("192.0.2.0/24"), from("203.0.113.0/24")),
        (true, false, true, by("203.0.113.0/24"), by("192.0.2.0/24")),
        (true, true, false, by("203.0.113.0/24"), by("192.0.2.0/24")),
    ] {
        run(|| async {
            let mut world = World::new(Setup::default());
            let mut gate = Gate::new(if keyed { keys() } else { mesh::EdgePolicy::default() });
            if proxied {
                let address = ClientAddress::of_hops(1, ForwardedHeader::XForwardedFor);
                gate.clients = Arc::new(ClientPolicy::of_all(ClientRules { address, ..ClientRules::default() }));
            }
            gate.consumers(vec![key("k1", KEY)]);
            gate.set(&world);
            tokio::task::spawn_local(crate::road::standing::watch(
                Rc::downgrade(&world.client.standing),
                world.client_means.snapshots.clone(),
            ));
            let mut client = world.knock();
            let asked = format!(
                "GET /a HTTP/1.1\r\nhost: shop.example\r\nx-forwarded-for: 203.0.113.9\r\nx-api-key: {KEY}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
            );
            write(&mut client, &asked).await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
            let mut deny = |source: &mesh::CallSource| {
                if at_door {
                    gate.put("edge/80", &denying(source.clone()));
                } else {
                    gate.policy.edge =
                        gate.policy.edge.take().map(|edge| mesh::EdgePolicy { authorization: Some(denying(source.clone())), ..edge });
                }
                gate.set(&world);
            };
            deny(&other);
            tokio::task::yield_now().await;
            write(&mut client, "hello").await;
            assert_eq!(exactly(&mut application, 5).await, "hello");
            deny(&own);
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_secs(5), client.read(&mut byte)).await.expect("it is cut");
            assert!(!matches!(read, Ok(1..)), "{proxied} {keyed} {at_door}: {read:?}");
        });
    }
}
