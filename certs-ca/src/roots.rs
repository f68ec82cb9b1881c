//! The set of roots that the mesh trusts. One today; rotation adds the next before it retires the last.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use crate::authority::hex;

/// Roots in order of trust: the first is the one that issues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootSet {
    roots: Vec<CertificateDer<'static>>,
}

impl RootSet {
    /// A set of one.
    pub fn of(root: CertificateDer<'static>) -> Self {
        Self { roots: vec![root] }
    }

    /// Every root, DER.
    pub fn der(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The bundle as `ca.pem` and as ADS carries it.
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| pem(root)).collect()
    }

    /// Lower-case hex SHA-256 of each root.
    pub fn hashes(&self) -> Vec<String> {
        self.roots.iter().map(|root| sha256(root)).collect()
    }

    /// The one that issues.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.roots[0]
    }

    /// The hash that join tokens pin: the issuing root's.
    pub fn pin(&self) -> String {
        self.roots.first().map(|root| sha256(root)).unwrap_or_default()
    }
}

/// Lower-case hex SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&digest_of(bytes))
}

/// SHA-256.
pub fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// One certificate as PEM (RFC 7468).
pub fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for at in (0..text.len()).step_by(64) {
        out.push_str(&text[at..text.len().min(at + 64)]);
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn a_bundle_reads_back() {
        // Aim: what we print as PEM is what any reader takes in, whatever the length of the last line.
        for length in [1, 47, 48, 49, 96, 500] {
            let der = CertificateDer::from(vec![7u8; length]);
            let set = RootSet::of(der.clone());
            let back: Vec<_> = CertificateDer::pem_slice_iter(set.pem().as_bytes()).collect::<Result<_, _>>().unwrap();
            assert_eq!(back, [der]);
            assert_eq!(set.pin(), set.hashes()[0]);
        }
    }
}
