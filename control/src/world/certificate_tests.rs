use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, date_time_ymd};

use super::*;
use crate::source::parse;
use crate::world::{Allocations, Change, Kind, ObjectKey, Origin, Spec, World, WorldSettings};

/// A certificate for these names, and its key, in PEM.
fn pair(names: &[&str], (from, to): ((i32, u8, u8), (i32, u8, u8))) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(to.0, to.1, to.2);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

const LONG: ((i32, u8, u8), (i32, u8, u8)) = ((2020, 1, 1), (2040, 1, 1));

fn secret(entries: &[(&str, &str)]) -> String {
    let data: serde_json::Map<String, serde_json::Value> =
        entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())).collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "s", "namespace": "a"}, "stringData": data
    })
    .to_string()
}

fn contents(entries: &[(&str, &str)]) -> Contents {
    let candidate = parse("f.yaml", &secret(entries)).candidates.remove(0);
    match &candidate.object.as_ref().unwrap().spec {
        Spec::Secret(contents) => contents.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_secret_is_a_certificate_or_says_why_not() {
    // Aim: each way in which a Secret can hold no certificate is told for what it is, and nothing that it holds is in the words.
    let (good, key) = pair(&["a.example"], LONG);
    let (other, _) = pair(&["a.example"], LONG);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (entries, wanted) in [
        (vec![("tls.crt", good.as_str()), ("tls.key", key.as_str())], "good"),
        (vec![("tls.key", key.as_str())], "it has no entry `tls.crt`"),
        (vec![("tls.crt", good.as_str())], "it has no entry `tls.key`"),
        (vec![("tls.crt", "Hello"), ("tls.key", key.as_str())], "its entry `tls.crt` holds no certificate as PEM"),
        (vec![("tls.crt", good.as_str()), ("tls.key", "Hello")], "its entry `tls.key` holds no private key as PEM"),
        (vec![("tls.crt", garbage), ("tls.key", key.as_str())], "certificate 1 of its entry `tls.crt` is none"),
        (vec![("tls.crt", other.as_str()), ("tls.key", key.as_str())], "its key is not that of its certificate"),
        (vec![("tls.crt", &good.repeat(17)), ("tls.key", key.as_str())], "its entry `tls.crt` holds more than 16 certificates"),
    ] {
        let told = judge(&contents(&entries)).map_or_else(|fault| fault.to_string(), |_| "good".to_owned());
        assert_eq!(told, wanted);
    }
    let staple = contents(&[("tls.crt", &good), ("tls.key", &key), ("tls.ocsp-staple", "staple")]);
    let judged = judge(&staple).unwrap();
    assert_eq!(judged.staple.as_deref(), Some(&b"staple"[..]));
    assert!(!format!("{judged:?}").contains("PRIVATE"));
}

#[test]
fn keys_of_every_usual_kind_are_taken() {
    // Aim: PKCS#8 of ECDSA and Ed25519, and a chain with its issuer behind the leaf.
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let (root_key, key) = (KeyPair::generate_for(algorithm).unwrap(), KeyPair::generate_for(algorithm).unwrap());
        let root = CertificateParams::new(vec!["root.example".to_owned()]).unwrap();
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let leaf = CertificateParams::new(vec!["*.Shop.example".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        let chain = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap().pem() + &root_pem;
        let judged = judge(&contents(&[("tls.crt", &chain), ("tls.key", &key.serialize_pem())])).unwrap();
        assert_eq!(judged.names, ["*.shop.example", "192.0.2.1"]);
    }
}

#[test]
fn names_are_covered_as_clients_see_it() {
    // Aim: a wildcard stands for one label and not for none; a listener for a wildcard needs that wildcard itself.
    let (chain, key) = pair(&["shop.example", "*.shop.example"], LONG);
    let judged = judge(&contents(&[("tls.crt", &chain), ("tls.key", &key)])).unwrap();
    for (host, wanted) in [
        ("shop.example", true),
        ("a.shop.example", true),
        ("a.b.shop.example", false),
        (".shop.example", false),
        ("*.shop.example", true),
        ("*.a.shop.example", false),
        ("example", false),
    ] {
        assert_eq!(judged.covers(host), wanted, "{host}");
    }
    let (chain, key) = pair(&["x.shop.example"], LONG);
    let narrow = judge(&contents(&[("tls.crt", &chain), ("tls.key", &key)])).unwrap();
    let (chain, key) = pair(&["other.example"], LONG);
    let other = judge(&contents(&[("tls.crt", &chain), ("tls.key", &key)])).unwrap();
    assert!(narrow.meets(&judged) && judged.meets(&narrow) && !other.meets(&judged));
}

#[test]
fn what_no_proxy_takes_is_told_where_it_stands() {
    // Aim: a key and an OCSP response beyond what proxies read are refused here, by name, and not by each proxy.
    let (chain, key) = pair(&["a.example"], LONG);
    let large = "x".repeat(ENTRY_BYTES_MAX + 1);
    let long_key = format!("{key}{large}");
    assert_eq!(judge(&contents(&[("tls.crt", &chain), ("tls.key", &long_key)])), Err(CertificateFault::TooLarge("tls.key")));
    let stapled = contents(&[("tls.crt", &chain), ("tls.key", &key), ("tls.ocsp", &large)]);
    assert_eq!(judge(&stapled), Err(CertificateFault::TooLarge("tls.ocsp")));
}

#[test]
fn dates_are_told() {
    // Aim: before, within, 30 days before the end, and after it.
    let (chain, key) = pair(&["a.example"], ((2026, 1, 1), (2026, 12, 31)));
    let judged = judge(&contents(&[("tls.crt", &chain), ("tls.key", &key)])).unwrap();
    let at = |year, month, day| date_time_ymd(year, month, day).unix_timestamp() * 1000;
    for (now_ms, wanted) in [
        (at(2025, 12, 31), Validity::Early),
        (at(2026, 6, 1), Validity::Good),
        (at(2026, 12, 2), Validity::Ending),
        (at(2027, 1, 1), Validity::Ended),
    ] {
        assert_eq!(judged.validity(now_ms), wanted, "{now_ms}");
    }
}

#[test]
fn a_certificate_that_vanishes_stays_for_a_day() {
    // Aim: without its Secret, or with garbage in it, a certificate that was good stays in force for 24 hours and not a minute longer; a good
    // one takes its place at once; one that never was good is told, and never in force.
    const HOUR_MS: i64 = 60 * 60 * 1000;
    let (chain, key) = pair(&["a.example"], LONG);
    let good = secret(&[("tls.crt", &chain), ("tls.key", &key)]);
    let bad = secret(&[("tls.crt", "x"), ("tls.key", "y")]);
    let at = ObjectKey::new(Kind::Secret, "a", "s");
    let start = 1_800_000_000_000;
    let new = || {
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(vec![Change::Clock { now_ms: start }]);
        world
    };
    let put = |text: &str| Change::Put { origin: Origin::Folder, candidate: parse("f", text).candidates.remove(0), now_ms: 0 };
    let told = |world: &World| match world.credential(&at) {
        Ok((_, None)) => "good".to_owned(),
        Ok((_, Some(fault))) => format!("kept: {fault}"),
        Err(fault) => fault.to_string(),
    };
    for (loss, why) in [
        (Change::Remove { origin: Origin::Folder, key: at.clone() }, "there is no such Secret"),
        (put(&bad), "its entry `tls.crt` holds no certificate as PEM"),
    ] {
        let mut world = new();
        world.apply(vec![put(&good)]);
        assert_eq!(told(&world), "good");
        world.apply(vec![loss.clone()]);
        assert_eq!(told(&world), format!("kept: {why}"));
        assert!(!world.apply(vec![Change::Clock { now_ms: start + 24 * HOUR_MS - 1 }]).runtime);
        assert_eq!(told(&world), format!("kept: {why}"));
        assert!(world.apply(vec![Change::Clock { now_ms: start + 24 * HOUR_MS }]).runtime, "whoever shows it hears so");
        assert_eq!(told(&world), why);
        world.apply(vec![put(&good)]);
        assert_eq!(told(&world), "good");
    }
    let mut world = new();
    world.apply(vec![put(&bad)]);
    assert_eq!(told(&world), "its entry `tls.crt` holds no certificate as PEM");
    world.apply(vec![Change::Remove { origin: Origin::Folder, key: at.clone() }]);
    assert_eq!(told(&world), "there is no such Secret");
    world.apply(vec![put(&good), Change::Remove { origin: Origin::Folder, key: at.clone() }]);
    assert_eq!(told(&world), "there is no such Secret", "what was never in force is not kept");
}
