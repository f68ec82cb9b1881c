//! The cost of a decision is a promise: nothing is allocated on the way to a backend.
#![allow(unsafe_code, reason = "a global allocator is unsafe by its signature; this one counts and passes on")]
#![allow(clippy::unwrap_used, reason = "helpers may unwrap as tests do")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use engine::Moment;
use engine::authenticate::{Remembered, TokenVerdict};
use engine::authorize::{Call, Own};
use engine::balance::{self, Choice};
use engine::consumers::{Verified, digest};
use engine::decide::{Decision, RequestHead, decide};
use engine::filter::guard::{Counted, Found, Watch};
use engine::filter::{Called, Exchange, Passage, Resume};
use engine::gate::Enter;
use engine::health::Outcome;
use engine::model::Snapshot;
use engine::model::build::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use prost::{Message, Name};
use proto::identity::Identity;
use proto::mesh;
use proto::mesh::authorization_policy::Action;
use proto::mesh::path_pattern::Kind;
use proto::mesh::{
    Authentication, Authorization, AuthorizationPolicy, AuthorizationRule, Balance, CallSource, CallTarget, ClaimHeader, ClusterPolicy,
    Limits, Outlier, PathPattern, TokenHeader, TokenRule,
};
use proto::xds::cluster::Cluster;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use proto::xds::core::{Address, SocketAddress, address, socket_address};
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};
use proto::xds::matcher::{RegexMatcher, StringMatcher, string_matcher};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::{
    HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route, route_action, weighted_cluster,
};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; the counter is a plain `Cell`
// without a destructor, so it neither allocates nor is ever gone.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn put<M: Message + Name>(parts: &mut Parts, name: &str, message: &M) {
    if let Err(rejected) = parts.put(&M::type_url(), name, "1", &proto::xds::pack(message)) {
        panic!("{rejected}");
    }
}

fn rule(wanted: RouteMatch, to: &[&str]) -> Route {
    let weight = |name: &&str| weighted_cluster::ClusterWeight { name: (*name).into(), weight: Some(1), ..Default::default() };
    let clusters = WeightedCluster { clusters: to.iter().map(weight).collect() };
    let specifier = Some(route_action::ClusterSpecifier::WeightedClusters(clusters));
    Route {
        name: "HTTPRoute/shop/catalog/0".into(),
        r#match: Some(wanted),
        action: Some(route::Action::Route(RouteAction { cluster_specifier: specifier, ..Default::default() })),
        ..Default::default()
    }
}

fn endpoint(last: u8) -> LbEndpoint {
    let socket = SocketAddress {
        address: format!("10.0.0.{last}"),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
        ..Default::default()
    };
    let address = Some(Address { address: Some(address::Address::SocketAddress(socket)) });
    let endpoint = lb_endpoint::HostIdentifier::Endpoint(Endpoint { address, ..Default::default() });
    LbEndpoint { host_identifier: Some(endpoint), load_balancing_weight: Some(u32::from(last)), ..Default::default() }
}

/// Exact host, wildcard and any; header, regex and prefix rules, and hundreds more of each; a split over two clusters of two endpoints of unequal weight.
fn snapshot() -> Snapshot {
    let mut parts = Parts::default();
    let path = |specifier| RouteMatch { path_specifier: Some(specifier), ..Default::default() };
    let exact = StringMatcher { match_pattern: Some(string_matcher::MatchPattern::Exact("a,b".into())), ..Default::default() };
    let header = HeaderMatcher {
        name: "x-user".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
        ..Default::default()
    };
    let routes = vec![
        rule(RouteMatch { headers: vec![header], ..path(PathSpecifier::Prefix("/".into())) }, &["v1"]),
        rule(path(PathSpecifier::SafeRegex(RegexMatcher { regex: "/r/[0-9]+".into() })), &["v1"]),
        rule(path(PathSpecifier::PathSeparatedPrefix("/v1".into())), &["v1", "v2"]),
    ];
    let mut routes = routes;
    for n in 0..100 {
        let own = StringMatcher { match_pattern: Some(string_matcher::MatchPattern::Exact(n.to_string())), ..Default::default() };
        let tenant = HeaderMatcher {
            name: "x-tenant".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(own)),
            ..Default::default()
        };
        routes.push(rule(RouteMatch { headers: vec![tenant], ..path(PathSpecifier::Prefix("/".into())) }, &["v1"]));
        routes.push(rule(path(PathSpecifier::PathSeparatedPrefix(format!("/area/{n}"))), &["v1"]));
        routes.push(rule(path(PathSpecifier::Path(format!("/exact/{n}"))), &["v1"]));
    }
    let domains = ["catalog.shop", "*.example.com", "*"];
    let host = VirtualHost { domains: domains.map(String::from).to_vec(), routes, ..Default::default() };
    put(
        &mut parts,
        "t",
        &RouteConfiguration { name: "t".into(), virtual_hosts: vec![host], ignore_port_in_host_matching: true, ..Default::default() },
    );
    for name in ["v1", "v2"] {
        let cluster = Cluster {
            name: name.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            lb_policy: LbPolicy::LeastRequest.into(),
            ..Default::default()
        };
        put(&mut parts, name, &cluster);
        let group = LocalityLbEndpoints { lb_endpoints: vec![endpoint(1), endpoint(2)], ..Default::default() };
        put(&mut parts, name, &ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![group], ..Default::default() });
    }
    parts.assemble(1, &Snapshot::default())
}

#[test]
fn no_algorithm_allocates_and_no_good_answer_does() {
    // Aim: zero allocations from a pick to the booking of its outcome, with every algorithm, outlier detection, a limit and tiers.
    for algorithm in 0..6 {
        let mut parts = Parts::default();
        let policy = ClusterPolicy {
            balance: Some(Balance { algorithm, prefer: 1, ..Balance::default() }),
            limits: Some(Limits { requests: 2, pending: 1, ..Limits::default() }),
            outlier: Some(Outlier {
                consecutive_errors: 5,
                success_rate_min_percent: 50.0,
                interval: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                eject_for: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
                ..Outlier::default()
            }),
            ..ClusterPolicy::default()
        };
        let cluster = Cluster {
            name: "v1".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            lb_policy: LbPolicy::LeastRequest.into(),
            typed_extension_protocol_options: [(proto::names::POLICY.to_owned(), proto::xds::pack(&policy))].into(),
            ..Default::default()
        };
        put(&mut parts, "v1", &cluster);
        let group = LocalityLbEndpoints { lb_endpoints: vec![endpoint(1), endpoint(2), endpoint(3)], ..Default::default() };
        put(&mut parts, "v1", &ClusterLoadAssignment { cluster_name: "v1".into(), endpoints: vec![group], ..Default::default() });
        let snapshot = parts.assemble(1, &Snapshot::default());
        let cluster = &snapshot.clusters["v1"];
        let run = |draw: u64| {
            let now = Moment::of_nanos(draw >> 40);
            cluster.live.budget.deposit();
            let Enter::In(pass) = cluster.live.gate.enter(&cluster.policy.limits, 0) else { panic!("there is room") };
            let set = cluster.endpoints.load();
            let tried = [set.ready[0].address];
            for tried in [&tried[..0], &tried] {
                let endpoint = balance::pick(cluster, &set, &Choice { draw, hash: Some(draw), tried, now, trials: true }).unwrap();
                let took = Duration::from_nanos(draw >> 50);
                assert!(cluster.told(endpoint, Outcome::Answered { status: 200, took }, now).is_none());
            }
            drop(pass);
        };
        run(0);
        let before = COUNT.get();
        (0..64).for_each(|n| run(n << 58 | n << 27));
        assert_eq!(COUNT.get() - before, 0, "algorithm {algorithm}");
    }
}

#[test]
fn a_decision_and_a_pick_allocate_nothing() {
    // Aim: zero allocations from request head to endpoint, for every kind of match and host, after regular expressions are warm.
    let snapshot = snapshot();
    let table = &snapshot.routes["t"];
    let mut headers = HeaderMap::new();
    headers.append("x-user", HeaderValue::from_static("a"));
    headers.append("x-user", HeaderValue::from_static("c"));
    headers.append("x-tenant", HeaderValue::from_static("97"));
    for (host, path) in [
        ("catalog.shop", "/v1/x"),
        ("CATALOG.shop:80", "/r/7"),
        ("a.example.com", "/v1?q=1"),
        ("else", "/v1"),
        ("else", "/area/99/x"),
        ("a.b.example.com", "/exact/99"),
        ("else", "/tenant"),
    ] {
        let uri: Uri = format!("http://{host}{path}").parse().unwrap();
        let run = |draw: u64| {
            let Decision::Forward(plan) = decide(table, &RequestHead::new(&Method::GET, &uri, &headers), draw) else {
                panic!("no plan for {uri}")
            };
            let cluster = plan.target.unwrap();
            let set = cluster.endpoints.load();
            let endpoint =
                balance::pick(cluster, &set, &Choice { draw, hash: None, tried: &[], now: Moment::default(), trials: true }).unwrap();
            drop(endpoint.live.enter());
        };
        run(0);
        let before = COUNT.get();
        (0..64).for_each(|n| run(n << 58 | n << 27));
        assert_eq!(COUNT.get() - before, 0, "{uri}");
    }
}

#[test]
fn a_judgement_allocates_nothing() {
    // Aim: zero allocations for any verdict of policies without CEL: denied, allowed, audited, on trial, by every kind of condition.
    let below = |path: String| CallTarget { paths: vec![PathPattern { kind: Some(Kind::Prefix(path)) }], ..CallTarget::default() };
    let peer = |n: usize| CallSource { principals: vec![format!("spiffe://cluster.local/ns/shop/sa/a{n}")], ..CallSource::default() };
    let rule = |n: usize| {
        let hosts = CallTarget { hosts: vec![format!("h{n}.shop"), "*.shop".into()], ..below(format!("/area/{n}")) };
        let from =
            vec![peer(n), CallSource { ip_blocks: vec!["192.0.2.0/24".into()], namespaces: vec!["pay".into()], ..CallSource::default() }];
        AuthorizationRule { from, to: vec![hosts], not_to: vec![below("/area/0".into())], ..AuthorizationRule::default() }
    };
    let policy = |name: &str, action: Action, dry_run| AuthorizationPolicy {
        name: format!("shop/{name}"),
        action: action.into(),
        dry_run,
        rules: (0..100).map(rule).collect(),
    };
    let policies = vec![
        policy("allow", Action::Allow, false),
        policy("audit", Action::Audit, false),
        policy("trial", Action::Deny, true),
        AuthorizationPolicy { rules: vec![rule(7)], ..policy("deny", Action::Deny, false) },
    ];
    let mut parts = Parts::default();
    put(&mut parts, "inbound", &Authorization { policies, dry_run: false });
    let snapshot = parts.assemble(1, &Snapshot::default());
    let authorization = snapshot.authorization.as_deref().unwrap();
    let headers = HeaderMap::new();
    let own = Own { trust_domain: "cluster.local", namespace: "shop", workload: "store" };
    for (n, allowed) in [(0, false), (7, false), (42, true), (500, false)] {
        let peer: Identity = format!("spiffe://cluster.local/ns/shop/sa/a{n}").parse().unwrap();
        let uri: Uri = format!("/area/{n}/x").parse().unwrap();
        let host = format!("H{n}.Shop.:80");
        let head = RequestHead { host: &host, ..RequestHead::new(&Method::GET, &uri, &headers) };
        let source = std::net::SocketAddr::from(([10, 0, 0, 1], 1));
        let call =
            Call { peer: Some(&peer), workload: "w", source, port: 80, head: Some(&head), claims: None, auth: None, edge: None, own };
        let bytes = Call { head: None, ..call };
        let before = COUNT.get();
        let judgement = authorization.judge(&call);
        let of_bytes = authorization.judge(&bytes).allows();
        assert_eq!(COUNT.get() - before, 0, "{n}");
        assert_eq!((judgement.allows(), judgement.would_deny.is_some(), of_bytes), (allowed, allowed, false), "{n}");
    }
}

/// Public half of a key that nobody has any more, and a token of it (ES256) that is good until 2100.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"-I6ea_HuWoLVr_rG0nbq-cFmlInVso-vtMXaSzTRKQY","y":"7Gtp_lgUYL2pFTDRXCU_-GzXsTn58pTxM9X8jDWhspw"}]}"#;
const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJzdWIiOiJhZGEiLCJleHAiOjQxMDI0NDQ4MDB9.\
                     Cdzb-CWYiQhcJCTVqFHOR5zjyNiLvP-exsDbVERMYXhzXQLaEa_0d3CD3_ZEyVvIsvjonApmPy-cmWBcAsNH2A";

#[test]
fn a_token_that_was_seen_allocates_nothing() {
    // Aim: zero allocations from a known token to the request as the application gets it: the token taken out, a claim in its header.
    let rule = TokenRule {
        policy: "shop/tokens".into(),
        issuer: "https://id.example".into(),
        jwks: JWKS.into(),
        from_headers: vec![TokenHeader { name: "authorization".into(), prefix: "Bearer ".into() }],
        claims_to_headers: vec![ClaimHeader { claim: "sub".into(), header: "x-user".into() }],
        ..TokenRule::default()
    };
    let mut parts = Parts::default();
    put(&mut parts, "inbound", &Authentication { rules: vec![rule], ..Authentication::default() });
    let snapshot = parts.assemble(1, &Snapshot::default());
    let rules = snapshot.authentication.as_deref().unwrap();
    let mut remembered = Remembered::new(1);
    for known in [false, true] {
        let request = Request::get("/").header("host", "a").header("authorization", format!("Bearer {TOKEN}")).header("x-user", "root");
        let mut request = request.body(()).unwrap().into_parts().0;
        let before = COUNT.get();
        let head = RequestHead::nameless(&request.method, &request.uri, &request.headers);
        let verdict = rules.judge(&head, &mut remembered, 1_780_272_000);
        rules.carry_out(&verdict, &mut request);
        assert_eq!(COUNT.get() == before, known);
        assert!(matches!(verdict, TokenVerdict::Accepted(_)), "{verdict:?}");
        assert_eq!(
            (request.headers.get("x-user").unwrap(), request.headers.contains_key("authorization")),
            (&HeaderValue::from_static("ada"), false)
        );
    }
}

/// Allocations of a request with an API key at most, beyond those of a route that asks nobody: who it is, and the room for its header.
const OF_A_KEY_MAX: usize = 3;

/// The same of limits: what is counted of the request, and the value that its answer says.
const OF_A_LIMIT_MAX: usize = 2;

#[test]
fn a_request_with_a_key_allocates_next_to_nothing() {
    // Aim: a bounded few allocations from the key to the request as the backend gets it: the key taken out, the consumer in its header.
    keyed(Vec::new(), OF_A_KEY_MAX);
}

#[test]
fn a_request_under_a_limit_allocates_next_to_nothing() {
    // Aim: a rate and a quota of the consumer cost two allocations together, from the count to what the client is told.
    let key = vec![mesh::EdgeKey { kind: Some(mesh::edge_key::Kind::Consumer(true)) }];
    let rate = mesh::LimitRate { requests: 600, per: Some(prost_types::Duration { seconds: 60, nanos: 0 }), burst: 600 };
    let month =
        mesh::LimitQuota { requests: 1000, per: mesh::CalendarPeriod::Month.into(), time_zone: "Europe/Berlin".into(), week_start: 1 };
    let limit = |name: &str, numbers| mesh::EdgeLimit {
        name: name.into(),
        numbers: Some(numbers),
        key: key.clone(),
        cost: 1,
        ..mesh::EdgeLimit::default()
    };
    let limits = mesh::EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        limits: vec![limit("minute", mesh::edge_limit::Numbers::Rate(rate)), limit("month", mesh::edge_limit::Numbers::Quota(month))],
        store: Some(mesh::LimitStore { kind: Some(mesh::limit_store::Kind::Leases(mesh::LeaseStore { ahead_percent: 1 })) }),
        draft_headers: true,
        ..mesh::EdgeLimits::default()
    };
    keyed(vec![limits], OF_A_KEY_MAX + OF_A_LIMIT_MAX);
}

/// A request with an API key, under limits; its second time, when everything is known.
fn keyed(limits: Vec<mesh::EdgeLimits>, most: usize) {
    const KEY: &str = "a-key-of-more-than-twenty-bytes";
    let mut parts = Parts::default();
    let kind = mesh::KeyCredential { sha256: digest(KEY.as_bytes()).to_vec().into(), prefix: "mw_abc".into() };
    let credential =
        mesh::Credential { name: "k1".into(), kind: Some(mesh::credential::Kind::ApiKey(kind)), ..mesh::Credential::default() };
    let acme = mesh::Consumer { namespace: "shop".into(), name: "acme".into(), credentials: vec![credential], ..mesh::Consumer::default() };
    put(&mut parts, "consumers/00", &mesh::Consumers { consumers: vec![acme], ..mesh::Consumers::default() });
    parts.settle();
    let header = mesh::CredentialHeader { name: "x-api-key".into(), prefix: String::new() };
    let api_keys = mesh::ApiKeys {
        policy: "shop/keys".into(),
        from: vec![mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Header(header)) }],
        consumers: Some(mesh::ConsumerChoice { namespaces: vec!["shop".into()], ..mesh::ConsumerChoice::default() }),
        ..mesh::ApiKeys::default()
    };
    let limited = !limits.is_empty();
    let edge = Some(mesh::EdgePolicy { api_keys: Some(api_keys), limits, ..mesh::EdgePolicy::default() });
    let mut route = rule(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() }, &["v1"]);
    let policy = mesh::RoutePolicy { edge, ..mesh::RoutePolicy::default() };
    route.typed_per_filter_config.insert(proto::names::POLICY.to_owned(), proto::xds::pack(&policy));
    let host = VirtualHost { name: "*".into(), domains: vec!["*".into()], routes: vec![route], ..Default::default() };
    put(&mut parts, "t", &RouteConfiguration { name: "t".into(), virtual_hosts: vec![host], ..Default::default() });
    let snapshot = parts.assemble(1, &Snapshot::default());
    let (book, mut tokens, mut verified) = (snapshot.consumers.load(), Remembered::new(1), Verified::new([1; 32]));
    for time in 0..2 {
        let request = Request::get("/").header("host", "a").header("x-api-key", KEY).header("accept", "*/*");
        let mut request = request.body(()).unwrap().into_parts().0;
        let (mut found, mut counted, mut answer) = (Found::default(), Counted::default(), HeaderMap::with_capacity(8));
        let table = snapshot.routes.get("t").unwrap();
        let head = RequestHead::new(&request.method, &request.uri, &request.headers);
        let Decision::Forward(plan) = decide(table, &head, 0) else { panic!("it leads somewhere") };
        let before = COUNT.get();
        let mut exchange = Exchange {
            request: &mut request,
            caller: None,
            address: [192, 0, 2, 7].into(),
            called: Called { port: 80, tls: false },
            watch: Some(Watch {
                book: &book,
                tokens: &mut tokens,
                peer: [192, 0, 2, 7].into(),
                port: 1,
                certificate: None,
                verified: &mut verified,
                wall_secs: 1_780_272_000,
                found: &mut found,
                counted: &mut counted,
            }),
            now: Moment::default(),
            draw: 0,
        };
        let passage = plan.forward.forth(plan.place, Resume::START, &mut exchange);
        counted.tell(&mut answer);
        let spent = COUNT.get() - before;
        assert!(matches!(passage, Passage::Through), "{passage:?}");
        assert!(spent <= most || (limited && time == 0), "{spent}");
        assert_eq!(answer.contains_key("ratelimit"), limited);
        assert!(!request.headers.contains_key("x-api-key") && request.headers.contains_key("x-meshwright-consumer"));
        assert_eq!(found.identified().and_then(|who| who.consumer.as_deref()).map(|consumer| &*consumer.path), Some("shop/acme"));
    }
}
