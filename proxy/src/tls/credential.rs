//! The leaf and key this proxy proves itself with, and the cell that holds the current one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use proto::identity::Identity;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::peer::{self, PeerError};

/// Why chain and key are no credential.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf does not name an identity of ours.
    #[error("the leaf certificate cannot be used: {0}")]
    Leaf(#[from] PeerError),
    /// The key is unusable or belongs to another certificate.
    #[error("the private key does not fit the leaf certificate: {0}")]
    Key(#[source] rustls::Error),
}

/// One leaf with its key. The key never leaves this type.
pub struct Credential {
    /// The SPIFFE identity the leaf proves.
    pub identity: Arc<Identity>,
    /// The leaf's common name.
    pub workload: Arc<str>,
    /// Serial number, hex.
    pub serial: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

/// As `CertifiedKey::from_der`, which keeps the key's bytes to itself.
pub(super) fn certified(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<CertifiedKey, rustls::Error> {
    let certified = CertifiedKey::new(chain, any_supported_type(key)?);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(error),
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("identity", &self.identity.to_string()).field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl Credential {
    /// Joins a chain (leaf first) and its key, whose bytes are wiped: what signs has a copy of its own, which the crypto library wipes.
    ///
    /// # Errors
    /// The chain is empty, the leaf holds no identity of ours, or the key is another certificate's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, CredentialError> {
        let leaf = chain.first().ok_or(CredentialError::Empty)?;
        let parsed = peer::parse(leaf)?;
        let key = certified(chain, &Zeroizing::new(key)).map_err(CredentialError::Key)?;
        Ok(Self {
            identity: Arc::clone(&parsed.peer.identity),
            workload: Arc::clone(&parsed.peer.workload),
            serial: parsed.serial,
            issuer: parsed.issuer,
            not_before: at(parsed.not_before),
            not_after: at(parsed.not_after),
            key: Arc::new(key),
        })
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Whole life of the leaf.
    pub fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    pub(super) fn not_after_unix(&self) -> u64 {
        self.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}

fn at(unix_secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix_secs)
}

/// Holds the current [`Credential`]. Handshakes read it at their start; a new one cuts nothing.
#[derive(Debug)]
pub struct CredentialCell {
    current: ArcSwapOption<Credential>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for CredentialCell {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), generation: AtomicU64::new(0), changed: watch::Sender::new(0) }
    }
}

impl CredentialCell {
    /// The credential in use; `None` before the first.
    pub fn current(&self) -> Option<Arc<Credential>> {
        self.current.load_full()
    }

    /// How many were published so far.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes this the one that new handshakes use.
    pub fn publish(&self, credential: Arc<Credential>) {
        self.current.store(Some(credential));
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed.send_replace(generation);
    }

    /// Wakes at each publication.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Gives rustls the current credential, on both sides. One for ever, because sessions resume only under the same resolver.
#[derive(Debug)]
pub(super) struct CredentialResolver(pub(super) Arc<CredentialCell>);

impl ResolvesClientCert for CredentialResolver {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|credential| Arc::clone(&credential.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for CredentialResolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|credential| Arc::clone(&credential.key))
    }
}
