//! Puts the sidecar into pods: manifests in, manifests out, and the admission webhook that does the same at the API server's door.
//!
//! [`decide`] says whether a pod gets a sidecar, [`pod`] adds it, [`pods`] finds the pods in manifests, [`inject`] does it all for a text of
//! many documents, and [`review`] for what an API server asks. All of that is pure; files are the command line's. [`webhook`] serves it,
//! with a certificate that [`serving`] renews; [`bundle`] says what keeps API servers believing it
//! and pods the mesh, [`keep`] does it.

pub mod bounds;
pub mod bundle;
pub mod callers;
mod counts;
pub mod decide;
mod ending;
pub mod keep;
pub mod manifest;
mod merge;
pub mod notes;
pub mod pod;
pub mod pods;
mod probes;
pub mod review;
pub mod serving;
pub mod settings;
pub mod sidecar;
pub mod webhook;

pub use counts::Counts;
pub use decide::{Injection, Skip};
pub use manifest::{Injected, ManifestError, PodOutcome, inject};
pub use settings::{KubernetesVersion, SidecarSettings};
