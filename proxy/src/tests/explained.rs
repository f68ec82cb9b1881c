//! What `explain` says is what happens.

use engine::decide::Version;
use engine::explain::{self, Explanation};
use engine::model::{MtlsMode, Protocol};
use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use proto::mesh::{
    Abort, BackendPolicy, Balance, ClusterPolicy, Cors, Delay, Fault, Filters, HashKey, LimitKey, PathChange, RateLimit, Redirect, Rewrite,
    RoutePolicy, Session, abort, hash_key, limit_key, path_change,
};

use super::resources::{Told, told};
use super::*;
use crate::http::Hop;
use crate::road::gateway;
use crate::status::inspect::{self, Time};

const OUTSIDE: &str = "192.0.2.1:80";
const UNKNOWN: &str = "10.96.0.9:80";

/// What a client meets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its request, or its bytes, reach an application.
    Reached,
    /// Somebody on the way answers: status, and the reason where it arrives.
    Answered(u16, Option<String>),
    /// The connection ends without a byte.
    Closed,
}

impl Outcome {
    /// The mesh's own answer, if it makes one.
    fn of(explanation: &Explanation) -> Option<Self> {
        let reply = explanation.reply.as_ref()?;
        let reason = reply.reason.map(str::to_owned);
        Some(if reply.status == 0 { Self::Closed } else { Self::Answered(reply.status, reason) })
    }
}

/// Which way a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the application beside a sidecar, to this address.
    Call(&'static str),
    /// To the server's sidecar, from outside the mesh.
    Server,
    /// To the Gateway's port.
    Edge(u16),
}

#[derive(Clone, Debug)]
struct Ask {
    path: &'static str,
    hosts: usize,
}

impl Ask {
    fn text(&self) -> String {
        format!("GET {} HTTP/1.1\r\n{}\r\n", self.path, "host: a\r\n".repeat(self.hosts))
    }

    fn explained(&self, at: Hop, explain: impl FnOnce(&explain::Asked<'_>) -> Explanation) -> Explanation {
        let mut parts = Request::get(self.path).body(()).unwrap().into_parts().0;
        parts.version = http::Version::HTTP_11;
        for _ in 0..self.hosts {
            parts.headers.append("host", HeaderValue::from_static("a"));
        }
        explain(&inspect::asked(Version::Http1, &mut parts, (at, self.hosts), Time::default()))
    }
}

/// Who comes to the server's sidecar: the client's, or somebody from outside the mesh.
fn origin(peer: Option<&str>, way: Way) -> explain::Origin<'_> {
    let address = if way == Way::Server { "192.0.2.9" } else { "10.77.0.1" };
    explain::Origin { identity: peer, workload: "frontend", address: Some(address.parse().unwrap()) }
}

/// What `explain` says will happen.
fn foretold(world: &World, way: Way, ask: &Ask) -> Outcome {
    let (client, server) = (world.client_means.snapshots.load(), world.server_means.snapshots.load());
    let hop = |peer: Option<&str>| if peer.is_some() { Hop::Inner } else { Hop::First };
    let at_server = |peer: Option<&str>| ask.explained(hop(peer), |asked| explain::inbound(&server, 8080, origin(peer, way), asked));
    let caller = match way {
        Way::Server => return Outcome::of(&at_server(None)).unwrap_or(Outcome::Reached),
        Way::Call(destination) => ask.explained(Hop::First, |asked| explain::outbound(&client, destination.parse().unwrap(), asked)),
        Way::Edge(port) => ask.explained(Hop::First, |asked| explain::edge(&client, port, explain::EdgeOrigin::default(), asked)),
    };
    if let Some(outcome) = Outcome::of(&caller) {
        return outcome;
    }
    let Some(endpoint) = caller.endpoints.first() else { return Outcome::Reached };
    let peer = endpoint.identity.as_ref().map(|_| FRONTEND);
    match Outcome::of(&at_server(peer)) {
        None => Outcome::Reached,
        // A request learns that its server hung up.
        Some(Outcome::Closed) if caller.route.is_some() => Outcome::Answered(503, Some("upstream_reset".into())),
        // Only a peer of the mesh is believed when it says why.
        Some(Outcome::Answered(status, _)) if peer.is_none() && caller.route.is_some() => Outcome::Answered(status, None),
        Some(outcome) => outcome,
    }
}

/// What happens.
async fn met(world: &mut World, way: Way, ask: &Ask) -> Outcome {
    let mut client = match way {
        Way::Call(destination) => world.dial(destination),
        Way::Server => world.dial_server(),
        Way::Edge(port) => {
            let (near, far) = pipe();
            let arrival = Arrival { socket: far, peer: CLIENT.parse().unwrap(), destination: SERVICE.parse().unwrap() };
            serve(&world.client, Direction::Outbound, gateway::serve_connection(arrival, port, Rc::clone(&world.client)));
            near
        }
    };
    write(&mut client, &ask.text()).await;
    let reached = async {
        loop {
            // An upstream that was opened on suspicion hears nothing.
            let (_, mut application) = world.applications.recv().await.expect("a connection");
            let mut byte = [0];
            if application.read(&mut byte).await.is_ok_and(|count| count == 1) {
                return application;
            }
        }
    };
    let mut byte = [0];
    tokio::select! {
        _ = reached => Outcome::Reached,
        count = client.read(&mut byte) => match count {
            Ok(1) => {
                let answer = head(&mut client).await;
                let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
                let reason = answer.lines().find_map(|line| line.strip_prefix("x-meshwright-reason: "));
                Outcome::Answered(status, reason.map(str::to_owned))
            }
            _ => Outcome::Closed,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(240))]
    /// Aim: over any declaration, mode, way in and head, the road does what `explain` says of it.
    #[test]
    fn the_road_does_what_explain_says(
        mode in prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive), Just(MtlsMode::Disabled)],
        protocol in prop_oneof![
            Just(Protocol::Http), Just(Protocol::Http1), Just(Protocol::Tcp), Just(Protocol::Auto)
        ],
        (meshed, outside_denied, ready) in any::<(bool, bool, bool)>(),
        way in prop_oneof![
            4 => Just(Way::Call(SERVICE)),
            1 => Just(Way::Call(UNKNOWN)),
            1 => Just(Way::Call(OUTSIDE)),
            3 => Just(Way::Server),
            2 => Just(Way::Edge(80)),
            1 => Just(Way::Edge(81)),
        ],
        (path, hosts) in (prop_oneof![2 => Just("/"), 1 => Just("/nowhere")], prop_oneof![Just(0_usize), Just(1), Just(1), Just(2)]),
        policies in authorized::some_policies(),
    ) {
        // The control plane tells nobody to speak mesh TLS to a port that does not end it.
        let meshed = meshed && mode != MtlsMode::Disabled;
        let endpoints = if ready { vec![SERVER] } else { Vec::new() };
        let setup = Setup { mode, protocol, meshed, outside_denied, endpoints, ..Setup::default() };
        let ask = Ask { path, hosts };
        run(|| async move {
            let mut world = World::governed(setup, policies);
            let foretold = foretold(&world, way, &ask);
            assert_eq!(met(&mut world, way, &ask).await, foretold, "{way:?} {ask:?}");
        });
    }
}

/// Backends of the rule with a policy: two of each, all plaintext, which the test itself plays.
const PLACES: [(&str, [&str; 2]); 2] = [("shop/a:80", ["10.77.9.1:80", "10.77.9.2:80"]), ("shop/b:80", ["10.77.9.3:80", "10.77.9.4:80"])];

fn certain(delay: bool, abort: Option<abort::Kind>) -> Fault {
    let second = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    Fault {
        per_million: 1_000_000,
        delay: delay.then_some(Delay { min: second, max: second }),
        abort: abort.map(|kind| Abort { kind: Some(kind) }),
        ..Fault::default()
    }
}

/// Stages that are certain to do something, or nothing.
fn some_policy() -> impl Strategy<Value = RoutePolicy> {
    let abort = prop_oneof![
        6 => Just(None),
        1 => Just(Some(abort::Kind::HttpStatus(418))),
        1 => Just(Some(abort::Kind::GrpcStatus(5))),
        1 => Just(Some(abort::Kind::Reset(true))),
    ];
    let hash = prop_oneof![
        2 => Just(None),
        2 => Just(Some(hash_key::Kind::Header("x-user".into()))),
        1 => Just(Some(hash_key::Kind::Query("q".into()))),
        1 => Just(Some(hash_key::Kind::SourceAddress(true))),
    ];
    (abort, hash, any::<[bool; 4]>(), 0_u8..8).prop_map(|(abort, hash, [delay, limited, session, rewritten], rare)| {
        let limit = |requests| RateLimit {
            name: "l".into(),
            requests,
            per: Some(prost_types::Duration { seconds: 1000, nanos: 0 }),
            key: vec![LimitKey { kind: Some(limit_key::Kind::Header("x-user".into())) }],
            ..RateLimit::default()
        };
        let redirect = Redirect { hostname: "elsewhere.example".into(), status: 302, ..Redirect::default() };
        let cors = Cors { allow_origins: vec!["https://a.example".into()], allow_methods: vec!["GET".into()], ..Cors::default() };
        let path = PathChange { kind: Some(path_change::Kind::Full("/new".into())) };
        let rewrite = Rewrite { hostname: "b.example".into(), path: Some(path) };
        RoutePolicy {
            filters: Some(Filters {
                redirect: (rare == 0).then_some(redirect),
                cors: (rare == 1).then_some(cors),
                rewrite: (rewritten && rare > 0).then_some(rewrite),
                mirrors: Vec::new(),
            }),
            faults: if delay || abort.is_some() { vec![certain(delay, abort)] } else { Vec::new() },
            rate_limits: if limited { vec![limit(1)] } else { Vec::new() },
            session: session.then(|| Session { name: "x-session".into(), header: true, ..Session::default() }),
            hash: hash.map(|kind| HashKey { kind: Some(kind) }).into_iter().collect(),
            ..RoutePolicy::default()
        }
    })
}

/// What one request meets: its answer, or the endpoint and the session that it was told.
async fn asked_for(world: &mut World, text: &str) -> (Result<SocketAddr, Outcome>, Option<String>) {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let mut client = world.dial(SERVICE);
    write(&mut client, text).await;
    let (mut byte, mut reached) = ([0], None);
    let count = tokio::select! {
        dialled = world.applications.recv() => {
            let (address, mut application) = dialled.expect("a connection");
            head(&mut application).await;
            write(&mut application, OK).await;
            reached = Some((address, application));
            client.read(&mut byte).await
        }
        count = client.read(&mut byte) => count,
    };
    if !matches!(count, Ok(1)) {
        return (Err(Outcome::Closed), None);
    }
    let answer = head(&mut client).await;
    let field = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    if let Some((address, _)) = reached {
        return (Ok(address), field("x-session: "));
    }
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (Err(Outcome::Answered(status, field("x-meshwright-reason: "))), None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Aim: over any stages, limits, sessions, hashes and balancers, each of several requests meets what `explain` says of it just before.
    #[test]
    fn the_road_does_what_explain_says_of_a_policy(
        policy in some_policy(),
        algorithm in prop_oneof![Just(0), Just(2), Just(4), Just(5)],
        weights in prop_oneof![Just([1, 0]), Just([0, 1]), Just([0, 0]), Just([1, 1])],
        (asks, method) in (
            proptest::collection::vec((0_u8..3, 0_u8..3, any::<bool>()), 1..5),
            prop_oneof![3 => Just("GET"), 1 => Just("OPTIONS")],
        ),
    ) {
        run(|| async move {
            let sessions = policy.session.is_some();
            let balance = Some(Balance { algorithm, ..Balance::default() });
            let backends = PLACES.iter().zip(weights);
            let config = Told {
                policy,
                cluster: ClusterPolicy { balance, sessions, ..ClusterPolicy::default() },
                backends: backends.map(|((name, at), weight)| (*name, weight, BackendPolicy::default(), at.to_vec())).collect(),
                ..Told::default()
            };
            let (mut world, _) = told(&config);
            let mut session = None;
            for (user, query, origin) in asks {
                let mut fields = vec![("host", "a".to_owned())];
                fields.extend((user > 0).then(|| ("x-user", format!("u{user}"))));
                fields.extend(origin.then(|| ("origin", "https://a.example".to_owned())));
                fields.extend(origin.then(|| ("access-control-request-method", "GET".to_owned())));
                fields.extend(session.clone().map(|session| ("x-session", session)));
                let target = if query > 0 { format!("/?q={query}") } else { "/".to_owned() };
                let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let mut parts = Request::builder().method(method).uri(&target).body(()).unwrap().into_parts().0;
                parts.headers.extend(fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())));
                let at = Time { now: world.client.moment(world.client.clock.now()), wall_secs: world.client.wall_secs() };
                let asked = inspect::asked(Version::Http1, &mut parts, (Hop::First, fields.len()), at);
                let foretold = explain::outbound(&world.client_means.snapshots.load(), SERVICE.parse().unwrap(), &asked);
                let (met, told) = asked_for(&mut world, &format!("{method} {target} HTTP/1.1\r\n{lines}\r\n")).await;
                match (&met, Outcome::of(&foretold)) {
                    (Ok(address), None) => {
                        let row = foretold.endpoints.iter().find(|row| row.address == address.to_string());
                        let chances: Vec<_> = foretold.endpoints.iter().map(|row| (&row.address, row.chance)).collect();
                        assert!(row.is_some_and(|row| row.chance > 0.0), "{address} of {chances:?}: {foretold:?}");
                        assert!((chances.iter().map(|(_, chance)| chance).sum::<f64>() - 1.0).abs() < 1e-9, "{chances:?}");
                    }
                    (Err(outcome), Some(foretold)) => assert_eq!(*outcome, foretold),
                    _ => panic!("{met:?}, where {foretold:?} was foretold"),
                }
                session = told.or(session);
            }
        });
    }
}
