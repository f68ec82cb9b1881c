//! Limits at the edge: how much who may ask in which time, and who keeps count.
//!
//! [`Rate`] and [`Quota`] are the numbers of one limit, a [`Meter`] is what one key has used up of it: arithmetic over integers, with the time
//! as an argument. A [`Table`] keeps a bounded number of keys. Where replicas share a limit, a [`LimitBook`] keeps the meters, and each replica
//! takes some of a key's share ahead and spends it from a [`HeldShare`], so that the usual request waits for nobody.

mod book;
mod calendar;
mod headers;
mod held;
mod live;
mod made;
mod memory;
mod numbers;
mod remote;
mod rests;
mod table;
#[cfg(test)]
mod tests;
mod under_way;
mod wire;

pub use book::{Grant, KeyKnown, LimitBook, ShareAsk};
pub use calendar::{Calendar, Every, Window, ZoneUnknown, check_zone};
pub use headers::HeadersTold;
pub(crate) use headers::{OWN_HEADERS, is_own_header, policy_item, retry_after};
pub use held::{HeldShare, Taking};
pub use live::StoreLive;
pub(crate) use made::MadeKeys;
pub use memory::{LimitCounts, LimitMemories, LimitReading, LimitVerdict, Memory, Row, RowState};
pub use numbers::{AMOUNT_MAX, KeyStanding, Meter, Now, Numbers, PERIOD_MAX, Quota, Rate};
pub use remote::{
    KEY_PREFIX_BYTES_MAX, NAMESPACE_STORES_MAX, RedisMode, RedisPlace, RemotePlace, RemoteStore, STORE_ADDRESSES_MAX, STORE_TIMEOUT_MAX,
    STORES_MAX, ServicePlace, StoreReading, StoreTrouble,
};
pub use rests::ServiceRests;
pub use table::Table;
pub use under_way::UnderWayPlace;
pub(crate) use under_way::{WaitingPlace, Wanted};
pub use wire::{numbers_of, numbers_sent};
pub(crate) use wire::{quota, rate};

/// Most limits of one object.
pub const OBJECT_LIMITS_MAX: usize = 32;
/// Most keys that are kept of one object; the one that rested longest goes first.
pub const OBJECT_KEYS_MAX: usize = 100_000;
