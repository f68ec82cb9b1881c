//! Certificates and bundles as the API serves them; pure. Each is checked first: one bad SVID spoils the whole answer for client libraries
//! (SPIFFE Workload API, section 6; `facts.md`).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use proto::generated::{X509BundlesResponse, X509svid, X509svidResponse};
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::identity::Exposed;
use crate::tls::verify_chain;

/// The hint of the one SVID there is; libraries want hints to differ, and drop the second of two that do not.
const HINT: &str = "internal";

/// Why there is nothing to serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotServed {
    #[error("this workload has no identity yet; try again")]
    NoSvid,
    #[error("there is no trust bundle yet; try again")]
    NoBundle,
    #[error("the identity has expired and could not be renewed yet")]
    Expired,
    #[error("the identity does not verify against the trust bundle: {0}")]
    Chain(String),
}

/// The answer to FetchX509SVID: identity, chain, PKCS#8 key, bundle and hint are always there.
pub(super) fn x509_svids(
    exposed: Option<&Exposed>,
    roots: &[CertificateDer<'static>],
    federated: &BTreeMap<String, Vec<CertificateDer<'static>>>,
    now: SystemTime,
) -> Result<X509svidResponse, NotServed> {
    let exposed = exposed.ok_or(NotServed::NoSvid)?;
    let credential = &exposed.credential;
    if roots.is_empty() {
        return Err(NotServed::NoBundle);
    }
    if credential.not_after <= now {
        return Err(NotServed::Expired);
    }
    // Authorities date a leaf back; where our clock lags all the same, it is judged as of its begin.
    let at = now.max(credential.not_before).duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    verify_chain(credential.chain(), roots, UnixTime::since_unix_epoch(at)).map_err(|error| NotServed::Chain(error.to_string()))?;
    let svid = X509svid {
        spiffe_id: credential.identity.to_string(),
        x509_svid: joined(credential.chain()),
        x509_svid_key: Bytes::copy_from_slice(&exposed.key_pkcs8),
        bundle: joined(roots),
        hint: HINT.to_owned(),
    };
    Ok(X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: bundles(federated) })
}

/// The answer to FetchX509Bundles.
pub(super) fn x509_bundles(
    trust_domain: &str,
    roots: &[CertificateDer<'static>],
    federated: &BTreeMap<String, Vec<CertificateDer<'static>>>,
) -> Result<X509BundlesResponse, NotServed> {
    if roots.is_empty() {
        return Err(NotServed::NoBundle);
    }
    let mut bundles = bundles(federated);
    bundles.insert(domain_id(trust_domain), joined(roots));
    Ok(X509BundlesResponse { crl: Vec::new(), bundles })
}

/// Other trust domains' roots, by their SPIFFE id. One without roots is left out: an empty bundle fails in some libraries.
fn bundles(federated: &BTreeMap<String, Vec<CertificateDer<'static>>>) -> BTreeMap<String, Bytes> {
    let filled = federated.iter().filter(|(_, roots)| !roots.is_empty());
    filled.map(|(trust_domain, roots)| (domain_id(trust_domain), joined(roots))).collect()
}

/// `spiffe://TRUST-DOMAIN`.
pub(super) fn domain_id(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}")
}

/// DER certificates one after the other.
fn joined(certificates: &[CertificateDer<'_>]) -> Bytes {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use super::*;
    use crate::identity::certificate_request;
    use crate::tls::Credential;
    use crate::tls::testing::Authority;

    const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

    fn exposed(authority: &Authority, life: Duration) -> Exposed {
        let (key, csr) = certificate_request(&CATALOG.parse().unwrap(), "catalog").unwrap();
        let now = SystemTime::now();
        let leaf = authority.sign(&csr, now - Duration::from_secs(60), now + life);
        let key_pkcs8 = Zeroizing::new(key.serialize_der());
        let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Exposed { credential: Arc::new(Credential::new(vec![leaf], der).unwrap()), key_pkcs8 }
    }

    /// Aim: facts.md, SPIFFE: what is served always has id, chain, bundle, a PKCS#8 key and a hint, and no bundle is empty.
    #[test]
    fn an_answer_is_complete() {
        let (authority, other) = (Authority::new("root"), Authority::new("other"));
        let leaf = exposed(&authority, Duration::from_secs(60));
        let federated = BTreeMap::from([("other.example".to_owned(), other.roots()), ("empty.example".to_owned(), Vec::new())]);
        let answer = x509_svids(Some(&leaf), &authority.roots(), &federated, SystemTime::now()).unwrap();
        let [svid] = answer.svids.as_slice() else { panic!("one SVID") };
        assert_eq!(svid.spiffe_id, CATALOG);
        assert_eq!(svid.x509_svid, leaf.credential.chain()[0].as_ref());
        assert_eq!(svid.bundle, authority.roots()[0].as_ref());
        assert!(!svid.hint.is_empty());
        assert!(rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&(&svid.x509_svid_key[..]).into(), &rcgen::PKCS_ECDSA_P256_SHA256).is_ok());
        assert_eq!(answer.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://other.example"]);
        let bundles = x509_bundles("cluster.local", &authority.roots(), &federated).unwrap().bundles;
        assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://cluster.local", "spiffe://other.example"]);
    }

    /// Aim: what a library would choke on is not served: no leaf, no bundle, an ended leaf, one of another authority.
    #[test]
    fn a_bad_svid_is_not_served() {
        let (authority, other) = (Authority::new("root"), Authority::new("other"));
        let leaf = exposed(&authority, Duration::from_secs(60));
        let now = SystemTime::now();
        let none = BTreeMap::new();
        let answer = |leaf, roots: &[_], now| x509_svids(leaf, roots, &none, now).unwrap_err();
        assert_eq!(answer(None, &authority.roots(), now), NotServed::NoSvid);
        assert_eq!(answer(Some(&leaf), &[], now), NotServed::NoBundle);
        assert_eq!(answer(Some(&leaf), &authority.roots(), now + Duration::from_secs(61)), NotServed::Expired);
        assert!(matches!(answer(Some(&leaf), &other.roots(), now), NotServed::Chain(_)));
        assert!(x509_bundles("cluster.local", &[], &none).is_err());
    }
}
