//! Route tables, from Envoy's `RouteConfiguration`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use prost::Message;
use proto::mesh::RoutePolicy;
use proto::names::fact;
use proto::xds::core::data_source::Specifier;
use proto::xds::core::{DataSource, HeaderValueOption, Metadata};
use proto::xds::route::route::Action as RawAction;
use proto::xds::route::{DirectResponseAction, Route, RouteConfiguration, VirtualHost};
use xxhash_rust::xxh3::xxh3_128;

use super::policy::{self, Link, Policies};
use super::{forward, metadata, same_name, stamp};
use crate::failure::{LocalReply, Reason};
use crate::filter::{Answered, Filter, RequestHeaders, ResponseHeaders};
use crate::matching::Index;
use crate::model::{Action, Domains, Rule, RuleSource};
use crate::rejected::{Wrong, refuse};

/// Most virtual hosts, domains and rules of one table.
pub const TABLE_MAX: usize = 65_536;
/// Largest body of a fixed answer, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest host name (RFC 1035).
const DOMAIN_BYTES_MAX: usize = 253;

/// See [`crate::model::RouteTable`].
#[derive(Debug)]
pub(super) struct RouteTable {
    pub(super) name: Arc<str>,
    pub(super) content: u64,
    pub(super) domains: Arc<Domains>,
    pub(super) hosts: Vec<StagedHost>,
}

/// See [`crate::model::VirtualHost`].
#[derive(Debug)]
pub(super) struct StagedHost {
    pub(super) rules: Vec<Arc<StagedRule>>,
    pub(super) index: Arc<Index>,
}

impl StagedHost {
    /// The index of a former host is taken where every rule asks for the same.
    fn new(rules: Vec<Arc<StagedRule>>, former: Option<&Self>) -> Self {
        let same = |former: &&Self| {
            let mut pairs = rules.iter().zip(&former.rules);
            rules.len() == former.rules.len() && pairs.all(|(new, old)| Arc::ptr_eq(&new.rule.matches, &old.rule.matches))
        };
        let index = match former.filter(same) {
            Some(former) => Arc::clone(&former.index),
            None => Arc::new(Index::new(rules.iter().map(|staged| &*staged.rule.matches))),
        };
        Self { rules, index }
    }
}

/// A rule whose backends are still named, kept from table to table while its content is the same.
#[derive(Debug)]
pub(super) struct StagedRule {
    /// Hash of all it was compiled from.
    hash: u128,
    pub(super) rule: Rule<Link>,
}

/// A table of its own; rules whose content is in `previous` are taken from there, and keep their ids.
pub(super) fn compile_named(
    name: &str,
    raw: &RouteConfiguration,
    previous: Option<&RouteTable>,
    policies: &mut Policies,
) -> Result<RouteTable, Wrong> {
    same_name(name, &raw.name, "name")?;
    compile(raw, previous, policies)
}

pub(super) fn compile(raw: &RouteConfiguration, previous: Option<&RouteTable>, policies: &mut Policies) -> Result<RouteTable, Wrong> {
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
    let mut domains = Domains::default();
    let mut hosts = Vec::with_capacity(virtual_hosts.len());
    let mut former = Former::of(previous);
    for (index, host) in virtual_hosts.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("virtual_hosts[{index}]"));
        for (inner, domain) in host.domains.iter().enumerate() {
            add_domain(&mut domains, domain, index).map_err(|wrong| at(wrong.within(format!("domains[{inner}]"))))?;
        }
        let level = Level::of_host(host).map_err(at)?;
        let rule = |(inner, route): (usize, &Route)| {
            compile_rule(route, &[&level, &outer], &mut former, policies).map_err(|wrong| at(wrong.within(format!("routes[{inner}]"))))
        };
        let rules = host.routes.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
        hosts.push(StagedHost::new(rules, previous.and_then(|table| table.hosts.get(index))));
    }
    Ok(RouteTable { name: name.as_str().into(), content: stamp(), domains: Arc::new(domains), hosts })
}

/// Domains are unique in the whole table (as in Envoy), compared without regard to case.
pub(super) fn add_domain(domains: &mut Domains, domain: &str, index: usize) -> Result<(), Wrong> {
    let domain = domain.to_ascii_lowercase();
    let wrong = |why: &str| Wrong::new("", format!("`{}` {why}", domain.escape_debug()));
    let add = |domains: &mut Domains| if domains.add(&domain, index) { Ok(()) } else { Err(wrong("is listed twice")) };
    if domain == "*" {
        return add(domains);
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
    add(domains)
}

/// Header operations of one level, and a hash of them: they are part of every rule's content below.
struct Level {
    changes: Vec<Filter>,
    hash: String,
}

impl Level {
    fn of_table(raw: &RouteConfiguration) -> Result<Self, Wrong> {
        let bare = RouteConfiguration {
            request_headers_to_add: raw.request_headers_to_add.clone(),
            request_headers_to_remove: raw.request_headers_to_remove.clone(),
            response_headers_to_add: raw.response_headers_to_add.clone(),
            response_headers_to_remove: raw.response_headers_to_remove.clone(),
            ..RouteConfiguration::default()
        };
        let changes = header_changes(
            (&raw.request_headers_to_add, &raw.request_headers_to_remove),
            (&raw.response_headers_to_add, &raw.response_headers_to_remove),
        )?;
        Ok(Self { changes, hash: proto::epoch::version(&bare.encode_to_vec()) })
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
        let changes =
            header_changes((request_headers_to_add, request_headers_to_remove), (response_headers_to_add, response_headers_to_remove))?;
        Ok(Self { changes, hash: proto::epoch::version(&bare.encode_to_vec()) })
    }
}

type RawOps<'r> = (&'r [HeaderValueOption], &'r [String]);

fn header_changes(request: RawOps<'_>, response: RawOps<'_>) -> Result<Vec<Filter>, Wrong> {
    Ok(forward::changes(RequestHeaders::compile(request.0, request.1)?, ResponseHeaders::compile(response.0, response.1)?))
}

/// `levels` from the inside out: operations run in that order, as in Envoy.
fn compile_rule(raw: &Route, levels: &[&Level], former: &mut Former<'_>, policies: &mut Policies) -> Result<Arc<StagedRule>, Wrong> {
    let mut content = raw.encode_to_vec();
    levels.iter().for_each(|level| content.extend_from_slice(level.hash.as_bytes()));
    let hash = xxh3_128(&content);
    if let Some(kept) = former.take(hash) {
        return Ok(kept);
    }
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
    let Some(raw_match) = r#match else {
        return Err(Wrong::new("match", "is missing"));
    };
    let matches = policies.matches(raw_match).map_err(|wrong| wrong.within("match"))?;
    let mut changes =
        header_changes((request_headers_to_add, request_headers_to_remove), (response_headers_to_add, response_headers_to_remove))?;
    changes.extend(levels.iter().flat_map(|level| level.changes.iter().cloned()));
    let metadata = metadata.as_ref();
    let action = match action {
        None => return Err(Wrong::new("action", "is missing")),
        Some(RawAction::Route(action)) => {
            metadata::only(metadata, &[])?;
            let own: RoutePolicy = policy::find(typed_per_filter_config)?;
            let headers = if changes.is_empty() { Vec::new() } else { header_content(raw, levels) };
            Action::Forward(Arc::new(forward::http(action, &own, (&changes, &headers), policies)?))
        }
        Some(RawAction::Redirect(_)) => return Err(Wrong::unsupported("redirect")),
        Some(RawAction::DirectResponse(fixed)) => {
            refuse(!typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
            Action::Reply(reply(fixed, metadata, &changes)?)
        }
    };
    Ok(Arc::new(StagedRule { hash, rule: Rule { id: next_id(), source: source(name), matches, action } }))
}

/// What the header operations of a rule and the levels above are compiled from.
fn header_content(raw: &Route, levels: &[&Level]) -> Vec<u8> {
    let bare = Route {
        request_headers_to_add: raw.request_headers_to_add.clone(),
        request_headers_to_remove: raw.request_headers_to_remove.clone(),
        response_headers_to_add: raw.response_headers_to_add.clone(),
        response_headers_to_remove: raw.response_headers_to_remove.clone(),
        ..Route::default()
    };
    let mut content = bare.encode_to_vec();
    levels.iter().for_each(|level| content.extend_from_slice(level.hash.as_bytes()));
    content
}

/// Response operations apply to fixed answers too (as in Envoy), so they are carried out here, once.
fn reply(fixed: &DirectResponseAction, metadata: Option<&Metadata>, changes: &[Filter]) -> Result<LocalReply, Wrong> {
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
    changes.iter().for_each(|filter| filter.on_response(&Answered::default(), &mut headers));
    let headers = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(LocalReply { status, reason, headers, body, grpc_status: None })
}

/// `KIND/NAMESPACE/NAME/RULE`; any other name is shown as it is.
fn source(name: &str) -> RuleSource {
    let Some([kind, namespace, object, rule]) = proto::names::rule_parts(name) else {
        return RuleSource { kind: "".into(), namespace: "".into(), name: "".into(), rule: name.into(), label: "".into() };
    };
    let label = if kind == "Service" { String::new() } else { format!("{namespace}/{object}") };
    RuleSource { kind: kind.into(), namespace: namespace.into(), name: object.into(), rule: rule.into(), label: label.into() }
}

/// A table's former rules, by content; of equal rules each is taken once.
struct Former<'t>(HashMap<u128, Vec<&'t Arc<StagedRule>>>);

impl<'t> Former<'t> {
    fn of(previous: Option<&'t RouteTable>) -> Self {
        let mut rules: HashMap<u128, Vec<&Arc<StagedRule>>> = HashMap::new();
        for rule in previous.into_iter().flat_map(|table| table.hosts.iter().flat_map(|host| &host.rules)).rev() {
            rules.entry(rule.hash).or_default().push(rule);
        }
        Self(rules)
    }

    fn take(&mut self, hash: u128) -> Option<Arc<StagedRule>> {
        self.0.get_mut(&hash)?.pop().cloned()
    }
}

pub(super) fn next_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
