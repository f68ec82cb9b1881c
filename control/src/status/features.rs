//! What of Gateway API this version claims, by the standard's published names: in a GatewayClass's `supportedFeatures`, from which its
//! conformance suite takes what to test.

/// Sorted, as the standard wants it. Each is proven by the suite (`docs/conformance.md`). A kind that is supported on Services only (TCPRoute,
/// TLSRoute) is not named: the names speak of Gateways. Nor is `GatewayPort8080`, one of whose tests needs an HTTPS listener.
pub const FEATURES: [&str; 39] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
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
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_is_claimed() {
        // Aim: the table of docs/conformance.md names these features and no other.
        let page = include_str!("../../../docs/conformance.md");
        let claimed = page.split_once("| Of | Features |").unwrap().1.split_once("\n\n").unwrap().0;
        let mut named: Vec<&str> = claimed.split('`').skip(1).step_by(2).collect();
        named.sort_unstable();
        assert_eq!(named, FEATURES);
    }

    #[test]
    fn features_are_sorted_and_said_once() {
        // Aim: the standard's own tools compare the list as it stands, and the schema takes 64 names.
        assert!(FEATURES.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(FEATURES.len() <= 64, "the schema takes no more");
    }
}
