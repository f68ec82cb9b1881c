use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use proto::xds::matcher::string_matcher::MatchPattern;
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::{HeaderMatcher, RouteMatch};

use super::*;
use crate::fixture;
use crate::model::Snapshot;
use crate::model::build::Parts;

/// Domains, and rules `(name, match)`.
type Host<'h> = (&'h [&'h str], Vec<(&'h str, RouteMatch)>);

/// One table; each rule leads to a cluster of its own name.
fn table(hosts: &[Host<'_>]) -> Arc<RouteTable> {
    let mut parts = Parts::default();
    let hosts = hosts.iter().map(|(domains, rules)| {
        let rules = rules.iter().map(|(name, wanted)| fixture::rule(name, wanted.clone(), &[(*name, 1)]));
        fixture::host(domains, rules.collect())
    });
    let raw = fixture::table("t", hosts.collect());
    for rule in raw.virtual_hosts.iter().flat_map(|host| &host.routes) {
        fixture::put(&mut parts, &rule.name, &fixture::cluster(&rule.name)).unwrap();
    }
    fixture::put(&mut parts, "t", &raw).unwrap();
    parts.assemble(1, &Snapshot::default()).routes["t"].clone()
}

/// The name of the rule that wins, `404` for none.
fn winner(table: &RouteTable, method: &str, url: &str, headers: &[(&str, &str)]) -> String {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let uri: http::Uri = url.parse().unwrap();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    match decide(table, &RequestHead::new(&method, &uri, &map), 0) {
        Decision::Forward(plan) => match plan.target {
            Ok(cluster) => cluster.name.to_string(),
            Err(reply) => format!("reply {}", reply.status.as_u16()),
        },
        Decision::Reply { reply, rule: None } => reply.status.as_str().to_owned(),
        Decision::Reply { reply, rule: Some(_) } => format!("reply {}", reply.status.as_u16()),
    }
}

#[test]
fn paths_match_as_gateway_api_says() {
    // Aim: prefixes are element-wise, exact is exact, regular expressions are anchored, the query is no part of the path.
    let table = table(&[(
        &["*"],
        vec![
            ("exact", fixture::exact("/exact/one")),
            ("v2", fixture::prefix("/v2/")),
            ("regex", fixture::path_regex("/r/[0-9]+|/q")),
            ("deep", fixture::prefix("/a/b")),
        ],
    )]);
    for (path, wanted) in [
        ("/exact/one", "exact"),
        ("/exact/one?x=1", "exact"),
        ("/exact/one/", "404"),
        ("/Exact/one", "404"),
        ("/v2", "v2"),
        ("/v2/", "v2"),
        ("/v2/x", "v2"),
        ("/v2?x", "v2"),
        ("/v2example", "404"),
        ("/foo/v2", "404"),
        ("/r/12", "regex"),
        ("/r/12x", "404"),
        ("/x/r/12", "404"),
        ("/q", "regex"),
        ("/qq", "404"),
        ("/a/b/c", "deep"),
        ("/a/bc", "404"),
        ("/", "404"),
    ] {
        assert_eq!(winner(&table, "GET", path, &[]), wanted, "{path}");
    }
}

#[test]
fn the_first_rule_that_matches_wins() {
    // Aim: order is the control plane's; a later, longer prefix is not searched for.
    let rules = vec![("short", fixture::prefix("/a")), ("long", fixture::prefix("/a/b")), ("rest", fixture::prefix("/"))];
    let table = table(&[(&["*"], rules)]);
    assert_eq!(winner(&table, "GET", "/a/b", &[]), "short");
    assert_eq!(winner(&table, "GET", "/b", &[]), "rest");
    assert_eq!(winner(&table, "OPTIONS", "*", &[]), "rest");
}

#[test]
fn headers_methods_and_queries_are_a_conjunction() {
    // Aim: names without regard to case, values with; repeated headers joined, first of repeated parameters; GET is not HEAD.
    let matcher = |name: &str, specifier, invert_match| HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(specifier),
        invert_match,
        ..Default::default()
    };
    let text = |pattern| HeaderMatchSpecifier::StringMatch(fixture::string(pattern));
    let regex = proto::xds::matcher::RegexMatcher { regex: "[a-c]+".into() };
    let with = |headers: Vec<HeaderMatcher>| RouteMatch { headers, ..fixture::prefix("/") };
    let table = table(&[(
        &["*"],
        vec![
            ("both", with(vec![fixture::header("x-a", "1"), fixture::header("X-B", "2")])),
            ("joined", with(vec![fixture::header("x-j", "a,b")])),
            ("regex", with(vec![matcher("x-r", text(MatchPattern::SafeRegex(regex)), false)])),
            ("prefix", with(vec![matcher("x-p", text(MatchPattern::Prefix("ab".into())), false)])),
            ("suffix", with(vec![matcher("x-s", text(MatchPattern::Suffix("yz".into())), false)])),
            ("contains", with(vec![matcher("x-c", text(MatchPattern::Contains("mid".into())), false)])),
            ("present", with(vec![matcher("x-here", HeaderMatchSpecifier::PresentMatch(true), false)])),
            ("post", with(vec![fixture::header(":method", "POST")])),
            ("query", RouteMatch { query_parameters: vec![fixture::query("q", "a b")], ..fixture::prefix("/") }),
            ("absent", with(vec![matcher("x-not", HeaderMatchSpecifier::PresentMatch(true), true), fixture::header("x-end", "1")])),
            ("other", with(vec![matcher("x-env", text(MatchPattern::Exact("prod".into())), true), fixture::header("x-o", "1")])),
        ],
    )]);
    type Case<'c> = (&'c str, &'c str, &'c [(&'c str, &'c str)], &'c str);
    let cases: &[Case<'_>] = &[
        ("GET", "/", &[("X-A", "1"), ("x-b", "2")], "both"),
        ("GET", "/", &[("x-a", "1")], "404"),
        ("GET", "/", &[("x-j", "a"), ("x-j", "b")], "joined"),
        ("GET", "/", &[("x-j", "a")], "404"),
        ("GET", "/", &[("x-r", "abc")], "regex"),
        ("GET", "/", &[("x-r", "abcd")], "404"),
        ("GET", "/", &[("x-p", "abc")], "prefix"),
        ("GET", "/", &[("x-s", "xyz")], "suffix"),
        ("GET", "/", &[("x-c", "a mid b")], "contains"),
        ("GET", "/", &[("x-here", "")], "present"),
        ("POST", "/", &[], "post"),
        ("HEAD", "/", &[], "404"),
        ("GET", "/?q=a+b", &[], "query"),
        ("GET", "/?x=1&q=a%20b&q=c", &[], "query"),
        ("GET", "/?q=c&q=a+b", &[], "404"),
        ("GET", "/?Q=a+b", &[], "404"),
        ("GET", "/?q=a%2", &[], "404"),
        ("GET", "/", &[("x-end", "1")], "absent"),
        ("GET", "/", &[("x-end", "1"), ("x-not", "")], "404"),
        ("GET", "/", &[("x-o", "1"), ("x-env", "test")], "other"),
        ("GET", "/", &[("x-o", "1")], "other"),
        ("GET", "/", &[("x-o", "1"), ("x-env", "prod")], "404"),
    ];
    for (method, url, headers, wanted) in cases {
        assert_eq!(winner(&table, method, url, headers), *wanted, "{method} {url} {headers:?}");
    }
}

#[test]
fn the_most_specific_host_is_chosen() {
    // Aim: exact, longest wildcard, any; without port and case; no fall-through from a chosen host.
    let all = || fixture::prefix("/");
    let table = table(&[
        (&["*"], vec![("any", all())]),
        (&["*.example.com"], vec![("wild", all())]),
        (&["*.b.example.com"], vec![("deeper", all())]),
        (&["A.example.com", "[fd00::1]"], vec![("exact", fixture::prefix("/only"))]),
    ]);
    for (host, path, wanted) in [
        ("a.example.com", "/only", "exact"),
        ("A.EXAMPLE.com:8080", "/only", "exact"),
        ("a.example.com", "/", "404"),
        ("x.example.com", "/", "wild"),
        ("x.y.example.com", "/", "wild"),
        ("X.B.Example.com:1", "/", "deeper"),
        ("b.example.com", "/", "wild"),
        ("example.com", "/", "any"),
        ("notexample.com", "/", "any"),
        ("[fd00::1]:80", "/only", "exact"),
        ("", "/", "any"),
    ] {
        assert_eq!(winner(&table, "GET", path, &[("host", host)]), wanted, "{host}{path}");
    }
    assert_eq!(winner(&table, "GET", "http://a.example.com/only", &[("host", "other")]), "exact", "the URI's authority goes first");
    let long = format!("{}.example.com", "a".repeat(300));
    assert_eq!(winner(&table, "GET", "/", &[("host", &long)]), "any");
}

#[test]
fn backends_share_by_weight_and_bad_ones_keep_their_share() {
    // Aim: 70/30/0 exactly by draw, 500 for a bad reference's share, 503 for a missing cluster's, 500 without weight.
    let mut parts = Parts::default();
    let rules = vec![
        fixture::rule("split", fixture::exact("/split"), &[("a", 70), ("b", 20), ("bad_backend", 10), ("c", 0)]),
        fixture::rule("gone", fixture::exact("/gone"), &[("gone", 1)]),
        fixture::rule("none", fixture::exact("/none"), &[("a", 0)]),
    ];
    for name in ["a", "b", "c"] {
        fixture::put(&mut parts, name, &fixture::cluster(name)).unwrap();
    }
    fixture::put(&mut parts, "t", &fixture::table("t", vec![fixture::host(&["*"], rules)])).unwrap();
    let table = parts.assemble(1, &Snapshot::default()).routes["t"].clone();
    let headers = HeaderMap::new();
    let mut shares: HashMap<String, u32> = HashMap::new();
    for n in 0..1000_u64 {
        let head = RequestHead { method: &Method::GET, path: "/split", query: None, host: "x", headers: &headers };
        let to = match decide(&table, &head, n * (u64::MAX / 1000)) {
            Decision::Forward(plan) => match plan.target {
                Ok(cluster) => cluster.name.to_string(),
                Err(reply) => reply.reason.unwrap().text().to_owned(),
            },
            Decision::Reply { .. } => unreachable!(),
        };
        *shares.entry(to).or_default() += 1;
    }
    for (name, share) in [("a", 700), ("b", 200), ("bad_backend", 100)] {
        assert!(shares[name].abs_diff(share) <= 1, "{shares:?}");
    }
    assert_eq!(shares.len(), 3);
    assert_eq!(winner(&table, "GET", "/gone", &[]), "reply 503");
    assert_eq!(winner(&table, "GET", "/none", &[]), "reply 500");
}

proptest! {
    /// Aim: what the door accepts, decide carries without a panic, whatever the request.
    #[test]
    fn decide_survives_any_head_on_any_accepted_table(
        domains in prop::collection::vec("\\*|\\*\\.[a-z]{1,3}|[a-z]{1,3}(\\.[a-z]{1,3})?|\\PC{0,6}", 1..4),
        paths in prop::collection::vec("/[a-b/]{0,4}|\\PC{0,5}", 1..4),
        weights in prop::collection::vec(any::<u32>(), 0..4),
        regex in "\\PC{0,8}",
        (method, path, query, host) in ("[A-Z]{1,5}", "\\PC{0,12}", prop::option::of("\\PC{0,12}"), "\\PC{0,12}"),
        headers in prop::collection::vec(("[a-b]", prop::collection::vec(any::<u8>(), 0..5)), 0..4),
        draw in any::<u64>(),
    ) {
        let mut parts = Parts::default();
        let mut rules = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let to: Vec<(&str, u32)> = weights.iter().map(|weight| ("a", *weight)).collect();
            let mut wanted = if index == 0 { fixture::path_regex(&regex) } else { fixture::prefix(path) };
            wanted.headers = vec![fixture::header("a", path)];
            wanted.query_parameters = vec![fixture::query("a", path)];
            wanted.headers.truncate(index % 2);
            rules.push(fixture::rule("r", wanted, &to));
        }
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let raw = fixture::table("t", vec![fixture::host(&domains, rules)]);
        fixture::put(&mut parts, "a", &fixture::cluster("a")).unwrap();
        if fixture::put(&mut parts, "t", &raw).is_ok() {
            let snapshot = parts.assemble(1, &Snapshot::default());
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
                }
            }
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let head = RequestHead { method: &method, path: &path, query: query.as_deref(), host: &host, headers: &map };
            let _ = decide(&snapshot.routes["t"], &head, draw);
        }
    }
}

#[test]
fn a_host_spelled_in_full_is_the_same_host() {
    // Aim: a trailing dot, a port, capitals and all of them at once, as clients and Envoy write them; two dots are another name.
    let table =
        table(&[(&["shop.example"], vec![("shop", fixture::prefix("/"))]), (&["*.wild.example"], vec![("wild", fixture::prefix("/"))])]);
    for (host, wanted) in [
        ("shop.example", "shop"),
        ("shop.example.", "shop"),
        ("shop.example:80", "shop"),
        ("shop.example.:80", "shop"),
        ("SHOP.example.:8080", "shop"),
        ("a.wild.example.", "wild"),
        ("shop.example..", "404"),
        (".", "404"),
        ("wild.example.", "404"),
    ] {
        assert_eq!(winner(&table, "GET", "/", &[("host", host)]), wanted, "{host}");
    }
}
