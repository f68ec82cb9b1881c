//! What the mesh says of its authority, and what every part of it needs.

use std::time::Duration;

use proto::defaults::{INTERMEDIATE_LIFE, LEAF_LIFE, ROOT_LIFE};
use proto::identity::DEFAULT_TRUST_DOMAIN;

/// A leaf that ended less than this ago may be renewed, once: a machine that slept finds its way back (`kinds.md`).
pub const EXPIRED_GRACE: Duration = Duration::from_secs(24 * 3600);

/// The parts of the `Mesh` object that concern the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Identities outside it are not signed.
    pub trust_domain: String,
    /// Longest and default life of a leaf.
    pub leaf_life: Duration,
    /// Of the next issuing certificate.
    pub intermediate_life: Duration,
    /// Of the root, at its creation.
    pub root_life: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            trust_domain: DEFAULT_TRUST_DOMAIN.to_owned(),
            leaf_life: LEAF_LIFE,
            intermediate_life: INTERMEDIATE_LIFE,
            root_life: ROOT_LIFE,
        }
    }
}

/// The system gives no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// Fresh random bytes.
///
/// # Errors
/// [`NoRandomness`].
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}
