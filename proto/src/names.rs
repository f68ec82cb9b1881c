//! Names of the resources on our ADS stream. Proxies and control plane build and read them here only.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The one [`crate::mesh::Epoch`] resource.
pub const EPOCH: &str = "epoch";
/// The one [`crate::mesh::ProxyConfig`] resource.
pub const PROXY: &str = "proxy";
/// The one [`crate::mesh::Egress`] resource.
pub const EGRESS: &str = "egress";
/// The one [`crate::mesh::Trust`] resource.
pub const TRUST: &str = "trust";
/// The Secret that holds the trust bundle.
pub const ROOT_CA: &str = "ROOTCA";
/// Trailer of a refusal that says that the caller itself is revoked, and by what: `identity` or `serial`.
pub const REVOKED: &str = "meshwright-revoked";
/// The sidecar's inbound Listener.
pub const INBOUND: &str = "inbound";
/// ALPN between sidecars: HTTP/1.1.
pub const ALPN_H1: &str = "mw-h1";
/// ALPN between sidecars: HTTP/2.
pub const ALPN_H2: &str = "mw-h2";
/// ALPN between sidecars: opaque bytes.
pub const ALPN_TCP: &str = "mw-tcp";
/// All that mesh peers offer each other, as transport sockets and filter chains list it.
pub const ALPN_MESH: [&str; 3] = [ALPN_H1, ALPN_H2, ALPN_TCP];
/// The Secret that a TLS context names for the proxy's own certificate (which never travels by ADS to our own proxies).
pub const LEAF: &str = "default";
/// Port of the address that the [`INBOUND`] Listener names (contract, section 3); a proxy may be told to listen elsewhere.
pub const INBOUND_PORT: u16 = 15006;
/// The cluster whose share of requests is answered 500 `bad_backend`.
pub const BAD_BACKEND: &str = "bad_backend";
/// Key of our own facts in Envoy `Metadata.filter_metadata` and in Node metadata keys' prefix.
pub const METADATA: &str = "meshwright.dev";
/// Key of our own policy among the extensions of Envoy's routes, weighted clusters and clusters.
pub const POLICY: &str = "meshwright.dev/policy";
/// Keys of our own facts, below [`METADATA`].
pub mod fact {
    /// Namespace of a cluster's Service, or of an endpoint's workload.
    pub const NAMESPACE: &str = "namespace";
    /// Service of a cluster; `NS/NAME` on an inbound filter chain.
    pub const SERVICE: &str = "service";
    /// What a cluster's application speaks.
    pub const PROTOCOL: &str = "protocol";
    /// Workload of an endpoint.
    pub const WORKLOAD: &str = "workload";
    /// Instance of an endpoint.
    pub const INSTANCE: &str = "instance";
    /// SPIFFE identity of an endpoint; exactly mesh peers have one.
    pub const IDENTITY: &str = "identity";
    /// Reason code of a route's fixed answer.
    pub const REASON: &str = "reason";
}
/// Envoy's own metadata key that chooses among a cluster's transport sockets.
pub const SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// The one entry of [`SOCKET_MATCH`]: key and value of mesh peers.
pub const TLS_MODE_MESH: (&str, &str) = ("tlsMode", "mesh");
/// Node metadata key that says which kind of client speaks.
pub const NODE_CLIENT: &str = "meshwright.dev/client";
/// Node metadata key with `NS/NAME` of the workload.
pub const NODE_WORKLOAD: &str = "meshwright.dev/workload";
/// Node metadata key with the instance of a Gateway's proxy (its pod), where it is one of several: they have one node id.
pub const NODE_REPLICA: &str = "meshwright.dev/replica";

/// A Listener that a sidecar asks for at the first connection to that address.
pub fn outbound(address: SocketAddr) -> String {
    format!("out/{address}")
}

/// The address of an [`outbound`] name; `None` for any other name.
pub fn outbound_address(name: &str) -> Option<SocketAddr> {
    name.strip_prefix("out/")?.parse().ok()
}

/// Name of a page of the consumers that a Gateway's objects can use.
pub fn consumers(page: u8) -> String {
    format!("consumers/{page:02x}")
}

/// The Listener of an edge proxy for one port of its Gateway.
pub fn edge(port: u16) -> String {
    format!("edge/{port}")
}

/// The port of an [`edge`] name.
pub fn edge_port(name: &str) -> Option<u16> {
    name.strip_prefix("edge/")?.parse().ok()
}

/// The route table of one HTTPS listener, by the name of its filter chain, of an edge proxy's port.
pub fn edge_listener(port: u16, listener: &str) -> String {
    format!("edge/{port}/{listener}")
}

/// The Listener of an edge proxy for the datagrams of one port of its Gateway.
pub fn edge_udp(port: u16) -> String {
    format!("edge/{port}/udp")
}

/// The port of an [`edge_udp`] name.
pub fn edge_udp_port(name: &str) -> Option<u16> {
    name.strip_prefix("edge/")?.strip_suffix("/udp")?.parse().ok()
}

/// The Secret of an edge proxy's certificate, by the Kubernetes Secret that it comes from.
pub fn certificate(namespace: &str, secret: &str) -> String {
    format!("tls/{namespace}/{secret}")
}

/// The Secret that no listener ever gets: what a chain names that may show no certificate at all.
pub const NO_CERTIFICATE: &str = "tls/none";

/// The Secret with the CAs of the clients of a Gateway's port; 0: of every port without a word of its own.
pub fn client_cas(namespace: &str, gateway: &str, port: u16) -> String {
    format!("ca/frontend/{namespace}/{gateway}/{port}")
}

/// Hours after which keys of session tickets are turned where nobody says.
pub const TICKET_HOURS: u32 = 12;

/// The Secret with what a Gateway's session tickets are made with, of listeners that turn its keys after so many hours.
pub fn tickets(namespace: &str, gateway: &str, hours: u32) -> String {
    match hours {
        TICKET_HOURS => format!("tickets/{namespace}/{gateway}"),
        hours => format!("tickets/{namespace}/{gateway}/{hours}h"),
    }
}

/// What names of Secrets begin with that prove to a certificate authority whose a name is ([`challenge_answer`], [`challenge_certificate`]).
pub const CHALLENGE: &str = "acme/";

/// The Secret with what is answered to who asks that host for a token of a certificate authority (RFC 8555, section 8.3). Of the host alone: who may
/// prove one name of a Gateway must not prove its others by it.
pub fn challenge_answer(host: &str, token: &str) -> String {
    format!("{CHALLENGE}http/{host}/{token}")
}

/// The Secret with the certificate that is shown to a certificate authority which asks for that host (RFC 8737).
pub fn challenge_certificate(host: &str) -> String {
    format!("{CHALLENGE}tls/{host}")
}

/// Cluster of a Service port for datagrams.
pub fn service_datagrams(namespace: &str, service: &str, port: u16) -> String {
    format!("{namespace}/{service}:{port}/udp")
}

/// A DNS question as a resource; lower case, no trailing dot.
pub fn dns(host: &str) -> String {
    format!("dns/{}", host.trim_end_matches('.').to_ascii_lowercase())
}

/// The host of a [`dns`] name.
pub fn dns_host(name: &str) -> Option<&str> {
    name.strip_prefix("dns/")
}

/// Cluster (and route table) of a Service port: `NS/SERVICE:PORT`.
pub fn service_port(namespace: &str, service: &str, port: u16) -> String {
    format!("{namespace}/{service}:{port}")
}

/// Cluster of one instance's port, for calls to its own address: `pod/NS/INSTANCE:PORT`.
pub fn instance_port(namespace: &str, instance: &str, port: u16) -> String {
    format!("pod/{namespace}/{instance}:{port}")
}

/// What the one rule of an object without rules of its own is called.
pub const DEFAULT_RULE: &str = "default";

/// A rule of a route table, by the object that wrote it: `KIND/NAMESPACE/NAME/RULE`.
pub fn rule(kind: &str, namespace: &str, name: &str, rule: &str) -> String {
    format!("{kind}/{namespace}/{name}/{rule}")
}

/// Kind, namespace, name and rule of a [`rule`] name; `None` for any other name. A rule's own name may hold slashes.
pub fn rule_parts(name: &str) -> Option<[&str; 4]> {
    let mut parts = name.splitn(4, '/');
    Some([parts.next()?, parts.next()?, parts.next()?, parts.next()?])
}

/// Node id of our own proxies: `<sidecar|edge>/<namespace>/<instance>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Sidecar or edge.
    pub mode: Mode,
    /// Namespace of the workload or Gateway.
    pub namespace: String,
    /// Instance name.
    pub instance: String,
}

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Beside one workload instance.
    Sidecar,
    /// A Gateway's.
    Edge,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Sidecar => "sidecar",
            Mode::Edge => "edge",
        };
        write!(f, "{mode}/{}/{}", self.namespace, self.instance)
    }
}

/// A node id that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node id of the form sidecar|edge/NAMESPACE/INSTANCE")]
pub struct NotANodeId(pub String);

impl FromStr for NodeId {
    type Err = NotANodeId;

    fn from_str(text: &str) -> Result<Self, NotANodeId> {
        let wrong = || NotANodeId(text.chars().take(300).collect());
        let mut parts = text.split('/');
        let (Some(mode), Some(namespace), Some(instance), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let mode = match mode {
            "sidecar" => Mode::Sidecar,
            "edge" => Mode::Edge,
            _ => return Err(wrong()),
        };
        if namespace.is_empty() || instance.is_empty() {
            return Err(wrong());
        }
        Ok(Self { mode, namespace: namespace.to_owned(), instance: instance.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: every name that one side writes, the other reads, in both address families.
    #[test]
    fn names_round_trip() {
        for text in ["10.96.0.1:80", "[fd00:6d77::1]:443"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(outbound_address(&outbound(address)), Some(address));
        }
        assert_eq!(outbound_address("out/x"), None);
        assert_eq!(edge_port(&edge(8080)), Some(8080));
        assert_eq!((edge_udp_port(&edge_udp(53)), edge_port(&edge_udp(53))), (Some(53), None));
        assert_eq!(edge_listener(443, "shop"), "edge/443/shop");
        assert_eq!(dns("Catalog.Shop."), "dns/catalog.shop");
        assert_eq!(dns_host("dns/catalog.shop"), Some("catalog.shop"));
        assert_eq!(rule_parts(&rule("HTTPRoute", "shop", "catalog", "a/b")), Some(["HTTPRoute", "shop", "catalog", "a/b"]));
        assert_eq!(rule_parts("inbound"), None);
        let id: NodeId = "sidecar/shop/catalog-v2-0".parse().unwrap();
        assert_eq!(id.to_string(), "sidecar/shop/catalog-v2-0");
        assert!("router/shop/x".parse::<NodeId>().is_err());
        assert!("sidecar/shop".parse::<NodeId>().is_err());
    }

    proptest::proptest! {
        /// Aim: no name makes the readers panic, and what they read is written the same.
        #[test]
        fn any_name_is_survived(text in "(out/|edge/|dns/|sidecar/|edge/)?(\\PC{0,40}|[0-9a-f:.\\[\\]/%]{0,40})") {
            if let Some(address) = outbound_address(&text) {
                proptest::prop_assert_eq!(outbound_address(&outbound(address)), Some(address));
            }
            edge_port(&text);
            edge_udp_port(&text);
            dns_host(&text);
            if let Ok(id) = text.parse::<NodeId>() {
                proptest::prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
