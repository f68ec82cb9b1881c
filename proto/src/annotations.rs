//! Labels and annotations that people write on namespaces, pods and Workloads (contract, section 2).

/// Label: `enabled` puts a namespace (or one pod or Workload) into the mesh; any other value takes it out.
pub const INJECT: &str = "meshwright.dev/inject";
/// The value of [`INJECT`] that means yes.
pub const ENABLED: &str = "enabled";
/// Ports that leave untouched, comma-separated.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "meshwright.dev/exclude-outbound-ports";
/// Ports that arrive untouched, comma-separated.
pub const EXCLUDE_INBOUND_PORTS: &str = "meshwright.dev/exclude-inbound-ports";
/// Destinations that leave untouched, comma-separated CIDRs.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "meshwright.dev/exclude-outbound-cidrs";
/// CPU request of the sidecar.
pub const PROXY_CPU: &str = "meshwright.dev/proxy-cpu";
/// Memory request of the sidecar.
pub const PROXY_MEMORY: &str = "meshwright.dev/proxy-memory";
/// Log filter of the sidecar.
pub const LOG_LEVEL: &str = "meshwright.dev/log-level";
/// Ports whose bytes are never looked at, comma-separated.
pub const OPAQUE_PORTS: &str = "meshwright.dev/opaque-ports";
/// Seconds that the application of a pod that is deleted goes on serving before it is told to end; `0`: none.
pub const DRAIN_DELAY: &str = "meshwright.dev/drain-delay";
/// The namespace of the mesh's own objects.
pub const ROOT_NAMESPACE: &str = "meshwright-system";
/// Annotation that says which version's sidecar a pod carries.
pub const INJECTED: &str = "meshwright.dev/injected";
/// Annotation that says why a pod that the injector was asked about carries none.
pub const NOT_INJECTED: &str = "meshwright.dev/not-injected";
/// Audience of the service account tokens with which pods join.
pub const TOKEN_AUDIENCE: &str = "meshwright.dev";
/// ConfigMap of each namespace that holds the mesh's roots under [`CA_KEY`]: whom a pod believes at its first contact.
pub const CA_CONFIG_MAP: &str = "meshwright-ca";
/// See [`CA_CONFIG_MAP`].
pub const CA_KEY: &str = "ca.pem";
/// Our GatewayClass.
pub const GATEWAY_CLASS: &str = "meshwright";
/// Label of what serves a Gateway, as Gateway API names it (GEP-1762): its value is the Gateway's name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The controller name in GatewayClass and in status.
pub const CONTROLLER: &str = "meshwright.dev/controller";

/// TLS option of a listener without `certificateRefs`: `on` asks for a certificate by ACME, where a ClientPolicy says from whom; and the label of
/// the Secrets that hold such certificates.
pub const ACME: &str = "meshwright.dev/acme";
/// The value of [`ACME`] that means yes.
pub const ACME_ON: &str = "on";

/// Whether a workload is meshed: its own label decides, else its namespace's.
pub fn meshed(own: Option<&str>, namespace: Option<&str>) -> bool {
    own.or(namespace) == Some(ENABLED)
}
