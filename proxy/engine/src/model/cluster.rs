//! Clusters: named sets of endpoints, and how they are spoken to.

use std::sync::Arc;
use std::time::Duration;

use super::{EndpointCell, Protocol};

/// A named set of endpoints and how they are spoken to.
#[derive(Debug)]
pub struct Cluster {
    /// Resource name.
    pub name: Arc<str>,
    /// Namespace label of the destination Service.
    pub namespace: Arc<str>,
    /// Name label of the destination Service (or instance).
    pub service: Arc<str>,
    /// The protocol the application speaks: `Http` means "as downstream".
    pub protocol: Protocol,
    /// Time for TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// Where connections go.
    pub kind: ClusterKind,
    /// The endpoints now. The one thing that changes inside a snapshot: endpoints travel at once and are not epochs.
    pub endpoints: Arc<EndpointCell>,
}

/// See [`Cluster::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// Balanced over [`Cluster::endpoints`].
    Endpoints,
    /// The application beside this proxy, at the original destination's port.
    Local,
    /// The original destination itself, in plaintext.
    OriginalDestination,
}
