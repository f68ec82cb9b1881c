//! Puts the sidecar into pods: manifests in, manifests out.
//!
//! [`decide`] says whether a pod gets a sidecar, [`sidecar`] builds it, [`pods`] finds the pods in manifests, and [`inject`] does it all
//! for a text of many documents. Everything here is pure; files are the command line's.

pub mod decide;
pub mod manifest;
pub mod pods;
pub mod sidecar;

pub use decide::{Decision, Skip};
pub use manifest::{Error, Injected, Outcome, inject};
pub use sidecar::Settings;
