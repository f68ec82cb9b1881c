//! What it costs, beside rivals and the floor.
//!
//! `cargo bench -p benches` measures the pure parts. `benches pair` measures whole systems, each described by a file
//! of `specs`, with `benches load`, `benches backend` and `benches floor` as its own programs (`docs/performance.md`).

pub mod backend;
pub mod floor;
pub mod load;
pub mod pair;
pub mod sockets;
