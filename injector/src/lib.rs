//! Puts the sidecar into pods: manifests in, manifests out.
//!
//! [`decide`] says whether a pod gets a sidecar, [`sidecar`] builds it, [`pods`] finds the pods in manifests, and [`inject`] does it all
//! for a text of many documents. Everything here is pure; files are the command line's.

pub mod decide;
pub mod manifest;
pub mod pods;
pub mod sidecar;

pub use decide::{Injection, Skip};
pub use manifest::{Injected, ManifestError, PodOutcome, inject};
pub use sidecar::SidecarSettings;
