//! Kinds that say who may do what.

pub mod authentication;
pub mod authorization;
pub mod egress;

use engine::model::build::Parts;
use ipnet::{IpNet, Ipv4Net};
use prost::{Message, Name};
use proto::xds::pack;

/// Length of the IPv6 range that stands for IPv4 (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// What the proxy's engine says of a resource: nothing may pass the door that makes a whole one be refused there.
///
/// # Errors
/// Names the field at fault, in the form that proxies are told.
fn taken<M: Message + Name>(name: &str, resource: &M) -> Result<(), String> {
    // The empty version is that of what was never sent.
    Parts::default().put(&M::type_url(), name, "0", &pack(resource)).map_err(|rejected| rejected.to_string())
}

/// A range of mapped addresses as that of the IPv4 addresses that they stand for; without bits beyond its prefix.
fn canonical(range: IpNet) -> IpNet {
    let IpNet::V6(v6) = range else { return range.trunc() };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_PREFIX));
    v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(range, IpNet::V4).trunc()
}

#[cfg(test)]
mod tests;
