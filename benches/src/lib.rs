//! What it costs, beside rivals and the floor.
//!
//! `cargo bench -p benches` measures the pure parts. `specs/meshwright.json` describes our sidecar pair for the rig that measures whole
//! systems (`docs/performance.md`).
