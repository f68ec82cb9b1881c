//! Routes and requests that nobody thought of: translator and engine choose what the oracle chooses.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tests::cases::objects::{Stage, completed, destination, manifests};
use tests::cases::table::{Ask, Table};
use tests::cases::unit::{Translated, head, judged, tried};

/// What is there before any route.
const TOWN: &str = "
name: property
fronts: [web]
backends: {a: {}, b: {}, gone: {pods: 0}}
clients: {client: shop, guest: other}
";

/// Few names, so that matches meet.
fn path() -> impl Strategy<Value = String> {
    let element = prop::sample::select(vec!["a", "b", "ab", "A"]);
    (prop::collection::vec(element, 0..4), any::<bool>()).prop_map(|(elements, slash)| {
        let whole = format!("/{}", elements.join("/"));
        if slash && whole.len() > 1 { format!("{whole}/") } else { whole }
    })
}

fn path_match() -> impl Strategy<Value = Option<Value>> {
    let regex = prop::sample::select(vec!["/a/.*", "/(a|b)", "/a.*", ".*/b", "/[^/]+/b/?"]);
    prop_oneof![
        2 => Just(None),
        4 => path().prop_map(|value| Some(json!({"type": "PathPrefix", "value": value}))),
        3 => path().prop_map(|value| Some(json!({"type": "Exact", "value": value}))),
        2 => regex.prop_map(|value| Some(json!({"type": "RegularExpression", "value": value}))),
    ]
}

fn conditions(names: Vec<&'static str>) -> impl Strategy<Value = Vec<Value>> {
    let one = (prop::sample::select(names), prop::sample::select(vec!["1", "2", "[12]"])).prop_map(|(name, value)| {
        let kind = if value == "[12]" { "RegularExpression" } else { "Exact" };
        json!({"name": name, "value": value, "type": kind})
    });
    prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(one, 1..3)]
}

fn matched() -> impl Strategy<Value = Value> {
    let method = prop::option::weighted(0.3, prop::sample::select(vec!["GET", "POST"]));
    (path_match(), method, conditions(vec!["x-one", "X-Two"]), conditions(vec!["q", "Q"])).prop_map(|(path, method, headers, query)| {
        let mut whole = json!({"headers": headers, "queryParams": query});
        if let Some(path) = path {
            whole["path"] = path;
        }
        if let Some(method) = method {
            whole["method"] = method.into();
        }
        whole
    })
}

/// A change of the path that the match allows.
fn change(matches: &[Value], full: bool, to: &str) -> Option<Value> {
    match matches {
        [only] if !full && only["path"]["type"] == "PathPrefix" => Some(json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": to})),
        _ if full => Some(json!({"type": "ReplaceFullPath", "replaceFullPath": to})),
        _ => None,
    }
}

fn backend() -> impl Strategy<Value = Value> {
    (prop::sample::select(vec!["a", "b", "nobody", "gone"]), prop::option::of(0_u32..4)).prop_map(|(name, weight)| {
        let mut reference = json!({"name": name, "namespace": "shop", "port": 80});
        if let Some(weight) = weight {
            reference["weight"] = weight.into();
        }
        reference
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let matches = prop::collection::vec(matched(), 0..3);
    let backends = prop::option::weighted(0.9, prop::collection::vec(backend(), 0..4));
    let to = prop::sample::select(vec!["/", "/new", "/new/", "/n/e"]);
    (matches, backends, 0_u8..5, any::<bool>(), to).prop_map(|(matches, backends, filter, full, to)| {
        let path = change(&matches, full, to);
        let mut rule = json!({});
        match filter {
            0 => {
                let mut redirect = json!({"statusCode": 307});
                if let Some(path) = path {
                    redirect["path"] = path;
                }
                rule["filters"] = json!([{"type": "RequestRedirect", "requestRedirect": redirect}]);
            }
            1 | 2 => {
                let mut rewrite = json!({"hostname": "inner.example"});
                if let Some(path) = path {
                    rewrite["path"] = path;
                }
                rule["filters"] = json!([{"type": "URLRewrite", "urlRewrite": rewrite}]);
            }
            _ => {}
        }
        if let Some(backends) = backends.filter(|_| filter != 0) {
            rule["backendRefs"] = backends.into();
        }
        if !matches.is_empty() {
            rule["matches"] = matches.into();
        }
        rule
    })
}

fn route() -> impl Strategy<Value = Value> {
    let namespace = prop::sample::select(vec!["shop", "shop", "other", "third"]);
    (prop::collection::vec(rule(), 1..4), 0_u32..3, namespace, any::<bool>()).prop_map(|(rules, age, namespace, narrow)| {
        let mut parent = json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"});
        if narrow {
            parent["port"] = 80.into();
        }
        json!({"kind": "HTTPRoute", "metadata": {"namespace": namespace, "creationTimestamp": format!("2026-01-0{}T00:00:00Z", age + 1)},
            "spec": {"parentRefs": [parent], "rules": rules}})
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let value = || prop::sample::select(vec!["1", "2", "3"]);
    let headers = prop::collection::vec((prop::sample::select(vec!["x-one", "x-two"]), value()), 0..3);
    let query = prop::collection::vec((prop::sample::select(vec!["q", "Q"]), value()), 0..3);
    let (method, from) = (prop::sample::select(vec!["GET", "POST", "HEAD"]), prop::sample::select(vec!["client", "guest"]));
    (path(), query, headers, method, from).prop_map(|(path, query, headers, method, from)| {
        let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        headers.into_iter().for_each(|(name, value)| all.entry(name).or_default().push(value));
        serde_json::from_value(json!({"to": "web", "from": from, "path": path, "method": method, "headers": all})).unwrap()
    })
}

/// What is there, with these routes.
fn town(routes: Vec<Value>) -> Vec<Value> {
    let table = Table::parse(TOWN).unwrap();
    let mut objects: Vec<Value> = Stage::of(&table).unwrap().objects.into_values().collect();
    for (number, mut route) in routes.into_iter().enumerate() {
        route["metadata"]["name"] = format!("r{number}").into();
        objects.push(completed(&route).unwrap());
    }
    objects
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    /// Aim: whatever routes say, each request meets the same rule in the compiled table as in a plain reading of the manifests, and is
    /// redirected, rewritten, sent on and refused as that says.
    #[test]
    fn the_engine_does_what_the_oracle_says(
        routes in prop::collection::vec(route(), 1..4),
        asks in prop::collection::vec(ask(), 24),
        draw in any::<u64>(),
    ) {
        let objects = town(routes);
        let translated = Translated::of(&manifests(&objects));
        let to = destination("web").unwrap();
        let seen = |client| translated.snapshot(client, &to).unwrap();
        let clients = BTreeMap::from([("client", ("shop", seen(("shop", "client")))), ("guest", ("other", seen(("other", "guest"))))]);
        for ask in asks {
            let (namespace, runs) = &clients[&*ask.from];
            let head = head(&ask, &to).unwrap();
            let verdict = judged(&objects, &to, namespace, &head);
            let result = tried(runs, &verdict, (&ask, &head, draw));
            prop_assert!(result.is_ok(), "{:?}: {} {:?} by {}", result, head.method, head.uri, ask.from);
        }
    }

    #[test]
    fn draws_fall_by_weight(backends in prop::collection::vec(backend(), 1..6)) {
        // Aim: of draws that are spread evenly each backend, good or bad, gets its share of the weights, to one draw per backend.
        const DRAWS: u64 = 1000;
        let route = json!({"kind": "HTTPRoute", "metadata": {"namespace": "shop"}, "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": [{"backendRefs": backends}]}});
        let objects = town(vec![route]);
        let to = destination("web").unwrap();
        let runs = Translated::of(&manifests(&objects)).snapshot(("shop", "client"), &to).unwrap();
        let ask: Ask = serde_json::from_value(json!({"to": "web"})).unwrap();
        let head = head(&ask, &to).unwrap();
        let verdict = judged(&objects, &to, "shop", &head);
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for number in 0..DRAWS {
            let place = tried(&runs, &verdict, (&ask, &head, number * (u64::MAX / DRAWS))).unwrap();
            *counts.entry(place.unwrap()).or_default() += 1;
        }
        for (place, share) in &verdict.shares {
            let (count, wanted) = (counts.get(place).copied().unwrap_or_default() as f64, share * DRAWS as f64);
            prop_assert!((count - wanted).abs() <= 1.0 + backends.len() as f64, "{place}: {count}, not {wanted}");
        }
    }
}
