//! Filters of rules and backends, in the order in which Gateway API's reference lists them.

use super::external::RouteExternal;
use super::matches::VALUE_BYTES_MAX;
use super::reference::Reference;
use super::{ITEMS_MAX, Unsupported, fault};
use crate::world::door::{Cursor, Fields, is_subdomain};
use crate::world::key::Kind;

/// Most entries of one list of a CORS filter.
const CORS_ITEMS_MAX: usize = 64;
/// `maxAge` of CORS where none is said.
const MAX_AGE_SECS: u32 = 5;
const PATH_BYTES_MAX: usize = 1024;
const MILLION: i64 = 1_000_000;

/// What a rule, or a backend of it, does to requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Header changes of the request.
    pub request: HeaderOps,
    /// Header changes of the response.
    pub response: HeaderOps,
    /// What pages of other origins may do.
    pub cors: Option<Cors>,
    /// An answer that sends the client elsewhere.
    pub redirect: Option<Redirect>,
    /// Another host or path for the backend.
    pub rewrite: Option<Rewrite>,
    /// Copies.
    pub mirrors: Vec<Mirror>,
    /// A service that says whether a request may go on.
    pub external: Option<RouteExternal>,
}

/// Changes to headers; names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOps {
    /// Overwrite.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Delete.
    pub remove: Vec<String>,
}

/// The CORS filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// `scheme://host[:port]`, the host perhaps with `*.` in front; or `*` alone.
    pub allow_origins: Vec<String>,
    /// Methods; or `*` alone.
    pub allow_methods: Vec<String>,
    /// Headers of requests, in lower case; or `*` alone.
    pub allow_headers: Vec<String>,
    /// Headers of responses that the page may see, in lower case; or `*` alone.
    pub expose_headers: Vec<String>,
    /// Whether cookies and the like may come along.
    pub allow_credentials: bool,
    /// How long browsers keep the answer to a preflight.
    pub max_age_secs: u32,
}

/// The RequestRedirect filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None`: the listener's.
    pub scheme: Option<String>,
    /// `None`: as asked for.
    pub hostname: Option<String>,
    /// `None`: as asked for.
    pub path: Option<PathChange>,
    /// `None`: the scheme's own where a scheme is set, else the one that was called.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The URLRewrite filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// `None`: as it came.
    pub hostname: Option<String>,
    /// `None`: as it came.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// Instead of the whole path.
    Full(String),
    /// Instead of the prefix that the rule matched; without trailing slash, empty for the root.
    Prefix(String),
}

/// The RequestMirror filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Who gets the copy.
    pub to: Reference,
    /// Of 1,000,000 requests.
    pub per_million: u32,
}

/// Headers that belong to the connection or to routing itself; no rule may change them.
pub const PROTECTED: [&str; 10] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "content-length",
    "x-forwarded-client-cert",
];

/// How headers of requests begin in which the mesh speaks for itself: who called at its edge, how long the caller waits.
const OF_MESH: &str = "x-meshwright-";

/// Whether a name is one of those, or is read so by applications that take `_` for `-` (CGI, RFC 3875, section 4.1.18).
fn is_of_mesh(name: &str) -> bool {
    name.replace('_', "-").starts_with(OF_MESH)
}

/// Types of filters, and the field that holds what each says.
const TYPES: [(&str, &str); 8] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("ExtensionRef", "extensionRef"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
    ("ExternalAuth", "externalAuth"),
];
/// How many of [`TYPES`] a GRPCRoute has: the first.
const GRPC_TYPES: usize = 4;

impl Filters {
    /// Reads a list of filters. Whatever cannot be carried out lands in `failing`.
    pub(super) fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Self {
        let types = if at.key().kind == Kind::GRPCRoute { &TYPES[..GRPC_TYPES] } else { &TYPES[..] };
        let mut filters = Self::default();
        let mut seen = Vec::new();
        for at in at.list(ITEMS_MAX) {
            let mut fields = at.fields();
            let Some(kind) = fields.need("type").and_then(|at| at.text()) else { continue };
            for (other, field) in types.iter().filter(|(other, _)| *other != kind) {
                if let Some(at) = fields.get(field) {
                    at.error(format!("belongs to the type {other}, and this is {kind}"), "make a filter of its own of it");
                }
            }
            if seen.contains(&kind) && !matches!(kind.as_str(), "RequestMirror" | "ExtensionRef") {
                at.error(format!("{kind} stands twice"), "merge the two");
            }
            match types.iter().find(|(known, _)| *known == kind) {
                Some((known, field)) => filters.read_one(known, &at, fields.need(field), failing),
                None => failing.push(fault(&at, format!("unknown filter `{kind}`"))),
            }
            fields.done();
            seen.push(kind);
        }
        if ["RequestRedirect", "URLRewrite"].iter().all(|kind| seen.iter().any(|seen| seen == kind)) {
            at.error("RequestRedirect and URLRewrite exclude each other", "remove one of them");
        }
        filters
    }

    fn read_one(&mut self, kind: &str, at: &Cursor<'_>, content: Option<Cursor<'_>>, failing: &mut Vec<Unsupported>) {
        let Some(content) = content else { return };
        match kind {
            "RequestHeaderModifier" => {
                self.request = HeaderOps::read(&content, failing);
                if let Some(name) = self.request.names().find(|name| is_of_mesh(name)) {
                    failing.push(fault(at, format!("the header `{name}` is the mesh's to say, and backends believe it")));
                }
            }
            "ResponseHeaderModifier" => self.response = HeaderOps::read(&content, failing),
            "RequestMirror" => self.mirrors.extend(Mirror::read(&content)),
            "RequestRedirect" => self.redirect = Redirect::read(&content, failing),
            "URLRewrite" => self.rewrite = Rewrite::read(&content, failing),
            "CORS" => self.cors = Some(Cors::read(&content, failing)),
            // Of a rule's own; a backend's is none that is asked.
            "ExternalAuth" if !at.path().contains("backendRefs") => self.external = RouteExternal::read(&content, failing),
            other => failing.push(fault(at, format!("the filter {other} is not supported by this version"))),
        }
    }
}

impl HeaderOps {
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Self {
        let mut fields = at.fields();
        let mut pairs = |name| fields.get(name).map(|at| read_pairs(&at)).unwrap_or_default();
        let (set, add) = (pairs("set"), pairs("add"));
        let mut remove = Vec::new();
        for at in fields.get("remove").map(|at| at.list(ITEMS_MAX)).unwrap_or_default() {
            let name = at.text().map(|name| name.to_lowercase());
            match name.filter(|name| http::HeaderName::try_from(name.as_str()).is_ok()) {
                Some(name) => remove.push(name),
                None => at.error("no header name", ""),
            }
        }
        fields.done();
        let read = Self { set, add, remove };
        for name in read.names().filter(|name| PROTECTED.contains(name)) {
            failing.push(fault(at, format!("the header `{name}` cannot be changed by a filter")));
        }
        read
    }

    /// Every name that it says something of, in lower case.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.set.iter().chain(&self.add).map(|(name, _)| name.as_str()).chain(self.remove.iter().map(String::as_str))
    }
}

/// Headers with their values; of one name the first counts.
fn read_pairs(at: &Cursor<'_>) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for at in at.list(ITEMS_MAX) {
        let Some(pair) = read_pair(&at) else { continue };
        if pairs.iter().any(|(known, _)| *known == pair.0) {
            at.warn(format!("the header `{}` stands twice: the first counts", pair.0), "remove one of the two");
        } else {
            pairs.push(pair);
        }
    }
    pairs
}

fn read_pair(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| at.text()).map(|name| name.to_lowercase());
    let value = fields.need("value").and_then(|at| at.text());
    fields.done();
    let (name, value) = (name?, value?);
    if value.len() > VALUE_BYTES_MAX
        || http::HeaderName::try_from(name.as_str()).is_err()
        || http::HeaderValue::try_from(value.as_str()).is_err()
    {
        at.error(format!("`{name}: {value}` is no header"), "");
        return None;
    }
    Some((name, value))
}

impl Mirror {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let to = fields.need("backendRef").and_then(|at| {
            let mut fields = at.fields();
            let to = Reference::read(&mut fields);
            fields.done();
            to
        });
        let percent = fields.get("percent");
        let fraction = fields.get("fraction");
        if percent.is_some() && fraction.is_some() {
            at.error("percent and fraction exclude each other", "remove one of them");
        }
        let mut per_million = MILLION;
        if let Some(at) = percent {
            per_million = at.int(0..=100)? * (MILLION / 100);
        }
        if let Some(at) = fraction {
            per_million = read_fraction(&at)?;
        }
        fields.done();
        Some(Self { to: to?, per_million: u32::try_from(per_million).ok()? })
    }
}

/// Of 1,000,000, rounded down.
fn read_fraction(at: &Cursor<'_>) -> Option<i64> {
    let mut fields = at.fields();
    let numerator = fields.need("numerator").and_then(|at| at.int(0..=i32::MAX.into()));
    let denominator = fields.get("denominator").map_or(Some(100), |at| at.int(1..=i32::MAX.into()));
    fields.done();
    let (numerator, denominator) = (numerator?, denominator?);
    if numerator > denominator {
        at.error("the numerator is larger than the denominator", "a fraction is at most 1");
        return None;
    }
    let share = numerator * MILLION / denominator;
    if share == 0 && numerator > 0 {
        at.warn("it is less than one in a million, which is taken for none: nothing is mirrored", "use a larger fraction");
    }
    Some(share)
}

impl Redirect {
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Option<Self> {
        let mut fields = at.fields();
        let scheme = fields.get("scheme").and_then(|at| {
            let scheme = at.text()?;
            if !matches!(scheme.as_str(), "http" | "https") {
                failing.push(fault(&at, format!("unknown scheme `{scheme}`")));
            }
            Some(scheme)
        });
        let hostname = read_host(&mut fields);
        let path = fields.get("path").and_then(|at| PathChange::read(&at, failing));
        let port = fields.get("port").and_then(|at| at.port());
        let status = fields.get("statusCode");
        let code = status.as_ref().map_or(Some(302), |at| at.int(0..=999));
        fields.done();
        let code = u16::try_from(code?).ok()?;
        if let (Some(at), false) = (&status, matches!(code, 301 | 302 | 303 | 307 | 308)) {
            failing.push(fault(at, format!("the status code {code} is none of a redirect")));
        }
        Some(Self { scheme, hostname, path, port, status: code })
    }
}

impl Rewrite {
    /// `None`: it changes nothing.
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Option<Self> {
        let mut fields = at.fields();
        let hostname = read_host(&mut fields);
        let path = fields.get("path").and_then(|at| PathChange::read(&at, failing));
        let nothing = !fields.has("hostname") && !fields.has("path");
        fields.done();
        if nothing {
            at.warn("it rewrites nothing", "say hostname or path, or remove it");
        }
        (hostname.is_some() || path.is_some()).then_some(Self { hostname, path })
    }
}

/// A host without wildcard.
fn read_host(fields: &mut Fields<'_>) -> Option<String> {
    let at = fields.get("hostname")?;
    let host = at.text()?.to_lowercase();
    if !is_subdomain(&host) {
        at.error(format!("`{host}` is no host name"), "write it as www.example.com, without a port or wildcard");
        return None;
    }
    Some(host)
}

impl PathChange {
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Option<Self> {
        const FIELDS: [(&str, &str); 2] = [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")];
        let mut fields = at.fields();
        let kind = fields.need("type").and_then(|at| at.text())?;
        for (other, field) in FIELDS.iter().filter(|(other, _)| *other != kind) {
            if let Some(at) = fields.get(field) {
                at.error(format!("belongs to the type {other}, and this is {kind}"), "remove it");
            }
        }
        let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == kind) else {
            failing.push(fault(at, format!("unknown type of path modifier `{kind}`")));
            return None;
        };
        let value = fields.need(field);
        fields.done();
        let value = value?;
        let text = value.text()?;
        let whole = kind == "ReplaceFullPath";
        // What a request line may have: the rest is written with `%`.
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains(['?', '#']);
        let parsed = plain && http::uri::PathAndQuery::try_from(text.as_str()).is_ok();
        let fits = text.starts_with('/') && parsed || text.is_empty() && !whole;
        if !fits || text.len() > PATH_BYTES_MAX {
            value.error(format!("`{text}` is no path"), "start with `/`; no `?`, `#` or spaces, and what is not ASCII as %XX");
            return None;
        }
        Some(if whole { Self::Full(text) } else { Self::Prefix(text.trim_end_matches('/').to_owned()) })
    }
}

impl Cors {
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Self {
        const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        let mut fields = at.fields();
        let header = |text: &str| http::HeaderName::try_from(text).ok().map(|name| name.as_str().to_owned());
        let allow_origins = read_words(&mut fields, "allowOrigins", failing, |text| origin(&text.to_lowercase()));
        let method = |text: &str| METHODS.contains(&text).then(|| text.to_owned());
        let allow_methods = read_words(&mut fields, "allowMethods", failing, method);
        let allow_headers = read_words(&mut fields, "allowHeaders", failing, header);
        let expose_headers = read_words(&mut fields, "exposeHeaders", failing, header);
        let allow_credentials = fields.get("allowCredentials").and_then(|at| at.flag()).unwrap_or(false);
        let max_age = fields.get("maxAge").and_then(|at| at.int(1..=i32::MAX.into()));
        if !fields.has("allowOrigins") {
            at.warn("without allowOrigins no page of another origin may call", "list origins, or `*` for all");
        }
        fields.done();
        let max_age_secs = max_age.and_then(|secs| u32::try_from(secs).ok()).unwrap_or(MAX_AGE_SECS);
        Self { allow_origins, allow_methods, allow_headers, expose_headers, allow_credentials, max_age_secs }
    }
}

/// A list of words, or `*` alone; `good` says what a word becomes.
fn read_words(
    fields: &mut Fields<'_>,
    name: &'static str,
    failing: &mut Vec<Unsupported>,
    good: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut words = Vec::new();
    let Some(at) = fields.get(name) else { return words };
    for at in at.list(CORS_ITEMS_MAX) {
        let Some(text) = at.text() else { continue };
        match if text == "*" { Some(text.clone()) } else { good(&text) } {
            Some(word) if words.contains(&word) => {}
            Some(word) => words.push(word),
            None => failing.push(fault(&at, format!("`{text}` is none of what {name} takes"))),
        }
    }
    if words.len() > 1 && words.iter().any(|word| word == "*") {
        at.error("`*` stands alone", "remove the others, or `*`");
    }
    words
}

/// `http` or `https`, a host that may begin with `*.`, perhaps a port.
fn origin(text: &str) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    (port && is_subdomain(host.strip_prefix("*.").unwrap_or(host))).then(|| text.to_owned())
}
