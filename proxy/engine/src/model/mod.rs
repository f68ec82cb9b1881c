//! What a proxy runs: one immutable [`Snapshot`], built from resources, swapped whole.
//!
//! Everything here is parsed, compiled and linked: nothing is looked up by string while a request waits. Live state (requests in
//! flight, health) hangs off a snapshot by `Arc` and is carried to the next one by key.

pub mod build;
mod cluster;
mod endpoint;
mod listener;
mod route;
mod snapshot;

pub use cluster::{Cluster, ClusterKind};
pub use endpoint::{Endpoint, EndpointCell, EndpointLive, EndpointSet, Health, InFlight};
pub use listener::{Inbound, InboundPort, Outbound};
pub use proto::words::{MtlsMode, Protocol};
pub use route::{Action, Backend, Forward, Match, PathMatch, RouteTable, Rule, RuleSource, Target, ValueMatch};
pub use snapshot::{DnsAnswer, Locality, Settings, Snapshot};
