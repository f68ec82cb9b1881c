//! How requests spread over endpoints: one file per way, each over weights, keys and draws alone. Tables are made when endpoints
//! change; what a request pays is a lookup.

mod draws;
mod maglev;
mod peak_ewma;
mod ring_hash;
mod round_robin;
mod slow_start;
#[cfg(test)]
mod tests;
mod tiers;

use std::net::{IpAddr, SocketAddr};

pub(crate) use draws::Draws;
pub(crate) use maglev::Maglev;
pub(crate) use peak_ewma::PeakEwma;
pub(crate) use ring_hash::Ring;
pub(crate) use round_robin::Turns;
pub(crate) use slow_start::{next_step, warmth};
pub(crate) use tiers::shares;

/// Maps 32 uniform bits to `0..bound` without a division.
pub(crate) fn scale(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 32) as u64
}

/// Spreads every bit over all (the finaliser of SplitMix64): a bijection, so that different keys stay different.
pub(crate) const fn mix(key: u64) -> u64 {
    let z = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of an address in tables, the same in every proxy and every version of it, so that all send a hash to the same endpoint.
pub(crate) fn key(address: SocketAddr) -> u64 {
    let [high, low] = match address.ip() {
        IpAddr::V4(ip) => [0, u64::from(ip.to_bits())],
        IpAddr::V6(ip) => [(ip.to_bits() >> 64) as u64, ip.to_bits() as u64],
    };
    mix(mix(mix(high.wrapping_add(1)) ^ low) ^ u64::from(address.port()))
}

/// Shares of a whole by count.
fn shares_of(counts: &[u64]) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    counts.iter().map(|count| *count as f64 / total as f64).collect()
}
