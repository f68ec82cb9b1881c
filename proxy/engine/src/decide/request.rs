//! What becomes of one request on a connection that is served: who may ask, then the rules.

use std::sync::Arc;

use http::StatusCode;

use super::{Decision, Door, RequestHead, chain, decide};
use crate::failure::{LocalReply, Reason};
use crate::model::{ClientCertificates, InboundPort, MtlsMode, Outbound, Port, RouteTable, Serves, Snapshot};

/// What one epoch says of a connection's requests.
#[derive(Clone, Copy, Debug)]
pub enum Terms<'s> {
    /// Of the application's own calls.
    Outbound(&'s Arc<Outbound>),
    /// Of calls to the application's port.
    Inbound(&'s Arc<InboundPort>),
    /// Of calls to a Gateway's port.
    Edge(&'s Arc<RouteTable>),
    /// The Gateway has no such port (any more), or no requests there.
    NoPort,
    /// Other certificates are asked for by now than when the client's TLS was ended: it is for a connection of its own.
    Misdirected,
    /// Nothing was configured yet.
    Unconfigured,
    /// Of the application's own calls past the mesh; see [`super::outside::request`].
    Outside(&'s Arc<RouteTable>),
}

impl<'s> Terms<'s> {
    /// What a snapshot says of the requests on connections that come in by a door.
    pub fn of(snapshot: &'s Snapshot, door: Door) -> Self {
        let known = match door {
            Door::Outbound(destination) => snapshot.outbound.get(&destination).map(Self::Outbound),
            Door::Inbound(port) => snapshot.inbound.as_ref().map(|inbound| Self::Inbound(inbound.port(port))),
            Door::Edge(port) => return Self::of_edge(snapshot, port, &EdgeDoor::Plaintext),
        };
        known.unwrap_or(Self::Unconfigured)
    }

    /// What a snapshot says of the requests of a Gateway's client.
    pub fn of_edge(snapshot: &'s Snapshot, port: u16, door: &EdgeDoor<'_>) -> Self {
        match (snapshot.edges.get(&port).map(|edge| &edge.port), door) {
            (Some(Port::Http(table)), EdgeDoor::Plaintext) => Self::Edge(table),
            (Some(Port::Tls(_)), EdgeDoor::Tls { name, clients }) => match chain(snapshot, port, *name) {
                None => Self::NoPort,
                Some(chain) => match (&chain.serves, &chain.terms) {
                    (Serves::Http(_), Some(terms)) if terms.clients.as_ref() != *clients => Self::Misdirected,
                    (Serves::Http(Some(table)), Some(_)) => Self::Edge(table),
                    (Serves::Http(None), Some(_)) => Self::Unconfigured,
                    _ => Self::NoPort,
                },
            },
            (None, _) if snapshot.settings.is_none() => Self::Unconfigured,
            _ => Self::NoPort,
        }
    }
}

/// How a client came in to a Gateway's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeDoor<'c> {
    /// As it is.
    Plaintext,
    /// By TLS that was ended here.
    Tls {
        /// The name that it asked for (lower case), if any.
        name: Option<&'c str>,
        /// What it was asked for.
        clients: Option<&'c ClientCertificates>,
    },
}

/// What a request decision depends on beside the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The peer proved itself to be of the mesh.
    pub proved: bool,
    /// What the head breaks of the rules of its version, if any: the shell judges it, which alone knows the version.
    pub fault: Option<Fault>,
}

/// A head that nobody acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The answer's status.
    pub status: StatusCode,
    /// The answer's reason.
    pub reason: Reason,
    /// The rule it breaks.
    pub why: &'static str,
}

/// A request that no rule is asked about.
#[derive(Clone, Copy, Debug)]
pub struct TurnedAway {
    /// The answer's status.
    pub status: StatusCode,
    /// The answer's reason.
    pub reason: Reason,
    /// It is the connection's last.
    pub last: bool,
    /// The rule that the head breaks, or who forbids it.
    pub why: Option<&'static str>,
}

impl TurnedAway {
    const fn of(reason: Reason) -> Self {
        Self { status: reason.status(), reason, last: false, why: None }
    }

    pub(super) const fn because(reason: Reason, why: &'static str) -> Self {
        Self { why: Some(why), ..Self::of(reason) }
    }

    /// Of a head that nobody acts on. The connection goes on.
    pub const fn of_fault(fault: Fault) -> Self {
        Self { status: fault.status, reason: fault.reason, last: false, why: Some(fault.why) }
    }

    /// What the caller is told.
    pub fn reply(self) -> LocalReply {
        LocalReply { status: self.status, ..LocalReply::of(self.reason) }
    }
}

/// The rules that a request is judged by.
///
/// # Errors
/// It is answered without.
pub fn admit<'s>(view: Terms<'s>, facts: Facts) -> Result<&'s RouteTable, TurnedAway> {
    let refused = |reason| Err(TurnedAway::of(reason));
    let table = match view {
        Terms::Outbound(listener) => match &listener.http {
            Some(table) => table,
            None => return refused(Reason::NoRoute),
        },
        Terms::Edge(table) => table,
        Terms::Misdirected => return Err(TurnedAway { last: true, ..TurnedAway::of(Reason::Misdirected) }),
        // The port became Strict under a plaintext connection: one answer, and the end.
        Terms::Inbound(port) if port.mode == MtlsMode::Strict && !facts.proved => {
            return Err(TurnedAway { last: true, ..TurnedAway::of(Reason::Denied) });
        }
        Terms::Inbound(port) => &port.http,
        Terms::Outside(table) => table,
        Terms::NoPort => return refused(Reason::NoRoute),
        Terms::Unconfigured => return refused(Reason::ConfigPending),
    };
    match facts.fault {
        None => Ok(table),
        // Where a head is broken nobody can say what the bytes behind it are.
        Some(Fault { status, reason, why }) => {
            let last = matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED);
            Err(TurnedAway { status, reason, last, why: Some(why) })
        }
    }
}

/// Decides about one request; `draw` as for [`decide`].
///
/// # Errors
/// It is answered before any rule is asked.
pub fn request<'s>(view: Terms<'s>, facts: Facts, head: &RequestHead<'_>, draw: u64) -> Result<Decision<'s>, TurnedAway> {
    Ok(decide(admit(view, facts)?, head, draw))
}
