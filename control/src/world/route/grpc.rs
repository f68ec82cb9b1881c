//! Rules of GRPCRoute. A call is a path, `/SERVICE/METHOD`, so its matches are matches on paths.

use super::filters::Filters;
use super::matches::{Match, PathMatch, pattern, read_values};
use super::{Rule, SessionPersistence, Unsupported, experimental, fault};
use crate::world::door::Cursor;

const MATCHES_MAX: usize = 64;
/// Longest name of a service or method.
const NAME_BYTES_MAX: usize = 1024;

pub(super) fn read(at: &Cursor<'_>) -> Rule {
    let mut fields = at.fields();
    let mut rule = Rule::read(&mut fields);
    for at in fields.get("matches").map(|at| at.list(MATCHES_MAX)).unwrap_or_default() {
        match read_match(&at) {
            Ok(read) => rule.matches.push(read),
            Err(fault) => rule.unmatchable.extend(fault),
        }
    }
    if rule.matches.is_empty() && rule.unmatchable.is_empty() {
        rule.matches.push(Match::any());
    }
    if let Some(at) = fields.get("filters") {
        rule.filters = Filters::read(&at, &mut rule.failing);
    }
    if let Some(at) = fields.get("sessionPersistence") {
        experimental(&at, "sessionPersistence");
        rule.session = SessionPersistence::read(&at, &mut rule.failing);
    }
    for name in ["timeouts", "retry"] {
        if let Some(at) = fields.get(name) {
            at.warn(format!("{name} is no field of a GRPCRoute; it has no effect"), "say it in a TrafficPolicy for this route");
        }
    }
    fields.done();
    rule
}

/// `Err(Some)`: nothing can match it; `Err(None)`: reported as an error of the object.
fn read_match(at: &Cursor<'_>) -> Result<Match, Option<Unsupported>> {
    let mut fields = at.fields();
    let path = fields.get("method").map(|at| read_method(&at)).transpose();
    let headers = fields.get("headers").map(|at| read_values(&at, true)).transpose();
    fields.done();
    let mut matched = Match::any();
    matched.path = path?.unwrap_or(matched.path);
    matched.headers = headers?.unwrap_or_default();
    Ok(matched)
}

fn read_method(at: &Cursor<'_>) -> Result<PathMatch, Option<Unsupported>> {
    let mut fields = at.fields();
    let kind = fields.get("type").map_or(Some("Exact".to_owned()), |at| at.text()).ok_or(None);
    let service = fields.get("service").map_or(Some(String::new()), |at| at.text()).ok_or(None);
    let method = fields.get("method").map_or(Some(String::new()), |at| at.text()).ok_or(None);
    fields.done();
    let (kind, service, method) = (kind?, service?, method?);
    match kind.as_str() {
        "Exact" => {
            let fits = |name: &str, dots| name.is_empty() || is_name(name, dots);
            if !fits(&service, true) || !fits(&method, false) {
                at.error(format!("`{service}/{method}` is no gRPC method"), "write `service: package.Service` and `method: Method`");
                return Err(None);
            }
            Ok(match (service.is_empty(), method.is_empty()) {
                (true, true) => PathMatch::Prefix(String::new()),
                (false, true) => PathMatch::Service(service),
                (true, false) => PathMatch::Method(method),
                (false, false) => PathMatch::Exact(format!("/{service}/{method}")),
            })
        }
        "RegularExpression" if service.is_empty() && method.is_empty() => Ok(PathMatch::Prefix(String::new())),
        "RegularExpression" => {
            // Each by itself first: `a)|(b` is none, although it is one between parentheses.
            for part in [&service, &method] {
                pattern(at, part).map_err(Some)?;
            }
            let part = |text: &str| if text.is_empty() { "[^/]+".to_owned() } else { format!("(?:{text})") };
            let whole = format!("/{}/{}", part(&service), part(&method));
            pattern(at, &whole).map_err(Some)?;
            Ok(if service.is_empty() { PathMatch::Method(part(&method)) } else { PathMatch::Regex(whole) })
        }
        other => Err(Some(fault(at, format!("unknown type of method match `{other}`")))),
    }
}

/// A protobuf identifier, or (`dots`) several with dots between them.
fn is_name(text: &str, dots: bool) -> bool {
    let word = |word: &str| {
        word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && word.bytes().next().is_some_and(|first| !first.is_ascii_digit())
    };
    let text = if dots { text.strip_prefix('.').unwrap_or(text) } else { text };
    text.len() <= NAME_BYTES_MAX && if dots { text.split('.').all(word) } else { word(text) }
}
