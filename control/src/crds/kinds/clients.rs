//! ClientPolicy.

use schemars::JsonSchema;

use super::edge::LOCKED;
use super::external::ServiceRef;
use super::parts::{EdgeTarget, HeaderName, Wait, rules};

/// HTTP/3 and the PROXY protocol.
const OVER_UDP: (&str, &str) = (
    "!has(self.http3) || !has(self.http3.enabled) || !self.http3.enabled || !has(self.proxyProtocol) || !has(self.proxyProtocol.mode) || \
     self.proxyProtocol.mode != 'Require'",
    "no balancer says by UDP whom it speaks for; make proxyProtocol.mode Optional, or remove http3",
);

/// What holds for clients before any rule is asked. Targets are Gateways, ListenerSets and their listeners; limits.bodyBytes alone may be said
/// of routes. Without targetRefs: in the root namespace the mesh, else limits.bodyBytes of all routes of the namespace.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[LOCKED, OVER_UDP])))]
pub(in crate::crds) struct ClientPolicySpec {
    /// Gateways, listeners and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// What it sets cannot be changed below.
    locked: Option<bool>,
    /// Who the client is where proxies stand in front.
    client_address: Option<ClientAddress>,
    /// The PROXY protocol, versions 1 and 2.
    proxy_protocol: Option<ProxyProtocol>,
    /// How many may be connected, and how long.
    connections: Option<Connections>,
    /// How long a client may take.
    timeouts: Option<ClientTimeouts>,
    /// How much a request may be.
    limits: Option<ClientLimits>,
    /// HTTP/1.
    http1: Option<Http1>,
    /// HTTP/2.
    http2: Option<Http2>,
    /// HTTP/3, by UDP at the port of each HTTPS listener.
    http3: Option<Http3>,
    /// How paths and names are read.
    path: Option<Paths>,
    /// What is changed before anything is asked.
    headers: Option<ClientHeaders>,
    /// How TLS is ended.
    tls: Option<ClientTls>,
    /// From whom certificates are ordered for HTTPS listeners with a hostname and without certificateRefs.
    acme: Option<Acme>,
}

/// Certificates by ACME (RFC 8555). Taken whole: a listener's own says all of it.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[(
    "has(self.dns01) == (has(self.challenge) && self.challenge == 'Dns01')",
    "dns01 and the challenge Dns01 need one another",
)])))]
struct Acme {
    /// Where the authority's directory is: https, or http to this machine.
    directory: AcmeDirectory,
    /// Whom the authority tells what concerns the account.
    email: Option<Mailbox>,
    /// How names are proved.
    #[schemars(extend("default" = "TlsAlpn01"))]
    challenge: Option<AcmeChallengeKind>,
    /// Of which kind keys are.
    #[schemars(extend("default" = "P256"))]
    key_type: Option<AcmeKeyKind>,
    /// After so much of its life a certificate is renewed, unless its authority says when.
    #[schemars(range(min = 10, max = 95), extend("default" = 66))]
    renew_at_percent: Option<f64>,
    /// A Secret of the policy's namespace with the account's key (PEM, PKCS #8, P-256); beside it may be ca.crt, whom to believe at the directory,
    /// eab.kid and eab.key, an external account, and dns01.token, what the webhook of the challenge Dns01 is shown.
    account_secret_ref: Option<AccountRef>,
    /// How records come into DNS; with the challenge Dns01 alone.
    dns01: Option<AcmeByDns>,
}

/// How records come into DNS that prove a name.
#[derive(JsonSchema)]
struct AcmeByDns {
    /// Who writes them.
    webhook: AcmeWebhook,
    /// Who is asked whether they are there, ADDRESS or ADDRESS:PORT, in place of the machine's own resolvers.
    #[schemars(length(max = 3))]
    resolvers: Option<Vec<Resolver>>,
}

/// The address of a resolver, with its port or without.
#[derive(JsonSchema)]
struct Resolver(#[schemars(regex(pattern = r"^([0-9.]+(:[0-9]+)?|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\]:[0-9]+)$"), length(max = 64))] String);

/// A Service that writes records into DNS: POST /present and /cleanup with {fqdn, value}.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct AcmeWebhook {
    /// The Service; one of another namespace needs a ReferenceGrant.
    backend_ref: ServiceRef,
    /// How long it is waited for.
    #[schemars(extend("default" = "30s"))]
    timeout: Option<Wait>,
}

/// Where a directory is.
#[derive(JsonSchema)]
struct AcmeDirectory(
    #[schemars(regex(pattern = r"^(https://[^/?#\s]+|http://(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?)([/?#]\S*)?$"), length(max = 1024))]
    String,
);

/// An address of a mailbox.
#[derive(JsonSchema)]
struct Mailbox(#[schemars(regex(pattern = r"^[^@\s,?<>]+@[^@\s,?<>]+$"), length(max = 1024))] String);

/// How a name is proved.
#[derive(JsonSchema)]
enum AcmeChallengeKind {
    TlsAlpn01,
    Http01,
    Dns01,
}

/// A kind of key.
#[derive(JsonSchema)]
enum AcmeKeyKind {
    P256,
    P384,
    Rsa2048,
}

/// An entry of a Secret.
#[derive(JsonSchema)]
struct AccountRef {
    /// Its name.
    name: String,
    /// The entry with the account's key.
    #[schemars(extend("default" = "account.key"))]
    key: Option<String>,
}

/// Who is believed.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[(
    "!has(self.trustedHops) || self.trustedHops == 0 || !has(self.trustedCidrs) || size(self.trustedCidrs) == 0",
    "write either trustedHops or trustedCidrs",
)])))]
struct ClientAddress {
    /// So many proxies stand in front: the client is that entry from the right.
    #[schemars(range(min = 0, max = 16), extend("default" = 0))]
    trusted_hops: Option<u32>,
    /// Proxies at these addresses: the client is the first other one from the right.
    #[schemars(length(max = 256))]
    trusted_cidrs: Option<Vec<AddressRange>>,
    /// Where they say it.
    #[schemars(extend("default" = "XForwardedFor"))]
    header: Option<ForwardedHeader>,
}

/// A range of addresses, or an address.
#[derive(JsonSchema)]
struct AddressRange(#[schemars(regex(pattern = "^[0-9A-Fa-f.:/]+$"), length(max = 64))] String);

/// Where proxies say for whom they ask.
#[derive(JsonSchema)]
enum ForwardedHeader {
    XForwardedFor,
    Forwarded,
}

/// The PROXY protocol.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[(
    "!has(self.mode) || self.mode != 'Optional' || has(self.trustedCidrs) && size(self.trustedCidrs) > 0",
    "name those who may send it in trustedCidrs, or Require it of all",
)])))]
struct ProxyProtocol {
    /// Whether it is asked for.
    #[schemars(extend("default" = "Off"))]
    mode: Option<ProxyMode>,
    /// Who may send it; none, where it is required: everybody.
    #[schemars(length(max = 256))]
    trusted_cidrs: Option<Vec<AddressRange>>,
    /// How long it may take, at most 1h.
    timeout: Option<ClientWait>,
}

/// Whether the PROXY protocol is asked for.
#[derive(JsonSchema)]
enum ProxyMode {
    Off,
    Require,
    Optional,
}

/// Some time, at most an hour.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) > duration('0s') && duration(self) <= duration('1h')", "use 1ms to 1h",
)])))]
struct ClientWait(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// Some time, at most thirty days.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) > duration('0s') && duration(self) <= duration('720h')", "use 1ms to 720h",
)])))]
struct ClientLife(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// At most thirty days; 0s: for ever.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) <= duration('720h')", "use at most 720h")])))]
struct ClientAge(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// At most two years; 0s: nothing is said.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) <= duration('17520h')", "use at most 17520h")])))]
struct StrictAge(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// At most an hour; 0s: any time.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) <= duration('1h')", "use at most 1h")])))]
struct ClientPause(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// How many may be connected, and how long. 0: any number.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Connections {
    /// Clients at once, of each proxy.
    #[schemars(range(min = 1, max = 1_000_000))]
    max: Option<u32>,
    /// Of one address, or one /64 of IPv6.
    #[schemars(range(min = 0, max = 1_000_000))]
    per_address: Option<u32>,
    /// New ones in a second.
    #[schemars(range(min = 0, max = 1_000_000))]
    new_per_second: Option<u32>,
    /// How long one is kept without an exchange.
    idle: Option<ClientLife>,
    /// How long in all; 0s: for ever.
    max_age: Option<ClientAge>,
    /// Requests of one connection.
    #[schemars(range(min = 0, max = 1_000_000))]
    max_requests: Option<u32>,
    /// How long clients are let in after a proxy said that it ends.
    readiness_grace: Option<ClientPause>,
    /// How long they may take to go after they were told. Default: 30s.
    go_away_grace: Option<ClientPause>,
}

/// A second to an hour; 0s: never.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) == duration('0s') || duration(self) >= duration('1s') && duration(self) <= duration('1h')", "use 1s to 1h, or 0s",
)])))]
struct ClientPing(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// How long a client may take.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ClientTimeouts {
    /// For its TLS handshake.
    tls_handshake: Option<ClientWait>,
    /// For the head of a request.
    request_headers: Option<ClientWait>,
    /// For the next piece of a body.
    body_idle: Option<ClientPause>,
    /// Taking nothing of an answer.
    write_stall: Option<ClientPause>,
    /// How fast a body must come, while it is waited for.
    #[schemars(range(min = 0, max = 1_000_000))]
    min_bytes_per_second: Option<u32>,
}

/// How much a request may be.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ClientLimits {
    /// Bytes of its head: 431.
    #[schemars(range(min = 1024, max = 65_536))]
    header_bytes: Option<u32>,
    /// Fields of its head: 431.
    #[schemars(range(min = 1, max = 100))]
    headers: Option<u32>,
    /// Bytes of path and query: 414.
    #[schemars(range(min = 1, max = 65_536))]
    uri_bytes: Option<u32>,
    /// Bytes of its body, also where nobody says how long it is: 413. 0: any number.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_u64))]
    body_bytes: Option<u64>,
}

/// HTTP/1.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Http1 {
    /// Whether it is spoken.
    enabled: Option<bool>,
    /// Whether HTTP/1.0 is.
    allow10: Option<bool>,
    /// Whether names of headers keep the case in which they came.
    keep_header_case: Option<bool>,
}

/// HTTP/2.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    ("has(self.streamWindow) == has(self.connectionWindow)", "say both windows, or neither"),
    (
        "!has(self.streamWindow) || !has(self.connectionWindow) || self.connectionWindow >= self.streamWindow * (has(self.maxStreams) ? self.maxStreams : 100)",
        "a connectionWindow below maxStreams times streamWindow: one stream that is not read would stop the others",
    ),
])))]
struct Http2 {
    /// Whether it is spoken.
    enabled: Option<bool>,
    /// Requests at once on a connection.
    #[schemars(range(min = 1, max = 2048))]
    max_streams: Option<u32>,
    /// Window of a stream; said together with the connection's. Without: as much as there is room for.
    #[schemars(range(min = 65_535, max = 2_147_483_647))]
    stream_window: Option<u32>,
    /// Window of a connection.
    #[schemars(range(min = 65_535, max = 2_147_483_647))]
    connection_window: Option<u32>,
    /// Requests that may be taken back in a minute.
    #[schemars(range(min = 1, max = 1_000_000))]
    resets_per_minute: Option<u32>,
    /// How often a client is asked whether it lives. Default: 0s.
    ping_interval: Option<ClientPing>,
}

/// HTTP/3.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Http3 {
    /// Whether it is spoken.
    enabled: Option<bool>,
    /// How long clients may remember that it is (`alt-svc`).
    alt_svc_max_age: Option<AltSvcAge>,
}

/// One second to thirty days.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) >= duration('1s') && duration(self) <= duration('720h')", "use 1s to 720h",
)])))]
struct AltSvcAge(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// How paths and names are read.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Paths {
    /// What becomes of %2F and %5C.
    escaped_slashes: Option<EscapedSlashes>,
    /// What becomes of headers with an underscore in their names.
    underscore_headers: Option<UnderscoreHeaders>,
}

/// What becomes of %2F and %5C.
#[derive(JsonSchema)]
enum EscapedSlashes {
    Keep,
    Reject,
    Decode,
}

/// What becomes of headers with an underscore in their names.
#[derive(JsonSchema)]
enum UnderscoreHeaders {
    Drop,
    Keep,
    Reject,
}

/// What is changed before anything is asked.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ClientHeaders {
    /// Of requests.
    early: Option<EarlyHeaders>,
    /// Whether the id that a trusted proxy gave a request is kept.
    request_id: Option<RequestId>,
    /// For how long clients are told to come by TLS only, at most 17520h; 0s: they are not.
    hsts: Option<StrictAge>,
    /// Whether what a client's certificate proves is told on.
    forward_client_cert: Option<ForwardClientCert>,
}

/// Headers of requests.
#[derive(JsonSchema)]
struct EarlyHeaders {
    /// Set, whatever the client says there.
    #[schemars(length(max = 16))]
    set: Option<Vec<EarlyHeader>>,
    /// Taken off.
    #[schemars(length(max = 16))]
    remove: Option<Vec<HeaderName>>,
}

/// A header.
#[derive(JsonSchema)]
struct EarlyHeader {
    /// Its name.
    name: HeaderName,
    /// What it says.
    #[schemars(length(max = 2048))]
    value: String,
}

/// Who gives a request its id.
#[derive(JsonSchema)]
enum RequestId {
    Generate,
    KeepTrusted,
}

/// What becomes of what a client's certificate proves.
#[derive(JsonSchema)]
enum ForwardClientCert {
    Set,
    Drop,
}

/// How TLS is ended.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    ("!has(self.profile) || self.profile != 'Strict13' || !has(self.minVersion) || self.minVersion != '1.2'", "the profile Strict13 has no TLS 1.2"),
    ("!has(self.profile) || self.profile != 'Compatible' || !has(self.minVersion) || self.minVersion != '1.3'", "the profile Compatible is about TLS 1.2"),
])))]
struct ClientTls {
    /// Which versions and cipher suites.
    profile: Option<TlsProfile>,
    /// The oldest version.
    min_version: Option<TlsMinimum>,
    /// How sessions are resumed.
    session_tickets: Option<SessionTickets>,
    /// Whether what a certificate's authority says of it is shown.
    #[schemars(extend("default" = "IfGiven"))]
    ocsp_stapling: Option<OcspStapling>,
}

/// Which versions and cipher suites.
#[derive(JsonSchema)]
enum TlsProfile {
    Modern,
    Compatible,
    Strict13,
}

/// The oldest version.
#[derive(JsonSchema)]
enum TlsMinimum {
    #[schemars(rename = "1.2")]
    V12,
    #[schemars(rename = "1.3")]
    V13,
}

/// How sessions are resumed.
#[derive(JsonSchema)]
struct SessionTickets {
    /// How often keys are turned: whole hours, 1h to 168h. Default: 12h.
    #[schemars(regex(pattern = "^([1-9]|[1-9][0-9]|1[0-5][0-9]|16[0-8])h$"))]
    rotate: Option<String>,
}

/// Whether what a certificate's authority says of it is shown.
#[derive(JsonSchema)]
enum OcspStapling {
    IfGiven,
}
