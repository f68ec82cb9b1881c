//! What holds for clients of an edge's port: of its socket, and of each filter chain that they may meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::client::{Admission, ClientAddress};
use crate::consumers::AddressList;

/// Of one port.
#[derive(Debug, Default)]
pub struct ClientPolicy {
    /// Who must say first where a connection comes from; `None`: nobody is asked.
    pub proxy: Option<ProxyRule>,
    /// How many may be connected. Its counts outlive epochs.
    pub admission: Option<Arc<Admission>>,
    /// How a proxy ends that has it.
    pub ending: Ending,
    /// HTTP/3 is wanted at the same number of port. It outlives epochs.
    pub http3: Option<Arc<Http3Door>>,
    /// By filter chain.
    pub chains: Vec<(Arc<str>, Arc<ClientRules>)>,
    /// Of a chain of which nothing is said.
    pub usual: Arc<ClientRules>,
}

impl ClientPolicy {
    /// What holds on a chain.
    pub fn on(&self, chain: &str) -> &Arc<ClientRules> {
        self.chains.iter().find(|(name, _)| **name == *chain).map_or(&self.usual, |(_, rules)| rules)
    }

    /// What holds where there is one chain.
    pub fn only(&self) -> &Arc<ClientRules> {
        self.chains.first().map_or(&self.usual, |(_, rules)| rules)
    }

    /// The same rules on every chain.
    pub fn of_all(rules: ClientRules) -> Self {
        Self { usual: Arc::new(rules), ..Self::default() }
    }
}

/// A port of HTTP/3, wanted by the configuration; whether somebody serves it is for whoever opens it to say.
#[derive(Debug, Default)]
pub struct Http3Door {
    open: AtomicBool,
}

impl Http3Door {
    /// Whether clients that come are served.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// They are, or are not any more.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }
}

/// What answers by other versions say of HTTP/3, as long as it is served (RFC 9114, section 3.1.1).
#[derive(Clone, Debug)]
pub struct AltSvc {
    /// The header's value.
    pub value: HeaderValue,
    /// Where it leads.
    pub door: Arc<Http3Door>,
}

/// How the end of a proxy comes about for its clients from outside: readiness goes first, then doors close and clients are told to go, and then
/// they are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Between the first and the second.
    pub readiness_grace: Duration,
    /// Between the second and the third; `None`: nobody says.
    pub go_away_grace: Option<Duration>,
}

impl Ending {
    /// The longer of each: a proxy ends as a whole.
    #[must_use]
    pub fn longest(self, other: Self) -> Self {
        Self {
            readiness_grace: self.readiness_grace.max(other.readiness_grace),
            go_away_grace: self.go_away_grace.max(other.go_away_grace),
        }
    }
}

/// The PROXY protocol at a port.
#[derive(Debug)]
pub struct ProxyRule {
    /// Who does not send it is closed.
    pub required: bool,
    /// Who may send it; `None`: everybody.
    pub trusted: Option<AddressList>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Of clients that meet one filter chain.
#[derive(Debug, Default)]
pub struct ClientRules {
    /// NAMESPACE/NAME of the narrowest object that says something; empty: none does.
    pub policy: Arc<str>,
    /// Who the client is.
    pub address: ClientAddress,
    /// How long it may take.
    pub timeouts: ClientTimeouts,
    /// How much a request may be.
    pub limits: ClientLimits,
    /// How long a connection is kept.
    pub lives: ClientLives,
    /// HTTP/1.
    pub http1: Http1Rules,
    /// HTTP/2.
    pub http2: Http2Rules,
    /// How paths and names are read.
    pub paths: PathRules,
    /// What is changed before anything is asked.
    pub headers: EarlyHeaders,
    /// TLS 1.2 is spoken without the extended master secret (RFC 7627), too.
    pub plain_master_secret: bool,
    /// `alt-svc` of answers over TLS by other versions.
    pub alt_svc: Option<AltSvc>,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// For its TLS handshake.
    pub tls_handshake: Duration,
    /// For the head of a request, from its first byte on; and to its first byte of all.
    pub request_headers: Duration,
    /// Between two pieces of a body that is waited for; zero: any time.
    pub body_idle: Duration,
    /// Taking nothing of what is written to it; zero: any time.
    pub write_stall: Duration,
    /// Bytes of a body in each second that is waited for it, on average; zero: any number.
    pub bytes_per_sec_min: u32,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self {
            tls_handshake: Duration::from_secs(10),
            request_headers: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            bytes_per_sec_min: 240,
        }
    }
}

/// Most that the head of a request may be, as [`ClientLimits`] says.
pub const CLIENT_HEAD_BYTES_MAX: u32 = 64 << 10;
/// Most fields of it.
pub const CLIENT_FIELDS_MAX: u32 = 100;

/// How much a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Bytes of its head: 431.
    pub header_bytes: u32,
    /// Fields of its head: 431.
    pub headers: u32,
    /// Bytes of path and query: 414.
    pub uri_bytes: u32,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { header_bytes: CLIENT_HEAD_BYTES_MAX, headers: CLIENT_FIELDS_MAX, uri_bytes: 16_384 }
    }
}

/// How long a connection of requests is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLives {
    /// Without an exchange.
    pub idle: Duration,
    /// In all; then it ends in order. `None`: for ever.
    pub max_age: Option<Duration>,
    /// Requests; the last one ends it in order. Zero: any number.
    pub max_requests: u32,
}

impl Default for ClientLives {
    fn default() -> Self {
        Self { idle: Duration::from_secs(300), max_age: None, max_requests: 0 }
    }
}

/// HTTP/1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http1Rules {
    /// It is not spoken.
    pub disabled: bool,
    /// HTTP/1.0 is not.
    pub refuse_10: bool,
    /// Names of headers lose the case in which they came.
    pub lower_case: bool,
}

/// HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Rules {
    /// It is not spoken.
    pub disabled: bool,
    /// Requests at once on one connection.
    pub max_streams: u32,
    /// Windows of a stream and of the connection, fixed; `None`: as many bytes as there is room for.
    pub windows: Option<(u32, u32)>,
    /// Requests that a client may take back in a minute, beyond those that were answered.
    pub resets_per_minute: u32,
    /// How often a client is asked whether it lives; `None`: never.
    pub ping_every: Option<Duration>,
}

impl Default for Http2Rules {
    fn default() -> Self {
        Self { disabled: false, max_streams: 100, windows: None, resets_per_minute: 200, ping_every: None }
    }
}

/// How paths and names are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    /// `%2F` and `%5C` in paths.
    pub slashes: EscapedSlashes,
    /// `_` in names of headers.
    pub underscores: Underscores,
}

/// What becomes of slashes that are escaped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay as they are.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// They become slashes, before any rule is asked.
    Decode,
}

/// What becomes of headers with an underscore in their names, which some applications read as a hyphen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    /// They are taken off.
    #[default]
    Drop,
    /// They stay.
    Keep,
    /// 400.
    Reject,
}

/// What is changed before anything is asked, and what every answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EarlyHeaders {
    /// Set, whatever the client says there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Taken off.
    pub remove: Vec<HeaderName>,
    /// The id of a request is kept where whoever connects is trusted.
    pub keep_trusted_id: bool,
    /// `strict-transport-security` of answers over TLS (RFC 6797).
    pub hsts: Option<HeaderValue>,
}
