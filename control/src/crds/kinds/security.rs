//! Kinds that say who may do what: PeerAuthentication, AuthorizationPolicy, RequestAuthentication, EgressPolicy, Revocation.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::edge::SecretEntry;
use super::parts::{Duration, EdgeTarget, HeaderMatch, HeaderName, OnError, Port, Short, Wait, WorkloadChoice, rules};

/// Demands on the inbound side.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        ("has(self.mtls) || has(self.portLevelMtls)", "it sets no mode; add mtls.mode or portLevelMtls"),
    ])),
)]
pub(in crate::crds) struct PeerAuthenticationSpec {
    /// Serving workloads it is about.
    selector: Option<WorkloadChoice>,
    /// The mode of every port.
    mtls: Option<Mtls>,
    /// Exceptions, by the workload's port number.
    #[schemars(extend(
        "maxProperties" = 256,
        "x-kubernetes-validations" = rules(&[(
            "self.all(port, port.matches('^0*[1-9][0-9]{0,4}$') && int(port) <= 65535)",
            "a key is the workload's port number, in quotes",
        )]),
    ))]
    port_level_mtls: Option<BTreeMap<String, Mtls>>,
}

/// Whether callers must be of the mesh.
#[derive(JsonSchema)]
struct Mtls {
    /// Strict: mesh TLS only; Permissive: plaintext too; Disabled: plaintext only.
    mode: MtlsMode,
}

/// Whether callers must be of the mesh.
#[derive(JsonSchema)]
enum MtlsMode {
    Strict,
    Permissive,
    Disabled,
}

/// Who may call. Policies add up: Deny first, then Allow.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "!has(self.selector) || !has(self.selector.matchLabels) || size(self.selector.matchLabels) == 0 || !has(self.targetRefs) || size(self.targetRefs) == 0",
        "it has both targetRefs and a selector; keep one of them",
    )])),
)]
pub(in crate::crds) struct AuthorizationPolicySpec {
    /// Gateways and routes, where an edge judges.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// Serving workloads, whose sidecars judge; with neither: the whole namespace.
    selector: Option<WorkloadChoice>,
    /// What it does to a call that one of its rules holds for.
    #[schemars(extend("default" = "Allow"))]
    action: Option<Action>,
    /// Whether it only logs and counts.
    dry_run: Option<bool>,
    /// One of them must hold; none: it matches nothing.
    #[schemars(length(max = 1000))]
    rules: Option<Vec<Rule>>,
}

/// What becomes of a call.
#[derive(JsonSchema)]
enum Action {
    Allow,
    Deny,
    Audit,
}

/// Every block that is there must hold; of a block any item.
#[derive(JsonSchema)]
struct Rule {
    /// By which logs name it; absent: its place.
    #[schemars(regex(pattern = "^[A-Za-z0-9._-]+$"), length(min = 1, max = 63))]
    name: Option<String>,
    /// Who calls.
    #[schemars(length(min = 1, max = 64))]
    from: Option<Vec<Source>>,
    /// What is asked for.
    #[schemars(length(min = 1, max = 64))]
    to: Option<Vec<Target>>,
    /// What must not be so.
    not: Option<Not>,
    /// A condition in CEL.
    #[schemars(length(min = 1, max = 4096))]
    when: Option<String>,
}

/// What must not be so.
#[derive(JsonSchema)]
#[schemars(extend("minProperties" = 1))]
struct Not {
    /// Who calls.
    #[schemars(length(min = 1, max = 64))]
    from: Option<Vec<Source>>,
    /// What is asked for.
    #[schemars(length(min = 1, max = 64))]
    to: Option<Vec<Target>>,
}

/// Who calls; of every list that is there one item must hold.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1))]
struct Source {
    /// SPIFFE identities, or their beginning or end with `*` for the rest.
    #[schemars(length(min = 1, max = 256))]
    principals: Option<Vec<Principal>>,
    /// Namespaces, or their beginning or end with `*` for the rest.
    #[schemars(length(min = 1, max = 256))]
    namespaces: Option<Vec<NamespacePattern>>,
    /// Ranges of addresses.
    #[schemars(length(min = 1, max = 256))]
    ip_blocks: Option<Vec<Range>>,
    /// A token that was verified; {}: any.
    jwt: Option<Token>,
    /// Ranges of the TCP peer's address, whoever is behind it.
    #[schemars(length(min = 1, max = 256))]
    peer_ip_blocks: Option<Vec<Range>>,
    /// Consumers, NAMESPACE/NAME, or their beginning or end with `*` for the rest.
    #[schemars(length(min = 1, max = 256))]
    consumers: Option<Vec<ConsumerPattern>>,
    /// Groups that the consumer is in.
    #[schemars(length(min = 1, max = 256))]
    consumer_groups: Option<Vec<Group>>,
    /// What the credential must be good for: all of them.
    #[schemars(length(min = 1, max = 256))]
    scopes: Option<Vec<Short>>,
    /// How the caller proved who it is.
    #[schemars(length(min = 1, max = 256))]
    auth_methods: Option<Vec<AuthMethod>>,
    /// ConfigMaps with long lists of addresses, one range a line; at Gateways.
    #[schemars(length(min = 1, max = 16))]
    ip_list_refs: Option<Vec<ListRef>>,
}

/// A consumer, or a part of its name with `*` for the rest.
#[derive(JsonSchema)]
struct ConsumerPattern(
    #[schemars(
        regex(pattern = "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9.-]+|[*][a-z0-9.-]*(/[a-z0-9.-]*)?|[a-z0-9.-]*(/[a-z0-9.-]*)?[*])$"),
        length(max = 2048)
    )]
    String,
);

/// A group of consumers.
#[derive(JsonSchema)]
struct Group(#[schemars(regex(pattern = "^[A-Za-z0-9._-]+$"), length(min = 1, max = 63))] String);

/// How a caller proves who it is.
#[derive(JsonSchema)]
enum AuthMethod {
    Cert,
    Jwt,
    ApiKey,
    Basic,
    Login,
}

/// A list of addresses.
#[derive(JsonSchema)]
struct ListRef {
    /// The kind.
    #[schemars(extend("default" = "ConfigMap"))]
    kind: Option<ListKind>,
    /// The object's name, in the policy's namespace.
    name: String,
}

/// What holds a list.
#[derive(JsonSchema)]
enum ListKind {
    ConfigMap,
}

/// A SPIFFE identity, or its beginning or end with `*` for the rest.
#[derive(JsonSchema)]
struct Principal(
    #[schemars(
        regex(pattern = "^([*][A-Za-z0-9._/-]*|s(p(i(f(f(e(:(/)?)?)?)?)?)?)?[*]|spiffe://[A-Za-z0-9._/-]*[*]?)$"),
        length(max = 2048)
    )]
    String,
);

/// A namespace, or its beginning or end with `*` for the rest.
#[derive(JsonSchema)]
struct NamespacePattern(
    #[schemars(regex(pattern = "^([*][a-z0-9-]*|[a-z0-9-]*[*]|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$"), length(min = 1, max = 2048))] String,
);

/// A range of addresses or one address.
#[derive(JsonSchema)]
struct Range(
    #[schemars(
        regex(pattern = "^([0-9]{1,3}([.][0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)(/[0-9]{1,3})?$"),
        length(min = 1, max = 2048)
    )]
    String,
);

/// A token that was verified.
#[derive(JsonSchema)]
struct Token {
    /// Its `iss`.
    issuer: Option<Short>,
    /// Claims, nested ones joined by dots, and the values of which one must be there.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 256))]
    claims: Option<BTreeMap<String, ClaimValues>>,
}

/// Values of which one must be there.
#[derive(JsonSchema)]
struct ClaimValues(#[schemars(length(min = 1, max = 256))] Vec<Short>);

/// What is asked for; of every list that is there one item must hold, of headers all.
#[derive(JsonSchema)]
#[schemars(extend("minProperties" = 1))]
struct Target {
    /// Ports of the workload.
    #[schemars(length(min = 1, max = 256))]
    ports: Option<Vec<Port>>,
    /// Names without a port; `*.SUFFIX` and `PREFIX*`.
    #[schemars(length(min = 1, max = 256))]
    hosts: Option<Vec<CallHost>>,
    /// Methods.
    #[schemars(length(min = 1, max = 256))]
    methods: Option<Vec<CallMethod>>,
    /// Paths.
    #[schemars(length(min = 1, max = 256))]
    paths: Option<Vec<PathPattern>>,
    /// Headers, each name once.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    headers: Option<Vec<HeaderMatch>>,
}

/// A name without a port, or a part of one.
#[derive(JsonSchema)]
struct CallHost(#[schemars(regex(pattern = "^[A-Za-z0-9._*:\\[\\]-]+$"), length(min = 1, max = 2048))] String);

/// A method; none is written in lower case.
#[derive(JsonSchema)]
struct CallMethod(#[schemars(regex(pattern = "^[A-Z0-9!#$%&'*+.^_`|~-]+$"), length(min = 1, max = 2048))] String);

/// A path.
#[derive(JsonSchema)]
struct PathPattern {
    /// How it is compared: PathPrefix by element, Template as in /users/{id}.
    #[schemars(rename = "type", extend("default" = "PathPrefix"))]
    kind: Option<PathKind>,
    /// The pattern.
    #[schemars(regex(pattern = "^[A-Za-z0-9/._~!$&'()*+,;=:@%{}-]+$"), length(min = 1, max = 2048))]
    value: String,
}

/// How a path is compared.
#[derive(JsonSchema)]
enum PathKind {
    Exact,
    PathPrefix,
    Suffix,
    Template,
}

/// Whether a token must be shown.
#[derive(JsonSchema)]
enum TokenMode {
    Optional,
    Required,
}

/// Which tokens are believed, and what becomes of them.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "!has(self.selector) || !has(self.selector.matchLabels) || size(self.selector.matchLabels) == 0 || !has(self.targetRefs) || size(self.targetRefs) == 0",
            "it has both targetRefs and a selector; keep one of them",
        ),
        (
            "!has(self.mode) || self.mode == 'Optional' || has(self.targetRefs) && size(self.targetRefs) > 0",
            "inside the mesh it is an AuthorizationPolicy that demands a token",
        ),
        (
            "has(self.targetRefs) && size(self.targetRefs) > 0 || !has(self.jwtRules) || self.jwtRules.all(rule, !has(rule.consumer))",
            "consumers call at Gateways; name one in targetRefs",
        ),
        (
            "has(self.targetRefs) && size(self.targetRefs) > 0 || !has(self.introspection)",
            "opaque tokens are asked about at Gateways; name one in targetRefs",
        ),
        ("has(self.jwtRules) || has(self.introspection)", "it says nothing of tokens; add jwtRules or introspection"),
    ])),
)]
pub(in crate::crds) struct RequestAuthenticationSpec {
    /// Gateways and routes, where an edge judges.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// Serving workloads it is about.
    selector: Option<WorkloadChoice>,
    /// At an edge: whether a request without a token is let through.
    mode: Option<TokenMode>,
    /// One per issuer.
    #[schemars(length(min = 1, max = 64))]
    jwt_rules: Option<Vec<JwtRule>>,
    /// At an edge: who knows tokens that no rule claims; one.
    #[schemars(length(min = 1, max = 1))]
    introspection: Option<Vec<TokenIntrospection>>,
}

/// An authorization server that says what an opaque token is (RFC 7662).
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[("!has(self.clientSecretRef) || has(self.clientId)", "a secret of nobody; add clientId")])),
)]
struct TokenIntrospection {
    /// Where it is asked; outside the mesh an EgressPolicy must allow it.
    #[schemars(regex(pattern = "^(?i:https?)://[^/@?#\\s]+([/?][^\\s]*)?$"), length(max = 2048))]
    url: String,
    /// Who we are there.
    client_id: Option<Short>,
    /// The entry of a Secret that proves it; without: a public client's word.
    client_secret_ref: Option<SecretEntry>,
    /// How long its word counts, at most 1h. Default: 30s.
    #[schemars(extend(
        "x-kubernetes-validations" = rules(&[("duration(self) <= duration('1h')", "it is longer than an hour")]),
    ))]
    cache: Option<Duration>,
    /// How long it is waited for, up to 60s. Default: 1s.
    timeout: Option<Wait>,
    /// Where it does not answer. Deny: 503; Allow: requests go on as nobody's, marked x-meshwright-unchecked. Default: Deny.
    on_error: Option<OnError>,
}

/// How tokens of one issuer are judged.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        ("has(self.jwks) != has(self.jwksUri)", "exactly one of jwks and jwksUri says where the keys are"),
        (
            "!(has(self.fromHeaders) || has(self.fromQuery) || has(self.fromCookies)) || has(self.fromHeaders) && size(self.fromHeaders) > 0 || has(self.fromQuery) && size(self.fromQuery) > 0 || has(self.fromCookies) && size(self.fromCookies) > 0",
            "nothing says where a token is; name a header, a parameter or a cookie, or leave out all three lists",
        ),
    ])),
)]
struct JwtRule {
    /// `iss` of its tokens.
    issuer: Short,
    /// One of them must be in `aud`; none: any.
    #[schemars(length(max = 64))]
    audiences: Option<Vec<Short>>,
    /// Its keys, a JWKS (RFC 7517).
    jwks: Option<String>,
    /// Where its keys are.
    #[schemars(regex(pattern = "^(?i:https?)://[^/@?#\\s]+([/?][^\\s]*)?$"), length(max = 2048))]
    jwks_uri: Option<String>,
    /// Headers that hold tokens; with none of the three lists: `Authorization: Bearer`.
    #[schemars(length(max = 64))]
    from_headers: Option<Vec<TokenHeader>>,
    /// Parameters of the query that hold tokens.
    #[schemars(length(max = 64))]
    from_query: Option<Vec<Short>>,
    /// Cookies that hold tokens.
    #[schemars(length(max = 64))]
    from_cookies: Option<Vec<CookieName>>,
    /// Whether the application sees the token, too.
    forward_token: Option<bool>,
    /// Headers that are filled from claims.
    #[schemars(length(max = 64))]
    claims_to_headers: Option<Vec<ClaimHeader>>,
    /// How much clocks may differ, at most 10m.
    #[schemars(extend(
        "default" = "30s",
        "x-kubernetes-validations" = rules(&[("duration(self) <= duration('10m')", "no clocks differ so much; use at most 10m")]),
    ))]
    clock_skew: Option<Duration>,
    /// At an edge: how its consumers are found.
    consumer: Option<TokenConsumer>,
    /// Header `typ` of tokens that are taken; none: any.
    #[schemars(length(max = 64))]
    token_types: Option<Vec<Short>>,
    /// How long keys that cannot be fetched again are believed, 1m to 720h. Default: 24h.
    #[schemars(extend(
        "x-kubernetes-validations" = rules(&[(
            "duration(self) >= duration('1m') && duration(self) <= duration('720h')",
            "it is too short or too long; use 1m to 720h",
        )]),
    ))]
    jwks_max_stale: Option<Duration>,
}

/// How a token's consumer is found.
#[derive(JsonSchema)]
struct TokenConsumer {
    /// By credentials that name this claim.
    claim: Short,
}

/// A cookie's name.
#[derive(JsonSchema)]
struct CookieName(#[schemars(regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"), length(max = 2048))] String);

/// A header that holds a token.
#[derive(JsonSchema)]
struct TokenHeader {
    /// Its name.
    #[schemars(length(max = 2048))]
    name: HeaderName,
    /// What stands before the token.
    #[schemars(length(max = 2048))]
    prefix: Option<String>,
}

/// A header that is filled from a claim.
#[derive(JsonSchema)]
pub(super) struct ClaimHeader {
    /// The claim, nested ones joined by dots.
    claim: Short,
    /// The header.
    #[schemars(length(max = 2048))]
    header: HeaderName,
}

/// Where a workload may call outside the mesh.
#[derive(JsonSchema)]
pub(in crate::crds) struct EgressPolicySpec {
    /// Calling workloads it is about.
    selector: Option<WorkloadChoice>,
    /// Audit: everything is allowed, and what Enforce would cut is told.
    #[schemars(extend("default" = "Enforce"))]
    mode: Option<EgressMode>,
    /// What is allowed.
    #[schemars(length(max = 256))]
    allow: Option<Vec<EgressRule>>,
}

/// Whether calls are cut.
#[derive(JsonSchema)]
enum EgressMode {
    Enforce,
    Audit,
}

/// One thing that is allowed; of every list that is there one item must hold.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "has(self.hosts) && size(self.hosts) > 0 || has(self.cidrs) && size(self.cidrs) > 0 || has(self.ports) && size(self.ports) > 0",
        "it allows nothing in particular; name hosts, cidrs or ports",
    ),
    ("!has(self.tls) || has(self.hosts) && size(self.hosts) > 0", "it is for no host; name the hosts whose requests leave by TLS"),
    (
        "!has(self.tls) || has(self.tls.originate.sni) || has(self.hosts) && size(self.hosts) == 1 && !self.hosts[0].contains('*')",
        "write sni; it can only be left out where the rule has one host without `*`",
    ),
])))]
struct EgressRule {
    /// Names; `*.SUFFIX` for all below it; `*`.
    #[schemars(length(max = 256))]
    hosts: Option<Vec<OutsideHost>>,
    /// Ranges of addresses.
    #[schemars(length(max = 256))]
    cidrs: Option<Vec<Range>>,
    /// Ports.
    #[schemars(length(max = 256))]
    ports: Option<Vec<Port>>,
    /// Its requests leave by TLS.
    tls: Option<EgressTls>,
}

/// A name outside the mesh.
#[derive(JsonSchema)]
struct OutsideHost(
    #[schemars(
        regex(
            pattern = "^([*]|([*][.])?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?)$"
        ),
        length(max = 256)
    )]
    String,
);

/// TLS towards a server outside.
#[derive(JsonSchema)]
struct EgressTls {
    /// How it is begun.
    originate: Originate,
}

/// How TLS is begun.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Originate {
    /// The name that is asked for, and that the server must prove.
    #[schemars(
        regex(pattern = "^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*$"),
        length(max = 253)
    )]
    sni: Option<String>,
    /// Entries `ca.crt` of ConfigMaps or Secrets with the roots that are believed; none: the system's.
    #[schemars(length(max = 8))]
    ca_certificate_refs: Option<Vec<RootsRef>>,
}

/// A ConfigMap or Secret of the same namespace.
#[derive(JsonSchema)]
struct RootsRef {
    /// The core group.
    #[schemars(extend("enum" = [""]))]
    group: Option<String>,
    /// The kind.
    #[schemars(extend("default" = "ConfigMap"))]
    kind: Option<RootsKind>,
    /// The object's name.
    name: String,
}

/// What may hold roots.
#[derive(JsonSchema)]
enum RootsKind {
    ConfigMap,
    Secret,
}

/// Whose word counts no more: live connections are cut, renewals refused.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.identities) || has(self.serials)", "it revokes nothing; add identities or serials"),
])))]
pub(in crate::crds) struct RevocationSpec {
    /// Identities, with every certificate they have or get.
    #[schemars(length(max = 1000))]
    identities: Option<Vec<RevokedIdentity>>,
    /// Certificates by serial number, in hex.
    #[schemars(length(max = 1000))]
    serials: Option<Vec<Serial>>,
    /// From then on they count again.
    #[schemars(extend("format" = "date-time"))]
    until: Option<String>,
}

/// A whole SPIFFE identity.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!self.endsWith('/ns/meshwright-system/sa/control')",
    "this is the control plane, which would no longer reach any proxy",
)])))]
struct RevokedIdentity(
    #[schemars(regex(pattern = "^spiffe://[a-z0-9._-]{1,255}/ns/[A-Za-z0-9._-]+/sa/[A-Za-z0-9._-]+$"), length(max = 2048))]
    String,
);

/// A serial number in hex.
#[derive(JsonSchema)]
struct Serial(#[schemars(regex(pattern = "^:*([0-9A-Fa-f]:*){1,42}$"), length(max = 128))] String);
