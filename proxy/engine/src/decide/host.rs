//! From a host to a virtual host.

use smallvec::SmallVec;

use crate::matching::without_port;
use crate::model::Domains;

/// Longest host name (RFC 1035); a longer one can only meet `*`.
const HOST_BYTES_MAX: usize = 255;

/// The place of a host's virtual host. Compared without regard to case and without allocating.
pub(super) fn choose(domains: &Domains, host: &str) -> Option<usize> {
    if domains.nameless() {
        return domains.any();
    }
    // `shop.example.` is the same name, spelled in full (RFC 1034, section 3.1).
    let host = without_port(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return domains.any();
    }
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return domains.named(host);
    }
    let lower: SmallVec<[u8; HOST_BYTES_MAX]> = host.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    std::str::from_utf8(&lower).map_or(domains.any(), |host| domains.named(host))
}
