//! Which certificate a client is shown.

use std::sync::Arc;

use engine::model::OwnCertificate;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, SignatureAlgorithm};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::tls::credential::certified;

/// One of them for each client.
#[derive(Debug)]
pub(super) struct Certificates(Vec<Candidate>);

#[derive(Debug)]
struct Candidate {
    key: Arc<CertifiedKey>,
    /// DNS names that it is for, lower case, `*.SUFFIX` among them.
    names: Vec<String>,
    /// Its signatures are short and cheap.
    modern: bool,
}

impl Certificates {
    pub(super) fn of<'c>(own: impl Iterator<Item = &'c OwnCertificate>) -> Result<Self, Error> {
        own.map(Candidate::of).collect::<Result<_, _>>().map(Self)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One that the client can verify before one that it cannot, one that is for the name before others, a modern one before RSA; then as
    /// they are listed.
    fn choose(&self, name: Option<&str>, verifies: impl Fn(&Candidate) -> bool) -> Option<&Candidate> {
        if let [only] = self.0.as_slice() {
            return Some(only);
        }
        let name = name.map(str::to_ascii_lowercase);
        self.0.iter().min_by_key(|candidate| {
            let named = name.as_ref().is_some_and(|name| candidate.is_for(name));
            (!verifies(candidate), !named, !candidate.modern)
        })
    }
}

impl Candidate {
    fn of(own: &OwnCertificate) -> Result<Self, Error> {
        let mut key = certified(own.chain.clone(), &own.key)?;
        key.ocsp = (!own.ocsp.is_empty()).then(|| own.ocsp.clone());
        let names = own.chain.first().map(|leaf| names(leaf)).unwrap_or_default();
        let modern = key.key.algorithm() != SignatureAlgorithm::RSA;
        Ok(Self { key: Arc::new(key), names, modern })
    }

    /// A wildcard stands for one label (RFC 6125, section 6.4.3).
    fn is_for(&self, name: &str) -> bool {
        let below = name.split_once('.').map(|(_, rest)| rest);
        self.names.iter().any(|own| own == name || own.strip_prefix("*.").is_some_and(|suffix| Some(suffix) == below))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let verifies = |candidate: &Candidate| candidate.key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.choose(hello.server_name(), verifies).map(|candidate| Arc::clone(&candidate.key))
    }
}

/// What cannot be read has no names, and is shown where nothing else is.
fn names(leaf: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None };
    names.value.general_names.iter().filter_map(dns).collect()
}
