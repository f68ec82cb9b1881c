//! `faults`.

use engine::filter::DELAY_MAX;
use proto::mesh::abort::Kind as AbortKind;
use proto::mesh::{Abort, Delay, Fault};
use proto::xds::matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::{HeaderMatcher, RouteMatch};

use super::{grpc_code, header, method, whole, wire};
use crate::world::door::{Cursor, Fields, is_label, is_subdomain};
use crate::world::route::{PATH_REMEDY, is_path};

/// Most faults of a policy.
const FAULTS_MAX: usize = 16;
/// Most items of a list within one.
const ITEMS_MAX: usize = 16;
/// Longest path, value or expression.
const TEXT_BYTES_MAX: usize = 4096;
/// Largest compiled expression, as in the proxy's engine.
const PATTERN_SIZE_MAX: usize = 256 << 10;

/// One fault, and whose requests meet it.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// Any of these callers; none named: every one.
    pub from: Vec<Caller>,
    /// What happens, as proxies are told.
    pub fault: Fault,
}

/// A caller by its identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// Its namespace.
    pub namespace: String,
    /// Its account; `None`: any of the namespace.
    pub service_account: Option<String>,
}

pub(super) fn read(at: &Cursor<'_>) -> Vec<Injection> {
    at.list(FAULTS_MAX).iter().filter_map(injection).collect()
}

fn injection(at: &Cursor<'_>) -> Option<Injection> {
    let mut fields = at.fields();
    let key = at.key();
    let mut fault = Fault { per_million: 1_000_000, policy: format!("{}/{}", key.namespace, key.name), ..Fault::default() };
    if let Some(at) = fields.get("match") {
        matches(at.fields(), &mut fault);
    }
    let from = fields.get("from").map(|at| at.list(ITEMS_MAX)).unwrap_or_default();
    let from: Vec<Option<Caller>> = from.iter().map(caller).collect();
    if let Some(at) = fields.get("percent")
        && let Some(percent) = at.percent()
    {
        fault.per_million = per_million(percent);
        if fault.per_million == 0 && percent > 0.0 {
            at.warn("it is less than one in a million, which is taken for never", "use at least 0.0001");
        }
    }
    fault.delay = fields.get("delay").and_then(|at| delay(&at));
    fault.abort = fields.get("abort").and_then(|at| abort(&at));
    let nothing = !["delay", "abort"].iter().any(|name| fields.has(name));
    fields.done();
    if nothing {
        at.error("the fault does nothing", "add delay, abort or both");
    }
    // A caller that does not read is none at all: it never widens a fault to everybody.
    Some(Injection { from: from.into_iter().collect::<Option<Vec<_>>>()?, fault })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage is between 0 and 100")]
fn per_million(percent: f64) -> u32 {
    (percent * 10_000.0).round() as u32
}

fn caller(at: &Cursor<'_>) -> Option<Caller> {
    let mut fields = at.fields();
    let namespace = fields.need("namespace").and_then(|at| name(&at, is_label));
    let account = fields.get("serviceAccount").map(|at| name(&at, is_subdomain));
    fields.done();
    let service_account = match account {
        Some(account) => Some(account?),
        None => None,
    };
    Some(Caller { namespace: namespace?, service_account })
}

fn name(at: &Cursor<'_>, fits: fn(&str) -> bool) -> Option<String> {
    let text = at.text()?;
    if !fits(&text) {
        at.error(format!("`{text}` is no valid name"), "use lower-case letters, digits and `-`");
        return None;
    }
    Some(text)
}

fn delay(at: &Cursor<'_>) -> Option<Delay> {
    let mut fields = at.fields();
    let fixed = fields.get("fixed").map(|at| at.duration().zip(Some(at)));
    let uniform = fields.get("uniform").map(|at| {
        let mut range = at.fields();
        let min = range.need("min").and_then(|at| at.duration());
        let max = range.need("max").and_then(|at| at.duration());
        range.done();
        min.zip(max).zip(Some(at))
    });
    fields.done();
    let ((min, max), place) = match (fixed, uniform) {
        (Some(fixed), None) => fixed.map(|(fixed, at)| ((fixed, fixed), at))?,
        (None, Some(uniform)) => uniform?,
        _ => {
            at.error("a delay is exactly one of fixed and uniform", "write for example `fixed: 2s`");
            return None;
        }
    };
    if min > max {
        place.error("min is longer than max", "make it shorter");
    } else if max > DELAY_MAX || max.is_zero() {
        place.error("a delay lasts some time, at most 1h", "write for example 2s");
    }
    Some(Delay { min: wire(min), max: wire(max) })
}

fn abort(at: &Cursor<'_>) -> Option<Abort> {
    let mut fields = at.fields();
    let mut kinds = Vec::new();
    if let Some(at) = fields.get("httpStatus") {
        kinds.push(whole(&at, 200..=599).map(AbortKind::HttpStatus));
    }
    if let Some(at) = fields.get("grpcStatus") {
        kinds.push(grpc_code(&at).map(AbortKind::GrpcStatus));
    }
    if let Some(at) = fields.get("reset") {
        at.fields().done();
        kinds.push(Some(AbortKind::Reset(true)));
    }
    fields.done();
    if kinds.len() != 1 {
        at.error("an abort is exactly one of httpStatus, grpcStatus and reset", "write for example `httpStatus: 503`");
        return None;
    }
    Some(Abort { kind: Some(kinds.pop()??) })
}

/// Gateway API's match types, strictly.
fn matches(mut fields: Fields<'_>, fault: &mut Fault) {
    if let Some(at) = fields.get("headers") {
        fault.headers = header_matches(&at);
    }
    if let Some(at) = fields.get("methods") {
        fault.methods = at.list(ITEMS_MAX).iter().filter_map(method).collect();
    }
    if let Some(at) = fields.get("paths") {
        fault.paths = at.list(ITEMS_MAX).iter().filter_map(path_match).collect();
    }
    fields.done();
}

/// All of them must hold, so each name stands once.
pub(in crate::world) fn header_matches(at: &Cursor<'_>) -> Vec<HeaderMatcher> {
    let mut matches: Vec<HeaderMatcher> = Vec::new();
    for (at, matcher) in at.list(ITEMS_MAX).into_iter().filter_map(|at| header_match(&at).map(|read| (at, read))) {
        if matches.iter().any(|known| known.name == matcher.name) {
            at.error(format!("the header `{}` stands twice", matcher.name), "every header must hold; use one match for each name");
        }
        matches.push(matcher);
    }
    matches
}

fn header_match(at: &Cursor<'_>) -> Option<HeaderMatcher> {
    let mut fields = at.fields();
    let regex = fields.get("type").and_then(|at| at.word(&[("Exact", false), ("RegularExpression", true)])).unwrap_or(false);
    let name = fields.need("name").and_then(|at| header(&at));
    let value = fields.need("value").and_then(|at| text(&at, regex));
    fields.done();
    let pattern =
        value.map(|value| if regex { MatchPattern::SafeRegex(RegexMatcher { regex: value }) } else { MatchPattern::Exact(value) });
    let matched = StringMatcher { match_pattern: Some(pattern?), ignore_case: false };
    Some(HeaderMatcher {
        name: name?,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matched)),
        ..HeaderMatcher::default()
    })
}

fn path_match(at: &Cursor<'_>) -> Option<RouteMatch> {
    const WORDS: [(&str, u8); 3] = [("PathPrefix", 0), ("Exact", 1), ("RegularExpression", 2)];
    let mut fields = at.fields();
    let kind = fields.get("type").map_or(Some(0), |at| at.word(&WORDS));
    let place = fields.need("value");
    fields.done();
    let (kind, place) = (kind?, place?);
    let value = text(&place, kind == 2)?;
    let specifier = match kind {
        2 => PathSpecifier::SafeRegex(RegexMatcher { regex: value }),
        _ if !is_path(&value) => {
            place.error(format!("`{value}` is no path"), PATH_REMEDY);
            return None;
        }
        1 => PathSpecifier::Path(value),
        _ => match value.trim_end_matches('/') {
            "" => PathSpecifier::Prefix("/".to_owned()),
            prefix => PathSpecifier::PathSeparatedPrefix(prefix.to_owned()),
        },
    };
    Some(RouteMatch { path_specifier: Some(specifier), ..RouteMatch::default() })
}

/// A text of bounded length; as a regular expression, one that compiles by itself.
fn text(at: &Cursor<'_>, regex: bool) -> Option<String> {
    let text = at.text()?;
    if text.len() > TEXT_BYTES_MAX {
        at.error("it is too long", format!("at most {TEXT_BYTES_MAX} bytes"));
        return None;
    }
    let build = |text: &str| regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE_MAX).dfa_size_limit(PATTERN_SIZE_MAX).build();
    if regex && build(&text).and_then(|_| build(&format!(r"\A(?:{text})\z"))).is_err() {
        at.error(format!("`{text}` is no regular expression"), "write one that matches the whole value");
        return None;
    }
    Some(text)
}
