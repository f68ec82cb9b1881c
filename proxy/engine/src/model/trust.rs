//! Whom the mesh believes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use proto::identity::{Identity, serial};
use rustls_pki_types::CertificateDer;

/// From [`proto::mesh::Trust`]: part of an epoch, so that its acknowledgement is the epoch's.
#[derive(Clone, PartialEq, Eq)]
pub struct Trust {
    /// The mesh's own roots; at least one, and each reads as a trust anchor.
    pub roots: Vec<CertificateDer<'static>>,
    /// SHA-256 of the one below which leaves are issued now: a leaf of another one is to be renewed at once.
    pub issuing_root: [u8; 32],
    /// Its place among the roots.
    pub(crate) issuing_at: usize,
    /// Roots of other trust domains, by name: each is believed for identities of its own only.
    pub federated: BTreeMap<String, Vec<CertificateDer<'static>>>,
    /// Whose word counts no more.
    pub revoked: Arc<Revoked>,
}

impl Trust {
    /// A trust in these roots, of which the first one issues; there is at least one.
    pub fn of(roots: Vec<CertificateDer<'static>>) -> Self {
        let issuing_root = roots.first().map(|root| sha256(root)).unwrap_or_default();
        Self { roots, issuing_root, issuing_at: 0, federated: BTreeMap::new(), revoked: Arc::default() }
    }

    /// The root below which leaves are issued now.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.roots[self.issuing_at]
    }
}

/// Revoked identities and certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// By identity: with every certificate, present and future.
    pub identities: BTreeMap<Identity, Revocation>,
    /// Certificates by serial number, as [`serial`] spells it.
    pub serials: BTreeMap<String, Revocation>,
}

/// Who revokes something, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// From then on it counts again, seconds since 1970; `None`: never.
    pub until_secs: Option<u64>,
    /// NAMESPACE/NAME of the object that revokes it.
    pub object: Arc<str>,
}

impl Revoked {
    /// What revokes an identity, or the certificate of that serial number, at that moment (seconds since 1970).
    pub fn find(&self, identity: &Identity, serial_hex: &str, now_secs: u64) -> Option<&Revocation> {
        let found = [self.identities.get(identity), self.serials.get(serial(serial_hex))];
        found.into_iter().flatten().find(|revocation| revocation.until_secs.is_none_or(|until| now_secs < until))
    }
}

impl fmt::Debug for Trust {
    /// Roots by their hashes: nobody reads DER.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let hashes = |roots: &[CertificateDer<'static>]| roots.iter().map(|root| hex(&sha256(root))).collect::<Vec<_>>();
        let federated: BTreeMap<&String, Vec<String>> = self.federated.iter().map(|(name, roots)| (name, hashes(roots))).collect();
        f.debug_struct("Trust")
            .field("roots", &hashes(&self.roots))
            .field("issuing_root", &hex(&self.issuing_root))
            .field("federated", &federated)
            .field("revoked", &self.revoked)
            .finish()
    }
}

/// SHA-256 of a certificate.
pub(crate) fn sha256(der: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref());
    out
}
