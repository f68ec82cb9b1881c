//! Tests of the whole repository that need neither rights nor foreign programs. The rules for sources are in `tests/src/tidy.rs`.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]

#[path = "it/build.rs"]
mod build;
#[path = "it/mesh.rs"]
mod mesh;
#[path = "it/pages.rs"]
mod pages;
