//! What each stream gets, and who runs which epoch.

pub mod epoch;
pub mod session;
