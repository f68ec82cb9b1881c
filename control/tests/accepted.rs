//! What the door accepts, the proxy's engine accepts: else a whole resource would stay at its last good version while status says
//! that the object is in force.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use control::source::{FileChange, Folder};
use control::translate::{audiences, view};
use control::world::{Allocations, Change, Origin, World, WorldSettings};
use engine::model::build::Parts;
use proto::names;
use serde_json::{Map, Value, json};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {selector: {app: web}, ports: [{name: any, port: 80, targetPort: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [10.1.0.1], ports: [{port: 8080}, {port: 8081}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 8000, protocol: HTTP}]}
";

/// Numbers to throw with: the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// What may stand where a placeholder does: mostly what any field takes, sometimes what is at a bound or beyond.
fn value(placeholder: char, dice: &mut Dice) -> Value {
    let long = || "x".repeat(5000);
    let pick = |dice: &mut Dice, good: &[Value], edge: &[Value]| {
        if dice.below(8) > 0 { dice.one(good).clone() } else { dice.one(edge).clone() }
    };
    match placeholder {
        'D' => {
            let edge = json!(["0s", "1ms", "9ms", "10ms", "999ms", "24h", "24h1ms", "48h", "99999h99999h99999h99999h", "1us"]);
            pick(dice, &[json!("1s"), json!("2s"), json!("150ms"), json!("1h")], edge.as_array().unwrap())
        }
        'N' => {
            let edge = json!([
                0,
                1,
                10,
                11,
                15,
                16,
                17,
                100,
                101,
                399,
                400,
                599,
                600,
                1_000_000,
                1_048_577,
                10_000_001,
                1_000_000_000_u64,
                1_000_000_001_u64,
                4_294_967_296_u64,
                -1
            ]);
            pick(dice, &[json!(1), json!(2), json!(5)], edge.as_array().unwrap())
        }
        'S' => pick(dice, &[json!(503), json!(502), json!(404)], json!([200, 302, 399, 400, 599, 600, 99]).as_array().unwrap()),
        'P' => pick(dice, &[json!(1), json!(50), json!(99.9)], json!([0, -0.0, 0.000_01, 100, 100.1, -1]).as_array().unwrap()),
        'T' => {
            let edge = json!(["", "/", "//", "/é", "/a b", "/%41", "/%zz", "/a?b=c", "/a#b", "/a/../b", "a", "/{x}", long()]);
            pick(dice, &[json!("/a"), json!("/a/b"), json!("/c/")], edge.as_array().unwrap())
        }
        'H' => {
            let edge = json!(["", "content-length", "Connection", "host", "a b", "é", ":path", "X-UPPER", "a;b", "x".repeat(129)]);
            pick(dice, &[json!("x-a"), json!("x-b"), json!("sid")], edge.as_array().unwrap())
        }
        'V' => pick(dice, &[json!("one"), json!("two")], json!(["", "é", "50%", "%REQ(x)%", "%%", "a\nb", long()]).as_array().unwrap()),
        'R' => pick(
            dice,
            &[json!("a.*"), json!("[0-9]+")],
            json!(["", "(", "a)|(b", "x{1000}{1000}", "é+", "\\d{3000}", long()]).as_array().unwrap(),
        ),
        'O' => {
            let long = format!("https://{}.example", ["x".repeat(60), "y".repeat(60), "z".repeat(60), "w".repeat(58)].join("."));
            let edge = json!(["*", "https://*.a.example", "http://a.example:8080", "ftp://a", "https://", "HTTPS://A.example", long]);
            pick(dice, &[json!("https://a.example"), json!("http://b.example")], edge.as_array().unwrap())
        }
        'W' => {
            let long = ["x".repeat(63), "y".repeat(63), "z".repeat(63), "w".repeat(61)].join(".");
            let edge = json!(["", "*", "*.a.example", "10.0.0.1", "a.example:80", "A.example", long, format!("*.{long}"), "a_b.example"]);
            pick(dice, &[json!("a.example"), json!("b.example")], edge.as_array().unwrap())
        }
        'M' => pick(dice, &[json!("GET"), json!("PUT")], json!(["", "get", "CONNECT", "TRACE", "*", "PROPFIND"]).as_array().unwrap()),
        other => panic!("{other} is no placeholder"),
    }
}

/// A template with a value for each `@X`.
fn filled(template: &str, dice: &mut Dice) -> Value {
    let mut parts = template.split('@');
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        let mut letters = part.chars();
        text += &value(letters.next().unwrap(), dice).to_string();
        text += letters.as_str();
    }
    serde_json::from_str(&text).unwrap()
}

/// A mapping with some of these entries, each by its name and a template.
fn some(entries: &[(&str, &str)], dice: &mut Dice) -> Map<String, Value> {
    let mut map = Map::new();
    for _ in 0..=dice.below(3) {
        let (name, template) = dice.one(entries);
        map.insert((*name).to_owned(), filled(template, dice));
    }
    map
}

const BLOCKS: &[(&str, &str)] = &[
    ("loadBalancer", r#"{"algorithm": "Maglev", "hash": [{"cookie": {"name": @H}}, {"cookie": {"name": @H, "ttl": @D}}]}"#),
    ("loadBalancer", r#"{"algorithm": "RingHash", "hash": [{"header": @H}, {"query": @T}, {"sourceAddress": {}}], "slowStart": @D}"#),
    ("loadBalancer", r#"{"locality": {"prefer": "Zone", "failoverBelowHealthyPercent": @P}, "panicBelowHealthyPercent": @P}"#),
    ("sessionPersistence", r#"{"sessionName": @H, "absoluteTimeout": @D, "idleTimeout": @D}"#),
    ("sessionPersistence", r#"{"type": "Header", "sessionName": @H, "idleTimeout": @D}"#),
    ("sessionPersistence", r#"{"absoluteTimeout": @D, "cookieConfig": {"lifetimeType": "Permanent"}}"#),
    ("timeouts", r#"{"connect": @D, "request": @D, "backendRequest": @D}"#),
    ("timeouts", r#"{"idle": @D, "streamIdle": @D, "stream": @D}"#),
    ("retry", r#"{"attempts": 2, "backoff": {"max": @D}}"#),
    ("retry", r#"{"attempts": 2, "backoff": {"base": @D}}"#),
    ("retry", r#"{"attempts": @N, "perTryTimeout": @D, "backoff": {"base": @D, "max": @D}}"#),
    ("retry", r#"{"attempts": 1, "on": [], "statusCodes": [@S], "grpcStatuses": ["UNAVAILABLE"], "bodyBufferBytes": @N}"#),
    ("retry", r#"{"budget": {"percent": @P, "minPerSecond": @N}}"#),
    ("retry", r#"{"hedge": {"atQuantile": @P, "maxPercent": @P, "methods": [@M]}}"#),
    ("limits", r#"{"connections": @N, "requests": @N, "pending": @N}"#),
    ("limits", r#"{"pendingTimeout": @D, "requestsPerConnection": @N, "pending": 1}"#),
    ("health", r#"{"outlier": {"consecutiveErrors": @N, "interval": @D, "ejectFor": @D}}"#),
    ("health", r#"{"outlier": {"successRateMinPercent": @P, "latencyFactor": @N, "maxEjectedPercent": @P}}"#),
    ("health", r#"{"active": {"http": {"path": @T, "expect": [@S]}, "interval": @D, "timeout": @D}}"#),
    ("health", r#"{"active": {"grpc": {"service": @V}, "healthyAfter": @N, "unhealthyAfter": @N}}"#),
    ("health", r#"{"active": {"tcp": {}, "interval": @D}}"#),
    ("faults", r#"[{"percent": @P, "delay": {"fixed": @D}}, {"delay": {"uniform": {"min": @D, "max": @D}}}]"#),
    ("faults", r#"[{"abort": {"httpStatus": @S}, "match": {"methods": [@M], "paths": [{"value": @T}, {"type": "Exact", "value": @T}]}}]"#),
    ("faults", r#"[{"abort": {"reset": {}}, "match": {"headers": [{"name": @H, "value": @V}]}}]"#),
    (
        "faults",
        r#"[{"abort": {"grpcStatus": "ABORTED"}, "match": {"headers": [{"type": "RegularExpression", "name": @H, "value": @R}],
            "paths": [{"type": "RegularExpression", "value": @R}]}}]"#,
    ),
    ("rateLimits", r#"[{"requests": @N, "per": @D}]"#),
    ("rateLimits", r#"[{"requests": @N, "per": @D, "burst": @N, "key": [{"header": @H}, {"sourceIdentity": {}}]}]"#),
    ("rateLimits", r#"[{"requests": 1, "per": "24h", "burst": @N}]"#),
    ("priority", r#"{"header": @H, "classes": ["high", @V], "default": "high"}"#),
    ("upstreamProtocol", r#""Http1""#),
    ("upstreamProtocol", r#""Http2""#),
    ("upstreamProtocol", r#""Tcp""#),
];

const TARGETS: &[&str] = &[
    r#"{"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]}"#,
    r#"{"targetRefs": [{"group": "", "kind": "Service", "name": "web", "sectionName": "tcp"}]}"#,
    r#"{"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "route"}]}"#,
    r#"{"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}]}"#,
    r#"{"selector": {"matchLabels": {"app": "web"}}}"#,
    "{}",
];

const RULES: &[(&str, &str)] = &[
    ("matches", r#"[{"path": {"value": @T}}]"#),
    ("matches", r#"[{"path": {"type": "Exact", "value": @T}, "method": @M}, {"path": {"value": "/z"}}]"#),
    ("matches", r#"[{"path": {"type": "RegularExpression", "value": @R}}, {"headers": [{"name": @H, "value": @V}]}]"#),
    ("matches", r#"[{"queryParams": [{"name": @H, "value": @V}, {"type": "RegularExpression", "name": @V, "value": @R}]}]"#),
    ("matches", r#"[{"headers": [{"type": "RegularExpression", "name": @H, "value": @R}]}]"#),
    ("filters", r#"[{"type": "URLRewrite", "urlRewrite": {}}]"#),
    ("filters", r#"[{"type": "URLRewrite", "urlRewrite": {"hostname": @W, "path": {"type": "ReplaceFullPath", "replaceFullPath": @T}}}]"#),
    ("filters", r#"[{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": @T}}}]"#),
    (
        "filters",
        r#"[{"type": "RequestRedirect", "requestRedirect": {"hostname": @W, "port": @N, "statusCode": 301,
            "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": @T}}}]"#,
    ),
    ("filters", r#"[{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplaceFullPath", "replaceFullPath": @T}}}]"#),
    ("filters", r#"[{"type": "CORS", "cors": {"allowMethods": [@M]}}]"#),
    ("filters", r#"[{"type": "CORS", "cors": {"allowOrigins": [@O], "allowMethods": ["*"], "allowHeaders": [@H], "maxAge": @N}}]"#),
    ("filters", r#"[{"type": "CORS", "cors": {"allowOrigins": [@O, @O], "exposeHeaders": [@H], "allowCredentials": true}}]"#),
    (
        "filters",
        r#"[{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": @H, "value": @V}, {"name": @H, "value": @V}],
            "add": [{"name": @H, "value": @V}], "remove": [@H]}}]"#,
    ),
    ("filters", r#"[{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": @H, "value": @V}], "remove": [@H]}}]"#),
    ("filters", r#"[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "other", "port": 80}, "percent": @N}}]"#),
    (
        "filters",
        r#"[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "other", "port": 80},
            "fraction": {"numerator": @N, "denominator": @N}}}]"#,
    ),
    ("timeouts", r#"{"request": @D, "backendRequest": @D}"#),
    ("retry", r#"{"attempts": @N, "codes": [@S], "backoff": @D}"#),
    ("retry", r#"{"codes": [@S]}"#),
    ("sessionPersistence", r#"{"sessionName": @H, "absoluteTimeout": @D, "idleTimeout": @D}"#),
    ("sessionPersistence", r#"{"type": "Header", "sessionName": @H}"#),
    ("sessionPersistence", r#"{"absoluteTimeout": @D, "cookieConfig": {"lifetimeType": "Permanent"}}"#),
    ("backendRefs", r#"[{"name": "web", "port": 80, "weight": @N}, {"name": "other", "port": 80, "weight": @N}]"#),
    (
        "backendRefs",
        r#"[{"name": "web", "port": 80, "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": @W}}]},
            {"name": "other", "port": 80, "filters": [{"type": "CORS", "cors": {"allowOrigins": [@O]}}]}]"#,
    ),
];

fn policy(dice: &mut Dice) -> Value {
    let mut spec = some(BLOCKS, dice);
    let target = filled(TARGETS[if dice.below(2) == 0 { 0 } else { dice.below(TARGETS.len()) }], dice);
    spec.extend(target.as_object().unwrap().clone());
    json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "policy", "namespace": "shop"}, "spec": spec})
}

fn route(dice: &mut Dice) -> Value {
    let mut rule = some(RULES, dice);
    let redirects = rule.get("filters").is_some_and(|filters| filters[0]["type"] == "RequestRedirect");
    if !redirects && dice.below(4) > 0 {
        rule.entry("backendRefs").or_insert(json!([{"name": "web", "port": 80}]));
    }
    let mut spec = json!({
        "parentRefs": [{"name": "edge"}, {"group": "", "kind": "Service", "name": "web", "port": 80}],
        "rules": [rule],
    });
    if dice.below(3) == 0 {
        spec["hostnames"] = filled("[@W]", dice);
    }
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "route", "namespace": "shop"}, "spec": spec})
}

fn other_route(dice: &mut Dice) -> Value {
    let (kind, parent, spec) = *dice.one(&[
        ("TLSRoute", 81, r#"{"hostnames": [@W, @W], "rules": [{"backendRefs": [{"name": "web", "port": 81, "weight": @N}]}]}"#),
        ("TCPRoute", 81, r#"{"rules": [{"backendRefs": [{"name": "web", "port": 81}, {"name": "other", "port": 80, "weight": @N}]}]}"#),
        ("GRPCRoute", 80, r#"{"rules": [{"matches": [{"method": {"type": "RegularExpression", "service": @R, "method": @R}}]}]}"#),
        (
            "GRPCRoute",
            80,
            r#"{"rules": [{"matches": [{"method": {"service": @V, "method": @V}, "headers": [{"name": @H, "value": @V}]}]}]}"#,
        ),
    ]);
    let mut spec = filled(spec, dice);
    spec["parentRefs"] = json!([{"group": "", "kind": "Service", "name": "web", "port": parent}, {"name": "edge"}]);
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "second", "namespace": "shop"}, "spec": spec})
}

fn world(objects: &[Value]) -> World {
    let text = objects.iter().fold(SHOP.to_owned(), |text, object| format!("{text}---\n{object}\n"));
    let mut world = World::new(WorldSettings { assume_ready: true, ..WorldSettings::default() }, Allocations::default());
    let mut changes = Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0);
    changes.push(Change::Synced(Origin::Folder));
    world.apply(changes);
    world
}

/// Whatever the engine refuses of what some proxy would be sent.
fn refusals(world: &World) -> Vec<String> {
    let mut wants = BTreeSet::new();
    for view in world.index().services.values() {
        let ports = view.service().unwrap().ports.iter().map(|port| port.port);
        wants.extend(ports.flat_map(|port| view.addresses.iter().map(move |ip| names::outbound(SocketAddr::new(*ip, port)))));
    }
    let mut found = Vec::new();
    for audience in audiences(world) {
        let mut parts = Parts::default();
        for ((url, name), item) in &view(world, &audience, &wants).resources {
            found.extend(parts.put(url, name, &item.version, &item.any).err().map(|rejected| rejected.to_string()));
        }
    }
    found
}

#[test]
fn what_the_door_accepts_the_engine_accepts() {
    // Aim: policies and routes with every field at its bounds and beyond: refused at the door or taken by every proxy.
    let mut dice = Dice(7);
    let (rounds, mut accepted) = (1_200, 0);
    for round in 0..rounds {
        let objects = match round % 3 {
            0 => vec![policy(&mut dice), route(&mut dice)],
            1 => vec![route(&mut dice)],
            _ => vec![policy(&mut dice), other_route(&mut dice)],
        };
        let world = world(&objects);
        accepted += world.live().filter(|(key, _)| ["policy", "route", "second"].contains(&key.name.as_str())).count();
        let refused = refusals(&world);
        assert!(refused.is_empty(), "{refused:#?} of\n{}", objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"));
    }
    assert!(accepted > rounds, "too little is accepted to say anything: {accepted}");
}

#[test]
fn what_every_service_of_a_port_says_fits_together() {
    // Aim: limits of many Services in front of one port add up to no more than a proxy takes.
    let mut objects = Vec::new();
    for number in 0..3 {
        let name = format!("front-{number}");
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }));
        let limits = vec![json!({"requests": 10, "per": "1s"}); 8];
        objects.push(json!({
            "apiVersion": "meshwright.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": name}], "rateLimits": limits},
        }));
    }
    let world = world(&objects);
    assert_eq!(refusals(&world), Vec::<String>::new());
    let told: Vec<String> = control::translate::audit(&world).iter().map(ToString::to_string).collect();
    let uncounted: Vec<&String> = told.iter().filter(|line| line.contains("more than 16")).collect();
    assert!(uncounted.len() == 1 && uncounted[0].contains("TrafficPolicy shop/front-2"), "{told:#?}");
}
