//! Route match over tables of many rules, and the stages of a rule.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BenchmarkId, Criterion};
use engine::Moment;
use engine::decide::{Decision, RequestHead, decide};
use engine::filter::{Called, Exchange, Resume};
use engine::model::Snapshot;
use engine::model::build::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use prost::{Message, Name};
use proto::xds::cluster::Cluster;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use proto::xds::core::{HeaderValue as RawValue, HeaderValueOption, header_value_option::HeaderAppendAction};
use proto::xds::matcher::{StringMatcher, string_matcher::MatchPattern};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::{
    HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action::ClusterSpecifier,
};

/// Rules in a table: what a Service of many routes has, and what nobody should have.
const RULES: [usize; 5] = [1, 10, 100, 1000, 10_000];
const TABLE: &str = "shop/catalog:80";

/// `decide` where the last rule is the one, and where none is.
pub(crate) fn decisions(criterion: &mut Criterion) {
    for (kind, wanted) in [("path", path as fn(usize) -> RouteMatch), ("header", header)] {
        let mut group = criterion.benchmark_group(format!("decide: rules by {kind}"));
        for rules in RULES {
            let snapshot = snapshot((0..rules).map(|n| rule(n, wanted(n))).collect());
            let table = &snapshot.routes[TABLE];
            let headers = headers(&format!("tenant-{}", rules - 1));
            for (which, text) in [("last", format!("/area/{}/products?x=1", rules - 1)), ("none", "/else".to_owned())] {
                let uri: Uri = text.parse().unwrap();
                let none = HeaderMap::new();
                let head = RequestHead::new(&Method::GET, &uri, if which == "last" { &headers } else { &none });
                assert_eq!(matches!(decide(table, &head, 0), Decision::Forward(_)), which == "last");
                group.bench_with_input(BenchmarkId::new(which, rules), &head, |bench, head| {
                    bench.iter(|| matches!(decide(table, black_box(head), 0), Decision::Forward(_)));
                });
            }
        }
        group.finish();
    }
}

/// `decide` where each rule has a host of its own, and where one wildcard covers it.
pub(crate) fn hosts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide: rules by host");
    for rules in RULES {
        let host = |n: usize| VirtualHost {
            domains: vec![format!("shop-{n}.example.com"), format!("*.shop-{n}.example.com")],
            routes: vec![rule(n, path(n))],
            ..Default::default()
        };
        let snapshot = of_hosts((0..rules).map(host).collect());
        let table = &snapshot.routes[TABLE];
        let none = HeaderMap::new();
        let last = rules - 1;
        for (which, name) in [("exact", format!("shop-{last}.example.com")), ("wildcard", format!("a.b.shop-{last}.example.com"))] {
            let uri: Uri = format!("http://{name}/area/{last}/products?x=1").parse().unwrap();
            let head = RequestHead::new(&Method::GET, &uri, &none);
            assert!(matches!(decide(table, &head, 0), Decision::Forward(_)));
            group.bench_with_input(BenchmarkId::new(which, rules), &head, |bench, head| {
                bench.iter(|| matches!(decide(table, black_box(head), 0), Decision::Forward(_)));
            });
        }
    }
    group.finish();
}

/// A table of ten thousand rules from its resource, and with one rule changed.
pub(crate) fn builds(criterion: &mut Criterion) {
    let table = |change: usize| {
        let mut routes: Vec<Route> = (0..10_000).map(|n| rule(n, path(n))).collect();
        routes[change].request_headers_to_add = vec![set("x-changed", &change.to_string())];
        let hosts = vec![VirtualHost { domains: vec!["*".to_owned()], routes, ..Default::default() }];
        proto::xds::pack(&RouteConfiguration { name: TABLE.to_owned(), virtual_hosts: hosts, ..Default::default() })
    };
    let put = |parts: &mut Parts, any: &_, version: u64| {
        parts.put(&RouteConfiguration::type_url(), TABLE, &version.to_string(), any).unwrap();
    };
    let both = [table(0), table(1)];
    criterion.bench_function("build: ten thousand rules", |bench| {
        bench.iter(|| {
            let mut parts = Parts::default();
            put(&mut parts, &both[0], 0);
            parts.assemble(1, &Snapshot::default()).epoch
        });
    });
    criterion.bench_function("build: one changed of ten thousand rules", |bench| {
        let mut parts = Parts::default();
        put(&mut parts, &both[0], 0);
        let (mut live, mut version) = (parts.assemble(1, &Snapshot::default()), 0);
        bench.iter(|| {
            version += 1;
            put(&mut parts, &both[(version % 2) as usize], version);
            live = parts.assemble(version, &live);
        });
    });
}

/// A rule's header filters, on a request of the usual size and on its response.
pub(crate) fn stages(criterion: &mut Criterion) {
    let mut rule = rule(0, path(0));
    rule.request_headers_to_add = vec![set("x-tenant", "shop"), add("x-via", "mesh")];
    rule.request_headers_to_remove = vec!["x-internal".to_owned()];
    rule.response_headers_to_add = vec![set("x-served-by", "catalog")];
    let snapshot = snapshot(vec![rule]);
    let uri: Uri = "/area/0/products".parse().unwrap();
    let request = headers("tenant-0");
    let head = RequestHead::new(&Method::GET, &uri, &request);
    let Decision::Forward(plan) = decide(&snapshot.routes[TABLE], &head, 0) else { panic!("the only rule matches") };
    let mut parts = Request::new(()).into_parts().0;
    parts.headers = request.clone();
    // After the first run every run does the same: `add` alone would let the map grow.
    criterion.bench_function("stages: set, add and remove on a request, set on its response", |bench| {
        bench.iter(|| {
            parts.headers.remove("x-via");
            let mut exchange = Exchange {
                request: black_box(&mut parts),
                caller: None,
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                called: Called { port: 80, tls: false },
                watch: None,
                now: Moment::default(),
                draw: 0,
            };
            let answered = plan.forward.answered(&exchange);
            let passage = plan.forward.forth(plan.place, Resume::START, &mut exchange);
            plan.forward.back(plan.place, &answered, black_box(&mut parts.headers));
            passage
        });
    });
}

fn headers(tenant: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "catalog"), ("user-agent", "bench"), ("accept", "*/*"), ("x-internal", "1"), ("x-tenant", tenant)] {
        headers.insert(name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn path(n: usize) -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::PathSeparatedPrefix(format!("/area/{n}"))), ..Default::default() }
}

fn header(n: usize) -> RouteMatch {
    let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact(format!("tenant-{n}"))), ..Default::default() };
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        headers: vec![HeaderMatcher {
            name: "x-tenant".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn rule(n: usize, wanted: RouteMatch) -> Route {
    Route {
        name: format!("HTTPRoute/shop/catalog/{n}"),
        r#match: Some(wanted),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(TABLE.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn set(name: &str, value: &str) -> HeaderValueOption {
    option(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd)
}

fn add(name: &str, value: &str) -> HeaderValueOption {
    option(name, value, HeaderAppendAction::AppendIfExistsOrAdd)
}

fn option(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        append: None,
        header: Some(RawValue { key: name.to_owned(), value: value.to_owned() }),
        append_action: action.into(),
        ..Default::default()
    }
}

/// One table with these rules, as the proxy builds it from resources.
fn snapshot(routes: Vec<Route>) -> Snapshot {
    of_hosts(vec![VirtualHost { name: "*".to_owned(), domains: vec!["*".to_owned()], routes, ..Default::default() }])
}

fn of_hosts(hosts: Vec<VirtualHost>) -> Snapshot {
    let table =
        RouteConfiguration { name: TABLE.to_owned(), virtual_hosts: hosts, ignore_port_in_host_matching: true, ..Default::default() };
    let cluster = Cluster {
        name: TABLE.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        lb_policy: LbPolicy::LeastRequest.into(),
        ..Default::default()
    };
    let mut parts = Parts::default();
    put(&mut parts, &table);
    put(&mut parts, &cluster);
    parts.assemble(1, &Snapshot::default())
}

fn put<M: Message + Name>(parts: &mut Parts, message: &M) {
    let any = proto::xds::pack(message);
    parts.put(&M::type_url(), TABLE, &proto::epoch::version(&any.value), &any).unwrap();
}
