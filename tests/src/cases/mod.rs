//! The case table (`tests/cases/*.yaml`): manifests, requests and what they must come to, told once and judged by several consumers that
//! know nothing of one another: an oracle that reads the manifests as the standard's prose does, the translator with the engine, and a
//! whole mesh. `docs/cases.md` says how to add one.

pub mod backend;
mod gateway;
pub mod judge;
pub mod live;
pub mod objects;
pub mod oracle;
pub mod reading;
pub mod table;
pub mod unit;
