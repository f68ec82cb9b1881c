//! What all filter chains have in common.

use proto::xds::listener::FilterChain;

use crate::rejected::Wrong;

/// True for the names that the HTTP inspector gives to both versions, false for none. One version alone would send the other elsewhere.
pub(super) fn application_http(protocols: &[String]) -> Result<bool, Wrong> {
    let at = |why: String| Wrong::new("application_protocols", why);
    if let Some(other) = protocols.iter().find(|name| !matches!(name.as_str(), "http/1.0" | "http/1.1" | "h2c")) {
        return Err(at(format!("`{}` is not supported here", other.escape_debug())));
    }
    let both = ["http/1.1", "h2c"].iter().all(|wanted| protocols.iter().any(|name| name == wanted));
    if protocols.is_empty() || both { Ok(both) } else { Err(at("must name both http/1.1 and h2c, or none".to_owned())) }
}

/// A chain's place in a message about several.
pub(super) fn placed(listed: &[FilterChain]) -> impl Iterator<Item = (String, &FilterChain)> {
    listed.iter().enumerate().map(|(index, chain)| (format!("filter_chains[{index}]"), chain))
}
