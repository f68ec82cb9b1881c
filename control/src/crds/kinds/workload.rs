//! Workload.

use schemars::JsonSchema;

use super::parts::{Port, SUBDOMAIN, rules};

/// A process outside Kubernetes.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "(has(self.command) && size(self.command) > 0) != (has(self.addresses) && size(self.addresses) > 0)",
            "give it a command (under `up`) or addresses (where it runs elsewhere)",
        ),
        (
            "!has(self.addresses) || size(self.addresses) == 0 || !(has(self.replicas) || has(self.workingDir) || has(self.env) || has(self.readinessProbe))",
            "replicas, workingDir, env and readinessProbe mean nothing without a command",
        ),
    ])),
)]
pub(in crate::crds) struct WorkloadSpec {
    /// The account of its identity.
    #[schemars(regex(pattern = SUBDOMAIN), length(max = 253), extend("default" = "default"))]
    service_account: Option<String>,
    /// How many instances `up` starts; absent: 1.
    #[schemars(range(max = 1000))]
    replicas: Option<u32>,
    /// What `up` starts.
    #[schemars(length(max = 1000))]
    command: Option<Vec<String>>,
    /// Where it runs, if not under `up`.
    #[schemars(length(max = 1000))]
    addresses: Option<Vec<Address>>,
    /// Working directory; absent: the manifests' folder.
    working_dir: Option<String>,
    /// Environment.
    #[schemars(length(max = 1000))]
    env: Option<Vec<Variable>>,
    /// Declared ports, each number and name once.
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port"]))]
    ports: Option<Vec<WorkloadPort>>,
    /// When it is ready; absent: once its first port can be connected to.
    readiness_probe: Option<Probe>,
    /// Where it is.
    locality: Option<Locality>,
    /// Weight of each of its endpoints.
    #[schemars(range(min = 1, max = 1000), extend("default" = 1))]
    weight: Option<u32>,
}

/// An IP address.
#[derive(JsonSchema)]
struct Address(#[schemars(regex(pattern = "^([0-9]{1,3}([.][0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)$"))] String);

/// A variable of the environment.
#[derive(JsonSchema)]
struct Variable {
    /// Its name.
    #[schemars(regex(pattern = "^[^=\\x00]+$"))]
    name: String,
    /// Its value.
    value: Option<String>,
}

/// A declared port.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct WorkloadPort {
    /// Its name.
    name: Option<String>,
    /// Its number.
    port: Port,
    /// TCP, or UDP, which passes outside the mesh's TLS.
    #[schemars(extend("default" = "TCP"))]
    protocol: Option<Protocol>,
    /// What it speaks, such as http or grpc.
    app_protocol: Option<String>,
}

/// TCP, or UDP, which passes outside the mesh's TLS.
#[derive(JsonSchema)]
#[allow(clippy::upper_case_acronyms, reason = "as Kubernetes writes it")]
enum Protocol {
    TCP,
    UDP,
}

/// The kubelet's probe; without httpGet, tcpSocket and exec: a connection to the first port.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "(has(self.httpGet) ? 1 : 0) + (has(self.tcpSocket) ? 1 : 0) + (has(self.exec) ? 1 : 0) <= 1",
        "more than one kind of probe; use one of httpGet, tcpSocket, exec",
    )])),
)]
struct Probe {
    /// GET; any answer below 400 is a success.
    http_get: Option<HttpGet>,
    /// A connection.
    tcp_socket: Option<TcpSocket>,
    /// A command that ends with 0.
    exec: Option<Exec>,
    /// Between two probes.
    #[schemars(range(min = 1, max = 86_400), extend("default" = 10))]
    period_seconds: Option<u32>,
    /// For one probe.
    #[schemars(range(min = 1, max = 86_400), extend("default" = 1))]
    timeout_seconds: Option<u32>,
    /// Failures until it counts as not ready.
    #[schemars(range(min = 1, max = 86_400), extend("default" = 3))]
    failure_threshold: Option<u32>,
    /// Before the first.
    #[schemars(range(min = 0, max = 86_400), extend("default" = 0))]
    initial_delay_seconds: Option<u32>,
    /// Successes until it counts as ready: 1.
    #[schemars(range(min = 1, max = 1), extend("default" = 1))]
    success_threshold: Option<u32>,
}

/// GET.
#[derive(JsonSchema)]
struct HttpGet {
    /// Path and query.
    #[schemars(regex(pattern = "^[^\\s]*$"), extend("default" = "/"))]
    path: Option<String>,
    /// Number or name of a port.
    port: PortRef,
    /// HTTP.
    scheme: Option<Scheme>,
}

/// HTTP.
#[derive(JsonSchema)]
#[allow(clippy::upper_case_acronyms, reason = "as Kubernetes writes it")]
enum Scheme {
    HTTP,
}

/// A connection.
#[derive(JsonSchema)]
struct TcpSocket {
    /// Number or name of a port.
    port: PortRef,
}

/// A command.
#[derive(JsonSchema)]
struct Exec {
    /// The program and its arguments.
    #[schemars(length(max = 1000))]
    command: Vec<String>,
}

/// Number or name of a port.
struct PortRef;

impl JsonSchema for PortRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PortRef".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"x-kubernetes-int-or-string": true})
    }
}

/// Where it is.
#[derive(JsonSchema)]
struct Locality {
    /// Its region.
    region: Option<String>,
    /// Its zone.
    zone: Option<String>,
}
