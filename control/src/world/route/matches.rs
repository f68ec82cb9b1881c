//! Matches: which requests a rule is about.

use super::{ITEMS_MAX, Unsupported, fault};
use crate::world::door::Cursor;

const PATH_BYTES_MAX: usize = 1024;
const PATTERN_BYTES_MAX: usize = 4096;
/// Largest compiled expression, as in the proxy's engine.
const PATTERN_SIZE_MAX: usize = 256 << 10;
/// Longest value of a header or query parameter.
pub(super) const VALUE_BYTES_MAX: usize = 4096;

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
    /// Every method of this gRPC service.
    Service(String),
    /// The gRPC methods whose name is this, or (in parentheses) is one of this regular expression, of whatever service.
    Method(String),
}

/// How a value is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(String),
    /// A regular expression for the whole value.
    Regex(String),
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self { path: PathMatch::Prefix(String::new()), headers: Vec::new(), query: Vec::new(), method: None }
    }

    /// `Err(Some)`: nothing can match it; `Err(None)`: reported as an error of the object.
    pub(in crate::world) fn read(at: &Cursor<'_>) -> Result<Self, Option<Unsupported>> {
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
    pub(in crate::world) fn read(at: &Cursor<'_>) -> Result<Self, Option<Unsupported>> {
        let mut fields = at.fields();
        let kind = fields.get("type").map_or(Some("PathPrefix".to_owned()), |at| at.text());
        let value = fields.get("value").map_or(Some("/".to_owned()), |at| at.text());
        fields.done();
        let (kind, value) = (kind.ok_or(None)?, value.ok_or(None)?);
        match kind.as_str() {
            "Exact" | "PathPrefix" => {
                if value.len() > PATH_BYTES_MAX || !is_path(&value) {
                    at.error(format!("`{value}` is no path"), PATH_REMEDY);
                    return Err(None);
                }
                Ok(if kind == "Exact" { Self::Exact(value) } else { Self::Prefix(value.trim_end_matches('/').to_owned()) })
            }
            "RegularExpression" => pattern(at, &value).map(|()| Self::Regex(value)).map_err(Some),
            other => Err(Some(fault(at, format!("unknown type of path match `{other}`")))),
        }
    }
}

/// What is said of a text that is no path.
pub(in crate::world) const PATH_REMEDY: &str = "start with `/`; no `//`, `.`, `..`, `%2f`, `#` or `?`, and what no URL may hold as %XX";

/// As Gateway API's schema has the value of an Exact or PathPrefix match.
pub(in crate::world) fn is_path(text: &str) -> bool {
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte));
    let hex = |part: &str| part.len() >= 2 && part.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let mut parts = text.split('%');
    let written = parts.next().is_some_and(plain) && parts.all(|part| hex(part) && plain(part));
    let dots = text.split('/').any(|segment| segment == "." || segment == "..");
    text.starts_with('/') && written && !dots && !text.contains("//") && !text.to_lowercase().contains("%2f")
}

pub(super) fn pattern(at: &Cursor<'_>, text: &str) -> Result<(), Unsupported> {
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
pub(in crate::world) fn read_values(at: &Cursor<'_>, headers: bool) -> Result<Vec<(String, ValueMatch)>, Option<Unsupported>> {
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
