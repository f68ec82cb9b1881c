use http::{HeaderMap, HeaderValue, Method};

use super::*;
use crate::fixture;
use crate::model::Snapshot;

fn head<'r>(method: &'r Method, path: &'r str, headers: &'r HeaderMap) -> RequestHead<'r> {
    RequestHead { method, path, query: None, host: "catalog", headers }
}

#[test]
fn a_split_is_explained_with_chances() {
    // Aim: the JSON of kinds.md: route with why, cluster, every endpoint with its chance; a matched header sends all to one.
    let snapshot = fixture::shop().assemble(7, &Snapshot::default());
    let destination = "10.0.0.1:80".parse().unwrap();
    let mut headers = HeaderMap::new();
    let json = serde_json::to_value(outbound(&snapshot, destination, &head(&Method::GET, "/v1/items", &headers))).unwrap();
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
    let beta = outbound(&snapshot, destination, &head(&Method::GET, "/v1/items", &headers));
    assert_eq!(beta.cluster.as_deref(), Some("shop/catalog-v2:80"));
    let missed = outbound(&snapshot, destination, &head(&Method::GET, "/v2", &headers));
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
    let record = proto::mesh::DnsRecord { addresses: vec!["10.0.0.1".into()], ttl_secs: 5 };
    fixture::put(&mut parts, "dns/catalog.shop", &record).unwrap();
    let nowhere = fixture::out_nowhere("10.0.0.1:81");
    fixture::put(&mut parts, "out/10.0.0.1:81", &nowhere).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let headers = HeaderMap::new();
    let head = head(&Method::GET, "/", &headers);
    let reason = |explanation: Explanation| explanation.reply.unwrap().reason.unwrap();
    assert_eq!(reason(outbound(&snapshot, "10.9.9.9:80".parse().unwrap(), &head)), "config_pending");
    assert_eq!(reason(outbound(&snapshot, "10.0.0.1:81".parse().unwrap(), &head)), "no_route");
    assert_eq!(reason(outbound(&snapshot, "192.0.2.1:80".parse().unwrap(), &head)), "denied");
    let closed = inbound(&snapshot, 9090, None, &head);
    assert_eq!(closed.stages.last().unwrap().verdict, "Close");
    assert_eq!(closed.reply.unwrap().status, 0);
    let hairpin = outbound(&snapshot, "10.1.0.9:9090".parse().unwrap(), &head);
    assert_eq!((hairpin.listener.as_str(), hairpin.decision), ("inbound", Verb::Forward));
    assert_eq!(hairpin.cluster.as_deref(), Some("inbound"));
    assert_eq!(hairpin.endpoints[0].address, "10.1.0.9:9090");
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
    let endpoints = dump::endpoints(&snapshot);
    assert_eq!(endpoints[0].identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/catalog-v1"));
}
