//! What each stream gets, and who runs which epoch.

pub mod board;
pub mod cache;
pub mod edition;
pub mod epoch;
pub mod peer;
pub mod session;
pub mod trust;
