//! Servers that prove a name other than the one that they are asked for, and what they are shown (Gateway API: BackendTLSPolicy,
//! `tls.backend.clientCertificateRef`).

use std::sync::Arc;

use engine::model::{Made, Named, OwnCertificate, PeerName, Secret, SecretCell};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::credential::certified;

/// Believes a server that proves one of these names.
#[derive(Debug)]
pub(super) struct AnyOf {
    roots: Arc<RootCertStore>,
    names: Vec<PeerName>,
    provider: Arc<CryptoProvider>,
}

impl AnyOf {
    /// `None`: the server is to prove its own name.
    pub(super) fn of(named: &Named, roots: &Arc<RootCertStore>, provider: &Arc<CryptoProvider>) -> Option<Arc<Self>> {
        let names = named.proves().to_vec();
        (!names.is_empty()).then(|| Arc::new(Self { roots: Arc::clone(roots), names, provider: Arc::clone(provider) }))
    }
}

impl ServerCertVerifier for AnyOf {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let proves = |name: &PeerName| match name {
            PeerName::Dns(name) if !name.starts_with("*.") => {
                ServerName::try_from(&**name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
            }
            other => is_among(leaf, other),
        };
        if self.names.iter().any(proves) { Ok(ServerCertVerified::assertion()) } else { Err(CertificateError::NotValidForName.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate is for a URI, or for a name below a suffix.
fn is_among(leaf: &CertificateDer<'_>, wanted: &PeerName) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| match (name, wanted) {
        (GeneralName::URI(uri), PeerName::Uri(wanted)) => **uri == **wanted,
        (GeneralName::DNSName(name), PeerName::Dns(wanted)) => {
            name.len() > wanted.len() - 1 && name.to_ascii_lowercase().ends_with(&wanted[1..]) || name.eq_ignore_ascii_case(wanted)
        }
        _ => false,
    })
}

/// Shows a server what a cell holds at the time.
#[derive(Debug)]
pub(super) struct ShownOwn {
    cell: Arc<SecretCell>,
    made: Made,
}

impl ShownOwn {
    pub(super) fn of(cell: &Arc<SecretCell>) -> Arc<Self> {
        Arc::new(Self { cell: Arc::clone(cell), made: Made::default() })
    }

    fn key(&self) -> Option<Arc<CertifiedKey>> {
        let held = self.cell.load();
        if let Some((stamp, made)) = self.made.last::<CertifiedKey>()
            && stamp == held.stamp
        {
            return Some(made);
        }
        let Some(Secret::Certificate(OwnCertificate { chain, key, .. })) = &held.secret else { return None };
        match certified(chain.clone(), key) {
            Ok(made) => {
                let made = Arc::new(made);
                self.made.keep(held.stamp, Arc::clone(&made));
                Some(made)
            }
            Err(error) => {
                tracing::warn!(secret = self.cell.name(), %error, "a certificate for servers cannot be used: none is shown");
                None
            }
        }
    }
}

impl ResolvesClientCert for ShownOwn {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
