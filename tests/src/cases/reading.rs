//! One match of one rule, read from its manifest: whether it holds, and how it ranks (`gateway-api.md` 4.3.1 to 4.3.3 and 4.3.23). No
//! tables, no indexes: each request is compared with each match.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use http::HeaderMap;
use regex::Regex;
use serde_json::Value;

/// A request as a rule sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without question mark.
    pub query: String,
    /// Headers.
    pub headers: HeaderMap,
}

/// How a match ranks within its frontend; smaller goes first. Ties are broken by who asks.
pub type Rank = (u8, Reverse<usize>, Reverse<usize>, Reverse<bool>, Reverse<usize>, Reverse<usize>);

/// A field as text; empty where it is absent.
pub fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// The items of a list; none where it is absent.
pub fn items<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// Kind and value of the path that a match of an HTTPRoute is about.
pub fn path_of(matched: &Value) -> (&str, &str) {
    let path = &matched["path"];
    (path["type"].as_str().unwrap_or("PathPrefix"), path["value"].as_str().unwrap_or("/"))
}

fn elements(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

/// Whether each `/` element of the prefix is an element of the path, in its place. A trailing slash says nothing.
fn is_prefix(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    elements(path).starts_with(&elements(prefix))
}

fn is_whole(pattern: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(text))
}

fn fits(condition: &Value, found: Option<&str>) -> bool {
    let Some(found) = found else { return false };
    match text(condition, "type") {
        "RegularExpression" => is_whole(text(condition, "value"), found),
        _ => text(condition, "value") == found,
    }
}

/// Conditions by name; of a name that is there twice the first counts.
fn first_ones(list: &[Value], fold: impl Fn(&str) -> String) -> Vec<&Value> {
    let mut names = BTreeSet::new();
    list.iter().filter(|condition| names.insert(fold(text(condition, "name")))).collect()
}

fn headers_hold(matched: &Value, headers: &HeaderMap) -> bool {
    first_ones(items(matched, "headers"), str::to_lowercase).into_iter().all(|condition| {
        let all: Vec<&str> = headers.get_all(text(condition, "name")).iter().filter_map(|value| value.to_str().ok()).collect();
        fits(condition, (!all.is_empty()).then(|| all.join(",")).as_deref())
    })
}

fn query_holds(matched: &Value, query: &str) -> bool {
    let value = |name: &str| -> Option<String> {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    first_ones(items(matched, "queryParams"), str::to_owned)
        .into_iter()
        .all(|condition| fits(condition, value(text(condition, "name")).as_deref()))
}

/// Whether a match of an HTTPRoute holds.
pub fn http_holds(matched: &Value, request: &Request) -> bool {
    let path = match path_of(matched) {
        ("Exact", value) => value == request.path,
        ("RegularExpression", value) => is_whole(value, &request.path),
        (_, value) => is_prefix(value, &request.path),
    };
    let method = matched["method"].as_str().is_none_or(|method| method == request.method);
    path && method && headers_hold(matched, &request.headers) && query_holds(matched, &request.query)
}

/// How a match of an HTTPRoute ranks.
pub fn http_rank(matched: &Value) -> Rank {
    let (class, length) = match path_of(matched) {
        ("Exact", value) => (0, value.len()),
        ("RegularExpression", value) => (1, value.len()),
        (_, value) => (2, value.strip_suffix('/').unwrap_or(value).len()),
    };
    rank(class, (length, 0), matched["method"].is_string(), matched)
}

fn rank(class: u8, (long, then): (usize, usize), method: bool, matched: &Value) -> Rank {
    let headers = first_ones(items(matched, "headers"), str::to_lowercase).len();
    let query = first_ones(items(matched, "queryParams"), str::to_owned).len();
    (class, Reverse(long), Reverse(then), Reverse(method), Reverse(headers), Reverse(query))
}

/// Whether a match of a GRPCRoute on a Service holds: its port carries calls and nothing else, so nobody asks whether this is one.
pub fn grpc_holds(matched: &Value, request: &Request) -> bool {
    let called = request.path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let (service, method) = called.unwrap_or_default();
    let wanted = &matched["method"];
    let holds = |field: &str, found: &str| match wanted[field].as_str() {
        None => true,
        Some(pattern) if wanted["type"] == "RegularExpression" => is_whole(pattern, found),
        Some(name) => name == found,
    };
    let names = holds("service", service) && holds("method", method);
    names && headers_hold(matched, &request.headers)
}

/// How a match of a GRPCRoute ranks.
pub fn grpc_rank(matched: &Value) -> Rank {
    let wanted = &matched["method"];
    rank(0, (text(wanted, "service").len(), text(wanted, "method").len()), true, matched)
}
