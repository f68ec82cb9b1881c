//! What of Gateway API this version claims, by the standard's published names: in a GatewayClass's `supportedFeatures`, from which its
//! conformance suite takes what to test.

/// Sorted, as the standard wants it. Each is proven by the suite (`docs/conformance.md`). Not named: `GatewayInfrastructure` (nothing is made
/// for a Gateway that its labels could go to) and `GatewayStaticAddresses` (in a cluster, addresses are those of the Services in front).
pub const FEATURES: [&str; 53] = [
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// What is claimed beside that where the cluster's definitions are those of the experimental channel: fields that the standard one drops.
pub(super) const EXPERIMENTAL: [&str; 1] = ["HTTPRouteRetry"];

/// What is claimed, sorted; `channel`: that of the cluster's definitions of Gateway API, where known.
pub(super) fn claimed(channel: Option<&str>) -> Vec<&'static str> {
    let further = if channel == Some("experimental") { &EXPERIMENTAL[..] } else { &[] };
    let mut claimed = [&FEATURES[..], further].concat();
    claimed.sort_unstable();
    claimed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_is_claimed() {
        // Aim: the table of docs/conformance.md names these features and no other.
        let page = include_str!("../../../docs/conformance.md");
        let said = page.split_once("| Of | Features |").unwrap().1.split_once("\n\n").unwrap().0;
        let mut named: Vec<&str> = said.split('`').skip(1).step_by(2).collect();
        named.sort_unstable();
        assert_eq!(named, claimed(Some("experimental")));
    }

    #[test]
    fn features_are_sorted_and_said_once() {
        // Aim: the standard's own tools compare the list as it stands, and the schema takes 64 names.
        for (channel, count) in [(None, FEATURES.len()), (Some("standard"), FEATURES.len()), (Some("experimental"), FEATURES.len() + 1)] {
            let claimed = claimed(channel);
            assert!(claimed.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(claimed.len(), count, "{channel:?}");
            assert!(claimed.len() <= 64, "the schema takes no more");
        }
        assert!(FEATURES.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
