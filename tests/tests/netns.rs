//! Kernel truth: network namespaces, real sockets, programs nobody here wrote. Needs root (or a user namespace's); without the right
//! these tests fail, they never skip.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

#[path = "netns/cases.rs"]
mod cases;
#[path = "netns/egress.rs"]
mod egress;
#[path = "netns/hardening.rs"]
mod hardening;
#[path = "netns/intercept.rs"]
mod intercept;
#[path = "netns/kernel.rs"]
mod kernel;
#[path = "netns/names.rs"]
mod names;
#[path = "netns/namespace.rs"]
mod namespace;
#[path = "netns/outward.rs"]
mod outward;
#[path = "netns/running.rs"]
mod running;
#[path = "netns/up.rs"]
mod up;
