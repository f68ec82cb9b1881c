//! From a host to a virtual host.

use smallvec::SmallVec;

use crate::model::RouteTable;

/// Longest host name (RFC 1035); a longer one can only meet `*`.
const HOST_BYTES_MAX: usize = 255;

/// The host without its port; brackets of an IPv6 literal stay.
pub fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

/// Index into `table.hosts`. Compared without regard to case and without allocating.
pub(super) fn choose(table: &RouteTable, host: &str) -> Option<usize> {
    if table.exact.is_empty() && table.suffix.is_empty() {
        return table.any;
    }
    // `shop.example.` is the same name, spelled in full (RFC 1034, section 3.1).
    let host = without_port(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return table.any;
    }
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return named(table, host);
    }
    let lower: SmallVec<[u8; HOST_BYTES_MAX]> = host.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    std::str::from_utf8(&lower).map_or(table.any, |host| named(table, host))
}

/// `host` is lower case.
fn named(table: &RouteTable, host: &str) -> Option<usize> {
    if let Some(index) = table.exact.get(host) {
        return Some(*index);
    }
    // `*.example.com` covers one label or more, never `example.com` itself.
    let covers = |suffix: &str| host.len() > suffix.len() && host.ends_with(suffix);
    table.suffix.iter().find(|(suffix, _)| covers(suffix)).map(|(_, index)| *index).or(table.any)
}
