use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::decide::Decision;
use crate::fixture;
use crate::model::Snapshot;

const FAULT: Fault = Fault { status: http::StatusCode::EXPECTATION_FAILED, reason: Reason::BadRequest, why: "it expects too much" };

fn asked<'r>(method: &'r Method, path: &'r str, headers: &'r HeaderMap) -> Asked<'r> {
    let head = RequestHead { method, path, query: None, host: "catalog", headers };
    Asked { head, version: Version::Http1, tls: false, fault: None, now: Moment::default(), wall_secs: 0 }
}

fn by(peer: Option<&str>) -> Origin<'_> {
    Origin { identity: peer, ..Origin::default() }
}

#[test]
fn a_split_is_explained_with_chances() {
    // Aim: the JSON of kinds.md: route with why, cluster, every endpoint with its chance; a matched header sends all to one.
    let snapshot = fixture::shop().assemble(7, &Snapshot::default());
    let destination = "10.0.0.1:80".parse().unwrap();
    let mut headers = HeaderMap::new();
    let json = serde_json::to_value(outbound(&snapshot, destination, &asked(&Method::GET, "/v1/items", &headers))).unwrap();
    assert_eq!(json["epoch"], 7);
    assert_eq!(json["listener"], "out/10.0.0.1:80");
    assert_eq!(json["route"]["kind"], "HTTPRoute");
    assert_eq!(json["route"]["rule"], "1");
    let why = json["route"]["why"].as_str().unwrap();
    assert_eq!(why, "matches path /v1 or below; not HTTPRoute shop/catalog rule beta: wants header x-beta = \"1\"");
    assert_eq!((&json["decision"], &json["reply"]), (&"Forward".into(), &serde_json::Value::Null));
    assert_eq!(json["cluster"], "shop/catalog-v1:80");
    let chances: Vec<f64> = json["endpoints"].as_array().unwrap().iter().map(|row| row["chance"].as_f64().unwrap()).collect();
    assert_eq!(chances, [0.9, 0.1]);
    assert_eq!(json["endpoints"][0]["workload"], "shop/catalog-v1");
    assert_eq!(json["endpoints"][0]["address"], "10.1.0.1:8080");

    headers.insert("x-beta", HeaderValue::from_static("1"));
    let beta = outbound(&snapshot, destination, &asked(&Method::GET, "/v1/items", &headers));
    assert_eq!(beta.cluster.as_deref(), Some("shop/catalog-v2:80"));
    let missed = outbound(&snapshot, destination, &asked(&Method::GET, "/v2", &headers));
    assert_eq!(missed.reply, Some(ReplyView { status: 404, reason: Some("no_route") }));
    assert_eq!((missed.decision, missed.route), (Verb::Reply, None));
}

#[test]
fn unknown_destinations_and_strict_ports_say_why() {
    // Aim: config_pending inside the mesh, no_route at a port that is not served, pass-through or denial outside, closure of plaintext on a strict port.
    let mut parts = fixture::shop();
    let config = proto::mesh::ProxyConfig {
        mesh_cidrs: vec!["10.0.0.0/8".into()],
        outside_mesh_denied: true,
        own_addresses: vec!["10.1.0.9".into()],
        namespace: "shop".into(),
        workload: "frontend".into(),
        service_account: "frontend".into(),
        ..Default::default()
    };
    fixture::put(&mut parts, "proxy", &config).unwrap();
    let record = proto::mesh::DnsRecord { addresses: vec!["10.0.0.1".into()], ttl_secs: 5, ..Default::default() };
    fixture::put(&mut parts, "dns/catalog.shop", &record).unwrap();
    let nowhere = fixture::out_nowhere("10.0.0.1:81");
    fixture::put(&mut parts, "out/10.0.0.1:81", &nowhere).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let headers = HeaderMap::new();
    let asked = asked(&Method::GET, "/", &headers);
    let reason = |explanation: Explanation| explanation.reply.unwrap().reason.unwrap();
    assert_eq!(reason(outbound(&snapshot, "10.9.9.9:80".parse().unwrap(), &asked)), "config_pending");
    assert_eq!(reason(outbound(&snapshot, "10.0.0.1:81".parse().unwrap(), &asked)), "no_route");
    assert_eq!(reason(outbound(&snapshot, "192.0.2.1:80".parse().unwrap(), &asked)), "denied");
    let two = Asked { fault: Some(FAULT), ..asked };
    assert_eq!(reason(outbound(&snapshot, "10.0.0.1:80".parse().unwrap(), &two)), "bad_request");
    assert_eq!(reason(edge(&snapshot, 80, EdgeOrigin::default(), &asked)), "no_route");
    assert_eq!(reason(edge(&Snapshot::default(), 80, EdgeOrigin::default(), &asked)), "config_pending");
    let closed = inbound(&snapshot, 9090, by(None), &asked);
    assert_eq!(closed.stages.last().unwrap().verdict, "Close");
    assert_eq!(closed.reply.unwrap().status, 0);
    let proved = inbound(&snapshot, 9090, by(Some("spiffe://cluster.local/ns/shop/sa/frontend")), &asked);
    assert_eq!(proved.decision, Verb::Forward);
    // Within the mesh's ranges the instance's own address is like any other: it has a listener, or it is not known yet.
    assert_eq!(reason(outbound(&snapshot, "10.1.0.9:8080".parse().unwrap(), &asked)), "config_pending");
    let own = proto::mesh::ProxyConfig { outside_mesh_denied: false, own_addresses: vec!["192.0.2.9".into()], ..config };
    fixture::put(&mut parts, "proxy", &own).unwrap();
    let snapshot = parts.assemble(2, &snapshot);
    let hairpin = outbound(&snapshot, "192.0.2.9:8080".parse().unwrap(), &asked);
    assert_eq!((hairpin.listener.as_str(), hairpin.decision), ("inbound", Verb::Forward));
    assert_eq!(hairpin.cluster.as_deref(), Some("inbound"));
    assert_eq!(hairpin.endpoints[0].address, "192.0.2.9:8080");
    let route = hairpin.route.unwrap();
    assert_eq!((&*route.kind, &*route.namespace, &*route.name, &*route.rule), ("Workload", "shop", "frontend", "inbound"));
    for (url, wanted) in [
        ("http://catalog/", Some("10.0.0.1:80")),
        ("http://Catalog.shop:8080/x", Some("10.0.0.1:8080")),
        ("http://[fd00::1]/", Some("[fd00::1]:80")),
        ("http://nobody/", None),
        ("/path", None),
    ] {
        let found = destination(&snapshot, &url.parse().unwrap()).ok().map(|address| address.to_string());
        assert_eq!(found.as_deref(), wanted, "{url}");
    }
}

#[test]
fn what_is_no_http_to_a_port_is_told() {
    // Aim: mesh TLS into a port that does not end it is 400 where HTTP is declared, and bytes elsewhere; opaque failures close.
    let plain = |port, inner| vec![fixture::inbound_chain(port, "raw_buffer", &[], false, inner)];
    let tcp = || fixture::chain(&fixture::tcp_to("inbound"));
    let chains = [plain(Some(80), fixture::to_application()), plain(Some(81), tcp()), fixture::permissive(None)].concat();
    let mut parts = fixture::shop();
    fixture::put(&mut parts, "inbound", &fixture::inbound(chains)).unwrap();
    fixture::put(&mut parts, "empty", &fixture::cluster("empty")).unwrap();
    let opaque = proto::xds::listener::Listener {
        filter_chains: vec![fixture::chain(&fixture::tcp_to("empty"))],
        ..fixture::out_http("10.0.0.1:5432", "")
    };
    fixture::put(&mut parts, "out/10.0.0.1:5432", &opaque).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let headers = HeaderMap::new();
    let asked = asked(&Method::GET, "/", &headers);
    let reply = |explanation: Explanation| explanation.reply.map(|reply| (reply.status, reply.reason.unwrap()));
    let peer = Some("spiffe://cluster.local/ns/shop/sa/frontend");
    assert_eq!(reply(inbound(&snapshot, 80, by(peer), &asked)), Some((400, "bad_request")));
    assert_eq!(reply(inbound(&snapshot, 81, by(peer), &asked)), None);
    assert_eq!(reply(inbound(&snapshot, 82, by(peer), &asked)), None);
    assert_eq!(reply(outbound(&snapshot, "10.0.0.1:5432".parse().unwrap(), &asked)), Some((0, "no_endpoints")));
}

#[test]
fn tls_by_name_is_told() {
    // Aim: what is carried by name says which name it was; plaintext and other names are closed and told what is served.
    let mut parts = fixture::shop();
    let to = [("catalog", "shop/catalog-v1:80"), ("*.b.example", "bad_backend")];
    fixture::put(&mut parts, "out/10.0.0.1:443", &fixture::out_tls("10.0.0.1:443", &to)).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let headers = HeaderMap::new();
    let explain = |host, tls| {
        let plain = asked(&Method::GET, "/", &headers);
        let asked = Asked { head: RequestHead { host, ..plain.head }, tls, ..plain };
        outbound(&snapshot, "10.0.0.1:443".parse().unwrap(), &asked)
    };
    let closed = Some(ReplyView { status: 0, reason: Some("no_route") });
    let taken = explain("Catalog:443", true);
    assert_eq!((taken.cluster.as_deref(), taken.reply), (Some("shop/catalog-v1:80"), None));
    assert_eq!(taken.stages[0].why, "asks for `catalog`, which catalog is for; it passes untouched");
    let refused = explain("a.b.example", true);
    assert_eq!(refused.reply, Some(ReplyView { status: 0, reason: Some("bad_backend") }));
    for (host, tls, why) in [
        ("catalog", false, "only TLS is served here, by the name it asks for (catalog, *.b.example), and this is plaintext"),
        ("other", true, "asks for `other`, and only catalog, *.b.example are served here"),
    ] {
        let explanation = explain(host, tls);
        assert_eq!((explanation.stages[0].verdict, explanation.stages[0].why.as_str(), explanation.reply), ("Close", why, closed.clone()));
    }
    let rows = dump::listeners(&snapshot);
    let row = rows.iter().find(|row| row.address == "10.0.0.1:443").unwrap();
    assert_eq!((row.protocol, row.tls.len(), row.tls[0].names.as_slice()), ("tcp", 2, &["catalog".to_owned()][..]));
}

/// The shop with a policy on the rule behind 10.0.0.1:80, asked for what is said on the way.
fn told(policy: &proto::mesh::RoutePolicy, now: Moment, method: &Method, path: &str, headers: &HeaderMap) -> Explanation {
    let mut parts = fixture::shop();
    let mut rule = fixture::rule("HTTPRoute/shop/catalog/1", fixture::prefix("/v1"), &[("shop/catalog-v1:80", 1)]);
    rule.typed_per_filter_config = [(proto::names::POLICY.to_owned(), proto::xds::pack(policy))].into();
    let table = fixture::table("shop/catalog:80", vec![fixture::host(&["*"], vec![rule])]);
    fixture::put(&mut parts, "shop/catalog:80", &table).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let asked = Asked { now, ..asked(method, path, headers) };
    outbound(&snapshot, "10.0.0.1:80".parse().unwrap(), &asked)
}

#[test]
fn every_gate_is_told_with_its_verdict() {
    // Aim: in their order; what is certain ends the way, chances are named, rate limits are asked and not used up.
    let fault = |per_million, abort| proto::mesh::Fault {
        per_million,
        delay: Some(proto::mesh::Delay { min: None, max: None }),
        abort: Some(proto::mesh::Abort { kind: Some(abort) }),
        policy: "shop/chaos".into(),
        ..Default::default()
    };
    let limit = proto::mesh::RateLimit {
        name: "l".into(),
        requests: 1,
        per: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let maybe = fault(10_000, proto::mesh::abort::Kind::HttpStatus(503));
    let policy = proto::mesh::RoutePolicy {
        faults: vec![maybe.clone()],
        rate_limits: vec![limit],
        filters: Some(proto::mesh::Filters {
            cors: Some(proto::mesh::Cors { allow_origins: vec!["*".into()], ..Default::default() }),
            rewrite: Some(proto::mesh::Rewrite { hostname: "else".into(), path: None }),
            ..Default::default()
        }),
        attempt_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let mut headers = HeaderMap::new();
    let stages = |explanation: &Explanation| -> Vec<(String, &'static str)> {
        explanation.stages.iter().map(|stage| (stage.name.clone(), stage.verdict)).collect()
    };
    let plain = told(&policy, Moment::default(), &Method::GET, "/v1", &headers);
    let wanted = ["cors", "rate_limit", "fault", "fault", "rewrite", "timeouts"].map(|name| (name.to_owned(), "Continue"));
    assert_eq!((stages(&plain), plain.decision), (wanted.to_vec(), Verb::Forward));
    assert_eq!(plain.stages[3].why, "answers 503 (gRPC 14) with 1 %, by shop/chaos");

    headers.insert("origin", HeaderValue::from_static("https://a.example"));
    headers.insert("access-control-request-method", HeaderValue::from_static("PUT"));
    let preflight = told(&policy, Moment::default(), &Method::OPTIONS, "/v1", &headers);
    assert_eq!((stages(&preflight), preflight.reply.unwrap().status), (vec![("cors".to_owned(), "Reply")], 204));

    for (abort, verdict, reply) in [
        (proto::mesh::abort::Kind::GrpcStatus(5), "Reply", ReplyView { status: 404, reason: Some("fault") }),
        (proto::mesh::abort::Kind::Reset(true), "Close", ReplyView { status: 0, reason: Some("fault") }),
    ] {
        let policy = proto::mesh::RoutePolicy { faults: vec![maybe.clone(), fault(1_000_000, abort)], ..Default::default() };
        let ended = told(&policy, Moment::default(), &Method::GET, "/v1", &HeaderMap::new());
        assert_eq!((ended.stages.last().unwrap().verdict, ended.reply), (verdict, Some(reply)));
        assert_eq!((ended.stages.len(), ended.backends.len()), (4, 0));
    }
}

proptest! {
    /// Aim: whatever a draw decides, `explain` names: the rule, the cluster with a chance, the answer.
    #[test]
    fn every_decision_is_among_those_explained(
        weights in prop::collection::vec(0..4_u32, 1..4),
        paths in prop::collection::vec("/[ab]{0,2}", 1..4),
        (path, draw, fault) in ("/[ab]{0,2}", any::<u64>(), prop::option::weighted(0.2, Just(FAULT))),
    ) {
        let mut parts = fixture::shop();
        let targets = ["shop/catalog-v1:80", "bad_backend", "shop/catalog-v2:80"];
        let to: Vec<(&str, u32)> = targets.into_iter().zip(weights).collect();
        let rules = paths.iter().enumerate().map(|(n, path)| fixture::rule(&format!("HTTPRoute/shop/catalog/{n}"), fixture::prefix(path), &to));
        let table = fixture::table("shop/catalog:80", vec![fixture::host(&["*"], rules.collect())]);
        fixture::put(&mut parts, "shop/catalog:80", &table).unwrap();
        let snapshot = parts.assemble(1, &Snapshot::default());
        let destination = "10.0.0.1:80".parse().unwrap();
        let headers = HeaderMap::new();
        let asked = Asked { fault, ..asked(&Method::GET, &path, &headers) };
        let explained = outbound(&snapshot, destination, &asked);
        let view = Terms::Outbound(&snapshot.outbound[&destination]);
        let shown = |reply: &LocalReply| Some(ReplyView::of(reply));
        match decide::request(view, Facts { proved: false, fault }, &asked.head, draw) {
            Err(refusal) => prop_assert_eq!(explained.reply, shown(&refusal.reply())),
            Ok(Decision::Reply { reply, rule: None }) => prop_assert_eq!(explained.reply, shown(reply)),
            Ok(Decision::Reply { rule: Some(_), .. }) => unreachable!("no rule answers by itself"),
            Ok(Decision::Forward(plan)) => {
                prop_assert_eq!(&*explained.route.unwrap().rule, &*plan.rule.source.rule);
                match (plan.place.map(|place| &explained.backends[place]), plan.target) {
                    (Some(backend), Ok(cluster)) => {
                        prop_assert!(backend.cluster.as_deref() == Some(&*cluster.name) && backend.chance > 0.0);
                    }
                    (Some(backend), Err(reply)) => prop_assert!(backend.reply == shown(reply) && backend.chance > 0.0),
                    (None, target) => prop_assert_eq!(explained.reply, shown(target.unwrap_err())),
                }
            }
        }
    }
}

#[test]
fn dumps_show_what_runs() {
    // Aim: a row per listener port, rule, cluster and endpoint, in a stable order, serializable.
    let snapshot = fixture::shop().assemble(1, &Snapshot::default());
    let listeners = dump::listeners(&snapshot);
    let seen: Vec<_> = listeners.iter().map(|row| (row.direction, row.address.as_str(), row.protocol, row.mtls)).collect();
    let wanted = [
        ("Inbound", "9090", "http", Some("Strict")),
        ("Inbound", "*", "auto", Some("Permissive")),
        ("Outbound", "10.0.0.1:80", "http", None),
    ];
    assert_eq!(seen, wanted);
    let routes = serde_json::to_value(dump::routes(&snapshot)).unwrap();
    assert_eq!(routes[1]["backends"][0]["cluster"], "shop/catalog-v1:80");
    assert_eq!(routes[1]["backends"][0]["weight"], 90);
    assert_eq!(routes[0]["matches"], "path /v1 or below and header x-beta = \"1\"");
    assert_eq!(dump::clusters(&snapshot).len(), 2);
    let endpoints = dump::endpoints(&snapshot, None);
    assert_eq!(endpoints[0].identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/catalog-v1"));
}
