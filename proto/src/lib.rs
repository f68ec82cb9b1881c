//! Words both planes share: xDS messages, SPIFFE identity, resource names, annotations, ports, pods, origins, defaults, refusals.

pub mod annotations;
pub mod canary;
pub mod defaults;
pub mod epoch;
pub mod identity;
pub mod names;
pub mod origin;
pub mod pods;
pub mod ports;
pub mod private;
pub mod refusal;
pub mod words;
pub mod xds;

/// What the sources under `proto/` become (`tests/generated.rs`), nested by protobuf package. [`xds`] and [`mesh`] are the short ways in.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::too_many_lines, clippy::large_futures)]
pub mod generated {
    include!("../generated/mod.rs");
}

/// Our own messages, package `meshwright.v1`.
pub use generated::meshwright::v1 as mesh;
