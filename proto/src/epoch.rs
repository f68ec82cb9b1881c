//! Versions and digests: how both ends of a stream know that they hold the same thing.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The version of a resource: a hash of its bytes, so equal content has an equal version, also across restarts.
pub fn version(encoded: &[u8]) -> String {
    format!("{:032x}", xxh3_128(encoded))
}

/// The digest of a stream's content: name and version of every resource that counts (contract, section 4: all that was sent and
/// not removed, endpoints, secrets and epochs excepted). Order does not matter to the caller: `held` is sorted here.
pub fn digest<'a>(held: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Vec<u8> {
    let mut rows: Vec<_> = held.into_iter().filter(|(type_url, ..)| counts(type_url)).collect();
    rows.sort_unstable();
    let mut hash = Xxh3::new();
    for (type_url, name, version) in rows {
        for part in [type_url, name, version] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.digest128().to_be_bytes().to_vec()
}

/// Whether a change of resources of this type is waited for: what is part of an epoch, and consumers, which are in force at once and before the
/// epoch behind them is acknowledged.
pub fn awaited(type_url: &str) -> bool {
    counts(type_url) || type_url.ends_with(CONSUMERS)
}

const CONSUMERS: &str = "meshwright.v1.Consumers";

/// Whether resources of this type are part of an epoch. Endpoints, secrets and consumers travel at once.
pub fn counts(type_url: &str) -> bool {
    !type_url.ends_with(CONSUMERS)
        && !type_url.ends_with(".ClusterLoadAssignment")
        && !type_url.ends_with(".Secret")
        && !type_url.ends_with("meshwright.v1.Epoch")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: order and excepted types do not change a digest; a version does; and parts cannot run together.
    #[test]
    fn a_digest_depends_on_content_only() {
        let a = digest([("t", "a", "1"), ("t", "b", "2")]);
        assert_eq!(a, digest([("t", "b", "2"), ("t", "a", "1"), ("x.ClusterLoadAssignment", "c", "3")]));
        assert_ne!(a, digest([("t", "a", "1"), ("t", "b", "3")]));
        assert_ne!(digest([("t", "ab", "1")]), digest([("ta", "b", "1")]));
        assert_eq!(version(b"x"), version(b"x"));
    }
}
