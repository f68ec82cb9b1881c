//! OidcLogin: people log in with their browsers at an OpenID provider.

use schemars::JsonSchema;

use super::edge::{LOCKED, Mode, SecretEntry};
use super::limits::{HostPort, RedisMode, StoreWait};
use super::parts::{EdgeTarget, HeaderName, Short, rules};
use super::security::ClaimHeader;

/// A path of a login's own.
const LOGIN_PATH: &str = "^/[!\"$&'()*+,/:;<=>@A-Za-z0-9\\[\\]^_`{|}~.-]+$";
/// What paths do not hold.
const PLAIN: (&str, &str) = ("!self.contains('//') && !self.contains('/.')", "a path without empty and dotted parts");

/// Where people log in, and what becomes of their sessions. Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        LOCKED,
        ("!has(self.clientAuth) || has(self.clientSecretRef)", "clientAuth says how a secret is shown; add clientSecretRef"),
        ("!has(self.clientSecretRef) || !has(self.privateKeyJwt)", "a client proves itself by clientSecretRef or by privateKeyJwt"),
        ("!has(self.endpoints) || has(self.issuer)", "endpoints of no issuer; add issuer"),
        (
            "!has(self.endpoints) || !has(self.issuer) || self.issuer.matches('^(?i:http):') || (self.endpoints.authorization.matches('^(?i:https):') \
             && (!has(self.endpoints.endSession) || self.endpoints.endSession.matches('^(?i:https):')))",
            "an issuer of https sends browsers to https",
        ),
        (
            "!has(self.redirectPath) || !has(self.logoutPath) || self.redirectPath != self.logoutPath",
            "redirectPath and logoutPath are the same",
        ),
        (
            "!has(self.backChannelLogoutPath) || has(self.session) && has(self.session.store) && self.session.store == 'Redis'",
            "a provider cannot end sessions that browsers keep; write session.store Redis",
        ),
        (
            "!has(self.backChannelLogoutPath) || !(has(self.redirectPath) && self.redirectPath == self.backChannelLogoutPath \
             || has(self.logoutPath) && self.logoutPath == self.backChannelLogoutPath)",
            "backChannelLogoutPath is another path of the login",
        ),
    ])),
)]
pub(in crate::crds) struct OidcLoginSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// What it sets cannot be changed below.
    locked: Option<bool>,
    /// Whether a request without a session is let through.
    mode: Option<Mode>,
    /// The provider, just as its tokens name it; http is for this machine.
    issuer: Option<ProviderUrl>,
    /// Where the provider is asked. Default: as it says itself.
    endpoints: Option<ProviderPlaces>,
    /// Who we are there.
    client_id: Option<Short>,
    /// The entry of a Secret that proves it. Default: a public client.
    client_secret_ref: Option<SecretEntry>,
    /// How the secret is shown. Default: Basic.
    client_auth: Option<ClientAuth>,
    /// A key that signs for the client instead.
    private_key_jwt: Option<PrivateKeyJwt>,
    /// What is asked for; openid among them. Default: openid.
    #[schemars(length(max = 64), extend(
        "x-kubernetes-validations" = rules(&[("self.exists(s, s == 'openid')", "without openid a provider says nothing of who logs in")]),
    ))]
    scopes: Option<Vec<ScopeName>>,
    /// Where browsers come back to. Default: /oauth2/callback.
    redirect_path: Option<LoginPath>,
    /// Where sessions are ended. Default: /oauth2/logout.
    logout_path: Option<LoginPath>,
    /// Where browsers go then: a path, or an address. Default: /.
    #[schemars(regex(pattern = "^(/([^/\\\\\\s][^\\\\\\s]*)?|(?i:https?)://[^/@?#\\s\\\\]+([/?][^\\s\\\\]*)?)$"), length(max = 2048))]
    post_logout_redirect: Option<String>,
    /// Where the provider itself ends sessions (OpenID Connect Back-Channel Logout 1.0); needs session.store Redis.
    back_channel_logout_path: Option<LoginPath>,
    /// Whose requests are sent to the provider; all else is 401. Default: Navigation.
    when: Option<LoginWhenWord>,
    /// How sessions are kept.
    session: Option<LoginSession>,
    /// What the backend sees.
    forward: Option<LoginForward>,
}

/// An address of a provider.
#[derive(JsonSchema)]
struct ProviderUrl(
    #[schemars(
        regex(pattern = "^((?i:https)://[^/@?#\\s]+|(?i:http)://((?i:localhost)|127[.][0-9.]+|\\[::1\\])(:[0-9]+)?)(/[^\\s?#]*)?$"),
        length(max = 2048)
    )]
    String,
);

/// Where a provider is asked.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ProviderPlaces {
    /// Where browsers log in.
    authorization: BrowserPlace,
    /// Where tokens come from.
    token: ProviderPlace,
    /// Where its keys are.
    jwks: ProviderPlace,
    /// Where browsers log out.
    end_session: Option<BrowserPlace>,
}

/// Where browsers go; http is for this machine.
#[derive(JsonSchema)]
struct BrowserPlace(
    #[schemars(
        regex(pattern = "^((?i:https)://[^/@?#\\s]+|(?i:http)://((?i:localhost)|127[.][0-9.]+|\\[::1\\])(:[0-9]+)?)([/?][^\\s]*)?$"),
        length(max = 2048)
    )]
    String,
);

/// Where we ask.
#[derive(JsonSchema)]
struct ProviderPlace(
    #[schemars(regex(pattern = "^(?i:https?)://[^/@?#\\s]+([/?][^\\s]*)?$"), length(max = 2048))]
    String,
);

/// How a client's secret is shown.
#[derive(JsonSchema)]
enum ClientAuth {
    Basic,
    Post,
}

/// A key that signs for a client (RFC 7523).
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct PrivateKeyJwt {
    /// The entry of a Secret that holds it: PEM; RSA, P-256 or Ed25519.
    secret_ref: SecretEntry,
    /// Its name at the provider.
    key_id: Option<Short>,
}

/// A scope (RFC 6749, section 3.3).
#[derive(JsonSchema)]
struct ScopeName(#[schemars(regex(pattern = "^[!#-\\[\\]-~]+$"), length(max = 2048))] String);

/// A path of a login's own.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[PLAIN])))]
struct LoginPath(#[schemars(regex(pattern = LOGIN_PATH), length(max = 2048))] String);

/// Whose requests are sent to the provider.
#[derive(JsonSchema)]
enum LoginWhenWord {
    Navigation,
    Always,
    Never,
}

/// How sessions are kept.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        ("(has(self.store) && self.store == 'Redis') == has(self.redis)", "store Redis and redis, which says where it is, stand together"),
        ("!has(self.idle) || !has(self.max) || duration(self.idle) <= duration(self.max)", "idle is longer than max"),
    ])),
)]
struct LoginSession {
    /// Where. Default: Cookie.
    store: Option<SessionStore>,
    /// Where that is, of Redis.
    redis: Option<SessionRedis>,
    /// Whose cookies they are; empty: the host's alone.
    #[schemars(regex(pattern = SUBDOMAIN_OR_NONE), length(max = 253), extend(
        "x-kubernetes-validations" = rules(&[("self == '' || self.contains('.')", "it is no domain of several hosts")]),
    ))]
    cookie_domain: Option<String>,
    /// From which sites' requests a session counts. Default: Lax.
    same_site: Option<SameSiteWord>,
    /// How long it lives without a request. Default: 1h.
    idle: Option<SessionLife>,
    /// How long it lives at most. Default: 12h.
    max: Option<SessionLife>,
    /// A refresh begins once so much of the access token's time is over. Default: 80.
    #[schemars(range(min = 1, max = 100))]
    refresh_at_percent: Option<u32>,
    /// The entry of a Secret with what sessions are sealed with: one or two keys of 32 bytes or more, one a line, the newest first. Default: made,
    /// and turned every 30 days.
    key_secret_ref: Option<SecretEntry>,
}

/// Labels joined by dots, or nothing.
const SUBDOMAIN_OR_NONE: &str = "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?([.][a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*)?$";

/// Where sessions are kept.
#[derive(JsonSchema)]
enum SessionStore {
    Cookie,
    Redis,
}

/// A server keeps sessions, and browsers have a ticket.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    ("!has(self.username) || has(self.authRef)", "a user is nobody without a password: write authRef"),
    ("has(self.mode) && self.mode != 'Single' || size(self.addresses) == 1", "a single server has one address"),
    ("!has(self.master) || has(self.mode) && self.mode == 'Sentinel'", "master is a name by which sentinels know a server"),
])))]
struct SessionRedis {
    /// HOST:PORT of the server, of sentinels that watch it, or of some servers of a cluster; names are the mesh's where it has them.
    #[schemars(length(min = 1, max = 16))]
    addresses: Vec<HostPort>,
    /// What they are.
    #[schemars(extend("default" = "Single"))]
    mode: Option<RedisMode>,
    /// The name by which sentinels know the server; may be left out where they know one.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^\S+$"))]
    master: Option<String>,
    /// Each server proves itself by the name or address by which it is called, below the roots of the proxy's machine.
    tls: Option<bool>,
    /// As whom proxies speak; without it the server's default user.
    #[schemars(length(min = 1, max = 256))]
    username: Option<String>,
    /// Their password.
    auth_ref: Option<SecretEntry>,
    /// What names of keys begin with.
    #[schemars(length(max = 64), regex(pattern = "^[!-~]*$"), extend("default" = "meshwright:"))]
    key_prefix: Option<String>,
    /// How long a request waits for it; up to 1s.
    #[schemars(extend("default" = "50ms"))]
    timeout: Option<StoreWait>,
}

/// From which sites' requests a session counts.
#[derive(JsonSchema)]
enum SameSiteWord {
    Lax,
    Strict,
    None,
}

/// 1m to 720h.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) >= duration('1m') && duration(self) <= duration('720h')",
    "no such life of a session; use 1m to 720h",
)])))]
struct SessionLife(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// What the backend sees.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct LoginForward {
    /// None, Authorization (behind `Bearer`), or the name of a header that carries the access token. Default: None.
    #[schemars(length(max = 2048))]
    access_token: Option<HeaderName>,
    /// Headers that are filled from the ID token, whatever the caller says there.
    #[schemars(length(max = 64))]
    claims_to_headers: Option<Vec<ClaimHeader>>,
}
