//! Where connections come in: one [`Outbound`] per original destination, one [`Inbound`] per sidecar. An edge's ports are [`super::Edge`]s.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Domains, Forward, MtlsMode, Protocol, RouteTable, Target};

/// The outbound side for one original destination. One with none of `http`, `tcp` and `tls` says that the mesh has the
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
    /// Where TLS goes by the name that it asks for, untouched. Nothing else is served beside it.
    pub tls: Option<Arc<ByServerName>>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}

impl Outbound {
    /// Whether the mesh has the address and serves nothing at that port (`no_route`).
    pub const fn leads_nowhere(&self) -> bool {
        self.http.is_none() && self.tcp.is_none() && self.tls.is_none()
    }
}

/// Where opaque TLS goes by the server name of its first words (RFC 6066, section 3).
#[derive(Debug)]
pub struct ByServerName<T = Target> {
    names: Arc<Domains>,
    forwards: Vec<Arc<Forward<T>>>,
}

impl<T> ByServerName<T> {
    /// Names that lead to places among the forwards.
    pub(crate) const fn new(names: Arc<Domains>, forwards: Vec<Arc<Forward<T>>>) -> Self {
        Self { names, forwards }
    }

    /// Each name (`NAME`, `*.SUFFIX` or `*`, lower case) with where it leads.
    pub fn leading<'n>(to: impl IntoIterator<Item = (&'n str, Arc<Forward<T>>)>) -> Self {
        let (mut names, mut forwards) = (Domains::default(), Vec::new());
        for (name, forward) in to {
            names.add(name, forwards.len());
            forwards.push(forward);
        }
        Self::new(Arc::new(names), forwards)
    }

    /// Where TLS goes that asks for this name (lower case), or for none: an exact name before a wildcard, the longest wildcard before
    /// others, `*` last, which also is for who names nobody.
    pub fn lookup(&self, name: Option<&str>) -> Option<&Arc<Forward<T>>> {
        let place = name.map_or_else(|| self.names.any(), |name| self.names.named(name));
        self.forwards.get(place?)
    }

    /// Every forward with its names, sorted.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Vec<String>, &Arc<Forward<T>>)> {
        self.names.by_place(self.forwards.len()).into_iter().zip(&self.forwards)
    }

    /// All that it leads to, in a fixed order.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &T> {
        self.forwards.iter().flat_map(|forward| forward.targets())
    }

    /// The same, leading to what `link` makes of each target.
    pub(crate) fn linked<U>(&self, link: impl Fn(&T) -> U) -> ByServerName<U> {
        let forwards = self.forwards.iter().map(|forward| Arc::new(forward.linked(&link))).collect();
        ByServerName { names: Arc::clone(&self.names), forwards }
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
