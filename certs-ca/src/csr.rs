//! Certificate requests: parsed and checked at the door, so that inside a [`Csr`] cannot ask for more than one identity.

use proto::identity::{Identity, NotAnIdentity};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519};
use x509_parser::prelude::{FromDer, X509Name};
use x509_parser::x509::SubjectPublicKeyInfo;

/// No request of ours comes near this size; a bigger one is not read.
pub const CSR_BYTES_MAX: usize = 8 << 10;
/// Longest workload or instance name, as Kubernetes allows.
pub const NAME_CHARS_MAX: usize = 253;

/// A request whose signature proves possession of the key, and which asks for exactly one identity of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    /// Its only subject alternative name.
    pub identity: Identity,
    /// Its common name.
    pub workload: String,
    /// The key to certify, as DER `SubjectPublicKeyInfo`: P-256 or Ed25519.
    pub public_key_der: Vec<u8>,
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than [`CSR_BYTES_MAX`].
    #[error("the certificate request has {0} bytes; at most {CSR_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Not PKCS#10.
    #[error("the certificate request is not PKCS#10 DER: {0}")]
    Malformed(String),
    /// Its signature does not fit its key.
    #[error("the certificate request is not signed by the key it names")]
    BadSignature,
    /// Neither P-256 nor Ed25519.
    #[error("the certificate request names a key that is neither ECDSA P-256 nor Ed25519")]
    KeyType,
    /// No, or more than one, subject alternative name.
    #[error("the certificate request must name exactly one URI and no other alternative name; it names {0}")]
    Names(String),
    /// The one name is no identity.
    #[error(transparent)]
    Identity(#[from] NotAnIdentity),
    /// The common name is not a workload's name.
    #[error("the common name of the certificate request must be the workload's name: {0}")]
    CommonName(String),
}

impl Csr {
    /// Reads and checks a request. Extensions other than the alternative name are not looked at: the authority sets its own.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLarge(der.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|error| CsrError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed(format!("{} bytes after its end", rest.len())));
        }
        let info = &request.certification_request_info;
        if !accepted(&info.subject_pki) {
            return Err(CsrError::KeyType);
        }
        request.verify_signature().map_err(|_| CsrError::BadSignature)?;
        Ok(Self {
            identity: only_uri(&request)?.parse()?,
            workload: common_name(&info.subject)?,
            public_key_der: info.subject_pki.raw.to_vec(),
        })
    }
}

fn accepted(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &key.algorithm.algorithm;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    *algorithm == OID_SIG_ED25519 || (*algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve.is_some_and(|curve| curve == OID_EC_P256))
}

fn only_uri(request: &X509CertificationRequest<'_>) -> Result<String, CsrError> {
    let mut found = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            found.extend(names.general_names.iter());
        }
    }
    match found.as_slice() {
        [GeneralName::URI(uri)] => Ok((*uri).to_owned()),
        [] => Err(CsrError::Names("none".to_owned())),
        [one] => Err(CsrError::Names(clipped(&one.to_string()))),
        many => Err(CsrError::Names(format!(
            "{}: {}",
            many.len(),
            clipped(&many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        ))),
    }
}

fn common_name(subject: &X509Name<'_>) -> Result<String, CsrError> {
    let names: Vec<_> = subject.iter_common_name().collect();
    let [name] = names.as_slice() else {
        return Err(CsrError::CommonName(format!("it has {} common names", names.len())));
    };
    let name = name.as_str().map_err(|_| CsrError::CommonName("it is not text".to_owned()))?;
    if !is_name(name) {
        return Err(CsrError::CommonName(format!("`{}` is no such name", clipped(name))));
    }
    Ok(name.to_owned())
}

/// Whether a text is a Kubernetes object's name: 1 to 253 of `a-z 0-9 - .`, upper case let through for instances elsewhere.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_CHARS_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

fn clipped(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};

    use super::*;

    /// A request as a proxy makes it.
    pub(crate) fn request(uris: &[&str], workload: &str) -> Vec<u8> {
        request_with(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), uris, workload)
    }

    fn request_with(key: &KeyPair, uris: &[&str], workload: &str) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !workload.is_empty() {
            params.distinguished_name.push(DnType::CommonName, workload);
        }
        params.subject_alt_names = uris
            .iter()
            .map(|uri| match uri.strip_prefix("dns:") {
                Some(name) => SanType::DnsName(name.try_into().unwrap()),
                None => SanType::URI((*uri).try_into().unwrap()),
            })
            .collect();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

    #[test]
    fn an_honest_request_is_read() {
        // Aim: identity, workload and key come out of a request of either accepted key type.
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let csr = Csr::parse(&request_with(&key, &[CATALOG], "catalog-v2")).unwrap();
            assert_eq!(csr.identity.to_string(), CATALOG);
            assert_eq!(csr.workload, "catalog-v2");
        }
    }

    #[test]
    fn attacks_are_refused_each_with_its_reason() {
        // Aim: every way to ask for more than one identity, or without the key, is refused by name.
        let mut forged = request(&[CATALOG], "catalog");
        let last = forged.len() - 1;
        forged[last] ^= 1;
        let mut trailing = request(&[CATALOG], "catalog");
        trailing.push(0);
        let other_curve = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (request(&[CATALOG, "spiffe://cluster.local/ns/shop/sa/admin"], "catalog"), "exactly one URI"),
            (request(&[CATALOG, "dns:catalog.shop"], "catalog"), "exactly one URI"),
            (request(&["dns:catalog.shop"], "catalog"), "exactly one URI"),
            (request(&[], "catalog"), "none"),
            (request(&["https://cluster.local/ns/shop/sa/catalog"], "catalog"), "not an identity"),
            (request(&[CATALOG], ""), "0 common names"),
            (request(&[CATALOG], "a/b"), "no such name"),
            (request(&[CATALOG], &"x".repeat(254)), "no such name"),
            (forged, "not signed"),
            (trailing, "after its end"),
            (vec![0x30; CSR_BYTES_MAX + 1], "at most"),
            (b"-----BEGIN".to_vec(), "PKCS#10"),
            (Vec::new(), "PKCS#10"),
            (request_with(&other_curve, &[CATALOG], "catalog"), "neither"),
        ];
        for (der, why) in cases {
            let error = Csr::parse(&der).unwrap_err().to_string();
            assert!(error.contains(why), "wanted `{why}` in `{error}`");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_bring_it_down(noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), at in 0usize..400) {
            // Aim: whatever arrives, parsing answers; also a real request with noise in it.
            let _ = Csr::parse(&noise);
            let mut real = request(&[CATALOG], "catalog");
            let at = at.min(real.len());
            real.splice(at.., noise);
            let _ = Csr::parse(&real);
        }
    }
}
