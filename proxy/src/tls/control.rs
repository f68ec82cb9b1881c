//! TLS to the control plane: the server proves itself by the roots given at the start (or the bundle learnt since), the proxy by its
//! leaf if it has one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use proto::annotations::ROOT_NAMESPACE;
use proto::identity::{CONTROL_ACCOUNT, Identity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::credential::{Credential, CredentialCell, CredentialResolver};
use super::peer::{PeerError, hex, sha256, uri_name};
use super::trust::{TrustCell, TrustError, anchors};
use super::verify::{PeerRole, chain};

/// Certificates of the control plane's chain that are remembered: its own, and two for each former root that it shows.
const CHAIN_MAX: usize = 16;

/// Client configurations for the control plane's port.
#[derive(Clone)]
pub struct ControlTls {
    roots: Arc<Vec<CertificateDer<'static>>>,
    verifier: Arc<ControlVerifier>,
    with_leaf: Arc<ClientConfig>,
    without_leaf: Arc<ClientConfig>,
}

impl std::fmt::Debug for ControlTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlTls").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

impl ControlTls {
    /// `roots` are those of `--control-ca`.
    ///
    /// # Errors
    /// No root can be read, or the crypto library refuses TLS 1.3.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        credentials: &Arc<CredentialCell>,
        trust: &Arc<TrustCell>,
        time: &Arc<dyn TimeProvider>,
    ) -> Result<Self, ControlTlsError> {
        let provider = Arc::new(super::provider());
        let verifier = Arc::new(ControlVerifier {
            anchors: anchors(&roots)?,
            trust: Arc::clone(trust),
            credentials: Arc::clone(credentials),
            algorithms: provider.signature_verification_algorithms,
            trust_domain: ArcSwapOption::empty(),
            proved: ArcSwapOption::empty(),
        });
        let resolver = Arc::new(CredentialResolver(Arc::clone(credentials)));
        Ok(Self {
            roots: Arc::new(roots),
            with_leaf: Arc::new(config(&provider, time, &verifier, Some(resolver))?),
            without_leaf: Arc::new(config(&provider, time, &verifier, None)?),
            verifier,
        })
    }

    /// The configuration to dial with: with the proxy's leaf as client certificate, or (for a call by token) without.
    pub fn config(&self, with_leaf: bool) -> Arc<ClientConfig> {
        Arc::clone(if with_leaf { &self.with_leaf } else { &self.without_leaf })
    }

    /// The roots given at the start.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The trust domain that the control plane proved to be of; `None` before the first connection.
    pub fn trust_domain(&self) -> Option<String> {
        self.verifier.trust_domain.load().as_deref().cloned()
    }

    /// Whether the control plane, as it proved itself last, is also proved by one of these roots: by that of a bundle it sends.
    pub fn ends_in(&self, roots: &[CertificateDer<'static>], now: UnixTime) -> bool {
        self.verifier.proved.load().as_deref().is_some_and(|chain| super::verify_chain(chain, roots, now).is_ok())
    }

    /// Whether a join token that pins the root of this SHA-256 (hex) is for this control plane: the root is one of those given, or a
    /// former one that the control plane, as it proved itself last, shows and is proved by.
    pub fn pinned(&self, sha256_hex: &str, now: UnixTime) -> bool {
        let is = |root: &&CertificateDer<'static>| hex(&sha256(root)).eq_ignore_ascii_case(sha256_hex);
        let proved = self.verifier.proved.load();
        self.roots.iter().any(|root| is(&root))
            || proved.iter().flat_map(|chain| chain.iter()).find(is).is_some_and(|root| self.ends_in(std::slice::from_ref(root), now))
    }
}

/// Why [`ControlTls`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlTlsError {
    /// `--control-ca` is unusable.
    #[error(transparent)]
    Roots(#[from] TrustError),
    /// The crypto library is.
    #[error("TLS cannot be configured: {0}")]
    Tls(#[from] Error),
}

fn config(
    provider: &Arc<CryptoProvider>,
    time: &Arc<dyn TimeProvider>,
    verifier: &Arc<ControlVerifier>,
    resolver: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_details(Arc::clone(provider), Arc::clone(time))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as Arc<dyn ServerCertVerifier>);
    let mut config = match resolver {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // One connection in a long while: a resumed one would only keep an old leaf alive.
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
struct ControlVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    trust: Arc<TrustCell>,
    credentials: Arc<CredentialCell>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: ArcSwapOption<String>,
    /// The chain that the control plane proved itself with last.
    proved: ArcSwapOption<Vec<CertificateDer<'static>>>,
}

impl ControlVerifier {
    /// The SPIFFE identity of the control plane; a certificate without any URI name (a load balancer's) is judged by host name.
    fn name(&self, leaf: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| PeerError::Malformed(error.to_string()))?;
        let Some(uri) = uri_name(&certificate)? else {
            let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
            return leaf.verify_is_valid_for_subject_name(name).map_err(|_| CertificateError::NotValidForName.into());
        };
        let found = Arc::new(uri.parse::<Identity>().map_err(PeerError::from)?);
        // One that has ended says nothing: the mesh may be of another trust domain by now, which the next token says.
        let ended = |own: &Credential| own.not_after < SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let own = self.credentials.current().filter(|own| !ended(own));
        let domain = own.map(|own| own.identity.trust_domain().to_owned());
        let domain = domain.unwrap_or_else(|| found.trust_domain().to_owned());
        let expected = Identity::new(&domain, ROOT_NAMESPACE, CONTROL_ACCOUNT).map_err(PeerError::from)?;
        if *found == expected {
            self.trust_domain.store(Some(Arc::new(domain)));
            return Ok(());
        }
        Err(PeerError::WrongIdentity { expected: Arc::new(expected), found }.into())
    }
}

impl ServerCertVerifier for ControlVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let given = chain(leaf, intermediates, &self.anchors, now, PeerRole::Server, self.algorithms);
        if let Err(error) = given {
            // After a rotation of the root the file given at the start may be old; the bundle is not.
            let learnt = self.trust.current();
            if learnt.anchors.is_empty() || chain(leaf, intermediates, &learnt.anchors, now, PeerRole::Server, self.algorithms).is_err() {
                return Err(error);
            }
        }
        self.name(leaf, name, now)?;
        let chain = std::iter::once(leaf).chain(intermediates).take(CHAIN_MAX).map(|certificate| certificate.clone().into_owned());
        self.proved.store(Some(Arc::new(chain.collect())));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
