//! Whom the mesh believes: the roots as the authority says them, and the resource that proxies get of them.

use std::sync::Arc;

use proto::mesh::Trust;
use proto::xds;
use rustls_pki_types::CertificateDer;

use crate::translate::{self, Encoded};
use crate::world::World;

/// One root certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// DER.
    pub der: CertificateDer<'static>,
    /// SHA-256 of it.
    pub sha256: [u8; 32],
}

impl Root {
    /// Its SHA-256 as people and tokens have it: lower-case hex.
    pub fn fingerprint(&self) -> String {
        hex(&self.sha256)
    }
}

/// Where the rotation of a root stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is under way.
    Steady,
    /// The next root is believed beside the one that issues.
    Trusting,
    /// The next root issues; the former one is believed still.
    Issuing,
}

impl Phase {
    /// As `ca show` prints it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Steady => "Steady",
            Self::Trusting => "Trusting",
            Self::Issuing => "Issuing",
        }
    }
}

/// The roots of the mesh at one moment. There is always one that issues, and it is always believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Leaves are issued below it.
    pub issuing: Root,
    /// Believed beside it: the next one before it issues, the former one until it is dropped, whatever else an external authority names.
    pub others: Vec<Root>,
    /// Believed no more; a leaf below one of them may only ask for the next leaf.
    pub retired: Vec<Root>,
    /// Where a rotation stands.
    pub phase: Phase,
    /// All that are believed, as a file holds them.
    pub pem: Arc<str>,
}

impl Roots {
    /// Every root that is believed, the issuing one first.
    pub fn trusted(&self) -> impl Iterator<Item = &Root> {
        std::iter::once(&self.issuing).chain(&self.others)
    }

    /// [`Root::fingerprint`] of all that are believed.
    pub fn fingerprints(&self) -> Vec<String> {
        self.trusted().map(Root::fingerprint).collect()
    }

    /// What an epoch's content says of them.
    pub fn digest(&self) -> String {
        self.fingerprints().join(" ")
    }
}

/// The resource `trust` of our own proxies: the roots, and what the objects say of other trust domains and of who is revoked.
pub(super) fn resource(roots: &Roots, world: &World) -> Arc<Encoded> {
    let trust = Trust {
        roots: roots.trusted().map(|root| root.der.to_vec().into()).collect(),
        issuing_root: roots.issuing.sha256.to_vec().into(),
        ..translate::trust(world)
    };
    Arc::new(Encoded::new(xds::pack(&trust)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::world::{Allocations, WorldSettings};

    /// Some root, and nothing beside it.
    pub(crate) fn one() -> Arc<Roots> {
        let issuing = Root { der: CertificateDer::from(vec![0x30, 0]), sha256: [0xab; 32] };
        Arc::new(Roots { issuing, others: Vec::new(), retired: Vec::new(), phase: Phase::Steady, pem: "".into() })
    }

    #[test]
    fn the_resource_names_all_roots_and_the_one_that_issues() {
        // Aim: a next root is believed beside the issuing one; one that is retired is in nothing that proxies get.
        let root = |byte: u8| Root { der: CertificateDer::from(vec![0x30, byte]), sha256: [byte; 32] };
        let roots = Roots { issuing: root(1), others: vec![root(2)], retired: vec![root(3)], phase: Phase::Trusting, pem: "".into() };
        let world = World::new(WorldSettings::default(), Allocations::default());
        let trust: Trust = xds::unpack(&resource(&roots, &world).any).unwrap();
        assert_eq!(trust.roots, [vec![0x30, 1], vec![0x30, 2]]);
        assert_eq!(trust.issuing_root, vec![1; 32]);
        assert_eq!(roots.digest(), format!("{} {}", "01".repeat(32), "02".repeat(32)));
    }
}
