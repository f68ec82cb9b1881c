//! What each stream gets, and who runs which epoch.

pub mod board;
pub mod cache;
pub mod calls;
pub mod concern;
pub mod edition;
pub mod epoch;
pub mod memo;
pub mod peer;
pub mod plaintext;
#[cfg(test)]
mod random;
pub mod session;
mod signals;
pub mod stats;
pub mod taps;
pub mod trust;
pub mod versions;
