//! What it costs, beside rivals and the floor.
//!
//! `cargo bench -p benches` measures the pure parts. `benches load`, `benches backend` and `benches floor` are the programs that whole
//! systems are measured with. `specs/meshwright.json` describes our sidecar pair for the rig that does so (`docs/performance.md`).

pub mod backend;
pub mod floor;
pub mod load;
