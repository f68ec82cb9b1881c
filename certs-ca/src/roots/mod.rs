//! The roots that the mesh believes, and the life of those that are our own ([`life`]).

pub mod life;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use crate::authority::hex;

/// Where the rotation of a root stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One root issues, and is believed.
    Steady,
    /// The next one is believed, too.
    Trusting,
    /// The next one issues; the former one is believed still.
    Issuing,
}

/// The roots of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootSet {
    /// The issuing one first; never empty.
    trusted: Vec<CertificateDer<'static>>,
    retired: Vec<CertificateDer<'static>>,
    phase: Phase,
}

impl RootSet {
    /// Leaves are issued below `issuing`; `others` are believed beside it.
    pub fn new(
        issuing: CertificateDer<'static>,
        others: Vec<CertificateDer<'static>>,
        mut retired: Vec<CertificateDer<'static>>,
        phase: Phase,
    ) -> Self {
        let mut trusted = vec![issuing];
        trusted.extend(others);
        retired.retain(|root| !trusted.contains(root));
        Self { trusted, retired, phase }
    }

    /// Every root that is believed, DER, the issuing one first.
    pub fn der(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// The one below which leaves are issued.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.trusted[0]
    }

    /// Believed no more; a leaf below one of them may ask for the next leaf, and for nothing else.
    pub fn retired(&self) -> &[CertificateDer<'static>] {
        &self.retired
    }

    /// Where a rotation stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The bundle as `ca.pem` and as ADS carries it.
    pub fn pem(&self) -> String {
        self.trusted.iter().map(|root| pem(root)).collect()
    }

    /// Lower-case hex SHA-256 of each root that is believed.
    pub fn hashes(&self) -> Vec<String> {
        self.trusted.iter().map(|root| sha256(root)).collect()
    }

    /// The hash that join tokens pin: the issuing root's.
    pub fn pin(&self) -> String {
        sha256(self.issuing())
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
            let set = RootSet::new(der.clone(), Vec::new(), Vec::new(), Phase::Steady);
            let back: Vec<_> = CertificateDer::pem_slice_iter(set.pem().as_bytes()).collect::<Result<_, _>>().unwrap();
            assert_eq!(back, [der]);
            assert_eq!(set.pin(), set.hashes()[0]);
        }
    }
}
