//! HTTPRoute, read leniently: an unknown word refuses its rule with the standard's condition, not the object.

use std::net::IpAddr;
use std::time::Duration;

use super::door::{Cursor, Fields, is_label, is_subdomain};
use super::key::{CORE, GATEWAY_API};

/// Bounds of the published schema.
const PARENTS_MAX: usize = 32;
const HOSTNAMES_MAX: usize = 16;
const RULES_MAX: usize = 16;
const MATCHES_MAX: usize = 64;
const ITEMS_MAX: usize = 16;
const PATH_BYTES_MAX: usize = 1024;
const PATTERN_BYTES_MAX: usize = 4096;
/// Largest compiled expression, as in the proxy's engine.
const PATTERN_SIZE_MAX: usize = 256 << 10;
/// Longest value of a header or query parameter.
const VALUE_BYTES_MAX: usize = 4096;

/// Rules for HTTP requests, attached to Gateways or Services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRoute {
    /// What it attaches to.
    pub parents: Vec<ParentRef>,
    /// Hosts it is about; empty: those of its listener. Without meaning for a Service.
    pub hostnames: Vec<String>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A reference to a parent, echoed in status as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// As written; `None`: Gateway API's group.
    pub group: Option<String>,
    /// As written; `None`: Gateway.
    pub kind: Option<String>,
    /// As written; `None`: the route's own.
    pub namespace: Option<String>,
    /// Name of the parent.
    pub name: String,
    /// Listener (or Service port) by name.
    pub section: Option<String>,
    /// Listener or Service port by number.
    pub port: Option<u16>,
    /// Line in the file.
    pub line: u32,
}

impl ParentRef {
    /// Whether this names a Gateway.
    pub fn is_gateway(&self) -> bool {
        self.group.as_deref().unwrap_or(GATEWAY_API) == GATEWAY_API && self.kind.as_deref().unwrap_or("Gateway") == "Gateway"
    }

    /// Whether this names a Service.
    pub fn is_service(&self) -> bool {
        self.group.as_deref() == Some(CORE) && self.kind.as_deref() == Some("Service")
    }
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Any of these; never empty.
    pub matches: Vec<Match>,
    /// Header changes of the rule.
    pub headers: Headers,
    /// Where its requests go.
    pub backends: Vec<BackendRef>,
    /// Whole-request timeout: the smaller of `request` and `backendRequest`, which are one wait where there is one attempt.
    pub timeout: Option<Duration>,
    /// Why nothing can match it as written: the rule is dropped.
    pub unmatchable: Vec<Unsupported>,
    /// Why its requests must fail: they would be served without what the author asked for.
    pub failing: Vec<Unsupported>,
    /// What it is served without.
    pub without: Vec<Unsupported>,
    /// Line in the file.
    pub line: u32,
}

/// Something in a rule that this version cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Path of the field.
    pub field: String,
    /// What about it.
    pub message: String,
    /// Line in the file.
    pub line: u32,
}

/// A conjunction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// On the path.
    pub path: PathMatch,
    /// On headers; names in lower case, each once.
    pub headers: Vec<(String, ValueMatch)>,
    /// On query parameters; each name once.
    pub query: Vec<(String, ValueMatch)>,
    /// On the method.
    pub method: Option<String>,
}

/// See [`Match::path`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole elements; without trailing slash, empty for the root.
    Prefix(String),
    /// A regular expression for the whole path.
    Regex(String),
}

/// How a value is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(String),
    /// A regular expression for the whole value.
    Regex(String),
}

/// Changes to headers, of the request and of the response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Of the request.
    pub request: HeaderOps,
    /// Of the response.
    pub response: HeaderOps,
}

/// See [`Headers`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOps {
    /// Overwrite.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Delete.
    pub remove: Vec<String>,
}

/// A weighted reference to a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// As written; `None`: the route's own.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port.
    pub port: Option<u16>,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Header changes for this backend alone.
    pub headers: Headers,
    /// Why its share of requests must fail.
    pub failing: Vec<Unsupported>,
    /// Line in the file.
    pub line: u32,
}

fn fault(at: &Cursor<'_>, message: impl Into<String>) -> Unsupported {
    Unsupported { field: at.path().to_owned(), message: message.into(), line: at.line() }
}

impl HttpRoute {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut route = Self::default();
        for at in fields.get("parentRefs").map(|at| at.list(PARENTS_MAX)).unwrap_or_default() {
            route.parents.extend(ParentRef::read(&at));
        }
        for at in fields.get("hostnames").map(|at| at.list(HOSTNAMES_MAX)).unwrap_or_default() {
            route.hostnames.extend(read_hostname(&at));
        }
        for at in fields.get("rules").map(|at| at.list(RULES_MAX)).unwrap_or_default() {
            let rule = Rule::read(&at);
            if rule.name.is_some() && route.rules.iter().any(|known| known.name == rule.name) {
                at.error("the rule's name stands twice", "give each rule its own name");
            }
            route.rules.push(rule);
        }
        if route.rules.is_empty() {
            route.rules.push(Rule { matches: vec![Match::any()], line: fields.at().line(), ..Rule::default() });
        }
        fields.without(&["useDefaultGateways"]);
        fields.done();
        Some(route)
    }
}

/// Checks and lowers a host: no port, no address, a wildcard only as its first label.
pub(super) fn read_hostname(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?.to_lowercase();
    if text.is_empty() {
        return None;
    }
    let rest = text.strip_prefix("*.").unwrap_or(&text);
    if rest.parse::<IpAddr>().is_ok() || !is_subdomain(rest) {
        at.error(format!("`{text}` is no host name"), "write it as www.example.com or *.example.com, without a port");
        return None;
    }
    Some(text)
}

impl ParentRef {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let mut text = |name| fields.get(name).and_then(|at| at.text());
        let (group, kind, namespace, section) = (text("group"), text("kind"), text("namespace"), text("sectionName"));
        let name = fields.need("name").and_then(|at| at.text());
        let port = fields.get("port").and_then(|at| at.port());
        fields.done();
        Some(Self { group, kind, namespace, name: name?, section, port, line: at.line() })
    }
}

impl Rule {
    fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let mut rule = Self { line: at.line(), ..Self::default() };
        if let Some(at) = fields.get("name") {
            rule.name = at.text().filter(|name| is_subdomain(name));
            if rule.name.is_none() {
                at.error("no valid name of a rule", "use lower-case letters, digits and `-`");
            }
        }
        for at in fields.get("matches").map(|at| at.list(MATCHES_MAX)).unwrap_or_default() {
            match Match::read(&at) {
                Ok(read) => rule.matches.push(read),
                Err(fault) => rule.unmatchable.extend(fault),
            }
        }
        if rule.matches.is_empty() && rule.unmatchable.is_empty() {
            rule.matches.push(Match::any());
        }
        if let Some(at) = fields.get("filters") {
            rule.headers = Headers::read(&at, &mut rule.failing);
        }
        for at in fields.get("backendRefs").map(|at| at.list(ITEMS_MAX)).unwrap_or_default() {
            rule.backends.extend(BackendRef::read(&at));
        }
        rule.timeout = fields.get("timeouts").and_then(|at| read_timeouts(&at));
        for name in ["retry", "sessionPersistence"] {
            if let Some(at) = fields.get(name) {
                rule.without.push(fault(&at, format!("{name} is not supported by this version")));
            }
        }
        fields.done();
        rule
    }
}

fn read_timeouts(at: &Cursor<'_>) -> Option<Duration> {
    let mut fields = at.fields();
    // "0s" means none.
    let mut read = |name| fields.get(name).and_then(|at| at.duration()).filter(|timeout| !timeout.is_zero());
    let (request, backend) = (read("request"), read("backendRequest"));
    fields.done();
    if let (Some(request), Some(backend)) = (request, backend)
        && backend > request
    {
        at.error("backendRequest is longer than request", "make it shorter, or leave it out");
    }
    request.into_iter().chain(backend).min()
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self { path: PathMatch::Prefix(String::new()), headers: Vec::new(), query: Vec::new(), method: None }
    }

    /// `Err(Some)`: nothing can match it; `Err(None)`: reported as an error of the object.
    fn read(at: &Cursor<'_>) -> Result<Self, Option<Unsupported>> {
        let mut fields = at.fields();
        let path = fields.get("path").map(|at| PathMatch::read(&at)).transpose();
        let headers = fields.get("headers").map(|at| read_values(&at, true)).transpose();
        let query = fields.get("queryParams").map(|at| read_values(&at, false)).transpose();
        let method = fields.get("method").map(|at| read_method(&at)).transpose();
        fields.done();
        Ok(Self {
            path: path?.unwrap_or(PathMatch::Prefix(String::new())),
            headers: headers?.unwrap_or_default(),
            query: query?.unwrap_or_default(),
            method: method?,
        })
    }
}

fn read_method(at: &Cursor<'_>) -> Result<String, Option<Unsupported>> {
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let text = at.text().ok_or(None)?;
    if METHODS.contains(&text.as_str()) { Ok(text) } else { Err(Some(fault(at, format!("unknown method `{text}`")))) }
}

impl PathMatch {
    fn read(at: &Cursor<'_>) -> Result<Self, Option<Unsupported>> {
        let mut fields = at.fields();
        let kind = fields.get("type").map_or(Some("PathPrefix".to_owned()), |at| at.text());
        let value = fields.get("value").map_or(Some("/".to_owned()), |at| at.text());
        fields.done();
        let (kind, value) = (kind.ok_or(None)?, value.ok_or(None)?);
        match kind.as_str() {
            "Exact" | "PathPrefix" => {
                let lower = value.to_lowercase();
                let segment = value.split('/').any(|segment| segment == "." || segment == "..");
                if !value.starts_with('/')
                    || value.len() > PATH_BYTES_MAX
                    || segment
                    || ["//", "%2f", "#", "?"].iter().any(|bad| lower.contains(bad))
                {
                    at.error(format!("`{value}` is no path"), "start with `/`; no `//`, `.`, `..`, `%2f`, `#` or `?`");
                    return Err(None);
                }
                Ok(if kind == "Exact" { Self::Exact(value) } else { Self::Prefix(value.trim_end_matches('/').to_owned()) })
            }
            "RegularExpression" => pattern(at, &value).map(|()| Self::Regex(value)).map_err(Some),
            other => Err(Some(fault(at, format!("unknown type of path match `{other}`")))),
        }
    }
}

fn pattern(at: &Cursor<'_>, text: &str) -> Result<(), Unsupported> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(fault(at, format!("the regular expression has more than {PATTERN_BYTES_MAX} bytes")));
    }
    let build = |text: &str| regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE_MAX).dfa_size_limit(PATTERN_SIZE_MAX).build();
    // Whole by itself first: `a)|(b` is not, although it is between parentheses.
    let compiled = build(text).and_then(|_| build(&format!(r"\A(?:{text})\z")));
    compiled.map(|_| ()).map_err(|error| {
        let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        fault(at, format!("`{text}` is no regular expression: {last}"))
    })
}

/// Header or query matches; of a repeated name only the first counts.
fn read_values(at: &Cursor<'_>, headers: bool) -> Result<Vec<(String, ValueMatch)>, Option<Unsupported>> {
    let mut read: Vec<(String, ValueMatch)> = Vec::new();
    for at in at.list(ITEMS_MAX) {
        let mut fields = at.fields();
        let kind = fields.get("type").map_or(Some("Exact".to_owned()), |at| at.text());
        let name = fields.need("name").and_then(|at| at.text());
        let value = fields.need("value").and_then(|at| at.text());
        fields.done();
        let (kind, mut name, value) = (kind.ok_or(None)?, name.ok_or(None)?, value.ok_or(None)?);
        if name.is_empty() || name.len() > 256 || value.len() > VALUE_BYTES_MAX {
            at.error("the name is empty or a part is too long", format!("at most 256 bytes of name and {VALUE_BYTES_MAX} of value"));
            continue;
        }
        if headers {
            name = name.to_lowercase();
            if http::HeaderName::try_from(name.as_str()).is_err() {
                at.error(format!("`{name}` is no header name"), "");
                continue;
            }
        }
        if read.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let matched = match kind.as_str() {
            "Exact" => ValueMatch::Exact(value),
            "RegularExpression" => {
                pattern(&at, &value).map_err(Some)?;
                ValueMatch::Regex(value)
            }
            other => return Err(Some(fault(&at, format!("unknown type of match `{other}`")))),
        };
        read.push((name, matched));
    }
    Ok(read)
}

/// Headers that belong to the connection or to routing itself; no rule may change them.
const PROTECTED: [&str; 10] = [
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

impl Headers {
    /// Reads a list of filters. Whatever is no header modifier lands in `failing`.
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Self {
        let mut headers = Self::default();
        let mut seen = Vec::new();
        for at in at.list(ITEMS_MAX) {
            let mut fields = at.fields();
            let Some(kind) = fields.need("type").and_then(|at| at.text()) else { continue };
            if matches!(kind.as_str(), "RequestHeaderModifier" | "ResponseHeaderModifier") && seen.contains(&kind) {
                at.error(format!("{kind} stands twice"), "merge the two");
            }
            match kind.as_str() {
                "RequestHeaderModifier" => {
                    if let Some(at) = fields.need("requestHeaderModifier") {
                        headers.request = HeaderOps::read(&at, failing);
                    }
                }
                "ResponseHeaderModifier" => {
                    if let Some(at) = fields.need("responseHeaderModifier") {
                        headers.response = HeaderOps::read(&at, failing);
                    }
                }
                known @ ("RequestRedirect" | "URLRewrite" | "RequestMirror" | "CORS" | "ExternalAuth" | "ExtensionRef") => {
                    failing.push(fault(&at, format!("the filter {known} is not supported by this version")));
                }
                other => failing.push(fault(&at, format!("unknown filter `{other}`"))),
            }
            fields.ignore(&["requestRedirect", "urlRewrite", "requestMirror", "cors", "externalAuth", "extensionRef"]);
            fields.ignore(&["requestHeaderModifier", "responseHeaderModifier"]);
            fields.done();
            seen.push(kind);
        }
        headers
    }
}

impl HeaderOps {
    fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Self {
        let mut fields = at.fields();
        let mut pairs = |name| fields.get(name).map(|at| at.list(ITEMS_MAX).iter().filter_map(read_pair).collect()).unwrap_or_default();
        let (set, add): (Vec<_>, Vec<_>) = (pairs("set"), pairs("add"));
        let mut remove = Vec::new();
        for at in fields.get("remove").map(|at| at.list(ITEMS_MAX)).unwrap_or_default() {
            let name = at.text().map(|name| name.to_lowercase());
            match name.filter(|name| http::HeaderName::try_from(name.as_str()).is_ok()) {
                Some(name) => remove.push(name),
                None => at.error("no header name", ""),
            }
        }
        fields.done();
        let names = set.iter().chain(&add).map(|(name, _): &(String, String)| name).chain(&remove);
        for name in names.filter(|name| PROTECTED.contains(&name.as_str())) {
            failing.push(fault(at, format!("the header `{name}` cannot be changed by a filter")));
        }
        Self { set, add, remove }
    }
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

impl BackendRef {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let group = fields.get("group").map_or(Some(String::new()), |at| at.text());
        let kind = fields.get("kind").map_or(Some("Service".to_owned()), |at| at.text());
        let namespace = fields.get("namespace").and_then(|at| at.text());
        let name = fields.need("name").and_then(|at| at.text());
        let port = fields.get("port").and_then(|at| at.port());
        let weight = fields.get("weight").map_or(Some(1), |at| at.int(0..=1_000_000));
        let mut failing = Vec::new();
        let headers = fields.get("filters").map(|at| Headers::read(&at, &mut failing)).unwrap_or_default();
        fields.done();
        let (group, kind) = (group?, kind?);
        if port.is_none() && group.is_empty() && kind == "Service" {
            at.error("a reference to a Service needs a port", "add `port`");
        }
        if namespace.as_ref().is_some_and(|namespace| !is_label(namespace)) {
            at.error("the namespace is no valid name", "");
        }
        let weight = u32::try_from(weight?).ok()?;
        Some(Self { group, kind, namespace, name: name?, port, weight, headers, failing, line: at.line() })
    }
}
