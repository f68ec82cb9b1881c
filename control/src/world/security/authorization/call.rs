//! Who calls and what is asked for: `from` and `to`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proto::identity::Identity;
use proto::mesh::path_pattern::Kind as Pattern;
use proto::mesh::{CallSource, CallTarget, ClaimValues, PathPattern, TokenSource};

use super::{ITEMS_MAX, some};
use crate::world::door::{Cursor, is_label};
use crate::world::security::canonical;
use crate::world::traffic::header_matches;

/// Longest identity, host, path, issuer, claim or value.
const TEXT_BYTES_MAX: usize = 2048;
/// Most lists of addresses in one block.
const LISTS_MAX: usize = 16;
/// How every identity begins.
const SCHEME: &str = "spiffe://";

/// The texts of a list that has some, each as `read` takes it.
fn texts(at: &Cursor<'_>, read: fn(&Cursor<'_>, String) -> Option<String>) -> Vec<String> {
    let item = |at: &Cursor<'_>| {
        let text = at.text()?;
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            at.error("it is empty or too long", format!("write 1 to {TEXT_BYTES_MAX} bytes"));
            return None;
        }
        read(at, text)
    };
    some(at, ITEMS_MAX).iter().filter_map(item).collect()
}

pub(super) fn source(at: &Cursor<'_>) -> Option<CallSource> {
    let mut fields = at.fields();
    let mut source = CallSource::default();
    let mut list = |name, into: &mut Vec<String>, read| {
        if let Some(at) = fields.get(name) {
            *into = texts(&at, read);
        }
    };
    list("principals", &mut source.principals, principal);
    list("namespaces", &mut source.namespaces, namespace);
    list("ipBlocks", &mut source.ip_blocks, block);
    list("peerIpBlocks", &mut source.peer_ip_blocks, block);
    list("consumers", &mut source.consumers, consumer);
    list("consumerGroups", &mut source.consumer_groups, word);
    list("scopes", &mut source.scopes, |_, text| Some(text));
    list("authMethods", &mut source.auth_methods, proof);
    source.ip_lists = fields.get("ipListRefs").map(|at| some(&at, LISTS_MAX).iter().filter_map(list_ref).collect()).unwrap_or_default();
    source.token = fields.get("jwt").map(|at| token(&at));
    let all = [
        "principals",
        "namespaces",
        "ipBlocks",
        "jwt",
        "peerIpBlocks",
        "consumers",
        "consumerGroups",
        "scopes",
        "authMethods",
        "ipListRefs",
    ];
    let says = all.iter().any(|name| fields.has(name));
    fields.done();
    if !says {
        at.error(
            "it names no caller",
            "add principals, namespaces, ipBlocks, jwt, consumers or consumerGroups; for any caller leave `from` out",
        );
        return None;
    }
    Some(source)
}

/// `NAMESPACE/NAME`, or its beginning or end with `*` for the rest.
fn consumer(at: &Cursor<'_>, text: String) -> Option<String> {
    let part = text.strip_suffix('*').or_else(|| text.strip_prefix('*'));
    let plain = |text: &str| {
        text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'/')) && text.matches('/').count() <= 1
    };
    let fits = match part {
        Some(part) => plain(part),
        None => plain(&text) && text.split_once('/').is_some_and(|(namespace, name)| is_label(namespace) && !name.is_empty()),
    };
    if !fits {
        at.error(format!("`{text}` is no consumer"), "write NAMESPACE/NAME, or a part of it with `*` at one end");
        return None;
    }
    Some(text)
}

/// A group, as Consumers name theirs.
fn word(at: &Cursor<'_>, text: String) -> Option<String> {
    if text.len() > 63 || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        at.error(format!("`{text}` is no group"), "use 1 to 63 letters, digits, `-`, `_` and `.`");
        return None;
    }
    Some(text)
}

/// How a caller proves who it is.
fn proof(at: &Cursor<'_>, text: String) -> Option<String> {
    let words = engine::consumers::AuthMethod::ALL.map(|method| (method.text(), ()));
    at.word(&words)?;
    Some(text)
}

/// `{kind: ConfigMap, name}`, as `NAMESPACE/NAME`.
fn list_ref(at: &Cursor<'_>) -> Option<String> {
    let mut fields = at.fields();
    fields.get("kind").and_then(|at| at.word(&[("ConfigMap", ())]));
    let name = fields.need("name").and_then(|at| at.text());
    fields.done();
    Some(format!("{}/{}", at.key().namespace, name?))
}

/// A SPIFFE ID, or its beginning or end with `*` for the rest; `*` alone: whoever has one.
fn principal(at: &Cursor<'_>, text: String) -> Option<String> {
    let (before, after) = (text.starts_with('*'), text.ends_with('*'));
    let part = text.trim_start_matches('*').trim_end_matches('*');
    if part.contains('*') || text.len() > part.len() + 1 {
        at.error(format!("`{text}` has `*` in the middle, or twice"), "it stands for anything, once, at the beginning or at the end");
        return None;
    }
    let rest = if before { Some(part) } else { part.strip_prefix(SCHEME) };
    let Some(rest) = rest.or_else(|| (after && SCHEME.starts_with(part)).then_some("")) else {
        at.error(format!("`{text}` does not begin as an identity"), format!("write {SCHEME}{}", text.trim_start_matches('/')));
        return None;
    };
    if !is_identity(rest, before, after) {
        let remedy = "write spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, the trust domain in lower case";
        at.error(format!("`{text}` is no identity"), remedy);
        return None;
    }
    Some(text)
}

/// Whether some identity has this behind its scheme, with something `before` or `after` it (the SPIFFE ID specification, 2.1 and 2.2):
/// what no certificate can say would never hold.
fn is_identity(rest: &str, before: bool, after: bool) -> bool {
    if !before && !after {
        return format!("{SCHEME}{rest}").parse::<Identity>().is_ok();
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let written = rest.bytes().all(|byte| plain(byte) || byte == b'/') && !path.contains("//");
    let lower = before || !domain.bytes().any(|byte| byte.is_ascii_uppercase());
    written && lower && (after || !rest.ends_with('/'))
}

/// A name, or its beginning or end with `*` for the rest.
fn namespace(at: &Cursor<'_>, text: String) -> Option<String> {
    let part = text.strip_suffix('*').or_else(|| text.strip_prefix('*'));
    let fits = match part {
        Some(part) => part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')),
        None => is_label(&text),
    };
    if !fits {
        at.error(format!("`{text}` is no name of a namespace"), "use lower-case letters, digits and `-`, and `*` at one end");
        return None;
    }
    Some(text)
}

/// A CIDR, or one address.
fn block(at: &Cursor<'_>, text: String) -> Option<String> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(block) = parsed else {
        at.error(format!("`{text}` is no range of addresses"), "write it as 10.1.0.0/16 or \"2001:db8::/32\"");
        return None;
    };
    if block.trunc() != block {
        at.warn(format!("`{text}` has bits beyond its prefix; {} is what holds", block.trunc()), format!("write {}", block.trunc()));
    }
    Some(canonical(block).to_string())
}

/// Without anything it is whoever shows a token that is trusted.
fn token(at: &Cursor<'_>) -> TokenSource {
    let mut fields = at.fields();
    let issuer = fields.get("issuer").and_then(|at| bounded(&at)).unwrap_or_default();
    let mut claims = BTreeMap::new();
    if let Some(at) = fields.get("claims") {
        let entries = at.entries();
        if entries.is_empty() || entries.len() > ITEMS_MAX {
            at.error("claims are none or too many", format!("name 1 to {ITEMS_MAX}, or remove it"));
        }
        for (path, at) in entries.into_iter().take(ITEMS_MAX) {
            if path.is_empty() || path.len() > TEXT_BYTES_MAX || path.split('.').any(str::is_empty) {
                at.error(format!("`{}` is no claim", path.chars().take(80).collect::<String>()), "write its name, or names joined by dots");
            }
            claims.insert(path.to_owned(), ClaimValues { values: texts(&at, |_, text| Some(text)) });
        }
    }
    fields.done();
    TokenSource { issuer, claims }
}

fn bounded(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        at.error("it is empty or too long", format!("write 1 to {TEXT_BYTES_MAX} bytes"));
        return None;
    }
    Some(text)
}

pub(super) fn target(at: &Cursor<'_>) -> Option<CallTarget> {
    let mut fields = at.fields();
    let mut target = CallTarget::default();
    if let Some(at) = fields.get("ports") {
        target.ports = some(&at, ITEMS_MAX).iter().filter_map(Cursor::port).map(u32::from).collect();
    }
    if let Some(at) = fields.get("hosts") {
        target.hosts = texts(&at, host);
    }
    if let Some(at) = fields.get("methods") {
        target.methods = texts(&at, method);
    }
    if let Some(at) = fields.get("paths") {
        target.paths = some(&at, ITEMS_MAX).iter().filter_map(path).collect();
    }
    if let Some(at) = fields.get("headers") {
        some(&at, ITEMS_MAX);
        target.headers = header_matches(&at);
    }
    let says = ["ports", "hosts", "methods", "paths", "headers"].iter().any(|name| fields.has(name));
    fields.done();
    if !says {
        at.error("it asks for nothing", "add ports, hosts, methods, paths or headers; for any request leave `to` out");
        return None;
    }
    Some(target)
}

/// A name or address, without a port; `*.` before it: any name below; `*` behind it: any that begins so.
fn host(at: &Cursor<'_>, text: String) -> Option<String> {
    let text = text.to_lowercase();
    // As requests write it.
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(if address.is_ipv6() { format!("[{address}]") } else { address.to_string() });
    }
    let name = text.strip_prefix("*.").or_else(|| text.strip_suffix('*')).unwrap_or(&text);
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte));
    if !plain || name.is_empty() && text != "*" {
        at.error(format!("`{text}` is no host"), "write a name without a port, `*.SUFFIX` or `PREFIX*`");
        return None;
    }
    Some(text.trim_end_matches('.').to_owned())
}

/// Any method that HTTP can write; they are compared with their case.
fn method(at: &Cursor<'_>, text: String) -> Option<String> {
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        at.error(format!("`{text}` is no method"), "write it as GET or POST");
        return None;
    }
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        at.error(format!("methods are told apart by case, and no client sends `{text}`"), format!("write {}", text.to_uppercase()));
        return None;
    }
    Some(text)
}

/// Makes a pattern of its text.
type NewPattern = fn(String) -> Pattern;

/// `PathPrefix` where no type is given, as in Gateway API.
fn path(at: &Cursor<'_>) -> Option<PathPattern> {
    const WORDS: [(&str, NewPattern); 4] =
        [("Exact", Pattern::Exact), ("PathPrefix", Pattern::Prefix), ("Suffix", Pattern::Suffix), ("Template", Pattern::Template)];
    let mut fields = at.fields();
    let kind = fields.get("type").map_or(Some(WORDS[1].1), |at| at.word(&WORDS));
    let place = fields.need("value");
    fields.done();
    let (kind, place) = (kind?, place?);
    let text = bounded(&place)?;
    let pattern = kind(text.clone());
    let wrong = match &pattern {
        Pattern::Template(text) => template(text),
        Pattern::Exact(text) | Pattern::Prefix(text) if !text.starts_with('/') => Some("it does not begin with `/`"),
        Pattern::Exact(text) | Pattern::Prefix(text) | Pattern::Suffix(text) => written(text),
    };
    if let Some(wrong) = wrong {
        place.error(format!("`{text}` is no such pattern: {wrong}"), "see docs/authorization.md, Paths");
        return None;
    }
    let resolved = |element: &str| matches!(element.to_lowercase().replace("%2e", ".").as_str(), "." | "..");
    if text.split('/').any(resolved) {
        let remedy = "write the path that is left when they are resolved";
        place.error("`.` and `..` are resolved before a request is judged: it would never match", remedy);
        return None;
    }
    Some(PathPattern { kind: Some(pattern) })
}

/// Why a text is no part of a path as clients send it.
fn written(text: &str) -> Option<&'static str> {
    if text.contains(['?', '#']) {
        return Some("a query or fragment is no part of a path");
    }
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte));
    let hex = |part: &str| part.len() >= 2 && part.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let mut parts = text.split('%');
    let fits = parts.next().is_some_and(plain) && parts.all(|part| hex(part) && plain(&part[2..]));
    (!fits).then_some("what no URL may hold is written as %XX")
}

/// Why a text is no template: elements, of which some are `{name}`, and the last may be `{name=**}`.
fn template(text: &str) -> Option<&'static str> {
    let Some(rest) = text.strip_prefix('/') else { return Some("it does not begin with `/`") };
    let mut names = Vec::new();
    let mut elements = rest.split('/').peekable();
    while let Some(element) = elements.next() {
        let Some(inner) = element.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) else {
            if element.contains(['{', '}']) {
                return Some("a name stands for a whole element, as in /users/{id}");
            }
            if let Some(wrong) = written(element) {
                return Some(wrong);
            }
            continue;
        };
        let name = match inner.strip_suffix("=**") {
            Some(_) if elements.peek().is_some() => return Some("{name=**} stands for all that follows, and can only be the last"),
            Some(name) => name,
            None => inner,
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Some("names are letters, digits and `_`");
        }
        if names.contains(&name) {
            return Some("a name stands twice");
        }
        names.push(name);
    }
    None
}
