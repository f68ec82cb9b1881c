//! Kinds that say what holds at Gateways.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::parts::{Duration, EdgeTarget, Empty, HeaderName, Short, rules};

/// Whose keys open a route. Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[LOCKED])),
)]
pub(in crate::crds) struct ApiKeyAuthSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// What it sets cannot be changed below.
    locked: Option<bool>,
    /// Whether a request without any credential is let through.
    mode: Option<Mode>,
    /// Where keys stand; the first place that has one counts. Default: x-api-key, then Authorization: Bearer.
    #[schemars(length(min = 1, max = 16))]
    from: Option<Vec<CredentialPlace>>,
    /// Whose keys count.
    consumers: Option<ConsumerChoice>,
    /// What a key must be good for.
    #[schemars(length(max = 16))]
    scopes: Option<Vec<Short>>,
    /// What the backend sees.
    forward: Option<Forward>,
}

/// What only holds for a part of a Gateway belongs to whoever wrote it.
pub(super) const LOCKED: (&str, &str) = (
    "!has(self.locked) || !self.locked || !has(self.targetRefs) || self.targetRefs.all(t, t.kind != 'HTTPRoute' && t.kind != 'GRPCRoute')",
    "only what holds for a Gateway, a listener or the mesh can be locked",
);

/// Whether a credential must be shown.
#[derive(JsonSchema)]
pub(super) enum Mode {
    Required,
    Optional,
}

/// Where a credential stands.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("[has(self.header), has(self.query), has(self.cookie)].filter(x, x).size() == 1", "write one of header, query and cookie"),
    ("!has(self.prefix) || has(self.header)", "a prefix belongs to a header"),
])))]
struct CredentialPlace {
    /// A header.
    #[schemars(length(max = 2048), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    header: Option<String>,
    /// What stands before it in the header.
    #[schemars(length(max = 2048))]
    prefix: Option<String>,
    /// A parameter of the query.
    query: Option<Short>,
    /// A cookie.
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    cookie: Option<String>,
}

/// Which consumers count.
#[derive(JsonSchema)]
struct ConsumerChoice {
    /// Same: of the object's namespace; All: of others, too, where a ReferenceGrant lets them be referred to.
    #[schemars(extend("default" = "Same"))]
    namespaces: Option<Namespaces>,
    /// Of these only those with all these labels.
    selector: Option<LabelChoice>,
}

/// Where consumers may be declared.
#[derive(JsonSchema)]
enum Namespaces {
    Same,
    All,
}

/// Labels that must be there.
#[derive(JsonSchema)]
struct LabelChoice {
    /// Labels and their values.
    #[schemars(rename = "matchLabels")]
    match_labels: Option<BTreeMap<String, String>>,
}

/// What the backend sees.
#[derive(JsonSchema)]
struct Forward {
    /// Whether it sees the credential.
    credential: Option<Credential>,
    /// Headers that are filled, whatever the caller says there.
    #[schemars(length(max = 16))]
    headers: Option<Vec<FilledHeader>>,
}

/// Whether the backend sees the credential.
#[derive(JsonSchema)]
enum Credential {
    Strip,
    Keep,
}

/// A header that is filled.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("has(self.value) != has(self.cel)", "write either value or cel")])))]
struct FilledHeader {
    /// The header.
    #[schemars(length(max = 2048))]
    name: HeaderName,
    /// What stands there.
    #[schemars(length(max = 2048))]
    value: Option<String>,
    /// An expression in CEL for it.
    #[schemars(length(min = 1, max = 4096))]
    cel: Option<String>,
}

/// Who calls from outside. Policies, logs and limits speak of it.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(in crate::crds) struct ConsumerSpec {
    /// Whose it is; default: the namespace.
    team: Option<Word>,
    /// For people.
    display_name: Option<Short>,
    /// What policies speak of it by.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    groups: Option<Vec<Word>>,
    /// Further words, for expressions and keys of limits.
    #[schemars(extend("maxProperties" = 32))]
    attributes: Option<BTreeMap<String, Short>>,
    /// It may not call.
    disabled: Option<bool>,
    /// From then on it may not.
    #[schemars(extend("format" = "date-time"))]
    expires_at: Option<String>,
    /// What it shows; two at once is how one is replaced.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    credentials: Option<Vec<ConsumerCredential>>,
}

/// 1 to 63 letters, digits, `-`, `_` and `.`.
#[derive(JsonSchema)]
struct Word(#[schemars(regex(pattern = "^[A-Za-z0-9._-]+$"), length(min = 1, max = 63))] String);

/// One credential.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "[has(self.apiKey), has(self.basic), has(self.jwt), has(self.certificate)].filter(x, x).size() == 1",
            "a credential is exactly one of apiKey, basic, jwt and certificate",
        ),
        (
            "!has(self.notBefore) || !has(self.expiresAt) || timestamp(self.notBefore) < timestamp(self.expiresAt)",
            "it ends before it begins",
        ),
    ])),
)]
struct ConsumerCredential {
    /// Its name.
    name: Word,
    /// Before, it does not hold.
    #[schemars(extend("format" = "date-time"))]
    not_before: Option<String>,
    /// From then on it does not hold.
    #[schemars(extend("format" = "date-time"))]
    expires_at: Option<String>,
    /// What it is good for.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    scopes: Option<Vec<Short>>,
    /// A key.
    api_key: Option<KeyCredential>,
    /// A username and a password.
    basic: Option<PasswordCredential>,
    /// Tokens.
    jwt: Option<TokenCredential>,
    /// A client certificate.
    certificate: Option<CertificateCredential>,
}

/// A key: its hash, or where it stands.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        ("has(self.sha256) != has(self.secretRef)", "write either sha256 or secretRef"),
        ("!has(self.prefix) || has(self.sha256)", "a key in a Secret has no prefix of its own"),
    ])),
)]
struct KeyCredential {
    /// Its SHA-256 in hex.
    sha256: Option<Hash>,
    /// What of the key may be told.
    #[schemars(length(max = 16), regex(pattern = "^[A-Za-z0-9_-]*$"))]
    prefix: Option<String>,
    /// The entry of a Secret that holds it, at least 20 bytes.
    secret_ref: Option<SecretEntry>,
}

/// A SHA-256 in hex.
#[derive(JsonSchema)]
struct Hash(#[schemars(regex(pattern = "^[0-9A-Fa-f]{64}$"), length(max = 64))] String);

/// An entry of a Secret of the same namespace.
#[derive(JsonSchema)]
pub(super) struct SecretEntry {
    /// The Secret.
    name: String,
    /// The entry.
    key: String,
}

/// A username, and the hash of its password.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct PasswordCredential {
    /// The username.
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^[^:\\x00-\\x1f\\x7f]+$"))]
    username: String,
    /// The entry of a Secret that holds the hash: argon2id, bcrypt or scrypt.
    secret_ref: SecretEntry,
}

/// Tokens of an issuer that say this.
#[derive(JsonSchema)]
struct TokenCredential {
    /// `iss`.
    issuer: Short,
    /// Claims, each with its value.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 32))]
    claims: BTreeMap<String, Short>,
}

/// A client certificate, by one of its names or its hash.
#[derive(JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct CertificateCredential {
    /// A URI of its alternative names.
    uri: Option<Short>,
    /// A DNS name of them.
    dns: Option<Short>,
    /// The SHA-256 of its DER.
    sha256: Option<Hash>,
}

/// Whose passwords open a route (RFC 7617). Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[LOCKED])),
)]
pub(in crate::crds) struct BasicAuthSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// What it sets cannot be changed below.
    locked: Option<bool>,
    /// Whether a request without any credential is let through.
    mode: Option<Mode>,
    /// Whose passwords count.
    consumers: Option<ConsumerChoice>,
    /// Further users.
    users: Option<Users>,
    /// What clients show to their users.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^\\x00-\\x1f\\x7f]+$"))]
    realm: Option<String>,
    /// How long a verified pair is remembered, and how many are.
    verify_cache: Option<VerifyCache>,
    /// How often somebody may fail.
    failures: Option<Failures>,
    /// What a credential must be good for.
    #[schemars(length(max = 16))]
    scopes: Option<Vec<Short>>,
    /// What the backend sees.
    forward: Option<Forward>,
}

/// Further users.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Users {
    /// The entry of a Secret that holds them: NAME:HASH, one a line (htpasswd).
    secret_ref: SecretEntry,
}

/// How long a verified pair is remembered, by a keyed hash.
#[derive(JsonSchema)]
struct VerifyCache {
    /// At most 1h; 0s: not at all.
    #[schemars(extend(
        "x-kubernetes-validations" = rules(&[("duration(self) <= duration('1h')", "it is longer than an hour")]),
    ))]
    ttl: Option<Duration>,
    /// How many one worker of a proxy remembers: always 10000.
    #[schemars(range(min = 10_000, max = 10_000))]
    entries: Option<u32>,
}

/// How often somebody may fail.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Failures {
    /// So often within a minute; 0: as often as they like.
    #[schemars(range(min = 0, max = 1_000_000))]
    per_minute: Option<u32>,
    /// All parts together are the key.
    #[schemars(length(max = 2))]
    key: Option<Vec<FailureKey>>,
}

/// A part of the key.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1, "maxProperties" = 1))]
struct FailureKey {
    /// The client's address.
    client_address: Option<ClientAddress>,
    /// The username that is tried.
    username: Option<Empty>,
}

/// The client's address.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ClientAddress {
    /// What stands for one client of IPv6; default 64.
    #[schemars(range(min = 1, max = 128))]
    ipv6_prefix: Option<u32>,
}
