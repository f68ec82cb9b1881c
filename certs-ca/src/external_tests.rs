use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{BasicConstraints, CertifiedIssuer, CustomExtension, DistinguishedName, DnType, GeneralSubtree, IsCa, NameConstraints};

use super::*;
use crate::ca::{Ca, CaError, ServerNames, Step};
use crate::policy::Policy;

const START: i64 = 1_800_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

/// An authority's certificate for a year, as somebody else's tool makes it.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(START) - DAY, at(START) + DAY * 365);
    params
}

type Root = CertifiedIssuer<'static, KeyPair>;

fn root(name: &str) -> Root {
    CertifiedIssuer::self_signed(params(name), KeyPair::generate().unwrap()).unwrap()
}

/// PEM of an intermediate and of its key.
fn below(root: &Root, params: &CertificateParams) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, root).unwrap().pem(), key.serialize_pem())
}

/// The three files in a folder, the key 0600.
fn written(folder: &Path, certificate: &str, key: &str, roots: &str) -> ExternalFiles {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    ExternalFiles { certificate: file("ca.crt", certificate), key: file("ca.key", key), roots: file("root.crt", roots) }
}

fn constrained(permitted: GeneralSubtree) -> CertificateParams {
    let mut params = params("intermediate");
    params.name_constraints = Some(NameConstraints { permitted_subtrees: vec![permitted], excluded_subtrees: Vec::new() });
    params
}

/// Name constraints (RFC 5280, section 4.2.1.10) that permit one URI name, byte for byte.
fn uri_constrained(uri: &[u8]) -> CertificateParams {
    let base = [&[0x86, uri.len() as u8], uri].concat();
    let subtree = [&[0x30, base.len() as u8][..], &base].concat();
    let permitted = [&[0xa0, subtree.len() as u8][..], &subtree].concat();
    let content = [&[0x30, permitted.len() as u8][..], &permitted].concat();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    let mut params = params("intermediate");
    params.custom_extensions = vec![extension];
    params
}

#[test]
fn what_proxies_could_not_use_is_refused_at_the_start() {
    // Aim: each fault of the files is told by its flag and in plain words; URI name constraints whatever they permit, UTF-8 or not.
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (root("root"), root("other"));
    let (good, key) = below(&ours, &params("intermediate"));
    let (_, foreign_key) = below(&ours, &params("intermediate"));
    let made = |params: CertificateParams| below(&ours, &params);
    let mut leaf = params("leaf");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let mut no_signer = params("no signer");
    no_signer.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut ended = params("ended");
    (ended.not_before, ended.not_after) = (at(START) - DAY * 9, at(START) - DAY);
    let mut early = params("early");
    early.not_before = at(START) + DAY;
    let mut forged = ours.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let forged = crate::roots::pem(&forged);
    let (leaf, no_signer, ended, early) = (made(leaf), made(no_signer), made(ended), made(early));
    let (permitting, odd) = (made(uri_constrained(b"cluster.local")), made(uri_constrained(&[0xff, 0xfe])));
    let dns = made(constrained(GeneralSubtree::DnsName("example.com".into())));
    for ((certificate, key), roots, why) in [
        ((&leaf.0, &leaf.1), ours.pem(), "CA:TRUE is missing"),
        ((&no_signer.0, &no_signer.1), ours.pem(), "keyCertSign"),
        ((&ended.0, &ended.1), ours.pem(), "renew it"),
        ((&early.0, &early.1), ours.pem(), "begins at"),
        ((&permitting.0, &permitting.1), ours.pem(), "name constraints on URIs"),
        ((&odd.0, &odd.1), ours.pem(), "name constraints on URIs"),
        ((&good, &foreign_key), ours.pem(), "--ca-key"),
        ((&good, &key), other.pem(), "against no root of --ca-root"),
        ((&good, &key), forged, "not signed by its own key"),
        ((&good, &key), String::new(), "--ca-root"),
        ((&"x".to_owned(), &key), ours.pem(), "--ca-cert"),
        ((&good, &"x".to_owned()), ours.pem(), "private key"),
    ] {
        let files = written(folder.path(), certificate, key, &roots);
        let error = External::load(&files, at(START)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(why), "wanted `{why}` in `{error}`");
    }
    // Constraints on other names say nothing of identities.
    External::load(&written(folder.path(), &dns.0, &dns.1, &ours.pem()), at(START)).unwrap();
    let files = written(folder.path(), &good, &key, &ours.pem());
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o440)).unwrap();
    assert!(External::load(&files, at(START)).is_ok(), "as a kubelet mounts a Secret");
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = External::load(&files, at(START)).err().unwrap().to_string();
    assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
    let missing = ExternalFiles { roots: folder.path().join("none"), ..files };
    assert!(External::load(&missing, at(START)).err().unwrap().to_string().contains("--ca-key"));
}

#[test]
fn nothing_outlives_what_it_is_signed_by() {
    // Aim: the first end of any certificate in the chain is the end of what is issued, and the chain is sent whole.
    let folder = tempfile::tempdir().unwrap();
    let root = root("root");
    let mut upper = params("upper");
    upper.not_after = at(START) + DAY * 3;
    let upper_key = KeyPair::generate().unwrap();
    let upper_pem = upper.signed_by(&upper_key, &root).unwrap().pem();
    let upper_issuer = Issuer::new(upper, upper_key);
    let key = KeyPair::generate().unwrap();
    let lower_pem = params("lower").signed_by(&key, &upper_issuer).unwrap().pem();
    let files = written(folder.path(), &format!("{lower_pem}{upper_pem}"), &key.serialize_pem(), &root.pem());
    let (external, issuing) = External::load(&files, at(START)).unwrap();
    assert_eq!((issuing.not_after, issuing.above.len()), (at(START) + DAY * 3, 1));
    assert_eq!(external.set().der(), [root.der().clone()]);
    let ca = Ca::open_external(&folder.path().join("data"), &files, Policy::default(), Arc::new(|| at(START))).unwrap();
    let seat = ca.seat(&ServerNames::default()).unwrap();
    verify(&seat.chain[0], &seat.chain[1..], root.der(), at(START)).unwrap();
    assert!(matches!(ca.rotate(Step::Trust), Err(CaError::NotOurRoot)));
}

#[test]
fn the_user_rotates_by_the_files_in_three_steps() {
    // Aim: new files are taken when they can be followed: the new root beside the former, then certificate and key, then without the former; a
    // leap is refused with the order to keep, and changes nothing.
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (root("old"), root("new"));
    let (old_certificate, old_key) = below(&old, &params("old intermediate"));
    let (new_certificate, new_key) = below(&new, &params("new intermediate"));
    let both = format!("{}{}", old.pem(), new.pem());
    let files = written(folder.path(), &old_certificate, &old_key, &old.pem());
    let ca = Ca::open_external(&folder.path().join("data"), &files, Policy::default(), Arc::new(|| at(START))).unwrap();
    assert!(!ca.refresh().unwrap());
    written(folder.path(), &new_certificate, &new_key, &new.pem());
    assert!(ca.refresh().unwrap_err().to_string().contains("does not believe yet"));
    assert_eq!(ca.roots().der(), [old.der().clone()]);
    written(folder.path(), &old_certificate, &old_key, &both);
    assert!(ca.refresh().unwrap());
    assert_eq!(ca.roots().der(), [old.der().clone(), new.der().clone()]);
    written(folder.path(), &new_certificate, &new_key, &new.pem());
    assert!(ca.refresh().unwrap_err().to_string().contains("no longer holds"));
    written(folder.path(), &new_certificate, &new_key, &both);
    assert!(ca.refresh().unwrap());
    assert_eq!(ca.roots().der(), [new.der().clone(), old.der().clone()]);
    written(folder.path(), &new_certificate, &new_key, &new.pem());
    assert!(ca.refresh().unwrap());
    assert_eq!(ca.roots().der(), [new.der().clone()]);
}
