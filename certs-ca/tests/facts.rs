//! What real libraries do where a good guess is wrong (facts.md, "SPIFFE and X.509"), as far as the authority meets it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;
use std::time::Duration;

use certs_ca::authority::{BACKDATE, SERIAL_BYTES};
use certs_ca::csr::Csr;
use certs_ca::{Ca, Policy, Proof, TokenOrder};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const NOW: i64 = 1_800_000_000;
const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

/// An authority of its own, at one moment.
struct Desk {
    ca: Ca,
    _folder: tempfile::TempDir,
}

fn desk() -> Desk {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::open(folder.path(), Policy::default(), Arc::new(|| OffsetDateTime::from_unix_timestamp(NOW).unwrap())).unwrap();
    Desk { ca, _folder: folder }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "catalog");
    params
}

fn request(key: &KeyPair) -> Csr {
    let mut params = params();
    params.subject_alt_names = vec![SanType::URI(CATALOG.try_into().unwrap())];
    Csr::parse(params.serialize_request(key).unwrap().der()).unwrap()
}

fn sign(ca: &Ca, csr: &Csr, life: Option<Duration>) -> Vec<Vec<u8>> {
    let order = TokenOrder { workload: "shop/catalog".into(), identity: CATALOG.parse().unwrap(), instance: None, life: None };
    let token = ca.issue_token(&order).unwrap();
    ca.sign(csr, &Proof::Token(&token), "catalog", life).unwrap().chain.iter().map(|der| der.to_vec()).collect()
}

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

/// The extension of alternative names with these URI names, byte for byte.
fn uris(uris: &[&[u8]]) -> CustomExtension {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let names: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, length(uri)], *uri].concat()).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], [&[0x30, length(&names)][..], &names].concat())
}

#[test]
fn serials_are_ours_and_not_the_keys() {
    // Aim: rcgen would derive the serial from the public key; ours differ for one key signed twice and by two authorities, are positive
    // and no longer than we say, for root, issuing certificate and leaf.
    let key = KeyPair::generate().unwrap();
    let (one, other) = (desk(), desk());
    let csr = request(&key);
    let chains = [sign(&one.ca, &csr, None), sign(&one.ca, &csr, None), sign(&other.ca, &csr, None)];
    let mut leaves: Vec<_> = chains.iter().map(|chain| parsed(&chain[0]).raw_serial().to_vec()).collect();
    leaves.sort();
    leaves.dedup();
    assert_eq!(leaves.len(), 3);
    let root = one.ca.roots().der()[0].to_vec();
    for der in chains[0].iter().chain([&root]) {
        let serial = parsed(der).raw_serial().to_vec();
        assert!(serial.len() <= SERIAL_BYTES && serial[0] < 0x80 && serial.iter().any(|byte| *byte != 0), "{serial:?}");
    }
}

#[test]
fn validity_is_ours_and_not_the_librarys() {
    // Aim: rcgen's default is 1975 to 4096; every certificate begins just before it was made and ends with the life it was given.
    let desk = desk();
    let day = Duration::from_secs(24 * 3600);
    let chain = sign(&desk.ca, &request(&KeyPair::generate().unwrap()), Some(Duration::from_secs(3600)));
    let root = desk.ca.roots().der()[0].to_vec();
    for (der, life) in [(&chain[0], Duration::from_secs(3600)), (&chain[1], day * 90), (&root, day * 3650)] {
        let validity = parsed(der).validity().clone();
        let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let earliest = NOW - i64::try_from(BACKDATE.as_secs()).unwrap();
        assert!((earliest..=NOW).contains(&begin), "begins at {begin}");
        assert_eq!(end, NOW + i64::try_from(life.as_secs()).unwrap());
    }
}

#[test]
fn an_identity_is_a_uri_name_and_no_dns_name() {
    // Aim: rcgen makes a DNS name of a text it is handed; a leaf of ours has exactly one name, and that is a URI.
    let desk = desk();
    let chain = sign(&desk.ca, &request(&KeyPair::generate().unwrap()), None);
    let leaf = parsed(&chain[0]);
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(matches!(names.as_slice(), [GeneralName::URI(CATALOG)]), "{names:?}");
}

#[test]
fn a_uri_name_that_is_not_utf8_is_a_uri_name() {
    // Aim: x509-parser gives such a name without an error; in a request or in a leaf that renews itself, it makes one name too many.
    let desk = desk();
    let key = KeyPair::generate().unwrap();
    let bad: &[u8] = b"spiffe://cluster.local/ns/shop/sa/\xff";
    let with = |names: &[&[u8]]| {
        let mut params = params();
        params.custom_extensions = vec![uris(names)];
        params
    };
    let parse = |names: &[&[u8]]| Csr::parse(with(names).serialize_request(&key).unwrap().der());
    assert_eq!(parse(&[CATALOG.as_bytes()]).unwrap().identity.to_string(), CATALOG);
    for names in [&[CATALOG.as_bytes(), bad][..], &[bad, CATALOG.as_bytes()], &[bad]] {
        let error = parse(names).unwrap_err().to_string();
        assert!(error.contains("exactly one URI"), "{error}");
        let leaf = with(names).self_signed(&key).unwrap();
        let refused = desk.ca.sign(&request(&key), &Proof::Leaf(leaf.der()), "catalog", None).unwrap_err().to_string();
        assert!(refused.contains("one URI"), "{refused}");
    }
}
