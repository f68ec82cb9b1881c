//! Judging a peer: its one URI name is who we expect, its chain ends in the bundle of that name's trust domain, its dates hold, and
//! nobody has revoked it. So an authority is believed for its own trust domain and for no other, ours least of all.
//!
//! No host name is compared: in a mesh the identity is the name (SPIFFE X.509-SVID, section 5).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use proto::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use super::credential::CredentialCell;
use super::peer::{self, Peer, PeerError, Unproved, sha256};
use super::trust::{Believed, TrustCell};

/// Leaves remembered as verified. Beyond it the memory starts afresh, at the cost of one verification each.
const VERIFIED_MAX: usize = 1024;

/// Which side the peer is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerRole {
    Server,
    Client,
}

/// The judgement both directions share. Remembers chains it has verified under the present bundle, so that a resumed handshake costs
/// a hash instead of two signatures.
#[derive(Debug)]
pub(super) struct Verify {
    credentials: Arc<CredentialCell>,
    trust: Arc<TrustCell>,
    algorithms: WebPkiSupportedAlgorithms,
    verified: Mutex<HashMap<([u8; 32], PeerRole), Verified>>,
}

/// A leaf whose chain was verified under the bundle of that generation.
#[derive(Clone, Debug)]
struct Verified {
    parsed: Unproved,
    trust: u64,
    /// It was the bundle of our own trust domain.
    own: bool,
}

impl Verify {
    pub(super) fn new(credentials: Arc<CredentialCell>, trust: Arc<TrustCell>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { credentials, trust, algorithms, verified: Mutex::default() }
    }

    /// The peer and the last second its leaf is good for.
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: PeerRole,
    ) -> Result<(Arc<Peer>, u64), Error> {
        let key = (sha256(leaf), side);
        let trust = self.trust.current();
        let known = self.verified.lock().get(&key).filter(|known| known.trust == trust.generation).cloned();
        let known = known.filter(|known| known.own == self.is_own(&known.parsed.peer.identity));
        let parsed = match known {
            Some(known) => known.parsed,
            None => {
                if trust.anchors.is_empty() {
                    return Err(PeerError::NoBundle.into());
                }
                // What it says it is says by whose word it is to be judged.
                let parsed = peer::parse(leaf)?;
                let anchors = self.anchors(&trust, &parsed.peer.identity)?;
                chain(leaf, intermediates, anchors, now, side, self.algorithms)?;
                let own = self.is_own(&parsed.peer.identity);
                let mut verified = self.verified.lock();
                if verified.len() >= VERIFIED_MAX {
                    verified.clear();
                }
                verified.insert(key, Verified { parsed: parsed.clone(), trust: trust.generation, own });
                parsed
            }
        };
        dates(&parsed, now)?;
        unrevoked(&trust, &parsed.peer, now)?;
        Ok((parsed.peer, parsed.not_after))
    }

    /// Whether a peer that has proved itself is believed now.
    pub(super) fn stands(&self, peer: &Peer, now: UnixTime) -> Result<(), PeerError> {
        let trust = self.trust.current();
        self.anchors(&trust, &peer.identity)?;
        unrevoked(&trust, peer, now)
    }

    /// Before our first leaf there is no telling which trust domain is ours; nobody gets through a handshake then.
    fn is_own(&self, identity: &Identity) -> bool {
        self.credentials.current().is_none_or(|own| own.identity.trust_domain() == identity.trust_domain())
    }

    /// The roots that may speak for an identity.
    fn anchors<'t>(&self, trust: &'t Believed, identity: &Arc<Identity>) -> Result<&'t [TrustAnchor<'static>], PeerError> {
        if self.is_own(identity) {
            return Ok(&trust.anchors);
        }
        trust.federated(identity.trust_domain()).ok_or_else(|| PeerError::OtherTrustDomain {
            expected: self.credentials.current().map(|own| own.identity.trust_domain().to_owned()).unwrap_or_default(),
            found: Arc::clone(identity),
        })
    }
}

fn unrevoked(trust: &Believed, peer: &Peer, now: UnixTime) -> Result<(), PeerError> {
    match trust.revoked(&peer.identity, &peer.serial, now.as_secs()) {
        None => Ok(()),
        Some(revocation) => Err(PeerError::Revoked {
            identity: Arc::clone(&peer.identity),
            serial: Arc::clone(&peer.serial),
            revocation: Arc::clone(&revocation.object),
        }),
    }
}

fn dates(parsed: &Unproved, now: UnixTime) -> Result<(), Error> {
    let at = UnixTime::since_unix_epoch;
    let secs = std::time::Duration::from_secs;
    if now.as_secs() > parsed.not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after: at(secs(parsed.not_after)) }.into());
    }
    if now.as_secs() < parsed.not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: at(secs(parsed.not_before)) }.into());
    }
    Ok(())
}

/// Path building by webpki, in rustls' words.
pub(super) fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'static>],
    now: UnixTime,
    side: PeerRole,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<(), Error> {
    let usage = match side {
        PeerRole::Server => KeyUsage::server_auth(),
        PeerRole::Client => KeyUsage::client_auth(),
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(webpki_error)?;
    leaf.verify_for_usage(algorithms.all, anchors, intermediates, now, usage, None, None)
        .map(|_| ())
        .map_err(|error| chain_error(error, side))
}

fn chain_error(error: webpki::Error, side: PeerRole) -> Error {
    match error {
        webpki::Error::CaUsedAsEndEntity => PeerError::Authority.into(),
        webpki::Error::RequiredEkuNotFoundContext(_) if side == PeerRole::Client => PeerError::Purpose("calls").into(),
        webpki::Error::RequiredEkuNotFoundContext(_) => PeerError::Purpose("servers").into(),
        other => webpki_error(other),
    }
}

fn webpki_error(error: webpki::Error) -> Error {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after }.into(),
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before }.into(),
        E::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding.into(),
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))).into(),
    }
}

/// The client's view of one endpoint identity.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) verify: Arc<Verify>,
    pub(super) expected: Arc<Identity>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (peer, _) = self.verify.check(leaf, intermediates, now, PeerRole::Server)?;
        if *peer.identity != *self.expected {
            return Err(PeerError::WrongIdentity { expected: Arc::clone(&self.expected), found: Arc::clone(&peer.identity) }.into());
        }
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
        verify_tls13_signature(message, certificate, signature, &self.verify.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verify.algorithms.supported_schemes()
    }
}

/// The server's view of any peer that is believed.
#[derive(Debug)]
pub(super) struct ClientVerifier(pub(super) Arc<Verify>);

impl ClientCertVerifier for ClientVerifier {
    /// No hints: every peer has one certificate only, and names of roots would only tell strangers about the mesh.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.check(leaf, intermediates, now, PeerRole::Client).map(|_| ClientCertVerified::assertion())
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
        verify_tls13_signature(message, certificate, signature, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}
