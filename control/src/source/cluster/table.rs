//! What is watched: one row per kind.

use kube::core::ApiResource;

use crate::world::Kind;

/// How much of an object comes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Name, labels and annotations; the API server leaves out the rest.
    Metadata,
    /// All of it, of those objects alone that others refer to by name.
    Referenced,
}

/// The name of a kind in the paths of the API.
pub(super) const fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::ServiceAccount => "serviceaccounts",
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices",
        Kind::Node => "nodes",
        Kind::Pod => "pods",
        Kind::Secret => "secrets",
        Kind::ConfigMap => "configmaps",
        Kind::Workload => "workloads",
        Kind::Mesh => "meshes",
        Kind::PeerAuthentication => "peerauthentications",
        Kind::Telemetry => "telemetries",
        Kind::GatewayClass => "gatewayclasses",
        Kind::Gateway => "gateways",
        Kind::ListenerSet => "listenersets",
        Kind::HTTPRoute => "httproutes",
        Kind::GRPCRoute => "grpcroutes",
        Kind::TLSRoute => "tlsroutes",
        Kind::TCPRoute => "tcproutes",
        Kind::UDPRoute => "udproutes",
        Kind::ReferenceGrant => "referencegrants",
        Kind::BackendTLSPolicy => "backendtlspolicies",
        Kind::TrafficPolicy => "trafficpolicies",
        Kind::AuthorizationPolicy => "authorizationpolicies",
        Kind::RequestAuthentication => "requestauthentications",
        Kind::EgressPolicy => "egresspolicies",
        Kind::Revocation => "revocations",
        Kind::Canary => "canaries",
        Kind::ApiKeyAuth => "apikeyauths",
        Kind::RateLimit => "ratelimits",
        Kind::ClientPolicy => "clientpolicies",
        Kind::Consumer => "consumers",
        Kind::BasicAuth => "basicauths",
        Kind::ExternalAuth => "externalauths",
        Kind::OidcLogin => "oidclogins",
    }
}

/// How much of a kind's objects is watched.
pub(super) const fn extent(kind: Kind) -> Extent {
    match kind {
        Kind::Namespace | Kind::ServiceAccount | Kind::Node => Extent::Metadata,
        Kind::Secret | Kind::ConfigMap => Extent::Referenced,
        _ => Extent::Whole,
    }
}

/// The kinds that are watched as a whole: all but those of which only what is referred to comes over.
pub(super) fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| extent(*kind) != Extent::Referenced)
}

/// Where a kind is found in the API, at one of its versions.
pub(super) fn resource(kind: Kind, version: &str) -> ApiResource {
    let (group, plural) = (kind.group().to_owned(), plural(kind).to_owned());
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource { group, version: version.to_owned(), api_version, kind: kind.text().to_owned(), plural }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        // Aim: group, version and plural make the path that an API server serves, and no two kinds share one.
        for (kind, version, path) in [
            (Kind::Pod, "v1", "/api/v1/pods"),
            (Kind::EndpointSlice, "v1", "/apis/discovery.k8s.io/v1/endpointslices"),
            (Kind::TCPRoute, "v1alpha2", "/apis/gateway.networking.k8s.io/v1alpha2/tcproutes"),
            (Kind::PeerAuthentication, "v1alpha1", "/apis/meshwright.dev/v1alpha1/peerauthentications"),
        ] {
            let resource = resource(kind, version);
            let url = <kube::core::DynamicObject as kube::Resource>::url_path(&resource, None);
            assert_eq!(url, path);
        }
        let all: std::collections::BTreeSet<_> = Kind::ALL.into_iter().map(plural).collect();
        assert_eq!(all.len(), Kind::ALL.len());
        assert!(!kinds().any(|kind| matches!(kind, Kind::Secret | Kind::ConfigMap)));
    }
}
