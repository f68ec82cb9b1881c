//! Reading a peer's certificate: exactly one URI name, which is its SPIFFE identity, and the workload it says it is.

use std::fmt::Write as _;
use std::sync::Arc;

use proto::identity::{Identity, NotAnIdentity};
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// `uniformResourceIdentifier [6]` (RFC 5280, section 4.2.1.6).
const URI_TAG: Tag = Tag(6);
/// Longest common name taken for a workload; Kubernetes names are shorter.
const WORKLOAD_BYTES_MAX: usize = 253;

/// A peer that proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its SPIFFE identity.
    pub identity: Arc<Identity>,
    /// The workload, from the leaf's common name, signed by the authority; empty if there is none.
    pub workload: Arc<str>,
    /// SHA-256 of the leaf, for `x-forwarded-client-cert`.
    pub certificate_hash_hex: Arc<str>,
    /// Serial number of the leaf, as [`proto::identity::serial`] spells it.
    pub serial: Arc<str>,
}

/// Why a peer's certificate is refused, beyond its chain.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// The leaf is no X.509 certificate.
    #[error("the peer's certificate cannot be read: {0}")]
    Malformed(String),
    /// SPIFFE X.509-SVID, section 2: exactly one URI name.
    #[error("the peer's certificate holds {0} URI names, a SPIFFE certificate holds exactly one")]
    UriNames(usize),
    /// It shows the certificate of an authority as its own.
    #[error("the peer shows the certificate of an authority (CA:TRUE), which is no workload's")]
    Authority,
    /// Extended key usage.
    #[error("the peer's certificate is not for {0} (extended key usage)")]
    Purpose(&'static str),
    /// The URI is no identity of the mesh's form.
    #[error("the peer's certificate: {0}")]
    NotAnIdentity(#[from] NotAnIdentity),
    /// Someone else answers at the endpoint's address.
    #[error("the peer proved {found}, but {expected} was expected there")]
    WrongIdentity {
        /// Whom the control plane named.
        expected: Arc<Identity>,
        /// Who answered.
        found: Arc<Identity>,
    },
    /// The peer is of another trust domain, and not of one that the mesh federates with.
    #[error("the peer shows {found}, which is not of the trust domain `{expected}` nor of one that it federates with")]
    OtherTrustDomain {
        /// Our own trust domain.
        expected: String,
        /// Who called.
        found: Arc<Identity>,
    },
    /// The peer, or the certificate that it shows, is revoked.
    #[error("the peer proved {identity} (certificate {serial}), which is revoked by {revocation}")]
    Revoked {
        /// Who it is.
        identity: Arc<Identity>,
        /// Serial number of its certificate.
        serial: Arc<str>,
        /// NAMESPACE/NAME of the object that revokes it.
        revocation: Arc<str>,
    },
    /// Nothing to judge by.
    #[error("there is no trust bundle yet")]
    NoBundle,
}

impl PeerError {
    /// Finds the peer error inside a handshake's `io::Error`, if that is what ended it.
    pub(super) fn of(error: &std::io::Error) -> Option<&Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
            _ => None,
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// What a leaf says, unproved.
#[derive(Debug, Clone)]
pub(super) struct Unproved {
    pub(super) peer: Arc<Peer>,
    pub(super) serial: String,
    pub(super) issuer: String,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

/// Reads identity and workload out of a leaf. Says nothing about its chain.
///
/// # Errors
/// The leaf is malformed or holds no identity of ours.
pub fn read_peer(leaf: &CertificateDer<'_>) -> Result<Arc<Peer>, PeerError> {
    Ok(parse(leaf)?.peer)
}

pub(super) fn parse(leaf: &CertificateDer<'_>) -> Result<Unproved, PeerError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| PeerError::Malformed(error.to_string()))?;
    let uri = uri_name(&certificate)?.ok_or(PeerError::UriNames(0))?;
    let identity = Arc::new(uri.parse::<Identity>()?);
    let workload = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let workload = if workload.len() > WORKLOAD_BYTES_MAX { "" } else { workload };
    let serial = hex(&certificate.tbs_certificate.serial.to_bytes_be());
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Ok(Unproved {
        peer: Arc::new(Peer {
            identity,
            workload: workload.into(),
            certificate_hash_hex: hex(&sha256(leaf)).into(),
            serial: proto::identity::serial(&serial).into(),
        }),
        serial,
        issuer: certificate.issuer().to_string(),
        not_before: seconds(certificate.validity().not_before),
        not_after: seconds(certificate.validity().not_after),
    })
}

/// The one URI name of a certificate; `None` if it has none at all. A URI name that is not UTF-8 (x509-parser: `Invalid`, without an error) is one all the same.
pub(super) fn uri_name<'a>(certificate: &'a X509Certificate<'_>) -> Result<Option<&'a str>, PeerError> {
    let names = certificate.subject_alternative_name().map_err(|error| PeerError::Malformed(error.to_string()))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &GeneralName<'a>| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        GeneralName::Invalid(URI_TAG, _) => Some(None),
        _ => None,
    };
    let uris: Vec<Option<&str>> = names.iter().filter_map(uri).collect();
    match uris.as_slice() {
        [] => Ok(None),
        [Some(uri)] => Ok(Some(uri)),
        [None] => Err(PeerError::Malformed("its URI name is not UTF-8".to_owned())),
        _ => Err(PeerError::UriNames(uris.len())),
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
