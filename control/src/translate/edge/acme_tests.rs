use std::fmt::Write as _;

use super::*;
use crate::source::parse;
use crate::translate::{Affected, PartKey, Subject, statuses, touched};
use crate::world::acme::{AcmeBook, AcmeProof};
use crate::world::{Allocations, Change, Kind, Origin, WorldSettings};

const NOW_MS: i64 = 1_780_272_000_000;
const POLICY: &str = "apiVersion: meshwright.dev/v1alpha1\nkind: ClientPolicy\nmetadata: {name: acme, namespace: shop}\nspec: {targetRefs: [{kind: Gateway, name: edge}], acme: {directory: \"https://ca.example/dir\"}}\n";
const EDGE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {gatewayClassName: meshwright, listeners: [{name: a, port: 443, protocol: HTTPS, hostname: a.example}, {name: b, port: 443, protocol: HTTPS, hostname: b.example}]}\n";

fn world(texts: &[&str]) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    put(&mut world, texts);
    world.apply(vec![Change::Synced(Origin::Folder), Change::Clock { now_ms: NOW_MS }]);
    world
}

fn put(world: &mut World, texts: &[&str]) {
    for text in texts {
        let candidates = parse("f.yaml", text).candidates.into_iter();
        world.apply(candidates.map(|candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: NOW_MS }).collect());
    }
}

/// A Secret with a certificate for that host.
fn secret(host: &str, labels: &str) -> String {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signed = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": format!("acme-{host}"), "namespace": "shop", "labels": serde_json::from_str::<serde_json::Value>(labels).unwrap()},
        "stringData": {"tls.crt": signed.pem(), "tls.key": key.serialize_pem()},
    })
    .to_string()
}

fn key(host: &str) -> ObjectKey {
    ObjectKey::new(Kind::Secret, "shop", format!("acme-{host}"))
}

/// What status says of listener and policy: type, status, reason and message.
fn told(world: &World) -> Vec<String> {
    let all = statuses(world);
    let listeners = all[&ObjectKey::new(Kind::Gateway, "shop", "edge")].listeners.iter().flat_map(|listener| {
        let programmed = listener.conditions.iter().filter(|condition| condition.kind == "Programmed");
        programmed.map(move |told| format!("{} {} {} {}", listener.name, told.status, told.reason, told.message))
    });
    let ancestors = &all[&ObjectKey::new(Kind::ClientPolicy, "shop", "acme")].ancestors;
    let own = ancestors.iter().flat_map(|ancestor| &ancestor.conditions).filter(|condition| condition.kind != "Accepted");
    listeners.chain(own.map(|told| format!("{}={} {} {}", told.kind, told.status, told.reason, told.message))).collect()
}

#[test]
fn status_follows_an_order() {
    // Aim: until its first certificate only that listener is pending, with why the last try failed; when it is there, listener and policy say so;
    // one that should have been renewed long ago is expiring; a Secret that somebody else wrote is not ours to order.
    let settings = WorldSettings { assume_ready: true, ..WorldSettings::default() };
    let mut world = World::new(settings, Allocations::default());
    put(&mut world, &[EDGE, POLICY, &secret("b.example", "{\"meshwright.dev/acme\": \"on\"}")]);
    world.apply(vec![Change::Synced(Origin::Folder), Change::Clock { now_ms: NOW_MS }]);
    let first = "the first certificate for a.example is ordered from https://ca.example/dir";
    assert_eq!(
        told(&world),
        [
            format!("a False CertificatePending {first}"),
            "b True Programmed ".to_owned(),
            format!("CertificatesReady=False CertificatePending 1 of 2; {first}"),
            "Expiring=False NotExpiring ".to_owned(),
        ]
    );
    let standing =
        |problem: Option<&str>, expiring| AcmeStanding { problem: problem.map(str::to_owned), expiring, ..AcmeStanding::default() };
    let orders = [(key("a.example"), standing(Some("it is away"), false)), (key("b.example"), standing(Some("no"), true))];
    let book = AcmeBook { orders: orders.into_iter().collect(), ..AcmeBook::default() };
    world.apply(vec![Change::Acme(Arc::new(book))]);
    let now = told(&world);
    assert_eq!(now[0], format!("a False CertificatePending {first}; the last try failed: it is away"));
    assert_eq!(now[3], "Expiring=True RenewalFailing should have been renewed long ago: b.example (no)");
    let names: Vec<_> = acme_names(&world).into_iter().map(|name| (name.host, name.certificate.is_some())).collect();
    assert_eq!(names, [("a.example".to_owned(), false), ("b.example".to_owned(), true)]);
    put(&mut world, &[&secret("a.example", "{}")]);
    let now = told(&world);
    assert_eq!((now[0].as_str(), now[2].as_str()), ("a True Programmed ", "CertificatesReady=True CertificatesReady 2 of 2"));
    assert_eq!(acme_names(&world).len(), 1, "it is its owner's to renew");
}

#[test]
fn a_proof_goes_to_its_gateways_and_makes_nothing_else_anew() {
    // Aim: the proxies of the Gateways that want the name are sent it among their secrets, and nobody else; nothing but secrets is touched.
    let other = EDGE.replace("name: edge", "name: other").replace("a.example", "c.example");
    let before = world(&[EDGE, &other, POLICY]);
    let mut after = before.clone();
    let gateway = ("shop".to_owned(), "edge".to_owned());
    let proof = |text: &str| AcmeProof {
        gateways: vec![gateway.clone()],
        name: proto::names::challenge_answer("a.example", "tok"),
        shown: AcmeShown::Answer(text.to_owned()),
    };
    let book = |text: &str| AcmeBook { proofs: [(key("a.example"), proof(text))].into_iter().collect(), ..AcmeBook::default() };
    assert!(after.apply(vec![Change::Acme(Arc::new(book("tok.hash")))]).runtime);
    assert!(!after.apply(vec![Change::Acme(Arc::new(book("tok.hash")))]).runtime, "it is the same");
    assert_eq!(touched(&before, &after), Affected::Some([Subject::secrets(&gateway)].into_iter().collect()));
    let sent = |world: &World, name: &str| -> Vec<String> {
        let part = PartKey::Secrets(("shop".to_owned(), name.to_owned())).make(world);
        part.resources.into_iter().map(|(_, name, _)| name).filter(|name| name.starts_with("acme/")).collect()
    };
    assert_eq!(
        (sent(&after, "edge"), sent(&after, "other"), sent(&before, "edge")),
        (vec!["acme/http/a.example/tok".to_owned()], vec![], vec![])
    );
}

/// A ListenerSet of namespace `team` at Gateway `shop/edge`, with an authority of its own.
fn team(listener: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: team, namespace: team}}\nspec: {{parentRef: {{name: edge, namespace: shop}}, listeners: [{{name: t, {listener}}}]}}\n---\napiVersion: meshwright.dev/v1alpha1\nkind: ClientPolicy\nmetadata: {{name: acme, namespace: team}}\nspec: {{targetRefs: [{{kind: ListenerSet, name: team}}], acme: {{directory: \"https://evil.example/dir\"}}}}\n"
    )
}

fn open_gateway(listener: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: shop}}\nspec: {{gatewayClassName: meshwright, allowedListeners: {{namespaces: {{from: All}}}}, listeners: [{{name: g, {listener}}}]}}\n"
    )
}

#[test]
fn a_name_is_one_namespaces() {
    // Aim: all TLS ports of a Gateway prove a pending name, so a tenant whose ListenerSet says another namespace's name, at a port of its own, does not
    // get a certificate for it; what its own narrower listener has, and what nobody has said, it gets; a Gateway's own names are barred by nobody.
    let rows = [
        ("port: 443, protocol: HTTPS, hostname: a.example", "port: 8443, protocol: HTTPS, hostname: a.example", true),
        (
            "port: 443, protocol: TLS, hostname: a.example, tls: {mode: Passthrough}",
            "port: 8443, protocol: HTTPS, hostname: a.example",
            true,
        ),
        ("port: 80, protocol: HTTP, hostname: a.example", "port: 443, protocol: HTTPS, hostname: a.example", true),
        ("port: 443, protocol: HTTPS, hostname: \"*.example\"", "port: 8443, protocol: HTTPS, hostname: a.example", true),
        ("port: 443, protocol: HTTPS, hostname: \"*.example\"", "port: 443, protocol: HTTPS, hostname: a.example", false),
        ("port: 443, protocol: HTTPS, hostname: b.example", "port: 8443, protocol: HTTPS, hostname: a.example", false),
        ("port: 80, protocol: HTTP", "port: 443, protocol: HTTPS, hostname: a.example", false),
        ("port: 8443, protocol: HTTPS", "port: 443, protocol: HTTPS, hostname: a.example", false),
    ];
    for (own, theirs, taken) in rows {
        let names = acme_names(&world(&[&open_gateway(own), POLICY, &team(theirs)]));
        let name = names.iter().find(|name| name.secret.namespace == "team").unwrap();
        let why = name.barred.clone().unwrap_or_default();
        assert_eq!(
            (why.contains("it is a name of listener g of Gateway shop/edge"), why.is_empty()),
            (taken, !taken),
            "{own} | {theirs}: {why}"
        );
        let owners = names.iter().filter(|name| name.secret.namespace == "shop" && !name.host.starts_with('*'));
        assert!(owners.clone().all(|name| name.barred.is_none()), "{own}");
    }
    // A certificate that a listener for any name shows is a name of it.
    let shown = secret("a.example", "{}").replace("acme-a.example", "own");
    let catches = open_gateway("port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: own}]}");
    let names = acme_names(&world(&[&catches, &shown, &team("port: 8443, protocol: HTTPS, hostname: a.example")]));
    assert!(names[0].barred.as_deref().is_some_and(|why| why.contains("listener g")), "{:?}", names[0].barred);
    // Where it may be ordered at one Gateway it is proved there alone.
    let own = team("port: 8443, protocol: HTTPS, hostname: a.example")
        + "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: own, namespace: team}\nspec: {gatewayClassName: meshwright, listeners: [{name: a, port: 443, protocol: HTTPS, hostname: a.example}]}\n---\n"
        + &POLICY.replace("namespace: shop", "namespace: team").replace("name: acme", "name: gateway").replace("name: edge", "name: own");
    let names = acme_names(&world(&[&open_gateway("port: 443, protocol: HTTPS, hostname: a.example"), &own]));
    let name = names.iter().find(|name| name.secret.namespace == "team").unwrap();
    assert_eq!((&name.barred, &name.gateways), (&None, &vec![("team".to_owned(), "own".to_owned())]));
}

#[test]
fn a_secret_that_is_gone_is_ordered_anew() {
    // Aim: what it held is shown for a day yet, and does not keep its successor from being ordered.
    let mut world = world(&[EDGE, POLICY, &secret("a.example", "{\"meshwright.dev/acme\": \"on\"}")]);
    assert!(acme_names(&world)[0].certificate.is_some());
    world.apply(vec![Change::Remove { origin: Origin::Folder, key: key("a.example") }]);
    assert!(world.credential(&key("a.example")).is_ok() && acme_names(&world)[0].certificate.is_none());
}

#[test]
fn a_webhook_that_cannot_be_called_bars_the_name() {
    // Aim: a Service that is not there, of another namespace without a grant, without an endpoint, or that takes TLS nobody has described, is told of
    // by name before anything is ordered; one that can be called bars nothing, and a wildcard may be ordered by it.
    let policy = |to: &str| {
        format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: ClientPolicy\nmetadata: {{name: acme, namespace: shop}}\nspec: {{targetRefs: [{{kind: Gateway, name: edge}}], acme: {{directory: \"https://ca.example/dir\", challenge: Dns01, dns01: {{webhook: {{backendRef: {{{to}}}}}}}}}}}\n"
        )
    };
    let service = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80{port}}}]}}\n"
        )
    };
    let slice = |name: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [192.0.2.1], conditions: {{ready: true}}}}]\nports: [{{name: http, port: 8080}}]\n"
        )
    };
    let wild = EDGE.replace("hostname: b.example", "hostname: \"*.b.example\"");
    for (to, told) in [
        ("name: none, port: 80", "there is no Service shop/none"),
        ("name: dns, namespace: other, port: 80", "no ReferenceGrant in other"),
        ("name: empty, port: 80", "Service shop/empty:80 has no ready endpoint"),
        ("name: tls, port: 80", "no BackendTLSPolicy says whom to believe"),
        ("name: dns, port: 80", ""),
    ] {
        let all = [
            wild.clone(),
            policy(to),
            service("dns", ""),
            slice("dns"),
            service("empty", ""),
            service("tls", ", appProtocol: https"),
            slice("tls"),
        ];
        let names = acme_names(&world(&all.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(names.len(), 2);
        for name in names {
            let why = name.barred.unwrap_or_default();
            assert!(why.contains(told) && why.is_empty() == told.is_empty(), "{to}: {why}");
            assert_eq!(name.webhook.is_some(), told.is_empty());
        }
    }
}

#[test]
fn names_have_a_bound() {
    // Aim: beyond it names are not ordered, and say so; those that have a certificate go on, wherever they stand.
    let mut gateways = String::new();
    for number in 0..6 {
        let listeners = (0..50).fold(String::new(), |mut text, name| {
            write!(text, "{{name: l{name}, port: 443, protocol: HTTPS, hostname: h{name}.g{number}.example}}, ").unwrap();
            text
        });
        writeln!(gateways, "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g{number}, namespace: shop}}\nspec: {{gatewayClassName: meshwright, listeners: [{listeners}]}}").unwrap();
    }
    let mesh = POLICY.replace("namespace: shop", "namespace: meshwright-system").replace("targetRefs: [{kind: Gateway, name: edge}], ", "");
    let names = acme_names(&world(&[&gateways, &mesh]));
    let barred: Vec<_> = names.iter().filter_map(|name| name.barred.as_deref()).collect();
    assert_eq!((names.len(), barred.len()), (300, 300 - ACME_NAMES_MAX));
    assert!(barred[0].contains("256 other names"), "{}", barred[0]);
    let late = names.iter().rfind(|name| name.barred.is_some()).unwrap();
    let had = secret(&late.host, "{\"meshwright.dev/acme\": \"on\"}");
    let now = acme_names(&world(&[&gateways, &mesh, &had]));
    assert!(now.iter().any(|name| name.host == late.host && name.barred.is_none()));
    assert_eq!(now.iter().filter(|name| name.barred.is_some()).count(), 300 - ACME_NAMES_MAX);
}
