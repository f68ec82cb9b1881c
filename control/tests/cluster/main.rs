//! A cluster as the source of a mesh, against an API server in memory: the same objects as from a folder, and every fault of the way.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod faults;
mod pods;
mod same;
mod server;
