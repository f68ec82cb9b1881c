//! HTTP/3 at an edge: which ports have it beside TLS, by UDP at the same number, and what stands in its way.

use prost_types::Duration;
use proto::mesh::ClientHttp3;

use crate::translate::edge_listeners::{Edge, Family};
use crate::world::edge::ClientPolicy;

/// What a proxy is told of a port, by what holds for its socket; `None`: it has none.
pub(super) fn sent(edge: &Edge<'_>, (port, family): (u16, Family), socket: &ClientPolicy) -> Option<ClientHttp3> {
    if family != Family::Tls || socket.http3 != Some(true) || hindrance(edge, port, socket).is_some() {
        return None;
    }
    // Clients count seconds.
    let seconds = socket.alt_svc_max_age.and_then(|age| i64::try_from(age.as_secs()).ok());
    Some(ClientHttp3 { alt_svc_max_age: seconds.map(|seconds| Duration { seconds, nanos: 0 }) })
}

/// Why a port has none that is asked for.
pub(super) fn hindrance(edge: &Edge<'_>, port: u16, socket: &ClientPolicy) -> Option<String> {
    if !edge.at(port, Family::Tls).any(|(_, judged)| judged.listener.protocol == "HTTPS") {
        return Some(format!("port {port} has no listener for HTTPS"));
    }
    if let Some((_, other)) = edge.at(port, Family::Udp).next() {
        return Some(format!("port {port} is the listener {}'s for UDP", other.listener.name));
    }
    let required = socket.proxy.as_ref().is_some_and(|proxy| proxy.required);
    required.then(|| format!("at port {port} the PROXY protocol is required, which UDP does not carry"))
}
