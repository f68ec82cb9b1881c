//! The road of a connection and of a request, from the door it comes in by to where it goes.

pub mod admission;
pub mod answer;
pub mod arrival;
pub mod asking;
pub mod attempt;
pub mod call;
pub mod checks;
pub mod datagrams;
pub mod discard;
pub mod gateway;
pub mod guests;
pub mod handshakes;
pub mod hashing;
pub mod hedging;
pub mod inbound;
pub mod journey;
pub mod mirror;
pub mod opening;
pub mod outbound;
pub mod outside;
pub mod reply;
pub mod session;
pub mod shared;
pub mod standing;
pub mod upload;
pub mod watch;
