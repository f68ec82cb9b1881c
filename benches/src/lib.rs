//! What it costs, beside rivals and the floor.
//!
//! `cargo bench -p benches` measures the pure parts. `benches pair` measures whole systems, each described by a file
//! of `specs`, with `benches load`, `benches backend` and `benches floor` as its own programs (`docs/performance.md`). `benches plane` and
//! `benches cluster` measure control planes.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measuring needs the machine's own clock and sockets")]

pub mod backend;
pub mod cluster;
pub mod floor;
pub mod load;
pub mod pair;
pub mod plane;
pub mod sockets;
