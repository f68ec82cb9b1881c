//! When a rule applies, from Envoy's `RouteMatch`.

use http::{HeaderName, Method};
use proto::xds::matcher::string_matcher::MatchPattern;
use proto::xds::matcher::{RegexMatcher, StringMatcher};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use regex::{Regex, RegexBuilder};

use super::{Match, PathMatch, ValueMatch};
use crate::rejected::{Wrong, refuse};

/// Longest regular expression, in bytes.
const REGEX_BYTES_MAX: usize = 4096;
/// Most memory of one compiled regular expression, and of its lazy automaton, in bytes.
const REGEX_PROGRAM_BYTES_MAX: usize = 256 << 10;
/// Most conditions of one kind in a match.
const CONDITIONS_MAX: usize = 64;
/// Longest text that a match compares with, in bytes.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// Every condition of a rule.
pub(crate) fn all(raw: &RouteMatch) -> Result<Match, Wrong> {
    let RouteMatch { path_specifier, case_sensitive, runtime_fraction, headers, query_parameters } = raw;
    refuse(*case_sensitive == Some(false), "case_sensitive")?;
    refuse(runtime_fraction.is_some(), "runtime_fraction")?;
    for (field, count) in [("headers", headers.len()), ("query_parameters", query_parameters.len())] {
        if count > CONDITIONS_MAX {
            return Err(Wrong::new(field, format!("holds more than {CONDITIONS_MAX} conditions")));
        }
    }
    let mut compiled = Match { path: path(path_specifier.as_ref())?, ..Match::default() };
    for (index, raw) in headers.iter().enumerate() {
        condition(raw, &mut compiled).map_err(|wrong| wrong.within(format!("headers[{index}]")))?;
    }
    for (index, raw) in query_parameters.iter().enumerate() {
        compiled.query.push(query(raw).map_err(|wrong| wrong.within(format!("query_parameters[{index}]")))?);
    }
    Ok(compiled)
}

/// Conditions on headers alone.
pub(crate) fn headers(raw: &[HeaderMatcher]) -> Result<Match, Wrong> {
    if raw.len() > CONDITIONS_MAX {
        return Err(Wrong::new("headers", format!("holds more than {CONDITIONS_MAX} conditions")));
    }
    let mut compiled = Match::default();
    for (index, raw) in raw.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("headers[{index}]"));
        refuse(raw.name == ":method", "name").map_err(at)?;
        condition(raw, &mut compiled).map_err(at)?;
    }
    Ok(compiled)
}

/// A path and no other condition.
pub(crate) fn path_alone(raw: &RouteMatch) -> Result<PathMatch, Wrong> {
    let RouteMatch { path_specifier, case_sensitive, runtime_fraction, headers, query_parameters } = raw;
    refuse(*case_sensitive == Some(false), "case_sensitive")?;
    refuse(runtime_fraction.is_some(), "runtime_fraction")?;
    refuse(!headers.is_empty(), "headers")?;
    refuse(!query_parameters.is_empty(), "query_parameters")?;
    path(path_specifier.as_ref())
}

fn path(raw: Option<&PathSpecifier>) -> Result<PathMatch, Wrong> {
    Ok(match raw {
        None => return Err(Wrong::new("path_specifier", "is missing: prefix, path, path_separated_prefix or safe_regex")),
        Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() || prefix == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::StringPrefix(rooted(prefix, "prefix")?),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(rooted(path, "path")?),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => match rooted(prefix, "path_separated_prefix")?.trim_end_matches('/') {
            "" => PathMatch::Any,
            elements => PathMatch::Prefix(elements.to_owned()),
        },
        Some(PathSpecifier::SafeRegex(raw)) => PathMatch::Regex(regex(raw).map_err(|wrong| wrong.within("safe_regex"))?),
    })
}

fn rooted(path: &str, field: &str) -> Result<String, Wrong> {
    if !path.starts_with('/') {
        return Err(Wrong::new(field, format!("`{}` does not start with `/`", path.escape_debug())));
    }
    if path.contains(['?', '#']) {
        return Err(Wrong::new(field, format!("`{}` holds a query or fragment", path.escape_debug())));
    }
    text(path).map_err(|wrong| wrong.within(field))
}

fn text(text: &str) -> Result<String, Wrong> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Wrong::new("", format!("longer than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text.to_owned())
}

/// A header, or the method in Envoy's spelling.
fn condition(raw: &HeaderMatcher, compiled: &mut Match) -> Result<(), Wrong> {
    let HeaderMatcher { name, header_match_specifier: wanted, invert_match: inverted, treat_missing_header_as_empty } = raw;
    refuse(*treat_missing_header_as_empty, "treat_missing_header_as_empty")?;
    if name == ":method" {
        refuse(*inverted, "invert_match")?;
        return method(wanted.as_ref(), compiled);
    }
    if name.starts_with(':') {
        return Err(Wrong::new("name", format!("pseudo header `{}` cannot be matched, except `:method`", name.escape_debug())));
    }
    let name: HeaderName = name.parse().map_err(|_| Wrong::new("name", format!("`{}` is not a header name", name.escape_debug())))?;
    let value = match wanted {
        None => ValueMatch::Present(!inverted),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => ValueMatch::Present(present != inverted),
        Some(HeaderMatchSpecifier::RangeMatch(_)) => return Err(Wrong::unsupported("range_match")),
        Some(HeaderMatchSpecifier::StringMatch(raw_match)) => {
            let value = string(raw_match).map_err(|wrong| wrong.within("string_match"))?;
            if *inverted { ValueMatch::Not(Box::new(value)) } else { value }
        }
    };
    compiled.headers.push((name, value));
    Ok(())
}

fn method(wanted: Option<&HeaderMatchSpecifier>, compiled: &mut Match) -> Result<(), Wrong> {
    let exact = match wanted {
        Some(HeaderMatchSpecifier::StringMatch(StringMatcher { match_pattern: Some(MatchPattern::Exact(text)), ignore_case: false })) => {
            text
        }
        _ => return Err(Wrong::new("string_match", "`:method` can only be compared with string_match.exact")),
    };
    let method = Method::from_bytes(exact.as_bytes())
        .map_err(|_| Wrong::new("string_match.exact", format!("`{}` is not a method", exact.escape_debug())))?;
    if compiled.method.as_ref().is_some_and(|other| *other != method) {
        return Err(Wrong::new("name", "`:method` is compared with two values, which never holds"));
    }
    compiled.method = Some(method);
    Ok(())
}

fn query(raw: &QueryParameterMatcher) -> Result<(String, ValueMatch), Wrong> {
    let QueryParameterMatcher { name, query_parameter_match_specifier } = raw;
    if name.is_empty() {
        return Err(Wrong::new("name", "is empty"));
    }
    let value = match query_parameter_match_specifier {
        None => ValueMatch::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => ValueMatch::Present(*present),
        Some(QueryParameterMatchSpecifier::StringMatch(raw)) => string(raw).map_err(|wrong| wrong.within("string_match"))?,
    };
    Ok((text(name).map_err(|wrong| wrong.within("name"))?, value))
}

fn string(raw: &StringMatcher) -> Result<ValueMatch, Wrong> {
    let StringMatcher { match_pattern, ignore_case } = raw;
    refuse(*ignore_case, "ignore_case")?;
    Ok(match match_pattern {
        None => return Err(Wrong::new("match_pattern", "is missing")),
        Some(MatchPattern::Exact(raw)) => ValueMatch::Exact(text(raw)?),
        Some(MatchPattern::Prefix(raw)) => ValueMatch::Prefix(text(raw)?),
        Some(MatchPattern::Suffix(raw)) => ValueMatch::Suffix(text(raw)?),
        Some(MatchPattern::Contains(raw)) => ValueMatch::Contains(text(raw)?),
        Some(MatchPattern::SafeRegex(raw)) => ValueMatch::Regex(regex(raw).map_err(|wrong| wrong.within("safe_regex"))?),
    })
}

/// An expression that may be found anywhere in a text, within the same bounds.
pub(crate) fn searched(text: &str) -> Result<Regex, String> {
    if text.len() > REGEX_BYTES_MAX {
        return Err(format!("holds a regular expression longer than {REGEX_BYTES_MAX} bytes"));
    }
    let built = RegexBuilder::new(text).size_limit(REGEX_PROGRAM_BYTES_MAX).dfa_size_limit(REGEX_PROGRAM_BYTES_MAX).build();
    built.map_err(|error| {
        let error = error.to_string();
        format!("`{}` is not a regular expression: {}", text.escape_debug(), error.lines().last().unwrap_or_default())
    })
}

/// Envoy matches the whole string, so the expression is anchored. It must be whole by itself first: `a)|(b` is not.
fn regex(RegexMatcher { regex }: &RegexMatcher) -> Result<Regex, Wrong> {
    let at = |why: String| Wrong::new("regex", why);
    if regex.len() > REGEX_BYTES_MAX {
        return Err(at(format!("longer than {REGEX_BYTES_MAX} bytes")));
    }
    let build =
        |pattern: &str| RegexBuilder::new(pattern).size_limit(REGEX_PROGRAM_BYTES_MAX).dfa_size_limit(REGEX_PROGRAM_BYTES_MAX).build();
    let shown = regex.escape_debug();
    let why = |error: regex::Error| match error {
        regex::Error::CompiledTooBig(limit) => at(format!("`{shown}` needs more than {limit} bytes")),
        other => at(format!("`{shown}` is not a regular expression: {}", other.to_string().lines().last().unwrap_or_default())),
    };
    build(regex).map_err(why)?;
    build(&format!(r"\A(?:{regex})\z")).map_err(why)
}
