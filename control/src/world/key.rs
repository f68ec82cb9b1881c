//! What an object is called.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds we know, in the order in which we print them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the kind of that name")]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Service,
    EndpointSlice,
    Node,
    Pod,
    Secret,
    ConfigMap,
    Workload,
    Mesh,
    PeerAuthentication,
    Telemetry,
    GatewayClass,
    Gateway,
    ListenerSet,
    HTTPRoute,
    GRPCRoute,
    TLSRoute,
    TCPRoute,
    UDPRoute,
    ReferenceGrant,
    BackendTLSPolicy,
    TrafficPolicy,
    AuthorizationPolicy,
    RequestAuthentication,
    EgressPolicy,
    Revocation,
    Canary,
    ApiKeyAuth,
    Consumer,
    BasicAuth,
    RateLimit,
    ExternalAuth,
    OidcLogin,
    ClientPolicy,
    XBackend,
}

/// API group of the core kinds.
pub const CORE: &str = "";
/// API group of EndpointSlice.
pub const DISCOVERY: &str = "discovery.k8s.io";
/// API group of Gateway API.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// API group of Gateway API's experiments.
pub const GATEWAY_API_X: &str = "gateway.networking.x-k8s.io";
/// API group of our own kinds.
pub const OWN: &str = "meshwright.dev";

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 36] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Pod,
        Self::Secret,
        Self::ConfigMap,
        Self::Workload,
        Self::Mesh,
        Self::PeerAuthentication,
        Self::Telemetry,
        Self::GatewayClass,
        Self::Gateway,
        Self::ListenerSet,
        Self::HTTPRoute,
        Self::GRPCRoute,
        Self::TLSRoute,
        Self::TCPRoute,
        Self::UDPRoute,
        Self::ReferenceGrant,
        Self::BackendTLSPolicy,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::EgressPolicy,
        Self::Revocation,
        Self::Canary,
        Self::ApiKeyAuth,
        Self::Consumer,
        Self::BasicAuth,
        Self::RateLimit,
        Self::ExternalAuth,
        Self::OidcLogin,
        Self::ClientPolicy,
        Self::XBackend,
    ];

    /// The name as manifests spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Workload => "Workload",
            Self::Mesh => "Mesh",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Telemetry => "Telemetry",
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::ListenerSet => "ListenerSet",
            Self::HTTPRoute => "HTTPRoute",
            Self::GRPCRoute => "GRPCRoute",
            Self::TLSRoute => "TLSRoute",
            Self::TCPRoute => "TCPRoute",
            Self::UDPRoute => "UDPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTLSPolicy => "BackendTLSPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::EgressPolicy => "EgressPolicy",
            Self::Revocation => "Revocation",
            Self::Canary => "Canary",
            Self::ApiKeyAuth => "ApiKeyAuth",
            Self::Consumer => "Consumer",
            Self::BasicAuth => "BasicAuth",
            Self::RateLimit => "RateLimit",
            Self::ExternalAuth => "ExternalAuth",
            Self::OidcLogin => "OidcLogin",
            Self::ClientPolicy => "ClientPolicy",
            Self::XBackend => "XBackend",
        }
    }

    /// The API group; empty for the core kinds.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::ServiceAccount | Self::Service | Self::Node | Self::Pod | Self::Secret | Self::ConfigMap => CORE,
            Self::EndpointSlice => DISCOVERY,
            Self::XBackend => GATEWAY_API_X,
            Self::GatewayClass
            | Self::Gateway
            | Self::ListenerSet
            | Self::HTTPRoute
            | Self::GRPCRoute
            | Self::TLSRoute
            | Self::TCPRoute
            | Self::UDPRoute
            | Self::ReferenceGrant
            | Self::BackendTLSPolicy => GATEWAY_API,
            Self::Workload
            | Self::Mesh
            | Self::PeerAuthentication
            | Self::Telemetry
            | Self::TrafficPolicy
            | Self::AuthorizationPolicy
            | Self::RequestAuthentication
            | Self::EgressPolicy
            | Self::Revocation
            | Self::Canary
            | Self::ApiKeyAuth
            | Self::Consumer
            | Self::BasicAuth
            | Self::RateLimit
            | Self::ExternalAuth
            | Self::OidcLogin
            | Self::ClientPolicy => OWN,
        }
    }

    /// The versions we read, the preferred one first.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::GatewayClass | Self::Gateway | Self::HTTPRoute | Self::ReferenceGrant => &["v1", "v1beta1"],
            Self::TCPRoute | Self::UDPRoute => &["v1", "v1alpha2"],
            Self::TLSRoute => &["v1", "v1alpha2", "v1alpha3"],
            Self::BackendTLSPolicy => &["v1", "v1alpha3"],
            Self::XBackend => &["v1alpha1"],
            _ if matches!(self.group().as_bytes(), b"meshwright.dev") => &["v1alpha1"],
            _ => &["v1"],
        }
    }

    /// Whether objects of this kind live outside namespaces.
    pub const fn cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }

    /// Whether it is what a cluster says of what runs, and not what somebody wants of the mesh.
    pub const fn runs(self) -> bool {
        matches!(self, Self::EndpointSlice | Self::Node | Self::Pod)
    }

    /// Whether the kind is of our own group, where an unknown field is an error.
    pub fn own(self) -> bool {
        self.group() == OWN
    }

    /// Whether routes of this kind are about HTTP requests.
    pub const fn routes_http(self) -> bool {
        matches!(self, Self::HTTPRoute | Self::GRPCRoute)
    }

    /// Whether routes of this kind are about connections, or datagrams.
    pub const fn routes_streams(self) -> bool {
        matches!(self, Self::TLSRoute | Self::TCPRoute | Self::UDPRoute)
    }

    /// Whether ignoring an object of this kind would leave something open that its author meant to close.
    pub const fn protects(self) -> bool {
        matches!(self, Self::EgressPolicy | Self::BackendTLSPolicy) || self.fails_closed_at_edges()
    }

    /// Whether what an object of this kind is about at a Gateway stays closed where no version of it can be taken.
    pub const fn fails_closed_at_edges(self) -> bool {
        matches!(
            self,
            Self::AuthorizationPolicy
                | Self::RequestAuthentication
                | Self::ApiKeyAuth
                | Self::BasicAuth
                | Self::ExternalAuth
                | Self::OidcLogin
        )
    }

    /// The kind of that name in that group.
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.text() == kind && known.group() == group)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Names one object. Ordered by kind, then namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// `namespace/name`: what ties between objects of one age are broken by.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// A key from its parts.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    /// `Kind namespace/name`, as messages name objects.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
