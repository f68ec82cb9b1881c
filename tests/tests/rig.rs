//! Meshwright in a cluster (`tests::kube::Cluster`): installed by its own command, with pods that are real processes. Needs root and Go;
//! without them these tests fail, they never skip. Those that take long are run by `tests/run-all full`.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

#[path = "rig/authority.rs"]
mod authority;
#[path = "rig/edge_roll.rs"]
mod edge_roll;
#[path = "rig/edges.rs"]
mod edges;
#[path = "rig/holder.rs"]
mod holder;
#[path = "rig/jobs.rs"]
mod jobs;
#[path = "rig/load.rs"]
mod load;
#[path = "rig/page.rs"]
mod page;
#[path = "rig/pods.rs"]
mod pods;
#[path = "rig/roll.rs"]
mod roll;
#[path = "rig/shop.rs"]
mod shop;
