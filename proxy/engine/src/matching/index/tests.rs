use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::filter::{Cors, Filter, Stage};
use crate::model::{Action, Domains, Forward, Policy, Rule, RuleSource, Steps, VirtualHost};
use crate::{decide, matching};

const PATHS: [&str; 12] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/a//b", "//", "/b/a", "*", "/a/b/c/d", ""];
const METHODS: [&str; 4] = ["GET", "PUT", "OPTIONS", "X-OWN"];
const NAMES: [&str; 12] = ["h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", "h9", "h10", "h11"];

fn regex(text: &str) -> regex::Regex {
    regex::Regex::new(&format!(r"\A(?:{text})\z")).unwrap()
}

fn path() -> impl Strategy<Value = PathMatch> {
    let some = prop::sample::select(&PATHS[..]);
    prop_oneof![
        1 => Just(PathMatch::Any),
        4 => some.clone().prop_map(|path| PathMatch::Exact(path.to_owned())),
        6 => some.clone().prop_map(|path| PathMatch::Prefix(path.trim_end_matches('/').to_owned())),
        1 => some.prop_map(|path| PathMatch::StringPrefix(path.to_owned())),
        1 => prop::sample::select(&["/a.*", ".*b", "/[ab]"][..]).prop_map(|text| PathMatch::Regex(regex(text))),
        1 => (30..36_usize).prop_map(|deep| PathMatch::Prefix("/d".repeat(deep))),
    ]
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        8 => prop::sample::select(&["0", "1", "2", "0,1", ""][..]).prop_map(|text| ValueMatch::Exact(text.to_owned())),
        1 => Just(ValueMatch::Regex(regex("[01]"))),
        1 => any::<bool>().prop_map(ValueMatch::Present),
        1 => Just(ValueMatch::Not(Box::new(ValueMatch::Exact("1".to_owned())))),
    ]
}

fn name() -> impl Strategy<Value = HeaderName> {
    // Many rules share the first names; now and then there are more names than are asked one by one.
    prop_oneof![4 => 0..3_usize, 1 => 0..NAMES.len()].prop_map(|place| HeaderName::from_static(NAMES[place]))
}

fn method() -> impl Strategy<Value = Method> {
    prop::sample::select(&METHODS[..]).prop_map(|text| Method::from_bytes(text.as_bytes()).unwrap())
}

fn one() -> impl Strategy<Value = (Match, bool)> {
    let headers = prop::collection::vec((name(), value()), 0..4);
    let query = prop::option::weighted(0.2, Just(("q".to_owned(), ValueMatch::Exact("1".to_owned()))));
    (path(), prop::option::weighted(0.5, method()), headers, query, any::<bool>())
        .prop_map(|(path, method, headers, query, cross)| (Match { path, method, headers, query: query.into_iter().collect() }, cross))
}

fn host(matches: Vec<(Match, bool)>) -> VirtualHost {
    let raw = proto::mesh::Cors { allow_origins: vec!["*".into()], ..Default::default() };
    let cors = Stage::Local(Filter::Cors(Cors::compile(&raw).unwrap()));
    let policy = |gates: Vec<Stage>| Arc::new(Policy { steps: Steps { gates, changes: Vec::new() }, ..Policy::default() });
    let policies = [policy(Vec::new()), policy(vec![cors])];
    let text = || Arc::<str>::from("");
    let rule = |(matches, cross): (Match, bool)| {
        let source = RuleSource { kind: text(), namespace: text(), name: text(), rule: text(), label: text() };
        let forward = Forward::new(Arc::clone(&policies[usize::from(cross)]), Vec::new(), Vec::new());
        Arc::new(Rule { id: 0, source, matches: Arc::new(matches), action: Action::Forward(Arc::new(forward)) })
    };
    VirtualHost::new(matches.into_iter().map(rule).collect())
}

/// Every rule in turn, as its conditions are written down.
fn naive(host: &VirtualHost, head: &RequestHead<'_>) -> Option<usize> {
    let preflight = *head.method == Method::OPTIONS && head.headers.contains_key("origin");
    let asked = head.headers.get("access-control-request-method").filter(|_| preflight);
    let asked = asked.and_then(|text| Method::from_bytes(text.as_bytes()).ok());
    host.rules.iter().position(|rule| {
        let Action::Forward(forward) = &rule.action else { unreachable!() };
        let crossed = |method| forward.is_cross_origin() && matching::matches(&rule.matches, &RequestHead { method, ..*head });
        matching::matches(&rule.matches, head) || asked.as_ref().is_some_and(crossed)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Aim: of rules that overlap in every way, the one is found that asking each in turn finds, preflights included.
    #[test]
    fn what_is_found_is_what_a_walk_finds(
        rules in prop::collection::vec(one(), 0..120),
        requests in prop::collection::vec(
            (
                prop_oneof![5 => prop::sample::select(&PATHS[..]).prop_map(str::to_owned), 1 => (30..40_usize).prop_map(|deep| "/d".repeat(deep))],
                method(),
                prop::collection::vec((name(), prop::sample::select(&["0", "1", "2", ""][..])), 0..8),
                prop::option::weighted(0.3, method()),
                prop::option::weighted(0.3, Just("q=1")),
            ),
            1..40,
        ),
    ) {
        let host = host(rules);
        for (path, method, headers, asked, query) in &requests {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, HeaderValue::from_static(value));
            }
            if let Some(asked) = asked {
                map.insert("origin", HeaderValue::from_static("https://a.example"));
                map.insert("access-control-request-method", HeaderValue::from_str(asked.as_str()).unwrap());
            }
            let head = RequestHead { method, path, query: *query, host: "x", headers: &map };
            prop_assert_eq!(decide::first(&host, &head), naive(&host, &head), "{:?}", head);
        }
    }

    /// Aim: the host chosen is the exact one, else of all suffixes that cover it the longest, else `*`.
    #[test]
    fn hosts_are_those_a_walk_finds(
        domains in prop::collection::hash_set("\\*|(\\*\\.)?[ab](\\.[ab]){0,3}", 0..12),
        hosts in prop::collection::vec("\\.?[ab](\\.[ab]){0,5}", 1..20),
    ) {
        let mut all: Vec<&String> = domains.iter().collect();
        all.sort();
        let mut found = Domains::default();
        for (place, domain) in all.iter().enumerate() {
            prop_assert!(found.add(domain, place));
        }
        for host in &hosts {
            let covers = |domain: &str| match domain.strip_prefix('*') {
                Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                None => host == domain,
            };
            let rank = |domain: &str| (!domain.starts_with('*'), domain.len());
            let wanted = all.iter().enumerate().filter(|(_, domain)| covers(domain)).max_by_key(|(_, domain)| rank(domain));
            prop_assert_eq!(found.named(host), wanted.map(|(place, _)| place), "{}", host);
        }
    }
}

#[test]
fn few_rules_are_asked_among_many() {
    // Aim: whether by path, header, method or several of them, a request meets a handful of ten thousand rules.
    let header = |name: &'static str, value: usize| (HeaderName::from_static(name), ValueMatch::Exact(value.to_string()));
    let kinds: [fn(usize) -> Match; 3] = [
        |n| Match { path: PathMatch::Prefix(format!("/area/{n}")), ..Match::default() },
        |n| Match { path: PathMatch::Exact(format!("/area/{n}")), ..Match::default() },
        |n| Match { method: Some(Method::from_bytes(format!("M{n}").as_bytes()).unwrap()), ..Match::default() },
    ];
    let asked = |matches: Vec<Match>, head: &RequestHead<'_>| {
        let index = Index::new(matches.iter());
        let count = std::cell::Cell::new(0_usize);
        let found = index.first(head, |place| {
            count.set(count.get() + 1);
            matching::matches(&matches[place], head)
        });
        (found, count.get())
    };
    let none = HeaderMap::new();
    let own = Method::from_bytes(b"M9999").unwrap();
    let head = RequestHead { method: &own, path: "/area/9999", query: None, host: "x", headers: &none };
    for kind in kinds {
        assert_eq!(asked((0..10_000).map(kind).collect(), &head), (Some(9999), 1));
    }
    let mut headers = HeaderMap::new();
    headers.insert("x-tenant", HeaderValue::from_static("9999"));
    headers.insert("x-shard", HeaderValue::from_static("3"));
    let head = RequestHead { headers: &headers, ..head };
    let by = |n: usize| Match { headers: vec![header("x-tenant", n)], ..Match::default() };
    assert_eq!(asked((0..10_000).map(by).collect(), &head), (Some(9999), 1));
    // Two conditions, the common one first; and one that all have in common beside one of each.
    let by = |n: usize| Match { headers: vec![header("x-shard", n % 4), header("x-tenant", n)], ..Match::default() };
    assert_eq!(asked((0..10_000).map(by).collect(), &head), (Some(9999), 1));
    let by = |n: usize| Match {
        path: PathMatch::Prefix("/area".to_owned()),
        headers: vec![header("x-shard", 3)],
        method: Some(Method::from_bytes(format!("M{n}").as_bytes()).unwrap()),
        ..Match::default()
    };
    assert_eq!(asked((0..10_000).map(by).collect(), &head), (Some(9999), 1));
}
