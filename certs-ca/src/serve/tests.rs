//! The whole road of requests, from the call to the log.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::attest::{ADDRESS_BURST, GATE_BURST, INSTANCE_BURST, Pod, ServiceAccount, ServiceAccountVerifier};
use crate::audit::Query;
use crate::ca::TokenOrder;
use crate::minting::TOKEN_LIFE;
use crate::policy::Policy;

const START: i64 = 1_800_000_000;
const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

/// A gate that believes what the test says of the caller.
#[derive(Default)]
struct Open {
    leaf: Mutex<Option<CertificateDer<'static>>>,
    address: Mutex<Option<IpAddr>>,
    pod_uid: Mutex<Option<String>>,
}

impl Gate for Open {
    fn admit(&self, _: &Extensions, applicant: &Applicant<'_>) -> Result<Option<CertificateDer<'static>>, Status> {
        if applicant.workload == "undeclared" {
            return Err(Status::failed_precondition("nothing declared is shop/undeclared"));
        }
        Ok(self.leaf.lock().unwrap().clone())
    }

    fn holder(&self, _: &Extensions) -> Result<CertificateDer<'static>, Status> {
        self.leaf.lock().unwrap().clone().ok_or_else(|| Status::unauthenticated("a client certificate is needed"))
    }

    fn pod_uid(&self, _: &Applicant<'_>) -> Option<String> {
        self.pod_uid.lock().unwrap().clone()
    }

    fn address(&self, _: &Extensions) -> Option<IpAddr> {
        *self.address.lock().unwrap()
    }
}

/// Tokens are `NAMESPACE/ACCOUNT/POD/AUDIENCE`; a pod of `-` is none, one of `NAME@UID` has that id, else `u`.
struct Cluster;

impl ServiceAccountVerifier for Cluster {
    fn verify(&self, token: &str, audience: &str) -> Result<ServiceAccount, ServiceAccountError> {
        assert_eq!(audience, crate::attest::AUDIENCE);
        match token {
            "expired" => return Err(ServiceAccountError::Refused("it has expired".to_owned())),
            "away" => return Err(ServiceAccountError::Unreachable("the API server does not answer".to_owned())),
            _ => {}
        }
        let [namespace, account, pod, audience] = token.splitn(4, '/').collect::<Vec<_>>()[..] else {
            return Err(ServiceAccountError::Refused("it is not signed by this cluster".to_owned()));
        };
        let (name, uid) = pod.split_once('@').unwrap_or((pod, "u"));
        let pod = (pod != "-").then(|| Pod { name: name.to_owned(), uid: uid.to_owned() });
        Ok(ServiceAccount { namespace: namespace.into(), account: account.into(), pod, audiences: vec![audience.into()] })
    }
}

struct Desk {
    ca: Arc<Ca>,
    gate: Open,
    time: Arc<AtomicI64>,
    folder: tempfile::TempDir,
}

fn open(folder: &Path, time: &Arc<AtomicI64>) -> Arc<Ca> {
    let time = time.clone();
    let clock: crate::ca::Clock = Arc::new(move || OffsetDateTime::from_unix_timestamp(time.load(Ordering::Relaxed)).unwrap());
    Arc::new(Ca::open(folder, Policy::default(), clock).unwrap())
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let time = Arc::new(AtomicI64::new(START));
        Self { ca: open(folder.path(), &time), gate: Open::default(), time, folder }
    }

    fn sign(&self, request: &SignRequest) -> Result<SignResponse, Status> {
        sign(&self.ca, request, &self.gate, &Extensions::default())
    }

    fn token(&self) -> String {
        let order = TokenOrder { workload: "shop/catalog".into(), identity: CATALOG.parse().unwrap(), instance: None, life: None };
        self.ca.issue_token(&order).unwrap()
    }

    fn mint(&self, audience: &[&str]) -> Result<MintTokenResponse, Status> {
        let audience = audience.iter().map(|text| (*text).to_owned()).collect();
        mint(&self.ca, &MintTokenRequest { audience, instance: "catalog-0".into() }, &self.gate, &Extensions::default())
    }

    /// Has the caller hold the leaf of an answer.
    fn hold(&self, answer: &SignResponse) {
        *self.gate.leaf.lock().unwrap() = Some(CertificateDer::from(answer.chain_der[0].to_vec()));
    }

    fn refused(&self) -> String {
        self.ca.refusals(&Query::default())[0].reason.clone()
    }
}

fn request(uris: &[&str], workload: &str) -> SignRequest {
    SignRequest { csr_der: crate::csr::tests::request(uris, workload).into(), instance: "catalog-0".into(), ..Default::default() }
}

fn by_token(token: String) -> SignRequest {
    SignRequest { token, ..request(&[CATALOG], "catalog") }
}

#[test]
fn every_issuance_is_in_the_log_with_its_proof() {
    // Aim: who, which instance, by what, from where, serial, issuer and end; refusals with their reason; the log survives a restart.
    let desk = Desk::new();
    desk.ca.verify_service_accounts(Arc::new(Cluster));
    *desk.gate.address.lock().unwrap() = Some("10.9.0.3".parse().unwrap());
    let token = desk.token();
    let first = desk.sign(&by_token(token.clone())).unwrap();
    assert!(desk.sign(&by_token(token)).unwrap_err().message().contains("used before"));
    desk.hold(&first);
    desk.time.store(START + 10, Ordering::Relaxed);
    desk.sign(&SignRequest { for_application: true, ..request(&[CATALOG], "catalog") }).unwrap();
    let projected = "shop/catalog/catalog-0/meshwright.dev".to_owned();
    desk.sign(&SignRequest { service_account_token: projected, ..request(&[CATALOG], "catalog") }).unwrap();
    assert!(desk.sign(&request(&[CATALOG], "undeclared")).unwrap_err().message().contains("nothing declared"));

    let rows = desk.ca.issuances(&Query::default(), 10).unwrap();
    let told: Vec<_> = rows.iter().map(|row| (row.attestation.text(), row.for_application, row.time - START)).collect();
    assert_eq!(told, [("ServiceAccount", false, 10), ("Certificate", true, 10), ("Token", false, 0)]);
    let row = &rows[2];
    assert_eq!((row.identity.as_str(), row.workload.as_str(), row.instance.as_str()), (CATALOG, "catalog", "catalog-0"));
    assert_eq!(row.peer, Some("10.9.0.3".parse().unwrap()));
    let (_, leaf) = X509Certificate::from_der(&first.chain_der[0]).unwrap();
    assert_eq!(row.serial, crate::authority::hex(leaf.raw_serial()));
    assert_eq!((row.issuer.clone(), row.not_after), (leaf.issuer().to_string(), leaf.validity().not_after.timestamp()));
    let refusals = desk.ca.refusals(&Query::default());
    assert_eq!(refusals.len(), 2);
    assert!(refusals[0].reason.contains("nothing declared") && refusals[0].attestation == Attestation::Certificate);
    assert!(refusals[1].reason.contains("used before") && refusals[1].attestation == Attestation::Token);
    let counts = desk.ca.counts();
    assert_eq!((counts.by_token, counts.by_certificate, counts.by_service_account, counts.refused), (1, 1, 1, 2));
    assert_eq!(desk.ca.certs().len(), 2, "the proxy's and the application's stand beside one another");

    let Desk { ca, time, folder, .. } = desk;
    drop(ca);
    assert_eq!(open(folder.path(), &time).issuances(&Query::default(), 10).unwrap(), rows);
}

#[test]
fn a_service_account_admits_just_its_own_pod() {
    // Aim: facts of the token against the request, each lie by its own words; a token spoils no other proof and is no join token.
    let desk = Desk::new();
    let ask = |token: &str| desk.sign(&SignRequest { service_account_token: token.to_owned(), ..request(&[CATALOG], "catalog") });
    let good = "shop/catalog/catalog-0/meshwright.dev";
    let none = ask(good).unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition);
    assert!(none.message().contains("--kubernetes") && none.message().contains("token create"), "{none}");
    desk.ca.verify_service_accounts(Arc::new(Cluster));
    ask(good).unwrap();
    for (token, code, why) in [
        ("shop/catalog/catalog-0/api", Code::Unauthenticated, "not for `meshwright.dev`"),
        ("expired", Code::Unauthenticated, "it has expired"),
        ("away", Code::Unavailable, "does not answer"),
        ("nonsense", Code::Unauthenticated, "not signed by this cluster"),
        (
            "shop/admin/catalog-0/meshwright.dev",
            Code::PermissionDenied,
            "sa/admin, the request is for spiffe://cluster.local/ns/shop/sa/catalog",
        ),
        ("bank/catalog/catalog-0/meshwright.dev", Code::PermissionDenied, "ns/bank"),
        ("shop/catalog/catalog-1/meshwright.dev", Code::PermissionDenied, "pod `catalog-1`, the request is for instance `catalog-0`"),
        ("shop/catalog/-/meshwright.dev", Code::Unauthenticated, "bound to no pod"),
        ("s p/a b/catalog-0/meshwright.dev", Code::PermissionDenied, "s p/a b"),
        (&"x".repeat(9000), Code::Unauthenticated, "at most"),
    ] {
        let status = ask(token).unwrap_err();
        assert_eq!(status.code(), code, "{token}: {status}");
        assert!(status.message().contains(why), "wanted `{why}` in `{}`", status.message());
        assert_eq!(desk.refused(), status.message());
    }
    assert!(desk.sign(&by_token(good.to_owned())).unwrap_err().message().contains("not a join token"));
}

/// A request with whatever extensions beside the one name.
fn with_extensions(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "catalog");
    params.subject_alt_names = vec![SanType::URI(CATALOG.try_into().unwrap())];
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// Alternative names given byte for byte: (tag, content).
fn with_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let content: Vec<u8> = names.iter().flat_map(|(tag, name)| [&[*tag, u8::try_from(name.len()).unwrap()], *name].concat()).collect();
    let value = [&[0x30, 0x81, u8::try_from(content.len()).unwrap()][..], &content].concat();
    with_extensions(|params| {
        params.subject_alt_names.clear();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], value)];
    })
}

#[test]
fn no_request_gets_more_than_its_token_grants() {
    // Aim: whatever a request says, a caller gets its own identity or nothing; each trick by the words it is refused with.
    let desk = Desk::new();
    let token = desk.token();
    let admin: &[u8] = b"spiffe://cluster.local/ns/shop/sa/admin";
    let own = CATALOG.as_bytes();
    for (name, csr_der, why) in [
        ("another identity", request(&["spiffe://cluster.local/ns/shop/sa/admin"], "catalog").csr_der.to_vec(), "this join token is for"),
        ("another workload", request(&[CATALOG], "admin").csr_der.to_vec(), "this join token is for"),
        ("two URIs", with_names(&[(0x86, own), (0x86, admin)]), "exactly one URI"),
        ("the same twice", with_names(&[(0x86, own), (0x86, own)]), "exactly one URI"),
        ("a DNS name beside", with_names(&[(0x86, own), (0x82, b"admin.shop")]), "exactly one URI"),
        ("a DNS name instead", with_names(&[(0x82, b"catalog.shop")]), "exactly one URI"),
        ("a wildcard", with_names(&[(0x86, b"spiffe://cluster.local/ns/*/sa/*")]), "may hold letters"),
        ("an address beside", with_names(&[(0x86, own), (0x87, &[10, 0, 0, 1])]), "exactly one URI"),
        ("mail beside", with_names(&[(0x86, own), (0x81, b"a@b.c")]), "exactly one URI"),
        ("not UTF-8 beside", with_names(&[(0x86, own), (0x86, b"spiffe://\xff")]), "exactly one URI"),
        ("not UTF-8", with_names(&[(0x86, b"spiffe://\xff")]), "exactly one URI"),
        ("a trailing dot", with_names(&[(0x86, b"spiffe://cluster.local./ns/shop/sa/catalog")]), "not of trust domain"),
        ("a trailing slash", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/catalog/")]), "the path is not"),
        ("upper case", with_names(&[(0x86, b"spiffe://CLUSTER.local/ns/shop/sa/catalog")]), "a-z"),
        ("upper-case scheme", with_names(&[(0x86, b"SPIFFE://cluster.local/ns/shop/sa/catalog")]), "does not start with"),
        ("upper-case account", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/Catalog")]), "this join token is for"),
        ("unicode", with_names(&[(0x86, "spiffe://cluster.local/ns/shop/sa/c\u{0430}talog".as_bytes())]), "may hold letters"),
        ("percent", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/%63atalog")]), "may hold letters"),
        ("dots", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/admin/..")]), "the path is not"),
        ("a dot", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/..")]), "may hold letters"),
        ("an empty element", with_names(&[(0x86, b"spiffe://cluster.local//ns/shop/sa/catalog")]), "the path is not"),
        ("a port", with_names(&[(0x86, b"spiffe://cluster.local:1/ns/shop/sa/catalog")]), "a-z"),
        ("a user", with_names(&[(0x86, b"spiffe://admin@cluster.local/ns/shop/sa/catalog")]), "a-z"),
        ("a query", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/catalog?sa=admin")]), "may hold letters"),
        ("a fragment", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/catalog#x")]), "may hold letters"),
        ("NUL", with_names(&[(0x86, b"spiffe://cluster.local/ns/shop/sa/catalog\0")]), "may hold letters"),
        ("another trust domain", with_names(&[(0x86, b"spiffe://elsewhere/ns/shop/sa/catalog")]), "not of trust domain"),
        ("nothing", Vec::new(), "PKCS#10"),
        ("huge", vec![0x30; 9 << 10], "at most"),
    ] {
        let refused =
            desk.sign(&SignRequest { csr_der: csr_der.into(), token: token.clone(), ..request(&[CATALOG], "catalog") }).unwrap_err();
        assert!(refused.message().contains(why), "{name}: wanted `{why}` in `{}`", refused.message());
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::PermissionDenied), "{name}: {refused}");
    }
    assert!(desk.ca.issuances(&Query::default(), 10).unwrap().is_empty());
    // The token has been through all of that unharmed.
    desk.sign(&by_token(token)).unwrap();
}

#[test]
fn what_a_request_says_of_its_certificate_is_not_heard() {
    // Aim: a request that wants to be an authority, for other uses, within name constraints or for ever gets a plain leaf all the same.
    let desk = Desk::new();
    let csr_der = with_extensions(|params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
        // nameConstraints, critical, permitting nothing.
        let mut constraints = CustomExtension::from_oid_content(&[2, 5, 29, 30], vec![0x30, 0x00]);
        constraints.set_criticality(true);
        params.custom_extensions = vec![constraints];
    });
    let life = Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 });
    let answer = desk.sign(&SignRequest { csr_der: csr_der.into(), life, ..by_token(desk.token()) }).unwrap();
    let (_, leaf) = X509Certificate::from_der(&answer.chain_der[0]).unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.code_signing && !extended.any);
    assert!(leaf.name_constraints().unwrap().is_none());
    assert!(leaf.validity().not_after.timestamp() <= START + i64::try_from(Policy::default().leaf_life.as_secs()).unwrap());
    let Held { identity, workload, .. } = Held::read(&CertificateDer::from(answer.chain_der[0].to_vec())).unwrap();
    assert_eq!((identity.to_string().as_str(), workload.as_str()), (CATALOG, "catalog"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 32, ..Default::default() })]
    // Aim: no request, well formed or broken, has a leaf for another identity or workload signed than the token's.
    #[test]
    fn whatever_is_asked_for_one_gets_oneself_or_nothing(
        uris in proptest::collection::vec("[ -~]{0,12}|spiffe://(cluster\\.local|elsewhere|)(/ns|/|//)(/shop|/bank|%2f|)/sa/(catalog|admin|\\.\\.|\\*)", 0..3),
        workload in "catalog|admin|[ -~]{0,8}",
        noise in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 0..3),
    ) {
        let desk = Desk::new();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, workload.as_str());
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        let mut csr_der = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        for (at, byte) in noise {
            let at = at.index(csr_der.len());
            csr_der[at] = byte;
        }
        if let Ok(answer) = desk.sign(&SignRequest { csr_der: csr_der.into(), ..by_token(desk.token()) }) {
            let Held { identity, workload, .. } = Held::read(&CertificateDer::from(answer.chain_der[0].to_vec())).unwrap();
            proptest::prop_assert_eq!((identity.to_string(), workload), (CATALOG.to_owned(), "catalog".to_owned()));
        }
    }
}

#[test]
fn who_guesses_waits_and_others_do_not() {
    // Aim: beyond the burst an address is refused before anything is read, told how long, and let in again in time; renewals and others
    // are not concerned, and a good token among bad ones is not used up.
    let desk = Desk::new();
    let from = |last: u8| *desk.gate.address.lock().unwrap() = Some(IpAddr::from([192, 0, 2, last]));
    from(1);
    let token = desk.token();
    for _ in 0..ADDRESS_BURST {
        assert_eq!(desk.sign(&by_token("mw1.nonsense".into())).unwrap_err().code(), Code::Unauthenticated);
    }
    let limited = desk.sign(&by_token(token.clone())).unwrap_err();
    assert_eq!(limited.code(), Code::ResourceExhausted);
    assert!(limited.message().contains("refused attempts from 192.0.2.1; try again in 1 s"), "{limited}");
    assert_eq!(desk.ca.refusals(&Query::default()).len(), usize::try_from(ADDRESS_BURST).unwrap(), "a flood washes nothing away");
    assert_eq!(desk.ca.counts().refused, u64::from(ADDRESS_BURST) + 1);
    from(2);
    let leaf = desk.sign(&by_token(desk.token())).unwrap();
    from(1);
    desk.hold(&leaf);
    desk.sign(&request(&[CATALOG], "catalog")).unwrap();
    desk.time.store(START + 2, Ordering::Relaxed);
    desk.sign(&by_token(token)).unwrap();
}

/// Unique id of the pod that a leaf names; empty: none.
fn pod_of(signed: &SignResponse) -> String {
    let (_, parsed) = X509Certificate::from_der(&signed.chain_der[0]).unwrap();
    let attribute = x509_parser::oid_registry::Oid::from(&proto::identity::POD_ATTRIBUTE).unwrap();
    parsed.subject().iter_by_oid(&attribute).next().map(|uid| uid.as_str().unwrap().to_owned()).unwrap_or_default()
}

#[test]
fn a_leaf_ends_with_its_pod() {
    // Aim: a pod of a StatefulSet is deleted, and one of the same name follows: the leaf of the first, which names it, renews nothing any
    // more, also one had by renewal, after a restart, and where no pod is left; the second one joins by its own token and renews.
    let mut desk = Desk::new();
    desk.ca.verify_service_accounts(Arc::new(Cluster));
    let join = |desk: &Desk, uid: &str| {
        let service_account_token = format!("shop/catalog/catalog-0@{uid}/meshwright.dev");
        desk.sign(&SignRequest { service_account_token, ..request(&[CATALOG], "catalog") })
    };
    let runs = |desk: &Desk, uid: &str| *desk.gate.pod_uid.lock().unwrap() = Some(uid.to_owned());
    runs(&desk, "u1");
    desk.hold(&join(&desk, "u1").unwrap());
    let renewed = desk.sign(&request(&[CATALOG], "catalog")).unwrap();
    assert_eq!((pod_of(&join(&desk, "u1").unwrap()), pod_of(&renewed)), ("u1".to_owned(), "u1".to_owned()));
    assert_eq!(pod_of(&desk.sign(&by_token(desk.token())).unwrap()), "", "nobody knows of a pod");
    desk.hold(&renewed);
    for (uid, restart) in [("u2", false), ("", false), ("u2", true)] {
        if restart {
            let Desk { ca, gate, time, folder } = desk;
            drop(ca);
            desk = Desk { ca: open(folder.path(), &time), gate, time, folder };
            desk.ca.verify_service_accounts(Arc::new(Cluster));
        }
        runs(&desk, uid);
        let refused = desk.sign(&request(&[CATALOG], "catalog")).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("an earlier pod of the name `catalog-0`"), "{refused}");
    }
    desk.hold(&join(&desk, "u2").unwrap());
    desk.sign(&request(&[CATALOG], "catalog")).unwrap();
    *desk.gate.pod_uid.lock().unwrap() = None;
    desk.sign(&request(&[CATALOG], "catalog")).unwrap();
}

#[test]
fn an_application_renews_nothing() {
    // Aim: its leaf says what it is, and is no way to a proxy's, nor to the next one of its own; its proxy's is.
    let desk = Desk::new();
    let proxy = desk.sign(&by_token(desk.token())).unwrap();
    desk.hold(&proxy);
    let application = || SignRequest { for_application: true, ..request(&[CATALOG], "catalog") };
    let leaf = desk.sign(&application()).unwrap();
    let (_, parsed) = X509Certificate::from_der(&leaf.chain_der[0]).unwrap();
    assert_eq!(parsed.subject().to_string(), "CN=catalog, OU=application");
    desk.hold(&leaf);
    for asked in [request(&[CATALOG], "catalog"), application()] {
        let refused = desk.sign(&asked).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("an application's"), "{refused}");
    }
    desk.hold(&proxy);
    desk.sign(&application()).unwrap();
}

#[test]
fn strangers_keep_no_new_pod_out() {
    // Aim: three hundred tokens that are none, from six addresses, for one workload: a pod of it at a seventh still joins.
    let desk = Desk::new();
    desk.ca.verify_service_accounts(Arc::new(Cluster));
    let from = |last: u8| *desk.gate.address.lock().unwrap() = Some(IpAddr::from([192, 0, 2, last]));
    let ask = |token: &str| desk.sign(&SignRequest { service_account_token: token.to_owned(), ..request(&[CATALOG], "catalog") });
    for n in 0..300_u32 {
        from(u8::try_from(n % 6).unwrap());
        assert_eq!(ask("nonsense").unwrap_err().code(), Code::Unauthenticated, "{n}");
    }
    from(7);
    ask("shop/catalog/catalog-0/meshwright.dev").unwrap();
    from(0);
    (0..ADDRESS_BURST).for_each(|_| drop(ask("nonsense")));
    assert_eq!(ask("nonsense").unwrap_err().code(), Code::ResourceExhausted, "an origin has its bound");
}

#[test]
fn one_who_renews_without_end_is_held_and_disturbs_nobody() {
    // Aim: of a thousand renewals by one leaf within a second most are refused; the issuance of another workload is still in the log and
    // in the book, and so is what was refused of others.
    let desk = Desk::new();
    let order = TokenOrder {
        workload: "shop/store".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/store".parse().unwrap(),
        instance: None,
        life: None,
    };
    let token = desk.ca.issue_token(&order).unwrap();
    let store = || request(&["spiffe://cluster.local/ns/shop/sa/store"], "store");
    desk.sign(&SignRequest { token, instance: "store".into(), ..store() }).unwrap();
    desk.hold(&desk.sign(&by_token(desk.token())).unwrap());
    let (mut had, mut told) = (0, String::new());
    for _ in 0..1000 {
        match desk.sign(&request(&[CATALOG], "catalog")) {
            Ok(_) => had += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                status.message().clone_into(&mut told);
            }
        }
    }
    assert_eq!((had, told.as_str()), (INSTANCE_BURST, "too many certificates for shop/catalog-0 (workload catalog); try again in 6 s"));
    assert!(desk.ca.refusals(&Query::default()).is_empty());
    assert_eq!(desk.ca.certs().iter().map(|row| row.workload.as_str()).collect::<Vec<_>>(), ["catalog", "store"]);
    let log = desk.ca.issuances(&Query { name: "store".into(), ..Query::default() }, 10).unwrap();
    assert_eq!(log.len(), 1);
    desk.time.store(START + 6, Ordering::Relaxed);
    desk.sign(&request(&[CATALOG], "catalog")).unwrap();
}

#[test]
fn what_the_gate_turns_away_washes_nothing_away() {
    // Aim: ten thousand requests for what nobody declares, with a junk token and without any, end in a wait, and an earlier refusal is
    // still remembered; whoever has a leaf renews it from the same address.
    let desk = Desk::new();
    *desk.gate.address.lock().unwrap() = Some("192.0.2.1".parse().unwrap());
    desk.hold(&desk.sign(&by_token(desk.token())).unwrap());
    assert!(desk.sign(&by_token("mw1.nonsense".into())).is_err());
    for n in 0..10_000 {
        let token = if n % 2 == 0 { "mw1.nonsense".to_owned() } else { String::new() };
        let limited = desk.sign(&SignRequest { token, ..request(&[CATALOG], "undeclared") }).unwrap_err();
        let wanted = if n < GATE_BURST { Code::FailedPrecondition } else { Code::ResourceExhausted };
        assert_eq!(limited.code(), wanted, "{n}: {limited}");
    }
    let refusals = desk.ca.refusals(&Query::default());
    assert_eq!((refusals.len(), refusals.last().unwrap().workload.as_str()), (1 + usize::try_from(GATE_BURST).unwrap(), "catalog"));
    desk.sign(&request(&[CATALOG], "catalog")).unwrap();
}

#[test]
fn a_leaf_of_nobody_is_counted_as_a_guess() {
    // Aim: a leaf that is in no book is refused in words, is in the log of refusals, and cannot be shown without bound.
    let desk = Desk::new();
    *desk.gate.address.lock().unwrap() = Some("192.0.2.1".parse().unwrap());
    let theft = Desk::new();
    desk.hold(&theft.sign(&by_token(theft.token())).unwrap());
    for _ in 0..ADDRESS_BURST {
        let refused = desk.sign(&request(&[CATALOG], "catalog")).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("none that this authority has issued"), "{refused}");
    }
    assert_eq!(desk.sign(&request(&[CATALOG], "catalog")).unwrap_err().code(), Code::ResourceExhausted);
    assert!(desk.refused().contains("none that this authority"));
}

/// Verifies as any stock library would, by the published keys.
fn verify(jwks: &str, token: &str, audience: &str) -> Value {
    let set: JwkSet = serde_json::from_str(jwks).unwrap();
    let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(set.find(&kid).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[audience]);
    validation.validate_exp = false;
    jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims
}

#[test]
fn tokens_are_for_who_holds_a_leaf() {
    // Aim: a JWT-SVID for just the leaf's identity, short, verified by the published keys; without a leaf, with an ended one or for nobody
    // there is none; each is counted.
    let desk = Desk::new();
    assert_eq!(desk.mint(&["a"]).unwrap_err().code(), Code::Unauthenticated);
    desk.hold(&desk.sign(&by_token(desk.token())).unwrap());
    let minted = desk.mint(&["a", "b"]).unwrap();
    let jwks = desk.ca.token_keys().unwrap();
    let claims = verify(&jwks, &minted.token, "b");
    assert_eq!((claims["sub"].as_str(), claims["aud"].as_array().unwrap().len()), (Some(CATALOG), 2));
    let life = i64::try_from(TOKEN_LIFE.as_secs()).unwrap();
    assert_eq!((claims["iat"].as_i64(), claims["exp"].as_i64()), (Some(START), Some(START + life)));
    let set: Value = serde_json::from_str(&jwks).unwrap();
    for (field, wanted) in [("kty", "EC"), ("use", "jwt-svid"), ("crv", "P-256"), ("alg", "ES256")] {
        assert_eq!(set["keys"][0][field], wanted);
    }
    assert!(!jwks.contains("\"d\""), "only public halves are published");
    assert_eq!(desk.mint(&[]).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(desk.mint(&["x".repeat(600).as_str()]).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(desk.ca.counts().tokens_minted, 1);
    let end = i64::try_from(Policy::default().leaf_life.as_secs()).unwrap();
    desk.time.store(START + end - 60, Ordering::Relaxed);
    assert_eq!(desk.mint(&["a"]).unwrap().expires.unwrap().seconds, START + end, "no token outlives the leaf it was had by");
    desk.time.store(START + end, Ordering::Relaxed);
    assert!(desk.mint(&["a"]).unwrap_err().message().contains("expired"));
}

#[test]
fn token_keys_outlive_the_process() {
    // Aim: a token from before a restart is verified after it, and rotation goes on where it was.
    let desk = Desk::new();
    desk.hold(&desk.sign(&by_token(desk.token())).unwrap());
    let minted = desk.mint(&["a"]).unwrap();
    let before = desk.ca.token_keys().unwrap();
    let Desk { ca, gate, time, folder } = desk;
    drop(ca);
    let desk = Desk { ca: open(folder.path(), &time), gate, time, folder };
    assert_eq!(desk.ca.token_keys().unwrap(), before);
    desk.time.store(START + 23 * 3600, Ordering::Relaxed);
    let ahead = desk.ca.token_keys().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ahead).unwrap()["keys"].as_array().unwrap().len(), 2);
    verify(&ahead, &minted.token, "a");
}
