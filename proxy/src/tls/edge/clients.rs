//! Certificates of clients from outside (Gateway API, GEP-91).

use std::fmt::Write as _;
use std::sync::Arc;

use engine::consumers::ClientCertificate;
use http::HeaderValue;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::tls::peer::{hex, sha256};

/// Bytes of `x-forwarded-client-cert` that a certificate's subject and names may take; beyond it only its hash is told.
const TOLD_BYTES_MAX: usize = 4096;

/// A certificate that a client has shown, and whose key it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// SHA-256 of it, hex.
    pub hash_hex: Arc<str>,
    /// Somebody vouches for it who is believed here. Where that is not so, nothing of it is told on.
    pub believed: bool,
    /// What is told on of it: `Hash=…;Subject="…";URI=…;DNS=…` (Envoy, `x-forwarded-client-cert`).
    told: HeaderValue,
    names: Arc<ClientCertificate>,
}

impl Shown {
    pub(super) fn read(leaf: &CertificateDer<'_>, believed: bool) -> Self {
        let hash = sha256(leaf);
        let hash_hex = hex(&hash);
        let short = format!("Hash={hash_hex}");
        let read = X509Certificate::from_der(leaf).map(|(_, certificate)| certificate).ok();
        let names = Arc::new(names(hash, read.as_ref()));
        let long = read.map(|certificate| long(&short, &certificate));
        let told = long.filter(|long| long.len() <= TOLD_BYTES_MAX).and_then(|long| HeaderValue::try_from(long).ok());
        let told = told.or_else(|| HeaderValue::try_from(short).ok()).unwrap_or_else(|| HeaderValue::from_static(""));
        Self { hash_hex: hash_hex.into(), believed, told, names }
    }

    /// Whom it is about; `None`: it is not believed.
    pub fn certificate(&self) -> Option<&Arc<ClientCertificate>> {
        Some(&self.names).filter(|_| self.believed)
    }

    /// What the mesh may be told of it; `None`: it is not believed.
    pub fn told(&self) -> Option<&HeaderValue> {
        Some(&self.told).filter(|_| self.believed)
    }
}

/// What consumers are found by. Of what cannot be read only the hash is known.
fn names(hash: [u8; 32], certificate: Option<&X509Certificate<'_>>) -> ClientCertificate {
    let (mut uris, mut dns): (Vec<Box<str>>, Vec<Box<str>>) = (Vec::new(), Vec::new());
    let listed = certificate.and_then(|certificate| certificate.subject_alternative_name().ok().flatten());
    for name in listed.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).into()),
            GeneralName::DNSName(name) => dns.push((*name).into()),
            _ => {}
        }
    }
    let subject = certificate.map(|certificate| certificate.subject().to_string()).unwrap_or_default();
    ClientCertificate::new(hash, &subject, uris, dns)
}

fn long(short: &str, certificate: &X509Certificate<'_>) -> String {
    let mut text = short.to_owned();
    let _ = write!(text, ";Subject=\"{}\"", certificate.subject().to_string().replace('\\', "\\\\").replace('"', "\\\""));
    let names = certificate.subject_alternative_name().ok().flatten().map(|names| names.value.general_names.as_slice());
    for name in names.unwrap_or_default() {
        match name {
            GeneralName::URI(uri) => element(&mut text, "URI", uri),
            GeneralName::DNSName(name) => element(&mut text, "DNS", name),
            _ => {}
        }
    }
    text
}

/// A value that could be taken for more than one is quoted: the certificate's words must not add elements.
fn element(text: &mut String, key: &str, value: &str) {
    let _ = if value.contains([',', ';', '=', '"', '\\', ' ']) {
        write!(text, ";{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        write!(text, ";{key}={value}")
    };
}

/// Believes whom one of these authorities vouches for.
///
/// # Errors
/// None of them can be read.
pub(super) fn verifier(
    authorities: &[CertificateDer<'static>],
    required: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| format!("its authorities of clients: {error}"))
}

/// Takes any certificate whose key its bearer has, and none. What it is worth is judged afterwards.
#[derive(Debug)]
pub(super) struct Anyhow(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Anyhow {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    /// Aim: hash, subject and names are told; a name that reads like more elements stays one value; what is not believed is not told.
    #[test]
    fn what_a_certificate_proves_is_told_on() {
        let authority = Authority::new("root");
        let (chain, _) = authority.shaped("spiffe://partner/acme", |params| {
            params.subject_alt_names.push(rcgen::SanType::DnsName("acme.example".try_into().unwrap()));
            params.subject_alt_names.push(rcgen::SanType::URI("urn:a;DNS=admin.example,Hash=0".try_into().unwrap()));
        });
        let shown = Shown::read(&chain[0], true);
        let told = shown.told().unwrap().to_str().unwrap();
        assert_eq!(
            told,
            format!(
                "Hash={};Subject=\"CN=x\";URI=spiffe://partner/acme;DNS=acme.example;URI=\"urn:a;DNS=admin.example,Hash=0\"",
                shown.hash_hex
            )
        );
        assert_eq!(Shown::read(&chain[0], false).told(), None);
        let many = authority.shaped("spiffe://partner/acme", |params| {
            params.subject_alt_names.extend((0..400).map(|n| rcgen::SanType::DnsName(format!("n{n}.example").try_into().unwrap())));
        });
        assert!(Shown::read(&many.0[0], true).told().unwrap().len() < 80);
    }
}
