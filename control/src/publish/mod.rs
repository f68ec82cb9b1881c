//! What each stream gets, and who runs which epoch.

pub mod board;
pub mod cache;
pub mod calls;
pub mod edition;
pub mod epoch;
pub mod peer;
pub mod plaintext;
pub mod session;
pub mod trust;
