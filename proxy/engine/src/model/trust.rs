//! Whom the mesh believes.

use std::fmt;

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
}

impl Trust {
    /// The root below which leaves are issued now.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.roots[self.issuing_at]
    }
}

impl fmt::Debug for Trust {
    /// Roots by their hashes: nobody reads DER.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let roots: Vec<String> = self.roots.iter().map(|root| hex(&sha256(root))).collect();
        f.debug_struct("Trust").field("roots", &roots).field("issuing_root", &hex(&self.issuing_root)).finish()
    }
}

/// SHA-256 of a certificate.
pub(crate) fn sha256(der: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref());
    out
}
