//! Policies out of their resource, each field carried out or refused by name.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::Method;
use ipnet::{IpNet, Ipv4Net};
use proto::mesh::authorization_policy::Action as RawAction;
use proto::mesh::path_pattern::Kind;
use proto::mesh::{self, AuthorizationRule, CallSource, CallTarget, PathPattern as RawPath, TokenSource};
use proto::xds::route::HeaderMatcher;

use super::condition::Condition;
use super::path::PathPattern;
use super::rule::{PolicyRule, SourceMatch, TargetMatch, TokenMatch};
use super::sum::PolicySum;
use super::text::{TextPattern, Texts};
use super::told::{Gathered, Outlined, PolicyAction};
use super::{Authorization, Ruling};
use crate::consumers::AuthMethod;
use crate::matching::{self, Match};
use crate::rejected::Wrong;

/// Most items of one list.
pub const ITEMS_MAX: usize = 1_024;
/// Longest text that is compared, in bytes.
const TEXT_BYTES_MAX: usize = 4_096;
/// Length of the IPv6 range that stands for IPv4 (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// Reads all that says who may call a workload.
///
/// # Errors
/// Names the field at fault; none of it is taken.
pub(crate) fn compile(raw: &mesh::Authorization) -> Result<Authorization, Wrong> {
    let mesh::Authorization { policies, dry_run } = raw;
    if let Some((what, count, most)) = PolicySum::of_all(raw).beyond() {
        return Err(Wrong::new("policies", format!("holds {count} {what}, which is more than {most}")));
    }
    let mut classes: Vec<Gathered> = Vec::new();
    let mut outlined = Vec::new();
    for (index, raw) in policies.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("policies[{index}]"));
        let (name, action, trial) = outline(raw, *dry_run).map_err(at)?;
        let rules = rules(&name, &raw.rules).map_err(at)?;
        let class = match classes.iter_mut().find(|class| (class.0, class.1) == (action, trial)) {
            Some(class) => class,
            None => {
                classes.push((action, trial, Vec::new(), Vec::new()));
                classes.last_mut().ok_or_else(|| Wrong::new("", "is empty"))?
            }
        };
        let first = class.2.len();
        class.2.extend(rules);
        class.3.push(Arc::clone(&name));
        outlined.push(Outlined { name, action, trial, rules: first..class.2.len() });
    }
    Ok(Authorization::of(classes, outlined))
}

/// A policy's name, what it does, and whether that is on trial only.
fn outline(raw: &mesh::AuthorizationPolicy, dry_run: bool) -> Result<(Arc<str>, PolicyAction, bool), Wrong> {
    let mesh::AuthorizationPolicy { name, action, dry_run: trial, rules: _ } = raw;
    let parts = name.split_once('/').filter(|(namespace, rest)| !namespace.is_empty() && !rest.is_empty() && !rest.contains('/'));
    if parts.is_none() || name.len() > TEXT_BYTES_MAX {
        return Err(Wrong::new("name", format!("`{}` is not of the form NAMESPACE/NAME", name.escape_debug())));
    }
    let action = match RawAction::try_from(*action) {
        Ok(RawAction::Allow) => PolicyAction::Allow,
        Ok(RawAction::Deny) => PolicyAction::Deny,
        Ok(RawAction::Audit) => PolicyAction::Audit,
        Err(_) => return Err(Wrong::new("action", format!("{action} is neither ALLOW, DENY nor AUDIT"))),
    };
    // What audits decides nothing in any case.
    Ok((name.as_str().into(), action, (*trial || dry_run) && action != PolicyAction::Audit))
}

fn within(field: &str, count: usize, most: usize) -> Result<(), Wrong> {
    if count > most { Err(Wrong::new(field, format!("holds {count}, which is more than {most}"))) } else { Ok(()) }
}

fn rules(policy: &Arc<str>, raw: &[AuthorizationRule]) -> Result<Vec<PolicyRule>, Wrong> {
    let one = |(index, raw)| rule(policy, index, raw).map_err(|wrong| wrong.within(format!("rules[{index}]")));
    raw.iter().enumerate().map(one).collect()
}

fn rule(policy: &Arc<str>, index: usize, raw: &AuthorizationRule) -> Result<PolicyRule, Wrong> {
    let AuthorizationRule { name, from, to, not_from, not_to, when } = raw;
    if name.len() > TEXT_BYTES_MAX {
        return Err(Wrong::new("name", format!("is longer than {TEXT_BYTES_MAX} bytes")));
    }
    let place = index.to_string();
    let condition = (!when.is_empty()).then(|| Condition::compile(when)).transpose();
    Ok(PolicyRule {
        ruling: Ruling::new(policy, if name.is_empty() { &place } else { name }),
        from: list("from", from, source)?,
        to: list("to", to, target)?,
        not_from: list("not_from", not_from, source)?,
        not_to: list("not_to", not_to, target)?,
        when: condition.map_err(|why| Wrong::new("when", why))?,
    })
}

/// A list, every item by itself.
fn list<R, T>(field: &str, raw: &[R], one: impl Fn(&R) -> Result<T, Wrong>) -> Result<Vec<T>, Wrong> {
    within(field, raw.len(), ITEMS_MAX)?;
    let at = |index: usize, wrong: Wrong| wrong.within(format!("{field}[{index}]"));
    raw.iter().enumerate().map(|(index, raw)| one(raw).map_err(|wrong| at(index, wrong))).collect()
}

fn texts(field: &str, raw: &[String], one: fn(&str) -> Result<TextPattern, Wrong>) -> Result<Texts, Wrong> {
    list(field, raw, |text| one(text)).map(Texts::new)
}

fn source(raw: &CallSource) -> Result<SourceMatch, Wrong> {
    let CallSource { principals, namespaces, ip_blocks, token, consumers, consumer_groups, scopes, auth_methods, ip_lists, peer_ip_blocks } =
        raw;
    if *raw == CallSource::default() {
        return Err(nothing());
    }
    let method = |text: &String| {
        AuthMethod::parse(text).ok_or_else(|| Wrong::new("", format!("`{}` is no way to prove who one is", text.escape_debug())))
    };
    Ok(SourceMatch {
        principals: texts("principals", principals, principal)?,
        namespaces: texts("namespaces", namespaces, pattern)?,
        blocks: list("ip_blocks", ip_blocks, |text| block(text))?,
        consumers: texts("consumers", consumers, pattern)?,
        groups: list("consumer_groups", consumer_groups, |text| plain(text))?,
        scopes: list("scopes", scopes, |text| plain(text))?,
        methods: list("auth_methods", auth_methods, method)?,
        lists: list("ip_lists", ip_lists, |text| plain(text))?,
        peer_blocks: list("peer_ip_blocks", peer_ip_blocks, |text| block(text))?,
        token: token.as_ref().map(self::token).transpose().map_err(|wrong| wrong.within("token"))?,
    })
}

fn token(raw: &TokenSource) -> Result<TokenMatch, Wrong> {
    let TokenSource { issuer, claims } = raw;
    within("claims", claims.len(), ITEMS_MAX)?;
    let claim = |(path, values): (&String, &mesh::ClaimValues)| {
        let at = |wrong: Wrong| wrong.within(format!("claims[{}]", path.escape_debug()));
        if path.is_empty() || values.values.is_empty() {
            return Err(at(Wrong::new("", "needs a name and at least one value")));
        }
        let values = list("values", &values.values, |text| plain(text)).map_err(at)?;
        Ok((plain(path).map_err(at)?, values))
    };
    let claims = claims.iter().map(claim).collect::<Result<_, _>>()?;
    Ok(TokenMatch { issuer: Some(issuer).filter(|text| !text.is_empty()).map(|text| plain(text)).transpose()?, claims })
}

fn target(raw: &CallTarget) -> Result<TargetMatch, Wrong> {
    let CallTarget { ports, hosts, methods, paths, headers } = raw;
    if ports.is_empty() && hosts.is_empty() && methods.is_empty() && paths.is_empty() && headers.is_empty() {
        return Err(nothing());
    }
    Ok(TargetMatch {
        ports: list("ports", ports, |port| self::port(*port))?,
        hosts: texts("hosts", hosts, host)?,
        methods: list("methods", methods, |text| method(text))?,
        paths: list("paths", paths, path)?,
        headers: self::headers(headers)?,
    })
}

/// The host is none of them: HTTP/2 says it elsewhere, and a rule for the header would hold for one version alone.
fn headers(raw: &[HeaderMatcher]) -> Result<Match, Wrong> {
    match raw.iter().position(|header| header.name.eq_ignore_ascii_case("host")) {
        Some(place) => Err(Wrong::new(format!("headers[{place}].name"), "`host` stands elsewhere in HTTP/2: write it into `hosts`")),
        None => matching::compile::headers(raw),
    }
}

fn nothing() -> Wrong {
    Wrong::new("", "says nothing; leave the item out, or say what it is for")
}

fn plain(text: &str) -> Result<Box<str>, Wrong> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Wrong::new("", format!("is longer than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text.into())
}

fn pattern(text: &str) -> Result<TextPattern, Wrong> {
    plain(text)?;
    TextPattern::parse(text).ok_or_else(|| Wrong::new("", format!("`{}`: `*` may stand at one end only", text.escape_debug())))
}

/// A SPIFFE URI.
fn principal(text: &str) -> Result<TextPattern, Wrong> {
    match pattern(text)? {
        TextPattern::Exact(exact) if !exact.starts_with("spiffe://") => {
            Err(Wrong::new("", format!("`{}` is no identity: it does not start with spiffe://", exact.escape_debug())))
        }
        pattern => Ok(pattern),
    }
}

/// As requests' hosts are compared: in lower case, without the last dot, an IPv6 address in its brackets.
fn host(text: &str) -> Result<TextPattern, Wrong> {
    let wrong = |why: &str| Err(Wrong::new("", format!("`{}` {why}", text.escape_debug())));
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(TextPattern::Exact(format!("[{}]", text.to_ascii_lowercase()).into()));
    }
    match pattern(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase().as_str())? {
        TextPattern::Suffix(suffix) if !suffix.starts_with('.') => wrong("is neither NAME, *.SUFFIX, PREFIX* nor *"),
        _ if text.contains([':', '/']) && !text.starts_with('[') => wrong("holds a port or path, and hosts are compared without"),
        pattern => Ok(pattern),
    }
}

fn method(text: &str) -> Result<Method, Wrong> {
    Method::from_bytes(text.as_bytes()).map_err(|_| Wrong::new("", format!("`{}` is not a method", text.escape_debug())))
}

fn port(number: u32) -> Result<u16, Wrong> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| Wrong::new("", format!("{number} is not from 1 to 65535")))
}

/// A range, that of mapped addresses as the IPv4 which they are.
fn block(text: &str) -> Result<IpNet, Wrong> {
    let wrong = || Wrong::new("", format!("`{}` is not a range like 10.0.0.0/8 or an address", text.escape_debug()));
    let block = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| wrong())?;
    if let IpNet::V6(v6) = block
        && let (Some(v4), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(MAPPED_PREFIX))
    {
        return Ipv4Net::new(v4, length).map(IpNet::V4).map_err(|_| wrong());
    }
    Ok(block)
}

fn path(raw: &RawPath) -> Result<PathPattern, Wrong> {
    let Some(kind) = &raw.kind else {
        return Err(Wrong::new("kind", "is missing: exact, prefix, suffix or template"));
    };
    let (Kind::Exact(text) | Kind::Prefix(text) | Kind::Suffix(text) | Kind::Template(text)) = kind;
    plain(text)?;
    let pattern = match kind {
        Kind::Exact(text) => PathPattern::exact(text),
        Kind::Prefix(text) => PathPattern::prefix(text),
        Kind::Suffix(text) => PathPattern::suffix(text),
        Kind::Template(text) => PathPattern::template(text),
    };
    pattern.map_err(|why| Wrong::new("", format!("`{}` {why}", text.escape_debug())))
}
