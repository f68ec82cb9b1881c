//! Tests of the whole repository that need neither rights nor foreign programs. The rules for sources are in `tests/src/tidy.rs`.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

#[path = "it/acme.rs"]
mod acme;
#[path = "it/build.rs"]
mod build;
#[path = "it/fuzz.rs"]
mod fuzz;
#[path = "it/mesh.rs"]
mod mesh;
#[path = "it/pages.rs"]
mod pages;
#[path = "it/signals.rs"]
mod signals;
#[path = "it/spiffe.rs"]
mod spiffe;
