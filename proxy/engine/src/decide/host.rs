//! From a host to a virtual host.

use crate::matching::plain_host;
use crate::model::Domains;

/// The place of a host's virtual host. Compared without regard to case and without allocating. One that is too long can only meet `*`.
pub(super) fn choose(domains: &Domains, host: &str) -> Option<usize> {
    if domains.nameless() {
        return domains.any();
    }
    plain_host(host, |host| if host.is_empty() { domains.any() } else { domains.named(host) })
}
