//! ClientPolicy: what holds for clients of Gateways, before any rule is asked.

use std::time::Duration;

use engine::consumers::AddressList;
use engine::model::{CLIENT_FIELDS_MAX, CLIENT_HEAD_BYTES_MAX};
use proto::mesh::client_address::Header;
use proto::mesh::client_paths::{EscapedSlashes, UnderscoreHeaders};
use proto::mesh::{ClientAddress, EarlyHeader, ProxyProtocol};

use super::{AcmeTerms, Cursor, EdgeAttachment};
use crate::world::door::Fields;
use crate::world::traffic::header;

/// Most ranges of trusted proxies in one place, most headers that are set or removed early, and most hops.
const RANGES_MAX: usize = 256;
const EARLY_MAX: usize = 16;
const HOPS_MAX: i64 = 16;
/// Longest wait of a client, and longest life of a connection.
const WAIT_MAX: Duration = Duration::from_secs(3600);
const LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest life of a promise of encryption: two years.
const HSTS_MAX: Duration = Duration::from_secs(730 * 24 * 3600);
/// Most hours after which keys of session tickets are turned: a week.
const TICKET_HOURS_MAX: u32 = 168;
/// Most of anything that is counted in a policy.
const COUNT_MAX: i64 = 1_000_000;
/// Largest bound of a body that every reader of JSON keeps as it is.
const BODY_BYTES_MAX: i64 = 9_007_199_254_740_991;
/// Windows of HTTP/2 (RFC 9113, section 6.9.1), and the smallest that a connection can have.
const WINDOW_BYTES_MAX: i64 = 0x7fff_ffff;
const WINDOW_BYTES_MIN: i64 = 65_535;
/// Where nothing is said.
const STREAMS: u32 = 100;
const STREAM_WINDOW_BYTES: u32 = 65_536;

/// Whom a field is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientReach {
    /// The socket of a port, which a Gateway has.
    Socket,
    /// Whoever meets a listener.
    Listener,
    /// A listener's own name.
    Name,
    /// Requests of a rule.
    Request,
}

/// What TLS a client must speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsProfile {
    Modern,
    Compatible,
    Strict13,
}

macro_rules! client_policy {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $path:literal $reach:ident,)*) => {
        /// What an object says; what it leaves to wider places is `None`.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct ClientPolicy {
            /// Where it holds.
            pub attachment: EdgeAttachment,
            $($(#[$doc])* pub $field: Option<$kind>,)*
        }

        impl ClientPolicy {
            /// The fields that are said, and whom each is about.
            pub fn said(&self) -> Vec<(&'static str, ClientReach)> {
                let mut said = Vec::new();
                $(if self.$field.is_some() { said.push(($path, ClientReach::$reach)); })*
                said
            }

            /// Takes one field over from another object.
            pub fn take(&mut self, other: &Self, field: &'static str) {
                match field {
                    $($path => self.$field.clone_from(&other.$field),)*
                    _ => {}
                }
            }
        }
    };
}

client_policy! {
    /// Who the client is.
    address: ClientAddress = "clientAddress" Listener,
    /// Who must say first where a connection comes from; a default message: nobody.
    proxy: ProxyProtocol = "proxyProtocol" Socket,
    /// Clients at once.
    max: u32 = "connections.max" Socket,
    /// The same of one address.
    per_address: u32 = "connections.perAddress" Socket,
    /// New ones in a second.
    new_per_second: u32 = "connections.newPerSecond" Socket,
    /// How long clients are let in after the proxy said that it ends.
    readiness_grace: Duration = "connections.readinessGrace" Socket,
    /// How long they may take to go after they were told.
    go_away_grace: Duration = "connections.goAwayGrace" Socket,
    /// How long a connection is kept without an exchange.
    idle: Duration = "connections.idle" Listener,
    /// And in all.
    max_age: Duration = "connections.maxAge" Listener,
    /// How many requests come over it.
    max_requests: u32 = "connections.maxRequests" Listener,
    /// How long a handshake may take.
    tls_handshake: Duration = "timeouts.tlsHandshake" Listener,
    /// A head.
    request_headers: Duration = "timeouts.requestHeaders" Listener,
    /// The next piece of a body.
    body_idle: Duration = "timeouts.bodyIdle" Listener,
    /// Taking nothing of an answer.
    write_stall: Duration = "timeouts.writeStall" Listener,
    /// How fast a body must come.
    min_bytes_per_second: u32 = "timeouts.minBytesPerSecond" Listener,
    /// How large a head may be.
    header_bytes: u32 = "limits.headerBytes" Listener,
    /// How many fields it may have.
    headers: u32 = "limits.headers" Listener,
    /// How long path and query may be.
    uri_bytes: u32 = "limits.uriBytes" Listener,
    /// How long a body may be; 0: any length.
    body_bytes: u64 = "limits.bodyBytes" Request,
    /// Whether HTTP/1 is spoken.
    http1: bool = "http1.enabled" Listener,
    /// Whether HTTP/1.0 is.
    allow10: bool = "http1.allow10" Listener,
    /// Whether names keep their case.
    keep_case: bool = "http1.keepHeaderCase" Listener,
    /// Whether HTTP/2 is spoken.
    http2: bool = "http2.enabled" Listener,
    /// Requests at once on a connection.
    max_streams: u32 = "http2.maxStreams" Listener,
    /// Window of a stream.
    stream_window: u32 = "http2.streamWindow" Listener,
    /// Window of a connection.
    connection_window: u32 = "http2.connectionWindow" Listener,
    /// Requests that may be taken back in a minute.
    resets_per_minute: u32 = "http2.resetsPerMinute" Listener,
    /// How often a client is asked whether it lives; zero: never.
    ping_interval: Duration = "http2.pingInterval" Listener,
    /// Whether HTTP/3 is spoken beside HTTPS.
    http3: bool = "http3.enabled" Socket,
    /// How long clients may remember that.
    alt_svc_max_age: Duration = "http3.altSvcMaxAge" Socket,
    /// How slashes are read.
    escaped_slashes: EscapedSlashes = "path.escapedSlashes" Listener,
    /// What becomes of names with underscores.
    underscores: UnderscoreHeaders = "path.underscoreHeaders" Listener,
    /// Headers that are set before anything is asked.
    early_set: Vec<EarlyHeader> = "headers.early.set" Listener,
    /// And removed.
    early_remove: Vec<String> = "headers.early.remove" Listener,
    /// Whether a trusted proxy's id of a request is kept.
    keep_trusted_id: bool = "headers.requestId" Listener,
    /// How long clients are told to come by TLS only.
    hsts: Duration = "headers.hsts" Listener,
    /// Whether what a client's certificate proves is told on.
    tells_client: bool = "headers.forwardClientCert" Listener,
    /// Whether TLS 1.2 is spoken.
    tls12: bool = "tls.minVersion" Listener,
    /// Whether it is spoken with clients that lack the extended master secret.
    plain_master_secret: bool = "tls.profile" Listener,
    /// After how many hours keys of session tickets are turned.
    ticket_hours: u32 = "tls.sessionTickets.rotate" Listener,
    /// From whom certificates of listeners that name none are ordered; taken whole.
    acme: AcmeTerms = "acme" Name,
}

impl ClientPolicy {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { attachment: EdgeAttachment::read(&mut fields), ..Self::default() };
        read.address = fields.get("clientAddress").and_then(|at| address(&at));
        read.proxy = fields.get("proxyProtocol").and_then(|at| proxy(&at));
        read.connections(&mut fields);
        read.timeouts(&mut fields);
        read.limits(&mut fields);
        read.versions(&mut fields);
        read.paths(&mut fields);
        read.headers(&mut fields);
        read.tls(&mut fields);
        if let Some(at) = fields.get("http3") {
            let mut http3 = at.fields();
            read.http3 = http3.get("enabled").and_then(|at| at.flag());
            read.alt_svc_max_age = http3.get("altSvcMaxAge").and_then(|at| time(&at, 1000, LIFE_MAX));
            http3.done();
        }
        read.acme = fields.get("acme").and_then(|at| AcmeTerms::read(&at));
        read.fits(fields.at());
        fields.done();
        Some(read)
    }

    fn connections(&mut self, fields: &mut Fields<'_>) {
        let Some(at) = fields.get("connections") else { return };
        let mut fields = at.fields();
        self.max = fields.get("max").and_then(|at| count(&at, 1));
        self.per_address = fields.get("perAddress").and_then(|at| count(&at, 0));
        self.new_per_second = fields.get("newPerSecond").and_then(|at| count(&at, 0));
        self.idle = fields.get("idle").and_then(|at| time(&at, 1, LIFE_MAX));
        self.max_age = fields.get("maxAge").and_then(|at| time(&at, 0, LIFE_MAX));
        self.max_requests = fields.get("maxRequests").and_then(|at| count(&at, 0));
        self.readiness_grace = fields.get("readinessGrace").and_then(|at| time(&at, 0, WAIT_MAX));
        self.go_away_grace = fields.get("goAwayGrace").and_then(|at| time(&at, 0, WAIT_MAX));
        fields.done();
    }

    fn timeouts(&mut self, fields: &mut Fields<'_>) {
        let Some(at) = fields.get("timeouts") else { return };
        let mut fields = at.fields();
        self.tls_handshake = fields.get("tlsHandshake").and_then(|at| time(&at, 1, WAIT_MAX));
        self.request_headers = fields.get("requestHeaders").and_then(|at| time(&at, 1, WAIT_MAX));
        self.body_idle = fields.get("bodyIdle").and_then(|at| time(&at, 0, WAIT_MAX));
        self.write_stall = fields.get("writeStall").and_then(|at| time(&at, 0, WAIT_MAX));
        self.min_bytes_per_second = fields.get("minBytesPerSecond").and_then(|at| count(&at, 0));
        fields.done();
    }

    fn limits(&mut self, fields: &mut Fields<'_>) {
        let Some(at) = fields.get("limits") else { return };
        let mut fields = at.fields();
        self.header_bytes = fields.get("headerBytes").and_then(|at| within(&at, 1024, i64::from(CLIENT_HEAD_BYTES_MAX)));
        self.headers = fields.get("headers").and_then(|at| within(&at, 1, i64::from(CLIENT_FIELDS_MAX)));
        self.uri_bytes = fields.get("uriBytes").and_then(|at| within(&at, 1, i64::from(CLIENT_HEAD_BYTES_MAX)));
        self.body_bytes = fields.get("bodyBytes").and_then(|at| at.int(0..=BODY_BYTES_MAX)).and_then(|bytes| u64::try_from(bytes).ok());
        fields.done();
    }

    fn versions(&mut self, fields: &mut Fields<'_>) {
        if let Some(at) = fields.get("http1") {
            let mut http1 = at.fields();
            self.http1 = http1.get("enabled").and_then(|at| at.flag());
            self.allow10 = http1.get("allow10").and_then(|at| at.flag());
            self.keep_case = http1.get("keepHeaderCase").and_then(|at| at.flag());
            http1.done();
        }
        let Some(at) = fields.get("http2") else { return };
        let mut http2 = at.fields();
        self.http2 = http2.get("enabled").and_then(|at| at.flag());
        self.max_streams = http2.get("maxStreams").and_then(|at| within(&at, 1, 2048));
        self.stream_window = http2.get("streamWindow").and_then(|at| within(&at, WINDOW_BYTES_MIN, WINDOW_BYTES_MAX));
        self.connection_window = http2.get("connectionWindow").and_then(|at| within(&at, WINDOW_BYTES_MIN, WINDOW_BYTES_MAX));
        self.resets_per_minute = http2.get("resetsPerMinute").and_then(|at| count(&at, 1));
        self.ping_interval = http2.get("pingInterval").and_then(|at| match at.duration()? {
            Duration::ZERO => Some(Duration::ZERO),
            _ => time(&at, 1000, WAIT_MAX),
        });
        http2.done();
    }

    fn paths(&mut self, fields: &mut Fields<'_>) {
        use {EscapedSlashes as Slashes, UnderscoreHeaders as Underscores};
        let Some(at) = fields.get("path") else { return };
        let mut fields = at.fields();
        let slashes = [("Keep", Slashes::KeepSlashes), ("Reject", Slashes::RejectSlashes), ("Decode", Slashes::DecodeSlashes)];
        self.escaped_slashes = fields.get("escapedSlashes").and_then(|at| at.word(&slashes));
        let underscores =
            [("Drop", Underscores::DropUnderscores), ("Keep", Underscores::KeepUnderscores), ("Reject", Underscores::RejectUnderscores)];
        self.underscores = fields.get("underscoreHeaders").and_then(|at| at.word(&underscores));
        fields.done();
    }

    fn headers(&mut self, fields: &mut Fields<'_>) {
        let Some(at) = fields.get("headers") else { return };
        let mut fields = at.fields();
        if let Some(at) = fields.get("early") {
            let mut early = at.fields();
            self.early_set = early.get("set").map(|at| at.list(EARLY_MAX).iter().filter_map(early_header).collect());
            self.early_remove = early.get("remove").map(|at| at.list(EARLY_MAX).iter().filter_map(early_name).collect());
            early.done();
        }
        self.keep_trusted_id = fields.get("requestId").and_then(|at| at.word(&[("Generate", false), ("KeepTrusted", true)]));
        self.hsts = fields.get("hsts").and_then(|at| time(&at, 0, HSTS_MAX));
        self.tells_client = fields.get("forwardClientCert").and_then(|at| at.word(&[("Set", true), ("Drop", false)]));
        fields.done();
    }

    /// A profile is a choice of versions, and of what TLS 1.2 asks of a client; suites are the same wherever a version is spoken.
    fn tls(&mut self, fields: &mut Fields<'_>) {
        let Some(at) = fields.get("tls") else { return };
        let mut tls = at.fields();
        let profiles = [("Modern", TlsProfile::Modern), ("Compatible", TlsProfile::Compatible), ("Strict13", TlsProfile::Strict13)];
        let profile = tls.get("profile").and_then(|at| at.word(&profiles));
        let version = tls.get("minVersion").and_then(|at| at.word(&[("1.2", true), ("1.3", false)]).map(|tls12| (tls12, at)));
        match (profile, &version) {
            (Some(TlsProfile::Strict13), Some((true, at))) => {
                at.error("the profile Strict13 has no TLS 1.2", "write \"1.3\", or remove it")
            }
            (Some(TlsProfile::Compatible), Some((false, at))) => {
                at.error("the profile Compatible is about TLS 1.2", "write \"1.2\", or remove it");
            }
            _ => {
                let of_profile = profile.map(|profile| profile != TlsProfile::Strict13);
                self.tls12 = version.map(|(tls12, _)| tls12).or(of_profile);
                self.plain_master_secret = profile.map(|profile| profile == TlsProfile::Compatible);
            }
        }
        if let Some(at) = tls.get("sessionTickets") {
            let mut tickets = at.fields();
            self.ticket_hours = tickets.get("rotate").and_then(|at| hours(&at));
            tickets.done();
        }
        if let Some(at) = tls.get("ocspStapling") {
            at.word(&[("IfGiven", ())]);
        }
        tls.done();
    }

    /// What its fields come to together, and where they may stand.
    fn fits(&self, at: &Cursor<'_>) {
        let connection = self.connection_window.map(u64::from);
        let stream = u64::from(self.stream_window.unwrap_or(STREAM_WINDOW_BYTES));
        let streams = u64::from(self.max_streams.unwrap_or(STREAMS));
        let at_http2 = at.below("http2.connectionWindow");
        if connection.is_some_and(|connection| connection < stream * streams) {
            let message = format!("it is less than {streams} streams of {stream} bytes: one that is not read would stop the others");
            at_http2.error(message, "make it larger, or streamWindow or maxStreams smaller");
        }
        if self.stream_window.is_some() != self.connection_window.is_some() {
            at.below("http2").error("streamWindow and connectionWindow are one choice", "say both, or neither");
        }
        if self.http1 == Some(false) && self.http2 == Some(false) {
            at.below("http1.enabled").error("no version of HTTP is left", "leave one enabled");
        }
        if self.http3 == Some(true) && self.proxy.as_ref().is_some_and(|proxy| proxy.required) {
            at.below("http3.enabled").error("no balancer says by UDP whom it speaks for", "make proxyProtocol.mode Optional, or remove it");
        }
        let of_rules = self.attachment.targets.iter().any(|target| target.kind.routes_http());
        let namespace = self.attachment.targets.is_empty() && at.key().namespace != proto::annotations::ROOT_NAMESPACE;
        let other = self.said().into_iter().find(|(_, reach)| *reach != ClientReach::Request);
        if let Some((field, _)) = other.filter(|_| of_rules || namespace) {
            let message = format!("of routes only limits.bodyBytes can be said, and not {field}");
            at.error(message, "name a Gateway, a ListenerSet or a listener in targetRefs");
        }
    }
}

fn within(at: &Cursor<'_>, least: i64, most: i64) -> Option<u32> {
    at.int(least..=most).and_then(|number| u32::try_from(number).ok())
}

fn count(at: &Cursor<'_>, least: i64) -> Option<u32> {
    within(at, least, COUNT_MAX)
}

/// Whole hours after which keys of session tickets are turned, written as such.
fn hours(at: &Cursor<'_>) -> Option<u32> {
    let text = at.text()?;
    let number = text.strip_suffix('h').filter(|number| !number.starts_with(['0', '+']));
    let hours = number.and_then(|number| number.parse().ok()).filter(|hours| (1..=TICKET_HOURS_MAX).contains(hours));
    if hours.is_none() {
        at.error("keys of session tickets are not turned by that", format!("use whole hours, 1h to {TICKET_HOURS_MAX}h"));
    }
    hours
}

/// So many milliseconds to so much time.
fn time(at: &Cursor<'_>, least_ms: u64, most: Duration) -> Option<Duration> {
    let read = at.duration()?;
    if read < Duration::from_millis(least_ms) || read > most {
        at.error("no such time here", format!("use {least_ms}ms to {}h", most.as_secs() / 3600));
        return None;
    }
    Some(read)
}

fn ranges(at: &Cursor<'_>) -> Vec<String> {
    let range = |at: &Cursor<'_>| {
        let text = at.text()?;
        if text.is_empty() || text.contains(['#', '\n', '\r', ' ', '\t']) || AddressList::read(&text).is_err() {
            at.error(format!("`{}` is no range of addresses", text.escape_debug()), "write for example 10.0.0.0/8 or 2001:db8::/32");
            return None;
        }
        Some(text)
    };
    at.list(RANGES_MAX).iter().filter_map(range).collect()
}

fn address(at: &Cursor<'_>) -> Option<ClientAddress> {
    let mut fields = at.fields();
    let hops = fields.get("trustedHops").and_then(|at| within(&at, 0, HOPS_MAX)).unwrap_or_default();
    let trusted_cidrs = fields.get("trustedCidrs").map(|at| ranges(&at)).unwrap_or_default();
    let words = [("XForwardedFor", Header::XForwardedFor), ("Forwarded", Header::Forwarded)];
    let header = fields.get("header").and_then(|at| at.word(&words)).unwrap_or_default();
    fields.done();
    if hops > 0 && !trusted_cidrs.is_empty() {
        at.error("hops and addresses are two ways to say who is trusted", "write either trustedHops or trustedCidrs");
        return None;
    }
    Some(ClientAddress { trusted_hops: hops, trusted_cidrs, header: header.into() })
}

/// A default message: it is off.
fn proxy(at: &Cursor<'_>) -> Option<ProxyProtocol> {
    let mut fields = at.fields();
    let words = [("Off", None), ("Require", Some(true)), ("Optional", Some(false))];
    let mode = fields.get("mode").map_or(Some(None), |at| at.word(&words));
    let trusted_cidrs = fields.get("trustedCidrs").map(|at| ranges(&at)).unwrap_or_default();
    let timeout = fields.get("timeout").and_then(|at| time(&at, 1, WAIT_MAX));
    fields.done();
    let Some(required) = mode? else { return Some(ProxyProtocol::default()) };
    if !required && trusted_cidrs.is_empty() {
        at.error("whoever connects could choose its address", "name those who may send it in trustedCidrs, or Require it of all");
        return None;
    }
    let timeout = timeout.and_then(|timeout| prost_types::Duration::try_from(timeout).ok());
    Some(ProxyProtocol { required, trusted_cidrs, timeout })
}

fn early_name(at: &Cursor<'_>) -> Option<String> {
    let name = header(at)?;
    if !engine::model::build::claim_header(&name) {
        at.error(format!("`{name}` is not a policy's to change"), "choose another header");
        return None;
    }
    Some(name)
}

fn early_header(at: &Cursor<'_>) -> Option<EarlyHeader> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| early_name(&at));
    let value = fields.need("value").and_then(|at| {
        let text = at.text()?;
        if http::HeaderValue::from_str(&text).is_err() || text.len() > 2048 {
            at.error("it is no header's value", "use at most 2048 visible characters");
            return None;
        }
        Some(text)
    });
    fields.done();
    Some(EarlyHeader { name: name?, value: value? })
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
