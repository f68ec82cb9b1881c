//! TLS of port 15012: our own leaf, renewed in place; client certificates asked for, verified when shown, not demanded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::SharedAuthority;
use crate::clock::Clock;

/// A leaf that ended less than this ago may still ask for the next one, as the authority says.
pub const EXPIRED_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Wait this long before asking again for a leaf that could not be had.
const RETRY: Duration = Duration::from_secs(10);

/// Holds the leaf in use.
#[derive(Debug, Default)]
pub struct LeafCell(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for LeafCell {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Lets in a leaf that ended a short while ago, so that it can be renewed; nothing else is answered to it (`peer::Proven`).
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict = self.0.verify_client_cert(leaf, intermediates, now);
        let Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) = &verdict else {
            return verdict;
        };
        match last_second(leaf) {
            // Everything else must hold as it did in its last second.
            Some(end) if now.as_secs() < end + EXPIRED_GRACE.as_secs() => {
                self.0.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(end)))
            }
            _ => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn last_second(leaf: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

/// Names on the control plane's certificate.
#[derive(Clone, Debug, Default)]
pub struct CertificateNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a TLS door needs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Whom it lets in, and as whom it answers.
    pub config: Arc<ServerConfig>,
    /// Whether a leaf has ended is judged by this.
    pub clock: Clock,
}

/// The server's side of TLS, with a first leaf in it, and how long that lasts.
///
/// # Errors
/// The authority gives no leaf, or the bundle holds no root.
pub fn config(
    authority: &SharedAuthority,
    names: &CertificateNames,
    clock: &Clock,
) -> anyhow::Result<(ServerTls, Arc<LeafCell>, Duration)> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in authority.roots().trusted() {
        roots.add(root.der.clone())?;
    }
    let strict = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).allow_unauthenticated().build()?;
    let verifier = Arc::new(Lenient(strict));
    let leaf = Arc::new(LeafCell::default());
    let lasts = renew(authority, names, &provider, &leaf)?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(leaf.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((ServerTls { config: Arc::new(config), clock: clock.clone() }, leaf, lasts))
}

fn renew(authority: &SharedAuthority, names: &CertificateNames, provider: &CryptoProvider, leaf: &LeafCell) -> anyhow::Result<Duration> {
    let seat = authority.seat(&names.dns, &names.addresses).map_err(anyhow::Error::msg)?;
    let key = provider.key_provider.load_private_key(seat.key)?;
    leaf.0.store(Some(Arc::new(CertifiedKey::new(seat.chain, key))));
    Ok(seat.lasts)
}

/// Renews the leaf again and again; connections that are open stay as they are. Ends with `stop`.
pub async fn keep(authority: SharedAuthority, names: CertificateNames, leaf: Arc<LeafCell>, mut lasts: Duration, stop: CancellationToken) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(lasts) => {}
        }
        let (authority, names, leaf, provider) = (authority.clone(), names.clone(), leaf.clone(), provider.clone());
        let renewed = tokio::task::spawn_blocking(move || renew(&authority, &names, &provider, &leaf)).await;
        lasts = match renewed {
            Ok(Ok(lasts)) => lasts,
            Ok(Err(error)) => {
                tracing::error!(%error, "the control plane's own certificate was not renewed");
                RETRY
            }
            Err(_) => RETRY,
        };
    }
}
