//! What the proxy says of itself: what it runs, and how far along its life it is, and its own log.

pub mod inspect;
pub mod lifecycle;
pub mod logs;
