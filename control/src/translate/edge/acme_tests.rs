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
    assert_eq!((sent(&after, "edge"), sent(&after, "other"), sent(&before, "edge")), (vec!["acme/http/a.example/tok".to_owned()], vec![], vec![]));
}

#[test]
fn names_have_a_bound() {
    // Aim: beyond it names are not ordered, and say so; those before go on.
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
}
