//! Route tables, from Envoy's `RouteConfiguration`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use prost::Message;
use proto::names::fact;
use proto::xds::core::data_source::Specifier;
use proto::xds::core::{DataSource, HeaderValueOption, Metadata};
use proto::xds::route::route::Action as RawAction;
use proto::xds::route::{DirectResponseAction, Route, RouteConfiguration, VirtualHost};

use super::{forward, matches, metadata, same_name, stamp};
use crate::failure::{LocalReply, Reason};
use crate::filter::{RequestHeaders, ResponseHeaders, Stage};
use crate::model::{Match, RuleSource};
use crate::rejected::{Wrong, refuse};

/// Most virtual hosts, domains and rules of one table.
const TABLE_MAX: usize = 65_536;
/// Largest body of a fixed answer, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest host name (RFC 1035).
const DOMAIN_BYTES_MAX: usize = 253;

/// See [`crate::model::RouteTable`].
#[derive(Debug)]
pub(super) struct RouteTable {
    pub(super) name: Arc<str>,
    pub(super) content: u64,
    pub(super) exact: HashMap<String, usize>,
    pub(super) suffix: Vec<(String, usize)>,
    pub(super) any: Option<usize>,
    pub(super) hosts: Vec<Vec<Rule>>,
}

/// See [`crate::model::Rule`].
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: u32,
    /// Hash of all it was compiled from.
    hash: String,
    pub(super) source: RuleSource,
    pub(super) matches: Match,
    pub(super) action: Action,
}

#[derive(Debug)]
pub(super) enum Action {
    Forward(forward::Forward),
    Reply(LocalReply),
}

/// A table of its own; rules whose content is in `previous` keep their ids.
pub(super) fn compile_named(name: &str, raw: &RouteConfiguration, previous: Option<&RouteTable>) -> Result<RouteTable, Wrong> {
    same_name(name, &raw.name, "name")?;
    compile(raw, previous)
}

pub(super) fn compile(raw: &RouteConfiguration, previous: Option<&RouteTable>) -> Result<RouteTable, Wrong> {
    let outer = Level::of_table(raw)?;
    let RouteConfiguration {
        name,
        virtual_hosts,
        validate_clusters,
        ignore_port_in_host_matching,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
    } = raw;
    refuse(*validate_clusters == Some(true), "validate_clusters")?;
    // Ports are ignored; where every host is served alike, that makes no difference.
    let named = || virtual_hosts.iter().flat_map(|host| &host.domains).any(|domain| domain != "*");
    if !ignore_port_in_host_matching && named() {
        return Err(Wrong::new("ignore_port_in_host_matching", "must be true: ports are ignored in host matching"));
    }
    let size = virtual_hosts.iter().map(|host| host.domains.len() + host.routes.len()).sum::<usize>();
    if size > TABLE_MAX {
        return Err(Wrong::new("virtual_hosts", format!("hold more than {TABLE_MAX} domains and routes")));
    }
    let mut table = RouteTable {
        name: name.as_str().into(),
        content: stamp(),
        exact: HashMap::new(),
        suffix: Vec::new(),
        any: None,
        hosts: Vec::with_capacity(virtual_hosts.len()),
    };
    let mut ids = Ids::of(previous);
    for (index, host) in virtual_hosts.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("virtual_hosts[{index}]"));
        for (inner, domain) in host.domains.iter().enumerate() {
            add_domain(&mut table, domain, index).map_err(|wrong| at(wrong.within(format!("domains[{inner}]"))))?;
        }
        let level = Level::of_host(host).map_err(at)?;
        let rule = |(inner, route): (usize, &Route)| {
            compile_rule(route, &[&level, &outer], &mut ids).map_err(|wrong| at(wrong.within(format!("routes[{inner}]"))))
        };
        table.hosts.push(host.routes.iter().enumerate().map(rule).collect::<Result<_, _>>()?);
    }
    table.suffix.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    Ok(table)
}

/// Domains are unique in the whole table (as in Envoy), compared without regard to case.
fn add_domain(table: &mut RouteTable, domain: &str, index: usize) -> Result<(), Wrong> {
    let domain = domain.to_ascii_lowercase();
    let wrong = |why: &str| Wrong::new("", format!("`{}` {why}", domain.escape_debug()));
    let twice = || wrong("is listed twice");
    if domain == "*" {
        return if table.any.replace(index).is_some() { Err(twice()) } else { Ok(()) };
    }
    let (wildcard, name) = domain.strip_prefix('*').map_or((false, domain.as_str()), |rest| (true, rest));
    if name.is_empty() || name.len() > DOMAIN_BYTES_MAX {
        return Err(wrong("is empty or too long"));
    }
    let literal = name.starts_with('[') && name.ends_with(']');
    if name.contains('*') || (wildcard && !name.starts_with('.')) {
        return Err(wrong("is not supported: an exact host, `*.SUFFIX` or `*`"));
    }
    if !literal && name.contains(':') {
        return Err(wrong("names a port; ports are ignored in host matching"));
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@')) {
        return Err(wrong("holds characters that no host has"));
    }
    let fresh = if wildcard {
        let fresh = !table.suffix.iter().any(|(suffix, _)| suffix == name);
        table.suffix.push((name.to_owned(), index));
        fresh
    } else {
        table.exact.insert(name.to_owned(), index).is_none()
    };
    if fresh { Ok(()) } else { Err(twice()) }
}

/// Header operations of one level, and a hash of them: they are part of every rule's content below.
struct Level {
    stages: Vec<Stage>,
    hash: String,
}

impl Level {
    fn of_table(raw: &RouteConfiguration) -> Result<Self, Wrong> {
        let bare = RouteConfiguration { name: String::new(), virtual_hosts: Vec::new(), ..raw.clone() };
        let stages = header_stages(
            (&raw.request_headers_to_add, &raw.request_headers_to_remove),
            (&raw.response_headers_to_add, &raw.response_headers_to_remove),
        )?;
        Ok(Self { stages, hash: proto::epoch::version(&bare.encode_to_vec()) })
    }

    fn of_host(raw: &VirtualHost) -> Result<Self, Wrong> {
        let VirtualHost {
            name: _, // A label: the domains decide.
            domains: _,
            routes: _,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            metadata,
        } = raw;
        metadata::only(metadata.as_ref(), &[])?;
        let bare = VirtualHost {
            request_headers_to_add: request_headers_to_add.clone(),
            request_headers_to_remove: request_headers_to_remove.clone(),
            response_headers_to_add: response_headers_to_add.clone(),
            response_headers_to_remove: response_headers_to_remove.clone(),
            ..VirtualHost::default()
        };
        let stages =
            header_stages((request_headers_to_add, request_headers_to_remove), (response_headers_to_add, response_headers_to_remove))?;
        Ok(Self { stages, hash: proto::epoch::version(&bare.encode_to_vec()) })
    }
}

type RawOps<'r> = (&'r [HeaderValueOption], &'r [String]);

fn header_stages(request: RawOps<'_>, response: RawOps<'_>) -> Result<Vec<Stage>, Wrong> {
    Ok(forward::stages(RequestHeaders::compile(request.0, request.1)?, ResponseHeaders::compile(response.0, response.1)?))
}

/// `levels` from the inside out: operations run in that order, as in Envoy.
fn compile_rule(raw: &Route, levels: &[&Level], ids: &mut Ids) -> Result<Rule, Wrong> {
    let Route {
        name,
        r#match,
        action,
        metadata,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
    } = raw;
    refuse(!typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    let Some(raw_match) = r#match else {
        return Err(Wrong::new("match", "is missing"));
    };
    let matches = matches::compile(raw_match).map_err(|wrong| wrong.within("match"))?;
    let mut stages =
        header_stages((request_headers_to_add, request_headers_to_remove), (response_headers_to_add, response_headers_to_remove))?;
    stages.extend(levels.iter().flat_map(|level| level.stages.iter().cloned()));
    let metadata = metadata.as_ref();
    let action = match action {
        None => return Err(Wrong::new("action", "is missing")),
        Some(RawAction::Route(raw)) => {
            metadata::only(metadata, &[])?;
            Action::Forward(forward::http(raw, stages).map_err(|wrong| wrong.within("route"))?)
        }
        Some(RawAction::Redirect(_)) => return Err(Wrong::unsupported("redirect")),
        Some(RawAction::DirectResponse(fixed)) => Action::Reply(reply(fixed, metadata, &stages)?),
    };
    let mut content = raw.encode_to_vec();
    levels.iter().for_each(|level| content.extend_from_slice(level.hash.as_bytes()));
    let hash = proto::epoch::version(&content);
    Ok(Rule { id: ids.take(&hash), hash, source: source(name), matches, action })
}

/// Response operations apply to fixed answers too (as in Envoy), so they are carried out here, once.
fn reply(fixed: &DirectResponseAction, metadata: Option<&Metadata>, stages: &[Stage]) -> Result<LocalReply, Wrong> {
    let at = |field: &str| format!("direct_response.{field}");
    metadata::only(metadata, &[fact::REASON])?;
    let DirectResponseAction { status, body } = fixed;
    let code = u16::try_from(*status).ok().filter(|code| (200..600).contains(code));
    let status = code.and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status else {
        return Err(Wrong::new(at("status"), format!("{} is not a status from 200 to 599", fixed.status)));
    };
    let body = match body.as_ref().and_then(|DataSource { specifier }| specifier.as_ref()) {
        None => bytes::Bytes::new(),
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(Specifier::InlineString(text)) => bytes::Bytes::copy_from_slice(text.as_bytes()),
        Some(Specifier::Filename(_)) => return Err(Wrong::unsupported(at("body.filename"))),
    };
    if body.len() > BODY_BYTES_MAX {
        return Err(Wrong::new(at("body"), format!("longer than {BODY_BYTES_MAX} bytes")));
    }
    let reason = match metadata::text(metadata, fact::REASON)? {
        Some(text) => {
            let unknown = || Wrong::new("metadata.reason", format!("`{}` is not a reason", text.escape_debug()));
            Some(Reason::parse(text).ok_or_else(unknown)?)
        }
        None => [Reason::NoRoute, Reason::BadBackend, Reason::NoEndpoints].into_iter().find(|reason| reason.status() == status),
    };
    let mut headers = http::HeaderMap::new();
    stages.iter().for_each(|stage| stage.on_response(&mut headers));
    let headers = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(LocalReply { status, reason, headers, body })
}

/// `KIND/NAMESPACE/NAME/RULE`; any other name is shown as it is.
fn source(name: &str) -> RuleSource {
    let Some([kind, namespace, object, rule]) = proto::names::rule_parts(name) else {
        return RuleSource { kind: "".into(), namespace: "".into(), name: "".into(), rule: name.into(), label: "".into() };
    };
    let label = if kind == "Service" { String::new() } else { format!("{namespace}/{object}") };
    RuleSource { kind: kind.into(), namespace: namespace.into(), name: object.into(), rule: rule.into(), label: label.into() }
}

/// Ids of a table's former rules, by content; equal rules have one each.
struct Ids(HashMap<String, Vec<u32>>);

impl Ids {
    fn of(previous: Option<&RouteTable>) -> Self {
        let mut ids: HashMap<String, Vec<u32>> = HashMap::new();
        for rule in previous.into_iter().flat_map(|table| table.hosts.iter().flatten()).rev() {
            ids.entry(rule.hash.clone()).or_default().push(rule.id);
        }
        Self(ids)
    }

    fn take(&mut self, hash: &str) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let kept = self.0.get_mut(hash).and_then(Vec::pop);
        kept.unwrap_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
