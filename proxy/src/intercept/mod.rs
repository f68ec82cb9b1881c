//! Transparent redirection of one network namespace: [`Interception`] (pure) -> [`table::Table`] (pure) -> [`nft`] (netlink).
//!
//! One nf_tables table `meshwright` of family `inet` serves IPv4 and IPv6. It is replaced in one transaction, so that at no moment a
//! connection meets half of the rules, and installing twice is the same as installing once. No `nft` or `iptables` program is needed.

pub mod expr;
pub mod nft;
pub mod plan;
pub mod table;

pub use nft::{InterceptError, Missing};
pub use plan::{Families, Interception};

/// Name of our table. Nothing else in the namespace is touched.
pub const TABLE: &str = "meshwright";
/// The socket mark that exempts a socket from redirection where the uid cannot (rootless), and for the probes of `up`. "mw" in ASCII.
pub const EXEMPT_MARK: u32 = 0x6d77;
/// The uid that the proxy drops to and that exempts its traffic.
pub const EXEMPT_UID: u32 = 1337;
/// Redirect target of outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Redirect target of inbound connections.
pub const INBOUND_PORT: u16 = 15006;
/// Redirect target of DNS questions, UDP and TCP.
pub const DNS_PORT: u16 = 15053;

/// Installs the rules in the namespace of the calling thread, replacing earlier ones in the same transaction.
///
/// Blocks for some microseconds; needs `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
pub fn install(plan: &Interception) -> Result<(), InterceptError> {
    nft::replace(&plan.table())
}

/// Reads the rules of the calling thread's namespace back and says what is missing or in the way; empty means all is well.
pub fn verify(plan: &Interception) -> Result<Vec<Missing>, InterceptError> {
    nft::compare(&plan.table())
}

/// Removes our table; succeeds where there is none.
pub fn remove() -> Result<(), InterceptError> {
    nft::remove(TABLE)
}
