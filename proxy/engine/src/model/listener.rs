//! Where connections come in: one [`Outbound`] per original destination or edge port, one [`Inbound`] per sidecar.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Forward, MtlsMode, Protocol, RouteTable};

/// The outbound side for one original destination, or one edge port. One with neither `http` nor `tcp` says that the mesh has the
/// address and serves nothing at that port.
#[derive(Debug)]
pub struct Outbound {
    /// Resource name.
    pub name: Arc<str>,
    /// How to treat the connection.
    pub protocol: Protocol,
    /// Where HTTP requests go; absent for `Tcp`.
    pub http: Option<Arc<RouteTable>>,
    /// Where opaque bytes go; present for `Tcp` and `Auto`.
    pub tcp: Option<Arc<Forward>>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}

impl Outbound {
    /// Whether the mesh has the address and serves nothing at that port (`no_route`).
    pub const fn leads_nowhere(&self) -> bool {
        self.http.is_none() && self.tcp.is_none()
    }
}

/// The inbound side of a sidecar.
#[derive(Debug)]
pub struct Inbound {
    /// Declared ports.
    pub ports: HashMap<u16, Arc<InboundPort>>,
    /// Every other port.
    pub other: Arc<InboundPort>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}

impl Inbound {
    /// The rule for a port: its own, else the one for every other port.
    pub fn port(&self, port: u16) -> &Arc<InboundPort> {
        self.ports.get(&port).unwrap_or(&self.other)
    }
}

/// How one port of the application is reached.
#[derive(Debug)]
pub struct InboundPort {
    /// Its mTLS mode.
    pub mode: MtlsMode,
    /// What plaintext and foreign-ALPN connections carry. Mesh ALPN says it for itself.
    pub protocol: Protocol,
    /// Route table of HTTP requests: one rule today, per-port policy later.
    pub http: Arc<RouteTable>,
    /// `NS/SERVICE` labels for metrics; empty when no Service selects the port.
    pub service_namespace: Arc<str>,
    /// See `service_namespace`.
    pub service: Arc<str>,
    /// Idle timeout of opaque connections to the application.
    pub idle_timeout: Option<Duration>,
}
