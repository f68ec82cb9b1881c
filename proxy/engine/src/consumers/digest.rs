//! What keys are found by, and pages told apart: no key itself is kept.

use aws_lc_rs::digest::{SHA256, digest as sha};

/// SHA-256.
pub type Digest = [u8; 32];

/// What a key is found by.
pub fn digest(key: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(sha(&SHA256, key).as_ref());
    out
}
